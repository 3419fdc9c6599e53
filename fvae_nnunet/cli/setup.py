"""fvae-setup: what is installed, where things are, and whether nnU-Net finds the trainers.

Show versions, device, nnU-Net's folders and the VAEs that can be used, and whether nnU-Net finds the trainers of
fvae_nnunet. If not: with nnU-Net 2.8 and later, print the line for your shell that makes it find them; before 2.8,
write a small file into nnU-Net's trainer folder.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.cli.parsers import CommandParser
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.text_table import wrapped
from fvae_nnunet.numbers_as_text import counted

if TYPE_CHECKING:
    from fvae_nnunet.vae import KnownVAE

_NAME_WIDTH = 22
"""Of the column of names of VAEs and denoisers."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--export", action="store_true", help='only print that line: eval "$(fvae-setup --export)"')
    # fmt: off
    what.add_argument("--write", action="store_true",
        help="write the file with any nnU-Net, for where environment variables do not get through")
    what.add_argument("--remove", action="store_true", help="take the file out of nnU-Net's trainer folder")
    what.add_argument("--show", action="store_true", help="only show; write nothing")
    what.add_argument("--vaes", action="store_true",
        help="only say of each VAE what it needs: weights, windows, values, licence; and of each plain denoiser")
    # fmt: on
    return run_command(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    from fvae_nnunet.nnunet.registration import remove

    if arguments.export:
        _print_export()
        return 0
    if arguments.remove:
        removed = remove()
        print("\n".join(f"removed {path}" for path in removed) or "nothing to remove")
        return 0
    if arguments.vaes:
        _explain_vaes()
        return 0
    if not arguments.show:
        _mend()
    _show_installation()
    _show_folders()
    _show_vaes()
    return _show_trainers(write=arguments.write, only_show=arguments.show)


def _print_export() -> None:
    from fvae_nnunet.nnunet.registration import EXTERNAL_TRAINERS, export_line, has_external_trainers

    if not has_external_trainers():
        raise UserError(f"this nnU-Net is older than 2.8 and has no {EXTERNAL_TRAINERS}; run fvae-setup instead")
    print(export_line())


def _mend() -> None:
    from fvae_nnunet.nnunet.registration import mend

    removed = mend()
    for path in removed:
        print(f"removed {path}, left over from an nnU-Net that was uninstalled")


def _show_installation() -> None:
    import torch

    from fvae_nnunet.device.numerics import conv3d_fault, has_bfloat16
    from fvae_nnunet.jobs.manifest import versions

    packages = ", ".join(f"{name} {found}" for name, found in versions().items())
    _say(f"python {platform.python_version()}, {packages}")
    if torch.cuda.is_available():
        memory_gib = torch.cuda.get_device_properties(0).total_memory / 2**30
        bfloat16 = "bfloat16" if has_bfloat16("cuda") else "no bfloat16 of its own"
        _say(f"device: cuda, {torch.cuda.get_device_name(0)}, {memory_gib:.0f} GiB, {bfloat16}")
        if (fault := conv3d_fault()) is not None:
            _say(f"  {fault}")
    else:
        cores = counted(os.cpu_count() or 1, "core")
        print(f"device: {'mps' if torch.backends.mps.is_available() else 'cpu'}, {cores}")


def _show_folders() -> None:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        value = os.environ.get(variable)
        state = "not set" if not value else value if Path(value).is_dir() else f"{value} (no such folder)"
        print(f"{variable}: {state}")


def _show_vaes() -> None:
    from fvae_nnunet.vae import is_available_offline, known_vaes
    from fvae_nnunet.vae.denoisers import CONTROLS

    print("VAEs (--vae NAME):")
    for vae in known_vaes():
        _say_named(vae.name, f"{vae.description}; {_where(vae, on_this_machine=is_available_offline(vae.name))}")
    print("plain denoisers, for comparison (--vae NAME with --strength or --match):")
    for name, denoiser in CONTROLS.items():
        _say_named(name, denoiser.description)


def _explain_vaes() -> None:
    from fvae_nnunet.vae import is_available_offline, known_vaes
    from fvae_nnunet.vae.denoisers import CONTROLS

    for vae in known_vaes():
        _say(f"{vae.name}: {vae.description}")
        _say(f"  weights: {_where(vae, on_this_machine=is_available_offline(vae.name))}; --weights: {vae.weights}")
        if vae.code:
            _say(f"  code: --vae-code, a checkout of github.com/{vae.code} (needed)")
        _say(f"  window: {vae.window}; values {vae.values}; licence: {vae.licence}")
    for name, denoiser in CONTROLS.items():
        _say(f"{name}: plain denoiser, for comparison: {denoiser.description}")
        auto = "; auto: for the noise of each image" if denoiser.of_noise else ""
        _say(f"  strength: {denoiser.unit}{auto}")


def _say(text: str) -> None:
    print("\n".join(wrapped(text)))


def _say_named(name: str, text: str) -> None:
    """A name and what it is, beside it where the name is short, else below."""
    if len(name) <= _NAME_WIDTH:
        print("\n".join(wrapped(f"  {name:{_NAME_WIDTH}}  {text}", hanging=_NAME_WIDTH + 4)))
    else:
        print(f"  {name}", *wrapped(" " * (_NAME_WIDTH + 4) + text, hanging=_NAME_WIDTH + 4), sep="\n")


def _where(vae: KnownVAE, *, on_this_machine: bool) -> str:
    size = f", {vae.download_mb} MB" if vae.download_mb else ""
    if on_this_machine:
        return "on this machine"
    return f"from the hub: {vae.hub_id}{size}" if vae.hub_id else f"with --weights{size}"


def _show_trainers(*, write: bool, only_show: bool) -> int:
    from fvae_nnunet.nnunet.registration import (
        export_line,
        found_through,
        has_external_trainers,
        register,
        why_not_found,
    )

    reason = why_not_found()
    if write or (reason and not only_show and not has_external_trainers()):
        print(f"wrote {register()}; fvae-setup --remove takes it back")
        reason = why_not_found()
    if reason is None:
        print(f"nnU-Net finds the trainers of fvae_nnunet through {found_through() or 'a file of yours'}")
        return 0
    _say(f"nnU-Net does not find the trainers of fvae_nnunet ({reason})")
    if has_external_trainers():
        _say(
            "paste this line, and put it into your shell's start-up file beside that of nnUNet_raw (or run fvae-setup "
            "--write, which writes a file into nnU-Net's folder):"
        )
        print(export_line())
    elif only_show:
        print("run: fvae-setup")
    return 1
