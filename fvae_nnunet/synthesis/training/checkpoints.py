"""Checkpoints of a training: each is a usable model, with the state needed to resume exactly.

``<output>/checkpoint_<step>/`` is a model folder (see ``model.folder``) with the averaged weights, and in ``state/``::

    weights.safetensors   the weights trained in this stage, by name
    optimizer.pt          state of the optimizer and, with fp16, of the loss scale
    state.json            {"step", "stage", "steps": [stage 1, stage 2], "averaged": steps of the moving average,
                           "files": {name: {"bytes", "sha256"}} of the other files and of the model's manifest,
                           "sha256": digest of the other entries}

Random numbers need no state, see ``latent_draws``. ``step`` counts the steps of both stages.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvae_nnunet.errors import UserError
from fvae_nnunet.files.checked_json import Rule, read_json
from fvae_nnunet.files.recorded import RecordedFile, damage_of, put_in_place
from fvae_nnunet.jobs.manifest import Manifest, write_json
from fvae_nnunet.synthesis.model.folder import DENOISER_FOLDER, ModelSettings, save_model

if TYPE_CHECKING:
    import torch

    from fvae_nnunet.synthesis.model.denoiser import LatentDenoiser
    from fvae_nnunet.synthesis.model.noise_process import NoiseProcess

KEPT = 2
"""Number of checkpoints to keep, in addition to the one at the end of stage 1."""

_STATE = "state"
_STATE_OF_IT = {
    "step": int,
    "stage": int,
    "steps": Rule("two numbers of steps", lambda value: [type(steps) for steps in value] == [int, int]),
    "averaged": int,
    "files?": dict,
}
_RECORDED = ("manifest.json", f"{_STATE}/weights.safetensors", f"{_STATE}/optimizer.pt")
KIND = "ldm_training"
_FOLDERS = ("samples", "tensorboard", "denoiser", "scheduler")
_FILES = ("manifest.json", "progress.csv", "progress.png")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        folder: folder of the checkpoint.
        step: number of steps done, of both stages together.
        stage: stage of the last step.
        steps: number of steps planned for stage 1 and stage 2.
        averaged: number of steps of the moving average in this stage.
    """

    folder: Path
    step: int
    stage: int
    steps: tuple[int, int]
    averaged: int

    @classmethod
    def read(cls, folder: Path) -> Checkpoint:
        """Read the state of a checkpoint; UserError if it is missing or damaged."""
        path = folder / _STATE / "state.json"
        content = read_json(path, _STATE_OF_IT)
        # checkpoints of older versions have no digest
        if content.pop("sha256", None) not in (None, _digest(content)):
            raise UserError(f"{path} was modified or damaged (sha256)")
        first, second = content["steps"]
        return cls(folder, content["step"], content["stage"], (first, second), content["averaged"])

    def damage(self) -> str | None:
        """The first modified or damaged file, and what is wrong with it; None if there is none. Reads all files.

        Checkpoints of older versions cannot be checked.
        """
        try:
            recorded = read_json(self.folder / _STATE / "state.json").get("files", {})
            files = {
                self.folder / name: RecordedFile.from_json(recorded[name], f"{self.folder}: {name}")
                for name in _RECORDED
                if name in recorded
            }
            damaged = damage_of(files) or damage_of(Manifest(self.folder).files())
        except UserError as error:
            return str(error)
        return next((f"{path} {what}" for path, what in damaged.items()), None)

    def load_averaged(self) -> LatentDenoiser:
        """The network with the averaged weights, on the CPU."""
        from fvae_nnunet.synthesis.model.denoiser import LatentDenoiser

        denoiser: LatentDenoiser = LatentDenoiser.from_pretrained(self.folder / DENOISER_FOLDER, local_files_only=True)
        return denoiser

    def load_trained(self, denoiser: LatentDenoiser) -> None:
        """Load the weights trained in this stage into a network; its other weights are kept."""
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
    """The manifest with the settings of a training."""
    return Manifest(output / "training")


def check_is_ours(output: Path) -> None:
    """Raise UserError if a folder has files named like those of a training that ``fvae-train-ldm`` did not write."""
    names = ("training", *_FOLDERS, *_FILES, *(folder.name for folder in _checkpoint_folders(output)))
    training_manifest(output).refuse_foreign(output, names, kind=KIND, command="fvae-train-ldm")


def _checkpoint_folders(output: Path) -> list[Path]:
    """The folders of checkpoints, complete or not."""
    name = re.compile(r"checkpoint_\d+|\.checkpoint_\d+\.partial")
    return [path for path in output.glob("*checkpoint_*") if name.fullmatch(path.name)]


def find_checkpoints(output: Path) -> list[Checkpoint]:
    """The checkpoints of a training whose state can be read, in the order of their steps."""
    return [found for found in _read_checkpoints(output) if isinstance(found, Checkpoint)]


def _read_checkpoints(output: Path) -> list[Checkpoint | str]:
    """All checkpoints in the order of their steps; for one that cannot be read, the reason."""
    found: list[Checkpoint | str] = []
    for folder in sorted(folder for folder in _checkpoint_folders(output) if not folder.name.startswith(".")):
        try:
            found.append(Checkpoint.read(folder))
        except UserError as error:
            found.append(str(error))
    return found


def choose_checkpoint(output: Path, steps: tuple[int, int], say: Callable[[str], object] = print) -> Checkpoint | None:
    """Choose the checkpoint from which a training with these steps resumes; None if there is no checkpoint.

    It is the last one; if stage 2 has started and stage 1 is to be extended, the last one of stage 1. Damaged
    checkpoints are reported and ignored, and the one before is used.

    Args:
        output: folder of the training.
        steps: number of steps of stage 1 and stage 2.
        say: called with a sentence for each damaged checkpoint.

    Raises:
        UserError: more steps are already done, stage 1 is to be extended but its checkpoint was deleted, or all
            checkpoints are damaged.
    """
    read = _read_checkpoints(output)
    found = [checkpoint for checkpoint in read if isinstance(checkpoint, Checkpoint)]
    for problem in (problem for problem in read if isinstance(problem, str)):
        say(f"damaged checkpoint, ignored: {problem}")
    while found:
        chosen = _choose(output, steps, found)
        damage = chosen.damage()
        if damage is None:
            return chosen
        say(f"damaged checkpoint, ignored: {chosen.folder.name} of step {chosen.step}: {damage}")
        found.remove(chosen)
    if read:
        raise UserError(
            f"all checkpoints in {output} are damaged, so the training cannot resume; start again with `overwrite=True`"
        )
    return None


def _choose(output: Path, steps: tuple[int, int], found: list[Checkpoint]) -> Checkpoint:
    last = found[-1]
    done = (last.step, 0) if last.stage == 1 else (last.steps[0], last.step - last.steps[0])
    if steps < done:
        raise UserError(
            f"{output} was already trained for {done[0]} + {done[1]} steps, more than {steps[0]} + {steps[1]}; give at "
            "least as many `stage1_steps` and `stage2_steps`, another `output`, or `overwrite=True` to start again"
        )
    if last.stage == 1 or steps[0] == done[0]:
        return last
    of_stage_1 = [checkpoint for checkpoint in found if checkpoint.stage == 1]
    if not of_stage_1:
        raise UserError(
            f"{output} no longer has a checkpoint of stage 1, so stage 1 cannot be extended beyond {done[0]} steps; "
            "use the same `stage1_steps`, another `output`, or `overwrite=True` to start again"
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
    process: NoiseProcess,
) -> None:
    """Write a checkpoint atomically, and delete older ones beyond ``KEPT``.

    Args:
        output: folder of the training.
        step, stage, steps: as in ``Checkpoint``.
        averaged_steps: number of steps of the moving average.
        denoiser: network with the averaged weights.
        trained: the weights trained in this stage, by name.
        optimizer, scaler: state of the optimizer and of the loss scaler (None without fp16).
        settings, training, process: as for ``save_model``.
    """
    import torch
    from safetensors.torch import save

    target = output / f"checkpoint_{step:07d}"
    partial = output / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)  # what a killed process leaves is in it
        save_model(partial, denoiser, settings, training, process=process)
        state = partial / _STATE
        state.mkdir()
        weights = {name: weight.detach().cpu().contiguous() for name, weight in trained.items()}
        # save_file would create a file that only its owner can read
        (state / "weights.safetensors").write_bytes(save(weights))
        torch.save({"optimizer": optimizer, "scaler": scaler}, state / "optimizer.pt")
        files = {name: RecordedFile.of(partial / name).to_json() for name in _RECORDED}
        content = {"step": step, "stage": stage, "steps": list(steps), "averaged": averaged_steps, "files": files}
        write_json(state / "state.json", content | {"sha256": _digest(content)})
        shutil.rmtree(target, ignore_errors=True)
        put_in_place(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    older = [checkpoint for checkpoint in find_checkpoints(output) if checkpoint.step <= step]
    for checkpoint in older[:-KEPT]:
        if checkpoint.step != steps[0]:
            shutil.rmtree(checkpoint.folder)


def _digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def forget_after(output: Path, step: int) -> None:
    """Delete the checkpoints after a step; a training resumed at that step will write them again."""
    for folder in _checkpoint_folders(output):
        if not folder.name.startswith(".") and int(folder.name.rpartition("_")[2]) > step:
            shutil.rmtree(folder)


def remove_training(output: Path) -> None:
    """Delete the files of a training in its folder: checkpoints, records, pictures, model, and finally its manifest."""
    for path in [*_checkpoint_folders(output), *(output / name for name in _FOLDERS)]:
        shutil.rmtree(path, ignore_errors=True)
    for name in _FILES:
        (output / name).unlink(missing_ok=True)
    training_manifest(output).remove(KIND)
