"""Names of folders that users choose, and paths in models that are shared, without anything of the local machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fvae_nnunet.errors import UserError


def check_folder_name(name: str, of: str) -> None:
    """Raise UserError if ``name`` could be more than the name of one folder; ``of`` says what it names: ``a view``."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
        raise UserError(f"the name of {of} must consist of letters, digits and . _ + -, got {name!r}")


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
