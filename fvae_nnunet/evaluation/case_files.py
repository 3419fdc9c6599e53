"""What evaluations of folders share: processes for the cases, reading their files, and the files of the results."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fvae_nnunet.ct.files import read_volume
from fvae_nnunet.ct.geometry import Geometry, geometry_differences
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.csv_tables import csv_bytes
from fvae_nnunet.files.recorded import atomic_write
from fvae_nnunet.jobs.manifest import write_json

Task = TypeVar("Task")
Outcome = TypeVar("Outcome")

OnProgress = Callable[[int, int], object]
"""Called with the number of what is done, and of all there is to do, after each."""


def no_progress(done: int, total: int) -> None:
    """An `OnProgress` that says nothing."""


def run_each(
    function: Callable[[Task], Outcome], tasks: Sequence[Task], processes: int, on_done: OnProgress = no_progress
) -> list[Outcome]:
    """The outcome of each task, in their order.

    Args:
        function: of a module, so that other processes find it.
        tasks: what it is called with.
        processes: how many work beside this one; 0: this one does the work.
        on_done: called after each task.

    Raises:
        UserError: a process was killed.
    """
    if processes == 0 or not tasks:
        return _collected(map(function, tasks), len(tasks), on_done)
    pool = ProcessPoolExecutor(min(processes, len(tasks)), mp_context=multiprocessing.get_context("spawn"))
    try:
        return _collected(pool.map(function, tasks), len(tasks), on_done)
    except BrokenProcessPool as error:
        raise UserError(
            "a process was killed, for lack of memory or by a library (what it said stands above); set `processes` "
            "lower"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _collected(outcomes: Iterable[Outcome], total: int, on_done: OnProgress) -> list[Outcome]:
    collected = []
    for outcome in outcomes:
        collected.append(outcome)
        on_done(len(collected), total)
    return collected


def read_alike(
    files: Mapping[str, Path], reader: str | None = None
) -> tuple[dict[str, tuple[np.ndarray, Geometry]], list[str]]:
    """The volumes of a case, and what is wrong with them.

    Args:
        files: by what they are called in messages.
        reader: see `read_volume`.

    Returns:
        Those that can be read, by name, and a sentence for each other one, and for each that does not lie as the first.
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
    """A sentence on the values of a label map that dataset.json does not know; empty if it knows all."""
    unknown = np.unique(segmentation[~np.isin(segmentation, known_labels)])
    if not unknown.size:
        return []
    values = ", ".join(f"{value:g}" for value in unknown[:10]) + (", ..." if unknown.size > 10 else "")
    known = ", ".join(map(str, known_labels))
    return [f"{path} holds labels that dataset.json does not know: {values}; known are {known}"]


def write_results(
    results: Mapping[str, Any], path: Path, tables: Mapping[Path, Iterable[Mapping[str, object]]]
) -> None:
    """Write results as JSON and their tables as CSV; all appear when all are complete, or none.

    Raises:
        UserError: one of them cannot be written.
    """
    try:
        with ExitStack() as written:
            for table, rows in tables.items():
                written.enter_context(atomic_write(table)).write_bytes(csv_bytes(rows))
            write_json(path, dict(results))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; choose another place") from error
