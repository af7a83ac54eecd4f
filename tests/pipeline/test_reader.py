"""Units of work cover exactly the rows that are missing, and a damaged page costs no row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pegasus_batch.pipeline.carry import hash_ids, hash_texts
from pegasus_batch.pipeline.inputs import list_inputs, read_footers
from pegasus_batch.pipeline.plan import PlannedFile, RunPlan, Version
from pegasus_batch.pipeline.reader import READ_ROWS, ReadUnits, UnreadableInput, plan_units
from pegasus_batch.pipeline.schema import EARLIER, ID_HASH, POSITION_BITS, READ_ERROR, ROW_KEY, TEXT_HASH


def plan_of(*inputs: Path, limit: dict[int, int] | None = None) -> RunPlan:
    footers = read_footers(list_inputs([str(path) for path in inputs]))
    files = [
        PlannedFile(
            Version(footer.file.uri, footer.file.size, footer.file.mtime_ns),
            footer.file.location.given,
            footer.row_groups,
            (limit or {}).get(index, footer.rows),
            footer.file.keys,
        )
        for index, footer in enumerate(footers)
    ]
    return RunPlan("20260101T000000-abcdef", "f", "now", tuple(files), (), pa.schema([]))


def nothing_done(plan: RunPlan) -> list[np.ndarray]:
    return [np.zeros(file.rows, dtype=bool) for file in plan.files]


def reader(*columns: str, skip_bad: bool = False) -> ReadUnits:
    return ReadUnits(columns or ("id", "document"), ("document",), "id", skip_bad, "", ())


def read(plan: RunPlan, done: list[np.ndarray], unit_rows: int, read_units: ReadUnits | None = None) -> pa.Table:
    units = plan_units(plan, done, unit_rows)
    return pa.concat_tables(
        [table for unit in units for table in (read_units or reader())(unit)], promote_options="default"
    )


def write(path: Path, n_rows: int, row_group_size: int, start: int = 0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [f"document {start + i}" for i in range(n_rows)]
    pq.write_table(
        pa.table({"id": range(start, start + n_rows), "document": texts}),
        path,
        row_group_size=row_group_size,
        **options,
    )
    return path


@pytest.mark.parametrize("unit_rows", [1, 25, 10_000])
def test_units_cover_the_missing_rows_once(tmp_path: Path, unit_rows: int) -> None:
    plan = plan_of(write(tmp_path / "a.parquet", 95, 10), write(tmp_path / "b.parquet", 7, 100), limit={1: 5})
    done = nothing_done(plan)
    done[0][[0, 1, 2, 13, 94]] = True
    done[0][30:60] = True
    done[1][4] = True
    table = read(plan, done, unit_rows)
    expected = [(0, i) for i in np.flatnonzero(~done[0])] + [(1, i) for i in np.flatnonzero(~done[1])]
    keys = table[ROW_KEY].to_pylist()
    assert [(key >> POSITION_BITS, key & ((1 << POSITION_BITS) - 1)) for key in keys] == expected
    assert table["id"].to_pylist() == [i for _, i in expected]
    assert table["document"].to_pylist() == [f"document {i}" for _, i in expected]


def test_units_read_only_the_row_groups_that_they_need(tmp_path: Path) -> None:
    plan = plan_of(write(tmp_path / "a.parquet", 100, 10))
    done = nothing_done(plan)
    done[0][:] = True
    done[0][[41, 42, 77]] = False
    units = [unit.to_pylist()[0] for unit in plan_units(plan, done, 10)]
    assert [(unit["first"], unit["last"], unit["begins"], unit["ends"]) for unit in units] == [
        (4, 4, [41], [43]),
        (7, 7, [77], [78]),
    ]


def test_a_long_row_group_is_read_in_pieces(tmp_path: Path) -> None:
    n_rows = 2 * READ_ROWS + 10
    plan = plan_of(write(tmp_path / "a.parquet", n_rows, n_rows))
    (unit,) = plan_units(plan, nothing_done(plan), 100)
    sizes = [len(table) for table in reader()(unit)]
    assert (sum(sizes), max(sizes)) == (n_rows, READ_ROWS)


def test_directories_name_columns_and_missing_columns_stay_out(tmp_path: Path) -> None:
    write(tmp_path / "day=mon" / "a.parquet", 3, 10)
    plan = plan_of(tmp_path)
    table = read(plan, nothing_done(plan), 10, reader("id", "document", "day", "absent"))
    assert table["day"].to_pylist() == ["mon"] * 3
    assert "absent" not in table.column_names
    assert EARLIER not in table.column_names


def damage(path: Path, group: int, column: str) -> None:
    """Overwrite the pages of one column of one row group."""
    metadata = pq.read_metadata(path).row_group(group)
    chunk = next(metadata.column(i) for i in range(metadata.num_columns) if metadata.column(i).path_in_schema == column)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + chunk.total_compressed_size] = bytes(255 for _ in range(chunk.total_compressed_size))
    path.write_bytes(data)


@pytest.mark.parametrize("columns", [("document",), ("id",), ("id", "document")])
def test_unreadable_columns_become_nulls_with_a_reason(tmp_path: Path, columns: tuple[str, ...]) -> None:
    path = write(tmp_path / "a.parquet", 30, 10)
    for column in columns:
        damage(path, 1, column)
    plan = plan_of(path)
    with pytest.raises(UnreadableInput, match=r"a\.parquet: row group 1 cannot be read: .*--on-bad-file skip"):
        read(plan, nothing_done(plan), 100)
    table = read(plan, nothing_done(plan), 100, reader(skip_bad=True))
    assert [key & 0xFFFF for key in table[ROW_KEY].to_pylist()] == list(range(30))
    errors = table[READ_ERROR].to_pylist()
    assert [error is not None for error in errors] == [10 <= i < 20 for i in range(30)]
    for column in columns:
        assert f"column {column!r}: " in errors[10]
        assert table[column].is_valid().to_pylist() == [not 10 <= i < 20 for i in range(30)]
    if columns == ("document",):
        assert table["id"].to_pylist() == list(range(30))


def test_damage_that_only_a_checksum_shows(tmp_path: Path) -> None:
    """Without it, another text would be summarized under this id."""
    path = write(tmp_path / "a.parquet", 10, 10, write_page_checksum=True, compression="none", use_dictionary=False)
    data = path.read_bytes()
    assert data.count(b"document 4") >= 1
    path.write_bytes(data.replace(b"document 4", b"document X", 1))
    plan = plan_of(path)
    with pytest.raises(UnreadableInput, match="CRC"):
        read(plan, nothing_done(plan), 100)


def test_hashes_tell_texts_and_ids_apart() -> None:
    texts = pa.chunked_array([pa.array(["a", "b", None, "a", ""])])
    hashes = hash_texts(texts).to_pylist()
    assert hashes[0] == hashes[3] != hashes[1]
    assert hashes[2] is None
    assert len(set(hashes)) == 4
    assert hash_texts(texts.dictionary_encode()).to_pylist() == hashes
    assert hash_texts(texts.cast(pa.large_string())).to_pylist() == hashes
    broken = pa.chunked_array(
        [pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])]
    )
    assert len(hash_texts(broken).to_pylist()[0]) == 16
    assert len(hash_ids(broken)) == 1
    assert hash_texts(pa.chunked_array([pa.array([1, 2])])).null_count == 2
    ids = hash_ids(pa.chunked_array([pa.array([1, 2, None, 1])])).to_pylist()
    assert ids[0] == ids[3]
    assert len(set(ids)) == 3
    stamps = pa.chunked_array([pa.array([1, 2], pa.timestamp("ns", "UTC"))])
    assert len(set(hash_ids(stamps).to_pylist())) == 2
    assert {TEXT_HASH, ID_HASH} <= set(read_one_note().column_names)


def read_one_note() -> pa.Table:
    return reader()._note(pa.table({"id": [1], "document": ["x"], ROW_KEY: [0]}), {"previous": None})
