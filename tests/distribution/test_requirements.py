"""setup.cfg declares what is imported, with lower ends."""

from __future__ import annotations

import ast
import configparser
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch

PROJECT = Path(__file__).parents[2]
PACKAGE = ("fvae_nnunet", "trainers", "preprocessing")
CHECKS = ("tests", "scripts")

DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "skimage": "scikit-image", "sklearn": "scikit-learn"}
NOT_IMPORTED = {"tensorboard", "setuptools"}  # by torch.utils.tensorboard, by pip
NOT_IMPORTED |= {"import-linter", "snakemake", "pygments"}  # scripts run them, the last for the report of Snakemake
NOT_IMPORTED |= {"pytest-timeout", "pytest-xdist"}  # plugins
NOT_IMPORTED |= {"build", "twine"}  # scripts/check_distributions.sh runs them
NOT_IMPORTED |= {"ipykernel", "ipywidgets"}  # the tutorial
NOT_IMPORTED |= {"mkdocs-material", "mkdocs-jupyter", "mkdocstrings"}  # mkdocs.yml names them
OF_A_BENCHMARK = {"dask"}  # what we are compared with; the first lines of the script say how it is installed
OF_A_CHECKOUT = {"causalvideovae"}  # a test runs it where an environment variable names the checkout


def distribution(name: str) -> str:
    return re.sub(r"[-_.]+", "-", DISTRIBUTIONS.get(name, name)).lower()


def declared() -> dict[str, dict[str, str]]:
    """Name and bounds of what is required, by extra; ``""`` is what everybody gets."""
    config = configparser.ConfigParser()
    config.read(PROJECT / "setup.cfg")
    sections = {"": config["options"]["install_requires"], **config["options.extras_require"]}
    found: dict[str, dict[str, str]] = {}
    for extra, lines in sections.items():
        parts = [re.fullmatch(r"([\w.-]+)(.*)", line.strip()) for line in lines.splitlines() if line.strip()]
        found[extra] = {distribution(part[1]): part[2] for part in parts if part}
    return found


def modules(statements: Iterable[ast.AST]) -> Iterator[str]:
    """Top-level names that are imported from outside, but for those of the standard library."""
    for node in statements:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
        else:
            continue
        yield from {name.partition(".")[0] for name in names} - sys.stdlib_module_names


def imported(folders: Iterable[str], *, when_loaded: bool = False) -> set[str]:
    """Distributions that the files of folders import; ``when_loaded``: only those that any import of a file needs."""
    files = [path for folder in folders for path in sorted((PROJECT / folder).rglob("*.py"))]
    assert files, "no sources to look at"
    local = {"fvae_nnunet", *(path.stem for path in files), *(path.parent.name for path in files)}
    found = set()
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found |= set(modules(tree.body if when_loaded else ast.walk(tree))) - local
    return {distribution(name) for name in found}


@pytest.mark.slow
def test_what_the_package_imports_is_declared():
    everything = {name for names in declared().values() for name in names}
    assert sorted(imported(PACKAGE) - everything) == []
    assert sorted(imported(PACKAGE, when_loaded=True) - set(declared()[""])) == [], "import it where it is used"


@pytest.mark.slow
def test_what_tests_and_scripts_import_is_declared():
    extras = declared()
    named = {*extras[""], *extras["test"], *extras["docs"]}
    assert sorted(imported(CHECKS) - named - OF_A_CHECKOUT - OF_A_BENCHMARK) == []


@pytest.mark.slow
def test_what_is_declared_is_imported():
    extras = declared()
    assert sorted(set(extras[""]) - imported(PACKAGE)) == []
    wanted = imported(PACKAGE) | imported(CHECKS) | NOT_IMPORTED
    assert sorted(name for extra in extras if extra != "dev" for name in set(extras[extra]) - wanted) == []


@pytest.mark.parametrize("extra", [extra for extra in declared() if extra != "dev"])
def test_every_requirement_has_a_lower_end(extra):
    assert [name for name, bounds in declared()[extra].items() if ">=" not in bounds] == []


def test_torch_is_as_new_as_what_is_called():
    """torch.OutOfMemoryError, is_bf16_supported(including_emulation=...) and F.rms_norm are all there from 2.5 on."""
    assert declared()[""]["torch"] == ">=2.5"
    assert issubclass(torch.OutOfMemoryError, RuntimeError)
    assert "including_emulation" in inspect.signature(torch.cuda.is_bf16_supported).parameters
    assert torch.nn.functional.rms_norm(torch.ones(1, 2), (2,), eps=0.0).tolist() == [[1.0, 1.0]]
