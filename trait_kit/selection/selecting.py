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
from trait_kit.data.identity import Identities
from trait_kit.files import atomic_path
from trait_kit.params import Method, method_folder
from trait_kit.selection import candidates, engine, near_duplicates
from trait_kit.selection.budget import Choice, Filters, Limit, choose, rank_keys
from trait_kit.selection.candidates import Candidates
from trait_kit.selection.ngrams import Texts
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
        repeats = _repeats(found, in_domain, near_duplicate)
        choices = {method: _choose(found, repeats, method, limit, seed, filters) for method in methods}
        if all(choice.report["enough"] or found.complete[method] for method, choice in choices.items()):
            break
        margin *= 2
    for method, choice in choices.items():
        _write_selection(found, choice, method, folder / f"{method_folder(method)}.parquet")
    _write(found.contaminated, folder / "contaminated.parquet")
    _write(repeats.evidence, folder / "near_duplicates.parquet")
    return Selected(found, choices, scoring.documents, scoring.lost)


@dataclass(frozen=True)
class _Repeats:
    """What may not be chosen because it is there already, and the proof."""

    again: np.ndarray  # bool [n]: its id belongs to an earlier document
    of_seed: np.ndarray  # bool [n]: repeats a document of the in-domain seed
    clusters: np.ndarray  # int64 [n]: near-duplicates share a number
    evidence: pa.Table  # id, of ("in-domain seed" or the id of the cluster's first document)


def _repeats(found: Candidates, in_domain: Texts, threshold: float) -> _Repeats:
    n = found.table.num_rows
    again = ~Identities().check(found.table)[2]
    of_seed, clusters = np.zeros(n, bool), np.arange(n)
    if threshold:
        signatures = found.signatures()
        clusters = near_duplicates.clusters(signatures, threshold)
        if len(in_domain):
            of_seed = near_duplicates.duplicates_of(signatures, near_duplicates.signatures(in_domain), threshold) >= 0
    ids = found.table["id"].to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(of_seed | (clusters != np.arange(n)))
    of = np.where(of_seed[rows], "in-domain seed", ids[clusters[rows]])
    evidence = pa.table({"id": pa.array(ids[rows], pa.string()), "of": pa.array(of, pa.string())})
    return _Repeats(again, of_seed, clusters, evidence)


def _choose(found: Candidates, repeats: _Repeats, method: Method, limit: Limit, seed: int, filters: Filters) -> Choice:
    """The method's choice among its own nominees; near-duplicates beside a better ranked one are dropped."""
    keys = rank_keys(found.table, method, seed)
    refused = dict(filters.reasons(found.table, method)).get("below min_educational", False)  # counted when nominating
    dropped = {
        "not nominated": (keys < np.uint64(found.cuts[method])) | refused,
        "id seen before": repeats.again,
        "holds a test question": found.table["contaminated"].to_numpy(zero_copy_only=False),
        "repeats the in-domain seed": repeats.of_seed,
    }
    usable = ~np.logical_or.reduce([*dropped.values(), *(fails for _, fails in filters.reasons(found.table, method))])
    best_first = np.flatnonzero(usable)[np.argsort(~keys[usable], kind="stable")]
    best = np.zeros(len(keys), bool)
    best[best_first[np.unique(repeats.clusters[best_first], return_index=True)[1]]] = True
    dropped["near-duplicate of a better one"] = usable & ~best
    options = {"seed": seed, "filters": filters, "dropped": dropped, "documents": found.documents}
    choice = choose(found.table, method, limit, **options)
    _count_all(choice, found, method)
    return choice


def _count_all(choice: Choice, found: Candidates, method: Method) -> None:
    """Make the report one of the whole corpus: n_in, and documents by reason; the others were beyond the budget."""
    dropped = choice.report["dropped"]
    del dropped["not nominated"]
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
