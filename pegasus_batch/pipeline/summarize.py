"""Summarization as a job's task, and as a transform of a Ray Dataset."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import pyarrow as pa

from pegasus_batch.checkpoints.location import resolve
from pegasus_batch.config import GenerationConfig, load_config
from pegasus_batch.documents import Document, DocumentTokenizer, LongDocuments, Status, Summary
from pegasus_batch.pipeline.config import JobConfig
from pegasus_batch.pipeline.schema import check_collisions, closing_fields
from pegasus_batch.pipeline.stages import TokenizeDocuments, Workers, choose_window, transform
from pegasus_batch.pipeline.task import (
    ModelSettings,
    Run,
    Task,
    model_name,
    require_weights,
)

if TYPE_CHECKING:
    from ray.data import Dataset


class SummarizesDocuments(Protocol):
    """What a worker needs of its model: one Summary for each document, in order."""

    def summarize_documents(self, documents: Sequence[Document]) -> list[Summary]:
        """Summarize tokenized texts."""


class TokenizesTexts(Protocol):
    """What a tokenizing task needs: one Document for each text, in order, none of more ids than ``max_source_tokens``."""

    max_source_tokens: int

    def tokenize(self, texts: Sequence[object]) -> list[Document]:
        """Tokenize texts."""


@functools.lru_cache(maxsize=4)
def load_tokenizer(directory: str, max_source_tokens: int | None, long_documents: LongDocuments) -> TokenizesTexts:
    """Load a model's tokenizer once in each process: tasks come and go, their processes stay."""
    return DocumentTokenizer(directory, max_source_tokens, long_documents)


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
        long_documents=settings.long_documents,
    )


@dataclass(frozen=True)
class Summarize(Task):
    """A summary of each document; ``several`` adds the list of all returned ones."""

    verb: ClassVar[str] = "summarizing"

    factory: Callable[[ModelSettings, str], SummarizesDocuments] = load_summarizer
    summary_column: str = "summary"
    several: bool = False
    generation: GenerationConfig = field(
        default_factory=GenerationConfig
    )  # the model's own with the job's options over it
    tokenizer_factory: Callable[[str, int | None, LongDocuments], TokenizesTexts] = load_tokenizer

    @classmethod
    def checked(cls, settings: ModelSettings, summary_column: str) -> Summarize:
        """Return the task after reading all of its model but the weights; raises what ``check_model`` does."""
        generation = check_model(settings)
        several = generation.num_return_sequences > 1
        return cls(settings, summary_column=summary_column, several=several, generation=generation)

    @property
    def fields(self) -> dict[str, pa.Field]:
        """The columns that the job adds."""
        return summary_fields(self.summary_column, self.several, self.settings.long_documents)

    @property
    def options(self) -> dict[str, dict[str, Any]]:
        """The options of generate()."""
        return {"generation": self.generation.to_dict()}

    def tokenize(self, *texts: Sequence[object]) -> list[Document]:
        """Turn texts into Documents."""
        (column,) = texts
        return self._tokenizer.tokenize(column)

    @property
    def longest(self) -> int | None:
        """The tokens that documents are cut to."""
        return None if self.settings.long_documents == "chunk" else self._tokenizer.max_source_tokens

    @property
    def _tokenizer(self) -> TokenizesTexts:
        settings = self.settings
        return self.tokenizer_factory(settings.directory, settings.max_source_tokens, settings.long_documents)

    def load(self, device: str) -> Run[Summary]:
        """Load the model."""
        return self.factory(self.settings, device).summarize_documents

    def missing(self, document: Document, status: Status, error: str) -> Summary:
        """Return what stands for the summary of a document that has none."""
        return Summary.missing(document, status, error)


def summary_fields(
    summary_column: str = "summary", several: bool = False, long_documents: LongDocuments = "truncate"
) -> dict[str, pa.Field]:
    """Return the columns of summaries, by the attributes of Summary."""
    return {
        "text": pa.field(summary_column, pa.string()),
        "score": pa.field("score", pa.float64()),
        "n_source_tokens": pa.field("n_source_tokens", pa.int64()),
        "n_summary_tokens": pa.field("n_summary_tokens", pa.int64()),
        **closing_fields(),
        **({"texts": pa.field("summaries", pa.list_(pa.string()))} if several else {}),
        **({"chunks": pa.field("chunks", pa.int64())} if long_documents == "chunk" else {}),
    }


def make_summarize(config: JobConfig) -> Summarize:
    """Return the task of a job. Raises ValueError or OSError, see ``check_model``."""
    settings = ModelSettings(
        model_name(config.model),
        config.device,
        config.dtype,
        config.generation,
        config.max_source_tokens,
        config.batch_tokens,
        config.newline_token,
        config.long_documents,
    )
    return Summarize.checked(settings, config.summary_column)


def check_model(settings: ModelSettings) -> GenerationConfig:
    """Read all of a model but its weights; return its generation options with the settings' over them.

    Raises ValueError or OSError for a directory that is none, an option that does not exist or contradicts another, and
    a length that the model does not read.
    """
    path = resolve(settings.directory)
    options = GenerationConfig.from_pretrained(path).updated(**settings.generation)
    options.lengths(1, load_config(path).max_position_embeddings)
    load_tokenizer(settings.directory, settings.max_source_tokens, settings.long_documents)
    require_weights(path)
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
    long_documents: LongDocuments = "truncate",
    newline_token: str | None = None,
    **generation: Any,
) -> Dataset:
    """Add summaries to a dataset: one row for each row, its columns unchanged, the result columns after them.

    Lazy, like any Ray Data transform; ``generation`` takes the options of ``generate()``. Every worker reserves
    ``num_gpus_per_worker`` GPUs and ``num_cpus_per_worker`` CPUs and computes on as many threads; leave one or two CPUs
    of the cluster to the tasks that read, tokenize and write. Raises ValueError for a model that cannot be read, an
    option that does not exist, or a column of ``ds`` that a result column would overwrite.
    """
    options: Mapping[str, Any] = generation
    settings = ModelSettings(
        model_name(model), device, dtype, options, max_source_tokens, batch_tokens, newline_token, long_documents
    )
    task = Summarize.checked(settings, summary_column)
    schema = ds.schema()
    if schema is not None:
        if text_column not in schema.names:
            raise ValueError(f"text_column {text_column!r} is not among the columns: {', '.join(schema.names)}")
        check_collisions(schema.names, [text_column], list(task.fields.values()), "--summary-column")
    window = choose_window(batch_tokens, num_gpus_per_worker > 0, num_workers, longest=task.longest)
    workers = Workers(num_workers, num_gpus_per_worker, num_cpus_per_worker, max(1, int(num_cpus_per_worker)), window)
    return transform(ds, TokenizeDocuments(task, (text_column,)), workers)
