"""Progress bars on a terminal, and occasional lines elsewhere; other output never mixes with a bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast

from tqdm import tqdm

LINE_EVERY_S = 60.0
"""Interval between progress lines if stderr is not a terminal; shorter work prints none."""

_shown = True


def show_bars(shown: bool) -> None:
    """Set whether ``progress_bar`` shows anything from now on."""
    global _shown
    _shown = shown


def progress_bar(iterable: Any = None, **options: Any) -> tqdm:
    """Return a tqdm bar on stderr; if that is not a terminal, it prints a line at most every ``LINE_EVERY_S`` seconds.

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
    """Yield a callback that takes the number done and the total; the bar appears at its first call, if total is not 0.

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
    """Stream that prints each state of a bar as a line."""

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            print(line, file=sys.stderr)

    def flush(self) -> None:
        pass


@contextmanager
def messages_beside_bars() -> Iterator[None]:
    """Context in which output is printed in whole lines above any bar, if bars are shown.

    At the end, also after an exception, all bars are closed, so that later output starts on a new line.
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
    """Close the lowest bar first, so that each ends on its own line."""
    for bar in sorted(getattr(tqdm, "_instances", ()), key=lambda bar: -abs(bar.pos)):
        bar.close()


def _raw(stream: TextIO) -> TextIO:
    return stream.stream if isinstance(stream, _BesideBars) else stream


class _BesideBars:
    """Stream that briefly clears the bars, which are on another stream, for each whole line."""

    def __init__(self, stream: TextIO, bars: TextIO) -> None:
        self.stream = stream
        self._bars = bars
        self._begun = ""

    def write(self, text: str) -> int:
        if not getattr(tqdm, "_instances", ()) or text.startswith("\r"):  # bars of other libraries begin with \r
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
