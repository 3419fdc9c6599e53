"""The chapter on synthetic lesions: settings, gallery, quality, and reasons for rejection."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any, Literal

from fvae_nnunet.nnunet.synthetic_folder import SyntheticCase
from fvae_nnunet.numbers_as_text import counted, is_number, listed, number, short_sha256
from fvae_nnunet.pictures.series import SERIES_COLOURS
from fvae_nnunet.report.blocks import Block, Column, Details, Facts, Figure, Heading, Paragraph, Table
from fvae_nnunet.report.plots import Values, paired_dots
from fvae_nnunet.report.setting_text import setting_text
from fvae_nnunet.report.synthetic_cases import SyntheticSet, lesions_of

FIGURES = {
    "diameter_mm": ("diameter (mm)", "mm"),
    "mean_hu": ("mean (HU)", "HU"),
    "core_mean_hu": ("core's mean (HU)", "HU"),
    "core_sd_hu": ("core's SD (HU)", "HU"),
    "contrast_hu": ("contrast (HU)", "HU"),
    "rim_hu": ("rim (HU)", "HU"),
    "slice_change_hu": ("change between slices (HU)", "HU"),
    "inside_fraction": ("fraction in the organ", "share"),
    "found_share": ("fraction found by the segmenter", "share"),
}
"""Figures shown for each lesion: name and quantity."""

ACCEPTED_COLOUR, REJECTED_COLOUR = SERIES_COLOURS[2], SERIES_COLOURS[5]

_FIGURE_IN_REASON = re.compile(r"[-−]?\d+(\.\d+)?")
_LESION_IN_REASON = re.compile(r"\blesion \d+\b")


def synthetic_blocks(sets: Sequence[SyntheticSet], galleries: Sequence[Sequence[Figure]]) -> Iterator[Block]:
    """Yield the chapter; nothing without any folder.

    Args:
        sets: the folders.
        galleries: sheets of each folder, from ``synthetic_pictures.draw_gallery``.
    """
    if not sets:
        return
    yield Heading("Synthetic lesions")
    for of, gallery in zip(sets, galleries, strict=True):
        if len(sets) > 1:
            yield Heading(str(of.folder), 3)
        yield Facts(list(_facts(of)))
        yield from _settings_blocks(of)
        level: Literal[3, 4] = 4 if len(sets) > 1 else 3
        yield from _gallery_blocks(of, gallery, level)
        yield from _quality_blocks(of, level)
        yield from _rejected_blocks(of, level)


def _facts(of: SyntheticSet) -> Iterator[tuple[str, str]]:
    cases = of.cases
    yield "folder", str(of.folder)
    sources = {case.record["source_case"] for case in of.accepted} - {None}
    made = f"{counted(len(of.accepted), 'case')} accepted"
    made += f", from {counted(len(sources), 'source case')}" if sources else ""
    yield "cases", f"{made}; {len(of.rejected)} rejected"
    doubtful = sum(bool(case.record.get("reasons")) for case in of.accepted)
    if doubtful:
        yield "not filtered", f"{counted(doubtful, 'accepted case')} would have been rejected by quality control"
    for term, key in (("source", "dataset"), ("mode", "mode"), ("seed", "seed")):
        yield term, listed(sorted({str(case.record.get(key, "not recorded")) for case in cases}))
    for model in _different([case.record["model"] for case in cases]):
        trained = model.get("training_cases")
        on = "training cases not recorded" if trained is None else (
            f"trained on {counted(len(trained), 'case')}"
        )  # fmt: skip
        yield (
            "diffusion model",
            (
                f"{model.get('folder', 'not recorded')}, sha256 {short_sha256(model.get('weights_sha256'))}, {on}; VAE "
                f"{model.get('vae', 'not recorded')}, sha256 {short_sha256(model.get('vae_sha256'))}"
            ),
        )


def _settings_blocks(of: SyntheticSet) -> Iterator[Block]:
    """Yield a table with a row for each setting and a column for each different set of settings."""
    columns = [dict(_flat(settings)) for settings in _different([case.record.get("settings", {}) for case in of.cases])]
    names = sorted({name for column in columns for name in column})
    if not names:
        return
    rows = [[name, *(column.get(name, "") for column in columns)] for name in names]
    headings = ["value"] if len(columns) == 1 else [f"settings {place}" for place in range(1, len(columns) + 1)]
    table = Table([Column("setting", "text"), *(Column(heading, "text") for heading in headings)], rows)
    yield Details(f"Settings, {len(names)}", [table])


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield settings by name; nested ones are prefixed with the name of their parent."""
    for key, value in settings.items():
        name = f"{before}{key.replace('_', ' ')}"
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{name}, ")
        else:
            yield name, setting_text(value)


def _different(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for entry in entries:
        if entry not in found:
            found.append(entry)
    return found


def _gallery_blocks(of: SyntheticSet, gallery: Sequence[Figure], level: Literal[3, 4]) -> Iterator[Block]:
    if not gallery:
        return
    yield Heading("Gallery", level)
    which = "Accepted cases" if of.accepted else "No case was accepted; these are rejected ones"
    yield Paragraph(
        f"{which}, evenly spaced by size, smallest first. Each is shown in the axial slice with the largest "
        "cross-section of its (largest) new lesion: the slice of the source case with a frame, then the framed part "
        "before and after, and after with the outline of the new lesion. Black to white is −160 to 240 HU, or −1350 to "
        "150 HU for a lesion in the lung."
    )
    yield from gallery


def _quality_blocks(of: SyntheticSet, level: Literal[3, 4]) -> Iterator[Block]:
    lesions = {"accepted": _lesions(of.accepted), "rejected": _lesions(of.rejected)}
    figures = {
        key: said
        for key, said in FIGURES.items()
        if any(is_number(values.get(key)) for found in lesions.values() for values in found.values())
    }
    if not figures:
        return
    yield Heading("Quality", level)
    yield Paragraph(
        "The core of a lesion is at least 4 mm inside it (in small lesions, at two thirds of the greatest depth). "
        "Contrast is the mean of the core minus that of the surroundings in the organ; rim is the mean of the outer "
        "2 mm minus that of the core; the change between slices is measured inside the lesion. Lesions outside the "
        "limits are rejected. Limits in HU come from the dataset's real lesions, those of texture and rim from the "
        "lesions nearest in size; if they differ between lesions, the lowest and highest are in brackets."
    )
    sides = [side for side, found in lesions.items() if found]
    columns = [Column("of each lesion", "text")]
    columns += [Column(name, group=side) for side in sides for name in ("n", "lowest", "median", "highest")]
    columns.append(Column("limits", "text"))
    rows = []
    for key, (name, quantity) in figures.items():
        row = [name]
        for side in sides:
            values = [values[key] for values in lesions[side].values() if is_number(values.get(key))]
            few = [min(values), median(values), max(values)] if values else [None] * 3
            row += [str(len(values)), *(number(value, quantity) for value in few)]
        rows.append([*row, _limits(of, key, quantity)])
    yield Table(columns, rows, "Over all lesions")
    panels = [
        Values(
            name,
            {
                side: {lesion: values[key] for lesion, values in lesions[side].items() if is_number(values.get(key))}
                for side in sides
            },
            quantity=quantity,
        )
        for key, (name, quantity) in figures.items()
    ]
    drawing = paired_dots(panels, {"accepted": ACCEPTED_COLOUR, "rejected": REJECTED_COLOUR})
    yield Figure(drawing, "Each dot is a lesion.", f"Dots of every lesion for {', '.join(p.title for p in panels)}")
    if of.accepted:
        yield Details(f"Every accepted case, {len(of.accepted)}", [_cases_table(of.accepted, figures)])


def _lesions(cases: Sequence[SyntheticCase]) -> dict[str, dict[str, Any]]:
    return {name: figures for case in cases for name, figures in lesions_of(case)}


def _limits(of: SyntheticSet, key: str, quantity: str) -> str:
    """Limits of quality control for a figure, as text; empty if there are none or they differ between cases. Limits in
    HU that differ between lesions are given as ranges of their ends."""
    asked = [case.record.get("quality", {}).get("limits", {}).get(key) for case in of.cases]
    if asked[0] is not None and all(other == asked[0] for other in asked):
        return f"at least {number(asked[0], quantity)}"
    limits = [(values.get("limits") or {}).get(key) for values in _lesions(of.cases).values()]
    ends = [sorted({limit[end] for limit in limits if limit is not None}) for end in (0, 1)]
    if not ends[0]:
        return ""
    return " to ".join(
        number(end[0], quantity) if len(end) == 1 else f"({number(end[0], quantity)} … {number(end[-1], quantity)})"
        for end in ends
    )


def _cases_table(cases: Sequence[SyntheticCase], figures: dict[str, tuple[str, str]]) -> Table:
    columns = [Column("case", "text"), Column("source case", "text"), Column("shape", "text")]
    columns += [Column("centre (mm; x, y, z)", "text"), *(Column(name) for name, _ in figures.values())]
    rows = []
    for case in cases:
        for name, values in lesions_of(case):
            borrowed = values.get("borrowed_from")
            rows.append(
                [
                    name,
                    case.record["source_case"] or "",
                    f"{values.get('shape', '')}{f' from {borrowed}' if borrowed else ''}",
                    ", ".join(number(place, "mm") for place in values.get("centre_mm", [])),
                    *(number(values.get(key), quantity) for key, (_, quantity) in figures.items()),
                ]
            )
    return Table(columns, rows)


def _rejected_blocks(of: SyntheticSet, level: Literal[3, 4]) -> Iterator[Block]:
    if not of.rejected:
        return
    yield Heading("Rejected", level)
    reasons = Counter(
        kind for case in of.rejected for kind in {kind_of_reason(reason) for reason in case.record.get("reasons", [])}
    )
    yield Table(
        [Column("reason", "text"), Column("cases")],
        [[kind, str(cases)] for kind, cases in sorted(reasons.items(), key=lambda found: (-found[1], found[0]))],
        f"Why {len(of.rejected)} of {len(of.cases)} cases were rejected",
        ["A case can have several reasons; … replaces the figure of each case."],
    )
    rows = []
    for case in of.rejected:
        for at, reason in enumerate(case.record.get("reasons", []) or [""]):
            rows.append(["" if at else case.name, case.record["source_case"] or "", reason])
    columns = [Column("case", "text"), Column("source case", "text"), Column("reason", "text")]
    yield Details(f"Every rejected case, {len(of.rejected)}", [Table(columns, rows)])


def kind_of_reason(reason: str) -> str:
    """A reason without its figures, so that cases with the same reason can be counted."""
    return _FIGURE_IN_REASON.sub("…", _LESION_IN_REASON.sub("the lesion", reason))
