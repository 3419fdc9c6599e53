"""Training of the latent diffusion model: what it learns, how it goes on, and the command."""

from __future__ import annotations

import copy
import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from synthesis_for_tests import edit_dataset_json, label_file, phantom_dataset, read, rewrite

from fvae_nnunet.cli import train_ldm
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.checked_json import read_json
from fvae_nnunet.files.portable_names import portable_name, portable_parameters
from fvae_nnunet.synthesis.model import sampling
from fvae_nnunet.synthesis.model.folder import ModelSettings, needs_text
from fvae_nnunet.synthesis.model.latent_diffusion import LatentDiffusion
from fvae_nnunet.synthesis.model.latent_encoding import LatentSettings
from fvae_nnunet.synthesis.model.layout import Layout
from fvae_nnunet.synthesis.model.noise_process import NoiseProcess
from fvae_nnunet.synthesis.model.slice_consistency import parameters_along_slices
from fvae_nnunet.synthesis.sources.dataset import open_source_dataset
from fvae_nnunet.synthesis.training.checkpoints import find_checkpoints
from fvae_nnunet.synthesis.training.inputs import Texts, draws_and_model
from fvae_nnunet.synthesis.training.latent_cache import cache_folder, complete_cache, latent_statistics, read_records
from fvae_nnunet.synthesis.training.latent_draws import LatentDraws
from fvae_nnunet.synthesis.training.loop import Plan, denoising_loss, first_denoiser, train
from fvae_nnunet.synthesis.training.processes import connect
from fvae_nnunet.synthesis.training.samples import SamplePictures, _core_of
from fvae_nnunet.synthesis.training.settings import WARMUP_STEPS, TrainingSettings
from fvae_nnunet.vae import load_vae

SETTINGS = TrainingSettings(
    size="tiny",
    prediction="epsilon",
    loss="mse",
    context="none",
    consistency="conv",
    steps=(4, 3),
    batch=4,
    window_batch=2,
    accumulate=1,
    learning_rate=1e-3,
    decay_share=0.0,
    ema_decay=0.9,
    condition_dropout=0.2,
    lesion_share=0.5,
    lesion_weight=2.0,
    mixed_precision="no",
    seed=3,
)


def upright(case):
    """Axes of images that rise to the head, run to the back and to the left."""
    return np.eye(3)[:, ::-1]


@pytest.fixture(scope="module")
def latents():
    """Draws of a small cache, and the settings of a model of it."""
    dataset = phantom_dataset()
    source, vae = open_source_dataset(dataset.name), load_vae("tiny")
    folder = cache_folder(source, "test")
    complete_cache(
        folder, source, vae, LatentSettings((-1000.0, 1000.0), 4, 32, None, "onehot"), made_with={}, workers=0
    )
    mean, std = latent_statistics(read_records(folder, source.cases).values())
    model = ModelSettings(
        vae="tiny",
        weights_sha256=vae.weights_sha256,
        latent_channels=16,
        precision="float32",
        hu_window=(-1000.0, 1000.0),
        window_slices=4,
        inplane_pixels=32,
        spacing_mm=None,
        mask_encoding="onehot",
        class_names=source.class_names,
        latent_mean=mean,
        latent_std=std,
        prediction="epsilon",
        text_encoder=None,
        text_width=None,
        organ="label:pancreas",
    )
    conditions = model.condition_format(vae.spec)
    draws = LatentDraws(folder, source.cases, conditions=conditions, window=4, crop=4, lesion_share=0.5)
    return draws, model


def run(latents, output, settings=SETTINGS, *, stop_after=None, **options):
    """Train; with ``stop_after`` until a crash behind that step, whose checkpoint is written."""
    draws, model = latents
    process = NoiseProcess(settings.prediction, steps=5, eta=0.5)
    plan = Plan(output, settings, model, process, {"training_cases": []}, **({"save_every": 1000} | options))
    AcceleratorState._reset_state()
    accelerator = connect(device="cpu", mixed_precision=settings.mixed_precision)
    if stop_after is None:
        train(plan, draws, accelerator)
        return weights_of(output)

    def crash(_, step):
        if step == stop_after:
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        train(replace(plan, save_every=stop_after, samples_every=1), draws, accelerator, crash)
    return None


def weights_of(folder):
    return load_file(folder / "denoiser" / "diffusion_pytorch_model.safetensors")


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rows_of(folder):
    with (folder / "progress.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def undisturbed(latents, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed") / "model"
    run(latents, output)
    return output


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 4, 6], ids=["stage 1", "between the stages", "stage 2"])
def test_a_resumed_training_equals_an_undisturbed_one_to_the_bit(latents, undisturbed, tmp_path, step):
    run(latents, tmp_path / "model", stop_after=step)
    assert not (tmp_path / "model" / "manifest.json").exists()
    assert [checkpoint.step for checkpoint in find_checkpoints(tmp_path / "model")][-1] == step
    assert_equal(run(latents, tmp_path / "model"), weights_of(undisturbed))
    assert rows_of(tmp_path / "model") == rows_of(undisturbed) and len(rows_of(undisturbed)) == 7
    for name in ("weights.safetensors", "optimizer.pt"):
        states = [folder / "checkpoint_0000007" / "state" / name for folder in (tmp_path / "model", undisturbed)]
        if name.endswith("safetensors"):
            assert_equal(*map(load_file, states))
        else:
            one, other = (torch.load(state, weights_only=True)["optimizer"]["state"] for state in states)
            assert all(torch.equal(one[key]["exp_avg_sq"], other[key]["exp_avg_sq"]) for key in one) and one


@pytest.mark.slow
@pytest.mark.parametrize("name", ["state/optimizer.pt", "denoiser", "state/state.json"])
def test_a_damaged_last_checkpoint_is_named_and_the_one_before_goes_on(latents, undisturbed, tmp_path, capsys, name):
    for step in (2, 4):
        run(latents, tmp_path / "model", stop_after=step)
    last = tmp_path / "model" / "checkpoint_0000004"
    path = next((last / name).glob("*.safetensors")) if name == "denoiser" else last / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 128
    path.write_bytes(content)
    assert_equal(run(latents, tmp_path / "model"), weights_of(undisturbed))
    said = capsys.readouterr().out
    assert "damaged checkpoint, ignored: " in said and str(path) in said and "resuming from step 2" in said
    for optimizer in (tmp_path / "model").glob("checkpoint_*/state/optimizer.pt"):
        optimizer.write_bytes(b"")
    with pytest.raises(UserError, match=r"all checkpoints in .* are damaged, so .*start again with `overwrite=True`"):
        run(latents, tmp_path / "model")


def test_a_damaged_model_is_not_used(latents, undisturbed, tmp_path):
    model = shutil.copytree(undisturbed, tmp_path / "model")
    LatentDiffusion.load(model)
    weights = next((model / "denoiser").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"safetensors has changed since it was written \(sha256\); copy the model"):
        LatentDiffusion.load(model)


@pytest.mark.slow
def test_a_longer_stage_1_goes_on_from_the_shorter_one(latents, undisturbed, tmp_path):
    settings = replace(SETTINGS, steps=(2, 0))
    run(latents, tmp_path / "model", settings)
    assert_equal(run(latents, tmp_path / "model"), weights_of(undisturbed))


@pytest.mark.slow
@pytest.mark.parametrize("steps", [(4, 0), (4, 2), (3, 3), (3, 9)])
def test_fewer_steps_than_were_done_are_refused_and_nothing_changes(latents, tmp_path, steps):
    run(latents, tmp_path / "model", save_every=2)
    before = files_of(tmp_path / "model")
    with pytest.raises(UserError, match=rf"already trained for 4 \+ 3 steps, more than {steps[0]} \+ {steps[1]};"):
        run(latents, tmp_path / "model", replace(SETTINGS, steps=steps))
    assert files_of(tmp_path / "model") == before


@pytest.mark.slow
def test_a_longer_stage_1_needs_its_checkpoint(latents, tmp_path):
    run(latents, tmp_path / "model")
    run(latents, tmp_path / "model", replace(SETTINGS, steps=(5, 0)))
    assert [checkpoint.step for checkpoint in find_checkpoints(tmp_path / "model")] == [4, 5], "stage 2 is dropped"
    run(latents, tmp_path / "model", replace(SETTINGS, steps=(5, 1)), save_every=1)
    for checkpoint in find_checkpoints(tmp_path / "model")[:-1]:
        shutil.rmtree(checkpoint.folder)
    with pytest.raises(
        UserError, match="no longer has a checkpoint of stage 1, so stage 1 cannot be extended beyond 5 steps"
    ):
        run(latents, tmp_path / "model", replace(SETTINGS, steps=(6, 1)))


def test_the_same_again_changes_nothing(latents, undisturbed):
    before, rows = weights_of(undisturbed), rows_of(undisturbed)
    assert_equal(run(latents, undisturbed), before)
    assert rows_of(undisturbed) == rows


@pytest.mark.slow
def test_bf16_learns_and_keeps_its_weights_in_float32(latents, tmp_path):
    settings = replace(SETTINGS, steps=(60, 2), learning_rate=3e-3, mixed_precision="bf16")
    weights = run(latents, tmp_path / "model", settings)
    trained = load_file(find_checkpoints(tmp_path / "model")[-1].folder / "state" / "weights.safetensors")
    assert {tensor.dtype for tensors in (weights, trained) for tensor in tensors.values()} == {torch.float32}
    losses = [float(row["loss"]) for row in rows_of(tmp_path / "model")]
    assert np.isfinite(losses).all() and np.mean(losses[50:60]) < 0.8 * np.mean(losses[:10])
    exact = run(latents, tmp_path / "exact", replace(settings, steps=(1, 0), mixed_precision="no"))
    first = [float(row["loss"]) for row in rows_of(tmp_path / "exact")]
    assert first[0] != losses[0] and first[0] == pytest.approx(losses[0], rel=0.02), "bf16 rounds, and no more"
    assert exact.keys() <= weights.keys()


@pytest.mark.slow
@pytest.mark.parametrize("consistency", ["conv", "attention"])
def test_stage_2_changes_the_consistency_alone(latents, tmp_path, consistency):
    run(latents, tmp_path / "model", replace(SETTINGS, steps=(2, 3), consistency=consistency))
    first, last = find_checkpoints(tmp_path / "model")
    before, after = weights_of(first.folder), weights_of(last.folder)
    assert all(torch.equal(before[name], after[name]) for name in before)
    denoiser = last.load_averaged()
    along = {id(parameter) for parameter in parameters_along_slices(denoiser)}
    names = {name for name, parameter in denoiser.named_parameters() if id(parameter) in along}
    assert names == after.keys() - before.keys() and first.stage == 1
    untrained = first.load_averaged().insert_consistency(consistency).state_dict()
    assert any(not torch.equal(untrained[name], after[name]) for name in names)


@pytest.mark.slow
def test_the_model_is_the_moving_average(latents, tmp_path):
    # the average's decay is (1 + n) / (10 + n) at most, n counting from the step behind the first (diffusers)
    averaged, trained = [], []
    for steps in (1, 2, 3):
        averaged.append(run(latents, tmp_path / "model", replace(SETTINGS, steps=(steps, 0))))
        trained.append(load_file(find_checkpoints(tmp_path / "model")[-1].folder / "state" / "weights.safetensors"))
    for name, weights in trained[0].items():
        torch.testing.assert_close(averaged[0][name], weights)
    name = "unet.conv_in.weight"
    expected = trained[0][name]
    for weights, decay in zip(trained[1:], (2 / 11, 3 / 12)):
        expected = decay * expected + (1 - decay) * weights[name]
    torch.testing.assert_close(averaged[2][name], expected)


@pytest.mark.slow
def test_gradients_over_several_passes_are_those_of_one(latents, tmp_path):
    plain = run(latents, tmp_path / "one", replace(SETTINGS, steps=(3, 2)))
    passes = run(latents, tmp_path / "two", replace(SETTINGS, steps=(3, 2), accumulate=2))
    # the sums are the same but for the order of their terms; Adam's first steps are about the learning rate's size
    moved = max(float((plain[name] - first).abs().max()) for name, first in first_weights(latents).items())
    assert moved > 1e-5
    for name, weights in plain.items():
        torch.testing.assert_close(passes[name], weights, rtol=1e-4, atol=0.05 * moved)
    for one, other in zip(rows_of(tmp_path / "one"), rows_of(tmp_path / "two")):
        assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=1e-4)
        assert float(one["lesion_loss"]) == pytest.approx(float(other["lesion_loss"]), rel=1e-4)


def first_weights(latents):
    return first_denoiser(Plan(None, SETTINGS, latents[1], NoiseProcess(), {}, save_every=1)).state_dict()


@pytest.mark.slow
def test_checkpoints_are_bounded_and_each_is_a_model(latents, tmp_path):
    run(latents, tmp_path / "model", replace(SETTINGS, steps=(5, 3)), save_every=1)
    assert [checkpoint.step for checkpoint in find_checkpoints(tmp_path / "model")] == [5, 7, 8]
    for folder in (tmp_path / "model", tmp_path / "model" / "checkpoint_0000005"):
        model = LatentDiffusion.load(folder)
        volume = np.full((4, 32, 32), 40, np.int16)
        assert (model.process.steps, model.process.eta) == (5, 0.5)
        layout = Layout.of(np.ones(volume.shape, np.uint8), (1.0, 1.0, 1.0), organs=1)
        hu, _ = model.inpaint(volume, layout, volume > 0, steps=2, generator=torch.Generator())
        assert hu.shape == volume.shape and np.isfinite(hu).all()
    assert_equal(weights_of(tmp_path / "model"), weights_of(tmp_path / "model" / "checkpoint_0000008"))


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing(latents, undisturbed, tmp_path):
    weights = run(latents, tmp_path / "model", gradient_checkpointing=True)
    for name, expected in weights_of(undisturbed).items():
        torch.testing.assert_close(weights[name], expected, rtol=1e-5, atol=1e-6)


def test_the_loss_weighs_lesion():
    # one sample, one channel, two cells: errors 1 and 4, the second all lesion
    prediction, target = torch.tensor([1.0, 2.0]).view(1, 1, 1, 1, 2), torch.zeros(1, 1, 1, 1, 2)
    lesion = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    loss, in_lesion = denoising_loss(prediction, target, lesion, 1.0)
    assert float(loss) == (1 + 4) / 2 and in_lesion.tolist() == [4, 1]
    loss, _ = denoising_loss(prediction, target, lesion, 3.0)
    assert float(loss) == pytest.approx((1 * 1 + 3 * 4) / (1 + 3))
    loss, in_lesion = denoising_loss(prediction, target, lesion, 3.0, loss="l1")
    assert float(loss) == pytest.approx((1 * 1 + 3 * 2) / (1 + 3)) and in_lesion.tolist() == [2, 1]
    # each sample counts the same, whatever of it is lesion
    both = denoising_loss(prediction.expand(2, -1, -1, -1, -1), target, torch.cat([lesion, 0 * lesion]), 3.0)[0]
    assert float(both) == pytest.approx((13 / 4 + 5 / 2) / 2)
    # only the cells that are generated count
    first = torch.tensor([True, False]).view(1, 1, 1, 2)
    assert float(denoising_loss(prediction, target, lesion, 3.0, generated=first)[0]) == pytest.approx(1)
    assert float(denoising_loss(prediction, target, lesion, 3.0, generated=~first)[0]) == pytest.approx(4)


def test_the_learning_rate_rises_in_each_stage(undisturbed):
    rates = [float(row["learning_rate"]) for row in rows_of(undisturbed)]
    expected = [1e-3 * step / WARMUP_STEPS for step in (1, 2, 3, 4, 1, 2, 3)]
    assert rates == pytest.approx(expected, rel=1e-5)


def test_the_learning_rate_falls_to_0_at_the_end_of_a_stage():
    settings = replace(SETTINGS, decay_share=0.25)
    rates = [settings.learning_rate_at(step, 400) / 1e-3 for step in (25, 50, 200, 301, 351, 400)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 0.5, 0.01])
    # until it falls it does not depend on the length of the stage
    assert settings.learning_rate_at(200, 400) == settings.learning_rate_at(200, 4000) == 1e-3


@pytest.fixture(scope="module")
def outlines():
    """Draws and model settings as ``latents``, with outlines and drafts."""
    source, vae = open_source_dataset(phantom_dataset().name), load_vae("tiny")
    folder = cache_folder(source, "outline")
    latent_settings = LatentSettings((-1000.0, 1000.0), 4, 32, None, "outline")
    complete_cache(folder, source, vae, latent_settings, made_with={}, workers=0)

    def use(context):
        settings = replace(SETTINGS, context=context, prediction="sample", loss="l1", decay_share=0.3)
        return *draws_and_model(settings, source, vae, latent_settings, folder, Texts({})), settings

    return use


@pytest.mark.slow
@pytest.mark.parametrize("context", ["masked", "draft"])
def test_context_is_learnt_and_goes_on_to_the_bit(outlines, tmp_path, context):
    draws, model, settings = outlines(context)
    whole = run((draws, model), tmp_path / "whole", settings)
    run((draws, model), tmp_path / "model", settings, stop_after=3)
    assert_equal(run((draws, model), tmp_path / "model", settings), whole)
    loaded = LatentDiffusion.load(tmp_path / "model")
    assert loaded.settings.context == context and loaded.settings.appearance is not None
    volume = np.full((4, 32, 32), 40, np.int16)
    layout = Layout.of(np.ones(volume.shape, np.uint8), (1.0, 1.0, 1.0), organs=1)
    region = np.zeros(volume.shape, bool)
    region[1:3, 8:20, 8:20] = True
    generator = torch.Generator()
    draft = volume.astype(np.float32) - 30
    hu = [loaded.inpaint(volume, layout, region, draft, generator=generator.manual_seed(0))[0] for _ in range(2)]
    assert np.array_equal(*hu) and np.isfinite(loaded.generate(layout, generator=generator)).all()
    if context == "draft":
        with pytest.raises(UserError, match="starts from a draft; give `draft_hu`"):
            loaded.inpaint(volume, layout, region, generator=generator)
        # after no more than a few steps it still gives about the draft
        _, without = loaded.inpaint(volume, layout, region, volume, generator=generator)
        assert -40 < (hu[0] - without)[1:3, 10:18, 10:18].mean() < -10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": (0, 3)}, "stage 1 needs at least one step"),
        ({"condition_dropout": 1.5}, "`condition_dropout` must be between 0 and 1"),
        ({"lesion_share": -0.1}, "`lesion_share` must be between 0 and 1"),
        ({"ema_decay": 1.0}, "`ema_decay`"),
        ({"learning_rate": 0.0}, "`learning_rate`"),
        ({"accumulate": 0}, "`accumulate`"),
        ({"seed": -1}, "`seed`"),
        ({"loss": "l2"}, "`loss` must be l1 or mse"),
        ({"context": "draft"}, "`context='draft'` needs `prediction='sample'`"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        replace(SETTINGS, **change)


def test_a_batch_that_cannot_be_shared_out_is_refused():
    assert replace(SETTINGS, accumulate=2).share(1, 2) == 1
    with pytest.raises(UserError, match="`window_batch=2` cannot be divided among 2 processes with 2 passes"):
        replace(SETTINGS, accumulate=2).share(2, 2)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_training(latents, tmp_path):
    with pytest.raises(UserError, match=r"the loss of step .* is not finite"):
        run(latents, tmp_path / "model", replace(SETTINGS, learning_rate=1e30, steps=(12, 0)))
    assert not (tmp_path / "model" / "manifest.json").exists()


# the command


def command(dataset, *options, steps=("--stage1-steps", "2", "--stage2-steps", "1")):
    small = ("--batch", "2", "--window-batch", "2", "--window-slices", "4", "-np", "0", "--samples-every", "0")
    return [dataset.name, "--vae", "tiny", "--size", "tiny", "-device", "cpu", *small, *steps, *options]


@pytest.fixture(scope="module")
def trained():
    """A dataset of lungs, and the default folder of the model that the command makes of it."""
    dataset = phantom_dataset("lung", cases=5)
    assert train_ldm.main(command(dataset, "--organ", "lungs", "--fold", "1")) == 0
    return dataset, dataset.results / "fvae_ldm__tiny__fold1"


@pytest.mark.slow
def test_the_command_makes_a_model_that_says_what_it_is(trained):
    dataset, folder = trained
    model = LatentDiffusion.load(folder)
    assert model.settings.organ == "lungs" and model.settings.class_names == ("organ", "tumour")
    assert model.settings.window_slices == 4 and model.settings.inplane_pixels == 32
    assert model.training["training_cases"] == open_source_dataset(dataset.name, organ="lungs", fold=1).cases
    assert model.training["steps"] == [2, 1] and len(rows_of(folder)) == 3
    assert model.denoiser.config["consistency"] == "conv"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), ("sample", "outline", "draft", 4, 0.0)),
        (("--recipe", "paper"), ("epsilon", "vae", "none", 20, 1.0)),
        (("--prediction", "v_prediction"), ("v_prediction", "outline", "none", 4, 0.0)),
        (("--mask-encoding", "onehot", "--sampling-steps", "10"), ("sample", "onehot", "none", 10, 0.0)),
    ],
    ids=["lesion", "paper", "prediction", "onehot"],
)
def test_a_recipe_sets_what_is_not_given(trained, tmp_path, options, expected):
    dataset, _ = trained
    options = ("--organ", "lungs", *options, "-o", str(tmp_path / "model"))
    assert train_ldm.main(command(dataset, *options, steps=("--stage1-steps", "1", "--stage2-steps", "0"))) == 0
    model = LatentDiffusion.load(tmp_path / "model")
    settings, process = model.settings, model.process
    found = settings.prediction, settings.mask_encoding, settings.context, process.steps, process.eta
    assert found == expected


@pytest.mark.slow
def test_the_same_training_gives_the_same_bytes_and_names_no_folder_of_the_machine(trained, tmp_path):
    dataset, _ = trained
    masks = shutil.copytree(dataset.raw / "labelsTr", tmp_path / "machine" / "masks")
    outputs = [tmp_path / "machine" / "a", tmp_path / "other" / "place" / "b"]
    for output in outputs:
        for stage2 in ("1", "2"):
            # the second time it goes on, with a network that was loaded from a file
            steps = ("--stage1-steps", "2", "--stage2-steps", stage2)
            options = ("--organ", f"folder:{masks}:1", "--latents", "of_masks", "-o", str(output))
            assert train_ldm.main(command(dataset, *options, steps=steps)) == 0
    one, other = ({name: content for name, content in files_of(output).items()} for output in outputs)
    times = {name for name in one if name == "progress.csv"}
    assert {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)} <= times
    for name, content in one.items():
        assert b"machine" not in content and str(dataset.raw.parent).encode() not in content, name
        assert b"_name_or_path" not in content, name
    assert LatentDiffusion.load(outputs[0]).settings.organ == "folder:masks:1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("microsoft/BiomedVLP-CXR-BERT-specialized", "microsoft/BiomedVLP-CXR-BERT-specialized"),
        ("hub Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "hub Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
        ("/home/me/encoder", "encoder"),
        ("~/encoder", "encoder"),
        ("../weights/vae.pth", "vae.pth"),
        ("folder:/data/masks:1,2", "folder:masks:1,2"),
        ("structures:/data/totalseg", "structures:totalseg"),
        ("diffusers:/data/vae", "diffusers:vae"),
        ("label:liver,tumour", "label:liver,tumour"),
        ("lungs", "lungs"),
    ],
)
def test_names_are_kept_and_places_are_not(text, expected):
    assert portable_name(text) == expected
    parameters = {"weights": text, "hu_windows": [[-1000.0, 1000.0]]}
    assert portable_parameters(parameters) == parameters | {"weights": expected}


@pytest.mark.slow
def test_other_settings_are_refused_and_overwrite_starts_anew(trained, capsys):
    dataset, folder = trained
    assert train_ldm.main(command(dataset, "--organ", "lungs", "--fold", "1", "--lr", "0.5")) == 1
    assert "training.learning_rate: 0.001, now 0.5" in capsys.readouterr().err
    assert train_ldm.main(command(dataset, "--organ", "lungs", "--fold", "1", "--lr", "0.01", "--overwrite")) == 0
    assert LatentDiffusion.load(folder).training["learning_rate"] == 0.01
    assert sorted(path.name for path in folder.glob("checkpoint_*")) == ["checkpoint_0000002", "checkpoint_0000003"]


@pytest.mark.slow
def test_damaged_latents_are_named_and_encoded_again(trained, tmp_path, capsys):
    dataset, _ = trained
    folder = dataset.preprocessed / "fvae_latents" / "tiny_outline"
    path = sorted(folder.glob("*.safetensors"))[-1]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    options = ("--organ", "lungs", "-o", str(tmp_path / "model"))
    assert train_ldm.main(command(dataset, *options)) == 1
    assert f"{path.name} has changed" in capsys.readouterr().err
    assert train_ldm.main(command(dataset, *options, "--verify", "--overwrite-latents")) == 1
    assert "--overwrite-latents makes everything again, so --verify has nothing to do" in capsys.readouterr().err
    assert train_ldm.main(command(dataset, *options, "--verify", "--overwrite")) == 0
    said = capsys.readouterr()
    assert f"DAMAGED, will be made again: {path.stem}: {path} has changed" in said.err
    assert "latents: digests of 5 of 5 cases checked: all as recorded" in said.out
    assert path.read_bytes() == whole


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["training/notes.txt", "samples/s.png", "denoiser/weights.pt", "checkpoint_12/w.pt", "progress.csv"]
)
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["", "overwrite"])
def test_a_folder_of_others_is_not_touched(trained, tmp_path, capsys, name, overwrite):
    dataset, _ = trained
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    before = files_of(tmp_path)
    assert train_ldm.main(command(dataset, "--organ", "lungs", "-o", str(tmp_path), *overwrite)) == 1
    error = f"{tmp_path} holds {name.split('/')[0]}, which was not made by fvae-train-ldm; choose another folder (-o)"
    assert error in capsys.readouterr().err
    assert files_of(tmp_path) == before


@pytest.mark.slow
def test_overwrite_leaves_what_is_not_of_a_training(trained, tmp_path):
    dataset, _ = trained
    options = command(dataset, "--organ", "lungs", "-o", str(tmp_path))
    (tmp_path / "log.txt").write_text("mine")
    (tmp_path / "samples").mkdir()
    assert train_ldm.main(options) == 0
    shutil.copytree(tmp_path / "checkpoint_0000003", tmp_path / "checkpoint_best")
    assert train_ldm.main([*options, "--overwrite"]) == 0
    assert (tmp_path / "log.txt").read_text() == "mine" and (tmp_path / "checkpoint_best" / "manifest.json").exists()


@pytest.mark.slow
def test_the_name_of_latents_is_no_path_and_no_other_folder_is_replaced(trained, tmp_path, capsys):
    dataset, _ = trained
    options = ("--organ", "lungs", "-o", str(tmp_path / "model"), "--overwrite-latents", "--latents")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    assert train_ldm.main(command(dataset, *options, str(tmp_path / "mine"))) == 1
    assert "the name of latents must consist of letters, digits and . _ + -" in capsys.readouterr().err
    assert train_ldm.main(command(dataset, *options, "texts")) == 1
    assert "'texts' is the name of the folder of encoded reports" in capsys.readouterr().err
    (dataset.preprocessed / "fvae_latents" / "mine").mkdir()
    (dataset.preprocessed / "fvae_latents" / "mine" / "notes.txt").touch()
    assert train_ldm.main(command(dataset, *options, "mine")) == 1
    assert "mine holds notes.txt, which was not made by fvae-train-ldm" in capsys.readouterr().err
    assert (dataset.preprocessed / "fvae_latents" / "mine" / "notes.txt").exists() and (tmp_path / "mine").exists()
    shutil.rmtree(dataset.preprocessed / "fvae_latents" / "mine")


@pytest.mark.slow
def test_latents_of_other_settings_name_the_options_that_help(trained, tmp_path, capsys):
    dataset, _ = trained
    latents = {path.name for path in (dataset.preprocessed / "fvae_latents").iterdir()}
    options = ("--organ", "lungs", "--inplane-pixels", "16", "-o", str(tmp_path))
    assert train_ldm.main(command(dataset, *options)) == 1
    error = capsys.readouterr().err
    assert "inplane_pixels: 32, now 16" in error and error.rstrip().endswith(
        "Use the same settings, another cache (--latents NAME), or replace it with --overwrite-latents"
    )
    assert train_ldm.main(command(dataset, *options, "--latents", "other")) == 0
    assert {path.name for path in (dataset.preprocessed / "fvae_latents").iterdir()} == {*latents, "other"}


@pytest.mark.slow
def test_pictures_and_tensorboard_are_written(trained, tmp_path):
    dataset, _ = trained
    options = ("--organ", "lungs", "--samples-every", "2", "--tensorboard", "-o", str(tmp_path / "model"))
    assert train_ldm.main(command(dataset, *options, steps=("--stage1-steps", "2", "--stage2-steps", "0"))) == 0
    assert [path.name for path in (tmp_path / "model" / "samples").iterdir()] == ["step_0000002.png"]
    assert list((tmp_path / "model" / "tensorboard").glob("events*"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """The folder of a text encoder of width 8."""
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "nodule"]
    folder = tmp_path_factory.mktemp("encoder")
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    transformers.BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_reports_condition_the_model(trained, encoder, tmp_path):
    dataset, _ = trained
    reports = tmp_path / "reports.json"
    reports.write_text(json.dumps({"phantom_000": "a nodule", "phantom_001": "a", "elsewhere": "nodule"}))
    text = ("--reports", str(reports), "--text-encoder", str(encoder), "-o", str(tmp_path / "model"))
    assert train_ldm.main(command(dataset, "--organ", "lungs", *text)) == 0
    model = LatentDiffusion.load(tmp_path / "model")
    assert model.settings.text_width == 8 and model.settings.text_encoder == encoder.name
    assert model.denoiser.config["text_width"] == 8
    reports.write_text(json.dumps({"elsewhere": "nodule"}))
    with pytest.raises(UserError, match="no text for any training case"):
        train_ldm.run(_parsed(dataset, *text))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cases", "options", "needed"),
    [(5, (), True), (4, (), False), (5, ("--condition-dropout", "0.1"), False), (0, (), False)],
    ids=["all", "some", "dropped", "none"],
)
def test_a_model_that_has_seen_no_case_without_text_needs_one(
    trained, encoder, tmp_path, capsys, cases, options, needed
):
    dataset, _ = trained
    (tmp_path / "reports.json").write_text(json.dumps({f"phantom_{number:03d}": "a nodule" for number in range(cases)}))
    if cases:
        options += ("--reports", str(tmp_path / "reports.json"), "--text-encoder", str(encoder))
    options += ("--organ", "lungs", "-o", str(tmp_path / "model"))
    assert train_ldm.main(command(dataset, *options, steps=("--stage1-steps", "1", "--stage2-steps", "0"))) == 0
    assert ("every case has a report" in capsys.readouterr().out) == needed
    model = LatentDiffusion.load(tmp_path / "model")
    assert needs_text(model.settings, model.training) == needed
    options = {"steps": 4, "generator": torch.Generator().manual_seed(0)}
    layout = Layout.of(np.ones((4, 32, 32), np.uint8), (1.0, 1.0, 1.0), organs=1)
    if needed:
        with pytest.raises(UserError, match="only on cases with a report; give a text"):
            model.generate(layout, **options)
    else:
        assert np.isfinite(model.generate(layout, **options)).all()


def test_pictures_are_made_with_the_cases_own_text(latents, tmp_path, monkeypatch):
    draws, settings = copy.copy(latents[0]), replace(latents[1], text_width=8)
    draws.texts = {"phantom_000": torch.ones(2, 8).half()}
    cases, texts = [], []
    draw, sample_latent = draws.sample, sampling.sample_latent

    def seen_draw(*arguments, **options):
        sample = draw(*arguments, **options)
        cases.append(sample.case)
        return sample

    def seen_sample(*arguments, text, **options):
        texts.append(None if text is None else text[0])
        return sample_latent(*arguments, text=text, **options)

    draws.sample = seen_draw
    monkeypatch.setattr(sampling, "sample_latent", seen_sample)
    plan = Plan(None, SETTINGS, settings, NoiseProcess(), {}, save_every=1)
    pictures = SamplePictures(tmp_path, draws, settings, NoiseProcess(steps=3), load_vae("tiny"), upright, seed=5)
    assert pictures(first_denoiser(plan).eval(), 3).is_file()
    assert set(cases) == {"phantom_000", "phantom_001"}, "the cases with lesion; else choose another seed"
    assert len(texts) == 2 * len(cases)
    for case, *given in zip(cases, texts[::2], texts[1::2]):
        for text in given:
            expected = draws.texts.get(case)
            assert text is None if expected is None else torch.equal(text, expected.float())


def test_pictures_say_real_and_show_organ_lesion_and_its_core(outlines, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    draws, model, settings = outlines("draft")
    vae = load_vae("tiny")
    pictures = SamplePictures(tmp_path, draws, model, NoiseProcess("sample", steps=2), vae, upright, seed=5)
    plan = Plan(None, settings, model, NoiseProcess("sample"), {}, save_every=1)
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (drawn.append(figure), save(figure, *a, **k)))
    assert pictures(first_denoiser(plan).eval(), 3).is_file()
    panels = drawn[0].axes
    assert [panel.get_title().split("\n")[0].split(": ")[-1] for panel in panels[:3]] == [
        "real", "lesion generated", "all generated",
    ]  # fmt: skip
    for panel in panels:
        assert [text.get_text() for text in panel.texts][:4] == ["R", "L", "A", "P"]
    assert {len(panel.collections) for panel in panels} == {4}, "line and casing of organ and lesion"
    sample = draws.sample(2, np.random.default_rng(0), with_lesion=True)
    pixels = pictures._lesion_pixels(sample)
    # the share of a cell's pixels is that of its lesion
    shares = pixels.reshape(len(pixels), -1, 8, pixels.shape[2] // 8, 8).mean(axis=(2, 4))
    assert np.array_equal(shares.astype(np.float32), sample.lesion.numpy()) and pixels.any()
    volume_hu = np.where(pixels, 40.0, -800.0)
    assert _core_of(volume_hu, pixels, sample.spacing_mm) == "\ncore 40 HU, SD 0"
    assert _core_of(volume_hu, np.zeros_like(pixels), sample.spacing_mm) == ""


def _parsed(dataset, *options):
    parsed = []
    original = train_ldm.run_command
    train_ldm.run_command = lambda parser, _, argv: parsed.append(parser.parse_args(argv)) or 0
    try:
        train_ldm.main(command(dataset, "--organ", "lungs", *options))
    finally:
        train_ldm.run_command = original
    return parsed[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--vae", "control:gaussian"), "a plain denoiser and has no latent"),
        ((), "give --organ lungs"),
        (("--organ", "lungs", "--leave-out", "phantom_9"), "no training case 'phantom_9'"),
        (("--organ", "lungs", "--window-slices", "0"), "--window-slices 0"),
        (("--organ", "lungs", "--spacing", "0", "1", "1"), "--spacing takes three positive numbers"),
        (("--organ", "lungs", "--text-encoder", "x"), "has no effect without --reports"),
        (("--organ", "lungs", "--accumulate", "3"), "make it a multiple of 3"),
        (("--organ", "lungs", "--mixed-precision", "fp16"), "fp16 needs a GPU"),
        (("--organ", "lungs", "--save-every", "0"), "--save-every must be at least 1"),
        (("--organ", "lungs", "--mask-encoding", "onehot", "--context", "masked"), "require --mask-encoding outline"),
        (("--organ", "lungs", "--prediction", "flow", "--context", "draft"), "draft also requires --prediction sample"),
    ],
)
def test_what_cannot_be_is_one_error(trained, capsys, options, message):
    assert train_ldm.main(command(trained[0], *options)) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_bad_cases_are_named_and_no_training_starts(capsys):
    dataset = phantom_dataset(cases=2)
    labels = read(label_file(dataset, "phantom_001"))
    rewrite(label_file(dataset, "phantom_001"), labels * 0)
    assert train_ldm.main(command(dataset)) == 1
    assert "phantom_001: the organ (label:pancreas) has no voxel" in capsys.readouterr().err
    assert not (dataset.results / "fvae_ldm__tiny" / "training").exists()
    rewrite(label_file(dataset, "phantom_001"), labels + 1)
    assert train_ldm.main(command(dataset)) == 1
    assert "has the labels 3" in capsys.readouterr().err
    edit_dataset_json(dataset, channel_names={"0": "CT", "1": "CT"})
    assert train_ldm.main(command(dataset)) == 1
    assert "2 CT channels" in capsys.readouterr().err


def test_help_imports_no_torch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "fvae_nnunet.cli.train_ldm", "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "--lesion-weight" in done.stdout and " torch\n" not in done.stderr


@pytest.mark.slow
def test_two_processes_of_accelerate_make_the_model_of_one(tmp_path):
    dataset = phantom_dataset(cases=3)
    options = command(dataset, "-o", str(tmp_path / "two"), steps=("--stage1-steps", "3", "--stage2-steps", "2"))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run(
        [*launch, "-m", "fvae_nnunet.cli.train_ldm", *options],
        cwd=sys.prefix, capture_output=True, text=True, check=False, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("model in") == 1
    assert [checkpoint.step for checkpoint in find_checkpoints(tmp_path / "two")] == [3, 5]
    assert read_json(tmp_path / "two" / "manifest.json")["kind"] == "ldm"
    options[options.index("-o") + 1] = str(tmp_path / "one")
    assert train_ldm.main(options) == 0
    one, two = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    assert one.keys() == two.keys()
    rows = list(zip(rows_of(tmp_path / "one"), rows_of(tmp_path / "two")))
    assert len(rows) == 5
    # the processes' gradients are summed in another order, which Adam's division by their size can magnify
    for first, second in rows:
        assert float(first["loss"]) == pytest.approx(float(second["loss"]), rel=1e-3)
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=1e-3, atol=1e-4)
