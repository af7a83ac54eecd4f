from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pegasus_batch import kernels
from pegasus_batch.kernels import native, reference
from pegasus_batch.kernels.reference import ADD, DECAY, PENALIZE, SET
from tests.kernels.steps import INF, coarse_logits, edit_arguments, pad_rows, random_edits

Edit = tuple[int, int, float]
RUNS = [reference.greedy_step]
if native.emulated:
    RUNS.append(native.greedy_step)


def greedy(
    run, logits: Tensor, edits: dict[int, list[Edit]] | None = None, forced: dict[int, int] | None = None, again=False
):
    arguments = edit_arguments(len(logits), edits or {}, forced or {})
    return run(logits, *arguments, again)


@pytest.fixture(params=RUNS, ids=["specified", "native"][: len(RUNS)])
def run(request):
    """Every implementation that there is: the specification, and the CUDA kernels where they are emulated."""
    return request.param


def test_the_best_token_and_its_log_probability(run):
    logits = torch.tensor([[0.1, 0.3, 0.2, 0.4], [0.5, 0.125, 0.125, 0.25]]).log() + 7
    tokens, gains, broken = greedy(run, logits)
    assert tokens.dtype == torch.int32 and gains.dtype == torch.float64
    assert tokens.tolist() == [3, 0]
    assert gains.tolist() == pytest.approx([math.log(0.4), math.log(0.5)], abs=1e-6)
    assert broken.tolist() == [False, False]


@pytest.mark.parametrize(
    ("edits", "token", "score"),
    [
        ([(1, SET, 3.0)], 1, 3.0),
        ([(3, PENALIZE, 4.0)], 2, 1.0),
        ([(0, PENALIZE, 0.125), (0, ADD, 9.0)], 0, 8.875),  # negative: -1 * 0.125 + 9
        ([(2, ADD, 1.5)], 2, 2.5),
        ([(0, DECAY, 4.0)], 0, 3.0),  # -1 + |-1| * 4
        ([(3, SET, -INF), (3, ADD, 9.0), (3, PENALIZE, 0.5), (3, DECAY, 9.0)], 2, 1.0),
        ([(3, ADD, 1.0), (0, SET, 2.5), (3, PENALIZE, 2.0)], 0, 2.5),  # (2 + 1) / 2
    ],
)
@pytest.mark.parametrize("again", [False, True])
def test_edits_change_the_logits_themselves(run, edits, token, score, again):
    """Hugging Face's greedy search edits logits, beam search log-probabilities: the one divides where the other multiplies."""
    logits = torch.tensor([[-1.0, 0.0, 1.0, 2.0]])
    changed = reference.apply_edits(logits, *edit_arguments(1, {0: edits}, {}))
    assert changed[0, token].item() == score
    tokens, gains, _ = greedy(run, logits, {0: edits}, again=again)
    assert tokens.item() == token
    assert gains.item() == pytest.approx(score - math.log(sum(math.exp(x) for x in changed[0].tolist())), abs=1e-6)


def test_the_first_of_equal_logits_wins(run):
    logits = torch.full((3, 3000), -2.0)
    logits[0, [2999, 1500, 1024]] = 5.0
    logits[1, [2048, 2047]] = 5.0
    edits = {1: [(2047, SET, 4.0), (2050, SET, 5.0)], 2: [(2040, ADD, 7.0), (5, SET, 5.0), (7, ADD, 7.0)]}
    assert greedy(run, logits, edits)[0].tolist() == [1024, 2048, 5]
    assert greedy(run, logits)[0].tolist() == [1024, 2047, 0]


def test_forced_tokens_gain_nothing_and_may_be_edited(run):
    logits = torch.full((3, 1100), math.nan)
    tokens, gains, broken = greedy(
        run, logits, {1: [(1030, SET, -INF), (3, SET, 2.0)], 2: [(4, SET, -INF)]}, {0: 1099, 1: 1030, 2: 7}
    )
    assert tokens.tolist() == [1099, 3, 7]
    assert gains.tolist() == [0.0, 0.0, 0.0]
    assert broken.tolist() == [True, True, True]  # the model gave no number


@pytest.mark.parametrize("again", [False, True])
def test_rows_without_a_distribution(run, again):
    """NaN counts as the largest, unless an edit replaces it; a row that is banned throughout takes its first token."""
    logits = torch.randn(6, 1100)
    logits[0, [1040, 1050]] = math.nan
    logits[1, 1040] = math.nan
    logits[2] = -INF
    logits[3, 60] = INF
    logits[5] = -INF
    edits = {
        1: [(1040, SET, -INF), (9, SET, 50.0)],
        4: [(token, SET, -INF) for token in range(1100)],
        5: [(8, ADD, 1.0), (1030, SET, math.nan)],
    }
    tokens, gains, broken = greedy(run, logits, edits, again=again)
    # Once normalised, a row with NaN or +inf is NaN throughout.
    assert tokens.tolist() == ([0, 9, 0, 0, 0, 0] if again else [1040, 9, 0, 60, 0, 1030])
    assert gains.isnan().tolist() == [True, False, True, True, True, True]
    assert broken.tolist() == [not again, False, False, False, False, False]


def test_normalising_again_may_tie_what_was_not_tied(run):
    """Log-probabilities are rounded: the best logit and one below it by an ulp become equal, and the first wins."""
    logits = torch.zeros(1, 4096)
    logits[0, 3000] = 2.0**-23
    logits[0, 3001] = 2.0**-22
    assert greedy(run, logits)[0].item() == 3001
    assert greedy(run, logits, again=True)[0].item() == logits.log_softmax(1).argmax().item() == 0


@pytest.mark.skipif(not native.emulated, reason="there is no CPU kernel; PEGASUS_EMULATED_CUDA runs the CUDA one")
@pytest.mark.parametrize("logits_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("vocabulary", [5, 1024, 2500, 9000])
def test_random_rows(logits_dtype, vocabulary):
    """Few different logits, so that most maxima are ties; several edits of one token; rows at any stride."""
    for seed in range(12):
        random = torch.Generator().manual_seed(seed)
        rows = 1 + seed % 4
        logits = pad_rows(coarse_logits(rows, vocabulary, random), seed % 3, logits_dtype)
        edits = random_edits(rows, vocabulary, random, most=5000 if seed == 7 else 40)
        forced = {0: seed % vocabulary} if seed % 5 == 0 else {}
        for again in (False, True):
            got = greedy(native.greedy_step, logits, edits, forced, again)
            wanted = greedy(reference.greedy_step, logits, edits, forced, again)
            assert torch.equal(got[0], wanted[0])
            torch.testing.assert_close(got[1], wanted[1], rtol=1e-6, atol=2e-6, equal_nan=True)
            assert torch.equal(got[2], wanted[2])


def test_what_runs_where():
    logits = torch.randn(2, 7)
    assert greedy(kernels.greedy_step, logits)[0].tolist() == logits.argmax(1).tolist()
    assert greedy(kernels.greedy_step, logits.double())[0].tolist() == logits.argmax(1).tolist()


@pytest.mark.skipif(not native.emulated, reason="there is no CPU kernel; PEGASUS_EMULATED_CUDA runs the CUDA one")
def test_opcheck():
    arguments = edit_arguments(2, {0: [(3, SET, 1.0)]}, {})
    torch.library.opcheck(torch.ops.pegasus_batch.greedy_step.default, (torch.randn(2, 40), *arguments, False))
