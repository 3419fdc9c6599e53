"""The options of fvae-synthesize."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fvae_nnunet.cli.common_options import add_common, given_options
from fvae_nnunet.cli.parsers import add_dataset
from fvae_nnunet.errors import UserError

OUTPUT_PARENT = "fvae_synthetic"
"""Folder in nnUNet_raw for synthetic cases; nnU-Net itself reads only folders named Dataset*."""

_OF_PLACED_LESIONS = (
    "n", "cases", "leave_out", "lesion", "place_in", "sizes", "diameter_mm", "shapes", "borrowed_share",
    "lesions_per_case", "inside_fraction", "clearance_mm", "avoid", "at_mm", "margin_mm", "texture", "text",
    "segmenter", "found_share", "no_filter", "lesion_hu", "contrast_hu", "growth",
)  # fmt: skip
"""Options without effect with --list."""

_OF_INSERTION = ("margin_mm", "texture")
"""Options without effect with --mode full."""

_OF_NEW_LESIONS = ("shapes", "borrowed_share", "at_mm")
"""Options without effect with --mode grow."""


def add_synthesis_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for cases, lesions, model and quality control, which ``synthesis_job`` reads."""
    add_dataset(parser)
    parser.add_argument("--ldm", required=True, type=Path, metavar="FOLDER", help="model of fvae-train-ldm")
    parser.add_argument("-n", type=int, metavar="N", help="number of cases with placed lesions to make")
    # fmt: off
    parser.add_argument("--list", type=Path, metavar="FILE",
        help="instead of -n, with --mode full: CSV or JSON of volumes to generate from structures, disease masks and "
        "texts; docs/synthesis_volumes.md defines the format")
    # fmt: on
    add_common(
        parser,
        "output",
        metavar="FOLDER",
        help=f"folder to write to; default: {OUTPUT_PARENT}/<dataset's name> in nnUNet_raw",
    )
    add_common(parser, "seed")
    _add_source_options(parser.add_argument_group("source cases"))
    _add_lesion_options(parser.add_argument_group("lesions"))
    _add_model_options(parser.add_argument_group("generation"))
    _add_quality_options(parser.add_argument_group("quality control"))


def _add_source_options(group: argparse._ArgumentGroup) -> None:
    # fmt: off
    group.add_argument("--organ", metavar="SOURCE",
        help="source of the organ, as in fvae-train-ldm; default: that of the model's training")
    group.add_argument("--lesion", metavar="NAME",
        help="label of the lesion to insert; default: that of the model, if it has only one")
    group.add_argument("--place-in", nargs="+", metavar="NAME",
        help="structures in which to place lesions, for models trained with structures; default: all structures")
    add_common(group, "fold")
    group.add_argument("--cases", nargs="+", metavar="CASE", help="source cases; default: all")
    add_common(group, "leave_out",
        help="cases to exclude as sources and from shapes and quality control")
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
        help=f"diameter classes with their shares ({ranges}; default {default}), or one of "
        f"{', '.join(DISTRIBUTIONS_MM)}: as in these public datasets, or {REAL}: as in this dataset")
    group.add_argument("--diameter-mm", nargs=2, type=float, metavar=("MIN", "MAX"),
        help="instead of --sizes: a single range of diameters in mm")
    group.add_argument("--growth", nargs=2, type=float, metavar=("MIN", "MAX"),
        help="for --mode grow, instead of --sizes: range of the factor on a lesion's diameter; default "
        f"{DEFAULT_GROWTH[0]:g} {DEFAULT_GROWTH[1]:g}")
    group.add_argument("--shapes", default="both", metavar="SHAPES",
        help="ellipsoid: deformed ellipsoids; borrowed: shapes of the dataset's real lesions; both (default); or a "
        "folder of masks from any source, whose lesion shapes are borrowed")
    group.add_argument("--borrowed-share", type=float, metavar="SHARE",
        help="share of borrowed shapes among all shapes; the rest are ellipsoids; default 0.5 for both, 1 for a folder")
    group.add_argument("--lesion-hu", nargs="+", type=float, metavar="HU",
        help="mean HU of the lesion's core, or its minimum and maximum; default: as in the real lesions")
    group.add_argument("--contrast-hu", nargs="+", type=float, metavar="HU",
        help="instead of --lesion-hu: mean HU of the core minus that of the surrounding organ, or minimum and maximum")
    group.add_argument("--lesions-per-case", nargs="+", type=int, default=[1], metavar="N",
        help="number of lesions, or minimum and maximum; default 1")
    group.add_argument("--inside-fraction", type=float, metavar="SHARE",
        help="minimum share of each lesion that lies inside the organ; default 0.85 for --organ lungs and lung labels, "
        "otherwise 0.80")
    group.add_argument("--clearance-mm", type=float, default=CLEARANCE_MM, metavar="MM",
        help=f"minimum distance to other lesions; default {CLEARANCE_MM:g}")
    group.add_argument("--avoid", type=Path, metavar="FOLDER",
        help="masks CASE.nii.gz of structures, such as vessels, that lesions must not overlap")
    group.add_argument("--at", nargs=3, type=float, metavar=("X", "Y", "Z"), dest="at_mm",
        help="centre of the lesion in mm in patient coordinates (LPS, as in SimpleITK and DICOM); requires a single "
        "case in --cases")
    # fmt: on


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    # fmt: off
    group.add_argument("--mode", choices=("inpaint", "grow", "full"), default="inpaint",
        help="inpaint (default): insert a generated lesion into the real case; grow: enlarge or shrink its own lesion; "
        "full: generate the whole volume")
    group.add_argument("--margin-mm", type=float, default=5.0, metavar="MM",
        help="inpaint, grow: width of the blended margin around a lesion; voxels beyond it stay raw; default 5")
    group.add_argument("--texture", choices=("scanner", "vae"), default="scanner",
        help="inpaint, grow: keep the scan's own noise in the lesion (scanner, default), or use the output of the "
        "VAE's decoder (vae)")
    group.add_argument("--steps", type=int, metavar="N", help="sampling steps; default: those of the model")
    group.add_argument("--eta", type=float, metavar="ETA",
        help="1: DDPM-like sampling, 0: deterministic; default: that of the model")
    group.add_argument("--guidance", type=float, default=1.0, metavar="G",
        help="scale of classifier-free guidance; default 1: none")
    group.add_argument("--text", metavar="TEXT",
        help="report of the lesion, for a model trained with text; required if every training case had a report")
    # fmt: on
    group.add_argument("--text-encoder", metavar="PATH", help="path of the text encoder; default: as in training")
    add_common(group, "weights", "vae_code", "trust_weights", "device")


def _add_quality_options(group: argparse._ArgumentGroup) -> None:
    # fmt: off
    add_common(group, "segmenter",
        help="folder of a trained nnU-Net model (TRAINER__PLANS__CONFIGURATION) that must find the lesions; "
        "with --fold, only that fold of the model, otherwise all")
    group.add_argument("--found-share", type=float, default=0.7, metavar="SHARE",
        help="share of a lesion's voxels that --segmenter must find; default 0.7")
    group.add_argument("--no-filter", action="store_true",
        help="accept every case; quality is still recorded")
    # fmt: on


def check_way(arguments: argparse.Namespace) -> None:
    """Raise UserError unless the options ask either for -n cases or for a --list, with options that apply to it."""
    if (arguments.n is None) == (arguments.list is None):
        raise UserError("give either -n N, the number of cases, or --list FILE, the volumes to generate")
    if arguments.n is not None and arguments.n < 1:
        raise UserError(f"-n must be at least 1, got {arguments.n}")
    if arguments.seed < 0:
        raise UserError(f"--seed must not be negative, got {arguments.seed}")
    if arguments.mode == "grow":
        _refuse(arguments, _OF_NEW_LESIONS, "has no effect with --mode grow, which changes a case's own lesions")
        if arguments.growth and (arguments.sizes or arguments.diameter_mm):
            raise UserError("--growth, --sizes and --diameter-mm are mutually exclusive; give one of them")
    else:
        _refuse(arguments, ("growth",), "has no effect without --mode grow")
    if arguments.segmenter is None:
        _refuse(arguments, ("found_share",), "has no effect without --segmenter")
    if arguments.list is None:
        if arguments.mode == "full":
            _refuse(arguments, _OF_INSERTION, "has no effect with --mode full, which inserts nothing")
        if arguments.text is None:
            _refuse(arguments, ("text_encoder",), "has no effect without --text")
        return
    if arguments.mode != "full":
        raise UserError("--list generates whole volumes; add --mode full")
    _refuse(arguments, _OF_PLACED_LESIONS, "has no effect with --list, whose rows define the volumes")


def _refuse(arguments: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Raise UserError if one of these options is given."""
    parser = argparse.ArgumentParser()
    add_synthesis_options(parser)
    given = given_options(parser, arguments, names)
    if given:
        raise UserError(f"{given[0]} {why}; leave it out")
