"""Read the inputs of a volume in a list: class map, labels and structures on one grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fvae_nnunet.ct.files import read_volume
from fvae_nnunet.ct.geometry import Geometry
from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.mask_files import read_mask
from fvae_nnunet.synthesis.generation.case_list import ListedCase
from fvae_nnunet.synthesis.sources.cases import SourceDataset


@dataclass(frozen=True)
class VolumeInputs:
    """The inputs of a volume. Arrays are axial and have the same shape.

    Attributes:
        listed: the row.
        digests: digests of the row and its files.
        class_map: classes of the model.
        labels: label values of the dataset.
        structures: values as in the dataset's files; None for models without structures.
        given: label -> final number of voxels, for labels with a mask in the row.
        geometry: geometry of the volume.
    """

    listed: ListedCase
    digests: dict[str, str]
    class_map: np.ndarray
    labels: np.ndarray
    structures: np.ndarray | None
    given: dict[str, int]
    geometry: Geometry


def read_volume_inputs(listed: ListedCase, dataset: SourceDataset, digests: dict[str, str]) -> VolumeInputs:
    """Read the files of a row.

    Args:
        listed: the row.
        dataset: dataset with the classes of the model.
        digests: digests of the row and its files.

    Raises:
        UserError: a file cannot be read, has another geometry or an unknown value, or the mask of a disease is empty.
    """
    structures = None
    if listed.source is not None:
        source = dataset.read(listed.source, digests=digests, lesions=listed.keep_lesions)
        class_map, labels, geometry = source.class_map, source.labels, source.geometry
        if dataset.organ.structures is not None:
            path = dataset.organ.files_of(listed.source)[0]
            structures = read_mask(path, shape=class_map.shape, geometry=geometry, image=listed.source)
    else:
        assert listed.structures is not None and dataset.organ.structures is not None
        mask, geometry = read_volume(listed.structures)
        structures = np.ascontiguousarray(mask.transpose(geometry.axial_order))
        class_map = dataset.organ.structures.class_map(structures, listed.structures)
        labels = np.zeros(class_map.shape, dtype=np.min_scalar_type(max(dataset.known_labels)))
    given = []
    for name, mask in _masks(dataset, listed, class_map.shape, geometry):
        class_map[mask], labels[mask] = dataset.class_of(name), dataset.lesions[name]
        given.append(name)
    voxels = {name: int(np.count_nonzero(class_map == dataset.class_of(name))) for name in dict.fromkeys(given)}
    return VolumeInputs(listed, digests, class_map, labels, structures, voxels, geometry)


def _masks(
    dataset: SourceDataset, listed: ListedCase, shape: tuple[int, ...], geometry: Geometry
) -> Iterator[tuple[str, np.ndarray]]:
    """Name and mask (bool, axial, not empty) of the lesions in a row, in order."""
    where = {"shape": shape, "geometry": geometry, "image": listed.case}
    if listed.labels is not None:
        labels = read_mask(listed.labels, **where)  # type: ignore[arg-type]
        others = set(np.unique(labels).tolist()) - {0, *dataset.lesions.values()}
        if others:
            raise UserError(
                f"{listed.labels} has the value {min(others):g}, which is not the label of a lesion of the model"
            )
        yield from ((name, labels == value) for name, value in dataset.lesions.items() if (labels == value).any())
    for name, path in listed.diseases:
        mask = read_mask(path, **where) != 0  # type: ignore[arg-type]
        if not mask.any():
            raise UserError(f"{path}: the mask of {name} is empty")
        yield name, mask
