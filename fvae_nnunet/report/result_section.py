"""The first chapter, the result: which model is better for each label, by how much, and with what certainty."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from fvae_nnunet.evaluation.segmentation.verdict import (
    EXPLANATION,
    FEW_CASES,
    Measure,
    comparison_sentence,
    deciding,
    model_sentence,
)
from fvae_nnunet.pictures.series import Colours
from fvae_nnunet.report.blocks import Block, Facts, Figure, Heading, Paragraph
from fvae_nnunet.report.result_plots import difference_forest
from fvae_nnunet.report.results import Results


def result_blocks(results: Sequence[Results], colours: Colours) -> Iterator[Block]:
    """Yield the chapter; nothing without results."""
    if not results:
        return
    yield Heading("Result")
    key = {short: name for of in results for short, name in of.full_names.items() if short != name}
    if key:
        yield Paragraph("Names of models, shortened in this report:")
        yield Facts(list(key.items()))
    for of in results:
        if len(results) > 1:
            yield Heading(of.title, 3)
        yield from _blocks_of(of, colours)


def _blocks_of(of: Results, colours: Colours) -> Iterator[Block]:
    labels = {name: of.measures_of(key) for key, name in of.label_names.items()}
    yield Facts([(name, _sentence(measures, of)) for name, measures in labels.items()])
    few = f" With fewer than {FEW_CASES} cases, intervals are too narrow." if len(of.cases) < FEW_CASES else ""
    if not of.is_comparison:
        yield Paragraph(f"Intervals are bootstrapped over cases.{few}")
        return
    yield Paragraph(f"{EXPLANATION[0].upper()}{EXPLANATION[1:]}.{few}")
    firsts = list(dict.fromkeys(entry["first"] for entry in of.content["measures"][0]["comparisons"]))
    yield Figure(
        difference_forest(labels, colours),
        f"Mean difference from {firsts[0] if len(firsts) == 1 else 'the model named first'} and its 95 % interval; "
        "a model is better to the right of the dotted line. Filled dots: the interval excludes 0 and p is below 0.05."
        + ("" if len(firsts) == 1 else f" From the top in each row: {'; '.join(_pairs(of))}."),
        f"Forest plot of the differences of {', '.join(labels)}",
    )


def _sentence(measures: Sequence[Measure], of: Results) -> str:
    if not of.is_comparison:
        return model_sentence(measures)
    decides = deciding(measures)
    sentences = [comparison_sentence(decides, entry) for entry in decides["comparisons"]]
    # names of models stay in lower case
    return "\n".join(re.sub("^(no|too) ", lambda word: word[0].capitalize(), sentence) for sentence in sentences)


def _pairs(of: Results) -> list[str]:
    return [f"{entry['second']} − {entry['first']}" for entry in of.content["measures"][0]["comparisons"]]
