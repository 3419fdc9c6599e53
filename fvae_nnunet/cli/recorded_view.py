"""Reconstruction options for prediction with a model whose checkpoints record how its view was made."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from fvae_nnunet.cli.command import LoadedVAE, hu_windows_of, load
from fvae_nnunet.cli.reconstruction_options import add_reconstruction_options
from fvae_nnunet.errors import UserError

if TYPE_CHECKING:
    from fvae_nnunet.nnunet.trained_model import TrainedModel


def add_recorded_reconstruction_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``add_reconstruction_options``, with None for those that are not given."""
    add_reconstruction_options(parser)
    parser.set_defaults(**dict.fromkeys(_defaults()))


def _defaults() -> dict[str, Any]:
    parser = argparse.ArgumentParser(add_help=False)
    add_reconstruction_options(parser)
    return vars(parser.parse_args([]))


def given_reconstruction_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Reconstruction options that were given, without the device."""
    names = [name for name in _defaults() if name != "device"]
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def load_recorded(arguments: argparse.Namespace, model: TrainedModel) -> LoadedVAE:
    """Load the VAE of the view that the model was trained with.

    The options may only confirm the record and locate the weights. Without a record, the options decide.

    Raises:
        UserError: options, weights or settings differ from the record; or there is neither a record nor ``--vae``.
    """
    from fvae_nnunet.jobs.manifest import differences
    from fvae_nnunet.vae.known import DIFFUSERS_PREFIX

    defaults, given, record = _defaults(), given_reconstruction_options(arguments), model.reconstruction
    if record is None:
        if "vae" not in given:
            what = (
                f"the model in {model.folder} was trained on several views ({', '.join(model.views)})"
                if model.views
                else f"the checkpoints in {model.folder} do not record the view that the model was trained with"
            )
            which = "one of them" if model.views else "the view"
            raise UserError(f"{what}; give --vae and the other options with which {which} was made")
        return load(argparse.Namespace(**defaults | given | {"device": arguments.device}))
    # a record does not mention passes that its view does not have
    passes = {name: defaults[name] for name in ("enlarge", "pixel_mm", "average")}
    recorded = passes | {name: value for name, value in record.items() if name in defaults}
    recorded["hu_windows"] = [record["hu_window"], *record.get("inner_windows", ())]
    if given.keys() & {"hu_windows", "named_windows"}:
        given = {name: value for name, value in given.items() if name != "named_windows"}
        given["hu_windows"] = [list(hu_window) for hu_window in hu_windows_of(arguments)]
    asked = recorded | {name: value for name, value in given.items() if name in recorded}
    if asked["vae"].startswith(DIFFUSERS_PREFIX):
        asked["vae"] = recorded["vae"]  # the path of a folder is compared by its name, once loaded
    _refuse(model, differences(recorded, asked), "Leave out these options")
    options = defaults | recorded | {"hu_as_is": model.hu_as_is} | given | {"device": arguments.device}
    loaded = load(argparse.Namespace(**options))
    made = json.loads(json.dumps(loaded.settings.recorded_with(loaded.vae)))
    for of in (made, record):
        of.pop("tf32", None)  # depends on the device, like the rounding of sums
    # a setting that is not recorded could not be chosen when the view was made
    expected = {name: options.get(name) for name in made} | record
    _refuse(model, differences(expected, made), "Give the weights with which the view was made: --weights")
    return loaded


def _refuse(model: TrainedModel, changed: list[str], remedy: str) -> None:
    if changed:
        lines = "\n  ".join(changed)
        raise UserError(f"the model in {model.folder} was trained with another view:\n  {lines}\n{remedy}")
