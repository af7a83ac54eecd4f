"""Rows that go on each for themselves: greedy search under rules of the caller's own, and independent draws."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pegasus_batch.config import GenerationConfig
from pegasus_batch.generation.choice import GreedyChoice, Hypothesis, processed
from pegasus_batch.generation.processors import Edits
from pegasus_batch.generation.sampling import draw
from pegasus_batch.generation.steering import Steering


class RowChoice(GreedyChoice):
    """A token for each of the n rows of every document, the best one or a drawn one, until all n have ended.

    n is ``num_return_sequences``. Shapes are those of GreedyChoice, with n for 1; a row that has ended is fed padding.
    """

    def __init__(
        self, options: GenerationConfig, prompt_length: int, max_length: int, device: torch.device, steering: Steering
    ) -> None:
        super().__init__(options, prompt_length, max_length, device, options.num_return_sequences)
        self._steering = steering
        self._ends = torch.zeros(0, self.n_beams, dtype=torch.int64, device=device)  # tokens of rows that have ended
        self._nan = torch.zeros(0, self.n_beams, dtype=torch.bool, device=device)

    def add(self, prompts: Tensor) -> None:
        """Append documents with their prompts [n, P]."""
        super().add(prompts)
        self._ends = torch.cat((self._ends, self._ends.new_zeros(len(prompts), self.n_beams)))
        self._nan = torch.cat((self._nan, self._nan.new_zeros(len(prompts), self.n_beams)))

    def choose(self, logits: Tensor, edits: Edits, lengths: Tensor, documents: Sequence[int]) -> Tensor:
        """Choose after logits [B*n, V] of rows with ``lengths`` [B] tokens; returns which documents have finished [B]."""
        further = self._steering.further(self.sequences, lengths)
        self.scores = scores = processed(logits.float(), edits, self._options, further)
        shape = (len(documents), self.n_beams)
        tokens = self._drawn(scores, lengths, documents) if self._options.do_sample else scores.argmax(-1)
        gained = scores.gather(1, tokens[:, None])[:, 0].double() - scores.logsumexp(-1).double()
        nan = logits.gather(1, tokens[:, None])[:, 0].isnan().view(shape)
        live = self._ends == 0
        self._totals += torch.where(live, gained.view(shape), 0.0)
        self._nan |= live & nan
        self.tokens = torch.where(live, tokens.view(shape), self._options.fill_token)
        self.parents = torch.arange(self.n_beams, device=tokens.device).expand(shape)
        self.sequences.scatter_(2, lengths[:, None, None].expand(*shape, 1), self.tokens[:, :, None])
        ended = nan | torch.isin(self.tokens, self._eos_ids) | (lengths + 1 == self._max_length)[:, None]
        if self._steering.rules:
            for row, (document, length) in enumerate(zip(documents, lengths.tolist(), strict=True)):
                own = scores.unflatten(0, shape)[row]
                ended[row] |= self._steering.ended(document, self.sequences[row, :, : length + 1], own)
        self._steering.stream(documents, self.tokens)
        # A token picked from NaN says nothing, so the sequence ends before it.
        self._ends = torch.where(live & ended, lengths[:, None] + torch.where(nan, 0, 1), self._ends)
        return (self._ends > 0).all(1)

    def _drawn(self, scores: Tensor, lengths: Tensor, documents: Sequence[int]) -> Tensor:
        tokens = [
            draw(scores[row * self.n_beams + sequence], uniform, 1)
            for row, (document, length) in enumerate(zip(documents, lengths.tolist(), strict=True))
            for sequence in range(self.n_beams)
            for uniform in [
                self._steering.streams.uniform(document, sequence, length - self._prompt_length, scores.shape[1])
            ]
        ]
        return torch.cat(tokens)

    def hypotheses(self, row: int, logits: Tensor) -> list[Hypothesis]:
        """Return the n sequences of a finished document, in the order of their numbers."""
        found = []
        for tokens, end, total, nan in zip(
            *(x[row].tolist() for x in (self.sequences, self._ends, self._totals, self._nan)), strict=True
        ):
            score = math.nan if nan else total / (end - self._prompt_length) ** self._options.length_penalty
            found.append(Hypothesis(tokens[:end], score))
        return found

    def keep(self, rows: Tensor) -> None:
        """Drop all documents but these."""
        super().keep(rows)
        self._ends, self._nan = self._ends[rows], self._nan[rows]
