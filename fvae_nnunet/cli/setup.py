"""fvae-setup: show the installation and its folders, and let nnU-Net find the trainers.

Show versions, device, nnU-Net's folders and available VAEs, and whether nnU-Net finds the trainers of fvae_nnunet. If
it does not: with nnU-Net 2.8 or later, print the line for your shell that lets it find them; before 2.8, write a small
file into nnU-Net's trainer folder. --check tests the device, --report is for bug reports.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from functools import partial

from fvae_nnunet.cli.command import run_command
from fvae_nnunet.cli.common_options import add_common, given_options
from fvae_nnunet.cli.installation import NNUNET_FOLDERS, device_lines, state_of_folder, weights_of
from fvae_nnunet.cli.parsers import CommandParser, add_dataset_option
from fvae_nnunet.cli.setup_check import check_setup
from fvae_nnunet.cli.setup_report import setup_report
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.text_table import wrapped

_NAME_WIDTH = 22
"""Width of the column with the names of VAEs and denoisers."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--export", action="store_true", help='print only the line for your shell, for eval "$(fvae-setup --export)"'
    )
    # fmt: off
    what.add_argument("--write", action="store_true",
        help="write the file with any version of nnU-Net, for systems that do not pass on environment variables")
    what.add_argument("--remove", action="store_true", help="remove the file from nnU-Net's trainer folder")
    what.add_argument("--show", action="store_true", help="only show the state; write nothing")
    what.add_argument("--vaes", action="store_true",
        help="only describe each VAE (weights, window, values, licence) and each plain denoiser")
    what.add_argument("--report", action="store_true",
        help="only print a block to paste into a bug report, with the folders, the trainers and the views")
    what.add_argument("--check", action="store_true",
        help="only check: reconstruct with the embedded VAE and compare with stored values; with -d also check whether "
        "a view of the dataset fits on the disk. Exit status 1 if a check fails")
    checked = parser.add_argument_group("options of --check")
    add_dataset_option(checked, "datasets that nnU-Net has preprocessed")
    add_common(checked, "plans_name", "device")
    # fmt: on
    return run_command(parser, partial(run, parser), argv)


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    from fvae_nnunet.nnunet.registration import remove

    if arguments.check:
        return check_setup(arguments)
    if given := given_options(parser, arguments, ("d", "plans_name", "device")):
        raise UserError(f"{', '.join(given)}: only valid with --check")
    if arguments.report:
        print(setup_report())
        return 0
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
        print(f"removed {path}, left over from an uninstalled nnU-Net")


def _show_installation() -> None:
    from fvae_nnunet.jobs.manifest import versions

    packages = ", ".join(f"{name} {found}" for name, found in versions().items())
    _say(f"python {platform.python_version()}, {packages}")
    first, *faults = device_lines()
    _say(f"device: {first}")
    for fault in faults:
        _say(f"  {fault}")
    for variable in NNUNET_FOLDERS:
        print(f"{variable}: {state_of_folder(variable)}")


def _show_vaes() -> None:
    from fvae_nnunet.vae import known_vaes
    from fvae_nnunet.vae.denoisers import CONTROLS

    print("VAEs (--vae NAME):")
    for vae in known_vaes():
        _say_named(vae.name, f"{vae.description}; {weights_of(vae)}")
    print("plain denoisers, for comparison (--vae NAME with --strength or --match):")
    for name, denoiser in CONTROLS.items():
        _say_named(name, denoiser.description)


def _explain_vaes() -> None:
    from fvae_nnunet.vae import known_vaes
    from fvae_nnunet.vae.denoisers import CONTROLS

    for vae in known_vaes():
        _say(f"{vae.name}: {vae.description}")
        _say(f"  weights: {weights_of(vae)}; --weights: {vae.weights}")
        if vae.code:
            _say(f"  code: --vae-code, a checkout of github.com/{vae.code} (needed)")
        _say(f"  window: {vae.window}; values {vae.values}; licence: {vae.licence}")
    for name, denoiser in CONTROLS.items():
        _say(f"{name}: plain denoiser, for comparison: {denoiser.description}")
        auto = "; auto: from the noise of each image" if denoiser.of_noise else ""
        _say(f"  strength: {denoiser.unit}{auto}")


def _say(text: str) -> None:
    """Print a text wrapped to the terminal's width, with continuation lines indented."""
    print("\n".join(wrapped(text, hanging=len(text) - len(text.lstrip()) + 2)))


def _say_named(name: str, text: str) -> None:
    """Print a name and its description, beside it if the name is short, else below."""
    if len(name) <= _NAME_WIDTH:
        print("\n".join(wrapped(f"  {name:{_NAME_WIDTH}}  {text}", hanging=_NAME_WIDTH + 4)))
    else:
        print(f"  {name}", *wrapped(" " * (_NAME_WIDTH + 4) + text, hanging=_NAME_WIDTH + 4), sep="\n")


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
        print(f"wrote {register()}; to undo: fvae-setup --remove")
        reason = why_not_found()
    if reason is None:
        print(f"nnU-Net finds the trainers of fvae_nnunet through {found_through() or 'a file of yours'}")
        return 0
    _say(f"nnU-Net does not find the trainers of fvae_nnunet ({reason})")
    if has_external_trainers():
        _say(
            "run this line, and add it to your shell's start-up file, next to nnUNet_raw (or run fvae-setup --write, "
            "which writes a file into nnU-Net's folder):"
        )
        print(export_line())
    elif only_show:
        print("run: fvae-setup")
    return 1
