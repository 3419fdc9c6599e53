"""What a path must be before it is opened: a file, with a name that every library can take."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fvae_nnunet.errors import UserError


def check_file(path: Path) -> None:
    """Raise UserError unless a path names a file that can be opened: no folder, pipe or device, no link to nowhere.

    Opening a pipe would wait for ever.
    """
    check_name(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise UserError(
                f"{path} is a link that leads nowhere (to {readable(path.readlink())}); remove it or restore its file"
            ) from None
        raise UserError(f"{path} is missing") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        raise UserError(f"{path} is a folder, not a file; move it away or rename it")
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is a pipe, socket or device, not a file; put the file itself there")


def check_name(path: Path) -> None:
    """Raise UserError where a path cannot be written as UTF-8: SimpleITK would end the process."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        try:
            os.fsencode(path).decode()
        except UnicodeDecodeError:
            raise UserError(f"{readable(path)}: the bytes of this name are no UTF-8; rename it") from None
        raise UserError(
            f"{readable(path)}: the locale of this process has no such letters; set PYTHONUTF8=1 or LC_ALL=C.UTF-8, or "
            "rename it"
        ) from None


def readable(path: str | os.PathLike[str]) -> str:
    """A path for messages: bytes that are no UTF-8 as ``\\xe4``."""
    return os.fsencode(path).decode(errors="backslashreplace")
