"""Precision on devices that are not here: patched CUDA versions, fake MPS tensors."""

from __future__ import annotations

import argparse
import re
import warnings
from collections import Counter
from typing import Any

import pytest
import torch
from fake_weights import put_on_gpu
from identity_vae import IdentityVAE
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from vaes_for_tests import MAKERS

from fvae_nnunet.ct.intensity import hu_to_model_over_unit_interval
from fvae_nnunet.device.numerics import conv3d_fault, fastest_precision, has_bfloat16, tf32
from fvae_nnunet.errors import UserError
from fvae_nnunet.reconstruction.settings import ReconstructionSettings
from fvae_nnunet.training.online_vae import load_training_vae
from fvae_nnunet.vae import load_vae, registry, self_check
from fvae_nnunet.vae.base import VAESpec
from fvae_nnunet.vae.module_vae import ModuleVAE, depth_outermost, lay_out_plainly


@pytest.fixture
def turing(monkeypatch):
    """A GPU that emulates bfloat16, as torch knows it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: warnings.catch_warnings())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)


def test_emulated_bfloat16_is_none(turing):
    assert not has_bfloat16("cuda:1")
    assert fastest_precision(torch.device("cuda")) == "float32"


def test_training_synthesis_and_classification_ask_for_real_bfloat16(turing, monkeypatch, tmp_path):
    asked: list[Any] = []
    monkeypatch.setattr(
        "fvae_nnunet.training.online_vae.load_vae", lambda name, **options: asked.append(options["dtype"])
    )
    monkeypatch.setenv("nnUNet_fvae_vae", "tiny")
    with pytest.raises(AttributeError):  # nothing was loaded
        load_training_vae(tmp_path, str, device=torch.device("cuda"))

    accelerate = pytest.importorskip("accelerate")
    from fvae_nnunet.synthesis.training.processes import connect

    def accelerator(**options):
        asked.append(options["mixed_precision"])
        raise UserError("enough")

    monkeypatch.setattr(accelerate, "Accelerator", accelerator)
    with pytest.raises(UserError, match="enough"):
        connect(device="cuda", mixed_precision=None)

    from fvae_nnunet.cli import train_classifier

    options = {
        "findings": ["mass"],
        "precision": None,
        "network": "resnet18",
        "shape": (32, 32, 32),
        "steps": 1,
        "batch": 2,
    }
    options |= {
        "spacing_mm": (1.0, 1.0, 1.0),
        "hu_window": (-1000, 1000),
        "learning_rate": 0.1,
        "positive_weight": 1.0,
        "seed": 0,
    }
    reports = argparse.Namespace(findings=("mass",))
    settings = train_classifier._settings(argparse.Namespace(**options), reports, "cuda")  # type: ignore[arg-type]
    assert asked == [torch.float32, "no"] and settings.precision == "float32"


@pytest.mark.parametrize(
    ("release", "cudnn", "expected"),
    [
        ("2.8.0+cu128", 91002, r"torch 2.8.0\+cu128 and cuDNN 9.10, .*bfloat16 can be wrong"),
        ("2.8.0+cu128", 91300, None),
        ("2.8.0+cu128", 90701, None),
        ("2.9.1+cu130", 91300, "cuDNN 9.13, .* several times the memory; pip install -U 'nvidia-cudnn-cu"),
        ("2.9.1+cu130", 91501, None),
        ("2.15.0", None, None),
    ],
)
def test_versions_with_a_fault_are_known(release, cudnn, expected, monkeypatch):
    monkeypatch.setattr(torch, "__version__", release)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    fault = conv3d_fault()
    assert (fault is None) if expected is None else re.search(expected, fault or "")


class Somewhere(IdentityVAE):
    """Says that it is on a device where it is not; ``wrong`` is added to what it decodes."""

    def __init__(self, device: str, dtype: torch.dtype = torch.float32, wrong: float = 0.0) -> None:
        super().__init__(slice_stride=4, slice_offset=1, dtype=dtype)
        self.place, self.wrong = torch.device(device), wrong

    @property
    def device(self) -> torch.device:
        return self.place

    def encode(self, volume, generator=None):
        return volume.to(self.dtype)

    def decode(self, latent):
        return latent.float() + self.wrong * latent.float().flip(-1)


def test_on_mps_a_vae_is_held_against_the_cpu():
    self_check.check_device(Somewhere("mps"), lambda: Somewhere("cpu"))
    self_check.check_device(Somewhere("mps", torch.bfloat16), lambda: Somewhere("cpu"))
    with pytest.raises(
        UserError, match=r"identity on mps in float32 gives different values than on the CPU .*`device=cpu`"
    ):
        self_check.check_device(Somewhere("mps", wrong=0.05), lambda: Somewhere("cpu"))
    with pytest.raises(UserError, match="relative error nan"):
        self_check.check_device(Somewhere("mps", wrong=float("nan")), lambda: Somewhere("cpu"))


def test_on_cuda_only_where_a_fault_is_known(monkeypatch):
    def unneeded() -> Any:
        raise AssertionError("a second VAE was loaded")

    monkeypatch.setattr(self_check, "conv3d_fault", lambda: None)
    for vae in (Somewhere("cuda", torch.bfloat16, wrong=1), Somewhere("cpu", wrong=1)):
        self_check.check_device(vae, unneeded)
    monkeypatch.setattr(self_check, "conv3d_fault", lambda: "convolutions can be wrong")
    self_check.check_device(Somewhere("cuda", torch.float32, wrong=1), unneeded)
    with pytest.warns(UserWarning, match="identity: convolutions can be wrong"):
        self_check.check_device(Somewhere("cuda", torch.bfloat16), lambda: Somewhere("cpu"))
    with pytest.warns(UserWarning), pytest.raises(UserError, match=r"different values .*; convolutions can be wrong"):
        self_check.check_device(Somewhere("cuda", torch.bfloat16, wrong=0.5), lambda: Somewhere("cpu"))


def test_every_vae_is_checked_when_it_is_loaded(monkeypatch):
    seen = []
    monkeypatch.setattr(registry, "check_device", lambda vae, on_cpu: seen.append((vae.spec.name, on_cpu().dtype)))
    load_vae("tiny", dtype=torch.bfloat16)
    assert seen == [("tiny", torch.float32)]


class Convolutions(TorchDispatchMode):
    """Counts the convolutions, and those whose weights MPS reads wrongly."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "convolution" in str(operation):
            self.seen["all"] += 1
            self.seen["wrong"] += not args[1].is_contiguous()
        return operation(*args, **(kwargs or {}))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind != "identity"])
def test_no_convolution_on_mps_has_a_weight_that_it_reads_wrongly(kind, tmp_path):
    vae: Any = MAKERS[kind](tmp_path, dtype=torch.bfloat16)  # Wan has other kernels in float32 on the CPU alone
    lay_out_plainly(vae._module)
    vae._steps_of_a_chunk = lambda pixels: 2  # of Wan
    spec = vae.spec
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        put_on_gpu(vae._module)  # the fake tensors of MPS cannot be indexed without it
        sides = 2 * spec.inplane_stride, 3 * spec.inplane_stride
        with Convolutions() as convolutions:
            vae.decode(vae.encode(torch.empty(2, 1, spec.padded_slices(9), *sides, device="cuda")))
    assert convolutions.seen["all"] > 0
    assert convolutions.seen["wrong"] == 0


def test_weights_are_laid_out_when_they_come_to_mps(monkeypatch):
    monkeypatch.setattr(nn.Module, "to", lambda module, *where: module)

    class Plain(ModuleVAE):
        _encode = _decode = None  # type: ignore[assignment]

    sliced = nn.Conv3d(4, 4, 3)
    sliced.weight.data = depth_outermost(sliced.weight.data)
    module = nn.ModuleList([nn.Conv2d(4, 4, 3), nn.Conv3d(4, 4, 3), sliced])
    module[0].weight.data = module[0].weight.data.to(memory_format=torch.channels_last)
    module[1].weight.data = module[1].weight.data.to(memory_format=torch.channels_last_3d)
    values = [layer.weight.clone() for layer in module]
    spec = VAESpec(name="plain", inplane_stride=1, latent_channels=1)
    monkeypatch.setattr(Plain, "__abstractmethods__", frozenset())
    Plain(module, spec, source="test", device="mps", dtype=torch.float32)
    assert module[0].weight.is_contiguous() and module[1].weight.is_contiguous()
    assert all(module[2].weight[:, :, place].is_contiguous() for place in range(3))
    assert all(torch.equal(layer.weight, value) for layer, value in zip(module, values, strict=True))


def test_the_papers_rounding_needs_no_float64_on_mps():
    class NoFloat64(TorchDispatchMode):
        def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = operation(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.device.type == "mps" and result.dtype == torch.float64:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
            return result

    try:
        with FakeTensorMode(), NoFloat64():
            volume = torch.empty(2, 3, device="mps")
            found = hu_to_model_over_unit_interval(volume, (-1000, 1000), torch.bfloat16)
    except RuntimeError as error:
        pytest.skip(f"this torch has no fake MPS tensors: {error}")
    assert (found.device.type, found.dtype) == ("mps", torch.bfloat16)


def flags() -> tuple[bool, bool]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


def test_float32_is_float32_within_a_vae_unless_told(monkeypatch):
    before, seen = flags(), []
    assert before[0]  # torch's default, which this is about
    vae: Any = load_vae("tiny")
    encode = vae._model.encode
    monkeypatch.setattr(vae._model, "encode", lambda images: seen.append(flags()) or encode(images))
    vae.encode(torch.zeros(1, 1, 1, 16, 16))
    assert seen == [(False, False)] and flags() == before
    with pytest.raises(ValueError, match="inside"), tf32(True):
        assert flags() == (True, True)
        raise ValueError("inside")
    assert flags() == before


def test_tf32_is_told_by_a_variable_and_recorded(monkeypatch):
    vae: Any = load_vae("tiny")
    settings = ReconstructionSettings.for_vae(vae.spec)
    monkeypatch.setenv("nnUNet_fvae_tf32", "1")
    assert not vae.tf32 and "tf32" not in settings.recorded_with(vae)  # the CPU has none
    monkeypatch.setattr(ModuleVAE, "device", torch.device("cuda"))
    assert vae.tf32 and settings.recorded_with(vae)["tf32"] is True
    monkeypatch.setenv("nnUNet_fvae_tf32", "f")
    assert "tf32" not in settings.recorded_with(vae)


def test_setup_says_what_the_gpu_lacks(turing, monkeypatch, capsys):
    from fvae_nnunet.cli import setup

    card = argparse.Namespace(total_memory=16 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr("fvae_nnunet.device.numerics.torch.backends.cudnn.version", lambda: 91002)
    monkeypatch.setattr(torch, "__version__", "2.9.0+cu128")
    setup._show_installation()
    said = " ".join(capsys.readouterr().out.split())
    assert "device: cuda, Tesla T4, 16 GiB, no native bfloat16 " in said
    assert "cuDNN 9.10, 3D convolutions in bfloat16 take several times the memory" in said
