"""Short, distinct names of models and views for columns and plots."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from string import ascii_uppercase

LONGEST = 22
"""Maximum length of a name in a plot or a table of a report."""

_WORDS = re.compile(r"[A-Za-z0-9.]+|[^A-Za-z0-9.]+")


def short_names(names: Sequence[str], longest: int = LONGEST) -> dict[str, str]:
    """Return a short name for each: the full name, else without common leading and trailing words, else a letter.

    Distinguishing words are never cut. A single long name is shortened in the middle. Characters that cannot be shown
    are replaced by a mark.

    Args:
        names: the names; repeated names count once.
        longest: maximum length of a short name, at least 3.

    Returns:
        Name -> short name, in order. If one name must be shortened, all are shortened in the same way.
    """
    different = list(dict.fromkeys(names))
    whole = [printable(name) for name in different]
    for shown in (whole, _without_what_all_share(whole)):
        if all(0 < len(name) <= longest for name in shown) and len(set(shown)) == len(shown):
            return dict(zip(different, shown, strict=True))
    if len(whole) == 1:
        kept = longest - 1
        return {different[0]: f"{whole[0][: kept // 2]}…{whole[0][kept // 2 - kept :]}"}
    return {name: _letters(place) for place, name in enumerate(different)}


def printable(text: str) -> str:
    """Replace each character that cannot be shown by a mark."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def _without_what_all_share(names: Sequence[str]) -> list[str]:
    words = [_WORDS.findall(name) for name in names]
    before = _shared(words)
    rest = [of_name[before:] for of_name in words]
    behind = _shared([of_name[::-1] for of_name in rest])
    return ["".join(of_name[: len(of_name) - behind]).strip("_- ") for of_name in rest]


def _shared(words: Sequence[Sequence[str]]) -> int:
    """Number of leading words that all have in common."""
    return len(list(takewhile(lambda at_place: len(set(at_place)) == 1, zip(*words, strict=False))))


def _letters(place: int) -> str:
    """A to Z, then AA, AB and so on, like the columns of a spreadsheet."""
    before, last = divmod(place, len(ascii_uppercase))
    return (_letters(before - 1) if before else "") + ascii_uppercase[last]
