"""Sections of ``device_report.py``: measurements on a device, and criteria for problems.

Values are compared with the CPU in float32, in HU. Weights are random (each layer keeps the variance), except those of
`tiny`, so differences are larger than with trained weights. Speed is that of encoding and decoding one window; the
floor is the published network's arithmetic at the rate of a large matrix product.
"""

from __future__ import annotations

import math
import os
import platform
import re
import sys
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from statistics import harmonic_mean
from typing import Any
from unittest import mock

import torch
from benchmark_reconstruction import WAN22_SIZES, matmul_tflops, randomise, write_random_weights
from benchmark_training import quiet_run
from phantoms import write_phantom_dataset

from fvae_nnunet.device.memory import TooLittleMemory
from fvae_nnunet.device.numerics import conv3d_fault, has_bfloat16, tf32
from fvae_nnunet.jobs.manifest import versions
from fvae_nnunet.jobs.pipeline import StageSeconds, run_cases
from fvae_nnunet.vae import load_vae
from fvae_nnunet.vae.base import FrozenVAE
from fvae_nnunet.vae.mixed_precision import DECODER_DTYPE, MIXED, MixedPrecisionVAE
from fvae_nnunet.vae.module_vae import ModuleVAE
from fvae_nnunet.vae.wan.network import WanNetwork, WanSizes
from fvae_nnunet.vae.wan.vae import WanVAE

GIB = 2**30
HU = 1000  # half of the widest window: 1 in the range of the model, in HU
CARDS_GIB = (24, 16, 11, 8)
MFLOP_PER_VOXEL = {"wan2.1": 13.7, "wan2.2": 22.2}
"""MFLOP per voxel of encoding and decoding, as in docs/benchmarks.md."""

LARGEST_RMS_HU = {"float32": 0.1, "tf32": 3.0, "float16": 4.0, "bfloat16": 30.0, MIXED: 30.0}
"""Largest difference that rounding can cause; faulty kernels cause hundreds of HU."""

MOST_IDLE = 0.2
"""Largest accepted idle share of the device while ``fvae-preprocess`` processes many cases."""

Row = Sequence[object]


@dataclass
class Part:
    """A section with its lines of Markdown and its problems.

    Attributes:
        device: device to measure.
        small: use narrow networks and small volumes.
    """

    device: torch.device
    small: bool
    problems: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def table(self, head: Row, rows: Sequence[Row]) -> None:
        for row in (head, ["---"] * len(head), *rows):
            self.lines.append(f"| {' | '.join(map(str, row))} |")


def wan(name: str, device: torch.device, dtype: torch.dtype, *, small: bool) -> WanVAE:
    """Wan VAE of published size, or narrow, with random weights that depend only on the name."""
    state, config = random_wan(name, small)
    return WanVAE(state, config, name=name, source="random", device=device, dtype=dtype)


@lru_cache
def random_wan(name: str, small: bool) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    config: dict[str, Any] = dict(WAN22_SIZES) if name == "wan2.2" else {}
    if small:
        config |= {"base_dim": 16} | ({"decoder_base_dim": 32} if name == "wan2.2" else {})
    return randomise(WanNetwork(WanSizes.from_config(config))).state_dict(), config


def mixed_wan(name: str, device: torch.device, *, small: bool) -> MixedPrecisionVAE:
    return MixedPrecisionVAE(*(vae_of(name, device, dtype, small=small) for dtype in (torch.float32, DECODER_DTYPE)))


def vae_of(name: str, device: torch.device, dtype: torch.dtype, *, small: bool) -> ModuleVAE:
    vae = load_vae(name, device=device, dtype=dtype) if name == "tiny" else wan(name, device, dtype, small=small)
    assert isinstance(vae, ModuleVAE)
    return vae


def window(slices: int, side: int) -> torch.Tensor:
    z, y, x = torch.meshgrid(*(torch.linspace(0, 3, n) for n in (slices, side, side)), indexing="ij")
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    return (0.5 * torch.sin(3 * x + z) * torch.cos(4 * y) + 0.05 * noise)[None, None].clamp(-1, 1)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def write_versions(part: Part) -> None:
    rows: list[Row] = [("python", platform.python_version()), *versions().items()]
    rows += [("CUDA, cuDNN", f"{torch.version.cuda}, {torch.backends.cudnn.version()}")]
    rows += [("bfloat16 of its own", has_bfloat16(part.device))]
    if part.device.type == "cuda":
        rows += [("memory, GiB", f"{torch.cuda.get_device_properties(part.device).total_memory / GIB:.1f}")]
        if not has_bfloat16(part.device):
            part.problems.append("the GPU emulates bfloat16: --precision bfloat16 is slow here")
    if (fault := conv3d_fault()) is not None and part.device.type == "cuda":
        part.problems.append(fault)
    part.table(("what", "version"), rows)


def write_values(part: Part) -> None:
    rows: list[Row] = []
    volume = window(5, 32) if part.small else window(9, 64)
    for name in ("tiny", "wan2.1", "wan2.2"):
        reference = vae_of(name, torch.device("cpu"), torch.float32, small=part.small)
        expected = reference.decode(reference.encode(volume)).double()
        dtypes = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
        dtypes |= {"tf32": torch.float32} if part.device.type == "cuda" else {}
        makers: dict[str, Callable[..., FrozenVAE]] = {key: partial(vae_of, dtype=dtypes[key]) for key in dtypes}
        makers |= {} if name == "tiny" else {MIXED: mixed_wan}
        for precision, make in makers.items():
            vae = make(name, part.device, small=part.small)
            if precision == "tf32":
                with tf32(True), torch.no_grad():
                    coded = vae._decode(vae._encode(volume.to(part.device), None))
            else:
                coded = vae.decode(vae.encode(volume))
            difference = HU * (coded.cpu().double() - expected)
            rms, largest = float(difference.square().mean().sqrt()), float(difference.abs().max())
            rows.append((name, precision, f"{rms:.4f}", f"{largest:.3f}"))
            if not rms <= LARGEST_RMS_HU[precision]:
                part.problems.append(f"{name} in {precision} is {rms:.2f} HU (rms) from the CPU")
    part.table(("VAE", "precision", "rms, HU", "largest, HU"), rows)


def write_speed(part: Part) -> None:
    rows: list[Row] = []
    slices, side, chunks = (9, 32, (4, 8)) if part.small else (65, 512, (8, 16, 32, 64))
    volume = window(slices, side)
    for name in ("wan2.1", "wan2.2"):
        floors = {}
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            vae = wan(name, part.device, dtype, small=part.small)
            precision = str(dtype).removeprefix("torch.") + (f", {vae.kernels}" if vae.kernels else "")
            floor = matmul_tflops(part.device, dtype) * 1e6 / MFLOP_PER_VOXEL[name]
            for chunk in (*chunks, None):
                if chunk is not None:
                    vae._steps_of_a_chunk = lambda pixels, chunk=chunk: chunk // 4  # type: ignore[method-assign]
                else:
                    del vae._steps_of_a_chunk
                rows.append((name, precision, chunk or "chosen", *speed(part, vae, volume, floor)))
            if vae.kernels:
                vae._fast_decoder = None
                rows.append((name, f"{precision} left out", "chosen", *speed(part, vae, volume, floor)))
            floors[dtype] = floor
        floor = harmonic_mean([floors[torch.float32], floors[DECODER_DTYPE]])
        mixed = mixed_wan(name, part.device, small=part.small)
        rows.append((name, mixed.precision, "chosen", *speed(part, mixed, volume, floor)))
    part.table(("VAE", "precision", "slices of a chunk", "Mvoxel/s", "share of the floor", "peak, GiB"), rows)
    if part.small:
        part.lines.append("\nNarrow networks: the share of the floor says nothing.")


def speed(part: Part, vae: FrozenVAE, volume: torch.Tensor, floor: float) -> Row:
    seconds = []
    if part.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(part.device)
    try:
        for _ in range(2):  # the first one chooses kernels
            wait(part.device)
            started = time.perf_counter()
            vae.decode(vae.encode(volume))
            wait(part.device)
            seconds.append(time.perf_counter() - started)
    except TooLittleMemory:
        return "memory", "", ""
    rate = volume.numel() / min(seconds) / 1e6
    peak = f"{torch.cuda.max_memory_allocated(part.device) / GIB:.1f}" if part.device.type == "cuda" else ""
    return f"{rate:.3g}", f"{rate / floor:.0%}", peak


def write_failed_case(part: Part) -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def compute(case: str, content: str) -> int:
        alive.extend(tensor() is not None for tensor in held)
        tensor = torch.zeros(2**20, device=part.device)
        held.append(weakref.ref(tensor))
        if case == "fails":
            raise torch.OutOfMemoryError("CUDA out of memory, said for this page")
        return len(tensor)

    list(run_cases(["fails", "next"], read=str, compute=compute, workers=0, seconds=StageSeconds()))
    part.lines.append(f"Tensors of a failed case that are alive while the next one computes: {sum(alive)}")
    if any(alive):
        part.problems.append("a case that fails keeps memory from the next one")


def write_cards(part: Part) -> None:
    if part.device.type != "cuda":
        part.lines.append("Needs CUDA; tests/device/test_memory.py counts it on fake tensors.")
        return
    total = torch.cuda.get_device_properties(part.device).total_memory
    own, rows, volume = torch.cuda.mem_get_info, [], window(65, 512)
    try:
        for name, dtype in [(name, dtype) for name in MFLOP_PER_VOXEL for dtype in (torch.float32, torch.bfloat16)]:
            vae = wan(name, part.device, dtype, small=False)
            for gib in [gib for gib in CARDS_GIB if gib * GIB < total]:
                torch.cuda.set_per_process_memory_fraction(gib * GIB / total, part.device)
                torch.cuda.mem_get_info = partial(left_of, gib * GIB)
                rows.append((gib, name, str(dtype).removeprefix("torch."), card(part, vae, volume, gib)))
                torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(1.0, part.device)
            torch.cuda.mem_get_info = own
    finally:
        torch.cuda.mem_get_info = own
        torch.cuda.set_per_process_memory_fraction(1.0, part.device)
    part.table(("card, GiB", "VAE", "precision", "slices of the largest chunk"), rows)


def left_of(total: int, device: torch.device) -> tuple[int, int]:
    """``torch.cuda.mem_get_info`` of a card that nothing else uses."""
    return max(0, total - torch.cuda.memory_reserved(device)), total


def card(part: Part, vae: WanVAE, volume: torch.Tensor, gib: int) -> str:
    vae._fitting.clear()
    for calls in (vae._encoder_chunks, vae._decoder_chunks):
        calls.most_voxels = math.inf
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            vae.decode(vae.encode(volume))
    except TooLittleMemory:
        return "too little memory"
    halved = any("too many" in str(warning.message) for warning in warned)
    if halved:
        part.problems.append(f"{vae.spec.name} in {vae.dtype} on a card of {gib} GiB: the first chunk did not fit")
    return f"{4 * max(vae._fitting.values())}{', halved' * halved}"


def write_graphs(part: Part) -> None:
    rows: list[Row] = []
    dtype = torch.bfloat16
    for name in ("wan2.1", "wan2.2"):
        vae = wan(name, part.device, dtype, small=True)
        volume = window(5, 32).expand(2, -1, -1, -1, -1).to(part.device, dtype)
        with torch.no_grad():
            latent = vae.encode(volume)
            for method, x in ((vae._network.encode, volume), (vae._network.decode, latent)):
                torch._dynamo.reset()
                found = torch._dynamo.explain(method)(x, None)
                rows.append((name, method.__name__, found.graph_count, found.graph_break_count))
                if found.graph_break_count:
                    part.problems.append(f"{name}: {method.__name__} breaks into {found.graph_count} graphs")
    part.table(("VAE", "half", "graphs", "breaks"), rows)


def write_large_tensors(part: Part) -> None:
    if part.device.type != "cuda":
        part.lines.append("Needs CUDA.")
        return
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from fvae_nnunet.vae.image import ImageVAE

    widths = (128, 256, 512, 512)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    model = randomise(AutoencoderKL(block_out_channels=widths, layers_per_block=2, **blocks))
    vae = ImageVAE(model, name="sd", source="random", device=part.device, dtype=torch.bfloat16)
    volume = window(16, 1024)
    together, alone = vae.decode(vae.encode(volume))[:, :, -1:], vae.decode(vae.encode(volume[:, :, -1:]))
    difference = HU * float((together - alone).square().mean().sqrt())
    part.lines.append(f"The last of 16 slices of 1024 x 1024, against itself alone: {difference:.3f} HU (rms)")
    if not difference <= LARGEST_RMS_HU["bfloat16"]:
        part.problems.append(f"slices that are coded together differ by {difference:.1f} HU at 1024 x 1024")


def write_preprocessing(part: Part) -> None:
    """Measure how long the device is idle in ``fvae-preprocess`` on many cases."""
    cases, shape, name = (3, (12, 48, 48), "tiny") if part.small else (20, (65, 224, 224), "wan2.1")
    with dataset_of_phantoms(cases, shape) as root:
        options = ["--vae", name, "-device", part.device.type]
        if name != "tiny":
            options += ["--weights", str(write_random_weights(name, root)), "--precision", "bfloat16"]
        started = time.perf_counter()
        printed = quiet_run([tool("fvae-preprocess"), "950", "-c", "3d_fullres", *options])
        seconds = time.perf_counter() - started
    found = re.search(r"device idle (\d+)%", printed)
    assert found is not None, printed
    size = " x ".join(map(str, shape))
    part.table(("cases", "size", "VAE", "s", "device idle"), [(cases, size, name, f"{seconds:.0f}", f"{found[1]}%")])
    if int(found[1]) > 100 * MOST_IDLE and not part.small:
        part.problems.append(f"fvae-preprocess leaves the device idle {found[1]}% of the time")


@contextmanager
def dataset_of_phantoms(cases: int, shape: tuple[int, int, int]) -> Iterator[Path]:
    """Yield the root of nnU-Net's folders, set in the environment, with a planned and preprocessed dataset 950."""
    with tempfile.TemporaryDirectory(prefix="fvae_device_report_") as folder:
        root = Path(folder)
        folders = {name: str(root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        for path in folders.values():
            Path(path).mkdir()
        write_phantom_dataset(
            root / "nnUNet_raw" / "Dataset950_Report", "lung", n_train=cases, n_test=0, seed=0, shape=shape,
            spacing_mm=(2.0, 1.0, 1.0),
        )  # fmt: skip
        with mock.patch.dict(os.environ, folders):
            quiet_run([tool("nnUNetv2_plan_and_preprocess"), "-d", "950", "-c", "3d_fullres"])
            yield root


def tool(name: str) -> str:
    """Path of a command in this environment."""
    return str(Path(sys.executable).with_name(name))


def write_training(part: Part) -> None:
    """Measure iterations of the trainers with ``benchmark_training.py``."""
    options = ["-device", part.device.type, "--rounds", "1", "--cases", "5"]
    options += (
        ["--shape", "24", "64", "64", "--iterations", "2", "--warm-up", "1", "--vae", "tiny", "--patch-voxels", "20000"]
        if part.small
        else ["--shape", "96", "224", "224", "--iterations", "10", "--warm-up", "4", "--vae", "wan2.1", "--eager"]
    )
    script = Path(__file__).with_name("benchmark_training.py")
    printed = quiet_run([sys.executable, str(script), *options])
    part.lines += [f"`python scripts/{script.name} {' '.join(options)}`", ""]
    table = [line for line in printed.splitlines() if line.startswith("|")]
    part.lines += [printed.splitlines()[0], "", *table]
    head, _, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in table]
    for row in rows:
        breaks = row[head.index("graph breaks")]
        if breaks != "0":
            part.problems.append(f"{row[0]} with {row[1]}: {breaks} graph breaks")


SECTIONS: dict[str, Callable[[Part], None]] = {
    "Versions": write_versions,
    "Values against the CPU": write_values,
    "Speed and memory": write_speed,
    "What a failed case leaves": write_failed_case,
    "Smaller cards": write_cards,
    "Tensors of 2^31 values": write_large_tensors,
    "Graphs under torch.compile": write_graphs,
    "fvae-preprocess on many cases": write_preprocessing,
    "Training": write_training,
}
"""By title."""
