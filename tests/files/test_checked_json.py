"""Damaged and incomplete JSON files are a sentence with the file and the way out."""

import json

import pytest

from fvae_nnunet.errors import UserError
from fvae_nnunet.files.checked_json import REPAIR, Rule, read_json
from fvae_nnunet.jobs.manifest import Manifest
from fvae_nnunet.nnunet.files import read_dataset_json, read_plans, read_splits

DATASET_JSON = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "tumour": 1}, "file_ending": ".nii.gz"}
CONFIGURATION = {
    "data_identifier": "nnUNetPlans_3d_fullres", "preprocessor_name": "DefaultPreprocessor",
    "spacing": [3.0, 1.0, 1.0], "normalization_schemes": ["CTNormalization"], "use_mask_for_norm": [False],
    "resampling_fn_data": "resample_data_or_seg_to_shape", "resampling_fn_data_kwargs": {},
}  # fmt: skip
PLANS = {
    "configurations": {
        "3d_fullres": CONFIGURATION,
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    },
    "transpose_forward": [0, 1, 2],
    "foreground_intensity_properties_per_channel": {"0": {"percentile_00_5": -900.0, "percentile_99_5": 500.0}},
}
SPLITS = [{"train": ["a"], "val": ["b"]}]
FOREGROUND = "foreground_intensity_properties_per_channel"


def changed(content, way, *value):
    """A copy without the entry at the end of the way, or with another value there."""
    copy = json.loads(json.dumps(content))
    inside = copy
    for key in way[:-1]:
        inside = inside[key]
    if value:
        (inside[way[-1]],) = value
    else:
        del inside[way[-1]]
    return copy


@pytest.mark.parametrize("damage", [b"", b"{", b'{"a": \xe4}', b"[" * 100000, b"\xff\xfe{}", b"1" * 5000])
def test_what_is_no_json_names_the_file_and_the_way_out(tmp_path, damage):
    path = tmp_path / "some.json"
    path.write_bytes(damage)
    with pytest.raises(UserError, match=rf"some\.json is not valid JSON.*\. {REPAIR}$"):
        read_json(path)


def test_what_cannot_be_read_names_the_file(tmp_path):
    with pytest.raises(UserError, match=r"missing\.json cannot be read: No such file"):
        read_json(tmp_path / "missing.json")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_json(tmp_path)


def test_a_shape_names_the_first_thing_that_is_wrong(tmp_path):
    path = tmp_path / "some.json"
    even = Rule("an even number", lambda value: value % 2 == 0)
    shape = {"name": str, "sizes": [int], "of?": {"*": (float, None)}, "even?": even}

    def said(content):
        path.write_text(json.dumps(content))
        try:
            read_json(path, shape, remedy="Do it")
        except UserError as error:
            return str(error).removeprefix(f"{path} is damaged or incomplete: ").removesuffix(". Do it")
        return None

    whole = {"name": "ä", "sizes": [1, 2], "of": {"a": 1, "b": None}, "even": 4, "other": True}
    assert said(whole) is None
    assert said([]) == "its content must be an object, not []"
    assert said({"sizes": []}) == "it lacks name"
    assert said(whole | {"name": 3}) == "name must be text, not 3"
    assert said(whole | {"sizes": [1, True]}) == "sizes[1] must be a whole number, not true"
    assert said(whole | {"of": {"b": "x" * 80}}) == f'of.b must be a number, not "{"x" * 59} ...'
    assert said(whole | {"even": 3}) == "even must be an even number, not 3"
    assert said(whole | {"even": "x"}) == 'even must be an even number, not "x"'


IN_FULLRES = ("configurations", "3d_fullres")


@pytest.mark.parametrize(
    ("read", "whole", "lacking", "wrong"),
    [
        (
            read_dataset_json,
            DATASET_JSON,
            [("labels",), ("file_ending",), ("channel_names",)],
            [(("channel_names", "0"), 1), (("labels",), ["background"])],
        ),
        (
            read_splits,
            SPLITS,
            [(0, "train"), (0, "val")],
            [((0, "val"), None), ((0, "train", 0), 7)],
        ),
        (
            read_plans,
            PLANS,
            [
                ("configurations",), ("transpose_forward",), (FOREGROUND,), (FOREGROUND, "0", "percentile_00_5"),
                *((*IN_FULLRES, key) for key in CONFIGURATION if key != "data_identifier"),
            ],
            [
                ((FOREGROUND, "0"), []), (("transpose_forward", 0), "z"), (IN_FULLRES, None),
                ((*IN_FULLRES, "spacing"), [3.0, 0.0, 1.0]), ((*IN_FULLRES, "data_identifier"), 3),
            ],
        ),
    ],
    ids=["dataset.json", "splits", "plans"],
)  # fmt: skip
def test_nnunets_files_are_read_whole_or_named(tmp_path, read, whole, lacking, wrong):
    path = tmp_path / "file.json"
    path.write_text(json.dumps(whole), encoding="utf-8-sig")
    assert read(path) == whole
    for way in lacking:
        path.write_text(json.dumps(changed(whole, way)))
        with pytest.raises(UserError, match=rf"file\.json is damaged or incomplete: .* lacks {way[-1]}\. .* copy"):
            read(path)
    for way, value in wrong:
        path.write_text(json.dumps(changed(whole, way, value)))
        with pytest.raises(UserError, match=r"file\.json is damaged or incomplete: .* must be .*, not .*\. .* copy"):
            read(path)


def test_plans_inherit_from_what_is_there(tmp_path):
    path = tmp_path / "nnUNetPlans.json"
    for parent in ("3d_nowhere", "3d_cascade_fullres"):
        path.write_text(json.dumps(changed(PLANS, ("configurations", "3d_cascade_fullres", "inherits_from"), parent)))
        with pytest.raises(UserError, match=f"3d_cascade_fullres inherits from {parent}, which is missing or circular"):
            read_plans(path)


@pytest.mark.parametrize(
    "settings",
    [
        {"hu_window": [1000.0, -1000.0]},
        {"hu_window": [-1000.0, None]},
        {"window_slices": -65},
        {"overlap_slices": 1.5},
        {"steps": -20},
        {"spacing_mm": [1.0, 0.0, 1.0]},
        {"latent_std": [1.0, -1.0]},
        {"precision": "int8"},
        {"ct_channels": []},
        {"truncate": "no"},
    ],
)
def test_settings_that_cannot_be_are_not_read(tmp_path, settings):
    manifest = Manifest(tmp_path)
    content = {"schema": 1, "kind": "view", "settings": settings, "made_with": {}}
    manifest.path.write_text(json.dumps(content))
    (name,) = settings
    with pytest.raises(UserError, match=rf"manifest\.json is damaged or incomplete: settings\.{name}.* must be"):
        manifest.read()


def test_a_manifest_lacks_nothing_and_a_record_neither(tmp_path):
    manifest = Manifest(tmp_path)
    manifest.begin("view", {"hu_window": [-1000.0, 1000.0]}, {})
    whole = json.loads(manifest.path.read_text())
    for key in whole:
        manifest.path.write_text(json.dumps(changed(whole, (key,))))
        with pytest.raises(UserError, match=f"it lacks {key}"):
            manifest.read()
    manifest.path.write_text(json.dumps(whole))
    with pytest.raises(UserError, match="made_with lacks parameters"):
        manifest.read({"made_with": {"parameters": dict}})
    array = tmp_path / "case.b2nd"
    array.touch()
    manifest.write_case("case", inputs={"a": "1"}, outputs=[array], results={})
    record = tmp_path / "cases" / "case.json"
    for key in ("inputs", "outputs"):
        record.write_text(json.dumps(changed({"inputs": {}, "outputs": {}}, (key,))))
        with pytest.raises(UserError, match=rf"case\.json .* it lacks {key}. Remove it, and the case is made again"):
            manifest.is_done("case", inputs={}, outputs=[])
