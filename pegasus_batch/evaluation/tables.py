"""Columns of Parquet files, by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


def read_columns(path: str | Path, columns: Sequence[str]) -> list[list[Any]]:
    """Return the values of each of ``columns`` of a Parquet file or a directory of them, row order kept.

    Raises FileNotFoundError for a missing path and ValueError, listing what there is, for a missing column.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"no Parquet file or directory at {path}")
    present = pq.ParquetDataset(path).schema.names
    for column in columns:
        if column not in present:
            raise ValueError(f"{path} has no column {column!r}; its columns: {', '.join(present)}")
    table = pq.read_table(path, columns=list(dict.fromkeys(columns)))
    return [table[column].to_pylist() for column in columns]


def join_predictions(
    ids: Sequence[Any], predicted_ids: Sequence[Any], predictions: Sequence[str | None]
) -> list[str | None]:
    """Return the prediction of each of ``ids``, None for one that has none.

    Raises ValueError where an id is predicted twice, or is asked for twice: then no row could be told from another.
    """
    by_id = dict(zip(predicted_ids, predictions, strict=True))
    for name, values in (("predictions", predicted_ids), ("references", ids)):
        if len(set(values)) < len(values):
            twice = next(value for value in values if list(values).count(value) > 1)
            raise ValueError(f"the id {twice!r} occurs more than once in the {name}: choose a unique --id-column")
    return [by_id.get(row_id) for row_id in ids]
