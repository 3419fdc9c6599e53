"""fvae-preprocess: the reconstructed view of a dataset that nnU-Net has preprocessed, or synthetic cases beside it."""

from __future__ import annotations

import argparse
import shlex
import sys
import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvae_nnunet.cli.command import (
    CaseProgress,
    LoadedVAE,
    add_channels_option,
    add_reconstruction_options,
    add_work_options,
    do_cases,
    load,
    match_noise,
    part_of,
    run_command,
    workers_of,
)
from fvae_nnunet.cli.parsers import CommandParser, add_dataset, add_plans, datasets_of
from fvae_nnunet.cli.said_as_options import said_as_options
from fvae_nnunet.cli.verify import verify_finished
from fvae_nnunet.command_lines import command_line
from fvae_nnunet.errors import UserError

if TYPE_CHECKING:
    from fvae_nnunet.jobs.devices import OnSlices
    from fvae_nnunet.jobs.pipeline import Outcome, StageSeconds
    from fvae_nnunet.preprocessing.dataset import PreprocessedDataset


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(
        prog="fvae-preprocess",
        description="After nnUNetv2_plan_and_preprocess: reconstruct every CT case with a frozen VAE and write the "
        "view beside nnU-Net's preprocessed data, for nnUNetv2_train -tr nnUNetTrainerFVAE. Or, with --synthetic, put "
        "the cases of fvae-synthesize through nnU-Net's preprocessing, for -tr nnUNetTrainerFVAESynth.",
    )
    add_dataset(parser, several=True)
    parser.add_argument(
        "-c", nargs="+", metavar="CONFIGURATION", help="default: all configurations that are preprocessed"
    )
    add_plans(parser)
    parser.add_argument("--view", metavar="NAME", help="name of the view; default: the VAE's name")
    add_channels_option(parser)
    parser.add_argument(
        "--synthetic", type=Path, metavar="FOLDER",
        help="instead of a view: preprocess the accepted synthetic cases of this folder of fvae-synthesize; no VAE",
    )  # fmt: skip
    add_reconstruction_options(parser)
    add_work_options(parser)
    return run_command(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    do = _run_views if arguments.synthetic is None else _run_synthetic
    return max(do(argparse.Namespace(**vars(arguments) | {"dataset": name})) for name in datasets_of(arguments))


def _run_views(arguments: argparse.Namespace) -> int:
    from fvae_nnunet.ct.hounsfield import check_foreground_hu
    from fvae_nnunet.nnunet.ct_channels import channel_names, said_channels
    from fvae_nnunet.preprocessing.dataset import open_preprocessed_dataset
    from fvae_nnunet.training.views import default_view_name, view_folder

    dataset = open_preprocessed_dataset(
        arguments.dataset, plans_name=arguments.p, configurations=arguments.c, channels=arguments.channels
    )
    print(said_channels(dataset.dataset_json, dataset.ct_channels))
    if not arguments.hu_as_is:
        check_foreground_hu(dataset.plans, channel_names(dataset.dataset_json), dataset.ct_channels)
    cases = part_of(dataset.cases, arguments)
    view = arguments.view or default_view_name(arguments.vae)
    folders = [view_folder(data, view) for data in dataset.data_folders.values()]
    if arguments.match is not None:
        _match_view(arguments, dataset, view)
    work = _MakeViews(arguments, dataset, view)
    progress = do_cases(arguments, work, cases=cases, known=dataset.cases, folders=folders, progress_type=CaseProgress)
    summary, status = progress.finish("fvae-preprocess", "run the same command again for the rest")
    summary = f"{summary}, in {', '.join(str(folder) for folder in folders)}"
    if status == 0 and not progress.elsewhere:
        summary = f"{summary}; train with: {_before_training()}{_training_command(dataset, 'nnUNetTrainerFVAE', view)}"
    print(summary)
    return status


def _run_synthetic(arguments: argparse.Namespace) -> int:
    from fvae_nnunet.jobs.claims import Claims
    from fvae_nnunet.jobs.progress_bar import progress_bar
    from fvae_nnunet.preprocessing.dataset import open_preprocessed_dataset
    from fvae_nnunet.preprocessing.make_synthetic import (
        find_synthetic_cases,
        open_synthetic_data,
        preprocess_synthetic,
    )
    from fvae_nnunet.training.synthetic_dataset import synthetic_data_folder

    _refuse_view_options(arguments)
    dataset = open_preprocessed_dataset(
        arguments.dataset, plans_name=arguments.p, configurations=arguments.c, channels=[]
    )
    synthetic = find_synthetic_cases(dataset, arguments.synthetic)
    cases = part_of(sorted(synthetic), arguments)
    data_folders = [synthetic_data_folder(data) for data in dataset.data_folders.values()]
    verify_finished(arguments, data_folders, cases)
    done, skipped, failed = 0, 0, []
    with (
        Claims(data_folders, known=synthetic) as claims,
        progress_bar(total=len(cases), unit="case") as bar,
    ):
        if arguments.overwrite:
            claims.refuse_others()
        folders = open_synthetic_data(dataset, arguments.synthetic, synthetic, overwrite=arguments.overwrite)
        outcomes = preprocess_synthetic(
            dataset, synthetic, folders, cases=claims.each(cases), workers=workers_of(arguments)
        )
        # closed before the claims are given back: then nobody works on a case any more
        with closing(outcomes):
            for outcome in outcomes:
                claims.release(outcome.case)
                if outcome.error is not None:
                    failed.append(outcome.case)
                    bar.write(f"{outcome.case}: FAILED: {_reason(outcome.error, arguments.verbose)}", file=sys.stderr)
                elif outcome.result is None:
                    skipped += 1
                else:
                    done += 1
                    for name in (name for name, voxels in outcome.result.items() if not voxels):
                        bar.write(
                            f"{outcome.case}: nothing is left of its new lesion at the spacing of {name}; patches are "
                            "drawn from its other foreground", file=sys.stderr,
                        )  # fmt: skip
                bar.update()
    elsewhere = f", {len(claims.elsewhere)} in work elsewhere" if claims.elsewhere else ""
    summary = f"{done} synthetic cases done, {skipped} already complete{elsewhere}"
    if failed:
        print(
            f"fvae-preprocess: {len(failed)} of {len(cases)} cases failed: {', '.join(failed)}. "
            "Run the same command again for the rest", file=sys.stderr,
        )  # fmt: skip
    summary = f"{summary}, in {', '.join(str(folder) for folder in folders.values())}"
    if not failed and not claims.elsewhere and arguments.num_parts == 1:
        command = _training_command(dataset, "nnUNetTrainerFVAESynthRaw")
        summary = f"{summary}; train with: {_before_training()}{command}"
        summary += " (with views: nnUNetTrainerFVAESynth)"
    print(summary)
    return 1 if failed else 0


def _refuse_view_options(arguments: argparse.Namespace) -> None:
    """UserError where options that make a view stand beside ``--synthetic``."""
    of_views = argparse.ArgumentParser(add_help=False)
    of_views.add_argument("--view")
    add_channels_option(of_views)
    of_views.add_argument("--devices")
    add_reconstruction_options(of_views)
    defaults = vars(of_views.parse_args([]))
    given = [
        action.option_strings[0]
        for action in of_views._actions
        if getattr(arguments, action.dest) != defaults[action.dest]
    ]
    if given:
        raise UserError(f"--synthetic makes no view and needs no VAE; leave out {', '.join(given)}")


def _reason(error: Exception, verbose: bool) -> str:
    text = said_as_options(str(error)) if isinstance(error, UserError) else repr(error)
    return "\n".join([text, *traceback.format_exception(error)]) if verbose else text


def _training_command(dataset: PreprocessedDataset, trainer: str, view: str | None = None) -> str:
    """For 3d_fullres if it is there, with the view's name where it is needed to choose it."""
    from fvae_nnunet.nnunet.folders import dataset_argument
    from fvae_nnunet.training.views import VIEW_VARIABLE, view_names

    configuration = "3d_fullres" if "3d_fullres" in dataset.data_folders else next(iter(dataset.data_folders))
    several = view is not None and len(view_names(dataset.data_folders[configuration])) > 1
    words = ["nnUNetv2_train", dataset_argument(dataset.name), configuration, "0", "-tr", trainer]
    words += [] if dataset.plans_name == "nnUNetPlans" else ["-p", dataset.plans_name]
    return (f"{VIEW_VARIABLE}={view} " if several else "") + shlex.join(words)


@dataclass(frozen=True)
class _MakeViews:
    """What one device does."""

    arguments: argparse.Namespace
    dataset: PreprocessedDataset
    view: str

    def load(self, device: str | None) -> LoadedVAE:
        return load(argparse.Namespace(**vars(self.arguments) | {"device": device}))

    def run(
        self, loaded: LoadedVAE, cases: Iterator[str], *, first: bool, seconds: StageSeconds, on_slices: OnSlices
    ) -> Generator[Outcome, None, None]:
        from fvae_nnunet.preprocessing.make_views import make_views, open_views

        dataset = self.dataset
        if first:
            _warn_of_clipping(dataset.plans, dataset.ct_channels, loaded.settings.hu_window)
        folders = open_views(
            dataset,
            loaded.vae,
            view=self.view,
            settings=loaded.settings,
            made_with={
                **loaded.made_with,
                "parameters": loaded.parameters | {"channels": self.arguments.channels, "view": self.view},
            },
            overwrite=self.arguments.overwrite and first,
        )
        return make_views(
            dataset,
            loaded.vae,
            folders,
            settings=loaded.settings,
            hu_as_is=self.arguments.hu_as_is,
            cases=cases,
            workers=workers_of(self.arguments),
            seconds=seconds,
            on_slices=on_slices,
        )


def _match_view(arguments: argparse.Namespace, dataset: PreprocessedDataset, view: str) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from fvae_nnunet.jobs.manifest import Manifest
    from fvae_nnunet.nnunet.folders import dataset_id
    from fvae_nnunet.preprocessing.make_views import read_axial_ct
    from fvae_nnunet.training.views import check_view, preprocessing_settings, view_folder

    if arguments.match == view:
        raise UserError(f"--match {view} is the view to be made; give one of the two another name (--view)")
    folders = {name: view_folder(data, arguments.match) for name, data in dataset.data_folders.items()}
    made = [name for name, folder in folders.items() if Manifest(folder).path.exists()]
    configuration = (made or list(folders))[0]  # the records of all configurations hold the same noise
    folder = folders[configuration]
    make = partial(command_line, "fvae-preprocess", dataset_id(dataset.name), c=configuration, p=dataset.plans_name)
    settings = preprocessing_settings(dataset.plans, PlansManager(dataset.plans).get_configuration(configuration))
    match_noise(
        arguments,
        Manifest(folder),
        check=partial(check_view, folder, dataset.data_folders[configuration], dataset.cases, settings, make),
        cases=dataset.cases,
        read_axial=partial(read_axial_ct, dataset),
        make=make,
    )


def _warn_of_clipping(plans: dict[str, Any], ct_channels: list[int], hu_window: tuple[float, float]) -> None:
    for channel in ct_channels:
        foreground = plans["foreground_intensity_properties_per_channel"][str(channel)]
        low, high = foreground["percentile_00_5"], foreground["percentile_99_5"]
        if low < hu_window[0] or high > hu_window[1]:
            print(
                f"warning: the foreground of channel {channel} reaches from {low:g} to {high:g} HU; the view clips it "
                f"to {hu_window[0]:g} to {hu_window[1]:g}. Use a wider --hu-window to keep it",
                file=sys.stderr,
            )


def _before_training() -> str:
    """What has to stand before the training command, so that nnU-Net finds the trainer; makes it find it if need be."""
    from fvae_nnunet.nnunet.registration import export_line, has_external_trainers, is_found_by_nnunet, register

    if is_found_by_nnunet():
        return ""
    print("nnU-Net does not find nnUNetTrainerFVAE yet")
    if has_external_trainers():
        print("the export below lets it; it belongs into your shell's start-up file, beside that of nnUNet_raw")
        return f"{export_line()} && "
    try:
        print(f"wrote {register()}, so that it does (fvae-setup --remove takes it back)")
    except UserError as error:
        print(error)
    return ""
