"""Make the reference of all commands as one Markdown page, from the parser of each.

python scripts/command_reference.py [-o commands.md]
"""

from __future__ import annotations

import argparse
import configparser
import html
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

CLONE = Path(__file__).parents[1]
WIDTH = 76
OF_ALL_COMMANDS = ("help", "version", "progress_bar")


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Parser of each command in ``setup.cfg``, in its order."""
    config = configparser.ConfigParser()
    config.read(CLONE / "setup.cfg")
    entries = config["options.entry_points"]["console_scripts"].strip().splitlines()
    return {name.strip(): _parser_of(place.strip()) for name, _, place in (entry.partition("=") for entry in entries)}


def _parser_of(entry_point: str) -> argparse.ArgumentParser:
    """Parser made by a command's ``main``; the command is not run."""
    module_name, _, function = entry_point.partition(":")
    module = importlib.import_module(module_name)
    with mock.patch.object(module, "run_command") as run_command:
        getattr(module, function)([])
    parser: argparse.ArgumentParser = run_command.call_args.args[0]
    return parser


def page(commands: dict[str, argparse.ArgumentParser]) -> str:
    """Page with a section for each command and each of its subcommands."""
    top = [
        "# Commands",
        "",
        "Generated from the parser of each command. Options cannot be abbreviated. All commands have `-h`, `--version` "
        "and `--disable_progress_bar` (without a terminal, plain lines always replace the bars).",
        "",
    ]
    return "\n".join([*top, *(line for parser in commands.values() for line in _section(parser, "##"))])


def _section(parser: argparse.ArgumentParser, heading: str, explanation: str | None = None) -> Iterator[str]:
    formatter = argparse.HelpFormatter(parser.prog, width=WIDTH)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
    yield from (f"{heading} {parser.prog}", "", _escaped(parser.description or explanation or ""), "")
    yield from ("```text", formatter.format_help().strip(), "```", "")
    subcommands: list[tuple[argparse.ArgumentParser, str | None]] = []
    for group in parser._action_groups:
        rows = []
        for action in group._group_actions:
            if isinstance(action, argparse._SubParsersAction):
                explained = {choice.dest: choice.help for choice in action._choices_actions}
                subcommands += [(subcommand, explained.get(name)) for name, subcommand in action.choices.items()]
            elif action.help is not argparse.SUPPRESS and action.dest not in OF_ALL_COMMANDS:
                rows += [_called(action, formatter), f":   {_explained(action, formatter)}", ""]
        if rows:
            title = group.title or ""
            yield from (f"**{title[:1].upper()}{title[1:]}**", "")
            if group.description:
                yield from (_escaped(group.description), "")
            yield from rows
    for subcommand, help_text in subcommands:
        yield from _section(subcommand, f"{heading}#", help_text)


def _called(action: argparse.Action, formatter: argparse.HelpFormatter) -> str:
    default = action.option_strings and formatter._get_default_metavar_for_optional(action)
    default = default or formatter._get_default_metavar_for_positional(action)
    words = "" if action.nargs == 0 else formatter._format_args(action, default)
    *others, last = action.option_strings or [""]
    return ", ".join(f"<code>{html.escape(name)}</code>" for name in (*others, f"{last} {words}".strip()))


def _explained(action: argparse.Action, formatter: argparse.HelpFormatter) -> str:
    return _escaped(formatter._expand_help(action) if action.help else "")


def _escaped(text: str) -> str:
    """Text on one line, with all Markdown markup escaped."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"[*_\[\]`\\]", lambda mark: f"&#{ord(mark[0])};", escaped)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, dest="output", help="file to write; default: standard output")
    arguments = parser.parse_args(argv)
    text = page(parsers())
    if arguments.output is None:
        print(text)
    else:
        arguments.output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
