"""The tables of the paper, as data and as a chapter.

``paper_tables.json`` holds, for each task (``lung``, ``pancreas``, ``lits``, ``kits19``), the rows of Table 1
(``reconstruction``: PSNR in dB with its standard deviation, SSIM, MSE) and of Table 2 (``segmentation``: DSC and NSD of
each label in %), as in the paper. null: the paper has no such number, or it was not available when the file was made.
The paper has a standard deviation in every cell; only those of the PSNR of Wan were available.
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
    "The tolerance of the NSD is not stated; the paper defines it “in voxels or millimetres”. It may differ from those "
    "used elsewhere in this report.",
    "The split into training and test cases is not stated. Numbers from other splits are hardly comparable.",
    "There are no intervals of differences, no tests and no repeated trainings. The paper gives a standard deviation "
    "in every cell of both tables; except for the PSNR of Wan, they were not available.",
    "The data range of PSNR and MSE is not stated. They fit grey values of 0 to 255: with that peak, every PSNR agrees "
    "with the MSE beside it, and is slightly larger, as a mean of logarithms is. A PSNR whose peak is the width of the "
    "HU window is comparable if the same window was scaled; an MSE in HU² must be multiplied by (255 / width)².",
    "A dash means that there is no such number.",
)


def paper_tables() -> dict[str, Any]:
    """The content of ``paper_tables.json``."""
    return json.loads(files("fvae_nnunet.report").joinpath("paper_tables.json").read_text(encoding="utf-8"))


def paper_blocks(tasks: Sequence[str]) -> Iterator[Block]:
    """Yield the chapter.

    Args:
        tasks: subset of `TASKS`; empty: all.

    Raises:
        UserError: an unknown task.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown:
        raise UserError(
            f"`paper` takes the tasks {', '.join(TASKS)}, got {', '.join(unknown)}; if that is a results file, give it "
            "before `paper`"
        )
    tables = paper_tables()
    source = tables["source"]
    yield Heading(f"The paper's tables ({CITATION})")
    yield Paragraph(
        f"These numbers are from the paper: {source['authors']}, “{source['title']}”, {source['venue']}, arXiv "
        f"{source['arxiv']}. None of them was computed from files of this report. DSC and NSD are in %."
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
