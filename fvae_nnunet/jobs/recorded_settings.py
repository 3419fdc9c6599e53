"""Rules for the settings in a manifest, so that damaged or wrongly edited settings are rejected."""

from __future__ import annotations

import math
from typing import Any

from fvae_nnunet.files.checked_json import Rule

PRECISIONS = ("float32", "bfloat16", "float16", "mixed")
"""Precisions of a VAE, as options and manifests name them."""


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(value: Any, count: int | None = None) -> bool:
    return isinstance(value, list) and count in (None, len(value)) and all(map(_is_number, value))


HU_WINDOW = Rule("two numbers, the lower first", lambda value: _are_numbers(value, 2) and value[0] < value[1])
_AT_LEAST_0 = Rule("a whole number, at least 0", lambda value: _is_whole(value, 0))
_AT_LEAST_1 = Rule("a whole number, at least 1", lambda value: _is_whole(value, 1))
_ABOVE_0 = Rule("a number above 0", lambda value: _is_number(value) and value > 0)
_STRENGTH = Rule("a number, at least 0, or auto", lambda value: value == "auto" or (_is_number(value) and value >= 0))
_SPACING_MM = Rule("three numbers above 0", lambda value: _are_numbers(value, 3) and min(value) > 0)
_DEVIATIONS = Rule("numbers above 0", lambda value: _are_numbers(value) and all(number > 0 for number in value))
_CHANNELS = Rule(
    "channel numbers, each once",
    lambda value: isinstance(value, list) and all(_is_whole(n, 0) for n in value) and len(set(value)) == len(value) > 0,
)


def _one_of(*names: str) -> Rule:
    return Rule(f"one of {', '.join(names)}", lambda value: value in names)


SETTINGS = {
    "vae?": str,
    "weights_sha256?": str,
    "precision?": _one_of(*PRECISIONS),
    "tf32?": bool,
    "hu_window?": HU_WINDOW,
    "inner_windows?": [HU_WINDOW],
    "enlarge?": _ABOVE_0,
    "pixel_mm?": _ABOVE_0,
    "average?": _AT_LEAST_1,
    "window_slices?": _AT_LEAST_1,
    "inplane_pixels?": _AT_LEAST_1,
    "spacing_mm?": (_SPACING_MM, None),
    "latent_channels?": _AT_LEAST_1,
    "mask_encoding?": _one_of("outline", "onehot", "vae"),
    "class_names?": [str],
    "latent_mean?": [float],
    "latent_std?": _DEVIATIONS,
    "prediction?": _one_of("sample", "epsilon", "v_prediction", "flow"),
    "text_encoder?": (str, None),
    "text_width?": (_AT_LEAST_1, None),
    "text_weights_sha256?": (str, None),
    "strength?": _STRENGTH,
    "overlap_slices?": _AT_LEAST_0,
    "scheme?": _one_of("windows", "paper", "stream"),
    "truncate?": bool,
    "posterior_seed?": (_AT_LEAST_0, None),
    "ct_channels?": _CHANNELS,
    "preprocessing?": dict,
    "batch?": _AT_LEAST_1,
    "steps?": (_AT_LEAST_0, [_AT_LEAST_0]),
}
"""Shape of the settings of all kinds of manifests; other entries are not checked."""
