from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from pegasus_batch.kernels import native, reference
from pegasus_batch.kernels.reference import ADD, BANISHED, DECAY, PENALIZE, SET
from tests.kernels.steps import INF, NAMES, Step, assert_as_specified, ints, random_step


@pytest.mark.parametrize("vocabulary", [5, 37, 1024, 2500])
def test_random_steps(isa, dtype, vocabulary):
    for seed in range(40):
        assert_as_specified(random_step(seed, vocabulary, dtype))


def test_real_vocabulary(isa, dtype):
    """96103 tokens, two documents of eight beams; all the winners of one beam in its last, incomplete chunk."""
    torch.manual_seed(0)
    logits = torch.randn(16, 96103).mul(2)
    logits[3, -20:] += torch.linspace(8, 9, 20)
    step = Step(logits.to(dtype), torch.randn(2, 8), edits={0: [(7, PENALIZE, 2.0)], 9: [(96102, SET, 0.5)]})
    got = assert_as_specified(step)
    assert (got["tokens"][0] > 96080).any()


# ---- order


def test_ties_within_a_row_go_to_the_lower_token(isa):
    logits = torch.full((2, 3000), -2.0)
    logits[0, [2999, 1500, 40, 1024]] = 5.0
    got = assert_as_specified(Step(logits, torch.tensor([[0.0, BANISHED]]), eos=()))
    assert got["tokens"].tolist() == [[40, 1024]]


def test_ties_between_beams_go_to_the_lower_beam_then_the_lower_token(isa):
    """Identical beams: every candidate of beam 1 ties with one of beam 0.

    Edits of beam 1 once broke its ties, because the edited tokens were summed apart and moved the normaliser by an ulp.
    """
    torch.manual_seed(2)
    row = torch.randn(1500)
    first, second = row.topk(2).indices.tolist()
    got = assert_as_specified(Step(row.expand(3, -1).contiguous(), torch.zeros(1, 3), eos=()))
    assert got["parents"].tolist() == [[0, 1, 2]]
    assert got["tokens"].tolist() == [[first] * 3]
    got = assert_as_specified(
        Step(row.expand(2, -1).contiguous(), torch.zeros(1, 2), eos=(), edits={1: [(first, SET, -INF)]})
    )
    assert got["parents"].tolist() == [[0, 0]]
    assert got["tokens"].tolist() == [[first, second]]


def test_an_edited_token_ties_with_untouched_ones(isa):
    """Edited tokens take part outside the chunks, yet in the same order."""
    logits = torch.zeros(1, 2048)
    log_prob = -math.log(2048)
    for token in (0, 1030, 2047):
        step = Step(logits, torch.zeros(1, 1), edits={0: [(token, ADD, 1.0), (token, ADD, -1.0)]}, eos=())
        assert assert_as_specified(step)["tokens"].tolist() == [[0]]
    both = Step(logits, torch.zeros(1, 1), edits={0: [(5, SET, 1.0), (3, SET, 1.0)]}, eos=())
    assert both.run()["tokens"].tolist() == [[3]]
    assert both.run()["scores"].item() == 1.0
    assert Step(logits, torch.zeros(1, 1), eos=()).run()["scores"].item() == pytest.approx(log_prob)


def test_everything_equal(isa, dtype):
    """A mass tie fills every place by beam and token alone."""
    got = assert_as_specified(Step(torch.zeros(8, 3000, dtype=dtype), torch.zeros(2, 4), eos=()))
    assert got["parents"].tolist() == [[0, 0, 0, 0]] * 2
    assert got["tokens"].tolist() == [[0, 1, 2, 3]] * 2


def test_candidates_at_minus_infinity_fill_up_in_order(isa):
    """Fewer possible tokens than places: the rest is -inf, lowest beam and token first, edited tokens included."""
    logits = torch.full((2, 1200), -INF)
    logits[0, 1100] = 1.0
    step = Step(logits, torch.zeros(1, 2), edits={0: [(1, SET, -INF), (0, ADD, 3.0)]}, eos=())
    got = assert_as_specified(step)
    assert got["tokens"].tolist() == [[1100, 0]]
    assert got["scores"].tolist() == [[0.0, -INF]]


@pytest.mark.parametrize("broken", [math.nan, INF])
def test_rows_without_a_distribution(isa, broken):
    """NaN logits count as -inf; a row with +inf, or of -inf alone, cannot be normalised and counts as -inf."""
    torch.manual_seed(1)
    logits = torch.randn(6, 1100)
    logits[0, 3], logits[1], logits[3, 1099] = broken, -INF, broken
    got = assert_as_specified(Step(logits, torch.zeros(2, 3)))
    assert not got["scores"].isnan().any()


@pytest.mark.parametrize("score", [math.nan, INF, -INF])
def test_scores_that_are_not_finite(isa, score):
    assert_as_specified(
        Step(torch.randn(4, 1100), torch.tensor([[score, 0.0], [0.0, score]]), edits={0: [(3, ADD, 1.0)]})
    )


def test_rows_may_be_strided_and_padded(isa, dtype):
    """Logits of a padded vocabulary: what lies between rows is never read."""
    padded = torch.full((4, 1280), math.nan, dtype=dtype)
    padded[:, :1031] = torch.randn(4, 1031).to(dtype)
    step = Step(padded[:, :1031], torch.randn(2, 2))
    got, dense = step.run(), replace(step, logits=padded[:, :1031].contiguous()).run()
    assert all(torch.equal(got[name], dense[name]) for name in NAMES)


def test_documents_do_not_depend_on_their_neighbours(isa, set_threads):
    step = random_step(26, 1500)
    documents, beams = step.scores.shape
    assert (documents, beams) == (3, 4)
    set_threads(1)
    together = step.run()
    set_threads(2)
    again = step.run()
    assert all(torch.equal(together[name], again[name]) for name in NAMES)
    for d in range(documents):
        rows = range(d * beams, (d + 1) * beams)
        alone = replace(
            step,
            logits=step.logits[rows.start : rows.stop],
            scores=step.scores[d : d + 1],
            edits={row - rows.start: step.edits[row] for row in rows},
            forced={row - rows.start: token for row, token in step.forced.items() if row in rows},
            **{
                name: getattr(step, name)[d : d + 1]
                for name in ("pool_scores", "pool_finished", "open", "n_new", "max_new")
            },
        ).run()
        assert all(torch.equal(alone[name][0], together[name][d]) for name in NAMES)


# ---- edits


@pytest.mark.parametrize("run", ["specified", "run"])
@pytest.mark.parametrize(
    ("edits", "wanted"),
    [
        ([(2, SET, -0.25)], -0.25),
        ([(2, PENALIZE, 0.5)], math.log(0.2) * 0.5),
        ([(2, SET, 3.0), (2, PENALIZE, 2.0)], 1.5),
        ([(2, ADD, 1.0)], math.log(0.2) + 1.0),
        ([(2, DECAY, 0.5)], math.log(0.2) * 0.5),
        ([(2, SET, -INF), (2, ADD, 9.0), (2, PENALIZE, 0.5), (2, DECAY, 9.0), (2, SET, -1.0)], -1.0),
        ([(2, ADD, 1.0), (0, SET, -INF), (2, PENALIZE, 0.5)], (math.log(0.2) + 1.0) * 0.5),
    ],
)
def test_edits_follow_the_normalisation_in_order(run, edits, wanted):
    """Hugging Face edits log-probabilities, not logits, so a penalty multiplies where greedy search would divide."""
    probabilities = torch.tensor([[0.1, 0.3, 0.2, 0.4]])
    others = [(token, SET, -INF) for token in (0, 1, 3)]
    step = Step(probabilities.log() + 5, torch.tensor([[0.125]]), edits={0: others + edits}, eos=())
    got = getattr(step, run)()
    assert got["tokens"].item() == 2
    assert got["scores"].item() == pytest.approx(wanted + 0.125, abs=1e-6)


@pytest.mark.parametrize("run", ["specified", "run"])
def test_what_is_minus_infinity_stays_so_except_under_set(run):
    step = Step(
        torch.tensor([[-INF, 0.0, 0.0, 0.0]]),
        torch.zeros(1, 1),
        edits={0: [(0, PENALIZE, 2.0), (0, ADD, INF), (0, DECAY, -1.0)]},
        eos=(),
    )
    assert getattr(step, run)()["tokens"].item() == 1


@pytest.mark.parametrize("run", ["specified", "run"])
def test_forced_token_costs_nothing_and_may_be_edited(run):
    step = Step(torch.randn(2, 6), torch.tensor([[-1.0, -2.0]]), forced={0: 4, 1: 5}, eos=())
    got = getattr(step, run)()
    assert got["tokens"].tolist() == [[4, 5]]
    assert got["scores"].tolist() == [[-1.0, -2.0]]
    got = getattr(replace(step, edits={0: [(4, SET, -INF), (2, SET, -0.5)]}), run)()
    assert got["tokens"].tolist() == [[2, 5]]
    assert got["scores"].tolist() == [[-1.5, -2.0]]


@pytest.mark.parametrize("run", ["specified", "run"])
def test_renormalisation_after_the_edits(run):
    """The rest shares what a banned token leaves, however little: it is summed apart, not found by subtraction."""
    logits = torch.tensor([[20.0, 1.0, 2.0, 0.0]])
    step = Step(logits, torch.zeros(1, 1), edits={0: [(0, SET, -INF)]}, eos=(), renormalize=True)
    got = getattr(step, run)()
    assert got["tokens"].item() == 2
    assert got["scores"].item() == pytest.approx(math.log(math.exp(2) / (math.exp(1) + math.exp(2) + 1)), abs=1e-6)


def test_edits_of_one_token_apply_in_waves():
    """A scatter with repeated places keeps any one of them; edits of one token must all apply, in order.

    What lies between the rows' edits is nobody's.
    """
    scores = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]])
    got = reference.apply_edits(
        scores,
        ints(0, 4),
        ints(3, 5),
        ints(1, 1, 0, -9, 1),
        ints(ADD, PENALIZE, SET, -9, ADD),
        torch.tensor([1.0, 4.0, 7.0, math.nan, 0.5]),
        ints(-1, 0),
    )
    assert got.tolist() == [[7.0, -4.0], [0.0, -INF]]
    assert scores.tolist() == [[-1.0, -2.0], [-3.0, -4.0]]


# ---- the pool


@pytest.mark.parametrize("run", ["specified", "run"])
def test_only_the_best_beams_may_finish(run):
    """An end at rank K or worse is dropped: it neither continues nor enters the pool."""
    log_probs = torch.tensor([[0.5, 0.05, 0.3, 0.15], [0.1, 0.2, 0.3, 0.4]]).log()
    step = Step(log_probs, torch.tensor([[0.0, BANISHED]]), eos=(1, 3), length_penalty=0.0)
    got = getattr(step, run)()  # candidates: 0 (.5), 2 (.3), 3 (.15, ends), 1 (.05, ends), then beam 1
    assert got["tokens"].tolist() == [[0, 2]]
    assert got["pool_finished"].tolist() == [[False, False]]
    got = getattr(replace(step, eos=(0,)), run)()
    assert got["tokens"].tolist() == [[2, 3]]
    assert got["pool_finished"].tolist() == [[True, False]]
    assert got["pool_source"].tolist() == [[2, 0]]
    assert got["pool_tokens"].tolist() == [[0, -1]]
    assert got["pool_scores"][0, 0].item() == pytest.approx(math.log(0.5))


@pytest.mark.parametrize("run", ["specified", "run"])
def test_pool_scores_are_divided_by_the_generated_length(run):
    log_probs = torch.tensor([[0.1, 0.9]]).log()
    step = Step(log_probs, torch.tensor([[-3.0]]), n_new=ints(4), length_penalty=2.0)
    got = getattr(step, run)()
    assert got["pool_scores"].item() == pytest.approx((-3.0 + math.log(0.9)) / 16)
    # A better old entry stays; an equal one too.
    for old in (-0.1, got["pool_scores"].item()):
        kept = getattr(replace(step, pool_scores=torch.tensor([[old]]), pool_finished=torch.tensor([[True]])), run)()
        if old == -0.1:
            assert (kept["pool_source"].item(), kept["pool_tokens"].item()) == (0, -1)
        assert kept["pool_scores"].item() == pytest.approx(old)


@pytest.mark.parametrize("run", ["specified", "run"])
@pytest.mark.parametrize(
    ("early_stopping", "length_penalty", "score", "still_open", "done"),
    [
        (0, 1.0, -1.0, True, False),  # -1 / 2 beats the pool's -0.9
        (0, 1.0, -2.0, False, True),  # -2 / 2 does not
        (2, 1.0, -2.0, True, False),  # but -2 / 8 might
        (2, 1.0, -9.0, False, True),
        (2, -1.0, -1.0, False, True),  # short ones gain: the present length counts
        (1, 1.0, -1.0, True, True),  # the pool is full
    ],
)
def test_when_a_document_is_done(run, early_stopping, length_penalty, score, still_open, done):
    step = Step(
        torch.tensor([[30.0, 0.0, 0.0]]),  # continues with token 0 at no cost
        torch.tensor([[score]]),
        pool_scores=torch.tensor([[-0.9]]),
        pool_finished=torch.tensor([[True]]),
        n_new=ints(2),
        length_penalty=length_penalty,
        early_stopping=early_stopping,
    )
    got = getattr(step, run)()
    assert got["open"].item() is still_open
    assert got["done"].item() is done


@pytest.mark.parametrize("run", ["specified", "run"])
@pytest.mark.parametrize("length_penalty", [0.2, 0.8, 1.0, 2.0])
def test_a_tie_with_the_pool_is_no_improvement(run, length_penalty):
    """Division and rounding once came in different orders for beam and pool, so a tie closed a document or did not."""
    for seed in range(20):
        score = float(torch.randn((), generator=torch.Generator().manual_seed(seed)))
        step = Step(
            torch.tensor([[2.0, 2.0, 0.0], [0.0, 0.0, 0.0]]),  # token 0 goes on, token 1 ends, equally likely
            torch.tensor([[score, BANISHED]]),
            pool_scores=torch.tensor([[9.0, -20.0]]),
            pool_finished=torch.tensor([[True, True]]),
            n_new=ints(3),
            length_penalty=length_penalty,
        )
        got = getattr(step, run)()
        assert got["pool_tokens"].tolist() == [[-1, 1]]
        assert not got["open"].item()


@pytest.mark.parametrize("run", ["specified", "run"])
def test_a_closed_document_takes_no_better_hypothesis(run):
    """Once the heuristic says that nothing can improve, later ends are kept out, as in the search that we follow."""
    step = Step(
        torch.tensor([[0.0, 30.0, 0.0]]),
        torch.tensor([[-0.1]]),
        pool_scores=torch.tensor([[-0.9]]),
        pool_finished=torch.tensor([[True]]),
        open=torch.tensor([False]),
    )
    got = getattr(step, run)()
    assert got["pool_source"].item() == 0
    assert not got["open"].item()


@pytest.mark.parametrize("run", ["specified", "run"])
def test_at_the_length_limit_everything_ends(run):
    step = Step(torch.tensor([[3.0, 0.0, 2.0]]), torch.zeros(1, 1), n_new=ints(8))
    got = getattr(step, run)()
    assert got["done"].item()
    assert got["pool_finished"].item()
    assert got["pool_tokens"].item() == 0
    assert got["scores"].item() < -9e8


# ---- arguments


def assert_refused(position: int, new: object, message: str) -> None:
    step = Step(torch.randn(4, 20), torch.zeros(2, 2), edits={0: [(3, SET, 0.0)], 2: [(4, ADD, 0.0)]})
    arguments = list(step.arguments())
    arguments[position] = new
    with pytest.raises(ValueError, match=message):
        native.beam_step(*arguments)


@pytest.mark.parametrize(
    ("position", "new", "message"),
    [
        (0, torch.zeros(3, 20), r"logits must be float32 or bfloat16.* \[4, any\], got float32 \[3, 20\]"),
        (0, torch.zeros(4, 20).double(), r"logits must be float32 or bfloat16"),
        (0, torch.zeros(20, 4).t(), r"logits must be contiguous in its last 1"),
        (1, torch.zeros(4), r"scores must be \[B, K\]"),
        (2, torch.zeros(2, 3), r"pool_scores must be float32 \[2, 2\]"),
        (3, torch.zeros(2, 2), r"pool_finished must be bool \[2, 2\]"),
        (4, torch.ones(3, dtype=torch.bool), r"open must be bool \[2\]"),
        (6, ints(1, 1, 2, 2, 2), r"edit_end must be int32 \[4\]"),
        (9, torch.zeros(3), r"edit_value must be float32 \[6\]"),
        (12, ints(1), r"max_new must be int32 \[2\]"),
        (13, torch.arange(20).int(), r"42 candidates wanted but beams \* vocabulary is only 40"),
        (13, torch.tensor([1]), r"eos_ids must be int32"),
        (15, 3, r"early_stopping must be 0, 1 or 2, got 3"),
    ],
)
def test_bad_arguments(position, new, message):
    assert_refused(position, new, message)


@pytest.mark.skipif(native.emulated, reason="the host reads nothing of what lies on a GPU")
@pytest.mark.parametrize(
    ("position", "new", "message"),
    [
        (5, ints(0, 0, 3, 5), r"row 1 has edits 0 : 2; ranges must ascend without overlap within 0 : 6"),
        (6, ints(1, 2, 7, 7), r"row 2 has edits 3 : 7"),
        (6, ints(1, 2, 2, 5), r"row 2 has edits 3 : 2"),
        (7, ints(3, 0, 0, 20, 0, 0), r"edit_token\[3\] = 20 is outside 0..19"),
        (8, ints(0, 0, 0, 4, 0, 0), r"edit_kind\[3\] = 4 is outside 0..3"),
        (10, ints(-1, -2, -1, -1), r"forced\[1\] = -2 is outside -1..19"),
        (11, ints(1, 0), r"n_new\[1\] = 0 is outside 1.."),
    ],
)
def test_bad_values(position, new, message):
    assert_refused(position, new, message)


def test_opcheck():
    torch.library.opcheck(torch.ops.pegasus_batch.beam_step.default, random_step(26, 40).arguments())
