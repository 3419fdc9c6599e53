"""Train the embedded VAE `tiny`: a small diffusers AutoencoderKL for grey images, 8x8 compression, 16 latent channels.

It sees only natural images that scikit-image, scikit-learn and matplotlib carry, cut and changed at random; no CT.
The run is measured in minutes, not in steps: the learning rate follows the elapsed time, so it ends well on any
machine. It can be stopped at any time and goes on from its checkpoint, if the same command is given again:

    python scripts/train_tiny_vae.py --minutes 60 --out fvae_nnunet/vae/tiny --checkpoint tiny.ckpt --bfloat16

The seed fixes the weights at the start and the order of the crops. The number of steps depends on the machine, so two
runs give similar weights, not equal ones. Needs torch 2.9 or newer (torch.optim.Muon).
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
from pathlib import Path
from typing import Any

import torch
from tiny_vae_images import CropSampler, held_out_pairs, load_images
from tqdm import tqdm

AutoencoderKL = Any  # diffusers' class, imported where it is made; type checkers do not see that it is a torch module

LATENT_CHANNELS = 16
PIXELS_PER_STEP = 8 * 64 * 64
CROP_SIZES = (48, 64, 64, 64, 96, 96, 128, 192)  # drawn evenly; mixed, because GroupNorm sees the whole crop
FLOAT32_SHARE = 0.25  # the last part of a bfloat16 run is in float32: bfloat16 steps near -1 are 4 HU wide
KL_WEIGHT = 1e-4  # per latent element; with 10 * MSE the posterior noise then costs about 59 dB, far below the error
INITIAL_LOGVAR = -6.0
LEARNING_RATE = (2.5e-3, 1e-5)
WARM_UP_SHARE = 0.02
EMA_DECAY = 0.999
SAVE_EVERY_MINUTES = 4.0


def build_model(channels: tuple[int, ...], *, norm_num_groups: int = 8) -> AutoencoderKL:
    """A randomly initialised AutoencoderKL; four numbers of channels give 8x8 compression."""
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
    with torch.no_grad():  # start with a posterior narrower than the prior, else its noise hides the image for long
        model.quant_conv.bias[LATENT_CHANNELS:] = INITIAL_LOGVAR
    return model


def learning_rate(share: float) -> float:
    """The rate after ``share`` (0 to 1) of the time: linear warm-up, then a cosine."""
    high, low = LEARNING_RATE
    if share < WARM_UP_SHARE:
        return high * max(share / WARM_UP_SHARE, 0.02)
    phase = min((share - WARM_UP_SHARE) / (1 - WARM_UP_SHARE), 1.0)
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * phase))


def loss_of(model: AutoencoderKL, images: torch.Tensor, *, bfloat16: bool) -> torch.Tensor:
    """0.5 * L1 + 10 * MSE of a drawn reconstruction of ``images`` (B, 1, H, W) in [-1, 1], plus the weighted KL."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        posterior = model.encode(images).latent_dist
        decoded = model.decode(posterior.sample()).sample
    error = decoded.float() - images
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return 0.5 * error.abs().mean() + 10 * error.square().mean() + KL_WEIGHT * divergence


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
    """Write config.json and float16 weights into ``folder``, latent normalised, each file replaced as a whole."""
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


class Run:
    """What a checkpoint holds: model, its moving average, optimizer, random state, steps and seconds."""

    def __init__(self, channels: tuple[int, ...], seed: int) -> None:
        torch.manual_seed(seed)
        self.channels = channels
        self.model = build_model(channels)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        kernels = [p for p in self.model.parameters() if p.ndim == 4 and len(p) > 1]
        others = [p for p in self.model.parameters() if p.ndim != 4 or len(p) == 1]
        self.kernels = [(p, torch.nn.Parameter(p.detach().flatten(1))) for p in kernels]  # Muon takes matrices: views
        rate = LEARNING_RATE[0]
        self.optimizers = [
            torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.99), weight_decay=0.0),
            torch.optim.Muon(
                [view for _, view in self.kernels], lr=rate, weight_decay=1e-2, adjust_lr_fn="match_rms_adamw"
            ),
        ]
        self.steps = 0
        self.seconds = 0.0

    def step(self, rate: float) -> None:
        """One step of both optimizers at this learning rate, from the gradients that are there."""
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


def save_all(run: Run, sampler: CropSampler, arguments: argparse.Namespace) -> None:
    """Save the checkpoint and the averaged weights, and print how well they do on the held-out images."""
    training, held_out = load_images()
    reference = CropSampler(training, seed=arguments.seed + 1)
    run.save(arguments.checkpoint, sampler)
    statistics = save_model(run.average, arguments.out, [reference.draw(16, 64) for _ in range(16)])
    figures = {name: psnr_db(run.average, image) for name, image in held_out_pairs(held_out).items()}
    mean_db = sum(figures.values()) / len(figures)
    parts = ", ".join(f"{name} {value:.2f}" for name, value in (figures | statistics).items())
    tqdm.write(f"{run.seconds / 60:.1f} min, step {run.steps}: held out {mean_db:.2f} dB ({parts})")
    sys.stdout.flush()


def train(run: Run, sampler: CropSampler, arguments: argparse.Namespace) -> None:
    """Train until ``arguments.minutes`` are used, saving every few minutes and at the end."""
    total = arguments.minutes * 60
    saved_at = run.seconds
    bar = tqdm(total=round(total), initial=round(run.seconds), unit="s", mininterval=5)
    while run.seconds < total:
        began = time.perf_counter()
        share = run.seconds / total
        size = CROP_SIZES[int(torch.randint(len(CROP_SIZES), (), generator=sampler.generator))]
        images = sampler.draw(max(2, round(PIXELS_PER_STEP / size**2)), size)
        loss = loss_of(run.model, images, bfloat16=arguments.bfloat16 and share < 1 - FLOAT32_SHARE)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        run.step(learning_rate(share))
        run.update_average()
        run.seconds += time.perf_counter() - began
        bar.update(round(run.seconds) - bar.n)
        if run.seconds - saved_at >= SAVE_EVERY_MINUTES * 60:
            saved_at = run.seconds
            save_all(run, sampler, arguments)
    bar.close()
    save_all(run, sampler, arguments)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train the embedded VAE `tiny` on natural images.")
    parser.add_argument("--out", type=Path, required=True, help="folder for config.json and the float16 weights")
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="training time, resumed parts included (default 60)"
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint file; continued if it exists")
    parser.add_argument("--channels", type=int, nargs=4, default=(16, 32, 64, 96), help="per resolution, finest first")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--bfloat16", action="store_true", help="bfloat16 in the first three quarters, where it is faster"
    )
    arguments = parser.parse_args(argv)

    torch.set_num_threads(arguments.threads)
    training, held_out = load_images()
    sampler = CropSampler(training, seed=arguments.seed)
    run = Run(tuple(arguments.channels), arguments.seed)
    if arguments.checkpoint.exists():
        run.load(arguments.checkpoint, sampler)
    parameters = sum(p.numel() for p in run.model.parameters())
    print(f"{parameters} parameters, {len(training)} images to train on, {len(held_out)} held out", flush=True)
    train(run, sampler, arguments)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
