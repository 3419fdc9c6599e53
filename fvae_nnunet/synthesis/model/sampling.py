"""Sample latents from noise, over any number of windows at once and with parts of the latent known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fvae_nnunet.errors import UserError
from fvae_nnunet.numbers_as_text import counted
from fvae_nnunet.reconstruction.windows import blend_weights, slice_windows
from fvae_nnunet.synthesis.model.noise_process import Sampler
from fvae_nnunet.vae.base import VAESpec

if TYPE_CHECKING:
    from fvae_nnunet.synthesis.model.denoiser import LatentDenoiser

OnStep = Callable[[int, int], object]


@dataclass(frozen=True)
class LatentWindow:
    """A window of a volume.

    Attributes:
        start, stop: range [start, stop) of its slices in the volume.
        frames: int64, index of each of its latent slices among those of the volume (``LatentWindows.frames``).
        weights: float32, weight of its prediction for each of its latent slices; they sum to 1 over all windows.
    """

    start: int
    stop: int
    frames: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True)
class LatentWindows:
    """Windows of a volume that overlap by whole latent slices.

    If the first latent slice of a window codes fewer slices than the others (Wan: one instead of four), the first
    latent slice of every later window is an additional one, stored after all others, because the window starts within
    slices that its predecessor codes as one whole latent slice. All other latent slices are on one common grid.

    Attributes:
        windows: the windows in order.
        frames: total number of latent slices.
        overlap_slices: number of volume slices that neighbours share.
    """

    windows: tuple[LatentWindow, ...]
    frames: int
    overlap_slices: int

    @classmethod
    def over(cls, slices: int, window_slices: int, spec: VAESpec) -> LatentWindows:
        """Divide a volume into windows.

        Neighbours share a quarter of a window's latent slices, at least one, blended by a raised cosine. The last
        window may be shorter.

        Args:
            slices: number of slices of the volume, valid for the VAE.
            window_slices: number of slices of a window, valid for the VAE.
            spec: specification of the VAE.

        Raises:
            UserError: the windows are too short to overlap.
        """
        first = 1 if spec.slice_offset else 0
        steps, window_steps = ((count - spec.slice_offset) // spec.slice_stride for count in (slices, window_slices))
        if steps == 0:
            return cls((LatentWindow(0, slices, torch.arange(1), torch.ones(1)),), 1, 0)
        if window_steps == 0:
            raise UserError(
                f"the model's windows of {counted(window_slices, 'slice')} are too short for a volume of {slices}; "
                f"train one with at least {spec.slice_offset + spec.slice_stride}"
            )
        overlap = min(max(1, window_steps // 4), window_steps // 2)
        ranges = slice_windows(steps, window_steps, overlap)
        rising = torch.from_numpy(blend_weights(overlap))
        windows = []
        for number, (start, stop) in enumerate(ranges):
            weights = torch.ones(stop - start)
            if number > 0:
                weights[:overlap] = rising
            if number < len(ranges) - 1:
                weights[stop - start - overlap :] = 1 - rising
            frames = torch.arange(first + start, first + stop)
            if first:
                own = 0 if number == 0 else first + steps + number - 1
                frames = torch.cat([torch.tensor([own]), frames])
                weights = torch.cat([torch.ones(1), weights])
            start_slice = start * spec.slice_stride
            stop_slice = spec.slice_offset + stop * spec.slice_stride
            windows.append(LatentWindow(start_slice, stop_slice, frames, weights))
        total = first + steps + (len(ranges) - 1 if first else 0)
        return cls(tuple(windows), total, spec.slice_offset + overlap * spec.slice_stride)


@dataclass(frozen=True)
class Known:
    """The known part of a latent, which is not generated.

    Attributes:
        latent: (1, C, frames, h, w), standardised.
        generated: bool (1, 1, frames, h, w), the cells to generate.
        draft: shape as ``latent``, for networks that start from a draft; None for others.
    """

    latent: torch.Tensor
    generated: torch.Tensor
    draft: torch.Tensor | None = None


@torch.no_grad()
def sample_latent(
    denoiser: LatentDenoiser,
    sampler: Sampler,
    windows: LatentWindows,
    conditions: Sequence[torch.Tensor],
    *,
    generator: torch.Generator,
    guidance: float = 1.0,
    text: torch.Tensor | None = None,
    known: Known | None = None,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Draw a standardised latent from noise.

    At every step the predictions of overlapping windows are blended and one step is taken for the whole volume, so all
    windows have the same noise level, and the same noise in shared slices.

    A known part is replaced at every step by its value at the noise level of that step, and a network with context
    receives it. Its noise is renewed by the same share and the same draw as the rest, as if a perfect network had
    denoised it.

    Args:
        denoiser: the network; it is not modified.
        sampler: the sampling steps.
        windows: windows of the volume.
        conditions: condition of each window, (1, K, d, h, w), requested at every step.
        generator: CPU generator. It draws (1, C, frames, h, w) at the start and for each step with fresh noise.
        guidance: 1: no guidance; g: ``without + g * (with - without)`` conditions (Ho and Salimans 2022).
        text: embedding (1, T, width) of a report, with real tokens only.
        known: the known part; None: generate everything.
        on_step: called with the number of steps done and the total.

    Returns:
        float32 (1, C, frames, h, w) on the denoiser's device; exactly ``known.latent`` in the known part.
    """
    from fvae_nnunet.synthesis.model.denoiser import known_context

    if generator.device.type != "cpu":
        raise ValueError("the generator must be on the CPU, so that the device does not change its draws")
    device = denoiser.device
    shape = torch.Size((1, denoiser.config["latent_channels"], windows.frames, *conditions[0].shape[3:]))
    noise = torch.randn(shape, generator=generator).to(device)
    x = noise
    context = None
    if known is not None:
        x = torch.where(known.generated, x, sampler.known(known.latent, noise, -1))
    if denoiser.config["context"] != "none":
        context = (
            known_context(torch.zeros_like(x), torch.ones_like(x[:, :1], dtype=torch.bool))
            if known is None
            else known_context(known.latent, known.generated, known.draft)
        )
    for index, timestep in enumerate(sampler.timesteps):
        prediction = torch.zeros_like(x)
        for window, condition in zip(windows.windows, conditions, strict=True):
            weights, frames = window.weights.view(-1, 1, 1).to(device), window.frames.to(device)
            around = None if context is None else context[:, :, frames]
            one = _predicted(denoiser, x[:, :, frames], timestep.to(device), condition, text, guidance, around)
            prediction.index_add_(2, frames, weights * one.float())
        drawn = sampler.draw_fresh(index, shape, generator)
        fresh = None if drawn is None else drawn.to(device)
        x = sampler.step(prediction, index, x, fresh)
        if known is not None:
            noise = sampler.renewed(noise, index, fresh)
            x = torch.where(known.generated, x, sampler.known(known.latent, noise, index))
        if on_step is not None:
            on_step(index + 1, len(sampler))
    return x


def _predicted(
    denoiser: LatentDenoiser,
    x: torch.Tensor,
    timestep: torch.Tensor,
    condition: torch.Tensor,
    text: torch.Tensor | None,
    guidance: float,
    context: torch.Tensor | None,
) -> torch.Tensor:
    with_conditions = denoiser(x, timestep[None], condition, text, context=context)
    if guidance == 1:
        return with_conditions
    dropped = torch.ones(1, dtype=torch.bool, device=x.device)
    without = denoiser(x, timestep[None], condition, text, drop=dropped, context=context)
    return without + guidance * (with_conditions - without)
