"""Edits planned from tables against the planner's own, option by option and all together."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pegasus_batch.config import GenerationConfig
from pegasus_batch.generation.processors import DeviceTables, EditPlanner
from pegasus_batch.kernels.reference import ADD, DECAY, PENALIZE, SET

VOCABULARY, PROMPT_LENGTH, MAX_LENGTH, BEAMS = 23, 2, 11, 3
CPU = torch.device("cpu")
# What the length alone decides; every combination of these is planned.
PHASES: list[dict[str, Any]] = [
    {"bad_words_ids": [[9], [4], [3]]},
    {"min_length": 6},
    {"forced_bos_token_id": 12},
    {"forced_eos_token_id": [4, 2, 9]},
    {"exponential_decay_length_penalty": (3, 1.21)},
    {"suppress_tokens": [3, 17, 900]},
    {"begin_suppress_tokens": [8, 3]},
]


def planner_of(options: dict[str, Any], prompt_length: int = PROMPT_LENGTH) -> EditPlanner:
    tokens = {"pad_token_id": 0, "eos_token_id": [1, 4], "decoder_start_token_id": 0, "max_length": MAX_LENGTH}
    config = GenerationConfig(**{**tokens, **options})
    return EditPlanner(config, [[7, 8, 1]], prompt_length, vocab_size=VOCABULARY)


def apply(scores: NDArray[np.float32], begin: Tensor, end: Tensor, rest: tuple[Tensor, ...]) -> NDArray[np.float32]:
    """Apply every row's edits one after the other, as the search that we follow would."""
    token, kind, value, forced = (x.numpy() for x in rest)
    out = scores.copy()
    for row in range(len(out)):
        if forced[row] >= 0:
            out[row] = -np.inf
            out[row, forced[row]] = 0
        for edit in range(int(begin[row]), int(end[row])):
            old, x = out[row, token[edit]], value[edit]
            if kind[edit] == SET:
                new = x
            elif old == -np.inf:
                new = old
            elif kind[edit] == PENALIZE:
                new = old * x if old < 0 else old / x
            else:
                new = {ADD: old + x, DECAY: old + abs(old) * x}[kind[edit]]
            out[row, token[edit]] = new
    return out


def compare(planner: EditPlanner, tables: DeviceTables, generator: torch.Generator, prompt_length: int) -> int:
    """Plan a step at every length at once, both ways; returns how many scores the edits have changed."""
    lengths = torch.arange(prompt_length, MAX_LENGTH)
    rows = len(lengths) * BEAMS
    # A small alphabet in most rows, so that n-grams do recur.
    histories = torch.randint(0, VOCABULARY, (rows, MAX_LENGTH), generator=generator)
    histories[torch.arange(rows) % 4 > 0] %= 3
    edits = planner.edits(histories, torch.zeros(rows, dtype=torch.int64), lengths.repeat_interleave(BEAMS))
    room = tables.room(rows)
    tables.plan(histories.view(-1, BEAMS, MAX_LENGTH).int(), lengths.int(), room)
    assert torch.equal(room.forced, edits.forced)
    scores = torch.randn(rows, VOCABULARY, generator=generator).numpy()
    scores[::3, ::5] = -np.inf
    end = torch.cat((edits.begin[1:rows], torch.tensor([len(edits.token)])))
    wanted = apply(scores, edits.begin, end, (edits.token, edits.kind, edits.value, edits.forced))
    got = apply(scores, room.begin, room.end, room[2:])
    assert np.array_equal(got, wanted)
    assert tables.idle == (tables.stretch == 0 and bool((tables.forced < 0).all()))
    assert edits.idle or not tables.idle
    return int((got != scores).sum())


@pytest.mark.parametrize("prompt_length", [1, PROMPT_LENGTH])
@pytest.mark.parametrize("ngram_size", [0, 1, 2, 3])
@pytest.mark.parametrize("penalty", [1.0, 1.7])
def test_tables_plan_what_the_planner_plans(penalty: float, ngram_size: int, prompt_length: int) -> None:
    generator = torch.Generator().manual_seed(ngram_size)
    changed = set()
    for switches in itertools.product((False, True), repeat=len(PHASES)):
        options: dict[str, Any] = {"repetition_penalty": penalty, "no_repeat_ngram_size": ngram_size}
        for switch, phase in zip(switches, PHASES, strict=True):
            options |= phase if switch else {}
        planner = planner_of(options, prompt_length)
        tables = planner.device_tables(CPU)
        assert tables is not None
        changed.add(compare(planner, tables, generator, prompt_length))
    assert len(changed) > 9, "so many options do so many different things"


def test_no_options_are_idle() -> None:
    tables = planner_of({}).device_tables(CPU)
    assert tables is not None and tables.idle and tables.stretch == 0
    assert not planner_of({"forced_eos_token_id": 1}).device_tables(CPU).idle
    assert not planner_of({"no_repeat_ngram_size": 5}).device_tables(CPU).idle


def test_the_room_is_what_the_longest_row_needs() -> None:
    options = {"repetition_penalty": 2.0, "no_repeat_ngram_size": 1, "suppress_tokens": [3, 5], "min_length": 4}
    tables = planner_of(options).device_tables(CPU)
    assert tables is not None
    assert tables.stretch == 2 * MAX_LENGTH + 4  # two suppressed tokens and, while too short, two end tokens
    room = tables.room(6)
    assert [len(x) for x in room] == [6, 6, *[6 * tables.stretch] * 3, 6]
    assert (room.begin == room.end).all() and (room.forced == -1).all()


@pytest.mark.parametrize(
    "options",
    [
        {"sequence_bias": {(5,): 1.0}},
        {"bad_words_ids": [[3], [5, 6]]},
        {"encoder_repetition_penalty": 1.2},
        {"encoder_no_repeat_ngram_size": 3},
    ],
    ids=str,
)
def test_options_that_need_more_have_no_tables(options: dict[str, Any]) -> None:
    assert planner_of(options).device_tables(CPU) is None
