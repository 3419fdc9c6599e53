"""Quality, time and memory of views: what cannot be is refused, and a run on phantoms to the table."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
import view_table
import yaml
from arms import ConfigError
from phantoms import write_phantom_dataset
from view_quality.setting import read_setting
from workflows_for_tests import PATH, SCRIPTS, needs_snakemake, planned_jobs, shell_commands, snakemake

VIEWS = ["--view tiny --vae tiny", "--view blurred --vae control:gaussian --strength 1"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "Dataset512_Phantom"
    return write_phantom_dataset(
        folder, "lung", n_train=2, n_test=0, seed=0, shape=(12, 48, 48), spacing_mm=(3.0, 2.0, 2.0)
    )


def config_of(dataset, /, **changes):
    config = yaml.safe_load((SCRIPTS / "view_quality" / "chests.yaml").read_text())
    return config | {"dataset": str(dataset), "views": VIEWS} | changes


def test_a_view_is_reconstructed_with_its_options(dataset):
    views = read_setting(config_of(dataset)).views
    assert [view.reconstruction for view in views.values()] == ["--vae tiny", "--vae control:gaussian --strength 1"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dataset": None}, "dataset must be an absolute path"),
        ({"dataset": "/tmp"}, "not in nnU-Net's raw format: it has no imagesTr"),
        ({"device": "tpu"}, "device: tpu is not one of cuda, cpu, mps"),
        ({"views": []}, "views: at least one is needed"),
        ({"views": [*VIEWS, "--view nlm --vae control:nlm --match tiny"]}, "views: nlm: --match is not possible here"),
        ({"folds": 3}, "unknown key folds in the configuration"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(changes, expected, dataset):
    with pytest.raises(ConfigError, match=expected):
        read_setting(config_of(dataset, **changes))


def test_a_configuration_is_complete(dataset):
    config = config_of(dataset)
    del config["pictures"]
    with pytest.raises(ConfigError, match="the configuration has no pictures"):
        read_setting(config)


def test_cost_of_a_command(tmp_path):
    benchmark = tmp_path / "reconstruct.tsv"
    benchmark.write_text("s\th:m:s\tmax_rss\tmax_pss\n12.5\t0:00:12\t3000.0\t2048.0\n")
    assert view_table.cost(benchmark) == {"seconds": 12.5, "memory_gib": 2.0}
    benchmark.write_text("s\th:m:s\tmax_rss\tmax_pss\n0.1\t0:00:00\tNA\tNA\n")
    assert np.isnan(view_table.cost(benchmark)["memory_gib"])


@needs_snakemake
@pytest.mark.slow
def test_views_of_phantoms_from_the_dataset_to_the_table(dataset, tmp_path):
    file, work = tmp_path / "small.yaml", tmp_path / "work"
    file.write_text(yaml.safe_dump(config_of(dataset, pictures=1, processes=0)))
    work.mkdir()
    said = snakemake("view_quality", work, "--configfile", file, "--dry-run")
    assert planned_jobs(said) == {"all": 1, "quality": 2, "reconstruct": 2, "table": 1}
    assert any(f"-i {dataset}/imagesTr -o views/tiny --vae tiny -device cpu" in line for line in shell_commands(said))
    snakemake("view_quality", work, "--configfile", file, path=PATH)

    written = json.loads((work / "results.json").read_text())
    assert set(written["views"]) == {"tiny", "blurred"}
    assert not any(str(tmp_path.parent) in line for line in (work / "results.json").read_text().splitlines())
    blurred = written["views"]["blurred"]
    for case in blurred["cases"]:
        raw, view = (
            np.clip(sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{case['case']}_0000.nii.gz"))), -1000, 1000)
            for folder in (dataset / "imagesTr", work / "views" / "blurred")
        )
        bone = raw >= 200
        assert case["tissues"]["bone"]["bias_hu"] == pytest.approx((view.astype(float) - raw)[bone].mean(), abs=1e-3)
    assert blurred["cost"]["seconds"] > 1 and written["made_with"]["device"] == "cpu"
    table = (work / "table.md").read_text()
    assert table.startswith("2 cases, means:") and "| blurred | " in table and "tumour: sharpness, view/image" in table
    assert r"tumour: \|shift\|, median (mm)" in table
    assert len(list((work / "quality" / "tiny").glob("reconstruction_quality_pictures/*.png"))) == 1
    snakemake("view_quality", work, "--configfile", file, "--force", "quality/tiny", path=PATH)
    assert len(list((work / "quality" / "tiny").glob("reconstruction_quality_pictures/*.png"))) == 1
