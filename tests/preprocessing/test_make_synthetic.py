"""fvae-preprocess --synthetic: nnU-Net's own arrays, complete and of these files, foreground in the new lesion."""

import pickle
import shutil
from functools import partial
from pathlib import Path

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
from synthetic_for_tests import ball_in, preprocess, write_synthetic_folder

from fvae_nnunet.cli import preprocess as command
from fvae_nnunet.command_lines import command_line
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.checked_json import read_json
from fvae_nnunet.jobs.manifest import Manifest, write_json
from fvae_nnunet.nnunet.synthetic_folder import read_synthetic_cases
from fvae_nnunet.preprocessing.dataset import open_preprocessed_dataset
from fvae_nnunet.preprocessing.make_synthetic import find_synthetic_cases
from fvae_nnunet.training.views import find_view, view_folder

SOURCES = ["phantom_001", "phantom_003"]


@pytest.fixture
def registered(monkeypatch):
    """nnU-Net finds the trainers; looking them up takes seconds and is tested elsewhere."""
    from fvae_nnunet.nnunet import registration

    monkeypatch.setattr(registration, "is_found_by_nnunet", lambda trainer="nnUNetTrainerFVAE": True)


@pytest.fixture
def folder(clone, tmp_path) -> Path:
    write_synthetic_folder(tmp_path / "synthetic", clone, SOURCES)
    return tmp_path / "synthetic"


def array(path):
    return blosc2.open(str(path), mode="r")[:]


def properties(path):
    return pickle.loads(path.read_bytes())


def nnunets_own(dataset, folder, configuration, tmp_path):
    """What nnU-Net makes of the cases of a folder."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(dataset.plans)
    out = tmp_path / f"own_{configuration}"
    out.mkdir()
    for image in sorted((folder / "imagesTr").iterdir()):
        name = image.name.removesuffix("_0000.nii.gz")
        DefaultPreprocessor(verbose=False).run_case_save(
            str(out / name), [str(image)], str(folder / "labelsTr" / f"{name}.nii.gz"),
            manager, manager.get_configuration(configuration), dataset.dataset_json,
        )  # fmt: skip
    return out


def assert_same(ours, nnunets, lesion=2):
    assert {path.name for path in ours.glob("*.b2nd")} == {path.name for path in nnunets.glob("*.b2nd")}
    for path in nnunets.glob("*.b2nd"):
        made = array(ours / path.name)
        assert made.dtype == array(path).dtype
        assert np.array_equal(made, array(path)), path.name
    for path in nnunets.glob("*.pkl"):
        ours_of_case, nnunets_of_case = properties(ours / path.name), properties(path)
        locations, theirs = ours_of_case.pop("class_locations"), nnunets_of_case.pop("class_locations")
        assert locations.keys() == theirs.keys()
        assert all(np.array_equal(locations[key], theirs[key]) for key in theirs if key not in (lesion, (lesion,)))
        assert repr(ours_of_case) == repr(nnunets_of_case)


@pytest.mark.slow
def test_arrays_and_properties_are_nnunets_own_for_every_configuration(clone, folder, tmp_path):
    for configuration, made in preprocess(clone, folder).items():
        assert made.name == f"nnUNetPlans_{configuration}__fvae_synthetic"
        assert_same(made, nnunets_own(clone, folder, configuration, tmp_path))
        assert [Manifest(made).read_case(f"synthetic_{n:04d}")["source_case"] for n in range(2)] == SOURCES
        assert Manifest(made).read()["kind"] == "synthetic"


@pytest.mark.slow
def test_foreground_is_sampled_from_the_new_lesion_alone_also_resampled_transposed_and_cropped(clone, tmp_path):
    plans = clone.plans
    plans["transpose_forward"], plans["transpose_backward"] = [1, 0, 2], [1, 0, 2]
    plans["configurations"]["3d_fullres"]["spacing"] = [1.7, 3.5, 2.2]
    clone.write_plans(plans)
    image_path = clone.raw / "imagesTr" / f"{SOURCES[0]}_0000.nii.gz"
    image = sitk.ReadImage(str(image_path))
    cropped = sitk.GetArrayFromImage(image)
    cropped[:4], cropped[:, -9:] = 0, 0
    changed = sitk.GetImageFromArray(cropped)
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(image_path))
    clone.preprocess("3d_fullres")
    write_synthetic_folder(tmp_path / "synthetic", clone, SOURCES[:1], centre_shift=5)
    made = preprocess(clone, tmp_path / "synthetic", configurations=["3d_fullres"])["3d_fullres"]
    assert_same(made, nnunets_own(clone, tmp_path / "synthetic", "3d_fullres", tmp_path))

    segmentation = array(made / "synthetic_0000_seg.b2nd")[0]
    places = properties(made / "synthetic_0000.pkl")["class_locations"][2]
    assert (places[:, 0] == 0).all() and len(places) > 50
    assert len(places) < (segmentation == 2).sum(), "the phantom has a tumour of its own"
    assert (segmentation[tuple(places[:, 1:].T)] == 2).all()
    # back to mm along the image's axes (z, y, x), from the crop box [4, 24) x [0, 39) x [0, 48) and the new spacing
    step_mm = np.array([39 * 2, 20 * 3, 48 * 2]) / segmentation.shape
    y_mm, z_mm, x_mm = ((places[:, 1:] + 0.5) * step_mm).T
    _, centre = ball_in((24, 48, 48), (3, 2, 2), shift=5)
    expected_mm = (np.array(centre) - (4, 0, 0) + 0.5) * (3, 2, 2)
    distance_mm = np.linalg.norm(np.stack([z_mm, y_mm, x_mm], axis=1) - expected_mm, axis=1)
    # half a voxel of the image beyond the ball's radius of 7 mm, and half of the diagonal of a voxel of the plans
    assert distance_mm.max() < 7 + np.linalg.norm((3, 2, 2)) / 2 + np.linalg.norm(step_mm) / 2


@pytest.mark.slow
def test_with_regions_the_lesions_own_region_is_sampled_from_the_new_lesion(clone, folder):
    clone.write_dataset_json(
        clone.dataset_json
        | {"labels": {"background": 0, "pancreas": [1, 2], "tumour": 2}, "regions_class_order": [1, 2]}
    )
    clone.preprocess("3d_fullres")
    made = preprocess(clone, folder, configurations=["3d_fullres"])["3d_fullres"]
    locations = properties(made / "synthetic_0000.pkl")["class_locations"]
    organ, lesion = (locations[key] for key in sorted(locations, key=lambda key: -np.size(key)))
    record = Manifest(made).read_case("synthetic_0000")
    assert len(lesion) == record["own_lesion_voxels"] < len(organ)


def test_a_lesion_that_adds_nothing_leaves_nnunets_places(clone, folder, registered, capsys):
    source = clone.raw / "labelsTr" / f"{SOURCES[0]}.nii.gz"
    shutil.copy(source, folder / "labelsTr" / "synthetic_0000.nii.gz")
    arguments = [clone.id, "-c", "3d_fullres", "--synthetic", str(folder), "-np", "0"]
    assert command.main(arguments) == 0
    assert "synthetic_0000: nothing of its new lesion is left at the spacing of 3d_fullres" in capsys.readouterr().err
    made = clone.preprocessed / "nnUNetPlans_3d_fullres__fvae_synthetic"
    segmentation = array(made / "synthetic_0000_seg.b2nd")
    assert len(properties(made / "synthetic_0000.pkl")["class_locations"][2]) == (segmentation == 2).sum()


@pytest.mark.slow
def test_finished_cases_are_left_alone_and_damaged_or_changed_ones_made_again(clone, tmp_path):
    folder = tmp_path / "synthetic"
    write_synthetic_folder(folder, clone, ["phantom_000", "phantom_001", "phantom_002", "phantom_003"])
    made = preprocess(clone, folder, configurations=["3d_fullres"])["3d_fullres"]
    stamps = {path.name: path.stat().st_mtime_ns for path in made.glob("*.pkl")}
    cut = made / "synthetic_0001_seg.b2nd"
    cut.write_bytes(cut.read_bytes()[:-1])
    label = folder / "labelsTr" / "synthetic_0002.nii.gz"
    before = array(made / "synthetic_0002_seg.b2nd")
    shutil.copy(folder / "labelsTr" / "synthetic_0003.nii.gz", label)
    preprocess(clone, folder, configurations=["3d_fullres"])
    changed = {path.name for path in made.glob("*.pkl") if path.stat().st_mtime_ns != stamps[path.name]}
    assert changed == {"synthetic_0001.pkl", "synthetic_0002.pkl"}
    assert not np.array_equal(array(made / "synthetic_0002_seg.b2nd"), before)
    source = clone.raw / "labelsTr" / "phantom_003.nii.gz"
    sitk.WriteImage(sitk.ReadImage(str(source)) * 0, str(source))
    preprocess(clone, folder, configurations=["3d_fullres"])
    after = {path.name for path in made.glob("*.pkl") if path.stat().st_mtime_ns != stamps[path.name]}
    assert after == changed | {"synthetic_0003.pkl"}, "what is new in it depends on the source's label"
    assert not [path for path in made.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_further_cases_join_and_cases_that_are_rejected_now_leave_the_set(clone, folder):
    made = preprocess(clone, folder, configurations=["3d_fullres"])["3d_fullres"]
    write_synthetic_folder(folder, clone, ["phantom_004"], first=2)
    (folder / "records" / "synthetic_0000.json").unlink()
    preprocess(clone, folder, configurations=["3d_fullres"])
    accepted = read_json(made / "accepted_cases.json")
    assert accepted["cases"] == {
        "synthetic_0001": {"source_case": "phantom_003", "borrowed_from": []},
        "synthetic_0002": {"source_case": "phantom_004", "borrowed_from": []},
    }
    assert [model["vae"] for model in accepted["models"]] == ["tiny"]


@pytest.mark.slow
def test_another_folder_or_other_plans_are_refused_by_name_and_overwrite_makes_it_anew(clone, folder, tmp_path):
    made = preprocess(clone, folder, configurations=["3d_fullres"])["3d_fullres"]
    write_synthetic_folder(tmp_path / "other", clone, SOURCES[:1])
    with pytest.raises(UserError, match=r"synthetic_folder: .*/synthetic\", now .*/other\""):
        preprocess(clone, tmp_path / "other", configurations=["3d_fullres"])
    preprocess(clone, tmp_path / "other", configurations=["3d_fullres"], overwrite=True)
    assert sorted(path.name for path in made.glob("*.pkl")) == ["synthetic_0000.pkl"]
    clone.write_dataset_json(clone.dataset_json | {"labels": {"background": 0, "pancreas": 1, "tumour": 2, "other": 3}})
    with pytest.raises(UserError, match=r"preprocessing.labels.other: null, now 3"):
        preprocess(clone, tmp_path / "other", configurations=["3d_fullres"])


@pytest.mark.slow
def test_workers_make_the_same_arrays_as_one_process(clone, folder):
    alone = preprocess(clone, folder, configurations=["3d_fullres"])["3d_fullres"]
    kept = alone.with_name("kept")
    alone.rename(kept)
    together = preprocess(clone, folder, configurations=["3d_fullres"], workers=2)["3d_fullres"]
    assert_same(together, kept)
    for path in kept.glob("*.pkl"):
        ours, theirs = (properties(made / path.name)["class_locations"][2] for made in (together, kept))
        assert np.array_equal(ours, theirs)


@pytest.mark.slow
def test_the_command_says_what_it_did_and_how_to_train(clone, folder, registered, capsys):
    arguments = [clone.id, "-c", "3d_fullres", "--synthetic", str(folder), "-np", "0"]
    made = clone.preprocessed / "nnUNetPlans_3d_fullres__fvae_synthetic"
    assert command.main(arguments) == 0
    assert capsys.readouterr().out.endswith(
        f"2 synthetic cases done, 0 already complete, in {made}; train with: nnUNetv2_train {clone.id} 3d_fullres 0 "
        "-tr nnUNetTrainerFVAESynthRaw (with views: nnUNetTrainerFVAESynth)\n"
    )
    segmentation = made / "synthetic_0000_seg.b2nd"
    whole = segmentation.read_bytes()
    segmentation.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert command.main([*arguments, "--verify"]) == 0
    captured = capsys.readouterr()
    assert f"DAMAGED, will be made again: synthetic_0000: {segmentation} has changed" in captured.err
    assert "1 synthetic case done, 1 already complete" in captured.out
    image = folder / "imagesTr" / "synthetic_0001_0000.nii.gz"
    image.write_bytes(image.read_bytes()[:2000])
    assert command.main(arguments) == 1
    captured = capsys.readouterr()
    assert "synthetic_0001: FAILED: " in captured.err and "cannot be read" in captured.err
    assert "1 of 2 cases failed: synthetic_0001" in captured.err
    assert "0 synthetic cases done, 1 already complete" in captured.out and "train with" not in captured.out
    assert not (made / "locks").exists()


@pytest.mark.slow
def test_the_last_part_says_how_to_train(clone, folder, registered, capsys):
    arguments = [clone.id, "-c", "3d_fullres", "--synthetic", str(folder), "-np", "0", "-num_parts", "2", "-part_id"]
    assert command.main([*arguments, "1"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("; 1 of 2 cases still missing\n") and "train with" not in out
    assert command.main([*arguments, "0"]) == 0
    assert capsys.readouterr().out.endswith("FVAESynthRaw (with views: nnUNetTrainerFVAESynth)\n")


@pytest.mark.slow
def test_mistakes_are_one_message(clone, folder, tmp_path, capsys):
    def message(*arguments):
        assert command.main([clone.id, "-np", "0", *map(str, arguments)]) == 1
        return capsys.readouterr().err

    assert "leave out --view, --vae, --hu-window" in message(
        "--synthetic", folder, "--vae", "tiny", "--view", "a", "--hu-window", "0", "100"
    )
    assert "is not a folder of synthetic cases; fvae-synthesize makes such folders" in message("--synthetic", tmp_path)
    assert "'synthetic' is the name of the folder of synthetic cases" in message("--view", "synthetic", "--vae", "tiny")


def test_cases_of_other_datasets_sources_or_labels_are_refused(clone, folder):
    dataset = open_preprocessed_dataset(clone.id)

    def error(**changes):
        path = folder / "records" / "synthetic_0001.json"
        record = read_json(path)
        write_json(path, record | changes)
        with pytest.raises(UserError) as raised:
            find_synthetic_cases(dataset, folder)
        write_json(path, record)
        return str(raised.value)

    assert f"made from Dataset001_Other, not from {clone.name}" in error(dataset="Dataset001_Other")
    assert "made from phantom_099, which is not (or no longer) a case of" in error(source_case="phantom_099")
    assert "'cyst', but the labels of" in error(label={"name": "cyst", "value": 2})
    assert "describes synthetic_0007" in error(case="synthetic_0007")
    path = folder / "records" / "synthetic_0001.json"
    write_json(path, {key: value for key, value in read_json(path).items() if key != "label"})
    with pytest.raises(UserError, match=r"synthetic_0001\.json is damaged or incomplete: it lacks label"):
        read_synthetic_cases(folder)
    (folder / "imagesTr" / "synthetic_0000_0000.nii.gz").unlink()
    with pytest.raises(UserError, match=r"synthetic_0000_0000\.nii\.gz is missing, although"):
        read_synthetic_cases(folder)
    for record in (folder / "records").iterdir():
        record.unlink()
    with pytest.raises(UserError, match="has no accepted case"):
        find_synthetic_cases(dataset, folder)


def test_a_label_of_another_shape_than_its_sources_is_named(clone, folder):
    for part in ("imagesTr/synthetic_0000_0000", "labelsTr/synthetic_0000"):
        path = folder / f"{part}.nii.gz"
        sitk.WriteImage(sitk.ReadImage(str(path))[:, :, :-2], str(path))
    with pytest.raises(UserError, match=r"has shape \(22, 48, 48\), but the label of its source case"):
        preprocess(clone, folder, configurations=["3d_fullres"])


def test_synthetic_cases_are_no_view(clone, folder):
    preprocess(clone, folder, configurations=["3d_fullres"])
    data_folder = clone.preprocessed / "nnUNetPlans_3d_fullres"
    with pytest.raises(UserError, match="has no reconstructed view"):
        find_view(data_folder, partial(command_line, "fvae-preprocess"))
    with pytest.raises(UserError, match="give the view another name"):
        view_folder(data_folder, "synthetic")
