"""fvae-setup: what is installed, where things are, and whether nnU-Net finds the trainers."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from fvae_nnunet.cli.command import run_command


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="fvae-setup",
        description="Make nnU-Net find the trainers of fvae_nnunet (a stub file in nnU-Net's trainer folder) and show "
        "versions, device, nnU-Net's folders and the VAEs that can be used.",
    )
    parser.add_argument("--remove", action="store_true", help="take the stub out of nnU-Net's trainer folder")
    parser.add_argument("--show", action="store_true", help="only show; write nothing")
    return run_command(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    from fvae_nnunet.registration import remove

    if arguments.remove:
        removed = remove()
        print(f"removed {removed}" if removed else "nothing to remove")
        return 0
    _show_installation()
    _show_folders()
    _show_vaes()
    return _show_trainers(write=not arguments.show)


def _show_installation() -> None:
    import torch

    from fvae_nnunet.manifest import versions

    print(f"python {platform.python_version()}, " + ", ".join(f"{name} {found}" for name, found in versions().items()))
    if torch.cuda.is_available():
        memory_gib = torch.cuda.get_device_properties(0).total_memory / 2**30
        print(f"device: cuda, {torch.cuda.get_device_name(0)}, {memory_gib:.0f} GiB")
    else:
        print(f"device: {'mps' if torch.backends.mps.is_available() else 'cpu'}, {os.cpu_count()} cores")


def _show_folders() -> None:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        value = os.environ.get(variable)
        state = "not set" if not value else value if Path(value).is_dir() else f"{value} (no such folder)"
        print(f"{variable}: {state}")


def _show_vaes() -> None:
    from fvae_nnunet.vae import is_available_offline, known_vaes

    print("VAEs (--vae NAME):")
    known = known_vaes()
    width = max(len(vae.name) for vae in known)
    for vae in known:
        if is_available_offline(vae.name):
            where = "on this machine"
        elif vae.hub_id:
            where = f"from the hub: {vae.hub_id}, {vae.download_mb} MB"
        else:
            where = f"with --weights, {vae.download_mb} MB"
        print(f"  {vae.name:{width}}  {where}; {vae.licence}; {vae.description}")


def _show_trainers(*, write: bool) -> int:
    from fvae_nnunet.registration import EXTERNAL_TRAINERS, is_found_by_nnunet, register, stub_path

    found = is_found_by_nnunet()
    if not found and write:
        print(f"wrote {register()}; fvae-setup --remove takes it back")
        found = is_found_by_nnunet()
    if found:
        where = stub_path() if stub_path().exists() else os.environ.get(EXTERNAL_TRAINERS)
        print(f"nnU-Net finds nnUNetTrainerFVAE through {where}")
    else:
        print("nnU-Net does not find nnUNetTrainerFVAE" + ("" if write else "; run: fvae-setup"))
    return 0 if found else 1
