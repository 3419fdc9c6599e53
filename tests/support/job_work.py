"""A command for the tests of ``jobs.submit``: its cases are files, made under locks."""

import os
import signal
import time
from pathlib import Path

from fvae_nnunet.jobs.locks import CaseLocks


def main(argv: list[str]) -> int:
    folder, cases, mishap = Path(argv[0]), int(argv[1]), argv[2]
    with CaseLocks([folder]) as locks:
        for case in locks.each([f"case_{number}" for number in range(cases)]):
            if not (folder / case).exists():
                time.sleep(0.05)
                if mishap == "one is killed" and not (folder / "killed").exists():
                    (folder / "killed").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                (folder / case).write_text(str(os.getpid()))
            locks.release(case)
    return 3 if mishap == "fails" else 0
