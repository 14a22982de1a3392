"""Selects: several methods at one limit, from clean candidates, each selection written as a table (paper, section 3.1).

Cleaning comes before the cut, so that every method spends its whole budget on clean documents: none that holds a test
question, none that repeats a document of the in-domain seed, and of near-duplicates only the one that the method ranks best.
Where cleaning took so much that a budget is not filled, twice as many candidates are gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trait_kit import tables
from trait_kit.engine import minhash as near_duplicates
from trait_kit.engine import shards as engine
from trait_kit.engine.files import atomic_path
from trait_kit.engine.ngrams import Texts
from trait_kit.params import Method, method_folder
from trait_kit.selection import candidates
from trait_kit.selection.budget import Choice, Filters, Limit, choose, rank_keys
from trait_kit.selection.candidates import Candidates
from trait_kit.selection.documents import Identities
from trait_kit.selection.scoring import Scoring

_FIRST_MARGIN = 1.5  # candidates asked for at first, in units of the limit


@dataclass(frozen=True)
class Selected:
    """What each method chose; indices of a choice are rows of `candidates.table`."""

    candidates: Candidates
    choices: dict[str, Choice]
    documents: int  # in the corpus that could be read
    unreadable: int


def select(
    scoring: Scoring,
    folder: Path,
    methods: Sequence[Method],
    limit: Limit,
    *,
    base_model: str = "",
    seed: int = 0,
    filters: Filters = Filters(),
    test_questions: Sequence[str] = (),
    in_domain: Texts = (),
    near_duplicate: float = 0.8,
    place: engine.Place = engine.Place(),
) -> Selected:
    """Choose by each method and write `folder`/<method>.parquet, contaminated.parquet and near_duplicates.parquet.

    `base_model`: counts tokens where scoring only estimated them; empty, the budget is in estimated tokens.
    `near_duplicate`: the similarity (Jaccard, of word 5-grams) from which texts repeat each other; 0 keeps all of them.
    """
    folder = Path(folder)
    scoring.refuse_changed()
    margin = _FIRST_MARGIN
    while True:
        found = candidates.gather(
            *(scoring, folder / "candidates", methods, limit, margin),
            seed=seed,
            filters=filters,
            base_model=base_model,
            signatures=near_duplicate > 0,
            test_questions=test_questions,
            place=place,
        )
        repeats = _Repeats(found, in_domain, near_duplicate)
        choices = {method: _choose(found, repeats, method, limit, seed, filters) for method in methods}
        if all(choice.report["enough"] or found.complete[method] for method, choice in choices.items()):
            break
        margin *= 2
    for method, choice in choices.items():
        _write_selection(found, choice, method, folder / f"{method_folder(method)}.parquet")
    _write(found.contaminated, folder / "contaminated.parquet")
    _write(pa.concat_tables(repeats.evidence.values()), folder / "near_duplicates.parquet")
    return Selected(found, choices, scoring.documents, scoring.lost)


class _Repeats:
    """Finds what is there already, and keeps the proof: method -> a table of id, of (what it repeats), method."""

    def __init__(self, found: Candidates, in_domain: Texts, threshold: float) -> None:
        self.threshold = threshold
        self.ids = found.table["id"].to_numpy(zero_copy_only=False)
        self.of_seed = np.zeros(len(self.ids), bool)
        self.signatures = found.signatures() if threshold else None
        if threshold and len(in_domain):
            seed = near_duplicates.signatures(in_domain)
            self.of_seed = near_duplicates.duplicates_of(self.signatures, seed, threshold) >= 0
        self.evidence: dict[str, pa.Table] = {}

    def worse(self, best_first: np.ndarray, method: Method) -> np.ndarray:
        """Those of these rows that repeat one before them; which rows there are depends on the method alone."""
        rows = np.sort(best_first)
        clusters = (
            near_duplicates.clusters(self.signatures[rows], self.threshold) if self.threshold else np.arange(len(rows))
        )
        cluster = clusters[np.searchsorted(rows, best_first)]
        _, first, place = np.unique(cluster, return_index=True, return_inverse=True)
        kept = best_first[first[place]]
        worse = kept != best_first
        of_seed = np.flatnonzero(self.of_seed)
        ids = [*self.ids[best_first[worse]], *self.ids[of_seed]]
        of = [*self.ids[kept[worse]], *["the in-domain seed"] * len(of_seed)]
        columns = {"id": ids, "of": of, "method": [method] * len(ids)}
        self.evidence[method] = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
        return best_first[worse]


def _choose(found: Candidates, repeats: _Repeats, method: Method, limit: Limit, seed: int, filters: Filters) -> Choice:
    """The method's choice among its own nominees; near-duplicates beside a better ranked one are dropped."""
    keys = rank_keys(found.table, method, seed)
    refused = dict(filters.reasons(found.table, method)).get("below min_educational", np.zeros(len(keys), bool))
    nominated = (keys >= np.uint64(found.cuts[method])) & ~refused
    again = np.zeros(len(keys), bool)
    again[nominated] = ~Identities().check(found.table.filter(pa.array(nominated)))[2]
    dropped = {
        "below the cut of the candidates": ~nominated,
        "id seen before": again,
        "holds a test question": found.table["contaminated"].to_numpy(zero_copy_only=False),
        "repeats the in-domain seed": repeats.of_seed,
    }
    usable = ~np.logical_or.reduce([*dropped.values(), *(fails for _, fails in filters.reasons(found.table, method))])
    best_first = np.flatnonzero(usable)[np.argsort(~keys[usable], kind="stable")]
    dropped["near-duplicate of a better one"] = np.isin(np.arange(len(keys)), repeats.worse(best_first, method))
    options = {"seed": seed, "filters": filters, "dropped": dropped, "documents": found.documents}
    choice = choose(found.table, method, limit, **options)
    _count_all(choice, found, method)
    return choice


def _count_all(choice: Choice, found: Candidates, method: Method) -> None:
    """Make the report one of the whole corpus: n_in, and documents by reason; the others were beyond the budget."""
    dropped = choice.report["dropped"]
    del dropped["below the cut of the candidates"]
    for reason, count in found.dropped[method].items():
        dropped[reason] = dropped.get(reason, 0) + count
    dropped["beyond the budget"] = 0
    choice.report["n_in"] = found.documents
    dropped["beyond the budget"] = found.documents - choice.report["n_out"] - sum(dropped.values())


def _write_selection(found: Candidates, choice: Choice, method: Method, path: Path) -> None:
    """The chosen documents with their scores (selection schema), in the corpus' order, a file of candidates at a time."""
    chosen = np.zeros(found.table.num_rows, bool)
    chosen[choice.indices] = True
    schema, start = tables.SCHEMAS["selection"], 0
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for documents in found.texts():
            part = documents.filter(pa.array(chosen[start : start + documents.num_rows]))
            start += documents.num_rows
            part = part.append_column("method", pa.array([method] * part.num_rows, pa.string()))
            writer.write_table(tables.conform(part, "selection"))


def _write(table: pa.Table, path: Path) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
