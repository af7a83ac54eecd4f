"""Questions and contexts in, answers out: one device's share of the corpus, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pegasus_batch.answering import MAX_ANSWER_TOKENS, Answer, PassageTokenizer
from pegasus_batch.checkpoints.location import resolve
from pegasus_batch.documents import Document, check_head
from pegasus_batch.forward import BATCH_TOKENS, Failure, load_model, run_windows
from pegasus_batch.models.heads import BartForQuestionAnswering, PegasusForQuestionAnswering

_CANDIDATES = 12  # spans of a window: several may be the same words


class Answerer:
    """A checkpoint for question answering with its tokenizer, ready on one device.

    Answers, scores and offsets are those of transformers' question-answering pipeline with its fast tokenizers: the best
    span over all windows, stretched to whole words.
    """

    def __init__(
        self,
        model_dir: str | Path,
        *,
        allow_impossible: bool = False,
        max_answer_tokens: int = MAX_ANSWER_TOKENS,
        device: str = "auto",
        dtype: str = "auto",
        max_source_tokens: int | None = None,
        overlap: int | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        """Load ``model_dir``.

        ``allow_impossible`` lets a question have no answer, where the model points at its first token, which a
        checkpoint must have been trained for. max_source_tokens and overlap are those of ``PassageTokenizer``, device
        and dtype those of ``Summarizer``, without int8; batch_tokens counts the ids of a GPU's batch. Raises ValueError for
        a checkpoint with another head, or that has no token to point at.
        """
        if max_answer_tokens < 1:
            raise ValueError(f"max_answer_tokens={max_answer_tokens}: must be positive")
        path = resolve(model_dir)
        check_head(path, "QuestionAnswering")
        self.documents = PassageTokenizer(path, max_source_tokens, overlap)
        self.allow_impossible = allow_impossible
        self.max_answer_tokens = max_answer_tokens
        self.batch_tokens = batch_tokens or BATCH_TOKENS
        self.documents.check_impossible(allow_impossible)
        self._model = load_model(path, (PegasusForQuestionAnswering, BartForQuestionAnswering), device, dtype)

    def answer(self, questions: Sequence[object], contexts: Sequence[object]) -> list[Answer]:
        """Answer questions, each from its context; one Answer for each, in order."""
        return self.answer_documents(self.documents.tokenize(questions, contexts))

    def answer_documents(self, documents: Sequence[Document]) -> list[Answer]:
        """Answer tokenized questions; one Answer for each, in order. Raises DeviceLost where the GPU fails for good."""
        windows = [window for document in documents if document.error is None for window in document.windows]
        model = self._model
        logits = iter(run_windows(windows, self._forward, model.config, model.device, self.batch_tokens))
        return [
            Answer.missing(document, "invalid", document.error)
            if document.error is not None
            else self._choose(document, [next(logits) for _ in document.windows])
            for document in documents
        ]

    def _forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        output = self._model(ids, mask, use_cache=False, return_dict=True)
        assert not isinstance(output, tuple) and output.start_logits is not None and output.end_logits is not None
        return torch.stack((output.start_logits, output.end_logits), dim=-1)

    def _choose(self, document: Document, found: Sequence[Tensor | Failure]) -> Answer:
        assert document.text is not None
        spans: dict[str, tuple[float, int, int]] = {}  # by their words: their score, and where they were found first
        impossible = 1.0
        for number, (window, notes, logits) in enumerate(zip(document.windows, document.notes, found, strict=True), 1):
            if isinstance(logits, Failure):
                return Answer.missing(document, "failed", f"window {number} of {len(found)}: {logits}")
            first, places = notes[0], notes[1:]
            scores, starts, ends, none = self._score(window, logits[: len(window)], first, len(places) // 2)
            impossible = min(impossible, none)
            for score, start, end in zip(scores, starts, ends, strict=True):
                begin, stop = places[2 * (start - first)], places[2 * (end - first) + 1]
                words = document.text[begin:stop].lower()
                before, *where = spans.get(words, (0.0, begin, stop))
                spans[words] = (before + score, where[0], where[1])
        if self.allow_impossible:
            spans.setdefault("", (impossible, 0, 0))
        if not spans:
            return Answer.missing(document, "failed", "no span of the context has a probability above 0")
        score, begin, stop = max(spans.values(), key=lambda span: span[0])
        n_tokens, n_windows = document.n_source_tokens, len(document.windows)
        return Answer(document.text[begin:stop], score, begin, stop, n_tokens, document.truncated, n_windows)

    def _score(
        self, window: Sequence[int], logits: Tensor, first: int, n_tokens: int
    ) -> tuple[list[float], list[int], list[int], float]:
        """Return the best spans of a window, scores [n] and places [n] of first and last tokens, and the score of none.

        logits [S, 2] of beginnings and ends. Only the context counts, ``n_tokens`` from ``first`` on, and the token that
        stands for no answer, where there is one.
        """
        allowed = torch.zeros(len(window), dtype=torch.bool)
        allowed[first : first + n_tokens] = True
        allowed[0] |= window[0] == self.documents.tokenizer.cls_token_id
        probabilities = logits.masked_fill(~allowed[:, None], -1e4).softmax(0)
        none = float(probabilities[0].prod())
        probabilities[0] = 0.0
        spans = torch.outer(probabilities[:, 0], probabilities[:, 1]).triu().tril(self.max_answer_tokens - 1)
        best = spans.flatten().topk(min(_CANDIDATES, spans.numel()))
        starts, ends = best.indices // len(window), best.indices % len(window)
        inside = allowed[starts] & allowed[ends] & (starts >= first) & (best.values > 0)
        return best.values[inside].tolist(), starts[inside].tolist(), ends[inside].tolist(), none
