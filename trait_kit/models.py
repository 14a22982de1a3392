"""Counts tokens as the base model will see them: every budget of the kit is in these tokens."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from trait_kit.demo import resolve_model
from trait_kit.engine.files import TraitError, digest, sha256

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


def load_tokenizer(model: Path | str, where: str = "base_model") -> Any:
    """The fast transformers tokenizer of a model; `where` is the field that names it, for the error."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, use_fast=True)
    if not tokenizer.is_fast:
        raise TraitError(f"{where}: {model} has only a slow tokenizer. Convert it to tokenizer.json first.")
    return tokenizer


def model_digest(base: str) -> str:
    """Digest of the content of every file of a model folder, or of the name and revision of a hub model."""
    folder = Path(base)
    if folder.is_dir():
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        if not files:
            raise TraitError(f"The base model's folder {base} is empty.")
        return digest([[str(path.relative_to(folder)), sha256(path)] for path in files])
    from huggingface_hub import model_info
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return digest([base, model_info(base).sha])
    except (HfHubHTTPError, OSError, ValueError):
        return digest([base])  # no hub within reach: the local copy of the hub is what will be loaded


@functools.cache
def fast_precision() -> str:
    """bfloat16 where this machine's device multiplies matrices in it clearly faster than in float32, else float32."""
    import time

    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.randn(512, 576, device=device, dtype=dtype), torch.randn(576, 1536, device=device, dtype=dtype)
        left @ right
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < 0.05:
            left @ right
            count += 1
        rates[dtype] = count
    return "bfloat16" if device == "cuda" or rates[torch.bfloat16] > 1.5 * rates[torch.float32] else "float32"
