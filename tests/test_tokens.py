"""Tokenise once: exact, resumable, bounded; the plan of rows over it; and what a mixture takes from its sources."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_llama import write_model

from trait_kit.engine.files import TraitError
from trait_kit.engine.packing import IGNORED, plan_rows
from trait_kit.training import sampling, tokens
from trait_kit.training.tokens import PIECE, Rows, mean_attended, piece_records, save_rows


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(write_model(tmp_path_factory.mktemp("model")))


def _file(folder: Path, texts: list[str | None], group: int = 7, kind: pa.DataType | None = None) -> Path:
    pq.write_table(pa.table({"text": pa.array(texts, kind or pa.string())}), folder / "texts.parquet", row_group_size=group)
    return folder / "texts.parquet"


TEXTS = [f"Text {number} says {'é😀 ' * (number % 5)}{number * 'word '}." for number in range(40)]


def _documents(store: tokens.TokenStore) -> list[list[int]]:
    ends = np.cumsum(store.lengths)
    return [store.read(int(end - length), int(length)).tolist() for end, length in zip(ends, store.lengths, strict=True)]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_a_store_holds_every_text_as_the_tokenizer_gives_it_with_its_end(tokenizer, tmp_path: Path, kind) -> None:
    texts = [*TEXTS, "", "last"]
    store = tokens.tokenise(_file(tmp_path, texts, kind=kind), tokenizer, tmp_path / "store", shard_tokens=500)
    assert len(list((tmp_path / "store").glob("*.tokens"))) > 5
    assert store.empty == 1
    expected = [[*tokenizer(text, add_special_tokens=False)["input_ids"], 256] for text in texts if text]
    assert _documents(store) == expected
    assert store.tokens == sum(map(len, expected))
    assert store.rule == "'<|end|>' after each document"


def test_a_begin_token_is_put_where_the_tokenizer_puts_one(tokenizer, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path / "tokenizer")
    beginning = AutoTokenizer.from_pretrained(tmp_path / "tokenizer", bos_token="a")
    beginning.backend_tokenizer.post_processor = TemplateProcessing(
        single="a $A", special_tokens=[("a", beginning.convert_tokens_to_ids("a"))]
    )
    store = tokens.tokenise(_file(tmp_path, ["bc", "d"]), beginning, tmp_path / "store")
    assert [beginning.decode(document) for document in _documents(store)] == ["abc<|end|>", "ad<|end|>"]
    assert store.rule == "'a' before and '<|end|>' after each document"


def test_a_tokenizer_file_with_a_truncation_of_its_own_cuts_nothing(tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path / "tokenizer")
    cutting = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    cutting.backend_tokenizer.enable_truncation(3)
    assert _documents(tokens.tokenise(_file(tmp_path, ["abcdefgh"]), cutting, tmp_path / "store"))[0][-1] == 256
    assert len(_documents(tokens.open_store(tmp_path / "store"))[0]) == 9


def test_a_killed_run_goes_on_after_its_last_whole_shard(tokenizer, tmp_path: Path) -> None:
    texts = _file(tmp_path, [*TEXTS[:20], "", *TEXTS[20:], ""])
    whole = tokens.tokenise(texts, tokenizer, tmp_path / "whole", shard_tokens=500)
    names = sorted(path.stem for path in (tmp_path / "whole").glob("?????.json"))
    for kept in range(len(names)):
        folder = tmp_path / f"killed-{kept}"
        folder.mkdir()
        for name in names[:kept]:
            for path in (tmp_path / "whole").glob(f"{name}.*"):
                (folder / path.name).write_bytes(path.read_bytes())
        (folder / f"{names[kept]}.tokens").write_bytes(b"torn")  # written, but without its record
        again = tokens.tokenise(texts, tokenizer, folder, shard_tokens=500)
        assert _documents(again) == _documents(whole)
        assert again.empty == whole.empty == 2


def test_a_text_longer_than_a_piece_is_cut_before_a_space_and_loses_nothing(
    tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "LONGEST_PIECE", 50)
    monkeypatch.setattr(tokens, "BATCH_CHARACTERS", 120)
    long = "one two three\n" * 30 + "x" * 170 + " end"
    store = tokens.tokenise(_file(tmp_path, ["short", long, "after"]), tokenizer, tmp_path / "store")
    assert [tokenizer.decode(document) for document in _documents(store)] == [
        f"{text}<|end|>" for text in ("short", long, "after")
    ]


def test_what_cannot_be_tokenised_is_named(tokenizer, tmp_path: Path) -> None:
    with pytest.raises(TraitError, match=r"row 2 of .*texts.parquet has no text"):
        tokens.tokenise(_file(tmp_path, ["a", "b", None]), tokenizer, tmp_path / "null")
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "numbers.parquet")
    with pytest.raises(TraitError, match="no column 'text' of type string"):
        tokens.tokenise(tmp_path / "numbers.parquet", tokenizer, tmp_path / "numbers")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    from transformers import AutoTokenizer

    endless = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    endless.eos_token = None
    with pytest.raises(TraitError, match="no end-of-text token: set eos_token"):
        tokens.tokenise(_file(tmp_path, ["a"]), endless, tmp_path / "endless")


def test_a_damaged_store_is_refused(tokenizer, tmp_path: Path) -> None:
    tokens.tokenise(_file(tmp_path, TEXTS), tokenizer, tmp_path / "store")
    path = tmp_path / "store" / "00000.tokens"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(TraitError, match="damaged"):
        tokens.open_store(tmp_path / "store")


# Rows


def test_rows_hold_every_token_of_their_pieces_and_learn_all_but_the_first(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    stores, lengths = [], []
    for index in range(2):
        documents = [generator.integers(0, 200, int(length)).astype(np.int32) for length in generator.integers(1, 90, 30)]
        stores.append(tokens.write_store(documents, tmp_path / f"store{index}"))
        lengths.append(stores[-1].lengths)
    store = np.repeat(np.array([0, 1], np.uint8), 30)
    document = np.tile(np.arange(30), 2)
    plan = plan_rows(np.concatenate(lengths), 64, seed=1)
    pieces = piece_records(stores, store[plan.document], document[plan.document], plan.start)
    pieces["length"] = plan.length
    save_rows(tmp_path, pieces, plan.row_ends)
    (tmp_path / "prepared.json").write_text('{"stores": ["store0", "store1"]}')
    rows = Rows(tmp_path, 64, eos=256)
    assert len(rows) == -(-int(sum(map(sum, lengths))) // 64)
    seen: Counter[int] = Counter()
    for index in range(len(rows)):
        row = {name: tensor.numpy() for name, tensor in rows[index].items()}
        filled = row["input_ids"] != 256
        assert (row["labels"][~filled] == IGNORED).all()
        assert ((row["labels"] == IGNORED) == (row["position_ids"] == 0)).all()
        assert (row["labels"][row["labels"] != IGNORED] == row["input_ids"][row["labels"] != IGNORED]).all()
        seen.update(row["input_ids"][filled].tolist())
    assert seen == Counter(token for one in stores for token in one.read(0, one.tokens).tolist())


def test_mean_attended_counts_what_each_token_sees() -> None:
    pieces = np.zeros(2, PIECE)
    pieces["length"] = [3, 1]
    assert mean_attended(pieces) == (1 + 2 + 3 + 1) / 4


# Mixtures


def test_replay_takes_its_fraction_and_the_mixture_shares_the_rest() -> None:
    parts = sampling.shares("in_domain+passages+passages", 1_000, Counter(random=7), replay=0.1)
    assert {part.source: part.tokens for part in parts} == {"in_domain": 300, "passages": 600, "random": 100}
    assert {part.source: part.start for part in parts}["random"] == 7
    both = sampling.shares("in_domain+random", 1_000, Counter(), replay=0.2)
    assert {part.source: part.tokens for part in both} == {"in_domain": 400, "random": 600}


def test_a_cap_hands_what_is_above_it_to_the_others_and_never_changes_the_sum() -> None:
    available = {"a": 100, "b": 1_000, "c": 10_000}
    capped = sampling.shares("a+b+c", 3_000, Counter(a=150), available=available, max_epochs=2)
    assert {part.source: part.tokens for part in capped} == {"a": 50, "b": 1_475, "c": 1_475}
    capped = sampling.shares("a+b+c", 9_000, Counter(), available=available, max_epochs=2)
    assert {part.source: part.tokens for part in capped} == {"a": 200, "b": 2_000, "c": 6_800}
    over = sampling.shares("a+b", 3_000, Counter(), available=available, max_epochs=1)  # both are too small: alike over it
    assert {part.source: part.tokens for part in over} == {"a": 100 + 950, "b": 1_000 + 950}
    generator = np.random.default_rng(0)
    for _ in range(200):
        available = {name: int(generator.integers(1, 500)) for name in "abc"}
        consumed = Counter({name: int(generator.integers(0, 500)) for name in "abc"})
        total, cap = int(generator.integers(1, 3_000)), float(generator.uniform(0.1, 4))
        parts = sampling.shares("a+b+c", total, consumed, replay=0.1, available={**available, "random": 9}, max_epochs=cap)
        assert sum(part.tokens for part in parts) == total
        room = {name: max(0, int(cap * size) - consumed[name]) for name, size in {**available, "random": 9}.items()}
        if sum(room.values()) >= total:
            assert all(part.tokens <= room[part.source] for part in parts)
