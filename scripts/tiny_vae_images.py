"""The natural images on which the embedded VAE `tiny` is trained, and the crops drawn from them.

All are carried by installed packages (scikit-image, scikit-learn, matplotlib). Medical and microscopy images of these
packages are left out on purpose.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as functional

SKIMAGE_NAMES = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "clock",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "moon",
    "page",
    "rocket",
    "text",
)
HELD_OUT = ("camera", "coins", "flower")


def load_images() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Images to train on and held-out images, by name: float32 (3, H, W) in [0, 1]; grey ones have equal channels."""
    from matplotlib import cbook
    from PIL import Image
    from skimage import data
    from sklearn.datasets import load_sample_image

    arrays = {name: getattr(data, name)() for name in SKIMAGE_NAMES}

    arrays["china"] = load_sample_image("china.jpg")
    arrays["flower"] = load_sample_image("flower.jpg")
    grace_hopper = Image.open(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))
    arrays["grace_hopper"] = np.asarray(grace_hopper.convert("RGB"))
    images = {}
    for name, array in arrays.items():
        colour = array[..., :3] if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2)
        images[name] = torch.from_numpy(np.ascontiguousarray(colour.transpose(2, 0, 1))).float() / 255
    held_out = {name: images.pop(name) for name in HELD_OUT}
    return images, held_out


def held_out_pairs(images: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Two test images of each: as it is, and with a third of the contrast inside an ellipse on a -1 background.

    Each is (1, 1, H, W) in [-1, 1], H and W cut to multiples of 8.
    """
    pairs = {}
    for name, image in images.items():
        grey = image.mean(dim=0)
        height, width = (n // 8 * 8 for n in grey.shape)
        full = 2 * grey[:height, :width] - 1
        y = torch.linspace(-1, 1, height)[:, None]
        x = torch.linspace(-1, 1, width)[None, :]
        island = torch.where((y / 0.7) ** 2 + (x / 0.8) ** 2 < 1, full / 3, torch.tensor(-1.0))
        pairs[name] = full[None, None]
        pairs[f"{name}_island"] = island[None, None]
    return pairs


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


class CropSampler:
    """Draws batches of changed crops; all randomness comes from one seeded generator."""

    SCALES = (1.0, 0.7, 0.5, 0.35)

    def __init__(self, images: dict[str, torch.Tensor], *, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        levels = []
        for image in images.values():
            for scale in self.SCALES:
                levels.append(
                    functional.interpolate(image[None], scale_factor=scale, mode="bilinear", antialias=True)[0]
                    if scale != 1.0
                    else image
                )
        self.levels = levels
        sides = torch.tensor([[level.shape[1], level.shape[2]] for level in levels], dtype=torch.float64)
        self.weights = sides.prod(dim=1).sqrt() * torch.tensor([2.0, 2.0, 1.5, 1.0] * len(images))

    def draw(self, count: int, size: int) -> torch.Tensor:
        """``count`` crops (count, 1, size, size), float32 in [-1, 1]."""
        images = self._toned(count, size)
        images = self._patched(images, self._toned(count, size), probability=0.35)
        images = self._noisy(images)
        return self._on_background(images).clamp(-1, 1)

    def _random(self, count: int) -> torch.Tensor:
        return torch.rand((count, 1, 1, 1), generator=self.generator)

    def _crop(self, size: int) -> torch.Tensor:
        generator = self.generator
        level = self.levels[int(torch.multinomial(self.weights, 1, generator=generator))]
        zoom = float(_uniform((), 0.5, 1.4, generator)) if torch.rand((), generator=generator) < 0.6 else 1.0
        side = min(max(16, round(size * zoom)), level.shape[1], level.shape[2])
        top = int(torch.randint(level.shape[1] - side + 1, (), generator=generator))
        left = int(torch.randint(level.shape[2] - side + 1, (), generator=generator))
        crop = level[:, top : top + side, left : left + side]
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

    def _noisy(self, images: torch.Tensor) -> torch.Tensor:
        """White or blurred Gaussian noise on 60 % of the images, standard deviation up to 0.05."""
        count = len(images)
        noise = torch.randn(images.shape, generator=self.generator)
        blurred = functional.avg_pool2d(functional.pad(noise, (1, 1, 1, 1), mode="reflect"), 3, stride=1) * 2.5
        noise = torch.where(self._random(count) < 0.5, noise, blurred)
        strength = 0.05 * self._random(count) ** 2 * (self._random(count) < 0.6)
        return images + strength * noise

    def _on_background(self, images: torch.Tensor) -> torch.Tensor:
        """Half of the images get a smooth region of one value, mostly -1 like clipped air."""
        count, _, size, _ = images.shape
        value = torch.where(self._random(count) < 0.8, torch.full((), -1.0), 2 * self._random(count) - 1)
        mask = self._soft_mask(count, size, 3 * self._random(count) - 1)
        mask = mask * (self._random(count) < 0.5)
        return images + mask * (value - images)
