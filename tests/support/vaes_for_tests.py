"""A VAE of every kind, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from identity_vae import IdentityVAE
from ivvae_for_tests import tiny_state as ivvae_state
from leanvae_for_tests import random_state as leanvae_state
from maisi_for_tests import library_model as maisi_model
from medvae_for_tests import random_state as medvae_state
from tiny_models import taef2_state_dicts, tiny_kl, tiny_taesd, tiny_wan
from wfvae_for_tests import random_state as wfvae_state
from wfvae_for_tests import write_folder as write_wfvae

from fvae_nnunet.vae import FrozenVAE, load_vae

Maker = Callable[..., FrozenVAE]


def make_taef2(folder: Path, **options: Any) -> FrozenVAE:
    for part, state in zip(("encoder", "decoder"), taef2_state_dicts(), strict=True):
        torch.save(state, folder / f"taef2_{part}.pth")
    return load_vae("taef2", weights=folder, **options)


def make_diffusers(model: Any) -> Maker:
    def make(folder: Path, **options: Any) -> FrozenVAE:
        model.save_pretrained(folder / "model")
        return load_vae(f"diffusers:{folder / 'model'}", **options)

    return make


def make_wan(name: str) -> Maker:
    def make(folder: Path, **options: Any) -> FrozenVAE:
        tiny_wan(residual=name == "wan2.2").save_pretrained(folder)
        return load_vae(name, weights=folder, **options)

    return make


def make_identity(folder: Path, **options: Any) -> FrozenVAE:
    return IdentityVAE(slice_stride=4, slice_offset=1, inplane_stride=16, **options)


def make_file(name: str, state: Callable[[], Any]) -> Maker:
    def make(folder: Path, **options: Any) -> FrozenVAE:
        torch.save(state(), folder / "weights.pth")
        return load_vae(name, weights=folder / "weights.pth", **options)

    return make


def make_wfvae(folder: Path, **options: Any) -> FrozenVAE:
    return load_vae("wf-vae", weights=write_wfvae(folder / "wf-vae", wfvae_state()), **options)


MAKERS: dict[str, Maker] = {
    "wan2.1": make_wan("wan2.1"),
    "wan2.2": make_wan("wan2.2"),
    "kl-grey": make_diffusers(tiny_kl(channels=1)),
    "kl-colour": make_diffusers(tiny_kl(channels=3, force_upcast=False)),
    "taesd": make_diffusers(tiny_taesd()),
    "taef2": make_taef2,
    "leanvae": make_file("leanvae", lambda: {"state_dict": leanvae_state()}),
    "iv-vae": make_file("iv-vae", ivvae_state),
    "wf-vae": make_wfvae,
    "medvae": make_file("medvae", lambda: {"state_dict": medvae_state()}),
    "maisi": make_file("maisi", lambda: maisi_model().state_dict()),
    "identity": make_identity,
}
