"""Crops of natural images for training the embedded VAE `tiny`, and the noise that it must remove from them."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as functional
from tiny_vae_images import SIMPLE_DRAWINGS

MOST_NOISE = 0.12
CLEAN_SHARE = 0.25
SIMPLE_SHARE = 0.4
LIVELY_SHARE = 0.6
"""Share of the crops for which the one of two places with more contrast is used; much of a photo is sky or blurred."""
SOFTENED_SHARE = 0.5
REACH_PIXELS = 6
"""Radius of the kernels of noise and softening, which have standard deviations of at most 3 pixels."""


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def blurred(images: torch.Tensor, sd_y: torch.Tensor, sd_x: torch.Tensor) -> torch.Tensor:
    """Blur each image (B, 1, H, W) with its own in-plane Gaussian, standard deviations (B,) in pixels; 0: unchanged."""
    count, _, height, width = images.shape
    offsets = torch.arange(-REACH_PIXELS, REACH_PIXELS + 1, dtype=torch.float32)
    rows, columns = (torch.softmax(-0.5 * (offsets / sd[:, None].clamp_min(0.05)) ** 2, dim=1) for sd in (sd_y, sd_x))
    padded = functional.pad(images.transpose(0, 1), (REACH_PIXELS,) * 4, mode="reflect")
    along_y = functional.conv2d(padded, rows[:, None, :, None], groups=count)
    return functional.conv2d(along_y, columns[:, None, None, :], groups=count).reshape(count, 1, height, width)


class CropSampler:
    """Draws batches of augmented crops; all random numbers come from one seeded generator."""

    SCALES = (0.8, 0.5, 0.3, 0.18)
    """Below 1, so that the grain of the photographs does not become part of the clean image."""

    SHARES = (1.5, 2.0, 2.0, 1.5)
    """Frequency of each level, according to its size."""

    def __init__(self, images: dict[str, torch.Tensor], *, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.levels, weights = [], []
        for name, image in images.items():
            for scale, share in zip(self.SCALES, self.SHARES, strict=True):
                level = functional.interpolate(image[None], scale_factor=scale, mode="bilinear", antialias=True)[0]
                self.levels.append(level)
                weights.append(math.sqrt(level[0].numel()) * share * (SIMPLE_SHARE if name in SIMPLE_DRAWINGS else 1.0))
        self.weights = torch.tensor(weights, dtype=torch.float64)

    def with_seed(self, seed: int) -> CropSampler:
        """Sampler of the same images with other crops."""
        other = copy.copy(self)
        other.generator = torch.Generator().manual_seed(seed)
        return other

    def draw(self, count: int, size: int) -> torch.Tensor:
        """``count`` clean crops (count, 1, size, size), float32 in [-1, 1]."""
        images = self._toned(count, size)
        images = self._patched(images, self._toned(count, size), probability=0.35)
        images = self._on_background(images)
        return self._softened(images).clamp(-1, 1)

    def draw_noisy(self, count: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Noisy crops, clipped to [-1, 1] like CT to its window, and the clean crops."""
        clean = self.draw(count, size)
        return (clean + self._noise(count, size)).clamp(-1, 1), clean

    def _random(self, count: int) -> torch.Tensor:
        return torch.rand((count, 1, 1, 1), generator=self.generator)

    def _crop(self, size: int) -> torch.Tensor:
        generator = self.generator
        level = self.levels[int(torch.multinomial(self.weights, 1, generator=generator))]
        zoom = float(_uniform((), 0.5, 1.4, generator)) if torch.rand((), generator=generator) < 0.6 else 1.0
        side = min(max(16, round(size * zoom)), level.shape[1], level.shape[2])
        crop = self._piece(level, side)
        if torch.rand((), generator=generator) < LIVELY_SHARE:
            other = self._piece(level, side)
            crop = max(crop, other, key=lambda piece: float(piece.std()))
        mix = torch.rand(3, generator=generator) + 0.05
        grey = torch.einsum("c,chw->hw", mix / mix.sum(), crop)[None, None]
        if side != size:
            grey = functional.interpolate(grey, size=(size, size), mode="bilinear", antialias=True)
        turns = torch.rand(3, generator=generator) < 0.5
        if turns[0]:
            grey = grey.flip(2)
        if turns[1]:
            grey = grey.flip(3)
        return grey.transpose(2, 3) if turns[2] else grey

    def _piece(self, level: torch.Tensor, side: int) -> torch.Tensor:
        """Random piece (3, side, side) of a level (3, H, W)."""
        top, left = (int(torch.randint(n - side + 1, (), generator=self.generator)) for n in level.shape[1:])
        return level[:, top : top + side, left : left + side]

    def _toned(self, count: int, size: int) -> torch.Tensor:
        """Crops in [-1, 1] of random gamma, polarity, contrast and brightness; one in 30 is constant."""
        grey = torch.cat([self._crop(size) for _ in range(count)])
        draw = self._random
        grey = grey.clamp(1e-4, 1) ** torch.exp(1.4 * (draw(count) - 0.5))
        signed = torch.where(draw(count) < 0.3, 1 - 2 * grey, 2 * grey - 1)
        low_contrast = draw(count) < 0.55
        contrast = torch.where(low_contrast, torch.exp(-3 * draw(count)), 0.8 + 0.6 * draw(count))
        centre = torch.where(low_contrast, 1.6 * draw(count) - 0.8, 0.3 * draw(count) - 0.15)
        contrast = torch.where(draw(count) < 1 / 30, torch.zeros(()), contrast)
        return (centre + contrast * signed).clamp(-1, 1)

    def _soft_mask(self, count: int, size: int, offset: torch.Tensor) -> torch.Tensor:
        """Smooth random regions, 0 to 1 with an edge about one pixel wide; larger ``offset``, larger regions."""
        cells = int(torch.randint(2, 7, (), generator=self.generator))
        coarse = torch.randn((count, 1, cells, cells), generator=self.generator)
        field = functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True) + offset
        steepness = size / cells * (0.5 + 2.5 * self._random(count))
        return torch.sigmoid(field * steepness)

    def _patched(self, images: torch.Tensor, others: torch.Tensor, *, probability: float) -> torch.Tensor:
        count, _, size, _ = images.shape
        mask = self._soft_mask(count, size, 2 * self._random(count) - 1.5)
        mask = mask * (self._random(count) < probability)
        return images + mask * (others - images)

    def _softened(self, images: torch.Tensor) -> torch.Tensor:
        """Blur half of the images with a Gaussian of 0.4 to 1.2 pixels, like images of soft kernels."""
        sd = 0.4 + 0.8 * self._random(len(images)).flatten()
        softened = blurred(images, sd, sd)
        return torch.where(self._random(len(images)) < SOFTENED_SHARE, softened, images)

    def _noise(self, count: int, size: int) -> torch.Tensor:
        """Noise with one strength and grain per image, (count, 1, size, size); a quarter of the images gets none.

        Its standard deviation is up to 0.12, half of it below 0.03 (25 HU are 0.025 in a window of 2000 HU and 0.1 in
        one of 500). It is white or smoothed with Gaussian kernels of 0.3 to 1 pixel, one in ten elongated in one
        direction; in three of ten images the strength varies smoothly over the image.
        """
        sd = MOST_NOISE * self._random(count) ** 2 * (self._random(count) >= CLEAN_SHARE)
        kernel = (0.3 + 0.7 * self._random(count)) * (self._random(count) < 0.65)
        longer = torch.where(self._random(count) < 0.1, 0.5 + 1.5 * self._random(count), torch.zeros(()))
        along = (self._random(count) < 0.5).float()
        white = torch.randn((count, 1, size, size), generator=self.generator)
        noise = blurred(white, (kernel + along * longer).flatten(), (kernel + (1 - along) * longer).flatten())
        noise = noise / noise.std(dim=(2, 3), keepdim=True)
        varied = self._random(count) < 0.3
        field = 0.4 + 1.2 * self._soft_mask(count, size, torch.zeros(()))
        return sd * noise * torch.where(varied, field, torch.ones(()))

    def _on_background(self, images: torch.Tensor) -> torch.Tensor:
        """Add a smooth region of one value, mostly -1 like clipped air, to four in ten of the images."""
        count, _, size, _ = images.shape
        value = torch.where(self._random(count) < 0.8, torch.full((), -1.0), 2 * self._random(count) - 1)
        mask = self._soft_mask(count, size, 3 * self._random(count) - 1)
        mask = mask * (self._random(count) < 0.4)
        return images + mask * (value - images)
