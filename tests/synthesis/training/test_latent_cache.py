"""The cache of latents: what is in it, when it counts as complete, and what is drawn from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from scipy import ndimage
from synthesis_for_tests import SHAPE, image_file, label_file, phantom_dataset, read, rewrite
from tiny_models import tiny_wan, wan_vae

from fvae_nnunet.ct.intensity import hu_to_model
from fvae_nnunet.errors import UserError
from fvae_nnunet.jobs.manifest import Manifest
from fvae_nnunet.synthesis.lesions.appearance import Appearance
from fvae_nnunet.synthesis.lesions.measures import measure_lesion
from fvae_nnunet.synthesis.lesions.shapes import MIN_VOXELS
from fvae_nnunet.synthesis.model.conditions import ConditionFormat, packed_condition
from fvae_nnunet.synthesis.model.draft import drafted
from fvae_nnunet.synthesis.model.latent_encoding import LatentSettings, choose_inplane_pixels
from fvae_nnunet.synthesis.model.latent_windows import choose_window_slices, plan_pieces
from fvae_nnunet.synthesis.model.layout import Layout
from fvae_nnunet.synthesis.model.lesion_detail import AppearanceScale, unpacked_outline
from fvae_nnunet.synthesis.model.mask_conditions import class_shares, grey_condition
from fvae_nnunet.synthesis.model.noise_process import NoiseProcess
from fvae_nnunet.synthesis.sources.dataset import open_source_dataset
from fvae_nnunet.synthesis.training.latent_cache import (
    cache_folder,
    complete_cache,
    latent_statistics,
    latents_path,
    read_records,
    remove_cache,
)
from fvae_nnunet.synthesis.training.latent_draws import LatentDraws, random_streams
from fvae_nnunet.vae import load_vae

HU_WINDOW = (-1000.0, 1000.0)


def settings_of(**changes):
    return LatentSettings(**{"hu_window": HU_WINDOW, "window_slices": 8, "inplane_pixels": 32, "spacing_mm": None}
                          | {"mask_encoding": "onehot"} | changes)  # fmt: skip


def fill(dataset, vae, settings, name="test", **options):
    """The cache's folder, and the cases that were encoded now."""
    source = open_source_dataset(dataset.name)
    folder = cache_folder(source, name)
    made = []
    complete_cache(
        folder,
        source,
        vae,
        settings,
        made_with={},
        workers=0,
        on_case=lambda outcome: made.append(outcome.case) if outcome.result is not None else None,
        **options,
    )
    return folder, made


@pytest.fixture(scope="module")
def tiny():
    return load_vae("tiny")


@pytest.fixture(scope="module")
def filled(tiny):
    """Three cases with the image VAE. Not to be changed."""
    dataset = phantom_dataset()
    return dataset, fill(dataset, tiny, settings_of())[0]


def condition_of(tensors):
    """(P, K, d, h, w) float32, whatever way it is stored."""
    if "condition" in tensors:
        return tensors["condition"].astype(np.float32)
    dense = np.zeros((len(tensors["classes"]), 3, *tensors["classes"].shape[2:]), np.float32)
    for number in range(3):
        dense[:, number] = np.where(tensors["classes"] == number, tensors["shares"].astype(np.float32), 0).sum(1)
    return dense


def float16_of(latent):
    return latent.to(torch.float16).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["onehot", "vae"])
def test_latents_of_a_window_are_those_of_the_vae(tiny, filled, encoding):
    dataset, folder = filled
    if encoding == "vae":
        folder, _ = fill(dataset, tiny, settings_of(mask_encoding="vae"), name="vae")
    volume = hu_to_model(torch.from_numpy(read(image_file(dataset, "phantom_001"))), HU_WINDOW)
    classes = torch.from_numpy(read(label_file(dataset, "phantom_001")))
    tensors, record = load_file(latents_path(folder, "phantom_001")), read_records(folder, ["phantom_001"])
    windows = record["phantom_001"]["windows"]
    assert len(windows) >= 3
    for piece, first, start, _ in windows:
        window = slice(start, start + 8)
        latent = tiny.encode(volume[window][None, None])[0]
        if encoding == "vae":
            expected = grey_condition(classes[window][None], tiny, classes=2)[0]
        else:
            expected = class_shares(classes[window][None], tiny.spec, classes=2).dense(2)[0]
        # the batch of slices is another one, so sums are rounded in another order: at most the last bit of float16
        stored = tensors["latent"][piece, :, first : first + 8]
        np.testing.assert_allclose(stored.astype(np.float32), latent.numpy(), rtol=2**-10, atol=1e-4)
        condition = condition_of(tensors)[piece, :, first : first + 8]
        np.testing.assert_allclose(condition, expected.numpy(), rtol=2**-10, atol=1e-4)


@pytest.mark.slow
def test_latents_of_a_video_vae_are_those_of_each_window_to_the_bit():
    vae = wan_vae(tiny_wan())
    dataset = phantom_dataset(cases=1)
    folder, _ = fill(dataset, vae, settings_of(window_slices=9))
    volume = hu_to_model(torch.from_numpy(read(image_file(dataset, "phantom_000"))), HU_WINDOW)
    labels = read(label_file(dataset, "phantom_000"))
    tensors, record = load_file(latents_path(folder, "phantom_000")), read_records(folder, ["phantom_000"])
    windows = record["phantom_000"]["windows"]
    assert tensors["latent"].shape == (len(windows), 4, 3, 4, 4)
    for piece, first, start, holds in windows:
        latent = vae.encode(volume[start : start + 9][None, None])[0]
        assert first == 0 and (tensors["latent"][piece] == float16_of(latent)).all()
        assert bool(holds) == (labels[start : start + 9] == 2).any()
        # the first latent slice covers one slice, the next four
        share = (labels[start + 1 : start + 5, :8, 8:16] == 2).mean()
        assert tensors["lesion"][piece, 1, 0, 1] == np.float16(share)


def test_the_lesion_share_of_a_cell_is_that_of_its_voxels(filled):
    dataset, folder = filled
    lesion = read(label_file(dataset, "phantom_000")) == 2
    expected = lesion.reshape(20, 4, 8, 4, 8).mean(axis=(2, 4)).astype(np.float16)
    stored = load_file(latents_path(folder, "phantom_000"))["lesion"]
    assert (stored[0] == expected).all() and expected.any()
    slices = read_records(folder, ["phantom_000"])["phantom_000"]["lesion_slices"]
    assert slices == [[0, number] for number in np.flatnonzero(lesion.any(axis=(1, 2)))]


def test_statistics_are_those_of_all_latents(filled):
    _, folder = filled
    records = read_records(folder, ["phantom_000", "phantom_001", "phantom_002"])
    mean, std = latent_statistics(records.values())
    latents = [load_file(latents_path(folder, case))["latent"].astype(np.float64) for case in records]
    together = np.concatenate([latent.transpose(1, 0, 2, 3, 4).reshape(16, -1) for latent in latents], axis=1)
    np.testing.assert_allclose(mean, together.mean(axis=1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(std, together.std(axis=1), rtol=1e-9)


def test_statistics_weigh_cases_by_their_cells():
    records = [
        {"shape": [1, 1, 1, 1], "mean": [1.0, 2.0], "variance": [0.0, 0.0]},
        {"shape": [1, 3, 1, 1], "mean": [5.0, 2.0], "variance": [2.0, 0.0]},
    ]
    mean, std = latent_statistics(records)
    # mean (1 + 3 * 5) / 4; variance within 3 * 2 / 4 and between 1/4 * 9 + 3/4 * 1; the second channel never changes
    assert mean == (4.0, 2.0) and std == pytest.approx((4.5**0.5, 1.0))


@pytest.mark.slow
def test_a_complete_cache_is_left_alone_and_what_is_missing_is_made(tiny):
    dataset = phantom_dataset()
    folder, made = fill(dataset, tiny, settings_of())
    assert made == ["phantom_000", "phantom_001", "phantom_002"]
    assert fill(dataset, tiny, settings_of())[1] == []
    before = latents_path(folder, "phantom_001").read_bytes()
    # cut short, as by a full disk; without its record, as by a crash; from another label
    latents_path(folder, "phantom_001").write_bytes(before[:-1])
    assert fill(dataset, tiny, settings_of())[1] == ["phantom_001"]
    assert latents_path(folder, "phantom_001").read_bytes() == before
    (folder / "cases" / "phantom_000.json").unlink()
    assert fill(dataset, tiny, settings_of())[1] == ["phantom_000"]
    labels = read(label_file(dataset, "phantom_002"))
    labels[5, 5, 5] = 2
    rewrite(label_file(dataset, "phantom_002"), labels)
    assert fill(dataset, tiny, settings_of())[1] == ["phantom_002"]
    assert load_file(latents_path(folder, "phantom_002"))["lesion"][0, 5, 0, 0] > 0
    with pytest.raises(UserError, match=r"does not contain the latents of phantom_7"):
        read_records(folder, ["phantom_7"])
    remove_cache(folder)
    assert not folder.exists()


@pytest.mark.slow
def test_other_settings_are_refused_with_the_difference(tiny, filled):
    dataset, _ = filled
    with pytest.raises(UserError, match="window_slices: 8, now 16"):
        fill(dataset, tiny, settings_of(window_slices=16))
    with pytest.raises(UserError, match=r"organ: .*now .*none"):
        source = open_source_dataset(dataset.name, organ="none")
        complete_cache(cache_folder(source, "test"), source, tiny, settings_of(), made_with={}, workers=0)


@pytest.mark.slow
def test_two_processes_share_the_cases_and_workers_give_the_same(tiny, filled):
    dataset, folder = filled
    other, made = fill(dataset, tiny, settings_of(), name="shared", share=(1, 2))
    assert made == ["phantom_001"]
    source = open_source_dataset(dataset.name)
    complete_cache(other, source, tiny, settings_of(), made_with={}, workers=1)
    for case in source.cases:
        assert latents_path(other, case).read_bytes() == latents_path(folder, case).read_bytes()
        assert Manifest(other).read_case(case) == Manifest(folder).read_case(case)


@pytest.mark.slow
def test_a_case_that_fails_is_named_and_the_others_are_done(tiny):
    dataset = phantom_dataset()
    rewrite(label_file(dataset, "phantom_001"), np.zeros(SHAPE, np.uint8))
    with pytest.raises(UserError, match=r"1 case cannot .*\n  phantom_001: the organ .*\n.*`leave_out=phantom_001`"):
        fill(dataset, tiny, settings_of())
    source = open_source_dataset(dataset.name).without(["phantom_001"])
    assert read_records(cache_folder(source, "test"), source.cases).keys() == {"phantom_000", "phantom_002"}


def test_few_slices_go_on_with_the_last_one_and_small_slices_with_air(tiny):
    dataset = phantom_dataset(cases=1, shape=(12, 32, 32))
    folder, _ = fill(dataset, tiny, settings_of(window_slices=16, inplane_pixels=48))
    volume = read(image_file(dataset, "phantom_000")).astype(np.int16)
    by = ((0, 0), (0, 16), (0, 16))
    padded = np.pad(np.pad(volume, ((0, 4), (0, 0), (0, 0)), mode="edge"), by, constant_values=-1000)
    latent = tiny.encode(hu_to_model(torch.from_numpy(padded), HU_WINDOW)[None, None])[0]
    tensors = load_file(latents_path(folder, "phantom_000"))
    np.testing.assert_allclose(tensors["latent"][0].astype(np.float32), latent.numpy(), rtol=2**-10, atol=1e-4)
    condition = condition_of(tensors)
    assert (condition[0, 0, :, 4:] == 1).all() and (condition[0, :, 12:] == condition[0, :, 11:12]).all()
    assert read_records(folder, ["phantom_000"])["phantom_000"]["windows"] == [[0, 0, 0, 1]]


def test_images_are_resampled_to_a_spacing(tiny):
    dataset = phantom_dataset(cases=1)
    folder, _ = fill(dataset, tiny, settings_of(spacing_mm=(6.0, 2.0, 2.0), window_slices=4))
    record = read_records(folder, ["phantom_000"])["phantom_000"]
    assert record["shape"] == [1, 10, 4, 4]
    # the mask takes the nearest slice of each pair
    lesion = load_file(latents_path(folder, "phantom_000"))["lesion"][0].astype(np.float32).sum(axis=(1, 2))
    labels = (read(label_file(dataset, "phantom_000")) == 2).sum(axis=(1, 2)) / 64
    pairs = np.stack([labels[0::2], labels[1::2]])
    assert np.isclose(lesion, pairs, atol=1e-2).any(axis=0).all() and lesion.any()


def test_the_outline_is_the_lesion_and_its_look_is_measured(tiny):
    dataset = phantom_dataset("lung", cases=1, shape=(20, 48, 48))
    source = open_source_dataset(dataset.name, organ="lungs")
    folder = cache_folder(source, "outline")
    settings = settings_of(mask_encoding="outline")
    complete_cache(folder, source, tiny, settings, made_with={}, workers=0)
    lesion, volume_hu = read(label_file(dataset, "phantom_000")) == 1, read(image_file(dataset, "phantom_000"))
    tensors = load_file(latents_path(folder, "phantom_000"))
    outline = unpacked_outline(torch.from_numpy(tensors["outline"]), 64)[0].numpy()
    # pixel (y, x) of a cell is channel 8 * y + x
    pixels = outline.reshape(8, 8, 20, 6, 6).transpose(2, 3, 0, 4, 1).reshape(20, 48, 48)
    assert np.array_equal(pixels, lesion) and lesion.any()
    record = read_records(folder, ["phantom_000"])["phantom_000"]
    assert record["spacing_mm"] == [3.0, 2.0, 2.0]
    numbered, n = ndimage.label(lesion, np.ones((3, 3, 3)))
    assert len(record["appearances_hu"]) == n
    for number, found in enumerate(record["appearances_hu"], start=1):
        if (numbered == number).sum() < MIN_VOXELS:
            assert np.isnan(found).all()
            continue
        measured = measure_lesion(volume_hu, numbered == number, ~lesion, (3.0, 2.0, 2.0))
        assert found == pytest.approx([measured["core_mean_hu"], measured["texture_sd_hu"]], abs=0.01)
        cells = (numbered == number).reshape(20, 6, 8, 6, 8).any(axis=(2, 4))
        alone = cells & ~((numbered > 0) & (numbered != number)).reshape(20, 6, 8, 6, 8).any(axis=(2, 4))
        for column in range(2):
            stored = tensors["appearance_hu"][0, column][alone].astype(np.float64)
            assert stored == pytest.approx(np.full(alone.sum(), found[column]), rel=2e-3)
    assert np.isnan(tensors["appearance_hu"][0, 0][tensors["lesion"][0] == 0]).all()
    # what is drawn is the condition that synthesis makes of the same layout
    scale = AppearanceScale.of(record["appearances_hu"])
    conditions = ConditionFormat("outline", 2, tiny.spec, (0.0,) * 16, (1.0,) * 16, scale)
    draws = LatentDraws(folder, ["phantom_000"], conditions=conditions, window=8, crop=6, lesion_share=1.0)
    sample = draws.sample(2, random_streams(0, 2, 0, 0)[0])
    layout = Layout.of(source.read("phantom_000").class_map, (3.0, 2.0, 2.0), organs=1, volume_hu=volume_hu)
    whole = conditions.dense(packed_condition(layout, tiny, encoding="outline", classes=2), (3.0, 2.0, 2.0))[0]
    assert any(torch.equal(whole[:, start : start + 8], sample.condition) for start in range(13))
    assert whole.shape[0] == 3 + 64 + 2 + 3
    assert whole[-3:, 0, 0, 0].tolist() == pytest.approx(np.log2([3, 2, 2]).tolist())
    standard = whole[67:69][:, torch.from_numpy(tensors["lesion"][0] > 0)]
    assert standard.abs().max() < 5 and (n == 1 or standard.std() > 0.1)
    assert (whole[67:69][:, torch.from_numpy(tensors["lesion"][0] == 0)] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("context", ["masked", "draft"])
def test_what_a_network_with_context_is_shown(tiny, context):
    dataset = phantom_dataset("lung", cases=1, shape=(20, 48, 48))
    source = open_source_dataset(dataset.name, organ="lungs")
    folder = cache_folder(source, f"context_{context}")
    complete_cache(folder, source, tiny, settings_of(mask_encoding="outline"), made_with={}, workers=0)
    scale = AppearanceScale((0.0, 0.0), (1.0, 1.0))
    conditions = ConditionFormat("outline", 2, tiny.spec, (0.1,) * 16, (2.0,) * 16, scale)
    draws = LatentDraws(
        folder, ["phantom_000"], conditions=conditions, window=8, crop=6, lesion_share=0.5, context=context
    )
    drawn = draws.sample(2, random_streams(1, 2, 0, 0)[0])
    assert drawn.region is not None and (drawn.draft is None) == (context == "masked")
    batch = draws.batch(1, 0, range(80), seed=1, process=NoiseProcess())
    assert batch.context.shape == (80, 17, 1, 6, 6) and torch.equal(batch.context[:, 16] > 0, batch.generated)
    kinds = {"all": 0, "lesion": 0, "box": 0}
    for latent, lesion, shown, generated in zip(batch.latent, batch.lesion, batch.context, batch.generated):
        shown = shown[:16]
        assert torch.equal(shown[:, ~generated], latent[:, ~generated])
        if generated.all():
            kinds["all"] += 1
            assert (shown == 0).all()
        elif (lesion > 0).any():
            kinds["lesion"] += 1
            assert generated[lesion > 0].all()
            if context == "masked":
                assert (shown[:, generated] == 0).all()
            else:
                # near the truth, and not the truth
                assert 0 < (shown - latent)[:, generated].abs().mean() < latent[:, generated].abs().mean()
        else:
            # near a lesion of the next slice, or a box
            kinds["box"] += 1
    assert kinds["lesion"] > 20 and kinds["all"] > 2
    if context == "masked":
        assert kinds["box"] > 20


@pytest.mark.slow
def test_the_draft_of_a_case_is_the_latent_of_its_drawing(tiny):
    dataset = phantom_dataset("lung", cases=1, shape=(20, 48, 48))
    source = open_source_dataset(dataset.name, organ="lungs")
    folder = cache_folder(source, "draft")
    complete_cache(folder, source, tiny, settings_of(mask_encoding="outline"), made_with={}, workers=0)
    case = source.read("phantom_000")
    layout = Layout.of(case.class_map, case.spacing_mm, organs=1, volume_hu=case.volume_hu)
    draft_hu = np.rint(drafted(case.volume_hu, layout, case.lesion, unknown=Appearance(0, 0), rng=None)).astype(
        np.int16
    )
    tensors = load_file(latents_path(folder, "phantom_000"))
    latent = tiny.encode(hu_to_model(torch.from_numpy(draft_hu), HU_WINDOW)[None, None])[0].numpy()
    drawn = (draft_hu != case.volume_hu).any(axis=(1, 2))
    np.testing.assert_allclose(tensors["draft"][0][:, drawn], latent[:, drawn], rtol=2**-10, atol=2e-3)
    near = ndimage.distance_transform_edt(~case.lesion, sampling=case.spacing_mm) < 5
    untouched = ~near.any(axis=(1, 2))
    assert untouched.any() and drawn.any()
    assert np.array_equal(tensors["draft"][0][:, untouched], tensors["latent"][0][:, untouched])
    assert np.array_equal(tensors["region"][0, 0] > 0, near.reshape(20, 6, 8, 6, 8).any(axis=(2, 4)))


def lesions(slices, *ranges):
    mask = np.zeros((slices, 4, 40), bool)
    for number, (start, stop) in enumerate(ranges):
        mask[start:stop, 1, 3 * number] = True
    return mask


def test_windows_cover_the_case_and_hold_each_lesion():
    spec = load_vae("tiny").spec
    (piece,) = plan_pieces(lesions(50, (10, 13), (15, 17), (44, 50)), 16, spec)
    # side by side, the last one moved back; around the first lesion, which holds the second; around the third
    assert (piece.start, piece.stop) == (0, 50)
    assert piece.windows == (0, 3, 16, 32, 34)
    long = plan_pieces(lesions(50, (5, 41)), 16, spec)[0].windows
    # 36 slices in three windows of 16, from slice (5 + 41 - 48) / 2, which lies before the first
    assert set(long) == {0, 16, 32, 34} | {15, 31}


def test_a_video_vae_has_a_piece_for_each_window():
    pieces = plan_pieces(lesions(20, (8, 11)), 9, wan_vae(tiny_wan()).spec)
    assert [(piece.start, piece.stop, piece.windows) for piece in pieces] == [
        (start, start + 9, (0,)) for start in (0, 5, 9, 11)
    ]


def test_windows_that_the_vae_does_not_take_are_refused():
    spec = wan_vae(tiny_wan()).spec
    assert choose_window_slices(spec, None) == 65 and choose_window_slices(load_vae("tiny").spec, None) == 16
    with pytest.raises(UserError, match=r"1 \+ k \* 4 slices, such as 17"):
        choose_window_slices(spec, 16)


def test_squares_are_no_larger_than_the_slices_need(tiny, filled):
    source = open_source_dataset(filled[0].name)
    assert choose_inplane_pixels(source, tiny.spec, None, wanted=None, usual=512) == 32
    assert choose_inplane_pixels(source, tiny.spec, (3.0, 1.5, 1.5), wanted=None, usual=512) == 48
    assert choose_inplane_pixels(source, tiny.spec, None, wanted=None, usual=16) == 16
    assert choose_inplane_pixels(source, tiny.spec, None, wanted=64, usual=16) == 64
    with pytest.raises(UserError, match="multiple of 8"):
        choose_inplane_pixels(source, tiny.spec, None, wanted=20, usual=512)


def draws_from(
    folder,
    *,
    lesion_share=0.5,
    crop=4,
    mean=0.0,
    std=1.0,
    cases=("phantom_000", "phantom_001", "phantom_002"),
    **options,
):
    return LatentDraws(
        folder,
        cases,
        conditions=ConditionFormat("onehot", 2, load_vae("tiny").spec, (mean,) * 16, (std,) * 16, None),
        window=8,
        crop=crop,
        lesion_share=lesion_share,
        **options,
    )


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_samples_with_lesion_is_the_one_asked_for(filled, share):
    draws = draws_from(filled[1], lesion_share=share)
    n = 400
    held = [bool((draws.sample(1, random_streams(0, 1, step, 0)[0]).lesion > 0).any()) for step in range(n)]
    # four standard deviations of a binomial distribution
    assert abs(np.mean(held) - share) <= 4 * (share * (1 - share) / n) ** 0.5
    assert draws.share[1] == share


def test_crops_with_lesion_hold_a_lesion_cell_and_all_cases_come(filled):
    draws = draws_from(filled[1], crop=2)
    samples = [draws.sample(2, random_streams(1, 2, step, 0)[0], with_lesion=True) for step in range(60)]
    assert all((sample.lesion > 0).any() and sample.latent.shape == (16, 8, 2, 2) for sample in samples)
    assert {sample.case for sample in samples} == {"phantom_000", "phantom_001", "phantom_002"}


def test_samples_are_pieces_of_the_cache_standardised(filled):
    folder = filled[1]
    plain = draws_from(folder).sample(1, random_streams(3, 1, 0, 0)[0])
    scaled = draws_from(folder, mean=0.5, std=2.0).sample(1, random_streams(3, 1, 0, 0)[0])
    stored = load_file(latents_path(folder, plain.case))["latent"][0].astype(np.float32)
    assert any((stored[:, number] == plain.latent[:, 0].numpy()).all() for number in range(20))
    assert torch.equal(scaled.latent, (plain.latent - 0.5) / 2) and torch.equal(scaled.condition, plain.condition)


def test_a_batch_is_the_same_however_it_is_shared_out(filled):
    draws = draws_from(filled[1])
    process = NoiseProcess()
    whole = draws.batch(2, 7, range(4), seed=5, process=process, condition_dropout=0.5)
    parts = [draws.batch(2, 7, numbers, seed=5, process=process, condition_dropout=0.5) for numbers in ((0, 1), (2, 3))]
    for name in ("latent", "noise", "timesteps", "condition", "lesion", "drop"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts])), name
    other = draws.batch(2, 8, range(4), seed=5, process=process)
    assert not torch.equal(other.noise, whole.noise) and other.drop is None


def test_texts_are_padded_and_masked(filled):
    texts = {"phantom_000": torch.ones(2, 3), "phantom_001": torch.full((4, 3), 2.0)}
    draws = draws_from(filled[1], texts=texts)
    batch = draws.batch(1, 0, range(12), seed=0, process=NoiseProcess())
    lengths = batch.text_mask.sum(1).tolist()
    assert set(lengths) == {0, 2, 4} and batch.text.shape == (12, 4, 3)
    for row, length in enumerate(lengths):
        assert (batch.text[row, :length] == length / 2).all() and (batch.text[row, length:] == 0).all()


def test_a_dataset_without_lesions_is_refused_and_one_with_nothing_else_is_said(tiny):
    dataset = phantom_dataset(cases=2)
    for case, value in (("phantom_000", 1), ("phantom_001", 2)):
        rewrite(label_file(dataset, case), np.full(SHAPE, value, np.uint8))
    folder, _ = fill(dataset, tiny, settings_of())
    with pytest.raises(UserError, match=r"no voxel has the label of the lesion \(1 case searched\)"):
        draws_from(folder, cases=["phantom_000"])
    assert draws_from(folder, cases=["phantom_001"]).share == {1: 1.0, 2: 1.0}
    assert draws_from(folder, cases=["phantom_000"], lesion_share=0).share == {1: 0.0, 2: 0.0}
