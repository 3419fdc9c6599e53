"""Train the embedded VAE `tiny`: a small diffusers AutoencoderKL for grey images, 8x8 compression, 16 latent channels.

It learns to denoise: its inputs are noisy crops of natural images, its targets the clean crops. No CT is used. The
length of the run is given in minutes, not in steps: the learning rate follows the elapsed time, so the schedule is
completed on any machine. It can be stopped at any time and resumes from its checkpoint if the same command is given
again. With the wallpapers listed in tiny_vae_images.py, starting from the weights of the previous version:

    python scripts/train_tiny_vae.py --minutes 50 --out NEW --checkpoint tiny.ckpt --bfloat16 \\
        --wallpapers wallpapers --start OLD --channels 16 48 80 96

The seed fixes the order of the crops and, without ``--start``, the initial weights. The number of steps depends on the
machine, so two runs give similar but not equal weights. Requires torch 2.9 or later (torch.optim.Muon).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from safetensors.torch import load_file
from tiny_vae_crops import CropSampler
from tiny_vae_held_out import NOISE, denoising_cases, denoising_errors_hu
from tiny_vae_images import HELD_OUT, held_out_pairs, load_images
from tqdm import tqdm

AutoencoderKL = Any  # diffusers' class, imported only when needed; type checkers do not know that it is a torch module

LATENT_CHANNELS = 16
PIXELS_PER_STEP = 8 * 64 * 64
CROP_SIZES = (64, 64, 64, 96, 96, 128, 128, 192)  # drawn uniformly; mixed, because GroupNorm uses the whole crop
FLOAT32_SHARE = 0.2  # last part of a bfloat16 run in float32, since bfloat16 has steps of 4 HU near -1
NORM_GROUPS = 8
KL_WEIGHT = 1e-4  # per latent element; the posterior noise is then far below the error
LEAST_ERROR = 0.004  # RMS error of a cell below which its weight in the loss does not increase further
CELL_PIXELS = 8
INITIAL_LOGVAR = -6.0
LEARNING_RATE, LAST_LEARNING_RATE = 2.5e-3, 1e-5
WARM_UP_SHARE = 0.02
EMA_DECAY = 0.999
SAVE_EVERY_MINUTES = 4.0


def build_model(channels: tuple[int, ...], *, norm_num_groups: int = NORM_GROUPS) -> AutoencoderKL:
    """Build a randomly initialised AutoencoderKL; four numbers of channels give 8x8 compression."""
    from diffusers import AutoencoderKL

    model: Any = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=norm_num_groups,
        mid_block_add_attention=False,
        sample_size=64,
        scaling_factor=1.0,  # save_model normalises the latent
        latents_mean=(0.0,) * LATENT_CHANNELS,
        latents_std=(1.0,) * LATENT_CHANNELS,
        force_upcast=False,
    )
    with torch.no_grad():  # start with a posterior narrower than the prior; its noise would hide the image for long
        model.quant_conv.bias[LATENT_CHANNELS:] = INITIAL_LOGVAR
    return model


def learning_rate(share: float, high: float = LEARNING_RATE) -> float:
    """Learning rate after ``share`` (0 to 1) of the time: linear warm-up to ``high``, then a cosine."""
    low = LAST_LEARNING_RATE
    if share < WARM_UP_SHARE:
        return high * max(share / WARM_UP_SHARE, 0.02)
    phase = min((share - WARM_UP_SHARE) / (1 - WARM_UP_SHARE), 1.0)
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * phase))


def loss_of(model: AutoencoderKL, noisy: torch.Tensor, clean: torch.Tensor, *, bfloat16: bool) -> torch.Tensor:
    """0.5 * RMSE of each cell + 10 * MSE of a drawn reconstruction of ``noisy`` against ``clean``, plus weighted KL.

    Both are (B, 1, H, W) in [-1, 1], with H and W multiples of a cell's 8 pixels. The root per cell gives flat places,
    where errors are small, as much weight as edges; MSE alone would leave noise there for slightly more sharpness.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        posterior = model.encode(noisy).latent_dist
        decoded = model.decode(posterior.sample()).sample
    squared = functional.avg_pool2d((decoded.float() - clean).square(), CELL_PIXELS)
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return 0.5 * (squared + LEAST_ERROR**2).sqrt().mean() + 10 * squared.mean() + KL_WEIGHT * divergence


@torch.no_grad()
def psnr_db(model: AutoencoderKL, image: torch.Tensor) -> float:
    """PSNR of the posterior mode's reconstruction of one image (1, 1, H, W) in [-1, 1], range 2."""
    decoded = model.decode(model.encode(image).latent_dist.mode()).sample
    return 10 * math.log10(4 / float((decoded - image).square().mean()))


@torch.no_grad()
def normalise_latent(model: AutoencoderKL, batches: list[torch.Tensor]) -> dict[str, float]:
    """Fold the latent's mean and standard deviation over ``batches`` into the two 1x1 convolutions around it.

    Afterwards every latent channel has mean 0 and standard deviation 1 on such images and the reconstruction of the
    posterior mode is the same. Returns the spread before, and the typical posterior standard deviation after.
    """
    posteriors = [model.encode(batch).latent_dist for batch in batches]
    flat = torch.cat([p.mean.transpose(0, 1).flatten(1) for p in posteriors], dim=1)
    logvar = torch.cat([p.logvar.transpose(0, 1).flatten(1) for p in posteriors], dim=1)
    mean, std = flat.mean(dim=1), flat.std(dim=1)
    quant, post = model.quant_conv, model.post_quant_conv
    channels = len(mean)
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std[None, :, None, None]
    quant.weight[:channels] /= std[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.bias[channels:] -= 2 * std.log()
    return {
        "raw_std_min": float(std.min()),
        "raw_std_max": float(std.max()),
        "posterior_std_median": float((0.5 * logvar - std.log()[:, None]).exp().median()),
    }


def save_model(model: AutoencoderKL, folder: Path, batches: list[torch.Tensor]) -> dict[str, float]:
    """Write config.json and float16 weights with a normalised latent into ``folder``, each file atomically."""
    normalised = copy.deepcopy(model).eval()
    statistics = normalise_latent(normalised, batches)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        normalised.half().save_pretrained(temporary)
        config_path = Path(temporary) / "config.json"
        config = json.loads(config_path.read_text())
        config.pop("_name_or_path", None)
        config_path.write_text(json.dumps(config, indent=2) + "\n")
        for name in ("diffusion_pytorch_model.safetensors", "config.json"):
            shutil.copymode(config_path, Path(temporary) / name)
            (Path(temporary) / name).replace(folder / name)
    return statistics


def widened(weights: dict[str, torch.Tensor], wider: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Expand ``weights`` of a network, float32, to more channels at some levels, with the shapes of ``wider``.

    Additional channels are copies of others in their group of GroupNorm, and copies share the outgoing weights (Chen et
    al., Net2Net, ICLR 2016) at random, so that they diverge. The function is nearly the same, since the statistics of
    the groups change slightly.
    """
    taken = {}
    for name, weight in weights.items():
        shape = wider[name].shape
        rows = _copied(weight.shape[0], shape[0])
        weight = weight.float()[rows]
        if weight.ndim > 1:
            columns = _copied(weight.shape[1], shape[1])
            share = 0.5 + torch.rand(shape[:2])
            shares = torch.zeros(shape[0], weight.shape[1]).index_add_(1, columns, share)[:, columns]
            weight = weight[:, columns] * (share / shares)[:, :, None, None]
        taken[name] = weight
    return taken


def _copied(channels: int, wanted: int, groups: int = NORM_GROUPS) -> torch.Tensor:
    """Index of the source channel for each of ``wanted`` channels; each group is filled with its own channels."""
    if channels == wanted:
        return torch.arange(channels)
    old, new = channels // groups, wanted // groups
    within = torch.arange(new) % old
    return torch.cat([group * old + (within + (torch.arange(new) >= old) * group) % old for group in range(groups)])


class Run:
    """State in a checkpoint: model, its moving average, optimizer, random state, steps and seconds."""

    def __init__(self, channels: tuple[int, ...], seed: int) -> None:
        torch.manual_seed(seed)
        self.channels = channels
        self.model = build_model(channels)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        kernels = [p for p in self.model.parameters() if p.ndim == 4 and len(p) > 1]
        others = [p for p in self.model.parameters() if p.ndim != 4 or len(p) == 1]
        self.kernels = [(p, torch.nn.Parameter(p.detach().flatten(1))) for p in kernels]  # Muon takes matrices: views
        rate = LEARNING_RATE
        self.optimizers = [
            torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.99), weight_decay=0.0),
            torch.optim.Muon(
                [view for _, view in self.kernels], lr=rate, weight_decay=1e-2, adjust_lr_fn="match_rms_adamw"
            ),
        ]
        self.steps = 0
        self.seconds = 0.0

    def start_from(self, folder: Path) -> None:
        """Start from the weights of a VAE with the same or fewer channels, including its posterior."""
        weights = load_file(folder / "diffusion_pytorch_model.safetensors")
        self.model.load_state_dict(widened(weights, self.model.state_dict()))
        self.average.load_state_dict(self.model.state_dict())

    def step(self, rate: float) -> None:
        """Take one step of both optimizers at this learning rate with the current gradients."""
        for kernel, view in self.kernels:
            view.grad = kernel.grad.flatten(1)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        self.steps += 1

    def update_average(self) -> None:
        decay = min(EMA_DECAY, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)

    def save(self, path: Path, sampler: CropSampler) -> None:
        state = {
            "channels": self.channels,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "steps": self.steps,
            "seconds": self.seconds,
            "crops": sampler.generator.get_state(),
            "torch": torch.get_rng_state(),
        }
        temporary = path.with_name(path.name + ".part")
        torch.save(state, temporary)
        temporary.replace(path)

    def load(self, path: Path, sampler: CropSampler) -> None:
        state = torch.load(path, weights_only=True)
        if tuple(state["channels"]) != self.channels:
            raise SystemExit(f"{path} was made with --channels {' '.join(map(str, state['channels']))}")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.steps, self.seconds = state["steps"], state["seconds"]
        sampler.generator.set_state(state["crops"])
        torch.set_rng_state(state["torch"])


class HeldOut:
    """Held-out photographs, clean and noisy, to evaluate an averaged model."""

    def __init__(self, images: dict[str, torch.Tensor]) -> None:
        self.pairs = held_out_pairs({name: images[name] for name in HELD_OUT})
        self.cases = denoising_cases(images)

    def figures(self, model: AutoencoderKL) -> dict[str, float]:
        """PSNR (dB) without noise, and errors (HU) at edges and in flat places with noise of 25 HU and without."""
        denoise = partial(self._denoised_hu, model)
        psnr = [psnr_db(model, image) for image in self.pairs.values()]
        found = {"psnr_db": sum(psnr) / len(psnr)}
        for what, noise in {"noisy": NOISE, "clean": None}.items():
            errors = denoising_errors_hu(self.cases, denoise, noise=noise)
            found |= {f"{what}_{place}_hu": error for place, error in errors.items()}
        return found

    @staticmethod
    @torch.no_grad()
    def _denoised_hu(model: AutoencoderKL, image_hu: np.ndarray) -> np.ndarray:
        grey = torch.from_numpy(image_hu[None].astype(np.float32) / 1000).clamp(-1, 1)
        padding = [-n % 8 for n in grey.shape[:1:-1]]
        padded = functional.pad(grey, (0, padding[0], 0, padding[1]), mode="replicate")
        decoded = model.decode(model.encode(padded).latent_dist.mode()).sample
        return 1000 * decoded[0, :, : grey.shape[2], : grey.shape[3]].numpy()


def save_all(run: Run, sampler: CropSampler, held_out: HeldOut, arguments: argparse.Namespace) -> None:
    """Save the checkpoint and the averaged weights, and print their results on the held-out images."""
    run.save(arguments.checkpoint, sampler)
    reference = sampler.with_seed(arguments.seed + 1)
    statistics = save_model(run.average, arguments.out, [reference.draw(16, 64) for _ in range(16)])
    figures = held_out.figures(run.average) | statistics
    parts = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
    tqdm.write(f"{run.seconds / 60:.1f} min, step {run.steps}: {parts}")
    sys.stdout.flush()


def train(run: Run, sampler: CropSampler, held_out: HeldOut, arguments: argparse.Namespace) -> None:
    """Train for ``arguments.minutes``, saving every few minutes and at the end."""
    total = arguments.minutes * 60
    saved_at = run.seconds
    bar = tqdm(total=round(total), initial=round(run.seconds), unit="s", mininterval=5)
    while run.seconds < total:
        began = time.perf_counter()
        share = run.seconds / total
        size = CROP_SIZES[int(torch.randint(len(CROP_SIZES), (), generator=sampler.generator))]
        noisy, clean = sampler.draw_noisy(max(2, round(PIXELS_PER_STEP / size**2)), size)
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        loss = loss_of(run.model, noisy, clean, bfloat16=arguments.bfloat16 and share < 1 - FLOAT32_SHARE)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        run.step(learning_rate(share, arguments.learning_rate))
        run.update_average()
        run.seconds += time.perf_counter() - began
        bar.update(round(run.seconds) - bar.n)
        if run.seconds - saved_at >= SAVE_EVERY_MINUTES * 60:
            saved_at = run.seconds
            save_all(run, sampler, held_out, arguments)
    bar.close()
    save_all(run, sampler, held_out, arguments)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train the embedded VAE `tiny` on natural images.")
    parser.add_argument("--out", type=Path, required=True, help="folder for config.json and the float16 weights")
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="training time including resumed parts (default 60)"
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint file; continued if it exists")
    parser.add_argument("--wallpapers", type=Path, help="folder with Debian's unpacked packages (tiny_vae_images.py)")
    parser.add_argument("--start", type=Path, help="folder of a VAE with as many or fewer channels to start from")
    parser.add_argument(
        "--channels", type=int, nargs=4, default=(16, 48, 80, 96), help="channels per resolution, finest first"
    )
    parser.add_argument(
        "--learning-rate", type=float, default=LEARNING_RATE, help=f"highest learning rate (default {LEARNING_RATE:g})"
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--bfloat16", action="store_true", help="bfloat16 in the first three quarters, where it is faster"
    )
    arguments = parser.parse_args(argv)

    torch.set_num_threads(arguments.threads)
    training, held_out = load_images(arguments.wallpapers)
    sampler = CropSampler(training, seed=arguments.seed)
    run = Run(tuple(arguments.channels), arguments.seed)
    if arguments.start is not None:
        run.start_from(arguments.start)
    if arguments.checkpoint.exists():
        run.load(arguments.checkpoint, sampler)
    parameters = sum(p.numel() for p in run.model.parameters())
    print(f"{parameters} parameters, {len(training)} images to train on, {len(held_out)} held out", flush=True)
    train(run, sampler, HeldOut(held_out), arguments)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
