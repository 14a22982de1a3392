"""From scores to selections: each method takes exactly so many tokens of clean documents (paper, section 3.1).

Scores are streamed to find the rank above which more than enough tokens lie; only those *candidates* are read again and
counted. Cleaning comes before the cut, so that every method spends its whole budget on clean documents: none that holds a
test item, repeats a held-out document (`disjoint`) or the in-domain seed, and of near-duplicates the one that it ranks
best. Where a budget is then unfilled, twice as many are gathered.
"""

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from trait_kit import tables
from trait_kit.engine import minhash
from trait_kit.engine.files import TraitError, atomic_path, digest, made_folder, read_json, write_json
from trait_kit.engine.ngrams import Texts
from trait_kit.engine.shards import Place, claim
from trait_kit.models import token_counter
from trait_kit.params import Method
from trait_kit.selection.budget import EVERYTHING, Limits, cut_value, drop, rank, rank_values, take
from trait_kit.selection.disjoint import ALIKE, find_items, held_out_texts, in_domain_documents
from trait_kit.selection.documents import id_hashes, list_shards, on_topic, read_rows, refuse_inside, sample
from trait_kit.selection.dsir import DsirModel
from trait_kit.selection.scoring import (
    ModelFiles,
    Scoring,
    do_shards,
    read_shards,
    score_corpus,
    shard_path,
    write_table,
)
from trait_kit.tasks import texts_of_tests

_SLACK = 4.0  # by which estimated tokens may be wrong
_SAMPLE = 20_000  # web documents that DSIR's general side is fitted to
_ADDED = [("signature", pa.binary()), ("text_hash", pa.uint64()), ("contaminated", pa.bool_())]
_CANDIDATES = pa.schema([*tables.SCHEMAS["documents"], *list(tables.SCHEMAS["scores"])[1:], *_ADDED])
_IN_MEMORY = [name for name in _CANDIDATES.names if name not in ("text", "source", "url")]
_REPEATS = pa.schema(dict.fromkeys(("id", "of", "method"), pa.string()))
_PROOF = pa.schema(
    dict.fromkeys(("id", "question_task", "question_id", "part", "kind", "excerpt", "method"), pa.string())
    | {"overlap": pa.float64()}
)


@dataclass(frozen=True)
class Selected:
    """What `select` left: <method>, contaminated and near_duplicates.parquet, report.json."""

    folder: Path
    scored: Scoring
    methods: dict[str, dict[str, Any]]  # n_in, n_out, dropped (reason -> documents), tokens, threshold, enough
    truth: dict[str, bool] | None = None  # of a demo: id -> on topic

    def chosen(self, method: str) -> pa.Table:
        """The method's documents, in the corpus' order."""
        return tables.read(self.folder / f"{method}.parquet", "selection")

    @functools.cached_property
    def contaminated(self) -> pd.DataFrame:
        """Which candidate of which method holds which test item."""
        return pd.read_parquet(self.folder / "contaminated.parquet")


def select(
    scoring: Scoring,
    folder: Path | str,
    methods: Sequence[Method],
    limits: Limits,
    *,
    base_model: str = "",
    seed: int = 0,
    tested: pd.DataFrame | None = None,
    in_domain: Texts = (),
    held_out: Texts = (),
    near_duplicate: float = 0.8,
    place: Place = Place(),
) -> Selected:
    """Choose by each method and write what `Selected` tells of.

    `base_model`: its tokenizer counts; empty, tokens are estimated. `tested`: of `tasks.texts_of_tests`. `near_duplicate`:
    Jaccard similarity of word 5-grams; 0 drops only copies of `held_out`.
    """
    folder = made_folder(folder)
    writes = [f"{name}.parquet" for name in (*methods, "contaminated", "near_duplicates")] + ["report.json"]
    scored = scoring.job
    now = list_shards(scored["corpus"], scored["seed"], shard_rows=scored["documents_per_shard"])
    if changed := {*scoring.shards} - {*now}:
        raise TraitError(f"{changed.pop().source} has changed since it was scored. Score it again.")
    refuse_inside(folder, now)
    job = {
        "scoring": str(scoring.folder),
        "scored": digest(scored),
        "seed": seed,
        "limits": asdict(limits),
        "base_model": base_model,
        "near_duplicate": near_duplicate,
        "tests": [] if tested is None else tested.to_dict("records"),
    }
    claim(folder, "selection", {}, dict.fromkeys(writes, ""), writes)
    known = {"a held-out document": (minhash.signatures(held_out), ALIKE)}
    if near_duplicate:
        known["the in-domain seed"] = (minhash.signatures(in_domain), near_duplicate)
    chosen = {method: _choose(scoring, folder, {**job, "method": method}, known, place) for method in methods}
    report = {method: told for method, (told, _, _) in chosen.items()}
    write_table(folder / "contaminated.parquet", pa.concat_tables(found for _, found, _ in chosen.values()))
    write_table(folder / "near_duplicates.parquet", pa.concat_tables(found for _, _, found in chosen.values()))
    write_json(folder / "report.json", report)

    return Selected(folder, scoring, report)


def _choose(
    scoring: Scoring,
    selections: Path,
    job: dict[str, Any],
    known: dict[str, tuple[np.ndarray, float]],
    place: Place,
) -> tuple[dict[str, Any], pa.Table, pa.Table]:
    """Write a method's selection: (what became of the corpus; test items found; documents that repeat others)."""
    method, limits, seed = job["method"], Limits(**job["limits"]), job["seed"]
    folder, threshold = selections / "candidates" / method, job["near_duplicate"]
    margin, enough = 0.75, False  # candidates to gather, in units of the limit
    while not enough:
        margin *= 2
        cut, refused = _nominate(scoring, method, limits, seed, margin)
        keys = [digest({**job, "cut": cut})] * len(scoring.shards)
        do_shards(gather_shard, folder, {**job, "cut": cut}, keys, ("candidates", "contaminated"), place)
        table = read_shards(folder, "candidates", len(keys), _IN_MEMORY)
        signatures = np.frombuffer(b"".join(table["signature"].to_pylist()), np.uint32).reshape(
            len(table), minhash.HASHES
        )
        copies = {of: minhash.repeats(signatures, *theirs) for of, theirs in known.items()}
        same = pd.Series(id_hashes(table["id"]) ^ table["text_hash"].to_numpy())
        unusable = {
            "id seen before": same.duplicated().to_numpy(),
            "holds a test item": table["contaminated"].to_numpy(),
            **{f"repeats {of}": rows for of, rows in copies.items()},
        }
        if np.logical_or.reduce([*unusable.values()]).all() and cut not in (EVERYTHING, limits.threshold):
            continue
        ranking, dropped = rank(table, method, limits, seed, unusable)
        better = _first_alike(signatures, ranking, threshold) if threshold else ranking
        unique = ranking[better == ranking]
        taken = take(table, unique, method, limits, seed)
        enough = taken["enough"] or cut == EVERYTHING
    dropped |= {reason: dropped[reason] + count for reason, count in refused.items()}
    dropped["near-duplicate of a better one"] = len(ranking) - len(unique)
    dropped["beyond the budget"] = scoring.documents - taken["n_out"] - sum(dropped.values())
    chosen = np.isin(np.arange(len(table)), unique[: taken["n_out"]])
    shards = np.searchsorted(table["shard"].to_numpy(), np.arange(1, len(keys)))
    _write_selection(folder, method, np.split(chosen, shards))
    ranked = table.select(["id", "shard", "n_tokens", "domain", "educational", "dsir"]).take(pa.array(unique))
    score = pa.nulls(len(unique)) if method == "random" else pa.array(rank_values(ranked, method, seed))
    write_table(folder / "ranking.parquet", ranked.append_column("score", score))
    ids, worse = table["id"].to_numpy(), better != ranking
    repeats = pd.DataFrame({"id": ids[ranking[worse]], "of": ids[better[worse]]})
    of_known = [pd.DataFrame({"id": ids[rows], "of": of}) for of, rows in copies.items()]
    evidence = pa.Table.from_pandas(
        pd.concat([repeats, *of_known]).assign(method=method), _REPEATS, preserve_index=False
    )

    return (
        {"n_in": scoring.documents, "dropped": dropped, **taken},
        read_shards(folder, "contaminated", len(keys)),
        evidence,
    )


def _nominate(
    scoring: Scoring, method: Method, limits: Limits, seed: int, margin: float
) -> tuple[float, dict[str, int]]:
    """(the smallest value of the candidates, reason -> documents refused by the limits); TraitError if none is left."""
    refused: Counter[str] = Counter()
    best, longest = -np.inf, 0

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        nonlocal best, longest
        for scores in scoring.batches():
            kept, counts = drop(limits.refused(scores, method, _SLACK))
            refused.update(counts)
            values = rank_values(scores, method, seed)[kept]
            best, longest = values.max(initial=best), scores["n_tokens"].to_numpy().max(initial=longest)
            yield values, limits.spent(scores)[kept]

    cut = cut_value(batches(), margin * limits.budget)
    cut = cut if limits.threshold is None else limits.threshold
    if best < max(cut, EVERYTHING):
        why = [f"{count} {reason}" for reason, count in refused.items() if count]
        why += [f"the best score is {best:.4g}"] * bool(np.isfinite(best)) + [
            f"the longest has about {longest} tokens"
        ]
        raise TraitError(
            f"{method}: none of {scoring.documents} documents passes {limits}: {', '.join(why)}. Loosen it."
        )
    return cut, refused


def _first_alike(signatures: np.ndarray, best_first: np.ndarray, threshold: float) -> np.ndarray:
    """For each of these rows the first that says the same."""
    rows = np.sort(best_first)  # so that ranks do not decide which are alike
    cluster = minhash.clusters(signatures[rows], threshold)[np.searchsorted(rows, best_first)]
    return pd.Series(best_first).groupby(cluster).transform("first").to_numpy()


def _write_selection(folder: Path, method: Method, chosen: list[np.ndarray]) -> None:
    """`chosen`: of each shard which candidates, bool [n]."""
    with (
        atomic_path(folder.parents[1] / f"{method}.parquet") as temporary,
        pq.ParquetWriter(temporary, tables.SCHEMAS["selection"], compression="zstd") as writer,
    ):
        for number, rows in enumerate(chosen):
            documents = pq.read_table(shard_path(folder, "candidates", number)).filter(pa.array(rows))
            documents = documents.append_column("method", pa.array([method] * len(documents), pa.string()))
            writer.write_table(tables.conform(documents, "selection"))


def gather_shard(job_path: Path, number: int) -> None:
    """Write one shard's candidates, and the test items that they hold."""
    job, folder = read_json(job_path), job_path.parent
    scoring, limits, method = (
        Scoring.open(Path(job["scoring"]), finished=False),
        Limits(**job["limits"]),
        job["method"],
    )
    key = job["writes"][shard_path(folder, "candidates", number).name]
    scores = tables.read(shard_path(scoring.folder, "scores", number), "scores").replace_schema_metadata(None)
    better = rank_values(scores, method, job["seed"]) >= np.float32(job["cut"])
    rows = np.flatnonzero(better & drop(limits.refused(scores, method, _SLACK))[0])
    documents, scores = read_rows(scoring.shards[number], rows, scoring.job["seed"]), scores.take(pa.array(rows))
    texts = documents["text"].combine_chunks()
    columns = {name: table[name] for table in (scores, documents) for name in table.column_names}
    if job["base_model"]:
        columns["n_tokens"] = token_counter(job["base_model"])(texts.to_pylist())
    tested = pd.DataFrame(job["tests"], columns=["question_task", "question_id", "part", "text"])
    proof = find_items(tested, texts, scores["id"].to_pylist()).assign(method=method)
    columns |= {
        "signature": pa.array([row.tobytes() for row in minhash.signatures(texts)], pa.binary()),
        "text_hash": id_hashes(texts),
        "contaminated": np.isin(np.arange(len(rows)), proof["text_index"]),
    }
    write_table(
        shard_path(folder, "contaminated", number), pa.Table.from_pandas(proof, _PROOF, preserve_index=False), key
    )
    candidates = pa.table(columns).select(_CANDIDATES.names).cast(_CANDIDATES)

    write_table(shard_path(folder, "candidates", number), candidates, key)


def filter_web(step: Any) -> Selected:
    """02: score every document of the web, then choose by each method."""
    p = step.params
    if not step.done:
        in_domain, place = in_domain_documents(p).documents["text"], Place(p.executor, p.workers, p.slurm)
        options = p.model_dump(include={"seed", "documents_per_shard", "max_quarantined"})
        scored = score_corpus(p.web, _model_files(step, in_domain), step.path("scores"), **options, place=place)
        select(
            *(scored, step.path("selections"), p.methods),
            Limits(p.token_budget, **p.model_dump(include={"min_tokens", "max_tokens", "min_educational"})),
            **p.model_dump(include={"base_model", "seed", "near_duplicate"}),
            tested=texts_of_tests(p.tasks, p.test_items_per_task, p.seed),
            in_domain=in_domain,
            held_out=held_out_texts([p.in_domain, p.web], p.seed),
            place=place,
        )
    folder, scored = step.path("selections"), Scoring.open(step.path("scores"))
    known = p.in_domain.partition("/")[0] == p.web.partition("/")[0]  # else the labels are of another domain
    return Selected(folder, scored, read_json(folder / "report.json"), on_topic(p.web, p.seed) if known else None)


def _model_files(step: Any, in_domain: Texts) -> ModelFiles:
    """Those of 01, and DSIR's, fitted to a plain sample of the web."""
    p, files = step.params, {"domain": step.path("01_domain_classifier", "domain.safetensors")}
    if "fasttext_educational" in p.methods:
        files["educational"] = step.path("01_domain_classifier", "educational.safetensors")
    if "dsir" in p.methods:
        files["dsir"] = DsirModel.fit(in_domain, sample(p.web, _SAMPLE, p.seed)["text"]).save(
            step.path("dsir.safetensors")
        )
    return ModelFiles(**{name: str(path) for name, path in files.items()})


def funnel(selected: Selected) -> pd.DataFrame:
    """One row a method: n_in -> n_out by reason, tokens, and the last document's score."""
    lost, held = int(selected.scored.losses().sum()), selected.scored.held_out
    rows = [
        {"method": method, "n_in": report["n_in"] + lost + held, "held out": held, "unreadable": lost}
        | report["dropped"]
        | {name: report[name] for name in ("n_out", "tokens", "threshold")}
        for method, report in selected.methods.items()
    ]
    return pd.DataFrame(rows).astype({"threshold": float})


def quality(selected: Selected) -> pd.DataFrame:
    """Precision, recall, base rate, lift (precision / base rate) a method: null of no positives, empty without a truth."""
    rows = []
    for method in selected.methods if selected.truth else ():
        ids, positives = selected.chosen(method)["id"].to_pylist(), sum(selected.truth.values())
        found = sum(selected.truth[name] for name in ids)
        precision, base_rate = found / len(ids), positives / len(selected.truth)
        recall, lift = (found / positives, precision / base_rate) if positives else (None, None)
        rows.append((method, len(ids), precision, recall, base_rate, lift))
    return pd.DataFrame(rows, columns=["method", "n_selected", "precision", "recall", "base_rate", "lift"])


def sample_scores(selected: Selected, n: int = 200_000) -> pd.DataFrame:
    """The scores of about `n` documents, for figures; with a truth also `on_topic`."""
    share, generator = n / max(selected.scored.documents, 1), np.random.default_rng(0)
    parts = (batch.to_pandas() for batch in selected.scored.batches())
    frame = pd.concat([part[generator.random(len(part)) < share] for part in parts], ignore_index=True)
    return frame.assign(on_topic=frame["id"].map(selected.truth)) if selected.truth else frame


def summary(selected: Selected) -> dict[str, Any]:
    found = quality(selected)
    lifts = ", ".join(f"{row.method} {row.lift:.1f}" for row in found.itertuples())
    return {
        "headline": f"Times better than chance at finding what was hidden: {lifts or 'not known, there are no labels'}.",
        "good": all(report["enough"] for report in selected.methods.values()),
        "documents": selected.scored.documents,
        "quarantined": int(selected.scored.losses().sum()),
        "contaminated": int(selected.contaminated["id"].nunique()),
        "quality": found.to_dict("records"),
        "funnel": funnel(selected).astype(object).where(pd.notna, None).to_dict("records"),
    }
