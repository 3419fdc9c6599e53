"""Benchmark: time and memory of training with views, made before or during training, as ratios to nnUNetTrainer.

    python scripts/benchmark_training.py                                            # CUDA: nnU-Net's own plans
    python scripts/benchmark_training.py -device cpu --shape 48 96 96 --iterations 10

Rows: nnUNetTrainer, the baseline; nnUNetTrainerFVAE on a view made with `tiny`; nnUNetTrainerFVAEOnline with each VAE
of --vae. All train on the same phantoms and plans, each in a process of its own, --rounds times in turn; times are
medians of the rounds. A process runs a warm-up (compilation, cuDNN's choice of algorithms), then the measured training
iterations without validation. On a CPU, network and patch are shrunk (small_plans.py).

`taesd` is a randomly initialised AutoencoderTiny of TAESD's size; Wan has random weights of full size, since speed does
not depend on them. Memory is torch's peak of allocated GPU memory, or on a CPU the largest resident set of the training
process (without its workers). GPU use is the mean of nvidia-smi's samples. CPU time is that of the training process
without its workers; on a shared CPU, its ratio is more reliable than that of wall-clock times.

The floor is the VAE's arithmetic on the drawn samples, counted by torch, at the rate of a large matrix product in the
precision of the VAE, measured in the same process before training. The excess is the additional time of an iteration
compared with nnUNetTrainer, in floors. Graph breaks are those of torch.compile, which is on by default on CUDA; 0 if
nothing is compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from fvae_nnunet.files.checked_json import read_json
from fvae_nnunet.nnunet.folders import nnunet_folder

DATASET, PLANS = "Dataset950_Benchmark", "nnUNetPlans"
ONLINE = "nnUNetTrainerFVAEOnline"
EAGER = ", eager"
VAES = {"cuda": ("tiny", "taesd", "wan2.1", "wan2.2"), "cpu": ("tiny", "taesd")}


def prepare(root: Path, arguments: argparse.Namespace) -> None:
    """Make a planned and preprocessed dataset of phantoms with a view, and the weights of the VAEs."""
    from benchmark_reconstruction import write_random_weights
    from phantoms import write_phantom_dataset
    from small_plans import small_plans

    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (root / variable).mkdir()
    write_phantom_dataset(
        root / "nnUNet_raw" / DATASET, "pancreas", n_train=arguments.cases, n_test=0, seed=0,
        shape=tuple(arguments.shape), spacing_mm=(1.5, 0.8, 0.8),
    )  # fmt: skip
    commands = Path(sys.executable).parent
    quiet_run([f"{commands}/nnUNetv2_plan_and_preprocess", "-d", "950", "-c", "3d_fullres", "-npfp", "2", "-np", "2"])
    plans_path = root / "nnUNet_preprocessed" / DATASET / f"{PLANS}.json"
    if arguments.device == "cpu":
        plans = json.loads(plans_path.read_text())
        plans_path.write_text(json.dumps(small_plans(plans, name=PLANS, patch_voxels=arguments.patch_voxels)))
    quiet_run([f"{commands}/fvae-preprocess", "950", "-c", "3d_fullres", "--vae", "tiny", "-device", arguments.device])
    for name in arguments.vae:
        if name == "taesd":
            from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

            AutoencoderTiny().save_pretrained(root / name)
        elif name != "tiny":
            write_random_weights(name, root)


def quiet_run(command: list[str]) -> str:
    """Run a command and return its output, which is shown if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def variables_of(vae: str, root: Path) -> dict[str, str]:
    """Environment variables for the online trainer with a VAE of the table."""
    name = vae.removesuffix(EAGER)
    variables = {} if name == vae else {"nnUNet_compile": "f"}
    if name == "taesd":
        return variables | {"nnUNet_fvae_vae": f"diffusers:{root / name}"}
    weights = {} if name == "tiny" else {"nnUNet_fvae_weights": str(root / f"{name}.pth")}
    return variables | {"nnUNet_fvae_vae": name} | weights


def train(trainer_name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Warm up, train the iterations and return the measurements; runs in a process of its own."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from torch._dynamo.utils import counters

    from fvae_nnunet import trainers

    class_ = getattr(trainers, trainer_name, nnUNetTrainer)
    on_gpu = arguments.device == "cuda"
    if on_gpu:
        torch.backends.cudnn.benchmark = True  # as nnUNetv2_train
    floor = floor_seconds_per_sample(arguments) if trainer_name == ONLINE else None
    plans, dataset_json = (read_preprocessed(name) for name in (PLANS, "dataset"))
    trainer = class_(
        plans | {"continue_training": False}, "3d_fullres", 0, dataset_json, torch.device(arguments.device)
    )
    trainer.on_train_start()
    drawn: list[int] = []

    def iterate(count: int) -> None:
        trainer.on_train_epoch_start()
        for _ in range(count):
            trainer.train_step(next(trainer.dataloader_train))
            drawn.append(len(trainer.last_draw.samples) if trainer_name == ONLINE else 0)
        if on_gpu:
            torch.cuda.synchronize()

    iterate(arguments.warm_up)
    drawn.clear()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    with gpu_use(on_gpu) as use:
        started, started_cpu = time.perf_counter(), time.process_time()
        iterate(arguments.iterations)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
    peak = torch.cuda.max_memory_allocated() if on_gpu else largest_resident_bytes()
    trainer.on_train_end()
    return {
        "seconds": seconds / arguments.iterations,
        "cpu_seconds": cpu_seconds / arguments.iterations,
        "mib": peak / 2**20,
        "use": statistics.mean(use) if use else None,
        "drawn": sum(drawn) / arguments.iterations,
        "floor": None if floor is None else floor * sum(drawn) / arguments.iterations,
        "patch": list(trainer.configuration_manager.patch_size),
        "batch": trainer.batch_size,
        "graph_breaks": counters["graph_break"].total(),
    }


def largest_resident_bytes() -> int:
    """Largest resident set of this process; ``getrusage`` would include that of the process which started it."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def read_preprocessed(name: str) -> dict[str, Any]:
    """A JSON file of the preprocessed dataset."""
    return read_json(nnunet_folder("nnUNet_preprocessed") / DATASET / f"{name}.json")


def floor_seconds_per_sample(arguments: argparse.Namespace) -> float:
    """The VAE's arithmetic on one patch, divided by the measured rate of a matrix product in its precision."""
    import torch
    from benchmark_reconstruction import matmul_tflops
    from torch.utils.flop_counter import FlopCounterMode

    from fvae_nnunet.reconstruction.windows import slice_windows
    from fvae_nnunet.training.online_vae import load_training_vae

    slices, height, width = read_preprocessed(PLANS)["configurations"]["3d_fullres"]["patch_size"]
    device = torch.device(arguments.device)
    loaded = load_training_vae(Path(), str, device=device)
    vae: Any = loaded.vae
    dtype, spec, settings = vae.dtype, vae.spec, loaded.settings
    vae._module.to("meta")  # shapes only
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for start, stop in slice_windows(slices, settings.window_slices, settings.overlap_slices):
            shape = spec.padded_slices(stop - start), spec.padded_inplane(height), spec.padded_inplane(width)
            vae._decode(vae._encode(torch.empty(1, 1, *shape, dtype=dtype, device="meta"), None))
    return counter.get_total_flops() / 1e12 / matmul_tflops(device, dtype)


@contextmanager
def gpu_use(on_gpu: bool) -> Iterator[list[float]]:
    """Yield a list, filled with nvidia-smi's samples of GPU use in per cent, five per second; empty without it."""
    samples: list[float] = []
    if not on_gpu or shutil.which("nvidia-smi") is None:
        yield samples
        return
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-i", "0", "-lms", "200"]
    with subprocess.Popen(query, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        reader = threading.Thread(target=lambda: samples.extend(float(line) for line in process.stdout or ()))
        reader.start()
        try:
            yield samples
        finally:
            process.terminate()
            reader.join()


def print_table(rows: dict[tuple[str, str], list[dict[str, Any]]], arguments: argparse.Namespace) -> None:
    first = next(iter(rows.values()))
    size = f"patch {'x'.join(map(str, first[0]['patch']))}, batch {first[0]['batch']}"
    print(f"{machine(arguments.device)}; {size}; {arguments.iterations} iterations, median of {arguments.rounds}\n")
    memory = "GPU memory, MiB" if arguments.device == "cuda" else "memory, MiB"
    print(f"| trainer | VAE | ms per iteration | ratio | range of the ratio | CPU time, ms | ratio | {memory} | "
          "GPU use | samples drawn | floor, ms | excess in floors | graph breaks |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    base, base_cpu = (statistics.median(run[key] for run in first) for key in ("seconds", "cpu_seconds"))
    for (trainer, vae), runs in rows.items():
        seconds, cpu_seconds = (statistics.median(run[key] for run in runs) for key in ("seconds", "cpu_seconds"))
        ratios = [run["seconds"] / other["seconds"] for run, other in zip(runs, first, strict=True)]
        use = [run["use"] for run in runs if run["use"] is not None]
        floors = [run["floor"] for run in runs if run["floor"]]
        floor = statistics.median(floors) if floors else None
        cells = [
            trainer, vae, f"{seconds * 1e3:.0f}", f"{seconds / base:.3f}", f"{min(ratios):.2f} to {max(ratios):.2f}",
            f"{cpu_seconds * 1e3:.0f}", f"{cpu_seconds / base_cpu:.3f}",
            f"{max(run['mib'] for run in runs):.0f}", f"{statistics.mean(use):.0f}%" if use else "",
            f"{statistics.mean(run['drawn'] for run in runs):.2f}" if floor else "",
            f"{floor * 1e3:.1f}" if floor else "", f"{(seconds - base) / floor:.1f}" if floor else "",
            str(max(run["graph_breaks"] for run in runs)),
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |")


def machine(device: str) -> str:
    import torch

    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-device", choices=("cuda", "cpu"), help="default: cuda if there is a GPU, else cpu")
    parser.add_argument("--cases", type=int, default=5)
    parser.add_argument("--shape", type=int, nargs=3, default=(160, 256, 256), metavar=("Z", "Y", "X"))
    parser.add_argument(
        "--vae", nargs="+", choices=VAES["cuda"],
        help="VAEs of the online trainer; default: all on CUDA, tiny and taesd on a CPU",
    )  # fmt: skip
    parser.add_argument(
        "--eager", action="store_true", help="also run the online trainer with neither network nor VAE compiled"
    )
    parser.add_argument("--iterations", type=int, default=100, help="measured iterations; default 100")
    parser.add_argument("--warm-up", type=int, default=10, help="iterations of the warm-up; default 10")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds; default 3")
    parser.add_argument("--patch-voxels", type=int, default=56_000, help="patch size on a CPU; default 56000")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.device is None:
        import torch

        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.child:
        print(json.dumps(train(arguments.child, arguments)))
        return 0
    arguments.vae = arguments.vae or VAES[arguments.device]

    root = Path(tempfile.mkdtemp(prefix="fvae_benchmark_"))
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {
        key: []
        for key in [("nnUNetTrainer", ""), ("nnUNetTrainerFVAE", "tiny"), *((ONLINE, vae) for vae in arguments.vae)]
        + [(ONLINE, f"{vae}{EAGER}") for vae in arguments.vae if arguments.eager]
    }
    try:
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            os.environ[variable] = str(root / variable)
        for variable in ("nnUNet_fvae_vae", "nnUNet_fvae_weights", "nnUNet_fvae_code", "nnUNet_fvae_view"):
            os.environ.pop(variable, None)
        prepare(root, arguments)
        for number in range(arguments.rounds):
            for (trainer, vae), runs in rows.items():
                print(f"round {number + 1}: {trainer} {vae}", file=sys.stderr)
                command = [
                    sys.executable, __file__, "--child", trainer, "-device", arguments.device,
                    "--iterations", str(arguments.iterations), "--warm-up", str(arguments.warm_up),
                ]  # fmt: skip
                with mock.patch.dict(os.environ, variables_of(vae, root) if trainer == ONLINE else {}):
                    runs.append(json.loads(quiet_run(command).splitlines()[-1]))
    finally:
        shutil.rmtree(root)
    print_table(rows, arguments)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
