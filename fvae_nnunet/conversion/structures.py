"""Organ structures of TotalSegmentator or VISTA3D in one common numbering, 1 to 124.

``structures.csv`` is the table: id, name, and the ids of both programs. Ids 1 to 117 are the classes of
TotalSegmentator's task ``total`` (version 2) with their own names and ids; 118 to 124 are further classes of VISTA3D.
The table covers all 127 classes that VISTA3D supports except kidney, lung and bone, which are unions of others.
(Sources: ``class_map`` in TotalSegmentator's ``map_to_binary.py``, ``label_dict.json`` of VISTA3D.)
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np

from fvae_nnunet.conversion.choices import PROGRAMS
from fvae_nnunet.ct.files import read_image, read_volume
from fvae_nnunet.ct.geometry import Geometry
from fvae_nnunet.errors import UserError

VISTA3D_OTHERS = {
    2: "kidney",
    16: "prostate or uterus (deprecated)",
    18: "rectum (deprecated)",
    20: "lung",
    21: "bone",
    129: "kidney mass (deprecated)",
    130: "liver tumor (deprecated)",
    131: "vertebrae L6 (deprecated)",
}
"""Classes of VISTA3D that are not in the table: unions of others, and classes it no longer supports."""

_LABEL = re.compile(r'<Label Key="(\d+)"[^>]*>(?:<!\[CDATA\[)?([^<\]]*)')
_ENDING = ".nii.gz"


@dataclass(frozen=True)
class Structure:
    """A row of the table; the id of a program is None if it has no such class."""

    id: int
    name: str
    totalsegmentator_id: int | None
    vista3d_id: int | None


@cache
def structures() -> tuple[Structure, ...]:
    """The 124 structures in the order of their ids, 1 to 124."""
    text = files("fvae_nnunet.conversion").joinpath("structures.csv").read_text()
    return tuple(
        Structure(
            int(row["id"]),
            row["name"],
            *(int(row[f"{program}_id"]) if row[f"{program}_id"] else None for program in PROGRAMS),
        )
        for row in csv.DictReader(text.splitlines())
    )


@dataclass(frozen=True)
class StructureMap:
    """The structures of one case.

    Attributes:
        labels: uint8 (z, y, x), 0 or the id of a structure.
        voxels: name -> number of voxels, for structures that occur.
        left_out: name -> number of voxels, for classes in the files that are not in the table.
        overlap_voxels: number of voxels claimed by several files of the case; the lowest id wins.
        absent: structures of the program for which the case has no file, if it has one file for each.
    """

    labels: np.ndarray
    voxels: dict[str, int]
    left_out: dict[str, int]
    overlap_voxels: int = 0
    absent: tuple[str, ...] = ()


@dataclass(frozen=True)
class StructureMasks:
    """A folder with the output of one program.

    Attributes:
        folder: one label map per case (``CASE.nii.gz``, or nested like CT-RATE's own folders), or, for
            TotalSegmentator, one folder per case with one file per structure (``CASE/liver.nii.gz``).
        program: ``totalsegmentator`` or ``vista3d``.
    """

    folder: Path
    program: str

    def files_of(self, case: str, nested: Path) -> list[Path]:
        """The files of a case, sorted; ``nested`` is its path in CT-RATE's folders.

        Raises:
            UserError: there are none.
        """
        split = nested.parts[0].split("_")[0]
        names = [Path(case + _ENDING), nested, Path(f"{split}_fixed", nested), Path(split, nested)]
        for name in names:
            if (self.folder / name).is_file():
                return [self.folder / name]
        found = sorted((self.folder / case).glob(f"*{_ENDING}")) if self.program == "totalsegmentator" else []
        many = [path for path in found if not path.name.startswith(".")]
        if not many:
            also = f" and no folder {case}" if self.program == "totalsegmentator" else ""
            raise UserError(f"{self.folder} has no file {case}{_ENDING}{also}; every case needs its structures")
        return many

    def read(
        self, case: str, paths: list[Path], shape: tuple[int, ...], geometries: Mapping[str, Geometry]
    ) -> StructureMap:
        """Read the structures of a case.

        Args:
            case: name of the case; a file of this name has all structures, other files have one each.
            paths: output of ``files_of``.
            shape: shape of the image (z, y, x).
            geometries: name for messages -> a geometry that the masks may have; a mask whose axes are stored in
                another order or direction is reoriented to the first one that fits.

        Raises:
            UserError: the geometry of a file differs from that of the image, or it has unknown classes.
        """
        if paths[0].name == case + _ENDING:
            return self._one_map(paths[0], shape, geometries)
        return _one_file_each(paths, shape, geometries)

    def _one_map(self, path: Path, shape: tuple[int, ...], geometries: Mapping[str, Geometry]) -> StructureMap:
        ids = {getattr(structure, f"{self.program}_id"): structure.id for structure in structures()}
        others = VISTA3D_OTHERS if self.program == "vista3d" else {}
        _check_names(path, self.program)
        mask = _class_map(path, read_on_grid(path, shape, geometries))
        counts = np.sum([np.bincount(plane.ravel(), minlength=256) for plane in mask], axis=0)
        found = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
        unknown = [value for value in found if value and value not in ids and value not in others]
        if unknown:
            raise UserError(
                f"{path} has the class {unknown[0]}, which {self.program} does not have; was it written by another "
                "program, task or version?"
            )
        table = np.array([ids.get(value, 0) for value in range(256)], dtype=np.uint8)
        names = {structure.id: structure.name for structure in structures()}
        return StructureMap(
            np.stack([table[plane] for plane in mask]),
            {names[ids[value]]: count for value, count in found.items() if value in ids},
            {others[value]: count for value, count in found.items() if value in others},
        )


def _class_map(path: Path, mask: np.ndarray) -> np.ndarray:
    """The mask as uint8; UserError if it has values other than whole numbers from 0 to 255."""
    with np.errstate(invalid="ignore"):
        labels = mask.astype(np.uint8)
    if not np.array_equal(labels, mask):
        raise UserError(f"{path} is not a label map: it has values other than whole numbers from 0 to 255")
    return labels


def _one_file_each(paths: list[Path], shape: tuple[int, ...], geometries: Mapping[str, Geometry]) -> StructureMap:
    ids = {structure.name: structure.id for structure in structures() if structure.totalsegmentator_id}
    by_name = {path.name.removesuffix(_ENDING): path for path in paths}
    known = sorted(by_name.keys() & ids.keys(), key=ids.__getitem__)
    if not known:
        raise UserError(f"{paths[0].parent} contains no structure of TotalSegmentator's task total, version 2")
    labels = np.zeros(shape, dtype=np.uint8)
    voxels, overlap = {}, 0
    for name in known:
        mask = read_on_grid(by_name[name], shape, geometries) != 0
        free = mask & (labels == 0)
        labels[free] = ids[name]
        overlap += int(mask.sum()) - int(free.sum())
        if free.any():
            voxels[name] = int(free.sum())
    left_out = {
        name: int((read_on_grid(path, shape, geometries) != 0).sum())
        for name, path in by_name.items()
        if name not in ids
    }
    absent = tuple(name for name in ids if name not in by_name)
    return StructureMap(labels, voxels, {name: count for name, count in left_out.items() if count}, overlap, absent)


def read_on_grid(path: Path, shape: tuple[int, ...], geometries: Mapping[str, Geometry]) -> np.ndarray:
    """Read a mask (z, y, x) on the grid of the image, reoriented to its order of axes if necessary.

    Raises:
        UserError: shape or geometry differ from those of the image.
    """
    mask, its = read_volume(path)
    if mask.shape == shape and any(not its.differing_parts(geometry) for geometry in geometries.values()):
        return mask
    for geometry in geometries.values():
        turned, turned_geometry = _turned(path, geometry)
        if turned.shape == shape and not turned_geometry.differing_parts(geometry):
            return turned
    wanted = "; ".join(f"{name}: {geometry}" for name, geometry in geometries.items())
    raise UserError(
        f"{path} is not on the grid of the image: it has {mask.shape} voxels, {its}; the image has {shape}, {wanted}"
    )


def _turned(path: Path, geometry: Geometry) -> tuple[np.ndarray, Geometry]:
    import SimpleITK as sitk

    orientation = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(geometry.direction)
    image = sitk.DICOMOrient(read_image(path), orientation)
    return sitk.GetArrayFromImage(image), Geometry(image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def _check_names(path: Path, program: str) -> None:
    """Raise UserError if the class names that TotalSegmentator wrote into the header differ from the program's table.

    Its version 1, its other tasks and other programs use the same numbers for other structures.
    """
    import nibabel

    names = {getattr(structure, f"{program}_id"): structure.name for structure in structures()}
    expected = {"totalsegmentator": "TotalSegmentator's task total, version 2", "vista3d": "VISTA3D"}[program]
    for extension in nibabel.load(path).header.extensions:  # type: ignore[attr-defined]
        content = extension.get_content()
        text = content.decode("utf-8", "replace") if isinstance(content, bytes) else str(content)
        for key, name in _LABEL.findall(text):
            if int(key) and names.get(int(key)) != name:
                raise UserError(
                    f"{path} says that class {key} is {name}; in {expected}, it is {names.get(int(key), 'none')}. Was "
                    "it written by another program, task or version?"
                )
