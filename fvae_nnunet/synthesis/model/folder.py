"""The folder of a trained latent diffusion model.

::

    manifest.json   {"schema": 1, "kind": "ldm", "settings": {...}, "made_with": {..., "training": {...}},
                     "outputs": {"denoiser/config.json": {"bytes": 1234, "sha256": "..."}, ...}}
    denoiser/       ``LatentDenoiser`` in diffusers' format
    scheduler/      the noise schedule in diffusers' format

The folder is complete when the manifest exists.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvae_nnunet.errors import UserError
from fvae_nnunet.files.recorded import RecordedFile, damage_of, put_in_place
from fvae_nnunet.jobs.manifest import SCHEMA, Manifest, read_json, versions, write_json
from fvae_nnunet.synthesis.model.noise_process import NoiseProcess

if TYPE_CHECKING:
    from fvae_nnunet.synthesis.model.conditions import ConditionFormat
    from fvae_nnunet.synthesis.model.denoiser import LatentDenoiser
    from fvae_nnunet.synthesis.model.lesion_detail import AppearanceScale
    from fvae_nnunet.vae import FrozenVAE
    from fvae_nnunet.vae.base import VAESpec

KIND = "ldm"
DENOISER_FOLDER = "denoiser"
SCHEDULER_FOLDER = "scheduler"


@dataclass(frozen=True)
class ModelSettings:
    """All settings needed to use a model; fields with a default may be missing in folders of older versions.

    Attributes:
        vae: name of the VAE, for ``load_vae``.
        weights_sha256: digest of the VAE's weights.
        latent_channels: number of latent channels of the VAE.
        precision: precision of VAE and denoiser: ``float32``, ``bfloat16`` or ``float16``.
        hu_window: lower and upper HU.
        window_slices: number of slices in a window, valid for the VAE.
        inplane_pixels: side of the training squares along y and x, in pixels.
        spacing_mm: voxel size (z, y, x) to which cases were resampled; None: not resampled.
        mask_encoding: see ``conditions``.
        class_names: names of the classes 1, 2, ...; lesions come last.
        latent_mean, latent_std: statistics of each latent channel.
        prediction: see ``noise_process``.
        text_encoder: hub id, or folder name without its path; None for a model without text.
        text_width: number of channels of its embeddings; None for a model without text.
        organ: source of organ masks (``sources.organs.FORMS``), with folders without their path.
        text_weights_sha256: digest of the text encoder's weights; None: not checked.
        lesions: number of classes that are lesions.
        detail_channels: see ``conditions``.
        core_mean_hu, texture_sd_hu: mean and standard deviation of ``layout.APPEARANCE`` over the training lesions;
            None for a model without appearance in its conditions.
        context: additional input of the network, see ``denoiser``.
    """

    vae: str
    weights_sha256: str
    latent_channels: int
    precision: str
    hu_window: tuple[float, float]
    window_slices: int
    inplane_pixels: int
    spacing_mm: tuple[float, float, float] | None
    mask_encoding: str
    class_names: tuple[str, ...]
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]
    prediction: str
    text_encoder: str | None
    text_width: int | None
    organ: str
    text_weights_sha256: str | None = None
    lesions: int = 1
    detail_channels: int = 0
    core_mean_hu: tuple[float, float] | None = None
    texture_sd_hu: tuple[float, float] | None = None
    context: str = "none"

    @property
    def appearance(self) -> AppearanceScale | None:
        """Scale of the training lesions' appearance; None for a model without appearance in its conditions."""
        if self.core_mean_hu is None or self.texture_sd_hu is None:
            return None
        from fvae_nnunet.synthesis.model.lesion_detail import AppearanceScale

        return AppearanceScale(*zip(self.core_mean_hu, self.texture_sd_hu, strict=True))

    def condition_format(self, spec: VAESpec) -> ConditionFormat:
        """The format of the network's conditions; ``spec`` is that of the model's VAE."""
        from fvae_nnunet.synthesis.model.conditions import ConditionFormat

        return ConditionFormat(
            self.mask_encoding, len(self.class_names), spec, self.latent_mean, self.latent_std, self.appearance
        )

    @property
    def lesion_names(self) -> tuple[str, ...]:
        """The names of the lesion classes."""
        return self.class_names[len(self.class_names) - self.lesions :]

    @classmethod
    def from_json(cls, content: dict[str, Any], path: Path) -> ModelSettings:
        """The settings from a parsed manifest; ``path`` is the manifest's, for messages.

        Raises:
            UserError: an entry is missing or unknown.
        """
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        wrong = sorted((needed - content.keys()) | (content.keys() - {field.name for field in fields(cls)}))
        if wrong:
            raise UserError(f"{path}: the setting {wrong[0]} is missing or unknown; was it written by another version?")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
        }
        return cls(**values)

    def check_vae(self, vae: FrozenVAE) -> None:
        """UserError unless this is the VAE that the model was trained with."""
        spec = vae.spec
        if spec.latent_channels != self.latent_channels:
            raise UserError(
                f"{spec.name} has {spec.latent_channels} latent channels, but the model was trained with {self.vae}, "
                f"which has {self.latent_channels}"
            )
        if self.window_slices != spec.padded_slices(self.window_slices):
            raise UserError(
                f"the model was trained with windows of {self.window_slices} slices, which {spec.name} does not accept "
                f"({spec.slice_offset} + k * {spec.slice_stride})"
            )
        if self.inplane_pixels != spec.padded_inplane(self.inplane_pixels):
            raise UserError(
                f"the model was trained with {self.inplane_pixels} pixels in-plane, which {spec.name} does not accept "
                f"(multiples of {spec.inplane_stride})"
            )
        if vae.weights_sha256 != self.weights_sha256:
            raise UserError(
                f"the weights of {spec.name} ({vae.weights_source}) are not those with which the model was trained; "
                + vae.remedy_for_other_weights("`weights=PATH`")
            )

    def check_denoiser(self, denoiser: LatentDenoiser) -> None:
        """UserError unless the settings fit the network."""
        config = denoiser.config
        expected = {
            "latent_channels": self.latent_channels,
            "mask_encoding": self.mask_encoding,
            "classes": len(self.class_names),
            "text_width": self.text_width,
            "detail_channels": self.detail_channels,
            "context": self.context,
        }
        for name, value in expected.items():
            if config[name] != value:
                raise UserError(f"the denoiser has {name} {config[name]}, but the model's settings say {value}")
        for name in ("latent_mean", "latent_std"):
            if len(getattr(self, name)) != self.latent_channels:
                raise UserError(f"the model's settings need {name} for each of {self.latent_channels} latent channels")


def save_model(
    folder: Path,
    denoiser: LatentDenoiser,
    settings: ModelSettings,
    training: dict[str, Any] | None = None,
    *,
    process: NoiseProcess | None = None,
) -> None:
    """Write a model folder.

    A new folder appears only when complete. In an existing folder the model is replaced and other files are kept; the
    manifest, without which the model is invalid, is removed first and written last.

    Args:
        folder: folder of the model.
        denoiser: the network, saved in its own precision.
        settings: settings of the model.
        training: JSON values that describe the training: its cases (``training_cases``), its ``condition_dropout``,
            without which guidance is refused, and whether there were ``samples_without_text``, without which a text is
            required.
        process: noise process with its sampling defaults; None: those of the paper.
    """
    process = process or NoiseProcess(settings.prediction)
    folder.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "schema": SCHEMA,
        "kind": KIND,
        "settings": asdict(settings),
        "made_with": versions() | {"training": training or {}},
    }
    place = folder if folder.is_dir() else folder.parent
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial.", dir=place))
    try:
        partial.chmod(0o755)
        denoiser.save_pretrained(partial / DENOISER_FOLDER)
        config = partial / DENOISER_FOLDER / "config.json"
        # do not publish the local path from which the denoiser was loaded
        write_json(config, {name: value for name, value in read_json(config).items() if name != "_name_or_path"})
        for weights in (partial / DENOISER_FOLDER).glob("*.safetensors"):
            # safetensors creates files that only their owner can read
            shutil.copymode(partial / DENOISER_FOLDER / "config.json", weights)
        process.save(partial / SCHEDULER_FOLDER)
        content["outputs"] = {
            path.relative_to(partial).as_posix(): RecordedFile.of(path).to_json()
            for path in partial.rglob("*")
            if path.is_file()
        }
        if not folder.is_dir():
            write_json(partial / "manifest.json", content)
            put_in_place(partial, folder)
            return
        (folder / "manifest.json").unlink(missing_ok=True)
        for name in (DENOISER_FOLDER, SCHEDULER_FOLDER):
            shutil.rmtree(folder / name, ignore_errors=True)
            put_in_place(partial / name, folder / name)
        write_json(folder / "manifest.json", content)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_damaged(folder: Path) -> None:
    """Raise UserError if a file of a model was modified or damaged; models of older versions cannot be checked."""
    for path, what in damage_of(Manifest(folder).files()).items():
        raise UserError(f"{path} {what}; copy the model again, or train it again with fvae-train-ldm")


def needs_text(settings: ModelSettings, training: dict[str, Any]) -> bool:
    """Whether a model requires a text, because every training sample had one.

    Args:
        settings, training: output of ``read_model``.
    """
    return settings.text_encoder is not None and not training.get("samples_without_text", True)


def allows_guidance(training: dict[str, Any]) -> bool:
    """Whether a model was trained with dropped conditions, as guidance requires; ``training``: see ``read_model``."""
    return bool(training.get("condition_dropout", 1))


def read_model(folder: Path) -> tuple[ModelSettings, dict[str, Any]]:
    """Read the settings and the training record of a model folder.

    Raises:
        UserError: the folder has no complete model.
    """
    manifest = Manifest(folder)
    content = manifest.read()
    if content is None or content.get("kind") != KIND:
        raise UserError(f"{folder} is not a latent diffusion model; train one with fvae-train-ldm")
    settings = ModelSettings.from_json(content["settings"], manifest.path)
    return settings, content.get("made_with", {}).get("training", {})
