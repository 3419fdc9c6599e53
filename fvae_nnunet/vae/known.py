"""Facts about each named VAE: strides, windows, value ranges, weights, licences."""

from __future__ import annotations

from dataclasses import dataclass

from fvae_nnunet.vae.folders import VAE_SUBFOLDER, HubModel

DIFFUSERS_PREFIX = "diffusers:"
CONTROL_PREFIX = "control:"
"""Prefix of plain denoisers, which are not VAEs; see ``vae.denoisers``."""


@dataclass(frozen=True)
class KnownVAE:
    """A VAE with a name of its own.

    Attributes:
        name: name for ``load_vae``.
        description: one line: kind, compression in-plane (and along the slices), latent channels.
        window: slices that it sees at once, and admissible numbers of slices.
        values: range of grey values of the model itself; through ``FrozenVAE`` every VAE takes [-1, 1].
        weights: accepted values of ``weights`` in ``load_vae``, in words.
        licence: licence of the weights, and of the code if different.
        download_mb: approximate size of the weights; 0 for embedded ones.
        loader: module below ``fvae_nnunet.vae`` and its function that loads the VAE for a ``Wanted``, such as
            ``taef2.load_taef2``; None if the registry loads it (embedded, from diffusers, from a checkout).
        hub_id: repository on the Hugging Face hub that is used if no weights are given; None if there is none.
        hub_subfolders: where to look for its files there, see ``HubModel``.
        code: repository from whose checkout the VAE runs, as its licence does not let us ship it; None for others.
    """

    name: str
    description: str
    window: str
    values: str
    weights: str
    licence: str
    download_mb: int
    loader: str | None = None
    hub_id: str | None = None
    hub_subfolders: tuple[str, ...] = (VAE_SUBFOLDER, "")
    code: str | None = None

    @property
    def hub(self) -> HubModel | None:
        """Location of its weights on the hub; None if they are not there."""
        return None if self.hub_id is None else HubModel(self.hub_id, self.hub_subfolders, self.download_mb)


_SLICES_ALONE = "each slice alone"
_VIDEO_WINDOW = "65 slices; 1 + 4k"
_WAN_WEIGHTS = "diffusers folder, .safetensors, or the authors' .pth"
_DIFFUSERS_FOLDER = "diffusers folder"

KNOWN = (
    KnownVAE(
        name="tiny", description="embedded image VAE, 8x8, 16 channels; for first tries and tests",
        window=_SLICES_ALONE, values="[-1, 1]", weights="embedded", licence="Apache-2.0", download_mb=0,
    ),
    KnownVAE(
        name="wan2.1", description="video VAE, 8x8x4, 16 channels", window=_VIDEO_WINDOW, values="[-1, 1]",
        weights=_WAN_WEIGHTS, licence="Apache-2.0", download_mb=508, hub_id="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        hub_subfolders=(VAE_SUBFOLDER,),
        loader="wan.vae.load_wan",
    ),
    KnownVAE(
        name="wan2.2", description="video VAE, 16x16x4, 48 channels", window=_VIDEO_WINDOW, values="[-1, 1]",
        weights=_WAN_WEIGHTS, licence="Apache-2.0", download_mb=2820, hub_id="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        hub_subfolders=(VAE_SUBFOLDER,),
        loader="wan.vae.load_wan",
    ),
    KnownVAE(
        name="videovae+", description="video VAE, 8x8x4, 4 or 16 channels", window="16 slices; 4k", values="[-1, 1]",
        weights="the authors' .ckpt", licence="CC BY-NC-ND 4.0", download_mb=0,
        code="VideoVerses/VideoVAEPlus",
    ),
    KnownVAE(
        name="iv-vae", description="video VAE, 8x8x4, 16 channels (others exist)", window=_VIDEO_WINDOW,
        values="[-1, 1]", weights="the authors' .pth", licence="MIT", download_mb=968,
        loader="ivvae.vae.load_ivvae",
    ),
    KnownVAE(
        name="cv-vae", description="video VAE, 8x8x4, 4 channels", window=_VIDEO_WINDOW, values="[-1, 1]",
        weights="the authors' folder vae3d", licence="weights Apache-2.0; code without a licence",
        download_mb=730, hub_id="AILab-CVC/CV-VAE", hub_subfolders=("vae3d",),
        code="AILab-CVC/CV-VAE",
    ),
    KnownVAE(
        name="wf-vae", description="video VAE, 8x8x4, 8 or 16 channels", window=_VIDEO_WINDOW, values="[-1, 1]",
        weights="the authors' folder or file", licence="Apache-2.0", download_mb=1270,
        hub_id="chestnutlzj/WF-VAE-L-16Chn", hub_subfolders=("",),
        loader="wfvae.vae.load_wfvae",
    ),
    KnownVAE(
        name="leanvae", description="light video VAE, 8x8x4, 4 or 16 channels", window=_VIDEO_WINDOW,
        values="[-0.5, 0.5]", weights="the authors' .ckpt", licence="MIT", download_mb=160,
        loader="leanvae.vae.load_leanvae",
    ),
    KnownVAE(
        name="medvae", description="medical VAE of CT and MR volumes, 4x4x4, 1 channel", window="16 slices; 4k",
        values="[-1, 1]", weights="the authors' vae_4x_1c_3D.ckpt", licence="MIT", download_mb=644,
        loader="medvae.load_medvae",
    ),
    KnownVAE(
        name="maisi", description="medical VAE of CT and MR volumes, 4x4x4, 4 channels", window="32 slices; 4k",
        values="[0, 1]", weights="autoencoder_v1.pt, or the MONAI bundle's autoencoder_epoch273.pt",
        licence="NVIDIA Open Model License (the bundle's file: non-commercial); code Apache-2.0", download_mb=84,
        loader="maisi.load_maisi",
    ),
    KnownVAE(
        name="taef2", description="tiny image autoencoder for FLUX.2's latent space, 8x8, 32 channels",
        window=_SLICES_ALONE, values="[0, 1]", weights="folder with taef2_encoder.pth and taef2_decoder.pth",
        licence="MIT", download_mb=6,
        loader="taef2.load_taef2",
    ),
    *(
        KnownVAE(
            name=DIFFUSERS_PREFIX + hub_id, description=description, window=_SLICES_ALONE, values="[-1, 1]",
            weights=_DIFFUSERS_FOLDER, licence=licence, download_mb=download_mb, hub_id=hub_id,
        )
        for hub_id, description, licence, download_mb in (
            ("stabilityai/sd-vae-ft-mse", "image VAE of Stable Diffusion, 8x8, 4 channels", "MIT", 335),
            ("stabilityai/sdxl-vae", "image VAE of SDXL, 8x8, 4 channels", "MIT", 335),
            ("black-forest-labs/FLUX.1-schnell", "image VAE of FLUX.1, 8x8, 16 channels", "Apache-2.0", 168),
            ("madebyollin/taesd", "tiny image autoencoder for SD's latent space, 8x8, 4 channels", "MIT", 10),
        )
    ),
)  # fmt: skip


def hub_of(name: str) -> HubModel | None:
    """Location of the weights of a VAE on the hub; None if they are not there or the name is unknown."""
    return next((vae.hub for vae in KNOWN if vae.name == name), None)


def known_vaes() -> list[KnownVAE]:
    """All named VAEs, and examples of ``diffusers:``, which takes any image VAE of diffusers."""
    return list(KNOWN)
