"""Atomic writing of files, and records of their size and digest to check later whether they are intact.

The record of a file is ``{"bytes": 1234, "sha256": "..."}``. Records of older versions hold only the number of bytes,
so only the size of their files can be checked.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fvae_nnunet.errors import UserError
from fvae_nnunet.files.ordinary import check_file

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of an OSError if there is no space left, on the disk or in the user's quota."""

_BLOCK_BYTES = 1 << 20


def sha256_of_file(path: Path) -> str:
    """Hex digest of all bytes of a file; UserError if it is missing or not a regular file."""
    check_file(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class RecordedFile:
    """Recorded size and digest of a file.

    Attributes:
        bytes: size of the file.
        sha256: hex digest; None in records of older versions.
    """

    bytes: int
    sha256: str | None

    @classmethod
    def of(cls, path: Path) -> RecordedFile:
        """Record a file as it is on disk."""
        return cls(path.stat().st_size, sha256_of_file(path))

    @classmethod
    def from_json(cls, content: Any, where: str) -> RecordedFile:
        """Parse a record; raise UserError, with a message that begins with ``where``, if it is not valid."""
        size, sha256 = (content.get("bytes"), content.get("sha256")) if isinstance(content, dict) else (content, None)
        known = isinstance(content, int) or isinstance(sha256, str)
        if not known or isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise UserError(
                f"{where} has neither the size nor the sha256 of a file; remove it and run the command again"
            )
        return cls(size, sha256)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def has_size_of(self, path: Path) -> bool:
        """Whether the path is a file of the recorded size."""
        return path.is_file() and path.stat().st_size == self.bytes

    def damage(self, path: Path) -> str | None:
        """Damage of a file compared with the record, such as "is missing"; None if it is as recorded.

        Reads the whole file. Without a recorded digest, only the size is checked.
        """
        if not path.is_file():
            return "is missing"
        size = path.stat().st_size
        if size != self.bytes:
            return f"has {size} bytes, but {self.bytes} were written"
        try:
            same = self.sha256 is None or sha256_of_file(path) == self.sha256
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        return None if same else "has changed since it was written (sha256)"


def damage_of(files: Mapping[Path, RecordedFile]) -> dict[Path, str]:
    """Damage of files by path, without those that are as recorded. Reads the files completely."""
    found = {path: file.damage(path) for path, file in files.items()}
    return {path: what for path, what in found.items() if what is not None}


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """Yield a temporary path with the ending of ``target``, which replaces ``target`` unless the block fails.

    The data are flushed to disk before the replacement. Only one process at a time may write a target. The next one
    overwrites temporary files of a killed process.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.partial{''.join(target.suffixes[-2:])}")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        put_in_place(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(target: Path, content: bytes) -> RecordedFile:
    """Write a file atomically, and return its record, computed from ``content``."""
    with atomic_write(target) as temporary:
        temporary.write_bytes(content)
    return RecordedFile(len(content), hashlib.sha256(content).hexdigest())


def write_shared(target: Path, content: bytes) -> None:
    """Write a file atomically, even if several processes or machines write it at the same time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        put_in_place(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def put_in_place(unfinished: Path, target: Path) -> None:
    """Flush a file, or a folder with its contents, to disk, rename it, and flush the new name."""
    if unfinished.is_dir():
        for folder, _, names in os.walk(unfinished):
            for name in names:
                flush(Path(folder, name))
            flush(Path(folder))
    else:
        flush(unfinished)
    unfinished.replace(target)
    flush(target.parent)


def flush(path: Path) -> None:
    """Flush the bytes of a file or the names in a folder to disk; does nothing for folders on Windows."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":
        return
    # Windows flushes only files that are open for writing
    descriptor = os.open(path, os.O_RDONLY if is_folder or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # some file systems cannot flush folders
        if not is_folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
