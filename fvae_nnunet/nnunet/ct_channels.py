"""Choice of the channels of a dataset that hold CT in HU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fvae_nnunet.errors import UserError


def channel_names(dataset_json: dict[str, Any]) -> list[str]:
    """Names of the channels in their order; nnU-Net uses only the order, not the keys.

    From ``channel_names``, or ``modality`` in older datasets; an empty list without either.
    """
    return [str(name) for name in dataset_json.get("channel_names", dataset_json.get("modality", {})).values()]


def is_called_ct(name: str) -> bool:
    """Whether nnU-Net treats a channel of this name as CT."""
    return name.casefold() == "ct"


def find_ct_channels(
    dataset_json: dict[str, Any], plans: dict[str, Any], channels: Sequence[int] | None = None
) -> list[int]:
    """Channels named CT in dataset.json or normalised as CT by the plans, in order; or the requested channels.

    Args:
        dataset_json: content of dataset.json.
        plans: content of the plans file.
        channels: use these channels, whatever their names.

    Raises:
        UserError: no channel is CT, or a requested channel does not exist.
    """
    names = channel_names(dataset_json)
    if channels is not None:
        unknown = [channel for channel in channels if not 0 <= channel < len(names)]
        if unknown:
            raise UserError(f"there is no channel {unknown[0]}; the channels are {_listed(names, range(len(names)))}")
        return sorted(set(channels))
    schemes = [
        conf["normalization_schemes"] for conf in plans["configurations"].values() if "normalization_schemes" in conf
    ]
    found = [
        channel
        for channel, name in enumerate(names)
        if is_called_ct(name) or any(scheme[channel : channel + 1] == ["CTNormalization"] for scheme in schemes)
    ]
    if not found:
        raise UserError(
            f"no channel is CT (channel_names: {', '.join(names)}); reconstruction requires HU. If a channel is CT, "
            "name it CT in dataset.json and plan again, or select it with `channels` if the command has this option"
        )
    return found


def said_channels(dataset_json: dict[str, Any], reconstructed: Sequence[int]) -> str:
    """Message on the channels, such as ``channels reconstructed: 0 (CT); copied: 1 (PET)``."""
    names = channel_names(dataset_json)
    copied = [channel for channel in range(len(names)) if channel not in reconstructed]
    return f"channels reconstructed: {_listed(names, reconstructed)}; copied: {_listed(names, copied) or 'none'}"


def _listed(names: Sequence[str], channels: Sequence[int]) -> str:
    return ", ".join(f"{channel} ({names[channel]})" for channel in channels)
