"""The learning rate of a stage: warm up, stay, decay (WSD). The library's own has not the paper's exponential tail."""

import math

FINAL_RATIO = 0.1  # of the maximum, reached at the last step; the paper does not name its value


def wsd_phases(total_steps: int, warmup_fraction: float, decay_fraction: float) -> tuple[int, int, int]:
    """Steps of (warm-up, stable, decay), at least one at the maximum; where there is no room, the warm-up gives way first.

    Fractions round up, so that a short demo stage still has every phase (but 0.07 * 100 is 7.000000000000001).
    """
    decay = min(math.ceil(round(decay_fraction * total_steps, 9)), total_steps - 1)
    warmup = min(math.ceil(round(warmup_fraction * total_steps, 9)), total_steps - 1 - decay)
    return warmup, total_steps - warmup - decay, decay


def wsd_factor(step: int, total_steps: int, warmup_fraction: float, decay_fraction: float) -> float:
    """Multiplier of the maximum for the update with 0-based index `step`.

    With w, s, d steps of warm-up, stable and decay: (step + 1) / (w + 1), then 1, then FINAL_RATIO ** ((step - w - s + 1) /
    d), so that no update is wasted at zero and the last one has exactly that ratio.
    """
    warmup, stable, decay = wsd_phases(total_steps, warmup_fraction, decay_fraction)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if step < warmup + stable or not decay:
        return 1.0
    return FINAL_RATIO ** min(1.0, (step - warmup - stable + 1) / decay)
