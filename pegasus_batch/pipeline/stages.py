"""The stages of the job and the Ray Data transform made of them: tokenize on CPUs, summarize where the model is."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import ray
import ray.data

from pegasus_batch.checkpoints.location import resolve
from pegasus_batch.config import GenerationConfig, load_config
from pegasus_batch.documents import BATCH_TOKENS, DeviceLost, Document, DocumentTokenizer, Summary
from pegasus_batch.pipeline.config import DEMO_MODEL
from pegasus_batch.pipeline.guard import enlist, summarize_guarded
from pegasus_batch.pipeline.schema import (
    CARRIED,
    EARLIER,
    ID_HASH,
    INTERNAL_FIELDS,
    READ_ERROR,
    ROW_KEY,
    SOURCE_TOKENS,
    TEXT_ERROR,
    TEXT_HASH,
    TOKEN_IDS,
    TRUNCATED,
    check_collisions,
    conform,
    is_text,
    result_fields,
)

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from ray.data import Dataset

READ_ROWS = 1024  # decoded or tokenized at a time, so that a row group of a million documents is never in memory whole
READ_CPUS = 1.0  # of a task that reads and tokenizes; also that of Ray's cutting into windows, else they are two tasks
WRITE_CPUS = 0.5  # of a task that writes, and mostly waits
# Batches of the model in a window: enough that the end, when fewer and fewer documents are in work, is a small part of it, and
# few enough that little is lost when a worker dies.
_WINDOW_BATCHES = 32
_TYPICAL_TOKENS = 512  # of a document, to turn tokens into rows
_MIN_WINDOW, _MAX_WINDOW = 16, 8192
_MOST_WINDOWS = 8192
_WINDOWS_AHEAD = (
    4  # that a worker is handed at a time; the driver looks only ten times a second for what it has finished
)


class SummarizesDocuments(Protocol):
    """What a worker needs of its model: one Summary for each document, in order."""

    def summarize_documents(self, documents: Sequence[Document]) -> list[Summary]:
        """Summarize tokenized texts."""


class TokenizesTexts(Protocol):
    """What a tokenizing task needs: one Document for each text, in order."""

    def tokenize(self, texts: Sequence[object]) -> list[Document]:
        """Tokenize texts."""


@dataclass(frozen=True)
class ModelSettings:
    """Everything that decides a summary, in a form that travels to the workers."""

    directory: str
    device: str = "auto"
    dtype: str = "auto"
    generation: Mapping[str, Any] = field(default_factory=dict)  # options over the model's own
    max_source_tokens: int | None = None
    batch_tokens: int | None = None
    newline_token: str | None = None


@functools.lru_cache(maxsize=4)
def load_tokenizer(directory: str, max_source_tokens: int | None) -> TokenizesTexts:
    """Load a model's tokenizer once in each process: tasks come and go, their processes stay."""
    return DocumentTokenizer(directory, max_source_tokens)


def load_summarizer(settings: ModelSettings, device: str) -> SummarizesDocuments:
    """Load the model onto ``device``, "cpu" or "cuda"."""
    from pegasus_batch.summarizer import Summarizer  # torch: not before a process is a worker

    return Summarizer(
        settings.directory,
        device=device,
        dtype=settings.dtype,
        generation=settings.generation,
        max_source_tokens=settings.max_source_tokens,
        batch_tokens=settings.batch_tokens,
        newline_token=settings.newline_token,
    )


@dataclass(frozen=True)
class TokenizeDocuments:
    """Adds token ids to a table of documents and drops what does not reach the output.

    ``passengers`` is the schema of the columns that stay; None keeps every column as it comes.
    """

    settings: ModelSettings
    text_column: str
    passengers: pa.Schema | None = None
    tokenizer_factory: Callable[[str, int | None], TokenizesTexts] = load_tokenizer

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the passengers of ``table`` followed by the internal columns."""
        if self.text_column not in table.column_names:
            if READ_ERROR in table.column_names:  # the text is what could not be read
                nothing = pa.nulls(len(table), pa.string())
                return self(table.append_column(self.text_column, nothing))
            raise ValueError(
                f"text_column {self.text_column!r} is not among the columns: {', '.join(table.column_names)}"
            )
        texts, reasons = read_texts(table.column(self.text_column))
        names = table.column_names
        if READ_ERROR in names:
            errors = table.column(READ_ERROR).to_pylist()
            reasons |= {row: error for row, error in enumerate(errors) if error is not None}
        if EARLIER in names:  # needs no model, so it needs no tokens
            texts = [
                None if done else t for t, done in zip(texts, table.column(EARLIER).is_valid().to_pylist(), strict=True)
            ]
        documents = self.tokenizer_factory(self.settings.directory, self.settings.max_source_tokens).tokenize(texts)
        kept = table if self.passengers is None else conform(table, self._kept_schema(table.schema))
        columns = (
            [list(document.token_ids) for document in documents],
            [document.n_source_tokens for document in documents],
            [document.truncated for document in documents],
            [reasons.get(row, document.error) for row, document in enumerate(documents)],
        )
        for internal, values in zip(INTERNAL_FIELDS, columns, strict=True):
            kept = kept.append_column(internal, pa.array(values, internal.type))
        return kept

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


class SummarizeDocuments:
    """One copy of the model. Takes a window of tokenized documents, returns it with the result columns.

    Similar lengths share a batch inside the window; rows keep their order. Whatever goes wrong with a document becomes
    its status and error.
    """

    def __init__(
        self,
        settings: ModelSettings,
        summary_column: str,
        several: bool,
        on_gpu: bool,
        threads: int,
        factory: Callable[[ModelSettings, str], SummarizesDocuments] = load_summarizer,
        guard: ActorHandle | None = None,
    ) -> None:
        """Load the model.

        ``threads`` is the share of the machine that this worker may compute on. ``guard`` remembers, for rows that have
        a key, which of them ended the process that summarized them.
        """
        import torch

        # Ray gives every actor one OpenMP thread, whatever CPUs it reserves.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
        self._threads = threads
        device = settings.device
        if device == "auto":
            device = "cuda" if on_gpu and torch.cuda.is_available() else "cpu"
        self._model = factory(settings, device)
        self._fields = result_fields(summary_column, several)
        self._guard = guard if guard is not None and enlist(guard) else None  # needed by those whose predecessor died
        self._is_first = True

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the passengers of ``table`` followed by the result columns."""
        import torch

        # Ray calls from another thread than the one that made this object, and OpenMP keeps the number by thread.
        torch.set_num_threads(self._threads)
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
        for added in self._fields:
            kept = kept.append_column(added, pa.array([values[added.name] for values in results], added.type))
        return kept

    def _results(self, table: pa.Table) -> list[dict[str, Any]]:
        """Return the result columns' values of every row."""
        documents = read_documents(table)
        if self._guard is None or ROW_KEY not in table.column_names:
            summaries = self._summarize(documents)
        else:
            keys = table.column(ROW_KEY).to_pylist()
            summaries = summarize_guarded(self._summarize, documents, keys, self._guard, self._is_first)
            self._is_first = False
        names = [added.name for added in self._fields]
        return [dict(zip(names, _result(summary), strict=False)) for summary in summaries]

    def _summarize(self, documents: list[Document]) -> list[Summary]:
        try:
            return self._model.summarize_documents(documents)
        except DeviceLost:
            # Nothing works on that device in this process any more. Ray replaces a worker that is gone, and replays its
            # window; one that raised would end the job.
            os._exit(1)
        except Exception:
            # The model isolates the failures that it foresees; this is for those that it does not, and a row must never
            # end the job.
            return [self._summarize_alone(document) for document in documents]

    def _summarize_alone(self, document: Document) -> Summary:
        try:
            return self._model.summarize_documents([document])[0]
        except DeviceLost:
            os._exit(1)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            return Summary(None, None, document.n_source_tokens, 0, document.truncated, "failed", reason)


def _result(summary: Summary) -> tuple[Any, ...]:
    """Return what stands in the result columns; the list of all summaries comes last."""
    lengths = (summary.n_source_tokens, summary.n_summary_tokens, summary.truncated)
    if summary.status == "ok":
        return (summary.text, summary.score, *lengths, "ok", None, list(summary.texts))
    return (None, None, lengths[0], 0, lengths[2], summary.status, summary.error, None)


def read_documents(table: pa.Table) -> list[Document]:
    """Return the documents that TokenizeDocuments wrote into a table."""
    names = (TOKEN_IDS, SOURCE_TOKENS, TRUNCATED, TEXT_ERROR)
    return [Document(*values) for values in zip(*(table.column(name).to_pylist() for name in names), strict=True)]


@dataclass(frozen=True)
class Workers:
    """How many copies of the model run, what each reserves, and how many rows it is handed at a time."""

    count: int = 1
    gpus: float = 0.0
    cpus: float = 1.0  # that Ray reserves; less than the threads where the job's other tasks need room
    threads: int = 1
    window: int = 64


def choose_window(batch_tokens: int | None, on_gpu: bool, workers: int, rows: int | None = None) -> int:
    """Return how many rows share a window: several batches' worth, fewer where a small job would leave workers idle."""
    tokens = batch_tokens or BATCH_TOKENS["cuda" if on_gpu else "cpu"]
    window = _WINDOW_BATCHES * tokens // _TYPICAL_TOKENS
    if rows is not None:
        # Not too many of them in a long job, for the driver remembers something of each; in a short one, some for everyone.
        window = min(max(window, rows // _MOST_WINDOWS), -(-rows // (4 * workers)))
    return max(_MIN_WINDOW, min(_MAX_WINDOW, window))


def transform(
    ds: Dataset,
    tokenize: TokenizeDocuments,
    summary_column: str,
    several: bool,
    workers: Workers,
    factory: Callable[[ModelSettings, str], SummarizesDocuments] = load_summarizer,
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
        SummarizeDocuments,
        batch_format="pyarrow",
        batch_size=workers.window,
        compute=ray.data.ActorPoolStrategy(size=workers.count, max_tasks_in_flight_per_actor=_WINDOWS_AHEAD),
        num_cpus=workers.cpus,
        num_gpus=workers.gpus,
        fn_constructor_kwargs={
            "settings": tokenize.settings,
            "summary_column": summary_column,
            "several": several,
            "on_gpu": workers.gpus > 0,
            "threads": workers.threads,
            "factory": factory,
            "guard": guard,
        },
    )


def model_name(model: str | os.PathLike[str] | None) -> str:
    """Return what workers open: an absolute path, for they run in other directories, or a hub id as it is."""
    path = Path(model or DEMO_MODEL).expanduser()
    return (
        str(model) if model is not None and not path.exists() and _is_hub_id(os.fspath(model)) else str(path.absolute())
    )


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "~", "/"))


def check_model(directory: str, generation: Mapping[str, Any], max_source_tokens: int | None) -> GenerationConfig:
    """Read all of a model but its weights; return its settings with ``generation`` over them.

    Raises ValueError or OSError for a directory that is none, an option that does not exist or contradicts another, and
    a length that the model does not read.
    """
    path = resolve(directory)
    options = GenerationConfig.from_pretrained(path).updated(**generation)
    options.lengths(1, load_config(path).max_position_embeddings)
    load_tokenizer(directory, max_source_tokens)
    if not any(any(path.glob(pattern)) for pattern in ("*.safetensors*", "*.bin*")):
        raise FileNotFoundError(f"{path} holds no weights; expected model.safetensors or pytorch_model.bin")
    return options


def summarize_dataset(
    ds: Dataset,
    *,
    model: str | os.PathLike[str] | None = None,
    text_column: str = "document",
    summary_column: str = "summary",
    device: str = "auto",
    dtype: str = "auto",
    num_workers: int = 1,
    num_gpus_per_worker: float = 0,
    num_cpus_per_worker: float = 1,
    batch_tokens: int | None = None,
    max_source_tokens: int | None = None,
    newline_token: str | None = None,
    **generation: Any,
) -> Dataset:
    """Add summaries to a dataset: one row for each row, its columns unchanged, the result columns after them.

    Lazy, like any Ray Data transform; ``generation`` takes the options of ``generate()``. Every worker reserves
    ``num_gpus_per_worker`` GPUs and ``num_cpus_per_worker`` CPUs and computes on as many threads; leave one or two CPUs
    of the cluster to the tasks that read, tokenize and write. Raises ValueError for a model that cannot be read, an
    option that does not exist, or a column of ``ds`` that a result column would overwrite.
    """
    directory = model_name(model)
    several = check_model(directory, generation, max_source_tokens).num_return_sequences > 1
    schema = ds.schema()
    if schema is not None:
        if text_column not in schema.names:
            raise ValueError(f"text_column {text_column!r} is not among the columns: {', '.join(schema.names)}")
        check_collisions(schema.names, text_column, summary_column, several)
    settings = ModelSettings(directory, device, dtype, generation, max_source_tokens, batch_tokens, newline_token)
    window = choose_window(batch_tokens, num_gpus_per_worker > 0, num_workers)
    workers = Workers(num_workers, num_gpus_per_worker, num_cpus_per_worker, max(1, int(num_cpus_per_worker)), window)
    return transform(ds, TokenizeDocuments(settings, text_column), summary_column, several, workers)
