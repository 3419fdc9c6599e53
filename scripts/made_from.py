"""Before ``nnUNetv2_train --c``, delete a training that was made from other files, so that it starts again.

    python scripts/made_from.py FOLD_FOLDER plans.json splits_final.json ...

The folder stores the digests of the files in ``made_from.json``. If they are the same, nothing happens: an interrupted
training resumes from its checkpoint, and a finished one is only validated.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

FILE_NAME = "made_from.json"


def begin(folder: Path, files: Sequence[Path]) -> str:
    """Prepare the folder for a training on these files; return what was done."""
    record = folder / FILE_NAME
    content = {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    if record.is_file() and json.loads(record.read_text()) == content:
        return "resumes"
    outdated = record.is_file()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    record.write_text(json.dumps(content, indent=1))
    return "was made from other files and starts again" if outdated else "starts"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="made_from.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="fold_N of the training")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="files from which the training is made")
    args = parser.parse_args(argv)
    print(f"{args.folder} {begin(args.folder, args.files)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
