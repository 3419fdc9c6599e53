"""Experiment on phantoms: do synthetic lesions help when there are few real cases?

    python scripts/experiment_synthetic.py --kind lung                  # one CPU core: about an hour
    python scripts/experiment_synthetic.py --kind pancreas --real 9 --epochs 20

The diffusion model is trained on the same few real cases, and synthetic lesions of their sizes are inserted into them,
so no step uses a test case. Only cases that quality control accepts are used. All trainings start from one network that
was trained on the real cases, because from scratch it depends on chance when a network finds its first lesion (after 5
epochs, two of four networks had not). Each arm is trained several times, because nnU-Net is not seeded; the difference
between two trainings of one arm is the yardstick for all other differences. The last steps are the paired comparison of
fvae-evaluate with the first training on real cases only, and the paired comparison of the arms by the mean of all their
trainings in every case. Complete steps are skipped when the script runs again.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from command_chain import Runner, Step, script
from command_environment import NNUNET_FOLDERS, command_environment, command_variables
from phantoms import LESION_PLACES

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.numbers_as_text import counted, interval, number, p_value

KINDS = {"lung": (910, ("--organ", "lungs")), "pancreas": (911, ())}
"""Kind of phantom -> number of its dataset, and source of the organ for ``fvae-train-ldm``."""

CONFIGURATION, FOLD = "3d_fullres", "0"
BASE_PLANS = "nnUNetPlansSmall"
EPOCHS = (1, 5, 10, 20, 50, 100)
MEASURES = ("Dice", "NSD_2mm", "detection_rate", "false_positives_per_case")
SHAPE, SPACING_MM = (24, 160, 160), (4, 1.2, 1.2)
ARMS = {"real": "nnUNetTrainer", "synthetic": "nnUNetTrainerFVAESynthRaw"}
LDM = ("--vae", "tiny", "--size", "tiny")


def planned(arguments: argparse.Namespace) -> list[Step]:
    """All steps, in order."""
    number, organ = KINDS[arguments.kind]
    name, id_of = f"Dataset{number}_Few{arguments.kind.capitalize()}", str(number)
    raw, preprocessed = Path("nnUNet_raw") / name, Path("nnUNet_preprocessed") / name
    model, synthetic = Path("ldm"), Path("synthetic")
    data_folder = preprocessed / f"nnUNetPlans_{CONFIGURATION}"
    of_fold = ("--fold", FOLD)
    device = ("-device", arguments.device)
    phantoms = script(
        "phantoms.py", raw, "--kind", arguments.kind, "--n-train", arguments.real, "--n-test", arguments.test,
        "--seed", arguments.seed, "--shape", *SHAPE, "--spacing", *SPACING_MM,
    )  # fmt: skip
    steps = [
        Step("1-dataset", phantoms, raw / "dataset.json", (raw,)),
        Step(
            "2-plan",
            ("nnUNetv2_plan_and_preprocess", "-d", id_of, "-c", CONFIGURATION, "-npfp", "2", "-np", "2"),
            data_folder,
            (preprocessed,),
        ),
        Step(
            "2-network",
            script("small_plans.py", preprocessed, "--name", BASE_PLANS, "--one-validation-case"),
            preprocessed / f"{BASE_PLANS}.json",
            (preprocessed / "splits_final.json",),
        ),
        Step(
            "3-diffusion",
            (
                "fvae-train-ldm", id_of, *LDM, *organ, *of_fold, "--samples-every", "0", "-o", str(model),
                "--stage1-steps", str(arguments.ldm_steps), "--stage2-steps", str(max(1, arguments.ldm_steps // 10)),
            ),
            model / "manifest.json",
            (model,),
            resumes=True,
            options=device,
        ),
        Step(
            "4-synthesize",
            (
                "fvae-synthesize", id_of, "--ldm", str(model), *of_fold, "-n", str(arguments.n), "-o", str(synthetic),
                "--sizes", "real", "--seed", str(arguments.seed), *LESION_PLACES[arguments.kind],
            ),
            synthetic / "dataset.json",
            (synthetic,),
            resumes=True,
            shows="cases accepted",
            options=device,
            statuses=(0, 1),  # 1: no place was found for some lesions
        ),
        Step(
            "5-preprocess",
            ("fvae-preprocess", id_of, "--synthetic", str(synthetic)),
            preprocessed / f"nnUNetPlans_{CONFIGURATION}__fvae_synthetic",
            (),
            shows="cases done",
        ),
    ]  # fmt: skip
    base_trainer = f"nnUNetTrainer_{arguments.base_epochs}epochs"
    base = Path("nnUNet_results") / name / f"{base_trainer}__{BASE_PLANS}__{CONFIGURATION}" / f"fold_{FOLD}"
    steps.append(
        Step(
            "6-base",
            ("nnUNetv2_train", id_of, CONFIGURATION, FOLD, "-tr", base_trainer, "-p", BASE_PLANS),
            base / "checkpoint_final.pth",
            (base,),
            options=device,
            after=("2-network",),
        )
    )
    for training in range(1, arguments.trainings + 1):
        # the name of the plans distinguishes trainings of the same trainer
        plans = f"{BASE_PLANS}{training}"
        steps.append(
            Step(
                f"6-network-{training}",
                script("small_plans.py", preprocessed, "--name", plans),
                preprocessed / f"{plans}.json",
                (),
                after=("2-plan",),
            )
        )
        for arm, trainer in ARMS.items():
            named = f"{trainer}_{arguments.epochs}epochs"
            results = Path("nnUNet_results") / name / f"{named}__{plans}__{CONFIGURATION}" / f"fold_{FOLD}"
            steps.append(
                Step(
                    f"7-train-{arm}-{training}",
                    (
                        "nnUNetv2_train", id_of, CONFIGURATION, FOLD, "-tr", named, "-p", plans,
                        "-pretrained_weights", str(base / "checkpoint_final.pth"),
                    ),
                    results / "checkpoint_final.pth",
                    (results,),
                    options=device,
                    after=(f"6-network-{training}", "6-base", "5-preprocess"),
                )
            )  # fmt: skip
            predictions = Path(f"predictions_{arm}_{training}")
            model_of = ("-d", id_of, "-c", CONFIGURATION, "-f", FOLD, "-tr", named, "-p", plans)
            steps.append(
                Step(
                    f"8-predict-{arm}-{training}",
                    (
                        "nnUNetv2_predict", "-i", str(raw / "imagesTs"), "-o", str(predictions), *model_of,
                        "--disable_tta", "-npp", "1", "-nps", "1",
                    ),
                    predictions / "predict_from_raw_data_args.json",
                    (predictions,),
                    options=device,
                )
            )  # fmt: skip
    names = [f"{arm}_{training}" for arm in ARMS for training in range(1, arguments.trainings + 1)]
    steps.append(
        Step(
            "9-evaluate",
            (
                "fvae-evaluate", str(raw / "labelsTs"), *(f"predictions_{name}" for name in names),
                "--names", *names, "--tolerance", "2", "-o", "comparison.json",
            ),
            Path("comparison.json"),
            (),
            shows=".",
            after=tuple(f"8-predict-{arm}-{n}" for arm in ARMS for n in range(1, arguments.trainings + 1)),
        )
    )  # fmt: skip
    return steps


def run(arguments: argparse.Namespace) -> int:
    import torch

    arguments.device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    work = (arguments.work or Path(f"experiment_synthetic_{arguments.kind}")).resolve()
    if arguments.fresh:
        shutil.rmtree(work, ignore_errors=True)
    for folder in NNUNET_FOLDERS:
        (work / folder).mkdir(parents=True, exist_ok=True)
    print(f"cd {shlex.quote(str(work))}")
    runner = Runner(work, command_environment(command_variables(work, arguments.device)))
    for step in planned(arguments):
        runner.run(step)
    print("\n".join(["", "synthetic - real, mean of all trainings of an arm in each case", *compared(work)]))
    return 0


def compared(work: Path) -> list[str]:
    """A line for each of `MEASURES` of the tumour from ``comparison_cases.csv``: means of the arms and paired
    difference."""
    from fvae_nnunet.evaluation.statistics import bootstrap_interval, signed_rank_test

    of_case: dict[tuple[str, str, str], list[float]] = {}
    with (work / "comparison_cases.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["label_name"] != "tumour":
                continue
            arm = row["model"].rpartition("_")[0]
            of_case.setdefault((row["measure"], arm, row["case"]), []).append(float(row["value"] or "nan"))
    cases = sorted({case for _, _, case in of_case})
    lines = []
    for measure in MEASURES:
        real, synthetic = (np.array([np.mean(of_case[measure, arm, case]) for case in cases]) for arm in ARMS)
        differences = synthetic - real
        found, test = bootstrap_interval(differences, seed=0), signed_rank_test(differences)
        means = f"{number(real.mean())} real, {number(synthetic.mean())} synthetic"
        lines.append(
            f"{measure}: {means}, {number(differences.mean(), signed=True)} "
            f"({interval(found.low, found.high, signed=True)}), p {p_value(test.p)}, {counted(len(cases), 'case')}"
        )
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="experiment_synthetic.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=list(KINDS), default="lung", help="kind of phantom; default lung")
    parser.add_argument(
        "--real", type=int, default=5, metavar="N", help="real cases, one of which validates; default 5"
    )
    parser.add_argument("--test", type=int, default=16, metavar="N", help="test cases; default 16")
    parser.add_argument("-n", type=int, default=60, metavar="N", help="synthetic cases to try; default 60")
    parser.add_argument("--trainings", type=int, default=3, metavar="N", help="trainings of each arm; default 3")
    parser.add_argument(
        "--base-epochs", type=int, default=10, choices=EPOCHS, help="epochs of the first network; default 10"
    )
    parser.add_argument("--epochs", type=int, default=5, choices=EPOCHS, help="epochs of each training; default 5")
    parser.add_argument("--ldm-steps", type=int, default=1200, metavar="N", help="steps of the diffusion model (1200)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of phantoms and synthesis; default 0")
    parser.add_argument("-device", choices=("cuda", "cpu"), help="default: cuda if there is a GPU, else cpu")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="work folder; default: experiment_synthetic_KIND")
    parser.add_argument("--fresh", action="store_true", help="delete the results of an earlier run in the work folder")
    return run_command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
