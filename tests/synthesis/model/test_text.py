"""Report text and its embeddings, with a tiny BERT saved by the test."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from tiny_bert import WORDS, save_tiny_bert

from fvae_nnunet.errors import UserError
from fvae_nnunet.synthesis.model.text import ReportEncoder

pytest.importorskip("transformers")


@pytest.fixture
def bert(tmp_path):
    save_tiny_bert(tmp_path / "bert")
    return tmp_path / "bert"


def test_embedding_is_the_last_hidden_state(tmp_path):
    model = save_tiny_bert(tmp_path)
    embedding = ReportEncoder(tmp_path).encode("Mass in the liver.")
    ids = [[WORDS.index(word) for word in ["[CLS]", "mass", "in", "the", "liver", ".", "[SEP]"]]]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(ids)).last_hidden_state[0]
    torch.testing.assert_close(embedding, expected)
    assert embedding.shape == (7, 16) and not embedding.requires_grad


def test_embeddings_are_kept_by_text_and_weights(bert, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = ReportEncoder(bert, cache=cache)
    embedding = first.encode("no mass")
    first.encode("mass")
    assert len(list(cache.iterdir())) == 2
    again = ReportEncoder(bert, cache=cache)
    with monkeypatch.context() as patch:
        patch.setattr(again, "_embed", lambda tokens: pytest.fail("it was in the cache"))
        assert torch.equal(again.encode("no mass"), embedding)
    save_tiny_bert(tmp_path / "other", seed=1)
    other = ReportEncoder(tmp_path / "other", cache=cache)
    assert other.weights_sha256 != first.weights_sha256 == again.weights_sha256
    assert not torch.equal(other.encode("no mass"), embedding)
    half = ReportEncoder(bert, cache=cache, dtype=torch.float16).encode("no mass")
    assert torch.equal(half, embedding.half()) and half.dtype == torch.float16
    assert len(list(cache.iterdir())) == 4
    next(cache.iterdir()).write_bytes(b"half")
    for path in cache.iterdir():
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    assert torch.equal(first.encode("no mass"), embedding), "what is damaged is made again"


def test_long_text_is_cut_with_a_warning(bert):
    encoder = ReportEncoder(bert)
    assert encoder.max_tokens == 8
    with pytest.warns(UserWarning, match="11 tokens is truncated to 8"):
        cut = encoder.encode("no mass in the left lobe in the liver")
    assert len(cut) == 8
    torch.testing.assert_close(cut, encoder.encode("no mass in the left lobe"))


def test_cxr_bert_is_read_without_running_its_code(tmp_path):
    """The default encoder's configuration names a type that transformers does not know, and code to run."""
    model = save_tiny_bert(tmp_path, heads=True)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text()) | {"model_type": "cxr-bert", "architectures": ["CXRBertModel"]}
    config["auto_map"] = {"AutoModel": "modeling_cxrbert.CXRBertModel"}
    path.write_text(json.dumps(config))
    (tmp_path / "modeling_cxrbert.py").write_text("raise SystemExit('this code was run')\n")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CXRBertTokenizer",
                "auto_map": {"AutoTokenizer": ["modeling_cxrbert.CXRBertTokenizer", None]},
                "model_max_length": 6,
            }
        )
    )
    encoder = ReportEncoder(tmp_path)
    ids = torch.tensor([[WORDS.index(word) for word in ["[CLS]", "no", "mass", "[SEP]"]]])
    with torch.no_grad():
        expected = model.bert(input_ids=ids).last_hidden_state[0]
    torch.testing.assert_close(encoder.encode("no mass"), expected)
    assert encoder.max_tokens == 6
    # the pooler that the file lacks is drawn anew each time and does not count
    assert ReportEncoder(tmp_path).weights_sha256 == encoder.weights_sha256


def test_masked_training_leaves_a_usable_encoder(tmp_path):
    model = save_tiny_bert(tmp_path, heads=True)
    encoder = ReportEncoder(tmp_path)
    ids = torch.tensor([[WORDS.index(word) for word in ["[CLS]", "no", "mass", "[SEP]"]]])
    with torch.no_grad():
        torch.testing.assert_close(encoder.encode("no mass"), model.bert(input_ids=ids).last_hidden_state[0])
    assert ReportEncoder(tmp_path).weights_sha256 == encoder.weights_sha256


def test_a_pooler_that_is_drawn_at_each_load_does_not_count(tmp_path, monkeypatch):
    """transformers before 4.50 draws it anew and names its keys as the file would, below ``bert.``."""
    import transformers

    save_tiny_bert(tmp_path, heads=True)
    expected = ReportEncoder(tmp_path).weights_sha256
    load = transformers.AutoModel.from_pretrained

    def load_as_before(*args, **options):
        model, loading = load(*args, **options)
        torch.nn.init.normal_(model.pooler.dense.weight)
        assert set(loading["missing_keys"]) == {"pooler.dense.bias", "pooler.dense.weight"}
        return model, loading | {"missing_keys": [f"bert.{key}" for key in loading["missing_keys"]]}

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", load_as_before)
    assert ReportEncoder(tmp_path).weights_sha256 == expected


def test_a_tokenizer_without_its_packages_names_them(bert, monkeypatch):
    import transformers

    def lacking(*args, **options):
        raise ImportError("requires the protobuf library but it was not found in your environment")

    monkeypatch.setattr("fvae_nnunet.optional_packages._is_installed", lambda name: name == "sentencepiece")
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lacking)
    with pytest.raises(UserError, match=r"text encoder .*bert needs protobuf; run: pip install protobuf"):
        ReportEncoder(bert)


def test_unusable_encoders_are_refused(bert, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="neither an existing folder nor a hub id"):
        ReportEncoder(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be loaded"):
        ReportEncoder(tmp_path / "empty")
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"lacks encoder\.layer\.2"):
        ReportEncoder(bert)
    (bert / "config.json").write_text(json.dumps(config | {"is_encoder_decoder": True}))
    with pytest.raises(UserError, match="with a decoder"):
        ReportEncoder(bert)
    with pytest.raises(UserError, match="a report is empty"):
        save_tiny_bert(tmp_path / "good")
        ReportEncoder(tmp_path / "good").encode("  ")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="report text needs transformers; run: pip install transformers"):
        ReportEncoder(bert)


def test_an_encoder_out_of_reach_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set.*`text_encoder`"):
        ReportEncoder("nobody/no-such-encoder")
