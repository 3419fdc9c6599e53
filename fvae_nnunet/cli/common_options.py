"""Options that several commands have, each declared once; and calls of the library with options."""

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
    "all_pairs": _option("--all-pairs", **_SWITCH, help="compare all pairs, not only with the first"),
    "allow_missing": _option("--allow-missing", **_SWITCH),
    "batch": _option("--batch", **_COUNT),
    "channels": _option("--channels", nargs="+", **_COUNT,
        help="numbers of the channels that are CT in HU, whatever their name; default: all that are called CT"),
    "dataset_json": _option("-djfile", **_FILE),
    "device": _option("-device", choices=("cuda", "cpu", "mps"), help="default: cuda if there is a GPU, else cpu"),
    "findings": _option("--findings", **_NAMES),
    "fold": _option("--fold", type=int, metavar="F",
        help="use only the training cases of this fold of nnU-Net, so that its validation cases are not seen; "
        "default: all training cases"),
    "hu_as_is": _option("--hu-as-is", **_SWITCH,
        help="accept values that do not look like HU; default: such images are refused"),
    "hu_window": _option("--hu-window", nargs=2, type=float, metavar=("LOWER", "UPPER"),
        help="HU mapped to [-1, 1]; values outside are clipped; default -1000 1000, the paper's"),
    "images": _option("-i", required=True, **_FOLDER),
    "learning_rate": _option("--lr", type=float, metavar="RATE"),
    "leave_out": _option("--leave-out", nargs="+", default=[], metavar="CASE", help="cases not to use"),
    "names": _option("--names", **_NAMES, help="of the models; default: those of the folders or files"),
    "noise_kernel": _option("--noise-kernel", type=_noise_kernel, metavar="PIXELS", default=0.6,
        help="in-plane Gaussian that the noise has passed through; default 0.6; 0: white; or scanner: the noise of few "
        "photons, by way of a sinogram"),
    "no_wait": _option("--no-wait", **_SWITCH,
        help="do not wait at the end for cases that other processes work on; if some are still missing, the exit "
        "status is 75"),
    "num_parts": _option("-num_parts", **_COUNT, default=1, help="split the cases over N calls; default 1"),
    "output": _option("-o", type=Path),
    "overlap_slices": _option("--overlap", **_COUNT),
    "overwrite": _option("--overwrite", **_SWITCH, help="make everything again; settings may differ"),
    "part_id": _option("-part_id", type=int, default=0, metavar="I",
        help="part that this call does, counted from 0; default 0"),
    "plans_name": _option("-p", "-plans_name", default="nnUNetPlans", metavar="PLANS",
        help="plans identifier; default nnUNetPlans"),
    "precision": _option("--precision", choices=("float32", "bfloat16", "float16")),
    "processes": _option("-np", **_COUNT, default=2, help="processes that read and write; default 2, 0: none"),
    "resamples": _option("--resamples", **_COUNT, help="of the bootstrap; default 9999"),
    "save_every": _option("--save-every", **_COUNT),
    "seed": _option("--seed", **_COUNT, default=0, help="random seed; default 0"),
    "segmenter": _option("--segmenter", **_FOLDER),
    "spacing_mm": _option("--spacing", type=float, **_ZYX),
    "trainer": _option("-tr", metavar="TRAINER"),
    "trust_weights": _option("--trust-weights", **_SWITCH,
        help="read a pickled --weights file that holds more than tensors; it can run code"),
    "vae_code": _option("--vae-code", metavar="FOLDER",
        help="checkout of the VAE's own repository; its code is run with your rights (docs/backbones.md)"),
    "verbose": _option("--verbose", **_SWITCH, help="show the traceback of a failed case"),
    "verify": _option("--verify", **_SWITCH,
        help="read existing output and make again what has changed since it was written (sha256)"),
    "weights": _option("--weights", metavar="PATH",
        help="folder or file of the VAE's weights; default: the hub's cache or the hub"),
    "window_slices": _option("--window-slices", **_COUNT),
}
# fmt: on


def add_common(group: argparse._ActionsContainer, *names: str, **changes: Any) -> None:
    """Add options by their parameters' names.

    Args:
        group: gets them.
        names: keys of the table above.
        changes: what ``add_argument`` is told instead, such as a ``help`` of the command's own.
    """
    for name in names:
        flags, keywords = _OPTIONS[name]
        group.add_argument(*flags, dest=name, **keywords | changes)


def given_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace, names: Container[str]) -> list[str]:
    """The options of these names that are given, as a user writes them."""
    return [
        action.option_strings[0]
        for action in parser._actions
        if action.dest in names and action.option_strings and getattr(arguments, action.dest) != action.default
    ]


def from_options(make: Callable[..., Made], arguments: argparse.Namespace, **others: Any) -> Made:
    """Call a function, or make settings, with the options that are called as its parameters.

    What an option leaves open (None) has the parameter's default. Lists become tuples.

    Args:
        make: a function or a class.
        arguments: the options.
        others: parameters that are no option, or not as the option says.
    """
    for name, parameter in inspect.signature(make).parameters.items():
        value = getattr(arguments, name, parameter.empty)
        is_open = value is parameter.empty or (value is None and parameter.default is not parameter.empty)
        if name not in others and not is_open:
            others[name] = tuple(value) if isinstance(value, list) else value
    return make(**others)
