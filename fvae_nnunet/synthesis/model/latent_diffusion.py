"""A trained latent diffusion model: reconstruct, inpaint and generate CT volumes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch

from fvae_nnunet.ct.boxes import bounding_box
from fvae_nnunet.errors import UserError
from fvae_nnunet.synthesis.model.codec import LatentCodec
from fvae_nnunet.synthesis.model.folder import (
    DENOISER_FOLDER,
    SCHEDULER_FOLDER,
    ModelSettings,
    allows_guidance,
    needs_text,
    read_model,
    refuse_damaged,
)
from fvae_nnunet.synthesis.model.inpainting import slices_seen
from fvae_nnunet.synthesis.model.layout import Layout
from fvae_nnunet.synthesis.model.noise_process import NoiseProcess
from fvae_nnunet.vae import FrozenVAE, load_vae
from fvae_nnunet.vae.known import DIFFUSERS_PREFIX
from fvae_nnunet.vae.weights import state_dict_sha256

if TYPE_CHECKING:
    from typing_extensions import Required, Unpack

    from fvae_nnunet.synthesis.model.denoiser import LatentDenoiser
    from fvae_nnunet.synthesis.model.sampling import Known, LatentWindows, OnStep
    from fvae_nnunet.synthesis.model.text import ReportEncoder


class Sampling(TypedDict, total=False):
    """Sampling parameters.

    Attributes:
        generator: CPU generator.
        steps, eta: see ``NoiseProcess.sampler``; None: default of the model.
        guidance: see ``sampling.sample_latent``; 1: no guidance.
        text: a report, for models with text; None: no text.
        on_step: called with the number of steps done and the total.
    """

    generator: Required[torch.Generator]
    steps: int | None
    eta: float | None
    guidance: float
    text: str | None
    on_step: OnStep | None


class LatentDiffusion:
    """A denoiser, its noise process, and the frozen VAE with whose latents it was trained.

    All volumes are (z, y, x) in axial order, see ``orientation``, of any in-plane size (see ``LatentCodec``). Random
    numbers come from a CPU generator, so they do not depend on the device.

    Args:
        denoiser: the network; its training mode is not changed.
        settings: settings of the model.
        process: noise process.
        vae: the frozen VAE.
        training: record of the training, see ``save_model``.
        text_encoder: place of the text encoder, if it differs from the settings; loaded when a text is given.

    Raises:
        UserError: the denoiser was trained with another VAE, or does not fit the settings.
    """

    def __init__(
        self,
        denoiser: LatentDenoiser,
        settings: ModelSettings,
        process: NoiseProcess,
        vae: FrozenVAE,
        training: dict[str, Any] | None = None,
        text_encoder: str | os.PathLike[str] | None = None,
    ) -> None:
        settings.check_vae(vae)
        settings.check_denoiser(denoiser)
        self.denoiser, self.settings, self.process, self.vae = denoiser, settings, process, vae
        self.codec = LatentCodec(vae, settings)
        self.training = training or {}
        self._text_encoder = text_encoder or settings.text_encoder
        self._report_encoder: ReportEncoder | None = None

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        weights: str | os.PathLike[str] | None = None,
        code: str | os.PathLike[str] | None = None,
        trust_weights: bool = False,
        text_encoder: str | os.PathLike[str] | None = None,
        device: str | torch.device = "cpu",
    ) -> LatentDiffusion:
        """Load a model from its folder, with its VAE.

        Args:
            folder: output folder of ``save_model``.
            weights, code, trust_weights: of the VAE, as for ``load_vae``. If the VAE was a local diffusers folder,
                ``weights`` is this folder.
            text_encoder: as for the class.
            device: device for the computation.

        Raises:
            UserError: the model is missing or incomplete, or the VAE cannot be loaded or is another one.
        """
        from fvae_nnunet.synthesis.model.denoiser import LatentDenoiser

        settings, training = read_model(folder)
        refuse_damaged(folder)
        try:
            denoiser, loading = LatentDenoiser.from_pretrained(
                folder / DENOISER_FOLDER, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            first_lines = " ".join(str(error).split())[:300]
            raise UserError(f"{folder / DENOISER_FOLDER} cannot be loaded: {first_lines}") from error
        for problem, keys in (("lacks", loading["missing_keys"]), ("has the unknown", loading["unexpected_keys"])):
            if keys:
                raise UserError(f"{folder / DENOISER_FOLDER} {problem} {sorted(keys)[0]} ({len(keys)} such keys)")
        process = NoiseProcess.load(folder / SCHEDULER_FOLDER)
        if process.prediction != settings.prediction:
            raise UserError(
                f"{folder}: manifest.json says {settings.prediction}, the schedule {process.prediction}; copy the "
                "model again"
            )
        name = settings.vae
        if name.startswith(DIFFUSERS_PREFIX) and weights is not None:
            name, weights = f"{DIFFUSERS_PREFIX}{os.fspath(weights)}", None
        vae = load_vae(
            name,
            weights=weights,
            code=code,
            trust_weights=trust_weights,
            device=device,
            dtype=getattr(torch, settings.precision),
        )
        return cls(denoiser.to(device).eval().requires_grad_(False), settings, process, vae, training, text_encoder)

    @cached_property
    def weights_sha256(self) -> str:
        """Digest of the denoiser's weights at the first access."""
        return state_dict_sha256(self.denoiser.state_dict())

    @property
    def report_encoder(self) -> ReportEncoder:
        """The text encoder, loaded at its first use.

        Raises:
            UserError: the model was trained without text, or the encoder cannot be loaded or is another one.
        """
        from fvae_nnunet.synthesis.model.text import ReportEncoder

        settings = self.settings
        if settings.text_encoder is None or self._text_encoder is None:
            raise UserError("this model was trained without report text; omit the text")
        if self._report_encoder is None:
            encoder = ReportEncoder(self._text_encoder, device=self.denoiser.device)
            if encoder.width != settings.text_width:
                raise UserError(
                    f"the text encoder {encoder.name} has {encoder.width} channels, this model needs "
                    f"{settings.text_width}; it was trained with {settings.text_encoder}"
                )
            if settings.text_weights_sha256 not in (None, encoder.weights_sha256):
                raise UserError(
                    f"the weights of the text encoder {encoder.name} differ from those with which this model was "
                    f"trained ({settings.text_encoder}); give that encoder with `text_encoder`"
                )
            self._report_encoder = encoder
        return self._report_encoder

    def reconstruct(self, volume_hu: np.ndarray) -> np.ndarray:
        """Reconstruct D(E(volume)): (z, y, x) in HU, at most one window, becomes float32 in HU."""
        return self.codec.decode(self.codec.encode(volume_hu), volume_hu.shape)

    def inpaint(
        self,
        volume_hu: np.ndarray,
        layout: Layout,
        region: np.ndarray,
        draft_hu: np.ndarray | None = None,
        **sampling: Unpack[Sampling],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Inpaint a region of a window of whole slices according to a layout; also return the window's reconstruction.

        Whole slices are encoded and decoded, as in training. The network sees a square as in training, centred on the
        region as far as the slices allow, and larger if the region is. A latent cell is generated if any of its voxels
        is in the region; the others keep the volume's latent exactly. Because the decoder's receptive field spans
        several cells, voxels near the region differ from the reconstruction as well.

        Args:
            volume_hu: (z, y, x), any real dtype, at most ``window_slices`` slices.
            layout: same shape.
            region: bool, same shape.
            draft_hu: the volume with a draft of the generated part (``draft``), same shape; for models with the context
                ``draft``.
            sampling: see ``Sampling``.

        Returns:
            Generated and reconstructed volume, float32 in HU, inside the HU window. If the VAE codes slices
            independently, slices in which nothing is generated are not decoded: both then contain the volume itself.

        Raises:
            UserError: shapes differ, there are too many slices, values are not finite, classes are unknown, or the
                model was not trained for the text, for no text, or for the guidance.
        """
        from fvae_nnunet.synthesis.model.sampling import Known, LatentWindows

        for name, shape in (("layout", layout.shape), ("region", region.shape)):
            if shape != volume_hu.shape:
                raise UserError(f"the {name} has shape {shape}, but the volume has {volume_hu.shape}")
        codec, spec = self.codec, self.vae.spec
        latent = codec.encode(volume_hu)
        cells = codec.cells(region).to(latent.device)
        generated_hu = volume_hu.astype(np.float32)
        reconstructed_hu = generated_hu.copy()
        if not region.any():
            return generated_hu, reconstructed_hu
        fresh = bounding_box(region)[0]
        padded_slices = codec.padded_shape(volume_hu.shape)[0]
        windows = LatentWindows.over(padded_slices, padded_slices, spec)
        rows, columns = self._square(cells)
        seen = np.s_[..., rows, columns]
        draft = None
        if self.settings.context == "draft":
            if draft_hu is None:
                raise UserError("this model starts from a draft; give `draft_hu`, see synthesis.model.draft")
            draft = codec.standardised(codec.encode_draft(latent, draft_hu, fresh))[seen]
        known = Known(codec.standardised(latent)[seen], cells[seen], draft)
        conditions = codec.conditions(layout.padded((padded_slices, *layout.shape[1:])), windows, self.denoiser.device)
        drawn = self._sampled(windows, conditions.cropped(rows, columns), known, **sampling)
        mixed = latent.clone()
        mixed[seen] = torch.where(cells[seen], codec.unstandardised(drawn), latent[seen])
        run = slice(0, len(volume_hu))
        if spec.independent_slices:
            run, latent, mixed = fresh, latent[:, :, fresh], mixed[:, :, fresh]
        shape = (run.stop - run.start, *volume_hu.shape[1:])
        generated_hu[run], reconstructed_hu[run] = codec.decode(mixed, shape), codec.decode(latent, shape)
        return generated_hu, reconstructed_hu

    def _square(self, cells: torch.Tensor) -> tuple[slice, slice]:
        """Rows and columns of latent cells that the network sees, for generated cells bool (1, 1, d, h, w)."""
        side = self.settings.inplane_pixels // self.vae.spec.inplane_stride
        _, rows, columns = bounding_box(cells[0, 0].cpu().numpy())
        return slices_seen(rows, cells.shape[3], side), slices_seen(columns, cells.shape[4], side)

    def generate(self, layout: Layout, **sampling: Unpack[Sampling]) -> np.ndarray:
        """Generate a whole volume from its layout: float32 (z, y, x) in HU, inside the HU window.

        Arguments and errors are those of ``generate_runs``.
        """
        volume_hu = np.empty(layout.shape, dtype=np.float32)
        start = 0
        for run in self.generate_runs(layout, **sampling):
            volume_hu[start : start + len(run)] = run
            start += len(run)
        return volume_hu

    def generate_runs(self, layout: Layout, **sampling: Unpack[Sampling]) -> Iterator[np.ndarray]:
        """Generate a whole volume from its layout, in runs of slices.

        Volumes longer than a window are generated in windows that overlap by whole latent slices, which are denoised
        together and decoded one by one; see ``sampling.LatentWindows``. The volume is never in memory as float32.

        Args:
            layout: (z, y, x), any number of slices.
            sampling: see ``Sampling``.

        Returns:
            The runs in order: float32 (d, y, x) in HU, inside the HU window. The latents are drawn before this method
            returns; each window is decoded when it is needed.

        Raises:
            UserError: as for ``inpaint``.
        """
        from fvae_nnunet.synthesis.model.sampling import LatentWindows

        shape = layout.shape
        if len(shape) != 3 or 0 in shape:
            raise UserError(f"a class map must have three axes (z, y, x) and at least one voxel, got shape {shape}")
        slices = self.vae.spec.padded_slices(shape[0])
        windows = LatentWindows.over(slices, self.settings.window_slices, self.vae.spec)
        conditions = self.codec.conditions(layout.padded((slices, *shape[1:])), windows, self.denoiser.device)
        drawn = self._sampled(windows, conditions, None, **sampling)
        return self.codec.decode_windows(self.codec.unstandardised(drawn), windows, shape)

    def _sampled(
        self,
        windows: LatentWindows,
        conditions: Sequence[torch.Tensor],
        known: Known | None,
        *,
        generator: torch.Generator,
        steps: int | None = None,
        eta: float | None = None,
        guidance: float = 1.0,
        text: str | None = None,
        on_step: OnStep | None = None,
    ) -> torch.Tensor:
        from fvae_nnunet.synthesis.model.sampling import sample_latent

        if guidance != 1 and not allows_guidance(self.training):
            raise UserError(
                f"guidance {guidance:g} needs a model that was trained with condition dropout, but this one was not; "
                "use guidance 1"
            )
        settings, device = self.settings, self.denoiser.device
        if text is None and needs_text(settings, self.training):
            raise UserError("this model was trained only on cases with a report; give a text")
        embedding = None if text is None else self.report_encoder.encode(text)[None].to(device)
        dtype = getattr(torch, settings.precision)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            return sample_latent(
                self.denoiser,
                self.process.sampler(steps, eta),
                windows,
                conditions,
                generator=generator,
                guidance=guidance,
                text=embedding,
                known=known,
                on_step=on_step,
            )
