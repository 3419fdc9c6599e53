"""The cases of an evaluation, each in one of several processes."""

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
"""Called with the number of what is done, and of all there is to do: before the first, and after each."""


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
            "a process was killed, for lack of memory or by a library (what it said stands above); set `processes` "
            "lower"
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
