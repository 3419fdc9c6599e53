"""Paths for models that are shared: only the last component, nothing about the local machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def portable_name(text: str) -> str:
    """Return a path without its parent folders; anything else, such as a hub id, is unchanged.

    A prefix and values around the path are kept: ``folder:/data/masks:1,2`` becomes ``folder:masks:1,2``.
    """
    kind, path, values = re.fullmatch(r"([a-z]{2,}:)?(.*?)((?::\d+(?:,\d+)*)?)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    place = Path(path)
    is_path = place.is_absolute() or path.startswith(("~", "./", "../")) or (len(place.parts) > 1 and place.exists())
    return f"{kind or ''}{place.name}{values}" if is_path else text


def portable_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Apply ``portable_name`` to all text values among the parameters of a command."""
    return {name: portable_name(value) if isinstance(value, str) else value for name, value in parameters.items()}
