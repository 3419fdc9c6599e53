"""What all commands share: the VAE's options, errors to a message and an exit status, the progress bar."""

from __future__ import annotations

import argparse
import errno
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fvae_nnunet.errors import UserError

if TYPE_CHECKING:
    from fvae_nnunet.pipeline import Outcome, StageSeconds
    from fvae_nnunet.reconstruction import Reconstruction
    from fvae_nnunet.vae.base import FrozenVAE

Runner = Callable[[argparse.Namespace], int]


def run_command(parser: argparse.ArgumentParser, runner: Runner, argv: Sequence[str] | None) -> int:
    """Parse and run; the exit status.

    A UserError, and a disk that is full or must not be written, become a message on stderr and status 1, an
    interruption becomes status 130.
    """
    arguments = parser.parse_args(argv)
    try:
        return runner(arguments)
    except UserError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"{parser.prog}: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130


def add_reconstruction_options(parser: argparse.ArgumentParser) -> None:
    """Options that say with which VAE and how; ``load`` turns them into objects."""
    group = parser.add_argument_group("reconstruction")
    group.add_argument("--vae", default="wan2.1", metavar="NAME", help="see fvae-setup for the names; default wan2.1")
    group.add_argument(
        "--weights", metavar="PATH", help="folder or file of the weights; default: the hub's cache or the hub"
    )
    group.add_argument(
        "--hu-window", nargs=2, type=float, default=(-1000.0, 1000.0), metavar=("LOWER", "UPPER"),
        help="HU mapped to [-1, 1]; values outside are clipped; default -1000 1000, the paper's",
    )  # fmt: skip
    group.add_argument(
        "--window-slices", type=int, metavar="N", help="slices in a window; default: the VAE's own (Wan: 65)"
    )
    group.add_argument(
        "--overlap", type=int, metavar="N", dest="overlap_slices",
        help="slices that windows share; default 16 for video VAEs, 0 for image VAEs; 0 is the paper's scheme",
    )  # fmt: skip
    group.add_argument(
        "--precision", choices=("float32", "bfloat16", "float16"), default="float32",
        help="in which the VAE computes; default float32 (bfloat16: faster on a GPU, 2 to 3 HU of rounding noise)",
    )  # fmt: skip
    group.add_argument("-device", choices=("cuda", "cpu", "mps"), help="default: cuda if there is a GPU, else cpu")


def add_work_options(parser: argparse.ArgumentParser) -> None:
    """Options that say how the work is spread; the result does not depend on them."""
    group = parser.add_argument_group("work")
    group.add_argument(
        "-np", type=int, default=2, metavar="N", help="processes that read and write; default 2, 0: none"
    )
    group.add_argument("-num_parts", type=int, default=1, metavar="N", help="split the cases over N calls; default 1")
    group.add_argument(
        "-part_id", type=int, default=0, metavar="I", help="which of the parts this call does, from 0; default 0"
    )
    group.add_argument("--overwrite", action="store_true", help="make everything anew, with other settings if need be")
    group.add_argument("--verbose", action="store_true", help="show the traceback of a failed case")


@dataclass(frozen=True)
class LoadedVAE:
    """A VAE and how to use it, with the options (``--vae ...``) that would make the same again."""

    vae: FrozenVAE
    settings: Reconstruction
    options: str


def load(arguments: argparse.Namespace) -> LoadedVAE:
    """The VAE that the options name, on its device; UserError where it cannot be had."""
    import torch

    from fvae_nnunet.reconstruction import Reconstruction
    from fvae_nnunet.vae import load_vae

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "no CUDA GPU is visible to torch; use -device cpu, or check the driver and CUDA_VISIBLE_DEVICES"
        )
    if device == "mps" and not torch.backends.mps.is_available():
        raise UserError("torch sees no MPS device; use -device cpu")
    vae = load_vae(arguments.vae, weights=arguments.weights, device=device, dtype=getattr(torch, arguments.precision))
    settings = Reconstruction.for_vae(
        vae.spec,
        hu_window=tuple(arguments.hu_window),
        window_slices=arguments.window_slices,
        overlap_slices=arguments.overlap_slices,
    )
    options = ["--vae", arguments.vae]
    if arguments.weights:
        options += ["--weights", arguments.weights]
    options += ["--hu-window", *(f"{end:g}" for end in settings.hu_window)]
    options += ["--window-slices", str(settings.window_slices), "--overlap", str(settings.overlap_slices)]
    options += ["--precision", arguments.precision]
    return LoadedVAE(vae, settings, shlex.join(options))


def part_of(cases: list[str], arguments: argparse.Namespace) -> list[str]:
    """The cases of this call's part."""
    if arguments.num_parts < 1 or not 0 <= arguments.part_id < arguments.num_parts:
        raise UserError(f"-part_id counts from 0 to -num_parts - 1; got {arguments.part_id} of {arguments.num_parts}")
    if arguments.np < 0:
        raise UserError(f"-np must not be negative, got {arguments.np}")
    if arguments.overwrite and arguments.num_parts > 1:
        raise UserError("--overwrite deletes what the other parts made; run it without -num_parts")
    return cases[arguments.part_id :: arguments.num_parts]


class CaseProgress:
    """A tqdm bar over cases with an estimate of the time left, a line for each case, and the failures."""

    def __init__(self, total: int, arguments: argparse.Namespace) -> None:
        from tqdm import tqdm

        self.bar = tqdm(total=total, unit="case", dynamic_ncols=True)
        self.verbose = arguments.verbose
        self.psnr_db: list[float] = []
        self.skipped = 0
        self.failed: list[str] = []

    def on_slices(self, case: str, done: int, total: int) -> None:
        self.bar.set_postfix_str(f"{case}: slice {done}/{total}")

    def add(self, outcome: Outcome, result: dict[str, float] | None) -> None:
        """Count one case and say what became of it."""
        if outcome.error is not None:
            reason = str(outcome.error) if isinstance(outcome.error, UserError) else repr(outcome.error)
            self.failed.append(outcome.case)
            self.bar.write(f"{outcome.case}: FAILED: {reason}", file=sys.stderr)
            if self.verbose:
                self.bar.write("".join(traceback.format_exception(outcome.error)), file=sys.stderr)
        elif result is None:
            self.skipped += 1
        else:
            self.psnr_db.append(result["psnr_db"])
            self.bar.write(
                f"{outcome.case}: PSNR {result['psnr_db']:.2f} dB, "
                f"mean absolute error {result['mean_absolute_error_hu']:.2f} HU", file=sys.stdout,
            )  # fmt: skip
        self.bar.update()

    def finish(self, seconds: StageSeconds, prog: str, again: str) -> tuple[str, int]:
        """Close the bar; returns the summary's beginning and the exit status."""
        self.bar.close()
        elapsed = self.bar.format_dict["elapsed"]
        mean = f" (mean PSNR {sum(self.psnr_db) / len(self.psnr_db):.2f} dB)" if self.psnr_db else ""
        print(
            f"time: {elapsed:.1f} s, of which VAE {seconds.computing:.1f} s, "
            f"waiting for reading {seconds.reading:.1f} s and for writing {seconds.writing:.1f} s"
        )
        if self.failed:
            print(
                f"{prog}: {len(self.failed)} of {self.bar.total} cases failed: {', '.join(self.failed)}. "
                f"The others are complete; {again}", file=sys.stderr,
            )  # fmt: skip
        summary = f"{len(self.psnr_db)} cases done{mean}, {self.skipped} already complete, {elapsed:.1f} s"
        return summary, 1 if self.failed else 0
