"""Draw a PNG of one case from its image files: raw image, reconstruction, difference, prediction over reference.

python scripts/case_picture.py --raw case_0000.nii.gz --view view/case_0000.nii.gz --reference labelsTs/case.nii.gz
    --prediction predictions/case.nii.gz --dataset-json dataset.json -o case.png
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.ct.files import read_upright
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.segmentation.lesions import DETECTION_OVERLAP
from fvae_nnunet.numbers_as_text import nsd_name, number
from fvae_nnunet.pictures.case import case_picture


def title_of(case: str, labels: dict[str, int | list[int]], summary: Path) -> str:
    """Title with the name of the case, and DSC and NSD of each label from the summary of ``fvae-evaluate``."""
    for scored in json.loads(summary.read_text())["metric_per_case"]:
        if Path(scored["prediction_file"]).name.split(".")[0] == case:
            break
    else:
        raise UserError(f"{summary} has no case {case}")
    parts = [case]
    for name, value in labels.items():
        key = str(tuple(value)) if isinstance(value, list) else str(value)
        if key in scored["metrics"]:
            found = scored["metrics"][key]
            nsds = {float(measure[4:-2]): share for measure, share in found.items() if measure.startswith("NSD_")}
            shown = [f"DSC {number(found['Dice'])}", *(f"{nsd_name(mm)} {number(nsds[mm])}" for mm in sorted(nsds)[:1])]
            parts.append(f"{name} {', '.join(shown)}")
    return "     ".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="case_picture.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--raw", type=Path, required=True, metavar="FILE", help="CT image in HU")
    parser.add_argument("--view", type=Path, required=True, metavar="FILE", help="its reconstruction")
    parser.add_argument("--reference", type=Path, required=True, metavar="FILE")
    parser.add_argument("--prediction", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--dataset-json", type=Path, required=True, metavar="FILE", help="dataset.json, for the names of the labels"
    )
    parser.add_argument("--summary", type=Path, metavar="FILE", help="summary.json of fvae-evaluate, for the title")
    parser.add_argument("-o", type=Path, required=True, metavar="FILE", help="PNG to write")
    return run_command(parser, run, argv)


def run(args: argparse.Namespace) -> int:
    raw_hu, spacing_mm = read_upright(args.raw)
    labels = json.loads(args.dataset_json.read_text())["labels"]
    case = args.reference.name.split(".")[0]
    case_picture(
        raw_hu,
        read_upright(args.view)[0],
        spacing_mm=spacing_mm,
        reference=read_upright(args.reference)[0],
        prediction=read_upright(args.prediction)[0],
        labels={name: value for name, value in labels.items() if name != "ignore"},
        detection_overlap=DETECTION_OVERLAP,
        title=title_of(case, labels, args.summary) if args.summary else case,
        path=args.o,
    )
    print(f"picture of {case} in {args.o}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
