"""How a mixture of sources is written, 'in_domain+15*random', and what each source gives of a number of tokens."""

from collections import Counter

import numpy as np


def weights(mixture: str) -> dict[str, int]:
    """Source -> weight, in alphabetical order; one without a number weighs 1, one named twice weighs both. ValueError."""
    found: Counter[str] = Counter()
    for part in mixture.split("+"):
        weight, star, source = part.strip().rpartition("*")
        if star and not (weight.isdigit() and int(weight)):
            raise ValueError(f"'{part}' is no weight and source; write it as in_domain+15*random")
        found[source] += int(weight or 1)
    return dict(sorted(found.items()))


def shares(mixture: str, tokens: int) -> dict[str, int]:
    """Whole tokens of each source in proportion to the weights; the first sources take what is left over."""
    found = weights(mixture)
    edges = np.ceil(np.round(np.cumsum([0, *found.values()]) / sum(found.values()) * tokens, 6)).astype(int)
    return dict(zip(found, np.diff(edges).tolist(), strict=True))
