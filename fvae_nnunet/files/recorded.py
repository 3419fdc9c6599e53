"""Files that count only once they are on the disk, and what is recorded of them to tell later whether they are whole.

What is recorded of a file is ``{"bytes": 1234, "sha256": "..."}``; records of older versions hold the number of bytes
alone, so that of their files only the size can be checked.
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

_BLOCK_BYTES = 1 << 20


def sha256_of_file(path: Path) -> str:
    """Hex digest of all bytes of a file; UserError where there is none, or a pipe, which could not be read."""
    check_file(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class RecordedFile:
    """What is recorded of a file.

    Attributes:
        bytes: its size.
        sha256: hex digest; None in records of older versions.
    """

    bytes: int
    sha256: str | None

    @classmethod
    def of(cls, path: Path) -> RecordedFile:
        """Of a file as it is on disk."""
        return cls(path.stat().st_size, sha256_of_file(path))

    @classmethod
    def from_json(cls, content: Any, where: str) -> RecordedFile:
        """From a record; UserError, which begins with ``where``, if it is none."""
        size, sha256 = (content.get("bytes"), content.get("sha256")) if isinstance(content, dict) else (content, None)
        known = isinstance(content, int) or isinstance(sha256, str)
        if not known or isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise UserError(f"{where} says neither size nor sha256 of a file; remove it and run the command again")
        return cls(size, sha256)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def has_size_of(self, path: Path) -> bool:
        """Whether there is a file of this size."""
        return path.is_file() and path.stat().st_size == self.bytes

    def damage(self, path: Path) -> str | None:
        """What is wrong with the file at this place, such as "is missing"; None where it is as recorded.

        Reads the whole file. Without a recorded digest only the size counts.
        """
        if not path.is_file():
            return "is missing"
        size = path.stat().st_size
        if size != self.bytes:
            return f"has {size} bytes, {self.bytes} were written"
        try:
            same = self.sha256 is None or sha256_of_file(path) == self.sha256
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        return None if same else "holds other bytes than were written (sha256)"


def damage_of(files: Mapping[Path, RecordedFile]) -> dict[Path, str]:
    """What is wrong with files, by path; those that are as recorded are not in it. Reads them whole."""
    found = {path: file.damage(path) for path, file in files.items()}
    return {path: what for path, what in found.items() if what is not None}


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """A path beside ``target``, same ending, that takes its place when the block ends and is removed when it fails.

    It is on the disk before it takes the place. One process at a time may write a target; what a killed one left behind
    is written over by the next.
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
    """Write a file atomically; what is to be recorded of it, from the bytes that were to be written."""
    with atomic_write(target) as temporary:
        temporary.write_bytes(content)
    return RecordedFile(len(content), hashlib.sha256(content).hexdigest())


def write_shared(target: Path, content: bytes) -> None:
    """Write a file that several processes may write at the same time, also on several machines; atomically, too."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        put_in_place(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def put_in_place(unfinished: Path, target: Path) -> None:
    """Rename a file, or a folder with all that is in it, once it is on the disk; then the name is, too."""
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
    """Wait until a file's bytes, or a folder's names, are on the disk; folders of Windows cannot be waited for."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":
        return
    # Windows flushes only what was opened for writing
    descriptor = os.open(path, os.O_RDONLY if is_folder or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # file systems that know no flush of folders
        if not is_folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
