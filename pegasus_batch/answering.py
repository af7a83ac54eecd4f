"""What a finder of answers reads and says, and the half of it that needs no torch."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tokenizers.pre_tokenizers import ByteLevel

from pegasus_batch.checkpoints.location import resolve
from pegasus_batch.documents import Document, Status, choose_max_tokens, find_fault
from pegasus_batch.tokenization import BartTokenizer, Tokenizer, load_tokenizer

WINDOW, OVERLAP = 384, 128  # tokens, as transformers' pipeline cuts long contexts
MAX_ANSWER_TOKENS = 15
_CACHED_WORDS = 2**16


@dataclass(frozen=True)
class Answer:
    """What became of one question: where in the context its answer stands, from character ``start`` to before ``end``.

    ``score`` is the probability of the beginning times that of the end, summed where the same words are found in several
    places. An impossible answer is the empty text from 0 to 0. ``chunks`` counts the windows that the context was read
    in. Status "invalid" means that there is nothing to answer, "failed" that the model could not do it; ``error`` says
    why and the rest is empty.
    """

    text: str | None
    score: float | None
    start: int | None
    end: int | None
    n_source_tokens: int
    truncated: bool
    chunks: int
    status: Status = "ok"
    error: str | None = None

    @classmethod
    def missing(cls, document: Document, status: Status, error: str | None) -> Self:
        """Return what stands for the answer to a question that got none."""
        n_tokens, n_windows = document.n_source_tokens, len(document.windows)
        return cls(None, None, None, None, n_tokens, document.truncated, n_windows, status, error)


class PassageTokenizer:
    """Turns questions with their contexts into windows: the question, and as much of the context as fits."""

    def __init__(self, model_dir: str | Path, max_source_tokens: int | None = None, overlap: int | None = None) -> None:
        """Load the tokenizer of a model directory.

        A window has ``max_source_tokens``, by default 384 or all that the model reads; neighbours share ``overlap``
        tokens of the context, by default 128, or half of a shorter window.
        """
        path = resolve(model_dir)
        self.tokenizer = load_tokenizer(path)
        longest = choose_max_tokens(path, self.tokenizer, max_source_tokens)
        self.max_source_tokens = longest if max_source_tokens else min(longest, WINDOW)
        self.overlap = min(self.max_source_tokens // 2, OVERLAP) if overlap is None else overlap
        if not 0 <= self.overlap < self.max_source_tokens:
            raise ValueError(f"overlap={overlap}: a window of {self.max_source_tokens} tokens cannot share that many")
        options: dict[str, Any] = {"add_prefix_space": False} if isinstance(self.tokenizer, BartTokenizer) else {}
        # Special tokens that a context spells out are words of it, for an answer may quote them.
        self._word_ids = functools.lru_cache(_CACHED_WORDS)(
            functools.partial(self.tokenizer.encode, add_special_tokens=False, split_special_tokens=True, **options)
        )

    def check_impossible(self, allowed: bool) -> None:
        """Raise ValueError where answers may be impossible and the vocabulary has no token to say so with."""
        if allowed and self.tokenizer.cls_token_id is None:
            raise ValueError(
                "allow_impossible: this tokenizer puts no token before the question, at which a model points where there "
                "is no answer; leave it out"
            )

    def tokenize(self, questions: Sequence[object], contexts: Sequence[object]) -> list[Document]:
        """Turn every question with its context into a Document; what is no text makes an invalid one.

        The notes of a window are the place where its context begins, and for each token of that the characters from
        which and to before which its word stands in the context. The context is the document's text.
        """
        return [self._tokenize(*pair) for pair in zip(questions, contexts, strict=True)]

    def _tokenize(self, question: object, context: object) -> Document:
        fault = find_fault(question, "question") or find_fault(context, "context")
        if fault:
            return Document([], 0, False, fault)
        try:
            return self._document(str(question), str(context))
        except ValueError as error:
            return Document([], 0, False, f"the text cannot be tokenized: {error}")

    def _document(self, question: str, context: str) -> Document:
        build = self.tokenizer.build_inputs_with_special_tokens
        asked: list[int] = self.tokenizer.encode(question, add_special_tokens=False)
        words = list(locate_words(self.tokenizer, context))
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for word, begin, end in words:
            found = self._word_ids(word)
            ids += found
            spans += [(begin, end)] * len(found)
        first = build(asked, [-1]).index(-1)
        room = self.max_source_tokens - len(build(asked, []))
        if len(ids) > room and room <= self.overlap:
            raise ValueError(
                f"the question has {len(asked)} tokens, which leaves {max(room, 0)} in a window of "
                f"{self.max_source_tokens}: not more than windows share ({self.overlap})"
            )
        windows, notes = [], []
        for start in range(0, max(1, len(ids)), max(1, room - self.overlap)):
            stop = start + room
            windows.append(build(asked, ids[start:stop]))
            notes.append([first, *(place for span in spans[start:stop] for place in span)])
            if stop >= len(ids):
                break
        n_tokens = len(build(asked, ids))
        return Document(windows[0], n_tokens, False, further=windows[1:], notes=notes, text=context)


def locate_words(tokenizer: Tokenizer, text: str) -> Iterator[tuple[str, int, int]]:
    """Yield what a tokenizer takes for words: the text of each with its space, and [begin, end) without that."""
    if not isinstance(tokenizer, BartTokenizer):
        yield from ((match.group(), *match.span()) for match in re.finditer(r"\S+", text))
        return
    pieces = ByteLevel(add_prefix_space=False, use_regex=True).pre_tokenize_str(text)
    for index, (_, (begin, end)) in enumerate(pieces):
        piece = text[begin:end]
        prefix = " " if index == 0 and tokenizer.add_prefix_space and not piece[0].isspace() else ""
        yield prefix + piece, end - len(piece.lstrip(" ")), end
