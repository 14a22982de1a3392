"""Models by name: what a name means, digests, precision, tokens, vectors."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from tiny_random import FOLDER

from trait_kit import demo, models
from trait_kit.engine import machine
from trait_kit.engine.files import TraitError


def test_names_of_models_resolve(tmp_path: Path) -> None:
    assert models.model_folder("demo:smollm2-135m") == demo.base_model_dir()
    assert models.model_folder("demo:all-minilm-l6-v2") == demo.embedding_model_dir()
    with pytest.raises(TraitError, match="holds no weights as safetensors"):  # a pickle is never loaded
        models.model_folder(str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    assert models.model_folder(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("demo:gpt-9", "or one of demo:smollm2-135m, demo:all-minilm-l6-v2"),
        ("./no/such/folder", "no model folder"),
        ("/no/such/folder", "no model folder"),
        ("hf:owner/model", "no model folder"),
        ("", "no model folder"),
    ],
)
def test_names_of_no_model_are_errors(name: str, message: str) -> None:
    with pytest.raises(TraitError, match=re.escape(message)):
        models.model_folder(name)


def test_precision_is_what_this_machine_multiplies_faster() -> None:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = models.fast_precision()
    if device == "cpu":
        ratio = machine.matrix_rate("bfloat16") / machine.matrix_rate("float32")
        assert chosen == "bfloat16" if ratio > 2.5 else chosen == "float32" if ratio < 1 else True


@pytest.mark.parametrize(
    ("rates", "chosen"), [((85e9, 351e9), "bfloat16"), ((90e9, 1e9), "float32"), ((90e9, 95e9), "float32")]
)
def test_a_small_gain_of_bfloat16_is_not_worth_its_rounding(monkeypatch, rates: tuple, chosen: str) -> None:
    measured = dict(zip(("float32", "bfloat16"), rates, strict=True))
    monkeypatch.setattr(machine, "matrix_rate", measured.get)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert models.fast_precision.__wrapped__() == chosen


def test_a_models_digest_follows_content_and_not_times(tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights")
    os.utime(tmp_path / "b" / "config.json", (1, 1))
    before = models.model_digest(tmp_path / "a")
    assert before == models.model_digest(str(tmp_path / "b"))
    (tmp_path / "b" / "model.safetensors").write_bytes(b"weightz")
    assert models.model_digest(tmp_path / "b") != before


def test_whatever_cannot_be_loaded_is_one_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(TraitError, match=r"base_model: .* could not be loaded .*demo:smollm2-135m"):
        models.token_counter(str(tmp_path))
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "model.safetensors").touch()
    with pytest.raises(TraitError, match=r"base_model: .*bare could not be loaded .*demo:smollm2-135m"):
        models.token_counter(str(tmp_path / "bare"))


def test_tokens_are_counted_without_special_ones_and_never_cut() -> None:
    from transformers import AutoTokenizer

    counter = models.token_counter(str(FOLDER))
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    texts = ["", "one two 34", "word " * 9_000]
    assert counter(texts).tolist() == [
        len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]
    ]


def test_the_embedding_model_knows_what_is_alike() -> None:
    vectors = models.embed(
        ["A prime number", "An integer without divisors", "A beach in Brazil"], "demo:all-minilm-l6-v2"
    )
    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


def test_embed_pools_only_real_tokens_and_keeps_the_order(tmp_path):
    folder = tiny_bert(tmp_path)
    texts = ["the cat", "a dog ran over the wide hill and the cat", "", "the cat", "hill " * 500]
    together = models.embed(texts, folder, batch_size=4)
    assert together.shape == (5, 16)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-3)
    alone = np.concatenate([models.embed([text], folder) for text in texts])
    np.testing.assert_allclose(together, alone, atol=0.02)  # padding changes nothing but the rounding of bfloat16
    np.testing.assert_allclose(together[0], together[3], atol=1e-6)
    assert np.abs(together[0] - together[1]).max() > 0.03
    assert models.embed([], folder).shape == (0, 16)


def tiny_bert(folder):
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "the",
        "a",
        "cat",
        "dog",
        "ran",
        "over",
        "wide",
        "hill",
        "and",
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "initializer_range": 1.0,
    }
    BertModel(BertConfig(vocab_size=len(words), **shape)).save_pretrained(folder)
    return folder
