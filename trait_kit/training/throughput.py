"""How well a training run uses its hardware: FLOPs a token, the device's own matrix rate, and their ratio, MFU.

Model FLOPs utilisation (MFU; Chowdhery et al. 2022, PaLM, appendix B) is the share of the hardware's arithmetic that went
into the model's own products, recomputation not counted. Two things differ here from PaLM's formula: a token of a packed
row attends to its own document only, so attention is counted over the tokens it attends to; and the denominator is a large
matrix product measured on this very device, not the peak of a data sheet, which no device reaches.
"""

from __future__ import annotations

from typing import Any


def flops_per_token(config: Any, n_parameters: int, mean_attended: float) -> float:
    """FLOPs of one training token, forward and backward: 6 x multiplied parameters + 12 x layers x query width x attended.

    2 FLOPs a parameter forward and 4 backward; likewise 4 and 8 for each value of the heads' width and attended token. The
    input embedding is looked up, so it counts only where it is the output matrix too. For dense models whose every weight
    learns. `mean_attended`: over tokens, how many a token attends to, itself included.
    """
    text = config.get_text_config()
    looked_up = 0 if text.tie_word_embeddings else text.vocab_size * text.hidden_size
    heads = text.num_attention_heads
    width = heads * (getattr(text, "head_dim", None) or text.hidden_size // heads)
    return 6.0 * (n_parameters - looked_up) + 12.0 * text.num_hidden_layers * width * mean_attended
