"""The options of fvae-synthesize."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fvae_nnunet.cli.common_options import add_common, given_options
from fvae_nnunet.cli.parsers import add_dataset
from fvae_nnunet.errors import UserError

OUTPUT_PARENT = "fvae_synthetic"
"""In nnUNet_raw, where nnU-Net looks only at folders Dataset*."""

_OF_PLACED_LESIONS = (
    "n", "cases", "leave_out", "lesion", "place_in", "sizes", "diameter_mm", "shapes", "borrowed_share",
    "lesions_per_case", "inside_fraction", "clearance_mm", "avoid", "at_mm", "margin_mm", "texture", "text",
    "segmenter", "found_share", "no_filter", "lesion_hu", "contrast_hu", "growth",
)  # fmt: skip
"""Options that do nothing with --list."""

_OF_NEW_LESIONS = ("shapes", "borrowed_share", "at_mm")
"""Options that do nothing with --mode grow."""


def add_synthesis_options(parser: argparse.ArgumentParser) -> None:
    """Options that say what to make and with what; ``synthesis_job`` understands them."""
    add_dataset(parser)
    parser.add_argument("--ldm", required=True, type=Path, metavar="FOLDER", help="model of fvae-train-ldm")
    parser.add_argument("-n", type=int, metavar="N", help="number of cases to make, with placed lesions")
    # fmt: off
    parser.add_argument("--list", type=Path, metavar="FILE",
        help="instead of -n, with --mode full: CSV or JSON of volumes to generate from structures, disease masks and "
        "texts; docs/synthesis_volumes.md says what it holds")
    # fmt: on
    add_common(parser, "output", metavar="FOLDER", help=f"default: {OUTPUT_PARENT}/<dataset's name> in nnUNet_raw")
    add_common(parser, "seed")
    _add_source_options(parser.add_argument_group("source cases"))
    _add_lesion_options(parser.add_argument_group("lesions"))
    _add_model_options(parser.add_argument_group("generation"))
    _add_quality_options(parser.add_argument_group("quality control"))


def _add_source_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--organ", metavar="ORGAN", help="as in fvae-train-ldm; default: that of the model's training")
    # fmt: off
    group.add_argument("--lesion", metavar="NAME",
        help="label of the lesion to insert; default: that of the model, if it has only one")
    group.add_argument("--place-in", nargs="+", metavar="NAME",
        help="structures in which to place lesions, for models of structures; default: all of them")
    add_common(group, "fold")
    group.add_argument("--cases", nargs="+", metavar="CASE", help="cases to make synthetic cases from; default: all")
    add_common(group, "leave_out",
        help="cases not to use, neither as sources nor for shapes and quality control")
    # fmt: on
    add_common(group, "plans_name", "channels", "hu_as_is")


def _add_lesion_options(group: argparse._ArgumentGroup) -> None:
    from fvae_nnunet.synthesis.lesions.placement import CLEARANCE_MM
    from fvae_nnunet.synthesis.lesions.sizes import (
        DEFAULT_GROWTH,
        DEFAULT_SHARES,
        DISTRIBUTIONS_MM,
        REAL,
        SIZE_RANGES_MM,
    )

    ranges = ", ".join(f"{name} {low:g} to {high:g} mm" for name, (low, high) in SIZE_RANGES_MM.items())
    default = " ".join(f"{name}={share:g}" for name, share in DEFAULT_SHARES.items())
    # fmt: off
    group.add_argument("--sizes", nargs="+", metavar="CLASS=SHARE",
        help=f"classes of diameter ({ranges}; default {default}), or one "
        f"of {', '.join(DISTRIBUTIONS_MM)}: like the tumours of these public datasets, or {REAL}: like this dataset's")
    group.add_argument("--diameter-mm", nargs=2, type=float, metavar=("MIN", "MAX"),
        help="instead of --sizes: a single range")
    group.add_argument("--growth", nargs=2, type=float, metavar=("MIN", "MAX"),
        help="for --mode grow, instead of --sizes: factor on the diameter of a lesion; default "
        f"{DEFAULT_GROWTH[0]:g} {DEFAULT_GROWTH[1]:g}")
    group.add_argument("--shapes", default="both", metavar="SHAPES",
        help="ellipsoid: deformed ellipsoids; borrowed: shapes of the dataset's real lesions; both (default); or a "
        "folder of masks from anywhere, whose lesions lend their shapes")
    group.add_argument("--borrowed-share", type=float, metavar="SHARE",
        help="share of borrowed shapes, the others are ellipsoids; default 0.5 for both, 1 for a folder")
    group.add_argument("--lesion-hu", nargs="+", type=float, metavar="HU",
        help="mean HU of the lesion's core, or minimum and maximum; default: like the real lesions")
    group.add_argument("--contrast-hu", nargs="+", type=float, metavar="HU",
        help="instead of --lesion-hu: that mean minus the mean of the organ around it, or minimum and maximum")
    group.add_argument("--lesions-per-case", nargs="+", type=int, default=[1], metavar="N",
        help="a number, or minimum and maximum; default 1")
    group.add_argument("--inside-fraction", type=float, metavar="SHARE",
        help="minimum share of each lesion inside the organ; default 0.85 for --organ lungs and labels of lungs, "
        "otherwise 0.80")
    group.add_argument("--clearance-mm", type=float, default=CLEARANCE_MM, metavar="MM",
        help=f"minimum distance to other lesions; default {CLEARANCE_MM:g}")
    group.add_argument("--avoid", type=Path, metavar="FOLDER",
        help="masks CASE.nii.gz of structures, such as vessels, in which no lesion may lie")
    group.add_argument("--at", nargs=3, type=float, metavar=("X", "Y", "Z"), dest="at_mm",
        help="centre of the lesion in mm in the patient's space (LPS, as in SimpleITK and DICOM), with one case in "
        "--cases")
    # fmt: on


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    # fmt: off
    group.add_argument("--mode", choices=("inpaint", "grow", "full"), default="inpaint",
        help="inpaint (default): the real case with a generated lesion; grow: its own lesion, larger or smaller; full: "
        "generate the whole volume")
    group.add_argument("--margin-mm", type=float, default=5.0, metavar="MM",
        help="inpaint, grow: width of the blended margin around a lesion; voxels beyond it stay raw; default 5")
    group.add_argument("--texture", choices=("scanner", "vae"), default="scanner",
        help="inpaint, grow: keep the scan's own noise in the lesion (default), or use the output of the VAE's decoder")
    group.add_argument("--steps", type=int, metavar="N", help="sampling steps; default: those of the model")
    group.add_argument("--eta", type=float, metavar="ETA",
        help="1: DDPM-like sampling, 0: deterministic; default: that of the model")
    group.add_argument("--guidance", type=float, default=1.0, metavar="G",
        help="classifier-free guidance; default 1: none")
    group.add_argument("--text", metavar="TEXT",
        help="report of the lesion, for a model that was trained with text; required if each of its cases had one")
    # fmt: on
    group.add_argument("--text-encoder", metavar="PATH", help="location of the text encoder; default: as in training")
    add_common(group, "weights", "vae_code", "trust_weights", "device")


def _add_quality_options(group: argparse._ArgumentGroup) -> None:
    # fmt: off
    add_common(group, "segmenter",
        help="folder of a trained nnU-Net model (TRAINER__PLANS__CONFIGURATION) that must find the lesions; "
        "with --fold, only that fold of the model, otherwise all")
    group.add_argument("--found-share", type=float, default=0.7, metavar="SHARE",
        help="share of a lesion's voxels that it must find; default 0.7")
    group.add_argument("--no-filter", action="store_true",
        help="accept every case; its quality is still recorded")
    # fmt: on


def check_way(arguments: argparse.Namespace) -> None:
    """Raise UserError unless the options ask for -n cases or for a --list, and not for what neither can do."""
    if (arguments.n is None) == (arguments.list is None):
        raise UserError("give -n N, how many cases to make, or --list FILE, which volumes to generate; and not both")
    if arguments.n is not None and arguments.n < 1:
        raise UserError(f"-n must be at least 1, got {arguments.n}")
    if arguments.seed < 0:
        raise UserError(f"--seed must not be negative, got {arguments.seed}")
    if arguments.mode == "grow":
        _refuse(arguments, _OF_NEW_LESIONS, "does nothing with --mode grow, which changes a case's own lesions")
        if arguments.growth and (arguments.sizes or arguments.diameter_mm):
            raise UserError("--growth excludes --sizes and --diameter-mm; give one of them")
    else:
        _refuse(arguments, ("growth",), "does nothing without --mode grow")
    if arguments.list is None:
        return
    if arguments.mode != "full":
        raise UserError("--list generates whole volumes; add --mode full")
    _refuse(arguments, _OF_PLACED_LESIONS, "does nothing with --list, whose rows say what is made")


def _refuse(arguments: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Raise UserError where one of these options is given."""
    parser = argparse.ArgumentParser()
    add_synthesis_options(parser)
    given = given_options(parser, arguments, names)
    if given:
        raise UserError(f"{given[0]} {why}; leave it out")
