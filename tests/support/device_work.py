"""What tests let the processes of several devices do; without torch, so that they start quickly."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from fvae_nnunet.errors import UserError
from fvae_nnunet.jobs.pipeline import run_cases
from fvae_nnunet.jobs.workers import obey_parent


def exit_with_interruption_blocked():
    """Exit status 1 if an interruption cannot reach this process, without anything being done about it here."""
    os._exit(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def read(case):
    return case


def write(case, computed):
    return computed


@dataclass(frozen=True)
class Work:
    """Writes which process did a case, and fails as its name says."""

    folder: Path
    workers: int = 0
    kills: str = ""
    kills_once: bool = True
    fails_to_load: bool = False

    def load(self, device):
        if self.fails_to_load:
            raise UserError(f"no weights for {device}")
        return device

    def run(self, loaded, cases, *, first, seconds, on_slices):
        (self.folder / f"opened.{os.getpid()}").write_text(str(first))
        return run_cases(
            cases, read=read, compute=self.compute, write=write, workers=self.workers, seconds=seconds
        )  # fmt: skip

    def compute(self, case, payload):
        time.sleep(0.1)
        if case == self.kills:
            mark = self.folder / "killed"
            if not (self.kills_once and mark.exists()):
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        if case == "wrong":
            raise ValueError("a wrong case")
        return os.getpid()


class SignalsAtItsEnd:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


def be_ended_inside_a_callback(cleared: str) -> None:
    obey_parent()
    try:
        ended = SignalsAtItsEnd()
        del ended
        time.sleep(20)
    finally:
        Path(cleared).touch()


def answer_of_a_fork(answers) -> None:
    """Whether a worker handles SIGTERM itself, and whether a process that is forked from it does not."""
    obey_parent()
    own = signal.getsignal(signal.SIGTERM)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        answers.put((callable(own), pool.apply(signal.getsignal, (signal.SIGTERM,)) == signal.SIG_DFL))
