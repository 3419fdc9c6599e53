"""Compare the embedded VAE with its stored reconstruction, to check its weights and the device.

``tiny/reference.npy`` holds the reconstruction by ``tiny`` of ``self_check.reconstructed_waves`` on a CPU in float32:
(1, 1, 5, 32, 32), float32, in [-1, 1]. ``docs/releasing.md`` describes how to update it for new weights.
"""

from __future__ import annotations

import numpy as np
import torch

from fvae_nnunet.errors import UserError
from fvae_nnunet.vae.registry import TINY_FOLDER, load_vae
from fvae_nnunet.vae.self_check import reconstructed_waves

WEIGHTS_SHA256 = "1eeade7df4d6b2b4682127bcca510434ba4b30989755bc384ee49f3ff83a15c6"
REFERENCE = TINY_FOLDER / "reference.npy"
HU_OF_UNIT = 1000.0
"""HU per unit of the grey values, in the paper's window, [-1000, 1000] HU."""

LARGEST_RMS_HU = {"float32": 0.03, "tf32": 0.6, "bfloat16": 6.0}
"""Allowed root mean square difference. Measured on CPUs: float32 0.0003 HU or less between instruction sets (SSE4.1,
AVX2, AVX-512) and numbers of threads, bfloat16 2.1; float16, which has as many mantissa bits as TF32, 0.19. float32 on
a GPU may differ by more than on a CPU, but stays below the error of TF32."""


def check_embedded(device: str | torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Root mean square difference (HU) of the embedded VAE from its stored reconstruction, and the allowed one.

    Args:
        device: device to compute on.
        dtype: float32 or bfloat16.

    Raises:
        UserError: the weights are not the released ones or cannot be read, the device cannot compute, or the difference
            is larger than allowed.
    """
    vae = load_vae("tiny", device=device, dtype=dtype)
    if vae.weights_sha256 != WEIGHTS_SHA256:
        raise UserError(f"the weights in {TINY_FOLDER} are not those of this version; reinstall fvae_nnunet")
    try:
        reference = torch.from_numpy(np.load(REFERENCE, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{REFERENCE} cannot be read ({error}); reinstall fvae_nnunet") from error
    try:
        found = reconstructed_waves(vae).cpu()
    except RuntimeError as error:
        raise UserError(f"tiny cannot be computed on {vae.device}: {str(error).partition(chr(10))[0]}") from error
    off = (found.double() - reference.double()).square().mean().sqrt()
    rms_hu, allowed_hu = HU_OF_UNIT * float(off), LARGEST_RMS_HU["tf32" if vae.tf32 else vae.precision]
    if not rms_hu <= allowed_hu:
        raise UserError(
            f"tiny on {vae.device} in {vae.precision} differs from its stored reconstruction by {rms_hu:.3g} HU (rms), "
            f"at most {allowed_hu:g} HU are allowed; use `device=cpu`, or another version of torch (this is "
            f"{torch.__version__}) or of the driver"
        )
    return rms_hu, allowed_hu
