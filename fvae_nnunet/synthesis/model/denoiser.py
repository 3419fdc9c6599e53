"""The network of the latent diffusion: a 2D UNet over latent slices, optionally with consistency along the slices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from fvae_nnunet.synthesis.model.conditions import ENCODINGS
from fvae_nnunet.synthesis.model.slice_consistency import (
    KINDS,
    SliceCount,
    insert_along_slices,
    parameters_along_slices,
)

CONTEXTS = ("none", "masked", "draft")


@dataclass(frozen=True)
class UNetSize:
    """Sizes of the UNet.

    Attributes:
        widths: channels at each resolution, from that of the latent down; all except the first have attention.
        heads: attention heads at each resolution.
        blocks: residual blocks at each resolution.
        null_width: width of the null token for models without text.
        groups: groups of the group normalisation.
    """

    widths: tuple[int, ...]
    heads: tuple[int, ...]
    blocks: int
    null_width: int
    groups: int = 32


SIZES = {
    "paper": UNetSize((224, 448, 672, 896), (7, 14, 21, 28), blocks=2, null_width=768),
    "small": UNetSize((96, 192, 288), (3, 6, 9), blocks=2, null_width=256),
    "tiny": UNetSize((32, 64), (1, 2), blocks=1, null_width=32, groups=8),
}
"""``paper``: as released with Foundation-VAE, 420 M parameters; ``small``: 36 M; ``tiny``: 1 M, for tests and CPU."""


class LatentDenoiser(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Predict the noise (or another target of ``NoiseProcess.target``) in standardised latents.

    A diffusers model: ``save_pretrained`` and ``from_pretrained`` work.

    Args:
        latent_channels: number of latent channels of the VAE.
        mask_encoding: see ``conditions``. Shares are projected to ``latent_channels`` channels by a learned 1x1
            convolution; a grey map and other channels are used unchanged. All are concatenated to the noisy latent.
        classes: number of mask classes without the background.
        size: one of ``SIZES``.
        text_width: width of the report embedding; None for a model without text.
        consistency: None for independent slices, ``conv`` or ``attention``; see ``slice_consistency``.
        detail_channels: channels of the condition after shares or grey map, see ``conditions.detail_channels``.
        context: additional input of the network (``known_context``): ``none``; ``masked``: the known part of the
            latent; ``draft``: this and a draft of the generated part. With a draft the output is added to it, and is
            zero at first.

    Raises:
        ValueError: the size, encoding, context or kind of consistency is unknown.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        latent_channels: int,
        mask_encoding: str,
        classes: int,
        size: str = "small",
        text_width: int | None = None,
        consistency: str | None = None,
        detail_channels: int = 0,
        context: str = "none",
    ) -> None:
        super().__init__()
        for what, value, known in (
            ("mask encoding", mask_encoding, ENCODINGS),
            ("size", size, SIZES),
            ("consistency", consistency, (None, *KINDS)),
            ("context", context, CONTEXTS),
        ):
            if value not in known:
                raise ValueError(f"unknown {what} {value!r}; known are {', '.join(filter(None, known))}")
        self._mask_channels = latent_channels if mask_encoding == "vae" else classes + 1
        self.condition_channels = self._mask_channels + detail_channels
        self.project_mask = (
            None if mask_encoding == "vae" else nn.Conv2d(self._mask_channels, latent_channels, 1, bias=False)
        )
        sizes = SIZES[size]
        width = text_width or sizes.null_width
        self.null_token = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        deeper = len(sizes.widths) - 1
        self.unet = UNet2DConditionModel(
            in_channels=2 * latent_channels + detail_channels + (0 if context == "none" else latent_channels + 1),
            out_channels=latent_channels,
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deeper,
            up_block_types=("CrossAttnUpBlock2D",) * deeper + ("UpBlock2D",),
            block_out_channels=sizes.widths,
            layers_per_block=sizes.blocks,
            cross_attention_dim=width,
            attention_head_dim=sizes.heads,  # in this class the number of heads
            norm_num_groups=sizes.groups,
        )
        if context == "draft":
            for parameter in self.unet.conv_out.parameters():
                nn.init.zeros_(parameter)
        self._count = SliceCount()
        if consistency is not None:
            insert_along_slices(self.unet, consistency, self._count)

    def forward(
        self,
        noisy: torch.Tensor,
        timestep: torch.Tensor,
        condition: torch.Tensor,
        text: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        drop: torch.Tensor | None = None,
        context: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict the target for a batch of windows.

        Args:
            noisy: (B, C, d, h, w), standardised latents with noise; any d, h and w.
            timestep: (B,), one per window.
            condition: (B, ``condition_channels``, d, h, w), see ``conditions.ConditionFormat.dense``.
            text: (B, T, text_width) or None.
            text_mask: bool (B, T), True for real tokens; None if all are real. Other tokens have no effect. A sample
                without real tokens gets the learned null token instead, as do all samples if ``text`` is None.
            drop: bool (B,), samples whose conditions are dropped: their text is the null token and their projected mask
                is zero (unlike that of an empty mask).
            context: (B, C + 1, d, h, w), see ``known_context``; for models with context.

        Returns:
            (B, C, d, h, w).
        """
        batch, _, slices = noisy.shape[:3]
        if (context is None) != (self.config["context"] == "none"):
            raise ValueError(f"this model was created with the context {self.config['context']}")
        if self.project_mask is not None:
            mask, detail = condition.tensor_split([self._mask_channels], dim=1)
            mask = self.project_mask(_as_slices(mask)).unflatten(0, (batch, slices)).transpose(1, 2)
            condition = torch.cat([mask, detail.to(mask.dtype)], dim=1)
        if drop is not None:
            condition = condition * (~drop).to(condition.dtype).view(-1, 1, 1, 1, 1)
        seen = [noisy, condition.to(noisy.dtype)] + ([] if context is None else [context.to(noisy.dtype)])
        tokens, token_mask = self._tokens(batch, text, text_mask, drop)
        with self._count.set_to(slices):
            predicted = self.unet(
                _as_slices(torch.cat(seen, dim=1)),
                timestep.repeat_interleave(slices),
                encoder_hidden_states=tokens.repeat_interleave(slices, dim=0),
                encoder_attention_mask=None if token_mask is None else token_mask.repeat_interleave(slices, dim=0),
                return_dict=False,
            )[0]
        predicted = predicted.unflatten(0, (batch, slices)).transpose(1, 2)
        if self.config["context"] == "draft":
            assert context is not None
            return predicted + context[:, :-1]
        return predicted

    def _tokens(
        self, batch: int, text: torch.Tensor | None, text_mask: torch.Tensor | None, drop: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens (B, T, width), of which the first is the null token, and the mask of those used."""
        null = self.null_token.expand(batch, -1, -1)
        if text is None:
            return null, None
        if self.config["text_width"] is None:
            raise ValueError("this model was created without text (text_width None)")
        if text_mask is None:
            text_mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
        if drop is not None:
            text_mask = text_mask & ~drop[:, None]
        text = text.masked_fill(~text_mask[..., None], 0.0).to(null.dtype)
        empty = ~text_mask.any(dim=1, keepdim=True)
        return torch.cat([null, text], dim=1), torch.cat([empty, text_mask], dim=1)

    def insert_consistency(self, kind: str) -> LatentDenoiser:
        """A new model with the same weights and with consistency along the slices.

        At first its output is identical to that of this model for any number of slices.
        """
        if self.config["consistency"] is not None:
            raise ValueError(f"this model already has consistency along the slices ({self.config['consistency']})")
        names = ("latent_channels", "mask_encoding", "classes", "size", "text_width", "detail_channels", "context")
        model = LatentDenoiser(**{name: self.config[name] for name in names}, consistency=kind)
        unknown = model.load_state_dict(self.state_dict(), strict=False).unexpected_keys
        assert not unknown, unknown
        # diffusers' own `to` warns about modules to keep in float32 even if there are none
        return nn.Module.to(model, self.device, self.dtype).train(self.training)

    def stage_parameters(self, stage: int) -> list[nn.Parameter]:
        """The parameters trained in a stage: 1: all except the consistency along the slices; 2: only these."""
        along_slices = parameters_along_slices(self)
        if stage == 1:
            chosen = {id(parameter) for parameter in along_slices}
            return [parameter for parameter in self.parameters() if id(parameter) not in chosen]
        if stage != 2 or not along_slices:
            raise ValueError("the stage must be 1 or 2, and 2 needs a model with consistency along the slices")
        return along_slices

    def enable_gradient_checkpointing(self) -> None:  # type: ignore[override]
        """Recompute activations in the backward pass instead of storing them."""
        super().enable_gradient_checkpointing(self._count.checkpointed)


def known_context(latent: torch.Tensor, generated: torch.Tensor, draft: torch.Tensor | None = None) -> torch.Tensor:
    """The context input for a latent of which a part is to be generated.

    As in the inpainting model of Rombach et al. 2022: the latent, and the mask of the cells to generate. In these cells
    the latent is 0, or that of a draft.

    Args:
        latent: (B, C, d, h, w), standardised.
        generated: bool (B, 1, d, h, w), the cells to generate.
        draft: shape as ``latent``, for the context ``draft``; None: no draft.

    Returns:
        (B, C + 1, d, h, w).
    """
    shown = latent.masked_fill(generated, 0.0) if draft is None else torch.where(generated, draft, latent)
    return torch.cat([shown, generated.to(latent.dtype)], dim=1)


def _as_slices(x: torch.Tensor) -> torch.Tensor:
    """(B, C, d, h, w) to (B * d, C, h, w)."""
    return x.transpose(1, 2).flatten(0, 1)
