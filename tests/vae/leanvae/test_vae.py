"""LeanVAE: values against a plain reading of its definition and against the authors' code, and its checkpoints."""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from leanvae_for_tests import SMALL, random_state
from safetensors.torch import save_file

from fvae_nnunet.errors import UserError
from fvae_nnunet.vae.leanvae import layers as leanvae_layers
from fvae_nnunet.vae.leanvae.network import LeanVAENetwork, Sizes
from fvae_nnunet.vae.leanvae.vae import LeanVAE, load_leanvae
from fvae_nnunet.vae.wanted import Wanted

PUBLISHED = Sizes(
    low=128, high=384, latent_channels=4, separate_layers=2, fusion_layers=4, steps=2, step_layers=2, posterior=True
)

# Names as the authors' code makes them, with its sizes; in brackets: each of these characters or names
PUBLISHED_SHAPES = """
encoder.video_low_proj.1.weight                                  128 96
encoder.video_high_proj.1.weight                                 384 672
encoder.image_low_proj.1.weight                                  128 48
encoder.image_high_proj.1.weight                                 384 144
encoder.(video|image)_low_proj.1.bias                            128
encoder.(video|image)_high_proj.1.bias                           384
decoder.video_low_proj.0.weight                                  96 128
decoder.video_high_proj.0.weight                                 672 384
decoder.image_low_proj.0.weight                                  48 128
decoder.image_high_proj.0.weight                                 144 384
decoder.video_low_proj.0.bias                                    96
decoder.video_high_proj.0.bias                                   672
decoder.image_low_proj.0.bias                                    48
decoder.image_high_proj.0.bias                                   144
(encoder|decoder).low_layer.ffd_layer.(0|1).0.(weight|bias)      128
(encoder|decoder).low_layer.ffd_layer.(0|1).1.weight             682 128
(encoder|decoder).low_layer.ffd_layer.(0|1).4.weight             128 341
(encoder|decoder).low_layer.dconv_layer.(0|1).ds_conv.weight     128 1 3 3 3
(encoder|decoder).low_layer.dconv_layer.(0|1).ds_conv.bias       128
(encoder|decoder).high_layer.ffd_layer.(0|1).0.(weight|bias)     384
(encoder|decoder).high_layer.ffd_layer.(0|1).1.weight            2048 384
(encoder|decoder).high_layer.ffd_layer.(0|1).4.weight            384 1024
(encoder|decoder).high_layer.dconv_layer.(0|1).ds_conv.weight    384 1 3 3 3
(encoder|decoder).high_layer.dconv_layer.(0|1).ds_conv.bias      384
(encoder|decoder).fusion_layer.ffd_layer.(0|1|2|3).0.(weight|bias)               512
(encoder|decoder).fusion_layer.ffd_layer.(0|1|2|3).1.weight                      2730 512
(encoder|decoder).fusion_layer.ffd_layer.(0|1|2|3).4.weight                      512 1365
(encoder|decoder).fusion_layer.dconv_layer.(0|1|2|3).ds_conv.weight              512 1 3 3 3
(encoder|decoder).fusion_layer.dconv_layer.(0|1|2|3).ds_conv.bias                512
latent_bottleneck.(forward|backward)_l.(0|1).ffd_layer.(0|1).0.(weight|bias)     512
latent_bottleneck.(forward|backward)_l.(0|1).ffd_layer.(0|1).1.weight            2730 512
latent_bottleneck.(forward|backward)_l.(0|1).ffd_layer.(0|1).4.weight            512 1365
latent_bottleneck.(forward|backward)_l.(0|1).dconv_layer.(0|1).ds_conv.weight    512 1 3 3 3
latent_bottleneck.(forward|backward)_l.(0|1).dconv_layer.(0|1).ds_conv.bias      512
latent_bottleneck.weights.(0|1)
latent_bottleneck.threshold.(0|1)    1
latent_bottleneck.phi                4 512
latent_bottleneck.Q                  512 4
std_layer.weight                     4 512
std_layer.bias                       4
"""


def published_shapes() -> dict[str, tuple[int, ...]]:
    shapes = {}
    for line in PUBLISHED_SHAPES.strip().splitlines():
        pattern, *numbers = line.split()
        choices = [part.split("|") for part in re.split(r"[()]", pattern)]
        shapes |= {"".join(parts): tuple(map(int, numbers)) for parts in itertools.product(*choices)}
    return shapes


def volume_of(slices: int, *, batch: int = 1, seed: int = 1) -> torch.Tensor:
    shape = (batch, 1, slices, 16, 24)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def small_vae(**options: Any) -> LeanVAE:
    return LeanVAE(random_state(), source="test", **options)


class Plain:
    """The definition, step by step, for one volume of three colours (3, D, H, W) in [-0.5, 0.5]."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        self.state = state

    def encode(self, volume: torch.Tensor) -> torch.Tensor:
        """(latent_channels, d, h, w): the mean of the posterior."""
        tokens: dict[str, list[torch.Tensor]] = {"low": [], "high": []}
        for kind, part, slices in (("image", volume[:, :1], 1), ("video", volume[:, 1:], 2)):
            if not part.shape[1]:
                continue
            bands = self.analysis(part, kind)
            for name, held in (("low", bands[:3]), ("high", bands[3:])):
                channels, depth, height, width = held.shape
                blocks = held.view(channels, depth // slices, slices, height // 4, 4, width // 4, 4)
                features = blocks.permute(1, 3, 5, 0, 2, 4, 6).flatten(3)
                tokens[name].append(self.linear(features, f"encoder.{kind}_{name}_proj.1"))
        low, high = (
            self.layers(torch.cat(tokens[name]), f"encoder.{name}_layer", residual=True) for name in ("low", "high")
        )
        fused = self.layers(torch.cat([low, high], -1), "encoder.fusion_layer", residual=True)
        return (fused @ self.state["latent_bottleneck.phi"].T).permute(3, 0, 1, 2)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """(3, D, H, W), not clamped."""
        name, y = "latent_bottleneck", latent.permute(1, 2, 3, 0)
        phi, tokens = self.state[f"{name}.phi"], y @ self.state[f"{name}.Q"].T
        for step in range(SMALL.steps if f"{name}.weights.2" in self.state else PUBLISHED.steps):
            moved = tokens - self.state[f"{name}.weights.{step}"] * ((tokens @ phi.T - y) @ phi)
            change = self.layers(moved, f"{name}.forward_l.{step}", residual=False)
            change = F.softshrink(change, self.state[f"{name}.threshold.{step}"].item())
            tokens = moved + self.layers(change, f"{name}.backward_l.{step}", residual=False)
        tokens = self.layers(tokens, "decoder.fusion_layer", residual=True)
        width = self.state["decoder.low_layer.dconv_layer.0.ds_conv.bias"].numel()
        low = self.layers(tokens[..., :width], "decoder.low_layer", residual=True)
        high = self.layers(tokens[..., width:], "decoder.high_layer", residual=True)
        parts = []
        for kind, span, slices in (("image", slice(0, 1), 1), ("video", slice(1, None), 2)):
            if not len(low[span]):
                continue
            bands = []
            for band, features in (("low", low[span]), ("high", high[span])):
                blocks = self.linear(features, f"decoder.{kind}_{band}_proj.0").unflatten(-1, (-1, slices, 4, 4))
                depth, height, width_, channels = blocks.shape[:4]
                blocks = blocks.permute(3, 0, 4, 1, 5, 2, 6)
                bands.append(blocks.reshape(channels, depth * slices, height * 4, width_ * 4))
            parts.append(self.synthesis(torch.cat(bands), kind))
        return torch.cat(parts, dim=1)

    @staticmethod
    def analysis(x: torch.Tensor, kind: str) -> torch.Tensor:
        """Sums and differences of neighbours; the axis that is named first varies slowest in the bands."""
        bands = [x]
        for axis in (1, 2, 3) if kind == "video" else (3, 2):
            even, odd = (slice(start, None, 2) for start in (0, 1))
            where = (slice(None),) * axis
            bands = [sign * band[(*where, odd)] + band[(*where, even)] for band in bands for sign in (1, -1)]
        return torch.cat(bands)

    @staticmethod
    def synthesis(x: torch.Tensor, kind: str) -> torch.Tensor:
        """The inverse of ``analysis``."""
        bands = list(x.split(3))
        for axis in (3, 2, 1) if kind == "video" else (2, 3):
            pairs = zip(bands[::2], bands[1::2], strict=True)
            bands = [
                torch.stack([(low + high) / 2, (low - high) / 2], axis + 1).flatten(axis, axis + 1)
                for low, high in pairs
            ]
        return bands[0]

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def layers(self, x: torch.Tensor, name: str, *, residual: bool) -> torch.Tensor:
        for layer in itertools.count():
            convolution, feed_forward = f"{name}.dconv_layer.{layer}.ds_conv", f"{name}.ffd_layer.{layer}"
            if f"{convolution}.weight" not in self.state:
                return x
            weight, bias = self.state[f"{convolution}.weight"], self.state[f"{convolution}.bias"]
            padded = F.pad(x.permute(3, 0, 1, 2)[None], (1, 1, 1, 1, 2, 0))
            y = F.conv3d(padded, weight, bias, groups=len(weight))[0].permute(1, 2, 3, 0)
            x = x + y if residual else y
            norm, first, last = (self.state[f"{feed_forward}.{index}.weight"] for index in (0, 1, 4))
            hidden = F.layer_norm(x, norm.shape, norm, self.state[f"{feed_forward}.0.bias"]) @ first.T
            value, gate = hidden.chunk(2, -1)
            y = (value * F.gelu(gate)) @ last.T
            x = x + y if residual else y
        raise AssertionError


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Equal to ``tolerance`` of the largest value: float32 sums in another order."""
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize("slices", [1, 5, 13])
def test_is_its_definition(slices: int) -> None:
    plain, vae, volume = Plain(random_state()), small_vae(), volume_of(slices, batch=2)
    latent = vae.encode(volume)
    decoded = vae.decode(latent)
    for index in range(2):
        expected = plain.encode(volume[index].expand(3, -1, -1, -1) / 2)
        assert_close(latent[index], expected)
        colours = 2 * plain.decode(expected)
        assert_close(decoded[index], colours.clamp(-1, 1).mean(0, keepdim=True))


def test_each_colour_is_clamped_before_their_mean() -> None:
    state = {key: torch.zeros_like(value) for key, value in random_state().items()}
    bias = state["decoder.image_low_proj.0.bias"].view(3, 16)
    bias[0], bias[1] = 20.0, -0.4  # of sums of 4 pixels, of half the range: colours of 10, -0.2 and 0
    decoded = LeanVAE(state, source="test").decode(torch.zeros(1, 4, 1, 2, 3))
    torch.testing.assert_close(decoded, torch.full((1, 1, 1, 16, 24), (1 - 0.2 + 0) / 3))


def test_has_the_names_and_shapes_of_the_published_checkpoint() -> None:
    with torch.device("meta"):
        state = LeanVAENetwork(PUBLISHED).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == published_shapes()
    assert sum(value.numel() for value in state.values()) == 39_767_496  # the authors: 39.8M
    assert Sizes.of(state) == PUBLISHED


def test_announces_what_the_checkpoint_is() -> None:
    spec = small_vae().spec
    assert (spec.name, spec.inplane_stride, spec.slice_stride, spec.slice_offset) == ("leanvae", 8, 4, 1)
    assert (spec.latent_channels, spec.window_slices, spec.causal) == (4, 65, True)
    wider = Sizes(5, 18, 16, separate_layers=1, fusion_layers=1, steps=1, step_layers=1)
    assert LeanVAE(random_state(wider), source="test").spec.latent_channels == 16


def test_no_slice_sees_a_later_one() -> None:
    vae, volume = small_vae(), volume_of(13)
    changed = volume.clone()
    changed[:, :, 5:] *= -1
    latent, latent_changed = vae.encode(volume), vae.encode(changed)
    assert_close(latent_changed[:, :, :2], latent[:, :, :2], 1e-6)
    assert (latent_changed[:, :, 2] - latent[:, :, 2]).abs().max() > 0.1
    decoded = vae.decode(torch.cat([latent[:, :, :2], latent_changed[:, :, 2:]], dim=2))
    exact = vae.decode(latent)
    assert_close(decoded[:, :, :5], exact[:, :, :5], 1e-6)
    assert (decoded[:, :, 5:] - exact[:, :, 5:]).abs().max() > 0.01


@pytest.mark.parametrize("pieces", [(1, 4, 4, 16), (5, 12, 8), (25,)])
def test_a_stream_gives_the_slices_of_the_whole_volume(pieces: tuple[int, ...]) -> None:
    vae, volume = small_vae(), volume_of(25, batch=2)
    whole = vae.decode(vae.encode(volume))
    for _ in range(2):  # a second pass starts anew
        stream = vae.open_stream()
        assert_close(torch.cat([stream.reconstruct(piece) for piece in volume.split(pieces, dim=2)], dim=2), whole)


def test_a_stream_draws_from_the_posterior() -> None:
    vae, volume = small_vae(), volume_of(5)
    drawn, again, mode = (
        vae.open_stream().reconstruct(volume, seed if seed is None else torch.Generator().manual_seed(seed))
        for seed in (3, 3, None)
    )
    assert torch.equal(drawn, again)
    assert (drawn - mode).abs().max() > 0.01


def test_a_stream_refuses_pieces_that_do_not_fit() -> None:
    vae = small_vae()
    stream = vae.open_stream()
    with pytest.raises(ValueError, match="4 slices; needs 1 \\+ k \\* 4"):
        stream.reconstruct(volume_of(4))
    stream.reconstruct(volume_of(5))
    with pytest.raises(ValueError, match="5 slices; needs 0 \\+ k \\* 4"):
        stream.reconstruct(volume_of(5))
    with pytest.raises(ValueError, match="multiples of 8"):
        stream.reconstruct(torch.zeros(1, 1, 4, 8, 9))


def test_how_many_tokens_go_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, volume = small_vae(), volume_of(9)
    latent = vae.encode(volume)
    decoded = vae.decode(latent)
    monkeypatch.setattr(leanvae_layers, "_TOKENS_AT_ONCE_ON_CPU", 5)
    assert_close(vae.encode(volume), latent)
    assert_close(vae.decode(latent), decoded)


def test_draws_have_the_mean_and_the_width_of_the_posterior() -> None:
    state, volume = random_state(), volume_of(5)
    state["std_layer.weight"].zero_()
    state["std_layer.bias"] = torch.tensor([-2.0, 0.0, 1.0, -40.0])  # log of the variance; not below -30
    vae = LeanVAE(state, source="test")
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([vae.encode(volume, generator) for _ in range(300)]) - vae.encode(volume)
    assert drawn.mean((0, 1, 3, 4, 5)).abs().max() < 0.05
    width = drawn.std((0, 1, 3, 4, 5))
    torch.testing.assert_close(width[:3], torch.exp(state["std_layer.bias"][:3] / 2), rtol=0.03, atol=0)
    assert drawn[:, :, 3].abs().max() < 1e-5


def test_weights_without_the_width_of_the_posterior_have_a_mean_only() -> None:
    state, volume = random_state(), volume_of(5)
    mean = LeanVAE(state, source="test").encode(volume)
    for key in ("std_layer.weight", "std_layer.bias"):
        del state[key]
    vae = LeanVAE(state, source="test")
    assert torch.equal(vae.encode(volume, torch.Generator()), mean)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_precision_is_close_and_has_the_digest_of_the_source(dtype: torch.dtype, tolerance: float) -> None:
    exact, half, volume = small_vae(), small_vae(dtype=dtype), volume_of(9)
    assert half.weights_sha256 == exact.weights_sha256
    latent = half.encode(volume)
    assert latent.dtype == half.dtype == dtype
    decoded, expected = half.decode(latent), exact.decode(exact.encode(volume))
    assert decoded.dtype == torch.float32
    assert (decoded - expected).norm() < tolerance * expected.norm()
    stream = half.open_stream()
    pieces = torch.cat([stream.reconstruct(piece) for piece in volume.split((5, 4), dim=2)], dim=2)
    assert (pieces - expected).norm() < tolerance * expected.norm()


def write_checkpoint(form: str, folder: Path) -> Path:
    state = random_state()
    others = {"perceptual_model.lin0.weight": torch.ones(2), "gan_loss.discriminator.weight": torch.ones(3)}
    path = folder / ("weights.safetensors" if form == "safetensors" else "weights.ckpt")
    if form == "published":
        torch.save({"args": {"latent_dim": 4, "use_tile_inference": True}, "state_dict": state}, path)
    elif form == "training":
        names = {f"autoencoder.{key}": value for key, value in state.items()}
        content = {"epoch": 1, "hyper_parameters": {"args": argparse.Namespace(latent_dim=4)}}
        torch.save(content | {"state_dict": names | others}, path)
    elif form == "with others":
        torch.save({"state_dict": state | others | {"dwt.wavelets": torch.ones(2)}}, path)
    elif form == "bare":
        torch.save(state, path)
    else:
        save_file(state, path)
    return path


@pytest.mark.parametrize("form", ["published", "training", "with others", "bare", "safetensors"])
def test_every_form_of_the_same_weights_is_the_same_vae(form: str, tmp_path: Path) -> None:
    path = write_checkpoint(form, tmp_path)
    vae, in_memory, volume = load_leanvae(Wanted("leanvae", weights=path)), small_vae(), volume_of(5)
    assert vae.spec == in_memory.spec
    assert vae.weights_sha256 == in_memory.weights_sha256
    assert vae.weights_source == str(path)
    assert torch.equal(vae.encode(volume), in_memory.encode(volume))


def test_the_digest_is_that_of_the_weights_as_published() -> None:
    from fvae_nnunet.vae.weights import state_dict_sha256

    assert small_vae().weights_sha256 == state_dict_sha256(random_state())


def test_says_where_the_weights_are_to_be_had() -> None:
    with pytest.raises(UserError, match=r"leanvae: .*`weights`.*README of github.com/westlake-repl/LeanVAE"):
        load_leanvae(Wanted("leanvae", weights=None))


class NotAPlainValue:
    pass


def test_a_file_of_more_than_plain_values_needs_trust(tmp_path: Path) -> None:
    path = tmp_path / "weights.ckpt"
    torch.save({"state_dict": random_state(), "data": NotAPlainValue()}, path)
    with pytest.raises(UserError, match="`trust_weights=True`"):
        load_leanvae(Wanted("leanvae", weights=path))
    vae = load_leanvae(Wanted("leanvae", weights=path, trust=True))
    assert vae.weights_sha256 == small_vae().weights_sha256


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    for number, content in enumerate(
        ({"decoder.conv_in.weight": torch.zeros(1)}, {"state_dict": 3}, {"state_dict": {"a": 3}}, {"args": {}})
    ):
        path = tmp_path / f"{number}.ckpt"
        torch.save(content, path)
        with pytest.raises(UserError, match=r"\.ckpt is not a LeanVAE: encoder.video_low_proj.1.weight is missing"):
            load_leanvae(Wanted("leanvae", weights=path))


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("latent_bottleneck.Q", None, "latent_bottleneck.Q is missing"),
        ("latent_bottleneck.phi", None, "latent_bottleneck.phi is missing"),
        ("decoder.fusion_layer.ffd_layer.1.4.weight", None, "decoder.fusion_layer.ffd_layer.1.4.weight is missing"),
        ("std_layer.bias", torch.zeros(5), r"std_layer.bias has size \(5,\), expected \(4,\)"),
        ("encoder.extra", torch.zeros(1), "encoder.extra is not part of the model"),
    ],
)
def test_incomplete_and_resized_weights_name_the_parameter(
    key: str, change: torch.Tensor | None, message: str, tmp_path: Path
) -> None:
    state = random_state()
    if change is None:
        del state[key]
    else:
        state[key] = change
    torch.save({"state_dict": state}, tmp_path / "weights.ckpt")
    with pytest.raises(UserError, match=f"leanvae: .*weights.ckpt .*: {message}"):
        load_leanvae(Wanted("leanvae", weights=tmp_path / "weights.ckpt"))


@pytest.fixture
def authors_class(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The authors' LeanVAE, without the modules that only its training needs."""
    code = os.environ.get("FVAE_LEANVAE_CODE")
    if not code:
        pytest.skip("FVAE_LEANVAE_CODE does not name a checkout of github.com/westlake-repl/LeanVAE")

    def stand_in(name: str, **content: Any) -> None:
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)

    stand_in("LeanVAE", __path__=[str(Path(code) / "LeanVAE")])
    stand_in("LeanVAE.modules.lpips", LPIPS=None)
    stand_in("beartype", beartype=lambda function: function)
    stand_in("pywt")
    try:
        yield importlib.import_module("LeanVAE.models.autoencoder").LeanVAE
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "LeanVAE"]:
            del sys.modules[name]


@pytest.mark.parametrize("sizes", [SMALL, PUBLISHED], ids=["small", "published"])
def test_is_the_authors_code(sizes: Sizes, authors_class: Any) -> None:
    arguments = argparse.Namespace(
        embedding_dim=sizes.low + sizes.high,
        latent_dim=sizes.latent_channels,
        ista_iter_num=sizes.steps,
        ista_layer_num=sizes.step_layers,
        l_dim=sizes.low,
        h_dim=sizes.high,
        sep_num_layer=sizes.separate_layers,
        fusion_num_layer=sizes.fusion_layers,
        use_tile_inference=False,
    )
    authors, state = authors_class(arguments).eval(), random_state(sizes)
    authors.load_state_dict(state)
    vae = LeanVAE(state, source="test")
    for slices, size in ((1, (24, 16)), (5, (16, 24)), (9, (16, 40)), (17, (24, 16))):
        volume = torch.rand((2, 1, slices, *size), generator=torch.Generator().manual_seed(slices)) * 2 - 1
        colours = (volume / 2).expand(-1, 3, -1, -1, -1)
        with torch.no_grad():
            if slices == 1:  # the authors' code takes a lone slice as an image
                latent = authors.encode(colours[:, :, 0])
                decoded = authors.decode(latent, is_image=True)[:, :, None]
            else:
                latent = authors.encode(colours)
                decoded = authors.inference(colours)[1]
        assert_close(vae.encode(volume), latent)
        assert_close(vae.decode(latent), (2 * decoded).clamp(-1, 1).mean(1, keepdim=True))
