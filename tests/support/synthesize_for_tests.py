"""fvae-synthesize with a model that paints, or with a real tiny one."""

from __future__ import annotations

import hashlib

import pytest
import torch
from painted_cases import PaintingModel

from fvae_nnunet.cli import synthesize
from fvae_nnunet.synthesis.model import folder as model_folder
from fvae_nnunet.synthesis.model import latent_diffusion as model

SIZE = ["--diameter-mm", "10", "14"]


@pytest.fixture
def paints(monkeypatch):
    """Lets the command use a model that paints; its arguments choose which."""

    def use(**options):
        found = PaintingModel(**options)
        monkeypatch.setattr(model_folder, "read_model", lambda folder: (found.settings, found.training))
        monkeypatch.setattr(model.LatentDiffusion, "load", lambda *arguments, **keywords: found)
        return found

    use()
    return use


def run(dataset, output, *arguments, n=2):
    options = ["--ldm", "model", "-n", str(n), "-o", str(output), "-np", "0", "-device", "cpu"]
    return synthesize.main([dataset.name, *options, *map(str, arguments)])


def files_of(folder):
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def a_tiny_model(folder, **settings):
    """A model folder with random weights and the embedded VAE."""
    from fvae_nnunet.synthesis.model.denoiser import LatentDenoiser
    from fvae_nnunet.vae import load_vae

    vae = load_vae("tiny")
    torch.manual_seed(0)
    channels = vae.spec.latent_channels
    denoiser = LatentDenoiser(latent_channels=channels, mask_encoding="onehot", classes=2, size="tiny")
    content = {
        "vae": "tiny",
        "weights_sha256": vae.weights_sha256,
        "latent_channels": channels,
        "precision": "float32",
        "hu_window": (-1000.0, 1000.0),
        "window_slices": 8,
        "inplane_pixels": 48,
        "spacing_mm": None,
        "mask_encoding": "onehot",
        "class_names": ("organ", "tumour"),
        "latent_mean": (0.0,) * channels,
        "latent_std": (1.0,) * channels,
        "prediction": "epsilon",
        "text_encoder": None,
        "text_width": None,
        "organ": "label:pancreas",
    }
    made_with = {"training_cases": ["phantom_000", "phantom_001"]}
    model_folder.save_model(folder, denoiser, model_folder.ModelSettings(**content | settings), made_with)
    return folder
