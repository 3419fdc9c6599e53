"""Connect the processes of a training with accelerate."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from fvae_nnunet.device.numerics import has_bfloat16
from fvae_nnunet.errors import UserError
from fvae_nnunet.jobs.devices import chosen_device
from fvae_nnunet.optional_packages import needed_for

if TYPE_CHECKING:
    from accelerate import Accelerator


def connect(*, device: str | None, mixed_precision: str | None) -> Accelerator:
    """Create the accelerator of this process, alone or started by ``accelerate launch``.

    Args:
        device: ``cuda``, ``cpu`` or ``mps``; None: CUDA if there is a GPU, otherwise the CPU.
        mixed_precision: ``no``, ``bf16`` or ``fp16``; None: bf16 if the GPU supports it, otherwise ``no``.

    Raises:
        UserError: accelerate is not installed or is configured for more than plain data parallelism, or the device does
            not exist or does not support the precision.
    """
    with needed_for("training"):
        from accelerate import Accelerator, InitProcessGroupKwargs
        from accelerate.utils import DistributedType
    device = chosen_device(device)
    if mixed_precision is None:
        mixed_precision = "bf16" if has_bfloat16(device) else "no"
    if mixed_precision == "fp16" and device == "cpu":
        raise UserError("`mixed_precision='fp16'` needs a GPU; use bf16 or no")
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        cpu=device == "cpu",
        # the other processes wait for the one that encodes the last case
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
    )
    plain = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
    if accelerator.distributed_type not in plain:
        raise UserError(
            f"accelerate is configured for {accelerator.distributed_type.value}; only plain data parallelism is "
            "supported: accelerate launch --multi_gpu ..., or accelerate config"
        )
    return accelerator
