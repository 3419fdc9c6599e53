import hashlib
import json
import os
import warnings
from pathlib import Path

import pytest

from fvae_nnunet.errors import UserError
from fvae_nnunet.files.recorded import RecordedFile, atomic_write, put_in_place, sha256_of_file, write_bytes
from fvae_nnunet.jobs.manifest import Manifest, begin_all, differences, write_json
from fvae_nnunet.jobs.verification import forget_damaged


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
        manifest.begin("latents", {"pixels": 32}, {}, remedy="Use --latents")


def test_only_folders_of_the_same_kind_are_ours(tmp_path):
    manifest, names = Manifest(tmp_path / "training"), ("training", "samples", "progress.csv")

    def check():
        manifest.refuse_foreign(tmp_path, names, kind="training", command="train")

    check()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "samples").mkdir()
    check()
    (tmp_path / "samples" / "a.png").touch()
    with pytest.raises(UserError, match="holds samples, which was not made by train; choose another folder"):
        check()
    manifest.begin("view", {}, {})
    with pytest.raises(UserError, match="holds training, which was not made by train"):
        check()
    manifest.remove("view")
    manifest.begin("training", {}, {})
    check()


def test_what_another_command_records_is_neither_gone_on_with_nor_removed(tmp_path):
    manifest = Manifest(tmp_path)
    manifest.begin("conversion", {"source": "ct-rate"}, {})
    for act in (
        lambda: manifest.begin("reconstruction", {"source": "ct-rate"}, {}),
        lambda: manifest.remove("reconstruction"),
        lambda: begin_all("reconstruction", {manifest: {}}, {}, overwrite=True),
    ):
        with pytest.raises(UserError, match=r"another kind \(conversion, not reconstruction\), which another command"):
            act()
    assert manifest.read()["settings"] == {"source": "ct-rate"}
    manifest.path.write_text("{")
    manifest.remove("reconstruction")
    assert manifest.read() is None, "what is damaged can be made again"


def test_records_without_a_manifest_do_not_count_and_can_be_removed(tmp_path):
    """As after a removal that was killed, or a damaged manifest that somebody deleted."""
    manifest, output = Manifest(tmp_path), tmp_path / "case.b2nd"
    for again in (lambda: manifest.begin("view", {"vae": "b"}, {}), lambda: manifest.remove("view")):
        manifest.begin("view", {"vae": "a"}, {})
        output.write_bytes(b"of a")
        manifest.write_case("case", inputs={}, outputs=[output], results={})
        manifest.path.unlink()
        again()
        assert not manifest.is_done("case", inputs={}, outputs=[output])
        manifest.remove("view")
        assert not list(tmp_path.iterdir()) if tmp_path.exists() else True
        tmp_path.mkdir(exist_ok=True)


def test_a_manifest_is_removed_after_all_records(tmp_path, monkeypatch):
    manifest = Manifest(tmp_path)
    manifest.begin("view", {}, {})
    manifest.write_case("case", inputs={}, outputs=[], results={})
    monkeypatch.setattr("shutil.rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        manifest.remove("view")
    assert manifest.path.is_file()


def test_hu_as_is_is_recorded_when_it_is_first_given(tmp_path):
    manifest = Manifest(tmp_path)
    manifest.begin("view", {}, {"parameters": {"vae": "tiny"}})
    for given in ({"vae": "tiny", "hu_as_is": True}, {"vae": "tiny"}):
        manifest.begin("view", {}, {"parameters": given})
        assert manifest.read()["made_with"]["parameters"] == {"vae": "tiny", "hu_as_is": True}


def test_another_schema_is_refused(tmp_path):
    write_json(tmp_path / "manifest.json", {"schema": 99})
    with pytest.raises(UserError, match="schema 1"):
        Manifest(tmp_path).read()


def test_a_damaged_manifest_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text('{"schema": 1, ')
    with pytest.raises(UserError, match=r"manifest\.json is not valid JSON"):
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
    recorded = manifest.read_case("case")["outputs"]
    assert {name: file["bytes"] for name, file in recorded.items()} == {
        "../labelsTr/case.nii.gz": 1,
        "../structuresTr/case.nii.gz": 2,
    }
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


def _made(folder, cases, size=64):
    """A manifest in ``folder`` with a file for each case."""
    manifest = Manifest(folder)
    for number, case in enumerate(cases):
        written = write_bytes(folder / f"{case}.b2nd", bytes([number]) * size)
        manifest.write_case(case, inputs={}, outputs={folder / f"{case}.b2nd": written}, results={})
    return manifest


def test_a_digest_is_that_of_the_file_whoever_takes_it(tmp_path):
    written = write_bytes(tmp_path / "a", b"12345")
    assert written == RecordedFile.of(tmp_path / "a") == RecordedFile(5, hashlib.sha256(b"12345").hexdigest())


def test_every_flipped_bit_is_found_and_the_case_is_made_again(tmp_path):
    manifest = _made(tmp_path, ["a", "b"], size=8)
    whole = (tmp_path / "a.b2nd").read_bytes()
    record = (tmp_path / "cases" / "a.json").read_bytes()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << (bit % 8)
        (tmp_path / "a.b2nd").write_bytes(flipped)
        (tmp_path / "cases" / "a.json").write_bytes(record)
        assert manifest.is_done("a", inputs={}, outputs=[tmp_path / "a.b2nd"])
        verified = forget_damaged([manifest], ["a", "b", "not there"])
        assert verified.damaged == (f"a: {tmp_path / 'a.b2nd'} has changed since it was written (sha256)",)
        assert manifest.cases == ["b"]


def test_cut_short_empty_and_missing_files_are_told(tmp_path):
    manifest = _made(tmp_path, ["cut", "empty", "missing", "whole"])
    (tmp_path / "cut.b2nd").write_bytes(b"12345")
    (tmp_path / "empty.b2nd").write_bytes(b"")
    (tmp_path / "missing.b2nd").unlink()
    verified = forget_damaged([manifest], manifest.cases)
    assert [line.rpartition(".b2nd ")[2] for line in verified.damaged] == [
        "has 5 bytes, but 64 were written",
        "has 0 bytes, but 64 were written",
        "is missing",
    ]
    assert manifest.cases == ["whole"]
    assert str(verified) == "verified: files of 4 finished cases read; damaged files: 3"


def test_records_of_the_first_version_count_but_are_called_unverified(tmp_path):
    manifest = _made(tmp_path, ["new", "old"])
    write_json(tmp_path / "cases" / "old.json", {"inputs": {}, "outputs": {"old.b2nd": 64}})
    assert manifest.is_done("old", inputs={}, outputs=[tmp_path / "old.b2nd"])
    (tmp_path / "old.b2nd").write_bytes(b"x" * 64)
    verified = forget_damaged([manifest], manifest.cases)
    assert (verified.checked, verified.damaged, verified.without_digest) == (1, (), ("old",))
    assert "`overwrite=True` makes them again" in str(verified)
    assert manifest.check_sample(["new", "old"], "repair").startswith(
        "digests of 1 of 2 cases checked; the records of 1 more"
    )
    (tmp_path / "old.b2nd").write_bytes(b"x" * 63)
    assert forget_damaged([manifest], manifest.cases).damaged != ()


def test_a_damaged_record_is_made_again_too(tmp_path):
    manifest = _made(tmp_path, ["a"])
    for content in (
        "[1]",
        '{"inputs": {}, "outputs": {"a.b2nd": "big"}}',
        '{"inputs": {}, "outputs": {"a.b2nd": true}}',
    ):
        (tmp_path / "cases" / "a.json").write_text(content)
        assert len(forget_damaged([manifest], ["a"]).damaged) == 1
        assert manifest.cases == []


def test_a_sample_is_read_when_a_training_opens_the_folder(tmp_path):
    cases = [f"case_{number:02d}" for number in range(20)]
    manifest = _made(tmp_path, cases)
    assert manifest.check_sample(cases, "repair") == "digests of 7 of 20 cases checked: all as recorded"
    for case in cases:
        (tmp_path / f"{case}.b2nd").write_bytes(b"x" * 64)
    with pytest.raises(UserError, match=r"case_00\.b2nd has changed .* again, use: fvae-preprocess --verify"):
        manifest.check_sample(cases, "fvae-preprocess --verify")
    assert manifest.check_sample([], "repair").startswith("digests of 0 of 0")


def test_content_made_anew_is_told_by_its_digest(tmp_path):
    manifest = _made(tmp_path, ["a", "b"])
    before = manifest.content_sha256(["b", "a"])
    assert before == manifest.content_sha256(["a", "b"]) != manifest.content_sha256(["a"])
    manifest.write_case("a", inputs={}, outputs=[tmp_path / "a.b2nd"], results={"psnr_db": 1})
    assert manifest.content_sha256(["a", "b"]) == before
    (tmp_path / "a.b2nd").write_bytes(b"other")
    manifest.write_case("a", inputs={}, outputs=[tmp_path / "a.b2nd"], results={})
    assert manifest.content_sha256(["a", "b"]) != before


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "..", ".", "", "a/../../../b", "../fvae_manifest2/../../x", "a\0b"]
)
def test_a_record_names_no_file_outside_of_its_folder(tmp_path, name):
    for folder in (tmp_path / "view", tmp_path / "images" / "fvae_manifest"):
        manifest = Manifest(folder)
        write_json(folder / "cases" / "a.json", {"inputs": {}, "outputs": {name: 5}})
        with pytest.raises(UserError, match=r"a\.json names .*, which is not a file in"):
            manifest.outputs("a")
        with pytest.raises(UserError, match="not a file in"):
            manifest.is_done("a", inputs={}, outputs=[])


def test_a_folder_may_be_named_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    manifest = Manifest(Path("..", "data", "fvae_manifest"))
    file = Path("..", "data", "a.nii.gz")
    write_bytes(file, b"1")
    manifest.write_case("a", inputs={}, outputs=[file], results={})
    assert list(manifest.outputs("a")) == [file]
    assert manifest.is_whole("a", [file])


def test_a_file_beside_the_manifest_folder_is_inside_only_where_that_is_a_subfolder(tmp_path):
    file = tmp_path / "data" / "a.nii.gz"
    write_bytes(file, b"1")
    Manifest(tmp_path / "data" / "fvae_manifest").write_case("a", inputs={}, outputs=[file], results={})
    assert list(Manifest(tmp_path / "data" / "fvae_manifest").outputs("a")) == [file]
    with pytest.raises(UserError, match="not a file in"):
        Manifest(tmp_path / "data" / "view").write_case("a", inputs={}, outputs=[file], results={})


@pytest.mark.parametrize("case", ["../a", "a/b", "..", "", "a\\b", "a\0"])
def test_names_of_cases_are_names_of_files(tmp_path, case):
    with pytest.raises(UserError, match="cannot be the name of a case"):
        Manifest(tmp_path).read_case(case)
    with pytest.raises(UserError, match="cannot be the name of a case"):
        Manifest(tmp_path).write_case(case, inputs={}, outputs=[], results={})


def test_files_are_on_the_disk_before_they_take_their_place(tmp_path, monkeypatch):
    happened = []
    fsync, replace = os.fsync, Path.replace

    def flushed(descriptor):
        happened.append(("flush", Path(f"/proc/self/fd/{descriptor}").resolve().name))
        fsync(descriptor)

    def renamed(path, target):
        happened.append(("rename", Path(target).name))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", renamed)
    folder = tmp_path / "target"
    write_bytes(folder / "a.bin", b"1")
    write_json(folder / "b.json", {})
    unfinished = folder / "unfinished"
    (unfinished / "state").mkdir(parents=True)
    (unfinished / "state" / "weights").write_bytes(b"1")
    put_in_place(unfinished, folder / "checkpoint")
    for name in ("a.bin", "b.json", "checkpoint"):
        place = happened.index(("rename", name))
        assert happened[place - 1][0] == "flush" and happened[place + 1] == ("flush", "target")
    names = [name for what, name in happened[: happened.index(("rename", "checkpoint"))] if what == "flush"]
    assert {"weights", "state", "unfinished"} <= set(names)
    assert names[0].startswith(".a.bin")


def test_another_kind_of_device_is_warned_of_and_no_other_setting(tmp_path):
    manifest = Manifest(tmp_path)
    manifest.begin("view", {"vae": "tiny"}, {"device": "cuda, NVIDIA H200"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        manifest.begin("view", {"vae": "tiny"}, {"device": "cuda, NVIDIA H200"})
        manifest.begin("view", {"vae": "tiny"}, {})  # of an older version
    with pytest.warns(UserWarning, match=r"started on cuda, NVIDIA H200 and is continued on cpu"):
        manifest.begin("view", {"vae": "tiny"}, {"device": "cpu"})
    with pytest.raises(UserError, match="tf32: null, now true"):
        manifest.begin("view", {"vae": "tiny", "tf32": True}, {"device": "cuda, NVIDIA H200"})
