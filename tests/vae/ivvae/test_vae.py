"""IV-VAE: values of its layers and of the whole, the one pass over a volume, and what is refused.

With FVAE_IVVAE_CODE naming a checkout of github.com/ali-vilab/iv-vae (needs einops), the values are compared with the
authors' code.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ivvae_for_tests import tiny_state
from torch import nn

from fvae_nnunet.errors import UserError
from fvae_nnunet.vae.ivvae import network as ivvae_network
from fvae_nnunet.vae.ivvae import vae as ivvae
from fvae_nnunet.vae.ivvae.layers import Attention, Downsample, GroupCausalConv, NormSiLU, Past, Upsample
from fvae_nnunet.vae.ivvae.network import IVVAENetwork
from fvae_nnunet.vae.ivvae.vae import IVVAE, load_ivvae
from fvae_nnunet.vae.wanted import Wanted

CODE = os.environ.get("FVAE_IVVAE_CODE")
needs_code = pytest.mark.skipif(not CODE, reason="FVAE_IVVAE_CODE names no checkout of github.com/ali-vilab/iv-vae")

# What ivvae_z16_dim96.pth holds, by layer, as (channels in, channels out) of each convolution
FULL_SIZE = """
encoder.conv1            groups 3 96
encoder.downsamples.0    block 96 96
encoder.downsamples.1    block 96 96
encoder.downsamples.2    resampling 96 96
encoder.downsamples.3    block 96 192
encoder.downsamples.4    block 192 192
encoder.downsamples.5    resampling 192 192 2
encoder.downsamples.6    block 192 384
encoder.downsamples.7    block 384 384
encoder.downsamples.8    resampling 384 384 2
encoder.downsamples.9    attention 384
encoder.downsamples.10   plane-block 384
encoder.downsamples.11   attention 384
encoder.downsamples.12   plane-block 384
encoder.downsamples.13   attention 384
encoder.middle.0         plane-block 384
encoder.middle.1         attention 384
encoder.middle.2         plane-block 384
encoder.head.0           norm 768
encoder.head.2.PAC_0     plane 768 32 1
encoder.head.2.PAC_1     plane 768 32 3
encoder.head.2.PAC_3     plane 768 32 3
encoder.head.2.PAC_6     plane 768 32 3
encoder.head.2.PAC_9     plane 768 32 3
encoder.head.2.PAC_12    plane 768 32 3
encoder.head.2.PAC_conv  plane 192 32 1
conv1                    pointwise 32 16
conv2                    pointwise 16 8
decoder.conv1            plane 16 768 3
decoder.middle.0         plane-block 384
decoder.middle.1         attention 384
decoder.middle.2         plane-block 384
decoder.upsamples.0      plane-block 384
decoder.upsamples.1      attention 384
decoder.upsamples.2      plane-block 384
decoder.upsamples.3      attention 384
decoder.upsamples.4      plane-block 384
decoder.upsamples.5      attention 384
decoder.upsamples.6      resampling 384 192 1
decoder.upsamples.7      block 192 384
decoder.upsamples.8      block 384 384
decoder.upsamples.9      block 384 384
decoder.upsamples.10     resampling 384 192 1
decoder.upsamples.11     block 192 192
decoder.upsamples.12     block 192 192
decoder.upsamples.13     block 192 192
decoder.upsamples.14     resampling 192 96
decoder.upsamples.15     block 96 96
decoder.upsamples.16     block 96 96
decoder.upsamples.17     block 96 96
decoder.head.0           norm 192
decoder.head.2           groups 192 3
"""

# From the authors' code with the weights and the volume of ``smooth``: latent[0, :, 1, 1, 2] and volume[0, 0, :, 5, 9]
GOLDEN_LATENT = [0.331831, 0.154156, -0.169809, -0.266693]
GOLDEN_SLICES = [0.677864, 0.291698, 0.664372, 0.795420, 0.499371, 0.441922, 0.470296, 0.579500, 0.253677]


def sizes_of(line: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and sizes of the parameters of a line of ``FULL_SIZE``."""
    place, kind, *numbers = line.split()
    first, *others = (int(number) for number in numbers)

    def conv(name: str, channels_in: int, channels: int, *kernel: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{place}.{name}.weight", (channels, channels_in, *kernel)
        yield f"{place}.{name}.bias", (channels,)

    if kind == "norm":
        yield f"{place}.gamma", (first, 1, 1, 1)
    elif kind == "plane":
        yield from conv("conv", first, others[0], others[1], others[1])
    elif kind in ("groups", "pointwise"):
        kernel = 3 if kind == "groups" else 1
        yield from conv("conv_2d", first, others[0], kernel, kernel)
        yield from conv("conv_3d", first, others[0], kernel, kernel, kernel)
    elif kind == "resampling":
        yield from conv("resample_2d.1", first, others[0], 3, 3)
        yield from conv("resample_3d.1", first, others[0], 3, 3)
        if len(others) == 2:
            yield from conv("time_conv", first, first if others[1] == 2 else 2 * first, others[1], 1, 1)
    elif kind == "attention":
        for branch in ("Attention_2d", "Attention_3d"):
            yield f"{place}.{branch}.norm.gamma", (first, 1, 1)
            yield from conv(f"{branch}.to_qkv", first, 3 * first, 1, 1)
            yield from conv(f"{branch}.proj", first, first, 1, 1)
    elif kind == "plane-block":
        for layer in ("0", "3"):
            yield f"{place}.residual.{layer}.gamma", (2 * first, 1, 1, 1)
        for layer in ("2", "6"):
            yield from conv(f"residual.{layer}.conv", 2 * first, 2 * first, 3, 3)
    else:
        assert kind == "block"
        for layer, width in (("0", first), ("3", others[0])):
            yield f"{place}.residual.{layer}.gamma", (2 * width, 1, 1, 1)
        for layer, width in (("2", first), ("6", others[0])):
            yield from sizes_of(f"{place}.residual.{layer} groups {2 * width} {others[0]}")
        if first != others[0]:
            yield from sizes_of(f"{place}.shortcut pointwise {2 * first} {others[0]}")


def tiny_network(seed: int = 0, *, dim: int = 4, latent_channels: int = 4) -> IVVAENetwork:
    with torch.device("meta"):
        network = IVVAENetwork(dim, latent_channels)
    network.load_state_dict(tiny_state(seed, dim=dim, latent_channels=latent_channels), assign=True)
    return network.eval().requires_grad_(False)


def tiny_vae(seed: int = 0, **options: Any) -> IVVAE:
    return IVVAE(tiny_network(seed), source="test", **options)


def volume_of(slices: int, *, batch: int = 1, channels: int = 1, seed: int = 5) -> torch.Tensor:
    size = (batch, channels, slices, 16, 24)
    return torch.rand(size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def smooth() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Weights and a volume (1, 3, 9, 16, 24) by a formula, the same with every version of torch."""
    state = {}
    for index, (key, value) in enumerate(sorted(tiny_state().items())):
        waves = torch.sin(0.7 * torch.arange(value.numel(), dtype=torch.float64) ** 1.5 + index)
        scale = 1.5 / value.shape[1:].numel() ** 0.5 if key.endswith("weight") else 0.2
        state[key] = (key.endswith("gamma") + scale * waves).view(value.shape).float()
    places = torch.arange(3 * 9 * 16 * 24, dtype=torch.float64)
    return state, torch.sin(0.37 * places**1.1).view(1, 3, 9, 16, 24).float()


def close(result: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Equal but for the order of float32 sums, relative to the largest value."""
    torch.testing.assert_close(result, expected, rtol=0, atol=tolerance * expected.abs().max().item())


def slices_first(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2)


def each_slice(x: torch.Tensor, function: Any) -> torch.Tensor:
    """``function`` of the images of (B, C, D, H, W)."""
    return torch.stack([function(image) for image in x.unbind(2)], dim=2)


@pytest.fixture(scope="module")
def vae() -> IVVAE:
    return tiny_vae()


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_full_architecture_has_the_published_names_and_sizes() -> None:
    with torch.device("meta"):
        network = IVVAENetwork(96, 16)
    expected = dict(pair for line in FULL_SIZE.strip().splitlines() for pair in sizes_of(line))
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == expected
    assert sum(value.numel() for value in network.parameters()) == 241_854_742


@pytest.mark.parametrize("group", [2, 4])
def test_convolution_sees_its_group_and_the_last_slice_of_the_one_before(group: int) -> None:
    torch.manual_seed(0)
    layer = GroupCausalConv(6, 5, group)
    x = torch.randn(2, 6, 1 + 3 * group, 7, 9)
    expected = []
    before = x[:, :, :1]
    for part in (x[:, :, :1], *x[:, :, 1:].split(group, dim=2)):
        framed = torch.cat([before, part, torch.zeros_like(before)], dim=2)
        plane = each_slice(part, layer.conv_2d)
        expected.append(torch.cat([plane, F.conv3d(framed, layer.conv_3d.weight, layer.conv_3d.bias, 1, (0, 1, 1))], 1))
        before = part[:, :, -1:]
    result = layer(slices_first(x), Past())
    close(slices_first(result), torch.cat(expected, dim=2))


def test_norm_is_over_the_channels_of_each_branch() -> None:
    x, norm = torch.randn(2, 3, 10, 4, 4), NormSiLU(5)
    norm.gamma.copy_(torch.randn(10, 1, 1, 1))
    x[0, 1, :5, 2, 3] = 0  # nothing to divide by
    gamma = norm.gamma.flatten().view(1, 1, 10, 1, 1)
    halves = [half / half.square().mean(2, keepdim=True).sqrt().clamp_min(1e-20) for half in x.split(5, dim=2)]
    close(norm(x), F.silu(torch.cat(halves, dim=2) * gamma))
    assert torch.equal(norm(x.half()).isfinite().all(), torch.tensor(True))


def test_attention_is_within_a_slice_and_a_branch() -> None:
    torch.manual_seed(0)
    layer, x = Attention(6), torch.randn(2, 12, 3, 3, 5)

    def attended(branch: Any, image: torch.Tensor) -> torch.Tensor:
        normed = F.normalize(image, dim=1) * 6**0.5 * branch.norm["gamma"]
        queries, keys, values = branch.to_qkv(normed).flatten(2).chunk(3, dim=1)
        weights = (queries.transpose(1, 2) @ keys / 6**0.5).softmax(-1)
        return image + branch.proj((values @ weights.transpose(1, 2)).view(image.shape))

    def both(image: torch.Tensor) -> torch.Tensor:
        plane, space = image.chunk(2, dim=1)
        return torch.cat([attended(layer.Attention_2d, plane), attended(layer.Attention_3d, space)], dim=1)

    close(slices_first(layer(slices_first(x), Past())), each_slice(x, both))


@pytest.mark.parametrize("leading", [0, 1])
def test_downsampling_keeps_one_slice_of_two_in_one_branch_and_mixes_them_in_the_other(leading: int) -> None:
    torch.manual_seed(0)
    layer, x = Downsample(3, slices=True), torch.randn(2, 6, leading + 4, 8, 12)
    assert layer.time_conv is not None

    def halved(conv: Any, image: torch.Tensor) -> torch.Tensor:
        return conv(F.pad(image, (0, 1, 0, 1)))

    plane = each_slice(x[:, :3], lambda image: halved(layer.resample_2d["1"], image))
    space = each_slice(x[:, 3:], lambda image: halved(layer.resample_3d["1"], image))
    kept = [0, 1, 3] if leading else [0, 2]
    mixed = torch.cat([space[:, :, :leading], layer.time_conv(space[:, :, leading:])], dim=2)
    expected = torch.cat([plane[:, :, kept], mixed], dim=1)
    close(slices_first(layer(slices_first(x), Past(leading=leading))), expected)


@pytest.mark.parametrize("leading", [0, 1])
def test_upsampling_repeats_slices_in_one_branch_and_makes_new_ones_in_the_other(leading: int) -> None:
    torch.manual_seed(0)
    layer, x = Upsample(4, slices=True), torch.randn(2, 8, leading + 2, 5, 3)
    assert layer.time_conv is not None
    body = x[:, :, leading:]
    two = layer.time_conv(body[:, 4:])
    space = torch.stack([two[:, :4], two[:, 4:]], dim=3).flatten(2, 3)
    doubled = torch.cat([x[:, :, :leading], torch.cat([body[:, :4].repeat_interleave(2, dim=2), space], 1)], dim=2)

    def enlarged(image: torch.Tensor) -> torch.Tensor:
        large = F.interpolate(image, scale_factor=2, mode="nearest-exact")
        return torch.cat([layer.resample_2d["1"](large[:, :4]), layer.resample_3d["1"](large[:, 4:])], dim=1)

    close(slices_first(layer(slices_first(x), Past(leading=leading))), each_slice(doubled, enlarged))


def test_is_the_authors_network() -> None:
    state, volume = smooth()
    network = tiny_network()
    network.load_state_dict(state, assign=True)
    mean, _ = network.encode(volume)
    close(mean[0, :, 1, 1, 2], torch.tensor(GOLDEN_LATENT), 1e-4)
    close(network.decode(mean)[0, 0, :, 5, 9], torch.tensor(GOLDEN_SLICES), 1e-4)


def test_feeds_three_equal_channels_and_returns_their_mean(vae: IVVAE) -> None:
    volume = volume_of(9)
    network = tiny_network()
    latent = vae.encode(volume)
    assert torch.equal(latent, network.encode(volume.repeat(1, 3, 1, 1, 1))[0])
    torch.testing.assert_close(vae.decode(latent)[:, 0], network.decode(latent).mean(1))
    spec = vae.spec
    assert (spec.name, spec.inplane_stride, spec.latent_channels) == ("iv-vae", 8, 4)
    assert (spec.slice_stride, spec.slice_offset, spec.window_slices, spec.causal) == (4, 1, 65, True)


def test_draws_mean_plus_deviation_times_noise(vae: IVVAE) -> None:
    volume = volume_of(5)
    mean, log_variance = tiny_network().encode(volume.repeat(1, 3, 1, 1, 1))
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    drawn = vae.encode(volume, torch.Generator().manual_seed(3))
    torch.testing.assert_close(drawn, mean + torch.exp(0.5 * log_variance) * noise)


def test_no_latent_or_slice_depends_on_later_groups(vae: IVVAE) -> None:
    volume = volume_of(13)
    latent = vae.encode(volume)
    decoded = vae.decode(latent)
    changed = volume.clone()
    changed[:, :, 8] *= -1  # the last slice of latent 2
    latent_changed = vae.encode(changed)
    decoded_changed = vae.decode(latent_changed)
    close(latent_changed[:, :, :2], latent[:, :, :2])
    close(decoded_changed[:, :, :5], decoded[:, :, :5])
    for slices in (slice(5, 9), slice(9, 13)):  # its own group, to the first slice, and the next
        assert ((decoded_changed - decoded)[:, :, slices].abs().amax((0, 1, 3, 4)) > 1e-3).all()


@pytest.mark.parametrize("slices", [1, 5, 17])
def test_size_of_chunks_does_not_change_the_values(slices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network, volume = tiny_network(), volume_of(slices, batch=2, channels=3)
    mean, log_variance = network.encode(volume)
    decoded = network.decode(mean)
    for voxels in (1, 2 * 16 * 24 * 12):
        monkeypatch.setattr(ivvae_network, "CHUNK_VOXELS", voxels)
        chunked = network.encode(volume)
        close(chunked[0], mean)
        close(chunked[1], log_variance)
        close(network.decode(mean), decoded)


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [(1, 4, 4, 4, 4), (5, 12), (13, 4), (1, 16), (17,)])
def test_stream_gives_the_values_of_the_whole_volume(vae: IVVAE, pieces: tuple[int, ...]) -> None:
    volume = volume_of(17, batch=2)
    whole = vae.decode(vae.encode(volume))
    stream, other = vae.open_stream(), vae.open_stream()
    assert stream is not None
    assert other is not None
    results = []
    for piece in volume.split(pieces, dim=2):
        results.append(stream.reconstruct(piece))
        other.reconstruct(-piece)  # does not disturb the first
    assert results[0].dtype == torch.float32
    close(torch.cat(results, dim=2), whole)


def test_stream_draws_from_the_posterior(vae: IVVAE) -> None:
    volume = volume_of(5)
    first, again, mode = (
        vae.open_stream().reconstruct(volume, seed and torch.Generator().manual_seed(seed)) for seed in (1, 1, None)
    )
    assert torch.equal(first, again)
    close(first, vae.decode(vae.encode(volume, torch.Generator().manual_seed(1))))
    assert not torch.allclose(first, mode, atol=1e-2)


def test_stream_keeps_one_slice_for_each_convolution(vae: IVVAE) -> None:
    stream: Any = vae.open_stream()
    stream.reconstruct(volume_of(5))
    sizes = []
    for _ in range(3):
        stream.reconstruct(volume_of(8))
        held = [*stream._encoder_kept.held.values(), *stream._decoder_kept.held.values()]
        assert all(value.untyped_storage().nbytes() == value.nbytes for value in held)
        sizes.append(sum(value.nbytes for value in held))
    assert len(held) == sum(isinstance(module, GroupCausalConv) for module in vae._network.modules())
    assert sizes[0] == sizes[1] == sizes[2]


def test_stream_refuses_other_numbers_of_slices(vae: IVVAE) -> None:
    stream = vae.open_stream()
    assert stream is not None
    with pytest.raises(ValueError, match=r"iv-vae: 4 slices; needs 1 \+ k \* 4 slices here"):
        stream.reconstruct(volume_of(4))
    stream.reconstruct(volume_of(1))
    with pytest.raises(ValueError, match=r"iv-vae: 5 slices; needs 0 \+ k \* 4 slices here"):
        stream.reconstruct(volume_of(5))
    with pytest.raises(ValueError, match="at least one slice"):
        stream.reconstruct(volume_of(4)[:, :, :0])
    with pytest.raises(ValueError, match="multiples of 8"):
        stream.reconstruct(torch.zeros(1, 1, 4, 16, 20))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.06), (torch.float16, 0.01)])
def test_half_precision_is_close(vae: IVVAE, dtype: torch.dtype, tolerance: float) -> None:
    half, volume = tiny_vae(dtype=dtype), volume_of(9)
    latent = half.encode(volume)
    assert latent.dtype == dtype
    assert half.weights_sha256 == vae.weights_sha256
    whole = half.decode(latent)
    expected = vae.decode(vae.encode(volume))
    assert (whole - expected).norm() < tolerance * expected.norm()
    stream = half.open_stream()
    assert stream is not None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        streamed = torch.cat([stream.reconstruct(piece) for piece in volume.split((1, 8), dim=2)], dim=2)
    assert (streamed - expected).norm() < tolerance * expected.norm()


@pytest.mark.slow
def test_file_of_weights_is_the_vae(vae: IVVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(tiny_state(), tmp_path / "ivvae_z4_dim4.pth")
    loaded, volume = load_ivvae(Wanted("iv-vae", weights=tmp_path / "ivvae_z4_dim4.pth")), volume_of(5)
    assert torch.equal(loaded.encode(volume), vae.encode(volume))
    assert (loaded.spec, loaded.weights_sha256) == (vae.spec, vae.weights_sha256)
    assert loaded.weights_source == str(tmp_path / "ivvae_z4_dim4.pth")
    assert loaded.latent_mean is loaded.latent_std is None  # nobody published theirs

    torch.save({"state_dict": tiny_state(dim=6, latent_channels=2)}, tmp_path / "nested.pth")
    assert load_ivvae(Wanted("iv-vae", weights=tmp_path / "nested.pth")).spec.latent_channels == 2

    monkeypatch.setitem(ivvae._SHIFT_AND_SCALE, (4, 4), (-0.5, 4.0))
    published = tiny_vae()
    assert published.latent_mean is not None
    assert published.latent_std is not None
    assert published.latent_mean.tolist() == [-0.5] * 4
    assert published.latent_std.tolist() == [0.25] * 4


def test_weights_must_be_given() -> None:
    with pytest.raises(UserError, match=r"iv-vae: give its .pth file as `weights`; the README of github.com/ali-vil"):
        load_ivvae(Wanted("iv-vae", weights=None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.conv1.conv_2d.weight": None}, "is not an IV-VAE: encoder.conv1.conv_2d.weight is missing"),
        ({"conv2.conv_2d.weight": None}, "is not an IV-VAE: conv2.conv_2d.weight is missing"),
        ({"decoder.head.2.conv_3d.bias": None}, "does not fit IV-VAE: decoder.head.2.conv_3d.bias is missing"),
        (
            {"decoder.upsamples.6.time_conv.bias": torch.zeros(3)},
            r"does not fit IV-VAE: decoder.upsamples.6.time_conv.bias has size \(3,\), expected \(32,\)",
        ),
        ({"loss.logvar": torch.zeros(1)}, "does not fit IV-VAE: loss.logvar is not part of the model"),
    ],
)
def test_other_weights_are_refused(change: dict[str, torch.Tensor | None], message: str, tmp_path: Path) -> None:
    state = {key: value for key, value in (tiny_state() | change).items() if value is not None}
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(UserError, match=f"iv-vae: .*other.pth {message}"):
        load_ivvae(Wanted("iv-vae", weights=tmp_path / "other.pth"))


# The authors' code


@pytest.fixture(scope="module")
def upstream() -> Any:
    spec = importlib.util.spec_from_file_location("ivvae_upstream", Path(CODE or "") / "models" / "vae3d.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def upstream_model(upstream: Any, network: IVVAENetwork, *, shift: float = 0, scale: float = 1) -> nn.Module:
    """The authors' model with the weights of ``network``; ``encode`` returns the mean and leaves ``log_variance``."""
    with torch.device("meta"):
        model = upstream.VAutoencoder3d(
            dim=network.dim,
            z_dim=network.latent_channels,
            temperal_downsample=[False, True, True],
            scale_factor=scale,
            shift_factor=shift,
        )
    model.load_state_dict(network.state_dict(), assign=True)

    def keep(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        model.log_variance = log_variance
        return mean

    model.sample = keep
    return model.eval()


@needs_code
@pytest.mark.parametrize("slices", [1, 5, 9, 17, 33])
@pytest.mark.parametrize(("dim", "latent_channels"), [(4, 4), (6, 8)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 5e-5)])
def test_equals_the_authors_code(
    dtype: torch.dtype, tolerance: float, dim: int, latent_channels: int, slices: int, upstream: Any
) -> None:
    network = tiny_network(slices, dim=dim, latent_channels=latent_channels).to(dtype)
    model: Any = upstream_model(upstream, network)
    volume = volume_of(slices, batch=2, channels=3).to(dtype)
    mean, log_variance = network.encode(volume)
    expected = model.encode(volume)
    close(mean, expected, tolerance)
    close(log_variance, model.log_variance, tolerance)
    close(network.decode(mean), model.decode(expected), tolerance)


@needs_code
def test_golden_values_are_the_authors(upstream: Any) -> None:
    state, volume = smooth()
    network = tiny_network()
    network.load_state_dict(state, assign=True)
    model: Any = upstream_model(upstream, network)
    mean = model.encode(volume)
    close(mean[0, :, 1, 1, 2], torch.tensor(GOLDEN_LATENT), 1e-4)
    close(model.decode(mean)[0, 0, :, 5, 9], torch.tensor(GOLDEN_SLICES), 1e-4)


@needs_code
@pytest.mark.slow
def test_equals_the_authors_code_at_full_size(upstream: Any) -> None:
    network, volume = tiny_network(dim=96, latent_channels=16), volume_of(5)
    shift, scale = ivvae._SHIFT_AND_SCALE[16, 96]
    model: Any = upstream_model(upstream, network, shift=shift, scale=scale)
    vae = IVVAE(network, source="test")
    latent, expected = vae.encode(volume), model.encode(volume.repeat(1, 3, 1, 1, 1))
    assert vae.latent_mean is not None
    assert vae.latent_std is not None
    mean, std = (values.view(1, -1, 1, 1, 1) for values in (vae.latent_mean, vae.latent_std))
    close((latent - mean) / std, expected)
    close(vae.decode(latent), model.decode(expected).mean(1, keepdim=True))
