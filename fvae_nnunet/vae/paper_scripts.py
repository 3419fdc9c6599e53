"""How the reconstruction scripts released with the paper run each VAE; the facts behind the scheme ``paper``.

Source: github.com/qic999/Foundation-VAE, folder Reconstruction (commit f891011). All scripts clip to -1000 to 1000 HU
(LeanVAE has a second one, ``recon_ct_window_175_250.py``, with -175 to 250 HU and else the same values), feed slices as
(x, y) in the file's axis order, repeat them into three channels, take windows without overlap and pad a short one to
full length with its last slice, average the channels, clamp, and cut to int16. MedVAE and MAISI have none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fvae_nnunet.ct.hu_windows import PAPER_HU_WINDOW


@dataclass(frozen=True)
class PaperScript:
    """What differs from script to script.

    Attributes:
        window_slices: slices that the model sees at once.
        dtype: precision of the model.
        unit_interval: grey values take the way over [0, 1], on the way out in the model's precision.
        rounds_unit_interval: on the way in they are rounded to the model's precision in [0, 1] already, not in [-1, 1].
        samples: the latent is drawn from the posterior (without a seed), not its mode.
        hu_windows: those that a script has; the first is that of all scripts.
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
    # windows of 64, coded in pieces of 16 that do not see each other
    "videovae+": _script(torch.float32, samples=False, window_slices=16),
    "iv-vae": _script(torch.bfloat16, samples=True),
    "cv-vae": _script(torch.float16, samples=True),
    "wf-vae": _script(torch.bfloat16, samples=True, rounds_unit_interval=False),
    "leanvae": replace(_script(torch.float32, samples=False), hu_windows=(PAPER_HU_WINDOW, (-175.0, 250.0))),
}
"""By the name of the VAE."""
