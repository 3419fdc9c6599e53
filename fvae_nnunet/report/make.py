"""Build a report from result files, and write it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import fvae_nnunet
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.each_case import OnProgress, no_progress
from fvae_nnunet.files.recorded import atomic_write
from fvae_nnunet.numbers_as_text import counted, listed
from fvae_nnunet.pictures.series import Colours, series_colours
from fvae_nnunet.report.blocks import Block, Heading, Paragraph, Report
from fvae_nnunet.report.case_images import View, ct_channel, images_of_results, load_views
from fvae_nnunet.report.case_pictures import case_blocks, choose_cases, draw_cases
from fvae_nnunet.report.checks import check_files
from fvae_nnunet.report.compared_section import compared_blocks
from fvae_nnunet.report.comparison_section import label_blocks
from fvae_nnunet.report.paper import CITATION, paper_blocks
from fvae_nnunet.report.quality_files import load_quality
from fvae_nnunet.report.quality_section import quality_blocks
from fvae_nnunet.report.reading import reading_blocks
from fvae_nnunet.report.render import render_html, render_markdown
from fvae_nnunet.report.result_section import result_blocks
from fvae_nnunet.report.results import Results, load_results
from fvae_nnunet.report.synthetic_cases import load_synthetic
from fvae_nnunet.report.synthetic_pictures import draw_gallery
from fvae_nnunet.report.synthetic_section import synthetic_blocks
from fvae_nnunet.report.training_section import load_trainings, training_blocks

MADE_BY = "Made by fvae-report of fvae_nnunet"
"""Text in every report, by which reports are recognised."""

_OUR_IMAGE = re.compile(r"figure_\d+\.(png|jpg)")


@dataclass(frozen=True)
class ReportContents:
    """Inputs and options of a report.

    Attributes:
        results: ``comparison.json`` or ``summary.json`` files.
        images: folders of raw images: none, one for all results, or one for each.
        views, quality: name and folder of views; name and file of ``reconstruction_quality.json``.
        training: name and folder of models (or of one fold), for the training curves.
        paper: tasks of the paper's tables, empty for all; None: no such tables.
        synthetic: output folders of ``fvae-synthesize``.
        cases: number of best and of worst cases to draw.
        gallery: number of cases to draw from each folder of synthetic cases.
        title: title of the report; None: a title that names the models.
    """

    results: Sequence[Path] = ()
    images: Sequence[Path] = ()
    views: Sequence[tuple[str, Path]] = ()
    quality: Sequence[tuple[str, Path]] = ()
    training: Sequence[tuple[str, Path]] = ()
    paper: Sequence[str] | None = None
    synthetic: Sequence[Path] = ()
    cases: int = 2
    gallery: int = 24
    title: str | None = None


def make_report(
    contents: ReportContents,
    *,
    processes: int = 0,
    on_file: OnProgress = no_progress,
    on_picture: OnProgress = no_progress,
    on_sheet: OnProgress = no_progress,
) -> Report:
    """Read and check everything, and build the report; nothing is written.

    Args:
        contents: inputs and options.
        processes: see `each_case.run_each`.
        on_file, on_picture, on_sheet: progress of checked files, pictures of cases, and sheets of the galleries.

    Raises:
        UserError: nothing to report on; files are invalid, have changed, or do not belong together.
    """
    has_figures = any((contents.results, contents.quality, contents.views, contents.synthetic, contents.training))
    if not has_figures and contents.paper is None:
        raise UserError("nothing to report on; give a comparison.json or summary.json, or `synthetic` or `paper`")
    if contents.images and not contents.results:
        raise UserError("`images` are for the pictures of `results`; also give a comparison.json or summary.json")
    if min(contents.cases, contents.gallery, processes) < 0:
        raise UserError(
            f"`cases`, `gallery` and `processes` must not be negative, got {contents.cases}, {contents.gallery} and "
            f"{processes}"
        )
    paper = list(paper_blocks(contents.paper)) if contents.paper is not None else []
    results = load_results(contents.results)
    images = images_of_results(contents.images, results) if contents.images else []
    channels = [ct_channel(folder) for folder in contents.images] or [0]
    views = load_views(contents.views, results, channels)
    check_files(results, images, views, processes=processes, on_file=on_file)
    qualities = load_quality(contents.quality, views, results)
    synthetic = load_synthetic(contents.synthetic)
    trainings = load_trainings(contents.training, results)
    full_names = {short: name for of in results for short, name in of.full_names.items()}
    colours = series_colours(
        [*full_names.values(), *(view.name for view in views), *(quality.name for quality in qualities), *trainings]
    )
    colours = {**colours, **{short: colours[name] for short, name in full_names.items()}}
    measured = {quality.name for quality in qualities}
    others = [view for view in views if view.is_preprocessed or view.name not in measured]
    blocks = [
        *result_blocks(results, colours),
        *_results_blocks(results, images, views, contents.cases, colours, processes, on_picture),
        *training_blocks(trainings, colours),
        *quality_blocks(qualities, others, colours),
        *synthetic_blocks(synthetic, draw_gallery(synthetic, contents.gallery, processes=processes, on_sheet=on_sheet)),
        *paper,
        *reading_blocks(results),
        *compared_blocks(results, views, with_images=bool(images)),
    ]
    return Report(
        contents.title or _title(results, bool(views or qualities), bool(synthetic)),
        _lead(results, len({view.name for view in views} | measured), sum(len(of.accepted) for of in synthetic)),
        blocks,
        f"{MADE_BY} {fvae_nnunet.__version__}.",
    )


def write_html(report: Report, path: Path) -> int:
    """Write the page atomically.

    Returns:
        Its size in bytes.

    Raises:
        UserError: it cannot be written.
    """
    page = render_html(report).encode(errors="replace")
    with _errors_named(path), atomic_write(path) as temporary:
        temporary.write_bytes(page)
    return len(page)


def write_markdown(report: Report, path: Path) -> Path | None:
    """Write the text, and its images to the folder ``<stem>_files`` beside it; both appear only when complete.

    Returns:
        The folder; None if there are no images.

    Raises:
        UserError: they cannot be written, or the folder exists and holds anything but images of an earlier report.
    """
    folder = path.with_name(f"{path.stem}_files")
    unfinished = folder.with_name(f".{folder.name}.partial")
    text, images = render_markdown(report, folder.name)
    with _errors_named(path):
        if folder.exists():
            strangers = [image.name for image in folder.iterdir() if not _OUR_IMAGE.fullmatch(image.name)]
            if strangers:
                raise UserError(f"{folder} holds {strangers[0]}, which is not from a report; choose another file")
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            unfinished.mkdir(parents=True)
            for name, data in images.items():
                (unfinished / name).write_bytes(data)
            with atomic_write(path) as temporary:
                temporary.write_bytes(text.encode(errors="replace"))
                shutil.rmtree(folder, ignore_errors=True)
                if images:
                    unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder if images else None


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; choose another file") from error


def _results_blocks(
    results: Sequence[Results],
    images: Sequence[dict[str, Path]],
    views: Sequence[View],
    cases: int,
    colours: Colours,
    processes: int,
    on_picture: OnProgress,
) -> list[Block]:
    """The chapters of all results files."""
    chosen = [choose_cases(of, cases) for of in results]
    pictures = (
        draw_cases(results, chosen, images, views, processes=processes, on_picture=on_picture)
        if images
        else [{} for _ in results]
    )
    blocks: list[Block] = []
    for at, (of, cases_of, pictures_of) in enumerate(zip(results, chosen, pictures, strict=True)):
        blocks.append(Heading(f"Label by label: {of.title}" if len(results) > 1 else "Label by label"))
        for label in of.label_names:
            blocks += label_blocks(of, label, colours)
        if cases:
            names = [view.name for view in views if at in view.of_results]
            blocks += case_blocks(of, cases_of, pictures_of, names)
        if not images:
            blocks.append(Paragraph("There are no pictures of cases, because no raw images were given."))
    return blocks


def _title(results: Sequence[Results], has_views: bool, has_synthetic: bool) -> str:
    models = list(dict.fromkeys(model for of in results for model in of.models))
    if not models:
        if has_synthetic:
            return "Quality of reconstructions, and synthetic lesions" if has_views else "Synthetic lesions"
        return "Quality of reconstructions" if has_views else f"Tables of {CITATION}"
    if len(models) == 1:
        return f"Segmentations of {models[0]}"
    is_short = any(short != name for of in results for short, name in of.full_names.items())
    return f"Comparison of {counted(len(models), 'model') if is_short else listed(models)}"


def _lead(results: Sequence[Results], views: int, synthetic: int) -> str:
    parts = [
        f"{f'{of.title}: ' if len(results) > 1 else ''}{counted(len(of.cases), 'case')}, "
        f"{counted(len(of.models), 'model')}, {listed(list(of.label_names.values()))}"
        for of in results
    ]
    if views and not results:
        parts.append(counted(views, "view"))
    if synthetic:
        parts.append(counted(synthetic, "accepted synthetic case"))
    return "; ".join(parts) + "." if parts else ""
