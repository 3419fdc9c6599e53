"""One lesion in one CT: where it lies, what stays, and what the model is told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from painted_cases import ORGAN_HU, PaintingModel, painted
from scipy import ndimage
from synthesize_for_tests import a_tiny_model

from fvae_nnunet.ct.volume import CT
from fvae_nnunet.errors import UserError
from fvae_nnunet.synthesis.generation.one_lesion import insert_lesion, load_diffusion
from fvae_nnunet.synthesis.lesions.placement import NothingFits, index_of

SHAPE, SPACING_MM = (16, 40, 40), (3.0, 2.0, 2.0)


def a_case(lesion=False):
    hu, labels = painted(seed=0, shape=SHAPE, lesion=lesion)
    return CT.from_array(hu, SPACING_MM), labels


def test_a_lesion_of_its_size_in_the_organ_and_nothing_else_changes():
    ct, labels = a_case()
    made = insert_lesion(ct, torch.from_numpy(labels == 1), PaintingModel(hu=-60.0), diameter_mm=15, seed=3)
    assert made.diameter_mm == pytest.approx(15, rel=0.05)
    assert made.mask.shape == SHAPE and (labels[made.mask] == 1).mean() >= 0.8
    assert made.ct.geometry == ct.geometry and made.ct.hu.dtype == np.int16
    core = made.ct.hu[made.mask]
    assert abs(np.median(core) + 60) < 15 and np.median(ct.hu[made.mask]) > ORGAN_HU - 10
    changed = made.ct.hu != ct.hu
    near = ndimage.distance_transform_edt(~made.mask, sampling=SPACING_MM) < 20
    assert changed.any() and not changed[~near].any()


def test_a_seed_is_a_lesion():
    ct, labels = a_case()
    first, again, other = (insert_lesion(ct, labels, PaintingModel(), diameter_mm=12, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.ct.hu, again.ct.hu)
    assert (first.mask != other.mask).any()


def test_a_coronal_file_gets_the_same_lesion():
    hu, labels = painted(seed=0, shape=SHAPE, lesion=False)
    axial = insert_lesion(CT.from_array(hu, SPACING_MM), labels, PaintingModel(), diameter_mm=12, seed=5)

    coronal = CT.from_array(hu.transpose(1, 0, 2), (2.0, 3.0, 2.0), direction=(1, 0, 0, 0, 0, 1, 0, 1, 0))
    made = insert_lesion(coronal, labels.transpose(1, 0, 2), PaintingModel(), diameter_mm=12, seed=5)
    np.testing.assert_array_equal(made.ct.hu.transpose(1, 0, 2), axial.ct.hu)
    np.testing.assert_array_equal(made.mask.transpose(1, 0, 2), axial.mask)


def test_the_model_is_told_of_lesions_that_are_there_and_they_are_kept_clear_of():
    ct, labels = a_case(lesion=True)
    model = PaintingModel()
    with pytest.raises(UserError, match="not conditioned on the appearance of lesions; leave out `core_mean_hu`"):
        insert_lesion(ct, labels == 1, model, diameter_mm=12, core_mean_hu=25.0)
    model.settings = replace(model.settings, core_mean_hu=(30.0, 20.0), texture_sd_hu=(10.0, 2.0))
    made = insert_lesion(ct, labels == 1, model, diameter_mm=12, lesions=labels == 2, core_mean_hu=25.0)
    (call,) = model.calls
    assert set(np.unique(call.class_map)) == {0, 1, 2}
    assert not made.mask[labels == 2].any()
    assert call.layout.appearances_hu[-1, 0] == 25


def test_at_a_place():
    ct, labels = a_case()
    at_mm = (41.0, 39.0, 24.0)
    made = insert_lesion(ct, labels, PaintingModel(), diameter_mm=10, at_mm=at_mm)
    centre = np.argwhere(made.mask).mean(axis=0)
    np.testing.assert_allclose(centre, index_of(at_mm, ct.geometry), atol=0.6)


def test_one_of_several_lesions_is_named_and_a_report_is_passed_on():
    ct, labels = a_case()
    model = PaintingModel(class_names=("organ", "nodule", "effusion"))
    model.settings = replace(model.settings, lesions=2)
    made = insert_lesion(ct, labels == 1, model, diameter_mm=12, lesion="effusion", text="An effusion.")
    (call,) = model.calls
    assert set(np.unique(call.class_map)) == {0, 1, 3} and made.mask.any()
    assert call.text == "An effusion."
    for lesion, message in ((None, "knows 2 lesions; name one as `lesion`: nodule, effusion"), ("cyst", "no 'cyst'")):
        with pytest.raises(UserError, match=message):
            insert_lesion(ct, labels == 1, model, diameter_mm=12, lesion=lesion)


def test_what_cannot_be_done_is_said():
    ct, labels = a_case()
    with pytest.raises(NothingFits, match="no lesion of 70 to 70 mm fits"):
        insert_lesion(ct, labels, PaintingModel(), diameter_mm=70)
    several = PaintingModel(class_names=("liver", "spleen", "tumour"))
    with pytest.raises(UserError, match=r"knows 2 structures \(liver, spleen\)"):
        insert_lesion(ct, labels, several, diameter_mm=12)
    with pytest.raises(UserError, match="organ has shape"):
        insert_lesion(ct, labels[1:], PaintingModel(), diameter_mm=12)


def test_a_model_of_a_folder(tmp_path):
    ct, labels = a_case()
    model = load_diffusion(str(a_tiny_model(tmp_path / "model")))
    made = insert_lesion(ct, labels, model, diameter_mm=14, seed=0)
    assert np.isfinite(made.ct.hu).all() and (made.ct.hu != ct.hu).any()
