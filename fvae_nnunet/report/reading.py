"""Notes on how to read the numbers, at the end of a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fvae_nnunet.report.blocks import Block, Bullets, Heading
from fvae_nnunet.report.results import Results

_MEASURES = (
    "DSC: overlap in voxels; 1 is perfect. NSD at a tolerance: the fraction of both surfaces, by area, within the "
    "tolerance of the other one; 1 is perfect. HD95: the distance in mm within which 95 % of each surface is from the "
    "other one; 0 is perfect.",
    "A tumour that a model misses completely scores 0 in DSC and NSD but has no HD95. Read HD95 together with the "
    "column “one empty”.",
    "n: included cases; NaN: cases without a value; missing: cases without a prediction. “n/a”: undefined.",
)

_LESIONS = (
    "The detection rate and the DSC of detected lesions are means over lesions; one large prediction can detect "
    "several lesions, which lowers their DSC. False positives are predicted components that share no voxel with any "
    "lesion.",
)

_COMPARISON = (
    "Differences are second minus first, case by case, over the cases available from both models. They may differ "
    "from the difference of two means over other cases. A win is a case in which the model named first in the row is "
    "better.",
    "Intervals reflect the choice of cases: other cases of the same kind would give another mean. Training with "
    "another seed also changes a model, often by more than the differences compared here; intervals do not include "
    "that.",
    "p: Wilcoxon signed-rank. p Holm is corrected for the comparisons of one label and measure, not for the number of "
    "measures and labels: choose the deciding one before looking at results. A p above 0.05 does not show that models "
    "are equal; the interval shows what can be excluded.",
    "Limits of agreement enclose 95 % of normally distributed differences. Values limited to 0 to 1 are not normally "
    "distributed near the ends.",
)

_SOURCES = "Definitions: docs/evaluation.md and docs/reconstruction_quality.md of fvae_nnunet."


def reading_blocks(results: Sequence[Results]) -> Iterator[Block]:
    """Yield the chapter; nothing without results."""
    if not results:
        return
    yield Heading("How to read this")
    has_lesions = any(of.lesion_labels for of in results)
    is_comparison = any(of.is_comparison for of in results)
    notes = [*_MEASURES, *(_LESIONS if has_lesions else ()), *(_COMPARISON if is_comparison else ()), _SOURCES]
    yield Bullets(notes)
