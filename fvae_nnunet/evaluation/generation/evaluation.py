"""Inputs and networks of an evaluation, and the metrics that they allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.generation.choices import METRICS
from fvae_nnunet.evaluation.generation.compared_structures import read_names
from fvae_nnunet.evaluation.generation.feature_networks import CT_CLIP, FeatureNetwork
from fvae_nnunet.evaluation.generation.image_sets import ImageSet
from fvae_nnunet.evaluation.generation.similarity import TextNetwork


@dataclass(frozen=True)
class Evaluation:
    """Inputs, networks and settings of an evaluation.

    Attributes:
        real, fake: real images that the generator was not trained on, and generated images.
        train: images that the generator was trained on; None: no memorisation check.
        networks: feature networks; see `feature_networks`.
        text: CT-CLIP's text part; None: no text-image cosine.
        masks: folder of the masks from which the images were generated; None: see `mask_folder`.
        segmentations: folder of segmentations of the generated images.
        segmenter: folder of an nnU-Net model that creates segmentations.
        groups: JSON file of structures to merge, see `compared_structures.read_groups`.
        metrics: subset of `METRICS`; None: all that the inputs allow.
        output: folder for files that are kept between runs.
        cache: folder of cached features; None: ``features`` in ``output``.
        seed, resamples: seed and number of resamples of bootstrap and permutations.
        processes: number of processes that read images or compare masks.
        device: torch device name.
    """

    real: ImageSet
    fake: ImageSet
    train: ImageSet | None = None
    networks: Sequence[FeatureNetwork] = ()
    text: TextNetwork | None = None
    masks: Path | None = None
    segmentations: Path | None = None
    segmenter: Path | None = None
    groups: Path | None = None
    metrics: Sequence[str] | None = None
    output: Path = field(default_factory=Path.cwd)
    cache: Path | None = None
    seed: int = 0
    resamples: int = 1000
    processes: int = 2
    device: str = "cpu"

    def chosen_metrics(self) -> tuple[str, ...]:
        """The metrics to compute, in the order of `METRICS`.

        Raises:
            UserError: a requested metric lacks an input, or the inputs allow no metric.
        """
        volumes = any(network.sees_volumes for network in self.networks)
        slices = any(not network.sees_volumes for network in self.networks)
        several = None
        if min(len(self.real.cases), len(self.fake.cases)) < 2:
            several = "at least two real and two generated images"
        lacking = {
            "fvd": several if volumes else "`ct_clip`, or `features` with a network for volumes",
            "fid2.5d": None if slices else "`radimagenet`, or `features` with a network for slices",
            "kid": several if self.networks else "`ct_clip`, `radimagenet` or `features`",
            "ctclip": None if any(network.name == CT_CLIP for network in self.networks) else "`ct_clip`",
            "masks": None if self.segmentations or self.segmenter else "`segmentations` or `segmenter`",
            "memorisation": None if self.train and self.networks else "`train` and a feature network",
        }
        wanted = METRICS if self.metrics is None else self.metrics
        missing = [f"{metric} needs {lacking[metric]}" for metric in wanted if lacking[metric] is not None]
        if self.metrics is not None and missing:
            raise UserError("; ".join(missing))
        found = tuple(metric for metric in METRICS if metric in wanted and lacking[metric] is None)
        if not found:
            raise UserError("no metric can be computed: " + "; ".join(missing))
        return found

    @property
    def comparison_network(self) -> FeatureNetwork:
        """The network that compares single cases: the first that sees volumes, else the first."""
        return next((network for network in self.networks if network.sees_volumes), self.networks[0])

    def used_networks(self, metrics: Sequence[str]) -> list[FeatureNetwork]:
        """The networks whose features these metrics need."""
        return [
            network
            for network in self.networks
            if "kid" in metrics
            or ("fvd" if network.sees_volumes else "fid2.5d") in metrics
            or ("ctclip" in metrics and network.name == CT_CLIP)
            or ("memorisation" in metrics and network is self.comparison_network)
        ]

    def mask_folder(self) -> Path:
        """Folder of the masks; by default the labels or the structures of the generated images, if only one names any.

        Raises:
            UserError: neither names a structure, or both do, so that the user must choose.
        """
        if self.masks is not None:
            return self.masks
        kinds = [case.label for case in self.fake.cases], [case.structures for case in self.fake.cases]
        folders = [files[0].parent for files in kinds if files[0] is not None and None not in files]
        naming = [folder for folder in folders if read_names(folder) != {}]
        if len(naming) == 1:
            return naming[0]
        if naming:
            what = f"masks in {' and in '.join(map(str, naming))}; give the one that the segmentations show"
        elif folders:
            what = f"only masks in {folders[0]}, where only the background has a name; give others"
        else:
            what = "no masks for all its images; give their folder"
        raise UserError(f"{self.fake.folder} has {what} as `masks`")
