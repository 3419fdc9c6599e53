"""Images to predict, reconstructed as in the view that the model was trained with."""

from __future__ import annotations

import argparse
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvae_nnunet.cli.cases import ReconstructionProgress
from fvae_nnunet.cli.recorded_view import load_recorded

if TYPE_CHECKING:
    from fvae_nnunet.nnunet.predicted_cases import CaseFiles
    from fvae_nnunet.nnunet.trained_model import TrainedModel


def reconstruct(
    arguments: argparse.Namespace, model: TrainedModel, cases: CaseFiles, folder: Path
) -> tuple[CaseFiles, dict[str, Any]]:
    """Reconstruct the CT channels into ``folder``.

    Returns:
        The files of successful cases, and a record of the view.
    """
    from fvae_nnunet.nnunet.ct_channels import said_channels
    from fvae_nnunet.nnunet.predicted_cases import case_of
    from fvae_nnunet.reconstruction.folder import reconstruct_folder

    channels = model.reconstructed_channels(arguments.channels)
    print(said_channels(model.dataset_json, channels))
    loaded = load_recorded(arguments, model)
    files_to_do = [files[channel] for files in cases.values() for channel in channels]
    images = {path.name.removesuffix(model.file_ending): path for path in files_to_do}
    progress = ReconstructionProgress(len(images), verbose=arguments.verbose)
    outcomes = reconstruct_folder(
        images,
        folder,
        loaded.vae,
        settings=loaded.settings,
        hu_as_is=loaded.parameters.get("hu_as_is", False),
        workers=arguments.preprocessing_processes,
        seconds=progress.seconds,
        made_with=loaded.made_with,
        reader=model.reader,
        on_slices=progress.on_slices,
    )
    with closing(outcomes):
        for outcome in outcomes:
            progress.add(replace(outcome, result=asdict(outcome.result)) if outcome.result else outcome)
    progress.finish("fvae-predict", "these are predicted now")
    print(f"reconstructed: {progress.summary}")
    failed = {case_of(images[image], model) for image in progress.failed}
    files = {
        case: [folder / path.name if channel in channels else path for channel, path in enumerate(paths)]
        for case, paths in cases.items()
        if case not in failed
    }
    made = loaded.settings.recorded_with(loaded.vae)
    return files, {**made, "ct_channels": channels, "made_with": loaded.made_with}
