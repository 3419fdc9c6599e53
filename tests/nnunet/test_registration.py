import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fvae_nnunet import trainers
from fvae_nnunet.cli import preprocess
from fvae_nnunet.cli.setup import main
from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet import registration

EXTERNAL = registration.has_external_trainers()
needs_2_8 = pytest.mark.skipif(not EXTERNAL, reason="nnU-Net before 2.8 has no nnUNet_extTrainer")


@pytest.fixture
def unregistered(monkeypatch):
    """No variable, no stub before the test, and what was there before it afterwards."""
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    target = registration.stub_path()
    before = target.read_bytes() if target.exists() else None
    target.unlink(missing_ok=True)
    yield target
    target.unlink(missing_ok=True)
    if before is not None:
        target.write_bytes(before)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The only folder on Python's path, without nnU-Net."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    for name in [name for name in sys.modules if name.split(".")[0] == "nnunetv2"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(folder)])
    monkeypatch.setattr(sys, "meta_path", [importlib.machinery.PathFinder])
    return folder


def leave_over(site):
    """What pip leaves of an nnU-Net with our stub: the stub, its compiled file, and the folders around them."""
    folder = site / "nnunetv2" / "training" / "nnUNetTrainer"
    (folder / "__pycache__").mkdir(parents=True)
    shutil.copy(registration.STUB, folder)
    for tag in ("cpython-310", "cpython-311"):
        (folder / "__pycache__" / f"fvae_nnunet_trainers.{tag}.pyc").touch()
    return folder


def install_editable(folder, monkeypatch):
    """An nnU-Net whose own finder stands behind that of Python's path, as setuptools installs it."""
    (folder / "nnunetv2").mkdir(parents=True)
    (folder / "nnunetv2" / "__init__.py").touch()

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            place = str(folder / "nnunetv2" / "__init__.py")
            return importlib.util.spec_from_file_location(name, place) if name == "nnunetv2" else None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])


def pasted(line, **variables):
    """The value of the variable after the line was run in bash with these variables."""
    environment = {name: value for name, value in os.environ.items() if name != "nnUNet_extTrainer"} | variables
    script = f'set -eu\n{line}\nprintf %s "$nnUNet_extTrainer"'
    return subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True).stdout


@needs_2_8
@pytest.mark.slow
def test_setup_prints_the_line_by_which_nnunet_finds_all_trainers(unregistered, capsys, monkeypatch, tmp_path):
    # a user's own trainer makes nnU-Net find the name that it imports, but not the others
    (tmp_path / "quick.py").write_text("from fvae_nnunet.trainers import nnUNetTrainerFVAE\n")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    assert main(["--show"]) == 1
    assert "no module has nnUNetTrainerFVAEProbe" in " ".join(capsys.readouterr().out.split())
    assert main([]) == 1
    line = capsys.readouterr().out.splitlines()[-1]
    assert not unregistered.exists()
    monkeypatch.setenv("nnUNet_extTrainer", pasted(line, nnUNet_extTrainer=str(tmp_path)))
    assert main([]) == 0
    assert f"finds the trainers of fvae_nnunet through {registration.STUB}" in capsys.readouterr().out

    (tmp_path / "quick.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        "class nnUNetTrainerFVAEBlend_5epochs(nnUNetTrainer): pass\n"
    )
    assert registration.why_not_found() == "nnUNetTrainerFVAEBlend_5epochs is another class, from the module quick"


@pytest.mark.slow
def test_the_file_is_written_on_request_or_before_2_8_and_remove_takes_it_back(unregistered, capsys):
    assert main(["--write"]) == 0
    assert f"nnU-Net finds the trainers of fvae_nnunet through {unregistered}" in capsys.readouterr().out
    compiled = Path(importlib.util.cache_from_source(str(unregistered)))
    compiled.parent.mkdir(exist_ok=True)
    compiled.touch()
    assert main(["--remove"]) == 0
    assert not unregistered.exists() and not compiled.exists()
    assert main(["--remove"]) == 0
    assert "nothing to remove" in capsys.readouterr().out


@pytest.mark.parametrize("before", [None, "", "/old", "/old folder:/with $sign"])
def test_the_printed_line_appends_to_what_the_variable_holds(before, monkeypatch):
    variables = {} if before is None else {"nnUNet_extTrainer": before}
    expected = f"{before}:{registration.STUB.parent}" if before else str(registration.STUB.parent)
    assert pasted(registration.export_line(), **variables) == expected
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert registration.external_trainers() == expected


def test_the_folder_of_the_line_holds_the_stub_only():
    assert [path.name for path in registration.STUB.parent.glob("*.py")] == [registration.STUB.name]


@needs_2_8
def test_export_prints_the_line_and_nothing_else(capsys):
    assert main(["--export"]) == 0
    assert capsys.readouterr().out == registration.export_line() + "\n"


@pytest.mark.parametrize("external", [True, False])
def test_preprocess_says_how_to_train_with_any_nnunet(unregistered, external, monkeypatch, capsys):
    monkeypatch.setattr(registration, "is_found_by_nnunet", lambda: False)
    monkeypatch.setattr(registration, "has_external_trainers", lambda: external)
    assert preprocess._before_training() == (f"{registration.export_line()} && " if external else "")
    assert unregistered.exists() != external
    assert ("start-up file" if external else f"wrote {unregistered}") in capsys.readouterr().out


def test_where_the_folder_is_read_only_the_line_is_the_way_out(unregistered, monkeypatch):
    def refuse(self, *arguments, **keywords):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "write_text", refuse)
    for external, remedy in ((True, registration.export_line()), (False, "your own virtual environment")):
        monkeypatch.setattr(registration, "has_external_trainers", lambda external=external: external)
        with pytest.raises(UserError) as raised:
            registration.register()
        assert "cannot be written (Permission denied)" in str(raised.value) and remedy in str(raised.value)


def test_a_foreign_file_is_not_removed(unregistered):
    unregistered.write_text("mine")
    with pytest.raises(UserError, match="not written by fvae-setup"):
        registration.remove()
    assert unregistered.read_text() == "mine"


def test_remove_takes_what_an_uninstalled_nnunet_left_with_the_folders_that_become_empty(site):
    folder = leave_over(site)
    removed = registration.remove()
    assert folder / registration.STUB.name in removed and site / "nnunetv2" in removed
    assert list(site.iterdir()) == []


def test_a_left_over_folder_that_hides_nnunet_is_named_and_mended(site, monkeypatch, tmp_path):
    folder = leave_over(site)
    # uv leaves the compiled files of nnU-Net itself, too
    (site / "nnunetv2" / "__pycache__").mkdir()
    (site / "nnunetv2" / "__pycache__" / "paths.cpython-311.pyc").touch()
    install_editable(tmp_path / "src", monkeypatch)
    with pytest.raises(UserError, match=f"hidden by {site / 'nnunetv2'}.* run: fvae-setup"):
        registration.nnunet_package()
    assert registration.mend()[0] == folder / registration.STUB.name
    assert list(site.iterdir()) == []
    assert registration.nnunet_package() == tmp_path / "src" / "nnunetv2"
    assert registration.mend() == []


def test_a_left_over_folder_with_other_files_is_not_deleted(site):
    folder = leave_over(site)
    (folder / "nnUNetTrainerMine.py").write_text("mine")
    with pytest.raises(UserError, match=r"nnUNetTrainerMine\.py, which does not belong to this package\. Move it away"):
        registration.mend()
    assert [path.name for path in folder.iterdir()] == ["nnUNetTrainerMine.py"]


def test_without_nnunet_commands_say_so(planned, capsys, monkeypatch):
    for name in ["nnunetv2", *(name for name in sys.modules if name.startswith("nnunetv2."))]:
        monkeypatch.setitem(sys.modules, name, None)
    for arguments in ([], ["--show"], ["--export"]):
        assert main(arguments) == 1
        assert "fvae-setup: nnU-Net is not installed in this environment; run: pip" in capsys.readouterr().err
    assert preprocess.main([planned.id]) == 1
    assert "fvae-preprocess: nnU-Net is not installed" in capsys.readouterr().err


def test_another_missing_module_is_no_missing_nnunet():
    assert registration.without_nnunet(ModuleNotFoundError("no", name="monai")) is None
    assert registration.without_nnunet(ModuleNotFoundError("no")) is None
    error = registration.without_nnunet(ModuleNotFoundError("no", name="nnunetv2.new"))
    assert "the installed nnU-Net has no nnunetv2.new" in str(error)


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


@pytest.mark.slow
def test_a_missing_dependency_is_not_hidden_as_a_missing_trainer(tmp_path):
    spec = importlib.util.spec_from_file_location("stub", registration.STUB)
    stub = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stub)
    assert stub.nnUNetTrainerFVAE.__name__ == "nnUNetTrainerFVAE"
    assert stub.nnUNetTrainerFVAEProbe is trainers.PROBE and "nnUNetTrainerFVAEProbe" not in trainers.__all__
    shutil.copy(registration.STUB, tmp_path / "stub.py")
    script = "import sys, stub\nsys.modules['nnunetv2'] = None\nhasattr(stub, 'nnUNetTrainerFVAE')"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nnunetv2" in done.stderr.splitlines()[-1]
