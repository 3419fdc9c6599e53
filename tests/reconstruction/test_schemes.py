from dataclasses import replace

import numpy as np
import pytest
import torch
from identity_vae import IdentityVAE
from tiny_models import tiny_wan, wan_vae

import fvae_nnunet.reconstruction.schemes as schemes
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.reconstruction.seams import seam_score
from fvae_nnunet.reconstruction.settings import ReconstructionSettings
from fvae_nnunet.reconstruction.volume import reconstruct_to_int16, reconstruct_volume
from fvae_nnunet.vae.base import VAEStream
from fvae_nnunet.vae.paper_scripts import PAPER_SCRIPTS

SLICES = [1, 2, 5, 64, 65, 66, 131]


def ct(shape, seed=0):
    return np.random.default_rng(seed).integers(-1200, 1201, size=shape).astype(np.int16)


class Mixer(IdentityVAE):
    """Blurs along y (so that axes matter); each slice also takes from the slice behind it unless causal."""

    def __init__(self, name, dtype=torch.float32, causal=False):
        offset = 0 if name == "videovae+" else 1
        super().__init__(slice_stride=4, slice_offset=offset, window_slices=65, causal=causal, dtype=dtype)
        self.spec = replace(self.spec, name=name)

    def decode(self, latent):
        mixed = (latent + latent.roll(1, dims=3) * 0.5) / 1.5
        if not self.spec.causal:
            mixed[:, :, :-1] += latent[:, :, 1:] * 0.25
        return mixed.float()


class SumStream(VAEStream):
    def __init__(self):
        self.total = 0

    def reconstruct(self, volume, generator=None):
        running = volume.cumsum(dim=2) * 0.01 + self.total
        self.total = running[:, :, -1:]
        return running


class RunningSum(IdentityVAE):
    """Causal: each slice becomes a hundredth of the sum of itself and all slices before it."""

    def __init__(self, window_slices=9):
        super().__init__(slice_stride=4, slice_offset=1, window_slices=window_slices, causal=True)

    def decode(self, latent):
        return latent.cumsum(dim=2) * 0.01

    def open_stream(self):
        return SumStream()


def by_the_papers_script(volume_hu, name, code):
    """The released scripts, written out: (z, y, x) int16 in, HU before the cast out, all windows padded to the full."""
    script = PAPER_SCRIPTS[name]
    xyz = volume_hu.transpose(2, 1, 0).astype(np.float64)  # as nibabel reads it
    clipped = np.clip(xyz, -1000, 1000)
    if script.unit_interval:
        video = torch.from_numpy((clipped + 1000.0) / 2000.0).permute(2, 0, 1)
        video = video.float() if name == "wf-vae" else video.to(script.dtype)
        video = (video * 2.0 - 1.0).to(script.dtype)
    else:
        video = torch.from_numpy(clipped / 1000.0).permute(2, 0, 1).to(script.dtype)
    window_slices, at_once = (64, 16) if name == "videovae+" else (65, 65)
    pieces = []
    for start in range(0, len(video), window_slices):
        window = video[start : start + window_slices]
        missing = window_slices - len(window)
        padded = torch.cat([window, window[-1:].expand(missing, -1, -1)])[None, None]
        decoded = torch.cat([code(chunk) for chunk in padded.split(at_once, dim=2)], dim=2)
        pieces.append(decoded[0, 0, : len(window)].to(script.dtype))
    result = torch.clamp(torch.cat(pieces), -1.0, 1.0)
    result = (result + 1.0) / 2.0 * 2000.0 - 1000.0 if script.unit_interval else result * 1000.0
    return result.permute(1, 2, 0).float().numpy().transpose(2, 1, 0)


@pytest.mark.parametrize("slices", SLICES)
@pytest.mark.parametrize("name", sorted(PAPER_SCRIPTS))
def test_the_papers_scheme_gives_the_values_of_the_papers_scripts(name, slices):
    volume = ct((slices, 8, 16))
    vae = Mixer(name, PAPER_SCRIPTS[name].dtype)
    settings = ReconstructionSettings.for_vae(vae.spec, scheme="paper", truncate=True)
    theirs = by_the_papers_script(volume, name, lambda x: Mixer(name).decode(x))
    ours = reconstruct_volume(vae, volume, settings)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert np.array_equal(reconstruct_to_int16(vae, volume, settings), np.trunc(ours).astype(np.int16))


def test_half_precision_really_rounds_on_the_way():
    volume = np.full((1, 8, 8), 777, dtype=np.int16)
    vae = IdentityVAE(slice_stride=4, slice_offset=1, window_slices=65, dtype=torch.bfloat16)
    vae.spec = replace(vae.spec, name="iv-vae")
    settings = ReconstructionSettings.for_vae(vae.spec, scheme="paper")
    # 1777 / 2000 = 0.8885 is 0.88671875 in bfloat16 (8 bits); times 2 minus 1 is exact; 0.88671875 * 2000 = 1773.4 is
    # 1776 there (steps of 8), minus 1000 is 776
    assert reconstruct_to_int16(vae, volume, settings).tolist() == np.full((1, 8, 8), 776).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("residual", [False, True], ids=["wan2.1", "wan2.2"])
@pytest.mark.parametrize("slices", [5, 66])
def test_wan_by_the_papers_scheme_equals_the_stock_model_called_as_the_scripts_do(residual, slices):
    name = "wan2.2" if residual else "wan2.1"
    stock = tiny_wan(residual=residual)
    volume = ct((slices, 16, 32), seed=1)

    def code(window):
        with torch.no_grad():
            latent = stock.encode(window.repeat(1, 3, 1, 1, 1)).latent_dist.mode()
            return stock.decode(latent).sample.mean(1, keepdim=True)

    vae = wan_vae(stock, name)
    settings = ReconstructionSettings.for_vae(vae.spec, scheme="paper")
    theirs = by_the_papers_script(volume, name, code)
    assert theirs.std() > 100
    difference = reconstruct_volume(vae, volume, settings) - theirs
    # of the order of what diffusers' own float32 is away from exact arithmetic with such weights
    assert np.sqrt(np.square(difference).mean()) < 2e-3
    assert np.abs(difference).max() < 2e-2


@pytest.mark.parametrize("slices", SLICES)
@pytest.mark.parametrize("step", [1, 9, 65])
def test_a_stream_is_one_pass_over_all_slices(slices, step):
    volume = ct((slices, 8, 8), seed=2).clip(-100, 100)
    vae = RunningSum()
    settings = ReconstructionSettings.for_vae(vae.spec, scheme="stream", window_slices=step)
    expected = (volume / 1000.0).cumsum(axis=0) * 10
    np.testing.assert_allclose(reconstruct_volume(vae, volume, settings), expected.clip(-1000, 1000), atol=1e-2)


@pytest.mark.parametrize("shape", [(1, 3, 5), (6, 17, 31), (66, 9, 40)])
@pytest.mark.parametrize("scheme", ["windows", "paper", "stream"])
def test_every_scheme_takes_planes_that_are_no_multiple_of_the_stride(scheme, shape):
    class Identity(IdentityVAE):
        def open_stream(self):
            stream = SumStream()
            stream.reconstruct = lambda volume, generator=None: volume
            return stream

    vae = Identity(slice_stride=4, slice_offset=1, inplane_stride=16, window_slices=65, causal=True)
    vae.spec = replace(vae.spec, name="wan2.2")
    volume = ct(shape).clip(-1000, 1000)
    settings = ReconstructionSettings.for_vae(vae.spec, scheme=scheme)
    assert np.array_equal(reconstruct_to_int16(vae, volume, settings), volume)


@pytest.mark.slow
@pytest.mark.parametrize("slices", SLICES)
@pytest.mark.parametrize("name", ["wan2.1", "wan2.2"])
def test_wan_takes_any_number_of_slices_in_every_scheme(name, slices):
    vae = wan_vae(tiny_wan(residual=name == "wan2.2"), name)
    volume = ct((slices, 5, 18), seed=3)
    results = {
        scheme: reconstruct_volume(
            vae, volume, ReconstructionSettings.for_vae(vae.spec, scheme=scheme), axis_order=(0, 2, 1)
        )
        for scheme in ("windows", "paper", "stream")
    }
    assert all(result.shape == volume.shape and np.isfinite(result).all() for result in results.values())
    # the first window has no past in any scheme
    np.testing.assert_allclose(results["paper"][:49], results["windows"][:49], atol=0.01)
    np.testing.assert_allclose(results["paper"][:65], results["stream"][:65], atol=0.01)
    if slices <= 65:
        return
    assert not np.allclose(results["paper"][65], results["stream"][65], atol=1)
    assert not np.allclose(results["paper"][65], results["windows"][65], atol=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wan2.1", "wan2.2"])
def test_the_stream_of_wan_is_one_pass_whatever_its_steps(name):
    vae = wan_vae(tiny_wan(residual=name == "wan2.2"), name)
    volume = ct((69, 16, 16), seed=4)
    whole = ReconstructionSettings.for_vae(vae.spec, window_slices=69, overlap_slices=0)
    expected = reconstruct_volume(vae, volume, whole)
    assert expected.std() > 100
    for step in (1, 5, 17, 65):
        settings = ReconstructionSettings.for_vae(vae.spec, scheme="stream", window_slices=step)
        np.testing.assert_allclose(reconstruct_volume(vae, volume, settings), expected, atol=0.02)


def smooth_body(slices):
    z, y, x = np.mgrid[:slices, :16, :16] / 16
    return (300 * np.sin(2 * x + z) * np.cos(3 * y - z / 2)).astype(np.int16)


class Fading(RunningSum):
    """Causal and smooth: remembers with a decay, so that the slices behind a fresh start differ from those within."""

    def decode(self, latent):
        return self.open_stream().reconstruct(latent)

    def open_stream(self):
        class Memory(VAEStream):
            state = None

            def reconstruct(self, volume, generator=None):
                slices = []
                for slice_ in volume.unbind(dim=2):
                    self.state = slice_ if self.state is None else 0.8 * self.state + 0.2 * slice_
                    slices.append(0.5 * slice_ + 0.5 * self.state)
                return torch.stack(slices, dim=2)

        return Memory()


def test_seams_of_the_three_schemes():
    volume = smooth_body(100)
    vae = Fading(window_slices=65)
    vae.spec = replace(vae.spec, name="wan2.1")
    scores = {}
    for scheme in ("windows", "paper", "stream"):
        settings = ReconstructionSettings.for_vae(vae.spec, scheme=scheme)
        result = reconstruct_volume(vae, volume, settings, axis_order=(0, 2, 1))
        scores[scheme] = seam_score(volume, result, [65] if scheme != "windows" else [49])
    assert scores["paper"] > 5
    assert scores["windows"] < scores["paper"] / 2
    assert scores["stream"] == pytest.approx(1, abs=0.3)


class Drawing(IdentityVAE):
    def encode(self, volume, generator=None):
        if generator is None:
            return volume
        return volume + 0.1 * torch.randn(volume.shape, generator=generator)


def test_draws_depend_on_the_seed_and_the_case_alone():
    volume = ct((20, 8, 8))

    def draw(seed, case):
        vae = Drawing()
        return reconstruct_volume(vae, volume, ReconstructionSettings.for_vae(vae.spec, posterior_seed=seed), case=case)

    assert np.array_equal(draw(1, "a"), draw(1, "a"))
    assert not np.array_equal(draw(1, "a"), draw(1, "b"))
    assert not np.array_equal(draw(1, "a"), draw(2, "a"))
    without = reconstruct_volume(Drawing(), volume)
    assert 50 < np.abs(draw(1, "a") - without)[np.abs(without) < 500].mean() < 110  # 100 HU * sqrt(2 / pi) = 80


def test_small_planes_are_coded_together_on_a_gpu_and_values_stay(monkeypatch):
    class OnGPU(IdentityVAE):
        device = type("Device", (), {"type": "gpu"})()

        def encode(self, volume, generator=None):
            self.windows.append(tuple(volume.shape))
            return volume

    monkeypatch.setattr(
        schemes._Volume, "slices", lambda volume, start, stop: torch.from_numpy(volume.axial_hu[start:stop])
    )
    monkeypatch.setattr(schemes, "VOXELS_OF_A_CALL", 8 * 8 * 8 * 3)
    vae = OnGPU()
    volume = ct((60, 8, 8)).clip(-1000, 1000)
    assert np.array_equal(reconstruct_to_int16(vae, volume), volume)
    assert [shape[:3] for shape in vae.windows] == [(3, 1, 8), (2, 1, 8), (2, 1, 8), (1, 1, 4)]


def test_infinities_are_not_hidden_by_the_clamp():
    class Overflowing(IdentityVAE):
        def decode(self, latent):
            return latent + float("inf")

    with pytest.raises(UserError, match="not finite; use `precision=float32`"):
        reconstruct_volume(Overflowing(), ct((3, 8, 8)))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tiny", {"scheme": "paper"}, "no script for tiny"),
        ("wan2.1", {"scheme": "paper", "window_slices": 33}, "windows of 65 slices"),
        ("wan2.1", {"scheme": "paper", "overlap_slices": 8}, "has no overlap"),
        ("wan2.1", {"scheme": "paper", "hu_window": (-160, 240)}, "HU window -1000 1000 for wan2.1; omit"),
        ("wan2.1", {"scheme": "paper", "hu_window": (-175, 250)}, "HU window -1000 1000 for wan2.1; omit"),
        ("leanvae", {"scheme": "paper", "hu_window": (-160, 240)}, "HU window -1000 1000 or -175 250 for leanvae"),
        ("wan2.1", {"scheme": "stream", "overlap_slices": 8}, "has no overlap"),
        ("wan2.1", {"truncate": True}, "requires `scheme=paper`"),
        ("wan2.1", {"scheme": "stream", "window_slices": 0}, "at least one slice"),
    ],
)
def test_settings_that_a_scheme_excludes_are_refused(name, options, message):
    spec = replace(IdentityVAE(slice_stride=4, slice_offset=1, window_slices=65).spec, name=name)
    with pytest.raises(UserError, match=message):
        ReconstructionSettings.for_vae(spec, **options)


def test_the_second_script_for_leanvae_has_the_window_of_soft_tissue():
    spec = replace(IdentityVAE(slice_stride=4, slice_offset=1, window_slices=65).spec, name="leanvae")
    default = ReconstructionSettings.for_vae(spec, scheme="paper")
    second = ReconstructionSettings.for_vae(spec, scheme="paper", hu_window=(-175, 250))
    assert default.hu_window == (-1000, 1000)
    assert second == replace(default, hu_window=(-175.0, 250.0))


def test_a_vae_without_a_stream_says_so():
    vae = IdentityVAE()
    with pytest.raises(UserError, match="use `scheme=windows`"):
        reconstruct_volume(vae, ct((3, 8, 8)), ReconstructionSettings.for_vae(vae.spec, scheme="stream"))
