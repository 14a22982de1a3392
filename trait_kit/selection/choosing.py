"""From scores to selections: each method takes exactly so many tokens of clean documents (paper, section 3.1).

A corpus may be far larger than memory, a selection is not far larger than its budget. So the scores are read as a stream to
find the rank above which more than enough tokens lie; only those *candidates* are read again, shard by shard. Cleaning comes
before the cut, so that every method spends its whole budget on clean documents: none that holds a test question, none that
repeats the in-domain seed, and of near-duplicates the one that the method ranks best. Where cleaning took so much that a
budget is not filled, twice as many candidates are gathered.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from trait_kit import tables
from trait_kit.engine import minhash
from trait_kit.engine.files import TraitError, atomic_path, digest, read_json, write_json
from trait_kit.engine.ngrams import Texts
from trait_kit.engine.questions import QuestionIndex
from trait_kit.engine.shards import Place, Progress, read_job, run
from trait_kit.models import token_counter
from trait_kit.params import Method, method_folder
from trait_kit.selection.budget import Choice, Limits, check_method, choose, cut_key, rank_keys, value_keys
from trait_kit.selection.documents import id_hashes, load_documents, load_labels, read_rows, truth_label
from trait_kit.selection.scoring import KEY, Scoring, has_key, model_files, open_scoring, score_corpus
from trait_kit.tasks import load_problems

if TYPE_CHECKING:
    from trait_kit.runs import Step

_FIRST_MARGIN = 1.5  # candidates asked for at first, in units of the limit
_ESTIMATE_SLACK = 2.0  # a document's estimated tokens may be wrong by this factor
_ADDED = [pa.field("signature", pa.binary()), pa.field("contaminated", pa.bool_())]
_SCHEMA = pa.schema([*tables.SCHEMAS["documents"], *list(tables.SCHEMAS["scores"])[1:], *_ADDED])
_IN_MEMORY = [name for name in _SCHEMA.names if name not in ("text", "source", "url")]
_EVIDENCE = ["id", "question_task", "question_id", "kind", "overlap", "excerpt"]


# Candidates: those that any method might choose, gathered with what cleaning needs to know


def _nominate(scoring: Scoring, method: Method, job: dict[str, Any], margin: float) -> tuple[int, dict[str, int]]:
    """The smallest rank key of the documents that the method nominates, and how many its limits refuse, by reason."""
    limits, refused = Limits(**job["limits"]), {}

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        refused.clear()
        for scores in scoring.batches():
            check_method(method, scores)
            kept = np.ones(scores.num_rows, bool)
            for reason, fails in limits.refused(scores, method, job["slack"]).items():
                refused[reason] = refused.get(reason, 0) + int((kept & fails).sum())
                kept &= ~fails
            weights = scores["n_tokens"].to_numpy() if limits.tokens else np.ones(scores.num_rows)
            yield rank_keys(scores, method, job["seed"])[kept], weights[kept]

    if limits.threshold is not None:
        for _ in batches():
            pass
        return int(value_keys(limits.threshold)[0]), refused
    return cut_key(batches, int(np.ceil(margin * (limits.tokens or limits.share * scoring.documents)))), refused


def _gather(scoring: Scoring, folder: Path, job: dict[str, Any], place: Place) -> pa.Table:
    """All candidates but for their texts, in the corpus' order; the files hold these too."""
    write_json(folder / "job.json", job)
    for stale in folder.glob("c*-*.parquet"):
        if not has_key(stale, digest(job)):
            stale.unlink()
    progress = Progress("gathering", len(scoring.shards), functools.partial(_path, folder, "candidates"))
    missing = [shard.number for shard in scoring.shards if not _path(folder, "candidates", shard.number).exists()]
    run(gather_shard, folder / "job.json", missing, place, progress)
    found = [pq.read_table(_path(folder, "candidates", shard.number), columns=_IN_MEMORY) for shard in scoring.shards]
    return pa.concat_tables(found).combine_chunks()


def _path(folder: Path, kind: str, number: int) -> Path:
    return folder / f"{kind}-{number:05d}.parquet"


def _files(selections: Path) -> list[Path]:
    found = (selections / "candidates").glob("candidates-*.parquet")
    return sorted(found, key=lambda path: int(path.stem.split("-")[1]))


def gather_shard(job_path: Path, number: int) -> None:
    """Gather one shard's candidates and write its two files, the candidates last."""
    job, folder = read_job(job_path), job_path.parent
    scoring, limits = open_scoring(Path(job["scoring"])), Limits(**job["limits"])
    scores = tables.conform(pq.read_table(scoring.path("scores", number)).replace_schema_metadata(None), "scores")
    wanted = np.zeros(scores.num_rows, bool)
    for method, cut in job["cuts"].items():
        kept = ~np.logical_or.reduce([*limits.refused(scores, method, job["slack"]).values()])
        wanted |= kept & (rank_keys(scores, method, job["seed"]) >= np.uint64(cut))
    rows = np.flatnonzero(wanted)
    documents = read_rows(scoring.shards[number], rows, scoring.seed)
    scores = scores.take(pa.array(rows))
    if not documents["id"].combine_chunks().equals(scores["id"].combine_chunks()):
        raise TraitError(f"{scoring.shards[number].source} has changed since it was scored. Score it again.")
    texts = documents["text"].combine_chunks()
    columns = {name: table[name] for table in (scores, documents) for name in table.column_names}
    if job["base_model"]:  # counts that are estimates become exact; empty: they stay estimates
        columns["n_tokens"] = pa.array(_counter(job["base_model"])(texts.to_pylist()), pa.int32())
    index, asked = _test_questions(folder / "test_questions.json", job["tests"])
    found = index.find(texts)
    ids = np.array(documents["id"].to_pylist(), object)[found["text_index"]]
    named = asked.iloc[found["test_index"]]
    proof = found.assign(id=ids, question_task=named["task"].to_list(), question_id=named["id"].to_list())[_EVIDENCE]
    columns["signature"] = _signatures(texts) if job["signatures"] else pa.nulls(len(rows), pa.binary())
    columns["contaminated"] = np.isin(np.arange(len(rows)), found["text_index"])
    kinds = {name: pa.float64() if name == "overlap" else pa.string() for name in _EVIDENCE}
    _write(_path(folder, "contaminated", number), pa.Table.from_pandas(proof, pa.schema(kinds), preserve_index=False), job)
    _write(_path(folder, "candidates", number), pa.table(columns).select(_SCHEMA.names).cast(_SCHEMA), job)


def _signatures(texts: pa.Array) -> pa.Array:
    made = minhash.signatures(texts)
    rows = pa.FixedSizeBinaryArray.from_buffers(pa.binary(made.shape[1] * 4), len(made), [None, pa.py_buffer(made)])
    return rows.cast(pa.binary())


def _write(path: Path, table: pa.Table, job: dict[str, Any] | None = None) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata({KEY: digest(job)} if job else None), temporary, compression="lz4")


@functools.lru_cache(maxsize=1)
def _counter(base_model: str) -> Callable:
    return token_counter(base_model)  # to load a tokenizer takes as long as to count a thousand documents


@functools.lru_cache(maxsize=2)
def _test_questions(path: Path, _digest: str) -> tuple[QuestionIndex, pd.DataFrame]:
    asked = pd.DataFrame(read_json(path), columns=["task", "id", "question"])
    return QuestionIndex(asked["question"].tolist()), asked


# Selections


@dataclass(frozen=True)
class Selected:
    """What each method chose; the rows of a choice are those of `table` and of `texts`."""

    folder: Path
    table: pa.Table  # candidates but for their texts
    choices: dict[str, Choice]
    documents: int  # in the corpus that could be read
    unreadable: int

    @classmethod
    def load(cls, folder: Path) -> Selected:
        """What `select` left in the folder, without choosing again."""
        said = read_json(folder / "candidates" / "choices.json")
        rankings = pq.read_table(folder / "candidates" / "rankings.parquet").to_pandas()
        choices = {
            report["method"]: Choice(rankings.loc[rankings["method"] == report["method"], "row"].to_numpy(), report)
            for report in said["reports"]
        }
        table = pa.concat_tables([pq.read_table(path, columns=_IN_MEMORY) for path in _files(folder)])
        return cls(folder, table.replace_schema_metadata(None), choices, said["documents"], said["unreadable"])

    def chosen(self, method: str) -> pa.Table:
        """What is in memory of the method's documents, best first."""
        return self.table.take(pa.array(self.choices[method].indices))

    @functools.cached_property
    def contaminated(self) -> pd.DataFrame:
        """Which candidate holds which test question: id, question_task, question_id, kind, overlap, excerpt."""
        return pd.read_parquet(self.folder / "contaminated.parquet")

    def texts(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The candidates with their texts, a file at a time."""
        for path in _files(self.folder):
            yield pq.read_table(path, columns=columns).replace_schema_metadata(None)


def select(
    scoring: Scoring,
    folder: Path | str,
    methods: Sequence[Method],
    limits: Limits,
    *,
    base_model: str = "",
    seed: int = 0,
    test_questions: pd.DataFrame | None = None,
    in_domain: Texts = (),
    near_duplicate: float = 0.8,
    place: Place = Place(),
) -> Selected:
    """Choose by each method and write `folder`/<method>.parquet, contaminated.parquet and near_duplicates.parquet.

    `base_model`: counts tokens where scoring only estimated them; empty, the budget is in estimated tokens.
    `test_questions`: task, id, question. `near_duplicate`: the similarity (Jaccard, of word 5-grams) from which texts repeat
    each other; 0 keeps all of them.
    """
    folder = Path(folder).absolute()
    scoring.refuse_changed()
    asked = [] if test_questions is None else test_questions[["task", "id", "question"]].to_dict("records")
    write_json(folder / "candidates" / "test_questions.json", asked)
    job = {
        "scoring": str(scoring.folder),
        "scored": digest(read_job(scoring.folder / "job.json")),
        "seed": seed,
        "limits": asdict(limits),
        "slack": 1.0 if scoring.exact_tokens else _ESTIMATE_SLACK,
        "base_model": "" if scoring.exact_tokens else base_model,
        "signatures": near_duplicate > 0,
        "tests": digest(asked),
    }
    margin, enough = _FIRST_MARGIN, False
    while not enough:
        nominated = {method: _nominate(scoring, method, job, margin) for method in methods}
        cuts = {method: cut for method, (cut, _) in nominated.items()}
        table = _gather(scoring, folder / "candidates", job | {"cuts": cuts}, place)
        clean = _Cleaning(table, in_domain, near_duplicate)
        choices = {method: _choose(clean, method, limits, seed, scoring.documents, *nominated[method]) for method in methods}
        everything = {method for method in methods if limits.threshold is not None or not cuts[method]}
        enough = all(choice.report["enough"] or method in everything for method, choice in choices.items())
        margin *= 2
    selected = Selected(folder, table, choices, scoring.documents, scoring.lost)
    for method, choice in choices.items():
        _write_selection(selected, choice, method)
    proof = [pq.read_table(_path(folder / "candidates", "contaminated", shard.number)) for shard in scoring.shards]
    _write(folder / "contaminated.parquet", pa.concat_tables(proof))
    _write(folder / "near_duplicates.parquet", pa.concat_tables(clean.evidence.values()))
    ranked = [pa.table({"method": [method] * len(one.ranking), "row": one.ranking}) for method, one in choices.items()]
    _write(folder / "candidates" / "rankings.parquet", pa.concat_tables(ranked))
    said = {"documents": selected.documents, "unreadable": selected.unreadable}
    write_json(folder / "candidates" / "choices.json", {**said, "reports": [one.report for one in choices.values()]})
    return selected


class _Cleaning:
    """Finds what is there already, and keeps the proof: method -> a table of id, of (what it repeats), method."""

    def __init__(self, table: pa.Table, in_domain: Texts, threshold: float) -> None:
        self.table, self.threshold = table, threshold
        self.ids = table["id"].to_numpy(zero_copy_only=False)
        self.of_seed = np.zeros(len(self.ids), bool)
        if threshold:
            joined = b"".join(table["signature"].to_pylist())
            self.signatures = np.frombuffer(joined, np.uint32).reshape(len(self.ids), -1)
            if len(in_domain):
                seed = minhash.signatures(in_domain)
                self.of_seed = minhash.repeats(self.signatures, seed, threshold)
        self.evidence: dict[str, pa.Table] = {}

    def worse(self, best_first: np.ndarray, method: Method) -> np.ndarray:
        """Those of these rows that repeat one before them; which rows there are depends on the method alone."""
        rows = np.sort(best_first)
        clusters = minhash.clusters(self.signatures[rows], self.threshold) if self.threshold else np.arange(len(rows))
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


def _choose(
    clean: _Cleaning, method: Method, limits: Limits, seed: int, documents: int, cut: int, refused: dict[str, int]
) -> Choice:
    """The method's choice among its own nominees; its report is made one of the whole corpus of so many documents."""
    table, keys = clean.table, rank_keys(clean.table, method, seed)
    fails = limits.refused(table, method)
    nominated = (keys >= np.uint64(cut)) & ~fails.get("below min_educational", np.zeros(len(keys), bool))
    again, nominees = nominated.copy(), np.flatnonzero(nominated)
    again[nominees[np.unique(id_hashes(table["id"].filter(pa.array(nominated))), return_index=True)[1]]] = False
    dropped = {
        "not nominated": ~nominated,
        "id seen before": again,
        "holds a test question": table["contaminated"].to_numpy(zero_copy_only=False),
        "repeats the in-domain seed": clean.of_seed,
    }
    usable = ~np.logical_or.reduce([*dropped.values(), *fails.values()])
    best_first = np.flatnonzero(usable)[np.argsort(~keys[usable], kind="stable")]
    dropped["near-duplicate of a better one"] = np.isin(np.arange(len(keys)), clean.worse(best_first, method))
    choice = choose(table, method, limits, seed, dropped, documents)
    counts = choice.report["dropped"]
    del counts["not nominated"]
    for reason, count in refused.items():
        counts[reason] = counts.get(reason, 0) + count
    counts["beyond the budget"] = 0
    choice.report["n_in"] = documents
    counts["beyond the budget"] = documents - choice.report["n_out"] - sum(counts.values())
    return choice


def _write_selection(selected: Selected, choice: Choice, method: Method) -> None:
    """The chosen documents with their scores (selection schema), in the corpus' order, a file of candidates at a time."""
    chosen = np.zeros(selected.table.num_rows, bool)
    chosen[choice.indices] = True
    path, start = selected.folder / f"{method_folder(method)}.parquet", 0
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, tables.SCHEMAS["selection"], compression="zstd") as writer,
    ):
        for documents in selected.texts():
            part = documents.filter(pa.array(chosen[start : start + documents.num_rows]))
            start += documents.num_rows
            part = part.append_column("method", pa.array([method] * part.num_rows, pa.string()))
            writer.write_table(tables.conform(part, "selection"))


@dataclass(frozen=True)
class Filtered:
    """What 02 leaves: scores, selections, and the hidden labels of a corpus that has them (they select nothing)."""

    scored: Scoring
    selected: Selected
    labels: dict[str, str] | None
    truth: str | None


def filter_web(step: Step) -> Filtered:
    """02: score every document of the web, then choose by each method; killed anywhere, it goes on at the next shard."""
    p = step.params
    if not step.done:
        in_domain = load_documents(p.in_domain, p.seed)["text"]
        place = Place(p.executor, p.workers, p.slurm_partition, p.slurm_time)
        options = {"seed": p.seed, "documents_per_shard": p.documents_per_shard, "max_quarantined": p.max_quarantined}
        scored = score_corpus(p.web, model_files(step, in_domain), step.path("scores"), **options, place=place)
        tables.write(step.path("quarantine.parquet"), scored.quarantine(), "quarantine")
        bounds = {"min_tokens": p.min_tokens, "max_tokens": p.max_tokens, "min_educational": p.min_educational}
        select(
            *(scored, step.path("selections"), p.methods, Limits(tokens=p.token_budget, **bounds)),
            base_model=p.base_model,
            seed=p.seed,
            test_questions=load_problems(p.tasks, "test", p.test_items_per_task, p.seed),
            in_domain=in_domain,
            near_duplicate=p.near_duplicate,
            place=place,
        )
    scored, selected = open_scoring(step.path("scores")), Selected.load(step.path("selections"))
    return Filtered(scored, selected, load_labels(p.web, p.seed), truth_label(p.web))
