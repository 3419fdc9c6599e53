"""Report text as a condition: embeddings of a frozen text encoder, cached on disk."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from fvae_nnunet.errors import UserError
from fvae_nnunet.files.recorded import write_shared
from fvae_nnunet.files.tensors import load_tensors, save_tensors
from fvae_nnunet.nnunet.report_texts import DEFAULT_TEXT_ENCODER
from fvae_nnunet.optional_packages import needed_for
from fvae_nnunet.vae.weights import state_dict_sha256

MAX_TOKENS = 512

CXR_BERT = "cxr-bert"
"""Model type of the default encoder: a BERT with heads that are not needed here. It is loaded as a BERT, so that no
code from its repository is run."""


class ReportEncoder:
    """Compute embeddings of texts: the last hidden state of a frozen transformers encoder.

    Each text is encoded separately, so its embedding does not depend on others.

    Args:
        name: hub id or folder of an encoder and its tokenizer.
        cache: folder of cached embeddings, one file per text and model; None: no cache.
        device: device for the computation, which is in float32.
        dtype: dtype of the embeddings, float32 or float16.

    Attributes:
        width: number of channels of an embedding.
        max_tokens: maximum number of tokens, at most 512; longer texts are truncated with a warning.
        weights_sha256: digest of the weights in the encoder's files, see ``vae.weights``.

    Raises:
        UserError: transformers or a package that it needs is not installed, or the encoder is not available or
            unsuitable.
    """

    def __init__(
        self,
        name: str | os.PathLike[str] = DEFAULT_TEXT_ENCODER,
        *,
        cache: Path | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if dtype not in (torch.float32, torch.float16):
            raise ValueError(f"embeddings must be float32 or float16, not {dtype}")
        self.name = os.fspath(name)
        self._tokenizer, model, missing = _load(self.name)
        state = {key: value for key, value in model.state_dict().items() if key not in missing}
        self.weights_sha256 = state_dict_sha256(state)
        self.width: int = model.config.hidden_size
        self.max_tokens = int(min(MAX_TOKENS, self._tokenizer.model_max_length, model.config.max_position_embeddings))
        self._model = model.float().eval().requires_grad_(False).to(device)
        self._device, self._dtype, self._cache = torch.device(device), dtype, cache

    def encode(self, text: str) -> torch.Tensor:
        """The embedding (T, width) of a text on the CPU; T includes the start and end tokens.

        Raises:
            UserError: the text is empty.
        """
        if not text.strip():
            raise UserError("a report is empty; leave out the case instead")
        tokens = self._tokenizer(text, verbose=False)["input_ids"]
        if len(tokens) > self.max_tokens:
            warnings.warn(
                f"a report of {len(tokens)} tokens is truncated to {self.max_tokens}: {text[:60]!r}...", stacklevel=2
            )
            tokens = self._tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"]
        if self._cache is None:
            return self._embed(tokens)
        path = self._cache / f"{self._key(tokens)}.safetensors"
        embedding = _cached(path)
        if embedding is None:
            embedding = self._embed(tokens)
            write_shared(path, save_tensors({"embedding": embedding}))
        return embedding

    def _key(self, tokens: list[int]) -> str:
        content = json.dumps([self.weights_sha256, str(self._dtype), tokens])
        return hashlib.sha256(content.encode()).hexdigest()

    @torch.no_grad()
    def _embed(self, tokens: list[int]) -> torch.Tensor:
        ids = torch.tensor([tokens], device=self._device)
        hidden = self._model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        return hidden[0].to("cpu", self._dtype)


def _load(name: str) -> tuple[Any, Any, set[str]]:
    """Tokenizer, model, and the names of parameters that are not in its files (a pooler, which is not used)."""
    with needed_for("report text"):
        import transformers
    folder = Path(name).expanduser()
    if folder.is_dir():
        name = str(folder)
    elif name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"the text encoder {name!r} is neither an existing folder nor a hub id of the form owner/name")
    options: dict[str, Any] = {"local_files_only": folder.is_dir() or _is_cached(name)}
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # no warnings about heads that are not needed
    model_class: Any = transformers.AutoModel
    try:
        with needed_for(f"the text encoder {name}"):
            config, _ = transformers.PretrainedConfig.get_config_dict(name, **options)
            if config.get("is_encoder_decoder"):
                raise UserError(f"the text encoder {name} is an encoder with a decoder; give an encoder such as a BERT")
            if config.get("model_type") == CXR_BERT:
                tokenizer = transformers.BertTokenizer.from_pretrained(name, **options)
                bert = transformers.BertConfig.from_dict({**config, "model_type": "bert"})
                options, model_class = options | {"config": bert}, transformers.BertModel
            else:
                tokenizer = transformers.AutoTokenizer.from_pretrained(name, **options)
            model, loading = model_class.from_pretrained(name, output_loading_info=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first_lines = " ".join(str(error).split())[:300]
        raise UserError(
            f"the text encoder {name} cannot be loaded: {first_lines}. Connect to the internet and run this again, or "
            "copy its files (config.json, weights, vocabulary) into one folder and give the folder as `text_encoder`; "
            "if it is private or requires accepting terms, accept them on its page and run `hf auth login`"
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    missing = loading["missing_keys"]
    lacking = sorted(key for key in missing if "pooler" not in key)
    if lacking:
        raise UserError(f"the text encoder {name} lacks {lacking[0]} ({len(lacking)} such keys); is it an encoder?")
    # some releases name missing keys as in the file, with the prefix ``bert.``
    return (
        tokenizer,
        model,
        {key for key in model.state_dict() if any(f".{name}".endswith(f".{key}") for name in missing)},
    )


def _is_cached(hub_id: str) -> bool:
    """Whether the encoder is in the local hub cache; if not and the hub is unreachable, UserError within seconds."""
    from huggingface_hub import try_to_load_from_cache

    from fvae_nnunet.vae.folders import HubUnreachable, reach_hub

    names = ("model.safetensors", "pytorch_model.bin")
    if any(isinstance(try_to_load_from_cache(hub_id, name), str) for name in names):
        return True
    try:
        reach_hub()
    except HubUnreachable as error:
        raise UserError(
            f"the text encoder {hub_id} is not on this computer and the hub cannot be reached ({error}). Connect to "
            "the internet and run this again, or copy its files (config.json, weights, vocabulary) into one folder and "
            "give the folder as `text_encoder`"
        ) from error
    return False


def _cached(path: Path) -> torch.Tensor | None:
    """The cached embedding; None if it is missing or damaged."""
    try:
        return load_tensors(path)["embedding"] if path.is_file() else None
    except UserError:
        return None
