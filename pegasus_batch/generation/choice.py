"""Which tokens a step chooses, for every running document on its own: the best one, or the best beams."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pegasus_batch.config import GenerationConfig
from pegasus_batch.generation.processors import Edits
from pegasus_batch.kernels import apply_edits, beam_step, greedy_step

EMPTY_SCORE = -1e9  # what Hugging Face's scores start from in beams and pool entries that hold nothing yet
EARLY_STOPPING: dict[bool | str, int] = {False: 0, True: 1, "never": 2}


def processed(
    scores: Tensor, edits: Edits, options: GenerationConfig, further: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Return float32 scores [R, V] as the options want them: edited, changed further and, if they say so, normalised again."""
    if not edits.idle:
        scores = apply_edits(scores, edits.begin, edits.end, edits.token, edits.kind, edits.value, edits.forced)
    if further is not None:
        scores = further(scores)
    return scores.log_softmax(-1) if options.renormalize_logits else scores


@dataclass(frozen=True)
class Hypothesis:
    """One generated sequence: the prompt, the generated ids, the end token where it ended so; never padding.

    ``score`` is the sum of log-probabilities divided by generated length ** length_penalty; NaN where NaN logits ended
    the search, -1e9 where the options left nothing to generate (the tokens are then the prompt alone). ``path``: which of the
    document's beams each generated token continued, where the search knows.
    """

    tokens: list[int]
    score: float
    path: list[int] | None = None


class GreedyChoice:
    """The most probable token of each of the B running documents, one row each.

    sequences [B, 1, max_length] int64, of which the first tokens are set; tokens, parents [B, 1] int64: what ``choose`` chose.
    scores [B, V]: what it chose by.
    """

    scores: Tensor | None = None

    def __init__(
        self, options: GenerationConfig, prompt_length: int, max_length: int, device: torch.device, n_rows: int = 1
    ) -> None:
        self._options, self._prompt_length, self._max_length = options, prompt_length, max_length
        self.n_beams = n_rows
        self._eos_ids = torch.tensor(options.eos_ids, dtype=torch.int64, device=device)
        self.sequences = torch.zeros(0, n_rows, max_length, dtype=torch.int64, device=device)
        self._totals = torch.zeros(0, n_rows, dtype=torch.float64, device=device)
        self.tokens = self.parents = torch.zeros(0, n_rows, dtype=torch.int64, device=device)

    def add(self, prompts: Tensor) -> None:
        """Append documents with their prompts [n, P]."""
        new = prompts.new_zeros(len(prompts), self.n_beams, self._max_length)
        new[:, :, : self._prompt_length] = prompts[:, None]
        self.sequences = torch.cat((self.sequences, new))
        self._totals = torch.cat((self._totals, self._totals.new_zeros(len(prompts), self.n_beams)))

    def choose(self, logits: Tensor, edits: Edits, lengths: Tensor, documents: Sequence[int]) -> Tensor:
        """Choose after logits [B, V] of rows with ``lengths`` [B] tokens; returns which documents have finished [B]."""
        chosen, gains, self._broken = greedy_step(
            logits, edits.begin, edits.end, edits.token, edits.kind, edits.value, edits.forced,
            self._options.renormalize_logits,
        )  # fmt: skip
        tokens = chosen.long()
        self._totals[:, 0] += gains
        self.sequences[:, 0].scatter_(1, lengths[:, None], tokens[:, None])
        self._lengths, self.tokens, self.parents = lengths, tokens[:, None], torch.zeros_like(tokens)[:, None]
        return self._broken | torch.isin(tokens, self._eos_ids) | (lengths + 1 == self._max_length)

    def hypotheses(self, row: int, logits: Tensor) -> list[Hypothesis]:
        """Return what a finished document has become."""
        length = int(self._lengths[row])
        if self._broken[row]:  # a token picked from NaN says nothing, so the sequence ends before it
            return [Hypothesis(self.sequences[row, 0, :length].tolist(), math.nan)]
        divisor = (length + 1 - self._prompt_length) ** self._options.length_penalty
        return [Hypothesis(self.sequences[row, 0, : length + 1].tolist(), self._totals[row].item() / divisor)]

    def keep(self, rows: Tensor) -> None:
        """Drop all documents but these."""
        self.sequences, self._totals, self.tokens, self.parents = (
            tensor[rows] for tensor in (self.sequences, self._totals, self.tokens, self.parents)
        )


@dataclass
class _Beams:
    """The running beams and the pool of finished hypotheses of B documents.

    sequences, pool_sequences [B, K, max_length] int64, of which the first tokens are set; scores, pool_scores [B, K]
    float32; pool_finished [B, K] bool; pool_lengths [B, K] int64; open [B] bool: the pool may still improve; parents,
    tokens [B, K] int64: which beam each beam continues, and with what.
    """

    sequences: Tensor
    scores: Tensor
    pool_sequences: Tensor
    pool_scores: Tensor
    pool_finished: Tensor
    pool_lengths: Tensor
    open: Tensor
    parents: Tensor
    tokens: Tensor

    @classmethod
    def start(cls, prompts: Tensor, n_beams: int, max_length: int) -> _Beams:
        """Return the beams of documents that have only their prompts [B, P]."""
        n_documents, prompt_length = prompts.shape
        shape = (n_documents, n_beams)
        sequences = prompts.new_zeros(*shape, max_length)
        sequences[:, :, :prompt_length] = prompts[:, None]
        # Beams start equal, so only the first may be continued; else all K would hold the same tokens forever.
        scores = torch.full(shape, EMPTY_SCORE, device=prompts.device)
        scores[:, :1] = 0
        return cls(
            sequences=sequences,
            scores=scores,
            pool_sequences=sequences,
            pool_scores=torch.full(shape, EMPTY_SCORE, device=prompts.device),
            pool_finished=torch.zeros(shape, dtype=torch.bool, device=prompts.device),
            pool_lengths=torch.full(shape, prompt_length, device=prompts.device),
            open=torch.ones(n_documents, dtype=torch.bool, device=prompts.device),
            parents=prompts.new_zeros(shape),
            tokens=prompts.new_zeros(shape),
        )

    def joined(self, other: _Beams) -> _Beams:
        """Return these documents and then the other ones."""
        both = {name: torch.cat((getattr(self, name), getattr(other, name))) for name in self.__dataclass_fields__}
        return _Beams(**both)

    def kept(self, rows: Tensor) -> _Beams:
        """Return these documents alone."""
        return _Beams(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})


def _pick(rows: Tensor, chosen: Tensor) -> Tensor:
    """Return of rows [B, M, T] those that each document has chosen [B, K]."""
    n_documents, n_rows, length = rows.shape
    first = torch.arange(0, n_documents * n_rows, n_rows, device=rows.device)
    return rows.flatten(0, 1)[(chosen + first[:, None]).flatten()].view(*chosen.shape, length)


class BeamChoice:
    """The best continuations of every beam of the B running documents.

    moves: what the last step did to the beams and to the pool, ``parents`` and ``pool_source`` of ``beam_step``, [B, K] each.
    """

    scores: Tensor | None = None  # the kernel keeps what it chooses by to itself
    moves: tuple[Tensor, Tensor]

    def __init__(self, options: GenerationConfig, prompt_length: int, max_length: int, device: torch.device) -> None:
        self._options, self._prompt_length, self._max_length = options, prompt_length, max_length
        self.n_beams = options.num_beams
        self._eos_ids = torch.tensor(options.eos_ids, dtype=torch.int32, device=device)
        nothing = torch.zeros(0, prompt_length, dtype=torch.int64, device=device)
        self._beams = _Beams.start(nothing, self.n_beams, max_length)

    @property
    def sequences(self) -> Tensor:
        """Return the tokens so far [B, K, max_length]."""
        return self._beams.sequences

    @property
    def tokens(self) -> Tensor:
        """Return the tokens [B, K] int64 that ``choose`` chose."""
        return self._beams.tokens

    @property
    def parents(self) -> Tensor:
        """Return the beams [B, K] int64 of their document that they continue."""
        return self._beams.parents

    def add(self, prompts: Tensor) -> None:
        """Append documents with their prompts [n, P]."""
        self._beams = self._beams.joined(_Beams.start(prompts, self.n_beams, self._max_length))

    def choose(self, logits: Tensor, edits: Edits, lengths: Tensor, documents: Sequence[int]) -> Tensor:
        """Choose after logits [B*K, V] of beams with ``lengths`` [B] tokens; returns which documents have finished [B]."""
        beams = self._beams
        n_new = (lengths + 1 - self._prompt_length).int()
        max_new = torch.full_like(n_new, self._max_length - self._prompt_length)
        (
            beams.scores, parents, tokens, beams.pool_scores, beams.pool_finished, pool_source, pool_tokens,
            beams.open, done,
        ) = self._step(logits, edits, n_new, max_new, documents)  # fmt: skip
        beams.parents, beams.tokens = parents.long(), tokens.long()
        self.moves = beams.parents, pool_source
        self._extend(pool_source.long(), pool_tokens.long(), lengths[:, None, None].expand(-1, self.n_beams, 1))
        return done

    def _step(
        self, logits: Tensor, edits: Edits, n_new: Tensor, max_new: Tensor, documents: Sequence[int]
    ) -> tuple[Tensor, ...]:
        """Return what ``beam_step`` returns."""
        beams, options = self._beams, self._options
        return beam_step(
            logits, beams.scores, beams.pool_scores, beams.pool_finished, beams.open,
            edits.begin, edits.end, edits.token, edits.kind, edits.value, edits.forced,
            n_new, max_new,
            self._eos_ids, options.length_penalty, EARLY_STOPPING[options.early_stopping], options.renormalize_logits,
        )  # fmt: skip

    def _extend(self, pool_source: Tensor, pool_tokens: Tensor, lengths: Tensor) -> None:
        """Move the tokens, which so far number ``lengths`` [B, K, 1], to where a step has put its hypotheses."""
        beams = self._beams
        pool = torch.cat([beams.pool_sequences, beams.sequences], dim=1)
        pool_lengths = torch.cat([beams.pool_lengths, lengths[:, :, 0] + 1], dim=1)
        beams.pool_lengths = pool_lengths.gather(1, pool_source)
        beams.pool_sequences = _pick(pool, pool_source)
        former = beams.pool_sequences.gather(2, lengths)
        added = torch.where(pool_tokens >= 0, pool_tokens, former[:, :, 0])
        beams.pool_sequences.scatter_(2, lengths, added[:, :, None])
        beams.sequences = _pick(beams.sequences, beams.parents)
        beams.sequences.scatter_(2, lengths, beams.tokens[:, :, None])

    def hypotheses(self, row: int, logits: Tensor) -> list[Hypothesis]:
        """Return a finished document's best pool entries."""
        beams, n_best = self._beams, self._options.num_return_sequences
        tokens = beams.pool_sequences[row, :n_best].tolist()
        lengths = beams.pool_lengths[row, :n_best].tolist()
        scores = beams.pool_scores[row, :n_best].tolist()
        # An empty pool is rare: every continuation was banned, or NaN logits, which must not pass for that.
        own = slice(row * self.n_beams, (row + 1) * self.n_beams)
        broken = not beams.pool_finished[row].any() and bool(logits[own].isnan().any())
        return [
            Hypothesis(ids[:end], math.nan if broken else score)
            for ids, end, score in zip(tokens, lengths, scores, strict=True)
        ]

    def keep(self, rows: Tensor) -> None:
        """Drop all documents but these."""
        self._beams = self._beams.kept(rows)
