"""Hook of mkdocs.yml: adds pages from elsewhere in the project and generated pages, and rewrites links out of docs/."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import command_reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

CLONE = Path(__file__).parents[1]
ADOPTED = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Pages of the project's root -> names on the site."""

sys.path.insert(0, str(CLONE))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the project's own pages and the generated ones."""
    pages = {name: from_root((CLONE / source).read_text(encoding="utf-8")) for source, name in ADOPTED.items()}
    pages["reference/commands.md"] = command_reference.page(command_reference.parsers())
    pages["reference/api.md"] = api_page()
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Redirect links out of docs/ to the adopted page or to the repository; pages in folders have no such links."""
    return outward(markdown, str(config.repo_url)) if "/" not in page.file.src_uri else markdown


def from_root(text: str) -> str:
    """Adapt links of a page in the root for docs/: ``docs/x.md`` becomes ``x.md``, other files are one level up."""
    return re.sub(r"\]\((?!docs/|[a-z]+:|#)", "](../", text).replace("](docs/", "](")


def outward(text: str, repository: str) -> str:
    """Replace the links of a page of docs/ to the level above."""
    for source, name in ADOPTED.items():
        text = text.replace(f"](../{source}", f"]({name}")
    return text.replace("](../", f"]({repository.rstrip('/')}/")


def api_page() -> str:
    """Page of the public Python API, each name with its docstring."""
    import fvae_nnunet

    names = [f"::: fvae_nnunet.{module}.{name}" for name, module in sorted(fvae_nnunet._MODULES.items())]
    return "\n\n".join(["# Python API", "`import fvae_nnunet as fvae`; all of these are `fvae.NAME`.", *names])
