"""Reconstruction of patches during training: for a whole batch on the device, or as a batchgeneratorsv2 transform.

Random choices (``Draw``) and their application (``PatchReconstruction``) are separate, so that a batch can be replayed.
The trainer and the transform use the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform

from fvae_nnunet.ct.hu_windows import PAPER_HU_WINDOW
from fvae_nnunet.device.memory import TooLittleMemory, even_part
from fvae_nnunet.errors import UserError
from fvae_nnunet.reconstruction.combined_windows import PlaneChange
from fvae_nnunet.reconstruction.schemes import reconstructed_windows, windows_of_a_call
from fvae_nnunet.reconstruction.settings import ReconstructionSettings
from fvae_nnunet.reconstruction.windows import blend_weights, slice_windows
from fvae_nnunet.training.ct_patches import CTPatches
from fvae_nnunet.training.views import check_shares
from fvae_nnunet.vae.base import FrozenVAE

Posterior = Literal["mode", "sample"]


@dataclass(frozen=True)
class Draw:
    """Random choices for a batch.

    Attributes:
        samples: indices of the samples to reconstruct, in increasing order.
        weights: weight of the view in ``raw + weight * (view - raw)`` for each of them.
        seeds: seed of the draw from the posterior for each of them; None to use the mode.
    """

    samples: tuple[int, ...]
    weights: tuple[float, ...]
    seeds: tuple[int, ...] | None = None

    @classmethod
    def random(
        cls,
        batch_size: int,
        *,
        probability: float,
        blend: tuple[float, float] = (1.0, 1.0),
        posterior: Posterior = "mode",
        entropy: tuple[int, ...],
    ) -> Draw:
        """Draw random choices that depend only on ``entropy``.

        Args:
            batch_size: number of samples in the batch.
            probability: probability that a sample is reconstructed, in [0, 1].
            blend: lowest and highest weight of the view, drawn uniformly.
            posterior: ``sample`` gives each sample a seed.
            entropy: non-negative numbers, such as (seed, rank, epoch, iteration).

        Raises:
            UserError: probability, blend or posterior is out of range.
        """
        check_draw_settings(probability, blend, posterior)
        generator = np.random.default_rng(entropy)
        # the same count of random numbers for every sample, so that a sample does not depend on earlier ones
        chance, position = generator.random((2, batch_size))
        seeds = generator.integers(2**62, size=batch_size)
        samples = tuple(sample for sample in range(batch_size) if chance[sample] < probability)
        lowest, highest = blend
        return cls(
            samples,
            tuple(float(lowest + (highest - lowest) * position[sample]) for sample in samples),
            tuple(int(seeds[sample]) for sample in samples) if posterior == "sample" else None,
        )


def check_draw_settings(probability: float, blend: tuple[float, float], posterior: str) -> None:
    """As ``views.check_shares``; also UserError if the posterior is unknown."""
    check_shares(probability, blend)
    if posterior not in ("mode", "sample"):
        raise UserError(f"posterior must be 'mode' or 'sample', got {posterior!r}")


class PatchReconstruction:
    """Reconstructs drawn samples of a batch: undoes the normalisation, applies the VAE, and normalises again.

    Patches are augmented before, so values may be outside the range of the normalisation, and are HU only insofar as
    augmentation imitates another scanner. The VAE receives them clipped to the HU window. A view is clipped to the
    plans' percentiles, as by nnU-Net's normalisation, or to the range of its raw patch if augmentation exceeds them.

    Args:
        vae: the frozen VAE; its device may differ from that of the batch.
        patches: properties of the patches.
        settings: HU window and windows of slices; the scheme must be ``windows``.

    Raises:
        UserError: patches are 2d and the VAE needs several slices, or the scheme is another one.
    """

    def __init__(
        self,
        vae: FrozenVAE,
        patches: CTPatches,
        settings: ReconstructionSettings | None = None,
    ) -> None:
        self.vae, self.patches = vae, patches
        self.settings = settings or ReconstructionSettings.for_vae(vae.spec)
        if self.settings.scheme != "windows":
            raise UserError(f"patches can be reconstructed only with the scheme windows, not {self.settings.scheme}")
        if patches.transpose_forward is None and not vae.spec.independent_slices:
            raise UserError(
                f"2d: {vae.spec.name} is a video VAE and needs neighbouring slices, which 2d patches do not have. Use "
                "an image VAE (tiny, taef2, diffusers:...), or a view made before training (fvae-preprocess, "
                "nnUNetTrainerFVAE)"
            )

    def has_posterior(self) -> bool:
        """Whether two draws from the posterior differ, tested on the smallest volume."""
        spec, device = self.vae.spec, self.vae.device
        side = spec.padded_inplane(16)
        ramp = torch.linspace(-1, 1, side, device=device).expand(1, 1, spec.padded_slices(1), side, side)
        first, second = (self.vae.encode(ramp, torch.Generator().manual_seed(seed)) for seed in (0, 1))
        return not torch.equal(first, second)

    def warm_up(self, patch_size: Sequence[int], device: torch.device, posterior: Posterior) -> None:
        """Reconstruct one sample of zeros, so that all sizes of calls in later 3D batches occur once.

        Args:
            patch_size: patch size (z, y, x) of later batches.
            device: device of the batches.
            posterior: posterior of later draws.
        """
        channels = 1 + max(channel.index for channel in self.patches.channels)
        draw = Draw((0,), (1.0,), (0,) if posterior == "sample" else None)
        self.apply(torch.zeros((1, channels, *patch_size), device=device), draw)

    @torch.no_grad()
    def apply(self, batch: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Reconstruct the drawn samples of a batch.

        Args:
            batch: (B, c, z, y, x), or (B, c, y, x) in 2d, normalised, on any device; channels that are not CT,
                including those of a cascade's previous stage, are unchanged.
            draw: random choices for the batch.

        Returns:
            A new tensor of the same shape, dtype and device.

        Raises:
            UserError: the VAE gives values that are not finite, or needs more memory than available.
        """
        result = batch.clone()
        if not draw.samples:
            return result
        samples = torch.tensor(draw.samples, device=batch.device)
        each = (-1, *[1] * (batch.ndim - 2))
        weights = torch.tensor(draw.weights, dtype=torch.float32, device=batch.device).view(each)
        for number, channel in enumerate(self.patches.channels):
            raw = batch[samples, channel.index].float()
            axial_hu = self.patches.to_axial(channel.to_hu(raw))
            seeds = None if draw.seeds is None else [seed + number for seed in draw.seeds]
            view = channel.normalised(self.patches.from_axial(self._reconstructed(axial_hu, seeds)))
            lower, upper = channel.normalised_range
            lowest = raw.flatten(1).amin(1).clamp(max=lower).view(each)
            highest = raw.flatten(1).amax(1).clamp(min=upper).view(each)
            view = view.clamp(lowest, highest)
            if not torch.isfinite(view).all():
                name, dtype = self.vae.spec.name, self.vae.dtype
                raise UserError(f"{name} in {dtype} gives values that are not finite; use float32")
            result[samples, channel.index] = torch.lerp(raw, view, weights).to(result.dtype)
        return result

    def _reconstructed(self, axial_hu: torch.Tensor, seeds: list[int] | None) -> torch.Tensor:
        """Reconstruct (n, d, y, x) in HU, each patch in blended windows of slices."""
        settings = self.settings
        generators = None if seeds is None else [torch.Generator().manual_seed(seed) for seed in seeds]
        ramp = torch.from_numpy(blend_weights(settings.overlap_slices)).to(axial_hu.device)[:, None, None]
        result = torch.empty_like(axial_hu)
        ranges = slice_windows(axial_hu.shape[1], settings.window_slices, settings.overlap_slices)
        for waiting in self._equal_windows(ranges, len(axial_hu)):
            most = windows_of_a_call((waiting[0][2] - waiting[0][1]) * axial_hu[0, 0].numel(), self.vae.device)
            while waiting:
                some = waiting[: 1 if generators is not None else even_part(len(waiting), most)]
                generator = None if generators is None else generators[some[0][0]]
                windows_hu = torch.stack([axial_hu[sample, start:stop] for sample, start, stop in some])
                decoded = self._decoded(windows_hu, generator)
                for (sample, start, stop), piece in zip(some, decoded.to(result.device), strict=True):
                    shared = settings.overlap_slices if start else 0
                    into = result[sample, start:stop]
                    into[:shared] = torch.lerp(into[:shared], piece[:shared], ramp[:shared])
                    into[shared:] = piece[shared:]
                waiting = waiting[len(some) :]
        return result

    def _equal_windows(self, ranges: list[tuple[int, int]], samples: int) -> Iterator[list[tuple[int, int, int]]]:
        """Yield windows (sample, start, stop) of the same length, which may be coded together.

        In 3D these are windows of one sample, so that the sizes of calls do not depend on the number of drawn samples;
        in 2D, where a sample has one window, those of all samples.
        """
        is_2d = self.patches.transpose_forward is None
        for some in [range(samples)] if is_2d else [range(sample, sample + 1) for sample in range(samples)]:
            for _, equal in groupby(ranges, key=lambda window: window[1] - window[0]):
                yield [(sample, start, stop) for start, stop in equal for sample in some]

    def _decoded(self, windows_hu: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Reconstruct the windows (n, d, y, x) in one call."""
        try:
            return reconstructed_windows(
                self.vae, windows_hu, self._changes(windows_hu), self.settings.hu_windows, generator
            )
        except TooLittleMemory as error:
            raise UserError(
                f"{error}. In training, use a smaller VAE, a smaller batch, or a view made before training "
                "(fvae-preprocess, nnUNetTrainerFVAE)"
            ) from error

    def _changes(self, windows_hu: torch.Tensor) -> list[PlaneChange]:
        rows, columns = windows_hu.shape[-2:]
        return self.settings.plane_changes((rows, columns), self.patches.plane_mm)


class ReconstructionTransform(ImageOnlyTransform):
    """Reconstruction of a sample as a transform of batchgeneratorsv2, for any pipeline; on the CPU.

    It is always applied; to apply it to a share of the samples, wrap it in ``RandomTransform``. Random numbers come
    from ``np.random``, which nnU-Net seeds in each of its workers. The VAE is loaded at first use in each process and
    never pickled, so each worker holds its own.

    Args:
        load: loads the VAE, such as ``partial(load_vae, "tiny")``. Must be picklable if workers are spawned.
        patches: properties of the patches, from ``CTPatches.of_plans``.
        hu_window: HU window of the VAE; values outside are clipped.
        blend: lowest and highest weight of the view, drawn uniformly for each sample.
        posterior: ``mode``, or ``sample`` to draw from the encoder's posterior.

    Raises:
        UserError: blend or posterior is out of range; at first use also as for ``PatchReconstruction``.
    """

    def __init__(
        self,
        load: Callable[[], FrozenVAE],
        patches: CTPatches,
        *,
        hu_window: tuple[float, float] = PAPER_HU_WINDOW,
        blend: tuple[float, float] = (1.0, 1.0),
        posterior: Posterior = "mode",
    ) -> None:
        super().__init__()
        check_draw_settings(1.0, blend, posterior)
        self.load, self.patches, self.hu_window = load, patches, hu_window
        self.blend, self.posterior = blend, posterior
        self._reconstruction: PatchReconstruction | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reconstruction": None}

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        lowest, highest = self.blend
        weight = lowest if lowest == highest else np.random.uniform(lowest, highest)  # noqa: NPY002
        seed = int(np.random.randint(2**31)) if self.posterior == "sample" else None  # noqa: NPY002
        return {"draw": Draw((0,), (weight,), None if seed is None else (seed,))}

    def _apply_to_image(self, img: torch.Tensor, draw: Draw) -> torch.Tensor:  # type: ignore[override]
        """Reconstruct the CT channels of an image (c, z, y, x) or (c, y, x)."""
        if self._reconstruction is None:
            vae = self.load()
            settings = ReconstructionSettings.for_vae(vae.spec, hu_window=self.hu_window)
            self._reconstruction = PatchReconstruction(vae, self.patches, settings)
        return self._reconstruction.apply(img[None], draw)[0]
