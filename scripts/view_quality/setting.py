"""Reading and checking of the configuration for the quality of views.

Uses only the standard library, so that Snakemake may have an environment of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arms import ConfigError, View, check_choices, check_complete, existing_folder, parse_views

KEYS = ("dataset", "views", "pictures", "device", "processes")


@dataclass(frozen=True)
class Setting:
    """One configuration.

    Attributes:
        source: dataset in nnU-Net's raw format; only read.
        views: by name.
    """

    source: Path
    views: Mapping[str, View]


def read_setting(config: Mapping[str, Any]) -> Setting:
    """Read the configuration.

    Raises:
        ConfigError: it is not valid or not complete.
    """
    check_complete(config, KEYS, "a complete one: --configfile chests.yaml")
    source = existing_folder(config, "dataset")
    for folder in ("imagesTr", "labelsTr"):
        if not (source / folder).is_dir():
            raise ConfigError(f"dataset: {source} is not in nnU-Net's raw format: it has no {folder}")
    check_choices(config, {"device": ("cuda", "cpu", "mps")})
    views = parse_views(config["views"])
    if not views:
        raise ConfigError("views: at least one is needed")
    for view in views.values():
        if view.matched:
            raise ConfigError(f"views: {view.name}: --match is not possible here; give --strength")
    return Setting(source, views)
