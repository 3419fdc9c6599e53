"""A tiny random BERT, saved as transformers saves its models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "mass", "in", "the", "liver", "left", "lobe", "."]


def save_tiny_bert(folder: Path, *, seed: int = 0, heads: bool = False, **config: Any) -> Any:
    """A BERT of width 16 for at most 8 tokens and its vocabulary; with ``heads`` as saved by masked training."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    settings = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings |= {"intermediate_size": 32, "max_position_embeddings": 8} | config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        bert_class = transformers.BertForMaskedLM if heads else transformers.BertModel
        model = bert_class(transformers.BertConfig(**settings)).eval()
    model.save_pretrained(folder)
    return model
