"""What evaluations of folders share: whether the files of a case belong together, and processes for the cases."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

import numpy as np

from fvae_nnunet.ct.files import Geometry
from fvae_nnunet.errors import UserError

SPACING_TOLERANCE = 1e-3
"""Relative difference of spacings that counts as rounding: half a voxel over 512."""

ORIGIN_TOLERANCE_VOXELS = 0.05
"""Difference of origins that counts as rounding, in parts of the smallest edge of a voxel."""

DIRECTION_TOLERANCE = 1e-3
"""Difference of direction cosines that counts as rounding; float32 quaternions of NIfTI err by up to 7e-4."""

Named = tuple[str, tuple[int, ...], Geometry]
"""What a volume is called in messages, the shape (z, y, x) of its array, and its geometry."""

Task = TypeVar("Task")
Outcome = TypeVar("Outcome")


def run_each(
    function: Callable[[Task], Outcome], tasks: Sequence[Task], processes: int
) -> Iterator[tuple[Task, Outcome]]:
    """Each task with its outcome, in the order in which they are finished.

    Args:
        function: of a module, so that other processes find it.
        tasks: what it is called with.
        processes: how many work beside this one; 0: this one does the work.

    Raises:
        UserError: a process was killed.
    """
    if processes == 0 or not tasks:
        yield from ((task, function(task)) for task in tasks)
        return
    pool = ProcessPoolExecutor(min(processes, len(tasks)), mp_context=multiprocessing.get_context("spawn"))
    try:
        futures = {pool.submit(function, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a process was killed, for lack of memory or by a library (what it said stands above); use a smaller -np"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def unknown_labels(path: Path, segmentation: np.ndarray, known_labels: Sequence[int]) -> list[str]:
    """A sentence on the values of a label map that dataset.json does not know; empty if it knows all."""
    unknown = np.unique(segmentation[~np.isin(segmentation, known_labels)])
    if not unknown.size:
        return []
    values = ", ".join(f"{value:g}" for value in unknown[:10]) + (", ..." if unknown.size > 10 else "")
    known = ", ".join(map(str, known_labels))
    return [f"{path} holds labels that dataset.json does not know: {values}; known are {known}"]


def geometry_differences(first: Named, second: Named) -> list[str]:
    """A sentence on which parts of two geometries differ by more than rounding, with both in full; empty if none."""
    (name, shape, expected), (other_name, other_shape, found) = first, second
    origin_tolerance_mm = ORIGIN_TOLERANCE_VOXELS * min(expected.spacing_mm)
    agrees = {
        "shape": shape == other_shape,
        "spacing": np.allclose(found.spacing_mm, expected.spacing_mm, rtol=SPACING_TOLERANCE, atol=0),
        "origin": np.allclose(found.origin_mm, expected.origin_mm, rtol=0, atol=origin_tolerance_mm),
        "direction": np.allclose(found.direction, expected.direction, rtol=0, atol=DIRECTION_TOLERANCE),
    }
    if all(agrees.values()):
        return []
    return [
        f"{name} and {other_name} differ in {' and '.join(part for part, same in agrees.items() if not same)}; "
        f"{name}: {_in_words(shape, expected)}; {other_name}: {_in_words(other_shape, found)} (all as x, y, z)"
    ]


def _in_words(shape: tuple[int, ...], geometry: Geometry) -> str:
    spacing, origin, direction = (
        "(" + ", ".join(f"{value:.6g}" for value in values) + ")"
        for values in (geometry.spacing_mm, geometry.origin_mm, geometry.direction)
    )
    return f"shape {shape[::-1]}, spacing {spacing} mm, origin {origin} mm, direction {direction}"
