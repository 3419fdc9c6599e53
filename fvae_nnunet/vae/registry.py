"""The names of the VAEs, and loading one by its name."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from fvae_nnunet.errors import UserError
from fvae_nnunet.vae.base import FrozenVAE
from fvae_nnunet.vae.folders import VAE_SUBFOLDER, HubModel, has_model, open_folder

DIFFUSERS_PREFIX = "diffusers:"
TINY_FOLDER = Path(__file__).parent / "tiny"


@dataclass(frozen=True)
class KnownVAE:
    """A VAE that has a name here.

    Attributes:
        name: for ``load_vae`` and ``--vae``.
        description: one line.
        licence: of the weights.
        download_mb: approximate size of the weights; 0 for embedded ones.
        hub_id: where they are on the Hugging Face hub, None if they are not taken from there.
    """

    name: str
    description: str
    licence: str
    download_mb: int
    hub_id: str | None = None


_KNOWN = (
    KnownVAE("tiny", "embedded image VAE, 8x8, 16 channels; for trying out and tests", "Apache-2.0", 0),
    KnownVAE("wan2.1", "video VAE, 8x8x4, 16 channels", "Apache-2.0", 508, "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
    KnownVAE("wan2.2", "video VAE, 16x16x4, 48 channels", "Apache-2.0", 2820, "Wan-AI/Wan2.2-TI2V-5B-Diffusers"),
    KnownVAE("taef2", "tiny image autoencoder for FLUX.2's latent space, 8x8, 32 channels", "MIT", 6),
    *(
        KnownVAE(DIFFUSERS_PREFIX + hub_id, description, licence, download_mb, hub_id)
        for hub_id, description, licence, download_mb in (
            ("stabilityai/sd-vae-ft-mse", "image VAE of Stable Diffusion, 8x8, 4 channels", "MIT", 335),
            ("stabilityai/sdxl-vae", "image VAE of SDXL, 8x8, 4 channels", "MIT", 335),
            ("black-forest-labs/FLUX.1-schnell", "image VAE of FLUX.1, 8x8, 16 channels", "Apache-2.0", 168),
            ("madebyollin/taesd", "tiny image autoencoder for SD's latent space, 8x8, 4 channels", "MIT", 10),
        )
    ),
)


def known_vaes() -> list[KnownVAE]:
    """All VAEs with a name of their own, and examples of ``diffusers:``, which takes any image VAE of diffusers."""
    return list(_KNOWN)


def load_vae(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> FrozenVAE:
    """The frozen VAE with this name.

    Args:
        name: ``tiny``, ``wan2.1``, ``wan2.2``, ``taef2``, or ``diffusers:`` and the hub id or the local folder of an
            AutoencoderKL or AutoencoderTiny. Where a folder or repository has a subfolder ``vae`` (a pipeline), the
            VAE is taken from there.
        weights: where the weights are, instead of the hub; ``wan2.1`` and ``wan2.2``: a folder in diffusers' format,
            a ``.safetensors`` or ``.pth`` file; ``taef2``: folder or file, required; ``diffusers:<hub id>``: a folder.
            A leading ``~`` is the home folder.
        device: where to compute.
        dtype: precision; the digest in ``weights_sha256`` is that of the weights before they are cast to it.

    Raises:
        UserError: unknown name, weights that cannot be had, or weights of another model.
    """
    path = None if weights is None else Path(weights).expanduser()
    if path is not None and not path.exists():
        raise UserError(f"{name}: --weights: no such file or folder: {path}")
    if name == "tiny":
        return _load_tiny(path, device, dtype)
    if name in ("wan2.1", "wan2.2"):
        from fvae_nnunet.vae.wan import load_wan

        return load_wan(name, weights=path, device=device, dtype=dtype)
    if name == "taef2":
        from fvae_nnunet.vae.taef2 import load_taef2

        return load_taef2(weights=path, device=device, dtype=dtype)
    if name.startswith(DIFFUSERS_PREFIX):
        return _load_diffusers(name.removeprefix(DIFFUSERS_PREFIX), path, device, dtype)
    raise _unknown(name)


def is_available_offline(name: str) -> bool:
    """Whether ``load_vae(name)`` would find its weights on this machine; looks at files only, never at the network.

    Raises:
        UserError: unknown name.
    """
    if name == "tiny":
        return has_model(TINY_FOLDER)
    if name == "taef2":
        return False
    if name in ("wan2.1", "wan2.2"):
        from fvae_nnunet.vae.wan import WAN_ON_HUB

        return WAN_ON_HUB[name].cached() is not None
    if name.startswith(DIFFUSERS_PREFIX):
        place = name.removeprefix(DIFFUSERS_PREFIX)
        folder = Path(place).expanduser()
        return has_model(folder) if folder.is_dir() else _hub_model(place).cached() is not None
    raise _unknown(name)


def _load_tiny(weights: Path | None, device: str | torch.device, dtype: torch.dtype) -> FrozenVAE:
    from fvae_nnunet.vae.image import load_image_vae

    if weights is not None:
        raise UserError("tiny: its weights are embedded; for others use --vae diffusers:FOLDER")
    if not has_model(TINY_FOLDER):
        raise UserError(f"tiny: the embedded weights are missing in {TINY_FOLDER}; install the package again")
    return load_image_vae("tiny", open_folder(TINY_FOLDER), source="embedded", device=device, dtype=dtype)


def _load_diffusers(place: str, weights: Path | None, device: str | torch.device, dtype: torch.dtype) -> FrozenVAE:
    from fvae_nnunet.vae.image import load_image_vae

    folder = Path(place).expanduser()
    if place and folder.is_dir():
        if weights is not None:
            raise UserError(f"{DIFFUSERS_PREFIX}{place} names a folder already; leave --weights out")
        found = open_folder(folder)
        path = found.path.resolve()
        name = DIFFUSERS_PREFIX + (path.parent.name if path.name == VAE_SUBFOLDER else path.name)
        return load_image_vae(name, found, source=str(found.path), device=device, dtype=dtype)
    hub = _hub_model(place)
    name = DIFFUSERS_PREFIX + place
    found = open_folder(hub.fetch(name) if weights is None else weights)
    source = f"hub {hub.hub_id}" if weights is None else str(found.path)
    return load_image_vae(name, found, source=source, device=device, dtype=dtype)


def _hub_model(place: str) -> HubModel:
    size_mb = next((vae.download_mb for vae in _KNOWN if vae.name == DIFFUSERS_PREFIX + place), None)
    return HubModel(place, size_mb=size_mb)


def _unknown(name: str) -> UserError:
    names = [vae.name for vae in _KNOWN if not vae.name.startswith(DIFFUSERS_PREFIX)]
    close = difflib.get_close_matches(name, [vae.name for vae in _KNOWN], n=2)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    if "/" in name:
        hint = f" Did you mean {DIFFUSERS_PREFIX}{name}?"
    return UserError(
        f"unknown VAE {name!r}.{hint} Known: {', '.join(names)}, {DIFFUSERS_PREFIX}<hub id or folder of an image VAE>"
    )
