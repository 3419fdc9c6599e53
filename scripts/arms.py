"""Views compared in workflows, parsed from the configuration. Uses only the standard library."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RAW = "raw"

PLANNERS = {
    "nnUNetPlans": "ExperimentPlanner",
    "nnUNetResEncUNetMPlans": "nnUNetPlannerResEncM",
    "nnUNetResEncUNetLPlans": "nnUNetPlannerResEncL",
    "nnUNetResEncUNetXLPlans": "nnUNetPlannerResEncXL",
}
"""Plans of nnU-Net -> their planner class."""


class ConfigError(ValueError):
    """The configuration is not valid."""


@dataclass(frozen=True)
class View:
    """A view, defined by options of ``fvae-preprocess``.

    Attributes:
        name: value of ``--view``.
        vae: value of ``--vae``.
        options: the whole line of options.
        matched: value of ``--match``: the view whose noise level a plain denoiser has to match.
    """

    name: str
    vae: str
    options: str
    matched: str | None

    @property
    def reconstruction(self) -> str:
        """Its options for ``fvae-reconstruct`` and ``fvae-predict``, which know no ``--view``."""
        words = shlex.split(self.options)
        place = words.index("--view")
        return shlex.join(words[:place] + words[place + 2 :])


def parse_views(lines: Iterable[str]) -> dict[str, View]:
    """Parse the views by name, in the order of the lines.

    Raises:
        ConfigError: a line has no ``--view`` or ``--vae``, two views have the same name, one is matched to a view that
            is not among them, or weights or code do not exist.
    """
    views: dict[str, View] = {}
    for line in lines:
        words = shlex.split(line)
        given = {word: words[index + 1] for index, word in enumerate(words[:-1]) if word.startswith("--")}
        if not {"--view", "--vae"} <= given.keys():
            raise ConfigError(f"views: expected --view NAME --vae NAME and options of fvae-preprocess; got: {line}")
        name = given["--view"]
        check_name("view", name, reserved=(RAW,))
        if name in views:
            raise ConfigError(f"views: two are named {name}")
        for option in ("--weights", "--vae-code"):
            if option in given and not Path(given[option]).is_absolute():
                raise ConfigError(f"views: {name}: {option} must be an absolute path, got {given[option]}")
            if option in given and not Path(given[option]).exists():
                raise ConfigError(f"views: {name}: {option}: no such file or folder: {given[option]}")
        views[name] = View(name, given["--vae"], line, given.get("--match"))
    for view in views.values():
        if view.matched is not None and view.matched not in views.keys() - {view.name}:
            raise ConfigError(f"views: {view.name} is matched to {view.matched}, which is not one of the other views")
    return views


def check_name(kind: str, name: str, *, reserved: Iterable[str] = ()) -> None:
    """Raise ConfigError if a view, arm or test cannot have this name, which is part of its file names."""
    if not re.fullmatch(r"[\w.+-]+", name) or name in reserved:
        article = "an" if kind[0] in "aeiou" else "a"
        raise ConfigError(f"{kind}s: {name!r} cannot be the name of {article} {kind}; use letters, digits and . + - _")


def check_keys(config: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise ConfigError if the configuration has an unknown key."""
    unknown = sorted(config.keys() - set(known))
    if unknown:
        raise ConfigError(f"unknown key {unknown[0]} in the configuration; known keys: {', '.join(sorted(known))}")


def check_complete(config: Mapping[str, Any], keys: Iterable[str], remedy: str) -> None:
    """Raise ConfigError if a configuration lacks one of these keys or has another one; ``remedy`` follows "give"."""
    known = set(keys)
    missing = sorted(known - config.keys())
    if missing:
        raise ConfigError(f"the configuration has no {missing[0]}; give {remedy}")
    check_keys(config, known)


def check_choices(config: Mapping[str, Any], choices: Mapping[str, Iterable[object]]) -> None:
    """Raise ConfigError if the value of a key is not one of its choices."""
    for key, values in choices.items():
        if config[key] not in values:
            raise ConfigError(f"{key}: {config[key]} is not one of {', '.join(map(str, values))}")


def existing_folder(config: Mapping[str, Any], key: str) -> Path:
    """Folder named in the configuration; ConfigError if it does not exist."""
    folder = Path(str(config[key]))
    if config[key] is None or not folder.is_absolute():
        raise ConfigError(f"{key} must be an absolute path: --config {key}=/data/...; got {config[key]}")
    if not folder.is_dir():
        raise ConfigError(f"{key}: there is no folder {folder}")
    return folder


def on_a_free_gpu(gpus: Iterable[int]) -> str:
    """Prefix of a shell command that reserves one of these GPUs; empty if none is named.

    A GPU is reserved by a lock, which the system releases when the command ends for any reason.
    """
    numbers = " ".join(map(str, gpus))
    if not numbers:
        return ""
    return (
        f"for gpu in {numbers}; do exec 9>.gpu$gpu.lock; "
        "if flock --nonblock 9; then export CUDA_VISIBLE_DEVICES=$gpu; break; fi; done; "
    )
