"""fvae-setup: what it prints fits into a terminal."""

import pytest

from fvae_nnunet.cli.setup import main
from fvae_nnunet.evaluation.text_table import COLUMNS
from fvae_nnunet.vae import known_vaes


@pytest.mark.parametrize("options", [["--show"], ["--vaes"]])
def test_no_line_is_longer_than_a_terminal_but_the_one_to_paste(capsys, monkeypatch, options):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)
    main(options)
    out = capsys.readouterr().out
    assert all(len(line) <= COLUMNS for line in out.splitlines() if "extTrainer" not in line)
    assert all(vae.name in out for vae in known_vaes()) and "control:nlm" in out
