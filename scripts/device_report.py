"""Test fvae_nnunet on a device and write a Markdown page, with all problems at the top.

    bash scripts/device_report.sh -o device_report.md                  # full report on a GPU
    bash scripts/device_report.sh -device cpu --small                  # narrow networks and small volumes, for a try

No network access is needed: VAEs have random weights, and the data are phantoms. Each section runs in a process of its
own with a time limit. A section that fails, crashes or hangs is listed at the top, and the others are still written.
The exit status is 1 if there is any problem.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from device_sections import SECTIONS, Part

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.device.numerics import device_class
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.recorded import write_bytes
from fvae_nnunet.jobs.devices import chosen_device
from fvae_nnunet.jobs.progress_bar import progress_bar

LIMIT_S = 240.0
"""Time limit of a section."""

LINE = "measured: "
"""Prefix of the JSON line that the process of a section prints."""


def measured_apart(title: str, device: str, *, small: bool) -> Part:
    """Run a section in a process of its own; a failure of the process is a problem of the section."""
    part = Part(torch.device(device), small)
    command = [sys.executable, __file__, "-device", device, *(["--small"] if small else []), "--section", title]
    started = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        part.problems.append(f"did not end within {LIMIT_S:.0f} s")
    else:
        found = [line.removeprefix(LINE) for line in done.stdout.splitlines() if line.startswith(LINE)]
        if found:
            part.lines, part.problems = json.loads(found[0])
        else:
            tail = " / ".join(done.stderr.strip().splitlines()[-3:])
            part.problems.append(f"its process ended with status {done.returncode}: {tail}")
    part.lines += ["", f"{time.monotonic() - started:.0f} s"]
    return part


def page(name: str, parts: dict[str, Part]) -> str:
    """Page of a device: problems, then each section under its title."""
    top = [f"- {title}: {problem}" for title, part in parts.items() for problem in part.problems]
    lines = [f"# {name}", "", "**Wrong:**", "", *(top or ["Nothing is wrong that this page looks at."])]
    for title, part in parts.items():
        lines += ["", f"## {title}", "", *part.lines]
    return "\n".join(lines) + "\n"


def _measure(title: str, part: Part) -> None:
    """Measure in the section's own process, and print the result."""
    try:
        SECTIONS[title](part)
    except Exception as error:
        part.problems.append(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    print(LINE + json.dumps([part.lines, part.problems]), flush=True)
    os._exit(0)  # libraries take seconds to shut down


def run(arguments: argparse.Namespace) -> int:
    device = chosen_device(arguments.device)
    if arguments.section is not None:
        _measure(arguments.section, Part(torch.device(device), arguments.small))
    if device == "cpu" and not arguments.small:
        raise UserError("torch sees no GPU; use --small to try out the report on the CPU")
    if arguments.o.suffix != ".md":
        raise UserError(f"-o must name a file that ends in .md, got {arguments.o}")
    parts = {}
    with progress_bar(total=len(SECTIONS), unit="section") as bar:
        for title in SECTIONS:
            bar.set_postfix_str(title)
            parts[title] = measured_apart(title, device, small=arguments.small)
            bar.update()
    text = page(device_class(torch.device(device)), parts)
    write_bytes(arguments.o, text.encode())
    print(text.split("\n\n## ")[0])
    print(f"written: {arguments.o}")
    return 1 if any(part.problems for part in parts.values()) else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="device_report.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-device", choices=("cuda", "mps", "cpu"), help="default: the best device that torch sees")
    parser.add_argument("--small", action="store_true", help="narrow networks and small volumes")
    parser.add_argument(
        "-o", type=Path, default=Path("device_report.md"), metavar="FILE", help="default device_report.md"
    )
    parser.add_argument("--section", choices=list(SECTIONS), help=argparse.SUPPRESS)
    return run_command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
