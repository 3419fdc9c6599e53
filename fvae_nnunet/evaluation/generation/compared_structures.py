"""Select the structures to compare between masks and segmentations of generated images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvae_nnunet.errors import UserError, some_of
from fvae_nnunet.files.checked_json import read_json
from fvae_nnunet.nnunet.structures import NAMES_FILE

Values = tuple[int, ...]
Names = dict[str, Values]
"""Name of a structure -> its values in a label map."""


@dataclass(frozen=True)
class ComparedStructures:
    """The structures to compare.

    Attributes:
        values: structure -> its values in the masks and in the segmentations, for all structures known to both.
        only_in_masks: structures that the segmentations lack; they are not scored.
    """

    values: dict[str, tuple[Values, Values]]
    only_in_masks: tuple[str, ...]


def read_names(folder: Path) -> Names | None:
    """Structures of the label maps in a folder; None if no file names them, empty if only background is named.

    They are read from ``structures.json`` in the folder, else from ``dataset.json`` in it, or above it if the name of
    the folder begins with ``labels``.

    Raises:
        UserError: the file is damaged.
    """
    folder = folder.absolute()
    for path in (folder / NAMES_FILE, folder / "dataset.json", folder.parent / "dataset.json"):
        if not path.is_file() or (path.parent != folder and not folder.name.startswith("labels")):
            continue
        labels = read_json(path) if path.name == NAMES_FILE else read_json(path, {"labels": dict})["labels"]
        try:
            names = {str(name): _values(value) for name, value in labels.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise UserError(f"{path} does not name labels: {error}") from error
        return {name: values for name, values in names.items() if values != (0,) and name != "ignore"}
    return None


def common_structures(
    masks: Names | None, segmentations: Names | None, groups: Mapping[str, Sequence[str | int]] | None
) -> ComparedStructures | None:
    """The structures to compare.

    Args:
        masks, segmentations: structures named in each folder. If only one is known, it is used for both.
        groups: name -> structures (names or values) that form one structure, such as ribs; if given, only these groups
            are compared.

    Returns:
        None if nothing is named and there are no groups: then every value in a mask is a structure.

    Raises:
        UserError: a group names unknown structures, or masks and segmentations share no name.
    """
    masks, segmentations = (
        segmentations if masks is None else masks,
        masks if segmentations is None else segmentations,
    )
    if groups is not None:
        values = {name: tuple(_group(name, members, known) for known in (masks, segmentations))
                  for name, members in groups.items()}  # fmt: skip
        return ComparedStructures({name: (both[0], both[1]) for name, both in values.items()}, ())
    if masks is None or segmentations is None:
        return None
    shared = {name: (values, segmentations[name]) for name, values in masks.items() if name in segmentations}
    if not shared:
        raise UserError(
            f"masks and segmentations share no structure name: {some_of(masks) or 'none'} and "
            f"{some_of(segmentations) or 'none'}; give other `masks`, use the same names, or match them "
            "with `groups`"
        )
    return ComparedStructures(shared, tuple(name for name in masks if name not in segmentations))


def read_groups(path: Path) -> dict[str, list[str | int]]:
    """Read groups of structures, by name or value, from JSON such as ``{"ribs": ["rib_left_1", 93, ...]}``.

    Raises:
        UserError: the content is invalid.
    """
    content = read_json(path) if path.is_file() else None
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} must be a JSON object that maps names to lists of structures")
    for name, members in content.items():
        if not isinstance(members, list) or not members:
            raise UserError(f"{path}: {name}: expected a list of structures")
        wrong = [member for member in members if not isinstance(member, str | int) or isinstance(member, bool)]
        if wrong:
            raise UserError(
                f"{path}: {name}: structures must be names or whole numbers, not {some_of(map(json.dumps, wrong))}"
            )
    return content


def _group(name: str, members: Sequence[str | int], known: Names | None) -> Values:
    unknown = [member for member in members if isinstance(member, str) and member not in (known or {})]
    if unknown:
        raise UserError(
            f"group {name}: unknown structures: {some_of(unknown)}; known: "
            f"{some_of(known or (), 20) or 'none, give values'}"
        )
    values: list[int] = []
    for member in members:
        values += (known or {})[member] if isinstance(member, str) else (member,)
    return tuple(values)


def _values(value: Any) -> Values:
    values = tuple(value) if isinstance(value, list) else (value,)
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in values):
        raise ValueError(f"{json.dumps(value)} is neither a whole number nor a list of them")
    return values
