"""Checkpoints of a training: a usable model each, with all that is needed to go on as if nothing had happened.

``<output>/checkpoint_<step>/`` is a model folder (see ``model_folder``) of the averaged weights, and in ``state/``::

    weights.safetensors   the weights that are trained in this stage, by name
    optimizer.pt          state of the optimizer and, with fp16, of the loss scale
    state.json            {"step", "stage", "steps": [stage 1, stage 2], "averaged": steps of the moving average,
                           "files": {name: {"bytes", "sha256"}} of the others and of the model's manifest,
                           "sha256": of all this}

Random numbers need no state, see ``latent_draws``. The step counts both stages.
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
"""Checkpoints that stay, beside the one at the end of stage 1."""

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
        """UserError where its state is missing or cannot be read."""
        path = folder / _STATE / "state.json"
        content = read_json(path, _STATE_OF_IT)
        # those of an older version have no digest
        if content.pop("sha256", None) not in (None, _digest(content)):
            raise UserError(f"{path} holds other values than were written (sha256)")
        first, second = content["steps"]
        return cls(folder, content["step"], content["stage"], (first, second), content["averaged"])

    def damage(self) -> str | None:
        """The first file that is not as it was written, and what is wrong; None where all are. Reads all of it.

        Checkpoints of an older version cannot be checked.
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
    """The checkpoints of a training whose state can be read, in order of their steps."""
    return [found for found in _read_checkpoints(output) if isinstance(found, Checkpoint)]


def _read_checkpoints(output: Path) -> list[Checkpoint | str]:
    """In order of their steps; of one that cannot be read what is wrong with it."""
    found: list[Checkpoint | str] = []
    for folder in sorted(folder for folder in _checkpoint_folders(output) if not folder.name.startswith(".")):
        try:
            found.append(Checkpoint.read(folder))
        except UserError as error:
            found.append(str(error))
    return found


def choose_checkpoint(output: Path, steps: tuple[int, int], say: Callable[[str], object] = print) -> Checkpoint | None:
    """The checkpoint from which a training of these steps goes on, or None where there is no checkpoint.

    The last one, but where stage 2 has begun and stage 1 shall be longer, the last one of stage 1. One that is damaged
    is named and left aside, and the one before takes its place.

    Args:
        output: of the training.
        steps: of stage 1 and stage 2.
        say: gets a sentence for each damaged checkpoint.

    Raises:
        UserError: more steps are done already, stage 1 shall be longer and has no checkpoint any more, or all
            checkpoints are damaged.
    """
    read = _read_checkpoints(output)
    found = [checkpoint for checkpoint in read if isinstance(checkpoint, Checkpoint)]
    for problem in (problem for problem in read if isinstance(problem, str)):
        say(f"damaged checkpoint, left aside: {problem}")
    while found:
        chosen = _choose(output, steps, found)
        damage = chosen.damage()
        if damage is None:
            return chosen
        say(f"damaged checkpoint, left aside: {chosen.folder.name} of step {chosen.step}: {damage}")
        found.remove(chosen)
    if read:
        raise UserError(
            f"no checkpoint in {output} is whole any more, so the training cannot go on; `overwrite=True` trains anew"
        )
    return None


def _choose(output: Path, steps: tuple[int, int], found: list[Checkpoint]) -> Checkpoint:
    last = found[-1]
    done = (last.step, 0) if last.stage == 1 else (last.steps[0], last.step - last.steps[0])
    if steps < done:
        raise UserError(
            f"{output} was trained for {done[0]} + {done[1]} steps already, and {steps[0]} + {steps[1]} would take "
            "some of them back; give as many `stage1_steps` and `stage2_steps` at least, another `output`, or "
            "`overwrite=True` to train anew"
        )
    if last.stage == 1 or steps[0] == done[0]:
        return last
    of_stage_1 = [checkpoint for checkpoint in found if checkpoint.stage == 1]
    if not of_stage_1:
        raise UserError(
            f"{output} has no checkpoint of stage 1 any more, so stage 1 stays at {done[0]} steps; use the same "
            "`stage1_steps`, another `output`, or `overwrite=True` to train anew"
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
    """Write a checkpoint, which appears whole, and delete those that are too many.

    Args:
        output: of the training.
        step, stage, steps: as in ``Checkpoint``.
        averaged_steps: steps of the moving average.
        denoiser: with the averaged weights.
        trained: the weights that are trained in this stage, by name.
        optimizer, scaler: their states.
        settings, training, process: as for ``save_model``.
    """
    import torch
    from safetensors.torch import save

    target = output / f"checkpoint_{step:07d}"
    partial = output / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        save_model(partial, denoiser, settings, training, process=process)
        state = partial / _STATE
        state.mkdir()
        weights = {name: weight.detach().cpu().contiguous() for name, weight in trained.items()}
        # save_file would make a file that nobody else may read
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
    """Delete the checkpoints behind a step, which a training that goes on from there will write anew."""
    for folder in _checkpoint_folders(output):
        if not folder.name.startswith(".") and int(folder.name.rpartition("_")[2]) > step:
            shutil.rmtree(folder)


def remove_training(output: Path) -> None:
    """Delete what a training has left in its folder: checkpoints, records, pictures, model; its manifest last."""
    for path in [*_checkpoint_folders(output), *(output / name for name in _FOLDERS)]:
        shutil.rmtree(path, ignore_errors=True)
    for name in _FILES:
        (output / name).unlink(missing_ok=True)
    training_manifest(output).remove()
