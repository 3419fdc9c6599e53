"""A damaged weight and a device that computes something else are noticed."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from fvae_nnunet.errors import UserError
from fvae_nnunet.vae import embedded_check, registry
from fvae_nnunet.vae.embedded_check import LARGEST_RMS_HU, check_embedded
from fvae_nnunet.vae.self_check import reconstructed_waves


@pytest.fixture
def tiny_copy(tmp_path, monkeypatch):
    folder = shutil.copytree(registry.TINY_FOLDER, tmp_path / "tiny")
    monkeypatch.setattr(registry, "TINY_FOLDER", folder)
    monkeypatch.setattr(embedded_check, "REFERENCE", folder / "reference.npy")
    return folder


def test_float32_is_the_stored_reconstruction_and_bfloat16_is_told_from_it():
    """Where the weights have changed on purpose, docs/releasing.md says how the stored values are made anew."""
    assert check_embedded("cpu", torch.float32)[0] < 0.003
    assert LARGEST_RMS_HU["tf32"] < check_embedded("cpu", torch.bfloat16)[0] < LARGEST_RMS_HU["bfloat16"]


def test_one_wrong_bit_of_the_weights_is_noticed(tiny_copy):
    weights = tiny_copy / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1000] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="are not those of this version; reinstall fvae_nnunet"):
        check_embedded("cpu", torch.float32)


@pytest.mark.parametrize(("scale", "wrong"), [(1.00005, False), (1.0005, True), (float("nan"), True)])
def test_a_device_that_is_off_is_noticed(scale, wrong, monkeypatch):
    """The waves are 333 HU (rms): a ten-thousandth of that is allowed."""
    monkeypatch.setattr(embedded_check, "reconstructed_waves", lambda vae: scale * reconstructed_waves(vae))
    if not wrong:
        assert check_embedded("cpu", torch.float32)[0] == pytest.approx(5e-5 * 333, rel=0.1)
        return
    with pytest.raises(UserError, match=r"differs from its stored reconstruction by .*, at most 0\.03 HU are allowed"):
        check_embedded("cpu", torch.float32)


def test_a_stored_reconstruction_that_cannot_be_read_is_named(tiny_copy):
    for content in (b"", (tiny_copy / "reference.npy").read_bytes()[:-8]):
        (tiny_copy / "reference.npy").write_bytes(content)
        with pytest.raises(UserError, match=r"reference\.npy cannot be read"):
            check_embedded("cpu", torch.float32)
    (tiny_copy / "reference.npy").unlink()
    with pytest.raises(UserError, match=r"reference\.npy cannot be read"):
        check_embedded("cpu", torch.float32)


def test_the_stored_reconstruction_is_of_five_slices():
    reference = np.load(embedded_check.REFERENCE)
    assert reference.shape == (1, 1, 5, 32, 32) and reference.dtype == np.float32


def test_a_device_that_cannot_compute_is_a_sentence(monkeypatch):
    def fail(vae):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors")

    monkeypatch.setattr(embedded_check, "reconstructed_waves", fail)
    with pytest.raises(UserError, match=r"^tiny cannot be computed on cpu: CUDA error: no kernel image .* the device$"):
        check_embedded("cpu", torch.float32)
