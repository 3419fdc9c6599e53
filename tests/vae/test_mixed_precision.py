"""float32 for the encoder, bfloat16 for the decoder."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from vaes_for_tests import MAKERS

from fvae_nnunet.cli import reconstruct
from fvae_nnunet.errors import UserError
from fvae_nnunet.vae import load_vae
from fvae_nnunet.vae.mixed_precision import MixedPrecisionVAE


@pytest.fixture(scope="module")
def wans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan")
    return [MAKERS["wan2.1"](folder, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]


def test_latents_are_those_of_float32_and_volumes_those_of_bfloat16(wans):
    exact, rough = wans
    mixed = MixedPrecisionVAE(exact, rough)
    volume = torch.rand((1, 1, 5, 32, 48), generator=torch.Generator().manual_seed(0)) * 2 - 1
    latent = mixed.encode(volume)
    assert latent.dtype == torch.float32 and torch.equal(latent, exact.encode(volume))
    decoded = mixed.decode(latent)
    assert torch.equal(decoded, rough.decode(exact.encode(volume)))
    assert not torch.equal(decoded, exact.decode(latent))
    assert (mixed.precision, mixed.weights_sha256) == ("mixed", exact.weights_sha256)


def test_one_pass_over_a_volume_gives_the_values_of_all_slices_at_once(wans):
    mixed = MixedPrecisionVAE(*wans)
    volume = torch.rand((1, 1, 9, 32, 32), generator=torch.Generator().manual_seed(1)) * 2 - 1
    stream = mixed.open_stream()
    pieces = torch.cat([stream.reconstruct(volume[:, :, :5]), stream.reconstruct(volume[:, :, 5:])], 2)
    whole = mixed.decode(mixed.encode(volume))
    assert (pieces - whole).abs().max() < 0.02  # bfloat16


def test_the_command_records_it(tmp_path, capsys):
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(-1000, 1000, (3, 32, 32)).astype(np.int16))
    (tmp_path / "images").mkdir()
    sitk.WriteImage(image, str(tmp_path / "images" / "case.nii.gz"))
    command = ["-i", str(tmp_path / "images"), "-o", str(tmp_path / "out"), "--vae", "tiny", "-np", "0"]
    assert reconstruct.main([*command, "--precision", "mixed"]) == 0
    manifest = json.loads((tmp_path / "out" / "fvae_manifest" / "manifest.json").read_text())
    assert manifest["settings"]["precision"] == "mixed" == manifest["made_with"]["parameters"]["precision"]
    assert reconstruct.main([*command, "--precision", "mixed"]) == 0
    assert "1 already complete" in capsys.readouterr().out
    assert reconstruct.main(command) == 1
    error = capsys.readouterr().err
    assert "precision" in error and "damaged" not in error


def test_a_plain_denoiser_has_none():
    with pytest.raises(UserError, match="computes in float32; leave `precision` out"):
        load_vae("control:gaussian", strength=1.0, dtype="mixed")
