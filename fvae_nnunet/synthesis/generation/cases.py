"""Synthetic cases with placed lesions: plan, generate, check and write them."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fvae_nnunet.ct.files import write_volume
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.recorded import atomic_write, sha256_of_file
from fvae_nnunet.jobs.manifest import write_json
from fvae_nnunet.nnunet.synthetic_folder import CasePaths
from fvae_nnunet.numbers_as_text import number
from fvae_nnunet.synthesis.generation.job import Generated, Job
from fvae_nnunet.synthesis.generation.painting import noise_of, paint
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
from fvae_nnunet.synthesis.sources.cases import SourceCase

if TYPE_CHECKING:
    from fvae_nnunet.nnunet.segmenter import Segmenter
    from fvae_nnunet.synthesis.model.latent_diffusion import LatentDiffusion
    from fvae_nnunet.synthesis.model.sampling import OnStep

_REAL_LESIONS = "real_lesions_sha256"


def case_name(number: int) -> str:
    """The name of the synthetic case with this number."""
    return f"synthetic_{number:04d}"


def number_of(case: str) -> int:
    """The inverse of ``case_name``."""
    return int(case.rpartition("_")[2])


@dataclass(frozen=True)
class Planned:
    """The inputs of a synthetic case.

    Attributes:
        number: number of the case.
        source: the real case.
        inputs: digests of all input files.
        lesions: lesions to insert.
    """

    number: int
    source: SourceCase
    inputs: dict[str, str]
    lesions: list[PlacedLesion]


@dataclass(frozen=True, kw_only=True)
class LesionJob(Job[Planned]):
    """A job for cases with placed lesions.

    Attributes:
        sources: source cases.
        plan: requested lesions.
        limits: limits of quality control.
        filtered: whether cases outside the limits are rejected.
        real: real lesions of the dataset, for limits, sizes, shapes and appearance.
        bank: bank from which shapes are borrowed instead; None: no bank.
        avoid: masks of structures to avoid; None: none.
    """

    sources: tuple[str, ...]
    plan: PlanSettings
    limits: QualityLimits
    filtered: bool
    real: RealLesions
    bank: ShapeBank | None
    avoid: Avoided | None

    def recorded(self) -> dict[str, Any]:
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

    def decided_by(self) -> dict[str, Any]:
        return self.recorded() | {
            "sources": list(self.sources),
            "measures": list(MEASURES),
            _REAL_LESIONS: hashlib.sha256(json.dumps(self.real.lesions, sort_keys=True).encode()).hexdigest(),
        }

    def begin(self, model: dict[str, Any], *, overwrite: bool) -> None:
        if not overwrite:
            self._refuse_other_real_lesions()
        super().begin(model, overwrite=overwrite)
        write_real_lesions(self.output / FILE_NAME, self.dataset, self.real)

    def inputs(self, source: str) -> dict[str, str]:
        """Digests of all input files of a synthetic case."""
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

    def _refuse_other_real_lesions(self) -> None:
        """Raise UserError if the folder was started with other real lesions, but otherwise the same settings."""
        content = self.manifest.read()
        before = {} if content is None else content["settings"]
        now = json.loads(json.dumps(self.decided_by()))
        same = all(before.get(key) == now[key] for key in now.keys() - {_REAL_LESIONS, "limits"})
        if not same or before.get(_REAL_LESIONS) == now[_REAL_LESIONS]:
            return
        old, new = read_real_lesions(self.output / FILE_NAME, self.dataset), self.real
        cases = sorted(old.digests.keys() | new.digests.keys())
        others = [case for case in cases if old.of_case(case) != new.of_case(case)]
        which = {
            "changed": [case for case in others if case in old.digests and case in new.digests],
            "now left out": [case for case in others if case not in new.digests],
            "new": [case for case in others if case not in old.digests],
        }
        said = "; ".join(f"{what}: {', '.join(cases)}" for what, cases in which.items() if cases)
        raise UserError(
            f"{self.output} was started with other real lesions of {self.dataset.name}, which determine limits and "
            f"shapes{f' ({said})' if said else ''}. Use the same files and cases again, another `output`, or "
            "`overwrite=True` to generate all cases again"
        )

    def read(self, case: str) -> Planned | None:
        if self._is_done(case):
            return None
        number = number_of(case)
        names = sources_of(number, self.sources, self.seed)
        for attempt, name in enumerate(names):
            try:
                return self._plan(number, name, attempt)
            except NothingFits as error:
                last = str(error)
        others = f"; nor in {', '.join(names[:-1])}" if names[1:] else ""
        raise NothingFits(f"{last}{others}")

    def _plan(self, number: int, name: str, attempt: int) -> Planned:
        inputs = self.inputs(name)
        source = self.dataset.read(name, digests=inputs)
        # a new lesion in each attempt, because a very large one may not fit anywhere
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, number, attempt]))
        avoid = None if self.avoid is None else self.avoid.read(source)
        real = self.real.lesions
        if self.paint.mode == "grow":
            lesions = plan_growth(rng, self.dataset, source, self.plan, real=real, avoid=avoid)
        else:
            lesions = plan_lesions(rng, self.dataset, source, self.plan, real=real, bank=self.bank, avoid=avoid)
        return Planned(number, source, inputs, lesions)

    def _is_done(self, case: str) -> bool:
        record = self.manifest.read_case(case, {"accepted": bool, "source": str})
        if record is None:
            return False
        paths = self.paths(case, accepted=record["accepted"])
        outputs = [*paths.images, paths.label, paths.record]
        return self.manifest.is_done(case, inputs=self.inputs(record["source"]), outputs=outputs)

    def generate(
        self, case: str, ready: Planned, model: LatentDiffusion, segmenter: Segmenter | None, on_step: OnStep | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        source, noise = ready.source, noise_of([self.seed, ready.number])
        volume_hu = paint(model, source, ready.lesions, self.paint, generator=noise, on_step=on_step)
        if segmenter is None:
            return volume_hu, None
        images: list[Any] = list(self.dataset.image_files[source.case])
        images[self.dataset.ct_channel] = source.geometry.as_in_file(volume_hu)
        found = segmenter.find_lesions(images, source.geometry).transpose(source.geometry.axial_order)
        return volume_hu, found

    def write(self, case: str, generated: Generated[Planned]) -> dict[str, Any]:
        planned, source = generated.ready, generated.ready.source
        record = self._record(case, generated)
        paths, other = (
            self.paths(case, accepted=accepted) for accepted in (record["accepted"], not record["accepted"])
        )
        self.manifest.forget_case(case)
        for replaced in (paths.record, other.record):  # an interruption leaves no record of what is replaced
            replaced.unlink(missing_ok=True)
        for channel, (path, raw) in enumerate(zip(paths.images, self.dataset.image_files[source.case], strict=True)):
            if channel == self.dataset.ct_channel:
                write_volume(path, source.geometry.as_in_file(generated.volume_hu), source.geometry)
            else:
                with atomic_write(path) as temporary:
                    shutil.copyfile(raw, temporary)
        labels = labels_with(source, planned.lesions, self.dataset.lesion_value)
        write_volume(paths.label, source.geometry.as_in_file(labels), source.geometry)
        write_json(paths.record, record)
        for stale in (*other.images, other.label):
            stale.unlink(missing_ok=True)
        result = {
            "accepted": record["accepted"],
            "reasons": record["reasons"],
            "lesions": len(record["lesions"]),
            "source": source.case,
        }
        outputs = [*paths.images, paths.label, paths.record]
        self.manifest.write_case(case, inputs=planned.inputs, outputs=outputs, results=result)
        sizes = ", ".join(f"{number(lesion['diameter_mm'], 'mm')}" for lesion in record["lesions"])
        return result | {"said": f"{sizes} mm in {source.case}"}

    def _record(self, case: str, generated: Generated[Planned]) -> dict[str, Any]:
        planned, source = generated.ready, generated.ready.source
        around = surroundings_of(source, planned.lesions)
        qualities = [
            lesion_quality(
                generated.volume_hu,
                lesion.mask(around.shape),
                around,
                source.spacing_mm,
                inside_fraction=lesion.placement.inside_fraction,
                found=generated.found,
                limits=self.limits,
            )
            for lesion in planned.lesions
        ]
        reasons = reasons_against(qualities, self.limits)
        return {
            "case": case,
            "number": planned.number,
            "seed": self.seed,
            "dataset": self.dataset.name,
            "source_case": source.case,
            "mode": self.paint.mode,
            "accepted": not (reasons and self.filtered),
            "reasons": reasons,
            "text": self.paint.text,
            "findings": None,
            "lesions": [lesion.recorded(source) for lesion in planned.lesions],
            "label": {"name": self.dataset.lesion_name, "value": self.dataset.lesion_value},
            "model": generated.model,
            "settings": self.recorded(),
            "quality": {"lesions": qualities, "limits": self.limits.recorded()},
        }
