"""Write finished rows: each output file with the keys of its rows beside it, neither ever visible in part."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq
from ray.data import Datasink

from pegasus_batch.pipeline.inputs import Location
from pegasus_batch.pipeline.ledger import KEYS_PREFIX
from pegasus_batch.pipeline.schema import LEDGER_SCHEMA, conform

ROW_GROUP_ROWS = 16384  # otherwise every window would be a row group of its own


class SummaryDatasink(Datasink[None]):
    """Writes ``ATTEMPT-TASK-PART.parquet`` with exactly ``schema``, and before it the file of the row keys.

    A task that is retried writes the same rows under the same names. ``rows_per_file`` is the most rows of one file;
    ``window`` how many arrive at a time.
    """

    def __init__(self, directory: Location, attempt: int, schema: pa.Schema, rows_per_file: int, window: int) -> None:
        self._directory = directory
        self._attempt = attempt
        self._schema = schema
        self._rows_per_file = rows_per_file
        self._window = window

    @property
    def min_rows_per_write(self) -> int:
        """As many rows as a file may have, less the window by which Ray Data may exceed this."""
        return max(1, self._rows_per_file - self._window + 1)

    def write(self, blocks: Iterable[pa.Table], ctx: object) -> None:
        """Write the rows of one task."""
        tables = [block for block in blocks if len(block)]
        if not tables:
            return
        rows = pa.concat_tables(tables, promote_options="default")
        keys = conform(rows.select([name for name in LEDGER_SCHEMA.names if name in rows.column_names]), LEDGER_SCHEMA)
        rows = conform(rows, self._schema)
        for part, start in enumerate(range(0, len(rows), self._rows_per_file)):
            name = f"{self._attempt:03d}-{ctx.task_idx:06d}-{part:03d}.parquet"  # type: ignore[attr-defined]
            # Keys first: rows without keys would be done again, keys without rows would be believed.
            self._put(KEYS_PREFIX + name, keys.slice(start, self._rows_per_file))
            self._put(name, rows.slice(start, self._rows_per_file))

    def _put(self, name: str, table: pa.Table) -> None:
        filesystem, directory = self._directory.filesystem, self._directory.path
        # Locally by renaming: nobody reads half a file. It fails if the directory has been renamed for another attempt.
        # An object store shows an object when it is complete.
        path = f"{directory}/.{name}.{uuid.uuid4().hex}" if self._directory.is_local else f"{directory}/{name}"
        with filesystem.open_output_stream(path) as file:
            pq.write_table(table, file, row_group_size=ROW_GROUP_ROWS, write_page_checksum=True)
        if self._directory.is_local:
            filesystem.move(path, f"{directory}/{name}")
