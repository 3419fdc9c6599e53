"""What all commands share: the VAE's options, errors to a message and an exit status, the progress bar."""

from __future__ import annotations

import argparse
import errno
import io
import os
import select
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fvae_nnunet.cli.said_as_options import said_as_options, speak_for
from fvae_nnunet.cli.verify import add_verify_option, verify_finished
from fvae_nnunet.ct.hu_windows import NAMED_WINDOWS, PAPER_HU_WINDOW
from fvae_nnunet.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from fvae_nnunet.jobs.devices import Work
    from fvae_nnunet.jobs.manifest import Manifest
    from fvae_nnunet.jobs.pipeline import Outcome
    from fvae_nnunet.reconstruction.noise_matching import Left, Match, NoiseOfView
    from fvae_nnunet.reconstruction.settings import ReconstructionSettings
    from fvae_nnunet.vae.base import FrozenVAE

Runner = Callable[[argparse.Namespace], int]
Progress = TypeVar("Progress", bound="CaseProgress")


def run_command(parser: argparse.ArgumentParser, runner: Runner, argv: Sequence[str] | None) -> int:
    """Parse and run; the exit status.

    A UserError, a missing nnU-Net, and a disk that is full or must not be written, become a message on stderr and
    status 1, an interruption becomes status 130, and a reader who has gone (``| head``) a quiet end with status 141.
    What the terminal's encoding cannot show is escaped.
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
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            raise
        if error.filename is None:
            _discard_output()
        print(f"{parser.prog}: {error.filename or 'the output'}: {error.strerror}", file=sys.stderr)
        return 1


def _status(parser: argparse.ArgumentParser, runner: Runner, argv: Sequence[str] | None) -> int:
    arguments = parser.parse_args(argv)
    speak_for(parser)
    from fvae_nnunet.jobs.progress_bar import messages_beside_bars, show_bars

    show_bars(not getattr(arguments, "disable_progress_bar", False))
    try:
        with messages_beside_bars():
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
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def _has_lost_its_reader() -> bool:
    """Whether it is our output that nobody reads, and not another pipe."""
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
    """Let what cannot be written vanish, so that Python does not try again when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def add_vae_options(group: argparse._ArgumentGroup) -> None:
    """Options that say which VAE, and where its weights are."""
    group.add_argument("--vae", default="wan2.1", metavar="NAME", help="see fvae-setup --vaes; default wan2.1")
    group.add_argument(
        "--weights", metavar="PATH", help="folder or file of the weights; default: the hub's cache or the hub"
    )
    group.add_argument(
        "--vae-code", metavar="FOLDER",
        help="checkout of the VAE's own repository; its code is run with your rights (docs/backbones.md)",
    )  # fmt: skip
    group.add_argument(
        "--trust-weights", action="store_true",
        help="read a pickled --weights file that holds more than tensors; it can run code",
    )  # fmt: skip


def add_reconstruction_options(parser: argparse.ArgumentParser) -> None:
    """Options that say with which VAE and how; ``load`` turns them into objects."""
    group = parser.add_argument_group("reconstruction")
    add_vae_options(group)
    group.add_argument(
        "--scheme", choices=("windows", "paper", "stream"), default="windows",
        help="windows: overlapping windows, blended (default); paper: the values of the scripts released with the "
        "paper; stream: one causal pass without seams",
    )  # fmt: skip
    group.add_argument(
        "--hu-window", nargs=2, type=float, action="append", metavar=("LOWER", "UPPER"), dest="hu_windows",
        help="HU mapped to [-1, 1]; values outside are clipped; default -1000 1000, the paper's. Given several times, "
        "the widest first: the image is reconstructed in each, and the narrower ones are put in where they apply",
    )  # fmt: skip
    named = ", ".join(f"{name} ({low:g} to {high:g})" for name, (low, high) in NAMED_WINDOWS.items())
    group.add_argument(
        "--windows", nargs="+", choices=list(NAMED_WINDOWS), dest="named_windows",
        help=f"instead of --hu-window: -1000 to 1000 HU (with bone to {NAMED_WINDOWS['bone'][1]:g}), and in it {named}",
    )  # fmt: skip
    group.add_argument(
        "--enlarge", type=float, default=1.0, metavar="K",
        help="the VAE sees slices of K times as many pixels along an edge, 0.25 to 4: more keeps more detail and more "
        "noise, less smooths more; time and memory go with K squared",
    )  # fmt: skip
    group.add_argument(
        "--pixel-mm", type=float, metavar="MM", help="instead of --enlarge: with pixels of this size, in every image"
    )
    group.add_argument(
        "--average", type=int, default=1, metavar="N",
        help="the mean of N reconstructions, 1 to 8, of the slice flipped and transposed; default 1",
    )  # fmt: skip
    add_hu_as_is_option(group)
    group.add_argument(
        "--window-slices", type=int, metavar="N", help="slices in a window; default: the VAE's own (Wan: 65)"
    )
    group.add_argument(
        "--overlap", type=int, metavar="N", dest="overlap_slices",
        help="slices that windows share; default 16 for video VAEs, 0 for image VAEs",
    )  # fmt: skip
    group.add_argument(
        "--precision", choices=("float32", "bfloat16", "float16"),
        help="in which the VAE computes; default float32 (--scheme paper: the script's); float16 and bfloat16 "
        "are faster on a GPU and add 0.8 and 6 to 7 HU of rounding noise with Wan",
    )  # fmt: skip
    group.add_argument(
        "--truncate", action="store_true", help="with --scheme paper: cut to int16 as its scripts do; default: round"
    )
    group.add_argument(
        "--sample-posterior", type=int, metavar="SEED", dest="posterior_seed",
        help="draw the latent from the posterior; default: its mode",
    )  # fmt: skip
    group.add_argument(
        "--strength", type=_strength, metavar="S",
        help="of a plain denoiser, --vae control:<name>; unit: fvae-setup --vaes; 0 changes nothing; auto (nlm, "
        "tv): for the noise of each image",
    )  # fmt: skip
    group.add_argument(
        "--match", metavar="VIEW",
        help="instead of --strength: the one that removes as much noise as this view; fvae-preprocess: a view of the "
        "dataset, fvae-reconstruct: a folder that it wrote",
    )  # fmt: skip
    group.add_argument("-device", choices=("cuda", "cpu", "mps"), help="default: cuda if there is a GPU, else cpu")


def _strength(text: str) -> float | str:
    return text if text == "auto" else float(text)


def add_hu_as_is_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """``--hu-as-is``: no doubt that values are HU."""
    parser.add_argument(
        "--hu-as-is", action="store_true",
        help="take the values as HU though they do not look like it; default: such images are refused",
    )  # fmt: skip


def add_channels_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """``--channels``: which are reconstructed, or synthesised in."""
    parser.add_argument(
        "--channels", nargs="+", type=int, metavar="N",
        help="numbers of the channels that are CT in HU, whatever they are called; default: all that are called CT",
    )  # fmt: skip


def channels_option(arguments: argparse.Namespace) -> str:
    """``--channels`` as given, with a space before it, to repeat it in a printed command; empty where it was not."""
    return f" --channels {' '.join(map(str, arguments.channels))}" if arguments.channels else ""


def add_work_options(parser: argparse.ArgumentParser) -> None:
    """Options that say how the work is spread; the result does not depend on them."""
    group = parser.add_argument_group("work")
    group.add_argument(
        "-np", type=int, default=2, metavar="N", help="processes that read and write; default 2, 0: none"
    )
    group.add_argument(
        "--devices", nargs="+", metavar="DEVICE",
        help="instead of -device: a process for each of these, such as cuda:0 cuda:1, all (CUDA GPUs) or cpu cpu; "
        "they share the cases and the processes of -np",
    )  # fmt: skip
    group.add_argument("-num_parts", type=int, default=1, metavar="N", help="split the cases over N calls; default 1")
    group.add_argument(
        "-part_id", type=int, default=0, metavar="I", help="which of the parts this call does, from 0; default 0"
    )
    group.add_argument("--overwrite", action="store_true", help="make everything anew, with other settings if need be")
    add_verify_option(group)
    group.add_argument("--verbose", action="store_true", help="show the traceback of a failed case")


@dataclass(frozen=True)
class LoadedVAE:
    """A VAE and how to use it, with the parameters of ``load`` that would make the same again, as JSON values."""

    vae: FrozenVAE
    settings: ReconstructionSettings
    parameters: dict[str, Any]

    @property
    def made_with(self) -> dict[str, Any]:
        """For the reader of a manifest: where the weights are, these parameters, and what kind of device computed."""
        from fvae_nnunet.device.numerics import device_class

        return {
            "weights": self.vae.weights_source,
            "parameters": self.parameters,
            "device": ", ".join(filter(None, (device_class(self.vae.device), self.vae.kernels))),
        }


def load(arguments: argparse.Namespace) -> LoadedVAE:
    """The VAE that the options name, on its device; UserError where it cannot be had."""
    import torch

    from fvae_nnunet.jobs.devices import chosen_device
    from fvae_nnunet.reconstruction.settings import ReconstructionSettings
    from fvae_nnunet.vae import load_vae
    from fvae_nnunet.vae.paper_scripts import PAPER_SCRIPTS

    device = chosen_device(arguments.device)
    _check_control_options(arguments)
    if arguments.match is not None:
        raise UserError("--match is for fvae-preprocess and fvae-reconstruct; give the --strength that they print")
    script = PAPER_SCRIPTS.get(arguments.vae) if arguments.scheme == "paper" else None
    if script and script.samples and arguments.posterior_seed is None:
        print(
            f"{arguments.vae}: the paper's script draws the latent from the posterior; this takes its mode. "
            "--sample-posterior SEED draws it"
        )
    dtype = getattr(torch, arguments.precision) if arguments.precision else script.dtype if script else torch.float32
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
        **{name: getattr(arguments, name) for name in ("vae", "weights", "vae_code", "trust_weights", "strength")},
        "scheme": settings.scheme,
        "hu_windows": [list(hu_window) for hu_window in settings.hu_windows],
        "enlarge": None if settings.enlarge == 1 else settings.enlarge,
        "pixel_mm": settings.pixel_mm,
        "average": None if settings.average == 1 else settings.average,
        "window_slices": settings.window_slices,
        "overlap_slices": settings.overlap_slices,
        "precision": str(vae.dtype).removeprefix("torch."),
        "truncate": settings.truncate,
        "hu_as_is": arguments.hu_as_is,
        "posterior_seed": settings.posterior_seed,
    }
    given = {name: value for name, value in parameters.items() if value is not None and value is not False}
    return LoadedVAE(vae, settings, given)


def hu_windows_of(arguments: argparse.Namespace) -> list[tuple[float, float]]:
    """The HU windows that the options ask for, the widest first; UserError where both options are given."""
    if not arguments.named_windows:
        return [(lower, upper) for lower, upper in arguments.hu_windows or [PAPER_HU_WINDOW]]
    if arguments.hu_windows:
        raise UserError("--windows and --hu-window exclude each other; give one of them")
    inner = [NAMED_WINDOWS[name] for name in NAMED_WINDOWS if name in arguments.named_windows]
    return [(PAPER_HU_WINDOW[0], max(PAPER_HU_WINDOW[1], *(upper for _, upper in inner))), *inner]


def _check_control_options(arguments: argparse.Namespace) -> None:
    from fvae_nnunet.vae.registry import is_control

    if arguments.strength is not None and arguments.match is not None:
        raise UserError("--strength and --match exclude each other; give one of them")
    if not is_control(arguments.vae):
        if arguments.strength is not None or arguments.match is not None:
            raise UserError(
                f"--strength and --match are for plain denoisers (--vae control:<name>); {arguments.vae} is a VAE"
            )
        return
    if arguments.scheme != "windows":
        raise UserError(f"{arguments.vae} filters each slice alone; leave --scheme {arguments.scheme} out")
    if arguments.posterior_seed is not None:
        raise UserError(f"{arguments.vae} draws nothing; leave --sample-posterior out")
    resampled = arguments.enlarge != 1 or arguments.pixel_mm is not None
    if resampled or arguments.average != 1 or len(hu_windows_of(arguments)) > 1:
        raise UserError(
            f"{arguments.vae} filters the image as it is; leave --windows, --enlarge, --pixel-mm, --average and a "
            "second --hu-window out"
        )


def load_again(parameters: Mapping[str, Any]) -> LoadedVAE:
    """``load`` for parameters as ``LoadedVAE.parameters`` holds them."""
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
    """Put the ``--strength`` that ``--match`` asks for in its place, and say what was matched.

    Args:
        arguments: the options; ``strength`` and ``match`` are replaced.
        manifest: of the view to match.
        check: returns its content, or raises UserError where the view is not whole.
        cases: all cases that it must hold.
        read_axial: gives the CT channels of a raw case, axial slices first, in HU.
        make: the command that makes the view with the parameters that it is given, for messages.

    Raises:
        UserError: options that do not go together, no such view, an incomplete or older one, or it cannot be matched.
    """
    from fvae_nnunet.jobs.progress_bar import progress_bar
    from fvae_nnunet.reconstruction.noise_matching import NoiseSample, match_strength, noise_of_view
    from fvae_nnunet.vae.denoisers import find_control

    _check_control_options(arguments)
    if not find_control(arguments.vae).has_strength:
        raise UserError(f"{arguments.vae} has no strength to choose; leave --match out")
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
            f"{median.total:.3f} of the noise (median of {of}; from {min(totals):.3f} to {max(totals):.3f}), "
            f"{median.fine:.3f} of the fine and {median.coarse:.3f} of the coarse"
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
        f"{left(view.median, view.left.values(), f'{len(view.left)} cases')}; {outcome}"
    )


def part_of(cases: list[str], arguments: argparse.Namespace) -> list[str]:
    """The cases of this call's part."""
    if arguments.num_parts < 1 or not 0 <= arguments.part_id < arguments.num_parts:
        raise UserError(f"-part_id counts from 0 to -num_parts - 1; got {arguments.part_id} of {arguments.num_parts}")
    if arguments.np < 0:
        raise UserError(f"-np must not be negative, got {arguments.np}")
    if arguments.overwrite and arguments.num_parts > 1:
        raise UserError("--overwrite deletes what the other parts made; run it without -num_parts")
    if arguments.devices and arguments.device:
        raise UserError("-device and --devices exclude each other; give one of them")
    return cases[arguments.part_id :: arguments.num_parts]


def workers_of(arguments: argparse.Namespace) -> int:
    """Processes that read and write for one device."""
    return max(1, arguments.np // len(arguments.devices)) if arguments.np and arguments.devices else arguments.np


def do_cases(
    arguments: argparse.Namespace,
    work: Work,
    *,
    cases: list[str],
    known: Iterable[str],
    folders: Iterable[Path],
    progress_type: type[Progress],
) -> Progress:
    """Do the cases, and those that crashed processes left, on the devices that the options name.

    Args:
        arguments: the options; ``devices`` is replaced by the devices it stands for.
        work: loads the VAE and does cases with it; the result of each is a dictionary.
        cases: this call's part.
        known: all cases of the input.
        folders: where cases are claimed, see ``claims``.
        progress_type: says what became of each case.
    """
    from fvae_nnunet.jobs.claims import Claims
    from fvae_nnunet.jobs.devices import available_devices, run_on_devices
    from fvae_nnunet.jobs.pipeline import Outcome

    arguments.devices = available_devices(arguments.devices or [])
    folders = list(folders)
    verify_finished(arguments, folders, cases)
    with Claims(folders, known=known) as claims:
        if arguments.overwrite:
            claims.refuse_others()
        if arguments.devices:
            progress = progress_type(len(cases), arguments)
            outcomes = run_on_devices(
                arguments.devices,
                work,
                claims.each(cases),
                seconds=progress.seconds,
                on_slices=progress.on_slices,
                say=progress.say,
            )
        else:
            loaded = work.load(arguments.device)
            progress = progress_type(len(cases), arguments)
            outcomes = work.run(
                loaded, claims.each(cases), first=True, seconds=progress.seconds, on_slices=progress.on_slices
            )
        # closed before the claims are given back: then nobody works on a case any more
        with closing(outcomes):
            for outcome in outcomes:
                claims.release(outcome.case)
                progress.add(outcome)
        for case in claims.elsewhere:
            progress.add(Outcome(case, elsewhere=True))
    if claims.adopted:
        progress.say(f"took over from processes that had crashed: {', '.join(claims.adopted)}")
    return progress


class CaseProgress:
    """A tqdm bar over cases with an estimate of the time left, a line for each case, and the failures."""

    def __init__(self, total: int, arguments: argparse.Namespace) -> None:
        from fvae_nnunet.jobs.pipeline import StageSeconds
        from fvae_nnunet.jobs.progress_bar import progress_bar

        self.seconds = StageSeconds()
        self.devices = max(1, len(arguments.devices))
        self.bar = progress_bar(total=total, unit="case")
        self.verbose = arguments.verbose
        self.psnr_db: list[float] = []
        self.skipped = 0
        self.elsewhere = 0
        self.failed: list[str] = []

    def on_slices(self, case: str, done: int, total: int) -> None:
        self.bar.set_postfix_str(f"{case}: slice {done}/{total}")

    def say(self, line: str) -> None:
        self.bar.write(line, file=sys.stderr)

    def add(self, outcome: Outcome) -> None:
        """Count one case and say what became of it."""
        result = outcome.result
        if outcome.error is not None:
            error = outcome.error
            reason = said_as_options(str(error)) if isinstance(error, UserError) else repr(error)
            self.failed.append(outcome.case)
            self.bar.write(f"{outcome.case}: FAILED: {reason}", file=sys.stderr)
            if self.verbose:
                self.bar.write("".join(traceback.format_exception(outcome.error)), file=sys.stderr)
        elif outcome.elsewhere:
            self.elsewhere += 1
            self.bar.write(f"{outcome.case}: in work elsewhere", file=sys.stdout)
        elif result is None:
            self.skipped += 1
        else:
            self.psnr_db.append(result["psnr_db"])
            noise = ""
            if result.get("noise_raw_hu") is not None:
                noise = f", noise {result['noise_raw_hu']:.1f} to {result['noise_view_hu']:.1f} HU"
            self.bar.write(
                f"{outcome.case}: PSNR {result['psnr_db']:.2f} dB, "
                f"mean absolute error {result['mean_absolute_error_hu']:.2f} HU{noise}", file=sys.stdout,
            )  # fmt: skip
            if result.get("impossible_voxels"):
                self.bar.write(
                    f"{outcome.case}: warning: HU from {result['lowest_hu']:g} to {result['highest_hu']:g}; "
                    f"{result['impossible_voxels']} voxels lie where no CT has any and were clipped to the window. Is "
                    "the image in HU?", file=sys.stderr,
                )  # fmt: skip
        self.bar.total = max(self.bar.total, self.bar.n + 1)
        self.bar.update()

    def finish(self, prog: str, again: str) -> tuple[str, int]:
        """Close the bar; returns the summary's beginning and the exit status."""
        self.bar.close()
        elapsed = self.bar.format_dict["elapsed"]
        mean = f" (mean PSNR {sum(self.psnr_db) / len(self.psnr_db):.2f} dB)" if self.psnr_db else ""
        seconds = self.seconds
        several = f" on {self.devices} devices, summed over them" if self.devices > 1 else ""
        print(
            f"time: {elapsed:.1f} s, of which{several} VAE {seconds.computing:.1f} s, waiting for reading "
            f"{seconds.reading:.1f} s and for writing {seconds.writing:.1f} s; device idle {seconds.idle_share:.0%}"
        )
        if self.failed:
            print(
                f"{prog}: {len(self.failed)} of {self.bar.total} cases failed: {', '.join(self.failed)}. "
                f"{'' if self.elsewhere else 'The others are complete; '}{again}", file=sys.stderr,
            )  # fmt: skip
        elsewhere = f", {self.elsewhere} in work elsewhere" if self.elsewhere else ""
        summary = f"{len(self.psnr_db)} cases done{mean}, {self.skipped} already complete{elsewhere}, {elapsed:.1f} s"
        return summary, 1 if self.failed else 0
