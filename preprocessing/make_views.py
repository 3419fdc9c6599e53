"""Reconstructed view of a whole dataset, written beside nnU-Net's preprocessed data."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fvae_nnunet.command_lines import command_line
from fvae_nnunet.ct.hounsfield import check_volume_hu
from fvae_nnunet.ct.noise import mean_of_known
from fvae_nnunet.ct.orientation import AxisOrder, axial_order_of_nnunet
from fvae_nnunet.ct.stored_images import check_image_file
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.recorded import sha256_of_file, write_bytes
from fvae_nnunet.jobs.manifest import Manifest, begin_all
from fvae_nnunet.jobs.pipeline import Outcome, StageSeconds, run_cases
from fvae_nnunet.jobs.shared_arrays import compact
from fvae_nnunet.nnunet.folders import dataset_id
from fvae_nnunet.preprocessing.dataset import PreprocessedDataset
from fvae_nnunet.reconstruction.settings import ReconstructionSettings
from fvae_nnunet.reconstruction.volume import fidelity, reconstruct_to_int16
from fvae_nnunet.training.views import preprocessed_inputs, preprocessing_settings, view_folder
from fvae_nnunet.vae.base import FrozenVAE


@dataclass(frozen=True)
class _RawCase:
    channels: list[np.ndarray]
    axis_order: AxisOrder
    spacing_mm: list[float]
    raw_digests: dict[str, str]
    configurations: list[str]


@dataclass(frozen=True)
class _ViewCase:
    raw: _RawCase
    reconstructions: dict[int, np.ndarray]


def open_views(
    dataset: PreprocessedDataset,
    vae: FrozenVAE,
    *,
    view: str,
    settings: ReconstructionSettings,
    made_with: dict[str, Any],
    overwrite: bool = False,
) -> dict[str, Path]:
    """Start the view's folder for each configuration, or check that it was made with the same settings.

    Args:
        dataset: dataset to reconstruct.
        vae, settings: VAE and settings of the reconstruction.
        view: name of the view.
        made_with: information for the manifest; its ``parameters`` are those of the command that makes the view.
        overwrite: delete an existing view of this name first.

    Raises:
        UserError: a view of this name was made with other settings.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(dataset.plans)
    folders = {configuration: view_folder(data, view) for configuration, data in dataset.data_folders.items()}
    manifests = {
        Manifest(folder): {
            **settings.recorded_with(vae),
            "ct_channels": dataset.ct_channels,
            "preprocessing": preprocessing_settings(dataset.plans, manager.get_configuration(configuration)),
        }
        for configuration, folder in folders.items()
    }
    begin_all("view", manifests, made_with, overwrite=overwrite)
    return folders


def make_views(
    dataset: PreprocessedDataset,
    vae: FrozenVAE,
    folders: dict[str, Path],
    *,
    settings: ReconstructionSettings,
    hu_as_is: bool = False,
    cases: Iterable[str],
    workers: int,
    seconds: StageSeconds,
    on_slices: Callable[[str, int, int], object] | None = None,
) -> Generator[Outcome, None, None]:
    """Reconstruct each case once, write its view for every configuration, and yield its outcome.

    The case is reconstructed in HU at the image's own resolution, rounded to int16, and then preprocessed with
    nnU-Net's own steps. Channels that are not CT are copied. A complete case that was made from the same files is
    skipped (its outcome has neither result nor error). The result of a case is its ``Fidelity`` as a dictionary: the
    mean over the CT channels, but the extremes of the range and the sum of the voxels.

    Args:
        dataset: dataset to reconstruct.
        vae, settings: VAE and settings of the reconstruction.
        folders: folders from ``open_views``.
        hu_as_is: also reconstruct images that cannot be in HU (``hounsfield``); else they are errors of their cases.
        cases: identifiers of a subset of the dataset, requested one by one.
        workers: number of processes for reading and writing; 0 for none.
        seconds: filled with the time spent in each stage.
        on_slices: called with case, slices done and slices of the case.

    Raises:
        UserError: the disk is full or no worker can be started.
    """

    def compute(case: str, raw: _RawCase) -> _ViewCase:
        count = partial(on_slices, case) if on_slices is not None else None
        reconstructions = {
            channel: reconstruct_to_int16(
                vae,
                raw.channels[channel],
                settings,
                axis_order=raw.axis_order,
                spacing_mm=raw.spacing_mm,
                case=f"{case}_{channel:04d}",
                on_slices=count,
            )
            for channel in dataset.ct_channels
        }
        return _ViewCase(raw, reconstructions)

    return run_cases(
        cases,
        read=partial(_read_case, dataset, folders, hu_as_is),
        compute=compute,
        write=partial(_write_case, dataset, folders, settings.hu_window),
        workers=workers,
        seconds=seconds,
    )


def _read_case(dataset: PreprocessedDataset, folders: dict[str, Path], hu_as_is: bool, case: str) -> _RawCase | None:
    files = dataset.image_files[case]
    for path in files:
        # before the digests, because the digest of a header does not change with the file that it points to
        check_image_file(path, voxels_too=False)
    raw_digests = {name: sha256_of_file(path) for name, path in files_by_name(files).items()}
    pending = [
        configuration
        for configuration, folder in folders.items()
        if not Manifest(folder).is_done(
            case,
            inputs=raw_digests | preprocessed_inputs(dataset.data_folders[configuration], case),
            outputs=[folder / f"{case}.b2nd"],
        )
    ]
    if not pending:
        return None
    channels, axis_order, spacing_mm = _read_channels(dataset, case)
    if not hu_as_is:
        for channel in dataset.ct_channels:
            check_volume_hu(channels[channel], files[channel])
    return _RawCase(channels, axis_order, spacing_mm, raw_digests, pending)


def files_by_name(files: Sequence[Path]) -> dict[str, Path]:
    """The files of the channels by name; if names are equal, as of files in several folders, with the channel."""
    names = [path.name for path in files]
    if len(set(names)) < len(names):
        names = [f"channel {channel}: {name}" for channel, name in enumerate(names)]
    return dict(zip(names, files, strict=True))


def read_axial_ct(dataset: PreprocessedDataset, case: str) -> list[np.ndarray]:
    """Read the CT channels of a raw case, each (body axis, front-back, left-right) in HU."""
    channels, axis_order, _ = _read_channels(dataset, case)
    return [channels[channel].transpose(axis_order) for channel in dataset.ct_channels]


def _read_channels(dataset: PreprocessedDataset, case: str) -> tuple[list[np.ndarray], AxisOrder, list[float]]:
    from nibabel.filebasedimages import ImageFileError
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    files = dataset.image_files[case]
    for path in (*files, dataset.label_files[case]):
        check_image_file(path)
    reader = PlansManager(dataset.plans).image_reader_writer_class()
    try:
        image, properties = reader.read_images([str(path) for path in files])
    except (RuntimeError, AssertionError, OSError, ValueError, ImageFileError) as error:
        names = ", ".join(map(str, files))
        raise UserError(f"nnU-Net's {type(reader).__name__} cannot read {names}: {error}") from error
    if len(properties.get("sitk_stuff", {}).get("spacing", ())) == 2:
        raise UserError(
            f"{files[0]} has 2 dimensions, but the images to predict must be volumes; store slices as volumes with one "
            "slice, and plan and preprocess again"
        )
    spacing_mm = [float(edge) for edge in properties["spacing"]]
    return [compact(channel) for channel in image], axial_order_of_nnunet(properties), spacing_mm


def _write_case(
    dataset: PreprocessedDataset,
    folders: dict[str, Path],
    hu_window: tuple[float, float],
    case: str,
    view: _ViewCase,
) -> dict[str, float | None]:
    import blosc2
    from batchgenerators.utilities.file_and_folder_operations import load_pickle
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from fvae_nnunet.preprocessing.view_preprocessor import ViewPreprocessor

    results = [
        asdict(fidelity(view.raw.channels[channel], reconstruction, hu_window, axis_order=view.raw.axis_order))
        for channel, reconstruction in view.reconstructions.items()
    ]
    mean = {key: mean_of_known([result[key] for result in results]) for key in results[0]}
    mean["lowest_hu"] = min(result["lowest_hu"] for result in results)
    mean["highest_hu"] = max(result["highest_hu"] for result in results)
    mean["impossible_voxels"] = sum(result["impossible_voxels"] for result in results)
    image = np.stack([view.reconstructions.get(channel, raw) for channel, raw in enumerate(view.raw.channels)])

    manager = PlansManager(dataset.plans)
    for name in view.raw.configurations:
        configuration = manager.get_configuration(name)
        masked: dict[str, np.ndarray] = {}
        if any(configuration.use_mask_for_norm):
            reader = manager.image_reader_writer_class()
            masked["raw"] = reader.read_images([str(path) for path in dataset.image_files[case]])[0]
            masked["seg"] = reader.read_seg(str(dataset.label_files[case]))[0]
        data_folder = dataset.data_folders[name]
        properties = load_pickle(str(data_folder / f"{case}.pkl"))
        data = ViewPreprocessor().run_view(image, properties, manager, configuration, **masked)

        raw = blosc2.open(str(data_folder / f"{case}.b2nd"), mode="r")
        if data.shape != raw.shape:
            raise UserError(
                f"the view has shape {data.shape}, but nnU-Net's array has {raw.shape}; preprocess the dataset again: "
                + command_line("nnUNetv2_preprocess", d=dataset_id(dataset.name), plans_name=dataset.plans_name, c=name)
            )
        cparams = raw.schunk.cparams
        compressed = blosc2.asarray(
            np.ascontiguousarray(data),
            chunks=raw.chunks,
            blocks=raw.blocks,
            cparams={"codec": cparams.codec, "clevel": cparams.clevel, "filters": cparams.filters, "nthreads": 1},
            dparams={"nthreads": 1},
            contiguous=True,
        ).to_cframe()
        target = folders[name] / f"{case}.b2nd"
        written = write_bytes(target, compressed)
        Manifest(folders[name]).write_case(
            case,
            inputs=view.raw.raw_digests | preprocessed_inputs(data_folder, case),
            outputs={target: written},
            results=mean,
        )
    return mean
