"""Shared by all commands: errors become a message and an exit status, and options become a loaded VAE."""

from __future__ import annotations

import argparse
import errno
import io
import os
import select
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvae_nnunet.cli.reconstruction_options import add_reconstruction_options
from fvae_nnunet.cli.said_as_options import said_as_options, speak_for
from fvae_nnunet.ct.hu_windows import NAMED_WINDOWS, PAPER_HU_WINDOW
from fvae_nnunet.errors import UserError
from fvae_nnunet.files.recorded import FULL_DISK
from fvae_nnunet.numbers_as_text import counted, interval, number

if TYPE_CHECKING:
    import numpy as np

    from fvae_nnunet.jobs.manifest import Manifest
    from fvae_nnunet.reconstruction.noise_matching import Left, Match, NoiseOfView
    from fvae_nnunet.reconstruction.settings import ReconstructionSettings
    from fvae_nnunet.vae.base import FrozenVAE

Runner = Callable[[argparse.Namespace], int]


def run_command(parser: argparse.ArgumentParser, runner: Runner, argv: Sequence[str] | None) -> int:
    """Parse the arguments, run the command and return its exit status.

    A UserError, a missing nnU-Net and a full or write-protected disk become a message on stderr and status 1. Ctrl-C
    gives status 130, SIGTERM 143. A closed output pipe (``| head``) ends the command without a message and with status
    141. Characters that the terminal's encoding cannot show are escaped.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return _status(parser, runner, argv)
        finally:
            _flush_output()
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _has_lost_its_reader():
            _discard_output()
            return 141
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, *FULL_DISK):
            raise
        if error.filename is None:
            _discard_output()
        print(f"{parser.prog}: {error.filename or 'the output'}: {error.strerror}", file=sys.stderr)
        return 1


def _status(parser: argparse.ArgumentParser, runner: Runner, argv: Sequence[str] | None) -> int:
    arguments = parser.parse_args(argv)
    arguments.called = parser.prog, tuple(sys.argv[1:] if argv is None else argv)
    speak_for(parser)
    from fvae_nnunet.jobs.interruptions import interruptible
    from fvae_nnunet.jobs.progress_bar import messages_beside_bars, show_bars

    show_bars(getattr(arguments, "progress_bar", True))
    try:
        if (processes := getattr(arguments, "processes", 0)) < 0:
            raise UserError(f"`processes` must not be negative, got {processes}")
        with messages_beside_bars(), interruptible():
            return runner(arguments)
    except UserError as error:
        print(f"{parser.prog}: {said_as_options(str(error))}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        from fvae_nnunet.nnunet.registration import without_nnunet

        missing = without_nnunet(error)
        if missing is None:
            raise
        print(f"{parser.prog}: {missing}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interruption:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 128 + (interruption.args[0] if interruption.args else signal.SIGINT)


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def _has_lost_its_reader() -> bool:
    """Whether the broken pipe is our own output, and not another pipe."""
    for stream in (sys.stdout, sys.stderr):
        try:
            poll = select.poll()
            poll.register(stream.fileno(), 0)
        except (AttributeError, OSError, ValueError):  # no poll (Windows), no stream, or one without a file
            continue
        if poll.poll(0):
            return True
    return False


def _discard_output() -> None:
    """Discard output that cannot be written, so that Python does not try again at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@dataclass(frozen=True)
class LoadedVAE:
    """A VAE with its reconstruction settings, and the parameters of ``load`` that reproduce both, as JSON values."""

    vae: FrozenVAE
    settings: ReconstructionSettings
    parameters: dict[str, Any]

    @property
    def made_with(self) -> dict[str, Any]:
        """Provenance for a manifest: source of the weights, these parameters and the kind of device."""
        from fvae_nnunet.device.numerics import device_class

        return {
            "weights": self.vae.weights_source,
            "parameters": self.parameters,
            "device": ", ".join(filter(None, (device_class(self.vae.device), self.vae.kernels))),
        }


def load(arguments: argparse.Namespace) -> LoadedVAE:
    """Load the VAE that the options name on its device; UserError if it is not available."""
    import torch

    from fvae_nnunet.jobs.devices import chosen_device
    from fvae_nnunet.reconstruction.settings import ReconstructionSettings
    from fvae_nnunet.vae import load_vae
    from fvae_nnunet.vae.paper_scripts import PAPER_SCRIPTS

    device = chosen_device(arguments.device)
    _check_control_options(arguments)
    script = PAPER_SCRIPTS.get(arguments.vae) if arguments.scheme == "paper" else None
    if script and script.samples and arguments.posterior_seed is None:
        print(
            f"{arguments.vae}: the paper's script draws the latent from the posterior; this command uses the mode. "
            "To draw it, add --sample-posterior SEED"
        )
    dtype = script.dtype if script else torch.float32
    if arguments.precision is not None:
        dtype = arguments.precision if arguments.precision == "mixed" else getattr(torch, arguments.precision)
    vae = load_vae(
        arguments.vae,
        weights=arguments.weights,
        code=arguments.vae_code,
        trust_weights=arguments.trust_weights,
        strength=arguments.strength,
        device=device,
        dtype=dtype,
    )
    hu_windows = hu_windows_of(arguments)
    settings = ReconstructionSettings.for_vae(
        vae.spec,
        scheme=arguments.scheme,
        hu_window=hu_windows[0],
        inner_windows=hu_windows[1:],
        window_slices=arguments.window_slices,
        overlap_slices=arguments.overlap_slices,
        truncate=arguments.truncate,
        posterior_seed=arguments.posterior_seed,
        enlarge=arguments.enlarge,
        pixel_mm=arguments.pixel_mm,
        average=arguments.average,
    )
    parameters = {
        **_vae_from_anywhere(arguments),
        **{name: getattr(arguments, name) for name in ("trust_weights", "strength")},
        "scheme": settings.scheme,
        "hu_windows": [list(hu_window) for hu_window in settings.hu_windows],
        "enlarge": None if settings.enlarge == 1 else settings.enlarge,
        "pixel_mm": settings.pixel_mm,
        "average": None if settings.average == 1 else settings.average,
        "window_slices": settings.window_slices,
        "overlap_slices": settings.overlap_slices,
        "precision": vae.precision,
        "truncate": settings.truncate,
        "hu_as_is": arguments.hu_as_is,
        "posterior_seed": settings.posterior_seed,
    }
    given = {name: value for name, value in parameters.items() if value is not None and value is not False}
    return LoadedVAE(vae, settings, given)


def _vae_from_anywhere(arguments: argparse.Namespace) -> dict[str, str | None]:
    """The options that name the VAE and its files, with absolute paths."""
    from fvae_nnunet.vae.known import DIFFUSERS_PREFIX

    named = {name: getattr(arguments, name) for name in ("vae", "weights", "vae_code")}
    folder = Path(named["vae"].removeprefix(DIFFUSERS_PREFIX)).expanduser()
    if named["vae"].startswith(DIFFUSERS_PREFIX) and folder.is_dir():
        named["vae"] = f"{DIFFUSERS_PREFIX}{folder.absolute()}"
    paths = {name: str(Path(named[name]).expanduser().absolute()) for name in ("weights", "vae_code") if named[name]}
    return named | paths


def hu_windows_of(arguments: argparse.Namespace) -> list[tuple[float, float]]:
    """HU windows requested by the options, widest first; UserError if both options are given."""
    if not arguments.named_windows:
        return [(lower, upper) for lower, upper in arguments.hu_windows or [PAPER_HU_WINDOW]]
    if arguments.hu_windows:
        raise UserError("--windows and --hu-window are mutually exclusive; give one of them")
    inner = [NAMED_WINDOWS[name] for name in NAMED_WINDOWS if name in arguments.named_windows]
    return [(PAPER_HU_WINDOW[0], max(PAPER_HU_WINDOW[1], *(upper for _, upper in inner))), *inner]


def _check_control_options(arguments: argparse.Namespace) -> None:
    from fvae_nnunet.vae.registry import is_control

    given = [f"--{name}" for name in ("strength", "match") if getattr(arguments, name, None) is not None]
    if len(given) > 1:
        raise UserError("--strength and --match are mutually exclusive; give one of them")
    if not is_control(arguments.vae):
        if given:
            raise UserError(f"{given[0]} is for plain denoisers (--vae control:<name>); {arguments.vae} is a VAE")
        return
    if arguments.scheme != "windows":
        raise UserError(f"{arguments.vae} filters each slice on its own; leave out --scheme {arguments.scheme}")
    if arguments.posterior_seed is not None:
        raise UserError(f"{arguments.vae} has no posterior to sample; leave out --sample-posterior")
    resampled = arguments.enlarge != 1 or arguments.pixel_mm is not None
    if resampled or arguments.average != 1 or len(hu_windows_of(arguments)) > 1:
        raise UserError(
            f"{arguments.vae} filters the image as it is; leave out --windows, --enlarge, --pixel-mm, --average and a "
            "second --hu-window"
        )


def load_again(parameters: Mapping[str, Any]) -> LoadedVAE:
    """Call ``load`` with parameters in the form of ``LoadedVAE.parameters``."""
    parser = argparse.ArgumentParser()
    add_reconstruction_options(parser)
    return load(parser.parse_args([], argparse.Namespace(**parameters)))


def match_noise(
    arguments: argparse.Namespace,
    manifest: Manifest,
    *,
    check: Callable[[], dict[str, Any]],
    cases: Iterable[str],
    read_axial: Callable[[str], list[np.ndarray]],
    make: Callable[..., str],
) -> None:
    """Find the strength that ``--match`` asks for, set it in the options, and print what was matched.

    Args:
        arguments: the options; ``strength`` and ``match`` are replaced.
        manifest: manifest of the view to match.
        check: returns the content of the manifest, or raises UserError if the view is not complete.
        cases: all cases that the view must hold.
        read_axial: returns the CT channels of a raw case, axial slices first, in HU.
        make: returns the command that makes the view with the given parameters, for messages.

    Raises:
        UserError: incompatible options; the view is missing, incomplete or too old; or no strength matches it.
    """
    from fvae_nnunet.jobs.progress_bar import progress_bar
    from fvae_nnunet.reconstruction.noise_matching import NoiseSample, match_strength, noise_of_view
    from fvae_nnunet.vae.denoisers import find_control

    _check_control_options(arguments)
    if not find_control(arguments.vae).has_strength:
        raise UserError(f"{arguments.vae} has no strength to choose; leave out --match")
    settings = load(argparse.Namespace(**vars(arguments) | {"strength": 0.0, "match": None})).settings
    content = check()
    hu_window = content["settings"]["hu_window"]
    if hu_window != list(settings.hu_window):
        raise UserError(
            f"--match {arguments.match}: that view has another HU window; add --hu-window "
            + " ".join(f"{end:g}" for end in hu_window)
        )
    view = noise_of_view(manifest, cases, make=partial(make, **content["made_with"]["parameters"]))
    with progress_bar(desc="matching", unit="case", leave=False) as bar:
        sample = NoiseSample(view.sample, read_axial, settings)
        match = match_strength(arguments.vae, view.median.total, sample, on_case=bar.update)
    print(_matching_sentence(arguments, view, match))
    arguments.strength, arguments.match = match.strength, None


def _matching_sentence(arguments: argparse.Namespace, view: NoiseOfView, match: Match) -> str:
    from fvae_nnunet.vae.denoisers import find_control

    def left(median: Left, cases: Iterable[Left], of: str) -> str:
        totals = [case.total for case in cases]
        return (
            f"{number(median.total)} of the noise (median of {of}; from {interval(min(totals), max(totals))}), "
            f"{number(median.fine)} of the fine and {number(median.coarse)} of the coarse"
        )

    meaning = find_control(arguments.vae).explained(match.strength, hu_windows_of(arguments)[0])
    if match.strength == 0:
        outcome = "the view removes no noise by this measure; the matched control is the identity (--strength 0)"
    else:
        outcome = (
            f"--strength {match.strength:g} ({meaning}) leaves {left(match.median, match.left, ', '.join(view.sample))}"
        )
    return (
        f"{arguments.vae} matched to {arguments.match}: the view leaves "
        f"{left(view.median, view.left.values(), counted(len(view.left), 'case'))}; {outcome}"
    )
