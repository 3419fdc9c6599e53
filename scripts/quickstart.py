"""From a CT dataset to a table of DSC and NSD: train nnU-Net with reconstructed views, step by step.

Without --dataset, a small dataset of CT phantoms is made first. Every step is a command line that is printed and can be
run by hand; its output goes to a log file in WORK/steps. Finished steps are skipped when the script runs again; a step
whose command has changed runs again, and so do all steps after it.

    python scripts/quickstart.py
    python scripts/quickstart.py --dataset /data/Dataset007_Pancreas --vae wan2.1 --network default
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from command_chain import Runner, Step, script
from command_environment import NNUNET_FOLDERS, command_environment, command_variables, cores
from hold_out_cases import held_out

from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.folders import dataset_id
from fvae_nnunet.training.views import VIEW_VARIABLE, default_view_name

PHANTOMS = {"pancreas": "Dataset900_PhantomPancreas", "lung": "Dataset901_PhantomLung"}
N_TRAIN, N_TEST = 15, 3
SHAPE, SPACING_MM = (48, 128, 128), (3, 1.5, 1.5)
"""Spacing (z, y, x). With pixels of 2 mm, organs are hardly larger than a latent cell, and the view blurs them."""
CONFIGURATION = "3d_fullres"
TRAINER = "nnUNetTrainerFVAE_10epochs"
PROGRESS_BAR = r"\[\d\d:\d\d[,<]"


def environment(work: Path, *, view: str, device: str) -> dict[str, str]:
    """Environment of the commands: nnU-Net's folders below the work folder, and settings for a small machine."""
    variables = command_variables(work, device) | {VIEW_VARIABLE: view}
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")
    return command_environment(variables)


def plan_steps(args: argparse.Namespace, *, device: str) -> list[Step]:
    """Steps of a run, in order. Paths in the commands are relative to the work folder."""
    if args.dataset is None:
        name, test_case = PHANTOMS[args.kind], f"phantom_{N_TRAIN:03d}"
        ending, n_test = ".nii.gz", N_TEST
    else:
        name, ending, tested = _described(args.dataset, args.test_cases)
        test_case, n_test = tested[0], len(tested)
    number = str(dataset_id(name))
    raw, preprocessed = Path("nnUNet_raw") / name, Path("nnUNet_preprocessed") / name
    plans = "nnUNetPlansSmall" if args.network == "small" else "nnUNetPlans"
    view = default_view_name(args.vae)
    vae = ["--vae", args.vae, *(["--weights", str(args.weights)] if args.weights else []), "-device", device]
    workers = str(min(cores(), 8))
    results = Path("nnUNet_results") / name / f"{args.trainer}__{plans}__{CONFIGURATION}"
    model = ["-d", number, "-c", CONFIGURATION, "-f", "0", "-tr", args.trainer, "-p", plans]
    view_trained = "FVAE" in args.trainer
    view_tested = "ReconOnly" in args.trainer
    predicted = Path("imagesTs_view") if view_tested else raw / "imagesTs"

    if args.dataset is None:
        first = script(
            "phantoms.py", raw, "--kind", args.kind, "--n-train", N_TRAIN, "--n-test", N_TEST, "--shape", *SHAPE,
            "--spacing", *SPACING_MM,
        )  # fmt: skip
    else:
        count = ["--test-cases", args.test_cases] if args.test_cases is not None else []
        first = script("hold_out_cases.py", args.dataset, raw, *count)
    steps = [Step("1-dataset", first, raw / "dataset.json", (raw,))]
    plan = ("nnUNetv2_plan_and_preprocess", "-d", number, "-c", CONFIGURATION, "--verify_dataset_integrity")
    steps.append(
        Step(
            "2-plan",
            (*plan, "-npfp", workers, "-np", workers),
            preprocessed / f"nnUNetPlans_{CONFIGURATION}",
            (preprocessed,),
        )
    )
    if args.network == "small":
        steps.append(
            Step(
                "3-network",
                script("small_plans.py", preprocessed, "--one-validation-case"),
                preprocessed / f"{plans}.json",
                (preprocessed / "splits_final.json",),
                shows=".",
            )
        )
    if view_trained:
        folder = preprocessed / f"nnUNetPlans_{CONFIGURATION}__fvae_{view}"
        steps.append(
            Step(
                "4-view",
                ("fvae-preprocess", number, "-c", CONFIGURATION, "-p", plans, *vae, "--view", view),
                folder,
                (folder,),
                resumes=True,
                shows="cases done|^time:|does not find|^wrote",
            )
        )
    steps += [
        Step(
            "5-train",
            ("nnUNetv2_train", number, CONFIGURATION, "0", "-tr", args.trainer, "-p", plans, "-device", device),
            results / "fold_0" / "checkpoint_final.pth",
            (results / "fold_0",),
            shows=r"fvae_nnunet \d|Epoch \d+ *$|Pseudo dice|Epoch time|Mean Validation Dice",
        ),
        Step(
            "6-reconstruct",
            (
                "fvae-reconstruct", "-i", str(raw / "imagesTs"), "-o", "imagesTs_view", *vae,
                # the picture needs the first test case only
                *(() if view_tested else ("-num_parts", str(n_test), "-part_id", "0")),
            ),
            Path("imagesTs_view"),
            (),
            resumes=True,
            shows="PSNR",
        ),
        Step(
            "7-predict",
            ("nnUNetv2_predict", "-i", str(predicted), "-o", "predictions", *model, "-device", device,
             "-npp", "1", "-nps", "1", *(["--disable_tta"] if args.network == "small" else [])),
            Path("predictions") / f"{test_case}{ending}",
            (Path("predictions"),),
        ),
        Step(
            "8-evaluate",
            ("fvae-evaluate", str(raw / "labelsTs"), "predictions"),
            Path("predictions") / "summary.json",
            (),
        ),
        Step(
            "9-picture",
            script(
                "case_picture.py", "--raw", raw / "imagesTs" / f"{test_case}_0000{ending}",
                "--view", Path("imagesTs_view") / f"{test_case}_0000{ending}",
                "--reference", raw / "labelsTs" / f"{test_case}{ending}",
                "--prediction", Path("predictions") / f"{test_case}{ending}",
                "--dataset-json", raw / "dataset.json", "--summary", Path("predictions") / "summary.json",
                "-o", "quickstart.png",
            ),
            Path("quickstart.png"),
            (),
        ),
    ]  # fmt: skip
    return steps


def _described(dataset: Path, test_cases: int | None) -> tuple[str, str, list[str]]:
    """Name, file ending and test cases of a real dataset."""
    if not re.fullmatch(r"Dataset\d{3,}_\w+", dataset.name) or not (dataset / "dataset.json").is_file():
        raise UserError(
            f"{dataset} is not a folder DatasetNNN_Name in nnU-Net's raw format (dataset.json, imagesTr, labelsTr)"
        )
    ending = json.loads((dataset / "dataset.json").read_text())["file_ending"]
    own = (dataset / "imagesTs").is_dir() and (dataset / "labelsTs").is_dir()
    labels = dataset / ("labelsTs" if own else "labelsTr")
    cases = sorted(path.name[: -len(ending)] for path in labels.glob(f"*{ending}"))
    tested = cases if own else held_out(cases, test_cases=test_cases)
    if not tested:
        raise UserError(f"{labels} has no file *{ending}")
    return dataset.name, ending, tested


def print_times(runner: Runner, steps: Sequence[Step]) -> None:
    print("\nstep             seconds")
    for step in steps:
        if step.name in runner.seconds:
            note = "  (earlier)" if step.name in runner.skipped else ""
            print(f"{step.name:16} {runner.seconds[step.name]:7.0f}{note}")
    print(f"{'total':16} {sum(runner.seconds.values()):7.0f}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="quickstart.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--kind", choices=list(PHANTOMS), default="pancreas", help="kind of phantoms; default pancreas")
    data.add_argument(
        "--dataset", type=Path, metavar="FOLDER", help="a folder DatasetNNN_Name in nnU-Net's raw format, only read"
    )
    parser.add_argument(
        "--test-cases", type=int, metavar="N",
        help="number of training cases to hold out if the dataset has no imagesTs and labelsTs; default: every 5th",
    )  # fmt: skip
    parser.add_argument("--vae", default="tiny", help="name of the VAE; fvae-setup lists them; default tiny")
    parser.add_argument("--weights", type=Path, metavar="PATH", help="weights of the VAE")
    parser.add_argument("--trainer", default=TRAINER, help=f"trainer; default {TRAINER}")
    parser.add_argument(
        "--network", choices=("small", "default"), default="small",
        help="small: shrunk for two CPU cores; default: as nnU-Net plans it (needs a GPU)",
    )  # fmt: skip
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), help="default: cuda if there is a GPU, else cpu")
    parser.add_argument(
        "--work", type=Path, default=Path("quickstart"), metavar="FOLDER", help="work folder; default ./quickstart"
    )
    parser.add_argument("--fresh", action="store_true", help="delete the results of an earlier run in the work folder")
    args = parser.parse_args(argv)
    if args.test_cases is not None and args.dataset is None:
        parser.error("--test-cases needs --dataset")
    return args


def run(args: argparse.Namespace) -> None:
    import torch

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.dataset = args.dataset and args.dataset.resolve()
    args.weights = args.weights and args.weights.resolve()
    work = args.work.resolve()
    if work.is_dir() and any(work.iterdir()) and not (work / "steps").is_dir():
        raise UserError(f"{work} holds other files than a quickstart; give an empty or a new folder with --work")
    steps = plan_steps(args, device=device)
    if args.fresh and work.is_dir():
        shutil.rmtree(work)
    for name in (*NNUNET_FOLDERS, "steps"):
        (work / name).mkdir(parents=True, exist_ok=True)
    print(f"cd {shlex.quote(str(work))}")
    runner = Runner(work, environment(work, view=default_view_name(args.vae), device=device))
    try:
        for step in steps:
            runner.run(step)
    finally:
        print_times(runner, steps)
    evaluation = next(step for step in steps if step.name == "8-evaluate")
    table = [line for line in runner.log_of(evaluation).read_text().splitlines() if not re.search(PROGRESS_BAR, line)]
    print("\n" + "\n".join(table).strip() + f"\n\npicture: {work / steps[-1].result}")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        run(args)
    except UserError as error:
        print(f"\nquickstart.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nquickstart.py: interrupted; run it again to resume", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
