"""Planned edits against transformers' logits processors, on random scores and histories."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation import logits_process as hf

from pegasus_batch.config import GenerationConfig
from pegasus_batch.generation import EditPlanner
from pegasus_batch.kernels.reference import apply_edits

VOCABULARY = 31
PROMPT_LENGTH = 2
MAX_LENGTH = 14
TOKENS = {"pad_token_id": 0, "eos_token_id": [1, 4], "decoder_start_token_id": 0, "max_length": MAX_LENGTH}
EOS = torch.tensor([1, 4])
SOURCES = [[7, 8, 9, 7, 8, 3, 1], [5, 1], [11, 12, 13, 14, 11, 12, 13, 15, 16, 11, 12, 1], []]
BAD_WORDS = [[1], [9], [2, 3], [3, 3], [5, 6, 7], [4], [2, 1], [30]]
BIAS = {(9,): 2.5, (2, 3): -1.25, (3, 3): 0.5, (3,): 1.0, (5, 6, 7): -math.inf, (2, 2, 3): 0.1}


def source(document: int) -> Tensor:
    return torch.tensor([SOURCES[document]])


# Option -> the processor that transformers builds from it, for one document.
CASES: list[tuple[dict[str, Any], Any]] = [
    ({"sequence_bias": BIAS}, lambda _: hf.SequenceBiasLogitsProcessor(BIAS)),
    (
        {"encoder_repetition_penalty": 1.5},
        lambda ids: hf.EncoderRepetitionPenaltyLogitsProcessor(1.5, ids.repeat(3, 1)),
    ),
    ({"repetition_penalty": 1.7}, lambda _: hf.RepetitionPenaltyLogitsProcessor(1.7)),
    *(({"no_repeat_ngram_size": n}, lambda _, n=n: hf.NoRepeatNGramLogitsProcessor(n)) for n in (1, 2, 3, 5, 40)),
    *(
        ({"encoder_no_repeat_ngram_size": n}, lambda ids, n=n: hf.EncoderNoRepeatNGramLogitsProcessor(n, ids))
        for n in (1, 2, 3, 5, 40)
    ),
    ({"bad_words_ids": BAD_WORDS}, lambda _: hf.NoBadWordsLogitsProcessor(BAD_WORDS, EOS)),
    ({"bad_words_ids": [[1], [4]]}, lambda _: hf.NoBadWordsLogitsProcessor([[1], [4]], EOS)),
    ({"min_length": 6}, lambda _: hf.MinLengthLogitsProcessor(6, EOS)),
    ({"min_new_tokens": 4}, lambda _: hf.MinNewTokensLengthLogitsProcessor(PROMPT_LENGTH, 4, EOS)),
    # The shorter of the two minimums is no minimum: min_new_tokens replaces min_length.
    (
        {"min_new_tokens": 4, "min_length": 9},
        lambda _: hf.MinNewTokensLengthLogitsProcessor(PROMPT_LENGTH, 4, EOS),
    ),
    ({"forced_bos_token_id": 12}, lambda _: hf.ForcedBOSTokenLogitsProcessor(12)),
    ({"forced_eos_token_id": 4}, lambda _: hf.ForcedEOSTokenLogitsProcessor(MAX_LENGTH, 4)),
    ({"forced_eos_token_id": [4, 2, 1]}, lambda _: hf.ForcedEOSTokenLogitsProcessor(MAX_LENGTH, [4, 2, 1])),
    (
        {"exponential_decay_length_penalty": (3, 1.21)},
        lambda _: hf.ExponentialDecayLengthPenalty((3, 1.21), EOS, PROMPT_LENGTH),
    ),
    # Ids outside the vocabulary are ignored by transformers as well.
    ({"suppress_tokens": [3, 3, 30, 31, 900]}, lambda _: hf.SuppressTokensLogitsProcessor([3, 3, 30, 31, 900])),
    ({"begin_suppress_tokens": [3, 8]}, lambda _: hf.SuppressTokensAtBeginLogitsProcessor([3, 8], PROMPT_LENGTH)),
]


def planned(planner: EditPlanner, scores: Tensor, histories: Tensor, documents: Tensor) -> Tensor:
    edits = planner.edits(histories, documents)
    assert (
        edits.begin.dtype
        == edits.end.dtype
        == edits.token.dtype
        == edits.kind.dtype
        == edits.forced.dtype
        == torch.int32
    )
    assert edits.begin.shape == edits.end.shape == edits.forced.shape == (len(scores),)
    assert edits.end[-1] == len(edits.token) == len(edits.kind) == len(edits.value)
    changed = apply_edits(scores, edits.begin, edits.end, edits.token, edits.kind, edits.value, edits.forced)
    if edits.idle:
        assert torch.equal(changed, scores)
    return changed


def planner_of(options: dict[str, Any], **keywords: Any) -> EditPlanner:
    config = GenerationConfig(**{**TOKENS, **options})
    return EditPlanner(config, SOURCES, PROMPT_LENGTH, vocab_size=VOCABULARY, **keywords)


@pytest.mark.parametrize("kind", ["log-probabilities", "logits"])
@pytest.mark.parametrize(("options", "processor"), CASES, ids=lambda case: str(case) if isinstance(case, dict) else "")
def test_edits_equal_the_processor(options: dict[str, Any], processor: Any, kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    planner = planner_of(options)
    changes = 0
    for length in range(1, MAX_LENGTH):
        rows = [document for document in range(len(SOURCES)) for _ in range(3)]
        # A small alphabet at the front, so that n-grams and sequences do recur.
        histories = torch.randint(0, 10 if length % 2 else VOCABULARY, (len(rows), length), generator=generator)
        histories[::2] %= 4
        for document, ids in enumerate(SOURCES):
            histories[3 * document + 1] = torch.tensor((ids * length)[:length] or [0] * length)
        scores = torch.randn(len(rows), VOCABULARY, generator=generator) * 3
        if kind == "log-probabilities":
            scores = scores.log_softmax(-1)
        scores[0, 5] = -torch.inf
        found = planned(planner, scores, histories, torch.tensor(rows))
        for document, ids in enumerate(SOURCES):
            if not ids and any(name.startswith("encoder") for name in options):
                continue  # transformers cannot index by an empty source
            block = slice(3 * document, 3 * document + 3)
            expected = processor(source(document))(histories[block], scores[block])
            assert torch.equal(found[block], expected), length
            changes += int((expected != scores[block]).sum())
    ineffective = options in (
        {"no_repeat_ngram_size": 40}, {"encoder_no_repeat_ngram_size": 40}, {"bad_words_ids": [[1], [4]]}
    )  # fmt: skip
    assert (changes == 0) == ineffective


def test_order_of_all_processors() -> None:
    """Each step of a plan with everything on equals the processors one after the other."""
    options = {
        "sequence_bias": BIAS, "encoder_repetition_penalty": 1.3, "repetition_penalty": 0.8, "no_repeat_ngram_size": 2,
        "encoder_no_repeat_ngram_size": 2, "bad_words_ids": BAD_WORDS, "min_length": 6,
        "forced_eos_token_id": 4, "suppress_tokens": [17, 18], "begin_suppress_tokens": [3],
    }  # fmt: skip
    cases = {name: processor for case, processor in CASES for name in case if case == {name: options.get(name)}}
    cases["encoder_repetition_penalty"] = lambda ids: hf.EncoderRepetitionPenaltyLogitsProcessor(1.3, ids.repeat(3, 1))
    cases["repetition_penalty"] = lambda _: hf.RepetitionPenaltyLogitsProcessor(0.8)
    cases["suppress_tokens"] = lambda _: hf.SuppressTokensLogitsProcessor([17, 18])
    cases["begin_suppress_tokens"] = lambda _: hf.SuppressTokensAtBeginLogitsProcessor([3], PROMPT_LENGTH)
    assert set(cases) == set(options)
    generator = torch.Generator().manual_seed(4)
    planner = planner_of(options)
    for length in range(PROMPT_LENGTH, MAX_LENGTH):
        histories = torch.randint(0, 10, (6, length), generator=generator)
        scores = torch.randn(6, VOCABULARY, generator=generator)
        found = planned(planner, scores, histories, torch.tensor([0, 0, 0, 2, 2, 2]))
        for block, document in ((slice(0, 3), 0), (slice(3, 6), 2)):
            expected = scores[block]
            for name in options:
                expected = cases[name](source(document))(histories[block], expected)
            assert torch.equal(found[block], expected), length


def test_forced_rows_keep_later_edits_only() -> None:
    """At the last position a ban of the end token is lost, the suppression that follows forcing is not."""
    options = {"forced_eos_token_id": 4, "min_length": 14, "suppress_tokens": [9], "no_repeat_ngram_size": 1}
    planner = planner_of(options)
    histories = torch.full((2, MAX_LENGTH - 1), 4)
    edits = planner.edits(histories, torch.tensor([0, 1]))
    assert edits.forced.tolist() == [4, 4]
    assert edits.token.tolist() == [9, 9]


def test_a_forced_first_token_moves_the_beginning() -> None:
    config = GenerationConfig(**{**TOKENS, "forced_bos_token_id": 12, "begin_suppress_tokens": [3]})
    planner = EditPlanner(config, SOURCES, 1, vocab_size=VOCABULARY)
    first, second, third = (planner.edits(torch.zeros(1, n, dtype=torch.int64), torch.tensor([0])) for n in (1, 2, 3))
    assert (first.forced.tolist(), first.token.tolist()) == ([12], [])
    assert (second.forced.tolist(), second.token.tolist()) == ([-1], [3])
    assert third.idle


def test_nothing_to_do_is_planned_once() -> None:
    """Without options a step returns the very same tensors; only a changed number of rows makes new ones."""
    planner = planner_of({"min_length": 4, "forced_eos_token_id": 1})
    steps = [
        planner.edits(torch.zeros(8, n, dtype=torch.int64), torch.zeros(8, dtype=torch.int64)) for n in range(2, 14)
    ]
    assert [step.idle for step in steps] == [False, False, *[True] * 9, False]
    assert steps[0] is steps[1]
    assert all(step is steps[2] for step in steps[2:11])
    assert steps[-1].forced.tolist() == [1] * 8
    assert planner.edits(torch.zeros(4, 7, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)).begin.shape == (4,)


def test_documents_are_found_by_row() -> None:
    """Rows need not be in document order: source options follow the map."""
    planner = planner_of({"encoder_no_repeat_ngram_size": 1})
    edits = planner.edits(torch.zeros(4, 3, dtype=torch.int64), torch.tensor([2, 1, 3, 1]))
    rows = [sorted(set(edits.token[a:b].tolist())) for a, b in zip(edits.begin, edits.end, strict=True)]
    assert rows == [sorted(set(SOURCES[document])) for document in (2, 1, 3, 1)]


@pytest.mark.parametrize(
    "options",
    [
        {"bad_words_ids": [[3], [5, 31]]},
        {"sequence_bias": {(40,): 1.0}},
        {"forced_bos_token_id": 31},
        {"forced_eos_token_id": [1, 99]},
        {"exponential_decay_length_penalty": (1, 1.1), "eos_token_id": 31},
    ],
    ids=str,
)
def test_ids_outside_the_vocabulary_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"holds token \d+, but the vocabulary has 31 tokens"):
        planner_of(options)


def test_wild_source_ids_are_refused_where_they_would_be_scored() -> None:
    config = GenerationConfig(**{**TOKENS, "encoder_repetition_penalty": 1.2})
    with pytest.raises(ValueError, match="source ids holds token 31"):
        EditPlanner(config, [[3, 31]], 1, vocab_size=VOCABULARY)
    EditPlanner(GenerationConfig(**TOKENS), [[3, 31]], 1, vocab_size=VOCABULARY)


def test_decay_needs_an_end_token() -> None:
    with pytest.raises(ValueError, match="needs an eos_token_id"):
        planner_of({"exponential_decay_length_penalty": (1, 1.1), "eos_token_id": None})
