"""One sentence where a package is missing, whoever found that out."""

from __future__ import annotations

import pytest

from fvae_nnunet.errors import UserError
from fvae_nnunet.optional_packages import needed_for

PROTOBUF = """
SentencePieceExtractor requires the protobuf library but it was not found in your environment. Check out the
instructions on the installation page of its repo: https://github.com/protocolbuffers/protobuf/tree/master/python#installation
"""
TIKTOKEN = "`tiktoken` is required to read a `tiktoken` file. Install it with `pip install tiktoken`."
INFLECT = "X requires the inflect library but it was not found. You can install it with pip: `pip\ninstall inflect`"
ACCELERATE = "Using `low_cpu_mem_usage=True` requires Accelerate: `pip install 'accelerate>=0.26.0'`"
PYTORCH = "\nBertModel requires PyTorch >= 99.6, but PyTorch was not found or an older version is installed."


def message_of(error: Exception, cause: Exception | None = None) -> str:
    with pytest.raises(UserError) as caught, needed_for("this"):
        raise error from cause
    return str(caught.value)


@pytest.mark.parametrize(
    ("error", "packages"),
    [
        (ModuleNotFoundError("No module named 'ftfy'", name="ftfy"), "ftfy"),
        (ModuleNotFoundError("No module named 'PIL'", name="PIL"), "pillow"),
        (ModuleNotFoundError("No module named 'google'", name="google"), "sentencepiece protobuf"),
        (ModuleNotFoundError("No module named 'google.protobuf'", name="google.protobuf"), "sentencepiece protobuf"),
        (ImportError(PROTOBUF), "sentencepiece protobuf"),
        (ValueError(TIKTOKEN), "sentencepiece protobuf"),
        (ImportError(INFLECT), "inflect"),
        (ImportError(ACCELERATE), "'accelerate>=0.26.0'"),
        (ImportError(PYTORCH), "'torch>=99.6'"),
    ],
)
def test_the_missing_package_is_named(error, packages, monkeypatch):
    monkeypatch.setattr("fvae_nnunet.optional_packages._is_installed", lambda name: False)
    named = packages.replace("'", "").replace(" ", " and ")
    assert message_of(error) == f"this needs {named}; run: pip install {packages}"


def test_of_the_packages_of_a_tokenizer_only_those_that_lack_are_named(monkeypatch):
    all_there = {"protobuf", "sentencepiece"}
    for there, lacking in (({"sentencepiece"}, "protobuf"), ({"protobuf"}, "sentencepiece"), (all_there, "tiktoken")):
        monkeypatch.setattr("fvae_nnunet.optional_packages._is_installed", there.__contains__)
        assert message_of(ValueError(TIKTOKEN)) == f"this needs {lacking}; run: pip install {lacking}"


def test_the_error_that_diffusers_wraps_counts():
    wrapped = RuntimeError("Failed to import diffusers.models because of the following error")
    assert message_of(wrapped, ModuleNotFoundError("No module named 'ftfy'", name="ftfy")).endswith("install ftfy")


def test_a_package_that_is_there_and_does_not_work_is_another_matter():
    sentence = "this cannot be used because an installed package does not work: "
    for error in (
        ImportError("cannot import name 'shape_base' from 'numpy'"),
        ImportError("libGL.so.1: cannot open shared object file"),
        ModuleNotFoundError("No module named 'torch.nothing'", name="torch.nothing"),
    ):
        assert message_of(error) == sentence + str(error)


@pytest.mark.parametrize("error", [ValueError("a bad value"), RuntimeError("size mismatch"), UserError("no such file")])
def test_other_errors_pass(error):
    with pytest.raises(type(error), match=str(error)), needed_for("this"):
        raise error
