"""Evaluate a folder of generated images with all metrics that the given inputs allow.

The result is the content of ``generation.json``::

    {"schema": 1, "kind": "generation_quality", "version": ..., "metrics": ["fvd", ...],
     "real": {"folder", "kind", "cases"}, "fake": {...}, "train": {...} or null,
     "settings": {"seed", "resamples"}, "networks": {name: {"file", "sha256", "input", ...}},
     "distances": [{"metric": "fvd", "network", "part", "width", "rows_real", "rows_fake", "cases_real", "cases_fake",
                    "rank_real", "rank_fake", "value", "low", "high", "by_chance", "p", "resampled_variance"}],
     "cosines": {"image_image": {...}, "text_image": {...}, "text_real": {...}},
     "masks": {...}, "memorisation": {...}, "warnings": [...]}

Metrics that were not requested are null; NaN marks undefined values. `similarity`, `adherence` and `memorisation`
describe their parts, `distances` the numbers of a distance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import fvae_nnunet
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.generation import distances
from fvae_nnunet.evaluation.generation.adherence import mask_adherence
from fvae_nnunet.evaluation.generation.compared_structures import read_groups
from fvae_nnunet.evaluation.generation.evaluation import Evaluation
from fvae_nnunet.evaluation.generation.feature_networks import CT_CLIP, FeatureNetwork
from fvae_nnunet.evaluation.generation.features import CaseFeatures, Extracted, extract_features
from fvae_nnunet.evaluation.generation.image_sets import ImageSet
from fvae_nnunet.evaluation.generation.memorisation import (
    CaseVectors,
    nearest_training_cases,
    summarise_memorisation,
)
from fvae_nnunet.evaluation.generation.segment_cases import segment_cases
from fvae_nnunet.evaluation.generation.similarity import (
    matched_cosines,
    pair_with_real,
    summarise_cosines,
    unit,
)
from fvae_nnunet.evaluation.statistics import check_resampling
from fvae_nnunet.nnunet.segmenter import open_segmenter
from fvae_nnunet.numbers_as_text import counted, listed, percent

SCHEMA = 1

FEW_CASES = 20
"""With fewer cases in a set, the report warns about intervals and the memorisation check."""

ENOUGH_VARIANCE = 0.99
"""The report warns if resamples are computed in components with less than this fraction of the variance."""

Progress = Callable[[str, int], Callable[[], object]]
"""Begins a stage with a name and a number of steps; returns a function to call after each step."""


def evaluate_generation(evaluation: Evaluation, progress: Progress = lambda stage, steps: lambda: None) -> Evaluated:
    """Compute all metrics; writes only the feature cache and, with a segmenter, its segmentations.

    Raises:
        UserError: see `Evaluation.chosen_metrics`, `extract_features`, `distances`, `adherence`.
    """
    check_resampling(evaluation.seed, evaluation.resamples)
    if evaluation.real.folder.resolve() == evaluation.fake.folder.resolve():
        raise UserError(f"{evaluation.real.folder} is given as both real and generated images; give two folders")
    metrics = evaluation.chosen_metrics()
    if evaluation.segmenter is not None and evaluation.segmentations is not None:
        raise UserError("`segmentations` and `segmenter` exclude each other; give one of them")
    # first, so that problems with masks are reported before hours of feature extraction
    masks = _masks(evaluation, progress) if "masks" in metrics else None
    extracted = _extract(evaluation, metrics, progress)
    real, fake = extracted["real"], extracted["fake"]
    found = list(_distances(evaluation, metrics, real, fake, progress))
    cosines = _cosines(evaluation, real, fake, progress) if "ctclip" in metrics else None
    memorisation = _memorisation(evaluation, extracted) if "memorisation" in metrics else None
    return Evaluated(
        {
            "schema": SCHEMA,
            "kind": "generation_quality",
            "version": fvae_nnunet.__version__,
            "metrics": list(metrics),
            "real": _described(evaluation.real),
            "fake": _described(evaluation.fake),
            "train": None if evaluation.train is None else _described(evaluation.train),
            "settings": {"seed": evaluation.seed, "resamples": evaluation.resamples},
            "networks": _described_networks(evaluation),
            "distances": found,
            "cosines": cosines,
            "masks": masks,
            "memorisation": memorisation,
            "warnings": _warnings(evaluation, found, cosines, memorisation),
        },
        extracted,
    )


@dataclass(frozen=True)
class Evaluated:
    """The results, and the features of the sets (``real``, ``fake``, ``train``) from which they were computed."""

    results: dict[str, Any]
    extracted: Mapping[str, Extracted]


def case_vectors(extracted: Extracted, network: FeatureNetwork) -> CaseVectors:
    """One vector per case: the network's, or the concatenated unit-length means over the slices of each plane."""
    parts = [features for (name, _), features in extracted.features.items() if name == network.name]
    vectors = [features.means() for features in parts]
    names = parts[0].names
    joined = vectors[0] if len(vectors) == 1 else np.concatenate([unit(of_plane) for of_plane in vectors], axis=1)
    return CaseVectors(names, joined, [extracted.image_sha256[name] for name in names])


def _masks(evaluation: Evaluation, progress: Progress) -> dict[str, Any]:
    mask_folder = evaluation.mask_folder()
    groups = read_groups(evaluation.groups) if evaluation.groups is not None else None
    segmentations = evaluation.segmentations or evaluation.output / "segmentations"
    if evaluation.segmenter is not None:
        model = open_segmenter(evaluation.segmenter)
        step = progress("segmenting", len(evaluation.fake.cases))
        segment_cases(evaluation.fake, model, segmentations, device=evaluation.device, on_case=step)
    return mask_adherence(
        [case.name for case in evaluation.fake.cases],
        mask_folder,
        segmentations,
        groups=groups,
        processes=evaluation.processes,
        seed=evaluation.seed,
        resamples=evaluation.resamples,
        on_case=progress("masks", len(evaluation.fake.cases)),
    )


def _extract(evaluation: Evaluation, metrics: Sequence[str], progress: Progress) -> dict[str, Extracted]:
    sets = {"real": evaluation.real, "fake": evaluation.fake}
    if evaluation.train is not None and "memorisation" in metrics:
        sets["train"] = evaluation.train
    used = evaluation.used_networks(metrics)
    if not used:
        return {name: Extracted({}, {}) for name in sets}
    cache = evaluation.cache or evaluation.output / "features"
    only = [evaluation.comparison_network]
    return {
        name: extract_features(
            images, used if name != "train" else only,
            cache=cache, readers=evaluation.processes, on_case=progress(f"features, {name}", len(images.cases)),
        )
        for name, images in sets.items()
    }  # fmt: skip


def _distances(
    evaluation: Evaluation, metrics: Sequence[str], real: Extracted, fake: Extracted, progress: Progress
) -> Iterator[dict[str, Any]]:
    sees_volumes = {network.name: network.sees_volumes for network in evaluation.networks}
    for (network, part), ours in real.features.items():
        theirs = fake.features[network, part]
        if ours.rows.shape[1] != theirs.rows.shape[1]:
            raise UserError(f"{network} returns features of different widths for real and generated images")
        frechet = "fvd" if sees_volumes[network] else "fid2.5d"
        wanted = [
            (metric, distance)
            for metric, distance in ((frechet, distances.frechet), ("kid", distances.kernel))
            if metric in metrics
        ]
        sizes = _sizes(ours, theirs) if wanted else {}
        for metric, distance in wanted:
            step = progress(f"{metric}, {network}, {part}", 2 * evaluation.resamples)
            found = distance(ours, theirs, seed=evaluation.seed, resamples=evaluation.resamples, on_resample=step)
            yield {"metric": metric, "network": network, "part": part, **sizes, **asdict(found)}


def _sizes(real: CaseFeatures, fake: CaseFeatures) -> dict[str, int]:
    return {
        "width": real.rows.shape[1],
        "cases_real": len(real.names),
        "cases_fake": len(fake.names),
        "rows_real": len(real.rows),
        "rows_fake": len(fake.rows),
        "rank_real": distances.covariance_rank(real.rows),
        "rank_fake": distances.covariance_rank(fake.rows),
    }


def _cosines(evaluation: Evaluation, real: Extracted, fake: Extracted, progress: Progress) -> dict[str, Any]:
    ours = dict(zip(*_ct_clip_vectors(fake), strict=True))
    theirs = dict(zip(*_ct_clip_vectors(real), strict=True))
    how = {"seed": evaluation.seed, "resamples": evaluation.resamples}
    cosines: dict[str, Any] = {"image_image": None, "text_image": None, "text_real": None}
    partners = pair_with_real(evaluation.real, evaluation.fake)
    names = list(theirs)
    if partners:
        matched, others = matched_cosines(
            np.stack([ours[case] for case in partners]), np.stack(list(theirs.values())),
            [names.index(partner) for partner in partners.values()],
        )  # fmt: skip
        cosines["image_image"] = summarise_cosines(dict(zip(partners, matched, strict=True)), others, **how)
    if evaluation.text is None:
        return cosines
    for key, images, vectors in (("text_image", evaluation.fake, ours), ("text_real", evaluation.real, theirs)):
        texts = {case.name: case.text for case in images.cases if case.text}
        if not texts:
            continue
        distinct = list(dict.fromkeys(texts.values()))
        encoded = evaluation.text.encode(distinct, progress("texts", len(distinct)))
        if encoded.shape[1] != len(next(iter(vectors.values()))):
            raise UserError(
                f"{evaluation.text.path} returns {encoded.shape[1]} values and CT-CLIP's vision part "
                f"{len(next(iter(vectors.values())))}; both must project to the same space"
            )
        matched, others = matched_cosines(
            np.stack([vectors[case] for case in texts]), encoded, [distinct.index(text) for text in texts.values()]
        )
        cosines[key] = summarise_cosines(dict(zip(texts, matched, strict=True)), others, **how)
    return cosines


def _ct_clip_vectors(extracted: Extracted) -> tuple[tuple[str, ...], np.ndarray]:
    features = next(found for (network, _), found in extracted.features.items() if network == CT_CLIP)
    return features.names, features.means()


def _memorisation(evaluation: Evaluation, extracted: Mapping[str, Extracted]) -> dict[str, Any]:
    network = evaluation.comparison_network
    vectors = {name: case_vectors(of_set, network) for name, of_set in extracted.items()}
    nearest = {
        name: nearest_training_cases(vectors[name], vectors["train"], leave_out_identical=name == "real")
        for name in ("fake", "real")
    }
    sources = {case.name: case.source for case in evaluation.fake.cases}
    seen = set(vectors["train"].digests)
    trained_on = [case for case, digest in extracted["real"].image_sha256.items() if digest in seen]
    return {
        "network": network.name,
        "real_in_training": trained_on,
        **summarise_memorisation(nearest["fake"], nearest["real"], sources),
    }


def _described(images: ImageSet) -> dict[str, Any]:
    return {
        "folder": str(images.folder),
        "kind": images.kind,
        "cases": {
            case.name: {
                "image": str(case.images[0]),
                "label": None if case.label is None else str(case.label),
                "source": case.source,
            }
            for case in images.cases
        },
    }


def _described_networks(evaluation: Evaluation) -> dict[str, Any]:
    described: dict[str, Any] = {
        network.name: {"file": str(network.path), **network.settings} for network in evaluation.networks
    }
    if evaluation.text is not None:
        text = evaluation.text
        described["text"] = {"file": str(text.path), "sha256": text.sha256, "tokenizer": text.tokenizer_name}
    return described


def _warnings(
    evaluation: Evaluation,
    found: Sequence[Mapping[str, Any]],
    cosines: Mapping[str, Any] | None,
    memorisation: Mapping[str, Any] | None,
) -> list[str]:
    warnings = []
    first_parts = {(entry["metric"], entry["network"]): entry for entry in reversed(found)}
    for entry in reversed(first_parts.values()):
        if entry["metric"] != "kid" and min(entry["rank_real"], entry["rank_fake"]) < entry["width"]:
            warnings.append(
                f"{entry['metric']}, {entry['network']}: {entry['rows_real']} real and {entry['rows_fake']} generated "
                f"rows are too few for {entry['width']} features (ranks {entry['rank_real']}, {entry['rank_fake']}): "
                "the distance is far larger than with more cases. Compare it with the distance by chance, and only "
                "with distances from as many cases; KID has no such bias"
            )
        if entry["resampled_variance"] < ENOUGH_VARIANCE:
            warnings.append(
                f"{entry['metric']}, {entry['network']}: interval, chance and p are based on "
                f"{percent(entry['resampled_variance'])} of the variance"
            )
    unsure = ["intervals", "p values"] if found else []
    unsure += ["the memorisation check"] if memorisation is not None else []
    for name, images in (("real", evaluation.real), ("generated", evaluation.fake)):
        if unsure and len(images.cases) < FEW_CASES:
            warnings.append(f"only {counted(len(images.cases), f'{name} case')}: too few to trust {listed(unsure)}")
    if memorisation is not None and memorisation["real_in_training"]:
        count = len(memorisation["real_in_training"])
        warnings.append(
            f"{count} of {len(evaluation.real.cases)} real images are also training images: the generator has seen "
            "the images it is compared with; use real images that it has not seen"
        )
    if cosines is not None and cosines["image_image"] is None:
        warnings.append(
            "no generated case has a source or a name among the real cases, so there is no image-image cosine"
        )
    if evaluation.text is not None and cosines is not None and cosines["text_image"] is None:
        warnings.append("no generated case has a text, so there is no text-image cosine; give reports for them")
    return warnings
