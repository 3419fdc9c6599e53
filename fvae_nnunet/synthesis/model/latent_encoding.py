"""Encode a case as latents and mask conditions: resample, pad, divide into pieces, and encode with the VAE."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from fvae_nnunet.ct.boxes import bounding_box
from fvae_nnunet.ct.intensity import hu_to_model
from fvae_nnunet.errors import UserError
from fvae_nnunet.synthesis.lesions.appearance import Appearance
from fvae_nnunet.synthesis.lesions.placement import too_close
from fvae_nnunet.synthesis.model.conditions import packed_condition
from fvae_nnunet.synthesis.model.draft import drafted
from fvae_nnunet.synthesis.model.grid import ModelGrid, padded_behind, resampled_shape
from fvae_nnunet.synthesis.model.latent_windows import Piece, latent_slices, plan_pieces
from fvae_nnunet.synthesis.model.layout import Layout
from fvae_nnunet.synthesis.model.mask_conditions import cells_of, share_of_cells
from fvae_nnunet.synthesis.sources.cases import SourceCase, SourceDataset
from fvae_nnunet.vae.base import FrozenVAE, VAESpec

MARGIN_MM = 5.0
"""Margin around lesions within which a network learns to generate; also the default of the synthesis."""

FORMAT = 3
"""Version of the stored format; increased when it changes."""

_LARGEST_FLOAT16 = 65504.0


@dataclass(frozen=True)
class LatentSettings:
    """Settings that, with VAE and dataset, determine the latents.

    Attributes:
        hu_window: HU mapped to [-1, 1].
        window_slices: number of slices in a window.
        inplane_pixels: minimum number of pixels along y and x.
        spacing_mm: voxel size (z, y, x) to which image and mask are resampled first; None: not resampled.
        mask_encoding: see ``conditions``.
    """

    hu_window: tuple[float, float]
    window_slices: int
    inplane_pixels: int
    spacing_mm: tuple[float, float, float] | None
    mask_encoding: str

    def recorded_with(self, vae: FrozenVAE, dataset: SourceDataset) -> dict[str, Any]:
        """Everything that determines a latent or a condition, for a manifest."""
        return {
            "vae": vae.spec.name,
            "weights_sha256": vae.weights_sha256,
            "precision": vae.precision,
            **({"tf32": True} if vae.tf32 else {}),
            "ct_channel": dataset.ct_channel,
            "organ": dataset.organ.recorded,
            "lesions": list(dataset.lesions.values()),
            "class_names": dataset.class_names,
            "format": FORMAT,
            **asdict(self),
        }


@dataclass(frozen=True)
class CaseToEncode:
    """A case on the grid of the model, padded for the VAE.

    Attributes:
        volume_hu: int16 (z, y, x).
        layout: same shape.
        draft_hu: the volume with its lesions redrawn (``draft``); None for encodings without a draft.
        region: bool, voxels closer than ``MARGIN_MM`` to a lesion; None like ``draft_hu``.
        pieces: pieces to encode.
        digests: name -> sha256 of its files.
    """

    volume_hu: np.ndarray
    layout: Layout
    draft_hu: np.ndarray | None
    region: np.ndarray | None
    pieces: list[Piece]
    digests: dict[str, str]


@dataclass(frozen=True)
class EncodedCase:
    """The content of the cache for a case, see ``latent_cache``."""

    tensors: dict[str, np.ndarray]
    record: dict[str, Any]
    digests: dict[str, str]


def choose_inplane_pixels(
    dataset: SourceDataset,
    spec: VAESpec,
    spacing_mm: tuple[float, float, float] | None,
    *,
    wanted: int | None,
    usual: int,
) -> int:
    """Choose the side, in pixels, of the squares on which a model is trained.

    Args:
        dataset: dataset whose image sizes are read from the file headers.
        spec: specification of the VAE.
        spacing_mm: voxel size to which images are resampled; None: not resampled.
        wanted: value requested by the user; None: ``usual``, or less if it is enough for the largest slice.
        usual: default for the size of the network.

    Raises:
        UserError: the VAE does not accept the requested side.
    """
    if wanted is not None:
        if wanted < 1 or wanted % spec.inplane_stride:
            raise UserError(f"`inplane_pixels={wanted}`: {spec.name} needs a multiple of {spec.inplane_stride}")
        return wanted
    sizes = (dataset.read_size(case) for case in dataset.cases)
    shapes = (shape if spacing_mm is None else resampled_shape(shape, own, spacing_mm) for shape, own in sizes)
    return spec.padded_inplane(min(usual, max(max(shape[1:]) for shape in shapes)))


def prepare(source: SourceCase, spec: VAESpec, settings: LatentSettings, organs: int) -> CaseToEncode:
    """Resample and pad a case and divide it into pieces; classes above ``organs`` are lesions."""
    raw = Layout.of(source.class_map, source.spacing_mm, organs=organs, volume_hu=source.volume_hu)
    grid = ModelGrid(source.volume_hu.shape, source.spacing_mm, settings.spacing_mm)
    shape = padded_shape(grid.shape, spec, settings.window_slices, settings.inplane_pixels)
    volume_hu = padded_volume(grid.volume(source.volume_hu), shape, settings.hu_window)
    layout = grid.layout(raw).padded(shape)
    draft_hu, region = None, None
    if settings.mask_encoding == "outline":
        draft_hu = drafted(source.volume_hu, raw, raw.lesion_numbers > 0, unknown=Appearance(0.0, 0.0), rng=None)
        draft_hu = padded_volume(grid.volume(draft_hu), shape, settings.hu_window)
        region = too_close(layout.lesion_numbers > 0, layout.spacing_mm, MARGIN_MM)
    pieces = plan_pieces(layout.class_map > organs, settings.window_slices, spec)
    return CaseToEncode(volume_hu, layout, draft_hu, region, pieces, source.digests)


def padded_shape(
    shape: tuple[int, ...], spec: VAESpec, window_slices: int, inplane_pixels: int
) -> tuple[int, int, int]:
    """The size (z, y, x) at which a volume is encoded: at least a window and the square, and valid in-plane."""
    height, width = (spec.padded_inplane(max(side, inplane_pixels)) for side in shape[1:])
    return max(shape[0], window_slices), height, width


def padded_volume(volume_hu: np.ndarray, shape: tuple[int, int, int], hu_window: tuple[float, float]) -> np.ndarray:
    """Pad a volume (z, y, x) at the end: the last slice is repeated, in-plane with the lower end of the HU window."""
    return padded_behind(volume_hu, shape, int(np.floor(max(hu_window[0], np.iinfo(np.int16).min))))


def encode_slices(volume_hu: np.ndarray, vae: FrozenVAE, hu_window: tuple[float, float]) -> torch.Tensor:
    """Encode slices (z, y, x) of a size valid for the VAE: latent (1, C, d, h, w) in the VAE's precision.

    If the VAE codes slices independently, they are encoded a few at a time to bound memory.
    """
    step = vae.spec.window_slices if vae.spec.independent_slices else len(volume_hu)
    with torch.no_grad():
        runs = [
            vae.encode(hu_to_model(torch.from_numpy(volume_hu[start : start + step]), hu_window)[None, None])
            for start in range(0, len(volume_hu), step)
        ]
    return torch.cat(runs, dim=2)


def encode_draft(
    draft_hu: np.ndarray, drawn: slice, latent: torch.Tensor, vae: FrozenVAE, hu_window: tuple[float, float]
) -> torch.Tensor:
    """Encode slices with a draft drawn into them.

    Args:
        draft_hu: the slices with the draft, as for ``encode_slices``.
        drawn: slices that contain the draft; if the VAE codes slices independently, only these are encoded.
        latent: latent of the slices without the draft.
        vae, hu_window: as for ``encode_slices``.
    """
    run = drawn if vae.spec.independent_slices else slice(0, len(draft_hu))
    latents = run if vae.spec.independent_slices else slice(None)
    draft = latent.clone()
    draft[:, :, latents] = encode_slices(draft_hu[run], vae, hu_window).to(draft.dtype)
    return draft


def encode(case: CaseToEncode, vae: FrozenVAE, settings: LatentSettings, *, classes: int) -> EncodedCase:
    """Compute the latents, conditions and record of a case.

    Args:
        case: output of ``prepare``.
        vae: the frozen VAE.
        settings: latent settings.
        classes: number of classes without the background.

    Raises:
        UserError: a latent is not finite or does not fit float16.
    """
    pieces = []
    for piece in case.pieces:
        run = slice(piece.start, piece.stop)
        layout = case.layout.slices(run)
        packed = packed_condition(layout, vae, encoding=settings.mask_encoding, classes=classes)
        lesion = share_of_cells(torch.from_numpy(layout.lesion_numbers > 0)[None].float(), vae.spec)
        latent = encode_slices(case.volume_hu[run], vae, settings.hu_window)
        found = {"latent": _to_float16(latent)}
        found["lesion"] = lesion[:, None].half().numpy()
        if case.draft_hu is not None and case.region is not None:
            region, draft = case.region[run], latent
            if region.any():
                drawn = bounding_box(region)[0]
                draft = encode_draft(case.draft_hu[run], drawn, latent, vae, settings.hu_window)
            cells = cells_of(torch.from_numpy(region)[None], vae.spec)[:, None]
            found |= {"draft": _to_float16(draft), "region": cells.to(torch.uint8).numpy()}
        for name, tensor in packed.items():
            found[name] = _to_float16(tensor) if name == "condition" else tensor.numpy()
        pieces.append(found)
    tensors = {name: _joined([piece[name] for piece in pieces]) for name in pieces[0]}
    tensors["lesion"] = tensors["lesion"][:, 0]
    return EncodedCase(tensors, _record(case, tensors, settings.window_slices, vae.spec), case.digests)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Concatenate parts along the first axis; missing channels are filled with 0."""
    channels = max(part.shape[1] for part in parts)
    return np.concatenate(
        [np.pad(part, ((0, 0), (0, channels - part.shape[1]), (0, 0), (0, 0), (0, 0))) for part in parts]
    )


def _to_float16(tensor: Any) -> np.ndarray:
    array: np.ndarray = tensor.float().cpu().numpy()
    if not np.isfinite(array).all() or np.abs(array).max(initial=0) > _LARGEST_FLOAT16:
        raise UserError("the VAE's latent is not finite or does not fit float16; use `precision='float32'`")
    return array.astype(np.float16)


def _record(case: CaseToEncode, tensors: dict[str, np.ndarray], window_slices: int, spec: VAESpec) -> dict[str, Any]:
    holds = np.asarray((tensors["lesion"] > 0).any(axis=(2, 3)))
    window = latent_slices(spec, window_slices)
    latent = tensors["latent"].astype(np.float64)
    return {
        "windows": [
            [number, first, piece.start + first * spec.slice_stride, int(holds[number, first : first + window].any())]
            for number, piece in enumerate(case.pieces)
            for first in piece.windows
        ],
        "lesion_slices": np.argwhere(holds).tolist(),
        "shape": list(tensors["lesion"].shape),
        "spacing_mm": list(case.layout.spacing_mm),
        "appearances_hu": case.layout.appearances_hu.tolist(),
        "mean": latent.mean(axis=(0, 2, 3, 4)).tolist(),
        "variance": latent.var(axis=(0, 2, 3, 4)).tolist(),
    }
