"""Pictures of what a model makes while it is trained: real lesions, and lesions generated from their masks, sampled as
``fvae-synthesize`` samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fvae_nnunet.synthesis.lesions.measures import lesion_core
from fvae_nnunet.synthesis.model.denoiser import LatentDenoiser
from fvae_nnunet.synthesis.model.folder import ModelSettings
from fvae_nnunet.synthesis.model.lesion_detail import outline_channels
from fvae_nnunet.synthesis.model.noise_process import NoiseProcess
from fvae_nnunet.synthesis.model.scale import unstandardise
from fvae_nnunet.synthesis.training.latent_draws import LatentDraws, Sample, random_streams
from fvae_nnunet.vae.base import FrozenVAE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS = 3
AROUND_CELLS = 1
"""Latent cells around the lesion that are generated with it."""


@dataclass(frozen=True)
class SamplePictures:
    """Draws the pictures of a training.

    Attributes:
        folder: where they go, ``step_<step>.png``.
        draws: where windows with lesion come from.
        settings: of the model.
        process: says how to sample.
        vae: decodes.
        seed: of the windows and of the noise; the same for every picture, so that they can be compared.
    """

    folder: Path
    draws: LatentDraws
    settings: ModelSettings
    process: NoiseProcess
    vae: FrozenVAE
    seed: int

    def __call__(self, denoiser: LatentDenoiser, step: int) -> Path:
        """Write a picture of ``ROWS`` lesions: decoded, with the lesion generated anew, and all generated, with the
        case's report as their text.

        The slices are those with most lesion, its outline in red; the headlines give mean and standard deviation of HU
        in the lesion's core, as quality control measures them (``lesions.measures``).
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        from fvae_nnunet.files.recorded import atomic_write

        figure = Figure(figsize=(9, 3.2 * ROWS), layout="constrained")
        FigureCanvasAgg(figure)
        for number, axes in enumerate(figure.subplots(ROWS, 3, squeeze=False)):
            places, generator = random_streams(self.seed, 0, 0, number)
            sample = self.draws.sample(2, places, with_lesion=self.draws.cases_with_lesion > 0)
            lesion = sample.lesion.numpy()
            frame = int(lesion.sum(axis=(1, 2)).argmax())
            volumes = self._volumes(denoiser, sample, generator)
            window = _hu_window(volumes[0][frame], lesion[frame])
            mask = self._lesion_pixels(sample)
            for axis, name, latent_hu in zip(axes, ("real", "lesion generated", "all generated"), volumes, strict=True):
                if name == "real":
                    name = f"{sample.case}, {window[0]:.0f} to {window[1]:.0f} HU"
                _show(
                    axis, latent_hu[frame], mask[frame], window, f"{name}{_core_of(latent_hu, mask, sample.spacing_mm)}"
                )
        figure.suptitle(f"step {step}: decoded latents")
        path = self.folder / f"step_{step:07d}.png"
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format="png", dpi=90)
        return path

    @torch.no_grad()
    def _volumes(self, denoiser: LatentDenoiser, sample: Sample, generator: torch.Generator) -> list[np.ndarray]:
        """HU (d, y, x), a slice for each latent slice."""
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
        """The lesion in the slices that are shown, bool (d, y, x): its outline where the model is told it, else its
        cells."""
        stride = self.vae.spec.inplane_stride
        if self.settings.mask_encoding != "outline":
            return (sample.lesion.numpy() > 0).repeat(stride, axis=1).repeat(stride, axis=2)
        first = len(self.settings.class_names) + 1
        voxels = sample.condition[first : first + outline_channels(self.vae.spec)]
        # the last slice of those that a latent slice codes
        pixels = voxels[-(stride**2) :].unflatten(0, (stride, stride)).permute(2, 3, 0, 4, 1)
        return (pixels.flatten(3, 4).flatten(1, 2) > 0).numpy()

    def _decoded(self, latent: torch.Tensor) -> np.ndarray:
        from fvae_nnunet.ct.intensity import model_to_hu

        raw = unstandardise(latent, self.settings.latent_mean, self.settings.latent_std)
        volume = model_to_hu(self.vae.decode(raw.to(self.vae.device)), self.settings.hu_window)[0, 0].cpu().numpy()
        # the last slice of those that a latent slice codes
        stride, offset = self.vae.spec.slice_stride, self.vae.spec.slice_offset
        return volume[(offset or stride) - 1 :: stride]


def _around(lesion: torch.Tensor) -> torch.Tensor:
    """Lesion cells (d, h, w) and those around them along y and x: bool (1, 1, d, h, w)."""
    sides = 2 * AROUND_CELLS + 1
    held = (lesion > 0).float()[None, None]
    return torch.nn.functional.max_pool3d(held, (1, sides, sides), 1, (0, AROUND_CELLS, AROUND_CELLS)) > 0


def _hu_window(slice_hu: np.ndarray, lesion: np.ndarray) -> tuple[float, float]:
    """That of lung or of soft tissue, by the cells next to the lesion; without lesion, by the whole slice."""
    from scipy import ndimage

    from fvae_nnunet.pictures.planes import hu_window_in

    beside = ndimage.binary_dilation(lesion > 0, np.ones((3, 3))) & (lesion == 0)
    return hu_window_in(slice_hu[_in_pixels(beside, slice_hu)] if beside.any() else slice_hu)


def _in_pixels(cells: np.ndarray, slice_hu: np.ndarray) -> np.ndarray:
    """Values of latent cells (h, w) for each pixel of a slice."""
    (rows, columns), (height, width) = cells.shape, slice_hu.shape
    return cells.repeat(height // rows, axis=0).repeat(width // columns, axis=1)


def _core_of(volume_hu: np.ndarray, lesion: np.ndarray, spacing_mm: tuple[float, float, float]) -> str:
    """A line on the core of a lesion, bool (d, y, x); nothing without one."""
    if not lesion.any():
        return ""
    core_hu = volume_hu[lesion_core(lesion, spacing_mm)]
    return f"\ncore {core_hu.mean():.0f} HU, SD {core_hu.std():.0f}"


def _show(axis: Axes, slice_hu: np.ndarray, lesion: np.ndarray, window: tuple[float, float], title: str) -> None:
    axis.imshow(slice_hu, cmap="gray", vmin=window[0], vmax=window[1], interpolation="nearest")
    if lesion.any():
        axis.contour(lesion, levels=[0.5], colors="#ff3b5c", linewidths=1)
    axis.set_title(title, fontsize=9)
    axis.axis("off")
