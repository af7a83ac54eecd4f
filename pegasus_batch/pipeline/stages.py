"""The stages of a job and the Ray Data transform made of them: tokenize on CPUs, compute where the model is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
import ray.data

from pegasus_batch.documents import BATCH_TOKENS, DeviceLost, Document
from pegasus_batch.pipeline.cpus import usable_cpus
from pegasus_batch.pipeline.guard import enlist, run_guarded
from pegasus_batch.pipeline.schema import (
    CARRIED,
    EARLIER,
    FURTHER,
    ID_HASH,
    INTERNAL_FIELDS,
    NOTES,
    READ_ERROR,
    ROW_KEY,
    SOURCE_TEXT,
    SOURCE_TOKENS,
    TEXT_ERROR,
    TEXT_HASH,
    TOKEN_IDS,
    TRUNCATED,
    conform,
    is_text,
)
from pegasus_batch.pipeline.task import Task

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from ray.data import Dataset

READ_ROWS = 1024  # decoded or tokenized at a time, so that a row group of a million documents is never in memory whole
READ_CPUS = 1.0  # of a task that reads and tokenizes; also that of Ray's cutting into windows, else they are two tasks
WRITE_CPUS = 0.5  # of a task that writes, and mostly waits
# Batches of the model in a window: enough that its end, when fewer and fewer documents are in work, is a small part of it; few
# enough that little is lost when a worker dies, and that slow machines have something to show in time.
_WINDOW_BATCHES = {"cpu": 8, "cuda": 32}
_FEWEST_TOKENS, _MOST_TOKENS = 32, 512  # of a document, to turn tokens into rows
_BYTES_OF_A_TOKEN = 4  # in English; in other languages more, which makes a window shorter
# Of a worker's process. Else each of its threads allocates from an arena of its own, and of those that are not the first glibc
# gives back to the system what it frees, whatever ``keep_freed_memory`` says, and gets it again page by page.
_WORKER_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}
_MIN_WINDOW, _MAX_WINDOW = 16, 8192
_MOST_WINDOWS = 8192
_WINDOWS_AHEAD = (
    4  # that a worker is handed at a time; the driver looks only ten times a second for what it has finished
)


@dataclass(frozen=True)
class TokenizeDocuments:
    """Adds token ids to a table of documents and drops what does not reach the output.

    ``passengers`` is the schema of the columns that stay; None keeps every column as it comes.
    """

    task: Task
    text_columns: tuple[str, ...]
    passengers: pa.Schema | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the passengers of ``table`` followed by the internal columns."""
        columns: list[list[str | None]] = []
        reasons: dict[int, str] = {}
        for name in self.text_columns:
            texts, unreadable = read_texts(self._column(table, name))
            prefix = f"{name}: " if len(self.text_columns) > 1 else ""
            reasons = {row: prefix + reason for row, reason in unreadable.items()} | reasons
            columns.append(texts)
        if READ_ERROR in table.column_names:
            errors = table.column(READ_ERROR).to_pylist()
            reasons |= {row: error for row, error in enumerate(errors) if error is not None}
        if EARLIER in table.column_names:  # needs no model, so it needs no tokens
            done = table.column(EARLIER).is_valid().to_pylist()
            columns = [[None if skip else t for t, skip in zip(texts, done, strict=True)] for texts in columns]
        documents = self.task.tokenize(*columns)
        kept = table if self.passengers is None else conform(table, self._kept_schema(table.schema))
        internals = (
            [list(document.token_ids) for document in documents],
            [document.n_source_tokens for document in documents],
            [document.truncated for document in documents],
            [reasons.get(row, document.error) for row, document in enumerate(documents)],
            [list(document.further) for document in documents],
            [list(document.notes) for document in documents],
            [document.text for document in documents],
        )
        for internal, values in zip(INTERNAL_FIELDS, internals, strict=True):
            kept = kept.append_column(internal, pa.array(values, internal.type))
        return kept

    def _column(self, table: pa.Table, name: str) -> pa.ChunkedArray:
        if name in table.column_names:
            return table.column(name)
        if READ_ERROR in table.column_names:  # the text is what could not be read
            return pa.chunked_array([pa.nulls(len(table), pa.string())])
        raise ValueError(f"text column {name!r} is not among the columns: {', '.join(table.column_names)}")

    def _kept_schema(self, schema: pa.Schema) -> pa.Schema:
        assert self.passengers is not None
        notes = [schema.field(name) for name in (ROW_KEY, TEXT_HASH, ID_HASH, EARLIER) if name in schema.names]
        return pa.schema([*self.passengers, *notes])


def cut_table(table: pa.Table) -> Iterator[pa.Table]:
    """Yield a few rows at a time: as Python's lists, the tokens of a block take many times the memory of its texts."""
    for start in range(0, max(1, len(table)), READ_ROWS):
        yield table.slice(start, READ_ROWS)


@dataclass(frozen=True)
class ReadAndTokenize:
    """Both in one function, which Ray then runs as one task with the cutting into windows."""

    read: Callable[[pa.Table], Iterator[pa.Table]]
    tokenize: TokenizeDocuments

    def __call__(self, units: pa.Table) -> Iterator[pa.Table]:
        """Yield tables of tokenized documents."""
        for table in self.read(units):
            yield self.tokenize(table)


def read_texts(column: pa.ChunkedArray) -> tuple[list[str | None], dict[int, str]]:
    """Return the texts of a column, and for each row that holds something else the reason why it is no text.

    Such rows come back as null. A string column may hold bytes that are not UTF-8: other writers do not check.
    """
    texts: list[str | None] = []
    reasons: dict[int, str] = {}
    if not is_text(column.type):
        valid = column.is_valid().to_pylist()
        reasons = {
            row: f"the text is of type {column.type}, expected a string" for row, is_set in enumerate(valid) if is_set
        }
        return [None] * len(column), reasons
    try:
        return column.to_pylist(), reasons
    except UnicodeDecodeError:
        pass
    for row, scalar in enumerate(column):
        try:
            texts.append(scalar.as_py())
        except UnicodeDecodeError as error:
            texts.append(None)
            reasons[row] = f"the text is not valid UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}"
    return texts, reasons


class RunModel:
    """One copy of the model. Takes a window of tokenized documents, returns it with the result columns.

    Similar lengths share a batch inside the window; rows keep their order. Whatever goes wrong with a document becomes
    its status and error.
    """

    def __init__(self, task: Task, on_gpu: bool, threads: int, guard: ActorHandle | None = None) -> None:
        """Load the model.

        ``threads`` is the share of the cluster's CPUs that this worker may compute on; if the machine has fewer, it is
        these. ``guard`` remembers, for rows that have a key, which of them ended the process that computed them.
        """
        import torch

        # Ray gives every actor one OpenMP thread, whatever CPUs it reserves, and calls this object from another thread than
        # the one that made it. OpenMP keeps the number by thread and a team for each; with more threads in its teams than
        # there are CPUs they no longer wait for work but sleep. So the model lives in a thread of its own.
        threads = min(threads, usable_cpus())
        os.environ["OMP_NUM_THREADS"] = str(threads)
        self._thread = ThreadPoolExecutor(1, "model", torch.set_num_threads, (threads,))
        device = task.settings.device
        if device == "auto":
            device = "cuda" if on_gpu and torch.cuda.is_available() else "cpu"
        self._task = task
        self._model = self._thread.submit(task.load, device).result()
        self._guard = guard if guard is not None and enlist(guard) else None  # needed by those whose predecessor died
        self._is_first = True

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the passengers of ``table`` followed by the result columns."""
        earlier = table.column(EARLIER).to_pylist() if EARLIER in table.column_names else [None] * len(table)
        fresh = (
            table.filter(pa.array([values is None for values in earlier])) if EARLIER in table.column_names else table
        )
        results = self._results(fresh)
        kept = table.drop_columns([internal.name for internal in INTERNAL_FIELDS])
        if EARLIER in table.column_names:
            kept = kept.drop_columns([EARLIER])
            kept = kept.append_column(CARRIED, pa.array([values is not None for values in earlier]))
            made = iter(results)
            results = [next(made) if values is None else values for values in earlier]
        for added in self._task.fields.values():
            kept = kept.append_column(added, pa.array([values[added.name] for values in results], added.type))
        return kept

    def _results(self, table: pa.Table) -> list[dict[str, Any]]:
        """Return the result columns' values of every row."""
        documents = read_documents(table)
        if self._guard is None or ROW_KEY not in table.column_names:
            results = self._compute(documents)
        else:
            keys = table.column(ROW_KEY).to_pylist()
            results = run_guarded(self._compute, documents, keys, self._guard, self._task.missing, self._is_first)
            self._is_first = False
        return [self._task.row(result) for result in results]

    def _run(self, documents: list[Document]) -> list[Any]:
        return self._thread.submit(self._model, documents).result()

    def _compute(self, documents: list[Document]) -> list[Any]:
        try:
            return self._run(documents)
        except DeviceLost:
            # Nothing works on that device in this process any more. Ray replaces a worker that is gone, and replays its
            # window; one that raised would end the job.
            os._exit(1)
        except Exception:
            # The model isolates the failures that it foresees; this is for those that it does not, and a row must never
            # end the job.
            return [self._compute_alone(document) for document in documents]

    def _compute_alone(self, document: Document) -> Any:
        try:
            return self._run([document])[0]
        except DeviceLost:
            os._exit(1)
        except Exception as error:
            return self._task.missing(document, "failed", f"{type(error).__name__}: {error}")


def read_documents(table: pa.Table) -> list[Document]:
    """Return the documents that TokenizeDocuments wrote into a table."""
    names = (TOKEN_IDS, SOURCE_TOKENS, TRUNCATED, TEXT_ERROR, FURTHER, NOTES, SOURCE_TEXT)
    return [Document(*values) for values in zip(*(table.column(name).to_pylist() for name in names), strict=True)]


@dataclass(frozen=True)
class Workers:
    """How many copies of the model run, what each reserves, and how many rows it is handed at a time."""

    count: int = 1
    gpus: float = 0.0
    cpus: float = 1.0  # that Ray reserves; less than the threads where the job's other tasks need room
    threads: int = 1
    window: int = 64


def choose_window(
    batch_tokens: int | None,
    on_gpu: bool,
    workers: int,
    rows: int | None = None,
    text_bytes: int = 0,
    longest: int | None = None,
) -> int:
    """Return how many rows share a window: several batches' worth, fewer where a small job would leave workers idle.

    ``text_bytes``: of a row, on the average, if known; ``longest``: the tokens that texts are cut to, if they are. Short
    documents want more rows.
    """
    device = "cuda" if on_gpu else "cpu"
    tokens = min(_MOST_TOKENS, longest or _MOST_TOKENS, -(-text_bytes // _BYTES_OF_A_TOKEN) or _MOST_TOKENS)
    tokens = max(_FEWEST_TOKENS, tokens)
    window = _WINDOW_BATCHES[device] * (batch_tokens or BATCH_TOKENS[device]) // tokens
    if rows:
        # Not too many of them in a long job, for the driver remembers something of each; in a short one, some for everyone.
        window = min(max(window, rows // _MOST_WINDOWS), -(-rows // (4 * workers)))
    window = max(_MIN_WINDOW, min(_MAX_WINDOW, window))
    # Of one size: a last one of a few rows takes nearly as long as a whole batch.
    return max(_MIN_WINDOW, -(-rows // -(-rows // window))) if rows else window


def transform(
    ds: Dataset,
    tokenize: TokenizeDocuments,
    workers: Workers,
    guard: ActorHandle | None = None,
    read: Callable[[pa.Table], Iterator[pa.Table]] = cut_table,
) -> Dataset:
    """Append the two stages to a dataset: of documents, or of what ``read`` turns into documents.

    ``guard`` is for rows that carry their key.
    """
    # Blocks of one window at most, for Ray hands whole blocks to a worker, and the rest of a unit with the next block. The
    # cutting is part of the tokenizing task unless it is strict or follows two functions; and with a batch size Ray would
    # gather small blocks until they hold so many rows, which for units to read is a task for the whole corpus.
    prepare = ReadAndTokenize(read, tokenize)
    windows = ds.map_batches(prepare, batch_format="pyarrow", batch_size=None, num_cpus=READ_CPUS).repartition(
        target_num_rows_per_block=workers.window, strict=False
    )
    return windows.map_batches(
        RunModel,
        batch_format="pyarrow",
        batch_size=workers.window,
        compute=ray.data.ActorPoolStrategy(size=workers.count, max_tasks_in_flight_per_actor=_WINDOWS_AHEAD),
        num_cpus=workers.cpus,
        num_gpus=workers.gpus,
        runtime_env={"env_vars": _WORKER_ENVIRONMENT},
        fn_constructor_kwargs={
            "task": tokenize.task,
            "on_gpu": workers.gpus > 0,
            "threads": workers.threads,
            "guard": guard,
        },
    )
