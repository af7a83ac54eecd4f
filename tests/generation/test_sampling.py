"""What may be drawn against transformers' warpers, how often it is, and that a document's draws are its own."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from pegasus_batch.config import GenerationConfig
from pegasus_batch.generation import Hypothesis, Search, generate
from pegasus_batch.generation.sampling import RandomStreams, draw, warpers

ORACLES: dict[str, Any] = {
    "temperature": lambda value, least: TemperatureLogitsWarper(value),
    "top_k": lambda value, least: TopKLogitsWarper(value, min_tokens_to_keep=least),
    "top_p": lambda value, least: TopPLogitsWarper(value, min_tokens_to_keep=least),
    "min_p": lambda value, least: MinPLogitsWarper(value, min_tokens_to_keep=least),
    "typical_p": lambda value, least: TypicalLogitsWarper(value, min_tokens_to_keep=least),
    "epsilon_cutoff": lambda value, least: EpsilonLogitsWarper(value, min_tokens_to_keep=least),
    "eta_cutoff": lambda value, least: EtaLogitsWarper(value, min_tokens_to_keep=least),
}
VALUES: dict[str, list[Any]] = {
    "temperature": [0.3, 1.7],
    "top_k": [1, 3, 50],
    "top_p": [0.0, 0.3, 0.95],
    "min_p": [0.0, 0.1, 1.0],
    "typical_p": [0.05, 0.4, 0.95],
    "epsilon_cutoff": [1e-3, 0.05, 0.9],
    "eta_cutoff": [1e-3, 0.05, 0.9],
}
OFF = {"top_k": 0}
SINGLE = [{name: value} for name, values in VALUES.items() for value in values]
SEVERAL = [{name: random.Random(seed).choice(values) for name, values in VALUES.items()} for seed in range(6)]
TOKENS = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "max_length": 12}


@pytest.mark.parametrize("eos_token_id", [1, [1, 2, 9]])
@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("options", SINGLE + SEVERAL, ids=str)
def test_probabilities_equal_transformers(options: dict[str, Any], num_beams: int, eos_token_id: Any) -> None:
    """Of random scores, of flat ones, and of scores with bans and ties."""
    torch.manual_seed(0)
    scores = torch.cat((torch.randn(6, 97) * 3, torch.randn(4, 97) * 0.01, (torch.randn(6, 97) * 2).round()))
    scores[4:12, ::5] = -math.inf
    scores = scores if num_beams == 1 else scores.log_softmax(-1)
    config = GenerationConfig(do_sample=True, num_beams=num_beams, eos_token_id=eos_token_id, **{**OFF, **options})
    found, expected = scores, scores
    for warper in warpers(config):
        found = warper(found)
    least = 1 if num_beams == 1 else 1 + len(config.eos_ids)
    for name, oracle in ORACLES.items():
        if name in options:
            expected = oracle(options[name], least)(None, expected)
    torch.testing.assert_close(found.softmax(-1), expected.softmax(-1), atol=1e-6, rtol=0)
    assert torch.equal(found == -math.inf, expected == -math.inf)


def test_nothing_is_narrowed_unless_asked() -> None:
    config = GenerationConfig(
        do_sample=True, temperature=None, top_k=None, top_p=None, typical_p=None, epsilon_cutoff=None, eta_cutoff=None
    )
    assert warpers(config) == []
    assert len(warpers(GenerationConfig(do_sample=True))) == 1, "top_k is 50 by default"


def chi_square_bound(freedom: int, chance: float = 1e-7) -> float:
    """Return a bound that a chi-square variable exceeds with less than ``chance`` (Laurent and Massart 2000, lemma 1)."""
    x = -math.log(chance)
    return freedom + 2 * math.sqrt(freedom * x) + 2 * x


def chi_square(counts: np.ndarray[Any, Any], probabilities: np.ndarray[Any, Any]) -> float:
    assert counts[probabilities == 0].sum() == 0
    kept = probabilities > 0
    expected = counts.sum() * probabilities[kept]
    assert expected.min() > 5, "too few draws for the test"
    return float(((counts[kept] - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "top_k": 6}, {"top_p": 0.8}], ids=str)
def test_tokens_are_drawn_as_often_as_they_should(table_decoder: Any, options: dict[str, Any]) -> None:
    """The first two tokens of 4000 sequences of one document against the table's own probabilities."""
    n = 4000
    config = GenerationConfig(
        **{**TOKENS, "max_length": 3, "eos_token_id": None},
        do_sample=True,
        num_return_sequences=n,
        **{**OFF, **options},
    )
    found = generate(table_decoder(1, 9), config, [[5, 1]], [[0]])[0]

    def probabilities(*tokens: int) -> np.ndarray[Any, Any]:
        decoder = table_decoder(1, 9)
        decoder.start(1)
        decoder.admit([0])
        for token in tokens:
            scores = decoder.step(torch.tensor([token]), torch.tensor([0]), [1])
        for name, oracle in ORACLES.items():
            if name in options:
                scores = oracle(options[name], 1)(None, scores)
        return scores.double().softmax(-1)[0].numpy()

    first = np.array([hypothesis.tokens[1] for hypothesis in found])
    expected = probabilities(0)
    statistic = chi_square(np.bincount(first, minlength=9), expected)
    assert statistic < chi_square_bound(int((expected > 0).sum()) - 1)
    likeliest = int(expected.argmax())
    second = np.array([hypothesis.tokens[2] for hypothesis in found if hypothesis.tokens[1] == likeliest])
    expected = probabilities(0, likeliest)
    keep = expected * len(second) > 5  # the rare ones are counted as one
    counts = np.bincount(second, minlength=9)
    pooled = [counts[~keep].sum()], [expected[~keep].sum()]
    if pooled[1][0] * len(second) > 5:
        counts, expected = np.append(counts[keep], pooled[0]), np.append(expected[keep], pooled[1])
    else:
        counts, expected = counts[keep], expected[keep] / expected[keep].sum()
    assert chi_square(counts, expected) < chi_square_bound(len(counts) - 1)
    scored = found[0]
    logs = [np.log(probabilities(*scored.tokens[: 1 + step])[scored.tokens[1 + step]]) for step in range(2)]
    assert scored.score == pytest.approx(sum(logs) / 2, abs=1e-5)


def test_draws_without_replacement_come_in_the_order_of_draws() -> None:
    """Every ordered pair of 4 candidates is as frequent as drawing one, and then another of the rest, makes it."""
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1, 0.0])
    streams = RandomStreams(0, [[3]])
    pairs = list(itertools.permutations(range(4), 2))
    counts = dict.fromkeys(pairs, 0)
    for step in range(4000):
        first, second = draw(weights.log(), streams.uniform(0, 0, step, 5), 2).tolist()
        counts[first, second] += 1
    p = weights.tolist()
    expected = np.array([p[a] * p[b] / (1 - p[a]) for a, b in pairs])
    assert chi_square(np.array(list(counts.values())), expected) < chi_square_bound(len(pairs) - 1)


def test_what_has_no_weight_comes_last() -> None:
    weights = torch.tensor([-math.inf, 0.0, -math.inf, -2.0])
    uniform = RandomStreams(0, [[3]]).uniform(0, 0, 0, 4)
    assert sorted(draw(weights, uniform, 4)[:2].tolist()) == [1, 3]
    assert draw(weights, uniform, 4)[2:].tolist() == [0, 2]
    assert draw(torch.tensor([0.0, math.nan, 9.0]), uniform, 1).tolist() == [1], "as argmax does"


def test_the_random_numbers_are_those_that_are_documented() -> None:
    """From the counter-based generator's key and counter, made here by hand."""
    import hashlib
    import struct

    content = struct.pack("<4Q", 7, 5, 6, 1)
    key = np.frombuffer(hashlib.blake2b(content, digest_size=16).digest(), dtype="<u8")
    raw = np.random.Philox(key=key, counter=[0, 0, 3, 2]).random_raw(5).tolist()
    expected = [((number >> 12) + 0.5) / 2**52 for number in raw]
    assert RandomStreams(7, [[9], [5, 6, 1]]).uniform(1, 2, 3, 5).tolist() == expected


SAMPLING = [
    {"do_sample": True, "num_return_sequences": 3, "top_k": 7},
    {"do_sample": True, "num_beams": 3, "num_return_sequences": 2},
]


@pytest.mark.parametrize("options", SAMPLING, ids=str)
def test_a_document_s_draws_depend_on_it_and_the_seed_alone(table_decoder: Any, options: dict[str, Any]) -> None:
    """Alone, in a batch, in another order, with refills: the same sequences; another seed, others."""
    config = GenerationConfig(**TOKENS, **options, sequence_bias={(1,): 2.0}, seed=11)
    sources = [[5 + document] * (1 + document % 4) for document in range(10)]

    def run(documents: list[int], settings: GenerationConfig, budget: int | None = None) -> dict[int, list[Hypothesis]]:
        decoder = table_decoder(0)
        decoder.loaded = documents
        chosen = [sources[document] for document in documents]
        found = Search(decoder, settings, chosen, [[0]] * len(chosen), budget=budget)
        return {documents[number]: hypotheses for number, hypotheses in found}

    together = run(list(range(10)), config)
    assert len({len(document[0].tokens) for document in together.values()}) > 2
    for hypothesis in (hypothesis for document in together.values() for hypothesis in document):
        assert 1 not in hypothesis.tokens[1:-1] and (hypothesis.tokens[-1] == 1 or len(hypothesis.tokens) == 12)
    order = [3, 9, 1, 0, 8, 4, 2, 7, 6, 5]
    assert run(order, config) == together
    for budget in (1, 7):
        assert run(order, config, budget) == together
    for document in range(10):
        assert run([document], config) == {document: together[document]}
    assert run(list(range(10)), config.updated(seed=12)) != together
    assert torch.equal(torch.random.get_rng_state(), _state_of(0)), "the global generator was used"


def _state_of(seed: int) -> torch.Tensor:
    return torch.Generator().manual_seed(seed).get_state()


def test_documents_without_ids_are_known_by_number() -> None:
    streams = RandomStreams(0, [[], []])
    assert streams.uniform(0, 0, 0, 3).tolist() != streams.uniform(1, 0, 0, 3).tolist()


def test_nan_logits_end_a_drawn_document_alone(table_decoder: Any) -> None:
    config = GenerationConfig(**TOKENS, do_sample=True, num_return_sequences=2, suppress_tokens=[1])
    sources = [[3], [4], [5]]
    healthy = generate(table_decoder(3), config, sources, [[0]] * 3)
    found = generate(table_decoder(3, broken=(1, 4)), config, sources, [[0]] * 3)
    assert [found[0], found[2]] == [healthy[0], healthy[2]]
    assert [len(hypothesis.tokens) for hypothesis in found[1]] == [4, 4]
    assert all(math.isnan(hypothesis.score) for hypothesis in found[1])
