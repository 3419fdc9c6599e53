"""Clear error messages for missing packages that only some tasks need."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

from fvae_nnunet.errors import UserError

_NAMES_FOR_PIP = {"google": "protobuf", "google.protobuf": "protobuf", "pytorch": "torch", "pil": "pillow"}

_SAID = (  # messages of transformers and diffusers, which check for packages themselves and raise various errors
    re.compile(r"pip install (?:-U |--upgrade )?['\"]?(?P<name>[\w.-]+)(?P<least>>=[\d.]*\d)?"),
    re.compile(r"requires (?:the )?(?:🤗 )?(?P<name>[\w.-]+)(?P<least> >= [\d.]*\d)?(?: library)?,? but"),
)

_SENTENCEPIECE = ("sentencepiece", "protobuf")
"""Packages of a sentencepiece tokenizer. transformers names one of them, or tiktoken, which it tries instead."""


@contextmanager
def needed_for(what: str) -> Iterator[None]:
    """Context for imports of optional packages, and for calls that import further packages, as in transformers.

    Args:
        what: name of the task that needs the package; the message begins with it.

    Raises:
        UserError: a package is missing or too old, or cannot be imported.
    """
    try:
        yield
    except (ImportError, RuntimeError, ValueError) as error:
        errors = list(_with_causes(error))
        lacking = next(filter(None, map(_missing_packages, errors)), None)
        if lacking is not None:
            install = " ".join(shlex.quote(package) for package in lacking)
            raise UserError(f"{what} needs {' and '.join(lacking)}; run: pip install {install}") from error
        if not any(isinstance(cause, ImportError) for cause in errors):
            raise
        reason = " ".join(str(errors[-1]).split())[:300]
        raise UserError(f"{what} cannot be used because an installed package does not work: {reason}") from error


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _missing_packages(error: BaseException) -> list[str]:
    """Requirements to install with pip; empty for other errors."""
    least = ""
    if isinstance(error, ModuleNotFoundError) and error.name:
        if "." in error.name and error.name not in _NAMES_FOR_PIP:  # the parent package is installed
            return []
        found = error.name
    else:
        text = " ".join(str(error).split())
        said = next(filter(None, (pattern.search(text) for pattern in _SAID)), None)
        if said is None:
            return []
        found, least = said["name"], (said["least"] or "").replace(" ", "")
        if not least and _is_installed(found):
            return []
    name = _NAMES_FOR_PIP.get(found.lower(), found)
    if name in ("tiktoken", *_SENTENCEPIECE):
        return [part for part in _SENTENCEPIECE if not _is_installed(part)] or [name]
    return [name + least]


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
