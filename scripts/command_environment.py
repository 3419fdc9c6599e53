"""Environment in which scripts and workflows call nnU-Net's and our commands. Uses only the standard library."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Mapping
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
TRAINERS = SCRIPTS.parent / "fvae_nnunet" / "nnunet_stub"
"""Folder in which nnU-Net finds the trainers of this package."""

EXTERNAL_TRAINERS = "nnUNet_extTrainer"
NNUNET_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def command_variables(work: Path, device: str, *more_trainers: Path) -> dict[str, str]:
    """Variables for nnU-Net: its folders below ``work``, our trainers, and settings for a small machine.

    Settings that are already in the environment are kept.

    Args:
        work: an absolute path.
        device: ``cuda``, ``cpu`` or ``mps``.
        more_trainers: further folders in which nnU-Net looks for trainers.
    """
    given = [folder for folder in os.environ.get(EXTERNAL_TRAINERS, "").split(os.pathsep) if folder]
    trainers = dict.fromkeys([*given, str(TRAINERS), *map(str, more_trainers)])
    variables = {name: str(work / name) for name in NNUNET_FOLDERS} | {EXTERNAL_TRAINERS: os.pathsep.join(trainers)}
    small = {"nnUNet_compile": "f"} if device != "cuda" else {}
    if cores() <= 4:
        # threads that wait actively would take cores from the data loading processes
        small |= {"nnUNet_n_proc_DA": "2", "nnUNet_def_n_proc": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    return variables | {name: value for name, value in small.items() if name not in os.environ}


def command_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Environment of this process with these variables, and with the programs beside this Python first on the path."""
    search_path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    return {**os.environ, **variables, "PATH": search_path, "PYTHONUNBUFFERED": "1"}
