"""What differs from one kind of job to another: how texts are tokenized, what runs on the tokens, and its columns."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import pyarrow as pa

from pegasus_batch.documents import Document, LongDocuments, Status
from pegasus_batch.pipeline.config import DEMO_MODEL


@dataclass(frozen=True)
class ModelSettings:
    """A model and everything that decides what it makes of a document, in a form that travels to the workers."""

    directory: str
    device: str = "auto"
    dtype: str = "auto"
    generation: Mapping[str, Any] = field(default_factory=dict)  # options over the model's own
    max_source_tokens: int | None = None
    batch_tokens: int | None = None
    newline_token: str | None = None
    long_documents: LongDocuments = "truncate"


class Result(Protocol):
    """What became of a document; its other attributes are the values of a task's columns."""

    @property
    def status(self) -> Status:
        """Whether there is a result."""

    @property
    def error(self) -> str | None:
        """Why there is none."""


Found = TypeVar("Found", bound=Result)
Run = Callable[[list[Document]], list[Found]]  # one result for each document, in order


@dataclass(frozen=True)
class Task(ABC):
    """A kind of job. Travels to the tasks that tokenize and to the workers, so it holds settings and no model."""

    verb: ClassVar[str]  # what its workers are doing
    settings: ModelSettings
    factory: Callable[..., Any]  # loads the model

    @property
    @abstractmethod
    def fields(self) -> dict[str, pa.Field]:
        """The columns that the job adds, by the attribute of a result that each holds; the principal one first."""

    @property
    @abstractmethod
    def options(self) -> dict[str, dict[str, Any]]:
        """The options that decide the results, with their defaults filled in, under a heading."""

    @property
    def longest(self) -> int | None:
        """The tokens that documents are cut to; None where a long one becomes several windows."""
        return None

    @abstractmethod
    def tokenize(self, *texts: Sequence[object]) -> list[Document]:
        """Turn the values of the text columns into Documents, one for each row. Loads the tokenizer once in a process."""

    @abstractmethod
    def load(self, device: str) -> Run[Any]:
        """Load the model onto ``device``, "cpu" or "cuda", and return what runs it."""

    @abstractmethod
    def missing(self, document: Document, status: Status, error: str) -> Any:
        """Return what stands for the result of a document that has none."""

    def row(self, result: Any) -> dict[str, Any]:
        """Return the values of the added columns; an empty list, of a document without a result, becomes null."""
        values = {field.name: getattr(result, attribute) for attribute, field in self.fields.items()}
        return {name: None if value == () else value for name, value in values.items()}


def model_name(model: str | os.PathLike[str] | None) -> str:
    """Return what workers open: an absolute path, for they run in other directories, or a hub id as it is."""
    path = Path(model or DEMO_MODEL).expanduser()
    return (
        str(model) if model is not None and not path.exists() and _is_hub_id(os.fspath(model)) else str(path.absolute())
    )


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "~", "/"))


def require_weights(directory: Path) -> None:
    """Raise FileNotFoundError for a model directory without weights."""
    if not any(any(directory.glob(pattern)) for pattern in ("*.safetensors*", "*.bin*")):
        raise FileNotFoundError(f"{directory} holds no weights; expected model.safetensors or pytorch_model.bin")
