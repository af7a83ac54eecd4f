"""Beam search in steps that can be reached: against the kernel, against transformers' own functions, by enumeration."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation.utils import GenerationMixin

from pegasus_batch.config import GenerationConfig
from pegasus_batch.generation import Hypothesis, generate
from pegasus_batch.generation.callbacks import Callbacks
from pegasus_batch.generation.candidates import best
from pegasus_batch.kernels import reference
from tests.generation.test_parity import draw
from tests.generation.test_sampling import TOKENS, chi_square, chi_square_bound
from tests.kernels.steps import NAMES, random_step


@pytest.mark.parametrize("seed", range(60))
def test_the_best_candidates_make_the_kernel_s_step(seed: int) -> None:
    """Everything that beam_step returns, to the last bit."""
    step = random_step(seed, 19)
    logits, scores, pool, finished, open_, *edits, n_new, max_new, eos, penalty, early, again = step.arguments()
    (documents, beams), vocabulary = scores.shape, logits.shape[1]

    def normalised(x: torch.Tensor) -> torch.Tensor:
        return x - x.logsumexp(-1, keepdim=True)

    logs = reference.apply_edits(normalised(logits.double()), *edits)
    sums = ((normalised(logs) if again else logs).view(documents, beams, -1) + scores.double()[:, :, None]).flatten(1)
    index = torch.stack([best(own, max(2, 1 + len(eos)) * beams) for own in sums])
    parents, tokens = index // vocabulary, index % vocabulary
    hit = torch.isin(tokens, eos.long()) | (n_new >= max_new)[:, None]
    ranked = sums.gather(1, index).nan_to_num(-torch.inf, torch.inf, -torch.inf)
    found = reference.advance_beams(
        ranked,
        parents,
        tokens,
        hit,
        pool,
        finished,
        open_,
        n_new,
        max_new,
        penalty,
        early,
    )
    for name, own, wanted in zip(NAMES, found, step.specified().values(), strict=True):
        assert torch.equal(own.to(wanted.dtype), wanted), name


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [-0.5, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_candidates_in_the_order_of_draws(seed: int, length_penalty: float, early_stopping: Any) -> None:
    """Drawn candidates are not sorted, and any of them may end: transformers' functions make the same of them."""
    torch.manual_seed(seed)
    beams, candidates, prompt, length, longest = 3, 6, 2, 5, 9
    ranked = -torch.rand(1, candidates) * 9
    sequences = torch.randint(3, 40, (1, candidates, longest))
    parents, tokens = torch.randint(0, beams, (1, candidates)), sequences[:, :, length]
    hit = torch.rand(1, candidates) < 0.4
    finished = torch.tensor([[True, seed % 2 == 0, seed % 4 == 0]])
    pool = (-torch.rand(1, beams)).sort(descending=True).values.masked_fill(~finished, -1e9)
    old, paths = torch.randint(3, 40, (1, beams, longest)), torch.zeros(1, candidates, longest)
    theirs = GenerationMixin()
    open_ = torch.tensor([[True]])
    running, running_scores, _ = theirs._get_running_beams_for_next_iteration(ranked, sequences, paths, hit, beams)
    ended, ended_scores, _, is_finished = theirs._update_finished_beams(
        sequences=old, topk_running_sequences=sequences, beam_scores=pool, topk_log_probs=ranked,
        beam_indices=paths[:, :beams], topk_running_beam_indices=paths, is_early_stop_heuristic_unsatisfied=open_,
        is_sent_finished=finished, next_token_hits_stopping_criteria=hit,
        top_num_beam_mask=torch.arange(candidates) < beams, num_beams=beams, cur_len=length, decoder_prompt_len=prompt,
        length_penalty=length_penalty, early_stopping=early_stopping,
    )  # fmt: skip
    still = theirs._check_early_stop_heuristic(
        open_, running_scores, ended_scores, is_finished, length + 1, longest, prompt, early_stopping, length_penalty
    )
    going = theirs._beam_search_has_unfinished_sequences(still, is_finished, hit, early_stopping)
    count = torch.tensor([length + 1 - prompt])
    found = reference.advance_beams(
        ranked.double(), parents, tokens, hit, pool, finished, open_[0], count, torch.tensor([longest - prompt]),
        length_penalty, {False: 0, True: 1, "never": 2}[early_stopping],
    )  # fmt: skip
    scores, _, chosen, pool_scores, pool_finished, source, last, stays_open, done = found
    torch.testing.assert_close(scores, running_scores)
    assert torch.equal(chosen, running[:, :, length])
    torch.testing.assert_close(pool_scores, ended_scores)
    assert torch.equal(pool_finished, is_finished)
    known = pool_scores > -1e8  # the order of empty places means nothing
    ours = torch.where(last >= 0, last, old[:, :, length].gather(1, source.clamp(max=beams - 1)))
    assert torch.equal(ours[known], ended[:, :, length][known])
    assert (bool(stays_open), bool(done)) == (bool(still), not going)


def test_beams_are_drawn_as_often_as_they_should(table_decoder: Any) -> None:
    """Two steps of two beams over five tokens, enumerated draw by draw, against 3000 documents with the same logits."""
    documents, vocabulary, beams, n_candidates = 3000, 5, 2, 4
    config = GenerationConfig(
        **{**TOKENS, "max_length": 3, "eos_token_id": None}, do_sample=True, num_beams=beams, top_k=0, temperature=4.0
    )
    decoder = table_decoder(0, vocabulary)
    decoder.loaded = [0] * documents
    sources = [[5, document] for document in range(documents)]
    found = generate(decoder, config, sources, [[0]] * documents)
    seen = defaultdict(int)
    for hypotheses in found:
        seen[tuple(hypotheses[0].tokens[1:])] += 1

    table = table_decoder(1, vocabulary)
    table.start(1)
    table.admit([0])
    first = table.step(torch.tensor([0]), torch.tensor([0]), [1])[0].double().log_softmax(-1) / 4
    second = table.step(torch.arange(vocabulary), torch.zeros(vocabulary, dtype=torch.int64), [vocabulary])
    total = first[:, None] + second.double().log_softmax(-1) / 4  # of both tokens

    def chance(weights: list[float], order: tuple[int, ...]) -> float:
        """Return how likely candidates are drawn in this order."""
        left, result = sum(weights), 1.0
        for index in order:
            result, left = result * weights[index] / left, left - weights[index]
        return result

    expected: dict[tuple[int, ...], float] = defaultdict(float)
    survivors: dict[tuple[int, ...], float] = defaultdict(float)
    for order in itertools.permutations(range(vocabulary), n_candidates):
        kept = tuple(sorted(sorted(order, key=lambda token: -first[token])[:beams]))
        survivors[kept] += chance(first.exp().tolist(), order)
    for kept, likely in survivors.items():
        pairs = [(a, b) for a in kept for b in range(vocabulary)]
        weights = [float(total[pair].exp()) for pair in pairs]
        for order in itertools.permutations(range(len(pairs)), beams):
            winner = max((pairs[index] for index in order), key=lambda pair: float(total[pair]))
            expected[winner] += likely * chance(weights, order)
    assert sum(expected.values()) == pytest.approx(1)
    frequent = [pair for pair, p in expected.items() if p * documents > 5]
    counts, p = np.array([seen[pair] for pair in frequent]), np.array([expected[pair] for pair in frequent])
    rare = documents - counts.sum(), 1 - p.sum()
    if rare[1] * documents > 5:
        counts, p = np.append(counts, rare[0]), np.append(p, rare[1])
    assert len(counts) > 5
    assert chi_square(counts, p / p.sum()) < chi_square_bound(len(counts) - 1)


@pytest.mark.parametrize("seed", range(40))
def test_a_rule_that_never_applies_changes_nothing(table_decoder: Any, seed: int) -> None:
    """What is chosen in PyTorch, only because a rule could end it, is what the fast path chooses, under any options."""
    rng = random.Random(seed)
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    config = GenerationConfig(**{**tokens, **draw(rng)})
    sources = [[rng.randrange(3, 61) for _ in range(rng.randint(1, 9))] for _ in range(4)]

    def run(**own: Any) -> list[list[Hypothesis]]:
        return generate(table_decoder(4, 61), config, sources, [[0]] * 4, callbacks=Callbacks(**own))

    for document, expected in zip(run(stopping_criteria=[lambda ids, scores: False]), run(), strict=True):
        assert [found.tokens for found in document] == [wanted.tokens for wanted in expected]
        scores = [wanted.score for wanted in expected]
        assert [found.score for found in document] == pytest.approx(scores, abs=1e-4, rel=1e-6, nan_ok=True)


def test_too_few_candidates_are_named() -> None:
    with pytest.raises(ValueError, match="8 candidates wanted but beams \\* vocabulary is only 6: lower num_beams"):
        best(torch.zeros(6), 8)
