"""Runs command lines one after the other, each with a log and a stamp, so that finished ones are skipped.

A stamp ``NAME.json`` holds a digest of the step's command and of those of the steps that it needs: a step runs again if
its own command or one before it has changed. One process at a time; several machines need a workflow engine.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from command_environment import SCRIPTS

from fvae_nnunet.errors import UserError
from fvae_nnunet.files.checked_json import read_json
from fvae_nnunet.jobs.manifest import write_json

TAIL_LINES = 30


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: name of the log and the stamp.
        command: argument list, run in the work folder.
        result: path, relative to the work folder, that exists once the command has succeeded.
        clears: paths to delete before the command runs again.
        resumes: whether the command itself resumes after an interruption, so that nothing is deleted for the same
            command.
        shows: pattern of the output lines to show while it runs.
        options: the rest of the command, which does not change the result, such as the device.
        after: names of the steps that it needs; None: the step before it.
        statuses: exit statuses that count as success if the result exists.
    """

    name: str
    command: tuple[str, ...]
    result: Path
    clears: tuple[Path, ...]
    resumes: bool = False
    shows: str | None = None
    options: tuple[str, ...] = ()
    after: tuple[str, ...] | None = None
    statuses: tuple[int, ...] = (0,)


@dataclass
class Runner:
    """Runs steps in a work folder and records in its folder ``steps`` which are complete.

    Attributes:
        work: folder in which the commands run.
        environment: environment of the commands.
        seconds: duration of each step, by name.
        skipped: names of the steps that were already complete.
    """

    work: Path
    environment: Mapping[str, str]
    seconds: dict[str, float] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)
    _digests: dict[str, str] = field(default_factory=dict)

    def log_of(self, step: Step) -> Path:
        return self.work / "steps" / f"{step.name}.log"

    def run(self, step: Step) -> None:
        """Run a step unless it is complete; the steps that it needs must have run. UserError if it fails."""
        print(f"\n[{step.name}] {shlex.join([*step.command, *step.options])}", flush=True)
        needed = list(self._digests)[-1:] if step.after is None else step.after
        content = json.dumps([step.command, *(self._digests[name] for name in needed)])
        self._digests[step.name] = digest = hashlib.sha256(content.encode()).hexdigest()
        path = self.work / "steps" / f"{step.name}.json"
        stamp: dict[str, Any] = read_json(path) if path.is_file() else {}
        if stamp.get("digest") == digest and stamp["complete"] and (self.work / step.result).exists():
            print("  complete, skipped")
            self.seconds[step.name] = stamp["seconds"]
            self.skipped.add(step.name)
            return
        if not (step.resumes and stamp.get("digest") == digest):
            for result in (*step.clears, step.result):
                _delete(self.work / result)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"digest": digest, "complete": False})
        start = time.monotonic()
        status = self._execute(step)
        self.seconds[step.name] = seconds = time.monotonic() - start
        failed = status not in step.statuses
        if failed or not (self.work / step.result).exists():
            reason = f"ended with status {status}" if failed else f"ended without {self.work / step.result}"
            tail = "\n".join(self.log_of(step).read_text(errors="replace").splitlines()[-TAIL_LINES:])
            raise UserError(f"step {step.name} {reason}; the end of {self.log_of(step)}:\n{tail}")
        write_json(path, {"digest": digest, "complete": True, "seconds": round(seconds, 1)})

    def _execute(self, step: Step) -> int:
        program = shutil.which(step.command[0], path=self.environment["PATH"])
        if program is None:
            raise UserError(f"{step.command[0]} is not installed here; in a clone of fvae_nnunet run: pip install .")
        with (
            self.log_of(step).open("w") as log,
            subprocess.Popen(
                [program, *step.command[1:], *step.options], cwd=self.work, env=self.environment,
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
                # nnU-Net's data loading processes outlive their parent unless the whole group gets the signal
                os.killpg(process.pid, signal.SIGTERM)
                raise
        return process.returncode


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def script(name: str, *arguments: object) -> tuple[str, ...]:
    """Command that runs a script of this folder."""
    return ("python", str(SCRIPTS / name), *map(str, arguments))
