"""Handling of SIGINT and SIGTERM; forked processes do not inherit our handlers.

nnU-Net's pools are forked and are ended by SIGTERM. A handler that raises an exception there may run where Python
swallows the exception (for instance during an import), and then the pool waits for its process forever.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_NUMBERS = (signal.SIGINT, signal.SIGTERM)

_ours: set[Callable[..., Any]] = set()


def answer_sigterm(handler: Callable[[int, Any], Any]) -> None:
    """Handle SIGTERM in this process, but not in processes that are forked from it."""
    _ours.add(handler)
    signal.signal(signal.SIGTERM, handler)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM (of a scheduler or ``docker stop``) interrupt like Ctrl-C; a second signal ends the process at once.

    The KeyboardInterrupt has the signal's number as its argument. If SIGTERM already has a handler, such as that of a
    job runner, nothing is changed.
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    before = signal.getsignal(signal.SIGINT)
    if ours:
        signal.signal(signal.SIGINT, _interrupt)
        answer_sigterm(_interrupt)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, before)


def _interrupt(number: int, _: Any) -> None:
    signal.signal(signal.SIGINT, _end_at_once)
    answer_sigterm(_end_at_once)
    raise KeyboardInterrupt(number)


def _end_at_once(number: int, _: Any) -> None:
    os._exit(128 + number)


class _Fork(threading.local):
    """A fork by this thread. SIGTERM is blocked until the child has removed our handler, so that it is not lost."""

    mask_before: set[int] | None = None

    def begin(self) -> None:
        if signal.getsignal(signal.SIGTERM) in _ours:
            self.mask_before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def end_in_parent(self) -> None:
        if self.mask_before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self.mask_before)
            self.mask_before = None

    def end_in_child(self) -> None:
        if self.mask_before is not None:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if signal.getsignal(signal.SIGINT) in (_interrupt, _end_at_once):
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.end_in_parent()


if hasattr(os, "register_at_fork"):
    _fork = _Fork()
    os.register_at_fork(before=_fork.begin, after_in_parent=_fork.end_in_parent, after_in_child=_fork.end_in_child)
