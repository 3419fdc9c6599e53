"""What every VAE must do, whatever its architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from vaes_for_tests import MAKERS

from fvae_nnunet.vae import FrozenVAE

DETERMINISTIC = {"taesd", "taef2", "identity"}  # no posterior


@pytest.fixture(scope="module", params=list(MAKERS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def vae(kind: str, tmp_path_factory: pytest.TempPathFactory) -> FrozenVAE:
    return MAKERS[kind](tmp_path_factory.mktemp(kind))


def volumes(vae: FrozenVAE, count: int = 1, *, slices: int = 5, seed: int = 0) -> torch.Tensor:
    """Random volumes (count, 1, D, H, W) in [-1, 1], D at least ``slices``, H and W unequal."""
    spec = vae.spec
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 1, spec.padded_slices(slices), 2 * spec.inplane_stride, 3 * spec.inplane_stride)
    return torch.rand(shape, generator=generator) * 2 - 1


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    """Equal but for the order of float32 sums, which may depend on the batch."""
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_latent_has_the_announced_shape_and_decodes_to_the_volumes_shape(vae: FrozenVAE, kind: str) -> None:
    spec, volume = vae.spec, volumes(vae, 2)
    latent = vae.encode(volume)
    if kind != "identity":
        latent_slices = (volume.shape[2] - spec.slice_offset) // spec.slice_stride + spec.slice_offset
        assert latent.shape == (2, spec.latent_channels, latent_slices, 2, 3)
    assert (latent.dtype, latent.device) == (vae.dtype, vae.device)
    decoded = vae.decode(latent)
    assert decoded.shape == volume.shape
    assert decoded.dtype == torch.float32
    assert decoded.std() > 1e-3  # the volume decides; random weights may shrink it


def test_one_slice_or_the_smallest_window_is_taken(vae: FrozenVAE) -> None:
    volume = volumes(vae, slices=1)
    assert volume.shape[2] == (vae.spec.slice_offset or vae.spec.slice_stride)
    assert vae.decode(vae.encode(volume)).shape == volume.shape


def test_repeats_itself_without_a_generator(vae: FrozenVAE) -> None:
    volume = volumes(vae)
    latent = vae.encode(volume)
    assert torch.equal(latent, vae.encode(volume))
    assert torch.equal(vae.decode(latent), vae.decode(latent))


def test_generator_draws_repeatably_from_the_posterior(vae: FrozenVAE, kind: str) -> None:
    volume = volumes(vae)
    mode, first, again, other = (
        vae.encode(volume, generator=seed if seed is None else torch.Generator().manual_seed(seed))
        for seed in (None, 1, 1, 2)
    )
    assert torch.equal(first, again)
    drawn = kind not in DETERMINISTIC
    assert torch.equal(first, mode) is not drawn
    assert torch.equal(first, other) is not drawn


def test_leaves_no_gradients_and_no_inference_tensors(vae: FrozenVAE) -> None:
    volume = volumes(vae).requires_grad_()
    decoded = vae.decode(vae.encode(volume))
    assert not decoded.requires_grad
    weight = torch.ones((), requires_grad=True)  # a training step on the result must work
    (decoded * weight).sum().backward()
    torch.testing.assert_close(weight.grad, decoded.sum())


def test_volumes_of_a_batch_do_not_see_each_other(vae: FrozenVAE) -> None:
    batch = volumes(vae, 2)
    latent = vae.encode(batch)
    decoded = vae.decode(latent)
    for index in range(2):
        alone = vae.encode(batch[index : index + 1])
        same(latent[index : index + 1], alone)
        same(decoded[index : index + 1], vae.decode(alone))


def test_keeps_no_state_between_calls(vae: FrozenVAE) -> None:
    first, second = volumes(vae, seed=1), volumes(vae, slices=9, seed=2)
    latent = vae.encode(first)
    decoded = vae.decode(latent)
    vae.decode(vae.encode(second))
    assert torch.equal(vae.encode(first), latent)
    assert torch.equal(vae.decode(latent), decoded)


def test_leaves_its_input_alone(vae: FrozenVAE) -> None:
    volume = volumes(vae)
    copy = volume.clone()
    latent = vae.encode(volume)
    latent_copy = latent.clone()
    vae.decode(latent)
    assert torch.equal(volume, copy)
    assert torch.equal(latent, latent_copy)


def test_slices_see_each_other_only_in_video_vaes(vae: FrozenVAE, kind: str) -> None:
    volume = volumes(vae)
    changed = volume.clone()
    changed[:, :, 1] *= -1
    latent, latent_changed = vae.encode(volume), vae.encode(changed)
    if vae.spec.independent_slices or vae.open_stream() is not None:
        same(latent[:, :, 0], latent_changed[:, :, 0])  # slice 0 comes before the change
    if vae.spec.independent_slices:
        same(latent[:, :, 2:], latent_changed[:, :, 2:])


def test_is_not_touched_by_autocast(vae: FrozenVAE) -> None:
    volume = volumes(vae)
    latent = vae.encode(volume)
    decoded = vae.decode(latent)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(vae.encode(volume), latent)
        assert torch.equal(vae.decode(latent), decoded)


@pytest.mark.parametrize("shape", [(1, 5, 16, 16), (1, 3, 5, 16, 16)])
def test_refuses_what_is_no_grey_volume(vae: FrozenVAE, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(B, 1, D, H, W\)"):
        vae.encode(torch.zeros(shape))


def test_refuses_sizes_that_it_would_cut(vae: FrozenVAE) -> None:
    stride = vae.spec.inplane_stride
    with pytest.raises(ValueError, match=f"multiples of {stride}"):
        vae.encode(torch.zeros(1, 1, vae.spec.padded_slices(1), stride, stride + 1))
    if not vae.spec.independent_slices:
        slices, offset = vae.spec.padded_slices(1) + 1, vae.spec.slice_offset
        with pytest.raises(ValueError, match=rf"{slices} slices; needs {offset} \+ k \* {vae.spec.slice_stride}"):
            vae.encode(torch.zeros(1, 1, slices, stride, stride))


def test_refuses_a_latent_of_other_channels(vae: FrozenVAE, kind: str) -> None:
    if kind == "identity":
        pytest.skip("the identity has no latent of its own")
    with pytest.raises(ValueError, match=f"expected \\(B, {vae.spec.latent_channels}, d, h, w\\)"):
        vae.decode(torch.zeros(1, vae.spec.latent_channels + 1, 1, 2, 2))


@pytest.mark.slow
def test_bfloat16_is_close_and_has_the_digest_of_the_source(vae: FrozenVAE, kind: str, tmp_path: Path) -> None:
    half = MAKERS[kind](tmp_path, dtype=torch.bfloat16)
    volume = volumes(vae)
    assert half.dtype == torch.bfloat16
    assert half.weights_sha256 == vae.weights_sha256
    latent = half.encode(volume)
    assert latent.dtype == torch.bfloat16
    decoded, exact = half.decode(latent), vae.decode(vae.encode(volume))
    assert decoded.dtype == torch.float32
    # bfloat16 keeps 8 bits; the rounding of a few dozen layers stays within a few per cent of the signal
    assert (decoded - exact).norm() < 0.1 * exact.norm()
