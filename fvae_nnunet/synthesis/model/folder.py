"""The folder of a trained latent diffusion model.

::

    manifest.json   {"schema": 1, "kind": "ldm", "settings": {...}, "made_with": {..., "training": {...}},
                     "outputs": {"denoiser/config.json": {"bytes": 1234, "sha256": "..."}, ...}}
    denoiser/       ``LatentDenoiser`` in diffusers' format
    scheduler/      the noise schedule in diffusers' format

It is complete when the manifest is there.
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
    """Everything needed to use a model; folders of older versions lack what has a default.

    Attributes:
        vae: name of the VAE, for ``load_vae``.
        weights_sha256: of the VAE.
        latent_channels: of the VAE.
        precision: in which VAE and denoiser compute: ``float32``, ``bfloat16`` or ``float16``.
        hu_window: lower and upper HU.
        window_slices: of a window, admissible for the VAE.
        inplane_pixels: of the squares that the model was trained on, along y and x.
        spacing_mm: (z, y, x) to which cases were resampled; None: as they are.
        mask_encoding: see ``conditions``.
        class_names: of the classes 1, 2, ...; lesions are the last.
        latent_mean, latent_std: of each latent channel.
        prediction: see ``noise_process``.
        text_encoder: hub id, or name of the folder without its place; None for a model without text.
        text_width: channels of its embeddings; None for a model without text.
        organ: where organ masks come from (``sources.organs.FORMS``), a folder without its place.
        text_weights_sha256: of the text encoder; None: not checked.
        lesions: how many of the classes are lesions.
        detail_channels: see ``conditions``.
        core_mean_hu, texture_sd_hu: mean and standard deviation of ``layout.APPEARANCE`` over the training lesions;
            None for a model that is not told how lesions look.
        context: what the network sees of the latent, see ``denoiser``.
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
        """Of the training lesions; None for a model that is not told how lesions look."""
        if self.core_mean_hu is None or self.texture_sd_hu is None:
            return None
        from fvae_nnunet.synthesis.model.lesion_detail import AppearanceScale

        return AppearanceScale(*zip(self.core_mean_hu, self.texture_sd_hu, strict=True))

    def condition_format(self, spec: VAESpec) -> ConditionFormat:
        """How the network is told what is where; ``spec`` is that of the model's VAE."""
        from fvae_nnunet.synthesis.model.conditions import ConditionFormat

        return ConditionFormat(
            self.mask_encoding, len(self.class_names), spec, self.latent_mean, self.latent_std, self.appearance
        )

    @property
    def lesion_names(self) -> tuple[str, ...]:
        """Of the classes that are lesions."""
        return self.class_names[len(self.class_names) - self.lesions :]

    @classmethod
    def from_json(cls, content: dict[str, Any], path: Path) -> ModelSettings:
        """The settings of a parsed manifest; ``path`` is its own, for messages.

        Raises:
            UserError: an entry is missing or unknown.
        """
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        wrong = sorted((needed - content.keys()) | (content.keys() - {field.name for field in fields(cls)}))
        if wrong:
            raise UserError(f"{path}: the settings lack or do not know {wrong[0]}; was it written by another version?")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
        }
        return cls(**values)

    def check_vae(self, vae: FrozenVAE) -> None:
        """UserError unless this is the VAE that the model was trained with."""
        spec = vae.spec
        if spec.latent_channels != self.latent_channels:
            raise UserError(
                f"{spec.name} has {spec.latent_channels} latent channels, the model was trained with {self.vae} and "
                f"{self.latent_channels}"
            )
        if self.window_slices != spec.padded_slices(self.window_slices):
            raise UserError(
                f"the model was trained with windows of {self.window_slices} slices, which {spec.name} does not take "
                f"({spec.slice_offset} + k * {spec.slice_stride})"
            )
        if self.inplane_pixels != spec.padded_inplane(self.inplane_pixels):
            raise UserError(
                f"the model was trained with {self.inplane_pixels} pixels in-plane, which {spec.name} does not take "
                f"(multiples of {spec.inplane_stride})"
            )
        if vae.weights_sha256 != self.weights_sha256:
            raise UserError(
                f"the weights of {spec.name} ({vae.weights_source}) are not those that the model was trained with; "
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
                raise UserError(f"the denoiser has {name} {config[name]}, the model's settings say {value}")
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

    A new folder appears whole. In one that exists the model is replaced and other files stay; the manifest, without
    which it is no model, is removed first and written last.

    Args:
        folder: of the model.
        denoiser: the network, saved in its own precision.
        settings: for its use.
        training: of JSON values, for the reader: how it was trained, on which cases (``training_cases``), and with
            which ``condition_dropout``, without which guidance is refused, and whether there were
            ``samples_without_text``, without which a text is needed.
        process: of the noise, and how to sample; None: as the paper.
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
        # where a denoiser was loaded from, which is nobody's business
        write_json(config, {name: value for name, value in read_json(config).items() if name != "_name_or_path"})
        for weights in (partial / DENOISER_FOLDER).glob("*.safetensors"):
            # safetensors makes files that nobody else may read
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
    """UserError where a file of a model is not as it was written; models of an older version cannot be checked."""
    for path, what in damage_of(Manifest(folder).files()).items():
        raise UserError(f"{path} {what}; copy the model again, or make it again with fvae-train-ldm")


def needs_text(settings: ModelSettings, training: dict[str, Any]) -> bool:
    """Whether a model does not know what it is to have no text: every sample of its training had one.

    Args:
        settings, training: from ``read_model``.
    """
    return settings.text_encoder is not None and not training.get("samples_without_text", True)


def allows_guidance(training: dict[str, Any]) -> bool:
    """Whether a model has seen samples without condition, which guidance needs; ``training`` from ``read_model``."""
    return bool(training.get("condition_dropout", 1))


def read_model(folder: Path) -> tuple[ModelSettings, dict[str, Any]]:
    """Settings and training record of a model folder.

    Raises:
        UserError: there is no whole model in it.
    """
    manifest = Manifest(folder)
    content = manifest.read()
    if content is None or content.get("kind") != KIND:
        raise UserError(f"{folder} is no latent diffusion model; fvae-train-ldm makes one")
    settings = ModelSettings.from_json(content["settings"], manifest.path)
    return settings, content.get("made_with", {}).get("training", {})
