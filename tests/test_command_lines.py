import argparse
import shlex

from fvae_nnunet.command_lines import command_line, options_of


def test_a_command_line_gives_its_parameters_back():
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset")
    parser.add_argument("-np", type=int)
    parser.add_argument("-device")
    parser.add_argument("--vae-code")
    parser.add_argument("--hu-window", nargs=2, type=float, action="append")
    parser.add_argument("--channels", nargs="+", type=int)
    parser.add_argument("--truncate", action="store_true")
    parser.add_argument("--overwrite", action="store_true")
    parameters = {
        "np": 4,
        "device": "cpu",
        "vae_code": "with a space",
        "hu_window": [[-1000.0, 1000.0], [-150.0, 250.5]],
        "channels": [0, 2],
        "truncate": True,
        "overwrite": False,
    }
    line = command_line("fvae-preprocess", 7, **parameters)
    assert line.startswith("fvae-preprocess 7 -np 4 -device cpu --vae-code 'with a space' --hu-window -1000 1000 ")
    assert vars(parser.parse_args(shlex.split(line)[1:])) == parameters | {"dataset": "7"}


def test_what_was_not_given_is_left_out():
    assert options_of({"weights": None, "overwrite": False}) == []
    assert command_line("fvae-setup") == "fvae-setup"
