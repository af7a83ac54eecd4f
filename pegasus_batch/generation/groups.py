"""Beam search in groups that avoid each other's tokens, with the pools that transformers used until release 4.56.

Diverse beam search: Vijayakumar et al. 2016, arXiv 1610.02424. Release 4.57 has left it, and search under constraints, to
repositories of their own; ordinary beam search has a newer pool (``kernels.beam_step``), which ends and ranks otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from pegasus_batch.config import GenerationConfig
from pegasus_batch.generation.candidates import best
from pegasus_batch.generation.choice import EMPTY_SCORE, Hypothesis, processed
from pegasus_batch.generation.processors import Edits
from pegasus_batch.generation.steering import Steering


class Entry(NamedTuple):
    """A hypothesis in a pool: its score, its tokens without an end token, and the beams that it came through."""

    score: float
    tokens: list[int]
    path: list[int]


@dataclass
class Pool:
    """The best hypotheses of a group, at most ``size``, in the order in which they came."""

    size: int
    options: GenerationConfig
    max_new: int
    entries: list[Entry] = field(default_factory=list)
    done: bool = False

    def add(self, total: float, n_new: int, tokens: list[int], path: list[int]) -> None:
        """Take a hypothesis of ``n_new`` generated tokens, if it is better than the worst of a full pool."""
        entry = Entry(total / n_new**self.options.length_penalty, tokens, path)
        if len(self.entries) < self.size:
            self.entries.append(entry)
        elif entry.score > self._worst():
            self.entries.append(entry)
            scores = [held.score for held in self.entries]
            del self.entries[scores.index(min(scores))]

    def settle(self, best_total: float, n_new: int) -> None:
        """Become ``done`` where no running beam, the best of which sums to ``best_total``, can improve the pool."""
        if len(self.entries) < self.size:
            return
        options = self.options
        ahead = options.early_stopping == "never" and options.length_penalty > 0
        attainable = best_total / (self.max_new if ahead else n_new) ** options.length_penalty
        self.done |= options.early_stopping is True or self._worst() >= attainable

    def _worst(self) -> float:
        return min(entry.score for entry in self.entries)


@dataclass
class Chosen:
    """How a group goes on: for each of its beams the sum of log-probabilities, the group's beam it continues, the token."""

    scores: list[float]
    parents: list[int]
    tokens: list[int]


@dataclass
class _Document:
    pools: list[Pool]  # one for each group
    paths: list[list[int]]  # the beams that each beam came through
    broken: bool = False


class GroupBeamChoice:
    """The continuations of ``num_beam_groups`` groups of beams, chosen one group after the other.

    Shapes as in BeamChoice; group g has the beams from g * K / groups on. scores [B*K, V]: the processed log-probabilities.
    """

    scores: Tensor | None = None
    recorded_sums = False  # whether ``scores`` are told with what the beams had before

    def __init__(
        self, options: GenerationConfig, prompt_length: int, max_length: int, device: torch.device, steering: Steering
    ) -> None:
        self._options, self._prompt_length, self._max_length = options, prompt_length, max_length
        self._steering, self._device = steering, device
        self.n_beams = options.num_beams
        self._size = self.n_beams // options.num_beam_groups
        self._documents: list[_Document] = []
        self.sequences = torch.zeros(0, self.n_beams, max_length, dtype=torch.int64, device=device)
        self.tokens = self.parents = torch.zeros(0, self.n_beams, dtype=torch.int64, device=device)
        self._sums = torch.zeros(0, self.n_beams, device=device)

    def add(self, prompts: Tensor) -> None:
        """Append documents with their prompts [n, P]."""
        new = prompts.new_zeros(len(prompts), self.n_beams, self._max_length)
        new[:, :, : self._prompt_length] = prompts[:, None]
        self.sequences = torch.cat((self.sequences, new))
        sums = torch.full(new.shape[:2], EMPTY_SCORE, device=self._device)
        sums[:, :: self._size] = 0  # the beams of a group start equal, so only its first may be continued
        self._sums = torch.cat((self._sums, sums))
        most = self._max_length - self._prompt_length
        groups = range(self._options.num_beam_groups)
        self._documents += [
            _Document([Pool(self._size, self._options, most) for _ in groups], [[] for _ in range(self.n_beams)])
            for _ in prompts
        ]

    def choose(self, logits: Tensor, edits: Edits, lengths: Tensor, documents: Sequence[int]) -> Tensor:
        """Choose after logits [B*K, V] of beams with ``lengths`` [B] tokens; returns which documents have finished [B]."""
        shape = (len(documents), self.n_beams)
        log_probabilities = logits.float().log_softmax(-1).unflatten(0, shape)
        self.scores = torch.empty_like(log_probabilities)
        self.tokens, self.parents = (torch.zeros(shape, dtype=torch.int64, device=self._device) for _ in "tp")
        sums = self._sums.clone()
        for first in range(0, self.n_beams, self._size):
            own = slice(first, first + self._size)
            rows = self.sequences[:, own]
            if self._size < self.n_beams:
                edits = self._planned(rows, self.tokens[:, :first], lengths, documents)
            further = self._steering.further(rows, lengths)
            scores = processed(log_probabilities[:, own].flatten(0, 1), edits, self._options, further)
            self.scores[:, own] = scores.unflatten(0, (len(documents), self._size))
            totals = self.scores[:, own] + self._sums[:, own, None]
            if self.recorded_sums:
                self.scores[:, own] = totals
            for row, length in enumerate(lengths.tolist()):
                chosen = self._continued(row, first, totals[row], length)
                sums[row, own] = torch.tensor(chosen.scores, device=self._device)
                self.tokens[row, own] = torch.tensor(chosen.tokens, device=self._device)
                self.parents[row, own] = torch.tensor(chosen.parents, device=self._device) + first
        self._sums = sums
        return self._moved(logits.unflatten(0, shape).isnan().flatten(1).any(1), lengths, documents)

    def _planned(self, rows: Tensor, others: Tensor, lengths: Tensor, documents: Sequence[int]) -> Edits:
        """Plan the edits of a group, which ``others`` [B, m], the tokens of the groups before it, change."""
        owners, ends, others = (
            values.repeat_interleave(self._size, 0) for values in (torch.tensor(documents), lengths.cpu(), others)
        )
        return self._steering.planner.edits(rows.flatten(0, 1)[:, : int(ends.max())], owners, ends, others)

    def _continued(self, row: int, first: int, totals: Tensor, length: int) -> Chosen:
        """Choose how a group goes on, by totals [size, V], and let its pool have what ends."""
        pool, vocabulary = self._documents[row].pools[first // self._size], totals.shape[1]
        if pool.done:
            return Chosen([0.0] * self._size, [0] * self._size, [self._options.fill_token] * self._size)
        eos_ids, n_new = self._options.eos_ids, length + 1 - self._prompt_length
        index = best(totals.flatten(), max(2, 1 + len(eos_ids)) * self._size)
        ranked = totals.flatten()[index].tolist()
        chosen = Chosen([], [], [])
        for rank, (total, candidate) in enumerate(zip(ranked, index.tolist(), strict=True)):
            parent, token = divmod(candidate, vocabulary)
            if token not in eos_ids:
                chosen.scores.append(total)
                chosen.parents.append(parent)
                chosen.tokens.append(token)
                if len(chosen.tokens) == self._size:
                    break
            elif rank < self._size:
                tokens = self.sequences[row, first + parent, :length].tolist()
                if self._may_end(tokens):
                    path = [*self._documents[row].paths[first + parent], first + parent]
                    pool.add(total, n_new, tokens, path)
        chosen = self._revised(row, chosen, totals, length)
        pool.settle(ranked[0], n_new)
        return chosen

    def _may_end(self, tokens: list[int]) -> bool:
        """Tell whether a sequence may enter the pool."""
        return True

    def _revised(self, row: int, chosen: Chosen, totals: Tensor, length: int) -> Chosen:
        """Return what a group goes on with in place of its best continuations."""
        return chosen

    def _moved(self, broken: Tensor, lengths: Tensor, documents: Sequence[int]) -> Tensor:
        """Extend all sequences by the chosen tokens; returns which documents have finished [B]."""
        self.sequences = self.sequences.take_along_dim(self.parents[:, :, None], 1)
        where = lengths[:, None, None].expand(-1, self.n_beams, 1)
        self.sequences.scatter_(2, where, self.tokens[:, :, None])
        done = []
        for row, (document, length) in enumerate(zip(documents, lengths.tolist(), strict=True)):
            state = self._documents[row]
            state.paths = [[*state.paths[parent], parent] for parent in self.parents[row].tolist()]
            state.broken = bool(broken[row])
            ended = torch.isin(self.tokens[row], torch.tensor(self._options.eos_ids, device=self._device))
            if self._steering.rules:
                assert self.scores is not None
                ids = self.sequences[row, :, : length + 1]
                ended = ended | self._steering.ended(document, ids, self.scores[row])
            stopped = state.broken or length + 1 == self._max_length or bool(ended.all())
            done.append(stopped or all(pool.done for pool in state.pools))
        assert self.scores is not None
        self.scores = self.scores.flatten(0, 1)
        self._lengths = lengths + 1
        return torch.tensor(done)

    def hypotheses(self, row: int, logits: Tensor) -> list[Hypothesis]:
        """Return a finished document's best hypotheses, the pools that are not done completed by their running beams."""
        options, state, length = self._options, self._documents[row], int(self._lengths[row])
        if not state.broken:
            for group, pool in enumerate(state.pools):
                if not pool.done:
                    self._complete(pool, row, group * self._size, length)
        entries = sorted((entry for pool in state.pools for entry in pool.entries), key=lambda entry: entry.score)
        found = [self._hypothesis(entry) for entry in reversed(entries)][: options.num_return_sequences]
        prompt = self.sequences[row, 0, : self._prompt_length].tolist()
        return found + [Hypothesis(prompt, math.nan, [])] * (options.num_return_sequences - len(found))

    def _hypothesis(self, entry: Entry) -> Hypothesis:
        # Whatever is short of the maximum gets an end token, the first one, even where the caller's rules ended it.
        end = list(self._options.eos_ids[:1]) if len(entry.tokens) < self._max_length else []
        return Hypothesis(entry.tokens + end, entry.score, entry.path)

    def _complete(self, pool: Pool, row: int, first: int, length: int) -> None:
        """Add the running beams of a group to its pool."""
        for beam in range(first, first + self._size):
            self._add_running(pool, row, beam, length)

    def _add_running(self, pool: Pool, row: int, beam: int, length: int) -> None:
        tokens = self.sequences[row, beam, :length].tolist()
        total = float(self._sums[row, beam])
        pool.add(total, length - self._prompt_length, tokens, self._documents[row].paths[beam])

    def keep(self, rows: Tensor) -> None:
        """Drop all documents but these."""
        self.sequences, self._sums, self.tokens, self.parents = (
            tensor[rows] for tensor in (self.sequences, self._sums, self.tokens, self.parents)
        )
        self._documents = [self._documents[row] for row in rows.tolist()]
