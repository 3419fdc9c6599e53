"""The Wan 2.1 and 2.2 video VAEs (diffusers' AutoencoderKLWan); the slices of a CT are the frames."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fvae_nnunet.errors import UserError
from fvae_nnunet.vae.base import VAESpec
from fvae_nnunet.vae.folders import HubModel, open_folder
from fvae_nnunet.vae.module_vae import ModuleVAE, grey
from fvae_nnunet.vae.wan_checkpoint import config_from_sizes, is_original, looks_like, to_diffusers_keys
from fvae_nnunet.vae.weights import StateDict, first_difference, read_state_dict

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

PAPER_WINDOW_SLICES = 65  # 1 + 16 * 4, as in the reconstruction scripts released with the paper

WAN_ON_HUB = {
    "wan2.1": HubModel("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", ("vae",), 508),
    "wan2.2": HubModel("Wan-AI/Wan2.2-TI2V-5B-Diffusers", ("vae",), 2820),
}


class WanVAE(ModuleVAE):
    """Causal along the slices: latent slice 0 codes slice 0 alone, latent slice k the slices 4k-3 to 4k."""

    def __init__(
        self,
        model: AutoencoderKLWan,
        *,
        name: str,
        source: str,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        config: Any = model.config
        spec = VAESpec(
            name=name,
            inplane_stride=config.scale_factor_spatial,
            latent_channels=config.z_dim,
            slice_stride=config.scale_factor_temporal,
            slice_offset=1,
            window_slices=PAPER_WINDOW_SLICES,
            causal=True,
        )
        super().__init__(model, spec, source=source, device=device, dtype=dtype)
        self._model = model
        if len(config.latents_mean or ()) == len(config.latents_std or ()) == config.z_dim:
            self.latent_mean = torch.tensor(config.latents_mean)
            self.latent_std = torch.tensor(config.latents_std)

    def _encode(self, volume: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        try:
            posterior = self._model.encode(volume.expand(-1, 3, -1, -1, -1)).latent_dist
        finally:
            self._model.clear_cache()
        return posterior.mode() if generator is None else posterior.sample(generator)

    def _decode(self, latent: torch.Tensor) -> torch.Tensor:
        try:
            return grey(self._model.decode(latent).sample)
        finally:
            self._model.clear_cache()


def load_wan(
    name: str, *, weights: Path | None, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> WanVAE:
    """Wan 2.1 or 2.2.

    Args:
        name: ``wan2.1`` or ``wan2.2``.
        weights: None for the hub, or a folder in diffusers' format (also a pipeline with a subfolder ``vae``), or a
            ``.safetensors`` or ``.pth`` file under diffusers' or the authors' parameter names. The sizes of a lone
            file are read from its tensors.
        device, dtype: where and in what precision to compute.

    Raises:
        UserError: not found, not readable, or the weights of another model.
    """
    if weights is not None and weights.is_file():
        model = _from_file(name, weights)
        source = str(weights)
    else:
        hub = WAN_ON_HUB[name]
        folder = open_folder(hub.fetch(name) if weights is None else weights)
        if folder.class_name != "AutoencoderKLWan":
            raise UserError(
                f"{name}: {folder.path} holds a {folder.class_name or 'model of no named class'}, not an "
                "AutoencoderKLWan; name the folder of the VAE (in diffusers' pipelines: vae) or its file"
            )
        state = read_state_dict(folder.weights_file)
        _check_version(name, state, str(folder.path))
        model = _build(name, folder.config, state, str(folder.path))
        source = f"hub {hub.hub_id}" if weights is None else str(folder.path)
    return WanVAE(model, name=name, source=source, device=device, dtype=dtype)


def _from_file(name: str, path: Path) -> AutoencoderKLWan:
    state = read_state_dict(path)
    if is_original(state):
        state = to_diffusers_keys(state)
    _check_version(name, state, str(path))
    try:
        config = config_from_sizes(state)
    except KeyError as error:
        raise UserError(f"{name}: {path} is an incomplete {name} VAE: {error.args[0]} is missing") from error
    return _build(name, config, state, str(path))


def _check_version(name: str, state: StateDict, where: str) -> None:
    found = looks_like(state)
    if found == name:
        return
    if found is None:
        first = state.get("encoder.conv_in.weight")
        reason = (
            "it has no encoder.conv_in.weight (the authors: encoder.conv1.weight)"
            if first is None
            else f"encoder.conv_in.weight has size {tuple(first.shape)}, a Wan VAE has five dimensions"
            if first.ndim != 5
            else "it has no encoder.mid_block.resnets.0.norm1.gamma (the authors: encoder.middle.0.residual.0.gamma)"
        )
        raise UserError(f"{name}: {where} is not a Wan VAE: {reason}")
    has = "has" if found == "wan2.2" else "has no"
    channels = state["encoder.conv_in.weight"].shape[1]
    raise UserError(
        f"{name}: {where} looks like {found}: it {has} encoder.down_blocks.0.resnets.0.conv1.weight (the authors: "
        f"encoder.downsamples.0.downsamples.0.residual.2.weight) and takes {channels} channels; use --vae {found}"
    )


def _build(name: str, config: dict[str, Any], state: StateDict, where: str) -> AutoencoderKLWan:
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        model = AutoencoderKLWan.from_config(config)
    difference = first_difference(model.state_dict(), state)
    if difference is not None:
        raise UserError(f"{name}: {where} does not fit {name}: {difference}")
    model.load_state_dict({key: value.float() for key, value in state.items()}, assign=True)
    return model
