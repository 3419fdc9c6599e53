"""The diffusion's network: consistency along the slices, conditions, sizes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fvae_nnunet.synthesis.model.denoiser import SIZES, LatentDenoiser, known_context
from fvae_nnunet.synthesis.model.slice_consistency import (
    SliceConsistentConv2d,
    SliceConvolution,
    SliceCount,
    slice_positions,
)

TEXT_WIDTH = 24


def tiny_denoiser(seed: int = 0, **options) -> LatentDenoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LatentDenoiser(
            **({"latent_channels": 4, "mask_encoding": "onehot", "classes": 2, "size": "tiny"} | options)
        ).eval()


def inputs(slices: int = 3, batch: int = 2, height: int = 6, width: int = 6, seed: int = 1) -> dict:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    condition = normal(batch, 3, slices, height, width).softmax(1)
    return {
        "noisy": normal(batch, 4, slices, height, width),
        "timestep": torch.tensor([17, 800])[:batch],
        "condition": condition,
    }


def woken(model: LatentDenoiser, seed: int = 2) -> LatentDenoiser:
    """The model with other than zero weights along the slices."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.stage_parameters(2):
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("kind", ["conv", "attention"])
@pytest.mark.parametrize(("slices", "side"), [(1, 6), (2, 1), (5, 6)])
def test_inserted_consistency_changes_nothing_to_the_bit(kind, slices, side):
    model = tiny_denoiser()
    inserted = model.insert_consistency(kind)
    given = inputs(slices, height=side, width=side)
    with torch.no_grad():
        assert torch.equal(inserted(**given), model(**given))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(inserted(**given), model(**given))
        if slices == 5:
            for network in (model, inserted):
                network.to(memory_format=torch.channels_last)
            assert torch.equal(inserted(**given), model(**given))


@pytest.mark.parametrize("kind", ["conv", "attention"])
@torch.no_grad()
def test_slices_see_each_other_only_through_consistency(kind):
    model = tiny_denoiser()
    given = inputs(4)
    alone = [
        model(given["noisy"][:, :, [index]], given["timestep"], given["condition"][:, :, [index]]) for index in range(4)
    ]
    torch.testing.assert_close(model(**given), torch.cat(alone, dim=2))
    coupled = woken(model.insert_consistency(kind))
    before = coupled(**given)
    given["noisy"][:, :, 3] += 1
    change = (coupled(**given) - before).abs().amax(dim=(0, 1, 3, 4))
    assert (change > 1e-4).all()


@torch.no_grad()
def test_a_sample_does_not_see_the_slices_of_another():
    coupled = woken(tiny_denoiser().insert_consistency("conv"))
    given = inputs(3)
    both = coupled(**given)
    for index in range(2):
        one = coupled(**{name: value[[index]] for name, value in given.items()})
        torch.testing.assert_close(both[[index]], one)


def test_slice_convolution_is_a_convolution_that_starts_as_a_dirac():
    layer = SliceConvolution(6)
    weight = 0.3 * torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0))
    plain = nn.Conv1d(6, 6, 3, padding=1, bias=False)
    nn.init.dirac_(plain.weight)
    with torch.no_grad():
        layer.weight += weight
        plain.weight += weight
    x = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(x + layer(x), plain(x))
    (x + layer(x)).square().sum().backward()
    plain(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)


def test_layer_is_a_2d_convolution_and_one_along_the_slices():
    """The same as convolutions of the whole (B, C, d, h, w), with kernels of one slice and of one pixel."""
    generator = torch.Generator().manual_seed(0)
    count = SliceCount()
    layer = SliceConsistentConv2d(nn.Conv2d(3, 4, 3, stride=2, padding=1), "conv", count)
    x = torch.randn(2, 3, 5, 8, 6, generator=generator)
    with torch.no_grad():
        layer.along_slices.weight += torch.randn(4, 4, 3, generator=generator)
        layer.along_slices.bias += torch.randn(4, generator=generator)
        with count.set_to(5):
            found = layer(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 5)).transpose(1, 2)
        flat = F.conv3d(x, layer.weight[:, :, None], layer.bias, stride=(1, 2, 2), padding=(0, 1, 1))
        weight = layer.along_slices.weight[..., None, None]
        expected = flat + F.conv3d(flat, weight, layer.along_slices.bias, padding=(1, 0, 0))
    torch.testing.assert_close(found, expected)


def test_attention_sees_all_slices_of_its_pixel_and_no_other():
    count = SliceCount()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = SliceConsistentConv2d(nn.Conv2d(1, 4, 3, padding=1, bias=False), "attention", count)
        nn.init.normal_(layer.along_slices.out.weight)
    x = torch.zeros(2 * 5, 1, 9, 9)
    other = x.clone()
    other[5 + 2, 0, 4, 4] = 1  # slice 2 of the second sample
    with torch.no_grad(), count.set_to(5):
        changed = (layer(other) - layer(x)).abs().amax(1).unflatten(0, (2, 5)) > 0
    assert not changed[0].any()
    assert changed[1, :, 3:6, 3:6].all() and not changed[1, :, :3].any() and not changed[1, :, :, 6:].any()


def test_slice_positions_by_hand():
    positions = slice_positions(3, 4, torch.device("cpu"))
    angle = torch.tensor([[0.0, 0.0], [1.0, 0.01], [2.0, 0.02]])
    torch.testing.assert_close(positions[:, 0::2], angle.sin())
    torch.testing.assert_close(positions[:, 1::2], angle.cos())
    assert slice_positions(3, 5, torch.device("cpu")).shape == (3, 5)


def test_paper_size_has_the_parameters_of_the_paper():
    with torch.device("meta"):
        model = LatentDenoiser(16, "vae", 2, "paper", text_width=768, consistency="conv")
    unet = sum(parameter.numel() for parameter in model.stage_parameters(1))
    along_slices = sum(parameter.numel() for parameter in model.stage_parameters(2))
    assert round(unet / 1e6) == 420
    assert round(along_slices / 1e6) == 61
    assert model.unet.config.in_channels == 32 and model.unet.config.out_channels == 16


@pytest.mark.parametrize(("size", "least", "most"), [("small", 20e6, 40e6), ("tiny", 0, 2e6)])
def test_sizes(size, least, most):
    with torch.device("meta"):
        model = LatentDenoiser(16, "onehot", 2, size)
    assert least < sum(parameter.numel() for parameter in model.parameters()) < most


def test_consistency_stands_behind_every_3x3_convolution():
    plain, inserted = tiny_denoiser(), tiny_denoiser(consistency="conv")
    names = {
        name for name, module in plain.named_modules() if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
    }
    found = {name for name, module in inserted.named_modules() if isinstance(module, SliceConsistentConv2d)}
    assert found == names and len(names) > 10
    assert plain.state_dict().keys() == {key for key in inserted.state_dict() if "along_slices" not in key}


@pytest.mark.parametrize("kind", ["conv", "attention"])
def test_stages_share_the_parameters(kind):
    model = tiny_denoiser(consistency=kind)
    first, second = ({id(parameter) for parameter in model.stage_parameters(stage)} for stage in (1, 2))
    assert not first & second
    assert first | second == {id(parameter) for parameter in model.parameters()}
    assert {id(parameter) for name, parameter in model.named_parameters() if "along_slices" in name} == second
    with pytest.raises(ValueError, match="needs a model with consistency"):
        tiny_denoiser().stage_parameters(2)
    with pytest.raises(ValueError, match="already"):
        model.insert_consistency("conv")


@pytest.mark.parametrize("kind", ["conv", "attention"])
def test_gradient_checkpointing_gives_the_same_gradients(kind):
    plain = woken(tiny_denoiser(text_width=TEXT_WIDTH, consistency=kind)).train()
    saving = copy.deepcopy(plain)
    saving.enable_gradient_checkpointing()
    saving = copy.deepcopy(saving)
    text = torch.randn(2, 3, TEXT_WIDTH, generator=torch.Generator().manual_seed(3))
    given = inputs(4) | {"text": text}
    losses = [model(**given).square().mean() for model in (plain, saving)]
    # another pass, with another number of slices, before the backward pass of the first
    with torch.no_grad():
        saving(**inputs(1))
    for loss in losses:
        loss.backward()
    assert torch.equal(*losses)
    for (name, expected), found in zip(plain.named_parameters(), saving.parameters()):
        assert (expected.grad is None) == (found.grad is None), name
        if expected.grad is not None:
            torch.testing.assert_close(found.grad, expected.grad, msg=name)


def test_gradient_checkpointing_keeps_fewer_activations():
    kept = {}
    for checkpointing in (False, True):
        model = tiny_denoiser(consistency="conv").train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        sizes: list[int] = []

        def note(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model(**inputs(2))
        kept[checkpointing] = sum(sizes)
    assert kept[True] < 0.7 * kept[False]


@torch.no_grad()
def test_padded_tokens_change_nothing():
    model = tiny_denoiser(text_width=TEXT_WIDTH)
    text = torch.randn(2, 5, TEXT_WIDTH, generator=torch.Generator().manual_seed(3))
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    given = inputs()
    expected = model(**given, text=text, text_mask=mask)
    text[1, 2:] = torch.tensor(float("nan"))
    assert torch.equal(model(**given, text=text, text_mask=mask), expected)
    short = {name: value[[1]] for name, value in given.items()}
    torch.testing.assert_close(model(**short, text=text[[1], :2]), expected[[1]])
    # the text itself does change something
    text[1, :2] += 1
    assert (model(**given, text=text, text_mask=mask)[1] - expected[1]).abs().max() > 1e-4


@torch.no_grad()
def test_a_sample_without_tokens_has_the_null_token():
    model = tiny_denoiser(text_width=TEXT_WIDTH)
    text = torch.randn(2, 3, TEXT_WIDTH, generator=torch.Generator().manual_seed(3))
    given = inputs()
    mixed = model(**given, text=text, text_mask=torch.tensor([[True] * 3, [False] * 3]))
    without = model(**given)
    torch.testing.assert_close(mixed[1], without[1])
    assert (mixed[0] - without[0]).abs().max() > 1e-4
    model.null_token += 1
    changed = model(**given, text=text, text_mask=torch.tensor([[True] * 3, [False] * 3]))
    assert torch.equal(changed[0], mixed[0])
    assert not torch.equal(changed[1], mixed[1])


@pytest.mark.parametrize("encoding", ["onehot", "vae"])
@torch.no_grad()
def test_dropped_conditions(encoding):
    model = tiny_denoiser(text_width=TEXT_WIDTH, mask_encoding=encoding)
    text = torch.randn(2, 3, TEXT_WIDTH, generator=torch.Generator().manual_seed(3))
    given = inputs()
    if encoding == "vae":
        given["condition"] = given["noisy"].flip(0)
    dropped = model(**given, text=text, drop=torch.tensor([False, True]))
    kept = model(**given, text=text)
    torch.testing.assert_close(dropped[0], kept[0])
    other = given | {"condition": given["condition"].flip(2)}
    assert torch.equal(model(**other, text=text + 1, drop=torch.ones(2, dtype=torch.bool))[1], dropped[1])
    zero = model(**(given | {"condition": torch.zeros_like(given["condition"])}))
    torch.testing.assert_close(dropped[1], zero[1])
    if encoding == "onehot":
        empty = torch.zeros_like(given["condition"])
        empty[:, 0] = 1
        assert (model(**(given | {"condition": empty}))[1] - dropped[1]).abs().max() > 1e-4


@torch.no_grad()
def test_any_size_in_plane():
    model = tiny_denoiser()
    for height, width in ((1, 1), (5, 7), (6, 3)):
        assert model(**inputs(2, height=height, width=width)).shape == (2, 4, 2, height, width)


def test_onehot_condition_is_projected_and_vae_condition_is_not():
    onehot, vae = tiny_denoiser(), tiny_denoiser(mask_encoding="vae")
    assert onehot.condition_channels == 3 and vae.condition_channels == 4
    assert onehot.project_mask.weight.shape == (4, 3, 1, 1)
    assert vae.project_mask is None
    assert onehot.unet.config.in_channels == vae.unet.config.in_channels == 8


@torch.no_grad()
def test_detail_and_context_are_seen_as_they_are():
    model = tiny_denoiser(mask_encoding="outline", detail_channels=5, context="masked")
    assert model.condition_channels == 3 + 5 and model.unet.config.in_channels == 4 + 4 + 5 + 4 + 1
    given = inputs()
    given["condition"] = torch.cat([given["condition"], torch.ones(2, 5, 3, 6, 6)], dim=1)
    generated = torch.zeros(2, 1, 3, 6, 6, dtype=torch.bool)
    generated[..., 2:4, 2:4] = True
    latent = given["noisy"] + 1
    context = known_context(latent, generated)
    assert torch.equal(context[:, :4], torch.where(generated, 0.0, latent))
    assert torch.equal(context[:, 4:] > 0, generated)
    found = model(**given, context=context)
    # what the generated cells hold is not seen; the rest, the detail, and what is generated are
    other = latent + generated
    assert torch.equal(model(**given, context=known_context(other, generated)), found)
    for change in (
        known_context(latent + ~generated, generated),
        known_context(latent, generated.flip(-1).roll(1, -1)),
    ):
        assert (model(**given, context=change) - found).abs().max() > 1e-4
    given["condition"][:, 7] += 1
    assert (model(**given, context=context) - found).abs().max() > 1e-4
    # without condition the context stays
    dropped = torch.ones(2, dtype=torch.bool)
    without = model(**given, context=context, drop=dropped)
    given["condition"][:, 7] += 1
    assert torch.equal(model(**given, context=context, drop=dropped), without)
    assert (model(**given, context=known_context(latent + 1, generated), drop=dropped) - without).abs().max() > 1e-4
    with pytest.raises(ValueError, match="with the context masked"):
        model(**given)
    kept = model.insert_consistency("conv")
    assert kept.config["context"] == "masked" and torch.equal(
        kept(**given, context=context), model(**given, context=context)
    )


@torch.no_grad()
def test_a_network_that_starts_from_a_draft_gives_it_back_at_first():
    model = tiny_denoiser(context="draft")
    given, latent, draft = inputs(), inputs(seed=7)["noisy"], inputs(seed=8)["noisy"]
    generated = torch.zeros(2, 1, 3, 6, 6, dtype=torch.bool)
    generated[..., 2:4, 2:4] = True
    context = known_context(latent, generated, draft)
    expected = torch.where(generated, draft, latent)
    assert torch.equal(model(**given, context=context), expected)
    model.unet.conv_out.bias += 0.5
    torch.testing.assert_close(model(**given, context=context), expected + 0.5)
    with pytest.raises(ValueError, match="known are none, masked, draft"):
        tiny_denoiser(context="sketch")


@pytest.mark.parametrize("kind", [None, "conv", "attention"])
@torch.no_grad()
def test_saved_and_loaded_model_is_the_same(kind, tmp_path):
    model = tiny_denoiser(text_width=TEXT_WIDTH, consistency=kind)
    if kind is not None:
        woken(model)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()
    loaded = LatentDenoiser.from_pretrained(tmp_path)
    assert loaded.config["consistency"] == kind
    given = inputs(3)
    assert torch.equal(loaded(**given), model(**given))
    if kind is not None:
        return
    torch.testing.assert_close(loaded.insert_consistency("conv")(**given), model(**given), rtol=0, atol=0)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="known are paper, small, tiny"):
        tiny_denoiser(size="huge")
    with pytest.raises(ValueError, match="known are conv, attention"):
        tiny_denoiser(consistency="mean")
    with pytest.raises(ValueError, match="known are outline, onehot, vae"):
        tiny_denoiser(mask_encoding="ids")
    with pytest.raises(ValueError, match="without text"):
        tiny_denoiser()(**inputs(), text=torch.zeros(2, 3, TEXT_WIDTH))
    assert set(SIZES) == {"paper", "small", "tiny"}
