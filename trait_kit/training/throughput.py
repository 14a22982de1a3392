"""How well a training run uses its hardware, and what it costs: FLOPs a token, the device's rate, MFU, money.

Model FLOPs utilisation (MFU; Chowdhery et al. 2022, PaLM, appendix B) is the share of the hardware's arithmetic that went
into the model's own products, recomputation not counted, so that it compares runs that recompute with runs that do not.
Two things differ here from PaLM's formula. A token of a packed row attends to its own document only, so attention is counted
over the tokens it attends to, where PaLM counts the whole row for every token. And the denominator is a large matrix product
measured on this very device, where PaLM takes the peak of a data sheet, which no clock and power limit lets one reach: the
values here are higher than by the data sheet, and comparable across the devices of one report.
"""

from __future__ import annotations

import time
from typing import Any

import torch

SIDES = {"cuda": 8_192, "cpu": 2_048}  # of the square matrices
PRODUCT_SECONDS = 0.1  # a slow device gets smaller matrices, so that no product takes much longer than this
REPEATS = 5


def flops_per_token(config: Any, n_parameters: int, mean_attended: float) -> float:
    """FLOPs of one training token, forward and backward: 6 x multiplied parameters + 12 x layers x query width x attended.

    2 FLOPs a parameter forward and 4 backward (gradients of inputs and of weights); likewise 4 and 8 for each value of the
    heads' width (heads x head_dim) and attended token, for scores and for their sum over values. The input embedding is
    looked up, not multiplied, so it counts only where it is the output matrix too. Of `n_parameters`, norms and biases
    count as if they multiplied (under 0.1%). `mean_attended`: over tokens, how many a token attends to, itself included;
    for packed rows that is the mean of position_ids, plus 1. For dense models whose every weight learns.
    """
    text = config.get_text_config()
    looked_up = 0 if text.tie_word_embeddings else text.vocab_size * text.hidden_size
    heads = text.num_attention_heads
    width = heads * (getattr(text, "head_dim", None) or text.hidden_size // heads)
    return 6.0 * (n_parameters - looked_up) + 12.0 * text.num_hidden_layers * width * mean_attended


def measured_matrix_rate(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> float:
    """FLOP/s of one large square matrix product on `device`, the best of a few: the denominator of `mfu`.

    Up to 8,192^3 on CUDA and 2,048^3 on a CPU, with the threads that torch has now; under a second on two cores.
    """
    side, seconds = 128, 0.0
    while side < SIDES.get(device.type, SIDES["cpu"]) and 8 * seconds <= PRODUCT_SECONDS:
        side *= 2
        left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))  # constants draw less power
        out = torch.empty_like(left)
        _product_seconds(left, right, out)  # the first product of a size also chooses its kernel
        seconds = _product_seconds(left, right, out)
    return 2 * side**3 / min(seconds, *(_product_seconds(left, right, out) for _ in range(REPEATS - 1)))


def mfu(tokens_per_second: float, flops_a_token: float, rate: float, devices: int = 1) -> float:
    """Model FLOPs utilisation, 0 to about 1; `tokens_per_second` of the whole run, `rate` of one device."""
    return tokens_per_second * flops_a_token / (rate * devices)


def cost(seconds: float, devices: int, price_per_gpu_hour: float) -> float:
    """What `devices` cost for `seconds`, in the currency of the price; idle and failed time costs as much."""
    return seconds / 3600 * devices * price_per_gpu_hour


def _product_seconds(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> float:
    """Seconds of one product; on CUDA between events of the device."""
    if left.device.type != "cuda":
        began = time.perf_counter()
        torch.mm(left, right, out=out)
        return max(time.perf_counter() - began, 1e-9)
    with torch.cuda.device(left.device):
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began.record()
        torch.mm(left, right, out=out)
        ended.record()
        ended.synchronize()
        return max(began.elapsed_time(ended) / 1000, 1e-9)
