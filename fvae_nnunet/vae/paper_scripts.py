"""How the reconstruction scripts released with the paper run each VAE; basis of the scheme ``paper``.

Source: github.com/qic999/Foundation-VAE, folder Reconstruction (commit f891011). All scripts clip to -1000 to 1000 HU
(LeanVAE has a second script, ``recon_ct_window_175_250.py``, with -175 to 250 HU and otherwise the same values), pass
slices as (x, y) in the file's axis order, repeat them into three channels, use windows without overlap and pad a short
one with its last slice, average the channels, clamp, and truncate to int16. There are no scripts for MedVAE and MAISI.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fvae_nnunet.ct.hu_windows import PAPER_HU_WINDOW


@dataclass(frozen=True)
class PaperScript:
    """Settings that differ between the scripts.

    Attributes:
        window_slices: slices that the model sees at once.
        dtype: precision of the model.
        unit_interval: grey values pass through [0, 1], after decoding in the model's precision.
        rounds_unit_interval: before encoding, they are rounded to the model's precision in [0, 1], not in [-1, 1].
        samples: the latent is sampled from the posterior (without a seed) instead of its mode.
        hu_windows: HU windows of the scripts; the first one is that of all scripts.
    """

    window_slices: int
    dtype: torch.dtype
    unit_interval: bool
    rounds_unit_interval: bool
    samples: bool
    hu_windows: tuple[tuple[float, float], ...] = (PAPER_HU_WINDOW,)


def _script(
    dtype: torch.dtype, *, samples: bool, window_slices: int = 65, rounds_unit_interval: bool = True
) -> PaperScript:
    return PaperScript(window_slices, dtype, True, rounds_unit_interval, samples)


_WAN = PaperScript(65, torch.float32, unit_interval=False, rounds_unit_interval=False, samples=False)

PAPER_SCRIPTS = {
    "wan2.1": _WAN,
    "wan2.2": _WAN,
    # windows of 64, coded in independent pieces of 16
    "videovae+": _script(torch.float32, samples=False, window_slices=16),
    "iv-vae": _script(torch.bfloat16, samples=True),
    "cv-vae": _script(torch.float16, samples=True),
    "wf-vae": _script(torch.bfloat16, samples=True, rounds_unit_interval=False),
    "leanvae": replace(_script(torch.float32, samples=False), hu_windows=(PAPER_HU_WINDOW, (-175.0, 250.0))),
}
"""Scripts by the name of the VAE."""
