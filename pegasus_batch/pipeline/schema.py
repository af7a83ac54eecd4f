"""Columns of a job: which input columns pass through, which are added, and how every block gets the same types."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pegasus_batch.pipeline.config import ConfigError

# What accompanies a row through the job, to be written beside the result: its key (file << 40 | position), a hash of its
# text, a hash of its id, and whether its summary was carried over from an earlier run.
ROW_KEY = "__pegasus_row_key"
TEXT_HASH = "__pegasus_text_hash"
ID_HASH = "__pegasus_id_hash"
CARRIED = "__pegasus_carried"
LEDGER_SCHEMA = pa.schema(
    [(ROW_KEY, pa.int64()), (TEXT_HASH, pa.binary(16)), (ID_HASH, pa.uint64()), (CARRIED, pa.bool_())]
)
POSITION_BITS = 40  # of a row key: positions within a file; the file's place in the plan is above them

# What the reader tells the stages: why a row's columns could not be read, and the result columns that an earlier run has
# for the same text.
READ_ERROR = "__pegasus_read_error"
EARLIER = "__pegasus_earlier"

# What the tokenize stage hands to the model stage; dropped before anything is written.
_INTERNAL_PREFIX = "__pegasus_"
TOKEN_IDS = "__pegasus_token_ids"
SOURCE_TOKENS = "__pegasus_n_source_tokens"
TRUNCATED = "__pegasus_truncated"
TEXT_ERROR = "__pegasus_text_error"
FURTHER = "__pegasus_further_windows"
NOTES = "__pegasus_notes"
SOURCE_TEXT = "__pegasus_source_text"
INTERNAL_FIELDS = (
    pa.field(TOKEN_IDS, pa.list_(pa.int32())),
    pa.field(SOURCE_TOKENS, pa.int64()),
    pa.field(TRUNCATED, pa.bool_()),
    pa.field(TEXT_ERROR, pa.string()),
    pa.field(FURTHER, pa.list_(pa.list_(pa.int32()))),
    pa.field(NOTES, pa.list_(pa.list_(pa.int32()))),
    pa.field(SOURCE_TEXT, pa.large_string()),
)


def closing_fields() -> dict[str, pa.Field]:
    """Return the columns that every job adds after its own, by the attributes of its results."""
    return {
        "truncated": pa.field("truncated", pa.bool_()),
        "status": pa.field("status", pa.string()),
        "error": pa.field("error", pa.string()),
    }


def choose_passengers(
    available: Sequence[str], id_column: str, texts: Mapping[str, str], columns: Sequence[str] | None
) -> list[str]:
    """Return the input columns that reach the output, in the input's order; the id is always among them.

    ``texts`` has the columns that the model reads, by their flags. Raises ConfigError on a column that the input does not
    have.
    """
    for flag, name in texts.items():
        require_column(available, name, flag)
    require_column(available, id_column, "--id-column")
    for name in columns or ():
        require_column(available, name, "--columns")
    return [name for name in available if columns is None or name == id_column or name in columns]


def require_column(available: Sequence[str], name: str, flag: str) -> None:
    """Raise ConfigError, listing what there is, unless ``name`` is an input column."""
    if name not in available:
        close = difflib.get_close_matches(name, available, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"{flag} {name!r}: the input has no such column.{hint} Its columns: {', '.join(available)}")


def check_collisions(passengers: Sequence[str], texts: Sequence[str], fields: Sequence[pa.Field], flag: str) -> None:
    """Raise ConfigError, with the remedy, where an added column has the name of an input column or of another.

    ``flag`` names the first of the added ``fields``.
    """
    added = [field.name for field in fields]
    principal = added[0]
    if added.count(principal) > 1:
        raise ConfigError(f"{flag} {principal!r} is the name of another output column: choose another name")
    for name in [*passengers, *texts]:
        if name.startswith(_INTERNAL_PREFIX):
            raise ConfigError(f"input column {name!r} has a name that the job uses internally: rename it in the input")
    taken = [name for name in added if name in passengers]
    if not taken:
        return
    kept = ",".join(name for name in passengers if name not in taken)
    drop = f"leave it out with --columns '{kept}'" if len(taken) == 1 else f"leave them out with --columns '{kept}'"
    rename = f", or rename the output with {flag} {principal}_text" if taken == [principal] else ""
    raise ConfigError(
        f"output column{'s' if len(taken) > 1 else ''} {', '.join(map(repr, taken))} would overwrite input "
        f"column{'s' if len(taken) > 1 else ''} of the same name: {drop}{rename}"
    )


def unify(
    schemas: Sequence[pa.Schema], names: Sequence[str], required: Sequence[str]
) -> tuple[pa.Schema, dict[int, str]]:
    """Return the one schema of all files, and the files that do not fit it with their reasons.

    Columns stand in order of first appearance; a file may lack one that is not ``required``, or know no type for it.
    The first file in which a column has a type decides; ``names`` are the files' names for the reasons.
    """
    fields: dict[str, tuple[pa.Field, str]] = {}
    misfits: dict[int, str] = {}
    for index, (schema, name) in enumerate(zip(schemas, names, strict=True)):
        reason = _misfit(schema, fields, required)
        if reason:
            misfits[index] = reason
            continue
        for field in schema:
            if field.name not in fields or pa.types.is_null(fields[field.name][0].type):
                fields[field.name] = (field, name)
    # A column that one file lacks is null there, so no field of the whole can promise to be without nulls.
    # Metadata of the schema is left behind: what pandas and others note there describes the input's columns and rows.
    return pa.schema([field.with_nullable(True) for field, _ in fields.values()]), misfits


def _misfit(schema: pa.Schema, fields: dict[str, tuple[pa.Field, str]], required: Sequence[str]) -> str | None:
    twice = sorted({column for column in schema.names if schema.names.count(column) > 1})
    if twice:
        return f"more than one column is named {twice[0]!r}"
    for name in required:
        if name not in schema.names:
            return f"there is no column {name!r}"
    for field in schema:
        seen, first = fields.get(field.name, (field, ""))
        if seen.type != field.type and not pa.types.is_null(seen.type) and not pa.types.is_null(field.type):
            return f"column {field.name!r} is {field.type}, but {seen.type} in {first}"
    return None


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the table with exactly the schema's columns, in its order and types; a missing column becomes null."""
    if table.schema.equals(schema, check_metadata=True):
        return table
    columns = []
    for field in schema:
        index = table.schema.get_field_index(field.name)
        column = pa.nulls(len(table), field.type) if index < 0 else table.column(index)
        columns.append(column if column.type == field.type else pc.cast(column, field.type))
    return pa.table(columns, schema=schema)


def is_text(data_type: pa.DataType) -> bool:
    """Whether a column of this type holds text, plain or dictionary-encoded."""
    if pa.types.is_dictionary(data_type):
        data_type = data_type.value_type
    return (
        pa.types.is_string(data_type)
        or pa.types.is_large_string(data_type)
        or pa.types.is_string_view(data_type)
        or pa.types.is_null(data_type)
    )
