"""The search over any decoder, each document as if it were alone in its batch."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from pegasus_batch.config import GenerationConfig
from pegasus_batch.generation.callbacks import Callbacks
from pegasus_batch.generation.choice import BeamChoice, GreedyChoice, Hypothesis
from pegasus_batch.generation.modes import has_own_pools, make_choice
from pegasus_batch.generation.processors import EditPlanner
from pegasus_batch.generation.recording import Recorder
from pegasus_batch.generation.slots import SlotDecoder, Slots
from pegasus_batch.generation.stepwise import Decoder, Stepwise

_REFILL = 1 / 8  # of the budget: so much must be free before documents join, and so far the last ones may exceed it


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
        document. ``budget``: source tokens decoded at a time, on a CPU up to an eighth more if these are the last; a
        longer document is decoded alone. ``max_positions`` is the decoder's position limit, if it has one. ``callbacks``:
        what the options cannot say. ``recorder`` is told of every step.
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
        self.waiting, self._device = deque(range(len(prompts))), decoder.device
        self._sizes = [len(ids) for ids in source_ids]
        self._rest = sum(self._sizes)  # of those that wait
        self._budget = math.inf if budget is None else budget
        if not prompts:
            return
        callbacks = callbacks or Callbacks()
        if callbacks.streamer is not None and budget is not None:
            raise ValueError("a streamer is told of all documents step by step: pass no budget")
        self._prompts = torch.tensor([list(ids) for ids in prompts], dtype=torch.int64)
        length = lengths.pop()
        planner = EditPlanner(
            options,
            source_ids,
            length,
            vocab_size=decoder.vocab_size,
            max_positions=max_positions,
            prefix_allowed_tokens_fn=callbacks.prefix_allowed_tokens_fn,
        )
        choice = make_choice(options, callbacks, source_ids, length, planner, recorder, decoder.device)
        plain = type(choice) in (BeamChoice, GreedyChoice) and recorder is None
        self._running: Stepwise | Slots
        if plain and Slots.serves(decoder, planner, length):
            self._running = Slots.of(cast("SlotDecoder", decoder), options, planner)
        else:
            self._running = Stepwise(decoder, options, planner, choice, length, recorder)

    @torch.no_grad()
    def __iter__(self) -> Iterator[tuple[int, list[Hypothesis]]]:
        """Search, and yield what has finished."""
        if not self.waiting:
            return
        self._running.start()
        while self.waiting or self._running.documents:
            joining = self._joining()
            if joining:
                self._running.admit(joining, self._prompts[joining].to(self._device, non_blocking=True))
            yield from self._running.advance()

    def _joining(self) -> list[int]:
        """Take the documents that join now from those that wait: as many as fit beside the running ones."""
        running = self._running.documents
        used = sum(self._sizes[document] for document in running)
        places = self._running.n_places - len(running)
        # Encoding a document or two at a time does not pay; and a longer prompt is fed to all of its batch at once.
        if running and (
            self._budget - used < self._budget * _REFILL
            or places < min(len(self.waiting), self._running.n_places * _REFILL)
            or self._prompts.shape[1] > 1
        ):
            return []
        budget = self._budget
        if isinstance(self._running, Stepwise) and used + self._rest <= budget * (1 + _REFILL):
            budget = math.inf  # else a few would be left for a batch of their own, and a small one takes nearly as long
        joining: list[int] = []
        while self.waiting and len(joining) < places:
            size = self._sizes[self.waiting[0]]
            if (running or joining) and used + size > budget:
                break
            used += size
            self._rest -= size
            joining.append(self.waiting.popleft())
        return joining


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
