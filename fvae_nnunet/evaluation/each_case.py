"""Run the cases of an evaluation in several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from fvae_nnunet.errors import UserError

Task = TypeVar("Task")
Outcome = TypeVar("Outcome")

OnProgress = Callable[[int, int], object]
"""Called with the number of finished tasks and of all tasks: before the first, and after each."""


def no_progress(done: int, total: int) -> None:
    """An `OnProgress` that does nothing."""


def run_each(
    function: Callable[[Task], Outcome], tasks: Sequence[Task], processes: int, on_done: OnProgress = no_progress
) -> list[Outcome]:
    """The outcome of each task, in the order of the tasks.

    Args:
        function: function of one task, defined at module level so that other processes find it.
        tasks: arguments of the function.
        processes: number of worker processes; 0: this process does the work.
        on_done: see `OnProgress`.

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
            "a process was killed, for lack of memory or by a library (see its output above); use fewer `processes`"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _collected(outcomes: Iterable[Outcome], total: int, on_done: OnProgress) -> list[Outcome]:
    collected: list[Outcome] = []
    on_done(0, total)
    for outcome in outcomes:
        collected.append(outcome)
        on_done(len(collected), total)
    return collected
