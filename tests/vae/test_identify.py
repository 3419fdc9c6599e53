"""Which model a file of weights looks like, and what is said when it is another than the one asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ivvae_for_tests import tiny_state as ivvae_state
from leanvae_for_tests import random_state as leanvae_state
from maisi_for_tests import library_model as maisi_model
from medvae_for_tests import random_state as medvae_state
from safetensors.torch import save_file
from tiny_models import original_wan_state_dict, taef2_state_dicts, tiny_kl, tiny_wan
from wfvae_for_tests import random_state as wfvae_state

from fvae_nnunet.errors import UserError
from fvae_nnunet.vae import load_vae
from fvae_nnunet.vae.identify import model_of_file, model_of_state

STATES: dict[str, Callable[[], Any]] = {
    "wan2.1": lambda: original_wan_state_dict(tiny_wan()),
    "wan2.2": lambda: original_wan_state_dict(tiny_wan(residual=True)),
    "leanvae": leanvae_state,
    "wf-vae": wfvae_state,
    "iv-vae": ivvae_state,
    "maisi": lambda: maisi_model().state_dict(),
    "medvae": medvae_state,
    "taef2": lambda: taef2_state_dicts()[0],
}


@pytest.mark.parametrize("name", STATES)
def test_each_model_is_known_by_its_parameters(name: str, tmp_path: Path) -> None:
    state = STATES[name]()
    torch.save(state, tmp_path / "bare.pth")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "checkpoint.ckpt")
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "weights.safetensors")
    for file in sorted(tmp_path.iterdir()):
        assert model_of_file(file) == name, file.name


def test_a_training_checkpoint_of_leanvae_is_known(tmp_path: Path) -> None:
    state = {f"autoencoder.{key}": value for key, value in leanvae_state().items()}
    torch.save({"state_dict": state | {"gan_loss.weight": torch.ones(2)}}, tmp_path / "last.ckpt")
    assert model_of_file(tmp_path / "last.ckpt") == "leanvae"


def test_the_decoder_of_taef2_is_known() -> None:
    assert model_of_state(taef2_state_dicts()[1]) == "taef2"


@pytest.mark.parametrize("residual", [False, True])
def test_a_diffusers_folder_of_wan_is_known(residual: bool, tmp_path: Path) -> None:
    tiny_wan(residual=residual).save_pretrained(tmp_path)
    assert model_of_file(tmp_path) == ("wan2.2" if residual else "wan2.1")


def test_kernels_for_slices_make_no_medical_vae() -> None:
    assert model_of_state(tiny_kl().state_dict()) is None
    flat = {key: value[..., 0] if value.ndim == 5 else value for key, value in medvae_state().items()}
    assert model_of_state(flat) is None


def test_what_is_no_model_is_none(tmp_path: Path) -> None:
    torch.save({"network_weights": {"encoder.0.weight": torch.ones(2)}}, tmp_path / "checkpoint_final.pth")
    (tmp_path / "notes.pth").write_text("no weights")
    (tmp_path / "empty").mkdir()
    for place in ("checkpoint_final.pth", "notes.pth", "empty"):
        assert model_of_file(tmp_path / place) is None


@pytest.mark.parametrize(
    ("asked", "held"),
    [
        ("wan2.1", "wan2.2"),
        ("wan2.2", "wan2.1"),
        ("wan2.1", "leanvae"),
        ("leanvae", "iv-vae"),
        ("iv-vae", "wf-vae"),
        ("wf-vae", "wan2.1"),
        ("medvae", "maisi"),
        ("maisi", "medvae"),
    ],
)
def test_weights_of_another_model_are_called_by_their_name(asked: str, held: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(STATES[held](), path)
    with pytest.raises(UserError, match=rf"^{asked}: .*{held}.*`vae={held}`"):
        load_vae(asked, weights=path)
