"""Every option, alone and combined, against transformers' own search on the same tiny models."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from pegasus_batch.config import GenerationConfig
from pegasus_batch.generation import generate, pad_sequences

SOURCES = [[5, 6, 7, 5, 6, 8, 9, 1], [33, 40, 12, 33, 40, 12, 50, 21, 60, 44, 3, 1], [17, 1]]


def compare(oracle: Any, oracle_decoder: Any, options: dict[str, Any], extra: list[int] | None = None) -> None:
    """Search all documents in one call and compare each with transformers' output for it alone."""
    prompt = [oracle.tokens["decoder_start_token_id"], *(extra or [])]
    config = GenerationConfig(**{**oracle.tokens, **options})
    found = generate(oracle_decoder(oracle, SOURCES), config, SOURCES, [prompt] * len(SOURCES), max_positions=64)
    assert [len(document) for document in found] == [config.num_return_sequences] * len(SOURCES)
    for source, hypotheses in zip(SOURCES, found, strict=True):
        rows, scores = oracle.generate(options, source, prompt)
        if any(math.isnan(score) for score in scores):
            # Its decay adds |-inf| to a banned end token's -inf. Ours stays banned, so there is nothing to compare.
            assert "exponential_decay_length_penalty" in options
            continue
        assert pad_sequences([hypotheses], config).tolist() == rows.tolist(), (options, prompt, source)
        for hypothesis, score in zip(hypotheses, scores, strict=True):
            assert hypothesis.score == pytest.approx(score, abs=1e-4, rel=1e-5), (options, prompt, source)


SINGLE: list[dict[str, Any]] = [
    {},
    {"max_length": 2},
    {"length_penalty": 0.0},
    {"length_penalty": 2.0, "early_stopping": "never"},
    {"length_penalty": -1.0, "early_stopping": "never"},
    {"early_stopping": True},
    {"eos_token_id": [1, 2, 30]},
    {"eos_token_id": None},
    {"pad_token_id": None},
    {"min_length": 8},
    {"min_new_tokens": 8, "min_length": 11},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"encoder_no_repeat_ngram_size": 1},
    {"encoder_no_repeat_ngram_size": 2},
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.6},
    {"encoder_repetition_penalty": 2.5},
    {"encoder_repetition_penalty": 0.4},
    {"bad_words_ids": [[1], [4], [20, 21], [30, 31, 32]]},
    {"sequence_bias": [[[9], 3.0], [[20, 21], -4.0], [[21], 1.0], [[14, 15, 16], 6.0]]},
    {"forced_bos_token_id": 7},
    {"forced_bos_token_id": 7, "begin_suppress_tokens": [8, 9, 1, 2]},
    {"forced_eos_token_id": 1},
    {"forced_eos_token_id": [1]},
    {"exponential_decay_length_penalty": (2, 1.3)},
    {"suppress_tokens": list(range(10, 40)), "begin_suppress_tokens": [1, 2]},
    {"renormalize_logits": True, "suppress_tokens": list(range(10, 60))},
]


@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("options", SINGLE, ids=lambda options: "-".join(options) or "defaults")
def test_each_option_alone(oracle: Any, oracle_decoder: Any, options: dict[str, Any], num_beams: int) -> None:
    compare(oracle, oracle_decoder, {"max_length": 12, "num_beams": num_beams, **options})


def test_several_forced_end_tokens(oracle: Any, oracle_decoder: Any) -> None:
    """Greedily only: in beams they tie exactly, and transformers leaves ties to topk."""
    compare(oracle, oracle_decoder, {"max_length": 12, "forced_eos_token_id": [2, 1]})


def draw(random_source: random.Random) -> dict[str, Any]:
    """Draw a combination in which each option appears with probability 0.3."""
    token = lambda: random_source.randrange(3, 61)  # noqa: E731
    tokens = lambda n: [token() for _ in range(n)]  # noqa: E731
    choose = random_source.choice
    num_beams = choose([1, 2, 3, 5])
    possible: dict[str, Any] = {
        "length_penalty": choose([-0.5, 0.0, 0.6, 2.0]),
        "early_stopping": choose([True, "never"]),
        "eos_token_id": choose([[1, 2, 9], [30, 1]]),
        "min_length": choose([3, 6, 9]),
        "min_new_tokens": choose([1, 4, 6]),
        "no_repeat_ngram_size": choose([1, 2, 3]),
        "encoder_no_repeat_ngram_size": choose([1, 2, 3]),
        "repetition_penalty": choose([0.7, 1.3, 2.0]),
        "encoder_repetition_penalty": choose([0.7, 1.5]),
        "bad_words_ids": [tokens(choose([1, 1, 2, 3])) for _ in range(20)],
        "sequence_bias": [[tokens(choose([1, 2, 2, 3])), choose([-5.0, -1.0, 2.0])] for _ in range(20)],
        "forced_bos_token_id": token(),
        "forced_eos_token_id": choose([1, 2]),
        "exponential_decay_length_penalty": (choose([0, 3]), choose([0.8, 1.1])),
        "suppress_tokens": tokens(5),
        "begin_suppress_tokens": tokens(10),
        "renormalize_logits": True,
    }
    options = {name: value for name, value in possible.items() if random_source.random() < 0.3}
    options["num_beams"] = num_beams
    options["num_return_sequences"] = random_source.randint(1, num_beams)
    options.update(choose([{"max_length": choose([9, 14])}, {"max_new_tokens": choose([7, 11])}]))
    return options


@pytest.mark.parametrize("seed", range(40))
def test_options_combined(oracle: Any, oracle_decoder: Any, seed: int) -> None:
    random_source = random.Random(seed)
    extra = [random_source.randrange(3, 61) for _ in range(random_source.choice([0, 0, 1, 3]))]
    compare(oracle, oracle_decoder, draw(random_source), extra)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_an_unset_maximum_means_twenty_new_tokens(oracle: Any, oracle_decoder: Any, num_beams: int) -> None:
    options = {"num_beams": num_beams, "suppress_tokens": [oracle.tokens["eos_token_id"]]}
    compare(oracle, oracle_decoder, options)
    rows, _ = oracle.generate(options, SOURCES[0], [oracle.tokens["decoder_start_token_id"]])
    assert rows.shape[1] == 21
