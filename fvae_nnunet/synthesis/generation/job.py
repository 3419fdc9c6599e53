"""Making synthetic cases one by one, whatever they are made from; see ``synthetic_folder`` for what comes out."""

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
"""What was read for a case."""


@dataclass(frozen=True)
class Generated(Generic[Ready]):
    """A synthetic volume that is not written yet.

    Attributes:
        ready: what it was made from.
        volume_hu: int16 (z, y, x), axial.
        model: as records state it.
        found: bool, what a segmenter calls lesion; None: there is none.
    """

    ready: Ready
    volume_hu: np.ndarray
    model: dict[str, Any]
    found: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Job(ABC, Generic[Ready]):
    """Everything that decides synthetic cases but the model, in picklable form, and how a case is made.

    Attributes:
        dataset: where source cases are from, with the classes of the model.
        output: the folder.
        seed: of everything random.
        paint: how the model generates.
        model_folder: for the record.
        segmenter_model: that must find the lesions; None: none must.
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
        """The settings that change a voxel or a verdict, for manifest and record; without the model's."""

    def begin(self, model: dict[str, Any], *, overwrite: bool) -> None:
        """Start the folder, or check that it was started with the same settings.

        Args:
            model: as records state it.
            overwrite: empty the folder first.

        Raises:
            UserError: it is not ours, or was started with other settings.
        """
        check_is_ours(self.output)
        if overwrite:
            for name in _OUR_FOLDERS:
                shutil.rmtree(self.output / name, ignore_errors=True)
            self.manifest.remove()
        made_by = {key: model[key] for key in ("weights_sha256", "vae", "vae_sha256")}
        self.manifest.begin(KIND, self.decided_by() | {"model": made_by}, {"model": model})
        write_json(self.output / "dataset.json", self.dataset.dataset_json)

    def decided_by(self) -> dict[str, Any]:
        """What all cases of the folder have in common, for its manifest."""
        return self.recorded()

    @abstractmethod
    def read(self, case: str) -> Ready | None:
        """What the case is made from; None where it is done.

        Raises:
            UserError: it cannot be made.
        """

    @abstractmethod
    def generate(
        self, case: str, ready: Ready, model: LatentDiffusion, segmenter: Segmenter | None, on_step: OnStep | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """``volume_hu`` and ``found`` of ``Generated``."""

    @abstractmethod
    def write(self, case: str, generated: Generated[Ready]) -> dict[str, Any]:
        """Write files and record of a case: ``{"accepted": bool, "reasons": [...], "said": what it is, ...}``."""


def check_is_ours(output: Path) -> None:
    """Raise UserError where a folder holds images, labels or a dataset.json that ``fvae-synthesize`` has not made."""
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
    """Make the cases that are not there yet; their results are those of ``Job.write``.

    Args:
        job: what to make.
        model: what generates.
        segmenter: of ``job.segmenter_model``.
        cases: names, asked for one by one.
        workers: processes that read, plan, judge and write; 0: none.
        seconds: filled with where the time went.
        overwrite: empty the folder first.
        on_step: called with the case, sampling steps done and in all.

    Raises:
        UserError: the folder is not ours or was filled with other settings, or the disk is full.
    """
    job = replace(job, paint=job.paint.resolved(model.process))
    described = {
        "folder": job.model_folder.resolve().name,
        "weights_sha256": model.weights_sha256,
        "vae": model.settings.vae,
        "vae_sha256": model.settings.weights_sha256,
        "training_cases": model.training.get("training_cases"),
    }
    job.begin(described, overwrite=overwrite)

    def compute(case: str, ready: Any) -> Generated[Any]:
        of_case = None if on_step is None else partial(on_step, case)
        volume_hu, found = job.generate(case, ready, model, segmenter, of_case)
        return Generated(ready, volume_hu, described, found)

    return run_cases(cases, read=job.read, compute=compute, write=job.write, workers=workers, seconds=seconds)
