"""Checks of fvae-setup --check: whether the device computes correct values, and whether a view fits on the disk."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator
from functools import partial

from fvae_nnunet.cli.parsers import datasets_of
from fvae_nnunet.cli.said_as_options import said_as_options
from fvae_nnunet.errors import UserError


def check_setup(arguments: argparse.Namespace) -> int:
    """Print the outcome of each check and return 1 if any failed, else 0."""
    status = 0
    for name, check in _checks(arguments):
        try:
            print(f"ok     {name}: {check()}")
        except UserError as error:
            print(f"WRONG  {name}: {said_as_options(str(error))}")
            status = 1
    return status


def _checks(arguments: argparse.Namespace) -> Iterator[tuple[str, Callable[[], str]]]:
    from fvae_nnunet.device.numerics import fastest_precision
    from fvae_nnunet.jobs.devices import chosen_device

    device = chosen_device(arguments.device)
    for precision in dict.fromkeys(("float32", fastest_precision(device))):
        yield f"tiny on {device}, {precision}", partial(_check_device, device, precision)
    for dataset in datasets_of(arguments) if arguments.d else ():
        yield f"disk for a view of {dataset}", partial(_check_disk, dataset, arguments.plans_name)


def _check_device(device: str, precision: str) -> str:
    import torch

    from fvae_nnunet.vae.embedded_check import check_embedded

    rms_hu, allowed_hu = check_embedded(device, getattr(torch, precision))
    return f"{rms_hu:.2g} HU (RMS) from the stored reconstruction, {allowed_hu:g} allowed"


def _check_disk(dataset: str, plans_name: str) -> str:
    from fvae_nnunet.nnunet.folders import nnunet_folder
    from fvae_nnunet.preprocessing.dataset import open_preprocessed_dataset

    found = open_preprocessed_dataset(dataset, plans_name=plans_name)
    preprocessed = nnunet_folder("nnUNet_preprocessed")
    needed, free = found.view_bytes / 1e9, shutil.disk_usage(preprocessed).free / 1e9
    sizes = f"about {needed:.2f} GB for {', '.join(found.data_folders)}, {free:.2f} GB free in {preprocessed}"
    if free < needed:
        raise UserError(f"{sizes}; free some space, or make the view of fewer configurations (fvae-preprocess -c)")
    return sizes
