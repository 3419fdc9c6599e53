"""What is handed on: the source distribution tests itself, and the package that it installs is whole."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PACKAGE = {  # where the folders are installed
    "fvae_nnunet": "fvae_nnunet",
    "preprocessing": "fvae_nnunet/preprocessing",
    "trainers": "fvae_nnunet/trainers",
}
BESIDE = ("tests", "scripts", "docs", "containers", ".ci", ".github")
TOP = ("README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "setup.cfg", "pyproject.toml")
TOP += ("MANIFEST.in", ".importlinter", ".pre-commit-config.yaml", "mkdocs.yml")
BUILD = "from setuptools import build_meta; build_meta.build_sdist('dist')"


def files_below(folder: Path) -> set[str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in paths}


def run(folder: Path, *command: str) -> str:
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The source distribution of this project, built from a copy and unpacked."""
    copy = tmp_path_factory.mktemp("copy")
    for name in (*PACKAGE, *BESIDE):
        shutil.copytree(PROJECT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in TOP:
        shutil.copy(PROJECT / name, copy / name)
    run(copy, "-c", BUILD)
    (archive,) = (copy / "dist").iterdir()
    shutil.unpack_archive(archive, copy / "unpacked")
    (folder,) = (copy / "unpacked").iterdir()
    return folder


@pytest.mark.slow
def test_the_source_distribution_is_the_project(unpacked):
    for name in (*PACKAGE, *BESIDE):
        assert sorted(files_below(PROJECT / name) ^ files_below(unpacked / name)) == []
    assert [name for name in TOP if not (unpacked / name).is_file()] == []


def test_every_file_of_the_package_is_installed(unpacked):
    run(unpacked, "-c", "from setuptools import setup; setup()", "-q", "build", "--build-lib", "built")
    for source, installed in PACKAGE.items():
        below = files_below(unpacked / "built" / installed)
        if source == "fvae_nnunet":
            below = {name for name in below if name.partition("/")[0] not in PACKAGE}
        assert sorted(files_below(unpacked / source) ^ below) == []


@pytest.mark.slow
def test_the_tests_of_the_source_distribution_are_collected(unpacked):
    collected = run(unpacked, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests")
    files = {line.partition("::")[0] for line in collected.splitlines() if "::" in line}
    assert files == {path.relative_to(PROJECT).as_posix() for path in (PROJECT / "tests").rglob("test_*.py")}
