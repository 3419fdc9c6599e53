"""Options shared by several commands, each declared once; and calls of the library with options as parameters."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any, TypeVar

Made = TypeVar("Made")


def _option(*flags: str, **keywords: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    return flags, keywords


def _noise_kernel(text: str) -> float | None:
    return None if text == "scanner" else float(text)


_COUNT = {"type": int, "metavar": "N"}
_FILE, _FOLDER = ({"type": Path, "metavar": kind} for kind in ("FILE", "FOLDER"))
_NAMES = {"nargs": "+", "metavar": "NAME"}
_SWITCH = {"action": "store_true"}
_ZYX = {"nargs": 3, "metavar": ("Z", "Y", "X")}

# fmt: off
_OPTIONS = {
    "all_pairs": _option("--all-pairs", **_SWITCH, help="compare all pairs of models, not only each with the first"),
    "allow_missing": _option("--allow-missing", **_SWITCH),
    "batch": _option("--batch", **_COUNT),
    "channels": _option("--channels", nargs="+", **_COUNT,
        help="indices of the channels that are CT in HU, whatever their names; default: all channels named CT"),
    "dataset_json": _option("-djfile", **_FILE),
    "device": _option("-device", choices=("cuda", "cpu", "mps"),
        help="device to compute on; default: cuda if there is a GPU, else cpu"),
    "findings": _option("--findings", **_NAMES),
    "fold": _option("--fold", type=int, metavar="F",
        help="use only the training cases of this fold of nnU-Net, so that its validation cases stay unseen; default: "
        "all training cases"),
    "hu_as_is": _option("--hu-as-is", **_SWITCH,
        help="accept images whose values do not look like HU; default: refuse them"),
    "hu_window": _option("--hu-window", nargs=2, type=float, metavar=("LOWER", "UPPER"),
        help="HU mapped to [-1, 1]; values outside are clipped; default -1000 1000, the paper's"),
    "images": _option("-i", required=True, **_FOLDER),
    "learning_rate": _option("--lr", type=float, metavar="RATE"),
    "leave_out": _option("--leave-out", nargs="+", default=[], metavar="CASE", help="cases not to use"),
    "names": _option("--names", **_NAMES, help="names of the models; default: those of the folders or files"),
    "noise_kernel": _option("--noise-kernel", type=_noise_kernel, metavar="PIXELS", default=0.6,
        help="width of the in-plane Gaussian that colours the noise; default 0.6; 0: white noise; or scanner: photon "
        "noise, simulated in a sinogram"),
    "no_wait": _option("--no-wait", **_SWITCH,
        help="do not wait at the end for cases of other processes; the exit status is 75 if some are still missing"),
    "num_parts": _option("-num_parts", **_COUNT, default=1,
        help="split the cases into N parts, one for each call; default 1"),
    "output": _option("-o", type=Path),
    "overlap_slices": _option("--overlap", **_COUNT),
    "overwrite": _option("--overwrite", **_SWITCH, help="make everything again, also with different settings"),
    "part_id": _option("-part_id", type=int, default=0, metavar="I",
        help="part of this call, counted from 0; default 0"),
    "plans_name": _option("-p", "-plans_name", default="nnUNetPlans", metavar="PLANS",
        help="plans identifier; default nnUNetPlans"),
    "precision": _option("--precision", choices=("float32", "bfloat16", "float16")),
    "processes": _option("-np", **_COUNT, default=2,
        help="number of processes that read and write; default 2, 0: none"),
    "resamples": _option("--resamples", **_COUNT, help="resamples of the bootstrap; default 9999"),
    "save_every": _option("--save-every", **_COUNT),
    "seed": _option("--seed", **_COUNT, default=0, help="random seed; default 0"),
    "segmenter": _option("--segmenter", **_FOLDER),
    "spacing_mm": _option("--spacing", type=float, **_ZYX),
    "trainer": _option("-tr", metavar="TRAINER"),
    "trust_weights": _option("--trust-weights", **_SWITCH,
        help="read a pickled --weights file that holds more than tensors; such a file can run code"),
    "vae_code": _option("--vae-code", metavar="FOLDER",
        help="checkout of the VAE's own repository; its code runs with your permissions (docs/backbones.md)"),
    "verbose": _option("--verbose", **_SWITCH, help="show the traceback of a failed case"),
    "verify": _option("--verify", **_SWITCH,
        help="check all bytes of existing output (sha256), and make changed files again"),
    "weights": _option("--weights", metavar="PATH",
        help="folder or file of the VAE's weights; default: from the hub or its local cache"),
    "window_slices": _option("--window-slices", **_COUNT),
}
# fmt: on


def add_common(group: argparse._ActionsContainer, *names: str, **changes: Any) -> None:
    """Add shared options by the names of their parameters.

    Args:
        group: parser or group that gets the options.
        names: keys of the table above.
        changes: arguments of ``add_argument`` that replace those of the table, such as another ``help``.
    """
    for name in names:
        flags, keywords = _OPTIONS[name]
        group.add_argument(*flags, dest=name, **keywords | changes)


def given_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace, names: Container[str]) -> list[str]:
    """Options with these names that the user has given, as written on the command line."""
    return [
        action.option_strings[0]
        for action in parser._actions
        if action.dest in names and action.option_strings and getattr(arguments, action.dest) != action.default
    ]


def from_options(make: Callable[..., Made], arguments: argparse.Namespace, **others: Any) -> Made:
    """Call a function or class with the options that have the names of its parameters.

    An option that is None leaves the parameter at its default. Lists become tuples.

    Args:
        make: a function or a class.
        arguments: the options.
        others: parameters that are not options, or whose values differ from the options.
    """
    for name, parameter in inspect.signature(make).parameters.items():
        value = getattr(arguments, name, parameter.empty)
        is_open = value is parameter.empty or (value is None and parameter.default is not parameter.empty)
        if name not in others and not is_open:
            others[name] = tuple(value) if isinstance(value, list) else value
    return make(**others)
