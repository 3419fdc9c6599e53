"""docs/own_trainer.md, as it is written: its file in a folder of its own, found by nnU-Net, trains as the page says."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerTopkLoss import nnUNetTrainerDiceTopK10Loss
from trainers_for_tests import batches, reproducible, trainer_of  # noqa: F401
from views_for_tests import BrighterVAE, make_view

from fvae_nnunet.nnunet.registration import has_external_trainers
from fvae_nnunet.trainers import nnUNetTrainerFVAE

PAGE = (Path(__file__).parents[2] / "docs" / "own_trainer.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The page's file in the folder that its first shell block makes."""
    home = tmp_path_factory.mktemp("home")
    environment = {**os.environ, "HOME": str(home), "nnUNet_extTrainer": "/before"}
    script = f'set -eu\n{blocks("bash")[0]}printf %s "$nnUNet_extTrainer"'
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"/before:{home}/my_trainers"
    path = home / "my_trainers" / "my_trainers.py"
    path.write_text("\n\n".join(blocks("python")))
    return path


@pytest.fixture(scope="module")
def classes(file):
    """The trainers of the file, by name, as nnU-Net finds them."""
    names = re.findall(r"^class (\w+)|^(\w+) = with_epochs", file.read_text(), flags=re.MULTILINE)
    names = [first or second for first, second in names]
    assert len(names) == 8
    if not has_external_trainers():
        namespace = {"__name__": "my_trainers"}
        exec(compile(file.read_text(), file, "exec"), namespace)
        return {name: namespace[name] for name in names}
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_extTrainer", os.pathsep.join(["/before", str(file.parent)]))
        return {name: recursive_find_trainer_class_by_name(name) for name in names}


@pytest.mark.slow
def test_every_trainer_of_the_page_is_ours_and_has_the_name_that_it_is_found_by(classes):
    for name, found in classes.items():
        assert found.__name__ == name and issubclass(found, nnUNetTrainerFVAE)
        assert inspect.signature(found.__init__).parameters.keys() >= {"plans", "fold"}


def test_shares_and_lengths(classes, planned):
    assert classes["nnUNetTrainerFVAERare_100epochs"].view_probability == 0.2
    assert classes["nnUNetTrainerFVAEReconOnly_300epochs"].view_in_validation
    trainer = classes["nnUNetTrainerFVAERare_100epochs"](
        planned.plans | {"continue_training": False}, "3d_fullres", 0, planned.dataset_json, torch.device("cpu")
    )
    assert trainer.num_epochs == 100
    assert trainer.output_folder_base.endswith("nnUNetTrainerFVAERare_100epochs__nnUNetPlans__3d_fullres")


@pytest.mark.slow
def test_mixed_trainers_have_our_view_and_nnunets_augmentation_mirroring_and_loss(classes, clone):
    make_view(clone, BrighterVAE(), configurations=["3d_fullres"])
    no_mirroring, top_k, da5 = (
        trainer_of(classes[f"nnUNetTrainerFVAE{name}"], clone) for name in ("NoMirroring", "TopK", "DA5")
    )
    for trainer in (no_mirroring, top_k, da5):
        training, _ = trainer.get_tr_and_val_datasets()
        assert training.folders[0].name.endswith("__fvae_test")
        assert training.probability == (0.3 if trainer is top_k else 0.5)
    for trainer in (no_mirroring, top_k):
        trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        assert trainer.inference_allowed_mirroring_axes is None
    expected = trainer_of(nnUNetTrainerDiceTopK10Loss, clone).loss
    assert type(top_k.loss.loss) is type(expected.loss)
    assert type(da5).get_training_transforms is nnUNetTrainerDA5.get_training_transforms
    ours, theirs = (batches(base, clone, number=1)[0] for base in (classes["nnUNetTrainerFVAEDA5"], nnUNetTrainerDA5))
    assert ours["data"].shape == theirs["data"].shape


@pytest.mark.slow
def test_a_class_for_each_view(classes, clone):
    for view in ("wan2.1", "wan2.2"):
        make_view(clone, configurations=["3d_fullres"], view=view)
    for number, view in (("21", "wan2.1"), ("22", "wan2.2")):
        training, _ = trainer_of(classes[f"nnUNetTrainerFVAEWan{number}"], clone).get_tr_and_val_datasets()
        assert training.folders[0].name == f"nnUNetPlans_3d_fullres__fvae_{view}"


def test_the_page_prints_nnunets_own_folder():
    command = blocks("bash")[1].replace("python ", f"{sys.executable} ", 1)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (Path(done.stdout.strip()) / "nnUNetTrainer.py").is_file()
