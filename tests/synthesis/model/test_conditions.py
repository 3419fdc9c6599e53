"""A trained model does what its masks say: the whole way from phantoms to lesions, in minutes on a CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fvae_nnunet.cli import train_ldm
from fvae_nnunet.synthesis.generation import painting
from fvae_nnunet.synthesis.generation.painting import PaintSettings, paint
from fvae_nnunet.synthesis.lesions.plan import PlanSettings, plan_lesions
from fvae_nnunet.synthesis.lesions.sizes import LesionSizes
from fvae_nnunet.synthesis.model.latent_diffusion import LatentDiffusion
from fvae_nnunet.synthesis.sources.dataset import open_source_dataset

SYNTHESES = 20


@pytest.mark.slow
def test_a_lesion_mask_brings_the_real_lesions_hu_and_an_empty_mask_the_organs(tmp_path, monkeypatch):
    """Nodules of lung phantoms: lung about -820 HU, real nodules about -30 HU with their blurred borders."""
    from datasets_for_tests import new_dataset
    from phantoms import write_phantom_dataset

    dataset = new_dataset("Nodules")
    write_phantom_dataset(
        dataset.raw, "lung", n_train=10, n_test=0, seed=0, shape=(16, 192, 192), spacing_mm=(6.0, 1.0, 1.0)
    )
    options = "--vae tiny --organ lungs --size tiny --window-slices 8 --samples-every 0"
    steps = "--stage1-steps 800 --stage2-steps 20"
    command = [dataset.id, *options.split(), *steps.split(), "-device", "cpu", "-np", "0", "-o", str(tmp_path)]
    assert train_ldm.main(command) == 0

    model = LatentDiffusion.load(tmp_path)
    source_dataset = open_source_dataset(dataset.id, organ="lungs", fold=None)
    plan = PlanSettings(LesionSizes.of_range(20, 30), 0.0, (1, 1), inside_fraction=0.85, clearance_mm=5.0)
    moved_hu: dict[str, list[float]] = {"lesion mask": [], "empty mask": []}
    gaps_hu = []
    for number in range(SYNTHESES):
        source = source_dataset.read(sorted(source_dataset.image_files)[number % 10])
        gaps_hu.append(source.volume_hu[source.lesion].mean() - source.volume_hu[source.class_map == 1].mean())
        rng = np.random.default_rng([5, number])
        lesions = plan_lesions(rng, source_dataset, source, plan, real=(), avoid=None)
        new = lesions[0].mask(source.volume_hu.shape)
        for name, values in moved_hu.items():
            with monkeypatch.context() as patch:
                if name == "empty mask":
                    patch.setattr(painting, "with_lesion", lambda layout, lesion, lesion_class: layout)
                generator = torch.Generator().manual_seed(number)
                volume_hu = paint(model, source, lesions, PaintSettings(), generator=generator)
            values.append(volume_hu[new].mean() - source.volume_hu[new].mean())
    gap_hu = np.mean(gaps_hu)
    shares = {name: np.mean(values) / gap_hu for name, values in moved_hu.items()}
    print(f"gap {gap_hu:.0f} HU; moved by {shares}")
    assert shares["lesion mask"] > 0.5
    assert abs(shares["empty mask"]) < 0.1
