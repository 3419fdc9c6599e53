"""Check that all imports between the subpackages ("rooms") of fvae_nnunet point downwards, and draw them.

    python scripts/rooms.py                     # exit status 1 if an import points upwards
    python scripts/rooms.py -o docs/images/rooms.png

The floors are the contracts in .importlinter, checked by import-linter. Imports inside functions count, those for type
checkers do not. Requires import-linter (extra ``test``).
"""

from __future__ import annotations

import argparse
import configparser
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "fvae_nnunet"
CONTRACTS = ".importlinter"
OUTSIDE = ("trainers", "preprocessing")
"""Rooms that are beside the package in the clone, and inside it once installed."""


def assemble(clone: Path, folder: Path) -> None:
    """Make ``folder/fvae_nnunet`` with links to all rooms of the package in ``clone``, and copy the contracts."""
    (folder / CONTRACTS).symlink_to(clone / CONTRACTS)
    package = folder / PACKAGE
    package.mkdir()
    for entry in (*(clone / PACKAGE).iterdir(), *(clone / room for room in OUTSIDE)):
        (package / entry.name).symlink_to(entry)


def check(folder: Path) -> int:
    """Run import-linter on the package in ``folder``, which prints violations, and return its exit status."""
    return subprocess.run([Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=folder).returncode


def floors(contracts: Path) -> list[list[str]]:
    """The rooms of each floor, from the top."""
    content = configparser.ConfigParser()
    content.read(contracts)
    layers = content["importlinter:contract:floors"]["layers"].split("\n")
    return [re.split("[:|]", layer.replace(" ", "")) for layer in layers if layer]


def imports_between(folder: Path) -> Counter[tuple[str, str]]:
    """Numbers of imports from one room to another, in the package in ``folder``."""
    import grimp

    sys.path.insert(0, str(folder))
    try:
        graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=True, cache_dir=None)
    finally:
        sys.path.remove(str(folder))
    found: Counter[tuple[str, str]] = Counter()
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            rooms = tuple(f"{name}.".split(".")[1] for name in (importer, imported))
            if all(rooms) and rooms[0] != rooms[1]:
                found[rooms] += 1  # type: ignore[index]
    return found


def lines_of(package: Path, room: str) -> int:
    """Lines of Python in a room."""
    path = package / room
    files = [path.with_suffix(".py")] if not path.is_dir() else path.rglob("*.py")
    return sum(len(file.read_text().splitlines()) for file in files)


def draw(imports: Counter[tuple[str, str]], rooms: list[list[str]], package: Path, output: Path) -> None:
    """Draw a matrix with a row for each importing room and a column for each imported one; upward imports are below."""
    from matplotlib import pyplot

    order = [room for floor in rooms for room in floor]
    figure, axes = pyplot.subplots(figsize=(9, 7.5), layout="constrained")
    for row, importer in enumerate(order):
        for column, imported in enumerate(order):
            count = imports[importer, imported]
            if count:
                axes.text(column, row, str(count), ha="center", va="center", fontsize=9)
                shade = min(1.0, 0.15 + count / 60)
                axes.add_patch(pyplot.Rectangle((column - 0.5, row - 0.5), 1, 1, color=(1 - shade, 1 - shade / 2, 1)))
    edge = -0.5
    for floor in rooms:
        axes.axhline(edge, color="0.6", linewidth=0.8)
        axes.add_patch(pyplot.Rectangle((edge, edge), len(floor), len(floor), color="0.85", zorder=0))
        edge += len(floor)
    places = range(len(order))
    axes.set(xlim=(-0.5, len(order) - 0.5), ylim=(len(order) - 0.5, -0.5), title="Imports, from rows to columns")
    axes.set_xticks(places, order, rotation=60, ha="left")
    axes.set_yticks(places, [f"{room}  ({lines_of(package, room):,} lines)" for room in order])
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    axes.set_xlabel("Floors from the top; grey: a room's own floor. An upward import would be below the grey.")
    figure.savefig(output, dpi=120)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clone", type=Path, default=ROOT, help="the folder with .importlinter (default: this one)")
    parser.add_argument("-o", type=Path, dest="output", help="PNG of the imports by room")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        assemble(arguments.clone.resolve(), folder)
        status = check(folder)
        if arguments.output is not None:
            draw(imports_between(folder), floors(folder / CONTRACTS), folder / PACKAGE, arguments.output)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
