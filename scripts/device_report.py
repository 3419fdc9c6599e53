"""What a device does with the VAEs, as one Markdown page whose top says what is wrong.

    python scripts/device_report.py -o device_report.md                # a CUDA GPU if there is one
    python scripts/device_report.py -device cpu --small                # narrow networks, in a minute

Values are held against the CPU in float32, in HU. Weights are random (each layer keeps the variance), except those of
`tiny`, so differences are larger than with trained ones. Speed is that of encode and decode of one window; the floor
is the published network's arithmetic at the rate of a large matrix product. A section that fails is a line at the top,
and the others are written all the same. The exit status is 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import math
import platform
import subprocess
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from benchmark_reconstruction import WAN22_SIZES, matmul_tflops, randomise

from fvae_nnunet.device_memory import TooLittleMemory
from fvae_nnunet.device_numerics import conv3d_fault, device_class, has_bfloat16, tf32
from fvae_nnunet.manifest import versions
from fvae_nnunet.pipeline import StageSeconds, run_cases
from fvae_nnunet.vae import load_vae
from fvae_nnunet.vae.module_vae import ModuleVAE
from fvae_nnunet.vae.wan import WanVAE
from fvae_nnunet.vae.wan_network import WanNetwork, WanSizes

GIB = 2**30
HU = 1000  # half of the widest window: the model's 1 in HU
CARDS_GIB = (24, 16, 11, 8)
MFLOP_PER_VOXEL = {"wan2.1": 13.5, "wan2.2": 22.0}
LARGEST_RMS_HU = {"float32": 0.1, "tf32": 3.0, "bfloat16": 30.0}
"""What rounding can make; wrong kernels make hundreds."""

Row = Sequence[object]


class Page:
    """The sections so far, and what is wrong."""

    def __init__(self, device: torch.device, *, small: bool) -> None:
        self.device, self.small = device, small
        self.problems: list[str] = []
        self.lines: list[str] = []

    def section(self, title: str, write: Callable[[Page], None]) -> None:
        print(f"{title} ...", flush=True)
        self.lines += ["", f"## {title}", ""]
        started = time.perf_counter()
        try:
            write(self)
        except Exception as error:
            self.problems.append(f"{title}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        self.lines += ["", f"{time.perf_counter() - started:.0f} s"]

    def table(self, head: Row, rows: list[Row]) -> None:
        for row in (head, ["---"] * len(head), *rows):
            self.lines.append(f"| {' | '.join(map(str, row))} |")

    def text(self) -> str:
        top = [f"- {problem}" for problem in self.problems] or ["Nothing is wrong that this page looks at."]
        return "\n".join([f"# {device_class(self.device)}", "", "**Wrong:**", "", *top, *self.lines, ""])


def wan(name: str, device: torch.device, dtype: torch.dtype, *, small: bool) -> WanVAE:
    """Of published size, or narrow, with random weights that depend on the name alone."""
    state, config = random_wan(name, small)
    return WanVAE(state, config, name=name, source="random", device=device, dtype=dtype)


@lru_cache
def random_wan(name: str, small: bool) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    config: dict[str, Any] = dict(WAN22_SIZES) if name == "wan2.2" else {}
    if small:
        config |= {"base_dim": 16} | ({"decoder_base_dim": 32} if name == "wan2.2" else {})
    return randomise(WanNetwork(WanSizes.from_config(config))).state_dict(), config


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


def write_versions(page: Page) -> None:
    rows: list[Row] = [("python", platform.python_version()), *versions().items()]
    rows += [("CUDA, cuDNN", f"{torch.version.cuda}, {torch.backends.cudnn.version()}")]
    rows += [("bfloat16 of its own", has_bfloat16(page.device))]
    if page.device.type == "cuda":
        rows += [("memory, GiB", f"{torch.cuda.get_device_properties(page.device).total_memory / GIB:.1f}")]
        if not has_bfloat16(page.device):
            page.problems.append("the GPU emulates bfloat16: --precision bfloat16 is slow here")
    if (fault := conv3d_fault()) is not None and page.device.type == "cuda":
        page.problems.append(fault)
    page.table(("what", "version"), rows)


def write_values(page: Page) -> None:
    rows: list[Row] = []
    volume = window(5, 32) if page.small else window(9, 64)
    for name in ("tiny", "wan2.1", "wan2.2"):
        reference = vae_of(name, torch.device("cpu"), torch.float32, small=page.small)
        expected = reference.decode(reference.encode(volume)).double()
        variants = [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
        variants += [("tf32", torch.float32)] if page.device.type == "cuda" else []
        for precision, dtype in variants:
            vae = vae_of(name, page.device, dtype, small=page.small)
            if precision == "tf32":
                with tf32(True), torch.no_grad():
                    coded = vae._decode(vae._encode(volume.to(page.device), None))
            else:
                coded = vae.decode(vae.encode(volume))
            difference = HU * (coded.cpu().double() - expected)
            rms, largest = float(difference.square().mean().sqrt()), float(difference.abs().max())
            rows.append((name, precision, f"{rms:.4f}", f"{largest:.3f}"))
            if not rms <= LARGEST_RMS_HU[precision]:
                page.problems.append(f"{name} in {precision} is {rms:.2f} HU (rms) from the CPU")
    page.table(("VAE", "precision", "rms, HU", "largest, HU"), rows)


def write_speed(page: Page) -> None:
    rows: list[Row] = []
    slices, side, chunks = (9, 32, (4, 8)) if page.small else (65, 512, (8, 16, 32, 64))
    volume = window(slices, side)
    for name in ("wan2.1", "wan2.2"):
        for dtype in (torch.float32, torch.bfloat16):
            vae = wan(name, page.device, dtype, small=page.small)
            floor = matmul_tflops(page.device, dtype) * 1e6 / MFLOP_PER_VOXEL[name]
            for chunk in (*chunks, None):
                if chunk is not None:
                    vae._steps_of_a_chunk = lambda pixels, chunk=chunk: chunk // 4  # type: ignore[method-assign]
                else:
                    del vae._steps_of_a_chunk
                rows.append(
                    (name, str(dtype).removeprefix("torch."), chunk or "chosen", *speed(page, vae, volume, floor))
                )
    page.table(("VAE", "precision", "slices of a chunk", "Mvoxel/s", "share of the floor", "peak, GiB"), rows)
    if page.small:
        page.lines.append("\nNarrow networks: the share of the floor says nothing.")


def speed(page: Page, vae: WanVAE, volume: torch.Tensor, floor: float) -> Row:
    seconds = []
    if page.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(page.device)
    try:
        for _ in range(2):  # the first one chooses kernels
            wait(page.device)
            started = time.perf_counter()
            vae.decode(vae.encode(volume))
            wait(page.device)
            seconds.append(time.perf_counter() - started)
    except TooLittleMemory:
        return "memory", "", ""
    rate = volume.numel() / min(seconds) / 1e6
    peak = f"{torch.cuda.max_memory_allocated(page.device) / GIB:.1f}" if page.device.type == "cuda" else ""
    return f"{rate:.3g}", f"{rate / floor:.0%}", peak


def write_failed_case(page: Page) -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def compute(case: str, content: str) -> int:
        alive.extend(tensor() is not None for tensor in held)
        tensor = torch.zeros(2**20, device=page.device)
        held.append(weakref.ref(tensor))
        if case == "fails":
            raise torch.OutOfMemoryError("CUDA out of memory, said for this page")
        return len(tensor)

    list(run_cases(["fails", "next"], read=str, compute=compute, workers=0, seconds=StageSeconds()))
    page.lines.append(f"Tensors of a failed case that are alive while the next one computes: {sum(alive)}")
    if any(alive):
        page.problems.append("a case that fails keeps memory from the next one")


def write_cards(page: Page) -> None:
    if page.device.type != "cuda":
        page.lines.append("Needs CUDA; tests/test_gpu_memory.py counts it on fake tensors.")
        return
    total = torch.cuda.get_device_properties(page.device).total_memory
    own, rows, volume = torch.cuda.mem_get_info, [], window(65, 512)
    try:
        for name, dtype in [(name, dtype) for name in MFLOP_PER_VOXEL for dtype in (torch.float32, torch.bfloat16)]:
            vae = wan(name, page.device, dtype, small=False)
            for gib in [gib for gib in CARDS_GIB if gib * GIB < total]:
                torch.cuda.set_per_process_memory_fraction(gib * GIB / total, page.device)
                torch.cuda.mem_get_info = partial(left_of, gib * GIB)
                rows.append((gib, name, str(dtype).removeprefix("torch."), card(page, vae, volume, gib)))
                torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(1.0, page.device)
            torch.cuda.mem_get_info = own
    finally:
        torch.cuda.mem_get_info = own
        torch.cuda.set_per_process_memory_fraction(1.0, page.device)
    page.table(("card, GiB", "VAE", "precision", "slices of the largest chunk"), rows)


def left_of(total: int, device: torch.device) -> tuple[int, int]:
    """``torch.cuda.mem_get_info`` of a card on which nothing else is."""
    return max(0, total - torch.cuda.memory_reserved(device)), total


def card(page: Page, vae: WanVAE, volume: torch.Tensor, gib: int) -> str:
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
        page.problems.append(f"{vae.spec.name} in {vae.dtype} on a card of {gib} GiB: the first chunk did not fit")
    return f"{4 * max(vae._fitting.values())}{', halved' * halved}"


def write_graphs(page: Page) -> None:
    rows: list[Row] = []
    dtype = torch.bfloat16
    for name in ("wan2.1", "wan2.2"):
        vae = wan(name, page.device, dtype, small=True)
        volume = window(5, 32).expand(2, -1, -1, -1, -1).to(page.device, dtype)
        with torch.no_grad():
            latent = vae.encode(volume)
            for method, x in ((vae._network.encode, volume), (vae._network.decode, latent)):
                torch._dynamo.reset()
                found = torch._dynamo.explain(method)(x, None)
                rows.append((name, method.__name__, found.graph_count, found.graph_break_count))
                if found.graph_break_count:
                    page.problems.append(f"{name}: {method.__name__} breaks into {found.graph_count} graphs")
    page.table(("VAE", "half", "graphs", "breaks"), rows)


def write_large_tensors(page: Page) -> None:
    if page.device.type != "cuda":
        page.lines.append("Needs CUDA.")
        return
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from fvae_nnunet.vae.image import ImageVAE

    widths = (128, 256, 512, 512)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    model = randomise(AutoencoderKL(block_out_channels=widths, layers_per_block=2, **blocks))
    vae = ImageVAE(model, name="sd", source="random", device=page.device, dtype=torch.bfloat16)
    volume = window(16, 1024)
    together, alone = vae.decode(vae.encode(volume))[:, :, -1:], vae.decode(vae.encode(volume[:, :, -1:]))
    difference = HU * float((together - alone).square().mean().sqrt())
    page.lines.append(f"The last of 16 slices of 1024 x 1024, against itself alone: {difference:.3f} HU (rms)")
    if not difference <= LARGEST_RMS_HU["bfloat16"]:
        page.problems.append(f"slices that are coded together differ by {difference:.1f} HU at 1024 x 1024")


def write_commands(page: Page) -> None:
    """What the other benchmarks print, each for at most two minutes."""
    if page.small:
        page.lines.append("Left out in small: benchmark_preprocess.py, benchmark_training.py.")
        return
    training = ["-device", page.device.type, "--vae", "tiny", "wan2.1", "--iterations", "30", "--rounds", "1"]
    for script, options in (("benchmark_preprocess.py", ["--cases", "20"]), ("benchmark_training.py", training)):
        command = [sys.executable, str(Path(__file__).with_name(script)), *options]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        except subprocess.TimeoutExpired:
            page.problems.append(f"{script} took more than two minutes; run it by itself")
            continue
        page.lines += [f"`{' '.join([script, *options])}`", "", done.stdout]
        if done.returncode:
            page.problems.append(f"{script} failed: {done.stderr.strip().splitlines()[-1:]}")


SECTIONS: dict[str, Callable[[Page], None]] = {
    "Versions": write_versions,
    "Values against the CPU": write_values,
    "Speed and memory": write_speed,
    "What a failed case leaves": write_failed_case,
    "Smaller cards": write_cards,
    "Tensors of 2^31 values": write_large_tensors,
    "Graphs under torch.compile": write_graphs,
    "Commands": write_commands,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-device", choices=("cuda", "mps", "cpu"), help="default: cuda if there is a GPU, else cpu")
    parser.add_argument(
        "-o", type=Path, default=Path("device_report.md"), metavar="FILE", help="default device_report.md"
    )
    parser.add_argument("--small", action="store_true", help="narrow networks and small windows; always on a CPU")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    page = Page(device, small=arguments.small or device.type == "cpu")
    for title, write in SECTIONS.items():
        page.section(title, write)
    arguments.o.write_text(page.text(), encoding="utf-8")
    print(f"{arguments.o}: {len(page.problems)} problems")
    return 1 if page.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
