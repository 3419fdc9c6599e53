"""Load a VAE by its name."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Literal

import torch

from fvae_nnunet.errors import UserError
from fvae_nnunet.vae.base import EMBEDDED, FrozenVAE
from fvae_nnunet.vae.folders import VAE_SUBFOLDER, HubModel, has_model, open_folder
from fvae_nnunet.vae.identify import model_of_file
from fvae_nnunet.vae.known import CONTROL_PREFIX, DIFFUSERS_PREFIX, KNOWN, hub_of
from fvae_nnunet.vae.mixed_precision import DECODER_DTYPE, MixedPrecisionVAE
from fvae_nnunet.vae.self_check import check_device
from fvae_nnunet.vae.wanted import Wanted

TINY_FOLDER = Path(__file__).parent / "tiny"


def load_vae(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    code: str | os.PathLike[str] | None = None,
    trust_weights: bool = False,
    strength: float | str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | Literal["mixed"] = torch.float32,
) -> FrozenVAE:
    """Load the frozen VAE with this name.

    Args:
        name: one of ``known_vaes``; or ``diffusers:`` followed by the hub id or local folder of an AutoencoderKL or
            AutoencoderTiny, whose subfolder ``vae`` is used if there is one (a pipeline); or one of
            ``vae.denoisers.CONTROLS``, which always compute on the CPU.
        weights: weights to use instead of the hub's, see ``KnownVAE.weights``. A leading ``~`` is the home folder.
        code: checkout of the VAE's own repository, whose modules are imported and run; required if ``KnownVAE.code``
            is set, otherwise ignored with a warning.
        trust_weights: read a pickled file even if it holds more than tensors and plain values.
        strength: strength of a control, a number or ``auto``; only for controls.
        device: device to compute on.
        dtype: precision, or ``mixed`` to encode in float32 and decode in bfloat16; ``weights_sha256`` is the digest of
            the weights before they are cast to it.

    Raises:
        UserError: unknown name, weights or code not available, weights of another model, a control without strength or
            with options for VAEs, or a device whose values differ from the CPU's (if ``self_check.check_device``
            tests it).
    """
    if is_control(name):
        return _load_control(name, strength, weights=weights, vae_code=code, trust_weights=trust_weights, dtype=dtype)
    if strength is not None:
        raise UserError(f"`strength` is for plain denoisers ({CONTROL_PREFIX}<name>); {name} is a VAE")
    path = None if weights is None else Path(weights).expanduser()
    if path is not None and not path.exists():
        raise UserError(f"{name}: `weights`: no such file or folder: {path}")
    load = _loader(name, None if code is None else Path(code).expanduser())
    if not isinstance(dtype, torch.dtype):
        return MixedPrecisionVAE(
            *(
                load_vae(name, weights=weights, code=code, trust_weights=trust_weights, device=device, dtype=half)
                for half in (torch.float32, DECODER_DTYPE)
            )
        )
    wanted = Wanted(name, path, trust_weights, device, dtype)
    try:
        vae = load(wanted)
        check_device(vae, lambda: load(replace(wanted, device="cpu", dtype=torch.float32)))
        return vae
    except UserError as error:
        found = None if path is None else model_of_file(path)
        if found is None or found == name or found in str(error).replace(name, ""):
            raise
        raise UserError(f"{error}. {path} looks like {found}; use `vae={found}`") from error


def is_control(name: str) -> bool:
    """Whether the name has the prefix of plain denoisers (``vae.denoisers``), known or not."""
    return name.startswith(CONTROL_PREFIX)


def _load_control(
    name: str, strength: float | str | None, *, dtype: torch.dtype | str, **only_for_vaes: object
) -> FrozenVAE:
    from fvae_nnunet.vae.denoisers import load_control

    given = [f"`{parameter}`" for parameter, value in only_for_vaes.items() if value]
    if given:
        raise UserError(f"{name} has no weights and no code of its own; leave {', '.join(given)} out")
    if dtype != torch.float32:
        raise UserError(f"{name} computes in float32; leave `precision` out")
    return load_control(name, strength)


_Loader = Callable[[Wanted], FrozenVAE]


def _loader(name: str, code: Path | None) -> _Loader:
    known = next((vae for vae in KNOWN if vae.name == name), None)
    if known is None and not name.startswith(DIFFUSERS_PREFIX):
        raise _unknown(name)
    if known is not None and known.code is not None:
        if code is None:
            raise UserError(
                f"{name}: its licence ({known.licence}) does not let us ship its network; get its code with "
                f"`git clone https://github.com/{known.code}` and give the folder as `vae_code`"
            )
        from fvae_nnunet.vae.checkout.codes import load_checkout_vae

        return partial(load_checkout_vae, code=code)
    if code is not None:
        with_code = ", ".join(vae.name for vae in KNOWN if vae.code)
        warnings.warn(f"{name} needs no checkout, so {code} is ignored; {with_code} need one", stacklevel=3)
    if known is None or known.loader is None:
        return _load_tiny if name == "tiny" else _load_diffusers
    module, _, function = known.loader.rpartition(".")
    load: _Loader = getattr(import_module(f"fvae_nnunet.vae.{module}"), function)
    return load


def is_available_offline(name: str) -> bool:
    """Whether ``load_vae(name)`` needs no download: the weights are on this machine, or it is a control.

    Checks only local files and never connects.

    Raises:
        UserError: unknown name.
    """
    if is_control(name):
        from fvae_nnunet.vae.denoisers import find_control

        find_control(name)
        return True
    if name == "tiny":
        return has_model(TINY_FOLDER)
    if name.startswith(DIFFUSERS_PREFIX):
        place = name.removeprefix(DIFFUSERS_PREFIX)
        folder = Path(place).expanduser()
        return has_model(folder) if folder.is_dir() else _image_vae_on_hub(name).cached() is not None
    if all(vae.name != name for vae in KNOWN):
        raise _unknown(name)
    hub = hub_of(name)
    return hub is not None and hub.cached() is not None


def _load_tiny(wanted: Wanted) -> FrozenVAE:
    from fvae_nnunet.vae.image import load_image_vae

    if wanted.weights is not None:
        raise UserError("tiny: its weights are embedded; for others use `vae=diffusers:FOLDER`")
    if not has_model(TINY_FOLDER):
        raise UserError(f"tiny: the embedded weights are missing in {TINY_FOLDER}; reinstall fvae_nnunet")
    return load_image_vae(wanted, open_folder(TINY_FOLDER), source=EMBEDDED)


def _load_diffusers(wanted: Wanted) -> FrozenVAE:
    from fvae_nnunet.vae.image import load_image_vae

    place = wanted.name.removeprefix(DIFFUSERS_PREFIX)
    folder = Path(place).expanduser()
    if place and folder.is_dir():
        found = open_folder(folder)
        if wanted.weights is not None and open_folder(wanted.weights).path.resolve() != found.path.resolve():
            raise UserError(f"{wanted.name} names another folder than `weights`; leave one of them out")
        path = found.path.resolve()
        name = DIFFUSERS_PREFIX + (path.parent.name if path.name == VAE_SUBFOLDER else path.name)
        return load_image_vae(replace(wanted, name=name), found, source=str(found.path))
    found, source = wanted.folder(None if wanted.weights is not None else _image_vae_on_hub(wanted.name))
    return load_image_vae(wanted, found, source=source)


def _image_vae_on_hub(name: str) -> HubModel:
    return hub_of(name) or HubModel(name.removeprefix(DIFFUSERS_PREFIX))


def _unknown(name: str) -> UserError:
    from fvae_nnunet.vae.denoisers import CONTROLS

    names = [vae.name for vae in KNOWN if not vae.name.startswith(DIFFUSERS_PREFIX)]
    close = difflib.get_close_matches(name, [*(vae.name for vae in KNOWN), *CONTROLS], n=2)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    if "/" in name:
        hint = f" Did you mean {DIFFUSERS_PREFIX}{name}?"
    return UserError(
        f"unknown VAE {name!r}.{hint} Known: {', '.join(names)}, {DIFFUSERS_PREFIX}<hub id or folder of an image VAE>, "
        f"and the denoisers {', '.join(CONTROLS)}"
    )
