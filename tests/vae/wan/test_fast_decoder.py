"""Wan decoded by fastvae: values against our own decoder, and what happens where it cannot be used. On the CPU."""

from __future__ import annotations

import importlib.util
import warnings

import pytest
import torch
from tiny_models import tiny_wan, wan_vae

from fvae_nnunet.vae.wan import fast_decoder as wan_fast_decoder
from fvae_nnunet.vae.wan import vae as wan_vae_module
from fvae_nnunet.vae.wan.fast_decoder import FastDecoder, can_decode_fast, fast_decoder

CPU, CUDA = torch.device("cpu"), torch.device("cuda")

needs_fastvae = pytest.mark.skipif(
    importlib.util.find_spec("fastvae") is None, reason="fastvae is not installed (pip install '.[fast]')"
)


def own_and_fast(residual, dtype=torch.float32):
    model = tiny_wan(residual=residual)
    vae = wan_vae(model, "wan2.2" if residual else "wan2.1")
    return vae, FastDecoder(model.state_dict(), model.config, CPU, dtype)


@pytest.mark.slow
@needs_fastvae
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("parts", [(6,), (1, 5), (1, 1, 2, 2), (3, 3)])
def test_values_are_those_of_our_own_decoder_in_any_chunks(residual, parts):
    vae, fast = own_and_fast(residual)
    latent = torch.randn(2, vae.spec.latent_channels, 6, 4, 3, generator=torch.Generator().manual_seed(3))
    expected = vae.decode(latent)
    before, volumes = None, []
    with torch.no_grad():
        for part in latent.split(parts, dim=2):
            volume, before = fast(part, before)
            volumes.append(volume)
    volume = torch.cat(volumes, dim=2)
    assert volume.dtype == torch.float32 and volume.shape == expected.shape
    assert (volume - expected).abs().max() < 1e-5  # float32 rounding


@needs_fastvae
def test_a_failed_chunk_can_be_decoded_again():
    vae, fast = own_and_fast(residual=False)
    latent = torch.randn(1, vae.spec.latent_channels, 3, 4, 4, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        _, before = fast(latent[:, :, :1], None)
        once, _ = fast(latent[:, :, 1:], before)
        again, _ = fast(latent[:, :, 1:], before)
    assert torch.equal(once, again)


@needs_fastvae
def test_a_vae_decodes_windows_and_streams_by_it_but_compiles_its_own(monkeypatch):
    vae, fast = own_and_fast(residual=False)
    volume = torch.rand(1, 1, 9, 16, 16, generator=torch.Generator().manual_seed(5)) - 0.5
    expected = vae.decode(vae.encode(volume))
    called = []

    def counted(latent, before):
        called.append(latent.shape[2])
        return fast(latent, before)

    vae._fast_decoder = counted
    assert (vae.decode(vae.encode(volume)) - expected).abs().max() < 1e-5
    assert sum(called) == 3
    stream = vae.open_stream()
    streamed = torch.cat([stream.reconstruct(part) for part in volume.split([5, 4], dim=2)], dim=2)
    assert (streamed - expected).abs().max() < 1e-5
    assert sum(called) == 6
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    vae.decode(vae.encode(volume))
    assert sum(called) == 6


@needs_fastvae
def test_difference_tells_rounding_from_other_values():
    vae, fast = own_and_fast(residual=False)
    own, channels = vae._network.decode, vae.spec.latent_channels
    with torch.no_grad():
        assert wan_fast_decoder._difference(fast, own, channels, CPU, torch.float32) < 1e-5

        def wrong(latent, before):
            volume, after = fast(latent, before)
            return volume.flip(2), after

        assert wan_fast_decoder._difference(wrong, own, channels, CPU, torch.float32) > 0.5


@pytest.mark.parametrize(
    ("error", "warning"),
    [(0.001, None), (0.3, "its values differ"), (RuntimeError("no kernel image"), "RuntimeError: no kernel image")],
)
def test_it_is_used_on_cuda_where_it_gives_our_values(error, warning, monkeypatch):
    def difference(*arguments):
        if isinstance(error, Exception):
            raise error
        return error

    made = object()
    monkeypatch.setattr(wan_fast_decoder, "find_spec", lambda package: package)
    monkeypatch.setattr(wan_fast_decoder, "FastDecoder", lambda *arguments: made)
    monkeypatch.setattr(wan_fast_decoder, "_difference", difference)
    state, own = {"post_quant_conv.weight": torch.zeros(4, 4, 1, 1, 1)}, object()
    options = {"name": "wan2.1", "dtype": torch.bfloat16}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        chosen = fast_decoder(own, state, {}, device=CUDA, **options)
    assert chosen is (made if warning is None else None)
    assert [warning in str(one.message) for one in warned] == ([] if warning is None else [True])


def test_it_is_for_cuda_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(wan_fast_decoder, "find_spec", lambda package: package)
    assert can_decode_fast(CUDA) and not can_decode_fast(CPU)
    monkeypatch.setattr(wan_fast_decoder, "find_spec", lambda package: None)
    assert not can_decode_fast(CUDA)


def test_it_is_made_when_it_is_first_needed(monkeypatch):
    made = []

    def make(own, *_, **__):
        made.append(own)
        return own

    monkeypatch.setattr(wan_vae_module, "can_decode_fast", lambda device: True)
    monkeypatch.setattr(wan_vae_module, "fast_decoder", make)
    vae = wan_vae(tiny_wan())
    latent = vae.encode(torch.zeros(1, 1, 5, 16, 16))
    with monkeypatch.context() as compiling:
        compiling.setattr(torch.compiler, "is_compiling", lambda: True)
        vae.decode(latent)
    assert not made
    vae.decode(latent)
    assert vae.kernels == "fastvae" and len(made) == 1
