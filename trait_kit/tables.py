"""The kit's tables, Parquet on disk: their columns (tables.yaml) are the contract between notebooks.

What lacks a column or holds a NaN is neither written nor read.
"""

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trait_kit.engine.files import TraitError, atomic_path, read_yaml

_COLUMNS = read_yaml(Path(__file__).with_name("tables.yaml"))
_TYPES = {"strings": pa.list_(pa.string())}  # all others by Arrow's own names
SCHEMAS: dict[str, pa.Schema] = {
    kind: pa.schema([(name, _TYPES.get(type_) or pa.type_for_alias(type_)) for name, type_ in columns.items()])
    for kind, columns in _COLUMNS.items()
}


def conform(table: pa.Table | pd.DataFrame | list[dict[str, Any]], kind: str) -> pa.Table:
    """Cast to the schema of `kind`, in its column order; raise TraitError for a missing column or a NaN."""
    schema = SCHEMAS[kind]
    if isinstance(table, pd.DataFrame):
        table = pa.Table.from_pandas(table, preserve_index=False)
    if isinstance(table, list):
        table = pa.Table.from_pylist(table, schema=schema)
    try:
        table = table.select(schema.names).cast(schema)
    except (KeyError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise TraitError(f"A {kind} table does not fit its schema: {error}") from error
    for field in schema:
        if pa.types.is_floating(field.type) and pc.any(pc.is_nan(table[field.name])).as_py():
            raise TraitError(f"A {kind} table has a NaN in column {field.name}.")
    return table


def write(path: Path | str, table: pa.Table | pd.DataFrame | list[dict[str, Any]], kind: str) -> pa.Table:
    """Write `table` as Parquet under `path` (whole or not at all) and return it as it was written."""
    table = conform(table, kind)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return table


def read(path: Path | str, kind: str) -> pa.Table:
    try:
        return conform(pq.read_table(path), kind)
    except (pa.ArrowInvalid, OSError) as error:
        raise TraitError(f"{path} is not a readable Parquet file: {error}. Run what writes it first.") from error
