"""docs/own_vae.md, as it is written: its module and its entry are all that a VAE needs."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from fvae_nnunet.errors import UserError
from fvae_nnunet.vae import known, load_vae, registry

PAGE = (Path(__file__).parents[2] / "docs" / "own_vae.md").read_text()
MODULE, ENTRY = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def blocks(monkeypatch):
    """The page's VAE, known by its name."""
    module = types.ModuleType("fvae_nnunet.vae.blocks")
    exec(MODULE, module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    entry = eval(ENTRY, vars(known).copy())
    monkeypatch.setattr(registry, "KNOWN", (*known.KNOWN, entry))
    return module


def test_the_vae_of_the_page_codes_with_the_weights_that_it_is_given(blocks, tmp_path):
    network = blocks._network()
    save_file(network.state_dict(), tmp_path / "blocks.safetensors")
    vae = load_vae("blocks", weights=tmp_path / "blocks.safetensors")
    volume = torch.rand(2, 1, 5, 16, 24) * 2 - 1
    latent = vae.encode(volume)
    assert latent.shape == (2, 16, 5, 2, 3)
    weight, bias = network["encoder"].weight, network["encoder"].bias
    torch.testing.assert_close(latent[1, :, 3], functional.conv2d(volume[1, :, 3], weight, bias, stride=8).detach())
    decoded = vae.decode(latent)
    assert decoded.shape == volume.shape
    torch.testing.assert_close(decoded[1, :, 3], network["decoder"](latent[1, :, 3]).detach())


def test_other_weights_are_refused(blocks, tmp_path):
    save_file({"encoder.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"blocks: .*other\.safetensors is not one of its files"):
        load_vae("blocks", weights=tmp_path / "other.safetensors")
