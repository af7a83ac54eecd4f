"""Question answering as a job's task."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Protocol

import pyarrow as pa

from pegasus_batch.answering import MAX_ANSWER_TOKENS, Answer, PassageTokenizer
from pegasus_batch.checkpoints.location import resolve
from pegasus_batch.documents import Document, Status, check_head
from pegasus_batch.pipeline.config import AnswerConfig
from pegasus_batch.pipeline.schema import closing_fields
from pegasus_batch.pipeline.task import ModelSettings, Run, Task, model_name, require_weights


class AnswersDocuments(Protocol):
    """What a worker needs of its model: one Answer for each document, in order."""

    def answer_documents(self, documents: Sequence[Document]) -> list[Answer]:
        """Answer tokenized questions."""


@dataclass(frozen=True)
class AnswerRules:
    """What may be an answer, and how contexts are cut."""

    allow_impossible: bool = False
    max_answer_tokens: int = MAX_ANSWER_TOKENS
    overlap: int | None = None


@functools.lru_cache(maxsize=4)
def load_passage_tokenizer(directory: str, max_source_tokens: int | None, overlap: int | None) -> PassageTokenizer:
    """Load a model's tokenizer once in each process."""
    return PassageTokenizer(directory, max_source_tokens, overlap)


def load_answerer(settings: ModelSettings, device: str, rules: AnswerRules) -> AnswersDocuments:
    """Load the model onto ``device``, "cpu" or "cuda"."""
    from pegasus_batch.answerer import Answerer  # torch: not before a process is a worker

    return Answerer(
        settings.directory,
        **asdict(rules),
        device=device,
        dtype=settings.dtype,
        max_source_tokens=settings.max_source_tokens,
        batch_tokens=settings.batch_tokens,
    )


@dataclass(frozen=True)
class AnswerQuestions(Task):
    """The answer to each question, out of its context."""

    verb: ClassVar[str] = "answering"

    factory: Callable[[ModelSettings, str, AnswerRules], AnswersDocuments] = load_answerer
    answer_column: str = "answer"
    rules: AnswerRules = field(default_factory=AnswerRules)

    @property
    def fields(self) -> dict[str, pa.Field]:
        """The columns that the job adds."""
        return {
            "text": pa.field(self.answer_column, pa.string()),
            "score": pa.field("score", pa.float64()),
            "start": pa.field("start", pa.int64()),
            "end": pa.field("end", pa.int64()),
            "n_source_tokens": pa.field("n_source_tokens", pa.int64()),
            **closing_fields(),
            "chunks": pa.field("chunks", pa.int64()),
        }

    @property
    def options(self) -> dict[str, dict[str, Any]]:
        """What may be an answer."""
        return {"answers": asdict(self.rules)}

    def tokenize(self, *texts: Sequence[object]) -> list[Document]:
        """Turn questions and contexts into Documents."""
        questions, contexts = texts
        settings = self.settings
        tokenizer = load_passage_tokenizer(settings.directory, settings.max_source_tokens, self.rules.overlap)
        return tokenizer.tokenize(questions, contexts)

    def load(self, device: str) -> Run[Answer]:
        """Load the model."""
        return self.factory(self.settings, device, self.rules).answer_documents

    def missing(self, document: Document, status: Status, error: str) -> Answer:
        """Return what stands for the answer to a question that has none."""
        return Answer.missing(document, status, error)


def make_answer(config: AnswerConfig) -> AnswerQuestions:
    """Return the task of a job, after reading all of its model but the weights. Raises ValueError or OSError."""
    settings = ModelSettings(
        model_name(config.model),
        config.device,
        config.dtype,
        max_source_tokens=config.max_source_tokens,
        batch_tokens=config.batch_tokens,
    )
    path = resolve(settings.directory)
    check_head(path, "QuestionAnswering")
    rules = AnswerRules(config.allow_impossible, config.max_answer_tokens, config.overlap)
    tokenizer = load_passage_tokenizer(settings.directory, settings.max_source_tokens, rules.overlap)
    tokenizer.check_impossible(rules.allow_impossible)
    require_weights(path)
    return AnswerQuestions(settings, answer_column=config.answer_column, rules=rules)
