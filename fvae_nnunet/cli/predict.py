"""fvae-predict: nnUNetv2_predict on images that are reconstructed or denoised first.

Predict like nnUNetv2_predict with a model that was trained on a reconstructed view: reconstructs the CT images into a
temporary folder and predicts on them, with the same result as fvae-reconstruct and nnUNetv2_predict. With a model of
any trainer, --tta denoised denoises CT images that are noisier than the training images, down to the noise of those.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvae_nnunet.cli.cases import failure_line, part_of
from fvae_nnunet.cli.command import run_command
from fvae_nnunet.cli.common_options import add_common, from_options
from fvae_nnunet.cli.denoised_input import denoise
from fvae_nnunet.cli.outputs import check_output_folder
from fvae_nnunet.cli.parsers import CommandParser, add_dataset_option, dataset_of, fold_number
from fvae_nnunet.cli.recorded_view import (
    add_recorded_reconstruction_options,
    given_reconstruction_options,
)
from fvae_nnunet.cli.submit import add_submit_options, submit
from fvae_nnunet.cli.view_input import reconstruct
from fvae_nnunet.errors import UserError, some_of
from fvae_nnunet.jobs.submit import LOGS
from fvae_nnunet.numbers_as_text import counted

if TYPE_CHECKING:
    from fvae_nnunet.nnunet.predicted_cases import CaseFiles, PredictionSettings
    from fvae_nnunet.nnunet.trained_model import TrainedModel

INPUTS = ("raw", "view", "denoised")

MADE_BY = {"view": (reconstruct, "no reconstruction"), "denoised": (denoise, "not denoised")}
"""Function that makes an input, and the reason for which a case that it leaves out has failed."""

WRITTEN_WITHIN_S, LOOK_AGAIN_S = 5.0, 0.05
"""Time in which another part writes its record of a few kB, and time between looks at it."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(
        __doc__,
        epilog="The reconstruction options default to those of the view that the model was trained with. They are "
        "needed only for models without a record of the view (at least --vae; the defaults above apply to the rest). "
        "Give --weights and --vae-code if the VAE is not found without them.",
    )
    add_common(parser, "images", help="folder of images CASE_0000.nii.gz and so on")
    add_common(parser, "output", required=True, metavar="FOLDER", help="folder to write to")
    # fmt: off
    parser.add_argument("--tta", type=_inputs, metavar="INPUTS", dest="inputs",
        help="images to predict on: raw, view, denoised (raw, but with no more noise than the training images), or "
        "several separated by commas (the mean of the probabilities); default: view for models whose checkpoints say "
        "that they have seen only views, otherwise raw")
    # fmt: on
    _add_model_options(parser)
    _add_nnunet_options(parser)
    add_common(parser, "channels")
    add_recorded_reconstruction_options(parser)
    add_submit_options(parser)
    # also read by part_of
    parser.set_defaults(devices=(), overwrite=False)
    return run_command(parser, run, argv)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("-m", type=Path, metavar="FOLDER", help="folder of the trained model, instead of -d -c -tr -p")
    add_dataset_option(group, "id or name of the dataset")
    group.add_argument("-c", metavar="CONFIGURATION", dest="configuration", help="configuration, such as 3d_fullres")
    add_common(group, "trainer", help="trainer; default nnUNetTrainer")
    add_common(group, "plans_name", default=None)
    # fmt: off
    group.add_argument("-f", nargs="+", type=fold_number, default=(0, 1, 2, 3, 4), metavar="FOLD", dest="folds",
        help="folds; default 0 1 2 3 4")
    group.add_argument("-chk", default="checkpoint_final.pth", metavar="NAME", dest="checkpoint_name",
        help="name of the checkpoint; default checkpoint_final.pth")
    # fmt: on


def _add_nnunet_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of nnUNetv2_predict, with the names of ``PredictionSettings``."""
    group = parser.add_argument_group("prediction, as in nnUNetv2_predict")
    group.add_argument("-step_size", type=float, metavar="SHARE", help="step of the sliding window; default 0.5")
    # fmt: off
    group.add_argument("--disable_tta", action="store_false", dest="mirroring",
        help="do not average over mirrored images")
    group.add_argument("--save_probabilities", action="store_true",
        help="write .npz and .pkl next to each segmentation")
    group.add_argument("--continue_prediction", "--c", action="store_true",
        help="skip cases that are already predicted")
    for option, dest, variable, what in (
        ("-npp", "preprocessing_processes", "nnUNet_npp", "preprocess"),
        ("-nps", "export_processes", "nnUNet_nps", "export"),
    ):
        group.add_argument(option, type=int, default=os.environ.get(variable) or "3", metavar="N", dest=dest,
            help=f"number of processes that {what}; default 3; -npp 0 -nps 0: no extra processes")
    group.add_argument("-prev_stage_predictions", type=Path, metavar="FOLDER", dest="previous_stage",
        help="predictions of the previous stage, for a cascade")
    add_common(group, "num_parts", "part_id")
    group.add_argument("--not_on_device", action="store_false", dest="on_device",
        help="for large cases: keep the results off the GPU")
    # fmt: on
    add_common(group, "verbose", help="show nnU-Net's messages and the traceback of a failed case")


def _inputs(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if len(set(names)) < len(names) or not set(names) <= set(INPUTS):
        raise argparse.ArgumentTypeError(
            f"expected raw, view or denoised, or several of them separated by commas, got {text!r}"
        )
    return names


def run(arguments: argparse.Namespace) -> int:
    from fvae_nnunet.nnunet.predicted_cases import PredictionSettings, find_cases, has_results, is_predicted
    from fvae_nnunet.nnunet.predictor import check_holds_predictions
    from fvae_nnunet.nnunet.trained_model import open_model

    check_output_folder(arguments.output)
    check_holds_predictions(arguments.output)
    model = open_model(_model_folder(arguments), tuple(arguments.folds), arguments.checkpoint_name)
    inputs = _inputs_for(model, arguments)
    how = from_options(PredictionSettings, arguments)
    known = find_cases(arguments.images, model)
    wanted = part_of(list(known), arguments)
    if arguments.submit is not None:
        has_any = partial(has_results, arguments.output, model=model, how=how)
        return _submit(arguments, lambda: sum(map(has_any, known)), len(known))
    if arguments.continue_prediction:
        _refuse_other_inputs(arguments.output, inputs)
    cases = [
        case
        for case in wanted
        if not (arguments.continue_prediction and is_predicted(arguments.output, case, model, how))
    ]
    failed = _predict(arguments, model, how, inputs, {case: known[case] for case in cases}) if cases else {}
    if failed:
        reasons = ", ".join(f"{case} ({reason})" for case, reason in failed.items())
        print(
            f"fvae-predict: {len(failed)} of {len(cases)} cases failed, see above: {reasons}. To retry them, run the "
            "command again with --continue_prediction",
            file=sys.stderr,
        )
    print(
        f"{counted(len(cases) - len(failed), 'case')} predicted on {' and '.join(inputs)}, "
        f"{len(wanted) - len(cases)} already complete, in {arguments.output}"
    )
    return 1 if failed else 0


def _submit(arguments: argparse.Namespace, complete: Callable[[], int], total: int) -> int:
    """Submit a job for each part of the cases; a job that is restarted skips finished cases."""
    if arguments.num_parts > 1:
        raise UserError("`submit` gives each of its jobs a part; leave out `num_parts`")
    if (existing := complete()) and not arguments.continue_prediction:
        raise UserError(
            f"{arguments.output} has results of {existing} of {counted(total, 'case')}, which jobs would keep; remove "
            "them, or give `continue_prediction` to keep them"
        )
    parts = ["-num_parts", str(arguments.jobs), "--continue_prediction", "-part_id"]
    return submit(
        arguments,
        logs=arguments.output / LOGS,
        total=total,
        complete=complete,
        options_of_job=lambda number: [*parts, str(number)],
    )


def _predict(
    arguments: argparse.Namespace,
    model: TrainedModel,
    how: PredictionSettings,
    inputs: tuple[str, ...],
    cases: CaseFiles,
) -> dict[str, str]:
    """Predict the cases and return those that failed, with the reason."""
    from fvae_nnunet.nnunet.predicted_cases import damaged_cases, remove_results, scratch_folder
    from fvae_nnunet.nnunet.predictor import Predictor

    predictor = Predictor(model, how, inputs)
    made = [name for name in inputs if name != "raw"]
    changed = _changed_channels(arguments, model) if made else []
    as_they_are = [channel for channel in range(model.channels) if channel not in changed]
    damaged = damaged_cases(cases, as_they_are, reader=model.reader, workers=how.preprocessing_processes)
    _say(arguments, damaged)
    failed = dict.fromkeys(damaged, "damaged image")
    records = {}
    with scratch_folder(arguments.output) as scratch:
        files = dict.fromkeys(inputs, cases)
        for name in made:
            make, not_made = MADE_BY[name]
            wanted = {case: paths for case, paths in cases.items() if case not in failed}
            files[name], records[name] = make(arguments, model, wanted, scratch / name)
            failed |= dict.fromkeys([case for case in wanted if case not in files[name]], not_made)
        files = {name: {case: files[name][case] for case in cases if case not in failed} for name in inputs}
        for case in failed:
            remove_results(arguments.output, case, model)
        errors = predictor.predict(files, arguments.output, scratch=scratch)
    _say(arguments, errors)
    _record(arguments, inputs, records)
    return failed | dict.fromkeys(errors, "no prediction")


def _changed_channels(arguments: argparse.Namespace, model: TrainedModel) -> list[int]:
    """Channels of which reconstructed or denoised images are predicted; UserError if their files cannot be."""
    from fvae_nnunet.ct.files import SINGLE_FILE_ENDINGS
    from fvae_nnunet.nnunet.image_readers import READERS

    possible = "can be reconstructed or denoised"
    if model.file_ending not in SINGLE_FILE_ENDINGS:
        raise UserError(
            f"the model's images end in {model.file_ending}; only {some_of(SINGLE_FILE_ENDINGS)} {possible}"
        )
    if model.reader not in (None, *READERS):
        raise UserError(f"the model's images are read by {model.reader}; only those of {some_of(READERS)} {possible}")
    return model.reconstructed_channels(arguments.channels)


def _say(arguments: argparse.Namespace, errors: Mapping[str, Exception]) -> None:
    for case, error in errors.items():
        print(failure_line(case, error), file=sys.stderr)
        if arguments.verbose:
            traceback.print_exception(error, file=sys.stderr)


def _model_folder(arguments: argparse.Namespace) -> Path:
    from fvae_nnunet.nnunet.trained_model import model_folder

    if arguments.m is not None:
        if arguments.d or arguments.configuration or arguments.trainer or arguments.plans_name:
            raise UserError("-m names the model's folder; leave out -d, -c, -tr and -p")
        return arguments.m
    if not (arguments.d and arguments.configuration):
        raise UserError("no model is named; give -d and -c (and -tr, -p, as for nnUNetv2_predict), or -m")
    return model_folder(
        dataset_of(arguments),
        configuration=arguments.configuration,
        trainer=arguments.trainer or "nnUNetTrainer",
        plans_name=arguments.plans_name or "nnUNetPlans",
    )


def _inputs_for(model: TrainedModel, arguments: argparse.Namespace) -> tuple[str, ...]:
    """Inputs to predict on; warns of inputs that the model has not seen."""
    inputs: tuple[str, ...] = arguments.inputs or (("view",) if model.saw_only_the_view else ("raw",))
    unseen = [name for name in inputs if name != "view" and model.saw_only_the_view]
    if unseen:
        print(
            f"warning: the model has seen only the view ({model.trainer}), but the input is {unseen[0]}",
            file=sys.stderr,
        )
    if arguments.inputs is None and model.saw_only_the_view is None:
        print(
            f"warning: the checkpoints of {model.trainer} were written by an older version and do not record whether "
            "the model has also seen raw images; the input is raw. If it has not, use --tta view",
            file=sys.stderr,
        )
    given = given_reconstruction_options(arguments).keys() - ({"hu_as_is"} if "denoised" in inputs else set())
    if "view" not in inputs and given:
        raise UserError(
            f"the input is {' and '.join(inputs)}, so no VAE is used; leave out --vae and its options, or use --tta "
            "view or --tta raw,view"
        )
    if inputs == ("raw",) and arguments.channels:
        raise UserError("the input is raw, so no channel is reconstructed or denoised; leave out --channels")
    return inputs


def _refuse_other_inputs(output: Path, inputs: tuple[str, ...]) -> None:
    """Raise UserError if the folder's record says that its predictions are of other inputs."""
    from fvae_nnunet.nnunet.predictor import ARGUMENTS_FILE

    path = output / ARGUMENTS_FILE
    # predictions of raw images have no record of ours, nor have interrupted ones
    before = _read_while_written(path).get("fvae_nnunet", {}).get("inputs") if path.is_file() else None
    if before not in (None, list(inputs)):
        raise UserError(
            f"{output} has predictions on {' and '.join(before)}; --continue_prediction would add some on "
            f"{' and '.join(inputs)}. Give --tta {','.join(before)}, or another folder"
        )


def _record(arguments: argparse.Namespace, inputs: tuple[str, ...], records: Mapping[str, dict[str, Any]]) -> None:
    """Correct the folders and options of this call in nnU-Net's record of its arguments, and add how inputs were made.

    Args:
        records: record of each input that is not raw, by its name.
    """
    from fvae_nnunet import __version__
    from fvae_nnunet.files.recorded import write_shared
    from fvae_nnunet.nnunet.predictor import ARGUMENTS_FILE

    path = arguments.output / ARGUMENTS_FILE
    if not path.is_file():
        return
    content = _read_while_written(path)
    ours = {
        "list_of_lists_or_source_folder": str(arguments.images),
        "output_folder_or_list_of_truncated_output_files": str(arguments.output),
        "save_probabilities": arguments.save_probabilities,
        "overwrite": not arguments.continue_prediction,
        "num_parts": arguments.num_parts,
        "part_id": arguments.part_id,
    }
    content |= {name: value for name, value in ours.items() if name in content}
    if records:
        content["fvae_nnunet"] = {"version": __version__, "inputs": list(inputs), **records}
    write_shared(path, json.dumps(content, sort_keys=True, indent=4).encode())


def _read_while_written(path: Path) -> dict[str, Any]:
    """Read a JSON file that the nnU-Net of another part may be writing, which leaves it incomplete for a moment."""
    from fvae_nnunet.files.checked_json import read_json

    deadline = time.monotonic() + WRITTEN_WITHIN_S
    while time.monotonic() < deadline:
        with suppress(UserError):
            return dict(read_json(path, dict))
        time.sleep(LOOK_AGAIN_S)
    return dict(read_json(path, dict))
