"""Synthetic cases one by one: plan, generate, segmenter_model, write; see ``synthetic_folder`` for what comes out."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Generator, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fvae_nnunet.ct.files import write_volume
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.recorded import atomic_write, sha256_of_file
from fvae_nnunet.jobs.manifest import MANIFEST_FOLDER, Manifest, write_json
from fvae_nnunet.jobs.pipeline import Outcome, StageSeconds, run_cases
from fvae_nnunet.nnunet.synthetic_folder import CasePaths
from fvae_nnunet.synthesis.generation.output import describe, noise_of, open_output
from fvae_nnunet.synthesis.generation.painting import PaintSettings, paint
from fvae_nnunet.synthesis.lesions.growth import plan_growth
from fvae_nnunet.synthesis.lesions.measures import MEASURES
from fvae_nnunet.synthesis.lesions.placed import PlacedLesion, labels_with
from fvae_nnunet.synthesis.lesions.placement import NothingFits
from fvae_nnunet.synthesis.lesions.plan import Avoided, PlanSettings, plan_lesions, sources_of
from fvae_nnunet.synthesis.lesions.quality import QualityLimits, lesion_quality, reasons_against
from fvae_nnunet.synthesis.lesions.real_lesions import (
    FILE_NAME,
    RealLesions,
    read_real_lesions,
    surroundings_of,
    write_real_lesions,
)
from fvae_nnunet.synthesis.lesions.shape_bank import ShapeBank
from fvae_nnunet.synthesis.sources.cases import SourceCase, SourceDataset

if TYPE_CHECKING:
    from fvae_nnunet.nnunet.segmenter import Segmenter, SegmenterModel
    from fvae_nnunet.synthesis.model.latent_diffusion import LatentDiffusion

_REAL_LESIONS = "real_lesions_sha256"


@dataclass(frozen=True)
class Job:
    """Everything that decides a synthetic case but the model, in picklable form.

    Attributes:
        dataset: where source cases and real lesions are from.
        sources: the cases to make synthetic ones from.
        output: the folder.
        seed: of everything random.
        plan, paint: what lesions, and how.
        limits: what they must keep.
        filtered: whether cases that do not keep them are put aside.
        real: the dataset's real lesions; limits are taken and shapes borrowed from them.
        bank: to borrow shapes from instead.
        avoid: masks of structures to keep clear of.
        segmenter_model: the segmenter's model.
        model_folder: for the record.
    """

    dataset: SourceDataset
    sources: tuple[str, ...]
    output: Path
    seed: int
    plan: PlanSettings
    paint: PaintSettings
    limits: QualityLimits
    filtered: bool
    real: RealLesions
    bank: ShapeBank | None
    avoid: Avoided | None
    segmenter_model: SegmenterModel | None
    model_folder: Path

    @property
    def manifest(self) -> Manifest:
        return Manifest(self.output / MANIFEST_FOLDER)

    def recorded(self) -> dict[str, Any]:
        """The settings that change a voxel or a verdict, for manifest and record; without the model's."""
        return {
            "seed": self.seed,
            "dataset": self.dataset.name,
            "lesion": self.dataset.lesion_name,
            "organ": self.dataset.organ.recorded,
            "avoid": self.avoid is not None,
            "shape_bank": None if self.bank is None else self.bank.sha256,
            "filtered": self.filtered,
            "plan": self.plan.recorded(),
            "paint": asdict(self.paint),
            "limits": self.limits.recorded(),
            "segmenter": None if self.segmenter_model is None else self.segmenter_model.weights_sha256,
        }

    def inputs(self, source: str) -> dict[str, str]:
        """Digests of all files that a synthetic case is made from."""
        digests = self.dataset.digests(source)
        for channel, path in enumerate(self.dataset.image_files[source]):
            if channel != self.dataset.ct_channel:
                digests[f"channel {path.name}"] = sha256_of_file(path)
        if self.avoid is not None:
            digests[f"avoid {self.avoid.files[source].name}"] = sha256_of_file(self.avoid.files[source])
        return digests

    def paths(self, case: str, *, accepted: bool) -> CasePaths:
        channels = len(self.dataset.image_files[self.sources[0]])
        return CasePaths.of(
            self.output, case, channels=channels, file_ending=self.dataset.file_ending, accepted=accepted
        )


@dataclass(frozen=True)
class _Planned:
    number: int
    source: SourceCase
    inputs: dict[str, str]
    lesions: list[PlacedLesion]


@dataclass(frozen=True)
class _Painted:
    planned: _Planned
    volume_hu: np.ndarray
    found: np.ndarray | None
    model: dict[str, Any]


def case_name(number: int) -> str:
    """Name of the synthetic case of this number."""
    return f"synthetic_{number:04d}"


def number_of(case: str) -> int:
    """Undoes ``case_name``."""
    return int(case.rpartition("_")[2])


def synthesize_cases(
    job: Job,
    model: LatentDiffusion,
    segmenter: Segmenter | None,
    *,
    cases: Iterable[str],
    workers: int,
    seconds: StageSeconds,
    overwrite: bool = False,
    on_step: Callable[[str, int, int], object] | None = None,
) -> Generator[Outcome, None, None]:
    """Make the cases that are not there yet. The result of each is ``{"accepted": bool, "reasons": [...]}``.

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
    described = describe(model, job.model_folder)
    settings = job.recorded() | {
        "sources": list(job.sources),
        "measures": list(MEASURES),
        _REAL_LESIONS: hashlib.sha256(json.dumps(job.real.lesions, sort_keys=True).encode()).hexdigest(),
    }
    if not overwrite:
        _refuse_other_real_lesions(job, settings)
    open_output(job.output, settings, described, job.dataset.dataset_json, overwrite=overwrite)
    write_real_lesions(job.output / FILE_NAME, job.dataset, job.real)

    def compute(case: str, planned: _Planned) -> _Painted:
        volume_hu = paint(
            model,
            planned.source,
            planned.lesions,
            job.paint,
            generator=noise_of([job.seed, planned.number]),
            on_step=None if on_step is None else partial(on_step, case),
        )
        found = None if segmenter is None else _find(job, segmenter, planned.source, volume_hu)
        return _Painted(planned, volume_hu, found, described)

    return run_cases(
        cases,
        read=partial(_read, job),
        compute=compute,
        write=partial(_write, job),
        workers=workers,
        seconds=seconds,
    )


def _refuse_other_real_lesions(job: Job, settings: dict[str, Any]) -> None:
    """Raise UserError where nothing but the real lesions differs from what the folder was begun with."""
    content = job.manifest.read()
    before = {} if content is None else content["settings"]
    now = json.loads(json.dumps(settings))
    options = now.keys() - {_REAL_LESIONS, "limits"}
    if before.get(_REAL_LESIONS) == now[_REAL_LESIONS] or any(before.get(key) != now[key] for key in options):
        return
    old, new = read_real_lesions(job.output / FILE_NAME, job.dataset), job.real
    others = sorted(case for case in old.digests.keys() | new.digests.keys() if old.of_case(case) != new.of_case(case))
    which = {
        "changed since": [case for case in others if case in old.digests and case in new.digests],
        "left out now": [case for case in others if case not in new.digests],
        "not among them": [case for case in others if case not in old.digests],
    }
    said = "; ".join(f"{what}: {', '.join(cases)}" for what, cases in which.items() if cases)
    raise UserError(
        f"{job.output} was begun with other real lesions of {job.dataset.name}, from which limits and shapes come"
        f"{f' ({said})' if said else ''}. Use the same files and cases again, another `output`, or `overwrite=True` to "
        "make all cases anew"
    )


def _read(job: Job, case: str) -> _Planned | None:
    if _is_done(job, case):
        return None
    number = number_of(case)
    names = sources_of(number, job.sources, job.seed)
    for attempt, name in enumerate(names):
        try:
            return _plan(job, number, name, attempt)
        except NothingFits as error:
            last = str(error)
    others = f"; nor in {', '.join(names[:-1])}" if names[1:] else ""
    raise NothingFits(f"{last}{others}")


def _plan(job: Job, number: int, name: str, attempt: int) -> _Planned:
    inputs = job.inputs(name)
    source = job.dataset.read(name, digests=inputs)
    # another lesion at each attempt: a very large one may fit nowhere
    rng = np.random.default_rng(np.random.SeedSequence([job.seed, number, attempt]))
    avoid = None if job.avoid is None else job.avoid.read(source)
    real = job.real.lesions
    if job.paint.mode == "grow":
        lesions = plan_growth(rng, job.dataset, source, job.plan, real=real, avoid=avoid)
    else:
        lesions = plan_lesions(rng, job.dataset, source, job.plan, lenders=real, bank=job.bank, avoid=avoid)
    return _Planned(number, source, inputs, lesions)


def _is_done(job: Job, case: str) -> bool:
    record = job.manifest.read_case(case, {"accepted": bool, "source": str})
    if record is None:
        return False
    paths = job.paths(case, accepted=record["accepted"])
    outputs = [*paths.images, paths.label, paths.record]
    return job.manifest.is_done(case, inputs=job.inputs(record["source"]), outputs=outputs)


def _find(job: Job, segmenter: Segmenter, source: SourceCase, volume_hu: np.ndarray) -> np.ndarray:
    images: list[Any] = list(job.dataset.image_files[source.case])
    images[job.dataset.ct_channel] = source.geometry.as_in_file(volume_hu)
    return segmenter.find_lesions(images, source.geometry).transpose(source.geometry.axial_order)


def _write(job: Job, case: str, painted: _Painted) -> dict[str, Any]:
    planned, source = painted.planned, painted.planned.source
    record = _record(job, case, painted)
    paths = job.paths(case, accepted=record["accepted"])
    for channel, (path, raw) in enumerate(zip(paths.images, job.dataset.image_files[source.case], strict=True)):
        if channel == job.dataset.ct_channel:
            write_volume(path, source.geometry.as_in_file(painted.volume_hu), source.geometry)
        else:
            with atomic_write(path) as temporary:
                shutil.copyfile(raw, temporary)
    labels = labels_with(source, planned.lesions, job.dataset.lesion_value)
    write_volume(paths.label, source.geometry.as_in_file(labels), source.geometry)
    write_json(paths.record, record)
    other = job.paths(case, accepted=not record["accepted"])
    for stale in (*other.images, other.label, other.record):
        stale.unlink(missing_ok=True)
    result = {
        "accepted": record["accepted"],
        "reasons": record["reasons"],
        "lesions": len(record["lesions"]),
        "source": source.case,
    }
    outputs = [*paths.images, paths.label, paths.record]
    job.manifest.write_case(case, inputs=planned.inputs, outputs=outputs, results=result)
    sizes = ", ".join(f"{lesion['diameter_mm']:.0f}" for lesion in record["lesions"])
    return result | {"said": f"{sizes} mm in {source.case}"}


def _record(job: Job, case: str, painted: _Painted) -> dict[str, Any]:
    planned, source = painted.planned, painted.planned.source
    around = surroundings_of(source)
    for lesion in planned.lesions:
        around[lesion.box][lesion.shape] = False
    qualities = [
        lesion_quality(
            painted.volume_hu,
            lesion.mask(around.shape),
            around,
            source.spacing_mm,
            inside_fraction=lesion.placement.inside_fraction,
            found=painted.found,
            limits=job.limits,
        )
        for lesion in planned.lesions
    ]
    reasons = reasons_against(qualities, job.limits)
    return {
        "case": case,
        "number": planned.number,
        "seed": job.seed,
        "dataset": job.dataset.name,
        "source_case": source.case,
        "mode": job.paint.mode,
        "accepted": not (reasons and job.filtered),
        "reasons": reasons,
        "text": job.paint.text,
        "findings": None,
        "lesions": [lesion.recorded(source) for lesion in planned.lesions],
        "label": {"name": job.dataset.lesion_name, "value": job.dataset.lesion_value},
        "model": painted.model,
        "settings": job.recorded(),
        "quality": {"lesions": qualities, "limits": job.limits.recorded()},
    }
