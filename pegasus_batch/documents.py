"""What goes into a model and comes out of it, and the half of a summarizer that needs no torch, as most processes of a job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, get_args

from pegasus_batch.checkpoints.location import resolve
from pegasus_batch.config import Seq2SeqConfig, load_config
from pegasus_batch.sentences import locate_sentences
from pegasus_batch.tokenization import Tokenizer, load_tokenizer

Status = Literal["ok", "invalid", "failed"]
LongDocuments = Literal["truncate", "chunk"]

# Source tokens in work at a time, where nobody says how many: on a GPU, what its slots have room for on average.
BATCH_TOKENS = {"cpu": 4096, "cuda": 131072}


@dataclass(frozen=True)
class Document:
    """A text as the model reads it: ids with the end token, and how long the text was before truncation.

    A document that the model reads in several windows has the ids of the first in ``token_ids`` and the others in
    ``further``. ``error`` is set, and the ids are empty, where there is nothing to compute. ``notes``, of each window,
    and ``text`` are for tasks whose results point into the text.
    """

    token_ids: Sequence[int]
    n_source_tokens: int
    truncated: bool
    error: str | None = None
    further: Sequence[Sequence[int]] = ()
    notes: Sequence[Sequence[int]] = ()
    text: str | None = None

    @property
    def windows(self) -> list[Sequence[int]]:
        """All that the model reads, window by window."""
        return [self.token_ids, *self.further]


@dataclass(frozen=True)
class Summary:
    """What became of one text.

    ``text`` is the best summary, ``texts`` every returned one, best first; ``score`` is its length-normalised
    log-probability. ``chunks`` counts the windows that the text was read in; of several, ``text`` joins their summaries
    and ``score`` is the mean of theirs. Status "invalid" means that the text cannot be summarized, "failed" that the
    model could not do it; ``error`` says why and the rest is empty.
    """

    text: str | None
    score: float | None
    n_source_tokens: int
    n_summary_tokens: int
    truncated: bool
    status: Status = "ok"
    error: str | None = None
    texts: tuple[str, ...] = ()
    chunks: int = 1

    @classmethod
    def missing(cls, document: Document, status: Status, error: str | None) -> Self:
        """Return what stands for the summary of a document that got none."""
        n_chunks = len(document.windows)
        return cls(None, None, document.n_source_tokens, 0, document.truncated, status, error, chunks=n_chunks)


class DeviceLost(RuntimeError):
    """The GPU computes nothing any more for this process: an earlier error left its context unusable.

    Only a new process helps, so nothing was concluded about any document.
    """


class DocumentTokenizer:
    """The half of a summarizer that needs no weights: runs on any CPU, ahead of the model."""

    def __init__(
        self, model_dir: str | Path, max_source_tokens: int | None = None, long_documents: LongDocuments = "truncate"
    ) -> None:
        """Load the tokenizer of a model directory.

        The model reads ``max_source_tokens`` at a time, its own maximum by default. Of a longer text "truncate" keeps
        that many; "chunk" cuts it into windows, see ``cut_windows``.
        """
        if long_documents not in get_args(LongDocuments):
            raise ValueError(f"long_documents={long_documents!r}: choose truncate or chunk")
        path = resolve(model_dir)
        self.tokenizer = load_tokenizer(path)
        self.max_source_tokens = choose_max_tokens(path, self.tokenizer, max_source_tokens)
        self.chunks = long_documents == "chunk"
        self._room = self.max_source_tokens - self.tokenizer.num_special_tokens_to_add()
        if self.chunks and self._room < 1:
            raise ValueError(
                f"max_source_tokens={max_source_tokens}: special tokens leave no room for text in a window"
            )

    def tokenize(self, texts: Sequence[object]) -> list[Document]:
        """Turn every text into a Document; null, blank and non-text values become invalid ones."""
        return [self._tokenize(text) for text in texts]

    def _tokenize(self, text: object) -> Document:
        if fault := find_fault(text):
            return Document([], 0, False, fault)
        assert isinstance(text, str)
        try:
            ids = self.tokenizer.encode(text)
        except ValueError as error:
            return Document([], 0, False, f"the text cannot be tokenized: {error}")
        if len(ids) <= self.max_source_tokens:
            return Document(ids, len(ids), False)
        if self.chunks:
            first, *further = self.cut_windows(text)
            return Document(first, len(ids), False, further=further)
        kept = [*ids[: self.max_source_tokens - 1], ids[-1]]  # every text ends with its end token
        return Document(kept, len(ids), True)

    def cut_windows(self, text: str) -> list[list[int]]:
        """Cut a text at sentence ends into windows of token ids, each as full as fits; no token of the text is lost.

        A window holds the ids of its own sentences as a text. A sentence that is longer than a window begins a new one
        and is cut where that is full; the sentences after it go on in its last window.
        """
        build = self.tokenizer.build_inputs_with_special_tokens
        return [build(window) for window in self._pack(text)]

    def _pack(self, text: str) -> Iterator[list[int]]:
        window: list[int] = []
        begin = 0
        spans = locate_sentences(text)
        for end in [*(end for _, end in spans[:-1]), len(text)]:
            # With the white space before it, as a tokenizer that reads spaces sees it within the text.
            ids = self._encode(text[begin:end])
            if window and len(window) + len(ids) > self._room:
                yield window
                window = []
            if not window:
                ids = self._encode(text[begin:end].lstrip())
            window += ids
            while len(window) > self._room:
                yield window[: self._room]
                window = window[self._room :]
            begin = end
        if window:
            yield window

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids


def find_fault(text: object, what: str = "text") -> str | None:
    """Say why a value is nothing to work on: null, blank or no text. None where it is."""
    if text is None:
        return f"the {what} is null"
    if not isinstance(text, str):
        return f"the {what} is of type {type(text).__name__}, expected a string"
    if not text.strip():
        return f"the {what} is blank" if text else f"the {what} is empty"
    return None


def choose_max_tokens(directory: Path, tokenizer: Tokenizer, max_source_tokens: int | None) -> int:
    """Return how many tokens the model reads at a time. Raises ValueError for more, or fewer, than it can."""
    positions = load_config(directory).max_position_embeddings
    if max_source_tokens is not None and not 2 <= max_source_tokens <= positions:
        raise ValueError(f"max_source_tokens={max_source_tokens}: the model reads 2 to {positions} tokens")
    return max_source_tokens or int(min(positions, tokenizer.model_max_length or positions))


def check_head(directory: Path, head: str) -> Seq2SeqConfig:
    """Return the config of a checkpoint. Raises ValueError where its architecture is of another head than ``head``."""
    config = load_config(directory)
    found = config.extra.get("architectures") or []
    if found and not any(str(name).endswith(head) for name in found):
        raise ValueError(f"{directory} is a {', '.join(map(str, found))}: this needs a checkpoint for {head}")
    return config
