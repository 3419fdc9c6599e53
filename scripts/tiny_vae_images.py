"""Natural images on which the embedded VAE `tiny` is trained.

Some are included in Python packages that are installed anyway (scikit-image, scikit-learn, matplotlib), others in
wallpaper packages of Debian 12, unpacked into a folder without installing them:

    apt-get download lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 plasma-workspace-wallpapers ukui-wallpapers
    for package in *.deb; do dpkg-deb -x $package wallpapers; done

Medical and microscopy images of these packages are left out on purpose, as are wallpapers under the GPL or LGPL.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

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

WALLPAPERS = {
    "bridge": "backgrounds/Bridge_by_Sander_Klootwijk.jpg",
    "dragonfly": "backgrounds/Dragonfly_by_Bolly.jpg",
    "fig": "backgrounds/Picture_0B_by_freespace.jpg",
    "brushes": "backgrounds/Picture_1A_by_freespace.jpg",
    "djembe": "backgrounds/Wine_by_Jakkub_Mede.jpg",
    "aitzgorri": "backgrounds/aitzgorri_by_Aitzol_Berasategi.jpg",
    "lamps": "backgrounds/free_by_Peter_Nerlich.jpg",
    "dogs": "backgrounds/friends_by_Aitzol_Berasategi.jpg",
    "wall_clock": "backgrounds/greentock_by_Peter_Nerlich.jpg",
    "brook": "backgrounds/life_by_Aitzol_Berasategi.jpg",
    "picos": "backgrounds/picosdeeuropa_by_Aitzol_Berasategi.jpg",
    "dandelions": "backgrounds/seeding_by_Clements_Engelhardt.jpg",
    "sunset": "backgrounds/sunset_by_Aitzol_Berasategi.jpg",
    "nuthatch": "backgrounds/Kleiber_by_Lukas_Baubkus.jpg",
    "stripes": "backgrounds/Painting-Colors_by__herobrine7gamer.jpg",
    "altai": "wallpapers/Altai/contents/images/5120x2880.png",
    "ice": "wallpapers/IceCold/contents/images/5120x2880.png",
    "kay": "wallpapers/Kay/contents/images/5120x2880.png",
    "patak": "wallpapers/Patak/contents/images/5120x2880.png",
    "shell": "wallpapers/Shell/contents/images/5120x2880.jpg",
    "waves": "wallpapers/Volna/contents/images/5120x2880.jpg",
    "calla": "backgrounds/calla.png",
    "desert": "backgrounds/desert.png",
    "roll": "backgrounds/rollpaper.png",
    "ribbon": "backgrounds/2004default.jpg",
    "folds": "backgrounds/rhythm.jpg",
    "strings": "backgrounds/string.jpg",
}
"""Paths below ``usr/share`` of the unpacked packages; the card of the VAE lists authors and licences."""

SIMPLE_DRAWINGS = frozenset(
    {"stripes", "altai", "ice", "kay", "patak", "calla", "desert", "roll", "ribbon", "folds", "strings"}
)
"""Drawings with few shapes, sharp edges and no noise. `shell` and `waves` are drawn too, but as rich as photographs."""

WALLPAPERS_HELD_OUT = {"picos": 2, "nuthatch": 3}
"""Additional shrink factor of images, which removes grain and demosaicing of the camera."""

WALLPAPER_SHRUNK = 2
"""Shrink factor of each wallpaper along an edge; they have 1.5 to 24 million pixels, and shrinking removes noise."""


def load_images(wallpapers: Path | None = None) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Load training images and held-out images by name: float32 (3, H, W) in [0, 1]; grey ones have equal channels.

    Args:
        wallpapers: folder with Debian's packages; without it, only the images of Python packages are used.
    """
    from matplotlib import cbook
    from PIL import Image
    from skimage import data
    from sklearn.datasets import load_sample_image

    arrays = {name: getattr(data, name)() for name in SKIMAGE_NAMES}
    arrays["china"] = load_sample_image("china.jpg")
    arrays["flower"] = load_sample_image("flower.jpg")
    grace_hopper = Image.open(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))
    arrays["grace_hopper"] = np.asarray(grace_hopper.convert("RGB"))
    images = {name: _tensor(array) for name, array in arrays.items()}
    held_out = {name: images.pop(name) for name in HELD_OUT}
    if wallpapers is not None:
        for name, below in WALLPAPERS.items():
            picture = Image.open(wallpapers / "usr" / "share" / below).convert("RGB")
            further = WALLPAPERS_HELD_OUT.get(name)
            shrunk = _tensor(np.asarray(picture.reduce(WALLPAPER_SHRUNK * (further or 1))))
            (images if further is None else held_out)[name] = shrunk
    return images, held_out


def _tensor(array: np.ndarray) -> torch.Tensor:
    """Convert (H, W), (H, W, 3) or (H, W, 4) of 0 to 255 to float32 (3, H, W) in [0, 1]."""
    colour = array[..., :3] if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2)
    return torch.from_numpy(np.ascontiguousarray(colour.transpose(2, 0, 1))).float() / 255


def held_out_pairs(images: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Two test images of each: unchanged, and with a third of the contrast inside an ellipse on a background of -1.

    Each is (1, 1, H, W) in [-1, 1], with H and W cropped to multiples of 8.
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
