"""Checks of a path before it is opened: it must be a regular file, with a name that every library accepts."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fvae_nnunet.errors import UserError


def check_file(path: Path) -> None:
    """Raise UserError unless a path is a regular file: not a folder, pipe, device or broken link.

    Opening a pipe would block forever.
    """
    check_name(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise UserError(
                f"{path} is a broken link (to {readable(path.readlink())}); remove it or restore its target"
            ) from None
        raise UserError(f"{path} is missing") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        raise UserError(f"{path} is a folder, not a file; move or rename it")
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is a pipe, socket or device, not a file; replace it with a file")


def check_name(path: Path) -> None:
    """Raise UserError if a path cannot be encoded as UTF-8, because SimpleITK would end the process."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        try:
            os.fsencode(path).decode()
        except UnicodeDecodeError:
            raise UserError(f"{readable(path)}: this name is not valid UTF-8; rename it") from None
        raise UserError(
            f"{readable(path)}: the locale of this process cannot encode this name; set PYTHONUTF8=1 or "
            "LC_ALL=C.UTF-8, or rename it"
        ) from None


def readable(path: str | os.PathLike[str]) -> str:
    """A path for messages, with bytes that are not UTF-8 shown as ``\\xe4``."""
    return os.fsencode(path).decode(errors="backslashreplace")
