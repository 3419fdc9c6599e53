from functools import partial

import blosc2
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, rotate
from synthetic_for_tests import ball_in, preprocess, write_synthetic_folder
from trainers_for_tests import reproducible  # noqa: F401
from views_for_tests import BrighterVAE, make_view

from fvae_nnunet.cli.show_batch import main
from fvae_nnunet.trainers import nnUNetTrainerFVAEOnline
from fvae_nnunet.training.batch import Sample, TrainingBatch, take_training_batch
from fvae_nnunet.training.batch_picture import CHANGED_COLOUR, SYNTHETIC_COLOUR, batch_picture
from fvae_nnunet.training.batch_sides import ramp_along, sides_after
from fvae_nnunet.training.ct_patches import CTPatches
from fvae_nnunet.training.online import Draw, PatchReconstruction
from fvae_nnunet.vae import load_vae


@pytest.fixture(autouse=True)
def our_trainers_are_found(monkeypatch):
    """Without writing the stub into the installed nnU-Net."""
    from nnunetv2.run import run_training

    from fvae_nnunet import trainers

    (finder,) = (name for name in vars(run_training) if name.startswith("recursive_find_"))  # 2.8 has another than 2.6
    find = getattr(run_training, finder)

    def find_ours_too(*arguments):
        ours = [getattr(trainers, argument) for argument in arguments if hasattr(trainers, argument)]
        return ours[0] if ours else find(*arguments)

    monkeypatch.setattr(run_training, finder, find_ours_too)
    monkeypatch.delenv("nnUNet_fvae_vae", raising=False)


def take(dataset, trainer_name, configuration="3d_fullres", seed=0):
    return take_training_batch(
        dataset.id, configuration, 0, trainer_name=trainer_name, plans_name="nnUNetPlans", device="cpu", seed=seed
    ).samples


def files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*")) if folder.exists() else None


def test_nnunets_own_trainer_shows_raw_samples_and_leaves_nothing_behind(planned):
    before = files(planned.results)
    samples = take(planned, "nnUNetTrainer")
    assert files(planned.results) == before
    assert [sample.mark for sample in samples] == ["raw"] * len(samples)
    for sample in samples:
        assert np.array_equal(sample.raw, sample.received)
        assert sample.raw.shape[1:] == next(iter(sample.masks.values())).shape
    assert any(mask.any() for sample in samples for mask in sample.masks.values())
    assert all(np.array_equal(a.received, b.received) for a, b in zip(samples, take(planned, "nnUNetTrainer")))
    assert not np.array_equal(samples[0].received, take(planned, "nnUNetTrainer", seed=1)[0].received)


@pytest.mark.slow
def test_views_of_the_offline_trainer_are_marked_with_their_raw_images(clone):
    make_view(clone, BrighterVAE(), configurations=["3d_fullres"])
    marks = {}
    for seed in range(4):
        for sample in take(clone, "nnUNetTrainerFVAE", seed=seed):
            marks.setdefault(sample.mark, []).append(sample)
    assert marks.keys() == {"raw", "view"}
    assert all(np.array_equal(sample.raw, sample.received) for sample in marks["raw"])
    # 60 HU brighter, but where nnU-Net clips and what its augmentation of intensities makes of it
    assert all(np.mean(sample.received - sample.raw) > 0.1 for sample in marks["view"])
    assert all(np.corrcoef(sample.received.ravel(), sample.raw.ravel())[0, 1] > 0.8 for sample in marks["view"])


@pytest.mark.slow
def test_the_weights_of_blends_are_noted(clone):
    make_view(clone, BrighterVAE(), configurations=["3d_fullres"])
    samples = take(clone, "nnUNetTrainerFVAEBlend")
    assert all(0 < sample.weight < 1 for sample in samples)
    assert samples[0].mark == f"raw and view, weight {samples[0].weight:.2f}"
    assert not np.array_equal(samples[0].raw, samples[0].received)


@pytest.fixture
def with_synthetic(clone, tmp_path):
    """A dataset with a view and a synthetic case of each of its cases."""
    make_view(clone, BrighterVAE(), configurations=["3d_fullres"])
    write_synthetic_folder(tmp_path / "synthetic", clone, [f"phantom_{number:03d}" for number in range(5)])
    preprocess(clone, tmp_path / "synthetic", configurations=["3d_fullres"])
    return clone


@pytest.mark.slow
def test_synthetic_samples_are_marked_with_their_names_beside_the_raw_image_of_their_source(with_synthetic):
    marks = {}
    for seed in range(5):
        for sample in take(with_synthetic, "nnUNetTrainerFVAESynth", seed=seed):
            marks.setdefault(sample.mark.split(" ")[0], []).append(sample)
    assert marks.keys() == {"raw", "view", "synthetic"}
    for sample in marks["synthetic"]:
        # synthetic case i was made from case i
        assert sample.mark == f"synthetic (synthetic_{int(sample.case.removeprefix('phantom_')):04d})"
        assert sample.weight == 0
    for sample in (*marks["raw"], *marks["view"]):
        assert sample.synthetic is None
    assert all(np.array_equal(sample.raw, sample.received) for sample in marks["raw"])


@pytest.mark.slow
def test_a_synthetic_sample_differs_from_its_source_in_the_new_lesion_alone(with_synthetic, monkeypatch):
    from fvae_nnunet.trainers import nnUNetTrainerFVAESynthRaw

    def without_augmentation(self, *arguments, **options):
        return self.get_validation_transforms(
            arguments[2], options["is_cascaded"], options["foreground_labels"], options["regions"],
            options["ignore_label"],
        )  # fmt: skip

    monkeypatch.setattr(nnUNetTrainerFVAESynthRaw, "synthetic_probability", 1.0)
    monkeypatch.setattr(nnUNetTrainerFVAESynthRaw, "get_training_transforms", without_augmentation)
    monkeypatch.setattr(
        nnUNetTrainerFVAESynthRaw,
        "configure_rotation_dummyDA_mirroring_and_inital_patch_size",
        lambda self: ((0, 0), False, self.configuration_manager.patch_size, ()),
    )
    ball, _ = ball_in((24, 48, 48), (3, 2, 2))
    for sample in take(with_synthetic, "nnUNetTrainerFVAESynthRaw"):
        source = blosc2.open(
            str(with_synthetic.preprocessed / "nnUNetPlans_3d_fullres" / f"{sample.case}.b2nd"), mode="r"
        )[:]
        changed = sample.raw != sample.received
        assert changed.any() and not (changed[0] & ~sample.masks["tumour"]).any()
        assert sample.sides == ("R", "L", "A", "P")
        assert changed.sum() <= ball.sum() and sample.raw.max() <= source.max()


def test_the_picture_marks_synthetic_samples_in_their_own_colour_where_the_lesion_is_new(tmp_path, monkeypatch):
    from matplotlib.colors import to_hex
    from matplotlib.figure import Figure

    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (drawn.append(figure), save(figure, *a, **k)))
    raw, received = (np.zeros((1, 6, 8, 8), np.float32) for _ in range(2))
    mask = np.zeros((6, 8, 8), bool)
    mask[1, 1:7, 1:7] = mask[4, 3:5, 3:5] = True
    received[0, 4, 3:5, 3:5] = 0.9
    synthetic = Sample("a", raw, received, {"tumour": mask}, 0.0, "synthetic_0001")
    batch = TrainingBatch([synthetic, sample(1.0)], (-1.0, 1.0), "-96 to 215 HU")
    batch_picture(batch, title="t", path=tmp_path / "a.png")
    panels = drawn[0].axes
    assert [panel.get_title() for panel in panels[:2]] == ["a, slice 5 of 6", "synthetic (synthetic_0001)"]
    frames = [to_hex(panels[at].spines["left"].get_edgecolor()) for at in (1, 4)]
    assert frames == [SYNTHETIC_COLOUR, CHANGED_COLOUR]
    assert Sample("a", raw, raw, {}, None, "s").mark == "synthetic (s), changed by the trainer"
    assert Sample("a", raw, raw, {}, 1.0, "s").mark == "synthetic (s), view"


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_the_online_trainers_samples_are_what_its_draw_makes_of_the_raw_ones(planned, monkeypatch, configuration):
    monkeypatch.setenv("nnUNet_fvae_vae", "tiny")
    monkeypatch.setattr(nnUNetTrainerFVAEOnline, "view_blend", (0.5, 1.0))
    samples = take(planned, "nnUNetTrainerFVAEOnline", configuration)
    draw = Draw.random(len(samples), probability=0.5, blend=(0.5, 1.0), entropy=(0, 0, 0, 0))
    assert {number for number, sample in enumerate(samples) if sample.weight} == set(draw.samples)
    assert [sample.weight for sample in samples if sample.weight] == list(draw.weights)
    patches = CTPatches.of_plans(planned.plans, configuration, planned.dataset_json)
    raw = torch.from_numpy(np.stack([sample.raw for sample in samples]))
    raw = raw[:, :, 0] if configuration == "2d" else raw
    expected = PatchReconstruction(load_vae("tiny"), patches).apply(raw, draw).numpy()
    received = np.stack([sample.received for sample in samples])
    np.testing.assert_allclose(received.reshape(expected.shape), expected, rtol=0, atol=1e-5)


def test_what_another_trainer_changes_in_its_step_is_said(planned, monkeypatch):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from fvae_nnunet import trainers

    class Inverting(nnUNetTrainer):
        def train_step(self, batch):
            return super().train_step({**batch, "data": -batch["data"]})

    monkeypatch.setattr(trainers, "Inverting", Inverting, raising=False)
    for sample in take(planned, "Inverting"):
        assert sample.mark == "changed by the trainer"
        assert np.array_equal(sample.received, -sample.raw)


def test_the_command_writes_the_sheet_and_says_what_is_in_it(planned, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("nnUNet_fvae_vae", "tiny")
    path = tmp_path / "batch.png"
    arguments = [planned.id, "3d_fullres", "0", "-tr", "nnUNetTrainerFVAEOnline", "-o", str(path), "-device", "cpu"]
    assert main(arguments) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert f"written: {path}; phantom_" in capsys.readouterr().out
    assert [found.name for found in tmp_path.iterdir()] == ["batch.png"]


def sample(mark_weight, case="a", tumour=True):
    raw = np.zeros((1, 4, 8, 8), np.float32)
    mask = np.zeros((4, 8, 8), bool)
    mask[2, 2:5, 2:5] = tumour
    received = raw + (0.5 if mark_weight else 0)
    return Sample(case, raw, received, {"pancreas": np.zeros_like(mask), "tumour": mask}, mark_weight)


def test_the_picture_marks_views_and_draws_names_as_they_are(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (drawn.append(figure), save(figure, *a, **k)))
    batch = TrainingBatch([sample(0.0, "$x_1$"), sample(1.0, "b", tumour=False)], (-1.0, 1.0), "-96 to 215 HU")
    batch_picture(batch, title="$title_", path=tmp_path / "a.png")
    panels = drawn[0].axes
    assert [panel.get_title() for panel in panels] == [
        "$x_1$, slice 3 of 4", "raw", "difference", "b, slice 3 of 4", "view", "difference",
    ]  # fmt: skip
    assert not any(panel.title.get_parse_math() for panel in panels)
    widths = [panel.spines["left"].get_linewidth() for panel in panels]
    assert widths[4] == 3 and max(widths[:4]) < 3
    assert [len(panel.collections) for panel in panels] == [0, 2, 0, 0, 0, 0], "the tumour's line and casing"
    np.testing.assert_array_equal(panels[5].images[0].get_array(), 0.5)
    assert drawn[0]._suptitle.get_text() == "$title_\n2 samples: 1 raw, 1 view"


def test_letters_follow_what_augmentation_mirrors_and_turns():
    shape = (2, 12, 30, 40)
    as_loaded = [np.array(ramp_along(axis, shape)) for axis in range(3)]
    along_file = np.eye(3)[:, ::-1]  # the axes z, y, x run to the head, to the back and to the left

    def sides(change):
        return sides_after(along_file, [change(ramp) for ramp in as_loaded])

    assert sides(lambda ramp: ramp) == ("R", "L", "A", "P")
    assert sides(lambda ramp: ramp[:, :, :, ::-1]) == ("L", "R", "A", "P")
    assert sides(lambda ramp: ramp[:, ::-1, ::-1]) == ("R", "L", "P", "A")
    assert sides(lambda ramp: rotate(ramp, 30, axes=(3, 2), order=1)) == ("R", "L", "A", "P"), "with padding around"
    blurred_padding = partial(gaussian_filter, sigma=(0, 2, 2, 2))
    assert sides(lambda ramp: blurred_padding(np.pad(ramp, ((0, 0), (9, 0), (0, 9), (9, 0))))) == ("R", "L", "A", "P")
    assert sides(lambda ramp: np.rot90(ramp, axes=(2, 3))) == ("A", "P", "L", "R")
    assert sides(lambda ramp: 0.3 * ramp**1.2)[:2] == ("R", "L"), "grey values are augmented too"
    assert sides_after(None, as_loaded) is None


@pytest.mark.slow
def test_letters_of_samples_change_where_augmentation_mirrors(planned):
    assert len({sample.sides for seed in range(4) for sample in take(planned, "nnUNetTrainer", seed=seed)}) > 1


def test_mistakes_of_the_call_are_one_message(planned, tmp_path, capsys):
    def message(*arguments):
        assert main([*arguments, "-device", "cpu"]) == 1
        return capsys.readouterr().err

    assert "ends in .png" in message(planned.id, "3d_fullres", "0", "-o", str(tmp_path / "a.jpg"))
    for dataset in ([planned.id], ["-d", planned.id], [f"-d={planned.id}"], [f"-d{planned.id}"]):
        assert "has no configuration '3d_lowres'; configurations: 2d, 3d" in message(*dataset, "3d_lowres", "0")
    assert "existing plans: nnUNetPlans. Choose one with -p" in message(
        planned.id, "2d", "0", "-p", "nnUNetResEncUNetLPlans"
    )
    assert "run fvae-setup" in message(planned.id, "2d", "0", "-tr", "nnUNetTrainerUnknown")
    assert "has no reconstructed view" in message(planned.id, "3d_fullres", "0", "-tr", "nnUNetTrainerFVAE")
    assert not (planned.results / "nnUNetTrainerFVAE__nnUNetPlans__3d_fullres" / "fold_0").exists()
