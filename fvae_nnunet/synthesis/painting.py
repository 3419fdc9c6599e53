"""From planned lesions to HU: each is generated and blended into the case, or the whole volume is generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fvae_nnunet.errors import UserError
from fvae_nnunet.intensity import round_to_int16
from fvae_nnunet.synthesis.case_plan import PlacedLesion
from fvae_nnunet.synthesis.crop import Crop, inpaint
from fvae_nnunet.synthesis.insertion import TEXTURES, blend_lesion, margin_weight
from fvae_nnunet.synthesis.placement import grown
from fvae_nnunet.synthesis.source_cases import SourceCase

if TYPE_CHECKING:
    import torch

    from fvae_nnunet.synthesis.model import LatentDiffusion

MODES = ("inpaint", "full")
OnStep = Callable[[int, int], object]


@dataclass(frozen=True)
class PaintSettings:
    """How lesions are generated.

    Attributes:
        mode: ``inpaint``: into the real case; ``full``: the whole volume from its class map.
        margin_mm: around a lesion within which voxels may change, for ``inpaint``.
        texture: see ``insertion.blend_lesion``, for ``inpaint``.
        steps, eta, guidance, text: of sampling.
    """

    mode: str = "inpaint"
    margin_mm: float = 5.0
    texture: str = "scanner"
    steps: int = 20
    eta: float = 1.0
    guidance: float = 1.0
    text: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES or self.texture not in TEXTURES:
            raise UserError(
                f"the mode is {' or '.join(MODES)} and the texture {' or '.join(TEXTURES)}; got {self.mode!r} and "
                f"{self.texture!r}"
            )
        if not 0 <= self.margin_mm < float("inf"):
            raise UserError(f"--margin-mm must not be negative, got {self.margin_mm:g}")
        if self.steps < 1 or not 0 <= self.eta <= 1:
            raise UserError(f"--steps must be at least 1 and --eta in 0 to 1, got {self.steps} and {self.eta:g}")


def class_map_with(source: SourceCase, lesions: Sequence[PlacedLesion], lesion_class: int) -> np.ndarray:
    """The class map of a case with lesions put in, uint8 (z, y, x)."""
    class_map = source.class_map.copy()
    for lesion in lesions:
        class_map[lesion.box][lesion.shape] = lesion_class
    return class_map


def paint(
    model: LatentDiffusion,
    source: SourceCase,
    lesions: Sequence[PlacedLesion],
    settings: PaintSettings,
    *,
    generator: torch.Generator,
    on_step: OnStep | None = None,
) -> np.ndarray:
    """The synthetic volume of a case: int16 HU (z, y, x), axial.

    ``inpaint`` puts one lesion after the other into the volume; the model sees those before. Voxels that are
    ``margin_mm`` or more from every new lesion are the raw ones.

    Args:
        model: generates.
        source: the real case.
        lesions: to put in.
        settings: how.
        generator: on the CPU; all noise comes from it.
        on_step: called with the steps done and in all, for each window that is generated.

    Raises:
        UserError: a lesion has no voxel on the model's coarser grid, HU that do not fit int16, or what the model says.
    """
    lesion_class = source.lesion_class
    if settings.mode == "full":
        class_map = class_map_with(source, lesions, lesion_class)
        return generated_volume(
            model,
            class_map,
            source.spacing_mm,
            settings,
            text=settings.text,
            generator=generator,
            on_step=on_step,
        )
    volume_hu = source.volume_hu.copy()
    for number, lesion in enumerate(lesions, start=1):
        class_map = class_map_with(source, lesions[:number], lesion_class)
        _insert(model, volume_hu, class_map, lesion, source.spacing_mm, settings, generator, on_step)
    return volume_hu


def generated_volume(
    model: LatentDiffusion,
    class_map: np.ndarray,
    spacing_mm: tuple[float, float, float],
    settings: PaintSettings,
    *,
    text: str | None,
    generator: torch.Generator,
    on_step: OnStep | None = None,
) -> np.ndarray:
    """A whole volume from its class map: int16 HU, same shape (z, y, x).

    Where the model has no spacing of its own, the volume is never held in another dtype.

    Args:
        model: generates.
        class_map: uint8 (z, y, x), axial.
        spacing_mm: of its voxels.
        settings: how to sample.
        text: a report, for models that know text; that of the settings is not used.
        generator: on the CPU; all noise comes from it.
        on_step: called with the steps done and in all.

    Raises:
        UserError: what the model says.
    """
    crop = Crop.whole(class_map.shape, spacing_mm, model.settings.spacing_mm)
    on_models_grid = np.empty(crop.model_shape, dtype=np.int16 if crop.model_shape == class_map.shape else np.float32)
    start = 0
    for run in model.generate_runs(
        crop.to_model(class_map, order=0),
        generator=generator,
        on_step=on_step,
        **_sampling(settings) | {"text": text},
    ):
        on_models_grid[start : start + len(run)] = round_to_int16(run) if on_models_grid.dtype == np.int16 else run
        start += len(run)
    return round_to_int16(crop.from_model(on_models_grid))


def _insert(
    model: LatentDiffusion,
    volume_hu: np.ndarray,
    class_map: np.ndarray,
    lesion: PlacedLesion,
    spacing_mm: tuple[float, float, float],
    settings: PaintSettings,
    generator: torch.Generator,
    on_step: OnStep | None,
) -> None:
    """Generate one lesion and blend it into ``volume_hu``, in place."""
    margins = np.ceil(settings.margin_mm / np.asarray(spacing_mm)).astype(int)
    box = grown(lesion.box, margins, volume_hu.shape)
    crop = Crop.around(
        box,
        volume_hu.shape,
        spacing_mm,
        model_spacing_mm=model.settings.spacing_mm,
        window_slices=model.settings.window_slices,
        inplane_pixels=model.settings.inplane_pixels,
    )
    mask = lesion.mask(volume_hu.shape)
    region = np.zeros(volume_hu.shape, dtype=bool)
    region[box] = margin_weight(mask[box], spacing_mm, settings.margin_mm) > 0
    if not crop.to_model(mask, order=0).any():
        raise UserError(
            f"a lesion of {lesion.diameter_mm:.1f} mm has no voxel at the model's spacing of "
            f"{model.settings.spacing_mm} mm; choose larger ones (--sizes, --diameter-mm)"
        )
    decoded = inpaint(
        model,
        crop.to_model(volume_hu, order=1),
        crop.to_model(class_map, order=0),
        crop.to_model(region, order=0),
        generator=generator,
        on_step=on_step,
        **_sampling(settings),
    )
    within = tuple(slice(side.start - of.start, side.stop - of.start) for side, of in zip(box, crop.box, strict=True))
    generated_hu, reconstructed_hu = (crop.from_model(volume)[within] for volume in decoded)
    raw_hu = volume_hu[box]
    # what the HU window cuts off, such as metal, the model has never seen: it counts as an error of the reconstruction
    cut_off = raw_hu - raw_hu.clip(*model.settings.hu_window)
    volume_hu[box] = blend_lesion(
        raw_hu,
        generated_hu,
        reconstructed_hu + cut_off,
        mask[box],
        spacing_mm,
        settings.margin_mm,
        texture=settings.texture,
    )


def _sampling(settings: PaintSettings) -> dict[str, Any]:
    return {
        "steps": settings.steps,
        "eta": settings.eta,
        "guidance": settings.guidance,
        "text": settings.text,
    }
