"""The options of fvae-synthesize, and the job that they ask for."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fvae_nnunet.errors import UserError

if TYPE_CHECKING:
    from fvae_nnunet.synthesis.case_plan import PlanSettings
    from fvae_nnunet.synthesis.real_lesions import RealLesions
    from fvae_nnunet.synthesis.source_cases import SourceDataset
    from fvae_nnunet.synthesis.synthesize import Job

OUTPUT_PARENT = "fvae_synthetic"
"""In nnUNet_raw, where nnU-Net looks only at folders Dataset*."""

REAL_LESIONS_FILE = "real_lesions.json"
"""In the output folder, so that it is measured once."""


def add_synthesis_options(parser: argparse.ArgumentParser) -> None:
    """Options that say what to make and with what; ``job_of`` understands them."""
    parser.add_argument("dataset", metavar="DATASET", help="id or name")
    parser.add_argument("--ldm", required=True, type=Path, metavar="FOLDER", help="model of fvae-train-ldm")
    parser.add_argument("-n", required=True, type=int, metavar="N", help="how many cases to make")
    parser.add_argument(
        "-o", type=Path, metavar="FOLDER", help=f"default: {OUTPUT_PARENT}/<dataset's name> in nnUNet_raw"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random; default 0")
    _add_source_options(parser)
    _add_lesion_options(parser)
    _add_model_options(parser)
    _add_quality_options(parser)


def _add_source_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("source cases")
    group.add_argument("--organ", metavar="ORGAN", help="as in fvae-train-ldm; default: as the model was trained")
    group.add_argument("--lesion", metavar="NAME", help="the lesion's label; default: as the model was trained")
    group.add_argument(
        "--fold", type=int, metavar="F",
        help="use the training cases of this fold of nnU-Net only, so that its validation cases stay unseen; default: "
        "all training cases",
    )  # fmt: skip
    group.add_argument("--cases", nargs="+", metavar="CASE", help="make synthetic cases from these; default: from all")
    group.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier; default nnUNetPlans")


def _add_lesion_options(parser: argparse.ArgumentParser) -> None:
    from fvae_nnunet.synthesis.lesion_sizes import DEFAULT_SHARES, SIZE_RANGES_MM

    ranges = ", ".join(f"{name} {low:g} to {high:g} mm" for name, (low, high) in SIZE_RANGES_MM.items())
    default = " ".join(f"{name}={share:g}" for name, share in DEFAULT_SHARES.items())
    group = parser.add_argument_group("lesions")
    group.add_argument(
        "--sizes", nargs="+", metavar="CLASS=SHARE", help=f"classes of diameter ({ranges}); default {default}"
    )
    group.add_argument(
        "--diameter-mm", nargs=2, type=float, metavar=("MIN", "MAX"), help="instead of --sizes: one range"
    )
    group.add_argument(
        "--shapes", choices=("ellipsoid", "borrowed", "both"), default="both",
        help="deformed ellipsoids, shapes of the dataset's real lesions, or both (default)",
    )  # fmt: skip
    group.add_argument(
        "--borrowed-share", type=float, metavar="SHARE", help="of borrowed shapes with --shapes both; default 0.5"
    )
    group.add_argument(
        "--lesions-per-case", nargs="+", type=int, default=[1], metavar="N", help="a number, or least and greatest; "
        "default 1",
    )  # fmt: skip
    group.add_argument(
        "--inside-fraction", type=float, metavar="SHARE",
        help="of each lesion in the organ, at least; default 0.85 in lungs, else 0.80",
    )  # fmt: skip
    group.add_argument(
        "--clearance-mm", type=float, default=5.0, metavar="MM", help="distance to other lesions; default 5"
    )
    group.add_argument(
        "--avoid", type=Path, metavar="FOLDER",
        help="masks CASE.nii.gz of structures, such as vessels, that no lesion may lie in",
    )  # fmt: skip
    group.add_argument(
        "--at", nargs=3, type=float, metavar=("X", "Y", "Z"),
        help="centre of the lesion in the patient in mm (LPS, as SimpleITK and DICOM), with one case in --cases",
    )  # fmt: skip


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("generation")
    group.add_argument(
        "--mode", choices=("inpaint", "full"), default="inpaint",
        help="inpaint (default): the real case with a generated lesion; full: the whole volume is generated",
    )  # fmt: skip
    group.add_argument(
        "--margin-mm", type=float, default=5.0, metavar="MM",
        help="inpaint: width of the seam around a lesion, beyond which all voxels are the raw ones; default 5",
    )  # fmt: skip
    group.add_argument(
        "--texture", choices=("scanner", "vae"), default="scanner",
        help="inpaint: keep the scan's own noise in the lesion (default), or take what the VAE decodes",
    )  # fmt: skip
    group.add_argument("--steps", type=int, default=20, metavar="N", help="of sampling; default 20")
    group.add_argument("--eta", type=float, default=1.0, metavar="ETA", help="1 (default): DDPM-like, 0: deterministic")
    group.add_argument("--guidance", type=float, default=1.0, metavar="G", help="classifier-free; default 1: none")
    group.add_argument("--text", metavar="TEXT", help="report of the lesion, for a model that was trained with text")
    group.add_argument("--text-encoder", metavar="PATH", help="where it is; default: where it was in training")
    group.add_argument("--weights", metavar="PATH", help="weights of the VAE; default: the hub's cache or the hub")
    group.add_argument("--vae-code", metavar="FOLDER", help="checkout of the VAE's own repository")
    group.add_argument("--trust-weights", action="store_true", help="read a pickled --weights file; it can run code")
    group.add_argument("-device", choices=("cuda", "cpu", "mps"), help="default: cuda if there is a GPU, else cpu")


def _add_quality_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("quality control")
    group.add_argument(
        "--segmenter", type=Path, metavar="FOLDER",
        help="folder of a trained nnU-Net model (TRAINER__PLANS__CONFIGURATION) that must find the lesions; "
        "with --fold that fold of it, else all",
    )  # fmt: skip
    group.add_argument(
        "--found-share", type=float, default=0.7, metavar="SHARE", help="of a lesion's voxels to find; default 0.7"
    )
    group.add_argument(
        "--no-filter", action="store_true", help="accept every case; its quality is written down all the same"
    )


def job_of(arguments: argparse.Namespace) -> tuple[Job, RealLesions]:
    """What the options ask for, checked, and the real lesions of the dataset."""
    from fvae_nnunet.nnunet_folders import nnunet_folder
    from fvae_nnunet.synthesis.case_plan import Avoided
    from fvae_nnunet.synthesis.model_folder import read_model
    from fvae_nnunet.synthesis.painting import PaintSettings
    from fvae_nnunet.synthesis.quality import QualityLimits
    from fvae_nnunet.synthesis.segmenter import Judge
    from fvae_nnunet.synthesis.source_cases import open_source_dataset
    from fvae_nnunet.synthesis.synthesize import Job, check_is_ours

    settings, training = read_model(arguments.ldm)
    dataset = open_source_dataset(
        arguments.dataset,
        organ=arguments.organ or settings.organ,
        lesion=arguments.lesion or settings.class_names[-1],
        fold=arguments.fold,
        plans_name=arguments.p,
    )
    channels = len(next(iter(dataset.image_files.values())))
    if arguments.mode == "full" and channels > 1:
        raise UserError(f"--mode full: {dataset.name} has {channels} channels, and only the CT would be generated")
    if not 0 <= arguments.found_share <= 1:
        raise UserError(f"--found-share is a share between 0 and 1, got {arguments.found_share:g}")
    plan = _plan(arguments, dataset)
    paint = PaintSettings(
        mode=arguments.mode,
        margin_mm=arguments.margin_mm,
        texture=arguments.texture,
        steps=arguments.steps,
        eta=arguments.eta,
        guidance=arguments.guidance,
        text=arguments.text,
    )
    sources = _sources(arguments, dataset)
    avoid = Avoided.open(arguments.avoid, sources) if arguments.avoid else None
    judge = None
    if arguments.segmenter:
        judge = Judge.open(arguments.segmenter, lesion_name=dataset.lesion_name, channels=channels, fold=arguments.fold)
    output = arguments.o or nnunet_folder("nnUNet_raw") / OUTPUT_PARENT / dataset.name
    check_is_ours(output)
    if arguments.fold is not None:
        unseen = sorted(set(training.get("training_cases") or ()) - set(dataset.cases))
        if unseen:
            print(
                f"warning: the model was trained on {len(unseen)} cases that are no training cases of fold "
                f"{arguments.fold} (first: {unseen[0]}); train it with --fold {arguments.fold} to keep them unseen",
                file=sys.stderr,
            )
    real = _real_lesions(arguments, dataset, output)
    if plan.borrowed_share and not real.lesions:
        raise UserError(f"{dataset.name} has no real lesion to borrow a shape from; choose --shapes ellipsoid")
    return Job(
        dataset=dataset,
        sources=sources,
        output=output,
        seed=arguments.seed,
        plan=plan,
        paint=paint,
        limits=QualityLimits.of(real, inside_fraction=plan.inside_fraction, found_share=arguments.found_share),
        filtered=not arguments.no_filter,
        lenders=real.lesions,
        avoid=avoid,
        judge=judge,
        model_folder=arguments.ldm,
    ), real


def _plan(arguments: argparse.Namespace, dataset: SourceDataset) -> PlanSettings:
    from fvae_nnunet.synthesis.case_plan import PlanSettings, default_inside_fraction
    from fvae_nnunet.synthesis.lesion_sizes import LesionSizes

    if arguments.sizes and arguments.diameter_mm:
        raise UserError("--sizes and --diameter-mm exclude each other; give one of them")
    if arguments.borrowed_share is not None and arguments.shapes != "both":
        raise UserError(f"--borrowed-share is for --shapes both, not {arguments.shapes}")
    if len(arguments.lesions_per_case) > 2:
        raise UserError("--lesions-per-case takes a number, or the least and the greatest")
    if arguments.at is not None and len(arguments.cases or ()) != 1:
        raise UserError("--at is a position in one patient; name the case with --cases CASE")
    both = 0.5 if arguments.borrowed_share is None else arguments.borrowed_share
    inside = arguments.inside_fraction
    return PlanSettings(
        sizes=LesionSizes.of_range(*arguments.diameter_mm)
        if arguments.diameter_mm
        else LesionSizes.of_classes(arguments.sizes),
        borrowed_share={"ellipsoid": 0.0, "borrowed": 1.0, "both": both}[arguments.shapes],
        lesions_per_case=(arguments.lesions_per_case[0], arguments.lesions_per_case[-1]),
        inside_fraction=default_inside_fraction(dataset.organ) if inside is None else inside,
        clearance_mm=arguments.clearance_mm,
        at_mm=None if arguments.at is None else (arguments.at[0], arguments.at[1], arguments.at[2]),
    )


def _sources(arguments: argparse.Namespace, dataset: SourceDataset) -> tuple[str, ...]:
    wanted = dataset.cases if arguments.cases is None else sorted(set(arguments.cases))
    unknown = [case for case in wanted if case not in dataset.image_files]
    if unknown:
        where = dataset.name if arguments.fold is None else f"the training cases of fold {arguments.fold}"
        raise UserError(f"--cases: {where} has no {', '.join(unknown)}; it has {', '.join(dataset.cases[:5])} ...")
    return tuple(wanted)


def _real_lesions(arguments: argparse.Namespace, dataset: SourceDataset, output: Path) -> RealLesions:
    from tqdm import tqdm

    from fvae_nnunet.synthesis.real_lesions import measure_real_lesions

    path = output / REAL_LESIONS_FILE
    with tqdm(total=len(dataset.cases), desc="real lesions", unit="case", dynamic_ncols=True, leave=False) as bar:
        real = measure_real_lesions(dataset, path, workers=arguments.np, on_case=bar.update)
    for case, error in real.failed.items():
        print(f"{case}: its real lesions cannot be measured: {error}", file=sys.stderr)
    if not real.lesions:
        print(f"warning: {dataset.name} has no real lesion; HU of synthetic ones are not checked", file=sys.stderr)
    return real
