"""A small dataset with results, and what a rendered report holds; shared by the tests of the report."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from segmentations_for_tests import ellipsoid, write

from fvae_nnunet.files.recorded import sha256_of_file
from fvae_nnunet.jobs.manifest import MANIFEST_FOLDER, Manifest

SHAPE = (12, 24, 26)
SPACING_MM = (3.0, 0.9, 0.7)
LABELS = {"background": 0, "organ": 1, "tumour": 2}
HOSTILE = '<script>x()</script>&"'
"""A model's name that must be shown as it is."""

SHIFTS = {"first": [3, 3, 3, 3, 3], "second": [2, 3, 0, 5, 3]}
"""Model -> by how many voxels the tumour of each case lies off; so case 2 improves most, then 0, and 3 gets worse."""

MADE_WITH = {"weights": "embedded", "parameters": {"vae": "tiny"}, "fvae_nnunet": "0.1.0", "torch": "2.9"}
SETTINGS = {
    "vae": "tiny", "weights_sha256": "abcdef0123456789", "precision": "float32", "hu_window": [-1000.0, 1000.0],
    "window_slices": 8, "overlap_slices": 0, "scheme": "windows", "truncate": False, "posterior_seed": None,
    "inner_windows": [[-200.0, 300.0], [-1000.0, -300.0]], "average": 2,
}  # fmt: skip


def make_dataset(root: Path) -> None:
    """Images, labels, two folders of predictions and a view with its manifest, of five cases."""
    for folder in ("imagesTs", "labelsTs", "first", "second", "view"):
        (root / folder).mkdir(parents=True)
    description = {"labels": LABELS, "file_ending": ".nii.gz", "channel_names": {"0": "CT"}}
    (root / "dataset.json").write_text(json.dumps(description))
    rng = np.random.default_rng(0)
    manifest = Manifest(root / "view" / MANIFEST_FOLDER)
    manifest.begin("reconstruction", SETTINGS, MADE_WITH)
    for number in range(5):
        case = f"case_{number:04d}"
        organ = ellipsoid((6, 11, 12), (5, 9, 10), SHAPE)
        tumour = ellipsoid((5 + number % 2, 11, 11), (2, 4, 4), SHAPE)
        label = np.where(tumour, 2, organ).astype(np.uint8)
        raw_hu = (np.select([tumour, organ], [60, 100], -100) + rng.normal(0, 10, SHAPE)).astype(np.int16)
        raw = root / "imagesTs" / f"{case}_0000.nii.gz"
        write(raw, raw_hu, spacing_mm=SPACING_MM)
        view = root / "view" / raw.name
        write(view, raw_hu // 2 + 20, spacing_mm=SPACING_MM)
        manifest.write_case(
            f"{case}_0000", inputs={raw.name: sha256_of_file(raw)}, outputs=[view],
            results={"psnr_db": 30.0 + number, "mean_absolute_error_hu": 5.0},
        )  # fmt: skip
        write(root / "labelsTs" / f"{case}.nii.gz", label, spacing_mm=SPACING_MM)
        for model, shifts in SHIFTS.items():
            moved = np.roll(tumour, shifts[number], axis=2)
            write(
                root / model / f"{case}.nii.gz", np.where(moved, 2, organ).astype(np.uint8), spacing_mm=SPACING_MM
            )  # fmt: skip


class Page(HTMLParser):
    """What is in a page: tags, those not closed, addresses, identifiers, references to them, texts, tables as rows."""

    EMPTY = ("meta", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.references: set[str] = set()
        self.tables: list[list[list[str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        named = dict(attributes)
        self.addresses += [named[name] for name in ("src", "href", "xlink:href", "action", "data") if name in named]
        self.ids += [named["id"]] if "id" in named else []
        for value in named.values():
            self.references |= set(re.findall(r"url\(#([^)]+)\)", value or ""))
        if tag not in self.EMPTY:
            self.open.append(tag)
        self.texts.setdefault(tag, []).append("")
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.EMPTY:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open:
            return
        self.texts[self.open[-1]][-1] += data
        if self.open[-1] in ("th", "td"):
            self.tables[-1][-1][-1] += data

    def table(self, *columns: str) -> list[list[str]]:
        """The rows of the first table whose last row of names has these columns, the first cell of a row filled in."""
        for table in self.tables:
            for at, row in enumerate(table[:2]):
                if set(columns) <= set(row):
                    return _filled(table[at + 1 :], len(row))
        raise AssertionError(f"no table with {columns}")


def _filled(rows: list[list[str]], columns: int) -> list[list[str]]:
    filled: list[list[str]] = []
    for row in rows:
        filled.append(row if len(row) == columns else [filled[-1][0], *row])
    return filled


def markdown_tables(text: str) -> list[list[list[str]]]:
    """The tables of a Markdown text as rows of texts, without names and rule."""
    tables: list[list[list[str]]] = []
    for block in re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE):
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.strip().splitlines()]
        tables.append([[_plain(cell) for cell in row] for row in rows[2:]])
    return tables


def _plain(cell: str) -> str:
    from html import unescape

    return unescape(re.sub(r"\\(.)", r"\1", cell.strip()))
