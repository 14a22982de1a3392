"""Counts tokens as the base model will see them: every budget of the kit is in these tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

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


def fast_precision() -> str:
    """'bfloat16' where this machine multiplies it faster than float32, else 'float32'."""
    import torch

    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)() else "float32"


def model_folder(model: Path | str) -> Path:
    """The folder itself, or the local snapshot of a hub id (downloaded once; safetensors only, never pickles)."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or str(model).startswith((".", "~")) or str(model).count("/") != 1:
        raise TraitError(f"The model folder {model} does not exist. Run the training step first, or name a hub model.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(model), allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja"]))
    except Exception as error:  # the hub client raises a dozen kinds; the user needs one answer
        raise TraitError(f"The model {model} is neither a folder nor available from the hub: {error}") from error


def model_digest(folder: Path) -> str:
    """Digest of a model's weights, configuration and tokenizer files."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json", ".model"))
    if not any(path.suffix == ".safetensors" for path in files):
        raise TraitError(f"{folder} holds no *.safetensors file. Name a folder that transformers' save_pretrained wrote.")
    return digest([[path.name, sha256(path)] for path in files])
