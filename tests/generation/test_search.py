"""What the search promises beyond parity: independence, shrinking work, broken logits, layout, errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pegasus_batch.config import GenerationConfig
from pegasus_batch.generation import Hypothesis, Search, generate, pad_sequences

TOKENS = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "max_length": 12}


def search(decoder: Any, n_documents: int, **options: Any) -> list[list[Hypothesis]]:
    config = GenerationConfig(**{**TOKENS, **options})
    return generate(decoder, config, [[5, 1]] * n_documents, [[0]] * n_documents)


@pytest.mark.parametrize("num_beams", [1, 4])
def test_finished_documents_are_dropped(table_decoder: Any, num_beams: int) -> None:
    """The decoder gets fewer rows as documents finish, none after the last, and results keep the order given."""
    options = {"num_beams": num_beams, "early_stopping": True, "sequence_bias": {(1,): 2.0}}
    decoder = table_decoder(12)
    found = search(decoder, 12, **options)
    lengths = {len(document[0].tokens) for document in found}
    assert len(lengths) > 2, "documents were meant to finish at different lengths"
    # A row each for the first token, when the beams do not differ yet.
    assert decoder.rows_seen[0] == 12
    assert decoder.rows_seen[1:] == sorted(decoder.rows_seen[1:], reverse=True)
    assert decoder.rows_seen[1] > decoder.rows_seen[-1]
    for document, hypotheses in enumerate(found):
        alone = table_decoder(1)
        alone.loaded = [document]
        assert search(alone, 1, **options) == [hypotheses]


@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("budget", [1, 7, 20, 40, 62])
def test_documents_join_those_that_are_at_work(table_decoder: Any, num_beams: int, budget: int) -> None:
    """As many as fit are decoded at a time, a few more if they are the last; when a document joined does not matter."""
    config = GenerationConfig(
        **TOKENS,
        num_beams=num_beams,
        sequence_bias={(1,): 2.0},
        no_repeat_ngram_size=2,
        early_stopping=True,
        min_length=3,
    )
    sizes = [9, 7, 7, 6, 6, 5, 5, 5, 4, 4, 3, 2, 2, 1, 1, 1]
    sources = [[5] * size for size in sizes]
    decoder = table_decoder(len(sources))
    search = Search(decoder, config, sources, [[0]] * len(sources), budget=budget)
    found, most = {}, 0
    joined: list[int] = []
    admit = decoder.admit

    def watched(documents: list[int]) -> None:
        nonlocal most
        admit(documents)
        joined.extend(documents)
        held = sum(sizes[document] for document in decoder.documents)
        most_allowed = budget if search.waiting else 9 / 8 * budget
        assert held <= most_allowed or len(decoder.documents) == 1
        most = max(most, held)

    decoder.admit = watched
    for document, hypotheses in search:
        assert document not in found and document in joined
        assert sorted([*joined, *search.waiting]) == list(range(len(sizes)))
        found[document] = hypotheses
    assert joined == list(range(len(sizes))) and most > 0.7 * min(budget, sum(sizes))
    assert most == sum(sizes) or budget < 62
    for document in range(len(sizes)):
        alone = table_decoder(1)
        alone.loaded = [document]
        assert generate(alone, config, [sources[document]], [[0]]) == [found[document]]


def test_longer_prompts_do_not_join(table_decoder: Any) -> None:
    """A prompt of several tokens is fed to the documents of a batch at once, so batches follow each other."""
    config = GenerationConfig(**TOKENS, num_beams=2, sequence_bias={(1,): 2.0})
    sources, prompts = [[5]] * 7, [[0, 3 + document] for document in range(7)]
    found = generate(table_decoder(7), config, sources, prompts, budget=3)
    assert found == generate(table_decoder(7), config, sources, prompts)


def test_an_error_leaves_the_others_untouched(table_decoder: Any) -> None:
    """What was in work when a search failed is known, and what was not."""
    config = GenerationConfig(**TOKENS, num_beams=2, sequence_bias={(1,): 2.0})
    decoder = table_decoder(9)
    step = decoder.step

    def fails(*arguments: Any) -> torch.Tensor:
        if 5 in decoder.documents:
            raise RuntimeError("the fifth")
        return step(*arguments)

    decoder.step = fails
    search = Search(decoder, config, [[5]] * 9, [[0]] * 9, budget=3)
    done = []
    with pytest.raises(RuntimeError, match="the fifth"):
        for document, _ in search:
            done.append(document)
    assert done and 5 not in done
    assert not set(done) & set(search.waiting)
    touched = set(range(9)) - set(search.waiting)
    assert touched == set(range(max(touched) + 1)) and len(touched - set(done)) <= 3


def test_more_beams_find_better_scores(table_decoder: Any) -> None:
    options = {"length_penalty": 0.0, "early_stopping": "never"}
    scores = [
        sum(document[0].score for document in search(table_decoder(8), 8, num_beams=n, **options)) for n in (1, 2, 11)
    ]
    assert scores[0] < scores[1] < scores[2]


def test_hypotheses_are_distinct_and_sorted(table_decoder: Any) -> None:
    for hypotheses in search(table_decoder(6), 6, num_beams=5, num_return_sequences=5):
        assert len({tuple(hypothesis.tokens) for hypothesis in hypotheses}) == 5
        scores = [hypothesis.score for hypothesis in hypotheses]
        assert scores == sorted(scores, reverse=True)
        for hypothesis in hypotheses:
            assert hypothesis.tokens[0] == 0
            assert 1 not in hypothesis.tokens[1:-1]
            assert hypothesis.tokens[-1] == 1 or len(hypothesis.tokens) == 12


@pytest.mark.parametrize("broken_from", [1, 4])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_nan_logits_end_their_document_alone(table_decoder: Any, num_beams: int, broken_from: int) -> None:
    """A document whose logits become NaN ends at once with a NaN score; its neighbours do not notice."""
    options = {"num_beams": num_beams, "suppress_tokens": [1]}  # so that nothing has finished when the NaN comes
    healthy = search(table_decoder(3), 3, **options)
    decoder = table_decoder(3, broken=(1, broken_from))
    found = search(decoder, 3, **options)
    assert [found[0], found[2]] == [healthy[0], healthy[2]]
    assert all(math.isnan(hypothesis.score) for hypothesis in found[1])
    assert len(found[1][0].tokens) <= broken_from
    assert decoder.rows_seen[broken_from:] == [2 * num_beams] * (11 - broken_from)


def test_finished_hypotheses_survive_nan_logits(table_decoder: Any) -> None:
    """What the pool holds was scored before the NaN and stays valid."""
    options = {"num_beams": 6, "early_stopping": "never", "sequence_bias": {(1,): 3.0}}
    healthy = search(table_decoder(1), 1, **options)[0][0]
    found = search(table_decoder(1, broken=(0, len(healthy.tokens))), 1, **options)[0][0]
    assert math.isfinite(found.score) and found.tokens[-1] == 1


def test_half_precision_logits(table_decoder: Any) -> None:
    class Half(table_decoder):
        def step(self, *arguments: Any) -> torch.Tensor:
            return super().step(*arguments).to(torch.bfloat16)

    for num_beams in (1, 3):
        found = search(Half(3), 3, num_beams=num_beams)
        assert all(math.isfinite(document[0].score) for document in found)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_prompts_are_fed_and_returned(table_decoder: Any, num_beams: int) -> None:
    config = GenerationConfig(**{**TOKENS, "num_beams": num_beams, "max_length": None, "max_new_tokens": 4})
    prompts = [[0, 5, 6], [0, 7, 7]]
    found = generate(table_decoder(2), config, [[3], [4]], prompts)
    for prompt, hypotheses in zip(prompts, found, strict=True):
        assert hypotheses[0].tokens[:3] == prompt
        assert 4 <= len(hypotheses[0].tokens) <= 7


def test_no_documents(table_decoder: Any) -> None:
    assert generate(table_decoder(0), GenerationConfig(**TOKENS), [], []) == []


@pytest.mark.parametrize(
    ("options", "fill"),
    [
        ({}, 0),
        ({"pad_token_id": None}, 1),
        ({"num_beams": 2}, 1),
        ({"num_beams": 2, "pad_token_id": 3}, 3),
        ({"num_beams": 2, "eos_token_id": None}, -1),
        ({"num_beams": 2, "eos_token_id": [4, 1]}, 4),
    ],
    ids=str,
)
def test_fill_of_padded_rows(options: dict[str, Any], fill: int) -> None:
    config = GenerationConfig(**{**TOKENS, **options})
    hypotheses = [[Hypothesis([0, 5, 1], -1.0)], [Hypothesis([0], -1e9)]]
    assert pad_sequences(hypotheses, config).tolist() == [[0, 5, 1], [0, fill, fill]]


def test_padding_nothing() -> None:
    assert pad_sequences([], GenerationConfig(**TOKENS)).shape == (0, 0)


@pytest.mark.parametrize(
    ("sources", "prompts", "message"),
    [
        ([[3]], [[0], [0]], "1 documents but 2 prompts"),
        ([[3], [3]], [[0], [0, 4]], r"lengths \[1, 2\].*group documents by prompt length"),
        ([[3]], [[]], r"lengths \[0\]"),
        ([[3]], [[0, 23]], "prompt holds token 23, but the vocabulary has 23"),
        ([[3]], [[0] * 12], "leaves no room after a decoder prompt of 12 tokens"),
    ],
)
def test_errors_name_the_value(table_decoder: Any, sources: Any, prompts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(table_decoder(len(sources)), GenerationConfig(**TOKENS), sources, prompts)


def test_position_limit(table_decoder: Any) -> None:
    config = GenerationConfig(**{**TOKENS, "max_length": None})
    found = generate(table_decoder(1), config, [[3]], [[0]], max_positions=5)
    assert len(found[0][0].tokens) <= 5
    with pytest.raises(ValueError, match="exceeds the model's 5 positions"):
        generate(table_decoder(1), GenerationConfig(**TOKENS), [[3]], [[0]], max_positions=5)
