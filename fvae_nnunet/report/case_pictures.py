"""Pictures of the best and worst cases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from fvae_nnunet.ct.files import read_upright
from fvae_nnunet.evaluation.each_case import OnProgress, no_progress, run_each
from fvae_nnunet.evaluation.segmentation.comparison_tables import name_of
from fvae_nnunet.evaluation.segmentation.lesions import DETECTION_OVERLAP
from fvae_nnunet.numbers_as_text import counted, listed, number, percent
from fvae_nnunet.pictures.case import comparison_picture
from fvae_nnunet.pictures.panels import DIFFERENCE_HU
from fvae_nnunet.report.blocks import Block, Figure, Heading, Paragraph, Picture
from fvae_nnunet.report.case_ends import headed_cases
from fvae_nnunet.report.case_images import View
from fvae_nnunet.report.results import Results
from fvae_nnunet.short_names import short_names

DPI = 120

SHEET = "dark_background"
"""matplotlib style around CT images: black, also on a light page."""

MOST_BYTES = 500_000
"""Maximum size of a picture."""

MOST_BYTES_OF_ALL = 9_500_000
"""Maximum size of all pictures of a report: base64 adds a third, which leaves room for the rest in 15 MB."""

_QUALITIES = ((1.0, 88), (1.0, 78), (0.85, 75), (0.7, 72), (0.6, 68), (0.5, 62), (0.4, 55))
"""Scale and JPEG quality, tried in this order until the picture is small enough."""


@dataclass(frozen=True)
class Chosen:
    """The cases of one results file to show, selected by the change of the deciding measure, or its value."""

    best: Sequence[str]
    worst: Sequence[str]
    explanation: str
    false_positives: Sequence[str] = ()
    """Cases without a lesion in the reference in which a model finds one."""

    @property
    def all(self) -> list[str]:
        return [*self.best, *self.worst, *self.false_positives]


@dataclass(frozen=True)
class _Task:
    results: int
    case: str
    raw: Path
    views: Mapping[str, Path]
    reference: Path
    predictions: Mapping[str, Path]
    labels: Mapping[str, int | tuple[int, ...]]
    lesion: str
    detection_overlap: float
    ignore_label: int | None
    remarks: Mapping[str, str]
    most_bytes: int


def choose_cases(results: Results, number: int) -> Chosen:
    """Choose ``number`` best and worst cases, or the better and worse half if there are fewer, without repetition.

    In addition, choose up to ``number`` cases with false positives but no lesion in the reference, most first.
    """
    measure = results.deciding_measure
    what = f"{name_of(measure)} of {measure['label_name']}"
    if results.is_comparison:
        pair = measure["comparisons"][0]
        order = pair["most_improved_first"]
        by = f"by the change of the {what} from {pair['first']} to {pair['second']}"
    else:
        order = measure["models"][0]["best_first"]
        by = f"by the {what}"
    only_false = _only_false_positives(results)
    if not order:
        return Chosen([], [], f"No case can be ordered {by}: none has a value.", only_false[:number])
    half = len(order) // 2
    best = order[: min(number, len(order) - half)]
    worst = order[::-1][: min(number, half)]
    explanation = (
        f"{counted(len(order), 'case')}, ordered {by}: {len(best)} from the best and {len(worst)} from the worst end. "
        "They are the ends of the range, not typical cases."
    )
    others = [case for case in only_false if case not in (*best, *worst)]
    return Chosen(best, worst, explanation, others[:number])


def _only_false_positives(results: Results) -> list[str]:
    """Cases with false positives but no lesion in the reference, sorted by the largest number from any model."""
    label = results.deciding_measure["label"]
    counts: dict[str, int] = {}
    for of_model in results.content["lesions"].get(label, {}).values():
        for case, lesions in of_model.items():
            false = len(lesions["false_positive_diameters_mm"])
            if false and not lesions["diameters_mm"]:
                counts[case] = max(false, counts.get(case, 0))
    return sorted(counts, key=lambda case: (-counts[case], case))


def draw_cases(
    results: Sequence[Results],
    chosen: Sequence[Chosen],
    images: Sequence[Mapping[str, Path]],
    views: Sequence[View],
    *,
    processes: int = 0,
    on_picture: OnProgress = no_progress,
) -> list[dict[str, Picture]]:
    """Draw the chosen cases of each results file.

    Args:
        results, chosen: results files and their chosen cases, in the same order.
        images: case -> raw image, for each results file.
        views: views, shown with the results to which they are assigned.
        processes, on_picture: see `each_case.run_each`.

    Raises:
        UserError: an image cannot be read.
    """
    cases = [of.all for of in chosen]
    total = sum(map(len, cases))
    most_bytes = min(MOST_BYTES, MOST_BYTES_OF_ALL // max(1, total))
    tasks = [
        _task(at, of, case, images[at], [view for view in views if at in view.of_results], most_bytes)
        for at, of in enumerate(results)
        for case in cases[at]
    ]
    pictures: list[dict[str, Picture]] = [{} for _ in results]
    for task, jpeg in zip(tasks, run_each(_draw, tasks, processes, on_picture), strict=True):
        pictures[task.results][task.case] = Picture(jpeg)
    return pictures


def _detection_overlap(results: Results) -> float:
    """The detection overlap of the results; the default if no label was evaluated by lesion."""
    return results.content["settings"]["lesions"]["detection_overlap"] or DETECTION_OVERLAP


def case_blocks(
    results: Results, chosen: Chosen, pictures: Mapping[str, Picture], views: Sequence[str]
) -> Iterator[Block]:
    """Yield the section of one results file."""
    yield Heading("Cases", 3)
    yield Paragraph(chosen.explanation)
    if not pictures:
        return
    shown = listed([f"the view {view}" for view in views])
    yield Paragraph(
        "From top to bottom: axial, coronal and sagittal slices at the largest cross-section of the largest lesion in "
        "the reference. From left to right: the raw image, its framed part, "
        f"{f'{shown} with changes, ' if views else ''}then each model's prediction (orange, thin) over the reference "
        f"(blue, thick), along voxel edges. Missed: a lesion with less than {percent(_detection_overlap(results))} of "
        "its voxels predicted."
        + (f" Differences range from −{DIFFERENCE_HU:g} to {DIFFERENCE_HU:g} HU in all pictures." if views else "")
    )
    ends = headed_cases(results, chosen.best, chosen.worst)
    only_false = [("Only false positives", chosen.false_positives)] if chosen.false_positives else []
    for heading, cases in (*ends, *only_false):
        yield Heading(heading, 4)
        for case in cases:
            caption = f"{case}: {_values(results, case)}"
            models = listed(list(results.prediction_files(case)))
            yield Figure(pictures[case], caption, f"Case {case}: raw image, views, and predictions of {models}", case)


def _values(results: Results, case: str) -> str:
    """The deciding measure of a case for every model, and its change."""
    measure = results.deciding_measure
    values = [
        f"{entry['model']} {number(entry['values'][case], measure['unit'])}" if case in entry["values"] else
        f"{entry['model']} missing"
        for entry in measure["models"]
    ]  # fmt: skip
    text = f"{name_of(measure)} of {measure['label_name']}: {', '.join(values)}"
    if not results.is_comparison:
        return text
    differences = measure["comparisons"][0]["differences"]
    if case not in differences:
        return text
    return f"{text}; change {number(differences[case], measure['unit'], signed=True)}"


def _task(
    at: int, results: Results, case: str, images: Mapping[str, Path], views: Sequence[View], most_bytes: int
) -> _Task:
    measure = results.deciding_measure
    model_names, view_names = short_names(results.models), short_names([view.name for view in views])
    remarks = {
        model_names[entry["model"]]: f"{measure['name']}: {number(entry['values'][case], measure['unit'])}"
        for entry in measure["models"]
        if case in entry["values"]
    }
    return _Task(
        results=at,
        case=case,
        raw=images[case],
        views={f"view {view_names[view.name]}": path for view in views if (path := view.image_of(case)) is not None},
        reference=results.reference_file(case),
        predictions={model_names[model]: path for model, path in results.prediction_files(case).items()},
        labels=results.label_values,
        lesion=measure["label_name"],
        detection_overlap=_detection_overlap(results),
        ignore_label=results.content["settings"].get("ignore_label"),
        remarks=remarks,
        most_bytes=most_bytes,
    )


def _draw(task: _Task) -> bytes:
    import matplotlib.style

    raw_hu, spacing_mm = read_upright(task.raw)
    reference = read_upright(task.reference)[0]
    predictions = {name: read_upright(path)[0] for name, path in task.predictions.items()}
    if task.ignore_label is not None:
        for prediction in predictions.values():
            prediction[reference == task.ignore_label] = 0
    buffer = BytesIO()
    with matplotlib.style.context(SHEET):
        figure = comparison_picture(
            raw_hu,
            views={name: read_upright(path)[0] for name, path in task.views.items()},
            spacing_mm=spacing_mm,
            reference=reference,
            predictions=predictions,
            labels=task.labels,
            lesion=task.lesion,
            detection_overlap=task.detection_overlap,
            remarks=task.remarks,
        )
        figure.savefig(buffer, format="png", dpi=DPI)
    return jpeg_within(buffer, task.most_bytes)


def jpeg_within(image: BytesIO, most_bytes: int) -> bytes:
    """Convert an image file to a JPEG of at most ``most_bytes``, in the best size and quality that this allows.

    If even the smallest version is larger, that one is returned.
    """
    from PIL import Image

    with Image.open(image) as opened:
        picture = opened.convert("RGB")
    encoded = b""
    for scale, quality in _QUALITIES:
        size = [round(edge * scale) for edge in picture.size]
        buffer = BytesIO()
        scaled = picture if scale == 1 else picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
        # without subsampling: the outlines are thin and coloured
        scaled.save(buffer, format="JPEG", quality=quality, subsampling=0)
        encoded = buffer.getvalue()
        if len(encoded) <= most_bytes:
            break
    return encoded
