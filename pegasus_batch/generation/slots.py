"""The search of documents in slots: every step is decided on the device, and the host looks on from a distance.

What a step needs lies in tensors whose shapes never change, so that a step can be recorded once and replayed. A document
that has finished stays as it is until the host has seen it, a step or two later; meanwhile it changes nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pegasus_batch.config import GenerationConfig
from pegasus_batch.generation.choice import EARLY_STOPPING, EMPTY_SCORE, Hypothesis
from pegasus_batch.generation.processors import EditPlanner
from pegasus_batch.kernels import beam_step, extend_beams, greedy_step

# What a step chooses: the nine results of ``beam_step``.
_Chosen = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]

# Steps that the device has before it when the host waits for what one of them has brought.
_AHEAD = 1


class SlotDecoder(Protocol):
    """What the search in slots drives: S places for documents, each of K rows, R = S * K; row s * K + k is beam k of slot s."""

    @property
    def vocab_size(self) -> int:
        """V, the number of logits that count."""

    @property
    def device(self) -> torch.device:
        """Where all of it happens."""

    @property
    def has_slots(self) -> bool:
        """Whether there are any."""

    @property
    def source_lengths(self) -> Tensor:
        """Return the tokens [S] int32 of the source in each slot; 0 hides it."""

    @property
    def places(self) -> object:
        """Return what changes when the decoder's memory has moved, so that what was recorded is out of date."""

    last_slots: object  # what a search leaves for the next one

    def open_slots(self, n_beams: int, n_times: int) -> int:
        """Make slots of ``n_beams`` rows with room for ``n_times`` tokens each; returns their number S."""

    def clear_slots(self) -> None:
        """Empty all slots."""

    def admit_to_slots(self, documents: Sequence[int], slots: Sequence[int]) -> None:
        """Encode the documents of these numbers and put each into a slot that is free."""

    def leave_slots(self, slots: Sequence[int]) -> None:
        """Free the slots of documents that have finished."""

    def step_slots(self, tokens: Tensor, ancestry: Tensor, n_keys: Tensor) -> Tensor:
        """Feed one token per row [R] int32 and return the logits [R, V or more] after it.

        n_keys [R] int32: a row's tokens, this one included; 0 for a row that is not there, whose logits mean nothing.
        ancestry [R, n_times] int32: the row that wrote each of them.
        """

    def recorded(self, step: Callable[[], None]) -> Callable[[], None]:
        """Return what repeats ``step``, which reads and writes device memory only, at the least cost."""


@dataclass
class _State:
    """The documents in S slots with K beams each, up to L tokens long; ``extend_beams`` says what changes how.

    totals [S] float64: of greedy search, sums of log-probabilities; broken [S] bool: NaN logits ended the search.
    """

    active: Tensor
    lengths: Tensor
    scores: Tensor
    pool_scores: Tensor
    pool_finished: Tensor
    open: Tensor
    sequences: Tensor
    pool_sequences: Tensor
    pool_lengths: Tensor
    next_tokens: Tensor
    ancestry: Tensor
    n_keys: Tensor
    totals: Tensor
    broken: Tensor

    @classmethod
    def empty(cls, slots: int, beams: int, max_length: int, device: torch.device) -> _State:
        """Return slots without documents."""

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        pool, flags = (slots, beams), {"dtype": torch.bool}
        return cls(
            active=zeros(slots, **flags),
            lengths=zeros(slots),
            scores=zeros(*pool, dtype=torch.float32),
            pool_scores=zeros(*pool, dtype=torch.float32),
            pool_finished=zeros(*pool, **flags),
            open=zeros(slots, **flags),
            sequences=zeros(*pool, max_length),
            pool_sequences=zeros(*pool, max_length),
            pool_lengths=zeros(*pool),
            next_tokens=zeros(slots * beams),
            ancestry=zeros(slots * beams, max_length),
            n_keys=zeros(slots * beams),
            totals=zeros(slots, dtype=torch.float64),
            broken=zeros(slots, **flags),
        )

    def clear(self) -> None:
        """Empty every slot."""
        self.active.fill_(False)
        self.n_keys.zero_()

    def put(self, slots: Tensor, first_tokens: Tensor) -> None:
        """Begin documents with one token each [n] in these slots [n]."""
        beams = self.scores.shape[1]
        rows = (slots[:, None] * beams + torch.arange(beams, device=slots.device)).flatten()
        self.scores[slots] = EMPTY_SCORE  # beams start equal, so only the first may be continued
        self.scores[slots, 0] = 0.0
        self.pool_scores[slots], self.pool_finished[slots] = EMPTY_SCORE, False
        for sequences in (self.sequences, self.pool_sequences):
            sequences[slots] = 0
            sequences[slots, :, 0] = first_tokens[:, None]
        self.pool_lengths[slots], self.lengths[slots] = 1, 1
        self.next_tokens[rows] = first_tokens.repeat_interleave(beams)
        self.ancestry[rows, 0] = rows.int()
        self.n_keys[rows] = 1
        self.totals[slots], self.broken[slots] = 0.0, False
        self.open[slots], self.active[slots] = True, True


class _Seen(NamedTuple):
    """Whether documents have finished, and with what: active, broken [S]; n sequences [S, n, L], their lengths and scores."""

    active: Tensor
    broken: Tensor
    sequences: Tensor
    lengths: Tensor
    scores: Tensor


@dataclass
class _Look:
    """What the slots held after some step, and whose it was; on its way to the host."""

    documents: list[int | None]
    seen: _Seen
    arrived: torch.cuda.Event | None

    @classmethod
    def at(cls, documents: list[int | None], seen: _Seen) -> _Look:
        """Begin to copy what is on the device; ``wait`` comes before reading."""
        if seen.active.device.type != "cuda":
            return cls(documents, _Seen(*(x.clone() for x in seen)), None)
        copies = _Seen(*(torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in seen))
        for copy, x in zip(copies, seen, strict=True):
            copy.copy_(x, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return cls(documents, copies, arrived)

    def wait(self) -> None:
        """Return when everything has arrived."""
        if self.arrived is not None:
            self.arrived.synchronize()


class Slots:
    """The running documents of a search on a decoder with slots."""

    def __init__(self, decoder: SlotDecoder, options: GenerationConfig, planner: EditPlanner) -> None:
        """Open slots for documents whose prompts have one token; ``serves`` must hold."""
        tables = planner.device_tables(decoder.device)
        assert tables is not None
        self._decoder, self._options, self._device, self._tables = decoder, options, decoder.device, tables
        self._n_beams, self._max_length = options.num_beams, planner.max_length
        n_slots = decoder.open_slots(self._n_beams, self._max_length)
        self.n_places: float = n_slots
        self._eos_ids = torch.tensor(options.eos_ids, dtype=torch.int32, device=decoder.device)
        self._state = _State.empty(n_slots, self._n_beams, self._max_length, decoder.device)
        self._edits = tables.room(n_slots * self._n_beams)
        self._repeat: Callable[[], None] | None = None
        self._recorded_for: object = None

    @classmethod
    def of(cls, decoder: SlotDecoder, options: GenerationConfig, planner: EditPlanner) -> Slots:
        """Return the slots that the last search used, if it had the same options, else new ones."""
        last = decoder.last_slots
        if not (isinstance(last, cls) and last._options == options and last._max_length == planner.max_length):
            decoder.last_slots = None  # before new ones are made
            decoder.last_slots = last = cls(decoder, options, planner)
        return last

    @staticmethod
    def serves(decoder: Any, planner: EditPlanner, prompt_length: int) -> bool:
        """Tell whether the device can carry out a search alone."""
        return (
            getattr(decoder, "has_slots", False)
            and prompt_length == 1
            and planner.device_tables(decoder.device) is not None
        )

    def start(self) -> None:
        """Forget all documents."""
        self._decoder.clear_slots()
        self._state.clear()
        self._documents: list[int | None] = [None] * int(self.n_places)
        self._looks: deque[_Look] = deque()
        self._record()

    @property
    def documents(self) -> list[int]:
        """Return the numbers of the running documents."""
        return [number for number in self._documents if number is not None]

    def admit(self, documents: Sequence[int], prompts: Tensor) -> None:
        """Begin documents with their prompts [n, 1], at most as many as there are free places."""
        free = [slot for slot, number in enumerate(self._documents) if number is None][: len(documents)]
        self._decoder.admit_to_slots(documents, free)
        for slot, number in zip(free, documents, strict=True):
            self._documents[slot] = number
        self._state.put(torch.tensor(free).to(self._device, non_blocking=True), prompts[:, 0].int())

    def advance(self) -> list[tuple[int, list[Hypothesis]]]:
        """Go one step further; returns the documents that are known to have finished."""
        self._record()()
        self._looks.append(_Look.at(list(self._documents), self._seen()))
        if len(self._looks) <= _AHEAD:
            return []
        look = self._looks.popleft()
        look.wait()
        # A slot may have been given to another document since; that one was not active in this look.
        ended = [
            slot
            for slot, (active, number) in enumerate(zip(look.seen.active.tolist(), look.documents, strict=True))
            if not active and number is not None and number == self._documents[slot]
        ]
        found = [
            (number, self._hypotheses(look.seen, slot))
            for slot in ended
            if (number := look.documents[slot]) is not None
        ]
        for slot in ended:
            self._documents[slot] = None
        if ended:
            self._decoder.leave_slots(ended)
        return found

    def _record(self) -> Callable[[], None]:
        if self._repeat is None or self._recorded_for != self._decoder.places:
            self._repeat, self._recorded_for = self._decoder.recorded(self._step), self._decoder.places
        return self._repeat

    # ---- on the device

    def _step(self) -> None:
        state, edits, tables = self._state, self._edits, self._tables
        vocabulary = self._decoder.vocab_size
        logits = self._decoder.step_slots(state.next_tokens, state.ancestry, state.n_keys)[:, :vocabulary]
        if not tables.idle:
            tables.plan(state.sequences, state.lengths, edits)
        chosen = self._choose_beams(logits) if self._n_beams > 1 else self._choose_greedily(logits)
        extend_beams(
            *chosen, state.active, state.lengths, state.scores, state.pool_scores, state.pool_finished, state.open,
            state.sequences, state.pool_sequences, state.pool_lengths, state.next_tokens, state.ancestry, state.n_keys,
            self._decoder.source_lengths,
        )  # fmt: skip

    def _choose_beams(self, logits: Tensor) -> _Chosen:
        state, edits, options = self._state, self._edits, self._options
        chosen = beam_step(
            logits, state.scores, state.pool_scores, state.pool_finished, state.open,
            *edits,
            state.lengths, torch.full_like(state.lengths, self._max_length - 1),
            self._eos_ids, options.length_penalty, EARLY_STOPPING[options.early_stopping], options.renormalize_logits,
        )  # fmt: skip
        # A network that has come to NaN has it in every logit of a row.
        empty = chosen[8] & ~chosen[4].any(1) & state.active
        state.broken |= empty & logits[:, 0].view(-1, self._n_beams).isnan().any(1)
        return chosen

    def _choose_greedily(self, logits: Tensor) -> _Chosen:
        state, edits = self._state, self._edits
        tokens, gains, broken = greedy_step(
            logits, *edits, self._options.renormalize_logits
        )  # fmt: skip
        state.totals += torch.where(state.active, gains.double(), 0.0)
        state.broken |= broken & state.active
        done = broken | torch.isin(tokens, self._eos_ids) | (state.lengths + 1 == self._max_length)
        nothing = torch.zeros_like(tokens)[:, None]
        return (
            state.scores, nothing, tokens[:, None], state.pool_scores, state.pool_finished, nothing, nothing - 1,
            state.open, done,
        )  # fmt: skip

    # ---- what the host sees

    def _seen(self) -> _Seen:
        state, n_best = self._state, self._options.num_return_sequences
        if self._n_beams == 1:
            return _Seen(state.active, state.broken, state.sequences, state.lengths[:, None], state.totals[:, None])
        pool = (x[:, :n_best] for x in (state.pool_sequences, state.pool_lengths, state.pool_scores))
        return _Seen(state.active, state.broken, *pool)

    def _hypotheses(self, seen: _Seen, slot: int) -> list[Hypothesis]:
        broken, lengths, scores = bool(seen.broken[slot]), seen.lengths[slot].tolist(), seen.scores[slot].tolist()
        if self._n_beams == 1:
            # A token picked from NaN says nothing, so the sequence ends before it.
            lengths = [length - broken for length in lengths]
            divisor = (lengths[0] - 1) ** self._options.length_penalty if not broken else 1.0
            scores = [score / divisor for score in scores]
        return [
            Hypothesis(tokens[:length], math.nan if broken else score)
            for tokens, length, score in zip(seen.sequences[slot].tolist(), lengths, scores, strict=True)
        ]
