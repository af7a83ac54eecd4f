"""Greedy and beam search over any decoder, each document as if it were alone in its batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pegasus_batch.config import GenerationConfig
from pegasus_batch.generation.processors import EditPlanner
from pegasus_batch.kernels import apply_edits, beam_step

EMPTY_SCORE = -1e9  # what Hugging Face's scores start from in beams and pool entries that hold nothing yet
EARLY_STOPPING: dict[bool | str, int] = {False: 0, True: 1, "never": 2}


@dataclass(frozen=True)
class Hypothesis:
    """One generated sequence: the prompt, the generated ids, the end token where it ended so; never padding.

    ``score`` is the sum of log-probabilities divided by generated length ** length_penalty; NaN where NaN logits ended
    the search, -1e9 where the options left nothing to generate (the tokens are then the prompt alone).
    """

    tokens: list[int]
    score: float


class Decoder(Protocol):
    """What a search drives; its owner has encoded the B documents. R = B*K rows, beams of a document adjacent."""

    @property
    def vocab_size(self) -> int:
        """V, the number of logits per row."""

    @property
    def device(self) -> torch.device:
        """Where logits are made and tokens are expected."""

    def start(self, n_beams: int) -> None:
        """Prepare R = B * ``n_beams`` rows without any token."""

    def step(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Feed one token per row and return the logits [R, V] after it.

        tokens, parents [R] int64; row r continues what row ``parents[r]`` was before this call.
        """

    def keep(self, documents: Tensor) -> None:
        """Drop all documents but these, int64 indices into the current order; rows are renumbered accordingly."""


@torch.no_grad()
def generate(
    decoder: Decoder,
    options: GenerationConfig,
    source_ids: Sequence[Sequence[int]],
    prompts: Sequence[Sequence[int]],
    *,
    max_positions: int | None = None,
) -> list[list[Hypothesis]]:
    """Search every document's continuation of its prompt; returns ``num_return_sequences`` each, best first.

    source_ids: the ids that the encoder saw, unpadded. prompts: decoder ids, equally many (at least one) per document.
    ``max_positions`` is the decoder's position limit, if it has one. Greedy search scores raw logits, beam search
    log-probabilities, as Hugging Face does, so options that edit scores act differently in the two.
    """
    if len(source_ids) != len(prompts):
        raise ValueError(f"{len(source_ids)} documents but {len(prompts)} prompts: pass one prompt per document")
    if not prompts:
        return []
    lengths = {len(prompt) for prompt in prompts}
    if len(lengths) > 1 or 0 in lengths:
        raise ValueError(
            f"decoder prompts have lengths {sorted(lengths)}: one call takes prompts of a single length of at least 1; "
            "group documents by prompt length"
        )
    wild = [token for prompt in prompts for token in prompt if not 0 <= token < decoder.vocab_size]
    if wild:
        raise ValueError(f"decoder prompt holds token {wild[0]}, but the vocabulary has {decoder.vocab_size} tokens")
    planner = EditPlanner(
        options, source_ids, lengths.pop(), vocab_size=decoder.vocab_size, max_positions=max_positions
    )
    prompt = torch.tensor([list(ids) for ids in prompts], dtype=torch.int64, device=decoder.device)
    search = _beam_search if options.num_beams > 1 else _greedy_search
    return search(decoder, planner, options, prompt)


def pad_sequences(hypotheses: Sequence[Sequence[Hypothesis]], options: GenerationConfig) -> Tensor:
    """Lay hypotheses out as transformers returns them: [documents * num_return_sequences, longest] int64.

    Hugging Face fills greedy rows with the padding token, but beam rows with the first end token where that padding
    token is 0, which its code takes for unset; without any end token it fills beam rows with -1.
    """
    rows = [hypothesis.tokens for document in hypotheses for hypothesis in document]
    width = max((len(row) for row in rows), default=0)
    pad = options.pad_token_id
    fill = options.fill_token
    if options.num_beams > 1:
        fill = (pad or options.eos_ids[0]) if options.eos_ids else -1
    padded = [row + [fill] * (width - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.int64).reshape(len(rows), width)


def _feed_prompt(decoder: Decoder, prompt: Tensor) -> Tensor:
    rows = torch.arange(prompt.shape[0], device=prompt.device)
    for position in range(prompt.shape[1] - 1):
        decoder.step(prompt[:, position], rows)
    return decoder.step(prompt[:, -1], rows)


def _greedy_search(
    decoder: Decoder, planner: EditPlanner, options: GenerationConfig, prompt: Tensor
) -> list[list[Hypothesis]]:
    n_documents, prompt_length = prompt.shape
    device = prompt.device
    results: list[list[Hypothesis]] = [[] for _ in range(n_documents)]
    sequences = prompt.new_zeros(n_documents, planner.max_length)
    sequences[:, :prompt_length] = prompt
    totals = torch.zeros(n_documents, dtype=torch.float64, device=device)
    eos_ids = torch.tensor(options.eos_ids, dtype=torch.int64, device=device)
    documents = torch.arange(n_documents)  # on the host: which document each row is

    decoder.start(1)
    logits = _feed_prompt(decoder, prompt)
    for length in range(prompt_length, planner.max_length):
        scores = logits.float()
        edits = planner.edits(sequences[:, :length], documents)
        if not edits.idle:
            scores = apply_edits(scores, edits.begin, edits.token, edits.kind, edits.value, edits.forced)
        if options.renormalize_logits:
            scores = scores.log_softmax(-1)
        tokens = scores.argmax(-1)  # the first of equal maxima, and NaN counts as the largest
        chosen = scores.gather(1, tokens[:, None])[:, 0]
        # Asked of the model's own logits: a row whose every token was banned becomes NaN too, but goes on with token 0.
        broken = logits.gather(1, tokens[:, None])[:, 0].isnan()
        totals += chosen.double() - scores.logsumexp(-1).double()
        sequences[:, length] = tokens
        done = (broken | torch.isin(tokens, eos_ids) | (length + 1 == planner.max_length)).cpu()
        rows = torch.arange(len(documents), device=device)
        if done.any():
            for row in done.nonzero()[:, 0].tolist():
                # A token picked from NaN says nothing, so the sequence ends before it.
                end = length if broken[row] else length + 1
                divisor = (length + 1 - prompt_length) ** options.length_penalty
                score = math.nan if broken[row] else totals[row].item() / divisor
                results[documents[row]] = [Hypothesis(sequences[row, :end].tolist(), score)]
            if done.all():
                break
            kept = (~done).nonzero()[:, 0]
            documents = documents[kept]
            kept = kept.to(device)
            decoder.keep(kept)
            sequences, totals, tokens, rows = sequences[kept], totals[kept], tokens[kept], rows[: len(kept)]
        logits = decoder.step(tokens, rows)
    return results


@dataclass
class _Beams:
    """The running beams and the pool of finished hypotheses of the B documents still searched.

    sequences, pool_sequences [B, K, max_length] int64, of which the first tokens are set; scores, pool_scores [B, K]
    float32; pool_finished [B, K] bool; pool_lengths [B, K] int64; open [B] bool: the pool may still improve.
    """

    sequences: Tensor
    scores: Tensor
    pool_sequences: Tensor
    pool_scores: Tensor
    pool_finished: Tensor
    pool_lengths: Tensor
    open: Tensor

    @classmethod
    def start(cls, prompt: Tensor, n_beams: int, max_length: int) -> _Beams:
        n_documents, prompt_length = prompt.shape
        shape = (n_documents, n_beams)
        sequences = prompt.new_zeros(*shape, max_length)
        sequences[:, :, :prompt_length] = prompt[:, None]
        # Beams start equal, so only the first may be continued; else all K would hold the same tokens forever.
        scores = torch.full(shape, EMPTY_SCORE, device=prompt.device)
        scores[:, 0] = 0
        return cls(
            sequences=sequences,
            scores=scores,
            pool_sequences=sequences,
            pool_scores=torch.full(shape, EMPTY_SCORE, device=prompt.device),
            pool_finished=torch.zeros(shape, dtype=torch.bool, device=prompt.device),
            pool_lengths=torch.full(shape, prompt_length, device=prompt.device),
            open=torch.ones(n_documents, dtype=torch.bool, device=prompt.device),
        )

    def extend(self, parents: Tensor, tokens: Tensor, pool_source: Tensor, pool_tokens: Tensor, length: int) -> None:
        """Move the tokens, which so far number ``length`` in each beam, to where a step has put its hypotheses."""
        pool = torch.cat([self.pool_sequences, self.sequences], dim=1)
        pool_lengths = torch.cat([self.pool_lengths, torch.full_like(self.pool_lengths, length + 1)], dim=1)
        source = pool_source.long()
        self.pool_lengths = pool_lengths.gather(1, source)
        self.pool_sequences = pool.take_along_dim(source[:, :, None], 1)
        is_new = pool_tokens >= 0
        self.pool_sequences[:, :, length] = torch.where(is_new, pool_tokens, self.pool_sequences[:, :, length])
        self.sequences = self.sequences.take_along_dim(parents[:, :, None], 1)
        self.sequences[:, :, length] = tokens

    def hypotheses(self, document: int, n_best: int, *, broken: bool) -> list[Hypothesis]:
        """Return a document's best pool entries; ``broken`` marks that NaN logits kept them from being found."""
        tokens = self.pool_sequences[document, :n_best].tolist()
        lengths = self.pool_lengths[document, :n_best].tolist()
        scores = self.pool_scores[document, :n_best].tolist()
        return [
            Hypothesis(ids[:end], math.nan if broken else score)
            for ids, end, score in zip(tokens, lengths, scores, strict=True)
        ]

    def keep(self, documents: Tensor) -> None:
        """Drop all documents but these."""
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name)[documents])


def _beam_search(
    decoder: Decoder, planner: EditPlanner, options: GenerationConfig, prompt: Tensor
) -> list[list[Hypothesis]]:
    n_documents, prompt_length = prompt.shape
    n_beams, device = options.num_beams, prompt.device
    results: list[list[Hypothesis]] = [[] for _ in range(n_documents)]
    beams = _Beams.start(prompt, n_beams, planner.max_length)
    eos_ids = torch.tensor(options.eos_ids, dtype=torch.int32, device=device)
    documents = torch.arange(n_documents)  # on the host: which document each row of `beams` is

    decoder.start(n_beams)
    logits = _feed_prompt(decoder, prompt.repeat_interleave(n_beams, 0))
    for length in range(prompt_length, planner.max_length):
        n_left = len(documents)
        edits = planner.edits(beams.sequences.flatten(0, 1)[:, :length], documents.repeat_interleave(n_beams))
        (
            beams.scores, parents, tokens, beams.pool_scores, beams.pool_finished, pool_source, pool_tokens,
            beams.open, done,
        ) = beam_step(
            logits, beams.scores, beams.pool_scores, beams.pool_finished, beams.open,
            edits.begin, edits.token, edits.kind, edits.value, edits.forced,
            torch.full((n_left,), length + 1 - prompt_length, dtype=torch.int32, device=device),
            torch.full((n_left,), planner.max_length - prompt_length, dtype=torch.int32, device=device),
            eos_ids, options.length_penalty, EARLY_STOPPING[options.early_stopping], options.renormalize_logits,
        )  # fmt: skip
        parents, tokens = parents.long(), tokens.long()
        beams.extend(parents, tokens, pool_source, pool_tokens, length)
        finished = done.cpu()
        if finished.any():
            for row in finished.nonzero()[:, 0].tolist():
                # An empty pool is rare: every continuation was banned, or NaN logits, which must not pass for that.
                broken = not beams.pool_finished[row].any() and bool(
                    logits[row * n_beams : (row + 1) * n_beams].isnan().any()
                )
                results[documents[row]] = beams.hypotheses(row, options.num_return_sequences, broken=broken)
            if finished.all():
                break
            kept = (~finished).nonzero()[:, 0]
            documents = documents[kept]
            kept = kept.to(device)
            decoder.keep(kept)
            beams.keep(kept)
            parents, tokens = parents[kept], tokens[kept]
        first_row = torch.arange(0, len(documents) * n_beams, n_beams, device=device)
        logits = decoder.step(tokens.flatten(), (parents + first_row[:, None]).flatten())
    return results
