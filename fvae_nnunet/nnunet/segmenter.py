"""Segmentation of synthetic cases with a trained nnU-Net model, to check which lesions it finds."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fvae_nnunet.ct.files import read_image, read_volume, write_volume
from fvae_nnunet.ct.geometry import Geometry
from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.predicted_cases import PredictionSettings
from fvae_nnunet.nnunet.predictor import Predictor
from fvae_nnunet.nnunet.trained_model import TrainedModel, open_model
from fvae_nnunet.numbers_as_text import counted

CHECKPOINT = "checkpoint_final.pth"


def open_segmenter(folder: Path, fold: int | None = None) -> TrainedModel:
    """Open the model in a folder, with one fold or with all trained folds.

    Raises:
        UserError: it is not the folder of a trained model, or the model has seen only reconstructions.
    """
    if not folder.is_dir():
        raise UserError(f"`segmenter`: {folder} is not a folder")
    trained = sorted(path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{CHECKPOINT}"))
    folds = tuple(int(name) if name.isdigit() else name for name in trained) if fold is None else (fold,)
    if not folds:
        raise UserError(f"`segmenter`: {folder} has no fold_*/{CHECKPOINT}; give the folder of a trained model")
    model = open_model(folder, folds, CHECKPOINT)
    if model.saw_only_the_view:
        raise UserError(
            f"`segmenter`: {folder} has seen only reconstructions ({model.trainer}); use a model of raw images"
        )
    return model


@dataclass(frozen=True)
class SegmenterModel:
    """A model and its lesion label. Small and picklable; ``Segmenter`` holds the network.

    Attributes:
        model: nnU-Net's model folder and its folds.
        lesion_values: values of the lesion label in its segmentations.
    """

    model: TrainedModel
    lesion_values: tuple[int, ...]

    @classmethod
    def open(cls, folder: Path, *, lesion_name: str, channels: int, fold: int | None) -> SegmenterModel:
        """Open a model folder and check that the model fits.

        Args:
            folder: nnU-Net's folder of the trained model, ``TRAINER__PLANS__CONFIGURATION``.
            lesion_name: name of the lesion label, which the model must have.
            channels: number of channels of the images to segment.
            fold: fold of the model to use; None: all trained folds.

        Raises:
            UserError: it is not a folder of a trained model, or the model does not fit.
        """
        model = open_segmenter(folder, fold)
        if model.channels != channels:
            raise UserError(
                f"`segmenter`: {folder} takes {counted(model.channels, 'channel')}, but the dataset has {channels}"
            )
        labels = model.dataset_json["labels"]
        if lesion_name not in labels:
            raise UserError(
                f"`segmenter`: {folder} has no label {lesion_name!r}, only {', '.join(labels)}; use a model that was "
                "trained on this lesion"
            )
        values = labels[lesion_name]
        return cls(model, tuple(values) if isinstance(values, list | tuple) else (values,))

    @property
    def weights_sha256(self) -> str:
        return self.model.weights_sha256


class Segmenter:
    """Predicts one case after the other with nnU-Net, through files in a temporary folder.

    Args:
        segmenter_model: the model.
        device: ``cuda``, ``cpu`` or ``mps``.
    """

    def __init__(self, segmenter_model: SegmenterModel, device: str) -> None:
        self.segmenter_model = segmenter_model
        how = PredictionSettings(device, preprocessing_processes=0, export_processes=0, progress_bar=False)
        self._predictor = Predictor(segmenter_model.model, how, ["synthetic"])

    def find_lesions(self, images: Sequence[np.ndarray | Path], geometry: Geometry) -> np.ndarray:
        """Segment the lesion in one case.

        Args:
            images: channels in order: volumes (z, y, x) with the axis order of the file, or files to use as they are.
            geometry: geometry of the volumes.

        Returns:
            Mask of the lesion: bool (z, y, x), with the axis order of the file.

        Raises:
            UserError, or any error of nnU-Net.
        """
        ending = self.segmenter_model.model.file_ending
        with tempfile.TemporaryDirectory(prefix="fvae_nnunet_") as name:
            paths = [Path(name) / f"case_{channel:04d}{ending}" for channel in range(len(images))]
            for path, image in zip(paths, images, strict=True):
                _provide(path, image, geometry)
            output, scratch = Path(name) / "output", Path(name) / "scratch"
            output.mkdir()
            scratch.mkdir()
            # nnU-Net prints a line or two for each case, which would disturb the progress bar
            with redirect_stdout(io.StringIO()):
                failed = self._predictor.predict({"synthetic": {"case": paths}}, output, scratch=scratch)
            for error in failed.values():
                raise error
            segmentation, _ = read_volume(output / f"case{ending}")
        return np.isin(segmentation, self.segmenter_model.lesion_values)


def _provide(path: Path, image: np.ndarray | Path, geometry: Geometry) -> None:
    """Create a file of this name with this image."""
    if isinstance(image, np.ndarray):
        write_volume(path, image, geometry)
    elif image.name.endswith(path.name[len("case_0000") :]):
        path.symlink_to(image.resolve())
    else:
        import SimpleITK as sitk

        sitk.WriteImage(read_image(image), str(path))
