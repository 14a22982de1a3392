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
from trait_kit.training.tokens import Rows, piece_records, save_rows


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_dir)


def _file(folder: Path, texts: list[str | None], group: int = 7, kind: pa.DataType | None = None) -> Path:
    pq.write_table(
        pa.table({"text": pa.array(texts, kind or pa.string())}), folder / "texts.parquet", row_group_size=group
    )
    return folder / "texts.parquet"


TEXTS = [f"Text {number} says {'é😀 ' * (number % 5)}{number * 'word '}." for number in range(40)]


def _documents(store: tokens.TokenStore) -> list[list[int]]:
    ends = np.cumsum(store.lengths)
    return [store.ids[end - length : end].tolist() for end, length in zip(ends, store.lengths, strict=True)]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_a_store_holds_every_text_as_the_tokenizer_gives_it_with_its_end(tokenizer, tmp_path: Path, kind) -> None:
    texts = [*TEXTS, "", "last"]
    store = tokens.tokenise(_file(tmp_path, texts, kind=kind), tokenizer, tmp_path / "store")
    expected = [[*tokenizer(text, add_special_tokens=False)["input_ids"], 256] for text in texts if text]
    assert _documents(store) == expected
    assert len(store.ids) == sum(map(len, expected))


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


def test_a_tokenizer_file_with_a_truncation_of_its_own_cuts_nothing(tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path / "tokenizer")
    cutting = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    cutting.backend_tokenizer.enable_truncation(3)
    assert _documents(tokens.tokenise(_file(tmp_path, ["abcdefgh"]), cutting, tmp_path / "store"))[0][-1] == 256
    assert len(_documents(tokens.open_store(tmp_path / "store"))[0]) == 9


def test_a_store_is_whole_or_absent_and_made_once(tokenizer, tmp_path: Path, monkeypatch) -> None:
    texts = _file(tmp_path, TEXTS)
    monkeypatch.setattr(tokens, "TEXTS_AT_ONCE", 16)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tokens.np, "save", _interrupt)
        tokens.tokenise(texts, tokenizer, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    (tmp_path / ".store.tmp-1").mkdir()  # of a killed run
    store = tokens.tokenise(texts, tokenizer, tmp_path / "store")
    assert not list(tmp_path.glob(".store.tmp-*"))
    assert len(store.lengths) == len(TEXTS)
    texts.unlink()
    assert _documents(tokens.tokenise(texts, tokenizer, tmp_path / "store")) == _documents(store)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_what_cannot_be_tokenised_is_named(tokenizer, tmp_path: Path) -> None:
    with pytest.raises(TraitError, match="'empty' has no text"):
        tokens.tokenise(_file(tmp_path, ["", ""]), tokenizer, tmp_path / "empty")
    with pytest.raises(TypeError):
        tokens.tokenise(_file(tmp_path, ["a", "b", None]), tokenizer, tmp_path / "null")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    from transformers import AutoTokenizer

    endless = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    endless.eos_token = None
    with pytest.raises(TraitError, match="no end-of-text token: set eos_token"):
        tokens.tokenise(_file(tmp_path, ["a"]), endless, tmp_path / "endless")


# Rows


def test_rows_hold_every_token_of_their_pieces_and_learn_all_but_the_first(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    stores, lengths = [], []
    for index in range(2):
        documents = [
            generator.integers(0, 200, int(length)).astype(np.int32) for length in generator.integers(1, 90, 30)
        ]
        tokens.write_store([documents], tmp_path / f"store{index}")
        stores.append(tokens.open_store(tmp_path / f"store{index}"))
        lengths.append(stores[-1].lengths)
    store = np.repeat(np.array([0, 1], np.uint8), 30)
    document = np.tile(np.arange(30), 2)
    plan = plan_rows(np.concatenate(lengths), 64)
    pieces = piece_records(stores, store[plan.document], document[plan.document], plan.start, plan.length)
    save_rows(tmp_path, pieces, plan.row_ends, stores)
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
    assert seen == Counter(token for one in stores for token in one.ids.tolist())
