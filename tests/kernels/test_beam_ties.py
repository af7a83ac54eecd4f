"""beam_step where nearly everything ties: few different logits, equal beams, rows without a distribution."""

from __future__ import annotations

import math

import pytest
import torch

from pegasus_batch import kernels
from pegasus_batch.kernels import native
from pegasus_batch.kernels.reference import ADD, BANISHED, SET
from tests.kernels.steps import INF, Step, assert_as_specified, coarse_logits, pad_rows, random_edits

DTYPES = [torch.float32, torch.bfloat16, *([torch.float16] if native.emulated else [])]


def coarse_step(seed: int, vocabulary: int, dtype: torch.dtype) -> Step:
    random = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=random))

    def coarse(*shape: int) -> torch.Tensor:
        return torch.randint(-3, 1, shape, generator=random).float()

    documents, beams, n_eos = pick(1, 4), pick(1, 7), pick(0, 4)
    rows = documents * beams
    logits = coarse_logits(rows, vocabulary, random)
    for kind, row in zip((math.nan, INF, -INF), torch.randperm(max(rows, 3), generator=random).tolist(), strict=False):
        if pick(0, 4) == 0 and row < rows:
            logits[row, torch.rand(vocabulary, generator=random) < (1.0 if kind == -INF and seed % 2 else 0.3)] = kind
    renormalize = pick(0, 3) == 0
    # After different edits, equal sums are equal up to rounding alone: such beams must not tie.
    scores = torch.randn(documents, beams, generator=random) if renormalize else coarse(documents, beams)
    scores[:, pick(0, beams + 1) :] = [BANISHED, -INF, math.nan][pick(0, 3)]
    finished = torch.rand(documents, beams, generator=random) < 0.5
    pool = coarse(documents, beams).masked_fill(~finished, BANISHED).sort(dim=1, descending=True, stable=True)
    return Step(
        logits=pad_rows(logits, pick(0, 3), dtype),
        scores=scores,
        edits=random_edits(rows, vocabulary, random, most=[0, 4, 60][pick(0, 3)]),
        forced={row: pick(0, vocabulary) for row in range(rows) if pick(0, 6) == 0},
        pool_scores=pool.values,
        pool_finished=finished.gather(1, pool.indices),
        open=torch.rand(documents, generator=random) < 0.8,
        n_new=torch.randint(1, 6, (documents,), generator=random, dtype=torch.int32),
        max_new=torch.randint(4, 9, (documents,), generator=random, dtype=torch.int32),
        eos=tuple(torch.randperm(vocabulary, generator=random)[: min(n_eos, vocabulary - 1)].tolist()),
        length_penalty=[1.0, 0.0, -0.5, 2.0][pick(0, 4)],
        early_stopping=pick(0, 3),
        renormalize=renormalize,
    )


@pytest.mark.parametrize("logits_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocabulary", [5, 40, 1024, 2600])
def test_random_ties(logits_dtype, vocabulary):
    for seed in range(60):
        assert_as_specified(coarse_step(seed, vocabulary, logits_dtype))


@pytest.mark.parametrize("logits_dtype", DTYPES, ids=str)
def test_more_equal_candidates_than_are_kept(logits_dtype):
    """A plateau of a few thousand tokens over several beams, chunks and edits; some stand out above it."""
    for seed in range(6):
        random = torch.Generator().manual_seed(seed)
        plateau = torch.rand(8, 3000, generator=random) < 0.5
        logits = torch.where(plateau, 2.0, torch.randn(8, 3000, generator=random).clamp(max=1))
        logits[1::2] = logits[::2]
        for row in range(8):
            logits[row, torch.randint(0, 3000, (seed,), generator=random)] = 5.0
        edits = random_edits(8, 3000, random, most=300)
        step = Step(logits.to(logits_dtype), torch.zeros(2, 4), edits=edits, eos=tuple(range(seed)))
        assert_as_specified(step)


@pytest.mark.parametrize("n_edits", [1, 257, 4096, 5000])
def test_many_edits_of_a_row(n_edits):
    """More than a block sorts at once in shared memory; every token comes several times, in no order."""
    random = torch.Generator().manual_seed(n_edits)
    tokens = torch.randint(0, n_edits // 3 + 1, (n_edits,), generator=random).mul(7).remainder(6000).tolist()
    edits = [(token, [ADD, SET][i % 7 == 0], [0.25, -4.0][i % 7 == 0] * (1 + i % 3)) for i, token in enumerate(tokens)]
    logits = torch.randn(4, 6000, generator=random)
    step = Step(logits, torch.tensor([[0.0, -0.5], [-0.25, 0.0]]), edits={1: edits, 2: edits[::-1]})
    got = assert_as_specified(step)
    assert n_edits == 1 or set(got["tokens"].flatten().tolist()) & set(tokens)


def test_the_first_step_of_a_forced_search():
    """Every beam is forced and all but one has no score: nearly all candidates are -inf, filled up in order."""
    for eos in ((), (2,), tuple(range(8))):
        scores = torch.tensor([[0.0] + [BANISHED] * 3] * 2)
        step = Step(torch.randn(8, 1100), scores, forced=dict.fromkeys(range(8), 700), eos=eos)
        got = assert_as_specified(step)
        assert got["tokens"][0].tolist() == [700] * 4
        assert got["parents"][0].tolist() == [0, 1, 2, 3]


def test_many_candidates():
    """32 beams with 8 end-of-sequence ids need 288 candidates, most of them from the one beam that has begun."""
    torch.manual_seed(4)
    scores = torch.full((1, 32), BANISHED)
    scores[0, 0] = 0.0
    got = assert_as_specified(Step(torch.randn(32, 5000), scores, eos=tuple(range(8))))
    assert got["parents"].tolist() == [[0] * 32]
    assert_as_specified(Step(torch.randn(32, 5000), torch.randn(1, 32), eos=tuple(range(8)), renormalize=True))


@pytest.mark.skipif(not native.emulated, reason="the CPU kernel has no such limit")
def test_more_candidates_than_a_block_holds():
    step = Step(torch.randn(600, 30), torch.randn(1, 600))
    with pytest.raises(ValueError, match="1200 candidates wanted, but on CUDA there is room for 1024"):
        step.run()
    got, wanted = kernels.beam_step(*step.arguments()), step.specified()
    assert torch.equal(got[2], wanted["tokens"])


@pytest.mark.skipif(not native.emulated, reason="the CPU kernel keeps nothing there")
def test_more_chunks_than_shared_memory_holds():
    torch.manual_seed(6)
    logits = torch.randn(40, 79 * 1024 + 5).to(torch.bfloat16)
    assert_as_specified(Step(logits, torch.randn(1, 40), edits={3: [(79 * 1024, SET, 0.0)]}))
