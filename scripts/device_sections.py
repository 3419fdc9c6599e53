"""The sections of ``device_report.py``: what is measured on a device, and when it counts as wrong."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark_reconstruction import WAN22_SIZES, randomise, write_random_weights
from phantoms import make_phantom, write_phantom_dataset
from torch.utils.flop_counter import FlopCounterMode

from fvae_nnunet.errors import UserError
from fvae_nnunet.reconstruction import reconstruct_volume
from fvae_nnunet.reconstruction_settings import Reconstruction
from fvae_nnunet.vae import FrozenVAE, load_vae
from fvae_nnunet.vae import wan as wan_module
from fvae_nnunet.vae.wan import WanVAE

GIB = 2**30

FEW_CHANNELS: dict[str, Any] = {"base_dim": 8, "z_dim": 4, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
FEW_CHANNELS_22 = FEW_CHANNELS | {"decoder_base_dim": 8}

MOST_RMS_HU = {"float32": 0.05, "float32, TF32": 2.0, "bfloat16": 30.0}
"""A device may differ from the CPU by so much (root mean square) with random weights, whose images are like noise; with
trained weights it is less. Above it something is wrong, not rounded."""

CARDS_GIB = (24, 16, 11, 8)

MOST_LEFT_MIB = 64.0
"""Of GPU memory that may stay allocated when a case has failed."""

MOST_IDLE = 0.2
"""Share of the time in which the device may wait while ``fvae-preprocess`` does many cases."""


@dataclass(frozen=True)
class Setting:
    """What is measured: ``device`` of torch, and whether in small."""

    device: str
    small: bool


@dataclass(frozen=True)
class Measured:
    """A section's outcome: a table (``head`` and ``rows``), sentences, and what is wrong."""

    title: str
    head: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def with_problem(self, problem: str) -> Measured:
        return replace(self, problems=[*self.problems, problem])


@dataclass(frozen=True)
class Section:
    title: str
    measure: Callable[[Setting], Measured]


def phantom_hu(shape: tuple[int, int, int]) -> np.ndarray:
    """A phantom's first slices, int16 HU (z, y, x)."""
    volume_hu, _ = make_phantom("lung", seed=0, shape=(max(shape[0], 12), *shape[1:]), spacing_mm=(2.0, 1.0, 1.0))
    return volume_hu[: shape[0]]


def random_wan(name: str, setting: Setting, *, device: str, dtype: torch.dtype) -> WanVAE:
    """Wan with random weights: of full size, or with few channels."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    sizes: dict[str, Any] = dict(WAN22_SIZES) if name == "wan2.2" else {}
    if setting.small:
        sizes |= FEW_CHANNELS_22 if name == "wan2.2" else FEW_CHANNELS
    model: Any = randomise(AutoencoderKLWan(**sizes))
    return WanVAE(model.state_dict(), model.config, name=name, source="random", device=device, dtype=dtype)


def reconstructed(vae: FrozenVAE, volume_hu: np.ndarray) -> np.ndarray:
    return reconstruct_volume(vae, volume_hu, Reconstruction.for_vae(vae.spec, overlap_slices=0))


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let float32 products and convolutions be rounded to TF32, or not."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def versions(setting: Setting) -> Measured:
    """The machine and what is installed."""
    packages = ("fvae_nnunet", "torch", "nnunetv2", "diffusers", "monai", "numpy", "SimpleITK", "triton")
    rows = [["Python", platform.python_version()], ["system", platform.platform()]]
    for package in packages:
        try:
            rows.append([package, importlib.metadata.version(package)])
        except importlib.metadata.PackageNotFoundError:
            rows.append([package, "not installed"])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    rows.append(["CPU cores", str(cores)])
    if setting.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        rows += [
            ["GPU", f"{properties.name}, {properties.total_memory / GIB:.1f} GiB"],
            ["compute capability", f"{properties.major}.{properties.minor}"],
            ["CUDA of torch, cuDNN", f"{torch.version.cuda}, {torch.backends.cudnn.version()}"],
            ["bfloat16 in hardware", str(torch.cuda.is_bf16_supported(including_emulation=False))],
        ]
    return Measured("Machine and versions", ["", ""], rows)


def values(setting: Setting) -> Measured:
    """Reconstructions of the device against those of the CPU in float32."""
    found = Measured(
        "Values: against the CPU in float32", ["VAE", "precision", "rms, HU", "largest, HU", "at most, rms"]
    )
    volume_hu = phantom_hu((5, 32, 32) if setting.small else (5, 96, 96))
    on_device = setting.device
    precisions = [("float32", torch.float32, False), ("bfloat16", torch.bfloat16, False)]
    if on_device == "cuda":
        precisions.insert(1, ("float32, TF32", torch.float32, True))
    for name in ("tiny", "wan2.1", "wan2.2"):

        def loaded(device: str, dtype: torch.dtype, name: str = name) -> FrozenVAE:
            if name == "tiny":
                return load_vae(name, device=device, dtype=dtype)
            return random_wan(name, setting, device=device, dtype=dtype)

        reference_hu = reconstructed(loaded("cpu", torch.float32), volume_hu)
        for precision, dtype, allowed in precisions:
            with tf32(allowed):
                difference = reconstructed(loaded(on_device, dtype), volume_hu).astype(np.float64) - reference_hu
            rms, largest, limit = (
                np.sqrt(np.square(difference).mean()),
                np.abs(difference).max(),
                MOST_RMS_HU[precision],
            )
            found.rows.append([name, precision, f"{rms:.3g}", f"{largest:.3g}", f"{limit:g}"])
            if not rms <= limit:  # NaN too
                found.problems.append(f"{name} in {precision} differs from the CPU by {rms:.3g} HU (rms)")
    return found


def speed(setting: Setting) -> Measured:
    """Throughput and memory by size of the chunks."""
    from benchmark_reconstruction import matmul_tflops

    shape = (9, 48, 48) if setting.small else (65, 512, 512)
    volume_hu, on_gpu = phantom_hu(shape), setting.device == "cuda"
    head = ["VAE", "precision", "slices of a chunk", "Mvoxel/s", "share of the floor", "peak memory, GiB"]
    found = Measured(f"Speed: encode and decode, {' x '.join(map(str, shape))}", head)
    found.notes.append("The floor is the arithmetic, counted by torch, at the rate of a large matrix product.")
    for dtype in (torch.float32, torch.bfloat16) if on_gpu else (torch.float32,):
        tflops = matmul_tflops(torch.device(setting.device), dtype)
        found.notes.append(f"Matrix product in {short(dtype)}: {tflops:.3g} TFLOP/s.")
        for name in ("wan2.1", "wan2.2"):
            vae = random_wan(name, setting, device=setting.device, dtype=dtype)
            flop = flop_per_voxel(vae)
            for slices in (8, 16, 32) if on_gpu else (8,):
                rate, peak_gib = rate_and_peak(vae, volume_hu, slices, on_gpu=on_gpu)
                found.rows.append(
                    [
                        name, short(dtype), str(slices), f"{rate / 1e6:.3g}", f"{rate * flop / tflops / 1e12:.0%}",
                        f"{peak_gib:.1f}" if on_gpu else "",
                    ]
                )  # fmt: skip
            del vae
            gc.collect()
    return found


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def flop_per_voxel(vae: FrozenVAE) -> float:
    """Of encoding and decoding, counted on a small volume."""
    volume_hu = phantom_hu((17, 64, 64))
    with FlopCounterMode(display=False) as counter:
        reconstructed(vae, volume_hu)
    return counter.get_total_flops() / volume_hu.size


def rate_and_peak(vae: FrozenVAE, volume_hu: np.ndarray, slices: int, *, on_gpu: bool) -> tuple[float, float]:
    """Voxels per second of the faster of two runs, and the peak of allocated GPU memory in GiB."""
    with chunks_of(slices, volume_hu.shape):
        best = float("inf")
        for _ in range(2):
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            reconstructed(vae, volume_hu)
            best = min(best, time.perf_counter() - started)
    return volume_hu.size / best, torch.cuda.max_memory_allocated() / GIB if on_gpu else 0.0


@contextmanager
def chunks_of(slices: int, shape: tuple[int, ...]) -> Iterator[None]:
    """Wan codes at most so many slices of this size at once."""
    before = wan_module.GPU_CHUNK_VOXELS
    wan_module.GPU_CHUNK_VOXELS = slices * shape[1] * shape[2]
    try:
        yield
    finally:
        wan_module.GPU_CHUNK_VOXELS = before


def memory(setting: Setting) -> Measured:
    """Smaller cards, emulated by a limit of torch's memory, and what a case leaves that failed for lack of it."""
    found = Measured(
        "Lack of memory: smaller cards, emulated", ["card, GiB", "VAE", "precision", "outcome", "Mvoxel/s"]
    )
    if setting.device != "cuda":
        found.notes.append("Needs CUDA.")
        return found
    total = torch.cuda.get_device_properties(0).total_memory
    volume_hu = phantom_hu((33, 512, 512))
    for name, dtype in (("wan2.1", torch.float32), ("wan2.1", torch.bfloat16), ("wan2.2", torch.bfloat16)):
        for card in (card for card in (*CARDS_GIB, 3) if card * GIB < total):
            torch.cuda.set_per_process_memory_fraction(1.0)
            vae = random_wan(name, setting, device="cuda", dtype=dtype)
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(card * GIB / total)
            before, started = torch.cuda.memory_allocated(), time.perf_counter()
            try:
                reconstructed(vae, volume_hu)
            except UserError as error:
                outcome, rate = str(error), ""
                left_mib = (torch.cuda.memory_allocated() - before) / 2**20
                if left_mib > MOST_LEFT_MIB:
                    found.problems.append(
                        f"a case that failed leaves {left_mib:.0f} MiB allocated ({name}, {card} GiB)"
                    )
            except Exception as error:
                outcome, rate = f"{type(error).__name__}: {error}".splitlines()[0][:120], ""
                found.problems.append(f"{name} in {short(dtype)} on {card} GiB ends with {outcome}")
            else:
                outcome, rate = "done", f"{volume_hu.size / (time.perf_counter() - started) / 1e6:.3g}"
            found.rows.append([str(card), name, short(dtype), outcome, rate])
            del vae
            gc.collect()
    torch.cuda.set_per_process_memory_fraction(1.0)
    return found


def large_tensors(setting: Setting) -> Measured:
    """Slices so large that a chunk of 32 would have more than 2^31 values in a tensor."""
    found = Measured("Slices of 1024 x 1024 pixels", ["VAE", "slices of a chunk", "rms to chunks of 4, HU"])
    if setting.device != "cuda":
        found.notes.append("Needs CUDA.")
        return found
    volume_hu = phantom_hu((17, 1024, 1024))
    for name in ("wan2.1", "wan2.2"):
        vae = random_wan(name, setting, device="cuda", dtype=torch.bfloat16)
        with chunks_of(4, volume_hu.shape):
            reference_hu = reconstructed(vae, volume_hu).astype(np.float64)
        rms = float(np.sqrt(np.square(reconstructed(vae, volume_hu) - reference_hu).mean()))
        found.rows.append([name, "as chosen", f"{rms:.3g}"])
        if not rms <= MOST_RMS_HU["bfloat16"]:
            found.problems.append(f"{name}: values depend on the chunks by {rms:.3g} HU")
    return found


def preprocessing(setting: Setting) -> Measured:
    """``fvae-preprocess`` on many cases: how long the device waits."""
    cases, shape = (3, (12, 48, 48)) if setting.small else (20, (65, 224, 224))
    found = Measured(f"fvae-preprocess, {cases} phantoms of {' x '.join(map(str, shape))}", ["VAE", "s", "device idle"])
    with dataset_of_phantoms(cases, shape) as (root, environment):
        for name in ("tiny" if setting.small else "wan2.1",):
            options = ["--vae", name, "--view", name, "-device", setting.device]
            if name != "tiny":
                options += ["--weights", str(write_random_weights(name, root)), "--precision", "bfloat16"]
            started = time.perf_counter()
            printed = command("fvae-preprocess", "950", "-c", "3d_fullres", *options, environment=environment)
            idle = float(re.search(r"device idle (\d+)%", printed)[1]) / 100  # type: ignore[index]
            found.rows.append([name, f"{time.perf_counter() - started:.0f}", f"{idle:.0%}"])
            if idle > MOST_IDLE and not setting.small:
                found.problems.append(f"the device waits {idle:.0%} of the time ({name})")
    return found


@contextmanager
def dataset_of_phantoms(cases: int, shape: tuple[int, int, int]) -> Iterator[tuple[Path, dict[str, str]]]:
    """A planned and preprocessed dataset 950, and the environment that names its folders."""
    with tempfile.TemporaryDirectory(prefix="fvae_device_report_") as folder:
        root = Path(folder)
        folders = {name: str(root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        for path in folders.values():
            Path(path).mkdir()
        write_phantom_dataset(
            root / "nnUNet_raw" / "Dataset950_Report", "lung", n_train=cases, n_test=0, seed=0, shape=shape,
            spacing_mm=(2.0, 1.0, 1.0),
        )  # fmt: skip
        environment = dict(os.environ) | folders
        command("nnUNetv2_plan_and_preprocess", "-d", "950", "-c", "3d_fullres", environment=environment)
        yield root, environment


def command(name: str, *arguments: str, environment: dict[str, str]) -> str:
    """What a command of this environment prints; UserError with its last lines where it fails."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / name), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UserError(f"{name} ended with status {done.returncode}: {' / '.join(done.stderr.splitlines()[-3:])}")
    return done.stdout + done.stderr


def training(setting: Setting) -> Measured:
    """Iterations of the trainers, by ``benchmark_training.py``."""
    found = Measured("Training, phantoms")
    options = ["-device", setting.device, "--rounds", "1"]
    if setting.small:
        options += ["--cases", "5", "--shape", "24", "64", "64", "--iterations", "2", "--warm-up", "1", "--vae", "tiny"]
        options += ["--patch-voxels", "20000"]
    else:
        options += [
            "--cases",
            "5",
            "--shape",
            "96",
            "224",
            "224",
            "--iterations",
            "10",
            "--warm-up",
            "4",
            "--vae",
            "wan2.1",
        ]
        options += ["--eager"]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("benchmark_training.py")), *options],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        return found.with_problem(f"the benchmark failed: {' / '.join(done.stderr.splitlines()[-3:])}")
    table = [
        [cell.strip() for cell in line[1:-1].split("|")] for line in done.stdout.splitlines() if line.startswith("|")
    ]
    head, _, *rows = table
    breaks = head.index("graph breaks")
    problems = [f"{row[0]} with {row[1]}: {row[breaks]} graph breaks" for row in rows if row[breaks] not in ("", "0")]
    return replace(found, head=head, rows=rows, notes=[done.stdout.splitlines()[0] + "."], problems=problems)


SECTIONS = {
    "versions": Section("Machine and versions", versions),
    "values": Section("Values", values),
    "speed": Section("Speed", speed),
    "memory": Section("Lack of memory", memory),
    "large": Section("Large slices", large_tensors),
    "preprocessing": Section("fvae-preprocess", preprocessing),
    "training": Section("Training", training),
}
"""By the name that ``--only`` takes."""
