"""Groups of beams and constraints against transformers 4.56.2, the last release that has them, and by hand."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import torch
from transformers.generation.beam_constraints import ConstraintListState
from transformers.generation.beam_constraints import DisjunctiveConstraint as OracleDisjunction
from transformers.generation.beam_constraints import PhrasalConstraint as OraclePhrase
from transformers.generation.beam_search import BeamHypotheses

from pegasus_batch.config import GenerationConfig
from pegasus_batch.generation import generate, pad_sequences
from pegasus_batch.generation.callbacks import Callbacks
from pegasus_batch.generation.constraints import DisjunctiveConstraint, PhrasalConstraint, Progress
from pegasus_batch.generation.groups import Pool
from tests.generation import legacy
from tests.generation.conftest import OracleDecoder

CASES = json.loads(legacy.RESULTS.read_text())


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {family: legacy.model(family) for family in ("pegasus", "bart")}


def options_of(case: dict[str, Any], model: Any) -> GenerationConfig:
    tokens = ("pad_token_id", "eos_token_id", "decoder_start_token_id", "forced_eos_token_id")
    own = {name: getattr(model.config, name) for name in tokens}
    return GenerationConfig(**{**own, **case["options"]})


@pytest.mark.parametrize("number", range(len(CASES)))
def test_groups_and_constraints_equal_the_last_release_that_has_them(models: Any, number: int) -> None:
    """The document is searched beside others, of which the release knew nothing."""
    case = CASES[number]
    model = models[case["family"]]
    options = options_of(case, model)
    sources = [[7, 8, 1], case["source"], [9] * 11]
    decoder = OracleDecoder(model, sources, legacy.VOCABULARY)
    found = generate(decoder, options, sources, [[options.start_token]] * 3, max_positions=64)[1]
    assert pad_sequences([found], options).tolist() == case["sequences"]
    assert [hypothesis.score for hypothesis in found] == pytest.approx(case["scores"], abs=1e-4)


def test_the_cases_are_not_what_plain_beam_search_finds(models: Any) -> None:
    different, chosen = 0, CASES[::4]
    for case in chosen:
        model = models[case["family"]]
        plain = {
            name: value
            for name, value in case["options"].items()
            if name not in ("num_beam_groups", "diversity_penalty", "force_words_ids")
        }
        options = options_of({"options": plain}, model)
        decoder = OracleDecoder(model, [case["source"]], legacy.VOCABULARY)
        found = generate(decoder, options, [case["source"]], [[options.start_token]], max_positions=64)
        different += pad_sequences(found, options).tolist() != case["sequences"]
    assert different > 0.6 * len(chosen)


def test_constraints_of_the_caller_s_own(models: Any) -> None:
    """Transformers' objects do as ``constraints``, with the result of the same words in ``force_words_ids``."""
    model = models["pegasus"]
    words: list[Any] = [[11, 27], [[30, 5], [30, 6, 7]]]
    options = options_of({"options": {"num_beams": 4, "max_length": 14}}, model)
    arguments = ([legacy.SOURCES[0]], [[options.start_token]])
    made = [OraclePhrase(words[0]), OracleDisjunction(words[1])]
    found = generate(
        OracleDecoder(model, arguments[0], legacy.VOCABULARY),
        options,
        *arguments,
        callbacks=Callbacks(constraints=made),
    )
    forced = options.updated(force_words_ids=words)
    decoder = OracleDecoder(model, arguments[0], legacy.VOCABULARY)
    assert found == generate(decoder, forced, *arguments)
    text = " ".join(map(str, found[0][0].tokens))
    assert "11 27" in text and ("30 5" in text or "30 6 7" in text)


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 2.0])
def test_a_pool_keeps_and_ends_as_transformers_does(length_penalty: float, early_stopping: Any) -> None:
    rng = random.Random(1)
    answers = []
    for _ in range(40):
        options = GenerationConfig(num_beams=3, length_penalty=length_penalty, early_stopping=early_stopping)
        ours = Pool(3, options, 9)
        theirs = BeamHypotheses(3, length_penalty, early_stopping, max_length=11)
        for n_new in range(1, 9):
            tokens, total = [rng.randrange(40) for _ in range(n_new)], -rng.choice([0.5, 1.0, rng.random()]) * n_new
            ours.add(total, n_new, tokens, [])
            theirs.add(torch.tensor(tokens), total, generated_len=n_new)
            assert [(entry.score, entry.tokens) for entry in ours.entries] == [
                (score, held.tolist()) for score, held, _ in theirs.beams
            ]
            ahead = -rng.random() * n_new
            ours.settle(ahead, n_new)
            answers.append(theirs.is_done(ahead, n_new + 2, 2))
            assert ours.done == answers[-1]
            ours.done = False
    assert True in answers and False in answers


@pytest.mark.parametrize("seed", range(30))
def test_progress_through_constraints(seed: int) -> None:
    """Banks, wanted tokens and completion after any tokens are transformers'."""
    torch.manual_seed(seed)
    words: list[Any] = [[3, 4, 5], [[3, 6], [7, 8, 9], [7, 8, 3]], [4]]
    ours = Progress([PhrasalConstraint(words[0]), DisjunctiveConstraint(words[1]), PhrasalConstraint(words[2])])
    theirs = ConstraintListState([OraclePhrase(words[0]), OracleDisjunction(words[1]), OraclePhrase(words[2])])
    for token in torch.randint(3, 10, (40,)).tolist():
        assert ours.advance() == (theirs.advance() or [])
        following, copied = ours.continued(token), theirs.copy(stateful=True)
        copied.add(token)
        assert following.bank == copied.get_bank()
        # Copies share their progress, so both go on from a reading of their own.
        ours.add(token)
        theirs.add(token)
        assert (ours.bank, ours.complete) == (theirs.get_bank(), theirs.completed)


def test_alternatives_that_begin_with_another_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[3\] is the beginning of another"):
        DisjunctiveConstraint([[3], [3, 4]])


@pytest.mark.parametrize(
    ("options", "callbacks", "message"),
    [
        ({}, {"constraints": [PhrasalConstraint([3])]}, "constraints need num_beams above 1"),
        (
            {"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 1.0},
            {"constraints": [PhrasalConstraint([3])]},
            "neither num_beam_groups nor do_sample",
        ),
        ({"num_beams": 2}, {"streamer": object()}, "a streamer gets tokens that stay: set num_beams=1, it is 2"),
    ],
)
def test_contradictions_are_named(
    table_decoder: Any, options: dict[str, Any], callbacks: dict[str, Any], message: str
) -> None:
    config = GenerationConfig(pad_token_id=0, eos_token_id=1, **options)
    with pytest.raises(ValueError, match=message):
        generate(table_decoder(1), config, [[3]], [[0]], callbacks=Callbacks(**callbacks))
