"""Calls, truncation and padding, which both tokenizers share."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pegasus_batch.tokenization import BartTokenizer, BatchEncoding, PegasusTokenizer, Tokenizer

LONG = "the people of the city said that the council would meet again this year"


@pytest.fixture(params=["pegasus", "bart"])
def tokenizer(request: pytest.FixtureRequest, spiece_files: dict[str, Path], bart_directory: Path) -> Tokenizer:
    if request.param == "pegasus":
        return PegasusTokenizer(spiece_files["unigram"])
    return BartTokenizer.from_pretrained(bart_directory)


def test_one_text_and_a_list(tokenizer: Tokenizer) -> None:
    one = tokenizer("the city")
    assert one == {"input_ids": tokenizer.encode("the city"), "attention_mask": [1] * len(one.input_ids)}
    many = tokenizer(["the city", ""])
    assert many.input_ids == [one.input_ids, tokenizer.encode("")]
    assert tokenizer([]) == {"input_ids": [], "attention_mask": []}


def test_tensors(tokenizer: Tokenizer) -> None:
    batch = tokenizer(["the", LONG], padding=True, return_tensors="pt")
    assert batch.input_ids.dtype == batch["attention_mask"].dtype == torch.int64
    assert batch.input_ids.shape == batch.attention_mask.shape == (2, len(tokenizer.encode(LONG)))
    n = len(tokenizer.encode("the"))
    assert batch.input_ids[0].tolist() == tokenizer.encode("the") + [tokenizer.pad_token_id] * (
        batch.input_ids.shape[1] - n
    )
    assert batch.attention_mask.sum(1).tolist() == [n, batch.input_ids.shape[1]]
    arrays = tokenizer(["the", LONG], padding="longest", return_tensors="np")
    assert isinstance(arrays.input_ids, np.ndarray)
    assert (arrays.input_ids == batch.input_ids.numpy()).all()
    assert tokenizer("the", return_tensors="pt").input_ids.shape == (1, n)
    assert tokenizer.encode("the", return_tensors="np").shape == (1, n)
    assert tokenizer([], return_tensors="pt").input_ids.shape == (0, 0)
    assert isinstance(batch.to("cpu"), BatchEncoding)


def test_ragged_tensors_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="padding=True"):
        tokenizer(["the", LONG], return_tensors="pt")
    with pytest.raises(ValueError, match="return_tensors must be"):
        tokenizer("the", return_tensors="tf")


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_keeps_special_tokens(tokenizer: Tokenizer, side: str) -> None:
    """Google's own code cut the end of sequence off."""
    tokenizer.truncation_side = side
    plain = tokenizer.encode(LONG, add_special_tokens=False)
    n_special = tokenizer.num_special_tokens_to_add()
    for max_length in range(n_special + 1, len(plain) + n_special + 3):
        kept = max_length - n_special
        content = plain[-kept:] if side == "left" else plain[:kept]
        expected = tokenizer.build_inputs_with_special_tokens(content)
        assert tokenizer.encode(LONG, truncation=True, max_length=max_length) == expected
    assert tokenizer.encode(LONG, max_length=5) == tokenizer.encode(LONG, max_length=5, truncation=True)
    assert tokenizer.encode(LONG, max_length=5, truncation=False) == tokenizer.encode(LONG)
    assert tokenizer.encode(LONG, max_length=1, truncation=True, add_special_tokens=False) in ([plain[0]], [plain[-1]])


@pytest.mark.parametrize("text", [LONG, "the", ""])
def test_no_room_beside_the_special_tokens(tokenizer: Tokenizer, text: str) -> None:
    """A limit equal to the number of special tokens once let the whole text through."""
    n_special = tokenizer.num_special_tokens_to_add()
    for max_length in (n_special, 0, -3):
        with pytest.raises(ValueError, match=f"max_length={max_length} leaves no room"):
            tokenizer.encode(text, truncation=True, max_length=max_length)
    with pytest.raises(ValueError, match="leaves no room"):
        tokenizer.encode("the", LONG, truncation=True, max_length=tokenizer.num_special_tokens_to_add(pair=True))


def test_model_max_length_is_the_default(tokenizer: Tokenizer) -> None:
    assert tokenizer(LONG, truncation=True).input_ids == tokenizer.encode(LONG)
    with pytest.raises(ValueError, match="needs max_length"):
        tokenizer(LONG, padding="max_length")
    tokenizer.model_max_length = 7
    assert len(tokenizer(LONG, truncation=True).input_ids) == 7
    assert tokenizer(LONG).input_ids == tokenizer.encode(LONG)
    assert len(tokenizer("", padding="max_length").input_ids) == 7


def test_pairs_lose_tokens_from_the_longer_first(tokenizer: Tokenizer) -> None:
    first, second = tokenizer.encode(LONG, add_special_tokens=False)[:6], [9, 9, 9]
    n_special = tokenizer.num_special_tokens_to_add(pair=True)
    for room, kept in ((8, (5, 3)), (6, (3, 3)), (5, (3, 2)), (4, (2, 2)), (1, (1, 0))):
        expected = tokenizer.build_inputs_with_special_tokens(first[: kept[0]], second[: kept[1]])
        assert tokenizer.encode(first, second, truncation=True, max_length=room + n_special) == expected
    expected = tokenizer.build_inputs_with_special_tokens(first[:3], second)
    assert tokenizer.encode(first, second, truncation="only_first", max_length=6 + n_special) == expected
    expected = tokenizer.build_inputs_with_special_tokens(first, second[:1])
    assert tokenizer.encode(first, second, truncation="only_second", max_length=7 + n_special) == expected
    with pytest.raises(ValueError, match="must remove 8 tokens from a sequence of 3"):
        tokenizer.encode(first, second, truncation="only_second", max_length=1 + n_special)


def test_padding_to_a_length_and_to_a_multiple(tokenizer: Tokenizer) -> None:
    assert {len(row) for row in tokenizer(["the", ""], padding="max_length", max_length=9).input_ids} == {9}
    batch = tokenizer(["the", LONG], padding=True, pad_to_multiple_of=16, return_special_tokens_mask=True)
    assert {len(row) for row in batch.input_ids} == {-(-len(tokenizer.encode(LONG)) // 16) * 16}
    assert batch.special_tokens_mask[0][-1] == 1 != batch.attention_mask[0][-1]
    tokenizer.padding_side = "left"
    assert tokenizer(["the", LONG], padding=True).input_ids[0][0] == tokenizer.pad_token_id


def test_optional_fields(tokenizer: Tokenizer) -> None:
    options = {"return_token_type_ids": True, "return_length": True, "return_attention_mask": False}
    one = tokenizer("the city", **options)
    n = len(tokenizer.encode("the city"))
    assert one == {"input_ids": tokenizer.encode("the city"), "token_type_ids": [0] * n, "length": n}
    both = tokenizer(["the city", "the"], padding=True, return_tensors="pt", **options)
    assert both.length.tolist() == [n, len(tokenizer.encode("the"))]


def test_targets_become_labels(tokenizer: Tokenizer) -> None:
    assert tokenizer(["the"], text_target=["city"])["labels"] == [tokenizer.encode("city")]
    assert tokenizer("the", text_target="city")["labels"] == tokenizer.encode("city")
    assert tokenizer("the", text_target="city", return_tensors="pt")["labels"].shape[0] == 1


def test_pairs_in_lists(tokenizer: Tokenizer) -> None:
    assert tokenizer(["the", "a"], ["city", "of"]).input_ids[1] == tokenizer.encode("a", "of")
    with pytest.raises(ValueError, match="text has 2 entries and text_pair 1"):
        tokenizer(["the", "a"], ["city"])


@pytest.mark.parametrize("bad", [None, 3, 2.5, b"bytes", {"text": "a"}])
def test_what_is_no_text(tokenizer: Tokenizer, bad: object) -> None:
    with pytest.raises(ValueError, match="a text must be a string"):
        tokenizer.encode(bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="text 2: a text must be a string"):
        tokenizer(["the", "city", bad])


def test_texts_inside_a_list_are_a_pair_and_nothing_else(tokenizer: Tokenizer) -> None:
    assert tokenizer([("the city", "the people")]).input_ids == [tokenizer.encode("the city", "the people")]
    with pytest.raises(ValueError, match="give pairs as text and text_pair"):
        tokenizer([("the city", "the people", "the council")])


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "shortest"},
        {"truncation": "middle"},
        {"max_length": 3.5, "truncation": True},
        {"max_length": True, "truncation": True},
        {"padding": True, "pad_to_multiple_of": 0},
        {"padding": True, "truncation": True, "max_length": 10, "pad_to_multiple_of": 8},
    ],
)
def test_impossible_lengths(tokenizer: Tokenizer, options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be|is no multiple"):
        tokenizer("the", **options)


def test_a_max_length_without_effect_is_said(tokenizer: Tokenizer) -> None:
    with pytest.warns(UserWarning, match="max_length=4 has no effect"):
        assert len(tokenizer(LONG, padding=True, max_length=4).input_ids) > 4


def test_tokens_and_ids_pass_through(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.tokenize("the city")
    assert tokenizer.encode(tokens) == tokenizer.encode("the city")
    assert tokenizer.encode(tokenizer.convert_tokens_to_ids(tokens)) == tokenizer.encode("the city")
    assert (
        tokenizer.convert_ids_to_tokens(torch.tensor(tokenizer.encode("the city", add_special_tokens=False))) == tokens
    )


def test_pad(tokenizer: Tokenizer) -> None:
    rows = [tokenizer("the"), tokenizer(LONG)]
    padded = tokenizer.pad(rows, return_tensors="pt")
    direct = tokenizer(["the", LONG], padding=True, return_tensors="pt")
    assert torch.equal(padded.input_ids, direct.input_ids)
    assert torch.equal(padded.attention_mask, direct.attention_mask)
    columns = tokenizer.pad({"input_ids": [row.input_ids for row in rows]}, padding="max_length", max_length=64)
    assert [len(row) for row in columns.attention_mask] == [64, 64]
    with pytest.raises(ValueError, match="needs input_ids"):
        tokenizer.pad([{"ids": [1]}])


def test_encoding_attributes(tokenizer: Tokenizer) -> None:
    with pytest.raises(AttributeError, match="no field 'labels'"):
        _ = tokenizer("the").labels
