"""Progress: a bar on a terminal, a line now and then elsewhere; other output never lands on a bar's line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast

from tqdm import tqdm

LINE_EVERY_S = 60.0
"""Where stderr is no terminal; work that takes less has none."""

_shown = True


def show_bars(shown: bool) -> None:
    """Whether ``progress_bar`` shows anything from now on."""
    global _shown
    _shown = shown


def progress_bar(iterable: Any = None, **options: Any) -> tqdm:
    """tqdm on stderr; where that is no terminal, lines at most every ``LINE_EVERY_S`` seconds.

    Args:
        iterable, options: as for tqdm.
    """
    if _shown and sys.stderr is not None and sys.stderr.isatty():
        return tqdm(iterable, dynamic_ncols=True, **{"file": _raw(sys.stderr)} | options)
    delay_s = LINE_EVERY_S if _shown else float("inf")
    return _Lines(
        iterable, file=_LineStream(), mininterval=LINE_EVERY_S, delay=delay_s,
        bar_format="{desc} {n_fmt}/{total_fmt} {unit}, {elapsed} so far, {remaining} left{postfix}", **options,
    )  # fmt: skip


@contextmanager
def counting_bar(**options: Any) -> Iterator[Callable[[int, int], None]]:
    """A bar that appears with the first call of what it gives, which is told how many are done and how many there are;
    none where there is nothing to do.

    Args:
        options: as for tqdm.
    """
    bar: tqdm | None = None

    def on_progress(done: int, total: int) -> None:
        nonlocal bar
        if not total:
            return
        bar = bar or progress_bar(total=total, **options)
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    try:
        yield on_progress
    finally:
        if bar is not None:
            bar.close()


class _Lines(tqdm):
    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        super().set_postfix_str(s, refresh=False)


class _LineStream:
    """Makes a line of each state of a bar."""

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            print(line, file=sys.stderr)

    def flush(self) -> None:
        pass


@contextmanager
def messages_beside_bars() -> Iterator[None]:
    """Inside, what is printed while a bar is shown stands above it, in whole lines; only where bars are shown.

    At the end, also by an exception, all bars are closed: what is said afterwards has a line of its own.
    """
    if sys.stdout is None or sys.stderr is None or not sys.stderr.isatty():
        try:
            yield
        finally:
            _close_bars()
        return
    streams = [cast(TextIO, _BesideBars(stream, bars=sys.stderr)) for stream in (sys.stdout, sys.stderr)]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        try:
            yield
        finally:
            _close_bars()
            for stream in streams:
                cast(_BesideBars, stream).write_rest()


def _close_bars() -> None:
    """The lowest first: each ends on its own line."""
    for bar in sorted(getattr(tqdm, "_instances", ()), key=lambda bar: -abs(bar.pos)):
        bar.close()


def _raw(stream: TextIO) -> TextIO:
    return stream.stream if isinstance(stream, _BesideBars) else stream


class _BesideBars:
    """A stream whose whole lines take the bars, which are on another, away for a moment."""

    def __init__(self, stream: TextIO, bars: TextIO) -> None:
        self.stream = stream
        self._bars = bars
        self._begun = ""

    def write(self, text: str) -> int:
        if not getattr(tqdm, "_instances", ()) or text.startswith("\r"):  # other people's bars begin with it
            self.write_rest()
            return self.stream.write(text)
        lines, end, rest = (self._begun + text).rpartition("\n")
        self._begun = rest
        if end:
            with tqdm.external_write_mode(file=self._bars):
                self.stream.write(lines + end)
                self.stream.flush()
        return len(text)

    def write_rest(self) -> None:
        rest, self._begun = self._begun, ""
        if rest:
            self.stream.write(rest)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
