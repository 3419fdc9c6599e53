"""fvae-train-classifier: train a 3D classifier of findings on real, or on real and synthetic cases.

Train a 3D classifier of the findings in a dataset's reports.json, and predict the validation cases of the fold and the
test cases. The same command resumes where it stopped; after training, adding --test only predicts. Compare models with
fvae-evaluate-classifier. See docs/classification.md.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.cli.common_options import add_common, from_options
from fvae_nnunet.cli.outputs import check_output_folder
from fvae_nnunet.cli.parsers import CommandParser, add_dataset, dataset_of
from fvae_nnunet.cli.verify import verify_finished
from fvae_nnunet.ct.hu_windows import PAPER_HU_WINDOW
from fvae_nnunet.errors import UserError, some_of
from fvae_nnunet.findings.networks import NETWORKS
from fvae_nnunet.numbers_as_text import counted, interval, number

if TYPE_CHECKING:
    from fvae_nnunet.findings.cases import Case, CaseSplit
    from fvae_nnunet.findings.synthetic_cases import SyntheticCases
    from fvae_nnunet.findings.training_settings import TrainingSettings
    from fvae_nnunet.findings.volumes import VolumeCache
    from fvae_nnunet.nnunet.case_reports import CaseReports


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(__doc__)
    add_dataset(parser)
    cases = parser.add_argument_group("cases")
    # fmt: off
    add_common(cases, "fold",
        help="train on the training cases of this fold and predict its validation cases; default: train on all")
    cases.add_argument("--test", action="store_true", help="also predict the test cases (imagesTs)")
    cases.add_argument("--synthetic", nargs="+", type=Path, default=[], metavar="FOLDER",
        help="also train on the cases of these folders of fvae-synthesize; those derived from a patient of validation "
        "or test are left out")
    cases.add_argument("--allow-seen", action="store_true",
        help="keep synthetic cases whose diffusion model was or may have been trained on patients of validation or "
        "test; scores may then be too high")
    add_common(cases, "findings", help="findings to learn; default: all in reports.json")
    volumes = parser.add_argument_group("volumes")
    volumes.add_argument("--shape", nargs=3, type=int, default=(128, 192, 192), metavar=("Z", "Y", "X"),
        help="size in voxels of the central crop; default 128 192 192")
    add_common(volumes, "spacing_mm", default=(3.0, 2.0, 2.0), help="spacing of these voxels in mm; default 3 2 2")
    add_common(volumes, "hu_window", default=PAPER_HU_WINDOW)
    training = parser.add_argument_group("training")
    training.add_argument("--network", choices=NETWORKS, default="densenet121",
        help="network of MONAI; default densenet121; tiny: for trying out the command")
    training.add_argument("--steps", type=int, default=20_000, metavar="N",
        help="optimizer steps, independent of the number of cases; default 20000")
    add_common(training, "batch", default=8, help="cases per step; default 8")
    add_common(training, "learning_rate", default=3e-4, help="learning rate; default 3e-4")
    training.add_argument("--positive-weight", choices=("none", "balanced"), default="none",
        help="balanced: give the positive cases of each finding the same total weight as the negative ones, within a "
        "factor of 20; default none")
    add_common(training, "precision", choices=("float32", "bfloat16"),
        help="precision of the network; default: bfloat16 if the GPU supports it, else float32")
    add_common(training, "seed", "device")
    output = parser.add_argument_group("output")
    add_common(output, "output", metavar="FOLDER",
        help="folder of the model; default: fvae_classifier__<network>[__synthetic][__fold<F>] in the dataset's folder "
        "in nnUNet_results")
    # fmt: on
    add_common(output, "save_every", default=500, help="steps between checkpoints; default 500")
    add_common(output, "processes", "verify")
    add_common(output, "overwrite", help="train from scratch, also with different settings")
    return run_command(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    from fvae_nnunet.findings.cases import split_cases
    from fvae_nnunet.findings.model_folder import begin_model, check_is_ours, remove_model
    from fvae_nnunet.findings.training import forget_damaged_network
    from fvae_nnunet.jobs.devices import chosen_device
    from fvae_nnunet.jobs.locks import CaseLocks
    from fvae_nnunet.nnunet.case_reports import find_case_reports, read_case_reports
    from fvae_nnunet.nnunet.folders import dataset_name, nnunet_folder

    check_output_folder(arguments.output)
    if arguments.save_every < 1:
        raise UserError(f"--save-every must be at least 1, got {arguments.save_every}")
    if arguments.allow_seen and not arguments.synthetic:
        raise UserError("--allow-seen has no effect without --synthetic; leave it out")
    dataset = dataset_name(dataset_of(arguments))
    reports = read_case_reports(find_case_reports(nnunet_folder("nnUNet_raw") / dataset))
    device = chosen_device(arguments.device)
    settings = _settings(arguments, reports, device)
    split = split_cases(dataset, reports, fold=arguments.fold)
    if arguments.test and not split.test:
        raise UserError(f"--test: {dataset} has no test case with findings")
    synthetic = _synthetic(arguments, dataset, reports, split, settings)
    training = [*split.training, *(synthetic.used if synthetic else ())]
    _say(split, synthetic, training, settings)
    output = _output_folder(arguments, dataset)
    check_is_ours(output)
    with CaseLocks([output]) as locks:
        if not locks.take("training"):
            raise UserError(f"another process is training in {output}; wait for it, or use another -o")
        for damaged in forget_damaged_network(output) if arguments.verify else ():
            print(f"DAMAGED, will be trained again: {damaged}", file=sys.stderr)
        held_out = {"validation": split.validation, "test": split.test if arguments.test else ()}
        cache = _prepare(arguments, dataset, settings, [*training, *held_out["validation"], *held_out["test"]])
        if arguments.overwrite:
            remove_model(output)
        begin_model(output, settings, dataset, arguments.fold, training, split, synthetic, cache)
        _train_and_predict(arguments, output, settings, training, held_out, cache, device)
        if split.validation:
            _say_validation(output, reports)
    return 0


def _settings(arguments: argparse.Namespace, reports: CaseReports, device: str) -> TrainingSettings:
    from fvae_nnunet.device.numerics import fastest_precision
    from fvae_nnunet.findings.training_settings import TrainingSettings
    from fvae_nnunet.findings.volumes import Grid

    findings = tuple(arguments.findings or reports.findings)
    unknown = [name for name in findings if name not in reports.findings]
    if unknown or not findings or len(set(findings)) < len(findings):
        what = f"no finding {unknown[0]!r}" if unknown else "no findings" if not findings else "a finding twice"
        raise UserError(f"{what}: reports.json has {', '.join(reports.findings) or 'none'}; see docs/conversion.md")
    return from_options(
        TrainingSettings,
        arguments,
        grid=Grid(tuple(arguments.shape), tuple(arguments.spacing_mm)),
        findings=findings,
        precision=arguments.precision or fastest_precision(device),
    )


def _synthetic(
    arguments: argparse.Namespace, dataset: str, reports: CaseReports, split: CaseSplit, settings: TrainingSettings
) -> SyntheticCases | None:
    if not arguments.synthetic:
        return None
    from fvae_nnunet.findings.synthetic_cases import gather_synthetic

    return gather_synthetic(
        arguments.synthetic,
        dataset=dataset,
        reports=reports,
        held_out_patients=split.held_out_patients,
        findings=settings.findings,
        allow_seen=arguments.allow_seen,
    )


def _output_folder(arguments: argparse.Namespace, dataset: str) -> Path:
    from fvae_nnunet.nnunet.folders import nnunet_folder

    if arguments.output is not None:
        output: Path = arguments.output.expanduser().resolve()
        return output
    synthetic = "__synthetic" if arguments.synthetic else ""
    fold = "" if arguments.fold is None else f"__fold{arguments.fold}"
    return nnunet_folder("nnUNet_results") / dataset / f"fvae_classifier__{arguments.network}{synthetic}{fold}"


def _say(
    split: CaseSplit, synthetic: SyntheticCases | None, training: Sequence[Case], settings: TrainingSettings
) -> None:
    from fvae_nnunet.findings.cases import label_array

    made = len(synthetic.used) if synthetic else 0
    print(
        f"{len(split.training)} real and {counted(made, 'synthetic training case')}, "
        f"{counted(len(split.validation), 'validation case')}, {counted(len(split.test), 'test case')}; "
        f"{counted(len(split.without_findings), 'case')} without findings not used"
    )
    if split.in_no_part:
        print(
            f"WARNING: {counted(len(split.in_no_part), 'training case')} not used, in neither part of the fold: "
            f"{some_of(split.in_no_part, 5)}",
            file=sys.stderr,
        )
    if synthetic:
        for reason, number in synthetic.left_out.items():
            print(f"{counted(number, 'synthetic case')} left out: {reason}")
        if synthetic.seen:
            print(
                f"WARNING: {counted(len(synthetic.seen), 'synthetic case')} may contain information on patients of "
                "validation or test; scores may be too high"
            )
    labels = label_array(training, settings.findings)
    one_sided = [
        name for name, column in zip(settings.findings, labels.T, strict=True) if not {0.0, 1.0} <= set(column.tolist())
    ]
    if one_sided:
        print(f"cannot be learnt, as all training cases have the same value: {', '.join(one_sided)}")


def _prepare(
    arguments: argparse.Namespace, dataset: str, settings: TrainingSettings, cases: Sequence[Case]
) -> VolumeCache:
    from fvae_nnunet.findings.volumes import VolumeCache
    from fvae_nnunet.jobs.manifest import Manifest
    from fvae_nnunet.jobs.progress_bar import progress_bar
    from fvae_nnunet.nnunet.folders import nnunet_folder

    folder = nnunet_folder("nnUNet_preprocessed") / dataset / f"fvae_classifier__{settings.grid.name}"
    cache = VolumeCache(folder, settings.grid)
    verify_finished(arguments, [folder], [case.key for case in cases], anew=None)
    with progress_bar(total=len(cases), desc="volumes", unit="case") as bar:
        cache.complete(cases, workers=arguments.processes, on_case=bar.update)
    keys = [case.key for case in cases]
    print(f"volumes: {Manifest(folder).check_sample(keys, 'the same command and --verify')}")
    return cache


def _train_and_predict(
    arguments: argparse.Namespace,
    output: Path,
    settings: TrainingSettings,
    training: Sequence[Case],
    held_out: Mapping[str, Sequence[Case]],
    cache: VolumeCache,
    device: str,
) -> None:
    from fvae_nnunet.findings.cases import label_array
    from fvae_nnunet.findings.predictions import predictions_path, write_predictions
    from fvae_nnunet.findings.training import predict, train
    from fvae_nnunet.jobs.progress_bar import progress_bar

    with progress_bar(total=settings.steps, desc="training", unit="step") as bar:

        def on_step(done: int, loss: float) -> None:
            if bar.n == 0 and math.isnan(loss):  # exclude steps of earlier runs from the time estimate
                bar.initial = done
            bar.update(done - bar.n)
            if not math.isnan(loss):
                bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)

        network = train(
            settings,
            keys=[case.key for case in training],
            labels=label_array(training, settings.findings),
            load=cache.load,
            output=output,
            device=device,
            save_every=arguments.save_every,
            on_step=on_step,
        )
    print(f"model in {output}")
    for part, cases in held_out.items():
        if not cases:
            continue
        with progress_bar(total=len(cases), desc=part, unit="case") as bar:
            probabilities = predict(
                network, settings, keys=[case.key for case in cases], load=cache.load, device=device, on_case=bar.update
            )
        path = predictions_path(output, part)
        write_predictions(path, settings.findings, probabilities)
        print(f"predictions of {counted(len(cases), f'{part} case')} in {path}")


def _say_validation(output: Path, reports: CaseReports) -> None:
    from fvae_nnunet.findings.comparison import compare_findings
    from fvae_nnunet.findings.predictions import predictions_path, read_predictions
    from fvae_nnunet.findings.training import PROGRESS
    from fvae_nnunet.findings.truth import scored_cases
    from fvae_nnunet.pictures.training_curves import draw_training_curves

    path = predictions_path(output, "validation")
    scored = scored_cases(reports, [read_predictions(path)])
    mean: dict[str, Any] = compare_findings(scored, names=["model"], files=[path])["mean"]
    (entry,) = mean["models"]
    ends = "" if entry["interval_method"] == "none" else f" ({interval(*entry['interval'])})"
    said = f"validation: mean AUC {number(entry['auc'])}{ends} of {counted(mean['findings'], 'finding')}"
    print(said)
    draw_training_curves(output / PROGRESS, title=said)


if __name__ == "__main__":
    sys.exit(main())
