"""Files that a command replaces: only those that it has written itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from fvae_nnunet.errors import UserError
from fvae_nnunet.files.checked_json import read_json


def refuse_other_output(
    path: Path, *, is_ours: Callable[[Path], bool], beside: Iterable[Path] = (), ending: str = ".json", command: str
) -> None:
    """Raise UserError unless a result can be written without replacing what is not the command's.

    Args:
        path: of the result.
        is_ours: whether a file that is there is a result of the command.
        beside: what is written with it. It is replaced only where the result is there, and is the command's.
        ending: that its name must have.
        command: its name, for the message.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file with -o")
    if path.suffix.lower() != ending:
        raise UserError(f"-o must name a file that ends in {ending}, got {path}")
    place = next(parent for parent in path.absolute().parents if parent.exists())
    if not place.is_dir():
        raise UserError(f"{path} cannot be written: {place} is no folder; name another file with -o")
    ours = is_ours(path) if path.exists() else None
    others = [path] if ours is False else [other for other in beside if other.exists() and ours is None]
    if others:
        raise UserError(f"{others[0]} is there, and {command} has not written it; name another file with -o")


def is_json_of(kind: str) -> Callable[[Path], bool]:
    """Whether a file is JSON with this ``kind``."""
    return lambda path: _content(path).get("kind") == kind


def is_summary(path: Path) -> bool:
    """Whether a file is a summary.json, ours or nnU-Net's."""
    return {"metric_per_case", "foreground_mean"} <= _content(path).keys()


def holds(marker: str) -> Callable[[Path], bool]:
    """Whether a file holds these characters somewhere."""
    return lambda path: path.is_file() and marker.encode() in path.read_bytes()


def _content(path: Path) -> dict[str, object]:
    try:
        content: dict[str, object] = read_json(path, {})
    except UserError:
        return {}
    return content
