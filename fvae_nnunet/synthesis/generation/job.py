"""Generate synthetic cases one by one, from any kind of input; see ``synthetic_folder`` for the output."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from fvae_nnunet.jobs.manifest import MANIFEST_FOLDER, Manifest, write_json
from fvae_nnunet.jobs.pipeline import Outcome, StageSeconds, run_cases
from fvae_nnunet.nnunet.structures import TRAINING_FOLDER
from fvae_nnunet.nnunet.synthetic_folder import REJECTED
from fvae_nnunet.synthesis.generation.painting import PaintSettings
from fvae_nnunet.synthesis.sources.cases import SourceDataset

if TYPE_CHECKING:
    from fvae_nnunet.nnunet.segmenter import Segmenter, SegmenterModel
    from fvae_nnunet.synthesis.model.latent_diffusion import LatentDiffusion
    from fvae_nnunet.synthesis.model.sampling import OnStep

KIND = "synthetic"
_OUR_FOLDERS = ("imagesTr", "labelsTr", TRAINING_FOLDER, "records", REJECTED)

Ready = TypeVar("Ready")
"""The inputs that were read for a case."""


@dataclass(frozen=True)
class Generated(Generic[Ready]):
    """A synthetic volume that is not written yet.

    Attributes:
        ready: its inputs.
        volume_hu: int16 (z, y, x), axial.
        model: description of the model for records.
        found: bool, lesion voxels predicted by a segmenter; None without a segmenter.
    """

    ready: Ready
    volume_hu: np.ndarray
    model: dict[str, Any]
    found: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Job(ABC, Generic[Ready]):
    """A generation job: everything that determines synthetic cases except the model, picklable.

    Attributes:
        dataset: dataset of the source cases, with the classes of the model.
        output: output folder.
        seed: seed of all random draws.
        paint: settings for generating lesions.
        model_folder: folder of the model, for the record.
        segmenter_model: segmenter that must find the lesions; None: no such check.
    """

    dataset: SourceDataset
    output: Path
    seed: int
    paint: PaintSettings
    model_folder: Path
    segmenter_model: SegmenterModel | None = None

    @property
    def manifest(self) -> Manifest:
        return Manifest(self.output / MANIFEST_FOLDER)

    @abstractmethod
    def recorded(self) -> dict[str, Any]:
        """The settings, except those of the model, that affect a voxel or a verdict, for manifest and record."""

    def begin(self, model: dict[str, Any], *, overwrite: bool) -> None:
        """Start the output folder, or check that it was started with the same settings.

        Args:
            model: description of the model for records.
            overwrite: empty the folder first.

        Raises:
            UserError: the folder has files of another origin, or was started with different settings.
        """
        check_is_ours(self.output)
        if overwrite:
            for name in _OUR_FOLDERS:
                shutil.rmtree(self.output / name, ignore_errors=True)
            self.manifest.remove(KIND)
        made_by = {key: model[key] for key in ("weights_sha256", "vae", "vae_sha256")}
        self.manifest.begin(KIND, self.decided_by() | {"model": made_by}, {"model": model})
        write_json(self.output / "dataset.json", self.dataset.dataset_json)

    def decided_by(self) -> dict[str, Any]:
        """The settings common to all cases of the folder, for its manifest."""
        return self.recorded()

    @abstractmethod
    def read(self, case: str) -> Ready | None:
        """Read the inputs of a case; None if the case is done.

        Raises:
            UserError: the case cannot be generated.
        """

    @abstractmethod
    def generate(
        self, case: str, ready: Ready, model: LatentDiffusion, segmenter: Segmenter | None, on_step: OnStep | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Generate a case: ``volume_hu`` and ``found`` of ``Generated``."""

    @abstractmethod
    def write(self, case: str, generated: Generated[Ready]) -> dict[str, Any]:
        """Write a case; returns its record ``{"accepted": bool, "reasons": [...], "said": description, ...}``."""


def check_is_ours(output: Path) -> None:
    """Raise UserError if a folder has images, labels or a dataset.json that ``fvae-synthesize`` did not write."""
    names = (*_OUR_FOLDERS, "dataset.json")
    Manifest(output / MANIFEST_FOLDER).refuse_foreign(output, names, kind=KIND, command="fvae-synthesize")


def make_cases(
    job: Job[Any],
    model: LatentDiffusion,
    segmenter: Segmenter | None,
    *,
    cases: Iterable[str],
    workers: int,
    seconds: StageSeconds,
    overwrite: bool = False,
    on_step: Callable[[str, int, int], object] | None = None,
) -> Generator[Outcome, None, None]:
    """Generate the cases that do not exist yet; their results are those of ``Job.write``.

    Args:
        job: the job.
        model: the diffusion model.
        segmenter: segmenter of ``job.segmenter_model``.
        cases: names of the cases, consumed one by one.
        workers: number of processes that read, plan, judge and write; 0: none.
        seconds: filled with the time spent in each stage.
        overwrite: empty the folder first.
        on_step: called with the case, its number of sampling steps done and the total.

    Raises:
        UserError: the folder has files of another origin or was started with different settings, or the disk is full.
    """
    job = replace(job, paint=job.paint.resolved(model.process))
    described = {
        "folder": job.model_folder.resolve().name,
        "weights_sha256": model.weights_sha256,
        "vae": model.settings.vae,
        "vae_sha256": model.settings.weights_sha256,
        "dataset": model.training.get("dataset"),
        "training_cases": model.training.get("training_cases"),
    }
    job.begin(described, overwrite=overwrite)

    def compute(case: str, ready: Any) -> Generated[Any]:
        of_case = None if on_step is None else partial(on_step, case)
        volume_hu, found = job.generate(case, ready, model, segmenter, of_case)
        return Generated(ready, volume_hu, described, found)

    return run_cases(cases, read=job.read, compute=compute, write=job.write, workers=workers, seconds=seconds)
