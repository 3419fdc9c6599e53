"""The floors of the house: no import runs up, and one that does is found."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import matplotlib.image
import pytest
import rooms

CLONE = Path(__file__).parents[2]


def copy_of_the_house(folder):
    for name in ("fvae_nnunet", "trainers", "preprocessing"):
        shutil.copytree(CLONE / name, folder / name, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    shutil.copy(CLONE / rooms.CONTRACTS, folder)
    return folder


@pytest.mark.slow
def test_no_import_runs_up(tmp_path):
    assert rooms.main(["-o", str(tmp_path / "rooms.png")]) == 0
    assert matplotlib.image.imread(tmp_path / "rooms.png").std() > 0.05


def test_an_import_that_runs_up_is_found_also_inside_of_a_function(tmp_path, capfd):
    house = copy_of_the_house(tmp_path)
    module = house / "fvae_nnunet" / "ct" / "noise.py"
    module.write_text(module.read_text() + "\n\ndef late():\n    from fvae_nnunet.vae import base\n\n    return base\n")
    assert rooms.main(["--clone", str(house)]) == 1
    assert "fvae_nnunet.ct.noise -> fvae_nnunet.vae.base" in " ".join(capfd.readouterr().out.split())


def test_a_room_without_a_floor_is_found(tmp_path, capfd):
    house = copy_of_the_house(tmp_path)
    (house / "fvae_nnunet" / "helpers.py").write_text("")
    assert rooms.main(["--clone", str(house)]) == 1
    assert "helpers" in capfd.readouterr().out


def test_imports_are_counted_by_room(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "fvae_nnunet", raising=False)
    for name, text in {
        "__init__": "", "errors": "", "ct/__init__": "", "vae/__init__": "",
        "ct/a": "from fvae_nnunet import errors\nfrom fvae_nnunet.ct import b",
        "ct/b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import fvae_nnunet.vae.c",
        "vae/c": "def f():\n    from fvae_nnunet.ct import a, b",
    }.items():  # fmt: skip
        path = tmp_path / "fvae_nnunet" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert rooms.imports_between(tmp_path) == {("ct", "errors"): 1, ("vae", "ct"): 2}
