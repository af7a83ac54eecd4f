"""What all choices share that do more than the fast ones: own processors, draws, stopping rules, and who is told of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pegasus_batch.config import GenerationConfig
from pegasus_batch.generation.callbacks import Callbacks
from pegasus_batch.generation.processors import EditPlanner
from pegasus_batch.generation.recording import Recorder
from pegasus_batch.generation.sampling import RandomStreams, warpers
from pegasus_batch.generation.stopping import StoppingRules


class Steering:
    """The means of one search, which treat every document as if it were alone."""

    def __init__(
        self,
        options: GenerationConfig,
        callbacks: Callbacks,
        source_ids: Sequence[Sequence[int]],
        planner: EditPlanner,
        recorder: Recorder | None,
    ) -> None:
        self.planner = planner
        self.rules = StoppingRules(options, callbacks)
        self.streams = RandomStreams(options.seed, source_ids)
        self.constraints = callbacks.constraints
        self._processors = callbacks.logits_processor
        self._warpers = warpers(options) if options.do_sample else []
        self._streamer, self._fill, self._n_documents = callbacks.streamer, options.fill_token, len(source_ids)
        self._recorder = recorder

    def further(self, sequences: Tensor, lengths: Tensor) -> Callable[[Tensor], Tensor]:
        """Return what changes scores [B * n, V] after the edits; sequences [B, n, >= length], lengths [B]."""

        def change(scores: Tensor) -> Tensor:
            if self._processors:
                own = [
                    self._process(ids[:, :length], rows)
                    for ids, length, rows in zip(
                        sequences, lengths.tolist(), scores.unflatten(0, (len(sequences), -1)), strict=True
                    )
                ]
                scores = torch.cat(own)
            for warper in self._warpers:
                scores = warper(scores)
            return scores

        return change

    def _process(self, ids: Tensor, scores: Tensor) -> Tensor:
        for processor in self._processors:
            changed = processor(ids, scores)
            if changed.shape != scores.shape:
                raise ValueError(f"{processor!r} returned {list(changed.shape)} for scores {list(scores.shape)}")
            scores = changed
        return scores

    def ended(self, document: int, ids: Tensor, scores: Tensor) -> Tensor:
        """Tell which rows of ids [R, T] the rules end; scores [n, V] of this step."""
        known = self._recorder.scores if self._recorder is not None else None
        so_far = None if known is None else (*known.get(document, ()), scores)
        return self.rules.ended(document, ids, so_far)

    def stream(self, documents: Sequence[int], tokens: Tensor) -> None:
        """Tell the streamer of the newest tokens [B, n] of the running documents; the others get padding."""
        if self._streamer is not None:
            rows = torch.full((self._n_documents, tokens.shape[1]), self._fill)
            rows[list(documents)] = tokens.cpu()
            self._streamer.put(rows.flatten())
