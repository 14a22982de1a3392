"""The demo corpora: four disjoint parts of one encyclopedia, and the hidden truth about them.

Drawn with the run's seed. Topic articles: one third is the scarce in-domain set (15% of it held out for bits per byte),
two thirds hide in the web. Other articles: 300 are held out to measure forgetting, the rest is the web. Which web
articles are on topic is known, so a selection can be scored; that truth is never part of a documents table.
"""

from __future__ import annotations

import functools

import numpy as np
import pyarrow as pa

from trait_kit import demo
from trait_kit.engine.files import TraitError, digest

DEMO_TRUTH = {"math": "Mathematics", "ads": "Geography"}  # domain -> the topic label of its articles
DEMO_PARTS = ("in_domain", "in_domain_held_out", "web", "general_held_out")
SEED_SHARE, HELD_OUT_SHARE, GENERAL_HELD_OUT = 1 / 3, 0.15, 300


def demo_digest(spec: str) -> str:
    """A digest that changes when the wheel, the rules for its texts, or the shares of the parts do."""
    names_in(spec.partition(":")[2])
    return digest([spec, demo.WHEELS["wikipedia"].sha256, demo.TEXT_RULES, SEED_SHARE, HELD_OUT_SHARE, GENERAL_HELD_OUT])


def names_in(rest: str) -> tuple[str, str]:
    domain, _, part = rest.partition("/")
    if domain not in DEMO_TRUTH or part not in DEMO_PARTS:
        known = ", ".join(f"demo:{domain}/{part}" for domain in DEMO_TRUTH for part in DEMO_PARTS)
        raise TraitError(f"There is no corpus 'demo:{rest}'. The demo corpora are {known}.")
    return domain, part


def part(rest: str, seed: int) -> pa.Table:
    domain, name = names_in(rest)
    return _split(domain, seed)[name]


@functools.lru_cache(maxsize=4)
def _split(domain: str, seed: int) -> dict[str, pa.Table]:
    """Part -> rows of `demo.wikipedia()`, in its order.

    For ads the in-domain articles are places only; Geography's other articles (seas, concepts) stay in the web under
    their label and are never reserved as general text.
    """
    articles = demo.wikipedia()
    labels = np.array(articles["label"].to_pylist())
    on_topic = np.flatnonzero(labels == DEMO_TRUTH[domain])
    if domain == "ads":
        on_topic = np.flatnonzero(np.isin(articles["id"].to_numpy(zero_copy_only=False), demo.places()["id"].to_pylist()))
    off_topic = np.flatnonzero(labels != DEMO_TRUTH[domain])
    generator = np.random.default_rng([seed, list(DEMO_TRUTH).index(domain)])
    seeds = generator.permutation(on_topic)[: round(len(on_topic) * SEED_SHARE)]
    held_out = seeds[: round(len(seeds) * HELD_OUT_SHARE)]
    general = generator.permutation(off_topic)[:GENERAL_HELD_OUT]
    web = np.setdiff1d(np.arange(len(labels)), np.concatenate([seeds, general]))
    rows = {"in_domain": seeds[len(held_out) :], "in_domain_held_out": held_out, "web": web, "general_held_out": general}
    return {part: articles.take(pa.array(np.sort(index))) for part, index in rows.items()}
