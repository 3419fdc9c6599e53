"""Checked jobs from the options of fvae-synthesize."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvae_nnunet.cli.common_options import from_options
from fvae_nnunet.cli.parsers import dataset_of
from fvae_nnunet.cli.synthesis_options import OUTPUT_PARENT
from fvae_nnunet.errors import UserError, some_of
from fvae_nnunet.numbers_as_text import counted

if TYPE_CHECKING:
    from fvae_nnunet.synthesis.generation.cases import LesionJob
    from fvae_nnunet.synthesis.generation.listed_cases import ListJob
    from fvae_nnunet.synthesis.lesions.plan import PlanSettings
    from fvae_nnunet.synthesis.lesions.real_lesions import RealLesions
    from fvae_nnunet.synthesis.lesions.shape_bank import ShapeBank
    from fvae_nnunet.synthesis.model.folder import ModelSettings
    from fvae_nnunet.synthesis.sources.cases import SourceDataset


_BORROWED_SHARES = {"ellipsoid": 0.0, "borrowed": 1.0, "both": 0.5}
"""Values of ``--shapes`` other than a folder -> default share of borrowed shapes; for a folder it is 1."""


def job_of(arguments: argparse.Namespace) -> LesionJob:
    """Return the checked job for cases with placed lesions."""
    from fvae_nnunet.nnunet.segmenter import SegmenterModel
    from fvae_nnunet.synthesis.generation.cases import LesionJob
    from fvae_nnunet.synthesis.generation.painting import PaintSettings
    from fvae_nnunet.synthesis.lesions.plan import Avoided
    from fvae_nnunet.synthesis.lesions.quality import QualityLimits
    from fvae_nnunet.synthesis.lesions.sizes import REAL
    from fvae_nnunet.synthesis.model.folder import needs_text

    settings, training, dataset = _model_and_dataset(arguments)
    if arguments.text is None and needs_text(settings, training):
        raise UserError(
            f"every training case of {arguments.ldm} had a report, so the model cannot generate without one; give a "
            "report with --text"
        )
    dataset = dataset.without(arguments.leave_out)
    if arguments.place_in:
        dataset = replace(dataset, organ=dataset.organ.within(arguments.place_in))
    if arguments.lesion is not None:
        dataset = dataset.with_lesion(arguments.lesion)
    lesion_name = dataset.check_lesion()
    channels = len(next(iter(dataset.image_files.values())))
    if not 0 <= arguments.found_share <= 1:
        raise UserError(f"--found-share must be between 0 and 1, got {arguments.found_share:g}")
    plan = _plan(arguments, dataset)
    if plan.appearance.limits and settings.appearance is None:
        raise UserError(
            f"{arguments.ldm} is not conditioned on the appearance of lesions; --lesion-hu and --contrast-hu require a "
            "model trained with --mask-encoding outline"
        )
    paint = from_options(PaintSettings, arguments)
    sources = _sources(arguments, dataset)
    avoid = Avoided.open(arguments.avoid, sources) if arguments.avoid else None
    segmenter_model = None
    if arguments.segmenter:
        segmenter_model = SegmenterModel.open(
            arguments.segmenter, lesion_name=lesion_name, channels=channels, fold=arguments.fold
        )
    output = _output(arguments, dataset)
    bank = _bank(arguments)
    real = _real_lesions(arguments, dataset, output)
    if paint.mode == "grow" and not real.lesions:
        raise UserError(f"{dataset.name} has no real lesion to grow or shrink; choose another --mode")
    if plan.borrowed_share and bank is None and not real.lesions:
        raise UserError(
            f"{dataset.name} has no real lesion to borrow a shape from; choose --shapes ellipsoid or a folder of masks"
        )
    if plan.sizes is None and not real.lesions:
        raise UserError(f"{dataset.name} has no real lesion to take --sizes {REAL} from; give other --sizes")
    return LesionJob(
        dataset=dataset,
        sources=sources,
        output=output,
        seed=arguments.seed,
        plan=plan,
        paint=paint,
        limits=QualityLimits(
            real,
            inside_fraction=plan.inside_fraction,
            found_share=arguments.found_share,
            asked=plan.appearance.limits,
        ),
        filtered=not arguments.no_filter,
        real=real,
        bank=bank,
        avoid=avoid,
        segmenter_model=segmenter_model,
        model_folder=arguments.ldm,
    )


def list_job_of(arguments: argparse.Namespace) -> ListJob:
    """Return the checked job for the volumes of a list."""
    from fvae_nnunet.nnunet.case_reports import FILE_NAME, read_case_reports
    from fvae_nnunet.synthesis.generation.case_list import read_case_list
    from fvae_nnunet.synthesis.generation.list_checks import checked_list
    from fvae_nnunet.synthesis.generation.listed_cases import ListJob
    from fvae_nnunet.synthesis.generation.painting import PaintSettings
    from fvae_nnunet.synthesis.model.folder import needs_text

    rows = read_case_list(arguments.list)
    settings, training, dataset = _model_and_dataset(arguments)
    reports = dataset.raw_folder / FILE_NAME
    findings = read_case_reports(reports).findings if reports.is_file() else ()
    return ListJob(
        dataset=dataset,
        listed=checked_list(
            arguments.list, rows, dataset, settings, findings, texts_needed=needs_text(settings, training)
        ),
        finding_names=findings,
        output=_output(arguments, dataset),
        seed=arguments.seed,
        paint=from_options(PaintSettings, arguments),
        model_folder=arguments.ldm,
    )


def _model_and_dataset(arguments: argparse.Namespace) -> tuple[ModelSettings, dict[str, Any], SourceDataset]:
    """Settings of the model, record of its training, and the dataset with its classes."""
    from fvae_nnunet.nnunet.lesion_labels import NO_LESIONS
    from fvae_nnunet.synthesis.model.folder import allows_guidance, read_model
    from fvae_nnunet.synthesis.model.noise_process import NoiseProcess
    from fvae_nnunet.synthesis.sources.dataset import open_source_dataset

    settings, training = read_model(arguments.ldm)
    if arguments.steps is not None:
        NoiseProcess(settings.prediction).check_steps(arguments.steps)
    if arguments.guidance != 1 and not allows_guidance(training):
        raise UserError(f"--guidance: {arguments.ldm} was trained without --condition-dropout; leave out --guidance")
    lesions = list(settings.lesion_names) or [NO_LESIONS]
    if len(settings.lesion_names) == 1 and arguments.lesion:
        lesions = [arguments.lesion]
    kind, _, place = settings.organ.partition(":")
    if arguments.organ is None and kind in ("folder", "structures") and place and not Path(place).is_absolute():
        raise UserError(
            f"{arguments.ldm} was trained with organ masks of the folder {place}; give its path: --organ {kind}:PATH"
        )
    dataset = from_options(
        open_source_dataset,
        arguments,
        id_or_name=dataset_of(arguments),
        organ=arguments.organ or settings.organ,
        lesions=lesions,
    ).for_model(settings, arguments.ldm)
    channels = len(next(iter(dataset.image_files.values())))
    if arguments.mode == "full" and channels > 1:
        raise UserError(
            f"--mode full generates only CT, and {dataset.name} has {channels} channels; use another --mode"
        )
    structures = dataset.organ.structures
    if structures is not None and structures.unknown:
        print(
            f"warning: {counted(len(structures.unknown), 'structure')} of {structures.folder} unknown to the model and "
            f"used as background: {some_of(structures.unknown, 5)}",
            file=sys.stderr,
        )
    if arguments.fold is not None:
        unseen = sorted(set(training.get("training_cases") or ()) - set(dataset.cases))
        if unseen:
            print(
                f"warning: the model was trained on {counted(len(unseen), 'case')} outside the training cases of fold "
                f"{arguments.fold} (first: {unseen[0]}); train it with --fold {arguments.fold} to keep them unseen",
                file=sys.stderr,
            )
    return settings, training, dataset


def _output(arguments: argparse.Namespace, dataset: SourceDataset) -> Path:
    from fvae_nnunet.nnunet.folders import nnunet_folder
    from fvae_nnunet.synthesis.generation.job import check_is_ours

    output: Path = arguments.output or nnunet_folder("nnUNet_raw") / OUTPUT_PARENT / dataset.name
    check_is_ours(output)
    return output


def _plan(arguments: argparse.Namespace, dataset: SourceDataset) -> PlanSettings:
    from fvae_nnunet.synthesis.lesions.appearance import AskedAppearance
    from fvae_nnunet.synthesis.lesions.plan import PlanSettings, default_inside_fraction
    from fvae_nnunet.synthesis.lesions.sizes import DEFAULT_GROWTH, LesionSizes

    if arguments.sizes and arguments.diameter_mm:
        raise UserError("--sizes and --diameter-mm are mutually exclusive; give one of them")
    if arguments.borrowed_share is not None and arguments.shapes in ("ellipsoid", "borrowed"):
        raise UserError(f"--borrowed-share requires --shapes both or a folder, not {arguments.shapes}")
    if len(arguments.lesions_per_case) > 2:
        raise UserError("--lesions-per-case takes one number, or a minimum and a maximum")
    if arguments.at_mm is not None and len(arguments.cases or ()) != 1:
        raise UserError("--at is a position in one patient; name this case with --cases CASE")
    sizes = (
        LesionSizes.of_range(*arguments.diameter_mm) if arguments.diameter_mm else LesionSizes.parse(arguments.sizes)
    )
    growth = None
    if arguments.mode == "grow" and not (arguments.sizes or arguments.diameter_mm):
        sizes, growth = None, tuple(arguments.growth or DEFAULT_GROWTH)
    share = arguments.borrowed_share
    if share is None:
        share = _BORROWED_SHARES.get(arguments.shapes, 1.0)
    inside = arguments.inside_fraction
    return from_options(
        PlanSettings,
        arguments,
        sizes=sizes,
        borrowed_share=share,
        lesions_per_case=(arguments.lesions_per_case[0], arguments.lesions_per_case[-1]),
        inside_fraction=default_inside_fraction(dataset.organ) if inside is None else inside,
        appearance=AskedAppearance.parse(arguments.lesion_hu, arguments.contrast_hu),
        growth=growth,
    )


def _sources(arguments: argparse.Namespace, dataset: SourceDataset) -> tuple[str, ...]:
    both = sorted(set(arguments.cases or ()) & set(arguments.leave_out))
    if both:
        raise UserError(f"--cases and --leave-out both name {', '.join(both)}")
    wanted = dataset.cases if arguments.cases is None else sorted(set(arguments.cases))
    unknown = [case for case in wanted if case not in dataset.image_files]
    if unknown:
        where = dataset.name if arguments.fold is None else f"the training cases of fold {arguments.fold}"
        raise UserError(f"--cases: {where} has no {', '.join(unknown)}; it has {some_of(dataset.cases, 5)}")
    return tuple(wanted)


def _bank(arguments: argparse.Namespace) -> ShapeBank | None:
    from fvae_nnunet.ct.files import find_images
    from fvae_nnunet.jobs.progress_bar import progress_bar
    from fvae_nnunet.synthesis.lesions.shape_bank import ShapeBank

    if arguments.shapes in _BORROWED_SHARES:
        return None
    folder = Path(arguments.shapes)
    if not folder.is_dir():
        raise UserError(f"--shapes: no folder {folder}; give {', '.join(_BORROWED_SHARES)} or a folder of masks")
    with progress_bar(total=len(find_images(folder)), desc="shapes", unit="file", leave=False) as bar:
        return ShapeBank.open(folder, workers=arguments.processes, on_file=bar.update)


def _real_lesions(arguments: argparse.Namespace, dataset: SourceDataset, output: Path) -> RealLesions:
    from fvae_nnunet.jobs.progress_bar import progress_bar
    from fvae_nnunet.synthesis.lesions.real_lesions import FILE_NAME, measure_real_lesions

    with progress_bar(total=len(dataset.cases), desc="real lesions", unit="case", leave=False) as bar:
        real = measure_real_lesions(dataset, output / FILE_NAME, workers=arguments.processes, on_case=bar.update)
    if not real.lesions:
        print(f"warning: {dataset.name} has no real lesion; HU of synthetic lesions are not checked", file=sys.stderr)
    return real
