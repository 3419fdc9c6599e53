"""Does training on views help? Cross-validation on real CT: raw images against views, and against a plain denoiser.

The data is a dataset in nnU-Net's raw format with one tumour label, such as the soft-tissue sarcomas of
docs/evidence.md. All arms share folds, network, schedule and number of iterations; a run is one arm, fold and seed.
Finished runs are kept in the results file (numbers only) and skipped when the script runs again, so that the experiment
can be spread over many calls.

    python scripts/experiment_sarcoma.py /data/Dataset511_Sarcoma --taef2 FOLDER
    python scripts/experiment_sarcoma.py /data/Dataset511_Sarcoma --taef2 FOLDER --seeds 1 --arms raw taef2-mix
    python scripts/experiment_table.py docs/evidence/sarcoma_cpu.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from small_plans import small_plans
from steps import command_environment

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.checked_json import read_json
from fvae_nnunet.files.recorded import sha256_of_file
from fvae_nnunet.jobs.manifest import Manifest, differences, versions, write_json
from fvae_nnunet.nnunet.folders import dataset_id
from fvae_nnunet.training.views import VIEW_VARIABLE, view_folder

FOLDS = 3
TOLERANCES_MM = (1.0, 2.0, 3.0)
PLANS = "nnUNetPlans"
DECIMALS = 6


@dataclass(frozen=True)
class Arm:
    """What the training samples of an arm are: which trainer, and which view of the data."""

    name: str
    trainer: str
    view: str | None = None


@dataclass(frozen=True)
class Budget:
    """The network and schedule that all arms share.

    Attributes:
        name: names the results.
        configuration: of nnU-Net's plans.
        features_per_stage: of a network shrunk by `small_plans`; empty for nnU-Net's own network and patch.
        patch_voxels, batch_size: of the shrunk plans.
        epochs, iterations_per_epoch: schedule; nnU-Net's learning rate falls to 0 over the epochs.
        mirrored: whether validation cases are predicted mirrored, too, as nnU-Net does.
    """

    name: str
    configuration: str
    features_per_stage: tuple[int, ...]
    patch_voxels: int
    batch_size: int
    epochs: int
    iterations_per_epoch: int
    mirrored: bool

    @property
    def plans_name(self) -> str:
        return f"{PLANS}Small" if self.features_per_stage else PLANS


BUDGETS = {
    "cpu": Budget("cpu", "2d", (12, 24, 48, 96, 96), 192 * 192, 2, 20, 50, mirrored=False),
    "gpu": Budget("gpu", "3d_fullres", (), 0, 0, 200, 250, mirrored=True),
}


def arms(control: str) -> dict[str, Arm]:
    """The arms by name; in the last, a control matched in noise to ``tiny`` takes the place of the VAE."""
    mix = "nnUNetTrainerFVAE"
    listed = (
        Arm("raw", "nnUNetTrainer"),
        Arm("taef2-recon", "nnUNetTrainerFVAEReconOnly", "taef2"),
        Arm("taef2-mix", mix, "taef2"),
        Arm("taef2-blend", "nnUNetTrainerFVAEBlend", "taef2"),
        Arm("tiny-mix", mix, "tiny"),
        Arm(f"{control}-mix", mix, f"control-{control}"),
    )
    return {arm.name: arm for arm in listed}


def folds_of(cases: Sequence[str]) -> list[list[str]]:
    """The validation cases of each fold: every third in sorted order."""
    ordered = sorted(cases)
    return [ordered[fold::FOLDS] for fold in range(FOLDS)]


def view_command(arm: Arm, args: argparse.Namespace, budget: Budget) -> list[str]:
    """The call of ``fvae-preprocess`` that makes the view of an arm."""
    assert arm.view is not None
    options = {
        "tiny": ["--vae", "tiny"],
        "taef2": ["--vae", "taef2", "--weights", str(args.taef2)],
        f"control-{args.control}": ["--vae", f"control:{args.control}", "--match", "tiny"],
    }[arm.view]
    dataset = str(dataset_id(args.dataset.name))
    return ["fvae-preprocess", dataset, "-c", budget.configuration, *options, "--view", arm.view, "-np", "0"]


def prepare(args: argparse.Namespace, budget: Budget, chosen: Sequence[Arm], environment: dict[str, str]) -> list[str]:
    """Link, plan and preprocess the dataset, make the views and write plans and folds; returns the cases."""
    name, configuration = args.dataset.name, budget.configuration
    raw = args.work / "nnUNet_raw" / name
    preprocessed = args.work / "nnUNet_preprocessed" / name
    for folder in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (args.work / folder).mkdir(parents=True, exist_ok=True)
    if not raw.exists():
        raw.symlink_to(args.dataset.resolve())
    ending = read_json(raw / "dataset.json")["file_ending"]
    cases = sorted(path.name.removesuffix(ending) for path in (raw / "labelsTr").glob(f"*{ending}"))
    data_folder = preprocessed / f"{PLANS}_{configuration}"
    dataset, workers = str(dataset_id(name)), str(os.cpu_count() or 1)
    if not all((data_folder / f"{case}.pkl").is_file() for case in cases):
        plan = ["nnUNetv2_plan_and_preprocess", "-d", dataset, "-c", configuration, "-npfp", workers, "-np", workers]
        _call(plan, environment)
    plans = read_json(preprocessed / f"{PLANS}.json")
    if budget.features_per_stage:
        small = small_plans(
            plans,
            configuration=configuration,
            name=budget.plans_name,
            patch_voxels=budget.patch_voxels,
            features_per_stage=budget.features_per_stage,
            batch_size=budget.batch_size,
        )
        write_json(preprocessed / f"{budget.plans_name}.json", small)
    splits = [{"train": [case for case in cases if case not in fold], "val": fold} for fold in folds_of(cases)]
    write_json(preprocessed / "splits_final.json", splits)
    needed = dict.fromkeys(arm.view for arm in chosen if arm.view)
    if any(view.startswith("control-") for view in needed):
        needed = {"tiny": None, **needed}  # what the control is matched to
    by_view = {arm.view: arm for arm in arms(args.control).values() if arm.view}
    for view in needed:
        _call(view_command(by_view[view], args, budget), environment)
    return cases


def _call(command: list[str], environment: dict[str, str]) -> None:
    print(shlex.join(command), flush=True)
    program = shutil.which(command[0], path=environment["PATH"]) or command[0]
    if subprocess.run([program, *command[1:]], env=environment, check=False).returncode:
        raise UserError(f"{command[0]} failed; its message stands above")


def view_record(data_folder: Path, view: str) -> dict[str, Any]:
    """Settings of a view, and the means of the figures that were recorded of its cases."""
    manifest = Manifest(view_folder(data_folder, view))
    content = manifest.read()
    if content is None:
        raise UserError(f"{manifest.folder} holds no view")
    records = [read_json(path) for path in sorted((manifest.folder / "cases").glob("*.json"))]
    means = {}
    for name in sorted(records[0].keys() - {"inputs", "outputs"}):
        known = [record[name] for record in records if record[name] is not None]  # no noise without soft tissue
        means[name] = round(sum(known) / len(known), 3) if known else None
    settings = {name: value for name, value in content["settings"].items() if name != "preprocessing"}
    return {"settings": settings, "mean_of_cases": means, "cases": len(records)}


def train_and_score(args: argparse.Namespace, budget: Budget, arm: Arm, fold: int, seed: int) -> dict[str, Any]:
    """One run in this process: train, predict the fold's validation cases with nnU-Net's own validation, score them."""
    import numpy as np
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from fvae_nnunet import trainers
    from fvae_nnunet.evaluation.segmentation.scoring import score_folders

    preprocessed = args.work / "nnUNet_preprocessed" / args.dataset.name
    dataset_json = read_json(preprocessed / "dataset.json")
    plans = read_json(preprocessed / f"{budget.plans_name}.json") | {"continue_training": False}
    base = getattr(trainers, arm.trainer, None) or nnUNetTrainer
    # a name of its own keeps nnU-Net's result folders apart
    trainer_class = type(f"{arm.trainer}_{arm.name.replace('-', '_')}_seed{seed}", (base,), {})
    for draw in (random.seed, np.random.seed, torch.manual_seed):
        draw(1000 * seed + fold)
    trainer = trainer_class(plans, budget.configuration, fold, dataset_json, torch.device(args.device))
    trainer.num_epochs = budget.epochs
    trainer.num_iterations_per_epoch = budget.iterations_per_epoch
    trainer.num_val_iterations_per_epoch = 1
    trainer.disable_checkpointing = True
    start = time.monotonic()
    trainer.run_training()
    trained = time.monotonic() - start
    if not budget.mirrored:
        trainer.inference_allowed_mirroring_axes = None
    trainer.perform_actual_validation()
    predictions = Path(trainer.output_folder) / "validation"
    references = args.work / "runs" / f"references_{fold}"
    scores = score_folders(
        references, [predictions], dataset_json=preprocessed / "dataset.json", tolerances_mm=TOLERANCES_MM
    )
    label = max(scores.scheme.names, key=str)
    wanted = ("Dice", *(f"NSD_{tolerance:g}mm" for tolerance in TOLERANCES_MM), "HD95_mm", "n_pred", "n_ref")
    values = {
        case.case: {name: round(case.metrics[label][name], DECIMALS) for name in wanted}
        for case in scores.folders[0].cases
    }
    return {
        "arm": arm.name,
        "fold": fold,
        "seed": seed,
        "trained_seconds": round(trained),
        "threads": torch.get_num_threads(),
        "cases": values,
    }


@contextmanager
def _references(args: argparse.Namespace, cases: Sequence[str]) -> Iterator[None]:
    """A folder of links to the labels of each fold, for the scoring."""
    labels = args.work / "nnUNet_raw" / args.dataset.name / "labelsTr"
    ending = read_json(labels.parent / "dataset.json")["file_ending"]
    folders = [args.work / "runs" / f"references_{fold}" for fold in range(FOLDS)]
    for folder, fold in zip(folders, folds_of(cases), strict=True):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for case in fold:
            (folder / f"{case}{ending}").symlink_to((labels / f"{case}{ending}").resolve())
    yield
    for folder in folders:
        shutil.rmtree(folder)


def open_results(path: Path, description: dict[str, Any]) -> dict[str, Any]:
    """The results so far; UserError where they are of other data, folds or budget."""
    if not path.exists():
        return {**description, "views": {}, "runs": []}
    results = read_json(path)
    changed = differences({key: results.get(key) for key in description}, json.loads(json.dumps(description)))
    if changed:
        raise UserError(
            f"{path} holds another experiment:\n  " + "\n  ".join(changed) + "\nName another file with --results"
        )
    return results


def parse(argv: Sequence[str] | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="experiment_sarcoma.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path, help="folder DatasetNNN_Name in nnU-Net's raw format, only read")
    parser.add_argument("--taef2", type=Path, metavar="FOLDER", help="weights of taef2, for its arms")
    parser.add_argument(
        "--control",
        default="curvature-flow",
        metavar="NAME",
        help="plain denoiser of the last arm; default curvature-flow",
    )
    parser.add_argument("--arms", nargs="+", metavar="ARM", help=f"default: all of {', '.join(arms('curvature-flow'))}")
    parser.add_argument("--folds", nargs="+", type=int, default=list(range(FOLDS)), metavar="F", help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="S", help="default 0")
    parser.add_argument("--budget", choices=list(BUDGETS), default="cpu", help="cpu (default): a small 2d network")
    parser.add_argument("-device", choices=("cuda", "cpu"), default="cpu", help="default cpu")
    parser.add_argument("--parallel", type=int, default=2, metavar="N", help="runs at the same time; default 2")
    parser.add_argument("--minutes", type=float, metavar="M", help="start no run later than this")
    parser.add_argument("--work", type=Path, default=Path("experiment"), metavar="FOLDER", help="default ./experiment")
    parser.add_argument("--results", type=Path, metavar="FILE", help="default docs/evidence/sarcoma_BUDGET.json")
    parser.add_argument("--single", nargs=3, metavar=("ARM", "FOLD", "SEED"), help=argparse.SUPPRESS)
    return parser


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    budget, known = BUDGETS[args.budget], arms(args.control)
    args.work, args.dataset = args.work.resolve(), args.dataset.absolute()
    if args.single:
        arm, fold, seed = known[args.single[0]], int(args.single[1]), int(args.single[2])
        write_json(_run_file(args, arm.name, fold, seed), train_and_score(args, budget, arm, fold, seed))
        return 0
    unknown = sorted(set(args.arms or []) - known.keys())
    if unknown:
        raise UserError(f"there is no arm {', '.join(unknown)}; there are {', '.join(known)}")
    if not set(args.folds) <= set(range(FOLDS)):
        raise UserError(f"--folds: there are folds 0 to {FOLDS - 1}, got {args.folds}")
    chosen = [known[name] for name in args.arms or known]
    if args.taef2 is None and any(arm.view == "taef2" for arm in chosen):
        raise UserError("the arms of taef2 need its weights: --taef2 FOLDER; or leave these arms out with --arms")
    if not (args.dataset / "dataset.json").is_file():
        raise UserError(f"{args.dataset} is no dataset in nnU-Net's raw format: it holds no dataset.json")

    environment = _environment(args)
    cases = prepare(args, budget, chosen, environment)
    data_folder = args.work / "nnUNet_preprocessed" / args.dataset.name / f"{PLANS}_{budget.configuration}"
    labels = args.dataset / "labelsTr"
    description = {
        "schema": 1,
        "kind": "experiment",
        "dataset": args.dataset.name,
        "labels_sha256": {path.name: sha256_of_file(path) for path in sorted(labels.iterdir())},
        "folds": folds_of(cases),
        "budget": asdict(budget),
    }
    path = args.results or Path("docs/evidence") / f"sarcoma_{budget.name}.json"
    results = open_results(path, description)
    for arm in chosen:
        if arm.view:
            results["views"][arm.view] = view_record(data_folder, arm.view)
    done = {(entry["arm"], entry["fold"], entry["seed"]) for entry in results["runs"]}
    wanted = [(arm.name, fold, seed) for seed in args.seeds for fold in args.folds for arm in chosen]
    pending = [key for key in wanted if key not in done]
    start, failed = time.monotonic(), []

    def one(key: tuple[str, int, int]) -> bool:
        """Whether the run was started; its result is in its file."""
        if args.minutes is not None and time.monotonic() - start > 60 * args.minutes:
            return False
        arm, fold, seed = key
        again = [sys.executable, __file__, *args.own_options, "--single", arm, str(fold), str(seed)]
        view = {VIEW_VARIABLE: known[arm].view} if known[arm].view else {}
        log = _run_file(args, *key).with_suffix(".log")
        with log.open("w") as output:
            subprocess.run(again, env=environment | view, stdout=output, stderr=subprocess.STDOUT, check=False)
        return True

    with _references(args, cases), ThreadPoolExecutor(args.parallel) as pool:
        for key, started in tqdm(zip(pending, pool.map(one, pending), strict=True), total=len(pending), unit="run"):
            file = _run_file(args, *key)
            if file.is_file():
                made_with = versions() | {"machine": platform.machine(), "cores": os.cpu_count(), "device": args.device}
                results["runs"].append(read_json(file) | {"made_with": made_with})
                results["runs"].sort(key=lambda entry: (entry["seed"], entry["arm"], entry["fold"]))
                write_json(path, results)
                file.unlink()
            elif started:
                failed.append(f"{' '.join(map(str, key))} (see {file.with_suffix('.log')})")
    if failed:
        raise UserError(f"{len(failed)} runs failed: {', '.join(failed)}")
    kept = {(entry["arm"], entry["fold"], entry["seed"]) for entry in results["runs"]}
    left = len([key for key in wanted if key not in kept])
    print(f"{len(wanted) - left} of {len(wanted)} runs are in {path}" + ("; run again for the rest" if left else ""))
    return 0


def _run_file(args: argparse.Namespace, arm: str, fold: int, seed: int) -> Path:
    return args.work / "runs" / f"{args.budget}_{arm}_fold{fold}_seed{seed}.json"


def _environment(args: argparse.Namespace) -> dict[str, str]:
    """For the commands: nnU-Net's folders; on a CPU every run has its share of the cores and loads its own data."""
    folders = {name: str(args.work / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    threads = str(max(1, (os.cpu_count() or 1) // args.parallel))
    cpu = {"nnUNet_compile": "f", "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": threads}
    return command_environment(folders | (cpu if args.device == "cpu" else {}))


def main(argv: Sequence[str] | None = None) -> int:
    own_options = list(sys.argv[1:] if argv is None else argv)
    parser = parse(argv)
    parser.set_defaults(own_options=own_options)
    return run_command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
