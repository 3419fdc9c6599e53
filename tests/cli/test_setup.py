"""fvae-setup --check and --report; the trainers are in tests/nnunet/test_registration.py."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from fvae_nnunet.cli import setup_check, setup_report
from fvae_nnunet.cli.setup import main
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.text_table import COLUMNS
from fvae_nnunet.training.view_states import ViewState
from fvae_nnunet.vae import known_vaes


def test_check_is_right_with_what_is_installed(capsys):
    assert main(["--check", "-device", "cpu"]) == 0
    assert re.fullmatch(
        r"ok     tiny on cpu, float32: [\d.e-]+ HU \(RMS\) from .*, 0\.03 allowed\n", capsys.readouterr().out
    )


def test_check_says_what_is_wrong_and_goes_on(monkeypatch, capsys):
    def refuse(device, dtype):
        raise UserError("other values; use `device=cpu`")

    monkeypatch.setattr("fvae_nnunet.vae.embedded_check.check_embedded", refuse)
    monkeypatch.setattr(setup_check, "_check_disk", lambda dataset, plans_name: f"{plans_name} of {dataset} fits")
    assert main(["--check", "-d", "7", "-p", "Mine", "-device", "cpu"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "WRONG  tiny on cpu, float32: other values; use -device cpu",
        "ok     disk for a view of 7: Mine of 7 fits",
    ]


@pytest.mark.parametrize(("free", "status"), [(2.9e9, 1), (3.1e9, 0)])
def test_too_little_disk_for_a_view_is_noticed(free, status, monkeypatch, capsys):
    dataset = SimpleNamespace(view_bytes=3e9, data_folders={"2d": "", "3d_fullres": ""})
    monkeypatch.setattr("fvae_nnunet.preprocessing.dataset.open_preprocessed_dataset", lambda *_, **__: dataset)
    monkeypatch.setattr("fvae_nnunet.vae.embedded_check.check_embedded", lambda device, dtype: (0.0, 1.0))
    monkeypatch.setattr(setup_check.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    assert main(["--check", "-d", "7"]) == status
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("WRONG" if status else "ok")
    assert f"about 3.00 GB for 2d, 3d_fullres, {free / 1e9:.2f} GB free" in said


def test_options_of_check_alone_are_refused_elsewhere(capsys):
    assert main(["--report", "-d", "7"]) == 1
    assert "-d: only valid with --check" in capsys.readouterr().err


def test_the_report_has_80_columns_and_says_what_there_is(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "a" / ("long_name_" * 3) / ("longer_name_" * 3) / ("no_line_has_room_for_this_" * 3)
    (folder / "Dataset007_Pancreas").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("nnUNet_raw", str(folder))
    monkeypatch.setenv("nnUNet_preprocessed", str(folder))
    monkeypatch.delenv("nnUNet_results", raising=False)
    monkeypatch.setenv("nnUNet_fvae_view", "wan2.1")
    monkeypatch.setenv("nnUNet_fvae_weights", f"{tmp_path}_of_others/x")
    monkeypatch.setattr("fvae_nnunet.nnunet.registration.why_not_found", lambda: "no module names it")
    data = folder / "Dataset007_Pancreas" / "nnUNetPlans_2d"
    states = [ViewState(data, "wan2.1", "wan2.1", whole=2, recorded=3, cases=9), ViewState(data, "b", fault="no JSON")]
    monkeypatch.setattr("fvae_nnunet.training.view_states.view_states", lambda preprocessed: states)
    monkeypatch.setattr(setup_report.shutil, "disk_usage", lambda path: SimpleNamespace(free=70.2e9))
    assert main(["--report"]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    assert f"{tmp_path}/" not in said
    assert f"\nnnUNet_raw          ~/a/{'long_name_' * 3}/\n                    longer_name_" in said
    words = " ".join(said.split())
    for part in (
        "1 dataset, 70 GB free",
        "nnUNet_results not set",
        "nnUNet_fvae_view=wan2.1",
        f"{tmp_path.name}_of_others/",
        "trainers not found: no module names it",
        "weights on this machine: tiny",
        "Dataset007_Pancreas/nnUNetPlans_2d, wan2.1: wan2.1, 2 of 9 cases, 1 damaged",
        "Dataset007_Pancreas/nnUNetPlans_2d, b: no JSON",
    ):
        assert part in words


@pytest.mark.parametrize("options", [["--show"], ["--vaes"]])
def test_no_line_is_longer_than_a_terminal_but_the_one_to_paste(capsys, monkeypatch, options):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)
    main(options)
    out = capsys.readouterr().out
    assert all(len(line) <= COLUMNS for line in out.splitlines() if "extTrainer" not in line)
    assert all(vae.name in out for vae in known_vaes()) and "control:nlm" in out
