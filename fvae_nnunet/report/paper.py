"""The tables of the paper as data, and as a chapter of their own.

``paper_tables.json``: for each task (``lung``, ``pancreas``, ``lits``, ``kits19``) the rows of Table 1
(``reconstruction``: PSNR in dB with its standard deviation, SSIM, MSE) and of Table 2 (``segmentation``: DSC and NSD of
each label in %), as the paper gives them. null: the paper has no such number, or it was not at hand when the file was
made. The paper has a standard deviation in every cell; those of the PSNR of Wan were at hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

from fvae_nnunet.errors import UserError
from fvae_nnunet.numbers_as_text import number
from fvae_nnunet.report.blocks import Block, Bullets, Column, Heading, Paragraph, Table

TASKS = ("lung", "pancreas", "lits", "kits19")

CITATION = "Chen et al., ICML 2026"

_NOT_STATED = (
    "The tolerance of the NSD is not stated; the paper defines it “in voxels or millimetres”. It need not be one of "
    "those used elsewhere in this report.",
    "Which cases were for training and which for testing is not stated. Numbers of other splits hardly compare.",
    "There are no intervals of differences, no tests and no repeated trainings. The paper gives a standard deviation "
    "in every cell of both tables; but for the PSNR of Wan they were not at hand.",
    "The data range behind PSNR and MSE is not stated. They fit grey values of 0 to 255: with that peak every PSNR is "
    "that of the MSE beside it, and a little more, as a mean of logarithms is. A PSNR whose peak is the width of the "
    "HU window compares with it, if the same window was scaled; an MSE in HU² must be multiplied by (255 / width)².",
    "A dash: no such number here.",
)


def paper_tables() -> dict[str, Any]:
    """The content of ``paper_tables.json``."""
    return json.loads(files("fvae_nnunet.report").joinpath("paper_tables.json").read_text(encoding="utf-8"))


def paper_blocks(tasks: Sequence[str]) -> Iterator[Block]:
    """The chapter.

    Args:
        tasks: of `TASKS`; empty: all.

    Raises:
        UserError: an unknown task.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown:
        raise UserError(
            f"`paper` knows the tasks {', '.join(TASKS)}, got {', '.join(unknown)}; if that is a file of results, name "
            "it before `paper`"
        )
    tables = paper_tables()
    source = tables["source"]
    yield Heading(f"The paper's tables ({CITATION})")
    yield Paragraph(
        f"These numbers are the paper's own: {source['authors']}, “{source['title']}”, {source['venue']}, arXiv "
        f"{source['arxiv']}. Nothing in them was computed from files of this report. DSC and NSD are in %."
    )
    yield Bullets(_NOT_STATED)
    for task in dict.fromkeys(tasks or TASKS):
        of_task = tables["tasks"][task]
        yield Heading(of_task["name"], 3)
        yield _segmentation(of_task, source["tables"]["segmentation"])
        yield _reconstruction(of_task, source["tables"]["reconstruction"])


def _segmentation(task: Mapping[str, Any], table: str) -> Table:
    rows = task["segmentation"]
    wanted = [
        (label, measure)
        for label in task["labels"]
        for measure in ("dsc", "nsd")
        if any(row["labels"][label][measure] is not None for row in rows)
    ]
    return Table(
        [Column("trained on", "text"), *(Column(measure.upper(), group=f"{label} (%)") for label, measure in wanted)],
        [
            [row["training_data"], *(_number(row["labels"][label][measure], "%") for label, measure in wanted)]
            for row in rows
        ],
        f"{task['name']}: {table} of {CITATION}. nnU-Net trained on real CT, or on the reconstructions of a VAE",
    )


def _reconstruction(task: Mapping[str, Any], table: str) -> Table:
    rows = task["reconstruction"]
    columns = {"PSNR (dB)": "psnr_db", "sd": "psnr_sd_db", "SSIM": "ssim", "MSE": "mse"}
    shown = {name: key for name, key in columns.items() if any(row[key] is not None for row in rows)}
    return Table(
        [Column("VAE", "text"), *map(Column, shown)],
        [[row["model"], *(_number(row[key], "of the paper") for key in shown.values())] for row in rows],
        f"{task['name']}: {table} of {CITATION}. Reconstructions against the real CT",
    )


def _number(value: float | None, quantity: str) -> str:
    return "–" if value is None else number(value, quantity)
