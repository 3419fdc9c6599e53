"""Choice and loading of the VAE that reconstructs patches during training."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fvae_nnunet.command_lines import command_line
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
    """A VAE on its device, its settings for patches, and a description of where it was named, for the user.

    ``ct_channels`` and ``hu_as_is`` are those of the view that names it; None and False without a view.
    """

    vae: FrozenVAE
    settings: ReconstructionSettings
    named_by: str
    ct_channels: list[int] | None
    hu_as_is: bool


def load_training_vae(
    data_folder: Path,
    make: Callable[..., str],
    *,
    device: torch.device,
    view: str | None = None,
    hu_window: tuple[float, float] | None = None,
    precision: str | None = None,
) -> TrainingVAE:
    """Load the VAE named by ``nnUNet_fvae_vae``, or else that of the view which the offline trainers would use.

    A view gives the VAE, the location of its weights and code, the strength of a control, HU windows and passes and, if
    it was made with the scheme ``windows``, their size. ``nnUNet_fvae_weights`` and ``nnUNet_fvae_code`` (``weights``
    and ``code`` of ``load_vae``) take precedence over the view; plain denoisers have neither.

    Args:
        data_folder: nnU-Net's preprocessed data.
        make: returns the command that makes a view with the given parameters, for messages.
        device: device of the computation; controls compute on the CPU.
        view: view named by the trainer; takes precedence over the variables.
        hu_window: HU window; None for that of the view, or the paper's without a view.
        precision: ``float32``, ``bfloat16`` or ``float16``; None for bfloat16 on GPUs that have it (Ampere and later)
            and float32 elsewhere. Controls have only float32.

    Raises:
        UserError: no VAE is named, it cannot be loaded, or its weights are not those of the view.
    """
    named = None if view else os.environ.get(VAE_VARIABLE)
    if named:
        if is_control(named):
            raise UserError(
                f"{VAE_VARIABLE}={named}: the strength of a plain denoiser is read from a view; make one with "
                f"{make(vae=named)} and a strength, and unset {VAE_VARIABLE}"
            )
        name, named_by = named, VAE_VARIABLE
        recorded: dict[str, Any] = {}
        parameters: dict[str, Any] = {}
    else:
        view = _find_view(data_folder, make, view)
        content = Manifest(view_folder(data_folder, view)).read(_VIEW) or {}
        recorded, named_by = content["settings"], f"the view {view!r}"
        parameters, name = content["made_with"].get("parameters", {}), recorded["vae"]
        if name.startswith("diffusers:"):
            name = parameters.get("vae", name)
    control = is_control(name)
    if precision is None:
        precision = "float32" if control else fastest_precision(device)
    files = {} if control else {"weights": os.environ.get(WEIGHTS_VARIABLE), "code": os.environ.get(CODE_VARIABLE)}
    vae = load_vae(
        name,
        weights=files.get("weights") or parameters.get("weights"),
        code=files.get("code") or parameters.get("vae_code"),
        trust_weights=parameters.get("trust_weights", False),
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
    return TrainingVAE(vae, settings, named_by, recorded.get("ct_channels"), parameters.get("hu_as_is", False))


def _find_view(data_folder: Path, make: Callable[..., str], of_trainer: str | None) -> str:
    try:
        return find_view(data_folder, make, of_trainer)
    except UserError as error:
        raise UserError(
            f"{error}\nOr use a VAE without a view: export {VAE_VARIABLE}=tiny "
            f"({command_line('fvae-setup', vaes=True)} lists the names; {WEIGHTS_VARIABLE} gives the path of weights)"
        ) from error
