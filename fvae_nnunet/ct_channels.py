"""Which channels of a dataset hold CT in HU."""

from __future__ import annotations

from typing import Any

from fvae_nnunet.errors import UserError


def find_ct_channels(dataset_json: dict[str, Any], plans: dict[str, Any]) -> list[int]:
    """The channels named CT in dataset.json or normalised as CT by the plans.

    Raises:
        UserError: there is none.
    """
    names = dataset_json.get("channel_names", dataset_json.get("modality", {}))
    schemes = [
        scheme for conf in plans["configurations"].values() for scheme in [conf.get("normalization_schemes")] if scheme
    ]
    channels = [
        int(channel)
        for channel, name in names.items()
        if str(name).casefold() == "ct" or any(scheme[int(channel)] == "CTNormalization" for scheme in schemes)
    ]
    if not channels:
        raise UserError(
            f"no channel is CT (channel_names: {', '.join(map(str, names.values()))}); "
            "the reconstruction needs HU. If a channel is CT, name it CT in dataset.json and plan again"
        )
    return sorted(channels)
