"""Argument parsing shared by all commands: no abbreviated options, and datasets named as in nnU-Net."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fvae_nnunet import __version__
from fvae_nnunet.errors import UserError


class CommandParser(argparse.ArgumentParser):
    """Parser without abbreviated options, with ``--version`` and ``--disable_progress_bar``; also for subcommands.

    Args:
        documentation: docstring of the command's module: ``fvae-x: one line.``, then a paragraph, shown as the help.
        options: as for argparse.
    """

    # fmt: off
    def __init__(self, documentation: str | None = None, **options: Any) -> None:
        if documentation is not None:
            command, _, paragraphs = documentation.partition(":")
            options |= {"prog": command, "description": paragraphs.partition("\n\n")[2]}
        super().__init__(**{"allow_abbrev": False} | options)
        self.add_argument("--version", action="version", version=f"fvae_nnunet {__version__}")
        self.add_argument("--disable_progress_bar", action="store_false", dest="progress_bar",
            help="show no progress bars; without a terminal, plain lines always replace them")
    # fmt: on


def add_dataset(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Add the dataset as a positional argument and as ``-d``; read them with ``dataset_of`` or ``datasets_of``."""
    # fmt: off
    parser.add_argument("dataset", nargs="?", metavar="DATASET",
        help="id or name of the dataset, such as 7 or Dataset007_Pancreas")
    # fmt: on
    add_dataset_option(
        parser, "same as DATASET; several are processed one after the other" if several else "same as DATASET"
    )


def add_dataset_option(group: argparse._ActionsContainer, help_text: str) -> None:
    """Add ``-d`` as in nnU-Net's commands."""
    group.add_argument("-d", nargs="+", metavar="DATASET", help=help_text)


def datasets_of(arguments: argparse.Namespace) -> list[str]:
    """Named datasets, in order; UserError if there is none, or if they are named in both ways."""
    by_word = getattr(arguments, "dataset", None)
    if by_word is not None and arguments.d is not None:
        raise UserError(f"the dataset is named twice: {by_word} and -d {' '.join(arguments.d)}; leave out one of them")
    named = arguments.d if by_word is None else [by_word]
    if not named:
        raise UserError("no dataset is named; give its id or name, such as: -d 7")
    return list(dict.fromkeys(named))


def dataset_of(arguments: argparse.Namespace) -> str:
    """The named dataset; UserError if there is none or more than one."""
    named = datasets_of(arguments)
    if len(named) > 1:
        raise UserError(f"expected one dataset, got -d {' '.join(named)}; run the command once for each")
    return named[0]


def fold_number(text: str) -> int | str:
    """A fold as nnU-Net's commands take it: a number, or ``all``."""
    return text if text == "all" else int(text)


def named_paths(option: str, values: Iterable[str]) -> list[tuple[str, Path]]:
    """Names and paths of an option that takes NAME=PATH; UserError for a value of another form."""
    named = []
    for value in values:
        name, equals, path = value.partition("=")
        if not (name and equals and path):
            raise UserError(f"{option} takes NAME=PATH, got {value}; put positional arguments before the options")
        named.append((name, Path(path)))
    return named
