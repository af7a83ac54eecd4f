"""The search over any decoder, each document as if it were alone in its batch."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from pegasus_batch.config import GenerationConfig
from pegasus_batch.generation.callbacks import Callbacks
from pegasus_batch.generation.choice import BeamChoice, Hypothesis, processed
from pegasus_batch.generation.modes import has_own_pools, make_choice
from pegasus_batch.generation.processors import EditPlanner, Edits
from pegasus_batch.generation.recording import Recorder

_REFILL = 1 / 8  # of the budget: so much must be free before documents join


class Decoder(Protocol):
    """What a search drives; its owner has given it the documents, which have numbers.

    The documents that are decoded have an order: that of their admission. Each has one row until its first token is chosen,
    and one for every beam from then on; the rows of a document are adjacent.
    """

    @property
    def vocab_size(self) -> int:
        """V, the number of logits per row."""

    @property
    def device(self) -> torch.device:
        """Where logits are made and tokens are expected."""

    def start(self, n_beams: int) -> None:
        """Begin without any document, and with up to ``n_beams`` rows for each later."""

    def admit(self, documents: Sequence[int]) -> None:
        """Add the documents of these numbers, a row without tokens each."""

    def step(self, tokens: Tensor, parents: Tensor, widths: Sequence[int]) -> Tensor:
        """Feed one token per row and return the logits [R, V] after it.

        tokens, parents [R] int64; row r continues what row ``parents[r]`` was before this call; ``widths``: how many rows
        each document has from now on.
        """

    def keep(self, documents: Sequence[int]) -> None:
        """Drop all documents but these, indices into the current order; rows are renumbered accordingly."""


class Search:
    """The search of many documents, some at a time: where one has finished, the next may join the others at any step.

    Iterating carries it out and yields (number, hypotheses) of each document when it has finished. ``waiting`` numbers those
    that have not been touched: where an exception ends the search, they had no part in it.
    """

    def __init__(
        self,
        decoder: Decoder,
        options: GenerationConfig,
        source_ids: Sequence[Sequence[int]],
        prompts: Sequence[Sequence[int]],
        *,
        budget: int | None = None,
        max_positions: int | None = None,
        callbacks: Callbacks | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        """Prepare; raises ValueError on prompts and options that cannot be searched.

        source_ids: the ids that the encoder sees, unpadded. prompts: decoder ids, equally many (at least one) per
        document. ``budget``: source tokens decoded at a time; a longer document is decoded alone. ``max_positions`` is
        the decoder's position limit, if it has one. ``callbacks``: what the options cannot say. ``recorder`` is told of
        every step.
        """
        if len(source_ids) != len(prompts):
            raise ValueError(f"{len(source_ids)} documents but {len(prompts)} prompts: pass one prompt per document")
        lengths = {len(prompt) for prompt in prompts}
        if len(lengths) > 1 or 0 in lengths:
            raise ValueError(
                f"decoder prompts have lengths {sorted(lengths)}: one call takes prompts of a single length of at least "
                "1; group documents by prompt length"
            )
        wild = [token for prompt in prompts for token in prompt if not 0 <= token < decoder.vocab_size]
        if wild:
            raise ValueError(
                f"decoder prompt holds token {wild[0]}, but the vocabulary has {decoder.vocab_size} tokens"
            )
        self.waiting = deque(range(len(prompts)))
        self._running: list[int] = []
        self._decoder, self._device = decoder, decoder.device
        self._sizes = [len(ids) for ids in source_ids]
        self._budget = math.inf if budget is None else budget
        self._recorder, self._options = recorder, options
        if not prompts:
            return
        callbacks = callbacks or Callbacks()
        if callbacks.streamer is not None and budget is not None:
            raise ValueError("a streamer is told of all documents step by step: pass no budget")
        self._prompts = torch.tensor([list(ids) for ids in prompts], dtype=torch.int64, device=decoder.device)
        self._planner = EditPlanner(
            options,
            source_ids,
            lengths.pop(),
            vocab_size=decoder.vocab_size,
            max_positions=max_positions,
            prefix_allowed_tokens_fn=callbacks.prefix_allowed_tokens_fn,
        )
        self._choice = make_choice(
            options, callbacks, source_ids, self._prompts.shape[1], self._planner, recorder, decoder.device
        )
        self._widths: list[int] = []  # rows of each running document
        self._lengths: list[int] = []  # tokens of each running document, prompt included

    @torch.no_grad()
    def __iter__(self) -> Iterator[tuple[int, list[Hypothesis]]]:
        """Search, and yield what has finished."""
        if self.waiting:
            self._decoder.start(self._choice.n_beams)
        while self.waiting or self._running:
            logits = self._next_logits(self._admit())
            lengths = torch.tensor(self._lengths)
            documents = torch.tensor(self._running)
            n_beams = self._choice.n_beams
            edits = self._planner.edits(
                self._choice.sequences.flatten(0, 1)[:, : max(self._lengths)],
                documents.repeat_interleave(n_beams),
                lengths.repeat_interleave(n_beams),
            )
            done = self._choice.choose(logits, edits, lengths.to(self._device), self._running).tolist()
            self._record(logits, edits)
            self._lengths = [length + 1 for length in self._lengths]
            if any(done):
                finished = [row for row, ended in enumerate(done) if ended]
                found = [(self._running[row], self._choice.hypotheses(row, logits)) for row in finished]
                if self._recorder is not None:
                    self._recorder.finish(found)
                self._keep([row for row, ended in enumerate(done) if not ended])
                yield from found

    def _admit(self) -> int:
        """Let documents join that fit beside the running ones; returns how many."""
        used = sum(self._sizes[document] for document in self._running)
        # Encoding a document or two at a time does not pay; and a longer prompt is fed to all of its batch at once.
        if self._running and (self._budget - used < self._budget * _REFILL or self._prompts.shape[1] > 1):
            return 0
        joining: list[int] = []
        while self.waiting and (not (self._running or joining) or used + self._sizes[self.waiting[0]] <= self._budget):
            used += self._sizes[self.waiting[0]]
            joining.append(self.waiting.popleft())
        if joining:
            self._running += joining
            self._decoder.admit(joining)
            self._choice.add(self._prompts[joining])
            self._widths += [1] * len(joining)
            self._lengths += [self._prompts.shape[1]] * len(joining)
        return len(joining)

    def _next_logits(self, n_new: int) -> Tensor:
        """Feed every running document's newest tokens; returns the logits [B * n_beams, V] that follow."""
        n_old, n_beams = len(self._running) - n_new, self._choice.n_beams
        widths = torch.tensor(self._widths, device=self._device)
        begins = widths.cumsum(0) - widths
        new = self._prompts[self._running[n_old:]]
        for position in range(new.shape[1] - 1 if n_new else 0):
            self._decoder.step(new[:, position], begins, self._widths)
        # Beams that differ in nothing yet are one row.
        parents = torch.minimum(self._choice.parents[:n_old], widths[:n_old, None] - 1) + begins[:n_old, None]
        self._widths = [n_beams] * n_old + [1] * n_new
        logits = self._decoder.step(
            torch.cat((self._choice.tokens[:n_old].flatten(), new[:, -1])),
            torch.cat((parents.flatten(), begins[n_old:])),
            self._widths,
        )
        if n_new == 0 or n_beams == 1:
            return logits
        rows = torch.arange(n_old * n_beams + n_new, device=self._device)
        return logits[torch.cat((rows[: n_old * n_beams], rows[n_old * n_beams :].repeat_interleave(n_beams)))]

    def _record(self, logits: Tensor, edits: Edits) -> None:
        """Tell the recorder, if there is one, of the step that has been chosen."""
        if self._recorder is None:
            return
        scores = self._choice.scores
        if scores is None and self._recorder.scores is not None:
            scores = processed(logits.float().log_softmax(-1), edits, self._options)
        self._recorder.record(self._running, scores, logits)
        if isinstance(self._choice, BeamChoice):
            self._recorder.follow(self._running, self._choice.moves)

    def _keep(self, rows: list[int]) -> None:
        self._running, self._widths, self._lengths = (
            [values[row] for row in rows] for values in (self._running, self._widths, self._lengths)
        )
        self._decoder.keep(rows)
        self._choice.keep(torch.tensor(rows, dtype=torch.int64, device=self._device))


def generate(
    decoder: Decoder,
    options: GenerationConfig,
    source_ids: Sequence[Sequence[int]],
    prompts: Sequence[Sequence[int]],
    *,
    budget: int | None = None,
    max_positions: int | None = None,
    callbacks: Callbacks | None = None,
    recorder: Recorder | None = None,
) -> list[list[Hypothesis]]:
    """Search every document's continuation of its prompt; returns ``num_return_sequences`` each, best first.

    Arguments as those of ``Search``. Greedy search scores raw logits, beam search log-probabilities, as Hugging Face does,
    so options that edit scores act differently in the two.
    """
    search = Search(
        decoder,
        options,
        source_ids,
        prompts,
        budget=budget,
        max_positions=max_positions,
        callbacks=callbacks,
        recorder=recorder,
    )
    found = dict(search)
    return [found[document] for document in range(len(prompts))]


def pad_sequences(
    hypotheses: Sequence[Sequence[Hypothesis]], options: GenerationConfig, callbacks: Callbacks | None = None
) -> Tensor:
    """Lay hypotheses out as transformers returns them: [documents * num_return_sequences, longest] int64.

    Hugging Face fills greedy rows with the padding token, but beam rows with the first end token where that padding
    token is 0, which its code takes for unset; without any end token it fills beam rows with -1. Rows of groups and of
    constrained beams are filled like greedy ones.
    """
    rows = [hypothesis.tokens for document in hypotheses for hypothesis in document]
    width = max((len(row) for row in rows), default=0)
    pad = options.pad_token_id
    fill = options.fill_token
    if options.num_beams > 1 and not has_own_pools(options, callbacks or Callbacks()):
        fill = (pad or options.eos_ids[0]) if options.eos_ids else -1
    padded = [row + [fill] * (width - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.int64).reshape(len(rows), width)
