"""Checkpoints of a training: a usable model each, with all that is needed to go on as if nothing had happened.

``<output>/checkpoint_<step>/`` is a model folder (see ``model_folder``) of the averaged weights, and in ``state/``::

    weights.safetensors   the weights that are trained in this stage, by name
    optimizer.pt          state of the optimizer and, with fp16, of the loss scale
    state.json            {"step", "stage", "steps": [stage 1, stage 2], "averaged": steps of the moving average}

Random numbers need no state, see ``latent_draws``. The step counts both stages.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvae_nnunet.errors import UserError
from fvae_nnunet.manifest import Manifest, read_json, write_json
from fvae_nnunet.synthesis.model_folder import DENOISER_FOLDER, ModelSettings, save_model

if TYPE_CHECKING:
    import torch

    from fvae_nnunet.synthesis.denoiser import LatentDenoiser

KEPT = 2
"""Checkpoints that stay, beside the one at the end of stage 1."""

_STATE = "state"
KIND = "ldm_training"
_FOLDERS = ("samples", "tensorboard", "denoiser", "scheduler")
_FILES = ("manifest.json", "progress.csv")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        folder: where it is.
        step: done when it was written, of both stages together.
        stage: that they ended in.
        steps: of stage 1 and stage 2 that the training was to have.
        averaged: steps of the moving average in this stage.
    """

    folder: Path
    step: int
    stage: int
    steps: tuple[int, int]
    averaged: int

    @classmethod
    def read(cls, folder: Path) -> Checkpoint:
        content = read_json(folder / _STATE / "state.json")
        steps = content["steps"]
        return cls(folder, content["step"], content["stage"], (steps[0], steps[1]), content["averaged"])

    def load_averaged(self) -> LatentDenoiser:
        """The network with the averaged weights, on the CPU."""
        from fvae_nnunet.synthesis.denoiser import LatentDenoiser

        denoiser: LatentDenoiser = LatentDenoiser.from_pretrained(self.folder / DENOISER_FOLDER, local_files_only=True)
        return denoiser

    def load_trained(self, denoiser: LatentDenoiser) -> None:
        """Put the weights that were trained in their place; the others stay."""
        from safetensors.torch import load_file

        unknown = denoiser.load_state_dict(load_file(self.folder / _STATE / "weights.safetensors"), strict=False)
        assert not unknown.unexpected_keys, unknown

    def load_optimizer(self) -> dict[str, Any]:
        """``{"optimizer": ..., "scaler": ... or None}``, on the CPU."""
        import torch

        content: dict[str, Any] = torch.load(
            self.folder / _STATE / "optimizer.pt", map_location="cpu", weights_only=True
        )
        return content


def training_manifest(output: Path) -> Manifest:
    """The manifest that says with which settings a folder is trained."""
    return Manifest(output / "training")


def check_is_ours(output: Path) -> None:
    """Raise UserError where a folder holds what a training writes, and ``fvae-train-ldm`` has not made it."""
    names = ("training", *_FOLDERS, *_FILES, *(folder.name for folder in _checkpoint_folders(output)))
    training_manifest(output).refuse_foreign(output, names, kind=KIND, command="fvae-train-ldm")


def _checkpoint_folders(output: Path) -> list[Path]:
    """Those of checkpoints, whole or not."""
    name = re.compile(r"checkpoint_\d+|\.checkpoint_\d+\.partial")
    return [path for path in output.glob("*checkpoint_*") if name.fullmatch(path.name)]


def find_checkpoints(output: Path) -> list[Checkpoint]:
    """The checkpoints of a training, in order of their steps."""
    found = [
        Checkpoint.read(folder)
        for folder in _checkpoint_folders(output)
        if not folder.name.startswith(".") and (folder / _STATE / "state.json").is_file()
    ]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def choose_checkpoint(output: Path, steps: tuple[int, int]) -> Checkpoint | None:
    """The checkpoint from which a training of these steps goes on, or None where there is no checkpoint.

    The last one, but where stage 2 has begun and stage 1 shall be longer, the last one of stage 1.

    Raises:
        UserError: more steps are done already, or stage 1 shall be longer and has no checkpoint any more.
    """
    found = find_checkpoints(output)
    if not found:
        return None
    last = found[-1]
    done = (last.step, 0) if last.stage == 1 else (last.steps[0], last.step - last.steps[0])
    if steps < done:
        raise UserError(
            f"{output} was trained for {done[0]} + {done[1]} steps already, and {steps[0]} + {steps[1]} would take "
            "some of them back; give as many --stage1-steps and --stage2-steps at least, another -o, or --overwrite to "
            "train anew"
        )
    if last.stage == 1 or steps[0] == done[0]:
        return last
    of_stage_1 = [checkpoint for checkpoint in found if checkpoint.stage == 1]
    if not of_stage_1:
        raise UserError(
            f"{output} has no checkpoint of stage 1 any more, so stage 1 stays at {done[0]} steps; use the same "
            "--stage1-steps, another -o, or --overwrite to train anew"
        )
    return of_stage_1[-1]


def save_checkpoint(
    output: Path,
    *,
    step: int,
    stage: int,
    steps: tuple[int, int],
    averaged_steps: int,
    denoiser: LatentDenoiser,
    trained: dict[str, torch.Tensor],
    optimizer: dict[str, Any],
    scaler: dict[str, Any] | None,
    settings: ModelSettings,
    training: dict[str, Any],
) -> None:
    """Write a checkpoint, which appears whole, and delete those that are too many.

    Args:
        output: of the training.
        step, stage, steps: as in ``Checkpoint``.
        averaged_steps: steps of the moving average.
        denoiser: with the averaged weights.
        trained: the weights that are trained in this stage, by name.
        optimizer, scaler: their states.
        settings, training: as for ``save_model``.
    """
    import torch
    from safetensors.torch import save

    target = output / f"checkpoint_{step:07d}"
    partial = output / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        save_model(partial, denoiser, settings, training)
        state = partial / _STATE
        state.mkdir()
        weights = {name: weight.detach().cpu().contiguous() for name, weight in trained.items()}
        # save_file would make a file that nobody else may read
        (state / "weights.safetensors").write_bytes(save(weights))
        torch.save({"optimizer": optimizer, "scaler": scaler}, state / "optimizer.pt")
        write_json(
            state / "state.json", {"step": step, "stage": stage, "steps": list(steps), "averaged": averaged_steps}
        )
        shutil.rmtree(target, ignore_errors=True)
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    older = [checkpoint for checkpoint in find_checkpoints(output) if checkpoint.step <= step]
    for checkpoint in older[:-KEPT]:
        if checkpoint.step != steps[0]:
            shutil.rmtree(checkpoint.folder)


def forget_after(output: Path, step: int) -> None:
    """Delete the checkpoints behind a step, which a training that goes on from there will write anew."""
    for checkpoint in find_checkpoints(output):
        if checkpoint.step > step:
            shutil.rmtree(checkpoint.folder)


def remove_training(output: Path) -> None:
    """Delete what a training has left in its folder: checkpoints, records, pictures, model; its manifest last."""
    for path in [*_checkpoint_folders(output), *(output / name for name in _FOLDERS)]:
        shutil.rmtree(path, ignore_errors=True)
    for name in _FILES:
        (output / name).unlink(missing_ok=True)
    training_manifest(output).remove()
