"""Command lines that are run one after the other, each with a log and a stamp, so that finished ones are skipped.

A stamp ``NAME.json`` says what a step was run with, whether it is complete, and which results of other steps it is made
from: a step whose command or whose sources have changed is done anew. While a step runs it is claimed (see
``fvae_nnunet.jobs.claims``), so several processes, also on several machines, can share a folder. Stamps are written
atomically.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sysconfig
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fvae_nnunet.errors import UserError
from fvae_nnunet.files.checked_json import read_json
from fvae_nnunet.files.recorded import sha256_of_file
from fvae_nnunet.jobs.claims import BEAT_S, CRASHED_AFTER_S, Claims
from fvae_nnunet.jobs.manifest import write_json
from fvae_nnunet.nnunet.registration import EXTERNAL_TRAINERS, external_trainers

SCRIPTS = Path(__file__).resolve().parent
TAIL_LINES = 30
PATIENCE_S = CRASHED_AFTER_S + 2 * BEAT_S
"""How long a step that another process works on is waited for: longer than a crashed one can seem alive."""


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: names the log and the stamp.
        command: argument list, run in the work folder.
        result: what exists, relative to the work folder, once the command has succeeded.
        clears: what is deleted before the command runs anew.
        resumes: the command itself goes on where it was interrupted, so nothing is deleted for the same command.
        shows: which lines of the output to show while it runs.
        options: the rest of the command, which does not change the result, such as the device.
        variables: environment variables of this command.
        after: names of the steps that it needs; None: the one that was run before it.
        statuses: exit statuses that count as success where the result is there.
        record: a file whose content stands for the result: only another content makes the steps that need this one run
            anew. The command itself sees which of its results it can keep, so nothing is deleted for another command.
    """

    name: str
    command: tuple[str, ...]
    result: Path
    clears: tuple[Path, ...]
    resumes: bool = False
    shows: str | None = None
    options: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    after: tuple[str, ...] | None = None
    statuses: tuple[int, ...] = (0,)
    record: Path | None = None

    @property
    def line(self) -> str:
        """The command line for a shell."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.variables.items()]
        return " ".join([*variables, shlex.join([*self.command, *self.options])])


@dataclass
class Runner:
    """Runs steps in a work folder and remembers in ``folder/NAME.json`` which are complete.

    Attributes:
        work: the folder that commands run in.
        environment: of the commands.
        folder: of logs and stamps; default: ``steps`` in the work folder.
        seconds: how long each step took, by name.
        skipped: names of the steps that were complete.
    """

    work: Path
    environment: Mapping[str, str]
    folder: Path | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)
    _last: str | None = None

    def log_of(self, step: Step) -> Path:
        return self._folder / f"{step.name}.log"

    def is_complete(self, step: Step) -> bool:
        """Whether a step was finished with this command, from what the steps that it needs have made last."""
        stamp = self._read(step.name)
        return (
            stamp["complete"]
            and stamp["command"] == list(step.command)
            and stamp["after"] == self._made_by(step)
            and (self.work / step.result).exists()
        )

    def run(self, step: Step) -> None:
        """Run a step unless it is complete.

        Raises:
            UserError: it fails, needs a step that is not complete, or another process is at work on it.
        """
        print(f"\n[{step.name}] {step.line}", flush=True)
        if not self.is_complete(step):
            missing = [name for name, made in self._made_by(step).items() if made is None]
            if missing:
                raise UserError(f"step {step.name} needs {', '.join(missing)}, which is not complete; run that first")
            self._run_claimed(step)
        else:
            self._skip(step)
        self._last = step.name

    @property
    def _folder(self) -> Path:
        return self.work / "steps" if self.folder is None else self.folder

    def _read(self, name: str) -> dict[str, Any]:
        path = self._folder / f"{name}.json"
        stamp = read_json(path) if path.is_file() else {}
        return {"command": None, "complete": False, "seconds": 0, "after": None, "made": None} | stamp

    def _made_by(self, step: Step) -> dict[str, str | None]:
        """What the steps that this one needs have made last, by name; None where one is not complete."""
        before = () if self._last is None else (self._last,)
        return {name: self._made(name) for name in (before if step.after is None else step.after)}

    def _made(self, name: str) -> str | None:
        stamp = self._read(name)
        fits = stamp["complete"] and all(self._made(source) == made for source, made in stamp["after"].items())
        return stamp["made"] if fits else None

    def _skip(self, step: Step) -> None:
        print("  complete, skipped")
        self.seconds[step.name] = self._read(step.name)["seconds"]
        self.skipped.add(step.name)

    def _run_claimed(self, step: Step) -> None:
        """Run a step that no other process works on; if another one does, wait until it is done or given up."""
        give_up, waiting = time.monotonic() + PATIENCE_S, False
        while True:
            with Claims([self._folder], known=[step.name]) as claims:
                for _ in claims.each([step.name]):
                    # another process may have finished it just before
                    if self.is_complete(step):
                        self._skip(step)
                    else:
                        self._run(step)
            if not claims.elsewhere:
                return
            if time.monotonic() > give_up:
                raise UserError(
                    f"another process is at work on step {step.name} in {self.work}; wait for it, or stop it"
                )
            if not waiting:
                print(
                    f"  another process is at work on it or has crashed; waiting up to {PATIENCE_S:.0f} s", flush=True
                )
                waiting = True
            time.sleep(min(5, PATIENCE_S))

    def _run(self, step: Step) -> None:
        stamp, made_by = self._read(step.name), self._made_by(step)
        same_command, same_sources = stamp["command"] == list(step.command), stamp["after"] == made_by
        goes_on = step.resumes and same_command and same_sources
        keeps_itself = step.record is not None and (same_sources or stamp["after"] is None)
        if not goes_on and not keeps_itself:
            for path in (*step.clears, step.result):
                _delete(self.work / path)
        content = {"command": list(step.command), "after": made_by}
        path = self._folder / f"{step.name}.json"
        write_json(path, content | {"complete": False, "seconds": 0, "made": None})
        start = time.monotonic()
        status = self._execute(step)
        self.seconds[step.name] = seconds = time.monotonic() - start
        failed = status not in step.statuses
        if failed or not (self.work / step.result).exists():
            reason = f"ended with status {status}" if failed else f"ended without {self.work / step.result}"
            tail = "\n".join(self.log_of(step).read_text(errors="replace").splitlines()[-TAIL_LINES:])
            raise UserError(f"step {step.name} {reason}; the end of {self.log_of(step)}:\n{tail}")
        made = sha256_of_file(self.work / step.record) if step.record else uuid.uuid4().hex
        write_json(path, content | {"complete": True, "seconds": round(seconds, 1), "made": made})

    def _execute(self, step: Step) -> int:
        program = shutil.which(step.command[0], path=self.environment["PATH"])
        if program is None:
            raise UserError(f"{step.command[0]} is not installed here; in a clone of fvae_nnunet run: pip install .")
        with (
            self.log_of(step).open("w") as log,
            subprocess.Popen(
                [program, *step.command[1:], *step.options], cwd=self.work, env={**self.environment, **step.variables},
                text=True, errors="replace",
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            ) as process,
        ):  # fmt: skip
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    log.write(line)
                    log.flush()
                    if step.shows and re.search(step.shows, line):
                        print(f"  {line.rstrip()}", flush=True)
            except BaseException:
                # nnU-Net's data loading processes outlive their parent unless the whole group is told
                os.killpg(process.pid, signal.SIGTERM)
                raise
        return process.returncode


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def script(name: str, *arguments: object) -> tuple[str, ...]:
    """The command that runs a script of this folder."""
    return ("python", str(SCRIPTS / name), *map(str, arguments))


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def small_machine_settings(device: str) -> dict[str, str]:
    """Variables for nnU-Net on a device and this number of cores, without those that are set already."""
    defaults = {"nnUNet_compile": "f"} if device != "cuda" else {}
    if cores() <= 4:
        # threads that spin while they wait take the cores from the data loading processes
        defaults |= {"nnUNet_n_proc_DA": "2", "nnUNet_def_n_proc": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    return {name: value for name, value in defaults.items() if name not in os.environ}


def command_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment of the commands: this one's with these variables, its own programs and our trainers found."""
    search_path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    ours = {EXTERNAL_TRAINERS: external_trainers(), "PATH": search_path, "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **variables, **ours}
