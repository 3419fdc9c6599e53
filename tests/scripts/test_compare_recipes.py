"""The comparison of recipes: what is run, and the table by arithmetic."""

from __future__ import annotations

import argparse
from pathlib import Path

import compare_recipes
import pytest
from compare_recipes import Comparison, table

from fvae_nnunet.cli.training_options import add_ldm_options
from fvae_nnunet.errors import UserError


def arguments(**options):
    defaults = {"device": "cpu", "weights": None, "vae": "tiny", "organ": None, "n": 5}
    return argparse.Namespace(**defaults | options)


@pytest.mark.parametrize("recipe", list(compare_recipes.RECIPES))
def test_each_recipe_is_a_training_on_phantoms_of_its_seed(recipe):
    one = Comparison("lung", 2, recipe, 100)
    phantoms, train, synthesize = one.planned(arguments())
    assert phantoms.command[phantoms.command.index("--seed") + 1] == "2" and one.dataset in str(phantoms.result)
    parser = argparse.ArgumentParser()
    add_ldm_options(parser)
    parsed = parser.parse_args(train.command[1:])
    assert (parsed.organ, parsed.seed, parsed.stage1_steps, parsed.stage2_steps) == ("lungs", 2, 100, 10)
    assert train.after == (phantoms.name,) and synthesize.after == (train.name,)
    assert synthesize.command[synthesize.command.index("--ldm") + 1] == str(parsed.output)


def test_datasets_and_seeds_have_folders_of_their_own():
    ones = [Comparison(data, seed, "draft", 7) for data in ("lung", "pancreas") for seed in range(3)]
    assert len({one.dataset for one in ones}) == len({one.output for one in ones}) == 6
    given = Comparison("Dataset511_Sarcoma", 0, "paper", 7)
    train, _ = given.planned(arguments(organ="body", weights=Path("weights")))
    assert given.dataset == "Dataset511_Sarcoma" and train.after == ()
    assert train.command[train.command.index("--organ") + 1] == "body" and "--weights" in train.command


def lesion(core_mean_hu, core_sd_hu, contrast_hu, asked=None, asked_texture=10.0):
    return {
        "core_mean_hu": core_mean_hu,
        "core_sd_hu": core_sd_hu,
        "texture_sd_hu": core_sd_hu - 12,
        "contrast_hu": contrast_hu,
        "asked": None if asked is None else {"core_mean_hu": asked, "texture_sd_hu": asked_texture},
    }


def test_the_table_takes_all_seeds_of_a_recipe_together():
    real = [lesion(30, 17, 800), lesion(40, 19, 900), lesion(50, 21, 850)]
    results = [
        {"data": "lung", "seed": 0, "recipe": "draft", "steps": 9, "accepted": 2, "cases": 3, "tried": 3, "real": real,
         "lesions": [lesion(35, 20, 810, 30), lesion(40, 22, None, 38), lesion(20, 24, 830, 30)]},
        {"data": "lung", "seed": 1, "recipe": "draft", "steps": 9, "accepted": 1, "cases": 1, "tried": 3, "real": real,
         "lesions": [lesion(31, 26, 850, 30, asked_texture=18.0)]},
        {"data": "lung", "seed": 0, "recipe": "paper", "steps": 9, "accepted": 0, "cases": 1, "tried": 1, "real": real,
         "lesions": [lesion(31, 90, None)]},
    ]  # fmt: skip
    *_, draft, paper = table(results)
    # differences 5, 2, -10, 1; textures of 10 on average where 10 were asked for, of 14 where 18 were
    accepted = "2 of 3, 1 of 1 (2 found no place)"
    assert draft == f"| lung | draft | 9 | {accepted} | 23 (19) | 11 (7) | 0.50 | 2 (-2 to 3) | 830 (850) |"
    assert paper == "| lung | paper | 9 | 0 of 1 | 90 (19) | 78 (7) | none | not told | none (850) |"


def test_a_dataset_needs_its_organ():
    with pytest.raises(UserError, match="datasets need --organ"):
        compare_recipes.run(arguments(data=["Dataset001_X"]))
