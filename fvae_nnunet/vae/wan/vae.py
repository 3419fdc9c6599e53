"""The Wan 2.1 and 2.2 video VAEs; the slices of a CT are their frames. Values as in diffusers' AutoencoderKLWan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch

from fvae_nnunet.device.memory import MARGIN, CallSize, available_bytes
from fvae_nnunet.errors import UserError
from fvae_nnunet.vae.base import VAESpec
from fvae_nnunet.vae.known import hub_of
from fvae_nnunet.vae.module_vae import Placement, drawn, place
from fvae_nnunet.vae.streams import StreamingVAE
from fvae_nnunet.vae.wan.checkpoint import config_from_sizes, is_original, looks_like, to_diffusers_keys
from fvae_nnunet.vae.wan.fast_decoder import can_decode_fast, decoder_weights, fast_decoder
from fvae_nnunet.vae.wan.network import Before, WanNetwork, WanSizes, kept_values_per_pixel
from fvae_nnunet.vae.wanted import Wanted
from fvae_nnunet.vae.weights import StateDict, filled

if TYPE_CHECKING:
    from typing_extensions import Unpack

CPU_CHUNK_SLICES = 8
"""Short chunks stay in the cache and reuse memory; even shorter ones leave single slices to the deepest layers."""

GPU_CHUNK_VOXELS = 32 * 512 * 512
"""Upper limit, unless a single step of slices has more: enough for any GPU, and at most 2^30 values in a tensor."""

NORM_UPCASTS = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 9)
"""Whether torch normalises half precision through float32 tensors, which doubles the memory needed."""

_Coder = Callable[[torch.Tensor, Before], tuple[torch.Tensor, list[torch.Tensor]]]


class WanVAE(StreamingVAE):
    """Wan, causal along the slices: latent slice 0 codes slice 0, latent slice k codes slices 4k-3 to 4k.

    A volume is coded in chunks, each with the state left by the previous one, so that memory does not grow with the
    number of slices. Values depend on the chunks only through the order of sums.

    Args:
        state: weights under diffusers' names, any float dtype.
        config: the entries of diffusers' ``config.json``; missing ones are as in Wan 2.1.

    Raises:
        ValueError: the configuration is not that of a published Wan VAE.
        UserError: the weights belong to another model.
    """

    def __init__(
        self,
        state: Mapping[str, torch.Tensor],
        config: Mapping[str, Any],
        *,
        name: str,
        **placement: Unpack[Placement],
    ) -> None:
        sizes = WanSizes.from_config(config)
        network = filled(lambda: WanNetwork(sizes), state, f"{name}: {placement['source']} does not fit {name}")
        spec = VAESpec.of_video(
            name, sizes.z_dim, causal=True, inplane_stride=sizes.inplane_stride, slice_stride=sizes.slice_stride
        )
        super().__init__(network, spec, source=placement["source"])
        device, dtype = torch.device(placement.get("device", "cpu")), placement.get("dtype", torch.float32)
        place(network.fold(pairs=device.type == "cpu" and dtype == torch.float32), device, dtype)
        self._network = network
        self._sizes = sizes
        self._encoder_chunks, self._decoder_chunks = CallSize(f"{name}: encoding"), CallSize(f"{name}: decoding")
        self._fitting: dict[int, int] = {}
        self._make_fast_decoder: Callable[[], _Coder | None] | None = None
        if can_decode_fast(device):
            self._make_fast_decoder = partial(
                fast_decoder, network.decode, decoder_weights(state), config, name=name, device=device, dtype=dtype
            )
        mean, std = config.get("latents_mean") or (), config.get("latents_std") or ()
        if len(mean) == len(std) == sizes.z_dim:
            self.latent_mean, self.latent_std = torch.tensor(mean), torch.tensor(std)

    @property
    def kernels(self) -> str | None:
        return None if self._fast_decoder is None else "fastvae"

    @cached_property
    def _fast_decoder(self) -> _Coder | None:
        """fastvae's decoder, built and compared with our own on first use; compiled training never uses it."""
        make, self._make_fast_decoder = self._make_fast_decoder, None
        return None if make is None else make()

    def _encode(self, volume: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        return self._encode_next(volume, None, generator)[0]

    def _decode(self, latent: torch.Tensor) -> torch.Tensor:
        return self._decode_next(latent, None)[0]

    def _encode_next(
        self, volume: torch.Tensor, before: Before, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, Before]:
        pixels, stride = volume[:, 0, 0].numel(), self.spec.slice_stride
        moments, before = self._in_chunks(self._network.encode, self._encoder_chunks, volume, before, stride, pixels)
        mean, log_variance = moments.chunk(2, dim=1)
        return drawn(mean, torch.exp(log_variance.clamp(-30, 20) / 2), generator).contiguous(), before

    def _decode_next(self, latent: torch.Tensor, before: Before) -> tuple[torch.Tensor, Before]:
        pixels = latent[:, 0, 0].numel() * self.spec.inplane_stride**2
        decode: _Coder = self._network.decode
        if not torch.compiler.is_compiling() and self._fast_decoder is not None:
            decode = self._fast_decoder
        return self._in_chunks(decode, self._decoder_chunks, latent, before, 1, pixels)

    def _least_slices(self, slices: int) -> int:
        return self.spec.slice_stride

    def _steps_of_a_chunk(self, pixels: int) -> int:
        """Number of latent slices to code at once if a slice (summed over the batch) has ``pixels`` pixels.

        On a GPU it is determined once per size and then kept, so that all windows of a dataset are coded alike.
        """
        if self.device.type == "cpu":
            return CPU_CHUNK_SLICES // self.spec.slice_stride
        if pixels not in self._fitting:
            slices = GPU_CHUNK_VOXELS // pixels
            if self.device.type == "cuda":
                values = available_bytes(self.device) / MARGIN / self.dtype.itemsize
                kept = 2 * self._kept_values_per_pixel  # for the previous chunk and this one
                alive = self._sizes.live_values_per_pixel
                if NORM_UPCASTS and self.dtype.itemsize < torch.float32.itemsize:
                    alive *= 2
                slices = min(slices, int((values / pixels - kept) / alive))
            self._fitting[pixels] = max(1, slices // self.spec.slice_stride)
        return self._fitting[pixels]

    @cached_property
    def _kept_values_per_pixel(self) -> int:
        return kept_values_per_pixel(self._sizes)

    def _in_chunks(
        self, code: _Coder, calls: CallSize, x: torch.Tensor, before: Before, stride: int, pixels: int
    ) -> tuple[torch.Tensor, Before]:
        """Apply ``code`` to ``x`` in steps of ``stride`` slices; slice 0 of a pass counts as a whole step."""
        lacking = stride - 1 if before is None else 0

        def chunk(first: int, last: int) -> torch.Tensor:
            nonlocal before
            piece, before = code(x[:, :, max(0, first * stride - lacking) : last * stride - lacking], before)
            return piece

        steps = (x.shape[2] + lacking) // stride
        voxels = pixels * self.spec.slice_stride
        pieces = calls.run(chunk, steps, voxels, most=self._steps_of_a_chunk(pixels))
        return torch.cat(pieces, dim=2), before


def load_wan(wanted: Wanted) -> WanVAE:
    """Load Wan 2.1 or 2.2.

    Args:
        wanted: request for ``wan2.1`` or ``wan2.2``; weights may be None for the hub, a folder in diffusers' format
            (also a pipeline with a subfolder ``vae``), or a ``.safetensors`` or ``.pth`` file with diffusers' or the
            authors' parameter names. Sizes of a single file are read from its tensors.

    Raises:
        UserError: the weights are not found, not readable, or those of another model.
    """
    name, weights = wanted.name, wanted.weights
    if weights is not None and weights.is_file():
        where = source = str(weights)
        state = wanted.read_state_dict(weights)
        if is_original(state):
            state = to_diffusers_keys(state)
        _check_version(name, state, where)
        with wanted.sizes_in(f"{where} is an incomplete {name} VAE"):
            config = config_from_sizes(state)
    else:
        folder, source = wanted.folder(hub_of(name))
        where = str(folder.path)
        if folder.class_name != "AutoencoderKLWan":
            raise UserError(
                f"{name}: {where} holds a {folder.class_name}, not an AutoencoderKLWan; give the folder of the "
                "VAE (in diffusers' pipelines: vae) or its file"
            )
        state, config = wanted.read_state_dict(folder.weights_file), folder.config
        _check_version(name, state, where)
    try:
        WanSizes.from_config(config)
    except ValueError as error:
        raise UserError(f"{name}: {where} is not a published Wan VAE: {error}") from error
    return WanVAE(state, config, name=name, **wanted.placement(source))


def _check_version(name: str, state: StateDict, where: str) -> None:
    found = looks_like(state)
    if found == name:
        return
    if found is None:
        first = state.get("encoder.conv_in.weight")
        reason = (
            "it has no encoder.conv_in.weight (the authors: encoder.conv1.weight)"
            if first is None
            else f"encoder.conv_in.weight has size {tuple(first.shape)}, expected five dimensions"
            if first.ndim != 5
            else "it has no encoder.mid_block.resnets.0.norm1.gamma (the authors: encoder.middle.0.residual.0.gamma)"
        )
        raise UserError(f"{name}: {where} is not a Wan VAE: {reason}")
    has = "has" if found == "wan2.2" else "has no"
    channels = state["encoder.conv_in.weight"].shape[1]
    raise UserError(
        f"{name}: {where} looks like {found}: it {has} encoder.down_blocks.0.resnets.0.conv1.weight (the authors: "
        f"encoder.downsamples.0.downsamples.0.residual.2.weight) and takes {channels} channels; use `vae={found}`"
    )
