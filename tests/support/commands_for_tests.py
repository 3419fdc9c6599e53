"""The commands that are installed, and what they take."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata

COMMANDS = {
    entry.name: importlib.import_module(entry.module)
    for entry in importlib.metadata.entry_points(group="console_scripts")
    if entry.value.startswith("fvae_nnunet.cli.")
}


def parsed(words: list[str], monkeypatch) -> argparse.Namespace:
    module = COMMANDS[words[0]]
    with monkeypatch.context() as patch:
        patch.setattr(module, "run_command", lambda parser, run, argv: parser.parse_args(argv))
        return module.main(words[1:])
