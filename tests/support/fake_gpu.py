"""A CUDA GPU of any memory without one: torch's fake tensors, whose storages are counted while they live.

Nothing is computed, so real sizes cost no memory and little time. What kernels take beside tensors is not counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fvae_nnunet.vae import module_vae
from fvae_nnunet.vae.wan.network import WanNetwork, WanSizes
from fvae_nnunet.vae.wan.vae import WanVAE

GIB = 2**30

WAN21: dict[str, Any] = {}
WAN22: dict[str, Any] = {  # Wan-AI/Wan2.2-TI2V-5B-Diffusers, vae/config.json
    "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12,
    "out_channels": 12, "patch_size": 2, "scale_factor_temporal": 4, "scale_factor_spatial": 16,
}  # fmt: skip


def skip_without_fake_cuda() -> None:
    """Skip the test where this torch asks for a driver to index a fake tensor on a GPU (2.5 does)."""
    try:
        with FakeTensorMode():
            torch.empty(2, device="cuda")[:1]
    except RuntimeError as error:
        pytest.skip(
            f"torch {torch.__version__} has no fake CUDA tensors without a driver: {str(error).splitlines()[0]}"
        )


class FakeGPU(TorchDispatchMode):
    """Within it, ``device="cuda"`` is a card of ``total`` bytes; what does not fit is torch's OutOfMemoryError.

    Attributes:
        live, peak: bytes of the tensors on the card, now and at most.
        widest: values of the largest tensor.
        freed_at: bytes alive at each ``torch.cuda.empty_cache``.
        fail: called with the name of each operation before it runs; may raise.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, total: float = 2**50) -> None:
        super().__init__()
        skip_without_fake_cuda()
        self.total = int(total)
        self.live = self.peak = self.widest = 0
        self.freed_at: list[int] = []
        self.fail: Callable[[str], object] = lambda operation: None
        self._storages: set[int] = set()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (self.total - self.live, self.total))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device=None: self.live)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device=None: self.live)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: self.freed_at.append(self.live))
        monkeypatch.setattr(nn.Module, "to", _to)
        monkeypatch.setattr("fvae_nnunet.vae.wan.vae.can_decode_fast", lambda device: False)
        monkeypatch.setattr(module_vae, "state_dict_sha256", lambda state: "0" * 64)

    def __enter__(self) -> FakeGPU:
        self._fake.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._fake.__exit__(*error)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.fail(str(operation))
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cuda":
                self._count(tensor)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return
        if self.live + size > self.total:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size / GIB:.2f} GiB")
        self._storages.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        self.widest = max(self.widest, tensor.numel())
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.live -= size

    def restart_peak(self) -> None:
        self.peak = self.live


def _to(module: nn.Module, device: Any = None, dtype: torch.dtype | None = None) -> nn.Module:
    """``nn.Module.to`` for fake parameters, which torch cannot exchange in place."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(parameter.data.to(device, dtype), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(device, dtype)
    return module


def wan_on_gpu(config: dict[str, Any], dtype: torch.dtype = torch.float32, name: str = "wan2.1") -> WanVAE:
    """A Wan without values, on the fake GPU."""
    with torch.device("meta"):
        state = WanNetwork(WanSizes.from_config(config)).state_dict()
    weights = {key: torch.empty(value.shape, device="cuda") for key, value in state.items()}
    return WanVAE(weights, config, name=name, source="test", device="cuda", dtype=dtype)
