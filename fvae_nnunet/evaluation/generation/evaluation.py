"""What is evaluated, by which networks, and which metrics can be had from that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.generation.compared_structures import read_names
from fvae_nnunet.evaluation.generation.feature_networks import CT_CLIP, FeatureNetwork
from fvae_nnunet.evaluation.generation.image_sets import ImageSet
from fvae_nnunet.evaluation.generation.similarity import TextNetwork

METRICS = ("fvd", "fid2.5d", "kid", "ctclip", "masks", "memorisation")


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated and by which networks.

    Attributes:
        real, fake: images; real ones that the generator was not trained on.
        train: images it was trained on; None: no memorisation check.
        networks: of features; see `feature_networks`.
        text: CT-CLIP's text part; None: no text-image cosine.
        masks: folder of the masks that the images were generated from; None: see `mask_folder`.
        segmentations: folder of segmentations of the generated images.
        segmenter: folder of an nnU-Net model that makes them.
        groups: JSON of structures that are taken together, see `compared_structures.read_groups`.
        metrics: of `METRICS`; None: all that can be had from what is given.
        output: folder of what is kept between runs.
        cache: folder of features; None: ``features`` in ``output``.
        seed, resamples: of bootstrap and permutations.
        processes: that read images, or compare masks.
        device: torch's name.
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
        """The metrics that are to be computed, in the order of `METRICS`.

        Raises:
            UserError: one that was asked for needs something that was not given, or nothing can be had.
        """
        volumes = any(network.sees_volumes for network in self.networks)
        slices = any(not network.sees_volumes for network in self.networks)
        lacking = {
            "fvd": None if volumes else "`ct_clip`, or `features` with a network of volumes",
            "fid2.5d": None if slices else "`radimagenet`, or `features` with a network of slices",
            "kid": None if self.networks else "`ct_clip`, `radimagenet` or `features`",
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
            raise UserError("nothing to evaluate with: " + "; ".join(missing))
        return found

    @property
    def comparison_network(self) -> FeatureNetwork:
        """The network by which single cases are compared: the first that sees volumes, else the first."""
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
        """Where the masks are; if no folder was given, the generated images' labels or structures, whichever name one.

        Raises:
            UserError: neither does, or both do, and only the user knows which the segmentations show.
        """
        if self.masks is not None:
            return self.masks
        kinds = [case.label for case in self.fake.cases], [case.structures for case in self.fake.cases]
        folders = [files[0].parent for files in kinds if files[0] is not None and None not in files]
        naming = [folder for folder in folders if read_names(folder) != {}]
        if len(naming) == 1:
            return naming[0]
        if naming:
            what = f"the masks in {' and in '.join(map(str, naming))}; say which of them the segmentations show"
        elif folders:
            what = f"only masks in {folders[0]}, where nothing but the background has a name; name others"
        else:
            what = "no masks of all its images; name their folder"
        raise UserError(f"{self.fake.folder} has {what} with `masks`")
