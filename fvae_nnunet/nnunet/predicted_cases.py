"""Cases of ``fvae-predict``: settings, input files and result files."""

from __future__ import annotations

import re
import signal
import tempfile
import threading
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from fvae_nnunet.ct.files import find_files, read_header, read_volume
from fvae_nnunet.ct.stored_images import check_image_file
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.ordinary import check_name
from fvae_nnunet.nnunet.image_readers import READERS
from fvae_nnunet.nnunet.trained_model import TrainedModel

CaseFiles = dict[str, list[Path]]
"""Case -> files of its channels, in order."""

SCRATCH_PREFIX = ".fvae-predict-"


@dataclass(frozen=True)
class PredictionSettings:
    """Settings of nnU-Net's prediction.

    Attributes:
        device: ``cuda``, ``cpu`` or ``mps``; None: ``cuda`` if there is a GPU, else ``cpu``.
        step_size: step of the sliding window, as a share of the patch.
        mirroring: average over mirrored images (nnU-Net's test-time augmentation).
        on_device: keep all results on the GPU.
        save_probabilities: write ``.npz`` and ``.pkl`` beside each segmentation.
        preprocessing_processes, export_processes: numbers of processes; if both are 0, everything except the averaging
            of inputs runs in this process.
        previous_stage: folder with the predictions of the previous stage, for a cascade.
        verbose, progress_bar: nnU-Net's own options.
    """

    device: str | None
    step_size: float = 0.5
    mirroring: bool = True
    on_device: bool = True
    save_probabilities: bool = False
    preprocessing_processes: int = 3
    export_processes: int = 3
    previous_stage: Path | None = None
    verbose: bool = False
    progress_bar: bool = True

    def __post_init__(self) -> None:
        processes = (self.preprocessing_processes, self.export_processes)
        if processes != (0, 0) and min(processes) < 1:
            raise UserError(
                "`preprocessing_processes` and `export_processes` must be at least 1, or both 0 for none; got "
                f"{processes[0]} and {processes[1]}"
            )


def find_cases(folder: Path, model: TrainedModel) -> CaseFiles:
    """Find the cases in a folder of images ``CASE_0000.ending``, one file for each channel, in nnU-Net's order.

    Raises:
        UserError: the folder or its images are missing, images would be left out (see ``ct.files.find_files``), names
            have no channel number, or a case has missing or surplus channels.
    """
    ending = model.file_ending
    files = find_files(folder, ending)
    if not files:
        raise UserError(f"{folder} has no image with the ending of the model's training images, {ending}")
    unnumbered = [path.name for name, path in files.items() if not re.fullmatch(r".+_\d{4}", name)]
    if unnumbered:
        raise UserError(
            f"nnU-Net's images are named CASE_0000{ending}; in {folder}, these have no channel number: "
            f"{', '.join(unnumbered)}"
        )
    cases: CaseFiles = {}
    for path in sorted(files.values(), key=lambda path: (case_of(path, model), path.name)):
        cases.setdefault(case_of(path, model), []).append(path)
    for case, channels in cases.items():
        needed = [f"{case}_{channel:04d}{ending}" for channel in range(model.channels)]
        found = [path.name for path in channels]
        if found != needed:
            raise UserError(f"{case} needs {', '.join(needed)} in {folder}; found {', '.join(found)}")
    return cases


def case_of(image: Path, model: TrainedModel) -> str:
    """Case to which an image ``CASE_0000.ending`` belongs."""
    return image.name.removesuffix(model.file_ending)[:-5]


def damaged_cases(
    cases: CaseFiles, channels: Collection[int], *, reader: str | None, workers: int
) -> dict[str, UserError]:
    """Cases with a damaged file among these channels, with the error.

    For files that nnU-Net itself reads with this reader: it would predict on whatever values the reader returns.
    """

    def error_of(case: str) -> UserError | None:
        try:
            for channel in channels:
                check_image_file(cases[case][channel])
                if reader in READERS:
                    read_header(cases[case][channel], reader=reader)
        except UserError as error:
            return error
        return None

    with ThreadPoolExecutor(max(1, workers)) as pool:
        errors = zip(cases, pool.map(error_of, cases), strict=True)
        return {case: error for case, error in errors if error is not None}


def result_files(output: Path, case: str, model: TrainedModel, how: PredictionSettings) -> list[Path]:
    """Files that nnU-Net writes for a case, in its order, with the segmentation last."""
    probabilities = [output / f"{case}.npz", output / f"{case}.pkl"] if how.save_probabilities else []
    return [*probabilities, output / f"{case}{model.file_ending}"]


def remove_results(output: Path, case: str, model: TrainedModel) -> None:
    """Remove the results of a case, also probabilities of an earlier run: nnU-Net ensembles whatever it finds."""
    for ending in (".npz", ".pkl", model.file_ending):
        (output / f"{case}{ending}").unlink(missing_ok=True)


def has_results(output: Path, case: str, model: TrainedModel, how: PredictionSettings) -> bool:
    """Whether nnU-Net would skip a case as predicted: it looks for the segmentation and the ``.npz``."""
    return all(path.is_file() for path in result_files(output, case, model, how) if path.suffix != ".pkl")


def is_predicted(output: Path, case: str, model: TrainedModel, how: PredictionSettings) -> bool:
    """Whether a case has results that can be read; a process that was killed may have left incomplete ones."""
    if not has_results(output, case, model, how):
        return False
    try:
        if how.save_probabilities:
            ZipFile(output / f"{case}.npz").close()
        read_volume(output / f"{case}{model.file_ending}")
    except (BadZipFile, UserError):
        return False
    return True


@contextmanager
def scratch_folder(output: Path) -> Iterator[Path]:
    """Yield a hidden folder in ``output``, removed with its contents when the block ends, fails or gets SIGTERM.

    It is in the output folder because that has space and write permission, and finished files can be moved out of it.
    Only SIGKILL or loss of power leaves it behind. ``output`` is created if needed, and removed if it stays empty.

    Raises:
        UserError: nnU-Net's writers cannot handle the name of the folder.
    """
    check_name(output)
    existed = output.is_dir()
    output.mkdir(parents=True, exist_ok=True)
    try:
        with _exit_at_sigterm(), tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=output) as folder:
            yield Path(folder)
    finally:
        if not existed:
            with suppress(OSError):
                output.rmdir()


@contextmanager
def _exit_at_sigterm() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, so that temporary files are removed."""

    def leave(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
