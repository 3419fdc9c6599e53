"""Headings for the cases at both ends of the range, according to the sign of their change."""

from __future__ import annotations

from collections.abc import Sequence

from fvae_nnunet.evaluation.segmentation.comparison_tables import name_of
from fvae_nnunet.report.results import Results


def headed_cases(results: Results, best: Sequence[str], worst: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The cases of both ends under their headings, from best to worst; headings without cases are omitted.

    In a comparison, a case at the best end with a loss is among the smallest losses, and one at the worst end with a
    gain is among the smallest gains.

    Args:
        results: results with the deciding measure that determined the order.
        best: cases from the best end, the best first.
        worst: cases from the other end, the worst first.
    """
    measure = results.deciding_measure
    if not results.is_comparison:
        ends = ("Highest", "Lowest") if measure["higher_is_better"] else ("Lowest", "Highest")
        named = [(f"{end} {name_of(measure)}", list(cases)) for end, cases in zip(ends, (best, worst), strict=True)]
        return [(heading, cases) for heading, cases in named if cases]
    changes = measure["comparisons"][0]["differences"]
    found: dict[str, list[str]] = {}
    for cases, names in ((best, ("Largest gains", "Smallest losses")), (worst, ("Smallest gains", "Largest losses"))):
        for case in cases:
            gain = changes[case] if measure["higher_is_better"] else -changes[case]
            heading = "No change" if gain == 0 else names[0] if gain > 0 else names[1]
            found.setdefault(heading, []).append(case)
    order = ("Largest gains", "Smallest gains", "No change", "Smallest losses", "Largest losses")
    return [(heading, found[heading]) for heading in order if heading in found]
