"""Reading weights files, the digest, and comparing state dicts."""

from __future__ import annotations

import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fvae_nnunet.errors import UserError
from fvae_nnunet.vae.weights import first_difference, read_state_dict, state_dict_sha256


def test_digest_is_over_sorted_names_shapes_and_float32_bytes() -> None:
    state = {"b": torch.tensor([[1.0, 2.0]]), "a": torch.tensor(0.5)}
    expected = hashlib.sha256(
        b"a\0()\0" + struct.pack("<f", 0.5) + b"b\0(1, 2)\0" + struct.pack("<ff", 1.0, 2.0)
    ).hexdigest()
    assert state_dict_sha256(state) == expected
    assert state_dict_sha256(dict(reversed(state.items()))) == expected
    assert state_dict_sha256({key: value.bfloat16() for key, value in state.items()}) == expected
    assert state_dict_sha256(state | {"b": torch.tensor([[1.0], [2.0]])}) != expected
    assert state_dict_sha256(state | {"b": torch.tensor([[1.0, 2.0001]])}) != expected
    assert state_dict_sha256({"b": state["b"], "c": state["a"]}) != expected


def test_digest_sees_values_not_memory_layout() -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    transposed_twice = matrix.T.contiguous().T
    assert not transposed_twice.is_contiguous()
    assert state_dict_sha256({"a": transposed_twice}) == state_dict_sha256({"a": matrix})


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".bin"])
def test_reads_the_tensors_of_a_file(ending: str, tmp_path: Path) -> None:
    state = {"layer.weight": torch.arange(4.0).half(), "layer.bias": torch.ones(2)}
    path = tmp_path / f"weights{ending}"
    if ending == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    read = read_state_dict(path)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], state[key]) and read[key].dtype == state[key].dtype for key in state)


class RunsCode:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("run-by-pickle"),))


def test_a_file_that_would_run_code_is_refused_and_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": RunsCode()}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"a": RunsCode()}, protocol=2))
    for name in ("evil.pth", "plain.pth"):
        with pytest.raises(UserError, match="damaged or holds more than tensors"):
            read_state_dict(tmp_path / name)
    assert not (tmp_path / "run-by-pickle").exists()


def test_damaged_and_unsuitable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_state_dict(tmp_path / "absent.pth")
    for name in ("damaged.pth", "damaged.safetensors"):
        (tmp_path / name).write_bytes(b"\x80\x02 not weights")
        with pytest.raises(UserError, match="damaged"):
            read_state_dict(tmp_path / name)
    for number in range(60):
        noise = np.random.default_rng(number).integers(0, 256, 400, np.uint8).tobytes()
        (tmp_path / "noise.pth").write_bytes(noise)
        with pytest.raises(UserError, match=r"damaged|holds no named|class is not installed"):
            read_state_dict(tmp_path / "noise.pth")
    torch.save({"a": torch.ones(1000)}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:2000])
    save_file({"a": torch.ones(1000)}, tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:2000])
    (tmp_path / "empty.pth").touch()
    for name in ("cut.pth", "cut.safetensors", "empty.pth"):
        with pytest.raises(UserError, match="damaged"):
            read_state_dict(tmp_path / name)
    (tmp_path / "weights.txt").touch()
    with pytest.raises(UserError, match=r"must end in .safetensors or .pth"):
        read_state_dict(tmp_path / "weights.txt")
    for name, content in (("words", {"a": "b"}), ("empty", {"state_dict": {}}), ("number", {"state_dict": 1})):
        torch.save(content, tmp_path / f"{name}.ckpt")
        with pytest.raises(UserError, match="is not a state dict"):
            read_state_dict(tmp_path / f"{name}.ckpt")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds no named values"):
        read_state_dict(tmp_path / "list.pt")


def test_a_state_dict_may_lie_in_a_training_checkpoint(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "args": {"dim": 4}, "state_dict": {"a": torch.ones(2)}}, tmp_path / "last.ckpt")
    assert read_state_dict(tmp_path / "last.ckpt")["a"].tolist() == [1, 1]


def test_trusted_files_may_hold_objects_but_their_class_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.ones(2)}, "object": RunsCode()}, tmp_path / "rich.ckpt")
    assert read_state_dict(tmp_path / "rich.ckpt", trust=True)["a"].tolist() == [1, 1]
    (tmp_path / "gone.ckpt").write_bytes(pickle.dumps({}, protocol=2).replace(b"}", b"cno_such_package\nThing\n"))
    with pytest.raises(UserError, match="holds objects whose class is not installed: No module named 'no_such_pack"):
        read_state_dict(tmp_path / "gone.ckpt", trust=True)


def test_first_difference_names_what_is_missing_resized_or_too_much() -> None:
    expected = {"a": torch.zeros(2), "b": torch.zeros(3)}
    assert first_difference(expected, dict(expected)) is None
    assert first_difference(expected, {"a": torch.zeros(2)}) == "b is missing"
    assert first_difference(expected, expected | {"b": torch.zeros(4)}) == "b has size (4,), expected (3,)"
    assert first_difference(expected, expected | {"c": torch.zeros(1)}) == "c is not part of the model"
