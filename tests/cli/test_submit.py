"""Commands as jobs of this machine: the same files as without."""

import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from fvae_nnunet.cli import preprocess, reconstruct, train_ldm
from fvae_nnunet.cli.submit import submitted_argv
from fvae_nnunet.jobs import submit

pytest.importorskip("submitit")


@pytest.fixture(autouse=True)
def looks_often(monkeypatch):
    monkeypatch.setattr(submit, "LOOK_EVERY_S", 0.1)


@pytest.fixture
def images(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(4):
        image = sitk.GetImageFromArray(rng.integers(-1000, 1000, (3, 32, 32)).astype(np.int16))
        sitk.WriteImage(image, str(tmp_path / "images" / f"case{number}.nii.gz"))
    return tmp_path / "images"


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {str(path): (folder / path).read_bytes() for path in paths if submit.LOGS not in path.parts}


@pytest.mark.slow
def test_jobs_write_what_one_call_writes(images, tmp_path, capsys):
    made = ["-i", str(images), "--vae", "tiny", "-np", "0"]
    assert reconstruct.main([*made, "-o", str(tmp_path / "alone")]) == 0
    capsys.readouterr()
    out = tmp_path / "jobs"
    assert reconstruct.main([*made, "-o", str(out), "--submit", "local", "--jobs", "2"]) == 0
    assert contents(out) == contents(tmp_path / "alone")
    printed = capsys.readouterr()
    assert "4 of 4 cases complete" in printed.out
    assert f"logs in {out / 'fvae_manifest' / 'jobs'}" in printed.out + printed.err
    logs = [path.read_text() for path in out.rglob("*_log.out")]
    done = [int(number) for log in logs for number in re.findall(r"(\d+) cases? done", log)]
    assert len(done) == 2 and sum(done) == 4, logs


@pytest.mark.slow
def test_jobs_that_fail_are_named_and_so_is_the_status(images, tmp_path, capsys):
    (images / "case2.nii.gz").write_bytes(b"nothing")
    arguments = ["-i", str(images), "-o", str(tmp_path / "out"), "--vae", "tiny", "-np", "0"]
    assert reconstruct.main([*arguments, "--submit", "local", "--jobs", "1"]) == 1
    printed = capsys.readouterr()
    assert "3 of 4 cases complete" in printed.out
    (line,) = (line for line in (printed.out + printed.err).splitlines() if "ended: status 1; see " in line)
    assert "case2" in Path(line.rpartition(" ")[2]).read_text()


def test_mistakes_are_one_message(images, tmp_path, capsys):
    def message(main, *arguments):
        assert main([*arguments]) == 1
        return capsys.readouterr().err

    made = ["-i", str(images), "-o", str(tmp_path / "out"), "--vae", "tiny", "--submit", "local"]
    assert "--overwrite and --submit are mutually exclusive" in message(reconstruct.main, *made, "--overwrite")
    assert "--jobs must be at least 1, got 0" in message(reconstruct.main, *made, "--jobs", "0")
    assert "expected NAME=VALUE" in message(reconstruct.main, *made, "--slurm", "gpu")
    assert "expected one dataset" in message(preprocess.main, "-d", "1", "2", "--submit", "local")
    assert not (tmp_path / "out").exists()


def test_a_job_runs_the_command_without_what_submits_it():
    submitting = "7 --vae tiny --submit slurm --jobs 8 --slurm partition=gpu mem=3 -np 2 --slurm=x=1 --sizes -3"
    assert submitted_argv(submitting.split()) == ["7", "--vae", "tiny", "-np", "2", "--sizes", "-3"]


@pytest.mark.parametrize(
    "submitting",
    [
        "--submit local 7 --vae tiny",
        "--vae tiny --submit local --jobs 2 7",
        "--submit=local --jobs=8 7 --vae tiny",
        "--slurm=mem=3 7 --submit slurm --vae tiny",
        "--jobs -1 7 --vae tiny --submit slurm --slurm mem=3 time=5",
    ],
)
def test_a_job_keeps_the_words_after_what_submits_it(submitting):
    assert sorted(submitted_argv(submitting.split())) == ["--vae", "7", "tiny"]


def test_jobs_on_gpus_are_submitted_from_a_machine_without_one(images, tmp_path, monkeypatch, capsys):
    from synthesis_for_tests import phantom_dataset

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("fvae_nnunet.cli.cases.submit", lambda arguments, **_: 0)
    on_gpus = ["--vae", "tiny", "-device", "cuda", "--submit", "slurm"]
    reconstructing = ["-i", str(images), "-o", str(tmp_path / "out")]
    encoding = [phantom_dataset().id, "--size", "tiny", "--encode-only", "--mixed-precision", "fp16"]
    for main, arguments in ((reconstruct.main, reconstructing), (train_ldm.main, encoding)):
        assert main([*arguments, *on_gpus]) == 0, capsys.readouterr().err
        assert main([*arguments, *on_gpus[:4]]) == 1
        assert "no CUDA GPU is visible" in capsys.readouterr().err


@pytest.mark.slow
def test_latents_are_encoded_by_jobs(tmp_path, capsys):
    from synthesis_for_tests import phantom_dataset

    dataset = phantom_dataset()
    arguments = [dataset.id, "--vae", "tiny", "--size", "tiny", "--window-slices", "8", "-device", "cpu", "-np", "0"]
    assert train_ldm.main([*arguments, "--submit", "local"]) == 1
    assert "--submit requires --encode-only" in capsys.readouterr().err
    assert train_ldm.main([*arguments, "--latents", "jobs", "--encode-only", "--submit", "local"]) == 0
    assert "3 of 3 cases complete" in capsys.readouterr().out
    assert train_ldm.main([*arguments, "--latents", "alone", "--encode-only"]) == 0
    assert "latents of 3 cases, in" in capsys.readouterr().out
    caches = dataset.preprocessed.rglob("fvae_latents")
    folders = {path.name: contents(path) for cache in caches for path in cache.iterdir()}
    assert folders["jobs"] == folders["alone"]
