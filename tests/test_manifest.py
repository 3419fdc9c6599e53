import hashlib
import json

import pytest

from fvae_nnunet.errors import UserError
from fvae_nnunet.manifest import Manifest, atomic_write, differences, sha256_of_file, write_json


def test_atomic_write_leaves_nothing_when_it_fails(tmp_path):
    target = tmp_path / "case.nii.gz"
    target.write_text("before")
    with pytest.raises(RuntimeError), atomic_write(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["case.nii.gz"]


def test_atomic_write_keeps_the_ending_and_writes_over_a_killed_one(tmp_path):
    target = tmp_path / "case.nii.gz"
    with atomic_write(target) as temporary:
        assert temporary.name.endswith(".nii.gz")
        temporary.write_text("first")
    killed = temporary
    killed.write_text("left behind")
    with atomic_write(target) as temporary:
        assert not temporary.exists()
        temporary.write_text("whole")
    assert target.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [target]


def test_digests_see_content_not_names(tmp_path):
    for name, content in (("a", b"1" * 100), ("b", b"1" * 100), ("c", b"1" * 99 + b"2")):
        (tmp_path / name).write_bytes(content)
    digests = [sha256_of_file(tmp_path / name) for name in "abc"]
    assert digests[0] == digests[1] != digests[2]
    assert digests[0] == hashlib.sha256(b"1" * 100).hexdigest()


def test_differences_name_the_setting_and_both_values():
    before = {"hu_window": [-1000.0, 1000.0], "preprocessing": {"spacing_mm": [3, 1, 1]}, "vae": "tiny"}
    now = {"hu_window": [-160.0, 240.0], "preprocessing": {"spacing_mm": [2, 1, 1]}, "vae": "tiny"}
    assert differences(before, now) == [
        "hu_window: [-1000.0, 1000.0], now [-160.0, 240.0]",
        "preprocessing.spacing_mm: [3, 1, 1], now [2, 1, 1]",
    ]


def test_the_same_settings_go_on_and_others_are_refused(tmp_path):
    manifest = Manifest(tmp_path / "view")
    manifest.begin("view", {"vae": "tiny", "hu_window": (-1000.0, 1000.0)}, {"weights": "x"})
    first = manifest.path.read_bytes()
    manifest.begin("view", {"vae": "tiny", "hu_window": (-1000.0, 1000.0)}, {"weights": "elsewhere"})
    assert manifest.path.read_bytes() == first
    with pytest.raises(UserError, match=r'vae: "tiny", now "wan2\.1"'):
        manifest.begin("view", {"vae": "wan2.1", "hu_window": (-1000.0, 1000.0)}, {})


def test_the_caller_says_the_way_out_of_other_settings(tmp_path):
    manifest = Manifest(tmp_path / "latents")
    manifest.begin("latents", {"pixels": 48}, {})
    with pytest.raises(UserError, match=r"pixels: 48, now 32\nUse the same settings, another name or folder, or"):
        manifest.begin("latents", {"pixels": 32}, {})
    with pytest.raises(UserError, match=r"pixels: 48, now 32\nUse --latents$"):
        manifest.begin("latents", {"pixels": 32}, {}, way_out="Use --latents")


def test_only_folders_of_the_same_kind_are_ours(tmp_path):
    manifest, names = Manifest(tmp_path / "training"), ("training", "samples", "progress.csv")

    def check():
        manifest.refuse_foreign(tmp_path, names, kind="training", command="train")

    check()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "samples").mkdir()
    check()
    (tmp_path / "samples" / "a.png").touch()
    with pytest.raises(UserError, match="holds samples, which train has not made; choose another folder"):
        check()
    manifest.begin("view", {}, {})
    with pytest.raises(UserError, match="holds training, which train has not made"):
        check()
    manifest.remove()
    manifest.begin("training", {}, {})
    check()


def test_another_schema_is_refused(tmp_path):
    write_json(tmp_path / "manifest.json", {"schema": 99})
    with pytest.raises(UserError, match="schema 1"):
        Manifest(tmp_path).read()


def test_a_damaged_manifest_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text('{"schema": 1, ')
    with pytest.raises(UserError, match=r"manifest\.json is no valid JSON"):
        Manifest(tmp_path).read()


def test_a_case_is_done_only_whole_and_from_the_same_inputs(tmp_path):
    manifest = Manifest(tmp_path)
    output = tmp_path / "case.b2nd"
    inputs = {"case_0000.nii.gz": "digest"}
    assert not manifest.is_done("case", inputs=inputs, outputs=[output])
    output.write_bytes(b"12345")
    assert not manifest.is_done("case", inputs=inputs, outputs=[output])
    manifest.write_case("case", inputs=inputs, outputs=[output], results={"psnr_db": 40.0})
    assert manifest.is_done("case", inputs=inputs, outputs=[output])
    assert not manifest.is_done("case", inputs={"case_0000.nii.gz": "other"}, outputs=[output])
    output.write_bytes(b"1234")
    assert not manifest.is_done("case", inputs=inputs, outputs=[output])
    output.unlink()
    assert not manifest.is_done("case", inputs=inputs, outputs=[output])


def test_files_of_one_name_in_several_folders_are_told_apart(tmp_path):
    manifest = Manifest(tmp_path / "fvae_manifest")
    files = [tmp_path / folder / "case.nii.gz" for folder in ("labelsTr", "structuresTr")]
    for size, file in enumerate(files, start=1):
        file.parent.mkdir()
        file.write_bytes(b"1" * size)
    manifest.write_case("case", inputs={}, outputs=files, results={})
    assert manifest.read_case("case")["outputs"] == {"../labelsTr/case.nii.gz": 1, "../structuresTr/case.nii.gz": 2}
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(b"cut short")
        assert not manifest.is_done("case", inputs={}, outputs=files)
        file.write_bytes(whole)
        assert manifest.is_done("case", inputs={}, outputs=files)


def test_equal_records_are_equal_bytes(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": [1.5]})
    write_json(tmp_path / "b.json", {"a": [1.5], "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1.5], "b": 1}
