"""Beam search whose candidates are drawn, or end by rules of the caller's own: ``beam_step`` in steps that can be reached."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pegasus_batch.config import GenerationConfig
from pegasus_batch.generation.choice import EARLY_STOPPING, BeamChoice, processed
from pegasus_batch.generation.processors import Edits
from pegasus_batch.generation.sampling import draw
from pegasus_batch.generation.steering import Steering
from pegasus_batch.kernels.reference import advance_beams


class CandidateBeamChoice(BeamChoice):
    """The continuations of every beam: the best ones, or with ``do_sample`` drawn ones, from all beams without replacement."""

    def __init__(
        self, options: GenerationConfig, prompt_length: int, max_length: int, device: torch.device, steering: Steering
    ) -> None:
        super().__init__(options, prompt_length, max_length, device)
        self._steering = steering

    def _step(
        self, logits: Tensor, edits: Edits, n_new: Tensor, max_new: Tensor, documents: Sequence[int]
    ) -> tuple[Tensor, ...]:
        beams, options, vocabulary = self._beams, self._options, logits.shape[1]
        lengths = n_new.long() - 1 + self._prompt_length
        further = self._steering.further(beams.sequences, lengths)
        self.scores = scores = processed(logits.float().log_softmax(-1), edits, options, further)
        by_document = scores.unflatten(0, beams.scores.shape)
        sums = (by_document.double() + beams.scores.double()[:, :, None]).flatten(1)
        n_candidates = max(2, 1 + len(self._eos_ids)) * self.n_beams
        chosen = []
        for document, step, own in zip(documents, (n_new - 1).tolist(), sums, strict=True):
            if options.do_sample:
                uniform = self._steering.streams.uniform(document, 0, step, len(own))
                chosen.append(draw(own.nan_to_num(-torch.inf, torch.inf, -torch.inf), uniform, n_candidates))
            else:
                chosen.append(best(own, n_candidates))
        index = torch.stack(chosen)
        parents, tokens = index // vocabulary, index % vocabulary
        hit = torch.isin(tokens, self._eos_ids) | (n_new >= max_new)[:, None]
        if self._steering.rules:
            for row, (document, length) in enumerate(zip(documents, lengths.tolist(), strict=True)):
                ids = torch.cat((beams.sequences[row, parents[row], :length], tokens[row, :, None]), dim=1)
                hit[row] |= self._steering.ended(document, ids, by_document[row])
        ranked = sums.gather(1, index).nan_to_num(-torch.inf, torch.inf, -torch.inf)
        return advance_beams(
            ranked, parents, tokens, hit, beams.pool_scores, beams.pool_finished, beams.open,
            n_new, max_new, options.length_penalty, EARLY_STOPPING[options.early_stopping],
        )  # fmt: skip


def best(values: Tensor, n: int) -> Tensor:
    """Return where the n largest of values [N] are, best first; of equal ones the first, and NaN counts as -inf."""
    values = torch.where(values.isnan(), -torch.inf, values)
    if n > len(values):
        raise ValueError(f"{n} candidates wanted but beams * vocabulary is only {len(values)}: lower num_beams")
    among = (values >= values.topk(n).values[-1]).nonzero()[:, 0]
    return among[values[among].sort(descending=True, stable=True).indices[:n]]
