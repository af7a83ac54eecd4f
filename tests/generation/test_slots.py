"""Documents in slots, decided on the device: the same hypotheses as the search that decides every step on the host."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from pegasus_batch import BartConfig, BartForConditionalGeneration, PegasusConfig, PegasusForConditionalGeneration
from pegasus_batch.config import GenerationConfig
from pegasus_batch.engine.engine import Engine
from pegasus_batch.engine.slots import SlotEngine
from pegasus_batch.generation.search import Search, generate
from pegasus_batch.generation.slots import Slots
from tests.conftest import tiny_settings

OPTIONS: list[dict[str, Any]] = [
    {"num_beams": 1},
    {"num_beams": 1, "repetition_penalty": 1.7, "renormalize_logits": True, "length_penalty": 0.5},
    {"num_beams": 4},
    {"num_beams": 4, "early_stopping": True, "num_return_sequences": 3},
    {"num_beams": 3, "early_stopping": "never", "length_penalty": 2.0, "min_length": 5},
    {"num_beams": 3, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "suppress_tokens": [7, 9]},
    {
        "num_beams": 2,
        "forced_bos_token_id": 5,
        "forced_eos_token_id": 1,
        "bad_words_ids": [[8]],
        "length_penalty": -1.0,
    },
    {"num_beams": 2, "exponential_decay_length_penalty": (3, 1.5), "begin_suppress_tokens": [3, 4]},
]


def make_weights(family: str) -> tuple[PegasusConfig | BartConfig, dict[str, torch.Tensor]]:
    torch.manual_seed(3)
    pegasus = family == "pegasus"
    config = (PegasusConfig if pegasus else BartConfig)(**tiny_settings())
    model = (PegasusForConditionalGeneration if pegasus else BartForConditionalGeneration)(config).eval()
    return config, model.engine_weights()


def make_documents(n: int) -> list[list[int]]:
    rng = random.Random(5)
    return [[rng.randrange(3, 61) for _ in range(rng.randrange(1, 40))] for _ in range(n)]


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
        ),
    ],
)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_same_as_step_by_step(family: str, options: dict[str, Any], device: str) -> None:
    """Eleven documents through three slots: they come and go at different steps."""
    config, weights = make_weights(family)
    settings = GenerationConfig.from_dict(config.to_dict()).updated(max_length=12, **options)
    documents = make_documents(11)
    prompts = [[config.decoder_start_token_id]] * len(documents)
    on_device = {name: weight.to(device) for name, weight in weights.items()}
    plain, slots = Engine(config, dict(weights)), SlotEngine(config, on_device, most_slots=3)
    for engine in (plain, slots):
        engine.load(documents)
    search = Search(slots, settings, documents, prompts, budget=90)
    assert isinstance(search._running, Slots)
    found, expected = dict(search), generate(plain, settings, documents, prompts)
    for number, hypotheses in enumerate(expected):
        assert [one.tokens for one in found[number]] == [one.tokens for one in hypotheses]
        assert [one.score for one in found[number]] == pytest.approx([one.score for one in hypotheses], abs=1e-5)
    # The slots serve the next search, and a document does not depend on what was there before.
    again = Search(slots, settings, documents, prompts)
    assert again._running is search._running and dict(again) == found


def test_options_that_the_device_does_not_know_are_searched_step_by_step() -> None:
    config, weights = make_weights("pegasus")
    engine = SlotEngine(config, weights, most_slots=3)
    documents = make_documents(4)
    engine.load(documents)
    settings = GenerationConfig.from_dict(config.to_dict()).updated(
        max_length=8, num_beams=2, encoder_no_repeat_ngram_size=2
    )
    search = Search(engine, settings, documents, [[0]] * 4)
    assert not isinstance(search._running, Slots)
    assert len(dict(search)) == 4


@pytest.mark.parametrize("beams", [1, 2])
def test_nan_ends_a_document_and_no_other(beams: int) -> None:
    """A weight that one source token alone reaches is NaN: that document fails, the others are what they were."""
    config, weights = make_weights("pegasus")
    settings = GenerationConfig.from_dict(config.to_dict()).updated(max_length=8, num_beams=beams)
    documents = [[5, 6, 1], [7, 60, 1], [8, 9, 1]]
    weights["lm_head.weight"] = weights["lm_head.weight"].clone()  # the tied table is about to be spoilt
    weights["shared.weight"] = weights["shared.weight"].clone()
    weights["shared.weight"][60] = torch.nan
    results = []
    for engine in (Engine(config, dict(weights)), SlotEngine(config, dict(weights), most_slots=2)):
        engine.load(documents)
        results.append(dict(Search(engine, settings, documents, [[0]] * 3)))
    for number, (expected, found) in enumerate(zip(*(map(result.get, range(3)) for result in results), strict=True)):
        assert [one.tokens for one in found] == [one.tokens for one in expected]
        assert [one.score for one in found] == pytest.approx([one.score for one in expected], nan_ok=True)
        assert (number == 1) == any(one.score != one.score for one in found)


def test_less_memory_makes_fewer_slots() -> None:
    config, weights = make_weights("pegasus")
    engine = SlotEngine(config, weights, most_slots=4)
    assert engine.open_slots(2, 8) == 4
    engine.release()  # what follows an error
    assert engine.make_smaller() and engine.open_slots(2, 8) == 2
    assert engine.make_smaller() and engine.open_slots(2, 8) == 1
    assert not engine.make_smaller()
