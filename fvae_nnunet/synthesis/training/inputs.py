"""Inputs of a training: embeddings of reports, draws from the cache, and the settings of the model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fvae_nnunet.errors import UserError
from fvae_nnunet.files.portable_names import portable_name
from fvae_nnunet.synthesis.model.conditions import detail_channels
from fvae_nnunet.synthesis.model.folder import ModelSettings
from fvae_nnunet.synthesis.model.latent_encoding import LatentSettings
from fvae_nnunet.synthesis.model.latent_windows import latent_slices
from fvae_nnunet.synthesis.model.layout import APPEARANCE
from fvae_nnunet.synthesis.model.lesion_detail import AppearanceScale
from fvae_nnunet.synthesis.sources.cases import SourceDataset
from fvae_nnunet.synthesis.training.latent_cache import TEXTS, caches_folder, latent_statistics, read_records
from fvae_nnunet.synthesis.training.latent_draws import LatentDraws
from fvae_nnunet.synthesis.training.settings import TrainingSettings
from fvae_nnunet.vae.base import FrozenVAE


@dataclass(frozen=True)
class Texts:
    """Embeddings of reports; empty without reports.

    Attributes:
        embeddings: case -> (T, width), float16.
        encoder: hub id or folder of the text encoder.
        width: number of channels.
        weights_sha256: digest of the encoder's weights.
        digest: sha256 of the reports.
    """

    embeddings: dict[str, torch.Tensor]
    encoder: str | None = None
    width: int | None = None
    weights_sha256: str | None = None
    digest: str | None = None


def read_texts(
    reports_file: str | None, text_encoder: str | None, dataset: SourceDataset, device: torch.device
) -> Texts:
    """Compute the embeddings of the training cases' reports, cached beside the latents.

    Args:
        reports_file: see ``report_texts.read_reports``; empty: the dataset's own ``reports.json``; None: no texts.
        text_encoder: hub id or folder; None: the paper's.
        dataset: dataset with the training cases; reports of other cases are ignored.
        device: device for the computation.

    Raises:
        UserError: the file or the encoder cannot be used, or no training case has a report.
    """
    if reports_file is None:
        return Texts({})
    from fvae_nnunet.jobs.progress_bar import progress_bar
    from fvae_nnunet.nnunet.case_reports import find_case_reports
    from fvae_nnunet.nnunet.report_texts import DEFAULT_TEXT_ENCODER, read_reports
    from fvae_nnunet.synthesis.model.text import ReportEncoder

    path = Path(reports_file).expanduser() if reports_file else find_case_reports(dataset.raw_folder)
    reports = {case: text for case, text in read_reports(path).items() if case in dataset.image_files}
    if not reports:
        raise UserError(f"{path} has no text for any training case of {dataset.name}; check its case names")
    encoder = ReportEncoder(
        text_encoder or DEFAULT_TEXT_ENCODER,
        cache=caches_folder(dataset) / TEXTS,
        device=device,
        dtype=torch.float16,
    )
    embeddings = {
        case: encoder.encode(text) for case, text in progress_bar(sorted(reports.items()), desc="texts", leave=False)
    }
    digest = hashlib.sha256(json.dumps(reports, sort_keys=True).encode()).hexdigest()
    return Texts(embeddings, encoder.name, encoder.width, encoder.weights_sha256, digest)


def draws_and_model(
    settings: TrainingSettings,
    dataset: SourceDataset,
    vae: FrozenVAE,
    latent_settings: LatentSettings,
    cache: Path,
    texts: Texts,
) -> tuple[LatentDraws, ModelSettings]:
    """The draws of a training from a complete cache, and the settings of its model.

    Args:
        settings: settings of the training.
        dataset, vae, latent_settings, cache: inputs and folder of the latents.
        texts: embeddings of the reports.

    Raises:
        UserError: as for ``LatentDraws``.
    """
    records = read_records(cache, dataset.cases)
    mean, std = latent_statistics(records.values())
    looks: dict[str, Any] = {}
    if latent_settings.mask_encoding == "outline":
        scale = AppearanceScale.of([hu for record in records.values() for hu in record["appearances_hu"]])
        looks = dict(zip(APPEARANCE, zip(scale.mean, scale.std, strict=True), strict=True))
    model = ModelSettings(
        vae=vae.spec.name,
        weights_sha256=vae.weights_sha256,
        latent_channels=vae.spec.latent_channels,
        precision=vae.precision,
        hu_window=latent_settings.hu_window,
        window_slices=latent_settings.window_slices,
        inplane_pixels=latent_settings.inplane_pixels,
        spacing_mm=latent_settings.spacing_mm,
        mask_encoding=latent_settings.mask_encoding,
        class_names=dataset.class_names,
        lesions=len(dataset.lesions),
        latent_mean=mean,
        latent_std=std,
        prediction=settings.prediction,
        text_encoder=None if texts.encoder is None else portable_name(texts.encoder),
        text_width=texts.width,
        text_weights_sha256=texts.weights_sha256,
        organ=portable_name(dataset.organ.text),
        detail_channels=detail_channels(latent_settings.mask_encoding, vae.spec),
        context=settings.context,
        **looks,
    )
    draws = LatentDraws(
        cache,
        dataset.cases,
        conditions=model.condition_format(vae.spec),
        window=latent_slices(vae.spec, latent_settings.window_slices),
        crop=latent_settings.inplane_pixels // vae.spec.inplane_stride,
        lesion_share=settings.lesion_share,
        context=settings.context,
        texts=texts.embeddings,
    )
    return draws, model
