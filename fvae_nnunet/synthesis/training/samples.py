"""Draw pictures during training: real lesions, and lesions generated from their masks with the sampler of
``fvae-synthesize``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fvae_nnunet.pictures.colours import ORANGE, SKY_BLUE
from fvae_nnunet.pictures.hu_windows import hu_window_around
from fvae_nnunet.pictures.marks import mark_panel
from fvae_nnunet.pictures.outlines import Outline
from fvae_nnunet.pictures.panels import show_slice
from fvae_nnunet.pictures.planes import Extent, sides_of
from fvae_nnunet.synthesis.lesions.measures import lesion_core
from fvae_nnunet.synthesis.model.denoiser import LatentDenoiser
from fvae_nnunet.synthesis.model.folder import ModelSettings
from fvae_nnunet.synthesis.model.lesion_detail import outline_channels
from fvae_nnunet.synthesis.model.noise_process import NoiseProcess
from fvae_nnunet.synthesis.model.scale import unstandardise
from fvae_nnunet.synthesis.training.latent_draws import LatentDraws, Sample, random_streams
from fvae_nnunet.vae.base import FrozenVAE

ROWS = 3
LESION_OUTLINE, ORGAN_OUTLINE = Outline(ORANGE, 1.2), Outline(SKY_BLUE, 1.0)
ORGAN_SHARE = 0.25
"""Smallest share of organ in a latent cell that is drawn as organ; a half would lose thin organs, as wide as a cell."""

AROUND_CELLS = 1
"""Number of latent cells around the lesion that are generated with it."""


@dataclass(frozen=True)
class SamplePictures:
    """Draw the pictures of a training.

    Attributes:
        folder: folder for the pictures, ``step_<step>.png``.
        draws: source of windows with lesions.
        settings: settings of the model.
        process: noise process with its sampling defaults.
        vae: the frozen VAE.
        direction_of: case -> ``ct.geometry.Geometry.axial_direction`` of its image.
        seed: seed of the windows and the noise, the same for every picture so that pictures are comparable.
    """

    folder: Path
    draws: LatentDraws
    settings: ModelSettings
    process: NoiseProcess
    vae: FrozenVAE
    direction_of: Callable[[str], np.ndarray]
    seed: int

    def __call__(self, denoiser: LatentDenoiser, step: int) -> Path:
        """Write a picture of ``ROWS`` lesions: real, with only the lesion generated, and with everything generated.

        All three are decoded by the VAE; the report of the case is the text. Shown are the slices with the most lesion,
        outlined in orange, and the organ (if the model has a single one) in blue. The titles give mean and standard
        deviation of HU in the core of the lesion, measured as in quality control (``lesions.measures``).
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        from fvae_nnunet.files.recorded import atomic_write

        figure = Figure(figsize=(9, 3.3 * ROWS), layout="constrained")
        FigureCanvasAgg(figure)
        for number, panels in enumerate(figure.subplots(ROWS, 3, squeeze=False)):
            places, generator = random_streams(self.seed, 0, 0, number)
            sample = self.draws.sample(2, places, with_lesion=self.draws.cases_with_lesion > 0)
            frame = int(sample.lesion.sum(dim=(1, 2)).argmax())
            volumes = self._volumes(denoiser, sample, generator)
            mask, organ = self._lesion_pixels(sample), self._organ_pixels(sample)
            window = hu_window_around(volumes[0], mask, sample.spacing_mm)
            extent = _extent_mm(mask.shape, sample.spacing_mm)
            _, down, right = self.direction_of(sample.case).T
            sides = sides_of(down, right)
            names = (f"{sample.case}: real", "lesion generated", "all generated")
            for panel, name, volume_hu in zip(panels, names, volumes, strict=True):
                show_slice(panel, volume_hu[frame], window, extent)
                ORGAN_OUTLINE.draw(panel, organ[frame], extent)
                LESION_OUTLINE.draw(panel, mask[frame], extent)
                mark_panel(panel, sides, font_size=8)
                panel.set_title(f"{name}{_core_of(volume_hu, mask, sample.spacing_mm)}", fontsize=9, parse_math=False)
            panels[0].set_ylabel(f"{window[0]:.0f} to {window[1]:.0f} HU", fontsize=8)
        figure.suptitle(
            f"step {step}: decoded latents. Outlines: lesion (orange), organ in latent cells (blue)", fontsize=10
        )
        path = self.folder / f"step_{step:07d}.png"
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format="png", dpi=100)
        return path

    @torch.no_grad()
    def _volumes(self, denoiser: LatentDenoiser, sample: Sample, generator: torch.Generator) -> list[np.ndarray]:
        """The three volumes in HU (d, y, x), with one slice per latent slice."""
        from fvae_nnunet.synthesis.model.sampling import Known, LatentWindows, sample_latent

        device = denoiser.device
        embedding = self.draws.texts.get(sample.case)
        text = None if embedding is None else embedding[None].float().to(device)
        latent, condition = sample.latent[None].to(device), sample.condition[None].to(device)
        draft = None if sample.draft is None else sample.draft[None].to(device)
        generated = _around(sample.lesion) if sample.region is None else sample.region[None, None]
        windows = LatentWindows.over(self.settings.window_slices, self.settings.window_slices, self.vae.spec)
        sampler = self.process.sampler()
        made = [latent] + [
            sample_latent(denoiser, sampler, windows, [condition], generator=generator, text=text, known=known)
            for known in (Known(latent, generated.to(device), draft), None)
        ]
        return [self._decoded(one) for one in made]

    def _lesion_pixels(self, sample: Sample) -> np.ndarray:
        """The lesion in the shown slices, bool (d, y, x): exact if the model has its outline as condition, otherwise in
        latent cells."""
        stride = self.vae.spec.inplane_stride
        if self.settings.mask_encoding != "outline":
            return _in_pixels(sample.lesion.numpy() > 0, stride)
        first = len(self.settings.class_names) + 1
        voxels = sample.condition[first : first + outline_channels(self.vae.spec)]
        # the last of the slices coded by a latent slice
        pixels = voxels[-(stride**2) :].unflatten(0, (stride, stride)).permute(2, 3, 0, 4, 1)
        return (pixels.flatten(3, 4).flatten(1, 2) > 0).numpy()

    def _organ_pixels(self, sample: Sample) -> np.ndarray:
        """Cells with at least ``ORGAN_SHARE`` organ or lesion, bool (d, y, x); none unless the model has a single
        organ."""
        organs = len(self.settings.class_names) - self.settings.lesions
        shares = torch.zeros_like(sample.lesion)
        if organs == 1 and self.settings.mask_encoding != "vae":
            shares = 1 - sample.condition[0]
        return _in_pixels(shares.numpy() >= ORGAN_SHARE, self.vae.spec.inplane_stride)

    def _decoded(self, latent: torch.Tensor) -> np.ndarray:
        from fvae_nnunet.ct.intensity import model_to_hu

        raw = unstandardise(latent, self.settings.latent_mean, self.settings.latent_std)
        volume = model_to_hu(self.vae.decode(raw.to(self.vae.device)), self.settings.hu_window)[0, 0].cpu().numpy()
        # the last of the slices coded by a latent slice
        stride, offset = self.vae.spec.slice_stride, self.vae.spec.slice_offset
        return volume[(offset or stride) - 1 :: stride]


def _around(lesion: torch.Tensor) -> torch.Tensor:
    """Lesion cells (d, h, w) and their neighbours along y and x: bool (1, 1, d, h, w)."""
    sides = 2 * AROUND_CELLS + 1
    held = (lesion > 0).float()[None, None]
    return torch.nn.functional.max_pool3d(held, (1, sides, sides), 1, (0, AROUND_CELLS, AROUND_CELLS)) > 0


def _in_pixels(cells: np.ndarray, stride: int) -> np.ndarray:
    """Repeat the values of latent cells (d, h, w) for each pixel (d, y, x)."""
    return cells.repeat(stride, axis=1).repeat(stride, axis=2)


def _extent_mm(shape: tuple[int, ...], spacing_mm: tuple[float, float, float]) -> Extent:
    """Extent in mm of a slice of an axial volume."""
    return 0.0, shape[2] * spacing_mm[2], shape[1] * spacing_mm[1], 0.0


def _core_of(volume_hu: np.ndarray, lesion: np.ndarray, spacing_mm: tuple[float, float, float]) -> str:
    """A line of text on the core of a lesion, bool (d, y, x); empty without a lesion."""
    if not lesion.any():
        return ""
    core_hu = volume_hu[lesion_core(lesion, spacing_mm)]
    return f"\ncore {core_hu.mean():.0f} HU, SD {core_hu.std():.0f}"
