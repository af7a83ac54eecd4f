"""What goes into a model and comes out of it, and the half of a summarizer that needs no torch, as most processes of a job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pegasus_batch.checkpoints.location import resolve
from pegasus_batch.config import load_config
from pegasus_batch.tokenization import load_tokenizer

Status = Literal["ok", "invalid", "failed"]

# Source tokens in work at a time, where nobody says how many: on a GPU, what its slots have room for on average.
BATCH_TOKENS = {"cpu": 4096, "cuda": 131072}


@dataclass(frozen=True)
class Document:
    """A text as the model reads it: ids with the end token, and how long the text was before truncation.

    ``error`` is set, and the ids are empty, where there is nothing to summarize.
    """

    token_ids: Sequence[int]
    n_source_tokens: int
    truncated: bool
    error: str | None = None


@dataclass(frozen=True)
class Summary:
    """What became of one text.

    ``text`` is the best summary, ``texts`` every returned one, best first; ``score`` is its length-normalised
    log-probability. Status "invalid" means that the text cannot be summarized, "failed" that the model could not do it;
    ``error`` says why and the rest is empty.
    """

    text: str | None
    score: float | None
    n_source_tokens: int
    n_summary_tokens: int
    truncated: bool
    status: Status = "ok"
    error: str | None = None
    texts: tuple[str, ...] = ()


class DeviceLost(RuntimeError):
    """The GPU computes nothing any more for this process: an earlier error left its context unusable.

    Only a new process helps, so nothing was concluded about any document.
    """


class DocumentTokenizer:
    """The half of a summarizer that needs no weights: runs on any CPU, ahead of the model."""

    def __init__(self, model_dir: str | Path, max_source_tokens: int | None = None) -> None:
        """Load the tokenizer of a model directory; texts are cut to ``max_source_tokens``, the model's maximum by default."""
        path = resolve(model_dir)
        self.tokenizer = load_tokenizer(path)
        positions = load_config(path).max_position_embeddings
        longest = min(positions, self.tokenizer.model_max_length or positions)
        if max_source_tokens is not None and not 2 <= max_source_tokens <= positions:
            raise ValueError(f"max_source_tokens={max_source_tokens}: the model reads 2 to {positions} tokens")
        self.max_source_tokens = max_source_tokens or int(longest)

    def tokenize(self, texts: Sequence[object]) -> list[Document]:
        """Turn every text into a Document; null, blank and non-text values become invalid ones."""
        return [self._tokenize(text) for text in texts]

    def _tokenize(self, text: object) -> Document:
        if text is None:
            return _invalid("the text is null")
        if not isinstance(text, str):
            return _invalid(f"the text is of type {type(text).__name__}, expected a string")
        if not text.strip():
            return _invalid("the text is empty" if not text else "the text is blank")
        try:
            ids = self.tokenizer.encode(text)
        except ValueError as error:
            return _invalid(f"the text cannot be tokenized: {error}")
        if len(ids) <= self.max_source_tokens:
            return Document(ids, len(ids), False)
        kept = [*ids[: self.max_source_tokens - 1], ids[-1]]  # every text ends with its end token
        return Document(kept, len(ids), True)


def _invalid(error: str) -> Document:
    return Document([], 0, False, error)
