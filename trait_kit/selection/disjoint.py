"""What may not be trained on: text that holds a test item, and copies of documents held out for scoring.

In-domain documents are screened as those of the web are (`choosing`). Tasks are often made of the very documents, so one
that holds a gold answer of a sentence or more is left out like one that holds the question.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from trait_kit.engine import minhash
from trait_kit.engine.ngrams import Texts
from trait_kit.engine.questions import QuestionIndex
from trait_kit.params import Common
from trait_kit.selection.documents import load_documents, load_held_out
from trait_kit.tasks import texts_of_tests

_index = functools.lru_cache(maxsize=1)(QuestionIndex)  # for all shards of a process
ALIKE = 0.8  # Jaccard similarity of word 5-grams from which a text is a copy of a held-out one


def find_items(tested: pd.DataFrame, texts: Texts, ids: Sequence[str]) -> pd.DataFrame:
    """Which document holds which item of `tasks.texts_of_tests`.

    Columns: id, question_task, question_id, part, kind, overlap, excerpt, text_index.
    """
    found = _index(tuple(tested["text"])).find(texts).join(tested.drop(columns="text"), on="test_index")
    return found.assign(id=np.array(ids, object)[found["text_index"]])


def held_out_texts(specs: Sequence[str], seed: int, least: int = 1) -> list[str]:
    """The documents of these corpora that evaluation scores, at least so many of each."""
    return [text for spec in specs for text in load_held_out(spec, seed, least)["text"].to_pylist()]


@dataclass(frozen=True)
class InDomain:
    """The in-domain documents that may be trained on, and the others: id, reason, item, excerpt."""

    documents: pa.Table
    left_out: pd.DataFrame

    @property
    def said(self) -> str:
        told = f"In-domain documents: {len(self.documents):,} to train on, {len(self.left_out):,} left out."
        if len(self.left_out):
            told += (
                f" The first of them:\n{self.left_out[['reason', 'id', 'item']].head().to_string(index=False)}"
            )
        if len(self.left_out) > len(self.documents):
            told += "\nBring documents that the tasks were not made of, or lower test_items_per_task."
        return told


def in_domain_documents(p: Common) -> InDomain:
    """Load and screen the in-domain documents."""
    documents = load_documents(p.in_domain, p.seed)
    ids, texts = documents["id"].to_pylist(), documents["text"]
    found = find_items(texts_of_tests(p.tasks, p.test_items_per_task, p.seed), texts, ids)
    found = found.sort_values("part", ascending=False, kind="stable").drop_duplicates("id")
    held = found.assign(reason="holds a test item's " + found["part"], item="(" + found["question_id"] + ")")
    held_out = minhash.signatures(held_out_texts([p.in_domain, p.web], p.seed))
    again = pd.DataFrame(
        {"id": np.array(ids, object)[minhash.repeats(minhash.signatures(texts), held_out, ALIKE)]}
    )
    again = again.assign(item="", excerpt="", reason="repeats a held-out document")
    left_out = pd.concat([held[again.columns], again]).drop_duplicates("id", ignore_index=True)
    return InDomain(documents.filter(pa.array(~documents["id"].to_pandas().isin(left_out["id"]))), left_out)
