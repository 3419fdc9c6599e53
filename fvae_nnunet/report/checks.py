"""Check that the files of a report are those that were evaluated, and that they match each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fvae_nnunet.ct.files import read_header
from fvae_nnunet.ct.geometry import geometry_differences
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.each_case import OnProgress, no_progress, run_each
from fvae_nnunet.files.recorded import sha256_of_file
from fvae_nnunet.jobs.manifest import sha256_of_files
from fvae_nnunet.report.case_images import View
from fvae_nnunet.report.results import Results

AGAIN = "run fvae-evaluate again on the current folders"


def check_files(
    results: Sequence[Results],
    images: Sequence[Mapping[str, Path]],
    views: Sequence[View],
    *,
    processes: int = 0,
    on_file: OnProgress = no_progress,
) -> None:
    """Check that nothing changed since the evaluation, and that images and views belong to these cases.

    References and predictions must exist and have the sha256 recorded in ``comparison.json`` (``summary.json`` records
    none). Predictions, images and views must have the reference's geometry, by the headers of the files. A view with a
    manifest must be complete and made from the images.

    Args:
        results: results with their folders.
        images: case -> raw image for each of them; empty without images.
        views: see `case_images.load_views`.
        processes, on_file: see `each_case.run_each`.

    Raises:
        UserError: all problems, one line each.
    """
    problems = [problem for of in results for problem in _gone(of)]
    if problems:
        raise UserError("the results cannot be shown:\n  " + "\n  ".join(problems))
    recorded = [file for of in results if of.content["kind"] == "comparison" for file in _files_of(of)]
    made_from = [
        images[at][case]
        for view in views
        for at in view.of_results
        if images and view.manifest is not None
        for case in results[at].cases
    ]
    hashed = list(dict.fromkeys([*recorded, *made_from]))
    sets = _files_of_cases(results, images, views)
    total = len(hashed) + len(sets)
    digests = run_each(sha256_of_file, hashed, processes, lambda done, _: on_file(done, total))
    sha256 = dict(zip(hashed, digests, strict=True))
    for of in results:
        problems += _changed(of, sha256)
    for view in views:
        for at in view.of_results:
            if images and view.manifest is not None:
                problems += _made_from_others(view, images[at], results[at].cases, sha256)
    for done, files in enumerate(sets, start=len(hashed) + 1):
        problems += _misfits(files)
        on_file(done, total)
    if problems:
        raise UserError("the results cannot be shown:\n  " + "\n  ".join(dict.fromkeys(problems)))


def _folders(results: Results) -> list[tuple[str, Path, str | None, list[Path]]]:
    """References and predictions of the results: name, folder, recorded sha256, and files in order."""
    predicted = [results.prediction_files(case) for case in results.cases]
    content = results.content
    return [
        (
            "the references", results.reference_folder, content["reference"]["sha256"],
            [results.reference_file(case) for case in results.cases],
        ),
        *(
            (
                f"the predictions of {results.full_names[model['name']]}", folder, model["sha256"],
                [files[model["name"]] for files in predicted if model["name"] in files],
            )
            for model, folder in zip(content["models"], results.prediction_folders, strict=True)
        ),
    ]  # fmt: skip


def _files_of(results: Results) -> list[Path]:
    return [path for *_, paths in _folders(results) for path in paths]


def _gone(results: Results) -> list[str]:
    problems = []
    for name, folder, _, paths in _folders(results):
        missing = [path.name for path in paths if not path.is_file()]
        if not folder.is_dir():
            problems.append(f"{folder} with {name} of {results.path} no longer exists; {AGAIN}")
        elif missing:
            problems.append(f"{folder} ({name} of {results.path}) lacks {', '.join(missing)}; {AGAIN}")
    return problems


def _changed(results: Results, sha256: Mapping[Path, str]) -> list[str]:
    problems = []
    for name, folder, recorded, paths in _folders(results):
        if recorded is None:
            continue
        now = sha256_of_files({path: sha256[path] for path in paths})
        if now != recorded:
            problems.append(
                f"{name} in {folder} have changed since {results.path} was written (sha256 {recorded[:12]} then, "
                f"{now[:12]} now); {AGAIN}"
            )
    return problems


def _made_from_others(
    view: View, images: Mapping[str, Path], cases: Sequence[str], sha256: Mapping[Path, str]
) -> list[str]:
    others = [case for case in cases if not view.is_made_from(case, images[case], sha256[images[case]])]
    if not others:
        return []
    return [
        f"{view.folder} (`views={view.name}`): according to its manifest, not complete or not made from the images in "
        f"`images`: {', '.join(others)}; run fvae-reconstruct on these images"
    ]


def _files_of_cases(
    results: Sequence[Results], images: Sequence[Mapping[str, Path]], views: Sequence[View]
) -> list[dict[str, Path]]:
    """Files of each case of each results file by the name used in messages; the reference is first."""
    sets = []
    for at, of in enumerate(results):
        for case in of.cases:
            files = {f"{case}: reference": of.reference_file(case)}
            files |= {f"prediction of {model}": path for model, path in of.prediction_files(case).items()}
            files |= {"image (`images`)": images[at][case]} if images else {}
            of_views = {f"view {view.name}": view.image_of(case) for view in views if at in view.of_results}
            files |= {name: path for name, path in of_views.items() if path is not None}
            sets.append(files)
    return sets


def _misfits(files: Mapping[str, Path]) -> list[str]:
    problems, headers = [], []
    for name, path in files.items():
        try:
            headers.append((name, *read_header(path)))
        except UserError as error:
            problems.append(str(error))
    if problems:
        return problems
    return [problem for other in headers[1:] for problem in geometry_differences(headers[0], other)]
