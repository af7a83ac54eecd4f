"""What must be true of an output directory, whatever happened to the job."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import pegasus_batch
from tests.chaos.corpus import Corpus

KEY = "row"


@dataclass
class Verdict:
    """What a check found. An empty ``wrong`` is a pass."""

    lost: int = 0
    doubled: int = 0
    wrong: list[str] = field(default_factory=list)


def check_finished(output: Path, corpus: Corpus) -> Verdict:
    """Check a finished job: every row is there once, as it must be, and nothing else is."""
    verdict = Verdict()
    expected = plain(corpus.expected)
    for name, table in (("read_summaries", visible(output)), ("a plain reader", pq.read_table(output))):
        if table is None:
            verdict.lost = len(expected)
            verdict.wrong.append(f"{name} sees nothing")
            continue
        rows = Counter(table[KEY].to_pylist())
        lost = len(set(expected[KEY].to_pylist()) - set(rows))
        doubled = sum(count - 1 for count in rows.values())
        verdict.lost, verdict.doubled = max(verdict.lost, lost), max(verdict.doubled, doubled)
        if lost or doubled:
            verdict.wrong.append(f"{name} sees {lost} rows not at all and {doubled} more than once")
        else:
            verdict.wrong += [f"{name}: {difference}" for difference in differences(plain(table), expected)]
    verdict.wrong += leftovers(output)
    return verdict


def visible(output: Path) -> pa.Table | None:
    """Return what the job shows, None for nothing."""
    try:
        return pegasus_batch.read_summaries(str(output))
    except ValueError:
        return None


def check_visible(output: Path, batches: Sequence[set[int]]) -> list[str]:
    """Say what is wrong with the rows that an unfinished job shows: whole batches of files in their order, or nothing."""
    try:
        table = visible(output)
    except Exception as error:
        return [f"an unfinished job cannot be read: {type(error).__name__}: {error}"]
    rows = [] if table is None else sorted(table[KEY].to_pylist())
    allowed = [sorted(set().union(*batches[:count])) for count in range(len(batches) + 1)]
    return [] if rows in allowed else [f"an unfinished job shows {len(rows)} rows"]


def plain(table: pa.Table) -> pa.Table:
    """Return a table by row number, its dictionaries as what they stand for."""
    for index, column in enumerate(table.schema):
        if pa.types.is_dictionary(column.type):
            values = table.column(index).cast(column.type.value_type)
            table = table.set_column(index, pa.field(column.name, values.type), values)
    return table.sort_by(KEY).combine_chunks()


def differences(table: pa.Table, expected: pa.Table) -> list[str]:
    """Say which columns of two tables with the same rows differ, and where."""
    if table.schema != expected.schema:
        return [f"its columns are {table.schema.to_string()}, expected {expected.schema.to_string()}"]
    wrong = []
    for name in expected.column_names:
        if table[name].equals(expected[name]):
            continue
        pairs = zip(table[name].to_pylist(), expected[name].to_pylist(), strict=True)
        row, (got, wanted) = next((row, pair) for row, pair in enumerate(pairs) if pair[0] != pair[1])
        wrong.append(f"{name} of row {row} is {got!r}, expected {wanted!r}")
    return wrong


def leftovers(output: Path) -> list[str]:
    """Say what a finished job's output directory should not hold, and what it lacks.

    A small file that was being put when its process was killed stays under a hidden name.
    """
    wrong = []
    manifests = {path.name: json.loads(path.read_text()) for path in output.glob("_manifest-*.json")}
    runs = {manifest["run"]: {file["name"] for file in manifest["files"]} for manifest in manifests.values()}
    for path in output.iterdir():
        if path.name not in manifests and path.name not in runs and not re.fullmatch(r"\.\w+\.tmp", path.name):
            wrong.append(f"{path.name} is left")
    for run, names in runs.items():
        there = {path.name for path in (output / run).iterdir()} if (output / run).is_dir() else set()
        due = names | {f"_rows-{name}" for name in names}
        wrong += [f"{run}/{name} is left" for name in sorted(there - due)]
        wrong += [f"{run}/{name} is missing" for name in sorted(due - there)]
    return wrong
