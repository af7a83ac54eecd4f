"""Whole searches, step by step: the native op and the specification must return the same hypotheses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pegasus_batch.kernels.reference import BANISHED, PENALIZE
from tests.kernels.steps import INF, Step


def search(run, table: Tensor, beams: int, documents: int, **options: object) -> tuple[list, Tensor]:
    """Beam search over a table of logits [step, previous token, V]; returns each document's pool and its scores."""
    steps = table.shape[0]
    sequences = [[[0] for _ in range(beams)] for _ in range(documents)]
    pool: list[list[list[int]]] = [[[] for _ in range(beams)] for _ in range(documents)]
    step = Step(
        torch.empty(0),
        torch.tensor([[0.0] + [BANISHED] * (beams - 1)] * documents),
        max_new=torch.full((documents,), steps, dtype=torch.int32),
        **options,
    )
    done = torch.zeros(documents, dtype=torch.bool)
    final: dict[int, tuple[list, Tensor]] = {}
    for n in range(1, steps + 1):
        last = torch.tensor([[s[-1] for s in rows] for rows in sequences]).view(-1)
        shift = torch.arange(documents).repeat_interleave(beams)[:, None]  # documents differ
        logits = table[n - 1, last].roll(1, dims=1) * (1 + 0.1 * shift) if documents > 1 else table[n - 1, last]
        repeats = {
            row: [(t, PENALIZE, 1.3) for t in dict.fromkeys(s)] for row, s in enumerate(s for d in sequences for s in d)
        }
        step = replace(step, logits=logits, edits=repeats, n_new=torch.full((documents,), n, dtype=torch.int32))
        got = getattr(step, run)()
        for d in range(documents):
            old_pool, old = pool[d], sequences[d]
            pool[d] = [
                old_pool[i] if i < beams else [*old[i - beams], token]
                for i, token in zip(got["pool_source"][d].tolist(), got["pool_tokens"][d].tolist(), strict=True)
            ]
            sequences[d] = [
                [*old[p], t] for p, t in zip(got["parents"][d].tolist(), got["tokens"][d].tolist(), strict=True)
            ]
            if got["done"][d] and not done[d]:
                done[d] = True
                final[d] = (pool[d], got["pool_scores"][d])
        if bool(done.all()):
            break
        step = replace(
            step,
            scores=got["scores"],
            pool_scores=got["pool_scores"],
            pool_finished=got["pool_finished"],
            open=got["open"],
        )
    assert bool(done.all())
    return [final[d][0] for d in range(documents)], torch.stack([final[d][1] for d in range(documents)])


@pytest.mark.parametrize("early_stopping", [0, 1, 2])
@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 0.8, 2.0])
@pytest.mark.parametrize("renormalize", [False, True])
def test_a_whole_search_is_as_specified(early_stopping, length_penalty, renormalize):
    torch.manual_seed(3)
    table = torch.randn(7, 30, 30) * 2
    table[:, :, 1] += 1.5  # ends are frequent enough to fill the pool on the way
    options = {
        "early_stopping": early_stopping,
        "length_penalty": length_penalty,
        "renormalize": renormalize,
        "eos": (1, 5),
    }
    got, scores = search("run", table, 4, 3, **options)
    wanted, wanted_scores = search("specified", table, 4, 3, **options)
    assert got == wanted
    torch.testing.assert_close(scores, wanted_scores, rtol=1e-6, atol=1e-5)
    assert length_penalty > 1 or any(len(h) < 8 for pool in got for h in pool)


def test_a_wide_search_finds_the_best_sequence():
    """With as many beams as prefixes and no heuristic, beam search is exhaustive."""
    torch.manual_seed(5)
    vocabulary, steps = 4, 3
    table = torch.randn(steps, vocabulary, vocabulary)
    log_probs = table.log_softmax(-1).double()
    best: tuple[float, list[int]] = (-INF, [])

    def extend(sequence: list[int], total: float) -> None:
        nonlocal best
        n = len(sequence) - 1
        if n and (sequence[-1] == 1 or n == steps):
            best = max(best, (total / n, sequence))
            return
        for token in range(vocabulary):
            s = log_probs[n, sequence[-1], token].item()
            extend([*sequence, token], total + (s * 1.3 if token in sequence and s < 0 else s))

    extend([0], 0.0)
    for run in ("run", "specified"):
        pool, scores = search(run, table, vocabulary**steps, 1, early_stopping=2)
        assert pool[0][0] == best[1]
        assert scores[0, 0].item() == pytest.approx(best[0], rel=1e-6)
