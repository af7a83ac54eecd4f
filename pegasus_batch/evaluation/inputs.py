"""What an evaluation reads: documents with references, and the summaries that jobs have written for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pegasus_batch.evaluation.tables import join_predictions, read_columns


@dataclass(frozen=True)
class Documents:
    """The rows to summarize: ``ids``, ``texts`` and ``references``, [B] each."""

    path: Path
    id_column: str
    ids: Sequence[Any]
    texts: Sequence[str]
    references: Sequence[str]


def read_documents(
    path: Path, *, id_column: str, text_column: str, summary_column: str, limit: int | None, need_ids: bool
) -> Documents:
    """Read the first ``limit`` rows; a null text is the empty one.

    Where ids are not needed and there are none, rows are numbered from 0. Raises FileNotFoundError for a missing path and
    ValueError, naming value and remedy, for a missing column, one that is not text, and for no rows.
    """
    columns = {"--text-column": text_column, "--summary-column": summary_column}
    texts, references = ([value or "" for value in values] for values in _read(path, columns, list(columns)))
    if not texts:
        raise ValueError(f"{path} has no rows: there is nothing to measure; give --data a file with documents")
    try:
        (ids,) = _read(path, {"--id-column": id_column}, [])
    except ValueError:
        if need_ids:
            raise
        ids = list(range(len(texts)))
    return Documents(path, id_column, ids[:limit], texts[:limit], references[:limit])


def read_output(path: Path, documents: Documents, column: str, option: str) -> list[str | None]:
    """Read the summary of each document from a job's output, None for a document that has none there.

    ``option`` is the flag that chooses ``column``, for the messages. Raises ValueError for missing columns, ambiguous ids,
    and an output that shares no id with the documents.
    """
    ids, summaries = _read(path, {"--id-column": documents.id_column, option: column}, [option])
    if not ids:
        raise ValueError(f"{path} has no rows: has the job that writes it finished?")
    joined = join_predictions(documents.ids, ids, summaries)
    if not set(documents.ids) & set(ids):
        raise ValueError(
            f"{path} and {documents.path} share no id: column {documents.id_column!r} holds {ids[0]!r} in the one and "
            f"{documents.ids[0]!r} in the other; choose the column that joins them with --id-column, or take the output that "
            "belongs to these documents"
        )
    return joined


def _read(path: Path, columns: Mapping[str, str], of_text: Sequence[str]) -> list[list[Any]]:
    """Read the columns by the options that name them; those of the options ``of_text`` must hold text or null."""
    try:
        found = read_columns(path, list(columns.values()))
    except ValueError as error:
        raise ValueError(f"{error}; choose with {' and '.join(columns)}") from error
    for (option, column), values in zip(columns.items(), found, strict=True):
        wrong = next((value for value in values if not isinstance(value, str | None)), None)
        if option in of_text and wrong is not None:
            raise ValueError(f"column {column!r} of {path} holds {wrong!r}, which is not text; choose with {option}")
    return found
