"""The documentation site: it builds without warnings, and no link of an adopted page leads astray."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
WANTED = ("mkdocs", "material", "mkdocstrings_handlers")
MISSING = [name for name in WANTED if importlib.util.find_spec(name) is None]

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)}; pip install '.[docs]'")


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    # signatures are formatted by ruff where it is installed, which is called by its name
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path}
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    commands = (tmp_path / "reference" / "commands" / "index.html").read_text()
    assert 'id="fvae-setup"' in commands and "compare with stored values" in commands
    api = (tmp_path / "reference" / "api" / "index.html").read_text()
    assert 'id="fvae_nnunet.reconstruction.volume.reconstruct"' in api
    assert "CHANGELOG.md" not in (tmp_path / "index.html").read_text()


def test_links_of_adopted_pages_lead_where_the_page_is():
    from docs_site import from_root, outward

    text = "[a](docs/a.md#b) ![p](docs/images/p.png) [l](LICENSE) [c](CHANGELOG.md) [w](https://x.org) [h](#h)"
    assert outward(from_root(text), "https://r.org/") == (
        "[a](a.md#b) ![p](images/p.png) [l](https://r.org/LICENSE) [c](changelog.md) [w](https://x.org) [h](#h)"
    )
