"""The Python that docs/python.md shows runs as it stands there; and what the import costs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from painted_cases import painted, write_image
from synthesize_for_tests import a_tiny_model

import fvae_nnunet

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


@pytest.mark.slow
def test_the_page_runs(tmp_path, monkeypatch, capsys):
    hu, labels = painted(seed=0, shape=(12, 32, 32))
    for name, array in {
        "case": hu, "organ": (labels == 1).astype(np.uint8), "labelsTs/case": labels, "predictions/case": labels,
    }.items():  # fmt: skip
        write_image(tmp_path / f"{name}.nii.gz", array, spacing_mm=(3.0, 2.0, 2.0))
    content = {"labels": {"background": 0, "organ": 1, "tumour": 2}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    a_tiny_model(tmp_path / "fvae_ldm__tiny")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    assert {"view.nii.gz", "with_lesion.nii.gz"} <= {path.name for path in tmp_path.iterdir()}
    assert capsys.readouterr().out.startswith("1.0 1.0 0.0\n")
    assert fvae_nnunet.read_ct("view.nii.gz").hu.shape == hu.shape


def test_every_public_name_is_there_and_named_on_the_page():
    for name in fvae_nnunet.__all__:
        assert getattr(fvae_nnunet, name).__doc__
    unnamed = {name for name in fvae_nnunet.__all__ if f"fvae.{name}" not in PAGE.read_text()}
    assert unnamed <= {"InsertedLesion"}
    assert set(fvae_nnunet.__all__) <= set(dir(fvae_nnunet))
    with pytest.raises(AttributeError, match="no attribute 'reconstruct_all'"):
        fvae_nnunet.reconstruct_all  # noqa: B018


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, fvae_nnunet; print([name for name in ('torch', 'numpy', 'SimpleITK') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_python_in_the_clones_root_finds_trainers_and_preprocessing():
    rooms = [("fvae_nnunet", "fvae_nnunet"), ("fvae_nnunet.trainers", "trainers")]
    rooms += [("fvae_nnunet.preprocessing", "preprocessing")]
    code = f"from importlib.util import find_spec; print(*(find_spec(name).origin for name, _ in {rooms}))"
    clone = PAGE.parents[1]
    options = {"cwd": clone, "capture_output": True, "text": True}
    found = subprocess.run([sys.executable, "-S", "-c", code], **options).stdout.split()
    assert found == [str(clone / folder / "__init__.py") for _, folder in rooms]
