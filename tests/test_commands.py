"""What all commands share: how they are parsed, and what becomes of their output and of the files that they write."""

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_docs import COMMANDS, parsed

from fvae_nnunet import progress_bar as bars
from fvae_nnunet.cli.command import run_command
from fvae_nnunet.cli.outputs import holds, is_json_of, is_summary, refuse_other_output
from fvae_nnunet.cli.parsers import CommandParser, add_dataset, add_plans, dataset_of, datasets_of
from fvae_nnunet.errors import UserError

BY_DATASET = {
    "fvae-preprocess": [], "fvae-train-ldm": [], "fvae-train-classifier": [],
    "fvae-synthesize": ["--ldm", "model", "-n", "1"], "fvae-show-batch": ["3d_fullres", "0"],
    "fvae-predict": ["-i", "in", "-o", "out", "-c", "2d"],
}  # fmt: skip
BY_PLANS = BY_DATASET.keys() - {"fvae-train-classifier"}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_options_are_taken_in_full_and_the_version_is_known(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        COMMANDS[name].main(["--version"])
    assert capsys.readouterr().out.startswith("fvae_nnunet ")
    with pytest.raises(SystemExit, match="2"):
        COMMANDS[name].main(["--versio"])
    with pytest.raises(SystemExit, match="0"):
        COMMANDS[name].main(["--help"])
    assert "--disable_progress_bar" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(BY_DATASET))
def test_a_dataset_is_named_as_in_nnunets_commands(name, monkeypatch):
    arguments = parsed([name, "-d", "7", *BY_DATASET[name]], monkeypatch)
    assert dataset_of(arguments) == "7"
    if name in BY_PLANS:
        for option in ("-p", "-plans_name"):
            assert parsed([name, "-d", "7", *BY_DATASET[name], option, "Mine"], monkeypatch).p == "Mine"


def test_several_datasets_are_for_preprocessing_and_two_ways_for_nobody(monkeypatch):
    several = parsed(["fvae-preprocess", "-d", "7", "8", "7", "-c", "2d"], monkeypatch)
    assert datasets_of(several) == ["7", "8"]
    with pytest.raises(UserError, match="one dataset at a time, got -d 7 8"):
        dataset_of(parsed(["fvae-train-ldm", "-d", "7", "8"], monkeypatch))
    with pytest.raises(UserError, match="named twice: 7 and -d 8"):
        dataset_of(parsed(["fvae-train-ldm", "7", "-d", "8"], monkeypatch))
    with pytest.raises(UserError, match="which dataset"):
        dataset_of(parsed(["fvae-preprocess", "--vae", "tiny"], monkeypatch))
    assert datasets_of(parsed(["fvae-preprocess", "--vae", "tiny", "7", "-np", "0"], monkeypatch)) == ["7"]


def test_subcommands_are_parsed_alike(monkeypatch, capsys):
    assert dataset_of(parsed(["fvae-convert", "check", "-d", "7"], monkeypatch)) == "7"
    with pytest.raises(SystemExit, match="2"):
        parsed(["fvae-convert", "ct-rate", "root", "--data", "40_A"], monkeypatch)


SCRIPT = """
import sys
from fvae_nnunet.cli.command import run_command
from fvae_nnunet.cli.parsers import CommandParser

def run(arguments):
    for number in range({lines}):
        print("line", number, {text!r})
    return 0

sys.exit(run_command(CommandParser(prog="fvae-x"), run, {argv}))
"""


def ended(*, lines=1, text="", argv=(), stdout=subprocess.PIPE, **environment):
    """Status and stderr of a command whose output nobody reads, or that goes elsewhere."""
    code = SCRIPT.format(lines=lines, text=text, argv=list(argv))
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": ""} | environment,
    )
    if process.stdout is not None:
        process.stdout.close()
    stderr = process.stderr.read().decode()
    return process.wait(), stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("lines", [1, 20_000])
def test_a_reader_who_has_gone_ends_a_command_quietly(lines, unbuffered):
    assert ended(lines=lines, PYTHONUNBUFFERED=unbuffered) == (141, "")


def test_help_that_nobody_reads_ends_quietly():
    status, stderr = ended(argv=["--help"])
    assert status in (0, 141) and stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_an_error():
    with Path("/dev/full").open("w") as full:
        assert ended(stdout=full) == (1, "fvae-x: the output: No space left on device\n")


def test_what_the_encoding_cannot_show_is_escaped(tmp_path):
    target = tmp_path / "out"
    with target.open("w") as file:
        assert ended(text="HU² → \udce9", stdout=file, PYTHONIOENCODING="ascii") == (0, "")
    assert target.read_text() == "line 0 HU\\xb2 \\u2192 \\udce9\n"


def test_another_broken_pipe_is_not_hidden(capsys):
    def run(arguments):
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        run_command(CommandParser(prog="fvae-x"), run, [])


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown_lines(text):
    """What stands on the terminal's lines in the end, without bars."""
    return [line.split("\r")[-1].strip() for line in text.split("\n")]


def test_messages_do_not_stand_on_the_line_of_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    with bars.messages_beside_bars(), bars.progress_bar(total=3, unit="case", leave=False, mininterval=0) as bar:
        for case in range(3):
            print("case", case)
            print("warning", case, file=sys.stderr)
            bar.update()
        print("begun", end=" ")
        print("ended")
    lines = shown_lines(terminal.getvalue())
    assert [line for line in lines if line and "case/s" not in line and "/3 [" not in line] == [
        "case 0", "warning 0", "case 1", "warning 1", "case 2", "warning 2", "begun ended",
    ]  # fmt: skip


def test_without_a_terminal_there_are_lines_and_no_bar(monkeypatch, capsys):
    monkeypatch.setattr(bars, "LINE_EVERY_S", 0.0)
    with bars.progress_bar(total=2, unit="case", desc="scoring") as bar:
        bar.set_postfix_str("a: slice 1/2")
        bar.update()
        bar.update()
    err = capsys.readouterr().err
    assert "scoring 2/2 case" in err and "\r" not in err and "%" not in err
    monkeypatch.setattr(bars, "LINE_EVERY_S", 60.0)
    with bars.progress_bar(total=2) as bar:
        bar.update(2)
    assert bar.n == 2 and capsys.readouterr().err == ""


def test_no_bars_if_they_are_not_wanted(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    def run(arguments):
        with bars.progress_bar(total=1) as bar:
            bar.update()
        return 0

    try:
        assert run_command(CommandParser(prog="fvae-x"), run, ["--disable_progress_bar"]) == 0
        assert terminal.getvalue() == ""
        assert run_command(CommandParser(prog="fvae-x"), run, []) == 0
        assert "1/1" in terminal.getvalue()
    finally:
        bars.show_bars(True)


def test_only_ones_own_results_are_replaced(tmp_path):
    path, table = tmp_path / "comparison.json", tmp_path / "comparison.csv"

    of_comparison = is_json_of("comparison")

    def check(is_ours=of_comparison, target=path):
        refuse_other_output(target, is_ours=is_ours, beside=[table], command="fvae-x")

    check()
    table.write_text("mine")
    with pytest.raises(UserError, match=r"comparison\.csv is there, and fvae-x has not written it; name another"):
        check()
    path.write_text(json.dumps({"kind": "comparison"}))
    check()
    for other in ('{"labels": {}, "numTraining": 3}', "[]", "no JSON", '{"kind": "view"}'):
        path.write_text(other)
        with pytest.raises(UserError, match=r"comparison\.json is there, and fvae-x has not written it"):
            check()
    path.write_text(json.dumps({"metric_per_case": [], "foreground_mean": {}}))
    check(is_summary)
    with pytest.raises(UserError, match="is a folder"):
        check(target=tmp_path)
    with pytest.raises(UserError, match=r"comparison\.json is no folder"):
        check(target=path / "below" / "a.json")
    page = tmp_path / "page.html"
    page.write_text("<p>Made by me</p>")
    with pytest.raises(UserError, match="has not written it"):
        check(holds("Made by fvae"), page)
    page.write_text("<p>Made by fvae</p>")
    check(holds("Made by fvae"), page)


@pytest.mark.parametrize(
    ("name", "words", "file"),
    [
        ("fvae-evaluate", ["refs", "preds"], "dataset.json"),
        ("fvae-evaluate", ["refs", "one", "two"], "dataset.json"),
        ("fvae-evaluate-reconstruction", ["raw", "view"], "dataset.json"),
        ("fvae-evaluate-classifier", ["reports.json", "a.csv"], "dataset.json"),
        ("fvae-report", ["results.json"], "page.html"),
        ("fvae-report", ["results.json", "--format", "markdown"], "notes.md"),
        ("fvae-show-batch", ["7", "3d_fullres", "0"], "scan.png"),
    ],
)
def test_every_command_leaves_other_files_alone(name, words, file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path(file).write_text('{"labels": {}}')
    assert COMMANDS[name].main([*words, "-o", file]) == 1
    assert f"{file} is there, and {name} has not written it; name another file with -o" in capsys.readouterr().err
    assert Path(file).read_text() == '{"labels": {}}'


def test_a_parser_of_datasets_and_plans_stands_alone():
    parser = CommandParser(prog="fvae-x")
    add_dataset(parser)
    add_plans(parser)
    assert vars(parser.parse_args(shlex.split("7"))) == {
        "dataset": "7", "d": None, "p": "nnUNetPlans", "disable_progress_bar": False,
    }  # fmt: skip
