"""What all commands share: how they are parsed, and what becomes of their output and of the files that they write."""

import argparse
import importlib.metadata
import io
import json
import os
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands_for_tests import COMMANDS, parsed

from fvae_nnunet.cli import preprocess
from fvae_nnunet.cli.command import run_command
from fvae_nnunet.cli.common_options import add_common
from fvae_nnunet.cli.outputs import holds, is_json_of, is_our_summary, is_summary, refuse_other_output
from fvae_nnunet.cli.parsers import CommandParser, add_dataset, dataset_of, datasets_of
from fvae_nnunet.command_lines import command_line
from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.each_case import run_each
from fvae_nnunet.jobs import progress_bar as bars
from fvae_nnunet.jobs.manifest import Manifest
from fvae_nnunet.nnunet.files import find_plans
from fvae_nnunet.trainers.recording_trainer import RecordingTrainer
from fvae_nnunet.trainers.synth_trainer import nnUNetTrainerFVAESynth
from fvae_nnunet.training.views import default_view_name, find_view, view_folder

BY_DATASET = {
    "fvae-preprocess": [], "fvae-train-ldm": [], "fvae-train-classifier": [],
    "fvae-synthesize": ["--ldm", "model", "-n", "1"], "fvae-show-batch": ["3d_fullres", "0"],
    "fvae-predict": ["-i", "in", "-o", "out", "-c", "2d"],
}  # fmt: skip
TO_FOLDERS = {
    "fvae-reconstruct": ["-i", "in"], "fvae-predict": ["-i", "in", "-m", "model"],
    "fvae-synthesize": ["7", "--ldm", "model", "-n", "1"], "fvae-evaluate-generation": ["real", "fake"],
    "fvae-train-ldm": ["7"], "fvae-train-classifier": ["7"],
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
            assert parsed([name, "-d", "7", *BY_DATASET[name], option, "Mine"], monkeypatch).plans_name == "Mine"


def test_several_datasets_are_for_preprocessing_and_two_ways_for_nobody(monkeypatch):
    several = parsed(["fvae-preprocess", "-d", "7", "8", "7", "-c", "2d"], monkeypatch)
    assert datasets_of(several) == ["7", "8"]
    with pytest.raises(UserError, match="expected one dataset, got -d 7 8"):
        dataset_of(parsed(["fvae-train-ldm", "-d", "7", "8"], monkeypatch))
    with pytest.raises(UserError, match="named twice: 7 and -d 8"):
        dataset_of(parsed(["fvae-train-ldm", "7", "-d", "8"], monkeypatch))
    with pytest.raises(UserError, match="no dataset is named"):
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
    """A stream of a terminal; ``shown`` is what all its streams have written."""

    def __init__(self, shown=None):
        super().__init__()
        self.shown = [] if shown is None else shown

    def isatty(self):
        return True

    def write(self, text):
        self.shown.append(text)
        return len(text)

    def getvalue(self):
        return "".join(self.shown)


def shown_lines(text):
    """What stands on the terminal's lines in the end, without bars."""
    return [line.split("\r")[-1].strip() for line in text.split("\n")]


def test_messages_do_not_stand_on_the_line_of_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", Terminal(terminal.shown))
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


@pytest.mark.parametrize("error", [UserError("it went wrong"), KeyboardInterrupt()])
def test_an_error_has_a_line_of_its_own_below_a_bar_that_was_left_open(monkeypatch, error):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", Terminal(terminal.shown))

    def run(arguments):
        arguments.bar = bars.progress_bar(total=3, unit="case", mininterval=0)
        arguments.bar.update()
        raise error

    assert run_command(CommandParser(prog="fvae-x"), run, []) in (1, 130)
    *_, bar, said, end = terminal.getvalue().split("\n")
    assert "1/3" in bar and end == "" and said == f"fvae-x: {str(error) or 'interrupted'}"


def test_a_counting_bar_knows_its_total_before_the_first_case_is_done(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    def first(task):
        assert "0/4" in terminal.getvalue()
        return task

    with bars.counting_bar(unit="case") as on_case:
        assert run_each(first, [1, 2, 3, 4], 0, on_case) == [1, 2, 3, 4]
    assert "4/4" in terminal.getvalue()


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
        refuse_other_output(target, is_ours=is_ours, beside=[table], ending=target.suffix, command="fvae-x")

    check()
    table.write_text("mine")
    with pytest.raises(UserError, match=r"comparison\.csv exists and was not written by fvae-x; name another"):
        check()
    path.write_text(json.dumps({"kind": "comparison"}))
    check()
    for other in ('{"labels": {}, "numTraining": 3}', "[]", "no JSON", '{"kind": "view"}'):
        path.write_text(other)
        with pytest.raises(UserError, match=r"comparison\.json exists and was not written by fvae-x"):
            check()
    of_nnunet = {"metric_per_case": [], "foreground_mean": {}}
    options = {"is_ours": is_summary, "has_beside": is_our_summary, "beside": [table], "command": "fvae-x"}
    path.write_text(json.dumps(of_nnunet | {"fvae": {}}))
    refuse_other_output(path, **options)
    path.write_text(json.dumps(of_nnunet))
    with pytest.raises(UserError, match=r"comparison\.csv exists and was not written by fvae-x"):
        refuse_other_output(path, **options)
    table.unlink()
    refuse_other_output(path, **options)
    with pytest.raises(UserError, match="is a folder"):
        check(target=tmp_path)
    with pytest.raises(UserError, match=r"-o must name a file that ends in \.json, got .*\.csv"):
        refuse_other_output(table, is_ours=of_comparison, command="fvae-x")
    with pytest.raises(UserError, match=r"comparison\.json is not a folder"):
        check(target=path / "below" / "a.json")
    page = tmp_path / "page.html"
    page.write_text("<p>Made by me</p>")
    with pytest.raises(UserError, match="was not written by"):
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
    assert f"{file} exists and was not written by {name}; name another file with -o" in capsys.readouterr().err
    assert Path(file).read_text() == '{"labels": {}}'


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_no_command_takes_a_file_for_its_output_folder(name, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(COMMANDS[name], "run_command", lambda parser, run, argv: parser)
        parser = COMMANDS[name].main([])
    takes_a_folder = any(action.dest == "output" and action.metavar == "FOLDER" for action in parser._actions)
    assert takes_a_folder is (name in TO_FOLDERS)
    if not takes_a_folder:
        return
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("mine")
    link.symlink_to("/nowhere/folder")
    for output, place in ((file, file), (file / "below" / "out", file), (link, link)):
        assert COMMANDS[name].main([*TO_FOLDERS[name], "-o", str(output)]) == 1
        said = capsys.readouterr().err
        assert said == f"{name}: -o {output}: {place} is not a folder; name another folder with -o\n"
    assert file.read_text() == "mine"


def test_a_parser_of_datasets_and_plans_stands_alone():
    parser = CommandParser(prog="fvae-x")
    add_dataset(parser)
    add_common(parser, "plans_name")
    assert vars(parser.parse_args(shlex.split("7"))) == {
        "dataset": "7", "d": None, "plans_name": "nnUNetPlans", "progress_bar": True,
    }  # fmt: skip


def test_no_prediction_and_no_synthesis_replaces_the_dataset_json_of_something_else(tmp_path):
    from fvae_nnunet.nnunet.predictor import ARGUMENTS_FILE, check_holds_predictions
    from fvae_nnunet.synthesis.generation.job import check_is_ours

    for check in (check_holds_predictions, check_is_ours):
        check(tmp_path)
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds dataset\.json but no predictions; choose another folder \(`output`\)"):
        check_holds_predictions(tmp_path)
    with pytest.raises(UserError, match=r"holds dataset\.json, which was not made by fvae-synthesize"):
        check_is_ours(tmp_path)
    (tmp_path / ARGUMENTS_FILE).write_text("{}")
    check_holds_predictions(tmp_path)


class _Parsed(Exception):
    """Carries what a parser of nnU-Net has understood."""


def understood(command, monkeypatch):
    """What a printed command line says to its program: ours or nnU-Net's."""
    words = shlex.split(command)
    while "=" in words[0]:
        words.pop(0)
    if words[0] in COMMANDS:
        return parsed(words, monkeypatch)
    (entry,) = (e for e in importlib.metadata.entry_points(group="console_scripts") if e.name == words[0])
    real = argparse.ArgumentParser.parse_args

    def parse_args(self, *arguments):
        raise _Parsed(real(self, *arguments))

    with monkeypatch.context() as patch, pytest.raises(_Parsed) as caught:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(sys, "argv", words)
        entry.load()()
    return caught.value.args[0]


def preprocessed(tmp_path, *views):
    folders = {name: tmp_path / f"Dataset007_X/nnUNetPlans_{name}" for name in ("2d", "3d_fullres")}
    for folder in folders.values():
        for view in views:
            Manifest(view_folder(folder, view)).begin("view", {}, {"parameters": {}})
    return SimpleNamespace(name="Dataset007_X", plans_name="Plans of mine", data_folders=folders)


def test_the_printed_training_takes_3d_fullres_and_says_which_of_several_views(tmp_path, monkeypatch):
    one, two = preprocessed(tmp_path / "one", "tiny"), preprocessed(tmp_path / "two", "tiny", "taef2")
    command = preprocess._training_command(one, "nnUNetTrainerFVAE", "tiny")
    assert command == "nnUNetv2_train 7 3d_fullres 0 -tr nnUNetTrainerFVAE -p 'Plans of mine'"
    assert preprocess._training_command(two, "nnUNetTrainerFVAE", "taef2") == f"nnUNet_fvae_view=taef2 {command}"
    for printed in (command, f"nnUNet_fvae_view=taef2 {command}"):
        training = understood(printed, monkeypatch)
        assert (training.dataset_name_or_id, training.configuration, training.fold) == ("7", "3d_fullres", "0")
        assert (training.tr, training.p) == ("nnUNetTrainerFVAE", "Plans of mine")


@pytest.mark.parametrize("view", ["wan2.1", "tiny", "diffusers-stabilityai-sd-vae-ft-mse", "control-gaussian", "mine"])
def test_the_printed_repair_of_a_view_makes_it(view, tmp_path, monkeypatch):
    data = preprocessed(tmp_path).data_folders["3d_fullres"]
    monkeypatch.setenv("nnUNet_fvae_view", view)
    with pytest.raises(UserError, match=f"asks for the view '{view}'") as caught:
        find_view(data, partial(command_line, "fvae-preprocess", 7, c="3d_fullres", p="Plans of mine"))
    command = str(caught.value).partition("with: ")[2].partition(", with")[0].partition(" (")[0]
    arguments = understood(command, monkeypatch)
    assert (
        dataset_of(arguments) == "7"
        and arguments.plans_name == "Plans of mine"
        and arguments.configurations == ["3d_fullres"]
    )
    assert (arguments.view or default_view_name(arguments.vae)) == ("wan2.1" if view == "mine" else view)
    assert default_view_name(arguments.vae) == (arguments.view or "wan2.1")


def test_printed_commands_of_plans_and_synthesis_are_understood(tmp_path, monkeypatch):
    folder = tmp_path / "Dataset007_X"
    with pytest.raises(UserError, match="run first: ") as caught:
        find_plans(folder, "nnUNetPlans")
    assert understood(str(caught.value).partition("run first: ")[2], monkeypatch).d == [7]
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "with a space"))
    plans = SimpleNamespace(dataset_name="Dataset007_X", plans_name="nnUNetPlans")
    trainer = SimpleNamespace(
        plans_manager=plans, fold=2, configuration_name="2d", output_folder_base=str(tmp_path / "a b" / "model")
    )
    train, synthesize = nnUNetTrainerFVAESynth._synthesize_command(trainer).split(" && ")
    assert understood(train, monkeypatch).fold == 2
    arguments = understood(synthesize, monkeypatch)
    assert arguments.ldm == tmp_path / "a b" / "fvae_ldm__wan2.1__fold2" and arguments.n and arguments.fold == 2
    folder = tmp_path / "with a space"
    arguments = understood(RecordingTrainer.preprocess_command(trainer, synthetic=folder), monkeypatch)
    assert (
        arguments.synthetic == folder and arguments.configurations == ["2d"] and arguments.plans_name == "nnUNetPlans"
    )
