"""Noise of the images on which a model of nnU-Net was trained, measured once and kept in the model's folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from fvae_nnunet.errors import UserError, some_of
from fvae_nnunet.files.checked_json import read_json
from fvae_nnunet.files.recorded import sha256_of_file, write_shared
from fvae_nnunet.jobs.pipeline import StageSeconds, run_cases
from fvae_nnunet.nnunet.folders import nnunet_folder, training_files
from fvae_nnunet.nnunet.trained_model import TrainedModel
from fvae_nnunet.reconstruction.noise_reduction import read_image

NOISE_FILE = "fvae_training_noise.json"
"""File in the model's folder; removing it has the noise measured again."""

FINGERPRINT_FILE = "dataset_fingerprint.json"
"""nnU-Net's copy in the model's folder; the noise is measured again if it has changed."""

_SHAPE = {"fingerprint_sha256": (str, None), "noise_hu": {"*": {"*": (float, None)}}}


def training_noise_hu(
    model: TrainedModel,
    channels: Sequence[int],
    *,
    hu_as_is: bool = False,
    workers: int,
    on_image: Callable[[int, int], object] = lambda done, total: None,
) -> dict[int, float]:
    """Median noise (``ct.noise``) of the training images of a model in HU, by channel.

    Read from ``NOISE_FILE`` or measured in the dataset of the model in ``nnUNet_raw``.

    Args:
        model: model of any trainer.
        channels: channels with CT in HU.
        hu_as_is: also measure images that cannot be in HU.
        workers: number of processes that read and measure; 0: none.
        on_image: called with the number of images measured and the total.

    Raises:
        UserError: the images are needed but not there, cannot be read or be in HU, or none has soft tissue.
    """
    path = model.folder / NOISE_FILE
    fingerprint = model.folder / FINGERPRINT_FILE
    digest = sha256_of_file(fingerprint) if fingerprint.is_file() else None
    content = read_json(path, _SHAPE, remedy="Remove it to measure the noise again") if path.is_file() else {}
    by_channel = content.get("noise_hu", {}) if content.get("fingerprint_sha256") == digest else {}
    missing = [channel for channel in channels if str(channel) not in by_channel]
    if missing:
        by_channel = by_channel | _measured_hu(model, missing, hu_as_is, workers, on_image)
        content = {"fingerprint_sha256": digest, "noise_hu": by_channel}
        write_shared(path, json.dumps(content, sort_keys=True, indent=1).encode())
    known_hu = {c: [noise for noise in by_channel[str(c)].values() if noise is not None] for c in channels}
    for channel, noise_hu in known_hu.items():
        if not noise_hu:
            raise UserError(
                f"no training image of {model.folder} has soft tissue in channel {channel}, so its noise is not known"
            )
    return {channel: float(np.median(noise_hu)) for channel, noise_hu in known_hu.items()}


def _measured_hu(
    model: TrainedModel, channels: Sequence[int], hu_as_is: bool, workers: int, on_image: Callable[[int, int], object]
) -> dict[str, dict[str, float | None]]:
    """Channel -> case -> noise."""
    images = _training_images(model, channels)
    found: dict[str, dict[str, float | None]] = {str(channel): {} for channel in channels}
    failed = []
    read = partial(_noise_of, images, model.reader, hu_as_is)
    outcomes = run_cases(images, read=read, workers=workers, seconds=StageSeconds())
    for done, outcome in enumerate(outcomes, start=1):
        channel, _, case = outcome.case.partition(" ")
        if outcome.error is None:
            found[channel][case] = outcome.result[0]
        else:
            known = isinstance(outcome.error, UserError)
            failed.append(f"{case}: {outcome.error if known else repr(outcome.error)}")
        on_image(done, len(images))
    if failed:
        raise UserError("the noise of the training images cannot be measured:\n  " + some_of(failed, 20, "\n  "))
    return found


def _training_images(model: TrainedModel, channels: Sequence[int]) -> Mapping[str, Path]:
    """``CHANNEL CASE`` -> image."""
    raw = nnunet_folder("nnUNet_raw") / model.plans["dataset_name"]
    if not raw.is_dir():
        raise UserError(
            f"the noise of the training images of {model.folder} is not known, and they are not in {raw}; predict once "
            f"where they are, and copy {NOISE_FILE} from the folder of the model there to this one"
        )
    files = training_files(raw, model.dataset_json)
    return {f"{channel} {case}": Path(files[case]["images"][channel]) for channel in channels for case in sorted(files)}


def _noise_of(images: Mapping[str, Path], reader: str | None, hu_as_is: bool, image: str) -> tuple[float | None]:
    return (read_image(images[image], reader=reader, hu_as_is=hu_as_is).noise_hu,)
