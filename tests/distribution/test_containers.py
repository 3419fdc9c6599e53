"""Both recipes take the same files of the project, and all of them are there."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).parents[2]


def test_both_recipes_take_the_same_files_which_exist():
    ignore = (PROJECT / "containers" / "Dockerfile.dockerignore").read_text().splitlines()
    of_docker = {line[1:] for line in ignore if line.startswith("!")}
    definition = (PROJECT / "containers" / "fvae_nnunet.def").read_text()
    files = [line.split() for line in definition.partition("%files\n")[2].partition("\n\n")[0].splitlines()]
    assert {source for source, _ in files} == of_docker
    assert all(target == f"/tmp/source/{source}" for source, target in files)
    assert [name for name in sorted(of_docker) if not (PROJECT / name).exists()] == []
