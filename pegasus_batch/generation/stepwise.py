"""The search of documents whose every step is decided on the host: any option, any decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from pegasus_batch.config import GenerationConfig
from pegasus_batch.generation.choice import BeamChoice, Hypothesis, processed
from pegasus_batch.generation.modes import Choice
from pegasus_batch.generation.processors import EditPlanner, Edits
from pegasus_batch.generation.recording import Recorder


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


class Stepwise:
    """The running documents of a search on a decoder of rows, which come and go."""

    n_places = math.inf

    def __init__(
        self,
        decoder: Decoder,
        options: GenerationConfig,
        planner: EditPlanner,
        choice: Choice,
        prompt_length: int,
        recorder: Recorder | None = None,
    ) -> None:
        self._decoder, self._device = decoder, decoder.device
        self._options, self._planner, self._choice, self._recorder = options, planner, choice, recorder
        self._prompt_length = prompt_length
        self.documents: list[int] = []  # the numbers of those that run
        self._widths: list[int] = []  # rows of each
        self._lengths: list[int] = []  # tokens of each, prompt included
        self._new = torch.zeros(0, prompt_length, dtype=torch.int64, device=decoder.device)  # prompts not yet fed

    def start(self) -> None:
        """Forget all documents."""
        self._decoder.start(self._choice.n_beams)

    def admit(self, documents: Sequence[int], prompts: Tensor) -> None:
        """Begin documents with their prompts [n, P]."""
        self._decoder.admit(documents)
        self._choice.add(prompts)
        self.documents += documents
        self._widths += [1] * len(documents)
        self._lengths += [self._prompt_length] * len(documents)
        self._new = prompts

    def advance(self) -> list[tuple[int, list[Hypothesis]]]:
        """Go one step further; returns the documents that have finished."""
        logits = self._next_logits()
        lengths, documents = torch.tensor(self._lengths), torch.tensor(self.documents)
        n_beams = self._choice.n_beams
        edits = self._planner.edits(
            self._choice.sequences.flatten(0, 1)[:, : max(self._lengths)],
            documents.repeat_interleave(n_beams),
            lengths.repeat_interleave(n_beams),
        )
        done = self._choice.choose(logits, edits, lengths.to(self._device), self.documents).tolist()
        self._record(logits, edits)
        self._lengths = [length + 1 for length in self._lengths]
        finished = [row for row, ended in enumerate(done) if ended]
        found = [(self.documents[row], self._choice.hypotheses(row, logits)) for row in finished]
        if finished:
            if self._recorder is not None:
                self._recorder.finish(found)
            self._keep([row for row, ended in enumerate(done) if not ended])
        return found

    def _next_logits(self) -> Tensor:
        """Feed every running document's newest tokens; returns the logits [B * n_beams, V] that follow."""
        new, self._new = self._new, self._new[:0]
        n_new, n_beams = len(new), self._choice.n_beams
        n_old = len(self.documents) - n_new
        if n_new == 0 and set(self._widths) == {n_beams}:  # nearly every step
            first = torch.arange(0, n_old * n_beams, n_beams, device=self._device)
            rows = (self._choice.parents + first[:, None]).flatten()
            return self._decoder.step(self._choice.tokens.flatten(), rows, self._widths)
        widths = torch.tensor(self._widths, device=self._device)
        begins = widths.cumsum(0) - widths
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
            plain = logits.float()
            scores = processed(
                plain.log_softmax(-1) if isinstance(self._choice, BeamChoice) else plain, edits, self._options
            )
        self._recorder.record(self.documents, scores, logits)
        if isinstance(self._choice, BeamChoice):
            self._recorder.follow(self.documents, self._choice.moves)

    def _keep(self, rows: list[int]) -> None:
        self.documents, self._widths, self._lengths = (
            [values[row] for row in rows] for values in (self.documents, self._widths, self._lengths)
        )
        self._decoder.keep(rows)
        self._choice.keep(torch.tensor(rows, dtype=torch.int64, device=self._device))
