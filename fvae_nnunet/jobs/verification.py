"""Verification of the files of finished cases; records of damaged cases are deleted, so that they are made again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fvae_nnunet.errors import UserError
from fvae_nnunet.jobs.manifest import Manifest
from fvae_nnunet.numbers_as_text import counted


@dataclass(frozen=True)
class Verified:
    """Result of a verification.

    Attributes:
        checked: number of finished cases whose files were read and compared.
        damaged: a sentence for each file that has changed since it was written; the record of its case is deleted.
        without_digest: finished cases, recorded by an older version, whose sizes only were compared.
    """

    checked: int
    damaged: tuple[str, ...]
    without_digest: tuple[str, ...]

    def __str__(self) -> str:
        damaged = f"; damaged files: {len(self.damaged)}" if self.damaged else ", all as recorded"
        without = ""
        if self.without_digest:
            without = (
                f"; {len(self.without_digest)} more were recorded by an older version without digests, so only sizes "
                "were compared; `overwrite=True` makes them again"
            )
        return f"verified: files of {counted(self.checked, 'finished case')} read{damaged}{without}"


def forget_damaged(
    manifests: Sequence[Manifest],
    cases: Iterable[str],
    *,
    threads: int = 2,
    on_case: Callable[[], object] = lambda: None,
) -> Verified:
    """Read all files of finished cases, and delete the record of each case with a damaged file.

    Args:
        manifests: manifests of the folders; a case may be finished in only some of them.
        cases: cases to check; unfinished ones are skipped.
        threads: number of threads that read.
        on_case: called after each case in each folder.
    """
    places = [(manifest, case) for case in cases for manifest in manifests]
    damaged, without, checked = [], [], 0

    def look(place: tuple[Manifest, str]) -> tuple[list[str], bool] | None:
        manifest, case = place
        try:
            if manifest.read_case(case) is None:
                return None
            return [f"{path} {what}" for path, what in manifest.damage(case).items()], manifest.has_digests(case)
        except UserError as error:
            return [str(error)], True

    with ThreadPoolExecutor(max(1, threads)) as pool:
        for (manifest, case), looked in zip(places, pool.map(look, places), strict=True):
            if looked is not None:
                found, has_digests = looked
                if found:
                    manifest.forget_case(case)
                    damaged += [f"{case}: {what}" for what in found]
                elif not has_digests:
                    without.append(case)
                checked += has_digests
            on_case()
    return Verified(checked, tuple(damaged), tuple(without))
