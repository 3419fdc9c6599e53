"""Generate planned lesions and blend them into a case, or generate the whole volume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from fvae_nnunet.ct.boxes import box_around
from fvae_nnunet.ct.intensity import round_to_int16
from fvae_nnunet.errors import UserError
from fvae_nnunet.synthesis.lesions.appearance import Appearance
from fvae_nnunet.synthesis.lesions.insertion import TEXTURES, blend_lesion, margin_weight
from fvae_nnunet.synthesis.lesions.placed import PlacedLesion
from fvae_nnunet.synthesis.model.draft import drafted
from fvae_nnunet.synthesis.model.grid import ModelGrid, resampled
from fvae_nnunet.synthesis.model.inpainting import inpaint, slices_seen
from fvae_nnunet.synthesis.model.latent_encoding import MARGIN_MM
from fvae_nnunet.synthesis.model.layout import Layout
from fvae_nnunet.synthesis.sources.cases import SourceCase

if TYPE_CHECKING:
    from fvae_nnunet.synthesis.model.latent_diffusion import LatentDiffusion, Sampling
    from fvae_nnunet.synthesis.model.noise_process import NoiseProcess
    from fvae_nnunet.synthesis.model.sampling import OnStep

MODES = ("inpaint", "grow", "full")


@dataclass(frozen=True)
class PaintSettings:
    """Settings for generating lesions.

    Attributes:
        mode: ``inpaint``: insert lesions into the real case; ``grow``: replace lesions of the real case; ``full``:
            generate the whole volume from its class map.
        margin_mm: distance from a lesion within which voxels may change; not used with ``full``.
        texture: see ``insertion.blend_lesion``; not used with ``full``.
        steps, eta: sampling parameters; None: defaults of the model.
        guidance, text: sampling parameters, see ``latent_diffusion.Sampling``.
    """

    mode: str = "inpaint"
    margin_mm: float = MARGIN_MM
    texture: str = "scanner"
    steps: int | None = None
    eta: float | None = None
    guidance: float = 1.0
    text: str | None = None

    def resolved(self, process: NoiseProcess) -> PaintSettings:
        """The settings with missing steps and eta taken from a model's process."""
        return replace(
            self,
            steps=process.steps if self.steps is None else self.steps,
            eta=process.eta if self.eta is None else self.eta,
        )

    def __post_init__(self) -> None:
        if self.mode not in MODES or self.texture not in TEXTURES:
            raise UserError(
                f"the mode must be one of {', '.join(MODES)} and the texture one of {', '.join(TEXTURES)}; got "
                f"{self.mode!r} and {self.texture!r}"
            )
        if not 0 <= self.margin_mm < float("inf"):
            raise UserError(f"`margin_mm` must not be negative, got {self.margin_mm:g}")
        if self.steps is not None and self.steps < 1:
            raise UserError(f"`steps` must be at least 1, got {self.steps}")
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise UserError(f"`eta` must be between 0 and 1, got {self.eta:g}")


def noise_of(entropy: Sequence[int]) -> torch.Generator:
    """The CPU generator of a case's noise, seeded by integers of at least 0."""
    state = np.random.SeedSequence(list(entropy), spawn_key=(1,)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def with_lesion(layout: Layout, lesion: PlacedLesion, lesion_class: int) -> Layout:
    """The layout with a planned lesion added, and without the lesion that it replaces."""
    if lesion.replaces is not None:
        layout = layout.without_lesion(lesion.replaces.box, lesion.replaces.shape, lesion.replaces.classes)
    appearance = lesion.appearance or Appearance(math.nan, math.nan)
    return layout.with_lesion(lesion.box, lesion.shape, lesion_class, appearance)


def paint(
    model: LatentDiffusion,
    source: SourceCase,
    lesions: Sequence[PlacedLesion],
    settings: PaintSettings,
    *,
    generator: torch.Generator,
    on_step: OnStep | None = None,
) -> np.ndarray:
    """Generate the synthetic volume of a case: int16 HU (z, y, x), axial.

    ``inpaint`` and ``grow`` insert one lesion after the other; the model sees the earlier ones. Voxels at ``margin_mm``
    or more from all new lesions, and from those that they replace, keep their raw values.

    Args:
        model: the diffusion model.
        source: the real case.
        lesions: lesions to insert.
        settings: settings for generating them.
        generator: CPU generator of all noise.
        on_step: called with the number of steps done and the total, for each generated window.

    Raises:
        UserError: a lesion has no voxel on the model's coarser grid, HU do not fit int16, or as for the model.
    """
    told_looks = model.settings.appearance is not None
    layout = Layout.of(
        source.class_map,
        source.spacing_mm,
        organs=source.organ_classes,
        volume_hu=source.volume_hu if told_looks else None,
    )
    volume_hu = source.volume_hu.copy()
    for lesion in lesions:
        layout = with_lesion(layout, lesion, source.lesion_class)
        if settings.mode != "full":
            _insert(model, volume_hu, layout, lesion, settings, _sampling(settings, settings.text, generator, on_step))
    if settings.mode != "full":
        return volume_hu
    return generated_volume(model, layout, settings, text=settings.text, generator=generator, on_step=on_step)


def generated_volume(
    model: LatentDiffusion,
    layout: Layout,
    settings: PaintSettings,
    *,
    text: str | None,
    generator: torch.Generator,
    on_step: OnStep | None = None,
) -> np.ndarray:
    """Generate a whole volume from its layout: int16 HU, same shape (z, y, x).

    If the model has no spacing of its own, the volume is never in memory with another dtype.

    Args:
        model: the diffusion model.
        layout: the layout, axial.
        settings: sampling settings.
        text: a report, for models with text; the text of the settings is not used.
        generator: CPU generator of all noise.
        on_step: called with the number of steps done and the total.

    Raises:
        UserError: as for the model.
    """
    grid = ModelGrid(layout.shape, layout.spacing_mm, model.settings.spacing_mm)
    on_models_grid = np.empty(grid.shape, dtype=np.int16 if grid.shape == layout.shape else np.float32)
    start = 0
    for run in model.generate_runs(grid.layout(layout), **_sampling(settings, text, generator, on_step)):
        on_models_grid[start : start + len(run)] = round_to_int16(run) if on_models_grid.dtype == np.int16 else run
        start += len(run)
    return round_to_int16(resampled(on_models_grid, layout.shape, order=1))


def _insert(
    model: LatentDiffusion,
    volume_hu: np.ndarray,
    layout: Layout,
    lesion: PlacedLesion,
    settings: PaintSettings,
    sampling: Sampling,
) -> None:
    """Generate one lesion and blend it into ``volume_hu``, in place."""
    spacing_mm = layout.spacing_mm
    mask = lesion.changed(volume_hu.shape)
    box = box_around(mask, settings.margin_mm, spacing_mm)
    region = np.zeros(volume_hu.shape, dtype=bool)
    region[box] = margin_weight(mask[box], spacing_mm, settings.margin_mm) > 0
    grid = ModelGrid(volume_hu.shape, spacing_mm, model.settings.spacing_mm)
    if not grid.mask(lesion.mask(volume_hu.shape)).any():
        model_mm = " x ".join(f"{step:g}" for step in grid.model_spacing_mm or spacing_mm)
        raise UserError(
            f"a lesion of {lesion.diameter_mm:.1f} mm has no voxel at the model's spacing of {model_mm} mm; choose "
            "larger lesions (`sizes`, `diameter_mm`)"
        )
    seen = slices_seen(grid.region(box)[0], grid.shape[0], model.settings.window_slices)
    draft_hu = None
    if model.settings.context == "draft":
        assert model.settings.appearance is not None
        drawn_hu = drafted(
            volume_hu,
            layout,
            mask,
            unknown=Appearance(*model.settings.appearance.mean),
            rng=np.random.default_rng(int(torch.randint(2**62, (), generator=sampling["generator"]))),
        )
        draft_hu = grid.volume(drawn_hu)[seen]
    decoded = inpaint(
        model,
        grid.volume(volume_hu)[seen],
        grid.layout(layout).slices(seen),
        grid.mask(region)[seen],
        draft_hu,
        **sampling,
    )
    of = (seen, slice(0, grid.shape[1]), slice(0, grid.shape[2]))
    generated_hu, reconstructed_hu = (grid.back(volume, of, box) for volume in decoded)
    raw_hu = volume_hu[box]
    # values clipped by the HU window, such as metal, are unknown to the model: treat them as reconstruction error
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


def _sampling(
    settings: PaintSettings, text: str | None, generator: torch.Generator, on_step: OnStep | None
) -> Sampling:
    return {
        "generator": generator,
        "steps": settings.steps,
        "eta": settings.eta,
        "guidance": settings.guidance,
        "text": text,
        "on_step": on_step,
    }
