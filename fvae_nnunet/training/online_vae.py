"""The VAE that reconstructs patches during training: which one, from where, in what precision."""

from __future__ import annotations

import argparse
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fvae_nnunet.ct.hu_windows import PAPER_HU_WINDOW
from fvae_nnunet.device.numerics import fastest_precision
from fvae_nnunet.errors import UserError
from fvae_nnunet.jobs.manifest import Manifest
from fvae_nnunet.reconstruction.settings import ReconstructionSettings
from fvae_nnunet.training.views import find_view, view_folder
from fvae_nnunet.vae import FrozenVAE, load_vae
from fvae_nnunet.vae.registry import is_control

VAE_VARIABLE = "nnUNet_fvae_vae"
WEIGHTS_VARIABLE = "nnUNet_fvae_weights"
CODE_VARIABLE = "nnUNet_fvae_code"
_VIEW = {"settings": {"vae": str, "weights_sha256": str, "window_slices": object, "overlap_slices": object}}


@dataclass(frozen=True)
class TrainingVAE:
    """A VAE on its device, how patches go through it, and where it was named, in words a user understands.

    ``ct_channels`` and ``hu_as_is`` are those of the view that names it; without a view None and False.
    """

    vae: FrozenVAE
    settings: ReconstructionSettings
    named_by: str
    ct_channels: list[int] | None
    hu_as_is: bool


def load_training_vae(
    data_folder: Path,
    repair: str,
    *,
    device: torch.device,
    view: str | None = None,
    hu_window: tuple[float, float] | None = None,
    precision: str | None = None,
) -> TrainingVAE:
    """The VAE that ``nnUNet_fvae_vae`` names, or else that of the view which the offline trainers would use.

    A view gives the VAE, where its weights and code are, the strength of a control, HU windows and passes and, if it
    was made by windows, their size. ``nnUNet_fvae_weights`` and ``nnUNet_fvae_code`` (as ``--weights`` and
    ``--vae-code``) go before what the view says.

    Args:
        data_folder: nnU-Net's preprocessed data.
        repair: start of the command that makes a view of it, for messages.
        device: where to compute; controls compute on the CPU.
        view: that the trainer names; goes before the variables.
        hu_window: None for the view's, without a view the paper's.
        precision: ``float32``, ``bfloat16`` or ``float16``; None for bfloat16 on GPUs that have it (from Ampere
            on) and float32 elsewhere. Controls have only float32.

    Raises:
        UserError: no VAE is named, it cannot be loaded, or its weights are not those of the view.
    """
    named = None if view else os.environ.get(VAE_VARIABLE)
    if named:
        if is_control(named):
            raise UserError(
                f"{VAE_VARIABLE}={named}: the strength of a plain denoiser is taken from a view; make one with "
                f"{repair} --vae {named} and a --strength, and unset {VAE_VARIABLE}"
            )
        name, named_by = named, VAE_VARIABLE
        recorded: dict[str, Any] = {}
        options = argparse.Namespace(weights=None, vae_code=None, trust_weights=False, hu_as_is=False)
    else:
        view = _find_view(data_folder, repair, view)
        content = Manifest(view_folder(data_folder, view)).read(_VIEW) or {}
        recorded, named_by = content["settings"], f"the view {view!r}"
        options, name = _options(content), recorded["vae"]
        if name.startswith("diffusers:"):
            name = options.vae or name
    control = is_control(name)
    if precision is None:
        precision = "float32" if control else fastest_precision(device)
    weights = os.environ.get(WEIGHTS_VARIABLE) or options.weights
    vae = load_vae(
        name,
        weights=weights,
        code=os.environ.get(CODE_VARIABLE) or options.vae_code,
        trust_weights=options.trust_weights,
        strength=recorded.get("strength"),
        device="cpu" if control else device,
        dtype=getattr(torch, precision),
    )
    if recorded and vae.weights_sha256 != recorded["weights_sha256"]:
        raise UserError(
            f"the weights of {name} are not those that {named_by} was made with; "
            + vae.remedy_for_other_weights(f"export {WEIGHTS_VARIABLE}=PATH")
        )
    by_windows = recorded.get("scheme") == "windows"
    lower_hu, upper_hu = hu_window or recorded.get("hu_window") or PAPER_HU_WINDOW
    settings = ReconstructionSettings.for_vae(
        vae.spec,
        hu_window=(lower_hu, upper_hu),
        inner_windows=() if hu_window else recorded.get("inner_windows", ()),
        **{name: recorded[name] for name in ("enlarge", "pixel_mm", "average") if name in recorded},
        window_slices=recorded["window_slices"] if by_windows else None,
        overlap_slices=recorded["overlap_slices"] if by_windows else None,
    )
    return TrainingVAE(vae, settings, named_by, recorded.get("ct_channels"), options.hu_as_is)


def _find_view(data_folder: Path, repair: str, of_trainer: str | None) -> str:
    try:
        return find_view(data_folder, repair, of_trainer)
    except UserError as error:
        raise UserError(
            f"{error}\nOr name a VAE without a view: export {VAE_VARIABLE}=tiny (fvae-setup --vaes lists them; "
            f"{WEIGHTS_VARIABLE} is as --weights)"
        ) from error


def _options(content: dict[str, Any]) -> argparse.Namespace:
    """Where a view's manifest says that the VAE is; the other options stand in its settings."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--vae", "--weights", "--vae-code"):
        parser.add_argument(option)
    for switch in ("--trust-weights", "--hu-as-is"):
        parser.add_argument(switch, action="store_true")
    return parser.parse_known_args(shlex.split(content["made_with"].get("options", "")))[0]
