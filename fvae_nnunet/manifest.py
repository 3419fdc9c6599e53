"""The record of how a folder of reconstructions was made, and which of its files are complete.

A manifest folder holds ``manifest.json``, written once, with every setting that changes a voxel, and
``cases/<case>.json``, one record per finished case. Several processes may fill one folder: the settings are compared,
never merged, and no two cases share a file. A case counts as done only when its record is there, equals what it would
be made from now, and names the size of each of its files on disk. The record is written last, so an interrupted case
is simply not there.

``manifest.json``::

    {"schema": 1, "kind": "view", "settings": {...}, "made_with": {...}}

``settings`` must be equal for the folder to be continued; ``made_with`` (versions, source of the weights) is for the
reader.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fvae_nnunet.errors import UserError

SCHEMA = 1
_BLOCK_BYTES = 1 << 20


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """A path beside ``target``, same ending, that takes its place when the block ends and is removed when it fails.

    One process at a time may write a target; what a killed one left behind is written over by the next.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.partial{''.join(target.suffixes[-2:])}")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(target: Path, content: Any) -> None:
    """Write ``content`` as JSON with sorted keys, so that equal content gives equal bytes.

    Atomic, also when several processes write the same target.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """The content of a JSON file; UserError naming the file where it cannot be parsed."""
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no valid JSON ({error}); remove it and run the command again") from error


def sha256_of_file(path: Path) -> str:
    """Hex digest of all bytes of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_files(digests: Mapping[Path, str]) -> str:
    """Hex digest of files together, from the digest of each: of a line ``<digest>  <name>`` for each, in order."""
    lines = "".join(f"{digest}  {path.name}\n" for path, digest in digests.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of the packages that take part in making a reconstruction."""
    found = {}
    for package in ("fvae_nnunet", "nnunetv2", "torch", "diffusers", "numpy", "SimpleITK"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two JSON values, a line each: ``hu_window: [-1000.0, 1000.0], now [-160.0, 240.0]``."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            line
            for key in sorted(before.keys() | now.keys())
            for line in differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if before == now else [f"{name}: {json.dumps(before)}, now {json.dumps(now)}"]


@dataclass(frozen=True)
class Manifest:
    """The manifest in ``folder`` (which need not exist yet)."""

    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / "manifest.json"

    def read(self) -> dict[str, Any] | None:
        """The content of ``manifest.json``, or None where there is none.

        Raises:
            UserError: it is damaged, or of a schema that this version does not know.
        """
        if not self.path.exists():
            return None
        content = read_json(self.path)
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise UserError(f"{self.path} has not schema {SCHEMA}; it was written by another version of fvae_nnunet")
        return content

    def refuse_foreign(self, folder: Path, names: Iterable[str], *, kind: str, command: str) -> None:
        """Raise UserError where a folder holds one of these, not empty, without a manifest that says whose it is.

        Args:
            folder: that shall be written to.
            names: of the files and folders in it that will be written over or deleted.
            kind: that the manifest must have.
            command: that makes such folders, for the message.
        """
        paths = [folder / name for name in names]
        found = [path.name for path in paths if path.is_file() or (path.is_dir() and any(path.iterdir()))]
        content = self.read() if found else None
        if found and (content is None or content.get("kind") != kind):
            raise UserError(f"{folder} holds {found[0]}, which {command} has not made; choose another folder (-o)")

    def begin(
        self,
        kind: str,
        settings: dict[str, Any],
        made_with: dict[str, Any],
        *,
        way_out: str = "Use the same settings, another name or folder, or --overwrite to make it anew",
    ) -> None:
        """Start the folder with these settings, or check that it was started with the same.

        Args:
            kind: of the folder.
            settings: see the module.
            made_with: see the module.
            way_out: what to do where the settings are others, the end of the message.

        Raises:
            UserError: the folder was made with other settings; the message names each difference.
        """
        settings = json.loads(json.dumps(settings))
        content = self.read()
        if content is None:
            write_json(
                self.path, {"schema": SCHEMA, "kind": kind, "settings": settings, "made_with": made_with | versions()}
            )
            return
        changed = differences(content["settings"], settings)
        if changed:
            raise UserError(f"{self.folder} was made with other settings:\n  " + "\n  ".join(changed) + f"\n{way_out}")

    def remove(self) -> None:
        """Delete the manifest and all records, so that every case is made again."""
        if self.path.exists():
            shutil.rmtree(self.folder)

    def _case_path(self, case: str) -> Path:
        return self.folder / "cases" / f"{case}.json"

    @property
    def cases(self) -> list[str]:
        """Identifiers of the finished cases, sorted."""
        return sorted(path.stem for path in (self.folder / "cases").glob("*.json"))

    def read_case(self, case: str) -> dict[str, Any] | None:
        """The record of a finished case, or None."""
        path = self._case_path(case)
        return read_json(path) if path.exists() else None

    def write_case(self, case: str, *, inputs: dict[str, str], outputs: list[Path], results: dict[str, Any]) -> None:
        """Record that a case is finished.

        Args:
            case: its identifier.
            inputs: digest of each file that it was made from, by name.
            outputs: its files, complete and in their final place; known by their paths relative to the folder.
            results: figures to keep.
        """
        sizes = {self._name(path): path.stat().st_size for path in outputs}
        record = {"inputs": inputs, "outputs": sizes, **results}
        write_json(self._case_path(case), record)

    def forget_case(self, case: str) -> None:
        """Delete the record of a case; its files stay."""
        self._case_path(case).unlink(missing_ok=True)

    def outputs(self, case: str) -> dict[Path, int]:
        """The files of a finished case and the sizes that they had; none where it is not finished."""
        recorded = (self.read_case(case) or {"outputs": {}})["outputs"]
        return {Path(os.path.normpath(self.folder / name)): size for name, size in recorded.items()}

    def is_done(self, case: str, *, inputs: dict[str, str], outputs: list[Path]) -> bool:
        """Whether a case was finished from these inputs and each of its files has the recorded size."""
        record = self.read_case(case)
        if record is None or record["inputs"] != inputs:
            return False
        return record["outputs"] == {self._name(path): path.stat().st_size for path in outputs if path.is_file()}

    def _name(self, path: Path) -> str:
        return Path(os.path.relpath(path, self.folder)).as_posix()
