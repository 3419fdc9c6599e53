"""Views in nnU-Net's folder of preprocessed data, and how complete each is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fvae_nnunet.errors import UserError
from fvae_nnunet.jobs.manifest import Manifest
from fvae_nnunet.training.views import SEPARATOR


@dataclass(frozen=True)
class ViewState:
    """State of a folder beside nnU-Net's preprocessed data: a view, or synthetic cases.

    Attributes:
        data_folder: folder of nnU-Net's preprocessed data.
        name: name of the view.
        vae: VAE of the view; None for synthetic cases.
        whole: number of recorded cases whose files have the recorded size.
        recorded: number of cases with a record.
        cases: number of cases in nnU-Net's data.
        fault: reason why it cannot be read; None if it can.
    """

    data_folder: Path
    name: str
    vae: str | None = None
    whole: int = 0
    recorded: int = 0
    cases: int = 0
    fault: str | None = None


def view_states(preprocessed: Path) -> Iterator[ViewState]:
    """Yield the state of each view below ``preprocessed``, by dataset and folder; reads no arrays."""
    for manifest_file in sorted(preprocessed.glob(f"Dataset*/*{SEPARATOR}*/manifest.json")):
        folder = manifest_file.parent
        data_name, name = folder.name.split(SEPARATOR, 1)
        data_folder = folder.with_name(data_name)
        try:
            yield _state(Manifest(folder), data_folder, name)
        except UserError as error:
            yield ViewState(data_folder, name, fault=str(error))


def _state(manifest: Manifest, data_folder: Path, name: str) -> ViewState:
    content = manifest.read() or {"settings": {}}
    recorded = manifest.cases
    return ViewState(
        data_folder,
        name,
        vae=content["settings"].get("vae"),
        whole=sum(manifest.is_whole(case, manifest.outputs(case)) for case in recorded),
        recorded=len(recorded),
        cases=len(list(data_folder.glob("*.pkl"))),
    )
