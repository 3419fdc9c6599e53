"""The record of how a folder of reconstructions was made, and which of its files are complete.

A manifest folder holds ``manifest.json``, written once, with every setting that changes a voxel, and
``cases/<case>.json``, one record per finished case. Several processes may fill one folder: the settings are compared,
never merged, and no two cases share a file. A case counts as done only when its record is there, equals what it would
be made from now, and names the size of each of its files on disk. The record is written last, so an interrupted case
is simply not there. Records hold a digest of each file, too (see ``files.recorded``), which is looked at where somebody
asks for it: ``damage``.

Files are known by their paths relative to the manifest folder, as in ``../imagesTr/case.nii.gz``. None may lie outside
of ``root``: a folder that comes from elsewhere cannot have other files read or deleted.

``manifest.json``::

    {"schema": 1, "kind": "view", "settings": {...}, "made_with": {...}}

``settings`` must be equal for the folder to be continued; ``made_with`` (versions, source of the weights, kind of
device) is for the reader, and its ``parameters`` are those of the command that makes the same again. A folder that goes
on on another kind of device is warned of: CPUs and GPUs round differently, and are no other settings.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fvae_nnunet import __version__
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.checked_json import check_shape, read_json
from fvae_nnunet.files.recorded import RecordedFile, damage_of, flush, write_shared
from fvae_nnunet.jobs.recorded_options import parameters_in
from fvae_nnunet.jobs.recorded_settings import SETTINGS

SCHEMA = 1
_MANIFEST = {"kind": str, "settings": SETTINGS, "made_with": dict}
_MAKE_CASE_ANEW = "Remove it, and the case is made anew"
_RECORD = {"inputs": {"*": str}, "outputs": dict}

MANIFEST_FOLDER = "fvae_manifest"
"""Manifest folder inside a folder whose other files it records; elsewhere it lies among them."""

SAMPLED_CASES = 8
"""Most cases whose files are read whole when a training opens the folder."""


def write_json(target: Path, content: Any) -> None:
    """Write ``content`` as JSON with sorted keys, so that equal content gives equal bytes.

    Atomic, also when several processes write the same target; on the disk when it is in its place.
    """
    write_shared(target, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def sha256_of_files(digests: Mapping[Path, str]) -> str:
    """Hex digest of files together, from the digest of each: of a line ``<digest>  <name>`` for each, in order."""
    lines = "".join(f"{digest}  {path.name}\n" for path, digest in digests.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of the packages that take part in making a reconstruction."""
    found = {"fvae_nnunet": __version__}
    for package in ("nnunetv2", "torch", "diffusers", "numpy", "SimpleITK"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def differences(before: Any, now: Any, name: str = "", *, common_only: bool = False) -> list[str]:
    """What differs between two JSON values, a line each: ``hu_window: [-1000.0, 1000.0], now [-160.0, 240.0]``.

    With ``common_only``, what only one of them has is none.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        keys = before.keys() & now.keys() if common_only else before.keys() | now.keys()
        return [
            line
            for key in sorted(keys)
            for line in differences(
                before.get(key), now.get(key), f"{name}.{key}" if name else key, common_only=common_only
            )
        ]
    return [] if before == now else [f"{name}: {json.dumps(before)}, now {json.dumps(now)}"]


@dataclass(frozen=True)
class Manifest:
    """The manifest in ``folder`` (which need not exist yet)."""

    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / "manifest.json"

    def read(self, needs: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """The content of ``manifest.json``, or None where there is none.

        Args:
            needs: what it must hold besides ``settings`` and ``made_with``; a shape of ``files.checked_json``.

        Raises:
            UserError: it is damaged, lacks something, holds settings that cannot be, or is of a schema that this
                version does not know.
        """
        if not self.path.exists():
            return None
        content: dict[str, Any] = read_json(self.path, {"schema": object})
        if content["schema"] != SCHEMA:
            raise UserError(f"{self.path} has not schema {SCHEMA}; it was written by another version of fvae_nnunet")
        check_shape(self.path, content, _MANIFEST)
        made_with = content["made_with"]
        if isinstance(made_with.get("options"), str):
            made_with["parameters"] = parameters_in(made_with.pop("options"))
        check_shape(self.path, content, needs or {})
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
            raise UserError(
                f"{folder} holds {found[0]}, which {command} has not made; choose another folder (`output`)"
            )

    def begin(
        self,
        kind: str,
        settings: dict[str, Any],
        made_with: dict[str, Any],
        *,
        remedy: str = "Use the same settings, another name or folder, or `overwrite=True` to make it anew",
    ) -> None:
        """Start the folder with these settings, or check that it was started with the same.

        Args:
            kind: of the folder.
            settings: see the module.
            made_with: see the module.
            remedy: what to do where the settings are others, the end of the message.

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
            raise UserError(f"{self.folder} was made with other settings:\n  " + "\n  ".join(changed) + f"\n{remedy}")
        began, now = (made.get("device") for made in (content["made_with"], made_with))
        if began and now and began != now:
            warnings.warn(
                f"{self.folder} was begun on another device ({began}) than it goes on ({now}): the same settings, but "
                "other rounding",
                stacklevel=2,
            )

    def remove(self) -> None:
        """Delete the manifest and all records, so that every case is made again."""
        if self.path.exists():
            shutil.rmtree(self.folder)

    @property
    def root(self) -> Path:
        """The folder whose files are recorded: its own, or the one above where it is called ``fvae_manifest``."""
        return self.folder.parent if self.folder.name == MANIFEST_FOLDER else self.folder

    def _case_path(self, case: str) -> Path:
        if case in ("", ".", "..") or any(mark in case for mark in ("/", "\\", "\0")):
            raise UserError(f"{case!r} cannot be the name of a case: it is no file name")
        return self.folder / "cases" / f"{case}.json"

    @property
    def cases(self) -> list[str]:
        """Identifiers of the finished cases, sorted."""
        return sorted(path.stem for path in (self.folder / "cases").glob("*.json"))

    def read_case(self, case: str, needs: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """The record of a finished case, or None.

        Args:
            case: its identifier.
            needs: what it must hold besides ``inputs`` and ``outputs``; a shape of ``files.checked_json``.

        Raises:
            UserError: the record is damaged or incomplete, or a file that it names is not in the recorded folder.
        """
        path = self._case_path(case)
        if not path.exists():
            return None
        record: dict[str, Any] = read_json(path, _RECORD | dict(needs or {}), remedy=_MAKE_CASE_ANEW)
        for name in record["outputs"]:
            self._place(name, path)
        return record

    def write_case(
        self,
        case: str,
        *,
        inputs: dict[str, str],
        outputs: Iterable[Path] | Mapping[Path, RecordedFile],
        results: dict[str, Any],
    ) -> None:
        """Record that a case is finished.

        Args:
            case: its identifier.
            inputs: digest of each file that it was made from, by name.
            outputs: its files, complete and in their final place, known by their paths relative to the folder; with
                what is to be recorded of them (``write_bytes`` gives it), or they are flushed and read.
            results: figures to keep.
        """
        if isinstance(outputs, Mapping):
            recorded = outputs
        else:
            outputs = list(outputs)
            for path in outputs:
                flush(path)
            recorded = {path: RecordedFile.of(path) for path in outputs}
        record = {"inputs": inputs, "outputs": {self._name(path): file.to_json() for path, file in recorded.items()}}
        write_json(self._case_path(case), record | results)

    def forget_case(self, case: str) -> None:
        """Delete the record of a case; its files stay."""
        self._case_path(case).unlink(missing_ok=True)

    def outputs(self, case: str) -> dict[Path, RecordedFile]:
        """The files of a finished case as they were recorded; none where it is not finished.

        Raises:
            UserError: as ``read_case``.
        """
        return self._files((self.read_case(case) or {"outputs": {}})["outputs"], self._case_path(case))

    def files(self) -> dict[Path, RecordedFile]:
        """The files that ``manifest.json`` itself records, under ``outputs``, such as a model's weights; maybe none.

        Raises:
            UserError: one is not inside ``root``, or as ``read``.
        """
        return self._files((self.read() or {}).get("outputs", {}), self.path)

    def _files(self, recorded: dict[str, Any], path: Path) -> dict[Path, RecordedFile]:
        return {
            self._place(name, path): RecordedFile.from_json(content, f"{path}: {name}")
            for name, content in recorded.items()
        }

    def is_whole(self, case: str, outputs: Iterable[Path]) -> bool:
        """Whether a case is finished, with just these files, and each has the recorded size."""
        recorded = {self._name(path): file.has_size_of(path) for path, file in self.outputs(case).items()}
        return recorded == {self._name(path): True for path in outputs}

    def is_done(self, case: str, *, inputs: dict[str, str], outputs: Iterable[Path]) -> bool:
        """Whether a case was finished from these inputs and each of its files has the recorded size."""
        record = self.read_case(case)
        return record is not None and record["inputs"] == inputs and self.is_whole(case, outputs)

    def damage(self, case: str) -> dict[Path, str]:
        """What is wrong with the files of a finished case; reads them whole. See ``RecordedFile.damage``."""
        return damage_of(self.outputs(case))

    def has_digests(self, case: str) -> bool:
        """Whether the files of a finished case can be checked: records of older versions have sizes only."""
        return all(file.sha256 is not None for file in self.outputs(case).values())

    def check_sample(self, cases: Sequence[str], repair: str) -> str:
        """Read the files of a few finished cases and compare them with their records; a sentence on what was checked.

        Which ones follows from the cases alone: up to ``SAMPLED_CASES`` of them, evenly spread.

        Args:
            cases: finished ones.
            repair: the command that checks all and makes damaged ones again, for the message.

        Raises:
            UserError: a file is not as it was written.
        """
        sample = cases[:: max(1, -(-len(cases) // SAMPLED_CASES))]
        for case in sample:
            for path, what in self.damage(case).items():
                raise UserError(f"{path} {what}. Check all files and make damaged ones again with: {repair}")
        without = [case for case in sample if not self.has_digests(case)]
        if without:
            return (
                f"digests of {len(sample) - len(without)} of {len(cases)} cases checked; the records of "
                f"{len(without)} that were to be checked, made by an older version, have none, so only sizes are known"
            )
        return f"digests of {len(sample)} of {len(cases)} cases checked: all as recorded"

    def content_sha256(self, cases: Iterable[str]) -> str:
        """Hex digest of what is recorded of the files of these cases: another one where they were made anew and differ.

        Reads the records only.
        """
        recorded = {
            case: {self._name(path): file.to_json() for path, file in self.outputs(case).items()}
            for case in sorted(cases)
        }
        return hashlib.sha256(json.dumps(recorded, sort_keys=True).encode()).hexdigest()

    def _place(self, name: Any, record: Path) -> Path:
        """The file of that name in a record; UserError where it is not inside ``root``."""
        if isinstance(name, str) and name and "\0" not in name:
            place = self.folder / name
            lexical, folder, root = (
                Path(os.path.normpath(path.absolute())) for path in (place, self.folder, self.root)
            )
            if root in lexical.parents and lexical != folder:
                return Path(os.path.normpath(place))
        raise UserError(
            f"{record} names {name!r}, which is no file in {self.root}; whoever wrote it wants other files read or "
            "deleted. Do not use this folder, or remove the record and make the case again"
        )

    def _name(self, path: Path) -> str:
        name = Path(os.path.relpath(path, self.folder)).as_posix()
        self._place(name, self.folder)
        return name
