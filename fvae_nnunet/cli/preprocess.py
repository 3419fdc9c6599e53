"""fvae-preprocess: the reconstructed view of a dataset that nnU-Net has preprocessed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from fvae_nnunet.cli.command import (
    LoadedVAE,
    add_reconstruction_options,
    add_work_options,
    do_cases,
    load,
    match_noise,
    part_of,
    run_command,
    workers_of,
)
from fvae_nnunet.errors import UserError

if TYPE_CHECKING:
    from fvae_nnunet.devices import OnSlices
    from fvae_nnunet.pipeline import Outcome, StageSeconds
    from fvae_nnunet.preprocessing.dataset import PreprocessedDataset


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="fvae-preprocess",
        description="After nnUNetv2_plan_and_preprocess: reconstruct every CT case with a frozen VAE and write the "
        "view beside nnU-Net's preprocessed data, for nnUNetv2_train -tr nnUNetTrainerFVAE.",
    )
    parser.add_argument("dataset", help="id or name of the dataset, such as 7 or Dataset007_Pancreas")
    parser.add_argument(
        "-c", nargs="+", metavar="CONFIGURATION", help="default: all configurations that are preprocessed"
    )
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier; default nnUNetPlans")
    parser.add_argument("--view", metavar="NAME", help="name of the view; default: the VAE's name")
    add_reconstruction_options(parser)
    add_work_options(parser)
    return run_command(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    from fvae_nnunet.preprocessing.dataset import open_preprocessed_dataset
    from fvae_nnunet.views import default_view_name, view_folder

    dataset = open_preprocessed_dataset(arguments.dataset, plans_name=arguments.p, configurations=arguments.c)
    cases = part_of(dataset.cases, arguments)
    view = arguments.view or default_view_name(arguments.vae)
    folders = [view_folder(data, view) for data in dataset.data_folders.values()]
    if arguments.match is not None:
        _match_view(arguments, dataset, view)
    work = _MakeViews(arguments, dataset, view)
    progress = do_cases(arguments, work, cases=cases, known=dataset.cases, folders=folders)
    summary, status = progress.finish("fvae-preprocess", "run the same command again for the rest")
    summary = f"{summary}, in {', '.join(str(folder) for folder in folders)}"
    if status == 0 and not progress.elsewhere:
        _ensure_trainer()
        plans = "" if dataset.plans_name == "nnUNetPlans" else f" -p {dataset.plans_name}"
        configuration = next(iter(dataset.data_folders))
        train = f"nnUNetv2_train {int(dataset.name[7:10])} {configuration} 0 -tr nnUNetTrainerFVAE{plans}"
        summary = f"{summary}; train with: {train}"
    print(summary)
    return status


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
            _say_channels(dataset.dataset_json, dataset.ct_channels)
            _warn_of_clipping(dataset.plans, dataset.ct_channels, loaded.settings.hu_window)
        folders = open_views(
            dataset,
            loaded.vae,
            view=self.view,
            settings=loaded.settings,
            made_with={"weights": loaded.vae.weights_source, "options": f"{loaded.options} --view {self.view}"},
            overwrite=self.arguments.overwrite and first,
        )
        return make_views(
            dataset,
            loaded.vae,
            folders,
            settings=loaded.settings,
            cases=cases,
            workers=workers_of(self.arguments),
            seconds=seconds,
            on_slices=on_slices,
        )


def _match_view(arguments: argparse.Namespace, dataset: PreprocessedDataset, view: str) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from fvae_nnunet.manifest import Manifest
    from fvae_nnunet.preprocessing.make_views import read_axial_ct
    from fvae_nnunet.views import check_view, preprocessing_settings, view_folder

    if arguments.match == view:
        raise UserError(f"--match {view} is the view to be made; give one of the two another name (--view)")
    folders = {name: view_folder(data, arguments.match) for name, data in dataset.data_folders.items()}
    made = [name for name, folder in folders.items() if Manifest(folder).path.exists()]
    configuration = (made or list(folders))[0]  # the records of all configurations hold the same noise
    folder = folders[configuration]
    command = f"fvae-preprocess {int(dataset.name[7:10])} -c {configuration} -p {dataset.plans_name}"
    settings = preprocessing_settings(dataset.plans, PlansManager(dataset.plans).get_configuration(configuration))
    match_noise(
        arguments,
        Manifest(folder),
        check=partial(check_view, folder, dataset.data_folders[configuration], dataset.cases, settings, command),
        cases=dataset.cases,
        read_axial=partial(read_axial_ct, dataset),
        command=command,
    )


def _say_channels(dataset_json: dict[str, Any], ct_channels: list[int]) -> None:
    names = dataset_json.get("channel_names", dataset_json.get("modality", {}))
    copied = [f"{channel} ({name})" for channel, name in names.items() if int(channel) not in ct_channels]
    if copied:
        print(f"channels {', '.join(map(str, ct_channels))} are CT and reconstructed; copied: {', '.join(copied)}")


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


def _ensure_trainer() -> None:
    from fvae_nnunet.registration import is_found_by_nnunet, register

    if is_found_by_nnunet():
        return
    print("nnU-Net does not find nnUNetTrainerFVAE yet")
    try:
        print(f"wrote {register()}, so that it does (fvae-setup --remove takes it back)")
    except UserError as error:
        print(error)
