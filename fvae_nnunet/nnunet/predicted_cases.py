"""What ``fvae-predict`` predicts, how, and which files a case has before and after."""

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

from fvae_nnunet.ct.files import find_files, read_header
from fvae_nnunet.ct.stored_images import check_image_file
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.ordinary import check_name
from fvae_nnunet.nnunet.image_readers import READERS
from fvae_nnunet.nnunet.trained_model import TrainedModel

CaseFiles = dict[str, list[Path]]
"""For each case the files of its channels, in order."""

SCRATCH_PREFIX = ".fvae-predict-"


@dataclass(frozen=True)
class PredictionSettings:
    """How nnU-Net predicts.

    Attributes:
        device: ``cuda``, ``cpu`` or ``mps``.
        step_size: of the sliding window, as a share of the patch.
        mirroring: average over mirrored images (nnU-Net's test time augmentation).
        on_device: keep everything on the GPU.
        save_probabilities: write ``.npz`` and ``.pkl`` beside each segmentation.
        preprocessing_processes, export_processes: both 0: all but the averaging of inputs in this process.
        previous_stage: folder of the predictions of the previous stage, for a cascade.
        verbose, progress_bar: of nnU-Net.
    """

    device: str
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
    """The cases in a folder of images ``CASE_0000.ending``, one file for each channel, in nnU-Net's order.

    Raises:
        UserError: no such folder or images, images that would be left out (see ``ct.files.find_files``), names
            without a channel's number, or channels missing or one too many.
    """
    ending = model.file_ending
    files = find_files(folder, ending)
    if not files:
        raise UserError(f"{folder} holds no image with the ending {ending} of the model's training images")
    unnumbered = [path.name for name, path in files.items() if not re.fullmatch(r".+_\d{4}", name)]
    if unnumbered:
        raise UserError(
            f"nnU-Net's images are called CASE_0000{ending}; in {folder} there is no channel number in: "
            f"{', '.join(unnumbered)}"
        )
    cases: CaseFiles = {}
    for path in sorted(files.values(), key=lambda path: (case_of(path, model), path.name)):
        cases.setdefault(case_of(path, model), []).append(path)
    for case, channels in cases.items():
        needed = [f"{case}_{channel:04d}{ending}" for channel in range(model.channels)]
        found = [path.name for path in channels]
        if found != needed:
            raise UserError(f"{case} needs {', '.join(needed)} in {folder}; there is {', '.join(found)}")
    return cases


def case_of(image: Path, model: TrainedModel) -> str:
    """The case that an image ``CASE_0000.ending`` belongs to."""
    return image.name.removesuffix(model.file_ending)[:-5]


def damaged_cases(
    cases: CaseFiles, channels: Collection[int], *, reader: str | None, workers: int
) -> dict[str, UserError]:
    """The cases with a file among these channels that is refused, and what is wrong with it.

    For the files that nnU-Net reads, with this reader: it would predict on what the reader makes up.
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
    """What nnU-Net writes for a case, in its order: the segmentation last."""
    probabilities = [output / f"{case}.npz", output / f"{case}.pkl"] if how.save_probabilities else []
    return [*probabilities, output / f"{case}{model.file_ending}"]


def is_predicted(output: Path, case: str, model: TrainedModel, how: PredictionSettings) -> bool:
    """Whether nnU-Net leaves a case alone that it is to predict: it looks at the segmentation and the ``.npz``."""
    return all(path.is_file() for path in result_files(output, case, model, how) if path.suffix != ".pkl")


@contextmanager
def scratch_folder(output: Path) -> Iterator[Path]:
    """A hidden folder in ``output``, removed with all it holds when the block ends, fails or is told to end.

    In the output folder, because there is room and right to write, and a finished file can be moved from it. Only a
    process that is killed on the spot (SIGKILL, loss of power) leaves it behind. ``output`` is made if needed, and
    removed again if nothing came into it.

    Raises:
        UserError: nnU-Net's writers cannot take the folder's name.
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
    """Leave with an exception, so that what was begun is cleared away."""

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
