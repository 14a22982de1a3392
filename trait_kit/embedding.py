"""Sentence embeddings: one unit vector a text, for the map, for related problems and for paraphrases.

MiniLM through transformers (mean pooling over the tokens, then length 1: what the model was trained with), so that no
further library is needed. Texts are batched by length, which on a CPU halves the padding; the result does not depend on
the order of the texts beyond rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trait_kit.engine.files import TraitError

if TYPE_CHECKING:
    import torch


def embed(texts: Sequence[str], model_dir: Path | str, *, batch_size: int = 32, max_tokens: int = 256) -> np.ndarray:
    """float32 [n_texts, d], rows of length 1; a text beyond `max_tokens` is represented by its beginning."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise TraitError(f"Text {row} to embed is {type(text).__name__}, not a string. Leave such rows out.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model_dir))
        model = AutoModel.from_pretrained(str(model_dir), dtype=_precision()).eval()
    except (OSError, ValueError) as error:
        raise TraitError(
            f"embedding_model: {model_dir} could not be loaded ({str(error).splitlines()[0]}). Name a folder with a "
            "transformers model and its tokenizer, a hub id that can be reached, or demo:all-minilm-l6-v2."
        ) from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    vectors = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
    order = np.argsort([-len(text) for text in texts], kind="stable")  # longest first: too little memory shows at once
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = tokenizer(
                [texts[row] for row in rows], padding=True, truncation=True, max_length=max_tokens, return_tensors="pt"
            ).to(device)
            states = model(**batch).last_hidden_state.float()  # [batch, tokens, d]
            mask = batch["attention_mask"].unsqueeze(-1).float()
            pooled = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
            vectors[rows] = torch.nn.functional.normalize(pooled, dim=1).cpu().numpy()
    return vectors


def _precision() -> torch.dtype:
    """bfloat16 where the hardware multiplies it fast: cosine 0.9999 with float32's vectors, in less than half the time."""
    import torch

    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return torch.bfloat16 if torch.cuda.is_available() or amx() else torch.float32
