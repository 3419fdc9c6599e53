"""Memory of a GPU: what is estimated against what is alive, and what a lack of it leaves behind. On fake GPUs."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from fake_gpu import GIB, WAN21, WAN22, FakeGPU, wan_on_gpu
from tiny_models import tiny_kl, wan_vae

from fvae_nnunet.device.memory import CallSize, TooLittleMemory, even_part, is_out_of_memory
from fvae_nnunet.jobs.pipeline import StageSeconds, run_cases
from fvae_nnunet.vae.base import VAESpec
from fvae_nnunet.vae.image import ImageVAE
from fvae_nnunet.vae.module_vae import CPU_CALL_VOXELS, ModuleVAE
from fvae_nnunet.vae.wan.network import WanSizes, kept_values_per_pixel


class Seen:
    """A method that keeps the slices (axis 2) or images (axis 0) of its calls."""

    def __init__(self, call: Any, axis: int) -> None:
        self.call, self.axis, self.sizes = call, axis, []

    def __call__(self, x: torch.Tensor, *rest: Any) -> Any:
        self.sizes.append(x.shape[self.axis])
        return self.call(x, *rest)


def window(slices: int, side: int, batch: int = 1) -> torch.Tensor:
    return torch.empty(batch, 1, slices, side, side, device="cuda")


@pytest.mark.slow
@pytest.mark.parametrize(("config", "most"), [(WAN21, 1.03), (WAN22, 1.08)])
def test_estimate_of_wan_is_what_a_chunk_needs_with_its_past(config, most, monkeypatch):
    pixels, slices = 256 * 256, 24
    with FakeGPU(monkeypatch, 1000 * GIB) as gpu:
        vae = wan_on_gpu(config, torch.bfloat16)
        latent = torch.empty(1, vae.spec.latent_channels, 12, *(256 // vae.spec.inplane_stride,) * 2, device="cuda")
        latent = latent.bfloat16()
        _, before = vae._network.decode(latent[:, :, :6], None)
        gpu.restart_peak()
        weights = gpu.live - sum(tensor.numel() for tensor in before) * 2
        vae._network.decode(latent[:, :, 6:], before)
    sizes = WanSizes.from_config(config)
    estimated = pixels * 2 * (2 * kept_values_per_pixel(sizes) + slices * sizes.live_values_per_pixel)
    assert 0.99 * (gpu.peak - weights) < estimated < most * (gpu.peak - weights)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "dtype", "card_gib", "chunks"),
    [
        (WAN21, torch.float32, 24, [21, 24, 20, 6, 6, 5]),
        (WAN21, torch.float32, 15.6, [13, 16, 12, 12, 12, 4, 4, 3, 3, 3]),
        (WAN22, torch.float32, 15.6, [17, 16, 16, 16, 5, 4, 4, 4]),
        (WAN21, torch.bfloat16, 11, [21, 24, 20, 6, 6, 5]),
    ],
)
def test_a_window_of_wan_fits_at_the_first_try(config, dtype, card_gib, chunks, monkeypatch):
    with FakeGPU(monkeypatch, card_gib * GIB) as gpu:
        vae = wan_on_gpu(config, dtype)
        network = vae._network
        network.encode, network.decode = Seen(network.encode, 2), Seen(network.decode, 2)
        vae.decode(vae.encode(window(65, 512)))
        assert network.encode.sizes + network.decode.sizes == chunks
    assert gpu.freed_at == []
    assert gpu.peak < card_gib * GIB / 1.1
    assert gpu.widest < 2**31


@pytest.mark.slow
@pytest.mark.parametrize(("side", "chunks"), [(128, [65]), (1024, [5, 8, 8, 8, 8, 8, 8, 8, 4])])
def test_chunks_follow_the_size_of_the_plane(side, chunks, monkeypatch):
    with FakeGPU(monkeypatch, 140 * GIB) as gpu:
        vae = wan_on_gpu({"base_dim": 96})
        vae._network.encode = Seen(vae._network.encode, 2)
        vae.encode(window(65, side))
        assert vae._network.encode.sizes == chunks
    assert gpu.widest < 2**31


def test_even_parts_are_few_and_differ_by_at_most_one():
    for units in range(1, 40):
        for most in range(1, 20):
            parts, left = [], units
            while left:
                parts.append(even_part(left, most))
                left -= parts[-1]
            assert len(parts) == -(-units // most)
            assert max(parts) - min(parts) <= 1 and max(parts) <= most


@pytest.mark.slow
def test_what_was_too_much_is_not_tried_again(monkeypatch):
    """Another process takes memory behind the estimate; the window that follows begins with what fitted."""
    with FakeGPU(monkeypatch, 15.6 * GIB) as gpu:
        vae = wan_on_gpu(WAN21)
        vae._network.decode = Seen(vae._network.decode, 2)
        latent = vae.encode(window(65, 512))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (24 * GIB - gpu.live, 24 * GIB))
        vae._fitting.clear()
        with pytest.warns(UserWarning, match="wan2.1: decoding: .* too many"):
            vae.decode(latent)
        first, vae._network.decode.sizes = vae._network.decode.sizes, []
        vae.decode(latent)
        assert first[0] == 6 and vae._network.decode.sizes == [3, 3, 3, 3, 3, 2]
    assert len(gpu.freed_at) == 1


LACKS = [
    "CUDA out of memory. Tried to allocate 2.00 GiB",
    "MPS backend out of memory (MPS allocated: 8.00 GB)",
    "GET was unable to find an engine to execute this computation",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: can't allocate memory: you tried to allocate",
]


@pytest.mark.parametrize("message", LACKS)
def test_lack_of_memory_by_any_name_halves_the_call(message, monkeypatch):
    vae = wan_vae_of_16_slices()
    volume = torch.rand(1, 1, 29, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = vae.encode(volume)
    encode = vae._network.encode

    def full(x: torch.Tensor, before: Any) -> Any:
        if x.shape[2] > 8:
            raise RuntimeError(message)
        return encode(x, before)

    monkeypatch.setattr(vae._network, "encode", full)
    with pytest.warns(UserWarning, match="too many"):
        found = vae.encode(volume)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    monkeypatch.setattr(vae._network, "encode", lambda x, before: full(torch.empty(1, 1, 9), before))
    with pytest.raises(
        TooLittleMemory, match=r"4 slices of 16 x 16 pixels in float32; use `precision=bfloat16`, `device=cpu`$"
    ):
        vae.encode(volume)


def wan_vae_of_16_slices() -> Any:
    from tiny_models import tiny_wan

    vae = wan_vae(tiny_wan())
    vae._steps_of_a_chunk = lambda pixels: 4
    return vae


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def big_image_vae() -> ImageVAE:
    """An AutoencoderKL of Stable Diffusion's size."""
    model = tiny_kl(channels=3, widths=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32)
    return ImageVAE(model, name="sd", source="test", device="cuda")


@pytest.mark.slow
def test_an_image_vae_takes_fewer_slices_at_once_where_memory_is_short(monkeypatch):
    with FakeGPU(monkeypatch, 8 * GIB) as gpu:
        vae = big_image_vae()
        vae._model.decode = Seen(vae._model.decode, 0)
        latent = vae.encode(window(16, 512))
        with pytest.warns(UserWarning, match="sd: decoding"):
            assert vae.decode(latent).shape == (1, 1, 16, 512, 512)
        first, vae._model.decode.sizes = vae._model.decode.sizes, []
        vae.decode(latent)
        assert first[:2] == [16, 8] and set(vae._model.decode.sizes) == {8}
    assert gpu.widest < 2**31


def test_on_a_cpu_an_image_vae_takes_few_pixels_at_once():
    vae = ImageVAE(tiny_kl(), name="test", source="test")
    volume = torch.rand(1, 1, 5, 16, 16, generator=torch.Generator().manual_seed(0)) - 0.5
    together = vae.decode(vae.encode(volume))
    encoded = vae._encode_images = Seen(vae._encode_images, 0)
    decoded = vae._decode_images = Seen(vae._decode_images, 0)
    for calls in (vae._encoding, vae._decoding):
        assert calls.most_voxels == CPU_CALL_VOXELS == 512**2
        calls.most_voxels = 2 * 16 * 16
    torch.testing.assert_close(vae.decode(vae.encode(volume)), together)
    assert encoded.sizes == decoded.sizes == [2, 2, 1]


def test_an_image_vae_that_cannot_take_one_slice_names_the_way_out(monkeypatch):
    with FakeGPU(monkeypatch, 0.6 * GIB):
        vae = big_image_vae()
        with pytest.raises(TooLittleMemory, match=r"sd: .*for 1 slice of 512 x 512 pixels .*`precision=bfloat16`"):
            vae.encode(window(2, 512))


class Doubling(ModuleVAE):
    """Sees all slices of a volume at once; takes three times the volume beside it."""

    def __init__(self) -> None:
        spec = VAESpec(name="doubling", inplane_stride=1, latent_channels=1, slice_stride=4)
        super().__init__(torch.nn.Linear(1, 1), spec, source="test", device="cuda", dtype=torch.float32)

    def _encode(self, volume: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        more = torch.stack([volume, volume])
        return (more + more).mean((0, 3))[:, :, None]

    def _decode(self, latent: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


def test_a_vae_that_sees_all_slices_takes_fewer_volumes_at_once(monkeypatch):
    volume_bytes = 4 * 64 * 64 * 4
    with FakeGPU(monkeypatch, 20 * volume_bytes), pytest.warns(UserWarning, match="too many"):
        vae = Doubling()
        assert vae.encode(window(4, 64, batch=8)).shape == (8, 1, 1, 64, 64)
        assert vae._encoding.most_voxels == 2 * 4 * 64 * 64
        with pytest.raises(TooLittleMemory, match=r"doubling: .* 32 slices of 64 x 64 .*, a smaller `window_slices`, "):
            vae.encode(window(32, 64))


def test_a_case_that_fails_leaves_nothing_on_the_device_to_the_next(monkeypatch):
    """The traceback is kept until the outcome is reported; its frames hold the tensors of the failed case."""
    at_start = []
    with FakeGPU(monkeypatch, 2 * GIB) as gpu:

        def compute(case: str, content: str) -> int:
            gc.disable()  # what only the collector would free is not free when the next case begins
            at_start.append(gpu.live)
            kept = torch.empty(GIB, dtype=torch.uint8, device="cuda")
            if case == "large":
                kept = torch.cat([kept, torch.empty(2 * GIB, dtype=torch.uint8, device="cuda")])
            return len(kept)

        try:
            outcomes = run_cases(["large", "small"], read=str, compute=compute, workers=0, seconds=StageSeconds())
            large, small = list(outcomes)
        finally:
            gc.enable()
    assert isinstance(large.error, torch.OutOfMemoryError) and large.error.__traceback__ is not None
    assert small.result == GIB
    assert at_start == [0, 0]
    assert gpu.freed_at == [0]


def test_a_failed_call_is_free_before_the_smaller_one_begins(monkeypatch):
    with FakeGPU(monkeypatch, 10 * GIB) as gpu:

        def call(start: int, stop: int) -> int:
            tensors = [torch.empty(GIB, dtype=torch.uint8, device="cuda") for _ in range(3 * (stop - start))]
            return len(tensors)

        with pytest.warns(UserWarning, match="12 voxels in one call are too many"):
            assert CallSize("test").run(call, 12, 1) == [9] * 4
    assert gpu.freed_at == [0, 0]
