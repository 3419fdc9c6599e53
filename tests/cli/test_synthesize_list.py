"""fvae-synthesize --list: whole volumes from structures, disease masks and texts, with a model that paints classes."""

from __future__ import annotations

import csv
import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from painted_cases import CORONAL, PaintingModel, rewrite_image, write_dataset, write_image
from structures_for_tests import CLASSES, FINDINGS, SHAPE, SPACING_MM, blocks, write_structures_dataset

from fvae_nnunet.cli import synthesize
from fvae_nnunet.files.checked_json import read_json
from fvae_nnunet.nnunet.synthetic_folder import read_synthetic_cases
from fvae_nnunet.synthesis.generation.case_list import ListedCase, read_case_list
from fvae_nnunet.synthesis.model import folder as model_folder
from fvae_nnunet.synthesis.model import latent_diffusion as model
from fvae_nnunet.synthesis.model.codec import LatentCodec
from fvae_nnunet.synthesis.model.sampling import LatentWindows
from fvae_nnunet.vae.base import VAESpec


class ClassPainter(PaintingModel):
    """Gives a voxel 100 times its class and noise of 5 HU, two slices at a time."""

    def __init__(self, **settings):
        super().__init__()
        defaults = {
            "class_names": CLASSES,
            "lesions": 2,
            "organ": "structures",
            "text_encoder": "bert",
            "appearance": None,
        }
        self.settings = SimpleNamespace(**vars(self.settings) | defaults | settings)
        self.settings.lesion_names = self.settings.class_names[-self.settings.lesions :]

    def generate_runs(self, layout, *, generator, text=None, **sampling):
        class_map = layout.class_map
        self.calls.append(SimpleNamespace(class_map=class_map.copy(), text=text))
        for start in range(0, len(class_map), 2):
            run = class_map[start : start + 2]
            noise = torch.randn(run.shape, generator=generator).clamp(-3, 3).numpy()
            yield (100.0 * run + 5 * noise).astype(np.float32)


@pytest.fixture
def paints(monkeypatch):
    """Lets the command use a model that paints; its arguments are the model's settings."""

    def use(**settings):
        found = ClassPainter(**settings)
        monkeypatch.setattr(model_folder, "read_model", lambda folder: (found.settings, found.training))
        monkeypatch.setattr(model.LatentDiffusion, "load", lambda *arguments, **keywords: found)
        return found

    use()
    return use


def run(dataset, rows, output, *arguments):
    path = rows
    if isinstance(rows, list):
        path = output.parent / "list.json"
        path.write_text(json.dumps(rows))
    options = ["--ldm", "model", "--mode", "full", "--list", path, "-o", output, "-np", "0", "-device", "cpu"]
    return synthesize.main([dataset.name, *map(str, [*options, *arguments])])


def array_of(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def files_of(folder):
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def write_mask(path, box, *, direction=None, value=1):
    mask = np.zeros(SHAPE, np.uint8)
    mask[box] = value
    write_image(path, mask, spacing_mm=SPACING_MM, direction=direction, origin_mm=(-20.0, 5.0, 30.0))
    return mask > 0


NODULE = (slice(2, 4), slice(6, 10), slice(22, 26))
EFFUSION = (slice(0, 8), slice(8, 20), slice(24, 30))


@pytest.mark.slow
@pytest.mark.parametrize("direction", [None, CORONAL])
def test_volumes_follow_structures_and_diseases(paints, tmp_path, direction):
    dataset = write_structures_dataset(direction=direction)
    nodule = write_mask(tmp_path / "nodule.nii.gz", NODULE, direction=direction)
    effusion = write_mask(tmp_path / "effusion.nii.gz", EFFUSION, direction=direction)
    both = {"nodule": "nodule.nii.gz", "effusion": "effusion.nii.gz"}
    rows = [
        {"case": "as_it_is", "source": "case_1", "text": "stable"},
        {"case": "healthy", "source": "case_1", "keep_lesions": False, "findings": []},
        {"case": "more", "source": "case_1", "diseases": both, "findings": ["Pleural effusion"]},
        {"case": "files", "structures": str(dataset.raw / "structuresTr/case_0.nii.gz"),
         "labels": str(dataset.raw / "labelsTr/case_1.nii.gz"), "diseases": {"nodule": "effusion.nii.gz"}},
    ]  # fmt: skip
    assert run(dataset, rows, tmp_path / "out") == 0
    structures, labels = blocks()
    more = np.where(nodule, 1, labels)
    expected = {
        "as_it_is": labels,
        "healthy": labels * 0,
        "more": np.where(effusion, 2, more),  # named later, so it has what both have
        "files": np.where(effusion, 1, labels),
    }
    organs = np.select([structures == value for value in (10, 13, 51)], [1, 2, 3], 0)
    cases = {case.name: case for case in read_synthetic_cases(tmp_path / "out")}
    assert cases.keys() == expected.keys()
    reference = sitk.ReadImage(str(dataset.raw / "imagesTr/case_1_0000.nii.gz"))
    for name, its_labels in expected.items():
        case = cases[name]
        classes = np.select([its_labels == 1, its_labels == 2], [5, 6], organs)
        assert np.array_equal(array_of(case.label), its_labels)
        assert np.abs(array_of(case.images[0]) - 100.0 * classes).max() <= 15.5
        assert np.array_equal(array_of(tmp_path / "out/structuresTr" / f"{name}.nii.gz"), structures)
        for path in (case.images[0], case.label):
            image = sitk.ReadImage(str(path))
            assert image.GetDirection() == reference.GetDirection() and image.GetOrigin() == reference.GetOrigin()
            assert image.GetSpacing() == reference.GetSpacing()
        voxels = {value: int((its_labels == value).sum()) for value in (1, 2)}
        found = {mask["label"]: mask["voxels"] for mask in case.record["disease_masks"]}
        assert found == {value: count for value, count in voxels.items() if count}
    assert read_json(tmp_path / "out/structuresTr/structures.json")["lung_left"] == 10
    record = cases["more"].record
    assert record["findings"] == dict(zip(FINDINGS, (0, 1), strict=True)) and record["text"] is None
    assert (record["source_case"], record["mode"], record["label"]) == (
        "case_1",
        "full",
        {"name": "effusion", "value": 2},
    )
    centre = np.argwhere(expected["more"] == 2).mean(axis=0)
    lesion = record["lesions"][1]
    assert lesion["name"] == "effusion" and lesion["centre_voxel"] == pytest.approx(centre, abs=0.006)
    expected_mm = reference.TransformContinuousIndexToPhysicalPoint(centre[::-1].tolist())
    assert lesion["centre_mm"] == pytest.approx(expected_mm, abs=0.006)
    assert cases["healthy"].record["findings"] == dict.fromkeys(FINDINGS, 0)
    assert cases["as_it_is"].record["text"] == "stable" and cases["as_it_is"].record["findings"] is None
    assert cases["files"].record["source_case"] is None


@pytest.mark.slow
def test_the_same_bytes_however_the_work_is_spread(paints, tmp_path):
    dataset = write_structures_dataset()
    rows = [{"case": f"v{number}", "source": f"case_{number % 3}"} for number in range(4)]
    assert run(dataset, rows, tmp_path / "one") == 0
    for part in (1, 0):
        assert run(dataset, rows, tmp_path / "parts", "-num_parts", "2", "-part_id", part) == 0
    assert run(dataset, rows, tmp_path / "workers", "-np", "1") == 0
    assert run(dataset, rows[2:], tmp_path / "grown") == 0
    assert run(dataset, rows, tmp_path / "grown") == 0
    expected = files_of(tmp_path / "one")
    for other in ("parts", "workers", "grown"):
        assert files_of(tmp_path / other) == expected


@pytest.mark.slow
def test_noise_is_of_the_case_and_the_seed_or_of_the_rows_seed(paints, tmp_path):
    dataset = write_structures_dataset(1)
    rows = [{"case": name, "source": "case_0"} | ({"seed": 7} if name in "cd" else {}) for name in "abcd"]
    assert run(dataset, rows, tmp_path / "zero") == 0
    assert run(dataset, rows, tmp_path / "one", "--seed", 1) == 0
    zero, one = ([array_of(tmp_path / out / f"imagesTr/{n}_0000.nii.gz") for n in "abcd"] for out in ("zero", "one"))
    assert not np.array_equal(zero[0], zero[1]) and not np.array_equal(zero[0], one[0])
    assert np.array_equal(zero[2], zero[3]) and np.array_equal(zero[2], one[2])
    seeds = [case.record["seed"] for case in read_synthetic_cases(tmp_path / "one")]
    assert seeds == [1, 1, 7, 7]


@pytest.mark.slow
def test_only_what_changed_is_made_again(paints, tmp_path, capsys):
    dataset = write_structures_dataset(1)
    write_mask(tmp_path / "nodule.nii.gz", NODULE)
    rows = [
        {"case": "a", "source": "case_0", "text": "one"},
        {"case": "b", "source": "case_0", "diseases": {"nodule": "nodule.nii.gz"}},
    ]
    assert run(dataset, rows, tmp_path / "out") == 0
    painter = paints()
    assert run(dataset, rows, tmp_path / "out") == 0 and painter.calls == []
    rows[0]["text"] = "two"
    assert run(dataset, rows, tmp_path / "out") == 0
    assert [call.text for call in painter.calls] == ["two"]
    write_mask(tmp_path / "nodule.nii.gz", EFFUSION)
    assert run(dataset, rows, tmp_path / "out") == 0
    assert [call.text for call in painter.calls] == ["two", None]
    (tmp_path / "out/structuresTr/a.nii.gz").unlink()
    assert run(dataset, rows, tmp_path / "out") == 0 and len(painter.calls) == 3
    capsys.readouterr()
    assert run(dataset, rows, tmp_path / "out", "--steps", "5") == 1
    assert "sampling.steps: 20, now 5" in capsys.readouterr().err


def test_a_remake_that_is_interrupted_leaves_no_record_of_a_mask_that_is_not_the_images(paints, tmp_path, monkeypatch):
    from fvae_nnunet.synthesis.generation import listed_cases

    dataset = write_structures_dataset(1)
    write_mask(tmp_path / "nodule.nii.gz", NODULE)
    rows = [{"case": "a", "source": "case_0", "diseases": {"nodule": "nodule.nii.gz"}}]
    assert run(dataset, rows, tmp_path / "out") == 0
    write_mask(tmp_path / "nodule.nii.gz", EFFUSION)
    write, written = listed_cases.write_volume, []

    def killed(path, *arguments):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write(path, *arguments)

    monkeypatch.setattr(listed_cases, "write_volume", killed)
    assert run(dataset, rows, tmp_path / "out") == 130
    assert read_synthetic_cases(tmp_path / "out") == []
    monkeypatch.setattr(listed_cases, "write_volume", write)
    assert run(dataset, rows, tmp_path / "out") == 0
    assert len(read_synthetic_cases(tmp_path / "out")) == 1


def test_csv_says_the_same_as_json(tmp_path):
    rows = [
        {"case": "a", "source": "s", "keep_lesions": False, "diseases": {"nodule": "n.nii", "lung, effusion": "m.nii"},
         "text": 'Nodule, 5 mm. "New".', "findings": ["Lung nodule", "Pleural effusion"], "seed": 3},
        {"case": "b", "structures": "m/b.nii", "labels": "l.nii", "findings": []},
    ]  # fmt: skip
    (tmp_path / "list.json").write_text(json.dumps(rows))
    cells = [
        {"case": "a", "source": "s", "keep_lesions": "no", "diseases": "nodule=n.nii; lung, effusion = m.nii",
         "text": rows[0]["text"], "findings": "Lung nodule;Pleural effusion", "seed": "3"},
        {"case": "b", "structures": "m/b.nii", "labels": "l.nii", "findings": "none"},
    ]  # fmt: skip
    with (tmp_path / "list.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["case", "source", "structures", "keep_lesions", "diseases", "labels", "text",
                                       "findings", "seed"])  # fmt: skip
        writer.writeheader()
        writer.writerows(cells)
    from_json, from_csv = (read_case_list(tmp_path / f"list.{kind}") for kind in ("json", "csv"))
    assert [row.where for row in from_csv] == ["line 2", "line 3"]
    assert [vars(row) | {"where": ""} for row in from_json] == [vars(row) | {"where": ""} for row in from_csv]
    assert from_json[0] == ListedCase(
        "entry 1", "a", "s", None, False,
        (("nodule", tmp_path / "n.nii"), ("lung, effusion", tmp_path / "m.nii")),
        None, rows[0]["text"], ("Lung nodule", "Pleural effusion"), 3,
    )  # fmt: skip


@pytest.mark.slow
def test_all_wrong_rows_are_named_before_anything_is_made(paints, tmp_path, capsys):
    dataset = write_structures_dataset(2)
    paints(text_encoder=None)
    write_mask(tmp_path / "nodule.nii.gz", NODULE)
    write_image(tmp_path / "other.nii.gz", np.ones((8, 24, 30), np.uint8), spacing_mm=SPACING_MM)
    good = {"case": "good", "source": "case_0"}
    rows = [
        (good, None),
        ({"case": "../b", "source": "case_0"}, "a case needs a name of letters"),
        ({"case": "c", "source": "case_7"}, "has no training case 'case_7'"),
        ({"case": "d"}, "give either source or structures"),
        ({"case": "e", "source": "case_0", "diseases": {"cyst": "nodule.nii.gz"}}, "knows no lesion 'cyst'"),
        ({"case": "f", "source": "case_0", "diseases": {"nodule": "none.nii.gz"}}, "none.nii.gz is not a file"),
        ({"case": "g", "source": "case_0", "diseases": {"nodule": "other.nii.gz"}}, "differ in"),
        ({"case": "h", "source": "case_0", "text": "x"}, "the model was trained without text"),
        ({"case": "i", "source": "case_0", "findings": ["Mass"]}, "no finding 'Mass'"),
        ({"case": "j", "source": "case_0", "seed": -1}, "seed must be a whole number"),
        ({"case": "k", "source": "case_0"}, "the case k occurs more than once"),
        ({"case": "K", "source": "case_0"}, "the case K occurs more than once"),
        ({"case": "l", "structures": "nodule.nii.gz", "keep_lesions": True}, "keep_lesions must be yes or no"),
    ]
    assert run(dataset, [row for row, _ in rows], tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "has 12 invalid rows:" in error and "entry 1:" not in error
    lines = error.splitlines()[1:]
    for number, ((_, message), line) in enumerate(zip(rows[1:], lines, strict=True), start=2):
        assert line.startswith(f"  entry {number}: ") and message in line
    assert not (tmp_path / "out").exists()
    csv_file = tmp_path / "list.csv"
    csv_file.write_text("case,source,text\na,case_0,one, two\nb,case_9,\n")
    assert run(dataset, csv_file, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "line 2: the number of cells differs from that of the header" in error and "line 3: " in error


@pytest.mark.slow
def test_rows_without_a_text_are_refused_where_the_model_needs_one(paints, tmp_path, capsys):
    dataset = write_structures_dataset(1)
    rows = [{"case": "a", "source": "case_0", "text": "Nodule."}, {"case": "b", "source": "case_0"}]
    paints().training["samples_without_text"] = False
    assert run(dataset, rows, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "has 1 invalid row:\n  entry 2: it has no text, but the model was trained only on cases with a text" in error
    assert not (tmp_path / "out").exists()
    assert run(dataset, rows[:1], tmp_path / "out") == 0
    paints().training["samples_without_text"] = True
    assert run(dataset, rows, tmp_path / "out") == 0


def test_bad_voxels_fail_their_case_alone(paints, tmp_path, capsys):
    dataset = write_structures_dataset(2)
    write_mask(tmp_path / "empty.nii.gz", (slice(0, 0),))
    write_mask(tmp_path / "wrong.nii.gz", NODULE, value=9)
    rows = [
        {"case": "a", "source": "case_0", "diseases": {"nodule": "empty.nii.gz"}},
        {"case": "b", "structures": "wrong.nii.gz"},
        {"case": "c", "source": "case_0", "labels": "wrong.nii.gz"},
        {"case": "d", "source": "case_0"},
    ]
    assert run(dataset, rows, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "the mask of nodule is empty" in error and "holds the value 9, which" in error
    assert "has the value 9, which is not the label of a lesion" in error and "3 of 4 cases failed: a, b, c" in error
    assert [case.name for case in read_synthetic_cases(tmp_path / "out")] == ["d"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode", "inpaint"], "add --mode full"),
        (["-n", "3"], "give either -n N"),
        (["--shapes", "ellipsoid"], "--shapes has no effect with --list"),
        (["--text", "x"], "--text has no effect with --list"),
        (["--leave-out", "case_0"], "--leave-out has no effect with --list"),
        (["--seed", "-1"], "--seed must not be negative"),
        (["-num_parts", "2", "-part_id", "2"], "-part_id must be at least 0"),
    ],
)
def test_options_that_do_not_go_with_a_list(paints, tmp_path, capsys, arguments, message):
    dataset = write_structures_dataset(1)
    assert run(dataset, [{"case": "a", "source": "case_0"}], tmp_path / "out", *arguments) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_help_names_the_page_on_lists(capsys):
    with pytest.raises(SystemExit):
        synthesize.main(["--help"])
    assert "docs/synthesis_volumes.md defines the format" in " ".join(capsys.readouterr().out.split())


def test_models_of_one_organ_take_lists_too(paints, tmp_path):
    dataset = write_dataset(2)
    paints(class_names=("organ", "tumour"), lesions=1, organ="label:organ")
    rows = [{"case": "a", "source": "case_1"}, {"case": "b", "source": "case_1", "keep_lesions": False}]
    assert run(dataset, rows, tmp_path / "out") == 0
    labels = array_of(dataset.raw / "labelsTr/case_1.nii.gz")
    kept, dropped = (array_of(tmp_path / f"out/labelsTr/{case}.nii.gz") for case in "ab")
    assert np.array_equal(kept, labels) and np.array_equal(dropped, np.minimum(labels, 1)) and (labels == 2).any()
    assert np.abs(array_of(tmp_path / "out/imagesTr/b_0000.nii.gz") - 100.0 * dropped).max() <= 15.5
    assert not (tmp_path / "out/structuresTr").exists()


def test_models_with_a_spacing_of_their_own(paints, tmp_path):
    dataset = write_structures_dataset(1)
    painter = paints(spacing_mm=(3.0, 4.0, 4.0))
    assert run(dataset, [{"case": "a", "source": "case_0", "keep_lesions": False}], tmp_path / "out") == 0
    assert painter.calls[0].class_map.shape == (8, 12, 16)
    image = array_of(tmp_path / "out/imagesTr/a_0000.nii.gz")
    structures, _ = blocks()
    assert image.shape == SHAPE and image.dtype == np.int16
    assert np.abs(image[:, 7:17, 23:27] - 200.0).max() <= 15.5 and (structures[:, 7:17, 23:27] == 13).all()


@pytest.mark.slow
def test_lesions_are_placed_into_chosen_structures(paints, tmp_path, capsys):
    dataset = write_structures_dataset()
    options = ["--ldm", "model", "-n", "3", "--mode", "full", "-o", tmp_path / "out", "-np", "0", "-device", "cpu"]
    options += ["--diameter-mm", "6", "8", "--shapes", "ellipsoid", "--no-filter"]
    assert synthesize.main([dataset.name, *map(str, options)]) == 1
    assert "choose the one to insert with --lesion: nodule, effusion" in capsys.readouterr().err
    options += ["--lesion", "effusion", "--place-in", "lung_right", "--inside-fraction", "1"]
    assert synthesize.main([dataset.name, *map(str, options)]) == 0
    structures, _ = blocks()
    for case in read_synthetic_cases(tmp_path / "out"):
        before = array_of(dataset.raw / "labelsTr" / f"{case.record['source_case']}.nii.gz")
        new = (array_of(case.label) == 2) & (before != 2)
        assert new.any() and (structures[new] == 13).all()
        assert np.abs(array_of(case.images[0])[new] - 600.0).max() <= 15.5
        assert case.record["label"] == {"name": "effusion", "value": 2} and case.record["findings"] is None


def test_structures_that_the_model_does_not_know_are_said(paints, tmp_path, capsys):
    dataset = write_structures_dataset(1)
    paints(class_names=("heart", "lung_left", "nodule", "effusion"))
    assert run(dataset, [{"case": "a", "source": "case_0"}], tmp_path / "out") == 0
    err = capsys.readouterr().err
    assert "warning: 2 structures of " in err and " unknown to the model and used as background: " in err
    structures, labels = blocks()
    classes = np.select([labels == 1, structures == 51, structures == 10], [3, 1, 2], 0)
    assert np.abs(array_of(tmp_path / "out/imagesTr/a_0000.nii.gz") - 100.0 * classes).max() <= 15.5


class CountingVAE:
    """Decodes its n-th call to n / 10; counts the slices of each."""

    def __init__(self, spec):
        self.spec, self.calls = spec, []

    def decode(self, latent):
        slices = self.spec.slice_offset + (latent.shape[2] - bool(self.spec.slice_offset)) * self.spec.slice_stride
        self.calls.append(slices)
        return torch.full((1, 1, slices, 8, 8), (len(self.calls) - 1) / 10)


@pytest.mark.parametrize("slices", [1, 4, 9, 10, 17, 40, 81])
def test_windows_of_a_long_volume_are_blended_without_a_seam(slices):
    """Windows that disagree by 100 HU: neighbouring slices differ by no more than the raised cosine does."""
    vae = CountingVAE(VAESpec("windows", 8, 1, 4, 1, 33, causal=True))
    codec = LatentCodec(vae, SimpleNamespace(hu_window=(-1000.0, 1000.0)))
    windows = LatentWindows.over(vae.spec.padded_slices(slices), 33, vae.spec)
    runs = list(codec.decode_windows(torch.zeros(1, 1, windows.frames, 1, 1), windows, (slices, 7, 5)))
    assert max(map(len, runs)) <= 33 and all(run.shape[1:] == (7, 5) for run in runs)
    profile = np.concatenate(runs)[:, 0, 0]
    assert len(profile) == slices and len(vae.calls) == len(windows.windows)
    steps = np.diff(profile)
    largest = 100 * np.pi / 2 / (windows.overlap_slices + 1)
    assert slices <= 33 or (steps.max() > 0 and profile[-1] == pytest.approx(100 * (len(vae.calls) - 1)))
    assert slices == 1 or (steps.min() >= -1e-3 and steps.max() <= largest)


@pytest.mark.parametrize("slices", [1, 3, 8, 21])
def test_slices_that_do_not_see_each_other_are_decoded_once(slices):
    vae = CountingVAE(VAESpec("slices", 8, 1, window_slices=4))
    codec = LatentCodec(vae, SimpleNamespace(hu_window=(-1000.0, 1000.0)))
    windows = LatentWindows.over(slices, 8, vae.spec)
    runs = list(codec.decode_windows(torch.zeros(1, 1, windows.frames, 1, 1), windows, (slices, 8, 8)))
    assert sum(vae.calls) == sum(map(len, runs)) == slices and max(vae.calls) <= 4


@pytest.mark.slow
def test_rewritten_images_change_what_a_case_is_made_from(paints, tmp_path):
    dataset = write_structures_dataset(1)
    rows = [{"case": "a", "source": "case_0"}]
    assert run(dataset, rows, tmp_path / "out") == 0
    painter = paints()
    rewrite_image(dataset.raw / "structuresTr/case_0.nii.gz", lambda array: np.where(array == 51, 52, array))
    assert run(dataset, rows, tmp_path / "out") == 0
    assert set(np.unique(painter.calls[0].class_map)) == {0, 1, 2, 4, 5}
