"""Lesions that grow and shrink in place: their form, their organ, what they leave behind, and who is in the way."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from painted_cases import ORGAN_HU, PaintingModel, rewrite_image, write_dataset, write_image
from scipy import ndimage
from synthesize_for_tests import a_tiny_model, files_of, paints, run

from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.synthetic_folder import read_synthetic_cases
from fvae_nnunet.synthesis.lesions.growth import plan_growth, replaced
from fvae_nnunet.synthesis.lesions.placed import labels_with
from fvae_nnunet.synthesis.lesions.placement import NothingFits
from fvae_nnunet.synthesis.lesions.plan import PlanSettings
from fvae_nnunet.synthesis.lesions.real_lesions import lesions_of
from fvae_nnunet.synthesis.lesions.shapes import scaled_in_place
from fvae_nnunet.synthesis.lesions.sizes import LesionSizes
from fvae_nnunet.synthesis.model import latent_diffusion as model
from fvae_nnunet.synthesis.sources.dataset import open_source_dataset

__all__ = ["paints"]

SPACING_MM = (3.0, 2.0, 2.0)


FINE_MM = (1.5, 1.0, 1.0)


def an_hourglass(scale=1.0):
    """Two cones that meet, 32 mm long: no blob, and no pieces; not in the middle of voxels."""
    z, y, x = (np.arange(n) * step - middle for n, step, middle in zip((36, 60, 70), FINE_MM, (27.2, 30.3, 35.4)))
    z, y, x = np.meshgrid(z, y, x, indexing="ij")
    return (np.abs(x) < 16 * scale) & (np.hypot(z, y) < 4 * scale + 0.5 * np.abs(x))


def cropped(mask):
    (box,) = ndimage.find_objects(mask.astype(int))
    return mask[box], np.array([side.start for side in box])


@pytest.mark.parametrize("factor", [0.6, 0.8, 1.25, 1.7])
def test_a_scaled_lesion_is_the_same_form_about_the_same_centre(factor):
    mask, expected = an_hourglass(), an_hourglass(factor)
    part, start = cropped(mask)
    own_mm = np.cbrt(6 / np.pi * mask.sum() * np.prod(FINE_MM))
    shape, begins = scaled_in_place(part, FINE_MM, factor * own_mm)
    assert shape.sum() == round(np.pi / 6 * (factor * own_mm) ** 3 / np.prod(FINE_MM))
    assert cropped(shape)[0].shape == shape.shape
    found = np.zeros_like(mask)
    found[tuple(slice(first, first + n) for first, n in zip(start + begins, shape.shape))] = shape
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.9


def test_a_lesion_with_its_own_diameter_stays_as_it_is():
    for mask in (np.ones((2, 5, 5), bool), cropped(an_hourglass())[0], np.ones((8, 1, 1), bool)):
        own_mm = np.cbrt(6 / np.pi * mask.sum() * np.prod(SPACING_MM))
        shape, begins = scaled_in_place(mask, SPACING_MM, own_mm)
        assert begins == (0, 0, 0)
        assert np.array_equal(shape, mask)


def test_what_is_too_small_or_in_pieces_is_refused():
    with pytest.raises(UserError, match="it would have 4 voxels; at least 8"):
        scaled_in_place(np.ones((2, 3, 3), bool), SPACING_MM, 4.5)
    dumbbell = np.zeros((5, 5, 31), bool)
    dumbbell[:, :, :5] = dumbbell[:, :, -5:] = dumbbell[2, 2] = True
    with pytest.raises(UserError, match="falls into pieces"):
        scaled_in_place(dumbbell, (1.0, 1.0, 1.0), 4.5)


@pytest.fixture
def dataset():
    """Three cases of an organ; the lesion is a block of 4 x 8 x 8 voxels in its middle, a second one of 2 x 3 x 3."""
    dataset = write_dataset(shape=(16, 40, 40), lesion=False)
    for number in range(3):
        labels = np.zeros((16, 40, 40), np.uint8)
        labels[1:15, 1:39, 1:39] = 1
        labels[6:10, 12:20, 16:24] = 2
        labels[6:8, 30:33, 30:33] = 2
        write_image(
            dataset.raw / "labelsTr" / f"case_{number}.nii.gz", labels, spacing_mm=SPACING_MM, origin_mm=(-20, 5, 30)
        )
    return dataset


def planned(dataset, *, seed=0, sizes=None, growth=None, avoid=None, lesions_per_case=(1, 1), **options):
    opened = open_source_dataset(dataset.name, **options.pop("opened", {}))
    source = opened.read("case_1")
    settings = PlanSettings(
        sizes, 0.5, lesions_per_case, **{"inside_fraction": 0.8, "clearance_mm": 5.0} | options, growth=growth
    )
    real = lesions_of(source)
    lesions = plan_growth(np.random.default_rng(seed), opened, source, settings, real=real, avoid=avoid)
    return opened, source, real, lesions


@pytest.mark.slow
def test_growth_is_a_factor_of_the_diameter(dataset):
    factors = []
    for seed in range(40):
        _, source, real, (lesion,) = planned(dataset, seed=seed, growth=(0.7, 1.5))
        old = lesion.replaces.shape.sum()
        assert old in (256, 18)
        factors.append(np.cbrt(lesion.shape.sum() / old))
        record = lesion.recorded(source)
        assert record["shape"] == "own" and record["borrowed_from"] is None
        assert record["replaces"]["voxels"] == old
        (own,) = [lesion for lesion in real if lesion["voxels"] == old]
        assert record["replaces"]["diameter_mm"] == own["diameter_mm"]
        # it looks as it did: its own core in this case
        assert record["appearance"]["texture_sd_hu"] == own["texture_sd_hu"]
    assert 0.69 < min(factors) < 0.85 and 1.3 < max(factors) < 1.51


@pytest.mark.slow
def test_diameters_can_be_asked_for_instead(dataset):
    _, source, _, (lesion,) = planned(dataset, sizes=LesionSizes.of_range(30, 30))
    assert lesion.recorded(source)["diameter_mm"] == pytest.approx(30, abs=0.1)
    diameters_mm = {planned(dataset, seed=seed)[3][0].diameter_mm for seed in range(6)}
    own_mm = sorted(lesion["diameter_mm"] for lesion in planned(dataset)[2])
    assert own_mm[0] - 0.1 < min(diameters_mm) < max(diameters_mm) < own_mm[1] + 0.1


@pytest.mark.slow
def test_a_shrunken_lesion_leaves_organ_behind(dataset):
    opened, source, _, (lesion,) = planned(dataset, seed=1, growth=(0.7, 0.7))
    labels = labels_with(source, [lesion], opened.lesion_value)
    new, old = lesion.mask(labels.shape), lesion.replaces.mask(labels.shape)
    assert new.sum() == pytest.approx(0.343 * old.sum(), rel=0.2) and not (new & ~old).any()
    assert np.array_equal(labels == 2, source.lesion & ~old | new)
    assert (labels[old & ~new] == 1).all()
    assert np.array_equal(labels[~old], source.labels[~old])
    assert np.array_equal(lesion.changed(labels.shape), old | new)
    assert (lesion.replaces.classes == 1).all() and lesion.replaces.classes.shape == (old.sum(),)


def test_several_lesions_change_at_once_and_each_once(dataset):
    opened, source, _, lesions = planned(dataset, growth=(1.2, 1.3), lesions_per_case=(5, 5))
    assert sorted(lesion.replaces.shape.sum() for lesion in lesions) == [18, 256]
    labels = labels_with(source, lesions, opened.lesion_value)
    assert (labels == 2).sum() == sum(lesion.shape.sum() for lesion in lesions)


@pytest.mark.slow
def test_what_grows_keeps_clear_of_others_and_of_what_is_to_avoid(dataset):
    # 22 and 14 mm apart along the axes. Twice as large, the block of 16 mm comes to within 16 mm of the other, and that
    # one of 6 mm to within 22 mm
    for seed in range(4):
        *_, (lesion,) = planned(dataset, seed=seed, growth=(1.9, 2.0), clearance_mm=18.0)
        assert lesion.replaces.shape.sum() == 18
    everywhere = np.ones((16, 40, 40), bool)
    with pytest.raises(
        NothingFits, match=r"case_1: none of its 2 lesions can change as requested; .* too close to a lesion"
    ):
        planned(dataset, growth=(1.2, 1.3), avoid=everywhere)
    # what is there already may stay, and get less
    assert planned(dataset, growth=(0.7, 0.9), avoid=everywhere)[3]


def test_what_grows_stays_in_the_volume(dataset):
    with pytest.raises(NothingFits, match=r"with a diameter of [\d.]+ mm it would extend beyond the volume"):
        planned(dataset, growth=(6.0, 7.0))


@pytest.mark.slow
def test_what_grows_stays_in_the_organ(dataset):
    def thin(labels):
        labels[np.ix_(np.r_[:5, 11:16])] = 0
        return labels

    rewrite_image(dataset.raw / "labelsTr" / "case_1.nii.gz", thin)
    with pytest.raises(NothingFits, match=r"0\.\d\d of it would be in the organ \(required: 0\.95\)"):
        planned(dataset, growth=(2.5, 2.5), inside_fraction=0.95)
    assert planned(dataset, growth=(2.5, 2.5), inside_fraction=0.5)[3][0].placement.inside_fraction < 0.95


def test_a_case_without_lesions_has_none_to_grow():
    with pytest.raises(NothingFits, match="case_1 has no lesion of 8 voxels or more"):
        planned(write_dataset(lesion=False), growth=(0.7, 1.5))


@pytest.mark.slow
def test_of_several_organs_the_nearest_takes_the_place(dataset):
    """The lesion lies across the border of a left and a right organ."""
    content = json.loads((dataset.raw / "dataset.json").read_text())
    content["labels"] = {"background": 0, "right": 1, "tumour": 2, "left": 3}
    (dataset.raw / "dataset.json").write_text(json.dumps(content))
    path = dataset.raw / "labelsTr" / "case_1.nii.gz"
    labels = open_source_dataset(dataset.name, organ="label:right").read("case_1").labels
    labels = np.where((labels == 1) & (np.arange(40) >= 19), 3, labels)
    write_image(path, labels, spacing_mm=SPACING_MM, origin_mm=(-20, 5, 30))
    opened = open_source_dataset(dataset.name)
    source = opened.read("case_1")
    box = (slice(6, 10), slice(12, 20), slice(16, 24))
    old = replaced(opened, source, box, np.ones((4, 8, 8), bool))
    found = old.labels.reshape(4, 8, 8)
    # in the slices at the top and the bottom the organ is 3 mm away, above or below
    assert (found[0, :, :3] == 1).all() and (found[0, :, 3:] == 3).all()
    assert set(np.unique(found)) == {1, 3}
    assert (old.classes == 1).all()


@pytest.mark.slow
def test_without_an_organs_label_the_place_is_background(dataset):
    opened = open_source_dataset(dataset.name, organ="body")
    source = opened.read("case_1")
    # the segmentation's own labels around the lesion, where the organ is not one of them
    old = replaced(opened, source, (slice(6, 10), slice(12, 20), slice(16, 24)), np.ones((4, 8, 8), bool))
    assert (old.labels == 1).all() and (old.classes == 1).all()
    opened = open_source_dataset(dataset.name, organ="none")
    assert (replaced(opened, opened.read("case_1"), old.box, old.shape).classes == 0).all()


# From the command to the files


class AnatomyModel(PaintingModel):
    """Paints the whole region: organ where the layout has organ, lesion where it has lesion."""

    def inpaint(self, volume_hu, layout, region, draft_hu=None, *, generator, **sampling):
        generated, reconstructed = super().inpaint(volume_hu, layout, region, draft_hu, generator=generator, **sampling)
        organ = region & (layout.class_map == 1)
        generated[organ] = ORGAN_HU + self.noise_hu * torch.randn(int(organ.sum()), generator=generator).numpy()
        return generated, reconstructed


@pytest.fixture
def anatomy(paints, monkeypatch):
    found = AnatomyModel(bias_hu=7.0, noise_hu=1.0)
    monkeypatch.setattr(model.LatentDiffusion, "load", lambda *arguments, **keywords: found)
    return found


def written(dataset, case):
    """Raw and synthetic HU, raw and synthetic labels."""
    source = case.record["source_case"]
    paths = dataset.raw / "imagesTr" / f"{source}_0000.nii.gz", case.images[0]
    paths += dataset.raw / "labelsTr" / f"{source}.nii.gz", case.label
    return [sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in paths]


@pytest.fixture
def with_lesions(dataset):
    """The lesions of ``dataset`` are in the image, too: 40 HU in an organ of 100."""
    lesion = sitk.GetArrayFromImage(sitk.ReadImage(str(dataset.raw / "labelsTr" / "case_0.nii.gz"))) == 2
    for path in (dataset.raw / "imagesTr").iterdir():
        rewrite_image(path, lambda hu: hu - np.int16(60) * lesion)
    return dataset


@pytest.mark.slow
@pytest.mark.parametrize(("growth", "larger"), [((0.7, 0.75), False), ((1.3, 1.4), True)])
def test_the_command_makes_a_follow_up(anatomy, with_lesions, tmp_path, growth, larger):
    options = ["--mode", "grow", "--growth", *growth, "--margin-mm", "4", "--no-filter"]
    assert run(with_lesions, tmp_path / "out", *options, n=3) == 0
    cases = read_synthetic_cases(tmp_path / "out")
    assert {case.record["source_case"] for case in cases} == {"case_0", "case_1", "case_2"}
    for case in cases:
        raw, synthetic, before, after = written(with_lesions, case)
        old, new = before == 2, after == 2
        gained, lost = new & ~old, old & ~new
        assert gained.any() == larger and lost.any() != larger
        assert (after[lost] == 1).all() and np.array_equal(after[~old & ~new], before[~old & ~new])
        (lesion,) = case.record["lesions"]
        assert case.record["mode"] == "grow" and lesion["shape"] == "own"
        assert lesion["voxels"] / lesion["replaces"]["voxels"] == pytest.approx(
            (lesion["diameter_mm"] / lesion["replaces"]["diameter_mm"]) ** 3, rel=0.01
        )
        assert growth[0] - 0.02 < lesion["diameter_mm"] / lesion["replaces"]["diameter_mm"] < growth[1] + 0.02
        # beyond 4 mm of the old and the new lesion nothing has changed
        numbered, _ = ndimage.label(old | new, np.ones((3, 3, 3)))
        changed = np.isin(numbered, np.unique(numbered[gained | lost]))
        distance = ndimage.distance_transform_edt(~changed, sampling=SPACING_MM)
        assert np.array_equal(synthetic[distance >= 4], raw[distance >= 4])
        # painted minus reconstructed, whose bias is 7 HU, on the raw voxels
        assert np.abs(synthetic[changed & new] - (40.0 - 7)).max() < 6
        assert not lost.any() or np.abs(synthetic[lost] - (100.0 - 7)).max() < 6
    before = files_of(tmp_path / "out")
    assert run(with_lesions, tmp_path / "out", *options, n=3) == 0
    assert files_of(tmp_path / "out") == before


def test_the_model_sees_the_new_lesion_in_place_of_the_old_one(anatomy, with_lesions, tmp_path):
    options = ["--mode", "grow", "--growth", 0.7, 0.7, "--cases", "case_1", "--no-filter"]
    assert run(with_lesions, tmp_path / "out", *options, n=1) == 0
    (case,) = read_synthetic_cases(tmp_path / "out")
    *_, before, after = written(with_lesions, case)
    (call,) = anatomy.calls
    assert np.array_equal(call.class_map, after)
    assert call.region[before != after].all()
    assert not (call.layout.lesion_numbers[after == 1]).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--growth", 1, 2], "--growth has no effect without --mode grow"),
        (["--mode", "grow", "--growth", 1, 2, "--sizes", "real"], "--growth, --sizes and --diameter-mm are mutually"),
        (["--mode", "grow", "--growth", 2, 1], "--growth needs 0 < MIN <= MAX, got 2 1"),
        (["--mode", "grow", "--shapes", "ellipsoid"], "--shapes has no effect with --mode grow"),
        (["--mode", "grow", "--at", 1, 2, 3], "--at has no effect with --mode grow"),
    ],
)
def test_wrong_options_are_one_error(anatomy, dataset, tmp_path, capsys, arguments, message):
    assert run(dataset, tmp_path / "out", *arguments) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_real_lesions_nothing_grows(anatomy, tmp_path, capsys):
    assert run(write_dataset(lesion=False), tmp_path / "out", "--mode", "grow") == 1
    assert "no real lesion to grow or shrink; choose another --mode" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_tiny_model_leaves_the_rest_alone(with_lesions, tmp_path):
    folder = a_tiny_model(tmp_path / "ldm", organ="label:organ")
    options = ["--ldm", folder, "--mode", "grow", "--diameter-mm", 12, 13, "--steps", 4, "--no-filter"]
    assert run(with_lesions, tmp_path / "out", *options, n=2) == 0
    for case in read_synthetic_cases(tmp_path / "out"):
        raw, synthetic, before, after = written(with_lesions, case)
        union = (before == 2) | (after == 2)
        distance = ndimage.distance_transform_edt(~union, sampling=SPACING_MM)
        assert np.array_equal(synthetic[distance >= 5], raw[distance >= 5])
        assert (synthetic != raw)[before != after].mean() > 0.9
