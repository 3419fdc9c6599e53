"""Images to predict, denoised to the noise of the images that the model was trained on."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvae_nnunet.cli.cases import CaseProgress
from fvae_nnunet.jobs.progress_bar import counting_bar
from fvae_nnunet.numbers_as_text import counted, interval, number

if TYPE_CHECKING:
    from fvae_nnunet.nnunet.predicted_cases import CaseFiles
    from fvae_nnunet.nnunet.trained_model import TrainedModel


def denoise(
    arguments: argparse.Namespace, model: TrainedModel, cases: CaseFiles, folder: Path
) -> tuple[CaseFiles, dict[str, Any]]:
    """Write the CT channels that are noisier than the training images into ``folder``, denoised.

    Returns:
        The files of successful cases, and a record of how they were denoised.
    """
    from fvae_nnunet.nnunet.predicted_cases import case_of
    from fvae_nnunet.reconstruction.noise_reduction import denoise_images, denoiser
    from fvae_nnunet.training.image_noise import training_noise_hu

    channels = model.reconstructed_channels(arguments.channels)
    if not cases:
        return cases, {}
    how = {"hu_as_is": bool(arguments.hu_as_is), "workers": arguments.preprocessing_processes}
    with counting_bar(unit="training image") as on_image:
        training_hu = training_noise_hu(model, channels, **how, say=partial(print, file=sys.stderr), on_image=on_image)
    images = {files[channel].name: files[channel] for files in cases.values() for channel in channels}
    wanted_hu = {files[channel].name: training_hu[channel] for files in cases.values() for channel in channels}
    progress = DenoisingProgress(len(images), verbose=arguments.verbose)
    outcomes = denoise_images(images, folder, wanted_hu, reader=model.reader, seconds=progress.seconds, **how)
    with closing(outcomes):
        for outcome in outcomes:
            progress.add(outcome)
    progress.bar.close()
    training = ", ".join(number(training_hu[channel], "HU") for channel in channels)
    print(f"denoised: {progress.done} of {counted(len(images), 'image')}, to the noise of the training ({training} HU)")
    failed = {case_of(images[image], model) for image in progress.failed}
    files = {
        case: [denoised if (denoised := folder / path.name).is_file() else path for path in paths]
        for case, paths in cases.items()
        if case not in failed
    }
    control, settings = denoiser()
    return files, {
        **settings.recorded_with(control),
        "ct_channels": channels,
        "training_noise_hu": [training_hu[channel] for channel in channels],
        "noise_hu": progress.noise_hu,
    }


class DenoisingProgress(CaseProgress):
    """Reports the noise of each image that is denoised.

    Attributes:
        noise_hu: image -> its noise before and after.
    """

    def __init__(self, total: int, **options: Any) -> None:
        super().__init__(total, **options)
        self.noise_hu: dict[str, tuple[float, float]] = {}

    def add_result(self, case: str, result: tuple[float, float]) -> None:
        self.noise_hu[case] = result
        self.bar.write(f"{case}: noise {interval(*result, 'HU')} HU", file=sys.stdout)
