"""Match predictions with the truth: the findings of the cases scored by all models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fvae_nnunet.errors import UserError
from fvae_nnunet.findings.cases import named
from fvae_nnunet.findings.predictions import Predictions
from fvae_nnunet.nnunet.case_reports import CaseReports
from fvae_nnunet.numbers_as_text import counted


@dataclass(frozen=True)
class ScoredCases:
    """Scores of K models, with the truth.

    Attributes:
        findings: names of F findings.
        cases: names of n cases.
        patients: (n,) patient of each case.
        labels: (n, F) 0 or 1.
        scores: (K, n, F).
        missing: for each model, the cases without a score, which were left out for all models.
        without_findings: scored cases without known findings, which were left out.
    """

    findings: tuple[str, ...]
    cases: tuple[str, ...]
    patients: tuple[str, ...]
    labels: np.ndarray
    scores: np.ndarray
    missing: tuple[tuple[str, ...], ...]
    without_findings: tuple[str, ...]


def scored_cases(
    reports: CaseReports,
    predictions: Sequence[Predictions],
    *,
    findings: Sequence[str] | None = None,
    allow_missing: bool = False,
) -> ScoredCases:
    """Match scores with the truth.

    The cases are those scored by any model; if all of them are test cases, all test cases with findings.

    Args:
        reports: reports of the dataset.
        predictions: predictions of each model.
        findings: findings to compare; default: those scored by every model, in the dataset's order.
        allow_missing: leave out a case not scored by some model for all models, instead of raising an error.

    Raises:
        UserError: a case or finding is unknown, cases are missing, or nothing is left; all problems of a file are
            named.
    """
    shared = [name for name in reports.findings if all(name in of.findings for of in predictions)]
    wanted = list(shared if findings is None else findings)
    problems = []
    if twice := {name for name in wanted if wanted.count(name) > 1}:
        problems.append(f"named twice: {named(twice)}")
    for of in predictions:
        if unknown := set(of.findings) - set(reports.findings):
            problems.append(f"{of.path} has findings that are not in the reports: {named(unknown)}")
        if lacking := set(wanted) - set(of.findings):
            problems.append(f"{of.path} has no column {named(lacking)}")
        if unknown := set(of.cases) - set(reports.cases):
            problems.append(f"{of.path} has {counted(len(unknown), 'case')} not in the reports: {named(unknown)}")
    if problems:
        raise UserError("\n".join(problems))
    if not wanted:
        raise UserError(f"the files have no finding in common; the reports have {', '.join(reports.findings)}")
    asked = {case for of in predictions for case in of.cases}
    if asked and all(reports.cases[case].split == "test" for case in asked):
        asked |= {case for case, report in reports.cases.items() if report.split == "test"}
    known = {case for case in asked if reports.cases[case].findings is not None}
    missing = [tuple(sorted(known - set(of.cases))) for of in predictions]
    if any(missing) and not allow_missing:
        lines = [f"{of.path}: {named(cases)}" for of, cases in zip(predictions, missing, strict=True) if cases]
        raise UserError(
            "cases have no prediction; `allow_missing=True` leaves them out for all models:\n  " + "\n  ".join(lines)
        )
    cases = sorted(known.difference(*missing))
    if not cases:
        raise UserError("no case has both findings and a prediction from every model")
    scores = [
        of.scores[np.ix_([of.cases.index(case) for case in cases], [of.findings.index(name) for name in wanted])]
        for of in predictions
    ]
    values = [reports.cases[case].findings or {} for case in cases]
    return ScoredCases(
        tuple(wanted),
        tuple(cases),
        tuple(reports.cases[case].patient for case in cases),
        np.array([[of_case[name] for name in wanted] for of_case in values], dtype=float),
        np.stack(scores),
        tuple(missing),
        tuple(sorted(asked - known)),
    )
