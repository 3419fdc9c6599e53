"""How a volume is reconstructed: the settings that change voxels, and which of them go together."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from fvae_nnunet.errors import UserError
from fvae_nnunet.intensity import PAPER_HU_WINDOW, check_hu_window
from fvae_nnunet.vae.base import FrozenVAE, VAESpec
from fvae_nnunet.vae.paper_scripts import PAPER_SCRIPTS
from fvae_nnunet.windows import slice_windows

DEFAULT_OVERLAP_SLICES = 16
"""Overlap of the windows of a video VAE; about a quarter of Wan's 65 slices."""

Scheme = Literal["windows", "paper", "stream"]


@dataclass(frozen=True)
class Reconstruction:
    """How a volume is reconstructed; every field changes voxels.

    Attributes:
        hu_window: lower and upper HU; values outside come back as its ends.
        window_slices: slices in a window.
        overlap_slices: slices that neighbouring windows share.
        scheme: see ``schemes``. ``paper`` takes the axes of the file as they are and not the axial order.
        truncate: cut to int16 towards zero, as the paper's scripts do, instead of rounding.
        posterior_seed: draw the latent from the posterior with this seed, instead of taking its mode.
    """

    hu_window: tuple[float, float]
    window_slices: int
    overlap_slices: int
    scheme: Scheme = "windows"
    truncate: bool = False
    posterior_seed: int | None = None

    @classmethod
    def for_vae(
        cls,
        spec: VAESpec,
        *,
        scheme: Scheme = "windows",
        hu_window: tuple[float, float] = PAPER_HU_WINDOW,
        window_slices: int | None = None,
        overlap_slices: int | None = None,
        truncate: bool = False,
        posterior_seed: int | None = None,
    ) -> Reconstruction:
        """Settings with the scheme's and the VAE's own values where none are given.

        ``windows``: the VAE's window, for video VAEs an overlap of 16 slices. ``paper``: the script's window, no
        overlap. ``stream``: the slices of a step are the VAE's window.

        Raises:
            UserError: settings that cannot be used, or that the scheme excludes.
        """
        if truncate and scheme != "paper":
            raise UserError("cutting to int16 (--truncate) belongs to --scheme paper; the other schemes round")
        if scheme == "windows":
            window = spec.window_slices if window_slices is None else window_slices
            if overlap_slices is None:
                overlap_slices = 0 if spec.independent_slices else min(DEFAULT_OVERLAP_SLICES, window // 2)
        else:
            if overlap_slices:
                raise UserError(f"--scheme {scheme} has no overlap; leave --overlap out")
            window, overlap_slices = _window_of_scheme(spec, scheme, window_slices), 0
        if scheme == "paper" and check_hu_window(hu_window) not in PAPER_SCRIPTS[spec.name].hu_windows:
            windows = " or ".join(f"{lower:g} {upper:g}" for lower, upper in PAPER_SCRIPTS[spec.name].hu_windows)
            raise UserError(f"--scheme paper has the HU window {windows} for {spec.name}; leave --hu-window out")
        slice_windows(1, window, overlap_slices)
        return cls(check_hu_window(hu_window), window, overlap_slices, scheme, truncate, posterior_seed)

    def recorded_with(self, vae: FrozenVAE) -> dict[str, Any]:
        """Everything about this reconstruction by ``vae`` that changes a voxel, for a manifest."""
        return {
            "vae": vae.spec.name,
            "weights_sha256": vae.weights_sha256,
            **({} if vae.strength is None else {"strength": vae.strength}),
            "precision": str(vae.dtype).removeprefix("torch."),
            **asdict(self),
        }


def _window_of_scheme(spec: VAESpec, scheme: Scheme, window_slices: int | None) -> int:
    if scheme == "stream":
        return spec.window_slices if window_slices is None else window_slices
    script = PAPER_SCRIPTS.get(spec.name)
    if script is None:
        raise UserError(
            f"--scheme paper: no script for {spec.name} was released with the paper; there are scripts for "
            f"{', '.join(PAPER_SCRIPTS)}. --window-slices N --overlap 0 gives windows without overlap"
        )
    if window_slices not in (None, script.window_slices):
        raise UserError(f"--scheme paper has windows of {script.window_slices} slices; leave --window-slices out")
    return script.window_slices
