"""Training of a findings classifier; an interrupted training resumes where it stopped, with the same result.

``progress.csv`` in the model folder has a row for each step: step (from 1), loss, learning_rate; ``progress.png``
beside it shows them. Both are written with each checkpoint.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from fvae_nnunet.ct.intensity import hu_to_model
from fvae_nnunet.device.memory import memory_explained
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.csv_tables import csv_bytes
from fvae_nnunet.files.recorded import write_bytes
from fvae_nnunet.findings.augmentation import Augmentation
from fvae_nnunet.findings.networks import build_network
from fvae_nnunet.findings.training_settings import TrainingSettings, positive_weights
from fvae_nnunet.jobs.manifest import Manifest
from fvae_nnunet.pictures.training_curves import draw_training_curves

if TYPE_CHECKING:
    from torch import nn

CHECKPOINTS = "checkpoint*.pt"
KEPT = 2
"""Number of checkpoints that are kept until the end of the training."""

NETWORK = "network.safetensors"
PROGRESS, PROGRESS_PICTURE = "progress.csv", "progress.png"
RECORDS = "cases"
"""Folder of the manifest's records, here those of checkpoints and network."""

_TRAINED = "network"
WEIGHT_DECAY = 0.01

Load = Callable[[str], np.ndarray]
"""Key of a case -> its volume, int16 HU (z, y, x)."""


def masked_loss(logits: torch.Tensor, labels: torch.Tensor, positive_weight: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy, mean over known labels; 0 if there are none.

    Args:
        logits: (B, F).
        labels: (B, F) 0 or 1, NaN if unknown.
        positive_weight: weights of positive labels (F,).
    """
    known = ~torch.isnan(labels)
    targets = torch.where(known, labels, torch.zeros_like(labels))
    losses = binary_cross_entropy_with_logits(logits, targets, pos_weight=positive_weight, reduction="none")
    return (losses * known).sum() / known.sum().clamp(min=1)


def train(
    settings: TrainingSettings,
    *,
    keys: Sequence[str],
    labels: np.ndarray,
    load: Load,
    output: Path,
    device: str,
    save_every: int,
    on_step: Callable[[int, float], object] = lambda step, loss: None,
    say: Callable[[str], object] = print,
) -> nn.Module:
    """Train a network, or resume the training in the folder, and write ``network.safetensors``.

    On the CPU, an interrupted training ends with the same bytes as an uninterrupted one; on a GPU, up to the
    reproducibility of its convolutions.

    Args:
        settings: settings of the training; the caller ensures that they equal those of the folder.
        keys: keys of the training cases.
        labels: labels (n, F) of these cases: 0 or 1, NaN if unknown.
        load: function that loads a volume by key.
        output: model folder.
        device: torch device name.
        save_every: steps between checkpoints.
        on_step: called with the number of completed steps and the last loss, NaN for steps before this run.
        say: receives a sentence for each damaged checkpoint, which is ignored.

    Returns:
        The network, in evaluation mode.

    Raises:
        UserError: the trained network is missing, the loss is not finite, the device has too little memory, or all
            checkpoints are damaged.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = build_network(settings.network, findings=len(settings.findings), shape=settings.grid.shape)
    if (output / NETWORK).is_file():
        on_step(settings.steps, float("nan"))
        return load_network(output, settings, device)
    if Manifest(output).read_case(_TRAINED) is not None:
        raise UserError(
            f"{output / NETWORK} is missing, though it was trained; copy the folder again, or train again with "
            "`verify` or `overwrite`"
        )
    network.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=WEIGHT_DECAY)
    losses = _resume(output, network, optimizer, say)
    weight = torch.from_numpy(positive_weights(labels, settings.positive_weight)).to(device)
    augmentation = Augmentation(settings.grid.shape, device)
    on_step(len(losses), float("nan"))
    network.train()
    batches = _batches(settings, keys, load, first=len(losses))
    try:
        with memory_explained(_lack(settings, "`batch`, `shape` or `network`")):
            for step, (drawn, volumes_hu) in enumerate(batches, start=len(losses)):
                volumes = window(volumes_hu, settings, device)
                volumes = torch.stack(
                    [augmentation(one, settings.augmentation_seed(step, place)) for place, one in enumerate(volumes)]
                )
                for group in optimizer.param_groups:
                    group["lr"] = settings.learning_rate_at(step)
                targets = torch.from_numpy(labels[drawn]).to(device)
                with _autocast(settings, device):
                    logits = network(volumes)
                loss = masked_loss(logits.float(), targets, weight)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                value = float(loss.detach())
                if not np.isfinite(value):
                    raise UserError(
                        f"the loss of step {step + 1} is {value}; use a lower `learning_rate`, or `precision='float32'`"
                    )
                losses.append(value)
                if len(losses) % save_every == 0 or len(losses) == settings.steps:
                    _save(output, network, optimizer, losses, settings)
                on_step(len(losses), value)
    finally:
        batches.close()
    _save_network(output, network)
    for name in _checkpoints(output):
        Manifest(output).forget_case(name)
    for path in output.glob(CHECKPOINTS):
        path.unlink()
    return network.eval()


def load_network(output: Path, settings: TrainingSettings, device: str) -> nn.Module:
    """The trained network of a model folder, in evaluation mode; UserError if its file is damaged.

    Networks from older versions have no record and cannot be checked.
    """
    from safetensors.torch import load_file

    for path, what in Manifest(output).damage(_TRAINED).items():
        raise UserError(f"{path} {what}; copy it again, or train again with `overwrite=True`")
    network = build_network(settings.network, findings=len(settings.findings), shape=settings.grid.shape)
    network.load_state_dict(load_file(output / NETWORK))
    return network.to(device).eval()


@torch.inference_mode()
def predict(
    network: nn.Module,
    settings: TrainingSettings,
    *,
    keys: Sequence[str],
    load: Load,
    device: str,
    on_case: Callable[[], object] = lambda: None,
) -> dict[str, np.ndarray]:
    """Probability of each finding, float32 (F,), for each case."""
    probabilities = {}
    for key in keys:
        with memory_explained(_lack(settings, "`shape` or `network`")), _autocast(settings, device):
            logits = network(window([load(key)], settings, device))
        probabilities[key] = torch.sigmoid(logits.float())[0].cpu().numpy()
        on_case()
    return probabilities


def _lack(settings: TrainingSettings, smaller: str) -> str:
    precision = ", or `precision='bfloat16'`" if settings.precision == "float32" else ""
    return f"the device has too little memory; use a smaller {smaller}{precision}"


def window(volumes_hu: Sequence[np.ndarray], settings: TrainingSettings, device: str) -> torch.Tensor:
    """Convert volumes (z, y, x) in HU to the network's input: (B, 1, z, y, x), float32, in [-1, 1]."""
    stacked = torch.from_numpy(np.stack(volumes_hu)).to(device)
    return hu_to_model(stacked, settings.hu_window)[:, None]


def _autocast(settings: TrainingSettings, device: str) -> torch.autocast:
    return torch.autocast(device, dtype=torch.bfloat16, enabled=settings.precision == "bfloat16")


def _batches(
    settings: TrainingSettings, keys: Sequence[str], load: Load, *, first: int
) -> Generator[tuple[list[int], list[np.ndarray]], None, None]:
    """Yield indices and volumes of each batch from step ``first``; the next batch is read in the background."""

    def read(step: int) -> tuple[list[int], list[np.ndarray]]:
        drawn = settings.drawn(step, len(keys))
        return drawn, [load(keys[place]) for place in drawn]

    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read, first)
        for step in range(first, settings.steps):
            ready = ahead.result()
            if step + 1 < settings.steps:
                ahead = reader.submit(read, step + 1)
            yield ready


def forget_damaged_network(output: Path) -> list[str]:
    """Delete a damaged network, so that it is trained again; returns descriptions of the damage."""
    damaged = Manifest(output).damage(_TRAINED)
    if damaged:
        (output / NETWORK).unlink(missing_ok=True)
        Manifest(output).forget_case(_TRAINED)
    return [f"{path} {what}" for path, what in damaged.items()]


def _checkpoints(output: Path) -> list[str]:
    """Names of the checkpoints of a folder, sorted by step."""
    return [name for name in Manifest(output).cases if name != _TRAINED]


def _resume(
    output: Path, network: nn.Module, optimizer: torch.optim.Optimizer, say: Callable[[str], object]
) -> list[float]:
    """Restore the last intact checkpoint; returns the losses of its steps, empty without a checkpoint."""
    found = _checkpoints(output)
    for name in reversed(found):
        damaged = Manifest(output).damage(name)
        if not damaged:
            content: dict[str, Any] = torch.load(output / f"{name}.pt", map_location="cpu", weights_only=True)
            network.load_state_dict(content["network"])
            optimizer.load_state_dict(content["optimizer"])
            losses: list[float] = content["losses"]
            return losses
        say(f"damaged checkpoint, ignored: {'; '.join(f'{path} {what}' for path, what in damaged.items())}")
    if found:
        raise UserError(
            f"all checkpoints in {output} are damaged, so the training cannot resume; `overwrite=True` trains again"
        )
    return []


def _save(
    output: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: Sequence[float],
    settings: TrainingSettings,
) -> None:
    state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "losses": list(losses)}
    rows = (
        {"step": step + 1, "loss": f"{loss:.6g}", "learning_rate": f"{settings.learning_rate_at(step):.6g}"}
        for step, loss in enumerate(losses)
    )
    write_bytes(output / PROGRESS, csv_bytes(rows))
    draw_training_curves(output / PROGRESS, title=f"step {len(losses)} of {settings.steps}")
    name = f"checkpoint_{len(losses):07d}"
    content = io.BytesIO()
    torch.save(state, content)
    path = output / f"{name}.pt"
    Manifest(output).write_case(name, inputs={}, outputs={path: write_bytes(path, content.getvalue())}, results={})
    for older in _checkpoints(output)[:-KEPT]:
        Manifest(output).forget_case(older)
        (output / f"{older}.pt").unlink(missing_ok=True)


def _save_network(output: Path, network: nn.Module) -> None:
    from safetensors.torch import save

    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    path = output / NETWORK
    Manifest(output).write_case(_TRAINED, inputs={}, outputs={path: write_bytes(path, save(state))}, results={})
