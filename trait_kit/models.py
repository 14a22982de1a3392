"""Counts tokens as the base model will see them: every budget of the kit is in these tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from trait_kit.demo import resolve_model
from trait_kit.engine.files import TraitError

_BATCH = 1_000  # texts encoded at a time: bounds memory


class TokenCounter:
    """Call it with texts: int32 [n], tokens of each without special tokens, never truncated. Safe to share by threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.fingerprint = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        counts = np.zeros(len(texts), np.int32)
        for first in range(0, len(texts), _BATCH):
            encodings = self._tokenizer.encode_batch_fast(list(texts[first : first + _BATCH]), add_special_tokens=False)
            counts[first : first + len(encodings)] = [len(encoding) for encoding in encodings]
        return counts


def token_counter(base_model: str) -> TokenCounter:
    """The counter of a base model's tokenizer: demo:..., a local folder, or a hub id."""
    name = resolve_model(base_model)
    file = Path(name) / "tokenizer.json"
    if file.is_file():  # without transformers, whose import takes longer than counting the demo's tokens
        try:
            return TokenCounter(Tokenizer.from_file(str(file)))
        except Exception as error:  # the library raises bare Exception
            raise TraitError(f"{file} is not a tokenizer file: {error}. Copy the model again.") from None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True)
    except (OSError, ValueError) as error:
        raise TraitError(
            f"base_model '{base_model}' has no tokenizer that can be loaded: {error}\n"
            "Name a local model folder, a hub id that this machine can reach, or demo:smollm2-135m."
        ) from None
    if not tokenizer.is_fast:
        raise TraitError(f"base_model '{base_model}' has only a slow tokenizer; convert it to tokenizer.json first.")
    return TokenCounter(tokenizer.backend_tokenizer)
