"""Read and check the files of a case: volumes with the same geometry, and label maps with known labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fvae_nnunet.ct.files import read_volume
from fvae_nnunet.ct.geometry import Geometry, geometry_differences
from fvae_nnunet.errors import UserError, some_of


def read_alike(
    files: Mapping[str, Path], reader: str | None = None
) -> tuple[dict[str, tuple[np.ndarray, Geometry]], list[str]]:
    """Read the volumes of a case and check that they have the same geometry.

    Args:
        files: paths by the name used in messages.
        reader: see `read_volume`.

    Returns:
        The readable volumes by name; and a sentence for each unreadable one, and for each difference in geometry from
        the first one.
    """
    volumes, problems = {}, []
    for name, path in files.items():
        try:
            volumes[name] = read_volume(path, reader=reader)
        except UserError as error:
            problems.append(str(error))
    placed = [(name, array.shape, geometry) for name, (array, geometry) in volumes.items()]
    if next(iter(files)) in volumes:
        problems += [problem for other in placed[1:] for problem in geometry_differences(placed[0], other)]
    return volumes, problems


def unknown_labels(path: Path, segmentation: np.ndarray, known_labels: Sequence[int]) -> list[str]:
    """A sentence about values of a label map that are not in dataset.json; empty if all are."""
    unknown = np.unique(segmentation[~np.isin(segmentation, known_labels)])
    if not unknown.size:
        return []
    values = some_of(f"{value:g}" for value in unknown)
    known = ", ".join(map(str, known_labels))
    return [f"{path} holds labels that are not in dataset.json: {values}; known labels are {known}"]
