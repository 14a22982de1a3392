"""Tokenise once: exact, resumable, bounded; and the plan of rows over it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trait_kit.engine.files import TraitError
from trait_kit.engine.packing import IGNORED, plan_rows
from trait_kit.training import tokens
from trait_kit.training.tokens import PIECE, Rows, mean_attended, piece_records, save_rows


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_dir)


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
    names = sorted(path.name[:5] for path in (tmp_path / "whole").glob("*.lengths.npy"))
    for kept in range(len(names)):
        folder = tmp_path / f"killed-{kept}"
        folder.mkdir()
        for name in names[:kept]:
            for path in (tmp_path / "whole").glob(f"{name}.*"):
                (folder / path.name).write_bytes(path.read_bytes())
        (folder / f"{names[kept]}.tokens").write_bytes(b"torn")  # written, but without its lengths
        again = tokens.tokenise(texts, tokenizer, folder, shard_tokens=500)
        assert _documents(again) == _documents(whole)
        assert again.empty == whole.empty == 2


def test_batches_are_bounded_in_characters_and_lose_nothing(tokenizer, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tokens, "BATCH_CHARACTERS", 120)
    texts = ["short", "one two three\n" * 30 + "x" * 170 + " end", "after"]
    store = tokens.tokenise(_file(tmp_path, texts), tokenizer, tmp_path / "store")
    assert [tokenizer.decode(document) for document in _documents(store)] == [f"{text}<|end|>" for text in texts]


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
    save_rows(tmp_path, pieces, plan.row_ends, ["store0", "store1"])
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
