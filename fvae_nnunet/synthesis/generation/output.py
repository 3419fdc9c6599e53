"""The folder that synthetic cases are written to, and what all of them record; see ``synthetic_folder``."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fvae_nnunet.jobs.manifest import MANIFEST_FOLDER, Manifest, write_json
from fvae_nnunet.nnunet.structures import NAMES_FILE, TRAINING_FOLDER, Structures
from fvae_nnunet.nnunet.synthetic_folder import REJECTED

if TYPE_CHECKING:
    import torch

    from fvae_nnunet.synthesis.model.latent_diffusion import LatentDiffusion

KIND = "synthetic"
_OUR_FOLDERS = ("imagesTr", "labelsTr", TRAINING_FOLDER, "records", REJECTED)


def check_is_ours(output: Path) -> None:
    """Raise UserError where a folder holds images, labels or a dataset.json that ``fvae-synthesize`` has not made."""
    names = (*_OUR_FOLDERS, "dataset.json")
    Manifest(output / MANIFEST_FOLDER).refuse_foreign(output, names, kind=KIND, command="fvae-synthesize")


def open_output(
    output: Path,
    settings: dict[str, Any],
    model: dict[str, Any],
    dataset_json: dict[str, Any],
    *,
    structures: Structures | None = None,
    overwrite: bool,
) -> None:
    """Start the folder, or check that it was started with the same settings.

    Args:
        output: the folder.
        settings: all that changes a voxel or a verdict, without the model's.
        model: from ``describe``.
        dataset_json: of the source dataset.
        structures: whose masks are written, too.
        overwrite: empty the folder first.

    Raises:
        UserError: it is not ours, or was started with other settings.
    """
    check_is_ours(output)
    manifest = Manifest(output / MANIFEST_FOLDER)
    if overwrite:
        for name in _OUR_FOLDERS:
            shutil.rmtree(output / name, ignore_errors=True)
        manifest.remove()
    made_by = {key: model[key] for key in ("weights_sha256", "vae", "vae_sha256")}
    manifest.begin(KIND, settings | {"model": made_by}, {"model": model})
    write_json(output / "dataset.json", dataset_json)
    if structures is not None:
        write_json(output / TRAINING_FOLDER / NAMES_FILE, dict(structures.values))


def describe(model: LatentDiffusion, folder: Path) -> dict[str, Any]:
    """The model as records state it."""
    return {
        "folder": folder.resolve().name,
        "weights_sha256": model.weights_sha256,
        "vae": model.settings.vae,
        "vae_sha256": model.settings.weights_sha256,
        "training_cases": model.training.get("training_cases"),
    }


def noise_of(entropy: Sequence[int]) -> torch.Generator:
    """The generator of a case's noise, on the CPU; whole numbers >= 0 decide it."""
    import torch

    state = np.random.SeedSequence(list(entropy), spawn_key=(1,)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
