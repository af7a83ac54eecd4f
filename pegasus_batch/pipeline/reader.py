"""Read the rows that a run still has to do: units of work, a few row groups each, turned into tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pegasus_batch.pipeline.carry import hash_ids, hash_texts, load_previous
from pegasus_batch.pipeline.inputs import locate
from pegasus_batch.pipeline.plan import PlannedFile, RunPlan
from pegasus_batch.pipeline.schema import EARLIER, ID_HASH, POSITION_BITS, READ_ERROR, ROW_KEY, TEXT_HASH
from pegasus_batch.pipeline.stages import READ_ROWS


class UnreadableInput(RuntimeError):
    """A part of an input file cannot be read although its footer could, and the job does not skip such files."""


def plan_units(plan: RunPlan, done: Sequence[np.ndarray], unit_rows: int) -> list[pa.Table]:
    """Cut the rows that are not done into units: whole row groups of one file, about ``unit_rows`` rows.

    ``done`` holds a bool for every row of every file. Each unit is a table of one row: the file's index, name and
    directory keys, its first and last row group, the position of its first row, and the ranges of rows to do.
    """
    units: list[pa.Table] = []
    for index, file in enumerate(plan.files):
        first = offset = start = 0
        for group, rows in enumerate(file.row_groups):
            offset += rows
            if offset - start < unit_rows and group + 1 < len(file.row_groups):
                continue
            todo = _ranges(~done[index][start:offset], start)
            if len(todo):
                units.append(_unit(index, file, first, group, start, todo))
            first, start = group + 1, offset
    return units


def _unit(index: int, file: PlannedFile, first: int, last: int, start: int, todo: np.ndarray) -> pa.Table:
    values = {
        "file": index,
        "at": file.at,
        "uri": file.version.uri,
        "keys": list(file.keys),
        "previous": file.previous,
        "first": first,
        "last": last,
        "start": start,
        "begins": todo[:, 0].tolist(),
        "ends": todo[:, 1].tolist(),
    }
    return pa.Table.from_pylist([values], schema=_UNIT_SCHEMA)


_UNIT_SCHEMA = pa.schema(
    [
        ("file", pa.int64()),
        ("at", pa.string()),
        ("uri", pa.string()),
        ("keys", pa.list_(pa.list_(pa.string()))),
        ("previous", pa.string()),
        ("first", pa.int64()),
        ("last", pa.int64()),
        ("start", pa.int64()),
        ("begins", pa.list_(pa.int64())),
        ("ends", pa.list_(pa.int64())),
    ]
)


def _ranges(wanted: np.ndarray, start: int) -> np.ndarray:
    """Return [begin, end) of every run of True, as positions in the file."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], wanted, [False])).astype(np.int8)))
    return edges.reshape(-1, 2) + start


@dataclass(frozen=True)
class ReadUnits:
    """Turns units into the rows that they name: the columns, the directories' keys, each row's key and hashes.

    A part of a file that cannot be decoded ends the job, or, where ``skip_bad``, becomes rows whose unreadable columns are
    null and which say why. Where a unit names a previous run, rows whose text that run summarized bring its results.
    """

    columns: tuple[str, ...]
    text_columns: tuple[str, ...]
    id_column: str
    skip_bad: bool
    output: str  # where previous runs are found
    results: tuple[str, ...]  # the names of the result columns

    def __call__(self, units: pa.Table) -> Iterator[pa.Table]:
        """Yield tables of at most READ_ROWS rows."""
        for unit in units.to_pylist():
            at = locate(unit["at"])
            with at.filesystem.open_input_file(at.path) as handle:
                parquet = pq.ParquetFile(handle, page_checksum_verification=True)
                own = [name for name in self.columns if name in parquet.schema_arrow.names]
                position = unit["start"]
                for group in range(unit["first"], unit["last"] + 1):
                    for table in self._read_group(parquet, group, own, unit["uri"]):
                        yield from self._finish(table, unit, position)
                        position += len(table)

    def _read_group(self, parquet: pq.ParquetFile, group: int, columns: Sequence[str], uri: str) -> Iterator[pa.Table]:
        """Yield the rows of a row group in order; what cannot be decoded is null, with a reason."""
        n_read = 0
        try:
            for table in _decode(parquet, group, columns):
                n_read += len(table)
                yield table
            return
        except (OSError, pa.ArrowException) as error:
            if not self.skip_bad:
                raise UnreadableInput(_reason(uri, group, error)) from error
        good, reasons = [], []
        for name in columns:
            try:
                for _ in _decode(parquet, group, [name]):
                    pass
                good.append(name)
            except (OSError, pa.ArrowException) as error:
                reasons.append(f"column {name!r}: {_first_line(error)}")
        reason = f"{uri}: row group {group} cannot be read: {'; '.join(reasons)}"
        seen = 0
        for length, table in _decode_readable(parquet, group, good):
            skip, seen = max(0, n_read - seen), seen + length
            if skip < length:
                why = pa.array([reason] * (length - skip), pa.string())
                yield table.slice(skip).append_column(READ_ERROR, why) if table else pa.table({READ_ERROR: why})

    def _finish(self, table: pa.Table, unit: dict[str, Any], position: int) -> Iterator[pa.Table]:
        """Keep the rows that are to be done, and give them their keys."""
        for begin, end in zip(unit["begins"], unit["ends"], strict=True):
            begin, end = max(begin, position), min(end, position + len(table))
            if begin >= end:
                continue
            part = table.slice(begin - position, end - begin)
            for name, value in unit["keys"]:
                if name in self.columns and name not in part.column_names:
                    part = part.append_column(name, pa.array([value] * len(part), pa.string()))
            keys = (unit["file"] << POSITION_BITS) + np.arange(begin, end)
            yield self._note(part.append_column(ROW_KEY, pa.array(keys, pa.int64())), unit)

    def _note(self, table: pa.Table, unit: dict[str, Any]) -> pa.Table:
        """Add the hashes by which rows are recognised, and what an earlier run has for them."""
        missing = pa.chunked_array([pa.nulls(len(table), pa.string())])
        columns = {name: table.column(name) for name in table.column_names}
        hashes = hash_texts(*(columns.get(name, missing) for name in self.text_columns))
        table = table.append_column(TEXT_HASH, hashes)
        table = table.append_column(ID_HASH, hash_ids(columns.get(self.id_column, missing)))
        if unit["previous"] is None:
            return table
        earlier = load_previous(self.output, unit["previous"], unit["uri"], self.results)
        return table.append_column(EARLIER, earlier.find(hashes))


def _decode(parquet: pq.ParquetFile, group: int, columns: Sequence[str]) -> Iterator[pa.Table]:
    for batch in parquet.iter_batches(READ_ROWS, [group], list(columns), use_threads=False):
        yield pa.Table.from_batches([batch])


def _decode_readable(
    parquet: pq.ParquetFile, group: int, columns: Sequence[str]
) -> Iterator[tuple[int, pa.Table | None]]:
    """Yield (rows, table), the table None where not a single column can be read."""
    n_rows = parquet.metadata.row_group(group).num_rows
    if columns:
        yield from ((len(table), table) for table in _decode(parquet, group, columns))
    else:
        yield from ((min(READ_ROWS, n_rows - start), None) for start in range(0, n_rows, READ_ROWS))


def _reason(uri: str, group: int, error: Exception) -> str:
    return (
        f"{uri}: row group {group} cannot be read: {_first_line(error)}; repair or remove the file, or keep what is "
        "readable of it with --on-bad-file skip"
    )


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0].rstrip(": ")
