"""How to read the numbers: the notes at the end of a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fvae_nnunet.report.blocks import Block, Bullets, Heading
from fvae_nnunet.report.results import Results

_MEASURES = (
    "DSC: overlap in voxels, 1 is perfect. NSD at a tolerance: the share of both surfaces, by area, that lies within "
    "the tolerance of the other one, 1 is perfect. HD95: the distance in mm within which 95 % of each surface lies "
    "from the other one, 0 is perfect.",
    "A tumour that a model misses altogether scores 0 in DSC and NSD but has no HD95. Read HD95 with the column “one "
    "empty”.",
    "n: cases that enter; NaN: cases without a value; missing: cases without a prediction. “n/a”: not defined.",
)

_LESIONS = (
    "The detection rate and the DSC of detected lesions are means over lesions; one large prediction can detect "
    "several lesions, and its DSC shows it. False positives are predicted components that share no voxel with any "
    "lesion.",
)

_COMPARISON = (
    "Differences are second minus first, case by case, over the cases that both models have. Two means may differ by "
    "something else than the difference, if they are over other cases. A win is a case in which the model named first "
    "in the row is better.",
    "An interval belongs to these cases: other cases of the same kind would give another mean. Training again with "
    "another seed changes a model too, often by more than what is compared; nothing here shows that.",
    "p: Wilcoxon signed-rank. p Holm is corrected for the comparisons of one label and measure, not for the number of "
    "measures and labels: name the one that decides before you look. A p above 0.05 does not show that models are "
    "equal; the interval shows what can be excluded.",
    "Limits of agreement enclose 95 % of normally distributed differences. Values that cannot leave 0 to 1 are not "
    "normal near the ends.",
)

_SOURCES = "Definitions: docs/evaluation.md and docs/reconstruction_quality.md of fvae_nnunet."


def reading_blocks(results: Sequence[Results]) -> Iterator[Block]:
    """The chapter; nothing without results."""
    if not results:
        return
    yield Heading("How to read this")
    has_lesions = any(of.lesion_labels for of in results)
    is_comparison = any(of.is_comparison for of in results)
    notes = [*_MEASURES, *(_LESIONS if has_lesions else ()), *(_COMPARISON if is_comparison else ()), _SOURCES]
    yield Bullets(notes)
