"""The folded scorer against the library it replaces, on random models and on texts that try to break it."""

from __future__ import annotations

import random
import time

import fasttext
import numpy as np
import pyarrow as pa
import pytest
import unspaced

from trait_kit.engine import ngrams
from trait_kit.engine.files import TraitError
from trait_kit.engine.ngrams import normalise
from trait_kit.engine.scorer import NgramScorer
from trait_kit.selection.dsir import DsirModel

PIECES = [
    "the", "a", "of", "b", "Über", "naïve", "数学", "数", "مرحبا", "😀", "👩‍👩‍👧", "__labe",
    "\x00", "\x01\x02", "\n", "\t", "\x0b\x0c\r", "\x85", "\u00a0", "\u2028", "x" * 300,
    "1", "a.b", "<", "</", "<a>", "é", "\ufeff", "\x7f",
]  # fmt: skip
HOSTILE = [
    "", "   ", "\x00", "\x00\x00 a", "a\x00b", "</s></s>", "\n", "a\nb", "\n\na\n", "😀", "数学 是 好", "مرحبا بالعالم",
    "a" * 5_000, "\x85\u2028\u00a0",
]  # fmt: skip


def random_text(rng: random.Random, pieces: int) -> str:
    return "".join(
        rng.choice(PIECES) + rng.choice([" ", " ", " ", "", "\n"]) for _ in range(rng.randint(0, pieces))
    )


def train(folder, seed: int = 0, labels: int = 2, prefix: str = "__label__", **options):
    """A model of random text, saved and loaded again as users have it: (library's model, path)."""
    rng = random.Random(seed)
    lines = []
    for k in range(120):
        text = random_text(rng, 20).replace("\n", " ").replace("</s>", "").replace("__label__", "")
        lines.append(f"{prefix}{k % labels} {text} {'the a of b' if k % 3 else ''}\n")
    source, path = folder / f"{seed}.txt", folder / f"{seed}.bin"
    source.write_text("".join(lines), encoding="utf-8", newline="\n")
    options = dict(dim=8, lr=1.0, epoch=10, bucket=1_000, thread=1, seed=seed, verbose=0, label=prefix) | options
    fasttext.train_supervised(str(source), **options).save_model(str(path))
    return fasttext.load_model(str(path)), path


def predicted(model, texts: list[str]) -> np.ndarray:
    """The library's own probabilities; it reports log(p + 1e-5), and nothing for a text without rows (NaN here)."""
    labels = model.get_labels()
    answers = [dict(zip(*model.predict(text.replace("\n", " "), k=len(labels)), strict=True)) for text in texts]
    return np.array([[answer.get(label, np.nan) for label in labels] for answer in answers]) - 1e-5


@pytest.mark.parametrize(("word_ngrams", "seed"), [(1, 1), (2, 2), (2, 3), (3, 4), (4, 5)])
def test_probabilities_are_those_of_fasttext(tmp_path, word_ngrams, seed):
    rng = random.Random(seed)
    model, path = train(
        tmp_path, seed, labels=rng.randint(2, 5), wordNgrams=word_ngrams, bucket=rng.choice([17, 1_000, 65_536]),
        minCount=rng.choice([1, 3]), epoch=rng.choice([2, 30]),
    )  # fmt: skip
    scorer = NgramScorer.from_fasttext(path)
    texts = HOSTILE + [random_text(rng, 40) for _ in range(150)]
    ours, theirs = scorer.probabilities(texts), predicted(model, texts)
    assert scorer.labels == model.get_labels()
    assert ours.dtype == np.float32
    assert ours.shape == (len(texts), len(scorer.labels))
    assert not np.isnan(theirs).any()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    np.testing.assert_allclose(ours.sum(axis=1), 1, atol=1e-6)
    assert len(np.unique(ours.round(4), axis=0)) > 20  # the texts are told apart at all


def test_what_fasttext_obeys_within_a_text_is_a_word_here(small):
    """A page that holds the library's own marks is read to its end; the library stops there, or skips the word."""
    model, _, scorer = small
    for marked, library in (("a </s> b of the", "a"), ("the __label__0 a", "the a")):
        np.testing.assert_allclose(predicted(model, [marked]), predicted(model, [library]), atol=1e-6)
        read, stopped = scorer.probabilities([marked, library])
        assert np.abs(read - stopped).max() > 1e-3


def longest_texts() -> list[str]:
    """Texts far beyond a block."""
    rng = random.Random(3)
    return [
        "the a of " * 60_000,
        "x" * 300_000,
        "数" * 100_000 + " " + "😀" * 50_000,
        " " * 200_000 + "the a" + "\n" * 200_000,
        " ".join(rng.choice(PIECES) for _ in range(90_000)),
    ]


@pytest.mark.parametrize("options", [{"wordNgrams": 2}, {"wordNgrams": 4}])
def test_texts_longer_than_a_block_and_blocks_of_any_size(tmp_path, monkeypatch, options):
    model, path = train(tmp_path, labels=3, **options)
    scorer, texts = NgramScorer.from_fasttext(path), ["the", *longest_texts(), "a b", *HOSTILE]
    ours = scorer.probabilities(texts)
    # the library sums float32 vectors: over 100,000 rows and more its own rounding passes 1e-4
    np.testing.assert_allclose(ours, predicted(model, texts), atol=1e-3)
    for size in (7, 1_000_000):
        monkeypatch.setattr(ngrams, "BLOCK_TOKENS", size)
        np.testing.assert_array_equal(ours, scorer.probabilities(texts))


def test_normalisation_within_the_pass_gives_the_tokens_of_normalised_text(tmp_path):
    _, path = train(tmp_path, wordNgrams=3)
    rng = random.Random(1)
    texts = [
        *HOSTILE,
        *longest_texts(),
        *(random_text(rng, 60) for _ in range(200)),
        "ÀÉ ΣΊΣΥΦΟΣ İstanbul ǅ ᲀ \U00010400 Ⅷ ﬀ ẞ",
    ]
    texts += [
        "".join(chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x20000)])) for _ in range(50))
        for _ in range(200)
    ]
    letters = [
        *map(chr, (*range(0xE00, 0xF00), *range(0x1000, 0x10A0), *range(0x1780, 0x1800), 0x304B, 0x3099)),
        " ",
        "a",
        "(",
    ]
    texts += ["".join(rng.choices(letters, k=50)) for _ in range(200)]
    within = NgramScorer.from_fasttext(path, "words-2")
    before = NgramScorer.from_fasttext(path)
    np.testing.assert_array_equal(within.probabilities(texts), before.probabilities(normalise(texts)))
    assert NgramScorer.load(within.save(tmp_path / "n.safetensors")).normalisation == "words-2"
    for text in ("A\u00e9"[:2], "数"):  # bytes cut off within a character are read, not run over
        broken = pa.LargeStringArray.from_buffers(
            1, pa.py_buffer(np.array([0, 2])), pa.py_buffer(text.encode()[:2])
        )
        assert np.isfinite(within.probabilities(broken)).all()


@pytest.mark.parametrize("script", unspaced.TEXTS)
def test_a_text_without_blanks_is_known_by_its_letters(script):
    """None of its phrases stands in what was learned from, so by phrases it would weigh nothing."""
    domain, general = unspaced.TEXTS[script]
    model = DsirModel.fit([domain], [general])
    like, unlike = model.log_weights([domain[7:-5] + "1", general[7:-5] + "1"])
    assert like > 5 and unlike < -5


def test_several_tables_in_one_pass_are_the_tables_one_by_one(tmp_path, small):
    _, path = train(tmp_path, seed=9, wordNgrams=4)
    scorers = [small[2], NgramScorer.from_fasttext(path)]
    dsir = DsirModel.fit(["the a of"], ["b of Über"])
    texts = HOSTILE + longest_texts()
    totals = ngrams.total(texts, [scorers[0].table, scorers[1].table, dsir.table])
    for scorer, (sums, rows) in zip(scorers, totals, strict=False):
        np.testing.assert_array_equal(scorer.finish(sums, rows), scorer.probabilities(texts))
    for together, alone in zip(totals[2], ngrams.total(texts, [dsir.table])[0], strict=True):
        np.testing.assert_array_equal(together, alone)


def test_a_loaded_table_is_mapped_not_read(small, tmp_path):
    loaded = NgramScorer.load(small[2].save(tmp_path / "a.safetensors"))
    for array in loaded.table[:2]:
        base = array
        while base.base is not None and not isinstance(base, np.memmap):
            base = base.base
        assert isinstance(base, np.memmap), array.shape
    assert loaded.table.cells.ctypes.data % 64 == 0


def test_a_label_prefix_of_ones_own_is_refused(tmp_path):
    _, path = train(tmp_path, labels=3, prefix="#", wordNgrams=2)
    with pytest.raises(TraitError, match="labels that do not start with __label__, such as '#"):
        NgramScorer.from_fasttext(path)


def test_a_text_without_evidence_is_uniform_where_the_library_answers_nothing(tmp_path):
    model, path = train(tmp_path, labels=3, minCount=1_000_000, wordNgrams=2)
    texts = ["", "the", "the a"]
    theirs = predicted(model, texts)
    ours = NgramScorer.from_fasttext(path).probabilities(texts)
    assert np.isnan(theirs[0]).all()
    np.testing.assert_allclose(ours[0], 1 / 3)
    np.testing.assert_allclose(ours[1:], theirs[1:], atol=1e-4)


def test_words_of_the_model_that_are_not_utf8_are_harmless(tmp_path):
    source, path = tmp_path / "latin.txt", tmp_path / "latin.bin"
    source.write_bytes(b"__label__a caf\xe9 the of\n__label__b th\xe9 b a\n" * 20)
    fasttext.train_supervised(str(source), dim=4, thread=1, verbose=0, wordNgrams=2, bucket=100).save_model(
        str(path)
    )
    texts = ["café the", "thé b", "of", "cafÃ© the"]
    model = fasttext.load_model(str(path))
    np.testing.assert_allclose(
        NgramScorer.from_fasttext(path).probabilities(texts), predicted(model, texts), atol=1e-4
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    model, path = train(folder, seed=5, labels=3, wordNgrams=2)
    return model, path, NgramScorer.from_fasttext(path)


def test_every_form_of_texts_gives_the_same(small):
    scorer = small[2]
    texts = [random_text(random.Random(k), 30) for k in range(100)] + HOSTILE
    expected = scorer.probabilities(texts)
    padded = ["unused 😀", *texts, "unused"]
    for array in (
        pa.array(texts),
        pa.array(texts, pa.large_string()),
        pa.array(texts, pa.string_view()),
        pa.chunked_array([texts[:7], [], texts[7:]]),
        pa.array(padded).slice(1, len(texts)),
        pa.array(padded, pa.large_string()).slice(1, len(texts)),
        tuple(texts),
    ):
        np.testing.assert_array_equal(scorer.probabilities(array), expected)
    for nothing in ([], pa.array([], pa.string()), pa.chunked_array([], pa.string())):
        assert scorer.probabilities(nothing).shape == (0, 3)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", None], "Text 1 is null"),
        (pa.array(["a", "b", None]), "Text 2 is null"),
        (["a", 3], "must be strings of valid Unicode"),
        ([b"\xff"], "must be strings of valid Unicode"),
        (["ok", "\ud800"], "must be strings of valid Unicode: .*surrogates"),
        (pa.array([1, 2]), "must be strings, but this column is int64"),
    ],
)
def test_what_is_not_text_is_named(small, texts, message):
    with pytest.raises(TraitError, match=message):
        small[2].probabilities(texts)


def test_saving_and_loading_changes_nothing(small, tmp_path):
    scorer = small[2]
    first = scorer.save(tmp_path / "a.safetensors")
    second = NgramScorer.from_fasttext(small[1]).save(tmp_path / "b.safetensors")
    loaded = NgramScorer.load(first)
    assert first.read_bytes() == second.read_bytes()
    assert loaded.labels == scorer.labels
    np.testing.assert_array_equal(loaded.probabilities(HOSTILE), scorer.probabilities(HOSTILE))


def test_columns_are_found_with_and_without_the_prefix(small):
    assert [small[2].column(name) for name in small[2].labels] == [0, 1, 2]
    assert small[2].column("1") == small[2].column("__label__1")
    with pytest.raises(TraitError, match="no label 'in_domain'; its labels are __label__"):
        small[2].column("in_domain")


def test_ngram_weights_are_what_an_ngram_adds_to_the_logits(small):
    """A text of one word has three rows: the word, </s> and their bigram; so weights of parts explain its logits."""
    scorer = small[2]
    weights = scorer.ngram_weights(["the", "</s>", "the </s>", "", "never-seen-word", "the a of"])
    logits = np.log(scorer.probabilities(["the"])[0].astype(np.float64))
    np.testing.assert_allclose(weights[:3].mean(axis=0), logits - logits.mean(), atol=1e-4)
    assert not weights[3:].any()  # nothing, unknown, longer than the model's n-grams


def test_models_that_cannot_be_folded_are_refused_by_name(tmp_path, small):
    for otherwise in ({"loss": "hs"}, {"loss": "ns"}, {"loss": "ova"}, {"minn": 2, "maxn": 3}):
        _, path = train(tmp_path, **otherwise)
        with pytest.raises(TraitError, match=r"not trained by .*loss='softmax', minn=0"):
            NgramScorer.from_fasttext(path)
    model, path = train(tmp_path, wordNgrams=2)
    model.quantize()
    model.save_model(str(tmp_path / "small.ftz"))
    with pytest.raises(TraitError, match="quantised"):
        NgramScorer.from_fasttext(tmp_path / "small.ftz")
    vectors = fasttext.train_unsupervised(str(tmp_path / "0.txt"), dim=4, epoch=1, thread=1, verbose=0)
    vectors.save_model(str(tmp_path / "vectors.bin"))
    with pytest.raises(TraitError, match="not trained by train_supervised"):
        NgramScorer.from_fasttext(tmp_path / "vectors.bin")


def test_damaged_files_are_named(tmp_path, small):
    whole = small[1].read_bytes()
    rng = random.Random(0)
    damaged = tmp_path / "damaged.bin"
    lengths = [0, 3, 8, 60, 64, 90, 200, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(20))]
    for length in lengths:
        damaged.write_bytes(whole[:length])
        with pytest.raises(TraitError, match=r"damaged.bin"):
            NgramScorer.from_fasttext(damaged)
    damaged.write_bytes(b"\x89PNG" + whole[4:])
    with pytest.raises(TraitError, match="is not a fastText model"):
        NgramScorer.from_fasttext(damaged)
    weights = np.full(16, np.nan, np.float32).tobytes()
    damaged.write_bytes(whole[: -len(weights)] + weights)
    with pytest.raises(TraitError, match="NaN"):
        NgramScorer.from_fasttext(damaged)
    for reader in (NgramScorer.from_fasttext, NgramScorer.load):
        with pytest.raises(TraitError, match=r"missing.* does not exist"):
            reader(tmp_path / "missing.safetensors")
    saved = small[2].save(tmp_path / "a.safetensors").read_bytes()
    for content in (b"", b"text", saved[: len(saved) // 2]):
        (tmp_path / "bad.safetensors").write_bytes(content)
        with pytest.raises(TraitError, match=r"bad.safetensors"):
            NgramScorer.load(tmp_path / "bad.safetensors")


def test_one_core_scores_at_least_twice_as_fast_as_the_library(tmp_path):
    """Measured: six to ten times; the test leaves room for a busy machine."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 9))) for _ in range(5_000)]
    texts = [" ".join(rng.choices(words, k=100)) for _ in range(3_000)]
    source, path = tmp_path / "train.txt", tmp_path / "model.bin"
    source.write_text("".join(f"__label__{k % 2} {text}\n" for k, text in enumerate(texts)))
    fasttext.train_supervised(
        str(source), dim=64, epoch=1, wordNgrams=2, bucket=200_000, thread=1, verbose=0
    ).save_model(str(path))
    model, scorer, array = fasttext.load_model(str(path)), NgramScorer.from_fasttext(path), pa.array(texts)
    scorer.probabilities(array)

    def seconds(work) -> float:
        best = float("inf")
        for _ in range(3):
            start = time.thread_time()
            work()
            best = min(best, time.thread_time() - start)
        return best

    assert seconds(lambda: scorer.probabilities(array)) < seconds(lambda: model.predict(texts, k=2)) / 2
