"""One piece of an evaluation: its items asked slice by slice, their outcomes kept by what shaped them.

One file a model, task, version and settings; in it the items by a digest of what is asked. It is rewritten, whole or not
at all, after every slice, so an evaluation that was killed goes on after the last one, and more items repeat nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from trait_kit.engine.files import TraitError, atomic_path, digest
from trait_kit.evaluation import metrics

if TYPE_CHECKING:
    from trait_kit.evaluation.backends import Backend

HELD_OUT = "held_out/"  # prefix of the tasks that are documents or lm-eval's own, not problems
MAX_PREDICTION_CHARACTERS = 2_000  # of a prediction kept in the outcomes
_SCORING = 3  # raise when a change here, in harness.py or generation.py changes a number: kept outcomes are not used then
_MAIN_METRICS = ("acc_norm", "acc", "exact_match", "bits_per_byte")  # of an lm-eval task, the first that it has
_KEPT = pa.schema(
    [
        ("item", pa.string()),  # digest of what is asked
        ("item_id", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("prediction", pa.string()),
        ("gold", pa.string()),
    ]
)
Rows = dict[str, list[dict[str, Any]]]  # an item's digest -> its outcomes, one a metric


@dataclass(frozen=True)
class Unit:
    """What is evaluated as one piece: a task's problems, their generations, a set of documents, or a task of lm-eval's."""

    task: str
    kind: str  # likelihood | generation | documents | general
    items: list[dict[str, Any]]
    settings: dict[str, Any]
    version: int | str = 1  # of the task file
    general: Any = None  # the lm-eval task, whose documents the items are

    def path(self, folder: Path, identity: list[Any]) -> Path:
        shaped = [_SCORING, version("lm-eval"), *identity, self.task, self.version, self.kind, self.settings]
        return folder / f"{re.sub(r'[^A-Za-z0-9_-]', '_', self.task)}-{self.kind}-{digest(shaped)[:20]}.parquet"


def evaluate_unit(unit: Unit, backend: Backend, out_dir: Path, report: Callable[[str], None]) -> tuple[Rows, int]:
    """Outcomes of at least the unit's items, and how many items had to be asked. Writes after every slice."""
    path = unit.path(out_dir / "outcomes", backend.identity)
    kept = _read_kept(path, report)
    missing = [place for place, item in enumerate(unit.items) if digest(item) not in kept]
    if not missing:
        return kept, 0
    written = write_unit(unit, out_dir / "lm_eval")
    loaded = _loaded(unit, written, out_dir / "lm_eval")
    for start in range(0, len(missing), backend.slice_items):
        kept |= _score(unit, written, loaded, missing[start : start + backend.slice_items], backend)
        rows = [{"item": item, **row} for item, found in kept.items() for row in found]
        with atomic_path(path) as temporary:
            pq.write_table(pa.Table.from_pylist(rows, schema=_KEPT), temporary, compression="zstd")
    return kept, len(missing)


def _read_kept(path: Path, report: Callable[[str], None]) -> Rows:
    """What an earlier evaluation kept; a file that is none is removed, and that is said."""
    kept: Rows = {}
    if not path.exists():
        return kept
    try:
        table = pq.read_table(path)
        if table.schema.remove_metadata() != _KEPT:
            raise pa.ArrowInvalid(f"its columns are {', '.join(table.column_names)}")
        rows = table.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        path.unlink()
        reason = " ".join(str(error).split())[:200]
        report(f"{path} held no outcomes that can be used ({reason}). It was removed; its items are asked again.")
        return kept
    for row in rows:
        kept.setdefault(row.pop("item"), []).append(row)
    return kept


def write_unit(unit: Unit, folder: Path) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """Write a unit's lm-eval tasks; by template each one's name and items."""
    from trait_kit.evaluation import harness

    if unit.general is not None:
        return {"general": (unit.general.config.task, unit.items)}
    templates: dict[str, tuple[list[str], list[dict[str, Any]]]] = {}
    if unit.kind == "documents":
        templates["document_bits"] = (["text"], unit.items)
    elif unit.kind == "generation":
        columns = ["prompt", "question", "answer", "kind", "choices", "entity", "marks", "limits"]
        templates["generation"] = (columns, unit.items)
    else:
        templates["solution_bits"] = (["prompt", "target"], unit.items)
        if choosing := [item for item in unit.items if "choices" in item]:
            templates["choices"] = (["prompt", "answer", "choices", "gold"], choosing)
    settings: dict[str, Any] = {"metadata": {"version": unit.version}}
    if unit.kind == "generation":
        settings["generation_kwargs"] = {"until": ["\nQuestion:"], "do_sample": False, **unit.settings}
    written = {}
    for template, (columns, items) in templates.items():
        shown = [{name: item[name] for name in ("id", *columns)} for item in items]
        written[template] = (harness.write_task(folder, template, unit.task, shown, **settings), items)
    return written


def _loaded(unit: Unit, written: dict[str, tuple[str, list[dict[str, Any]]]], folder: Path) -> dict[str, Any]:
    """A unit's lm-eval tasks by name."""
    from trait_kit.evaluation import harness

    names = [name for name, _items in written.values()]
    return {names[0]: unit.general} if unit.general is not None else harness.load_written(folder, names)


def _score(
    unit: Unit,
    written: dict[str, tuple[str, list[dict[str, Any]]]],
    loaded: dict[str, Any],
    places: list[int],
    backend: Backend,
) -> Rows:
    """Run the unit's items at `places` through lm-eval and read outcome rows off its samples."""
    wanted = {unit.items[place]["id"] for place in places}
    asked = {name: [place for place, item in enumerate(items) if item["id"] in wanted] for name, items in written.values()}
    asked = {name: chosen for name, chosen in asked.items() if chosen}  # lm-eval takes none for all
    samples = backend.run({name: loaded[name] for name in asked}, asked)
    rows: Rows = {digest(unit.items[place]): [] for place in places}
    for template, (name, items) in written.items():
        first_filter = {sample["doc_id"]: sample for sample in reversed(samples.get(name, []))}
        for place, sample in sorted(first_filter.items()):
            item = items[place]
            for metric, value, prediction, gold in _outcomes(template, sample):
                if not math.isfinite(value):
                    where = f"{item['id']} of {unit.task}"
                    raise TraitError(f"{backend.whose} gives no finite {metric} for {where}: its training diverged.")
                texts = {"prediction": _stored(prediction), "gold": _stored(gold)}
                rows[digest(item)].append({"item_id": item["id"], "metric": metric, "value": value, **texts})
    return rows


def _stored(text: str) -> str:
    """Short, and without the half characters that JSON of a server may hold and Parquet may not."""
    return text[:MAX_PREDICTION_CHARACTERS].encode("utf-8", "replace").decode()


def _outcomes(template: str, sample: dict[str, Any]) -> Iterator[tuple[str, float, str, str]]:
    """(metric, value, prediction, gold) of one lm-eval sample."""
    doc, responses = sample["doc"], sample["filtered_resps"]
    if template == "choices":
        values = [log_probability for log_probability, _greedy in responses]
        chosen = doc["choices"][metrics.best_choice(doc["choices"], values)]
        finite = all(map(math.isfinite, values))
        yield "choice_accuracy", sample["choice_accuracy"] if finite else math.nan, chosen, doc["answer"]
        if set(doc["choices"]) == {"relevant", "irrelevant"}:
            yield "relevance_score", metrics.relevance_score(doc["choices"], values), chosen, doc["answer"]
    elif template == "generation":
        for metric in sample["metrics"]:
            yield metric, sample[metric], responses[0], doc["answer"]
    elif template == "general":
        metric = next((name for name in (*_MAIN_METRICS, *sample["metrics"]) if name in sample["metrics"]), "")
        value = sample.get(metric)
        if metric == "bits_per_byte":
            value = metrics.bits_per_byte(*value)
        if not isinstance(value, int | float):
            raise TraitError(
                f"general_tasks: the metric '{metric}' of a task is no number of an item: {value!r:.60}. Leave it out."
            )
        yield metric, float(value), responses[0] if isinstance(responses[0], str) else "", str(sample["target"])
    else:
        value = metrics.bits_per_byte(*sample["bits_per_byte"])
        yield "bits_per_byte", value, "", doc["target"].strip() if template == "solution_bits" else ""
