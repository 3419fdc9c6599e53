"""Latents and mask conditions of a dataset's cases, computed once and kept beside nnU-Net's preprocessed data.

``nnUNet_preprocessed/DatasetNNN_X/fvae_latents/<name>`` holds a manifest of kind ``latents`` (see ``manifest``; a case
counts by the same rules as one of a view) and ``<case>.safetensors`` with, float16::

    latent     (P, C, d, h, w)    P pieces of slices, see ``latent_windows``; as the VAE gives it, not standardised
    lesion     (P, d, h, w)       share of the voxels of each latent cell that are lesion, of any class

and the condition as ``conditions.packed_condition`` gives it: with the mask encoding ``outline`` or ``onehot``
``classes`` and ``shares`` (P, k, d, h, w), with ``outline`` also ``outline`` and ``appearance_hu``, with ``vae``
``condition`` (P, C, d, h, w), not standardised. With ``outline`` there are also::

    draft      (P, C, d, h, w)    the latent of the case with its lesions drawn anew, see ``draft``
    region     (P, 1, d, h, w)    uint8, cells with a voxel near a lesion (``latent_encoding.MARGIN_MM``)

The record of a case says which windows there are and what of them holds lesion::

    "windows": [[piece, first latent slice, first slice of the case, holds lesion (0 or 1)], ...]
    "lesion_slices": [[piece, latent slice], ...]
    "shape": [P, d, h, w]
    "mean": [C numbers], "variance": [C numbers]    of the latents as stored
    "spacing_mm": [z, y, x]    of the voxels that were encoded
    "appearances_hu": [[core mean, texture], ...]    of each lesion, see ``layout``

Slices are encoded whole, padded with the lower end of the HU window (and class 0) on their far sides, so that they have
at least ``inplane_pixels`` and the VAE takes them. A case with fewer slices than a window goes on with its last slice,
image and mask.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fvae_nnunet.errors import UserError
from fvae_nnunet.files.recorded import write_bytes
from fvae_nnunet.jobs.manifest import Manifest
from fvae_nnunet.nnunet.folders import nnunet_folder
from fvae_nnunet.synthesis.model.latent_encoding import CaseToEncode, EncodedCase, LatentSettings, encode, prepare
from fvae_nnunet.synthesis.sources.cases import SourceDataset, refuse_failed
from fvae_nnunet.vae.base import FrozenVAE, VAESpec

if TYPE_CHECKING:
    from fvae_nnunet.jobs.pipeline import Outcome

CACHE_FOLDER = "fvae_latents"


def cache_folder(dataset: SourceDataset, name: str) -> Path:
    """The folder of a cache."""
    return nnunet_folder("nnUNet_preprocessed") / dataset.name / CACHE_FOLDER / name


def latents_path(folder: Path, case: str) -> Path:
    """The file of a case in a cache."""
    return folder / f"{case}.safetensors"


def encode_cases(
    folder: Path,
    dataset: SourceDataset,
    vae: FrozenVAE,
    settings: LatentSettings,
    *,
    cases: Iterable[str],
    workers: int,
) -> Generator[Outcome, None, None]:
    """Fill the cache with cases; yields what became of each.

    A case that is complete and was made from the same files is left alone (its outcome has neither result nor error).
    The folder's manifest must have been begun.

    Args:
        folder: of the cache.
        dataset: where the cases come from.
        vae: encodes.
        settings: how.
        cases: identifiers, asked for one by one.
        workers: processes that read and write; 0 for none.

    Raises:
        UserError: the disk is full or no worker can be started.
    """
    from fvae_nnunet.jobs.pipeline import StageSeconds, run_cases

    return run_cases(
        cases,
        read=partial(_read, folder, dataset, vae.spec, settings),
        compute=lambda _, case: encode(case, vae, settings, classes=len(dataset.class_names)),
        write=partial(_write, folder),
        workers=workers,
        seconds=StageSeconds(),
    )


def _read(
    folder: Path, dataset: SourceDataset, spec: VAESpec, settings: LatentSettings, case: str
) -> CaseToEncode | None:
    digests = dataset.digests(case)
    if Manifest(folder).is_done(case, inputs=digests, outputs=[latents_path(folder, case)]):
        return None
    source = dataset.read(case, digests=digests)
    return prepare(source, spec, settings, len(dataset.organ.class_names))


def _write(folder: Path, case: str, encoded: EncodedCase) -> dict[str, Any]:
    from safetensors.numpy import save

    target = latents_path(folder, case)
    # save_file would make a file that nobody else may read
    written = write_bytes(target, save({name: np.ascontiguousarray(array) for name, array in encoded.tensors.items()}))
    Manifest(folder).write_case(case, inputs=encoded.digests, outputs={target: written}, results=encoded.record)
    return encoded.record


def complete_cache(
    folder: Path,
    dataset: SourceDataset,
    vae: FrozenVAE,
    settings: LatentSettings,
    *,
    made_with: dict[str, Any],
    share: tuple[int, int] = (0, 1),
    workers: int,
    on_case: Callable[[Outcome], object] | None = None,
) -> None:
    """Encode what of the dataset's cases is not in the cache yet.

    Several processes may do this at once, of one training or of several: each locks the case that it does, and waits at
    its end for those of its own that another holds.

    Args:
        folder, dataset, vae, settings: as for ``encode_cases``.
        made_with: for the reader of the manifest.
        share: this process' number and how many there are; each begins with cases of its own.
        workers: processes that read and write; 0 for none.
        on_case: called with the outcome of each case.

    Raises:
        UserError: the cache was made with other settings, or cases failed; all others are done then.
    """
    from contextlib import closing

    from fvae_nnunet.jobs.locks import CaseLocks

    number, processes = share
    cases = dataset.cases[number::processes]
    failed: dict[str, Exception] = {}
    with CaseLocks([folder]) as locks:
        Manifest(folder).begin(
            "latents",
            settings.recorded_with(vae, dataset),
            made_with,
            remedy="Use the same settings, --latents NAME for another cache, or --overwrite-latents to replace it",
        )
        outcomes = encode_cases(
            folder, dataset, vae, settings, cases=locks.each(cases), workers=min(workers, len(cases))
        )
        with closing(outcomes):
            for outcome in outcomes:
                locks.release(outcome.case)
                if outcome.error is not None:
                    failed[outcome.case] = outcome.error
                if on_case is not None:
                    on_case(outcome)
    refuse_failed(failed, "encoded", "The others are in the cache.")


def remove_cache(folder: Path) -> None:
    """Delete a cache; UserError where a process is filling it."""
    import shutil

    from fvae_nnunet.jobs.locks import CaseLocks

    CaseLocks([folder]).refuse_others()
    shutil.rmtree(folder, ignore_errors=True)


def read_records(folder: Path, cases: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The records of cases of a cache, by case.

    Raises:
        UserError: a case is missing or incomplete.
    """
    records = {}
    for case in cases:
        record = Manifest(folder).read_case(case)
        if record is None or not Manifest(folder).is_whole(case, [latents_path(folder, case)]):
            raise UserError(f"{folder} does not hold the latents of {case}; run fvae-train-ldm again")
        records[case] = record
    return records


def latent_statistics(records: Iterable[dict[str, Any]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all latents of some cases.

    A channel that never changes has deviation 1, so that it becomes 0 when it is standardised.

    Args:
        records: of the cases, see the module.
    """
    records = list(records)
    cells = np.array([np.prod(record["shape"]) for record in records], dtype=np.float64)
    weights = (cells / cells.sum())[:, None]
    means, variances = (np.array([record[name] for record in records]) for name in ("mean", "variance"))
    mean = (weights * means).sum(axis=0)
    std = np.sqrt((weights * (variances + (means - mean) ** 2)).sum(axis=0))
    return tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist())
