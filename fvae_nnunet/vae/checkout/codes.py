"""CV-VAE and VideoVAE+, run from a checkout of the authors' code: their licences do not let us ship the networks.

The user gives a checkout and, unless they are on the hub, the weights. Loading runs the code of that folder with the
user's permissions; weights are read by ``fvae_nnunet.vae.weights``, not by that code.

Both compress 8 x 8 pixels and 4 slices into one latent pixel. The calls follow the reconstruction scripts released with
the paper (github.com/qic999/Foundation-VAE, folder Reconstruction).
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from fvae_nnunet.errors import UserError
from fvae_nnunet.vae.base import FrozenVAE
from fvae_nnunet.vae.checkout.importer import Checkout
from fvae_nnunet.vae.checkout.vae import CheckoutVAE, CheckoutWeights, ResearchCode, colours
from fvae_nnunet.vae.known import hub_of
from fvae_nnunet.vae.module_vae import Placement, drawn, grey
from fvae_nnunet.vae.wanted import Wanted

if TYPE_CHECKING:
    from typing_extensions import Unpack


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_bias: None = None, op: None = None
) -> torch.Tensor:
    """xformers' ``memory_efficient_attention`` of one head: (B, tokens, channels)."""
    return F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]


def _module(name: str, **content: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(content)
    return module


class CVVAE(CheckoutVAE):
    """CV-VAE. As in the paper's script, it codes pieces of 1 + 16 slices, and tiles beyond 576 pixels.

    Within a piece the decoder sees later slices, and the norms see all slices.
    """

    code = ResearchCode(
        "AILab-CVC/CV-VAE",
        "models.modeling_vae",
        "CVVAEModel",
        "its folder vae3d with config.json and weights",
        # xformers itself has no kernels for the CPU
        replaced={
            "xformers": _module(
                "xformers", __version__="0", ops=_module("xformers.ops", memory_efficient_attention=_attention)
            )
        },
    )

    @classmethod
    def build(cls, model_class: Any, weights: CheckoutWeights) -> tuple[Any, int]:
        config, state = weights.folder(cls.code.class_name, "vae3d")
        model = weights.fill(lambda: model_class.from_config(config), state)
        return model, model.config.z_channels

    def __init__(self, name: str, model: Any, latent_channels: int, **placement: Unpack[Placement]) -> None:
        super().__init__(name, model, latent_channels, **placement)
        self.latent_mean = torch.zeros(latent_channels)
        self.latent_std = torch.full((latent_channels,), 1 / model.config.scaling_factor)

    def _encode(self, volume: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        posterior = self._model.encode(colours(volume)).latent_dist
        return drawn(posterior.mean, posterior.std, generator)

    def _decode(self, latent: torch.Tensor) -> torch.Tensor:
        return grey(self._model.decode(latent).sample)


class VideoVAEPlus(CheckoutVAE):
    """VideoVAE+, the models without text. Windows of 16 slices are coded independently; each slice sees the others."""

    code = ResearchCode(
        "VideoVerses/VideoVAEPlus",
        "src.models.autoencoder2plus1d_1dcnn",
        "AutoencoderKL2plus1D_1dcnn",
        "its file sota-4-4z.ckpt or sota-4-16z.ckpt",
        nominal=("bs4", "cv2", "ftfy", "transformers"),
        replaced={"pytorch_lightning": _module("pytorch_lightning", LightningModule=nn.Module)},
    )
    slice_offset = 0
    window_slices = 16

    @classmethod
    def build(cls, model_class: Any, weights: CheckoutWeights) -> tuple[Any, int]:
        import yaml

        state = weights.read(weights.path)
        channels = weights.size(state, "decoder_temporal.conv_in.conv.weight", 1)
        config_file = weights.checkout.folder / "configs" / "inference" / f"config_{channels}z.yaml"
        if not config_file.is_file():
            raise UserError(f"videovae+: {weights.source} has {channels} channels, but there is no {config_file}")
        params = yaml.safe_load(config_file.read_text(encoding="utf-8"))["model"]["params"]
        sizes = {key: params[key] for key in ("ddconfig", "ppconfig", "embed_dim", "use_quant_conv") if key in params}
        # otherwise the loss is built, which needs another repository
        return weights.fill(lambda: model_class(**sizes, lossconfig={"target": "torch.nn.Identity"}), state), channels

    def _encode(self, volume: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        latent = colours(volume)
        for encode in (self._model.encode_2plus1d, self._model.encode_temporal):
            posterior = encode(latent)
            latent = drawn(posterior.mean, posterior.std, generator)
        return latent

    def _decode(self, latent: torch.Tensor) -> torch.Tensor:
        return grey(self._model.decode(latent))


RESEARCH_VAES: dict[str, type[CheckoutVAE]] = {"cv-vae": CVVAE, "videovae+": VideoVAEPlus}


def load_checkout_vae(wanted: Wanted, *, code: Path) -> FrozenVAE:
    """Load a research VAE. This runs the code in ``code``.

    Args:
        wanted: request for ``cv-vae`` or ``videovae+``; weights None means the hub (``cv-vae``).
        code: checkout of the VAE's repository; nothing is written there.

    Raises:
        UserError: the folder is not a checkout of that repository, its code cannot be imported, or weights are missing
            or do not fit.
    """
    name, weights, trust = wanted.name, wanted.weights, wanted.trust
    adapter = RESEARCH_VAES[name]
    research = adapter.code
    checkout = Checkout(
        code,
        vae=name,
        repository=research.repository,
        expects=research.module.replace(".", "/") + ".py",
        nominal=research.nominal,
        replaced=research.replaced,
    )
    if weights is not None:
        found = CheckoutWeights(name, weights, str(weights), trust, checkout)
    elif (hub := hub_of(name)) is not None:
        found = CheckoutWeights(name, hub.fetch(name), f"hub {hub.hub_id}", trust, checkout)
    else:
        raise UserError(f"{name}: give {research.weights} as `weights` (see github.com/{research.repository})")
    model, latent_channels = adapter.build(checkout.load(research.module, research.class_name), found)
    return adapter(name, model, latent_channels, **wanted.placement(found.source))
