"""One case as latents and mask conditions: resampled, padded, cut into pieces and through the VAE."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fvae_nnunet.errors import UserError
from fvae_nnunet.synthesis.latent_windows import Piece, latent_slices, plan_pieces
from fvae_nnunet.synthesis.source_cases import SourceCase, SourceDataset
from fvae_nnunet.vae.base import FrozenVAE, VAESpec

_LARGEST_FLOAT16 = 65504.0


@dataclass(frozen=True)
class LatentSettings:
    """What, beside VAE and dataset, decides the latents; every field changes them.

    Attributes:
        hu_window: mapped to [-1, 1].
        window_slices: slices in a window.
        inplane_pixels: slices have at least so many pixels along y and x.
        spacing_mm: (z, y, x) to which image and mask are resampled before; None: as they are.
        mask_encoding: see ``mask_conditions``.
    """

    hu_window: tuple[float, float]
    window_slices: int
    inplane_pixels: int
    spacing_mm: tuple[float, float, float] | None
    mask_encoding: str

    def recorded_with(self, vae: FrozenVAE, dataset: SourceDataset) -> dict[str, Any]:
        """Everything that decides a latent or a condition, for a manifest."""
        return {
            "vae": vae.spec.name,
            "weights_sha256": vae.weights_sha256,
            "precision": str(vae.dtype).removeprefix("torch."),
            "ct_channel": dataset.ct_channel,
            "organ": dataset.organ.recorded,
            "lesions": list(dataset.lesions.values()),
            "class_names": dataset.class_names,
            "onehot": "packed",
            **asdict(self),
        }


@dataclass(frozen=True)
class CaseToEncode:
    """A case on the grid that the VAE takes.

    Attributes:
        volume_hu: int16 (z, y, x).
        class_map: uint8, same shape.
        pieces: to be encoded.
        digests: of the files that it comes from.
    """

    volume_hu: np.ndarray
    class_map: np.ndarray
    pieces: list[Piece]
    digests: dict[str, str]


@dataclass(frozen=True)
class EncodedCase:
    """What the cache keeps of a case, see ``latent_cache``."""

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
    """Side of the squares of pixels that a model is trained on.

    Args:
        dataset: whose images are measured, from their files' heads.
        spec: of the VAE.
        spacing_mm: to which images are resampled.
        wanted: by the user; None: ``usual``, or what the largest slice needs if that is less.
        usual: for the size of the network.

    Raises:
        UserError: the VAE does not take the side that is wanted.
    """
    if wanted is not None:
        if wanted < 1 or wanted % spec.inplane_stride:
            raise UserError(f"--inplane-pixels {wanted}: {spec.name} needs a multiple of {spec.inplane_stride}")
        return wanted
    sizes = (dataset.read_size(case) for case in dataset.cases)
    shapes = (shape if spacing_mm is None else resampled_shape(shape, own, spacing_mm) for shape, own in sizes)
    return spec.padded_inplane(min(usual, max(max(shape[1:]) for shape in shapes)))


def prepare(source: SourceCase, spec: VAESpec, settings: LatentSettings, organs: int) -> CaseToEncode:
    """A case resampled and padded for the VAE, and the pieces of it; classes above ``organs`` are lesions."""
    volume_hu, class_map = source.volume_hu, source.class_map
    if settings.spacing_mm is not None:
        from fvae_nnunet.synthesis.crop import resampled

        shape = resampled_shape(volume_hu.shape, source.spacing_mm, settings.spacing_mm)
        volume_hu = np.rint(resampled(volume_hu, shape, order=1)).astype(np.int16)
        class_map = resampled(class_map, shape, order=0)
    volume_hu, class_map = _padded(volume_hu, class_map, spec, settings)
    pieces = plan_pieces(class_map > organs, settings.window_slices, spec)
    return CaseToEncode(volume_hu, class_map, pieces, source.digests)


def resampled_shape(
    shape: tuple[int, ...], spacing_mm: tuple[float, ...], new_spacing_mm: tuple[float, ...]
) -> tuple[int, ...]:
    """Voxels of the same extent at another spacing, at least one along each axis."""
    return tuple(
        max(1, round(n * step / new_step)) for n, step, new_step in zip(shape, spacing_mm, new_spacing_mm, strict=True)
    )


def _padded(
    volume_hu: np.ndarray, class_map: np.ndarray, spec: VAESpec, settings: LatentSettings
) -> tuple[np.ndarray, np.ndarray]:
    slices, *sides = volume_hu.shape
    beyond = ((0, max(0, settings.window_slices - slices)), (0, 0), (0, 0))
    wanted = [spec.padded_inplane(max(side, settings.inplane_pixels)) for side in sides]
    around = ((0, 0), *((0, more - side) for more, side in zip(wanted, sides, strict=True)))
    lower_hu = int(np.floor(max(settings.hu_window[0], np.iinfo(np.int16).min)))
    volume_hu = np.pad(np.pad(volume_hu, beyond, mode="edge"), around, constant_values=lower_hu)
    return volume_hu, np.pad(np.pad(class_map, beyond, mode="edge"), around)


def encode(case: CaseToEncode, vae: FrozenVAE, settings: LatentSettings, *, classes: int, organs: int) -> EncodedCase:
    """Latents, conditions and record of a case.

    Args:
        case: from ``prepare``.
        vae: encodes.
        settings: how.
        classes: number of classes without the background.
        organs: those above are lesions.

    Raises:
        UserError: a latent is not finite or does not fit float16.
    """
    import torch

    from fvae_nnunet.intensity import hu_to_model
    from fvae_nnunet.synthesis.mask_conditions import class_shares, mask_condition

    spec = vae.spec
    pieces: list[dict[str, np.ndarray]] = []
    with torch.no_grad():
        for piece in case.pieces:
            runs: list[dict[str, np.ndarray]] = []
            # slices that do not see each other go through the VAE a few at a time
            step = spec.window_slices if spec.independent_slices else piece.stop - piece.start
            for start in range(piece.start, piece.stop, step):
                run = slice(start, min(start + step, piece.stop))
                volume = hu_to_model(torch.from_numpy(case.volume_hu[run]), settings.hu_window)
                class_map = torch.from_numpy(case.class_map[run])[None]
                shares = class_shares(class_map, spec, classes=classes)
                found = {
                    "latent": _to_float16(vae.encode(volume[None, None])[0]),
                    "lesion": shares.share_above(organs).numpy(),
                }
                if settings.mask_encoding == "vae":
                    condition = mask_condition(class_map, spec, encoding="vae", classes=classes, vae=vae)
                    found["condition"] = _to_float16(condition[0])
                else:
                    found |= {"classes": shares.classes[0].numpy(), "shares": shares.shares[0].numpy()}
                runs.append(found)
            pieces.append({name: _joined([run[name] for run in runs], axis=1) for name in runs[0]})
    tensors = {name: _joined([piece[name][None] for piece in pieces], axis=0) for name in pieces[0]}
    tensors["lesion"] = tensors["lesion"][:, 0]
    return EncodedCase(tensors, _record(case.pieces, tensors, settings.window_slices, spec), case.digests)


def _joined(parts: list[np.ndarray], axis: int) -> np.ndarray:
    """The parts one behind the other; where one has fewer channels (the axis before d, h and w) they are filled up."""
    channels = max(part.shape[-4] for part in parts)
    around = [((0, 0),) * (part.ndim - 4) + ((0, channels - part.shape[-4]),) + ((0, 0),) * 3 for part in parts]
    return np.concatenate([np.pad(part, by) for part, by in zip(parts, around, strict=True)], axis=axis)


def _to_float16(tensor: Any) -> np.ndarray:
    array: np.ndarray = tensor.float().cpu().numpy()
    if not np.isfinite(array).all() or np.abs(array).max(initial=0) > _LARGEST_FLOAT16:
        raise UserError("the VAE's latent is not finite or does not fit float16; use --precision float32")
    return array.astype(np.float16)


def _record(pieces: list[Piece], tensors: dict[str, np.ndarray], window_slices: int, spec: VAESpec) -> dict[str, Any]:
    holds = np.asarray((tensors["lesion"] > 0).any(axis=(2, 3)))
    window = latent_slices(spec, window_slices)
    latent = tensors["latent"].astype(np.float64)
    return {
        "windows": [
            [number, first, piece.start + first * spec.slice_stride, int(holds[number, first : first + window].any())]
            for number, piece in enumerate(pieces)
            for first in piece.windows
        ],
        "lesion_slices": np.argwhere(holds).tolist(),
        "shape": list(tensors["lesion"].shape),
        "mean": latent.mean(axis=(0, 2, 3, 4)).tolist(),
        "variance": latent.var(axis=(0, 2, 3, 4)).tolist(),
    }
