"""What a machine's GPU makes of fvae_nnunet: a Markdown page that says at its top what is wrong.

    sh scripts/device_report.sh                    # a GPU: under 8 minutes
    sh scripts/device_report.sh --small            # a try in small, also on a CPU

No network is needed: VAEs have random weights of full size (``--small``: of a few channels), data are phantoms. Each
section runs in a process of its own, with a limit of time: one that crashes or hangs is a finding, and the others go
on. The exit status is 0 where nothing is wrong, and 1 where something is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from device_sections import SECTIONS, Measured, Setting

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.errors import UserError
from fvae_nnunet.progress_bar import progress_bar
from fvae_nnunet.recorded_files import write_bytes

LIMIT_S = 240.0
"""Of a section; all of them together stay below 8 minutes where none hangs."""

LINE = "measured: "
"""Before the JSON of a section's process."""


def measured_apart(name: str, setting: Setting) -> Measured:
    """A section in a process of its own; what went wrong with the process is a problem of the section."""
    command = [sys.executable, __file__, "--section", name, "--setting", json.dumps(asdict(setting))]
    lost = Measured(SECTIONS[name].title)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return lost.with_problem(f"did not end within {LIMIT_S:.0f} s")
    for line in done.stdout.splitlines():
        if line.startswith(LINE):
            return Measured(**json.loads(line.removeprefix(LINE)))
    tail = " / ".join(done.stderr.strip().splitlines()[-3:])
    return lost.with_problem(f"its process ended with status {done.returncode}: {tail}")


def page(parts: Sequence[Measured], seconds: Mapping[str, float]) -> str:
    """The report in Markdown: problems, then each section's table and notes."""
    problems = [f"{part.title}: {problem}" for part in parts for problem in part.problems]
    lines = ["# Device report", ""]
    lines += (
        [f"**{len(problems)} found wrong:**", "", *(f"- {problem}" for problem in problems)]
        if problems
        else ["**Nothing found wrong.**"]
    )
    for part in parts:
        lines += ["", f"## {part.title}", ""]
        if part.rows:
            lines += [_row(part.head), "|---" * len(part.head) + "|", *map(_row, part.rows)]
        lines += [""] * bool(part.rows and part.notes) + [*part.notes]
        lines += ["", f"({seconds[part.title]:.0f} s)"]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def run(arguments: argparse.Namespace) -> int:
    if arguments.section is not None:
        setting = Setting(**json.loads(arguments.setting))
        print(LINE + json.dumps(asdict(SECTIONS[arguments.section].measure(setting))), flush=True)
        os._exit(0)  # libraries take seconds to say good-bye
    from fvae_nnunet.devices import chosen_device

    setting = Setting(chosen_device(arguments.device), arguments.small)
    if setting.device == "cpu" and not setting.small:
        raise UserError("no GPU is visible to torch; --small tries the report out on the CPU")
    if arguments.o.suffix != ".md":
        raise UserError(f"-o must name a file that ends in .md, got {arguments.o}")
    names = arguments.only or list(SECTIONS)
    parts, seconds = [], {}
    with progress_bar(total=len(names), unit="section") as bar:
        for name in names:
            bar.set_postfix_str(SECTIONS[name].title)
            started = time.monotonic()
            parts.append(measured_apart(name, setting))
            seconds[parts[-1].title] = time.monotonic() - started
            bar.update()
    text = page(parts, seconds)
    write_bytes(arguments.o, text.encode())
    print(text.split("\n## ")[0])
    print(f"written: {arguments.o}")
    return 1 if any(part.problems for part in parts) else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="device_report.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-device", choices=("cuda", "mps", "cpu"), help="default: the best that torch sees")
    parser.add_argument("--small", action="store_true", help="few channels, small volumes: a try")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument(
        "-o", type=Path, default=Path("device_report.md"), metavar="FILE", help="the page; default device_report.md"
    )
    parser.add_argument("--section", choices=list(SECTIONS), help=argparse.SUPPRESS)
    parser.add_argument("--setting", help=argparse.SUPPRESS)
    return run_command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
