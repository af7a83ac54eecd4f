"""What a search remembers of its steps for whoever asked: scores, logits, and the beams that a sequence came through."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pegasus_batch.config import GenerationConfig
from pegasus_batch.generation.choice import Hypothesis


class Recorder:
    """The steps of every document by its number.

    scores, logits: for each document one [n, V] a step, where wanted. paths: for each of its hypotheses, best first, which
    of the document's beams each token continued; only of beam search.
    """

    def __init__(self, options: GenerationConfig) -> None:
        wanted = options.return_dict_in_generate
        self.scores: dict[int, list[Tensor]] | None = {} if wanted and options.output_scores else None
        self.logits: dict[int, list[Tensor]] | None = {} if wanted and options.output_logits else None
        self.paths: dict[int, list[list[int]]] = {}
        self._running: dict[int, list[list[int]]] = {}

    def record(self, documents: Sequence[int], scores: Tensor | None, logits: Tensor) -> None:
        """Take a step's scores, if they are wanted, and logits [B * n, V] of the running documents."""
        for memory, values in ((self.scores, scores), (self.logits, logits.float())):
            if memory is not None:
                assert values is not None
                for document, rows in zip(documents, values.unflatten(0, (len(documents), -1)), strict=True):
                    memory.setdefault(document, []).append(rows.clone())

    def follow(self, documents: Sequence[int], moves: tuple[Tensor, Tensor]) -> None:
        """Take what a step of beam search did: ``BeamChoice.moves`` [B, K] each."""
        for document, parents, sources in zip(documents, *(move.tolist() for move in moves), strict=True):
            before = self._running.get(document, [[] for _ in parents])
            pool = self.paths.get(document, [[] for _ in parents])
            self._running[document] = [[*before[parent], parent] for parent in parents]
            ended = [[*path, beam] for beam, path in enumerate(before)]
            self.paths[document] = [(pool + ended)[source] for source in sources]

    def finish(self, found: Sequence[tuple[int, Sequence[Hypothesis]]]) -> None:
        """Take the documents that have finished."""
        for document, hypotheses in found:
            self._running.pop(document, None)
            known = [hypothesis.path for hypothesis in hypotheses if hypothesis.path is not None]
            self.paths[document] = (known or self.paths.get(document, []))[: len(hypotheses)]


def laid_out(steps: dict[int, list[Tensor]], n_documents: int) -> tuple[Tensor, ...]:
    """Lay documents' steps out as transformers does: for every step of the longest one [documents * n, ...].

    Documents that have finished by then, which transformers computes on to no end, are 0.
    """
    longest = max((len(found) for found in steps.values()), default=0)
    result = []
    for step in range(longest):
        like = next(found[step] for found in steps.values() if len(found) > step)
        rows = [steps[document][step] if len(steps[document]) > step else None for document in range(n_documents)]
        result.append(torch.cat([torch.zeros_like(like) if row is None else row for row in rows]))
    return tuple(result)


def beam_indices(paths: Sequence[Sequence[Sequence[int]]], n_beams: int, width: int) -> Tensor:
    """Lay the paths of documents' hypotheses out as transformers does: [documents * n, width], -1 behind the end.

    Beams are numbered through the batch: document d's first is d * n_beams.
    """
    rows = [
        [document * n_beams + beam for beam in path] + [-1] * (width - len(path))
        for document, own in enumerate(paths)
        for path in own
    ]
    return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), width)
