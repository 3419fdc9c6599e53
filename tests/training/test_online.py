import pickle
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from identity_vae import IdentityVAE
from patches_for_tests import CHANNEL, PATCHES, NoisyVAE, batch_of, hu_volume, normalised, two_processes

from fvae_nnunet.device.memory import TooLittleMemory
from fvae_nnunet.errors import UserError
from fvae_nnunet.reconstruction import schemes
from fvae_nnunet.reconstruction.settings import ReconstructionSettings
from fvae_nnunet.reconstruction.volume import reconstruct_volume
from fvae_nnunet.training import online as transforms
from fvae_nnunet.training.ct_patches import CTChannel
from fvae_nnunet.training.online import Draw, PatchReconstruction, ReconstructionTransform
from fvae_nnunet.vae import load_vae

ALL = Draw((0, 1), (1.0, 1.0))


class SmoothingVAE(IdentityVAE):
    """Each slice becomes the mean of itself and all earlier ones of its window, blurred along x; counts its calls."""

    def decode(self, latent):
        running = latent.float().cumsum(dim=2) / torch.arange(1, latent.shape[2] + 1).reshape(1, 1, -1, 1, 1)
        return (running + running.roll(1, dims=4)) / 2


def test_the_normalisation_is_undone_exactly_within_float32():
    hu = hu_volume((50, 40, 30))
    inside = np.clip(hu, -96, 215)
    # three operations on values below 300, each rounded to 2^-24 of it
    np.testing.assert_allclose(CHANNEL.to_hu(normalised(hu)).numpy(), inside, rtol=0, atol=3 * 300 * 2**-24)
    torch.testing.assert_close(CHANNEL.normalised(torch.from_numpy(inside)), normalised(hu), rtol=0, atol=5e-7)
    assert CHANNEL.normalised_range == pytest.approx((float(normalised(hu).min()), float(normalised(hu).max())))


PASSES = {"inner_windows": ((-200.0, 300.0),), "pixel_mm": 0.4, "average": 2}


@pytest.mark.parametrize("passes", [{}, PASSES])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_a_patch_equals_the_reconstruction_of_its_volume_normalised_by_nnunet(axes, passes):
    """Slices run along the image's own first axis whatever the plans transpose; long patches are blended."""
    vae = SmoothingVAE(slice_stride=4, slice_offset=1, window_slices=9)
    settings = ReconstructionSettings.for_vae(vae.spec, **passes)
    assert settings.overlap_slices == 4
    images = [hu_volume((22, 13, 17), seed) for seed in (0, 1)]
    clipped = [np.clip(image, -96, 215) for image in images]
    expected = [
        normalised(reconstruct_volume(vae, image, settings, spacing_mm=(3, 0.8, 0.6))).numpy().transpose(axes)
        for image in clipped
    ]
    patches = torch.stack([normalised(image).permute(axes)[None] for image in images])
    of_plans = replace(PATCHES, transpose_forward=axes, plane_mm=(0.8, 0.6))
    result = PatchReconstruction(vae, of_plans, settings).apply(patches, ALL)
    np.testing.assert_allclose(result[:, 0].numpy(), np.stack(expected), rtol=0, atol=2e-6)


def test_only_drawn_samples_and_ct_channels_change_and_the_batch_stays_as_it_was():
    batch = torch.cat([batch_of(3, 2, 6, 8, 8), (batch_of(3, 1, 6, 8, 8) > 0).float()], dim=1)
    before = batch.clone()
    patches = replace(PATCHES, channels=(replace(CHANNEL, index=1),))
    result = PatchReconstruction(SmoothingVAE(), patches).apply(batch, Draw((0, 2), (1.0, 1.0)))
    assert torch.equal(batch, before)
    assert torch.equal(result[1], batch[1])
    assert torch.equal(result[:, [0, 2]], batch[:, [0, 2]])
    assert all((result[sample, 1] != batch[sample, 1]).float().mean() > 0.9 for sample in (0, 2))


def test_several_ct_channels_have_their_own_figures():
    other = CTChannel(index=1, mean_hu=-500.0, sd_hu=300.0, lower_hu=-900.0, upper_hu=100.0)
    hu = hu_volume((1, 2, 4, 8, 8), lowest=-90, highest=90)
    batch = torch.stack([c.normalised(torch.from_numpy(hu[:, c.index])) for c in (CHANNEL, other)], dim=1)
    vae = SmoothingVAE()
    result = PatchReconstruction(vae, replace(PATCHES, channels=(CHANNEL, other))).apply(batch, Draw((0,), (1.0,)))
    for channel in (CHANNEL, other):
        expected = reconstruct_volume(vae, hu[0, channel.index])
        np.testing.assert_allclose(channel.to_hu(result[0, channel.index]).numpy(), expected, atol=2e-4)


def test_an_identity_returns_its_input_also_what_augmentation_led_beyond_the_percentiles():
    batch = batch_of(2, 1, 5, 9, 11) * 1.3
    assert batch.max() > CHANNEL.normalised_range[1] * 1.2
    vae = IdentityVAE(slice_stride=4, slice_offset=1, window_slices=9)
    torch.testing.assert_close(PatchReconstruction(vae, PATCHES).apply(batch, ALL), batch, rtol=0, atol=1e-5)


def test_a_view_is_clipped_to_the_percentiles_and_the_vaes_input_to_the_hu_window():
    class Brighter(IdentityVAE):
        def decode(self, latent):
            return latent + 0.1

    batch = batch_of(2, 1, 4, 8, 8)
    lower, upper = CHANNEL.normalised_range
    result = PatchReconstruction(Brighter(), PATCHES).apply(batch, ALL)
    torch.testing.assert_close(result, (batch + 100 / 71.5).clamp(lower, upper), rtol=0, atol=1e-5)
    narrow = ReconstructionSettings.for_vae(IdentityVAE().spec, hu_window=(0.0, 100.0))
    result = PatchReconstruction(IdentityVAE(), PATCHES, narrow).apply(batch, ALL)
    ends = [(end - 83.25) / 71.5 for end in (0, 100)]
    torch.testing.assert_close(result, batch.clamp(*ends), rtol=0, atol=1e-5)


def test_the_weight_blends_raw_and_view():
    batch = batch_of(2, 1, 4, 8, 8)
    reconstruction = PatchReconstruction(SmoothingVAE(), PATCHES)
    view = reconstruction.apply(batch, ALL)
    mixed = reconstruction.apply(batch, Draw((0, 1), (0.25, 0.0)))
    torch.testing.assert_close(mixed[0], batch[0] + 0.25 * (view[0] - batch[0]), rtol=0, atol=1e-6)
    assert torch.equal(mixed[1], batch[1])


@pytest.fixture(params=[1, 2, 3, 5, 100])
def most(request, monkeypatch):
    """So many windows may go through the VAE at once."""
    monkeypatch.setattr(transforms, "windows_of_a_call", lambda voxels, device: request.param)
    return request.param


@pytest.mark.parametrize("vae", [SmoothingVAE(slice_stride=4, slice_offset=1, window_slices=9), SmoothingVAE()])
def test_chunks_do_not_change_values(vae, most):
    batch = batch_of(3, 1, 22, 9, 8)
    draw = Draw((0, 1, 2), (1.0, 1.0, 0.5))
    vae.windows.clear()
    found = PatchReconstruction(vae, PATCHES).apply(batch, draw)
    together = {shape[0] for shape in vae.windows}
    with pytest.MonkeyPatch.context() as one_by_one:
        one_by_one.setattr(transforms, "windows_of_a_call", lambda voxels, device: 1)
        assert torch.equal(found, PatchReconstruction(vae, PATCHES).apply(batch, draw))
    assert max(together) <= most
    assert max(together) > 1 or most == 1


def test_chunks_do_not_change_the_values_of_a_real_vae(most):
    batch, reconstruction = batch_of(2, 1, 11, 20, 24), PatchReconstruction(load_vae("tiny"), PATCHES)
    found = reconstruction.apply(batch, ALL)
    with pytest.MonkeyPatch.context() as one_by_one:
        one_by_one.setattr(transforms, "windows_of_a_call", lambda voxels, device: 1)
        # the order of sums in convolutions may depend on the batch
        torch.testing.assert_close(found, reconstruction.apply(batch, ALL), rtol=0, atol=1e-4)


def test_sizes_of_calls_do_not_depend_on_how_many_samples_are_drawn(monkeypatch):
    monkeypatch.setattr(transforms, "windows_of_a_call", lambda voxels, device: 3)
    batch, sizes = batch_of(4, 1, 30, 9, 8), []
    for drawn in ((0,), (1, 3), (0, 1, 2, 3)):
        vae = SmoothingVAE(slice_stride=4, slice_offset=1, window_slices=9)
        PatchReconstruction(vae, PATCHES).apply(batch, Draw(drawn, (1.0,) * len(drawn)))
        sizes.append(vae.windows)
    assert sizes[1] == 2 * sizes[0] and sizes[2] == 4 * sizes[0]


def test_too_little_memory_is_an_error_with_a_way_out():
    class TooLarge(IdentityVAE):
        def decode(self, latent):
            raise TooLittleMemory("identity: too little memory")

    with pytest.raises(UserError, match=r"identity: too little memory. In training, .*nnUNetTrainerFVAE"):
        PatchReconstruction(TooLarge(), PATCHES).apply(batch_of(1, 1, 4, 8, 8), Draw((0,), (1.0,)))


def test_on_a_gpu_the_windows_of_a_sample_go_together(monkeypatch):
    monkeypatch.setattr(schemes, "VOXELS_OF_A_CALL", 4 * 8 * 8 * 8)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [schemes.windows_of_a_call(8 * 8 * 8, device) for device in (cpu, gpu)] == [1, 4]
    assert schemes.windows_of_a_call(10**9, gpu) == 1
    windows = [(start, start + 8) for start in range(0, 48, 8)]
    assert [len(some) for some in schemes._batches(windows, 64, gpu, one_by_one=False)] == [3, 3]
    assert [len(some) for some in schemes._batches(windows, 64, gpu, one_by_one=True)] == [1] * 6


def test_2d_takes_image_vaes_and_refuses_video_vaes():
    slices = replace(PATCHES, transpose_forward=None)
    batch = batch_of(3, 2, 20, 12)
    vae = SmoothingVAE()
    result = PatchReconstruction(vae, slices).apply(batch, Draw((1,), (1.0,)))
    clipped = CHANNEL.to_hu(batch[1, 0]).numpy()[None]
    expected = torch.from_numpy(reconstruct_volume(vae, clipped)[0])
    torch.testing.assert_close(result[1, 0], CHANNEL.normalised(expected), rtol=0, atol=1e-5)
    assert torch.equal(result[[0, 2]], batch[[0, 2]])
    with pytest.raises(UserError, match=r"2d: identity is a video VAE.*image VAE.*nnUNetTrainerFVAE"):
        PatchReconstruction(IdentityVAE(slice_stride=4, slice_offset=1), slices)


def test_draws_from_the_posterior_depend_on_the_sample_not_on_its_batch():
    batch = batch_of(3, 1, 20, 8, 8)
    reconstruction = PatchReconstruction(NoisyVAE(), PATCHES)
    assert reconstruction.has_posterior()
    assert not PatchReconstruction(IdentityVAE(), PATCHES).has_posterior()
    together = reconstruction.apply(batch, Draw((0, 2), (1.0, 1.0), (5, 6)))
    reconstruction.windows_of_a_call = 8
    alone = reconstruction.apply(batch, Draw((2,), (1.0,), (6,)))
    assert torch.equal(together[2], alone[2])
    again = reconstruction.apply(batch, Draw((2,), (1.0,), (7,)))
    inside = (batch[2] - batch[2].mean()).abs() < 0.5
    # two independent draws of 20 HU: sqrt(2) * 20 / 71.5
    assert (again[2] - alone[2])[inside].std().item() == pytest.approx(2**0.5 * 20 / 71.5, rel=0.1)


def test_draws_follow_their_settings_and_depend_on_the_entropy_alone():
    draws = [Draw.random(4, probability=0.25, blend=(0.5, 1.0), entropy=(0, 0, 0, step)) for step in range(2000)]
    drawn = np.array([len(draw.samples) for draw in draws])
    assert drawn.mean() / 4 == pytest.approx(0.25, abs=0.015)  # three standard deviations of 8000 draws
    weights = np.concatenate([draw.weights for draw in draws])
    assert weights.min() >= 0.5 and weights.max() <= 1.0
    assert weights.mean() == pytest.approx(0.75, abs=0.01)
    assert len(set(draws)) > 1000
    same = partial(Draw.random, 4, probability=1.0, posterior="sample")
    assert same(entropy=(1, 2, 3, 4)) == same(entropy=(1, 2, 3, 4))
    assert (
        len({same(entropy=entropy).seeds for entropy in [(1, 2, 3, 4), (0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 3, 5)]}) == 4
    )
    assert Draw.random(4, probability=0.0, entropy=(0,)) == Draw((), ())
    assert Draw.random(3, probability=1.0, entropy=(0,)) == Draw((0, 1, 2), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probability": 1.5}, "view_probability and view_blend must be in"),
        ({"probability": 0.5, "blend": (0.5, 0.2)}, "lowest first; got 0.5 and"),
        ({"probability": 0.5, "posterior": "mean"}, "'mode' or 'sample'"),
    ],
)
def test_draw_settings_are_checked(settings, message):
    with pytest.raises(UserError, match=message):
        Draw.random(2, entropy=(0,), **settings)


def test_values_that_are_not_finite_are_refused():
    class Overflowing(IdentityVAE):
        def decode(self, latent):
            return latent + float("inf")

    with pytest.raises(UserError, match="not finite; use float32"):
        PatchReconstruction(Overflowing(), PATCHES).apply(batch_of(1, 1, 4, 8, 8), Draw((0,), (1.0,)))


@pytest.mark.slow
def test_memory_does_not_grow_over_steps():
    """No tensor outlives its step: after fifty steps torch's tensors are as many as after five."""
    import gc

    def tensors():
        gc.collect()
        return sum(type(found) is torch.Tensor for found in gc.get_objects())  # not the fake ones of other tests

    reconstruction = PatchReconstruction(load_vae("tiny"), PATCHES)
    batch, counts = batch_of(2, 1, 4, 16, 16), []
    for step in range(50):
        draw = Draw.random(2, probability=0.5, blend=(0.0, 1.0), posterior="sample", entropy=(step,))
        reconstruction.apply(batch, draw)
        if step in (5, 49):
            counts.append(tensors())
    assert counts[0] == counts[1]


def test_the_transform_gives_the_trainers_values_and_leaves_the_rest():
    batch = batch_of(2, 1, 11, 20, 24)
    expected = PatchReconstruction(load_vae("tiny"), PATCHES).apply(batch, ALL)
    transform = ReconstructionTransform(partial(load_vae, "tiny"), PATCHES)
    segmentation = torch.ones(1, 11, 20, 24, dtype=torch.int16)
    for sample in range(2):
        done = transform(image=batch[sample], segmentation=segmentation)
        torch.testing.assert_close(done["image"], expected[sample], rtol=0, atol=1e-5)
        assert done["segmentation"] is segmentation


def test_the_transform_draws_from_numpys_generator_and_is_pickled_without_its_vae():
    transform = ReconstructionTransform(NoisyVAE, PATCHES, blend=(0.0, 1.0), posterior="sample")
    image = batch_of(1, 8, 8, 8)
    np.random.seed(3)
    first = transform(image=image)["image"]
    copy = pickle.loads(pickle.dumps(transform))
    assert transform._reconstruction is not None and copy._reconstruction is None
    np.random.seed(3)
    assert torch.equal(copy(image=image)["image"], first)
    assert not torch.equal(copy(image=image)["image"], first)
    assert RandomTransform(transform, apply_probability=0)(image=image)["image"] is image


@pytest.mark.slow
def test_two_ranks_draw_differently_and_a_resumed_run_draws_the_same(tmp_path):
    torch.multiprocessing.spawn(two_processes, (str(tmp_path),), nprocs=2)
    batch, whole, resumed = torch.load(tmp_path / "steps.pt")
    assert torch.equal(whole[3:], resumed)
    changed = (whole != batch).flatten(3).any(-1)  # (step, rank, sample)
    assert not torch.equal(changed[:, 0], changed[:, 1])
    both = changed[:, 0] & changed[:, 1]
    assert both.any()
    assert all(not torch.equal(whole[s, 0, n], whole[s, 1, n]) for s, n in both.nonzero().tolist())
