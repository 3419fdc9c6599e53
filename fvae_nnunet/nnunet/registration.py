"""Registration of our trainers with nnU-Net, by a stub module that forwards to ``fvae_nnunet.trainers``.

nnU-Net finds trainers by importing the modules below its own trainer folder, and since 2.8 also below the folders in
``nnUNet_extTrainer``. This variable is preferred, because it leaves nnU-Net's installation untouched. Before 2.8, or on
request, the stub is written into nnU-Net's own folder.

If nnU-Net is uninstalled, such a stub keeps ``nnunetv2/training/nnUNetTrainer`` in site-packages. Python then treats
the remaining folder as a namespace package, which hides an editable install of nnU-Net; ``mend`` removes it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from fvae_nnunet.errors import UserError
from fvae_nnunet.files.recorded import atomic_write

STUB = Path(__file__).parents[1] / "nnunet_stub" / "fvae_nnunet_trainers.py"
EXTERNAL_TRAINERS = "nnUNet_extTrainer"
_MARK = STUB.read_text().splitlines()[0]
_TRAINER_FOLDER = Path("training", "nnUNetTrainer")
_INSTALL = "pip install 'nnunetv2>=2.6.4,<2.9'"

# only the stub provides PROBE; the other names may also be found in a user's own file
_LOOK_UP = """
import importlib.util, os, sys, nnunetv2
from fvae_nnunet import trainers
if importlib.util.find_spec("nnunetv2.utilities.find_objects"):
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    def find(name):
        try:
            return recursive_find_trainer_class_by_name(name)
        except RuntimeError:
            return None
else:
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
    folder = os.path.join(nnunetv2.__path__[0], "training", "nnUNetTrainer")
    def find(name):
        return recursive_find_python_class(folder, name, "nnunetv2.training.nnUNetTrainer")
for name in [trainers.PROBE.__name__, *(name for name in trainers.__all__ if name.startswith("nnUNetTrainer"))]:
    found = find(name)
    if found is None:
        sys.exit(f"no module has {name}")
    if found is not getattr(trainers, name):
        sys.exit(f"{name} is another class, from the module {found.__module__}")
"""


def nnunet_package() -> Path:
    """Folder ``nnunetv2`` of the installed nnU-Net.

    Raises:
        UserError: nnU-Net is not installed, or hidden by the remains of an uninstalled one.
    """
    spec = importlib.util.find_spec("nnunetv2")
    if spec is not None and spec.origin:
        return Path(spec.origin).parent
    raise UserError(
        f"nnU-Net is not installed, or hidden by {left_over()[0]}, which is left over from an uninstalled nnU-Net; "
        "run: fvae-setup"
        if left_over()
        else f"nnU-Net is not installed in this environment; run: {_INSTALL}"
    )


def without_nnunet(error: ModuleNotFoundError) -> UserError | None:
    """Error message for the user if a module of nnU-Net is missing; None if another module is missing."""
    if (error.name or "").split(".")[0] != "nnunetv2":
        return None
    try:
        nnunet_package()
    except UserError as missing:
        return missing
    return UserError(f"the installed nnU-Net has no {error.name}; run: {_INSTALL}")


def left_over() -> list[Path]:
    """Folders ``nnunetv2`` on Python's path without code, left over from an uninstalled nnU-Net."""
    spec = importlib.util.find_spec("nnunetv2")
    imported = [] if spec is None or spec.origin else list(spec.submodule_search_locations or ())
    on_path = [Path(entry or ".") / "nnunetv2" for entry in sys.path]
    folders = [*map(Path, imported), *(folder for folder in on_path if (folder / _TRAINER_FOLDER).is_dir())]
    return [folder for folder in dict.fromkeys(folders) if not (folder / "__init__.py").exists()]


def has_external_trainers() -> bool:
    """Whether the installed nnU-Net supports ``nnUNet_extTrainer`` (2.8 and later)."""
    return EXTERNAL_TRAINERS in (nnunet_package() / "paths.py").read_text()


def external_trainers() -> str:
    """Current value of ``nnUNet_extTrainer`` with our folder appended."""
    folders = [folder for folder in os.environ.get(EXTERNAL_TRAINERS, "").split(os.pathsep) if folder]
    return os.pathsep.join(dict.fromkeys([*folders, str(STUB.parent)]))


def export_line() -> str:
    """Shell line that appends our folder to the current value of ``nnUNet_extTrainer``."""
    if os.name == "nt":
        return f'$env:{EXTERNAL_TRAINERS} += "{os.pathsep}{STUB.parent}"'
    before = f"${{{EXTERNAL_TRAINERS}:+${EXTERNAL_TRAINERS}{os.pathsep}}}"
    return f'export {EXTERNAL_TRAINERS}="{before}"{shlex.quote(str(STUB.parent))}'


def why_not_found() -> str | None:
    """Reason why nnU-Net does not find all trainers through the stub; None if it does.

    A new process looks them up like ``nnUNetv2_train``. It starts in a folder without modules, because Python with
    ``-c`` imports from the current folder first, unlike the installed command.

    Raises:
        UserError: nnU-Net is not installed.
    """
    nnunet_package()
    command = [sys.executable, "-c", _LOOK_UP]
    look_up = subprocess.run(command, capture_output=True, text=True, check=False, cwd=sys.prefix)
    if look_up.returncode == 0:
        return None
    return (look_up.stderr.strip().splitlines() or [f"the lookup ended with status {look_up.returncode}"])[-1]


def is_found_by_nnunet() -> bool:
    """Whether nnU-Net finds all trainers; see ``why_not_found``."""
    return why_not_found() is None


def found_through() -> Path | None:
    """Stub that nnU-Net finds first; None if there is none."""
    folders = [folder for folder in os.environ.get(EXTERNAL_TRAINERS, "").split(os.pathsep) if folder]
    places = [stub_path(), *(Path(folder, STUB.name) for folder in folders if has_external_trainers())]
    return next((place for place in places if place.is_file()), None)


def stub_path() -> Path:
    """Path of the stub in nnU-Net's trainer folder, whether it exists or not."""
    return nnunet_package() / _TRAINER_FOLDER / STUB.name


def register() -> Path:
    """Write the stub into nnU-Net's trainer folder and return its path.

    Raises:
        UserError: the folder cannot be written; the message gives an alternative.
    """
    target = stub_path()
    if target.exists() and target.read_text() == STUB.read_text():
        return target
    try:
        with atomic_write(target) as temporary:
            temporary.write_text(STUB.read_text())
    except OSError as error:
        raise UserError(f"{target.parent} cannot be written ({error.strerror}). {_instead()}") from error
    return target


def _instead() -> str:
    if has_external_trainers():
        return f"Add this line to your shell's start-up file instead:\n{export_line()}"
    return "With nnU-Net before 2.8 there is no other way: install it in your own virtual environment, or install 2.8"


def remove() -> list[Path]:
    """Remove the stub from nnU-Net's trainer folder, with its compiled files and empty folders; return removed paths.

    Raises:
        UserError: a file is not ours or cannot be deleted.
    """
    spec = importlib.util.find_spec("nnunetv2")
    installed = [] if spec is None or not spec.origin else [Path(spec.origin).parent]
    return [path for package in (*installed, *left_over()) for path in _remove_from(package)]


def mend() -> list[Path]:
    """Remove the remains of an uninstalled nnU-Net from Python's path; return removed paths.

    Raises:
        UserError: a remaining file is not ours or cannot be deleted.
    """
    removed: list[Path] = []
    for package in left_over():
        removed += _remove_from(package)
        others = sorted(path for path in package.rglob("*") if path.is_file()) if package.is_dir() else []
        # compiled files without their source are useless
        foreign = [path for path in others if path.parent.name != "__pycache__"]
        if foreign:
            raise UserError(
                f"{package} is left over from an uninstalled nnU-Net and may hide another installation; it holds "
                f"{foreign[0]}, which does not belong to this package. Move it away, then run fvae-setup"
            )
        if package.is_dir():
            shutil.rmtree(package)
            removed.append(package)
    importlib.invalidate_caches()
    return removed


def _remove_from(package: Path) -> Iterator[Path]:
    stub = package / _TRAINER_FOLDER / STUB.name
    if stub.is_file() and not stub.read_text().startswith(_MARK):
        raise UserError(f"{stub} was not written by fvae-setup; delete it yourself if it is not needed")
    compiled = Path(importlib.util.cache_from_source(str(stub))).parent
    try:
        for path in (stub, *sorted(compiled.glob(f"{stub.stem}.*.pyc"))):
            if path.is_file():
                path.unlink()
                yield path
        for folder in (compiled, stub.parent, stub.parent.parent, package):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
                yield folder
    except OSError as error:
        raise UserError(f"{error.filename} cannot be deleted ({error.strerror})") from error
