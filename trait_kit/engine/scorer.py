"""NgramScorer: a fastText classifier folded into one table of numbers, with the same probabilities many times as fast.

A supervised fastText model is linear before its softmax: logits = B . mean(A[rows]), where the rows are a text's words
and hashed word n-grams. B . A[row] is computed once a row, and only differences between logits matter, hence a row
becomes labels - 1 numbers: the 2 GB of a 2M-bucket, 256-dimension model of two labels become 8 MB, which a processor's
cache holds. Scoring is then: hash the tokens, look up, add (`ngrams`).

fastText's own rules hold: words end at ASCII white space and NUL; `</s>` ends each text; an unknown word has no row, but
takes part in n-grams. But a `</s>` or `__label__` inside a text is a word, which no page of the web should command; a
newline is a space; a text without any row, where fastText has no answer, is uniform. fastText reports log(p + 1e-5).
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import softmax

from trait_kit.engine import ngrams
from trait_kit.engine.files import TraitError, listed
from trait_kit.engine.ngrams import LinearTable, Normalisation, Texts, text_array

LABEL_PREFIX = "__label__"
_KIND = "ngram scorer 7"  # in the file's header
_FOLD_ROWS = 65_536  # rows folded at a time: bounds memory
_MAGIC = 793712314
_SUPERVISED, _SOFTMAX = 3, 3  # kinds of models and of losses
_HEAD = struct.Struct("<ii12idiiiqq")
_ENTRY, _MATRIX = 10, 17  # bytes of a dictionary entry beside its name, and before a matrix's numbers


@dataclass(eq=False)
class NgramScorer:
    """A linear n-gram classifier, made by `from_fasttext` or `load`."""

    labels: list[str]  # in the order of the columns, with fastText's prefix
    table: LinearTable
    normalisation: Normalisation  # what training did to the texts: "words-2" for the kit's own models

    @classmethod
    def from_fasttext(cls, path: Path | str, normalisation: Normalisation = "none") -> "NgramScorer":
        """Fold a fastText .bin model; TraitError for one that cannot be."""
        words, labels, longest, inputs, outputs = _read_fasttext(Path(path))
        outputs, n_words = outputs.astype(np.float64), len(words)
        columns = (outputs[:-1] - outputs[-1]).T  # the last label's logit is zero
        values = np.empty((len(inputs), columns.shape[1]), np.float32)
        for first in range(0, len(values), _FOLD_ROWS):
            values[first : first + _FOLD_ROWS] = inputs[first : first + _FOLD_ROWS].astype(np.float64) @ columns
        if not np.isfinite(values).all():
            raise TraitError(
                f"{path} has NaN or infinite weights: its training diverged. Use a lower learning rate."
            )
        buckets, cells = values[n_words:].copy(), ngrams.word_cells(words, values[:n_words])
        return cls(labels, LinearTable(cells, buckets, longest if len(buckets) else 1), normalisation)

    @classmethod
    def load(cls, path: Path | str) -> "NgramScorer":
        """A scorer that `save` wrote, mapped, so processes share one copy; or any fastText .bin, folded."""
        if str(path).endswith(".bin"):
            return cls.from_fasttext(path)
        header, arrays = ngrams.read(path, _KIND, "NgramScorer.from_fasttext(...).save(...)")
        table = LinearTable(arrays["cells"], arrays["ngrams"], header["longest"])
        return cls(header["labels"], table, header["normalisation"])

    def save(self, path: Path | str) -> Path:
        """Write the tables as safetensors; equal scorers give equal bytes."""
        cells, buckets, longest = self.table
        header = {"kind": _KIND, "normalisation": self.normalisation, "labels": self.labels, "longest": longest}
        return ngrams.write(path, header, {"cells": cells, "ngrams": buckets})  # cells first: aligned

    def column(self, label: str) -> int:
        """The column of `label` in the probabilities, with or without fastText's prefix."""
        for name in (label, LABEL_PREFIX + label):
            if name in self.labels:
                return self.labels.index(name)
        raise TraitError(
            f"The model has no label '{label}'; its labels are {listed(self.labels)}. Name one with --label."
        )

    def probabilities(self, texts: Texts) -> np.ndarray:
        """float32 [n_texts, n_labels]. Texts: strings or Arrow strings (not copied)."""
        ((sums, rows),) = ngrams.total(texts, [self.table], self.normalisation)
        return self.finish(sums, rows)

    def finish(self, sums: np.ndarray, rows: np.ndarray) -> np.ndarray:
        logits = np.zeros((len(rows), len(self.labels)))
        np.divide(sums, rows[:, None], out=logits[:, : sums.shape[1]], where=rows[:, None] > 0)
        return softmax(logits, axis=1).astype(np.float32)

    def ngram_weights(self, grams: list[str]) -> np.ndarray:
        """float32 [n, n_labels]: what each word n-gram alone adds to the logits, relative to the labels' mean."""
        cells, buckets, longest = self.table
        weights = np.zeros((len(grams), len(self.labels)))
        words = [gram.split() for gram in grams]
        states = ngrams.word_states(text_array([word for gram in words for word in gram]))
        for added, gram in zip(
            weights, np.split(states, np.cumsum([len(gram) for gram in words])[:-1]), strict=True
        ):
            if len(gram) == 1:
                cell = cells[ngrams.find_slot(gram[0], cells.view(np.uint64))]
                added[: buckets.shape[1]] = cell[2 : 2 + buckets.shape[1]]
            elif 1 < len(gram) <= longest and len(buckets):
                added[: buckets.shape[1]] = buckets[ngrams.ngram_hashes(gram, len(gram))[0] % len(buckets)]
        return (weights - weights.mean(axis=1, keepdims=True)).astype(np.float32)


def _read_fasttext(path: Path) -> tuple[list[bytes], list[str], int, np.ndarray, np.ndarray]:
    """(words, not always UTF-8; labels; longest word n-gram; both matrices) of a file; TraitError if it cannot be folded.

    The header is read first: the library never returns from a dictionary that is cut off, and fills up a matrix that is.
    """
    import fasttext

    if not path.is_file():
        raise TraitError(
            f"{path} does not exist. Train a model (notebook 01), or give the path of a fastText .bin file."
        )
    with path.open("rb") as stream:
        head = _HEAD.unpack(stream.read(_HEAD.size).ljust(_HEAD.size, b"\0"))
    magic, version, dimension, *_, longest, loss, kind, buckets, _, maxn, _, _, _, n_words, n_labels, _, _ = head
    size, matrices = path.stat().st_size, 4 * dimension * (n_words + buckets + n_labels)
    incomplete = "is quantised (.ftz), or not a complete fastText model. Use the whole .bin model."
    folded = kind == _SUPERVISED and loss == _SOFTMAX and not maxn
    refused = {
        "is not a fastText model (.bin, format 12).": (magic, version) != (_MAGIC, 12),
        "was not trained by train_supervised(..., loss='softmax', minn=0, maxn=0). Train it so.": not folded,
        incomplete: size < matrices,
        "has one label; a classifier needs two. Train it on two kinds of documents.": n_labels < 2,
    }
    if why := next((why for why, wrong in refused.items() if wrong), ""):
        raise TraitError(f"{path} {why}")
    model = fasttext.load_model(str(path))
    named = (names(on_unicode_error="surrogateescape") for names in (model.get_words, model.get_labels))
    words, labels = ([name.encode(errors="surrogateescape") for name in names] for names in named)
    if size != _HEAD.size + sum(len(name) + _ENTRY for name in (*words, *labels)) + matrices + 2 * _MATRIX:
        raise TraitError(f"{path} {incomplete}")
    labels = [label.decode(errors="replace") for label in labels]
    if not all(
        label.startswith(LABEL_PREFIX) for label in labels
    ):  # fastText skips words that begin as labels do
        raise TraitError(
            f"{path} has labels that do not start with {LABEL_PREFIX}, such as '{labels[0]}'. Train it with them."
        )
    return words, labels, longest, model.get_input_matrix(), model.get_output_matrix()
