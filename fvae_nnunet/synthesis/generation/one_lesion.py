"""Insert one synthetic lesion into a single CT, without a dataset."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fvae_nnunet.ct.intensity import round_to_int16
from fvae_nnunet.ct.volume import CT
from fvae_nnunet.errors import UserError
from fvae_nnunet.synthesis.generation.painting import PaintSettings, noise_of, paint
from fvae_nnunet.synthesis.lesions.appearance import Appearance
from fvae_nnunet.synthesis.lesions.placement import CLEARANCE_MM, index_of, too_close
from fvae_nnunet.synthesis.lesions.plan import INSIDE_FRACTION, shaped_and_placed
from fvae_nnunet.synthesis.lesions.shapes import equivalent_diameter_mm
from fvae_nnunet.synthesis.model.latent_diffusion import LatentDiffusion
from fvae_nnunet.synthesis.sources.cases import SourceCase

if TYPE_CHECKING:
    import torch

    Mask = np.ndarray | torch.Tensor | CT | str | os.PathLike[str]


@dataclass(frozen=True)
class InsertedLesion:
    """A CT with a synthetic lesion.

    Attributes:
        ct: int16 HU, with the geometry of the original CT.
        mask: bool mask of the new lesion, in the axis order of ``ct.hu``.
        diameter_mm: equivalent diameter of the lesion.
    """

    ct: CT
    mask: np.ndarray
    diameter_mm: float


def load_diffusion(
    folder: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
) -> LatentDiffusion:
    """Load the latent diffusion model from a folder of ``fvae-train-ldm``, with its VAE.

    Args:
        folder: folder of the model.
        weights: weights of its VAE, as for ``load_vae``.
        device: device for the computation.

    Raises:
        UserError: the model is missing or incomplete, or the VAE cannot be loaded or is another one.
    """
    return LatentDiffusion.load(Path(folder), weights=weights, device=device)


def insert_lesion(
    ct: CT,
    organ: Mask,
    model: LatentDiffusion,
    *,
    diameter_mm: float,
    seed: int = 0,
    lesions: Mask | None = None,
    at_mm: tuple[float, float, float] | None = None,
    core_mean_hu: float | None = None,
    inside_fraction: float = INSIDE_FRACTION,
    lesion: str | None = None,
    text: str | None = None,
) -> InsertedLesion:
    """Draw the shape of a lesion, place it in the organ, and generate it with the model.

    Voxels at ``PaintSettings.margin_mm`` or more from the lesion do not change. For many cases, sizes and appearance as
    in a dataset, and quality control, use ``fvae-synthesize``.

    Args:
        ct: the CT in HU.
        organ: mask of the organ (nonzero voxels) for the CT: array or tensor, image, or file.
        model: model of a single organ.
        diameter_mm: equivalent diameter of the lesion.
        seed: seed of shape, place and noise.
        lesions: mask of existing lesions of the same class; they are conditions of the model, and the new lesion keeps
            a distance of 5 mm (``CLEARANCE_MM``).
        at_mm: centre (x, y, z) of the lesion in the patient; None: anywhere in the organ.
        core_mean_hu: mean HU of its core; None: as in the training lesions of the model.
        inside_fraction: minimum share of the lesion in the organ, 0 to 1.
        lesion: class of the lesion; None: the only one that the model knows.
        text: report, for a model that was trained with reports.

    Raises:
        NothingFits: there is no place for the lesion.
        UserError: a mask has another shape or geometry, the model knows several organs, no such lesion, or not the
            appearance of lesions, or as for the model.
    """
    settings = model.settings
    organs = len(settings.class_names) - settings.lesions
    known = settings.class_names[organs:]
    if lesion is None:
        if len(known) != 1:
            raise UserError(f"the model knows {len(known)} lesions; name one as `lesion`: {', '.join(known) or 'none'}")
        (lesion,) = known
    if lesion not in known:
        raise UserError(f"`lesion`: the model knows no {lesion!r}; it knows {', '.join(known) or 'none'}")
    if core_mean_hu is not None and settings.appearance is None:
        raise UserError("this model is not conditioned on the appearance of lesions; leave out `core_mean_hu`")
    lesion_class = organs + known.index(lesion) + 1
    if organs > 1:
        raise UserError(
            f"this model knows {organs} structures ({', '.join(settings.class_names[:organs])}), which a single mask "
            "does not distinguish; use fvae-synthesize"
        )
    order = ct.geometry.axial_order
    spacing_mm = ct.geometry.axial_spacing_mm
    in_organ = ct.mask(organ, "organ").transpose(order)
    in_lesion = np.zeros_like(in_organ) if lesions is None else ct.mask(lesions, "lesions").transpose(order)
    class_map = (in_organ * organs).astype(np.uint8)
    class_map[in_lesion] = lesion_class
    source = SourceCase(
        case="ct",
        volume_hu=np.ascontiguousarray(round_to_int16(ct.hu).transpose(order)),
        labels=class_map,
        class_map=class_map,
        organ=in_organ | in_lesion,
        lesion=in_lesion,
        lesion_class=lesion_class,
        organ_classes=organs,
        geometry=ct.geometry,
        digests={},
    )
    placed = shaped_and_placed(
        np.random.default_rng(seed),
        (diameter_mm, diameter_mm),
        spacing_mm,
        source.organ,
        too_close(in_lesion, spacing_mm, CLEARANCE_MM),
        inside_fraction,
        at=None if at_mm is None else index_of(at_mm, ct.geometry)[list(order)],
        appearance=None if core_mean_hu is None else Appearance(core_mean_hu, math.nan),
    )
    hu = paint(model, source, [placed], PaintSettings(text=text), generator=noise_of([seed]))
    mask = placed.mask(hu.shape)
    reached_mm = equivalent_diameter_mm(int(np.count_nonzero(mask)), spacing_mm)
    return InsertedLesion(ct.with_hu(ct.geometry.as_in_file(hu)), ct.geometry.as_in_file(mask), reached_mm)
