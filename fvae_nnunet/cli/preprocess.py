"""fvae-preprocess: make a reconstructed view of a dataset that nnU-Net has preprocessed, or preprocess synthetic cases.

Run it after nnUNetv2_plan_and_preprocess. It reconstructs every CT case with a frozen VAE and writes the view next to
nnU-Net's preprocessed data, for nnUNetv2_train -tr nnUNetTrainerFVAE. With --synthetic, it runs nnU-Net's preprocessing
on the cases of fvae-synthesize instead, for -tr nnUNetTrainerFVAESynth.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvae_nnunet.cli.cases import (
    CaseProgress,
    ReconstructionProgress,
    add_work_options,
    complete_cases,
    do_cases,
    part_of,
    submit_cases,
    workers_of,
)
from fvae_nnunet.cli.command import LoadedVAE, load, match_noise, run_command
from fvae_nnunet.cli.common_options import add_common, given_options
from fvae_nnunet.cli.parsers import CommandParser, add_dataset, dataset_of, datasets_of
from fvae_nnunet.cli.reconstruction_options import add_match_option, add_reconstruction_options
from fvae_nnunet.cli.verify import verify_finished
from fvae_nnunet.command_lines import command_line
from fvae_nnunet.errors import UserError
from fvae_nnunet.jobs.statuses import joint_status
from fvae_nnunet.numbers_as_text import counted

if TYPE_CHECKING:
    from fvae_nnunet.jobs.devices import OnSlices
    from fvae_nnunet.jobs.pipeline import Outcome, StageSeconds
    from fvae_nnunet.preprocessing.dataset import PreprocessedDataset


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(__doc__)
    add_dataset(parser, several=True)
    # fmt: off
    parser.add_argument("-c", nargs="+", metavar="CONFIGURATION", dest="configurations",
        help="configurations, such as 3d_fullres; default: all that are preprocessed")
    add_common(parser, "plans_name")
    _add_view_options(parser)
    parser.add_argument("--synthetic", type=Path, metavar="FOLDER",
        help="preprocess the accepted synthetic cases of this fvae-synthesize folder instead of making a view; needs "
        "no VAE")
    # fmt: on
    add_work_options(parser)
    return run_command(parser, run, argv)


def _add_view_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--view", metavar="NAME", help="name of the view; default: the VAE's name")
    add_common(parser, "channels")
    add_match_option(add_reconstruction_options(parser), of="of the dataset")


def run(arguments: argparse.Namespace) -> int:
    if arguments.submit is not None:
        dataset_of(arguments)
    do = _run_views if arguments.synthetic is None else _run_synthetic
    of_each = [argparse.Namespace(**vars(arguments) | {"dataset": name}) for name in datasets_of(arguments)]
    return joint_status(map(do, of_each))


def _run_views(arguments: argparse.Namespace) -> int:
    from fvae_nnunet.ct.hounsfield import check_foreground_hu
    from fvae_nnunet.nnunet.ct_channels import channel_names, said_channels
    from fvae_nnunet.preprocessing.dataset import open_preprocessed_dataset
    from fvae_nnunet.training.views import default_view_name, view_folder

    dataset = open_preprocessed_dataset(
        arguments.dataset,
        plans_name=arguments.plans_name,
        configurations=arguments.configurations,
        channels=arguments.channels,
    )
    print(said_channels(dataset.dataset_json, dataset.ct_channels))
    if not arguments.hu_as_is:
        check_foreground_hu(dataset.plans, channel_names(dataset.dataset_json), dataset.ct_channels)
    cases = part_of(dataset.cases, arguments)
    view = arguments.view or default_view_name(arguments.vae)
    folders = [view_folder(data, view) for data in dataset.data_folders.values()]
    if arguments.submit is not None:
        return submit_cases(arguments, cases=cases, folders=folders)
    if arguments.match is not None:
        _match_view(arguments, dataset, view)
    work = _MakeViews(arguments, dataset, view)
    progress = do_cases(arguments, work, cases=cases, folders=folders, progress_type=ReconstructionProgress)
    status = progress.finish("fvae-preprocess", "run the same command again to retry failed cases")
    summary = f"{progress.summary}, in {', '.join(str(folder) for folder in folders)}"
    ending = _missing(dataset.cases, folders)
    if status == 0 and not ending:
        ending = f"; train with: {_before_training()}{_training_command(dataset, 'nnUNetTrainerFVAE', view)}"
    print(f"{summary}{ending}")
    return status


def _run_synthetic(arguments: argparse.Namespace) -> int:
    from fvae_nnunet.jobs.locks import CaseLocks
    from fvae_nnunet.preprocessing.dataset import open_preprocessed_dataset
    from fvae_nnunet.preprocessing.make_synthetic import (
        find_synthetic_cases,
        open_synthetic_data,
        preprocess_synthetic,
    )
    from fvae_nnunet.training.synthetic_dataset import synthetic_data_folder

    _refuse_view_options(arguments)
    dataset = open_preprocessed_dataset(
        arguments.dataset, plans_name=arguments.plans_name, configurations=arguments.configurations, channels=[]
    )
    synthetic = find_synthetic_cases(dataset, arguments.synthetic)
    cases = part_of(sorted(synthetic), arguments)
    data_folders = [synthetic_data_folder(data) for data in dataset.data_folders.values()]
    if arguments.submit is not None:
        return submit_cases(arguments, cases=cases, folders=data_folders)
    verify_finished(arguments, data_folders, cases)
    with CaseLocks(
        data_folders, wait=not arguments.no_wait, alone=arguments.overwrite, say=lambda line: progress.say(line)
    ) as locks:
        folders = open_synthetic_data(dataset, arguments.synthetic, synthetic, overwrite=arguments.overwrite)
        progress = _SyntheticProgress(len(cases), verbose=arguments.verbose)
        outcomes = preprocess_synthetic(
            dataset, synthetic, folders, cases=locks.each(cases), workers=workers_of(arguments)
        )
        progress.follow(outcomes, locks)
    status = progress.say_failed("fvae-preprocess", "Run the same command again to retry failed cases")
    summary = f"{counted(progress.done, 'synthetic case')} done, {progress.besides}"
    summary = f"{summary}, in {', '.join(str(folder) for folder in folders.values())}"
    ending = _missing(synthetic, data_folders)
    if status == 0 and not ending:
        command = _training_command(dataset, "nnUNetTrainerFVAESynthRaw")
        ending = f"; train with: {_before_training()}{command} (with views: nnUNetTrainerFVAESynth)"
    print(f"{summary}{ending}")
    return status


def _missing(cases: Collection[str], folders: Iterable[Path]) -> str:
    """End of a summary with the number of missing cases, also of those of other parts; empty if there are none."""
    missing = len(cases) - len(complete_cases(cases, folders))
    return f"; {missing} of {counted(len(cases), 'case')} still missing" if missing else ""


class _SyntheticProgress(CaseProgress):
    """Reports the configurations in which resampling leaves nothing of a case's new lesion."""

    def add_result(self, case: str, result: dict[str, int]) -> None:
        for name in (name for name, voxels in result.items() if not voxels):
            self.say(
                f"{case}: nothing of its new lesion is left at the spacing of {name}; patches are drawn from other "
                "foreground"
            )


def _refuse_view_options(arguments: argparse.Namespace) -> None:
    """Raise UserError if options for making a view are given with ``--synthetic``."""
    of_views = argparse.ArgumentParser(add_help=False)
    _add_view_options(of_views)
    names = {action.dest for action in of_views._actions} | {"devices"}
    add_work_options(of_views)
    given = given_options(of_views, arguments, names)
    if given:
        raise UserError(f"--synthetic makes no view and needs no VAE; leave out {', '.join(given)}")


def _training_command(dataset: PreprocessedDataset, trainer: str, view: str | None = None) -> str:
    """Training command for 3d_fullres if it exists, with the view's name if there are several views."""
    from fvae_nnunet.nnunet.folders import dataset_argument
    from fvae_nnunet.training.views import VIEW_VARIABLE, view_names

    configuration = "3d_fullres" if "3d_fullres" in dataset.data_folders else next(iter(dataset.data_folders))
    several = view is not None and len(view_names(dataset.data_folders[configuration])) > 1
    plans = None if dataset.plans_name == "nnUNetPlans" else dataset.plans_name
    command = command_line("nnUNetv2_train", dataset_argument(dataset.name), configuration, 0, tr=trainer, p=plans)
    return f"{VIEW_VARIABLE}={view} {command}" if several else command


@dataclass(frozen=True)
class _MakeViews:
    """The work of one device."""

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
        raise UserError(f"--match {view} is also the view to make; give the new view another name (--view)")
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
                f"warning: the foreground of channel {channel} ranges from {low:g} to {high:g} HU; the view clips it "
                f"to {hu_window[0]:g} to {hu_window[1]:g} HU. Use a wider --hu-window to keep it",
                file=sys.stderr,
            )


def _before_training() -> str:
    """Prefix of the training command that lets nnU-Net find the trainer; registers the trainer if necessary."""
    from fvae_nnunet.nnunet.registration import export_line, has_external_trainers, is_found_by_nnunet, register

    if is_found_by_nnunet():
        return ""
    print("nnU-Net does not find nnUNetTrainerFVAE yet")
    if has_external_trainers():
        print("the export in the command below fixes this; add it to your shell's start-up file, next to nnUNet_raw")
        return f"{export_line()} && "
    try:
        print(f"wrote {register()}; now nnU-Net finds it (to undo: fvae-setup --remove)")
    except UserError as error:
        print(error)
    return ""
