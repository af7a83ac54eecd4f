"""Classification as a job's task."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import pyarrow as pa

from pegasus_batch.checkpoints.location import resolve
from pegasus_batch.classification import (
    Classification,
    PairTokenizer,
    ZeroShot,
    find_entailment,
    label_names,
)
from pegasus_batch.documents import Document, Status, check_head
from pegasus_batch.pipeline.config import ClassifyConfig
from pegasus_batch.pipeline.schema import closing_fields
from pegasus_batch.pipeline.task import ModelSettings, Run, Task, model_name, require_weights


class ClassifiesDocuments(Protocol):
    """What a worker needs of its model: one Classification for each document, in order."""

    def classify_documents(self, documents: Sequence[Document]) -> list[Classification]:
        """Classify tokenized texts."""


@functools.lru_cache(maxsize=4)
def load_pair_tokenizer(directory: str, max_source_tokens: int | None, zero_shot: ZeroShot | None) -> PairTokenizer:
    """Load a model's tokenizer once in each process."""
    return PairTokenizer(directory, max_source_tokens, zero_shot)


def load_classifier(settings: ModelSettings, device: str, zero_shot: ZeroShot | None) -> ClassifiesDocuments:
    """Load the model onto ``device``, "cpu" or "cuda"."""
    from pegasus_batch.classifier import Classifier  # torch: not before a process is a worker

    return Classifier(
        settings.directory,
        **(asdict(zero_shot) if zero_shot else {}),
        device=device,
        dtype=settings.dtype,
        max_source_tokens=settings.max_source_tokens,
        batch_tokens=settings.batch_tokens,
    )


@dataclass(frozen=True)
class Classify(Task):
    """Labels for each text or pair of texts."""

    verb: ClassVar[str] = "classifying"

    factory: Callable[[ModelSettings, str, ZeroShot | None], ClassifiesDocuments] = load_classifier
    label_column: str = "label"
    zero_shot: ZeroShot | None = None
    names: tuple[str, ...] = ()  # of the labels

    @property
    def fields(self) -> dict[str, pa.Field]:
        """The columns that the job adds."""
        return {
            "label": pa.field(self.label_column, pa.string()),
            "score": pa.field("score", pa.float64()),
            "labels": pa.field("labels", pa.list_(pa.string())),
            "scores": pa.field("scores", pa.list_(pa.float64())),
            "n_source_tokens": pa.field("n_source_tokens", pa.int64()),
            **closing_fields(),
        }

    @property
    def options(self) -> dict[str, dict[str, Any]]:
        """The labels, and how they are judged."""
        own: dict[str, Any] = {"labels": list(self.names)}
        return {"labels": {**asdict(self.zero_shot), **own} if self.zero_shot else own}

    def tokenize(self, *texts: Sequence[object]) -> list[Document]:
        """Turn texts, or pairs, into Documents."""
        return self._tokenizer.tokenize(*texts)

    @property
    def longest(self) -> int | None:
        """The tokens that pairs are cut to."""
        return self._tokenizer.max_source_tokens

    @property
    def _tokenizer(self) -> PairTokenizer:
        return load_pair_tokenizer(self.settings.directory, self.settings.max_source_tokens, self.zero_shot)

    def load(self, device: str) -> Run[Classification]:
        """Load the model."""
        return self.factory(self.settings, device, self.zero_shot).classify_documents

    def missing(self, document: Document, status: Status, error: str) -> Classification:
        """Return what stands for the classification of a document that has none."""
        return Classification.missing(document, status, error)


def make_classify(config: ClassifyConfig) -> Classify:
    """Return the task of a job, after reading all of its model but the weights. Raises ValueError or OSError."""
    settings = ModelSettings(
        model_name(config.model),
        config.device,
        config.dtype,
        max_source_tokens=config.max_source_tokens,
        batch_tokens=config.batch_tokens,
    )
    path = resolve(settings.directory)
    checkpoint = check_head(path, "SequenceClassification")
    zero_shot = ZeroShot(config.labels, config.hypothesis, config.multi_label) if config.labels is not None else None
    if zero_shot:
        find_entailment(checkpoint)
    load_pair_tokenizer(settings.directory, settings.max_source_tokens, zero_shot)
    require_weights(path)
    names = zero_shot.labels if zero_shot else tuple(label_names(checkpoint))
    return Classify(settings, label_column=config.label_column, zero_shot=zero_shot, names=names)
