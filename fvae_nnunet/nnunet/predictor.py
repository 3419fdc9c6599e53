"""nnU-Net's predictor on a list of cases, from one input or from the mean of the probabilities of several inputs.

nnU-Net itself predicts (``nnUNetPredictor``) and averages (``ensemble_folders``). This module adds that the files of a
case may be in several folders, that the failure of one case does not stop the others, and that a mean appears only when
it is complete.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fvae_nnunet.device.memory import release
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.recorded import FULL_DISK
from fvae_nnunet.jobs.devices import chosen_device
from fvae_nnunet.nnunet.predicted_cases import (
    CaseFiles,
    PredictionSettings,
    is_predicted,
    remove_results,
    result_files,
)
from fvae_nnunet.nnunet.trained_model import TrainedModel

MEAN_CASES = 8
"""Number of cases whose probabilities are on disk at once while inputs are averaged: nnU-Net restarts its processes for
each batch, and a CT of 512 x 512 x 500 has 0.5 GB of float32 for each class and input before compression."""

FULL_DISK_BYTES = 1 << 20
"""With less free space no segmentation can be written, and SimpleITK does not report it."""

ARGUMENTS_FILE = "predict_from_raw_data_args.json"
_FILES_OF_A_FOLDER = (ARGUMENTS_FILE, "dataset.json", "plans.json")


def check_holds_predictions(output: Path) -> None:
    """Raise UserError if a folder holds a dataset.json or plans.json that was not written by a prediction."""
    there = [name for name in _FILES_OF_A_FOLDER if (output / name).exists()]
    if there and ARGUMENTS_FILE not in there:
        raise UserError(f"{output} holds {there[0]} but no predictions; choose another folder (`output`)")


class Predictor:
    """Predicts cases with a trained model, which stays on the CPU until the first case.

    Args:
        model: the trained model.
        how: settings of the prediction.
        inputs: names of the inputs. With one input, the result is that of nnU-Net; with several, it is nnU-Net's
            ensemble of the predictions from each, in this order.

    Raises:
        UserError: torch does not see the device, nnU-Net cannot build the network, the model is the second stage of a
            cascade and there is no previous stage (or vice versa), or the installed nnU-Net is too old for these
            settings.
    """

    def __init__(self, model: TrainedModel, how: PredictionSettings, inputs: Sequence[str]) -> None:
        import torch
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        self.model = model
        self.how = how
        self.inputs = tuple(inputs)
        self.device = chosen_device(how.device)
        benchmark = torch.backends.cudnn.benchmark
        self._nnunet = nnUNetPredictor(
            tile_step_size=how.step_size,
            use_gaussian=True,
            use_mirroring=how.mirroring,
            perform_everything_on_device=how.on_device,
            device=torch.device(self.device),
            verbose=how.verbose,
            verbose_preprocessing=how.verbose,
            allow_tqdm=how.progress_bar,
        )
        # nnU-Net turns it on for a GPU; a VAE that computes before nnU-Net must compute as in fvae-reconstruct
        torch.backends.cudnn.benchmark = benchmark
        try:
            self._nnunet.initialize_from_trained_model_folder(
                str(model.folder), list(model.folds), checkpoint_name=model.checkpoint_name
            )
        except RuntimeError as error:
            raise UserError(f"nnU-Net cannot load the model in {model.folder}: {error}") from error
        previous = self._nnunet.configuration_manager.previous_stage_name
        if previous is not None and how.previous_stage is None:
            raise UserError(
                f"the model is the second stage of a cascade; predict with {previous} first and give the folder of its "
                "predictions with `previous_stage`"
            )
        if previous is None and how.previous_stage is not None:
            raise UserError(
                "`previous_stage` is for the second stage of a cascade, which this model is not; leave it out"
            )
        self._refuse_what_this_nnunet_gets_wrong()

    def _refuse_what_this_nnunet_gets_wrong(self) -> None:
        installed = version("nnunetv2")
        release = tuple(map(int, installed.split(".")[:2]))
        if release < (2, 7) and len(self.inputs) > 1 and self._nnunet.label_manager.has_regions:
            # its ensembling applies the sigmoid again to the mean, so nearly every voxel is above one half
            raise UserError(f"nnU-Net {installed} averages probabilities of regions incorrectly; install 2.7 or later")
        if release < (2, 8) and self.how.previous_stage is not None and self.how.preprocessing_processes == 0:
            # without processes, it does not pass the previous stage to the network
            raise UserError(
                f"nnU-Net {installed} predicts a cascade only with processes; leave out `preprocessing_processes=0`"
            )

    def predict(self, inputs: dict[str, CaseFiles], output: Path, *, scratch: Path) -> dict[str, Exception]:
        """Write the segmentation of each case, and its probabilities if requested, into ``output``.

        With several inputs, ``MEAN_CASES`` cases are predicted at a time. Existing results of these cases are removed
        first, so that a failed case does not keep an old result.

        Args:
            inputs: input -> files of the cases, which are the same for all inputs.
            output: an existing folder.
            scratch: an existing folder on the same file system.

        Returns:
            Failed cases with their errors.

        Raises:
            OSError: the disk is full.
        """
        cases = list(inputs[self.inputs[0]])
        for case in cases:
            remove_results(output, case, self.model)
        failed: dict[str, Exception] = {}
        at_once = MEAN_CASES if len(self.inputs) > 1 else max(1, len(cases))
        with _nnunets_torch(self.device):
            for first in range(0, len(cases), at_once):
                failed |= self._predict_or_name(inputs, cases[first : first + at_once], output, scratch)
        return failed

    def _predict_or_name(
        self, inputs: dict[str, CaseFiles], cases: list[str], output: Path, scratch: Path
    ) -> dict[str, Exception]:
        """Predict all cases together; if nnU-Net stops, predict the remaining cases one by one."""
        try:
            self._predict_together(inputs, cases, output, scratch)
        except Exception as error:
            release(error)  # the error stays referenced while the remaining cases are predicted
            if isinstance(error, OSError) and error.errno in FULL_DISK:
                raise
            if shutil.disk_usage(output).free < FULL_DISK_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(output)) from error
            if len(cases) == 1:
                remove_results(output, cases[0], self.model)
                return {cases[0]: error}
            print(f"nnU-Net stopped ({error}); predicting the remaining cases one by one", file=sys.stderr)
            failed: dict[str, Exception] = {}
            for case in cases:
                if not is_predicted(output, case, self.model, self.how):
                    failed |= self._predict_or_name(inputs, [case], output, scratch)
            return failed
        return {}

    def _predict_together(self, inputs: dict[str, CaseFiles], cases: list[str], output: Path, scratch: Path) -> None:
        if len(self.inputs) == 1:
            files = inputs[self.inputs[0]]
            self._run_nnunet([files[case] for case in cases], output, self.how.save_probabilities)
            return
        from nnunetv2.ensembling.ensemble import ensemble_folders

        with tempfile.TemporaryDirectory(dir=scratch) as name:
            folders = [Path(name) / input_name for input_name in self.inputs]
            for folder in folders:
                folder.mkdir()
                self._run_nnunet([inputs[folder.name][case] for case in cases], folder, True)
            mean = Path(name) / "mean"
            ensemble_folders(
                [str(folder) for folder in folders],
                str(mean),
                self.how.save_probabilities,
                max(1, self.how.export_processes),
            )
            for case in cases:
                for path in result_files(mean, case, self.model, self.how):
                    path.replace(output / path.name)
            for file_name in _FILES_OF_A_FOLDER:
                (folders[0] / file_name).replace(output / file_name)

    def _run_nnunet(self, images: Sequence[Sequence[Path]], output: Path, save_probabilities: bool) -> None:
        previous = self.how.previous_stage
        arguments: dict[str, Any] = {
            "list_of_lists_or_source_folder": [[str(path) for path in channels] for channels in images],
            "output_folder_or_list_of_truncated_output_files": str(output),
            "save_probabilities": save_probabilities,
            "overwrite": True,
            "folder_with_segs_from_prev_stage": None if previous is None else str(previous),
        }
        if self.how.preprocessing_processes == 0:
            self._nnunet.predict_from_files_sequential(**arguments)
        else:
            self._nnunet.predict_from_files(
                **arguments,
                num_processes_preprocessing=self.how.preprocessing_processes,
                num_processes_segmentation_export=self.how.export_processes,
            )


@contextmanager
def _nnunets_torch(device: str) -> Iterator[None]:
    """Use the torch settings of nnUNetv2_predict within the block."""
    import torch

    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = benchmark or device == "cuda"
    if device in ("cpu", "cuda"):
        torch.set_num_threads(1 if device == "cuda" else os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = benchmark
