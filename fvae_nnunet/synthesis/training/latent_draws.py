"""Draw the batches of each training step: random crops of cached windows, seeded by counters.

Every sample has its own random numbers, seeded by ``(seed, stage, step, number in the batch)``. A batch therefore does
not depend on earlier draws, on the number of processes, or on gradient accumulation, and resuming needs no saved
generator state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fvae_nnunet.errors import UserError
from fvae_nnunet.numbers_as_text import counted
from fvae_nnunet.synthesis.model.conditions import ConditionFormat
from fvae_nnunet.synthesis.model.denoiser import known_context
from fvae_nnunet.synthesis.model.noise_process import NoiseProcess
from fvae_nnunet.synthesis.model.scale import standardise
from fvae_nnunet.synthesis.training.latent_cache import latents_path, read_records

Place = tuple[int, int]
"""Number of a piece of a case, and of the first latent slice in it."""


_OF_CONTEXT = {"none": (), "masked": ("region",), "draft": ("draft", "region")}
"""Context -> tensors that are read in addition to latent and condition."""

ALL_GENERATED_SHARE = 0.1
"""Share of samples with lesion in which everything is generated, for the generation of whole volumes."""


@dataclass(frozen=True)
class Sample:
    """A crop of a window, float32.

    Attributes:
        case: case of the window.
        latent: (C, d, h, w), standardised.
        condition: (K, d, h, w).
        lesion: (d, h, w), share of lesion in each cell.
        spacing_mm: spacing (z, y, x) of latent slices and of pixels.
        draft: (C, d, h, w), standardised; None for networks that do not start from drafts.
        region: bool (d, h, w), cells in which lesions are generated; None for networks without context.
    """

    case: str
    latent: torch.Tensor
    condition: torch.Tensor
    lesion: torch.Tensor
    spacing_mm: tuple[float, float, float]
    draft: torch.Tensor | None = None
    region: torch.Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """A batch of samples with noise, the input of the network.

    Attributes:
        latent, noise: (B, C, d, h, w).
        timesteps: (B,).
        condition: (B, K, d, h, w).
        lesion: (B, d, h, w).
        context: (B, C + 1, d, h, w), see ``denoiser.known_context``; None for networks without context.
        generated: bool (B, d, h, w), cells to generate; None for networks without context.
        drop: bool (B,), samples with dropped conditions; None without condition dropout.
        text, text_mask: (B, T, width) and bool (B, T); None without texts.
    """

    latent: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    condition: torch.Tensor
    lesion: torch.Tensor
    context: torch.Tensor | None
    generated: torch.Tensor | None
    drop: torch.Tensor | None
    text: torch.Tensor | None
    text_mask: torch.Tensor | None

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        moved: dict[str, Any] = {name: None if it is None else it.to(device) for name, it in vars(self).items()}
        return Batch(**moved)


def random_streams(seed: int, stage: int, step: int, number: int) -> tuple[np.random.Generator, torch.Generator]:
    """The random generators of a sample: NumPy for places, torch (on the CPU) for noise."""
    places, noise = np.random.SeedSequence([seed, stage, step, number]).spawn(2)
    state = int(noise.generate_state(1, np.uint64)[0] >> np.uint64(1))
    return np.random.default_rng(places), torch.Generator().manual_seed(state)


class LatentDraws:
    """Draw samples and batches from a cache.

    With probability ``lesion_share`` a sample is a latent slice (stage 1) or window (stage 2) with lesion, and its crop
    contains a lesion cell; otherwise one without lesion. All cases with slices or windows of that kind are equally
    likely. If a dataset has only one kind, all samples are of this kind.

    Args:
        folder: folder of the cache.
        cases: cases to draw from.
        conditions: condition format of the model, also used to standardise latents.
        window: number of latent slices in a window.
        crop: number of latent cells of a sample along y and x; fewer if the slices are smaller.
        lesion_share: share of samples with lesion, in [0, 1].
        context: context of the network, see ``denoiser``.
        texts: case -> embedding (T, width) of its report; cases without a report have no entry.

    Attributes:
        share: stage -> probability of a sample with lesion: ``lesion_share`` unless the data have only one kind.
        cases_with_lesion: number of cases with lesion.
        texts: as given.

    Raises:
        UserError: a case is not in the cache, or no case has a lesion although ``lesion_share`` is above 0.
    """

    def __init__(
        self,
        folder: Path,
        cases: Sequence[str],
        *,
        conditions: ConditionFormat,
        window: int,
        crop: int,
        lesion_share: float,
        context: str = "none",
        texts: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self._folder, self.conditions, self._context = folder, conditions, context
        self._of_context = _OF_CONTEXT[context]
        self._window, self._crop, self.texts = window, crop, texts or {}
        records = read_records(folder, cases)
        self._spacing_mm = {case: record["spacing_mm"] for case, record in records.items()}
        self.cases_with_lesion = sum(bool(record["lesion_slices"]) for record in records.values())
        if lesion_share > 0 and not self.cases_with_lesion:
            raise UserError(
                f"no voxel has the label of the lesion ({counted(len(records), 'case')} searched), so there is nothing "
                "to learn from. Check `lesions` and the labels"
            )
        self._places = {stage: {case: _places(record, stage) for case, record in records.items()} for stage in (1, 2)}
        self._cases = {
            (stage, kind): [case for case in sorted(records) if self._places[stage][case][kind]]
            for stage in (1, 2)
            for kind in (False, True)
        }
        self.share = {
            stage: lesion_share
            if self._cases[stage, False] and self._cases[stage, True]
            else float(not self._cases[stage, False])
            for stage in (1, 2)
        }

    def sample(self, stage: int, random: np.random.Generator, *, with_lesion: bool | None = None) -> Sample:
        """Draw a sample of one latent slice (stage 1) or a whole window (stage 2); by default at random with lesion."""
        if with_lesion is None:
            with_lesion = bool(random.random() < self.share[stage])
        cases = self._cases[stage, with_lesion]
        case = cases[random.integers(len(cases))]
        places = self._places[stage][case][with_lesion]
        return self._read(
            case, places[random.integers(len(places))], 1 if stage == 1 else self._window, with_lesion, random
        )

    def _read(self, case: str, place: Place, slices: int, with_lesion: bool, random: np.random.Generator) -> Sample:
        from safetensors import safe_open

        piece, first = place
        run = slice(first, first + slices)
        with safe_open(str(latents_path(self._folder, case)), framework="pt") as file:
            lesion = file.get_slice("lesion")[piece : piece + 1, run][0].float()
            cell = None
            if with_lesion:
                cells = torch.nonzero(lesion)[:, 1:]
                cell = cells[random.integers(len(cells))].tolist()
            rows, columns = (
                _crop_range(size, self._crop, None if cell is None else cell[axis], random)
                for axis, size in enumerate(lesion.shape[1:])
            )
            latent, *stored = (
                file.get_slice(name)[piece : piece + 1, :, run, rows, columns]
                for name in ("latent", *self.conditions.stored, *self._of_context)
            )
        packed = dict(zip((*self.conditions.stored, *self._of_context), stored, strict=True))
        condition = self.conditions.dense(packed, self._spacing_mm[case])[0]
        mean, std = self.conditions.latent_mean, self.conditions.latent_std
        draft = standardise(packed["draft"], mean, std)[0] if "draft" in packed else None
        region = packed["region"][0, 0] > 0 if "region" in packed else None
        z, y, x = self._spacing_mm[case]
        spacing_mm = (z * self.conditions.spec.slice_stride, y, x)
        latent = standardise(latent, mean, std)[0]
        return Sample(case, latent, condition, lesion[:, rows, columns], spacing_mm, draft, region)

    def batch(
        self,
        stage: int,
        step: int,
        numbers: Sequence[int],
        *,
        seed: int,
        process: NoiseProcess,
        condition_dropout: float = 0.0,
    ) -> Batch:
        """Draw some of the samples in the global batch of a step.

        Args:
            stage: 1: latent slices, 2: windows.
            step: step within the stage.
            numbers: numbers of the samples in the global batch, from 0.
            seed: seed of the training.
            process: noise process, which draws the timesteps.
            condition_dropout: probability of dropping the conditions of a sample.
        """
        samples: list[Sample] = []
        drawn: dict[str, list[Any]] = {"noise": [], "timesteps": [], "drop": [], "context": [], "generated": []}
        for number in numbers:
            places, noise = random_streams(seed, stage, step, number)
            samples.append(self.sample(stage, places))
            drawn["timesteps"].append(process.draw_timesteps(1, noise))
            drawn["noise"].append(torch.randn(samples[-1].latent.shape, generator=noise))
            drawn["drop"].append(bool(places.random() < condition_dropout))
            if self._context != "none":
                generated, context = self._shown(samples[-1], places)
                drawn["generated"].append(generated)
                drawn["context"].append(context)
        text, text_mask = self._embeddings([sample.case for sample in samples])
        return Batch(
            latent=torch.stack([sample.latent for sample in samples]),
            noise=torch.stack(drawn["noise"]),
            timesteps=torch.cat(drawn["timesteps"]),
            condition=torch.stack([sample.condition for sample in samples]),
            lesion=torch.stack([sample.lesion for sample in samples]),
            context=torch.stack(drawn["context"]) if drawn["context"] else None,
            generated=torch.stack(drawn["generated"]) if drawn["generated"] else None,
            drop=torch.tensor(drawn["drop"]) if condition_dropout else None,
            text=text,
            text_mask=text_mask,
        )

    def _shown(self, sample: Sample, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """The cells of a sample to generate (d, h, w), and the context (C + 1, d, h, w).

        With lesions the cells of the region, and in a share ``ALL_GENERATED_SHARE`` all cells. Without lesion a random
        box of cells, or all cells for networks that start from drafts.
        """
        assert sample.region is not None
        generated, draft = torch.ones_like(sample.region), None
        if sample.region.any():
            if random.random() >= ALL_GENERATED_SHARE:
                generated, draft = sample.region, sample.draft
        elif self._context == "masked":
            generated = box_of_cells(sample.region.shape, random)
        one = known_context(sample.latent[None], generated[None, None], None if draft is None else draft[None])
        return generated, one[0]

    def _embeddings(self, cases: Sequence[str]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if not self.texts:
            return None, None
        width = next(iter(self.texts.values())).shape[1]
        found = [self.texts.get(case, torch.zeros(0, width)).float() for case in cases]
        longest = max(1, *(len(text) for text in found))
        text, mask = torch.zeros(len(cases), longest, width), torch.zeros(len(cases), longest, dtype=torch.bool)
        for row, embedding in enumerate(found):
            text[row, : len(embedding)], mask[row, : len(embedding)] = embedding, True
        return text, mask


def box_of_cells(shape: Sequence[int], random: np.random.Generator) -> torch.Tensor:
    """A random box, bool (d, h, w): a quarter to three quarters of each side along y and x, in all slices."""
    cells = torch.zeros(tuple(shape), dtype=torch.bool)
    sides = []
    for size in shape[1:]:
        length = max(1, round(size * random.uniform(0.25, 0.75)))
        start = int(random.integers(0, size - length + 1))
        sides.append(slice(start, start + length))
    cells[:, sides[0], sides[1]] = True
    return cells


def _places(record: dict[str, Any], stage: int) -> dict[bool, list[Place]]:
    """The latent slices (stage 1) or windows (stage 2) of a case, without lesion (False) and with lesion (True)."""
    if stage == 2:
        windows = record["windows"]
        return {
            kind: [(piece, first) for piece, first, _, holds in windows if bool(holds) is kind]
            for kind in (False, True)
        }
    with_lesion = {(piece, number) for piece, number in record["lesion_slices"]}
    pieces, slices = record["shape"][:2]
    everywhere = [(piece, number) for piece in range(pieces) for number in range(slices)]
    return {kind: [place for place in everywhere if (place in with_lesion) is kind] for kind in (False, True)}


def _crop_range(size: int, crop: int, cell: int | None, random: np.random.Generator) -> slice:
    """A random range of ``crop`` of ``size`` cells, uniform among all ranges or among those with the cell."""
    length = min(crop, size)
    low, high = 0, size - length
    if cell is not None:
        low, high = max(low, cell - length + 1), min(high, cell)
    start = int(random.integers(low, high + 1))
    return slice(start, start + length)
