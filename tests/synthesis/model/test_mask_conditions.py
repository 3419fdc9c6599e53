"""Class maps at latent resolution."""

from __future__ import annotations

import pytest
import torch

from fvae_nnunet.synthesis.model.mask_conditions import cells_of, class_shares, grey_condition
from fvae_nnunet.synthesis.model.scale import standardise, unstandardise
from fvae_nnunet.vae import load_vae
from fvae_nnunet.vae.base import VAESpec

IMAGE = VAESpec("image", inplane_stride=2, latent_channels=4)
CAUSAL = VAESpec(
    "causal", inplane_stride=2, latent_channels=4, slice_stride=4, slice_offset=1, window_slices=9, causal=True
)
BLOCKS = VAESpec("blocks", inplane_stride=2, latent_channels=4, slice_stride=4, window_slices=8)


def test_shares_of_an_image_vae_by_hand():
    class_map = torch.tensor(
        [[[0, 0, 1, 1], [0, 0, 1, 2], [2, 2, 0, 1], [2, 2, 2, 1]], [[0] * 4] * 4], dtype=torch.uint8
    )
    shares = class_shares(class_map[None], IMAGE, classes=2).dense(2)
    assert shares.shape == (1, 3, 2, 2, 2) and shares.dtype == torch.float32
    assert shares[0, 0, 0].tolist() == [[1.0, 0.0], [0.0, 0.25]]
    assert shares[0, 1, 0].tolist() == [[0.0, 0.75], [0.0, 0.5]]
    assert shares[0, 2, 0].tolist() == [[0.0, 0.25], [1.0, 0.25]]
    assert torch.equal(shares[0, :, 1], torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 2, 2))


def test_first_latent_slice_of_a_causal_vae_codes_one_slice():
    class_map = torch.zeros(1, 9, 2, 2, dtype=torch.uint8)
    class_map[0, 0] = 1  # latent slice 0: slice 0
    class_map[0, 4, 0, 0] = 2  # latent slice 1: slices 1 to 4, one of 16 voxels
    class_map[0, 5:7] = 2  # latent slice 2: slices 5 to 8, half of them
    shares = class_shares(class_map, CAUSAL, classes=2).dense(2)
    assert shares[0, :, :, 0, 0].T.tolist() == [[0, 1, 0], [15 / 16, 0, 1 / 16], [0.5, 0, 0.5]]


def test_vae_of_whole_blocks():
    class_map = torch.zeros(1, 8, 2, 2, dtype=torch.uint8)
    class_map[0, 3] = 1
    shares = class_shares(class_map, BLOCKS, classes=1).dense(1)
    assert shares[0, :, :, 0, 0].T.tolist() == [[0.75, 0.25], [1, 0]]


def test_a_causal_window_of_one_slice():
    shares = class_shares(torch.ones(1, 1, 2, 2, dtype=torch.uint8), CAUSAL, classes=1).dense(1)
    assert shares.flatten().tolist() == [0.0, 1.0]


def test_shares_sum_to_one():
    class_map = torch.randint(0, 4, (2, 9, 8, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shares = class_shares(class_map, CAUSAL, classes=3).dense(3)
    assert shares.shape == (2, 4, 3, 4, 3)
    torch.testing.assert_close(shares.sum(1), torch.ones(2, 3, 4, 3))


def test_vae_encoding_is_the_latent_of_a_grey_map():
    vae = load_vae("tiny")
    class_map = torch.zeros(1, 2, 16, 16, dtype=torch.uint8)
    class_map[0, 0, :8] = 1
    class_map[0, 1] = 2
    condition = grey_condition(class_map, vae, classes=2)
    grey = torch.full((1, 1, 2, 16, 16), -1.0)
    grey[0, 0, 0, :8] = 0.0
    grey[0, 0, 1] = 1.0
    assert torch.equal(condition, vae.encode(grey))
    assert condition.shape == (1, 16, 2, 2, 2)


def test_cells_with_a_voxel_in_the_region():
    region = torch.zeros(1, 9, 4, 4, dtype=torch.bool)
    region[0, 0, 1, 1] = region[0, 4, 2, 3] = region[0, 5, 0, 2] = True
    cells = cells_of(region, CAUSAL)
    assert cells.shape == (1, 3, 2, 2) and cells.dtype == torch.bool
    assert cells.nonzero().tolist() == [[0, 0, 0, 0], [0, 1, 1, 1], [0, 2, 0, 1]]


@pytest.mark.parametrize(
    ("class_map", "message"),
    [
        (torch.zeros(1, 1, 2, 2), "uint8"),
        (torch.zeros(1, 2, 2, dtype=torch.uint8), "uint8"),
        (torch.zeros(1, 4, 2, 2, dtype=torch.uint8), "4 x 2 x 2"),
        (torch.zeros(1, 5, 3, 2, dtype=torch.uint8), "5 x 3 x 2"),
        (torch.full((1, 5, 2, 2), 3, dtype=torch.uint8), "has class 3"),
    ],
)
def test_wrong_class_maps_are_refused(class_map, message):
    with pytest.raises(ValueError, match=message):
        class_shares(class_map, CAUSAL, classes=2).dense(2)


def test_latent_scale_by_hand():
    latent = torch.tensor([3.0, -1.0], dtype=torch.float16).view(1, 2, 1, 1, 1)
    scaled = standardise(latent, (1.0, 0.0), (4.0, 0.5))
    assert scaled.flatten().tolist() == [0.5, -2.0] and scaled.dtype == torch.float32
    assert unstandardise(scaled, (1.0, 0.0), (4.0, 0.5)).flatten().tolist() == [3.0, -1.0]
    with pytest.raises(ValueError, match="3 channels"):
        standardise(latent, (1.0,) * 3, (1.0,) * 3)
