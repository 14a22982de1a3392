"""Models by name (`demo:<model>`, a local folder, a hub id): their files, digests, tokens, embeddings, precision."""

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trait_kit import demo
from trait_kit.engine import machine
from trait_kit.engine.files import TraitError, content, digest, from_hub

_DEMO = {"demo:smollm2-135m": demo.base_model_dir, "demo:all-minilm-l6-v2": demo.embedding_model_dir}
_INSTEAD = f"name a folder with a transformers model and its tokenizer, or one of {', '.join(_DEMO)}"
_WORTH = 1.5  # times the speed of float32 from which bfloat16 is taken: machines differ by 0.1 to 7


def model_folder(name: Path | str) -> Path:
    """A model's folder: the demo's made when missing, a hub id's downloaded once, no pickles."""
    name = str(name)
    if name in _DEMO:
        return _DEMO[name]()
    if name.strip() and (folder := Path(name).expanduser()).is_dir():
        if any(folder.glob("*.safetensors")):
            return folder
        raise TraitError(f"{name} holds no weights as safetensors; {_INSTEAD}.")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name):
        raise TraitError(f"'{name}' is no model folder; {_INSTEAD}, or a hub id.")
    from huggingface_hub import snapshot_download

    with from_hub("model", name, _INSTEAD):
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja"]))


def model_digest(name: Path | str) -> str:
    """Of every file of its folder by content, or of a hub id and its revision."""
    folder = Path(name)
    if folder.is_dir():
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        return digest([[str(path.relative_to(folder)), content(path)] for path in files])
    from huggingface_hub import model_info

    try:
        return digest([str(name), model_info(str(name)).sha])
    except (OSError, ValueError):
        return digest([str(name)])  # no hub within reach: its local copy will be loaded


# texts -> int32 [n]: tokens without special ones, never truncated
TokenCounter = Callable[[Sequence[str]], np.ndarray]


@functools.lru_cache(maxsize=4)
def token_counter(base_model: str) -> TokenCounter:
    """In a base model's tokens are all budgets. Safe to share by threads."""
    tokenizer = load_tokenizer(base_model).backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: Sequence[str]) -> np.ndarray:
        encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return np.fromiter(map(len, encodings), np.int32, len(encodings))

    return count


def load_tokenizer(model: Path | str, where: str = "base_model") -> Any:
    """The fast tokenizer of a model; `where`: the field that names it."""
    from transformers import AutoTokenizer

    with from_hub(where, model, _INSTEAD):
        tokenizer = AutoTokenizer.from_pretrained(model_folder(model), use_fast=True)
    if not tokenizer.is_fast:
        raise TraitError(f"{where}: {model} has only a slow tokenizer. Convert it to tokenizer.json first.")
    return tokenizer


def embed(texts: Sequence[str], model: Path | str, batch_size: int = 32) -> np.ndarray:
    """Sentence embeddings float32 [n_texts, d], rows of length 1; of a text's first 256 tokens.

    Mean pooling, as MiniLM was trained. Batched by length: half the padding on a CPU; bfloat16 changes no cosine
    by more than 0.0001.
    """
    import torch
    from transformers import AutoModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = model_folder(model)
    tokenizer = load_tokenizer(folder, "embedding_model")
    with from_hub("embedding_model", model, _INSTEAD):
        loaded = AutoModel.from_pretrained(folder, dtype=getattr(torch, fast_precision())).eval().to(device)
    vectors = np.zeros((len(texts), loaded.config.hidden_size), dtype=np.float32)
    order = np.argsort([-len(text) for text in texts], kind="stable")  # longest first: too little memory shows
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            some = [texts[row] for row in rows]
            batch = tokenizer(some, padding=True, truncation=True, max_length=256, return_tensors="pt").to(device)
            states = loaded(**batch).last_hidden_state.float()  # [batch, tokens, d]
            mask = batch["attention_mask"].unsqueeze(-1).float()
            pooled = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
            vectors[rows] = torch.nn.functional.normalize(pooled, dim=1).cpu().numpy()
    return vectors


@functools.cache
def fast_precision() -> str:
    """'bfloat16' or 'float32': on CUDA by what the hardware has; measured on a CPU, because names mislead."""
    import torch

    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    rates = {precision: machine.matrix_rate(precision) for precision in ("float32", "bfloat16")}
    return "bfloat16" if rates["bfloat16"] > _WORTH * rates["float32"] else "float32"
