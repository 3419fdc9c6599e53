"""Checks of outputs before any work: a command replaces only files of its own, and its folder can be made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from fvae_nnunet.errors import UserError
from fvae_nnunet.files.checked_json import read_json


def refuse_other_output(
    path: Path,
    *,
    is_ours: Callable[[Path], bool],
    beside: Iterable[Path] = (),
    has_beside: Callable[[Path], bool] = lambda path: True,
    ending: str = ".json",
    command: str,
) -> None:
    """Raise UserError if writing a result would replace a file that the command has not written.

    Args:
        path: the result file.
        is_ours: whether an existing file is a result of the command.
        beside: files written with the result. They are replaced only if the result exists, is the command's own, and
            fulfils ``has_beside``.
        has_beside: whether the command wrote the files beside an existing result.
        ending: required ending of the file name.
        command: name of the command, for the message.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file with -o")
    if path.suffix.lower() != ending:
        raise UserError(f"-o must name a file that ends in {ending}, got {path}")
    place = _no_folder(path.absolute().parent)
    if place is not None:
        raise UserError(f"{path} cannot be written: {place} is not a folder; name another file with -o")
    if path.exists() and not is_ours(path):
        others = [path]
    elif path.exists() and has_beside(path):
        others = []
    else:
        others = [other for other in beside if other.exists()]
    if others:
        raise UserError(f"{others[0]} exists and was not written by {command}; name another file with -o")


def check_output_folder(folder: Path | None, *, option: str = "-o") -> None:
    """Raise UserError if an output folder, or one above it, is a file or a broken link; None is always accepted."""
    place = None if folder is None else _no_folder(folder.absolute())
    if place is not None:
        raise UserError(f"{option} {folder}: {place} is not a folder; name another folder with {option}")


def _no_folder(folder: Path) -> Path | None:
    """What is in the place of a folder, or of one above it, and is no folder; None if there is no such thing."""
    place = next(part for part in (folder, *folder.parents) if part.exists() or part.is_symlink())
    return None if place.is_dir() else place


def is_json_of(kind: str) -> Callable[[Path], bool]:
    """Return a test whether a file is JSON with this ``kind``."""
    return lambda path: _content(path).get("kind") == kind


def is_summary(path: Path) -> bool:
    """Whether a file is a summary.json of this package or of nnU-Net."""
    return {"metric_per_case", "foreground_mean"} <= _content(path).keys()


def is_our_summary(path: Path) -> bool:
    """Whether a file is a summary.json of this package, which adds an entry to nnU-Net's."""
    return is_summary(path) and "fvae" in _content(path)


def holds(marker: str) -> Callable[[Path], bool]:
    """Return a test whether a file contains this text."""
    return lambda path: path.is_file() and marker.encode() in path.read_bytes()


def _content(path: Path) -> dict[str, object]:
    try:
        content: dict[str, object] = read_json(path, {})
    except UserError:
        return {}
    return content
