"""Record of how a folder of reconstructions was made, and which of its cases are complete.

A manifest folder holds ``manifest.json``, written once, with every setting that affects voxels, and
``cases/<case>.json``, one record per finished case. Several processes may fill one folder: the settings are compared,
never merged, and no two cases share a file. A case is done only if its record exists, names the current inputs, and
gives the size of each of its files on disk. The record is written last, so an interrupted case has none. Records also
hold a digest of each file (see ``files.recorded``), which only ``damage`` checks.

Files are recorded by their paths relative to the manifest folder, as in ``../imagesTr/case.nii.gz``. None may lie
outside ``root``, so that a folder from an untrusted source cannot have other files read or deleted.

``manifest.json``::

    {"schema": 1, "kind": "view", "settings": {...}, "made_with": {...}}

``settings`` must be equal to resume work on the folder. ``made_with`` (versions, source of the weights, kind of device)
is for information; its ``parameters`` are those of the command that reproduces the folder. Resuming on another kind of
device gives only a warning, since CPUs and GPUs round differently.
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
from fvae_nnunet.jobs.locks import delete_all_but_locks
from fvae_nnunet.jobs.recorded_options import parameters_in
from fvae_nnunet.jobs.recorded_settings import SETTINGS
from fvae_nnunet.numbers_as_text import counted

SCHEMA = 1
_MANIFEST = {"kind": str, "settings": SETTINGS, "made_with": dict}
_MAKE_CASE_ANEW = "Remove it, and the case is made again"
_OTHER_SETTINGS = "Use the same settings, another name or folder, or `overwrite=True` to make it again"
_RECORD = {"inputs": {"*": str}, "outputs": dict}

MANIFEST_FOLDER = "fvae_manifest"
"""Name of a manifest folder that records the files of its parent folder; any other manifest records its own folder."""

SAMPLED_CASES = 8
"""Maximum number of cases whose files are read completely when a training opens the folder."""


def write_json(target: Path, content: Any) -> None:
    """Write ``content`` as JSON with sorted keys, so that equal content gives equal bytes.

    Atomic, even if several processes write the same target, and flushed to disk.
    """
    write_shared(target, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def sha256_of_files(digests: Mapping[Path, str]) -> str:
    """Joint hex digest of files: that of the lines ``<digest>  <name>`` of all files, in order."""
    lines = "".join(f"{digest}  {path.name}\n" for path, digest in digests.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of the packages that affect a reconstruction."""
    found = {"fvae_nnunet": __version__}
    for package in ("nnunetv2", "torch", "diffusers", "numpy", "SimpleITK"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def differences(before: Any, now: Any, name: str = "", *, common_only: bool = False) -> list[str]:
    """Differences between two JSON values, one line each: ``hu_window: [-1000.0, 1000.0], now [-160.0, 240.0]``.

    With ``common_only``, keys that only one of them has are ignored.
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


_CASES = "cases"


@dataclass(frozen=True)
class Manifest:
    """Manifest in ``folder``, which need not exist yet."""

    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / "manifest.json"

    @property
    def is_begun(self) -> bool:
        """Whether there is a manifest, possibly damaged, or records of cases without one."""
        return self.path.exists() or (self.folder / _CASES).is_dir()

    def read(self, needs: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """Content of ``manifest.json``, or None if there is none.

        Args:
            needs: required content besides ``settings`` and ``made_with``; a shape of ``files.checked_json``.

        Raises:
            UserError: the manifest is damaged or incomplete, has invalid settings, or a schema that this version does
                not know.
        """
        if not self.path.exists():
            return None
        content: dict[str, Any] = read_json(self.path, {"schema": object})
        if content["schema"] != SCHEMA:
            raise UserError(f"{self.path} is not of schema {SCHEMA}; it was written by another version of fvae_nnunet")
        check_shape(self.path, content, _MANIFEST)
        made_with = content["made_with"]
        if isinstance(made_with.get("options"), str):
            made_with["parameters"] = parameters_in(made_with.pop("options"))
        check_shape(self.path, content, needs or {})
        return content

    def refuse_foreign(self, folder: Path, names: Iterable[str], *, kind: str, command: str) -> None:
        """Raise UserError if a folder holds files that this manifest does not claim.

        Args:
            folder: folder to write to.
            names: files and folders in it that will be overwritten or deleted; empty folders do not count.
            kind: kind that the manifest must have.
            command: command that makes such folders, for the message.
        """
        paths = [folder / name for name in names]
        found = [path.name for path in paths if path.is_file() or (path.is_dir() and any(path.iterdir()))]
        content = self.read() if found else None
        if found and (content is None or content.get("kind") != kind):
            raise UserError(
                f"{folder} holds {found[0]}, which was not made by {command}; choose another folder (`output`)"
            )

    def begin(
        self,
        kind: str,
        settings: dict[str, Any],
        made_with: dict[str, Any],
        *,
        remedy: str = _OTHER_SETTINGS,
    ) -> None:
        """Start the folder with these settings, or check that it was started with the same settings.

        Records of cases without a manifest are deleted, because their settings are unknown.

        Args:
            kind: kind of the folder.
            settings: see the module.
            made_with: see the module.
            remedy: what to do if the settings differ, the end of the message.

        Raises:
            UserError: the folder is of another kind, or was made with other settings; the message names each
                difference.
        """
        content = self.refuse_other_settings(kind, settings, remedy=remedy)
        if content is None:
            if self.is_begun:
                shutil.rmtree(self.folder / _CASES)
            settings = json.loads(json.dumps(settings))
            write_json(
                self.path, {"schema": SCHEMA, "kind": kind, "settings": settings, "made_with": made_with | versions()}
            )
            return
        began_with = content["made_with"].get("parameters", {})
        if made_with.get("parameters", {}).get("hu_as_is") and not began_with.get("hu_as_is"):
            began_with["hu_as_is"] = True
            write_json(self.path, content)
        began, now = (made.get("device") for made in (content["made_with"], made_with))
        if began and now and began != now:
            warnings.warn(
                f"{self.folder} was started on {began} and is continued on {now}; the settings are the same, but the "
                "rounding differs",
                stacklevel=2,
            )

    def read_of_kind(self, kind: str) -> dict[str, Any] | None:
        """The content of the manifest, or None; UserError if it is of another kind."""
        content = self.read()
        self._refuse_another(kind, content)
        return content

    def _refuse_another(self, kind: str, content: dict[str, Any] | None) -> None:
        if content is not None and content["kind"] != kind:
            raise UserError(
                f"{self.folder} records files of another kind ({content['kind']}, not {kind}), which another command "
                "made; choose another folder"
            )

    def refuse_other_settings(
        self, kind: str, settings: dict[str, Any], *, remedy: str = _OTHER_SETTINGS
    ) -> dict[str, Any] | None:
        """The content of the manifest, or None; UserError as for ``begin`` if it has another kind or other settings."""
        content = self.read_of_kind(kind)
        changed = [] if content is None else differences(content["settings"], json.loads(json.dumps(settings)))
        if changed:
            raise UserError(f"{self.folder} was made with other settings:\n  " + "\n  ".join(changed) + f"\n{remedy}")
        return content

    def remove(self, kind: str) -> None:
        """Delete the manifest, all records and whatever else is in its folder, so that every case is made again.

        Raises:
            UserError: the manifest is of another kind; a damaged one is deleted.
        """
        if self.is_begun:
            try:
                content = self.read()
            except UserError:
                content = None
            self._refuse_another(kind, content)
            delete_all_but_locks(self.folder)

    @property
    def root(self) -> Path:
        """Folder whose files are recorded: this folder, or its parent if this folder is named ``fvae_manifest``."""
        return self.folder.parent if self.folder.name == MANIFEST_FOLDER else self.folder

    def _case_path(self, case: str) -> Path:
        if case in ("", ".", "..") or any(mark in case for mark in ("/", "\\", "\0")):
            raise UserError(f"{case!r} cannot be the name of a case: it is not a file name")
        return self.folder / _CASES / f"{case}.json"

    @property
    def cases(self) -> list[str]:
        """Identifiers of the finished cases, sorted."""
        return sorted(path.stem for path in (self.folder / _CASES).glob("*.json"))

    def read_case(self, case: str, needs: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """Record of a finished case, or None.

        Args:
            case: identifier of the case.
            needs: required content besides ``inputs`` and ``outputs``; a shape of ``files.checked_json``.

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
            case: identifier of the case.
            inputs: digest of each input file, by name.
            outputs: files of the case, complete and in their final place, recorded by their paths relative to the
                folder; with their records (from ``write_bytes``), or without, and then they are flushed and read.
            results: values to keep.
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
        """Delete the record of a case, but not its files."""
        self._case_path(case).unlink(missing_ok=True)

    def outputs(self, case: str) -> dict[Path, RecordedFile]:
        """Recorded files of a case; empty if it is not finished.

        Raises:
            UserError: as ``read_case``.
        """
        return self._files((self.read_case(case) or {"outputs": {}})["outputs"], self._case_path(case))

    def files(self) -> dict[Path, RecordedFile]:
        """Files recorded in ``manifest.json`` itself under ``outputs``, such as a model's weights; may be empty.

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
        """Whether a case is finished with exactly these files, and each has the recorded size."""
        recorded = {self._name(path): file.has_size_of(path) for path, file in self.outputs(case).items()}
        return recorded == {self._name(path): True for path in outputs}

    def is_done(self, case: str, *, inputs: dict[str, str], outputs: Iterable[Path]) -> bool:
        """Whether a case was finished from these inputs and each of its files has the recorded size."""
        record = self.read_case(case)
        return record is not None and record["inputs"] == inputs and self.is_whole(case, outputs)

    def damage(self, case: str) -> dict[Path, str]:
        """Damage of the files of a finished case, which are read completely. See ``RecordedFile.damage``."""
        return damage_of(self.outputs(case))

    def has_digests(self, case: str) -> bool:
        """Whether all files of a finished case have digests; records of older versions have only sizes."""
        return all(file.sha256 is not None for file in self.outputs(case).values())

    def check_sample(self, cases: Sequence[str], repair: str) -> str:
        """Compare the files of a few finished cases with their records, and return a sentence on the check.

        The sample depends only on the cases: up to ``SAMPLED_CASES``, evenly spread.

        Args:
            cases: finished cases.
            repair: command that checks all cases and makes damaged ones again, for the message.

        Raises:
            UserError: a file has changed since it was written.
        """
        sample = cases[:: max(1, -(-len(cases) // SAMPLED_CASES))]
        for case in sample:
            for path, what in self.damage(case).items():
                raise UserError(f"{path} {what}. To check all files and make damaged ones again, use: {repair}")
        without = [case for case in sample if not self.has_digests(case)]
        if without:
            return (
                f"digests of {len(sample) - len(without)} of {counted(len(cases), 'case')} checked; the records of "
                f"{len(without)} more were written by an older version and have no digests"
            )
        return f"digests of {len(sample)} of {counted(len(cases), 'case')} checked: all as recorded"

    def content_sha256(self, cases: Iterable[str]) -> str:
        """Hex digest of the records of the files of these cases; it changes if a case is made again with other content.

        Reads only the records.
        """
        recorded = {
            case: {self._name(path): file.to_json() for path, file in self.outputs(case).items()}
            for case in sorted(cases)
        }
        return hashlib.sha256(json.dumps(recorded, sort_keys=True).encode()).hexdigest()

    def _place(self, name: Any, record: Path) -> Path:
        """Path of a file named in a record; UserError if it is not inside ``root``."""
        if isinstance(name, str) and name and "\0" not in name:
            place = self.folder / name
            lexical, folder, root = (
                Path(os.path.normpath(path.absolute())) for path in (place, self.folder, self.root)
            )
            if root in lexical.parents and lexical != folder:
                return Path(os.path.normpath(place))
        raise UserError(
            f"{record} names {name!r}, which is not a file in {self.root}; it may be an attempt to have other files "
            "read or deleted. Do not use this folder, or remove the record and make the case again"
        )

    def _name(self, path: Path) -> str:
        name = Path(os.path.relpath(path, self.folder)).as_posix()
        self._place(name, self.folder)
        return name


def begin_all(
    kind: str, settings: Mapping[Manifest, dict[str, Any]], made_with: dict[str, Any], *, overwrite: bool = False
) -> None:
    """Begin several folders of one kind, or none of them.

    Args:
        kind: kind of the folders.
        settings: settings of each folder.
        made_with: see ``Manifest.begin``.
        overwrite: delete what is there first.

    Raises:
        UserError: a folder is of another kind, or was made with other settings.
    """
    for manifest, of_folder in settings.items():
        if overwrite:
            manifest.remove(kind)
        else:
            manifest.refuse_other_settings(kind, of_folder)
    for manifest, of_folder in settings.items():
        manifest.begin(kind, of_folder, made_with)
