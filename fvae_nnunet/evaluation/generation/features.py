"""Features of all cases of a folder, with a cache: one file per network, input and image.

A cache file is ``<key>.safetensors`` with a float32 (rows, width) for each part of the input. The key is the sha256 of
the network's file, all settings of its input and the image's bytes, so another network, input or image never matches an
old entry, and runs can share a cache.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fvae_nnunet.ct.files import read_upright
from fvae_nnunet.errors import UserError, some_of
from fvae_nnunet.evaluation.generation.feature_networks import FeatureNetwork
from fvae_nnunet.evaluation.generation.image_sets import ImageCase, ImageSet
from fvae_nnunet.files.recorded import sha256_of_file, write_shared
from fvae_nnunet.files.tensors import load_tensors, save_tensors

CACHE_VERSION = 1
"""Part of every key; increased when the preparation of inputs changes."""

_MOST_NAMED = 20


@dataclass(frozen=True)
class CaseFeatures:
    """Features of several cases for one part of one network's input.

    Attributes:
        rows: features, float64 (rows, width).
        case_of_row: index of the case, int (rows,), in ascending order.
        names: names of the cases.
    """

    rows: np.ndarray
    case_of_row: np.ndarray
    names: tuple[str, ...]

    @classmethod
    def of(cls, by_case: dict[str, np.ndarray]) -> CaseFeatures:
        """Join the rows of each case; at least one case with at least one row."""
        lengths = [len(rows) for rows in by_case.values()]
        return cls(
            np.concatenate(list(by_case.values())).astype(np.float64),
            np.repeat(np.arange(len(lengths)), lengths),
            tuple(by_case),
        )

    def means(self) -> np.ndarray:
        """The mean row of each case, (cases, width)."""
        sums = np.zeros((len(self.names), self.rows.shape[1]))
        np.add.at(sums, self.case_of_row, self.rows)
        return sums / np.bincount(self.case_of_row)[:, None]


SetFeatures = dict[tuple[str, str], CaseFeatures]
"""Name of the network and part of its input -> features of a set of images."""


@dataclass(frozen=True)
class Extracted:
    """Result of `extract_features`.

    Attributes:
        features: features from every network.
        image_sha256: case -> digest of its image.
    """

    features: SetFeatures
    image_sha256: dict[str, str]


def extract_features(
    images: ImageSet,
    networks: Sequence[FeatureNetwork],
    *,
    cache: Path,
    readers: int = 2,
    on_case: Callable[[], object] = lambda: None,
) -> Extracted:
    """Features of all cases from all networks, from the cache if available.

    Damaged cache files are recomputed: each holds a digest of its features, which is always checked.

    Args:
        images: the cases.
        networks: feature networks; if empty, only digests are computed.
        cache: cache folder, created if necessary.
        readers: number of images read ahead, each by a thread, and held in memory; 0: one at a time.
        on_case: called after each case.

    Raises:
        UserError: images cannot be read or used, one line each (the others are then in the cache), or a network fails.
    """
    found: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    digests: dict[str, str] = {}
    problems = []
    for case, outcome in _ahead(images.cases, lambda case: _read(case, networks, cache), readers):
        try:
            task = outcome()
            digests[case.name] = task.sha256
            for network in networks:
                for part, rows in task.rows_of(network, cache).items():
                    found.setdefault((network.name, part), {})[case.name] = rows
        except UserError as error:
            problems.append(f"{case.name}: {error}")
        on_case()
    if problems:
        raise UserError(f"{images.folder}: no features for\n  " + some_of(problems, _MOST_NAMED, "\n  "))
    _check_widths(found)
    return Extracted({key: CaseFeatures.of(rows) for key, rows in found.items()}, digests)


def _check_widths(found: dict[tuple[str, str], dict[str, np.ndarray]]) -> None:
    for (network, part), by_case in found.items():
        widths = {rows.shape[1] for rows in by_case.values()}
        if len(widths) > 1:
            raise UserError(f"{network} returns {part} features of different widths: {sorted(widths)}")


@dataclass(frozen=True)
class _Task:
    """A case with its cached features, and its volume if any are missing."""

    path: Path
    sha256: str
    cached: dict[str, dict[str, np.ndarray]]
    volume: np.ndarray | None
    spacing_mm: tuple[float, float, float]

    def rows_of(self, network: FeatureNetwork, cache: Path) -> dict[str, np.ndarray]:
        if network.name in self.cached:
            return self.cached[network.name]
        assert self.volume is not None
        try:
            prepared = network.input.prepare(self.volume, self.spacing_mm)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from error
        rows = network.features(prepared)
        _write(cache / f"{cache_key(network, self.sha256)}.safetensors", rows)
        return rows


def cache_key(network: FeatureNetwork, image_sha256: str) -> str:
    """Name of the cache file for an image, without its ending."""
    content = {"version": CACHE_VERSION, "network": network.settings, "image": image_sha256}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read(case: ImageCase, networks: Sequence[FeatureNetwork], cache: Path) -> _Task:
    path = case.images[0]
    sha256 = sha256_of_file(path)
    entries = {network.name: _cached(cache / f"{cache_key(network, sha256)}.safetensors") for network in networks}
    cached = {name: rows for name, rows in entries.items() if rows is not None}
    if len(cached) == len(networks):
        return _Task(path, sha256, cached, None, (1.0, 1.0, 1.0))
    volume, spacing_mm = read_upright(path)
    if volume.ndim != 3:
        raise UserError(f"{path} is not a single grey volume: its array has the shape {volume.shape}")
    return _Task(path, sha256, cached, volume, spacing_mm)


def _ahead(
    cases: Sequence[ImageCase], read: Callable[[ImageCase], _Task], readers: int
) -> Iterator[tuple[ImageCase, Callable[[], _Task]]]:
    """Yield each case with a function that returns the read task, in order."""
    waiting: deque[tuple[ImageCase, Future[_Task]]] = deque()
    with ThreadPoolExecutor(max(1, readers)) as pool:
        try:
            for case in cases:
                waiting.append((case, pool.submit(read, case)))
                if len(waiting) > readers:
                    first, future = waiting.popleft()
                    yield first, future.result
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result
        finally:
            pool.shutdown(cancel_futures=True)


def _cached(path: Path) -> dict[str, np.ndarray] | None:
    try:
        return {part: rows.numpy() for part, rows in load_tensors(path).items()} if path.is_file() else None
    except UserError:
        return None


def _write(path: Path, rows: dict[str, np.ndarray]) -> None:
    """Write atomically, also if several processes write the same features."""
    write_shared(path, save_tensors({part: torch.from_numpy(values) for part, values in rows.items()}))
