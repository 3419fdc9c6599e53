"""fvae-convert: convert CT-RATE and ReXGroundingCT to nnU-Net datasets with reports, findings and folds by patient.

Convert the published form of CT-RATE or ReXGroundingCT to a dataset in nnUNet_raw: int16 HU images, label maps, maps of
organ structures, reports.json, and folds by patient in nnUNet_preprocessed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvae_nnunet.cli.cases import CaseProgress
from fvae_nnunet.cli.command import run_command
from fvae_nnunet.cli.common_options import add_common, from_options
from fvae_nnunet.cli.parsers import CommandParser, add_dataset, dataset_of
from fvae_nnunet.cli.said_as_options import said_as_options
from fvae_nnunet.cli.verify import verify_finished
from fvae_nnunet.conversion.choices import GEOMETRIES, PROGRAMS, VALUES
from fvae_nnunet.errors import UserError, some_of
from fvae_nnunet.numbers_as_text import counted

if TYPE_CHECKING:
    from fvae_nnunet.conversion.cases import Conversion
    from fvae_nnunet.conversion.plan import Plan
    from fvae_nnunet.conversion.structures import StructureMasks

PUBLISHED = Path("dataset/ts_seg/ts_total")
MOST_ROWS = 20
"""Maximum number of table rows that are listed."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(__doc__)
    commands = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    ct_rate = commands.add_parser("ct-rate", help="chest CT with reports and 18 findings")
    ct_rate.add_argument("root", type=Path, metavar="ROOT", help="folder of the download, which holds dataset/")
    ct_rate.add_argument(
        "--split", choices=("train", "valid", "all"), default="all", help="published split; default all"
    )
    # fmt: off
    ct_rate.add_argument("--scans", choices=("first", "all"), default="first",
        help="first: one reconstruction of each scan, that with the lowest number or the one already converted "
        "(default); all: every reconstruction")
    rex = commands.add_parser("rexgroundingct", help="volumes of CT-RATE with masks of the findings")
    rex.add_argument("root", type=Path, metavar="ROOT",
        help="folder of the download, which holds dataset.json and segmentations/")
    rex.add_argument("--volumes", type=Path, metavar="FOLDER", help="folder of the CT-RATE download; default: ROOT")
    rex.add_argument("--json", type=Path, metavar="FILE", dest="json_file",
        help="list of findings; default ROOT/dataset.json")
    rex.add_argument("--split", choices=("train", "val", "all"), default="all", help="published split; default all")
    rex.add_argument("--leave-out-shared", action="store_true",
        help="leave out training cases whose patient is also in val, with any --split; remove them if they have been "
        "converted")
    # fmt: on
    for command in (ct_rate, rex):
        _add_common_options(command)
    check = commands.add_parser(
        "check", help="check that no patient of a converted dataset is on both sides of a split"
    )
    add_dataset(check)
    return run_command(parser, run, argv)


def _add_common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset", required=True, metavar="NNN_NAME", help="number and name of the new dataset, such as 40_CTRATE"
    )
    # fmt: off
    parser.add_argument("--cases", type=Path, metavar="FILE", dest="selection",
        help="file that lists the volumes, scans or patients to convert, one per line; default: all")
    tables = parser.add_argument_group("tables of CT-RATE", "default: the published ones")
    for name, what in (("reports", "report texts"), ("labels", "18 findings"), ("metadata", "scanner metadata")):
        tables.add_argument(f"--{name}", type=Path, nargs="+", metavar="CSV", help=what)
    structures = parser.add_argument_group("organ structures")
    structures.add_argument("--structures", type=Path, nargs="?", const=PUBLISHED, metavar="FOLDER",
        help="convert the masks of structures in FOLDER; without FOLDER: those of CT-RATE, dataset/ts_seg/ts_total")
    structures.add_argument("--structures-from", choices=PROGRAMS,
        help="program that made the masks; default totalsegmentator")
    traps = parser.add_argument_group("if the files are ambiguous")
    traps.add_argument("--values", choices=VALUES, default="auto",
        help="hu: use the values as they are; stored: apply the metadata's slope and intercept; auto (default): choose "
        "the plausible one of the two")
    traps.add_argument("--geometry", choices=GEOMETRIES, default="auto",
        help="auto: use the header unless it is blank (default); header, metadata: always use that one")
    # fmt: on
    work = parser.add_argument_group("work")
    work.add_argument(
        "--folds", type=int, default=5, metavar="N", help="number of folds in splits_final.json; default 5, 0: none"
    )
    add_common(work, "processes", "overwrite", "verify", "verbose")


def run(arguments: argparse.Namespace) -> int:
    if arguments.source == "check":
        return _check(arguments)
    from fvae_nnunet.conversion.cases import Conversion
    from fvae_nnunet.conversion.finish import finish_dataset
    from fvae_nnunet.conversion.nnunet_dataset import new_dataset_name, refuse_taken_number
    from fvae_nnunet.nnunet.folders import nnunet_folder

    dataset = new_dataset_name(arguments.dataset)
    raw, preprocessed = (nnunet_folder(name) / dataset for name in ("nnUNet_raw", "nnUNet_preprocessed"))
    refuse_taken_number(raw)
    structures = _structures(arguments)
    conversion = from_options(Conversion, arguments, raw=raw, kind=arguments.source, structures=structures)
    plan = _plan(arguments, conversion)
    for note in plan.notes:
        print(said_as_options(note))
    if plan.unassigned_rows:
        print(some_of([f"BAD ROW: {row}" for row in plan.unassigned_rows], MOST_ROWS, "\n"), file=sys.stderr)
    progress = _convert(arguments, plan, conversion, preprocessed)
    status = progress.say_failed(
        "fvae-convert", "The others are complete; fix the cause and run the same command again"
    )
    failed = f", {len(progress.failed)} failed" if progress.failed else ""
    print(f"{counted(progress.done, 'case')} converted, {progress.besides}{failed}, in {raw}")
    written = finish_dataset(
        plan, conversion, preprocessed, arguments.folds, failed=progress.failed, overwrite=arguments.overwrite
    )
    print(*written, sep="\n")
    return status or int(bool(plan.unassigned_rows))


def _check(arguments: argparse.Namespace) -> int:
    from fvae_nnunet.nnunet.folders import dataset_name
    from fvae_nnunet.nnunet.patient_splits import check_dataset

    print(*check_dataset(dataset_name(dataset_of(arguments))), sep="\n")
    return 0


def _plan(arguments: argparse.Namespace, conversion: Conversion) -> Plan:
    from fvae_nnunet.conversion.plan import plan_ct_rate, plan_rexgroundingct

    tables = {name: getattr(arguments, name) for name in ("metadata", "reports", "labels")}
    if arguments.source == "ct-rate":
        converted = () if arguments.overwrite else conversion.manifest.cases
        return from_options(plan_ct_rate, arguments, tables=tables, converted=converted)
    volumes = arguments.volumes or arguments.root
    return from_options(plan_rexgroundingct, arguments, tables=tables, volumes=volumes)


def _structures(arguments: argparse.Namespace) -> StructureMasks | None:
    from fvae_nnunet.conversion.ct_rate import STRUCTURES_FOLDER, data_folder
    from fvae_nnunet.conversion.structures import StructureMasks

    if arguments.structures is None:
        if arguments.structures_from is not None:
            raise UserError("--structures-from has no effect without --structures; leave it out")
        return None
    folder, program = arguments.structures, arguments.structures_from or "totalsegmentator"
    if folder is PUBLISHED:
        if program != "totalsegmentator":
            raise UserError(
                f"--structures-from {program} needs the folder of its masks (--structures FOLDER): those of CT-RATE "
                "are of totalsegmentator"
            )
        folder = data_folder(getattr(arguments, "volumes", None) or arguments.root) / STRUCTURES_FOLDER
    if not folder.is_dir():
        raise UserError(f"--structures: {folder} is not a folder")
    return StructureMasks(folder, program)


def _convert(arguments: argparse.Namespace, plan: Plan, conversion: Conversion, preprocessed: Path) -> _Progress:
    from fvae_nnunet.conversion.cases import begin_dataset, convert_cases
    from fvae_nnunet.conversion.finish import check_plan
    from fvae_nnunet.jobs.locks import CaseLocks
    from fvae_nnunet.jobs.manifest import MANIFEST_FOLDER

    with CaseLocks([conversion.raw / MANIFEST_FOLDER], alone=True) as locks:
        check_plan(plan, conversion, preprocessed, arguments.folds, overwrite=arguments.overwrite)
        verify_finished(arguments, [conversion.manifest.folder], plan.sources)
        for removed in begin_dataset(conversion, plan.left_out, overwrite=arguments.overwrite):
            print(removed)
        progress = _Progress(len(plan.sources), verbose=arguments.verbose)
        outcomes = convert_cases(
            plan.sources,
            conversion,
            cases=locks.each(plan.sources),
            workers=arguments.processes,
            seconds=progress.seconds,
        )
        progress.follow(outcomes, locks)
    return progress


class _Progress(CaseProgress):
    """Prints the corrections of HU and geometry, and the contents of each case."""

    def add_result(self, case: str, record: dict[str, Any]) -> None:
        said = [f"HU {record['hu'][0]:g} to {record['hu'][1]:g}"]
        said += ["slope and intercept applied"] if record["rescaled"] else []
        said += ["geometry of the metadata"] if record["geometry"] == "metadata" else []
        if "disease_masks" in record:
            said.append(counted(len(record["disease_masks"]), "finding"))
        if record.get("overlap_voxels"):
            said.append(f"{counted(record['overlap_voxels'], 'voxel')} in several findings")
        if "structures" in record:
            said.append(counted(len(record["structures"]), "structure"))
        if record.get("structure_overlap_voxels"):
            said.append(f"{counted(record['structure_overlap_voxels'], 'voxel')} in several structures")
        if record.get("absent_structures"):
            said.append(f"no file of {some_of(record['absent_structures'], 3)}")
        if record.get("left_out"):
            said.append(f"not one of the known structures: {', '.join(record['left_out'])}")
        self.bar.write(f"{case}: {', '.join(said)}", file=sys.stdout)


if __name__ == "__main__":
    sys.exit(main())
