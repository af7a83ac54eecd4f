"""What ends a sequence besides an end token and the maximum length."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pegasus_batch.config import GenerationConfig
from pegasus_batch.generation.callbacks import Callbacks, StoppingCriterion

_STEM = "abcdef"  # what a token is decoded after, because the first token of a text loses its space


class StopStrings:
    """Ends a row whose newest token completes one of some texts, wherever in that token the text ends."""

    def __init__(self, tokenizer: Any, texts: str | Sequence[str]) -> None:
        """Raises ValueError without a tokenizer."""
        if tokenizer is None:
            raise ValueError(f"stop_strings={texts!r}: pass tokenizer=, or the texts cannot be found among token ids")
        self._texts = [texts] if isinstance(texts, str) else list(texts)
        self._longest = max(len(text) for text in self._texts)
        self._tokenizer = tokenizer
        self._tokens = {index: token for token, index in tokenizer.get_vocab().items()}
        self._stem = tokenizer.tokenize(_STEM)
        self._stem_length = len(tokenizer.convert_tokens_to_string(self._stem))
        self._pieces: dict[int, str] = {}

    def __call__(self, ids: Tensor, scores: Any) -> Tensor:
        """Tell which rows of ids [R, T] end."""
        # A token is at least a character, so more tokens than the longest text has characters never matter.
        rows = ids[:, -self._longest :].tolist()
        return torch.tensor([self._ends([self._piece(token) for token in row]) for row in rows], dtype=torch.bool)

    def _ends(self, pieces: list[str]) -> bool:
        text = "".join(pieces)
        newest = len(text) - len(pieces[-1])
        return any(text.find(wanted, max(0, newest - len(wanted) + 1)) >= 0 for wanted in self._texts)

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            # Ids that the tokenizer lacks stand for nothing that a text could contain.
            tokens = [*self._stem, self._tokens[token]] if token in self._tokens else []
            text = self._tokenizer.convert_tokens_to_string(tokens)[self._stem_length :] if tokens else "\0"
            self._pieces[token] = text
        return self._pieces[token]


class StoppingRules:
    """The criteria of a call, the stop strings and the clock as one question, asked for each document by itself.

    ``max_time`` is counted in seconds from the step that a document joined in. False where there is no rule.
    """

    def __init__(self, options: GenerationConfig, callbacks: Callbacks) -> None:
        self._criteria: list[StoppingCriterion] = list(callbacks.stopping_criteria)
        if options.stop_strings is not None:
            self._criteria.append(StopStrings(callbacks.tokenizer, options.stop_strings))
        self._max_time = options.max_time
        self._began: dict[int, float] = {}
        self._last = time.monotonic()

    def __bool__(self) -> bool:
        return bool(self._criteria) or self._max_time is not None

    def ended(self, document: int, ids: Tensor, scores: Sequence[Tensor] | None) -> Tensor:
        """Tell which rows of ids [R, T] of a document end; ValueError where a criterion answers in another shape."""
        result = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        for criterion in self._criteria:
            answer = torch.as_tensor(criterion(ids, scores), dtype=torch.bool, device=ids.device)
            if answer.shape not in ((), (len(ids),)):
                raise ValueError(
                    f"a stopping criterion returned {list(answer.shape)}, not a bool or {[len(ids)]} of them"
                )
            result = result | answer
        if self._max_time is not None:
            now = time.monotonic()
            result = result | (now - self._began.setdefault(document, self._last) > self._max_time)
            self._last = now
        return result
