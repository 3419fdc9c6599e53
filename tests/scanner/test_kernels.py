"""Kernels: the filter of an image is the transfer function, and the same as another filter of the back-projection."""

import numpy as np
import pytest
from skimage.transform import iradon

from fvae_nnunet.errors import UserError
from fvae_nnunet.scanner.kernels import KERNELS, Kernel

PIXEL_MM = 0.8


@pytest.mark.parametrize("name", ["soft", "sharp"])
@pytest.mark.parametrize("cycles", [4, 12, 24])
def test_a_wave_changes_by_the_transfer_function(name, cycles):
    """A wave along a row of 128 pixels, far from the border."""
    wave = np.cos(2 * np.pi * cycles * np.arange(128) / 128)
    volume = np.broadcast_to(100 * wave, (1, 128, 128))
    changed = KERNELS[name].applied(volume, PIXEL_MM)[0, 64, 32:96]
    factor = changed @ wave[32:96] / (100 * wave[32:96] @ wave[32:96])
    assert factor == pytest.approx(KERNELS[name].transfer(np.array(cycles / 128 / PIXEL_MM)), rel=0.02)


def test_an_even_image_stays_and_the_own_kernel_changes_nothing():
    volume = np.full((2, 16, 16), 40, np.int16)
    for kernel in KERNELS.values():
        assert kernel.applied(volume, PIXEL_MM) == pytest.approx(40, abs=1e-4)
        assert kernel.transfer(np.zeros(1)) == pytest.approx(1)
    noise = np.random.default_rng(0).normal(0, 10, (2, 16, 16)).astype(np.float32)
    assert np.array_equal(KERNELS["own"].applied(noise, PIXEL_MM), noise)


@pytest.mark.parametrize("name", ["soft", "sharp"])
def test_it_is_the_same_as_another_filter_of_the_back_projection(name):
    kernel = KERNELS[name]
    rng = np.random.default_rng(3)
    sinogram = rng.normal(0, 1, (91, 96))
    angles = np.linspace(0, 180, 96, endpoint=False)
    size = 4 * len(sinogram)
    padded = np.pad(sinogram, ((0, size - len(sinogram)), (0, 0)))
    factor = kernel.transfer(np.fft.rfftfreq(size, PIXEL_MM))[:, None]
    filtered = np.fft.irfft(np.fft.rfft(padded, axis=0) * factor, size, axis=0)[: len(sinogram)]
    by_image = kernel.applied(iradon(sinogram, angles, 64, "cosine", circle=False)[None], PIXEL_MM)[0]
    by_sinogram = iradon(filtered, angles, 64, "cosine", circle=False)
    inside = np.s_[16:48, 16:48]
    assert np.corrcoef(by_image[inside].ravel(), by_sinogram[inside].ravel())[0, 1] > 0.98
    assert by_image[inside].std() == pytest.approx(by_sinogram[inside].std(), rel=0.08)


def test_what_no_kernel_is():
    with pytest.raises(UserError, match="0 or more"):
        Kernel(softened_mm=-1)
    with pytest.raises(UserError, match="finite"):
        Kernel(enhanced_mm=float("inf"))
