"""Whether the rows of a list fit the dataset and the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fvae_nnunet.ct.files import read_header
from fvae_nnunet.ct.geometry import check_same_place
from fvae_nnunet.errors import UserError
from fvae_nnunet.synthesis.generation.case_list import ListedCase
from fvae_nnunet.synthesis.model.folder import ModelSettings
from fvae_nnunet.synthesis.sources.cases import SourceDataset

MOST_SAID = 50
"""So many wrong rows are named."""


def checked_list(
    path: Path,
    rows: Sequence[ListedCase | str],
    dataset: SourceDataset,
    settings: ModelSettings,
    finding_names: Sequence[str],
    *,
    texts_needed: bool = False,
) -> dict[str, ListedCase]:
    """The rows by case.

    Args:
        path: of the list, for messages.
        rows: from ``read_case_list``.
        dataset: with the classes of the model.
        settings: of the model.
        finding_names: of the dataset.
        texts_needed: see ``model.folder.needs_text``.

    Raises:
        UserError: rows are wrong by themselves or do not fit the dataset or the model, or their files do not lie on
            one another; all of them are named. Of the masks only the heads are read here.
    """
    listed, wrong = {}, []
    for row in rows:
        if isinstance(row, str):
            wrong.append(row)
            continue
        try:
            if texts_needed and row.text is None:
                raise UserError("it has no text, and every case of the model's training had one")
            _check_row(row, dataset, settings, finding_names)
        except UserError as error:
            wrong.append(f"{row.where}: {error}")
        listed[row.case] = row
    if wrong:
        more = [f"and {len(wrong) - MOST_SAID} more"] if len(wrong) > MOST_SAID else []
        raise UserError(f"the list {path}: {len(wrong)} wrong:\n  " + "\n  ".join(wrong[:MOST_SAID] + more))
    return listed


def _check_row(row: ListedCase, dataset: SourceDataset, settings: ModelSettings, finding_names: Sequence[str]) -> None:
    if row.source is not None and row.source not in dataset.image_files:
        raise UserError(f"{dataset.name} has no training case {row.source!r} (of the fold, if `fold` is given)")
    if row.structures is not None and dataset.organ.structures is None:
        raise UserError("structures are for models that were trained with `organ='structures'`; give a source")
    if not row.keep_lesions:
        _ = dataset.label_without_lesion
    for name, _ in row.diseases:
        if name not in dataset.lesions:
            raise UserError(f"the model knows no lesion {name!r}; it knows {', '.join(dataset.lesions) or 'none'}")
    if row.labels is not None and not dataset.lesions:
        raise UserError("labels are of lesions, and the model knows none")
    if row.text is not None and settings.text_encoder is None:
        raise UserError("it has a text, and the model was trained without")
    unknown = [name for name in row.findings or () if name not in finding_names]
    if row.findings is not None and (unknown or not finding_names):
        which = f"no finding {unknown[0]!r}; there are {', '.join(finding_names)}" if finding_names else "no findings"
        raise UserError(f"the dataset's reports.json has {which}")
    for _, path in row.mask_files:
        if not path.is_file():
            raise UserError(f"there is no file {path}")
    files = [file for _, file in row.mask_files]
    if row.source is not None:
        files.insert(0, dataset.image_files[row.source][dataset.ct_channel])
    heads = [read_header(file) for file in files]
    for file, (shape, geometry) in zip(files, heads, strict=True):
        check_same_place((str(files[0]), *heads[0]), (str(file), shape, geometry), f". Resample {file}")
