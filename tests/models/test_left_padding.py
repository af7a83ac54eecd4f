"""Padding on the left: as transformers has it by default, and with ``positions_from_mask`` the same as on the right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.models.oracle import (
    ANSWERING,
    BARE,
    CAUSAL,
    CLASSES,
    CLASSIFYING,
    GENERATING,
    ROWS,
    assert_close,
    compare,
    inputs,
    pair,
    sources,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def flushed_right(tensor: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return rows whose shown beginnings have moved to their ends, with the padding before them."""
    return torch.stack([row.roll(len(row) - int(keep.sum()), 0) for row, keep in zip(tensor, mask, strict=True)])


def shown(tensor: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the entries that a mask shows, one row after the other."""
    return tensor[mask.bool()]


@pytest.mark.parametrize("name", CLASSES)
@torch.no_grad()
def test_by_default_a_position_is_a_column_as_in_transformers(name: str, tmp_path: Path) -> None:
    theirs, ours = pair(name, tmp_path)
    batch = inputs(name, ours.config)
    ids, mask = sources(ours.config)
    left = {"input_ids": flushed_right(ids, mask), "attention_mask": flushed_right(mask, mask)}
    found = compare(ours, theirs, {**batch, **left})
    right = ours(**{**batch, "input_ids": ids, "attention_mask": mask})
    if name not in CAUSAL + ANSWERING:
        assert (found[0] - right[0]).abs().max() > 1e-3


@pytest.mark.parametrize("name", CLASSES)
@torch.no_grad()
def test_positions_from_the_mask_make_both_sides_equal(name: str, tmp_path: Path) -> None:
    """Where the decoder reads the source, shifted, its start token comes behind the padding."""
    theirs, plain = pair(name, tmp_path)
    ours = type(plain).from_pretrained(tmp_path, positions_from_mask=True)
    ids, mask = sources(ours.config)
    right = {"input_ids": ids, "attention_mask": mask}
    left = {"input_ids": flushed_right(ids, mask), "attention_mask": flushed_right(mask, mask)}
    places = mask
    if name in BARE + GENERATING:
        target, places = torch.randint(4, 61, (ROWS, 9)), mask.flip(0)
        right |= {"decoder_input_ids": target, "decoder_attention_mask": places}
        left |= {key: flushed_right(right[key], places) for key in ("decoder_input_ids", "decoder_attention_mask")}
    expected = theirs(**right)
    for padded, seen in ((right, places), (left, flushed_right(places, places))):
        found = ours(**padded)
        if name in CLASSIFYING:
            assert_close(found.logits, expected.logits)
        else:
            for index in range(2 if name in ANSWERING else 1):
                assert_close(shown(found[index], seen), shown(expected[index], places))


@pytest.mark.parametrize("name", GENERATING + CAUSAL)
@torch.no_grad()
def test_positions_from_the_mask_behind_a_cache(name: str, tmp_path: Path) -> None:
    _, plain = pair(name, tmp_path)
    ours = type(plain).from_pretrained(tmp_path, positions_from_mask=True)
    ids, mask = sources(ours.config)
    ids, mask = flushed_right(ids, mask), flushed_right(mask, mask)
    names = ("input_ids", "attention_mask") if name in CAUSAL else ("decoder_input_ids", "decoder_attention_mask")
    others = {} if name in CAUSAL else {"encoder_outputs": (torch.randn(ROWS, 4, 18),)}
    whole = ours(**dict(zip(names, (ids, mask), strict=True)), **others).logits
    first = ours(**dict(zip(names, (ids[:, :7], mask[:, :7]), strict=True)), **others)
    rest = ours(
        **dict(zip(names, (ids[:, 7:], mask), strict=True)), **others, past_key_values=first.past_key_values
    ).logits
    assert_close(rest, whole[:, 7:])


@pytest.mark.parametrize("name", ["BartModel", "BartForConditionalGeneration"])
@torch.no_grad()
def test_barts_own_shift_of_a_source_padded_on_the_left(name: str, tmp_path: Path) -> None:
    _, plain = pair(name, tmp_path)
    ours = type(plain).from_pretrained(tmp_path, positions_from_mask=True)
    ids, mask = sources(ours.config)
    moved = flushed_right(mask, mask)
    assert_close(shown(ours(flushed_right(ids, mask), moved)[0], moved), shown(plain(ids, mask)[0], mask))


@pytest.mark.parametrize("name", GENERATING)
@torch.no_grad()
def test_generation(name: str, tmp_path: Path) -> None:
    theirs, plain = pair(name, tmp_path)
    ours = type(plain).from_pretrained(tmp_path, positions_from_mask=True)
    ids, mask = sources(ours.config)
    ids, mask = ids[:, :-1], mask[:, :-1]
    left, moved = flushed_right(ids, mask), flushed_right(mask, mask)
    options = {"max_length": 12, "min_length": 12, "no_repeat_ngram_size": 1, "num_beams": 2}
    expected = theirs.generate(ids, attention_mask=mask, **options)
    assert_close(ours.generate(left, moved, **options), expected)
    assert_close(plain.generate(left, moved, **options), theirs.generate(left, attention_mask=moved, **options))
    assert not torch.equal(plain.generate(left, moved, **options), expected)


@torch.no_grad()
def test_the_parameter_is_saved(family: str, tmp_path: Path) -> None:
    name = f"{family.title()}Model"
    _, plain = pair(name, tmp_path)
    assert not plain.config.positions_from_mask
    ours = type(plain).from_pretrained(tmp_path, positions_from_mask=True)
    ours.save_pretrained(tmp_path / "saved")
    assert type(plain).from_pretrained(tmp_path / "saved").config.positions_from_mask
