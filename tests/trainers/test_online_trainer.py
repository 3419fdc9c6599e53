import gc
import json
import random
import weakref
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from identity_vae import IdentityVAE
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from trainers_for_tests import batches, reproducible, trainer_of  # noqa: F401
from views_for_tests import BrighterVAE, make_view

from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.trained_model import open_model
from fvae_nnunet.reconstruction.settings import ReconstructionSettings
from fvae_nnunet.trainers import nnUNetTrainerFVAEOnline
from fvae_nnunet.training import online_vae as training_vae
from fvae_nnunet.training.compiled_vae import CompiledVAE
from fvae_nnunet.training.ct_patches import CTPatches
from fvae_nnunet.training.online import Draw, PatchReconstruction, ReconstructionTransform
from fvae_nnunet.vae import load_vae


@pytest.fixture(autouse=True)
def only_our_variables(monkeypatch):
    for variable in ("nnUNet_fvae_vae", "nnUNet_fvae_weights", "nnUNet_fvae_code", "nnUNet_fvae_view"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setenv("nnUNet_fvae_vae", "tiny")


class Never(nnUNetTrainerFVAEOnline):
    view_probability = 0.0


class Always(nnUNetTrainerFVAEOnline):
    view_probability = 1.0


class Sampling(nnUNetTrainerFVAEOnline):
    posterior = "sample"


def seed_everything():
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)


def seen_by_the_network(trainer, batch):
    seen = []
    handle = trainer.network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].clone()))
    trainer.train_step(batch)
    handle.remove()
    return seen[0]


def random_batch(trainer, samples=2, channels=1, seed=0):
    """Normalised CT values within the percentiles, and targets for deep supervision."""
    patches = CTPatches.of_plans(trainer.plans_manager.plans, trainer.configuration_name, trainer.dataset_json)
    return random_batch_of(trainer, patches, channels, samples=samples, seed=seed)


def random_batch_of(trainer, patches, channels, *, samples=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lower, upper = patches.channels[0].normalised_range
    size = trainer.configuration_manager.patch_size
    data = torch.rand(samples, channels, *size, generator=generator) * (upper - lower) + lower
    scales = trainer._get_deep_supervision_scales()
    target = [torch.zeros(samples, 1, *(round(n * s) for n, s in zip(size, scale))) for scale in scales]
    return {"data": data, "target": target, "keys": ["a", "b"]}


@pytest.mark.slow
def test_with_probability_zero_training_is_nnunets_to_the_bit_and_needs_no_vae(planned):
    trained = {}
    for base in (Never, nnUNetTrainer):
        seed_everything()
        trainer = trainer_of(base, planned)
        trainer.run_training()
        trained[base] = trainer.network.state_dict(), trainer.logger
    ours, nnunets = (trained[base][0] for base in (Never, nnUNetTrainer))
    assert ours.keys() == nnunets.keys()
    assert all(torch.equal(ours[key], nnunets[key]) for key in ours)


@pytest.mark.slow
def test_drawn_samples_reach_the_network_as_the_vae_gives_them(planned, tiny):
    trainer = trainer_of(nnUNetTrainerFVAEOnline, planned)
    batch = random_batch(trainer)
    before = batch["data"].clone()
    patches = CTPatches.of_plans(planned.plans, "3d_fullres", planned.dataset_json)
    reconstruction = PatchReconstruction(load_vae("tiny"), patches)
    numbers = set()
    for _ in range(6):
        seen = seen_by_the_network(trainer, batch)
        draw = trainer.last_draw
        numbers.add(draw.samples)
        assert torch.equal(seen, reconstruction.apply(batch["data"], draw))
        for sample in range(2):
            assert torch.equal(seen[sample], before[sample]) == (sample not in draw.samples)
    assert len(numbers) > 1
    assert torch.equal(batch["data"], before)


@pytest.mark.slow
def test_draws_follow_rank_epoch_and_iteration(planned, tiny):
    trainer = trainer_of(Sampling, planned)
    trainer._reconstruction = PatchReconstruction(
        IdentityVAE(), CTPatches.of_plans(planned.plans, "3d_fullres", planned.dataset_json)
    )
    batch = random_batch(trainer)

    def draws(epoch, rank=0):
        trainer.current_epoch, trainer.local_rank = epoch, rank
        trainer.lr_scheduler.step(epoch)
        trainer.iteration_of_epoch = 0
        found = []
        for _ in range(6):
            trainer.train_step(batch)
            found.append(trainer.last_draw)
        return found

    first, second = draws(0), draws(1)
    assert len({*first, *second}) > 8
    assert draws(1) == second
    assert draws(1, rank=1) != second


def test_validation_batches_are_not_touched(planned, tiny):
    trainer = trainer_of(Always, planned)
    trainer.on_train_start()
    batch = random_batch(trainer)
    seen = []
    trainer.network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].clone()))
    with torch.no_grad():
        trainer.validation_step(batch)
    trainer.train_step(batch)
    assert torch.equal(seen[0], batch["data"])
    assert not torch.equal(seen[1], batch["data"])


@pytest.mark.slow
def test_training_records_the_vae_frees_it_resumes_and_predicts_as_nnunet(clone, tiny):
    trainer = trainer_of(nnUNetTrainerFVAEOnline, clone)
    loaded = []
    original = trainer._load_reconstruction
    trainer._load_reconstruction = lambda: loaded.append(weakref.ref(found := original())) or found
    trainer.run_training()
    gc.collect()
    assert len(loaded) == 1 and loaded[0]() is None
    output = Path(trainer.output_folder)
    assert output.parent.name == "nnUNetTrainerFVAEOnline__nnUNetPlans__3d_fullres"
    log = next(output.glob("training_log*")).read_text()
    assert log.count("training patches pass through tiny (named by nnUNet_fvae_vae) on cpu") == 1
    sha = load_vae("tiny").weights_sha256
    debug = json.loads((output / "debug.json").read_text())
    assert sha in debug["view_settings"] and "'probability': 0.5" in debug["online_settings"]

    checkpoint = torch.load(output / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert checkpoint["network_weights"].keys() == trainer.network.state_dict().keys()
    record = checkpoint["fvae_nnunet"]
    assert record["trainer"] == "nnUNetTrainerFVAEOnline"
    assert record["view"] == {
        "vae": "tiny", "weights_sha256": sha, "precision": "float32", "hu_window": (-1000.0, 1000.0),
        "window_slices": 8, "overlap_slices": 0, "scheme": "windows", "truncate": False, "posterior_seed": None,
        "ct_channels": [0],
    }  # fmt: skip
    assert record["online"]["blend"] == [1.0, 1.0] and record["online"]["posterior"] == "mode"
    model = open_model(output.parent, (0,), "checkpoint_final.pth")
    assert model.reconstructed_channels() == [0] and model.reconstruction["vae"] == "tiny"
    assert model.saw_only_the_view is False

    again = trainer_of(nnUNetTrainerFVAEOnline, clone, continue_training=True)
    again.num_epochs = 2
    again.optimizer, again.lr_scheduler = again.configure_optimizers()
    again.load_checkpoint(str(output / "checkpoint_final.pth"))
    draws = []
    step = again.train_step
    again.train_step = lambda batch: (step(batch), draws.append(again.last_draw))[0]
    again.run_training()
    assert draws == [
        Draw.random(again.batch_size, probability=0.5, entropy=(0, 0, 1, iteration)) for iteration in range(2)
    ]


@pytest.mark.slow
def test_a_compiled_vae_is_gone_when_training_ends(planned, tiny, monkeypatch):
    trainer = trainer_of(Always, planned)
    monkeypatch.setattr(nnUNetTrainer, "on_train_end", lambda self: freed.append(vae() is None))
    trainer._reconstruction = trainer._load_reconstruction()
    CompiledVAE(trainer._reconstruction.vae, backend="eager")
    vae, freed = weakref.ref(trainer._reconstruction.vae), []
    trainer.on_train_end()  # nnU-Net's part empties the cache
    assert freed == [True]


@pytest.mark.slow
def test_the_view_names_the_vae_and_its_weights_are_checked(clone, monkeypatch):
    made = BrighterVAE(slice_stride=4, slice_offset=1, window_slices=9)
    make_view(clone, made, configurations=["3d_fullres"])
    asked = []

    def load(name, **options):
        asked.append((name, options))
        return BrighterVAE(slice_stride=4, slice_offset=1, window_slices=9)

    monkeypatch.setattr(training_vae, "load_vae", load)
    trainer = trainer_of(Always, clone)
    batch = random_batch(trainer)
    seen = seen_by_the_network(trainer, batch)
    channel = CTPatches.of_plans(clone.plans, "3d_fullres", clone.dataset_json).channels[0]
    lower, upper = channel.normalised_range
    torch.testing.assert_close(seen, (batch["data"] + 60 / channel.sd_hu).clamp(lower, upper), rtol=0, atol=1e-4)
    assert asked[0][0] == "identity" and asked[0][1]["device"] == torch.device("cpu")
    assert trainer.view_settings["hu_window"] == (-3000.0, 3000.0)
    assert trainer.view_settings["window_slices"] == 9
    assert trainer.online_settings["vae_named_by"] == "the view 'test'"

    other = BrighterVAE()
    other.weights_sha256 = "1" * 64
    monkeypatch.setattr(training_vae, "load_vae", lambda name, **options: other)
    with pytest.raises(UserError, match=r"weights of identity are not those .* export nnUNet_fvae_weights=PATH"):
        trainer_of(Always, clone).on_train_start()


@pytest.mark.slow
def test_the_passes_of_the_view_are_those_of_the_patches(clone):
    vae = load_vae("tiny")
    passes = {"inner_windows": ((-200.0, 300.0),), "pixel_mm": 1.5, "average": 2}
    make_view(clone, vae, configurations=["3d_fullres"], hu_window=(-1000.0, 1000.0), **passes)
    trainer = trainer_of(Always, clone)
    batch = random_batch(trainer)
    seen = seen_by_the_network(trainer, batch)
    assert {name: trainer.view_settings[name] for name in passes} == passes
    patches = CTPatches.of_plans(clone.plans, "3d_fullres", clone.dataset_json)
    assert patches.plane_mm == tuple(clone.plans["configurations"]["3d_fullres"]["spacing"][1:])
    settings = ReconstructionSettings.for_vae(vae.spec, **passes)
    everything = Draw((0, 1), (1.0, 1.0))
    expected = PatchReconstruction(vae, patches, settings).apply(batch["data"], everything)
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-4)
    plain = PatchReconstruction(vae, patches).apply(batch["data"], everything)
    assert not torch.allclose(seen, plain, atol=1e-2)


@pytest.mark.slow
def test_a_control_takes_its_strength_from_its_view(clone, monkeypatch):
    monkeypatch.setenv("nnUNet_fvae_weights", "of_another_vae.pth")
    vae = load_vae("control:gaussian", strength=1.5)
    make_view(clone, vae, configurations=["3d_fullres"])
    trainer = trainer_of(Always, clone)
    batch = random_batch(trainer)
    seen = seen_by_the_network(trainer, batch)
    assert trainer.view_settings["strength"] == 1.5
    assert seen.std() < batch["data"].std() / 2


def test_what_names_no_vae_is_refused_with_a_way_out(clone, monkeypatch):
    def error():
        with pytest.raises(UserError) as raised:
            trainer_of(nnUNetTrainerFVAEOnline, clone).on_train_start()
        return str(raised.value)

    message = error()
    assert "has no reconstructed view" in message and "export nnUNet_fvae_vae=tiny" in message
    monkeypatch.setenv("nnUNet_fvae_vae", "control:gaussian")
    assert f"fvae-preprocess {clone.id} -c 3d_fullres -p nnUNetPlans --vae control:gaussian and a strength" in error()
    monkeypatch.setenv("nnUNet_fvae_vae", "wan2.3")
    assert "Did you mean wan2" in error()


def test_other_normalisations_are_refused_at_the_start(clone, tiny):
    plans = clone.plans
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["ZScoreNormalization"]
    clone.write_plans(plans)
    with pytest.raises(UserError, match=r"channel 0 is CT but its normalisation is ZScore.*nnUNetTrainerFVAE"):
        trainer_of(nnUNetTrainerFVAEOnline, clone).on_train_start()
    clone.write_dataset_json(clone.dataset_json | {"channel_names": {"0": "MR"}})
    plans["configurations"]["2d"]["normalization_schemes"] = ["ZScoreNormalization"]
    clone.write_plans(plans)
    with pytest.raises(UserError, match="no channel is CT"):
        trainer_of(nnUNetTrainerFVAEOnline, clone).on_train_start()


@pytest.mark.slow
def test_a_foreground_that_is_no_hu_is_refused_at_the_start_unless_trainer_or_view_take_it(clone, monkeypatch):
    (folder,) = make_view(clone, load_vae("tiny"), configurations=["3d_fullres"]).values()
    plans = clone.plans
    plans["foreground_intensity_properties_per_channel"]["0"] |= {
        "std": 0.01,
        "percentile_00_5": 0,
        "percentile_99_5": 1,
    }
    clone.write_plans(plans)
    with pytest.raises(UserError, match=r"channel 0 \(CT\) cannot be in HU.*seems to be scaled.*hu_as_is = True"):
        trainer_of(Always, clone).on_train_start()

    class AsItIs(Always):
        hu_as_is = True

    as_it_is = trainer_of(AsItIs, clone)
    as_it_is._load_reconstruction()
    assert as_it_is.training_record()["view_hu_as_is"] is True
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"view": "test"', '"hu_as_is": true, "view": "test"'))
    always = trainer_of(Always, clone)
    always._load_reconstruction()
    assert always.training_record()["view_hu_as_is"] is True


def test_the_channels_of_the_view_or_of_the_trainer_are_reconstructed(clone, tiny):
    clone.write_dataset_json(clone.dataset_json | {"channel_names": {"CT": "CT", "PET": "CT"}})
    plans = clone.plans
    foreground = plans["foreground_intensity_properties_per_channel"]
    foreground["1"] = foreground["0"] | {"std": 3.0, "percentile_00_5": 0, "percentile_99_5": 15}
    plans["configurations"]["3d_fullres"] |= {
        "normalization_schemes": ["CTNormalization"] * 2,
        "use_mask_for_norm": [False] * 2,
    }
    clone.write_plans(plans)
    with pytest.raises(UserError, match=r"channel 1 \(CT\) cannot be in HU.*leave out the channel \(ct_channels"):
        trainer_of(Always, clone).on_train_start()

    class FirstOnly(Always):
        ct_channels = (0,)

    trainer = trainer_of(FirstOnly, clone)
    batch = random_batch_of(trainer, CTPatches.of_plans(plans, "3d_fullres", clone.dataset_json, channels=[0]), 2)
    seen = seen_by_the_network(trainer, batch)
    assert not torch.equal(seen[:, 0], batch["data"][:, 0]) and torch.equal(seen[:, 1], batch["data"][:, 1])
    assert trainer.view_settings["ct_channels"] == [0]


def test_a_posterior_that_the_vae_does_not_have_is_refused(planned, monkeypatch, tiny):
    monkeypatch.setattr(training_vae, "load_vae", lambda name, **options: IdentityVAE())
    with pytest.raises(UserError, match="identity has no posterior to draw from"):
        trainer_of(Sampling, planned).on_train_start()


def test_2d_trains_with_an_image_vae_and_refuses_a_video_vae(planned, monkeypatch, tiny):
    trainer = trainer_of(Always, planned, "2d")
    batch = random_batch(trainer)
    assert not torch.equal(seen_by_the_network(trainer, batch), batch["data"])
    video = IdentityVAE(slice_stride=4, slice_offset=1)
    monkeypatch.setattr(training_vae, "load_vae", lambda name, **options: video)
    with pytest.raises(UserError, match="2d: identity is a video VAE"):
        trainer_of(Always, planned, "2d").on_train_start()


def test_in_a_cascade_the_previous_stage_is_not_touched(clone, tiny):
    clone.write_cascade_plans()
    trainer = trainer_of(Always, clone, "3d_cascade_fullres")
    batch = random_batch(trainer, channels=3)
    seen = seen_by_the_network(trainer, batch)
    assert not torch.equal(seen[:, 0], batch["data"][:, 0])
    assert torch.equal(seen[:, 1:], batch["data"][:, 1:])


@pytest.mark.slow
def test_the_transform_in_another_trainers_augmentation_gives_what_the_online_trainer_does(planned):
    class WithTransform(nnUNetTrainer):
        def get_training_transforms(self, *arguments, **options):
            transforms = nnUNetTrainer.get_training_transforms(*arguments, **options)
            patches = CTPatches.of_plans(self.plans_manager.plans, self.configuration_name, self.dataset_json)
            transforms.transforms.append(ReconstructionTransform(partial(load_vae, "tiny"), patches))
            return transforms

    (ours,), (nnunets,) = (batches(base, planned, number=1)[:1] for base in (WithTransform, nnUNetTrainer))
    patches = CTPatches.of_plans(planned.plans, "3d_fullres", planned.dataset_json)
    everything = Draw.random(len(nnunets["data"]), probability=1.0, entropy=(0,))
    expected = PatchReconstruction(load_vae("tiny"), patches).apply(nnunets["data"], everything)
    torch.testing.assert_close(ours["data"], expected, rtol=0, atol=1e-4)
    assert not torch.equal(ours["data"], nnunets["data"])
    assert all(torch.equal(a, b) for a, b in zip(ours["target"], nnunets["target"]))
