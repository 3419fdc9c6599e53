"""Running Snakemake, maybe of an environment of its own, with the commands of the environment that is tested."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
PROGRAMS = Path(sys.executable).parent
PATH = os.pathsep.join([str(PROGRAMS), os.environ["PATH"]])
SNAKEMAKE = shutil.which("snakemake", path=PATH)
needs_snakemake = pytest.mark.skipif(
    SNAKEMAKE is None, reason="snakemake is not installed: pip install 'fvae_nnunet[workflow]'"
)

SHORT_TRAINING = """#!{python}
# nnUNetv2_train with 2 iterations an epoch, each of which writes a line; where the file `hang` exists, it stops before
# the validation of the arm that the file names, and says so in the file `hangs`
def main():
    import os, pathlib, time, torch
    os.environ["nnUNet_n_proc_DA"] = "0"
    from nnunetv2.run.run_training import run_training_entry
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as trainer

    initialize, train_step, validate = trainer.initialize, trainer.train_step, trainer.perform_actual_validation

    def short(self):
        torch.manual_seed(0)
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 2, 1
        initialize(self)

    def counted(self, batch):
        print(pathlib.Path(self.output_folder), file=open("iterations", "a"))
        return train_step(self, batch)

    def hanging(self, *arguments):
        hang = pathlib.Path("hang")
        if hang.exists() and hang.read_text() == pathlib.Path(os.environ["nnUNet_results"]).name:
            pathlib.Path("hangs").touch()
            time.sleep(600)
        return validate(self, *arguments)

    trainer.initialize, trainer.train_step, trainer.perform_actual_validation = short, counted, hanging
    run_training_entry()

if __name__ == "__main__":
    main()
"""


def short_training(folder: Path) -> str:
    """A value of PATH in which trainings are short."""
    folder.mkdir()
    program = folder / "nnUNetv2_train"
    program.write_text(SHORT_TRAINING.format(python=sys.executable))
    program.chmod(0o755)
    return f"{folder}{os.pathsep}{PATH}"


def workflow_call(workflow: str, work: Path, *arguments: object, path: str = PATH) -> dict[str, Any]:
    """Arguments of subprocess.Popen and subprocess.run for a workflow of ``scripts``."""
    assert SNAKEMAKE is not None
    given = [SNAKEMAKE, "-s", SCRIPTS / workflow / "Snakefile", "--directory", work, "--cores", "1", "--nocolor"]
    environment = {name: value for name, value in os.environ.items() if not re.match("nnUNet_|OMP_WAIT", name)} | {
        "PATH": path,
        "nnUNet_compile": "f",
        "nnUNet_n_proc_DA": "1",
        "nnUNet_def_n_proc": "1",
        "OMP_NUM_THREADS": "1",
    }
    return {"args": list(map(str, [*given, *arguments])), "env": environment, "text": True}


def snakemake(workflow: str, work: Path, *arguments: object, path: str = PATH, status: int = 0) -> str:
    """What a workflow says."""
    call = workflow_call(workflow, work, *arguments, path=path)
    done = subprocess.run(**call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    assert done.returncode == status, done.stdout[-5000:]
    return str(done.stdout)


def planned_jobs(said: str) -> dict[str, int]:
    """How many jobs of each rule a dry run or a run has planned."""
    stats = re.search(r"^job +count\n[- ]+\n(.*?)^total", said, flags=re.MULTILINE | re.DOTALL)
    return {} if stats is None else {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", stats[1], re.M)}


def shell_commands(said: str) -> list[str]:
    return re.findall(r"^Shell command: (.+)$", said, flags=re.MULTILINE)
