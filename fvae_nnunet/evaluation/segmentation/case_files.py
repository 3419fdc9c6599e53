"""What evaluations of folders share: whether the files of a case belong together, and processes for the cases."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

import numpy as np

from fvae_nnunet.errors import UserError

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
            "a process was killed, for lack of memory or by a library (what it said stands above); set `processes` lower"
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
