"""What of a path may stand in a model that is shared: its own name, and nothing of the machine that it lies on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def portable_name(text: str) -> str:
    """A path without the folders that lead to it; anything else, such as a hub id, as it is.

    A word before and values behind the path stay: ``folder:/data/masks:1,2`` becomes ``folder:masks:1,2``.
    """
    kind, path, values = re.fullmatch(r"([a-z]{2,}:)?(.*?)((?::\d+(?:,\d+)*)?)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    place = Path(path)
    is_path = place.is_absolute() or path.startswith(("~", "./", "../")) or (len(place.parts) > 1 and place.exists())
    return f"{kind or ''}{place.name}{values}" if is_path else text


def portable_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a command, each path among them as ``portable_name`` has it."""
    return {name: portable_name(value) if isinstance(value, str) else value for name, value in parameters.items()}
