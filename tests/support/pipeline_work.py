"""What tests let the processes of a pipeline do."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import time
from pathlib import Path

import numpy as np

from fvae_nnunet.errors import UserError
from fvae_nnunet.jobs.pipeline import StageSeconds, run_cases

VOXELS = (8, 64, 64)


def read(case):
    if case == "unreadable":
        raise UserError("cannot be read")
    return None if case == "finished" else f"{case} read by {os.getpid()}"


def write(case, computed):
    if case == "unwritable":
        raise ValueError("cannot be written")
    if case == "full":
        raise OSError(errno.ENOSPC, "No space left on device", "target")
    if case == "over quota":
        raise OSError(errno.EDQUOT, "Disk quota exceeded", "target")
    if case == "aborted":
        os.abort()
    if case == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return computed


def compute(case, payload):
    if case == "uncomputable":
        raise RuntimeError("out of memory")
    return f"{payload}, computed"


def run(cases, workers, *, read=read, compute=compute, write=write, seconds=None):
    return run_cases(cases, read=read, compute=compute, write=write, workers=workers, seconds=seconds or StageSeconds())


def read_volume(case):
    return {"volume": np.full(VOXELS, int(case), np.int16).transpose(2, 0, 1), "name": case}


def write_slowly(case, volume):
    started = time.time()
    time.sleep(0.2)
    return int(volume.sum()), volume.strides, started, time.time()


def read_in_time(case):
    time.sleep(0.05)
    return case


def write_in_time(case, computed):
    time.sleep(0.15)


def write_without_letting_go(case, computed):
    Path(computed, "begun").write_text(str(os.getpid()))
    ctypes.PyDLL(None).sleep(60)


def write_half(case, computed):
    half = Path(computed, f"{case}.half")
    half.touch()
    try:
        time.sleep(60)
    finally:
        half.unlink()
