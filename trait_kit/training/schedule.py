"""The learning rate of a stage: warm up, stay, decay exponentially (WSD); of fine-tuning: warm up, then half a cosine.

The paper trains with a 3% warm-up, a constant maximum, and an *exponential* decay over the last 10% (appendix). The
library's own WSD offers only linear, cosine and square-root tails, so this one is written out. Each stage has a whole
schedule of its own: stage 2 starts from weights alone. Fine-tuning has the same share of warm-up (appendix).
"""

from __future__ import annotations

import math

FINAL_RATIO = 0.1  # of the maximum, reached at the last step; the paper does not name its value


def wsd_phases(total_steps: int, warmup_fraction: float, decay_fraction: float) -> tuple[int, int, int]:
    """Steps of (warm-up, stable, decay); they add up to `total_steps`, and at least one runs at the maximum.

    Fractions round up, so that a short demo stage still has every phase that it asks for; where there is no room for
    all three, the warm-up gives way first.
    """
    decay = min(_ceil(decay_fraction * total_steps), total_steps - 1)
    warmup = min(_ceil(warmup_fraction * total_steps), total_steps - 1 - decay)
    return warmup, total_steps - warmup - decay, decay


def wsd_factor(
    step: int, total_steps: int, warmup_fraction: float, decay_fraction: float, final_ratio: float = FINAL_RATIO
) -> float:
    """Multiplier of the maximum learning rate for the update with 0-based index `step`.

    With w, s, d steps of warm-up, stable and decay: (step + 1) / (w + 1), then 1, then
    final_ratio ** ((step - w - s + 1) / d), so that no update is wasted at zero and the last one has exactly `final_ratio`.
    """
    warmup, stable, decay = wsd_phases(total_steps, warmup_fraction, decay_fraction)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if step < warmup + stable or not decay:
        return 1.0
    return final_ratio ** min(1.0, (step - warmup - stable + 1) / decay)


def cosine_factor(step: int, total_steps: int, warmup_fraction: float) -> float:
    """As `wsd_factor`, for fine-tuning: with w steps of warm-up, (step + 1) / (w + 1), then half a cosine from 1 towards 0.

    (1 + cos(pi * (step - w) / (total_steps - w))) / 2: 0 is reached one step after the last, which is not wasted on it.
    """
    warmup, falling, _ = wsd_phases(total_steps, warmup_fraction, 0.0)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (1 + math.cos(math.pi * min(1.0, (step - warmup) / falling))) / 2


def _ceil(steps: float) -> int:
    return math.ceil(round(steps, 9))  # 0.07 * 100 is 7.000000000000001
