"""Check that the rows of a list fit the dataset and the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fvae_nnunet.ct.files import read_header
from fvae_nnunet.ct.geometry import check_same_place
from fvae_nnunet.errors import UserError, some_of
from fvae_nnunet.numbers_as_text import counted
from fvae_nnunet.synthesis.generation.case_list import ListedCase
from fvae_nnunet.synthesis.model.folder import ModelSettings
from fvae_nnunet.synthesis.sources.cases import SourceDataset

MOST_SAID = 50
"""Maximum number of invalid rows named in a message."""


def checked_list(
    path: Path,
    rows: Sequence[ListedCase | str],
    dataset: SourceDataset,
    settings: ModelSettings,
    finding_names: Sequence[str],
    *,
    texts_needed: bool = False,
) -> dict[str, ListedCase]:
    """Check all rows and return them by case. Only the headers of mask files are read.

    Args:
        path: path of the list, for messages.
        rows: output of ``read_case_list``.
        dataset: dataset with the classes of the model.
        settings: settings of the model.
        finding_names: names of the findings of the dataset.
        texts_needed: see ``model.folder.needs_text``.

    Raises:
        UserError: rows are invalid, do not fit the dataset or the model, or have files with different geometries; the
            message names up to ``MOST_SAID`` of them.
    """
    listed, wrong = {}, []
    for row in rows:
        if isinstance(row, str):
            wrong.append(row)
            continue
        try:
            if texts_needed and row.text is None:
                raise UserError("it has no text, but the model was trained only on cases with a text")
            _check_row(row, dataset, settings, finding_names)
        except UserError as error:
            wrong.append(f"{row.where}: {error}")
        listed[row.case] = row
    if wrong:
        rows_of = counted(len(wrong), "invalid row")
        raise UserError(f"the list {path} has {rows_of}:\n  " + some_of(wrong, MOST_SAID, "\n  "))
    return listed


def _check_row(row: ListedCase, dataset: SourceDataset, settings: ModelSettings, finding_names: Sequence[str]) -> None:
    if row.source is not None and row.source not in dataset.image_files:
        raise UserError(f"{dataset.name} has no training case {row.source!r} (of the fold, if `fold` is given)")
    if row.structures is not None and dataset.organ.structures is None:
        raise UserError("structures require a model trained with `organ='structures'`; give a source")
    if not row.keep_lesions:
        _ = dataset.label_without_lesion
    for name, _ in row.diseases:
        if name not in dataset.lesions:
            raise UserError(f"the model knows no lesion {name!r}; it knows {', '.join(dataset.lesions) or 'none'}")
    if row.labels is not None and not dataset.lesions:
        raise UserError("it has labels of lesions, but the model knows no lesion")
    if row.text is not None and settings.text_encoder is None:
        raise UserError("it has a text, but the model was trained without text")
    unknown = [name for name in row.findings or () if name not in finding_names]
    if row.findings is not None and (unknown or not finding_names):
        which = f"no finding {unknown[0]!r}; it has {', '.join(finding_names)}" if finding_names else "no findings"
        raise UserError(f"the dataset's reports.json has {which}")
    for _, path in row.mask_files:
        if not path.is_file():
            raise UserError(f"{path} is not a file")
    files = [file for _, file in row.mask_files]
    if row.source is not None:
        files.insert(0, dataset.image_files[row.source][dataset.ct_channel])
    heads = [read_header(file) for file in files]
    for file, (shape, geometry) in zip(files, heads, strict=True):
        check_same_place((str(files[0]), *heads[0]), (str(file), shape, geometry), f". Resample {file}")
