"""WF-VAE, a video VAE with a wavelet branch (github.com/PKU-YuanGroup/WF-VAE); the slices of a CT are its frames."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fvae_nnunet.errors import UserError
from fvae_nnunet.vae.base import VAESpec
from fvae_nnunet.vae.folders import ModelFolder
from fvae_nnunet.vae.known import hub_of
from fvae_nnunet.vae.module_vae import ModuleVAE, Placement, drawn, grey
from fvae_nnunet.vae.wanted import Wanted
from fvae_nnunet.vae.weights import StateDict, filled
from fvae_nnunet.vae.wfvae.network import WFVAENetwork, WFVAESizes
from fvae_nnunet.vae.wfvae.wavelets import COLOURS

if TYPE_CHECKING:
    from typing_extensions import Unpack


# Names and defaults of the arguments of upstream's WFVAEModel
_SIZES = {
    "latent_channels": ("latent_dim", 8),
    "base_channels": ("base_channels", 128),
    "encoder_flow": ("encoder_energy_flow_hidden_size", 64),
    "decoder_flow": ("decoder_energy_flow_hidden_size", 128),
    "encoder_blocks": ("encoder_num_resblocks", 2),
    "decoder_blocks": ("decoder_num_resblocks", 2),
    "connect_blocks": ("connect_res_layer_num", 1),
}
_DEFAULTS = {
    "attention_type": "AttnBlock3DFix",
    "use_attention": True,
    "norm_type": "groupnorm",
    "t_interpolation": "nearest",
    "l1_dowmsample_block": "Downsample",  # upstream's spelling
    "l1_downsample_wavelet": "HaarWaveletTransform2D",
    "l2_dowmsample_block": "Spatial2xTime2x3DDownsample",
    "l2_downsample_wavelet": "HaarWaveletTransform3D",
    "l1_upsample_block": "Upsample",
    "l1_upsample_wavelet": "InverseHaarWaveletTransform2D",
    "l2_upsample_block": "Spatial2xTime2x3DUpsample",
    "l2_upsample_wavelet": "InverseHaarWaveletTransform3D",
}
_PUBLISHED = _DEFAULTS | {"norm_type": "layernorm", "t_interpolation": "trilinear"}


class WFVAE(ModuleVAE):
    """WF-VAE: latent slice 0 codes slice 0, latent slice k codes slices 4k-3 to 4k.

    The encoder is causal, but the decoder interpolates between a latent slice and the next: slices 4k-1 and 4k of the
    volume depend on the four after them, so a stream, which returns each piece at once, could not equal a single pass.
    """

    def __init__(self, network: WFVAENetwork, sizes: WFVAESizes, **placement: Unpack[Placement]) -> None:
        super().__init__(network, VAESpec.of_video("wf-vae", sizes.latent_channels, causal=False), **placement)
        self._network = network

    def _encode(self, volume: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        mean, log_variance = self._network.encode(volume.expand(-1, COLOURS, -1, -1, -1))
        return drawn(mean, torch.exp(log_variance / 2), generator).contiguous()

    def _decode(self, latent: torch.Tensor) -> torch.Tensor:
        return grey(self._network.decode(latent))


def load_wfvae(wanted: Wanted) -> WFVAE:
    """Load WF-VAE of any width, with layer norm and linear interpolation as in the published weights.

    Args:
        wanted: request whose weights are None for the hub (WF-VAE-L with 16 latent channels), a folder saved by
            upstream (``config.json`` and weights), or a single file, whose sizes are read from its tensors: a state
            dict, or a checkpoint of upstream's training, whose averaged weights are used if it has them.

    Raises:
        UserError: the weights are not found, not readable, those of another model, or of an unsupported variant.
    """
    name, weights = wanted.name, wanted.weights
    if weights is not None and weights.is_file():
        where = source = str(weights)
        state = _read_network(wanted.read_checkpoint(weights), weights)
        _check_kind(name, state, where)
        with wanted.sizes_in(f"{where} is an incomplete WF-VAE"):
            sizes = _sizes_from_tensors(state)
    else:
        folder, source = wanted.folder(hub_of(name))
        where = str(folder.path)
        _check_config(name, folder)
        state = _read_network(wanted.read_checkpoint(folder.weights_file), folder.weights_file)
        _check_kind(name, state, where)
        sizes = WFVAESizes(**{ours: folder.config.get(*theirs) for ours, theirs in _SIZES.items()})
    network = filled(lambda: WFVAENetwork(sizes), state, f"{name}: {where} does not fit WF-VAE")
    return WFVAE(network.channels_last(), sizes, **wanted.placement(source))


def _read_network(content: dict, path: Path) -> StateDict:
    """The state dict of a file with the network alone, or of a training checkpoint (upstream's ``init_from_ckpt``)."""
    state = content.get("state_dict", content)
    if isinstance(state, dict):
        state = state.get("gen_model", state)
    averaged = content.get("ema_state_dict") or {}  # trained parameters only, without the fixed wavelets
    parts = (state, averaged)
    if not all(
        isinstance(part, dict) and all(isinstance(value, torch.Tensor) for value in part.values()) for part in parts
    ):
        raise UserError(
            f"weights: {path} is neither a state dict (names to tensors) nor a checkpoint of WF-VAE's training"
        )
    return state | {key.removeprefix("module."): value for key, value in averaged.items()}


def _check_config(name: str, folder: ModelFolder) -> None:
    if folder.class_name != "WFVAEModel":
        raise UserError(f"{name}: {folder.path} holds a {folder.class_name}, not a WFVAEModel")
    for key, published in _PUBLISHED.items():
        found = folder.config.get(key, _DEFAULTS[key])
        if found != published:
            raise UserError(
                f"{name}: {folder.path} is an unsupported variant of WF-VAE: {key} is {found!r}, not {published!r}"
            )


def _check_kind(name: str, state: StateDict, where: str) -> None:
    if "encoder.down_blocks.0.in_flow_conv.weight" in state:
        raise UserError(
            f"{name}: {where} is a WFVAE2Model, which is not supported; the published weights are WFVAEModel"
        )
    if "encoder.wavelet_transform_in.h_conv.conv.weight" not in state:
        raise UserError(f"{name}: {where} is not a WF-VAE: it has no encoder.wavelet_transform_in.h_conv.conv.weight")
    if "encoder.norm_out.norm.weight" not in state and "encoder.norm_out.weight" in state:
        raise UserError(
            f"{name}: {where} is a WF-VAE with group norm (norm_type 'groupnorm'), which is not supported; the "
            "published weights have 'layernorm'"
        )


def _sizes_from_tensors(state: StateDict) -> WFVAESizes:
    """The sizes from tensors; KeyError with the name of a missing parameter that determines a size."""

    def layers(prefix: str) -> int:
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        return len({match[1] for match in map(pattern.match, state) if match})

    connect_blocks = layers("decoder.connect_l2") - 1  # and a convolution
    return WFVAESizes(
        latent_channels=state["encoder.conv_out.conv.weight"].shape[0] // 2,
        base_channels=state["encoder.down1.0.weight"].shape[0],
        encoder_flow=state["encoder.connect_l1.weight"].shape[0],
        decoder_flow=state[f"decoder.connect_l2.{connect_blocks}.weight"].shape[1],
        encoder_blocks=layers("encoder.down1") - 2,  # a convolution before them, the downsampling after
        decoder_blocks=layers("decoder.up1") - 2,  # the upsampling and one block after them
        connect_blocks=connect_blocks,
    )
