"""The kit's tables: one schema each, Parquet on disk, written whole or not at all.

Every step hands its results to the next one through these tables, so their columns are the contract between the
notebooks. `write` refuses a table that lacks a column or holds a NaN; `read` names the file and the column it misses.
"""

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trait_kit.engine.files import TraitError, atomic_path

Row = dict[str, Any]
_strings = pa.list_(pa.string())
_document = [("id", pa.string()), ("text", pa.string()), ("source", pa.string()), ("url", pa.string())]
_scores = [
    ("id", pa.string()),
    ("domain", pa.float32()),  # probability of the in-domain label
    ("educational", pa.float32()),  # 2 P(High) + P(Mid), 0..2
    ("dsir", pa.float32()),  # log importance weight
    ("n_tokens", pa.int32()),  # estimated from bytes in scores; by the base model's tokenizer in selections
    ("shard", pa.int32()),
]

SCHEMAS: dict[str, pa.Schema] = {
    "documents": pa.schema(_document),  # a truth label, where there is one, travels in its own file: see data.documents
    "scores": pa.schema(_scores),
    "selection": pa.schema(_document + _scores[1:] + [("method", pa.string())]),
    "quarantine": pa.schema(  # `records`: how many documents the line stands for, where a stretch of a file is damaged
        [("source", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("records", pa.int64())]
    ),
    "problems": pa.schema(
        [
            ("id", pa.string()),
            ("task", pa.string()),
            ("question", pa.string()),
            ("answer", pa.string()),
            ("solution", pa.string()),  # null where a source has no worked solution
            ("choices", _strings),  # null where the task is not a choice; else holds `answer`
            ("entity", pa.string()),  # entity-centred domains: what the problem is about
            ("topic", pa.string()),  # knowledge-centred domains: the technique it needs
            ("template", pa.string()),  # what its solution follows, where that is known: no independent evidence within one
            ("split", pa.string()),  # train | validation | test
        ]
    ),
    "passages": pa.schema(
        [
            ("id", pa.string()),
            ("problem_ids", _strings),
            ("tasks", _strings),
            ("grouping", pa.string()),  # knowledge | entity
            ("shared", pa.string()),  # the topic or entity the problems share
            ("paragraphs", _strings),  # one a problem, in the order of problem_ids
            ("enlightenment", pa.string()),
            ("text", pa.string()),  # what is trained on
            ("n_tokens", pa.int32()),  # of `text`, by the base model's tokenizer
            ("attempt", pa.int32()),  # 1: as first asked for; 2: asked again after a rejection; ...
            ("teacher", pa.string()),
            ("prompt_version", pa.string()),
            ("tokens_in", pa.int64()),
            ("tokens_out", pa.int64()),
            ("cost_usd", pa.float64()),
            ("checks", _strings),  # names of the checks it passed
        ]
    ),
    "log": pa.schema(
        [
            ("arm", pa.string()),
            ("seed", pa.int64()),
            ("stage", pa.int32()),  # 1-based place in the arm's chain
            ("step", pa.int32()),  # optimizer step within the stage
            ("tokens", pa.int64()),  # trained on since the base model, all stages
            ("metric", pa.string()),  # loss | learning_rate | held_out/<name> (bits per byte)
            ("value", pa.float64()),
        ]
    ),
    "outcomes": pa.schema(
        [
            ("arm", pa.string()),
            ("seed", pa.int64()),
            ("task", pa.string()),
            ("item_id", pa.string()),
            ("cluster", pa.string()),  # its template, entity or document: items of one are no independent evidence
            ("metric", pa.string()),  # bits_per_number_token | choice_accuracy | exact_match | ...
            ("value", pa.float64()),
            ("prediction", pa.string()),
            ("gold", pa.string()),
        ]
    ),
}
SCHEMAS["rejected"] = SCHEMAS["passages"].append(pa.field("reason", pa.string()))


def conform(table: pa.Table | pd.DataFrame | list[Row], kind: str) -> pa.Table:
    """Cast to the schema of `kind`, in its column order; raise TraitError for a missing column or a NaN."""
    schema = SCHEMAS[kind]
    if isinstance(table, pd.DataFrame):
        table = pa.Table.from_pandas(table, preserve_index=False)
    if isinstance(table, list):
        table = pa.Table.from_pylist(table, schema=schema)
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise TraitError(f"A {kind} table lacks the column(s) {', '.join(missing)}; it has {', '.join(table.column_names)}.")
    try:
        table = table.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise TraitError(f"A {kind} table does not fit its schema: {error}") from error
    for field in schema:
        if pa.types.is_floating(field.type) and pc.any(pc.is_nan(table[field.name])).as_py():
            raise TraitError(f"A {kind} table has a NaN in column {field.name}.")
    return table


def write(path: Path | str, table: pa.Table | pd.DataFrame | list[Row], kind: str) -> pa.Table:
    """Write `table` as Parquet under `path` (whole or not at all) and return it as it was written."""
    table = conform(table, kind)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return table


def read(path: Path | str, kind: str) -> pa.Table:
    path = Path(path)
    if not path.exists():
        raise TraitError(f"{path} does not exist. Run the notebook that writes it first.")
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise TraitError(f"{path} is not a readable Parquet file: {error}") from error
    return conform(table, kind)
