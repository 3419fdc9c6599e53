"""Text block that fvae-setup --report prints for a bug report."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import textwrap
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fvae_nnunet.cli.installation import NNUNET_FOLDERS, device_lines, state_of_folder
from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.folders import nnunet_folder
from fvae_nnunet.numbers_as_text import counted

WIDTH = 80
_OPTIONAL_PACKAGES = ("accelerate", "fastvae", "submitit", "torchmetrics", "torchvision", "transformers")


def setup_report() -> str:
    """State of this installation, one row per item, in lines of at most 80 characters; the home folder is shown as ~.

    Anything that cannot be determined is noted in its row, so a broken installation still gives a report.
    """
    from fvae_nnunet.jobs.manifest import versions

    found = versions()
    rows = [
        ("fvae_nnunet", [found.pop("fvae_nnunet"), str(Path(__file__).parents[1])]),
        ("python", [f"{platform.python_version()}, {platform.platform()}", sys.prefix]),
        ("packages", [", ".join(f"{name} {release}" for name, release in (found | _optional_versions()).items())]),
        ("device", [*device_lines(), *_cuda_libraries()]),
        *((variable, [_folder(variable)]) for variable in NNUNET_FOLDERS),
        ("variables", _variables()),
        ("trainers", [_trainers()]),
        ("weights", _weights()),
        ("views", _views()),
    ]
    label_width = max(len(label) for label, _ in rows) + 1
    return "\n".join(_row(label, lines, label_width) for label, lines in rows)


def _row(label: str, lines: list[str], label_width: int) -> str:
    home, indent = re.escape(str(Path.home())), " " * label_width
    texts = [re.sub(rf"{home}(?=[/\\]|$|[,:;\s])", "~", text) for text in lines or ["none"]]
    wrapper = textwrap.TextWrapper(WIDTH - label_width, break_on_hyphens=False)
    wrapper.wordsep_simple_re = re.compile(r"(\s+|(?<=[/\\]))")  # paths break behind a separator
    wrapped = [part for text in texts for part in wrapper.wrap(text)]
    return "\n".join(f"{indent if number else label.ljust(label_width)}{part}" for number, part in enumerate(wrapped))


def _optional_versions() -> dict[str, str]:
    found = {}
    for package in _OPTIONAL_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cuda_libraries() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return []
    gpus = counted(torch.cuda.device_count(), "GPU")
    return [f"{gpus}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"]


def _folder(variable: str) -> str:
    try:
        folder = nnunet_folder(variable)
    except UserError:
        return state_of_folder(variable)
    datasets = sum(path.is_dir() for path in folder.glob("Dataset*_*"))
    free_gb = shutil.disk_usage(folder).free / 1e9
    return f"{folder}, {counted(datasets, 'dataset')}, {free_gb:.0f} GB free"


def _variables() -> list[str]:
    shown = sorted(name for name in os.environ if name.startswith("nnUNet_") and name not in NNUNET_FOLDERS)
    return [f"{name}={os.environ[name]}" for name in shown]


def _trainers() -> str:
    from fvae_nnunet.nnunet.registration import found_through, why_not_found

    try:
        reason = why_not_found()
        return f"not found: {reason}" if reason else f"found through {found_through() or 'a file of yours'}"
    except UserError as error:
        return f"not found: {error}"


def _weights() -> list[str]:
    from fvae_nnunet.vae import is_available_offline, known_vaes

    there = [vae.name for vae in known_vaes() if is_available_offline(vae.name)]
    return [f"on this machine: {', '.join(there)}"] if there else []


def _views() -> list[str]:
    from fvae_nnunet.training.view_states import view_states

    try:
        preprocessed = nnunet_folder("nnUNet_preprocessed")
    except UserError:
        return []
    lines = []
    for state in view_states(preprocessed):
        what = state.fault or f"{state.vae or 'no VAE'}, {state.whole} of {state.cases} cases"
        if state.recorded > state.whole:
            what += f", {state.recorded - state.whole} damaged"
        lines.append(f"{state.data_folder.parent.name}/{state.data_folder.name}, {state.name}: {what}")
    return lines
