"""Command options in manifests of older versions, which recorded ``made_with["options"]`` instead of ``parameters``."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from fvae_nnunet.command_lines import option_of

_TEXTS = ("vae", "weights", "vae_code", "scheme", "precision", "view", "synthetic")
_NUMBERS = ("enlarge", "pixel_mm")
_COUNTS = ("average", "window_slices", "overlap_slices", "posterior_seed")
_SWITCHES = ("trust_weights", "truncate", "hu_as_is")


def parameters_in(options: str) -> dict[str, Any]:
    """Parse known parameters by name, such as ``{"vae": "tiny", "hu_windows": [[-1000.0, 1000.0]]}``; drop others."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for names, value_type in ((_TEXTS, str), (_NUMBERS, float), (_COUNTS, int)):
        for name in names:
            parser.add_argument(option_of(name), dest=name, type=value_type)
    for name in _SWITCHES:
        parser.add_argument(option_of(name), dest=name, action="store_true")
    parser.add_argument(option_of("strength"), type=lambda text: text if text == "auto" else float(text))
    parser.add_argument(option_of("hu_windows"), dest="hu_windows", nargs=2, type=float, action="append")
    parser.add_argument(option_of("channels"), nargs="+", type=int)
    return vars(parser.parse_known_args(shlex.split(options))[0])
