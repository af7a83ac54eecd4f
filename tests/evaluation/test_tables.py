from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pegasus_batch.evaluation.tables import join_predictions, read_columns


@pytest.fixture
def table(tmp_path: Path) -> Path:
    pq.write_table(pa.table({"id": ["a", "b"], "document": ["x", "y"]}), tmp_path / "one.parquet")
    return tmp_path / "one.parquet"


def test_columns_come_in_the_order_asked_for(table: Path) -> None:
    assert read_columns(table, ["document", "id"]) == [["x", "y"], ["a", "b"]]


def test_a_directory_reads_as_one_file(table: Path) -> None:
    pq.write_table(pa.table({"id": ["c"], "document": ["z"]}), table.parent / "two.parquet")
    assert read_columns(table.parent, ["id"]) == [["a", "b", "c"]]


def test_a_missing_column_is_named(table: Path) -> None:
    with pytest.raises(ValueError, match="no column 'summary'; its columns: id, document"):
        read_columns(table, ["summary"])


def test_predictions_find_their_rows() -> None:
    assert join_predictions(["a", "b", "c"], ["c", "a"], ["C", "A"]) == ["A", None, "C"]


@pytest.mark.parametrize(("ids", "predicted"), [(["a", "a"], ["a", "b"]), (["a", "b"], ["b", "b"])])
def test_an_ambiguous_id_is_refused(ids: list[str], predicted: list[str]) -> None:
    with pytest.raises(ValueError, match="occurs more than once"):
        join_predictions(ids, predicted, ["x", "y"])
