"""Cosines between CT-CLIP's vectors of generated images, their real counterparts and their texts.

Published scores of text-conditioned CT generation: the cosine between a generated volume and the real one with the same
report (image-image), and between a generated volume and its report (text-image). Both are reported with the value for
unrelated pairs, because cosines of any two CTs are high.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fvae_nnunet.errors import UserError
from fvae_nnunet.evaluation.generation.feature_networks import as_rows, load_torchscript
from fvae_nnunet.evaluation.generation.image_sets import ImageSet
from fvae_nnunet.evaluation.statistics import mean_and_interval
from fvae_nnunet.files.recorded import sha256_of_file
from fvae_nnunet.nnunet.report_texts import DEFAULT_TEXT_ENCODER
from fvae_nnunet.optional_packages import needed_for

TOKENS = 512
"""CT-CLIP's text length; shorter texts are padded, longer ones truncated."""

_DROPPED = str.maketrans("", "", "\"'()")
"""Characters removed from texts, as in CT-CLIP's published scripts."""


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows (n, width) scaled to unit length.

    Raises:
        UserError: a row is zero.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (lengths > 0).all():
        raise UserError("features of an image or text are all zero, so there is no cosine; check the network")
    return vectors / lengths


def pair_with_real(real: ImageSet, fake: ImageSet) -> dict[str, str]:
    """Generated case -> real case that is its source or has its name; only for cases that have one."""
    names = {case.name for case in real.cases}
    found = {case.name: case.source if case.source in names else case.name for case in fake.cases}
    return {name: partner for name, partner in found.items() if partner in names}


def matched_cosines(ours: np.ndarray, theirs: np.ndarray, partner: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Cosine of each row with its partner, and its mean cosine with all other rows.

    Args:
        ours: vectors (n, width).
        theirs: vectors (m, width).
        partner: (n,) indices of rows of ``theirs``.

    Returns:
        Both (n,); the mean is NaN if there is no other row.
    """
    cosines = unit(ours) @ unit(theirs).T
    matched = cosines[np.arange(len(ours)), list(partner)]
    others = len(theirs) - 1
    return matched, (cosines.sum(axis=1) - matched) / others if others else np.full(len(ours), np.nan)


def summarise_cosines(
    matched: Mapping[str, float], unrelated: np.ndarray, *, seed: int, resamples: int
) -> dict[str, Any]:
    """Mean with its 95 % bootstrap interval over cases, mean of unrelated pairs, and values of all cases."""
    mean, interval = mean_and_interval(list(matched.values()), seed=seed, resamples=resamples)
    known = unrelated[np.isfinite(unrelated)]
    return {
        "mean": mean,
        "low": interval.low,
        "high": interval.high,
        "unrelated": float(known.mean()) if known.size else float("nan"),
        "n": len(matched),
        "cases": {case: float(value) for case, value in matched.items()},
    }


class TextNetwork:
    """CT-CLIP's text part as TorchScript: (input_ids, attention_mask), both int64 (1, 512) -> (1, width).

    Args:
        path: TorchScript file.
        tokenizer: hub id or folder of a BERT tokenizer (``vocab.txt``); default: the one CT-CLIP was trained with.
        trust_weights: see ``load_torchscript``.
        device: device to compute on.

    Attributes:
        sha256: digest of the file.

    Raises:
        UserError: the network is not trusted, or it or the tokenizer cannot be loaded.
    """

    def __init__(
        self, path: Path, *, tokenizer: str | None = None, trust_weights: bool = False, device: str = "cpu"
    ) -> None:
        self.path, self.tokenizer_name = path, tokenizer or DEFAULT_TEXT_ENCODER
        self._module = load_torchscript(path, device, trust_weights=trust_weights)
        self.sha256 = sha256_of_file(path)
        self._tokenizer = _load_tokenizer(self.tokenizer_name)
        self._device = device

    def encode(self, texts: Sequence[str], on_text: Callable[[], object] = lambda: None) -> np.ndarray:
        """Encode texts to float64 (texts, width); ``on_text`` is called after each.

        Raises:
            UserError: the network fails or returns something else.
        """
        import torch

        rows = []
        for text in texts:
            tokens = self._tokenizer(
                text.translate(_DROPPED), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
            )
            try:
                with torch.inference_mode():
                    output = self._module(
                        tokens["input_ids"].to(self._device), tokens["attention_mask"].to(self._device)
                    )
            except RuntimeError as error:
                lines = str(error).strip().splitlines() or [repr(error)]
                raise UserError(f"the text encoder {self.path} failed on {TOKENS} tokens: {lines[-1]}") from error
            rows.append(as_rows(output, 1, f"the text encoder {self.path}"))
            on_text()
        return np.concatenate(rows).astype(np.float64)


def _load_tokenizer(name: str) -> Any:
    try:
        with needed_for(f"the tokenizer {name}"):
            import transformers

            return transformers.BertTokenizer.from_pretrained(name, do_lower_case=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"the tokenizer {name} cannot be loaded: {' '.join(str(error).split())[:300]}. Copy its vocab.txt and "
            "tokenizer_config.json into a folder and give it as `tokenizer`"
        ) from error
