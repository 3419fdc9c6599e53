"""Noise of the images on which a model of nnU-Net was trained, measured once and kept in the model's folder."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fvae_nnunet.errors import UserError
from fvae_nnunet.files.checked_json import read_json
from fvae_nnunet.files.recorded import write_shared
from fvae_nnunet.jobs.pipeline import StageSeconds, run_cases
from fvae_nnunet.nnunet.folders import nnunet_folder, training_files
from fvae_nnunet.nnunet.trained_model import TrainedModel
from fvae_nnunet.reconstruction.folder import read_hu
from fvae_nnunet.reconstruction.noise_reduction import noise_of_image_hu

NOISE_FILE = "fvae_training_noise.json"
"""File in the model's folder."""

NOT_PERMITTED = (errno.EACCES, errno.EPERM, errno.EROFS)

_SHAPE = {"channels": {"*": {"*": {"bytes": int, "noise_hu": (float, None)}}}}

Measured = dict[str, dict[str, Any]]
"""Case -> size of its image in bytes, and its noise in HU, None without soft tissue."""


def training_noise_hu(
    model: TrainedModel,
    channels: Sequence[int],
    *,
    hu_as_is: bool = False,
    workers: int,
    say: Callable[[str], object],
    on_image: Callable[[int, int], object] = lambda done, total: None,
) -> dict[int, float]:
    """Median noise (``ct.noise``) of the training images of a model in HU, by channel.

    Measured in the model's dataset in ``nnUNet_raw`` and kept in ``NOISE_FILE``. Images whose name or size is not in
    this file are measured. Where there are no images, the file is enough.

    Args:
        model: model of any trainer.
        channels: channels with CT in HU.
        hu_as_is: also measure images that cannot be in HU.
        workers: number of processes that read and measure; 0: none.
        say: called with a warning for each image that cannot be measured, and if the file cannot be written.
        on_image: called with the number of images measured and the total.

    Raises:
        UserError: the noise is not known and cannot be measured.
    """
    path = model.folder / NOISE_FILE
    content = read_json(path, _SHAPE, remedy="Remove it to measure the noise again") if path.is_file() else {}
    kept: dict[int, Measured] = {channel: content.get("channels", {}).get(str(channel), {}) for channel in channels}
    try:
        images = _training_images(model, channels)
    except UserError as error:
        if not all(kept.values()):
            raise UserError(
                f"the noise of the training images of {model.folder} is not known: {error}. It is measured in imagesTr "
                f"of {model.plans['dataset_name']} in nnUNet_raw; or copy {NOISE_FILE} from the folder of this model "
                "where it was measured"
            ) from error
    else:
        found = _measured(model, images, kept, hu_as_is, workers, say, on_image)
        if found != kept:
            kept = found
            channels_of_file = content.get("channels", {}) | {str(channel): kept[channel] for channel in channels}
            _keep(path, {"channels": channels_of_file}, say)
    return {channel: _median_hu(model, channel, kept[channel]) for channel in channels}


def _median_hu(model: TrainedModel, channel: int, measured: Measured) -> float:
    known_hu = [of_case["noise_hu"] for of_case in measured.values() if of_case["noise_hu"] is not None]
    median_hu = float(np.median(known_hu)) if known_hu else 0.0
    if not median_hu > 0:
        raise UserError(
            f"the training images of {model.folder} show no noise in soft tissue in channel {channel}; use another "
            "input than denoised images"
        )
    return median_hu


def _keep(path: Path, content: dict[str, Any], say: Callable[[str], object]) -> None:
    try:
        write_shared(path, json.dumps(content, sort_keys=True, indent=1).encode())
    except OSError as error:
        if error.errno not in NOT_PERMITTED:
            raise
        say(f"warning: the noise of the training images cannot be kept in {path} and will be measured again")


def _training_images(model: TrainedModel, channels: Sequence[int]) -> dict[tuple[int, str], Path]:
    """Channel and case -> image."""
    raw = nnunet_folder("nnUNet_raw") / model.plans["dataset_name"]
    if not raw.is_dir():
        raise UserError(f"{raw} does not exist")
    files = training_files(raw, model.dataset_json)
    return {(channel, case): Path(files[case]["images"][channel]) for channel in channels for case in sorted(files)}


def _measured(
    model: TrainedModel,
    images: Mapping[tuple[int, str], Path],
    kept: Mapping[int, Measured],
    hu_as_is: bool,
    workers: int,
    say: Callable[[str], object],
    on_image: Callable[[int, int], object],
) -> dict[int, Measured]:
    """The noise of all images that can be measured, by channel; what is kept is not measured again."""
    found: dict[int, Measured] = {channel: {} for channel in kept}
    paths: dict[str, Path] = {}
    places: dict[str, tuple[int, str]] = {}
    for (channel, case), path in images.items():
        of_case = kept[channel].get(case)
        if of_case is not None and path.is_file() and of_case["bytes"] == path.stat().st_size:
            found[channel][case] = of_case
        else:
            name = f"{case}, channel {channel}"
            paths[name], places[name] = path, (channel, case)
    read = partial(_noise_of, paths, model.reader, hu_as_is)
    for done, outcome in enumerate(run_cases(paths, read=read, workers=workers, seconds=StageSeconds()), start=1):
        if outcome.error is None:
            channel, case = places[outcome.case]
            found[channel][case] = outcome.result
        else:
            known = isinstance(outcome.error, UserError)
            reason = outcome.error if known else repr(outcome.error)
            say(f"warning: the noise of a training image cannot be measured: {outcome.case}: {reason}")
        on_image(done, len(paths))
    return found


def _noise_of(paths: Mapping[str, Path], reader: str | None, hu_as_is: bool, name: str) -> dict[str, Any]:
    path = paths[name]
    noise_hu = noise_of_image_hu(*read_hu(path, reader=reader, hu_as_is=hu_as_is))
    return {"bytes": path.stat().st_size, "noise_hu": noise_hu}
