from __future__ import annotations

import pyarrow as pa
import pytest

from pegasus_batch.pipeline.config import ConfigError
from pegasus_batch.pipeline.schema import (
    check_collisions,
    choose_passengers,
    conform,
    is_text,
    unify,
)
from pegasus_batch.pipeline.summarize import summary_fields

NAMES = ["id", "url", "document", "lang"]


def test_the_id_always_stays_and_the_text_is_a_passenger() -> None:
    assert choose_passengers(NAMES, "id", {"--text-column": "document"}, None) == NAMES
    assert choose_passengers(NAMES, "id", {"--text-column": "document"}, []) == ["id"]
    assert choose_passengers(NAMES, "id", {"--text-column": "document"}, ["lang", "url"]) == ["id", "url", "lang"]


@pytest.mark.parametrize(
    ("id_column", "text_column", "columns", "message"),
    [
        ("key", "document", None, "--id-column 'key'.*id, url, document, lang"),
        ("id", "documents", None, "--text-column 'documents'.*Did you mean 'document'"),
        ("id", "document", ["url", "title"], "--columns 'title'"),
    ],
)
def test_a_missing_column_lists_what_there_is(
    id_column: str, text_column: str, columns: list[str] | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_passengers(NAMES, id_column, {"--text-column": text_column}, columns)


def check(passengers: list[str], summary_column: str, several: bool) -> None:
    fields = list(summary_fields(summary_column, several).values())
    check_collisions(passengers, ["document"], fields, "--summary-column")


@pytest.mark.parametrize(
    ("passengers", "summary_column", "message"),
    [
        (["id", "summary"], "summary", "'summary' would overwrite.*--columns 'id', or rename.*--summary-column"),
        (["id", "score", "status"], "summary", "'score', 'status' would.*leave them out with --columns 'id'"),
        (["id", "url"], "url", "'url' would overwrite.*--summary-column url_text"),
        (["id"], "score", "--summary-column 'score' is the name of another output column"),
        (["id", "__pegasus_token_ids"], "summary", "'__pegasus_token_ids' has a name that the job uses"),
    ],
)
def test_a_collision_names_the_remedy(passengers: list[str], summary_column: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(passengers, summary_column, several=False)


def test_summaries_collides_only_where_it_is_written() -> None:
    check(["id", "summaries"], "summary", several=False)
    with pytest.raises(ConfigError, match="'summaries'"):
        check(["id", "summaries"], "summary", several=True)


def test_result_types() -> None:
    assert pa.schema(summary_fields("brief", several=True, long_documents="chunk").values()) == pa.schema(
        [
            ("brief", pa.string()),
            ("score", pa.float64()),
            ("n_source_tokens", pa.int64()),
            ("n_summary_tokens", pa.int64()),
            ("truncated", pa.bool_()),
            ("status", pa.string()),
            ("error", pa.string()),
            ("summaries", pa.list_(pa.string())),
            ("chunks", pa.int64()),
        ]
    )


def test_unify_takes_late_columns_and_types() -> None:
    first = pa.schema([pa.field("id", pa.int64(), nullable=False), ("x", pa.null())], metadata={"pandas": "{}"})
    second = pa.schema([("x", pa.string()), ("id", pa.int64()), ("y", pa.date32())])
    whole, misfits = unify([first, second], ["a", "b"], ["id"])
    assert whole == pa.schema([("id", pa.int64()), ("x", pa.string()), ("y", pa.date32())])
    assert whole.metadata is None
    assert misfits == {}


def test_unify_says_of_every_misfit_why() -> None:
    whole, misfits = unify(
        [
            pa.schema([("id", pa.int64())]),
            pa.schema([("id", pa.string())]),
            pa.schema([("x", pa.int64())]),
            pa.schema([("id", pa.int64()), ("x", pa.int64()), ("x", pa.int64())]),
            pa.schema([("id", pa.int64()), ("x", pa.date32())]),
        ],
        ["a.parquet", "b", "c", "d", "e"],
        ["id"],
    )
    assert misfits == {
        1: "column 'id' is string, but int64 in a.parquet",
        2: "there is no column 'id'",
        3: "more than one column is named 'x'",
    }
    assert whole == pa.schema([("id", pa.int64()), ("x", pa.date32())])


def test_conform_fills_orders_and_casts_nulls() -> None:
    wanted = pa.schema([("a", pa.string()), ("b", pa.int8()), ("c", pa.list_(pa.string()))])
    table = conform(pa.table({"b": pa.array([1, 2], pa.int8()), "a": pa.nulls(2)}), wanted)
    assert table.schema == wanted
    assert table.to_pylist() == [{"a": None, "b": 1, "c": None}, {"a": None, "b": 2, "c": None}]


@pytest.mark.parametrize(
    ("data_type", "expected"),
    [
        (pa.string(), True),
        (pa.large_string(), True),
        (pa.string_view(), True),
        (pa.dictionary(pa.int8(), pa.string()), True),
        (pa.dictionary(pa.int8(), pa.int64()), False),
        (pa.binary(), False),
        (pa.list_(pa.string()), False),
    ],
)
def test_is_text(data_type: pa.DataType, expected: bool) -> None:
    assert is_text(data_type) is expected
