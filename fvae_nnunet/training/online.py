"""Patches reconstructed during training: one operation for the batch on the device, and a batchgeneratorsv2 transform.

What is drawn (``Draw``) and what is done with it (``PatchReconstruction``) are apart, so that a batch can be replayed.
Both ways, for the trainer and for the transform, lead through the same code.
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
    """What is done to a batch.

    Attributes:
        samples: the samples that are reconstructed, rising.
        weights: for each the weight of the view in ``raw + weight * (view - raw)``.
        seeds: for each the seed of its draw from the posterior; None takes the mode.
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
        """A draw that depends on ``entropy`` alone.

        Args:
            batch_size: samples in the batch.
            probability: of a sample to be reconstructed, in [0, 1].
            blend: lowest and highest weight of the view, drawn uniformly.
            posterior: ``sample`` gives each sample a seed.
            entropy: non-negative numbers, such as (seed, rank, epoch, iteration).

        Raises:
            UserError: probability, blend or posterior is out of range.
        """
        check_draw_settings(probability, blend, posterior)
        generator = np.random.default_rng(entropy)
        # always as many numbers for a sample, so that it does not depend on those before it
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
    """As ``views.check_shares``, and UserError unless the posterior is known."""
    check_shares(probability, blend)
    if posterior not in ("mode", "sample"):
        raise UserError(f"posterior must be 'mode' or 'sample', got {posterior!r}")


class PatchReconstruction:
    """Puts drawn samples of a batch through a VAE: normalisation undone, VAE, normalisation again.

    Augmentation has been there before: values may lie outside of what the normalisation gives, and are HU only in so
    far as the augmentation imitates another scanner. The VAE sees them clipped to the HU window. A view keeps within
    the plans' percentiles, as nnU-Net's normalisation would, or within its raw patch where augmentation has led that
    beyond.

    Args:
        vae: the frozen VAE; its device need not be the batch's.
        patches: what the plans say.
        settings: HU window and windows of slices; the scheme must be ``windows``.

    Raises:
        UserError: 2d patches and a VAE that needs several slices, or another scheme.
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
            raise UserError(f"patches are reconstructed with the scheme windows, not {self.settings.scheme}")
        if patches.transpose_forward is None and not vae.spec.independent_slices:
            raise UserError(
                f"2d: {vae.spec.name} is a video VAE and needs neighbouring slices, which 2d patches do not have. Use "
                "an image VAE (tiny, taef2, diffusers:...), or a view made before training (fvae-preprocess, "
                "nnUNetTrainerFVAE)"
            )

    def has_posterior(self) -> bool:
        """Whether two draws from the posterior differ, tried on the smallest volume."""
        spec, device = self.vae.spec, self.vae.device
        side = spec.padded_inplane(16)
        ramp = torch.linspace(-1, 1, side, device=device).expand(1, 1, spec.padded_slices(1), side, side)
        first, second = (self.vae.encode(ramp, torch.Generator().manual_seed(seed)) for seed in (0, 1))
        return not torch.equal(first, second)

    def warm_up(self, patch_size: Sequence[int], device: torch.device, posterior: Posterior) -> None:
        """Reconstruct one sample of zeros, so that every size of call of later 3D batches has occurred.

        Args:
            patch_size: (z, y, x) of later batches.
            device: of the batches.
            posterior: as they will be drawn.
        """
        channels = 1 + max(channel.index for channel in self.patches.channels)
        draw = Draw((0,), (1.0,), (0,) if posterior == "sample" else None)
        self.apply(torch.zeros((1, channels, *patch_size), device=device), draw)

    @torch.no_grad()
    def apply(self, batch: torch.Tensor, draw: Draw) -> torch.Tensor:
        """The batch with the drawn samples reconstructed.

        Args:
            batch: (B, c, z, y, x), or (B, c, y, x) in 2d, normalised, on any device; channels that are not CT, also
                those of a cascade's previous stage, stay as they are.
            draw: what to do.

        Returns:
            A new tensor of the same shape, dtype and device.

        Raises:
            UserError: the VAE gives values that are not finite, or memory is too little for it.
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
                raise UserError(f"{name} in {dtype} gives values that are not finite; compute in float32")
            result[samples, channel.index] = torch.lerp(raw, view, weights).to(result.dtype)
        return result

    def _reconstructed(self, axial_hu: torch.Tensor, seeds: list[int] | None) -> torch.Tensor:
        """(n, d, y, x) in HU to the same, each patch by windows of slices that are blended."""
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
        """Windows (sample, start, stop) of the same length, which may be coded together.

        In 3D those of one sample, so that the sizes of all calls are the same however many samples are drawn; in 2D,
        where a sample has one window, those of all samples.
        """
        is_2d = self.patches.transpose_forward is None
        for some in [range(samples)] if is_2d else [range(sample, sample + 1) for sample in range(samples)]:
            for _, equal in groupby(ranges, key=lambda window: window[1] - window[0]):
                yield [(sample, start, stop) for start, stop in equal for sample in some]

    def _decoded(self, windows_hu: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """The windows (n, d, y, x) in one call."""
        try:
            return reconstructed_windows(
                self.vae, windows_hu, self._changes(windows_hu), self.settings.hu_windows, generator
            )
        except TooLittleMemory as error:
            raise UserError(
                f"{error}. In training: a smaller VAE, a smaller batch, or a view made before (fvae-preprocess, "
                "nnUNetTrainerFVAE)"
            ) from error

    def _changes(self, windows_hu: torch.Tensor) -> list[PlaneChange]:
        rows, columns = windows_hu.shape[-2:]
        return self.settings.plane_changes((rows, columns), self.patches.plane_mm)


class ReconstructionTransform(ImageOnlyTransform):
    """The reconstruction of a sample as an ordinary transform of batchgeneratorsv2, for any pipeline; on the CPU.

    It always applies; for a share of the samples wrap it in ``RandomTransform``. Chance comes from ``np.random``, which
    nnU-Net seeds in each of its workers. The VAE is loaded at first use in each process and never pickled; each worker
    holds one.

    Args:
        load: loads the VAE, such as ``partial(load_vae, "tiny")``. Picklable where workers are spawned.
        patches: what the plans say of the patches, from ``CTPatches.of_plans``.
        hu_window: HU that the VAE sees; values outside are clipped.
        blend: lowest and highest weight of the view, drawn uniformly for each sample.
        posterior: ``mode``, or ``sample`` for a draw from the encoder's posterior.

    Raises:
        UserError: blend or posterior is out of range; at first use also as ``PatchReconstruction``.
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
        """The image (c, z, y, x) or (c, y, x) with its CT channels reconstructed."""
        if self._reconstruction is None:
            vae = self.load()
            settings = ReconstructionSettings.for_vae(vae.spec, hu_window=self.hu_window)
            self._reconstruction = PatchReconstruction(vae, self.patches, settings)
        return self._reconstruction.apply(img[None], draw)[0]
