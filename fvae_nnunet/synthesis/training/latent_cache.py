"""Cache of the latents and mask conditions of a dataset's cases, computed once, beside nnU-Net's preprocessed data.

``nnUNet_preprocessed/DatasetNNN_X/fvae_latents/<name>`` contains a manifest of kind ``latents`` (see ``manifest``;
cases are complete by the same rules as those of a view) and ``<case>.safetensors`` with these tensors, float16::

    latent     (P, C, d, h, w)    P pieces of slices, see ``latent_windows``; output of the VAE, not standardised
    lesion     (P, d, h, w)       share of lesion voxels, of any class, in each latent cell

and the condition, the output of ``conditions.packed_condition``: with the mask encodings ``outline`` and ``onehot``
``classes`` and ``shares`` (P, k, d, h, w), with ``outline`` also ``outline`` and ``appearance_hu``, with ``vae``
``condition`` (P, C, d, h, w), not standardised. With ``outline`` there are also::

    draft      (P, C, d, h, w)    latent of the case with its lesions redrawn, see ``draft``
    region     (P, 1, d, h, w)    uint8, cells with a voxel near a lesion (``latent_encoding.MARGIN_MM``)

The record of a case lists its windows and which of them contain lesion::

    "windows": [[piece, first latent slice, first slice of the case, holds lesion (0 or 1)], ...]
    "lesion_slices": [[piece, latent slice], ...]
    "shape": [P, d, h, w]
    "mean": [C numbers], "variance": [C numbers]    of the latents as stored
    "spacing_mm": [z, y, x]    of the encoded voxels
    "appearances_hu": [[core mean, texture], ...]    of each lesion, see ``layout``

Slices are encoded whole. They are padded at the end with the lower end of the HU window (and class 0) to at least
``inplane_pixels`` and to a size that the VAE accepts. In a case with fewer slices than a window, the last slice of
image and mask is repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fvae_nnunet.errors import UserError
from fvae_nnunet.files.portable_names import check_folder_name
from fvae_nnunet.files.recorded import write_bytes
from fvae_nnunet.jobs.manifest import Manifest
from fvae_nnunet.nnunet.folders import nnunet_folder
from fvae_nnunet.synthesis.model.latent_encoding import CaseToEncode, EncodedCase, LatentSettings, encode, prepare
from fvae_nnunet.synthesis.sources.cases import SourceDataset, refuse_failed
from fvae_nnunet.vae.base import FrozenVAE, VAESpec

if TYPE_CHECKING:
    from fvae_nnunet.jobs.pipeline import Outcome

KIND = "latents"
CACHE_FOLDER = "fvae_latents"
TEXTS = "texts"
"""Name of the cache of encoded reports, which lies beside those of latents."""


def cache_folder(dataset: SourceDataset, name: str) -> Path:
    """The folder of a cache of latents; UserError if the name is not allowed."""
    check_folder_name(name, "latents")
    if name == TEXTS:
        raise UserError(f"{name!r} is the name of the folder of encoded reports; give the latents another name")
    return caches_folder(dataset) / name


def caches_folder(dataset: SourceDataset) -> Path:
    """The folder of all caches of a dataset."""
    return nnunet_folder("nnUNet_preprocessed") / dataset.name / CACHE_FOLDER


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
    """Encode cases into the cache, yielding the outcome of each.

    A complete case made from the same files is skipped (its outcome has neither result nor error). The manifest of the
    folder must have been begun.

    Args:
        folder: folder of the cache.
        dataset: dataset of the cases.
        vae: the frozen VAE.
        settings: latent settings.
        cases: identifiers of the cases, consumed one by one.
        workers: number of processes for reading and writing; 0: none.

    Raises:
        UserError: the disk is full, or no worker can be started.
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
    # save_file would create a file that only its owner can read
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
    """Encode all cases of a dataset that are not in the cache yet.

    Several processes of one or more trainings can do this at the same time: each locks the case it encodes, and finally
    waits for those of its own cases that another process has locked.

    Args:
        folder, dataset, vae, settings: as for ``encode_cases``.
        made_with: information stored in the manifest for its readers.
        share: number of this process and number of processes; the cases are divided among them.
        workers: number of processes for reading and writing; 0: none.
        on_case: called with the outcome of each case.

    Raises:
        UserError: the cache was made with different settings, or cases failed; all others are encoded in that case.
    """
    from contextlib import closing

    from fvae_nnunet.jobs.locks import CaseLocks

    number, processes = share
    cases = dataset.cases[number::processes]
    failed: dict[str, Exception] = {}
    with CaseLocks([folder]) as locks:
        Manifest(folder).begin(
            KIND,
            settings.recorded_with(vae, dataset),
            made_with,
            remedy="Use the same settings, another cache (`latents=NAME`), or replace it with `overwrite_latents=True`",
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
    """Delete a cache, if it exists.

    Raises:
        UserError: a process is writing to it, or it holds other files.
    """
    from contextlib import suppress

    from fvae_nnunet.jobs.locks import SUBFOLDER, CaseLocks, delete_all_but_locks

    names = [path.name for path in folder.iterdir() if path.name != SUBFOLDER] if folder.is_dir() else []
    Manifest(folder).refuse_foreign(folder, names, kind=KIND, command="fvae-train-ldm")
    with CaseLocks([folder], alone=True):
        delete_all_but_locks(folder)
    with suppress(OSError):  # another process has begun there again
        folder.rmdir()


def read_records(folder: Path, cases: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Read the records of cases in a cache, by case.

    Raises:
        UserError: a case is missing or incomplete.
    """
    records = {}
    for case in cases:
        record = Manifest(folder).read_case(case)
        if record is None or not Manifest(folder).is_whole(case, [latents_path(folder, case)]):
            raise UserError(f"{folder} does not contain the latents of {case}; run fvae-train-ldm again")
        records[case] = record
    return records


def latent_statistics(records: Iterable[dict[str, Any]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all latents of some cases.

    A constant channel gets a standard deviation of 1, so that it becomes 0 when standardised.

    Args:
        records: records of the cases, see the module docstring.
    """
    records = list(records)
    cells = np.array([np.prod(record["shape"]) for record in records], dtype=np.float64)
    weights = (cells / cells.sum())[:, None]
    means, variances = (np.array([record[name] for record in records]) for name in ("mean", "variance"))
    mean = (weights * means).sum(axis=0)
    std = np.sqrt((weights * (variances + (means - mean) ** 2)).sum(axis=0))
    return tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist())
