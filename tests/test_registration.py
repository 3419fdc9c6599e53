import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fvae_nnunet import registration
from fvae_nnunet.cli.setup import main
from fvae_nnunet.errors import UserError


@pytest.fixture
def unregistered():
    """No stub before the test, and what was there before it afterwards."""
    target = registration.stub_path()
    before = target.read_bytes() if target.exists() else None
    target.unlink(missing_ok=True)
    yield target
    target.unlink(missing_ok=True)
    if before is not None:
        target.write_bytes(before)


@pytest.mark.slow
def test_setup_makes_nnunet_find_the_trainers_and_remove_takes_it_back(unregistered, capsys):
    assert not registration.is_found_by_nnunet()
    assert main(["--show"]) == 1
    assert not unregistered.exists()
    assert main([]) == 0
    assert unregistered.is_file()
    assert f"nnU-Net finds nnUNetTrainerFVAE through {unregistered}" in capsys.readouterr().out
    assert registration.is_found_by_nnunet("nnUNetTrainerFVAEReconOnly_20epochs")
    assert not registration.is_found_by_nnunet("nnUNetTrainerFVAEOfNobody")
    assert registration.is_found_by_nnunet("nnUNetTrainer_5epochs")
    assert main(["--remove"]) == 0
    assert not unregistered.exists()
    assert main(["--remove"]) == 0
    assert "nothing to remove" in capsys.readouterr().out


@pytest.mark.slow
def test_the_export_line_works_where_the_folder_is_read_only(unregistered, monkeypatch):
    if "nnU-Net before 2.8" in registration.way_out():
        pytest.skip("nnU-Net before 2.8 has no nnUNet_extTrainer")

    def refuse(self, *arguments, **keywords):
        raise PermissionError(13, "Permission denied", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", refuse)
        with pytest.raises(UserError, match="cannot be written") as raised:
            registration.register()
    line = str(raised.value).splitlines()[-1]
    assert line.startswith("export nnUNet_extTrainer=")
    monkeypatch.setenv("nnUNet_extTrainer", line.split("=", 1)[1])
    assert registration.is_found_by_nnunet()


def test_a_foreign_file_is_not_removed(unregistered):
    unregistered.write_text("mine")
    with pytest.raises(UserError, match="not written by fvae-setup"):
        registration.remove()
    assert unregistered.read_text() == "mine"


def test_the_stub_does_not_load_the_plugin_for_other_names_and_outlives_it(tmp_path):
    stub = tmp_path / "stub.py"
    shutil.copy(registration.STUB, stub)
    script = (
        "import sys, stub\n"
        "assert not hasattr(stub, 'nnUNetTrainer_5epochs')\n"
        "assert 'fvae_nnunet' not in sys.modules and 'torch' not in sys.modules\n"
        "sys.modules['fvae_nnunet'] = None\n"
        "assert not hasattr(stub, 'nnUNetTrainerFVAE')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_missing_dependency_is_not_hidden_as_a_missing_trainer(tmp_path):
    spec = importlib.util.spec_from_file_location("stub", registration.STUB)
    stub = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stub)
    assert stub.nnUNetTrainerFVAE.__name__ == "nnUNetTrainerFVAE"
    shutil.copy(registration.STUB, tmp_path / "stub.py")
    script = "import sys, stub\nsys.modules['nnunetv2'] = None\nhasattr(stub, 'nnUNetTrainerFVAE')"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nnunetv2" in done.stderr.splitlines()[-1]
