"""Small raw datasets of blocks, and a model that paints, for the tests of synthesis."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import SimpleITK as sitk
import torch
from datasets_for_tests import Dataset, new_dataset

from fvae_nnunet.synthesis.model.folder import ModelSettings
from fvae_nnunet.synthesis.model.noise_process import NoiseProcess

ORGAN_HU, LESION_HU = 100, 40
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 1.0, 0.0)
"""Direction of a coronal volume: the array's second axis runs along the body, downwards."""


def painted(*, seed, shape, lesion=True, organ=True):
    """HU (z, y, x) and labels of a block of organ with noise of 10 HU, and a box of lesion in one corner of it.

    Without ``organ`` it is not labelled.
    """
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    labels[tuple(slice(1, n - 1) for n in shape)] = 1
    if lesion:
        labels[tuple(slice(1, 1 + max(2, n // 8)) for n in shape)] = 2
    hu = np.select([labels == 2, labels == 1], [LESION_HU, ORGAN_HU], -100) + rng.normal(0, 10, shape)
    if not organ:
        labels[labels == 1] = 0
    return np.rint(hu).astype(np.int16), labels


def write_image(path, array, *, spacing_mm, direction=None, origin_mm=(0.0, 0.0, 0.0)):
    """Write an array (z, y, x) with spacing (z, y, x)."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(step) for step in spacing_mm[::-1]])
    image.SetOrigin(origin_mm)
    if direction is not None:
        image.SetDirection(direction)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def rewrite_image(path, change):
    """Replace an image's array by what ``change`` makes of it; returns the new array."""
    image = sitk.ReadImage(str(path))
    array = change(sitk.GetArrayFromImage(image))
    changed = sitk.GetImageFromArray(array)
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(path))
    return array


def write_dataset(
    cases=3,
    *,
    shape=(16, 40, 40),
    spacing_mm=(3.0, 2.0, 2.0),
    direction=None,
    origin_mm=(-20.0, 5.0, 30.0),
    channels=1,
    **content,
) -> Dataset:
    """A raw dataset with labels organ and tumour: its name and its folder."""
    dataset = new_dataset("Blocks")
    images = dataset.raw / "imagesTr"
    for number in range(cases):
        hu, labels = painted(seed=number, shape=shape, **content)
        how = {"spacing_mm": spacing_mm, "direction": direction, "origin_mm": origin_mm}
        write_image(images / f"case_{number}_0000.nii.gz", hu, **how)
        for channel in range(1, channels):
            write_image(images / f"case_{number}_{channel:04d}.nii.gz", hu.astype(np.float32) / 7, **how)
        write_image(dataset.raw / "labelsTr" / f"case_{number}.nii.gz", labels, **how)
    description = {
        "channel_names": {str(channel): "PET" if channel else "CT" for channel in range(channels)},
        "labels": {"background": 0, "organ": 1, "tumour": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (dataset.raw / "dataset.json").write_text(json.dumps(description))
    return dataset


class PaintingModel:
    """Stands for ``LatentDiffusion``: gives lesion voxels ``hu`` and noise of ``noise_hu``, and leaves the others.

    What it "reconstructs" is the volume plus ``bias_hu``, so a difference of two decodings must cancel it.
    """

    def __init__(
        self,
        *,
        window_slices=16,
        inplane_pixels=64,
        spacing_mm=None,
        hu=LESION_HU,
        bias_hu=0.0,
        noise_hu=10.0,
        organ="label:organ",
        class_names=("organ", "tumour"),
    ):
        self.settings = ModelSettings(
            vae="tiny",
            weights_sha256="0" * 64,
            latent_channels=1,
            precision="float32",
            hu_window=(-1000.0, 1000.0),
            window_slices=window_slices,
            inplane_pixels=inplane_pixels,
            spacing_mm=spacing_mm,
            mask_encoding="onehot",
            class_names=class_names,
            latent_mean=(0.0,),
            latent_std=(1.0,),
            prediction="epsilon",
            text_encoder=None,
            text_width=None,
            organ=organ,
        )
        self.process = NoiseProcess("epsilon")
        self.training = {"training_cases": ["case_0", "case_1", "case_2"]}
        self.weights_sha256 = "f" * 64
        self.hu, self.bias_hu, self.noise_hu = hu, bias_hu, noise_hu
        self.calls = []

    def inpaint(self, volume_hu, layout, region, draft_hu=None, *, generator, on_step=None, **sampling):
        class_map = layout.class_map
        assert volume_hu.shape == class_map.shape == region.shape
        assert len(volume_hu) <= self.settings.window_slices
        call = SimpleNamespace(volume_hu=volume_hu.copy(), class_map=class_map, layout=layout, region=region)
        self.calls.append(SimpleNamespace(**vars(call), **sampling))
        reconstructed = volume_hu.clip(*self.settings.hu_window).astype(np.float32) + np.float32(self.bias_hu)
        noise = torch.randn(volume_hu.shape, generator=generator).numpy()
        lesion = region & (class_map == len(self.settings.class_names))
        generated = np.where(lesion, np.float32(self.hu) + np.float32(self.noise_hu) * noise, reconstructed)
        if on_step is not None:
            on_step(1, 1)
        return generated, reconstructed

    def generate_runs(self, layout, *, generator, on_step=None, **sampling):
        yield np.choose(layout.class_map, [-100, ORGAN_HU, self.hu]).astype(np.float32)
