"""Making nnU-Net find our trainers: a stub module in its trainer folder that forwards to ``fvae_nnunet.trainers``.

nnU-Net looks trainers up by importing the modules below its own trainer folder, and since 2.8 below the folders that
``nnUNet_extTrainer`` names. Where its own folder cannot be written, that variable is the way.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from fvae_nnunet.errors import UserError
from fvae_nnunet.manifest import atomic_write

STUB = Path(__file__).parent / "nnunet_stub" / "fvae_nnunet_trainers.py"
EXTERNAL_TRAINERS = "nnUNet_extTrainer"
_MARK = STUB.read_text().splitlines()[0]

_LOOK_UP = """
import sys, os, nnunetv2
name = sys.argv[1]
try:
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    found = recursive_find_trainer_class_by_name(name)
except ModuleNotFoundError:
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
    folder = os.path.join(nnunetv2.__path__[0], "training", "nnUNetTrainer")
    found = recursive_find_python_class(folder, name, "nnunetv2.training.nnUNetTrainer")
sys.exit(0 if found is not None else f"no class {name}")
"""


def nnunet_trainer_folder() -> Path:
    """The folder in which the installed nnU-Net keeps its trainers; UserError if nnU-Net is not installed."""
    spec = importlib.util.find_spec("nnunetv2")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("nnU-Net is not installed in this environment; run: pip install nnunetv2")
    return Path(next(iter(spec.submodule_search_locations))) / "training" / "nnUNetTrainer"


def is_found_by_nnunet(trainer: str = "nnUNetTrainerFVAE") -> bool:
    """Whether nnU-Net finds a trainer, looked up in a fresh process as ``nnUNetv2_train`` does.

    The process starts in a folder without modules: with ``-c`` Python would import from the current one first, which
    the installed command does not.
    """
    command = [sys.executable, "-c", _LOOK_UP, trainer]
    look_up = subprocess.run(command, capture_output=True, text=True, check=False, cwd=sys.prefix)
    return look_up.returncode == 0


def stub_path() -> Path:
    """Where the stub is, or would be, in nnU-Net's trainer folder."""
    return nnunet_trainer_folder() / STUB.name


def register() -> Path:
    """Write the stub into nnU-Net's trainer folder and return its path.

    Raises:
        UserError: the folder cannot be written; the message says what to export instead.
    """
    target = stub_path()
    if target.exists() and target.read_text() == STUB.read_text():
        return target
    try:
        with atomic_write(target) as temporary:
            temporary.write_text(STUB.read_text())
    except OSError as error:
        raise UserError(f"{target.parent} cannot be written ({error.strerror}). {way_out()}") from error
    return target


def way_out() -> str:
    """What to do where nnU-Net's folder is read-only."""
    if tuple(int(part) for part in version("nnunetv2").split(".")[:2]) >= (2, 8):
        return f"Put this line into your shell's start-up file instead:\nexport {EXTERNAL_TRAINERS}={STUB.parent}"
    return "nnU-Net before 2.8 has no other way: install nnU-Net in a virtual environment of your own, or 2.8 and later"


def remove() -> Path | None:
    """Take the stub out of nnU-Net's trainer folder; returns its path, or None if there was none.

    Raises:
        UserError: the file is not ours or cannot be deleted.
    """
    target = stub_path()
    if not target.exists():
        return None
    if not target.read_text().startswith(_MARK):
        raise UserError(f"{target} was not written by fvae-setup; delete it yourself if it is not needed")
    try:
        target.unlink()
    except OSError as error:
        raise UserError(f"{target} cannot be deleted ({error.strerror})") from error
    return target
