"""Segment generated images with an nnU-Net model trained on real images."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

from fvae_nnunet.ct.files import image_ending
from fvae_nnunet.errors import UserError, some_of
from fvae_nnunet.evaluation.generation.image_sets import ImageSet
from fvae_nnunet.files.recorded import sha256_of_file
from fvae_nnunet.jobs.manifest import MANIFEST_FOLDER, Manifest, write_json
from fvae_nnunet.nnunet.predicted_cases import PredictionSettings
from fvae_nnunet.nnunet.predictor import Predictor
from fvae_nnunet.nnunet.structures import NAMES_FILE
from fvae_nnunet.nnunet.trained_model import TrainedModel
from fvae_nnunet.numbers_as_text import counted


def segment_cases(
    images: ImageSet, model: TrainedModel, output: Path, *, device: str, on_case: Callable[[], object] = lambda: None
) -> None:
    """Write a label map ``CASE.ending`` for each image, and ``structures.json`` with the model's labels.

    Cases that already exist from the same image and model are skipped.

    Raises:
        UserError: the model does not accept the images, the folder belongs to another model, or cases failed, one line
            each.
    """
    wrong = [case.name for case in images.cases if len(case.images) != model.channels]
    if wrong:
        raise UserError(
            f"{images.folder}: the segmenter needs {counted(model.channels, 'channel')}, but {some_of(wrong)} "
            "have another number"
        )
    others = sorted({image_ending(path) for case in images.cases for path in case.images} - {model.file_ending})
    if others:
        raise UserError(
            f"{images.folder}: the segmenter takes {model.file_ending} files, not {', '.join(others)}; convert them"
        )
    manifest = Manifest(output / MANIFEST_FOLDER)
    manifest.begin(
        "segmentations",
        {"weights_sha256": model.weights_sha256},
        {"model": str(model.folder)},
        remedy=f"Use another folder (`output`), or remove {output}",
    )
    todo = {}
    for case in images.cases:
        inputs = {path.name: sha256_of_file(path) for path in case.images}
        if manifest.is_done(case.name, inputs=inputs, outputs=[output / f"{case.name}{model.file_ending}"]):
            on_case()
        else:
            todo[case.name] = (list(case.images), inputs)
    labels = model.dataset_json["labels"]
    write_json(output / NAMES_FILE, {name: value for name, value in labels.items() if name != "ignore"})
    if not todo:
        return
    how = PredictionSettings(device, preprocessing_processes=0, export_processes=0, progress_bar=False)
    predictor = Predictor(model, how, ["generated"])
    failed: dict[str, Exception] = {}
    for case_name, (paths, inputs) in todo.items():
        # nnU-Net prints lines for each case, which would break the progress bar
        with redirect_stdout(io.StringIO()):
            failed |= predictor.predict({"generated": {case_name: paths}}, output, scratch=output)
        if case_name not in failed:
            result = output / f"{case_name}{model.file_ending}"
            manifest.write_case(case_name, inputs=inputs, outputs=[result], results={})
        on_case()
    if failed:
        lines = [f"{case}: {error}" for case, error in failed.items()]
        raise UserError("the segmenter failed on\n  " + "\n  ".join(lines))
