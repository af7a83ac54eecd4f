"""Every argument of a call, and every field that comes back, equal to transformers' tokenizer of the same name."""

import itertools
import random
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tokenization.twins import Pair, bart_pair, pegasus_pair

TEXTS = [
    "the city council said that the mayor would meet again this year. <mask> the police",
    "",
    "a b",
    "  two  words\n<mask_1> ",
    "naïve café 東京 🙂 the river",
    "x" * 60,
    "the people of the city</s> and <pad>",
]
OTHERS = [
    "who said it?",
    "the long river of the other city is very long and wide",
    "",
    "b",
    "x y z",
    "the",
    "<unk_7> a",
]
WORDS = [text.split() or ["a"] for text in TEXTS]
OTHER_WORDS = [text.split() or ["b"] for text in OTHERS]

# Where transformers goes on and we refuse, because what it returns is not what was asked for.
REFUSALS = (
    "padding='max_length' needs max_length",  # theirs do not pad
    "must remove",  # their step-by-step class logs an error and returns the whole text
    "cannot be one tensor",  # NumPy arrays of lists
)


@pytest.fixture(scope="module", params=["pegasus", "pegasus_fast", "bart", "bart_fast", "bart_fast_words"])
def pair(request: pytest.FixtureRequest, spiece_files: dict[str, Path], bart_directory: Path) -> Pair:
    fast = "fast" in request.param
    if request.param.startswith("pegasus"):
        return pegasus_pair(spiece_files["unigram"], fast=fast)
    options = {"add_prefix_space": True, "trim_offsets": False} if request.param == "bart_fast_words" else {}
    return bart_pair(bart_directory, fast=fast, **options)


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, in plain lists that name the kind of array, or the exception that it raises."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*max_length")
            return {name: plain(value) for name, value in dict(call()).items()}
    except BaseException as error:
        if type(error).__name__ != "PanicException" and not isinstance(error, Exception):
            raise
        return error


def plain(value: Any) -> Any:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return type(value).__name__, str(value.dtype).removeprefix("torch."), value.tolist()
    return value


def assert_same_outcome(pair: Sequence[Any], *arguments: Any, **options: Any) -> None:
    ours, theirs = (outcome(lambda one=one: one(*arguments, **options)) for one in pair)
    if isinstance(theirs, BaseException):
        # Their fast class panics on a stride that is too long even where nobody asked for overflow.
        unasked = type(theirs).__name__ == "PanicException" and not options.get("return_overflowing_tokens")
        assert unasked or isinstance(ours, (ValueError, NotImplementedError, TypeError)), (options, theirs, ours)
    elif isinstance(ours, Exception):
        assert any(reason in str(ours) for reason in REFUSALS), (options, ours)
    else:
        assert ours == theirs, options


STRATEGIES = (None, False, True, "only_first", "only_second", "longest_first", "do_not_truncate")
LENGTHS = (None, 7, 8, 16)
PADDINGS = (False, True, "longest", "max_length", "do_not_pad")


@pytest.mark.parametrize("truncation", STRATEGIES)
def test_lengths(pair: Pair, truncation: bool | str | None) -> None:
    """Truncation, padding, both sides, multiples, strides and overflow, for texts and pairs, alone and in batches."""
    rng = random.Random(str(truncation))
    options = itertools.product(LENGTHS, PADDINGS, (None, 8), (0, 2), (False, True), ("left", "right"))
    for max_length, padding, multiple, stride, overflow, side in rng.sample(list(options), 60):
        for one in pair:
            one.truncation_side = side
        texts = rng.choice([(TEXTS,), (TEXTS, OTHERS), (TEXTS[0],), (TEXTS[0], OTHERS[1]), (TEXTS[0], OTHERS[2])])
        assert_same_outcome(
            pair,
            *texts,
            truncation=truncation,
            max_length=max_length,
            padding=padding,
            pad_to_multiple_of=multiple,
            stride=stride,
            padding_side=rng.choice([None, "left", "right"]),
            return_overflowing_tokens=overflow,
            return_special_tokens_mask=True,
            return_length=True,
            return_offsets_mapping=pair[0].is_fast,
            add_special_tokens=rng.random() < 0.8,
            return_tensors=rng.choice([None, None, "pt", "np"]),
        )
    for one in pair:
        one.truncation_side = "right"


@pytest.mark.parametrize("kind", [None, "pt", "np"])
def test_fields(pair: Pair, kind: str | None) -> None:
    fields = ("token_type_ids", "attention_mask", "special_tokens_mask", "offsets_mapping", "length")
    for chosen in itertools.chain.from_iterable(itertools.combinations(fields, n) for n in range(len(fields) + 1)):
        if "token_type_ids" in chosen and not (pair[0].is_fast or pair[0].cls_token):
            continue  # see test_pegasus_token_types
        options = {f"return_{name}": name in chosen for name in fields}
        if not pair[0].is_fast and "offsets_mapping" in chosen:
            for one in pair:
                with pytest.raises(NotImplementedError, match="Fast"):
                    one(TEXTS[0], **options)
            continue
        for texts in ((TEXTS,), (TEXTS, OTHERS), (TEXTS[0],), (TEXTS[0], OTHERS[1])):
            assert_same_outcome(pair, *texts, **options, padding=True, return_tensors=kind)


def test_words(pair: Pair) -> None:
    for options in (
        {},
        {"padding": "max_length", "truncation": True, "max_length": 12, "return_special_tokens_mask": True},
        {"return_offsets_mapping": pair[0].is_fast},
        {"truncation": "only_first", "max_length": 9, "stride": 2, "return_overflowing_tokens": True},
    ):
        for words in ((WORDS,), (WORDS, OTHER_WORDS), (WORDS[0],), (WORDS[0], OTHER_WORDS[1])):
            assert_same_outcome(pair, *words, is_split_into_words=True, **options)


def test_pairs_and_targets(pair: Pair) -> None:
    together = list(zip(TEXTS, OTHERS, strict=True))
    assert_same_outcome(pair, together)
    words = list(zip(WORDS, OTHER_WORDS, strict=True))
    assert_same_outcome([one.batch_encode_plus for one in pair], words, is_split_into_words=True)
    assert_same_outcome(pair, TEXTS, text_target=OTHERS, padding=True, return_tensors="pt")
    assert_same_outcome(pair, TEXTS[0], text_target=OTHERS[0], max_length=7, truncation=True)
    assert_same_outcome(pair, text_target=OTHERS, text_pair_target=TEXTS)
    assert_same_outcome(pair)
    ours, theirs = pair
    for name, arguments in (("encode_plus", (TEXTS[0], OTHERS[0])), ("batch_encode_plus", (together,))):
        assert dict(getattr(ours, name)(*arguments)) == dict(getattr(theirs, name)(*arguments)), name
    for text, other in together:
        assert ours.encode(text, other, max_length=9) == theirs.encode(text, other, max_length=9)


def test_ids_that_are_there_already(pair: Pair) -> None:
    ours, theirs = pair
    if ours.is_fast:
        return
    ids = theirs.encode(TEXTS[0], add_special_tokens=False)
    for more in (
        {},
        {"pair_ids": [9, 9]},
        {"max_length": 8, "truncation": "only_first", "return_special_tokens_mask": True},
    ):
        assert dict(ours.prepare_for_model(ids, **more)) == dict(theirs.prepare_for_model(ids, **more))
        assert ours.encode(ids) == theirs.encode(ids)


def test_targets_need_no_other_mode(pair: Pair) -> None:
    ours, _ = pair
    with ours.as_target_tokenizer():
        assert ours.encode(TEXTS[0]) == ours(text_target=TEXTS[0]).input_ids


def test_other_frameworks_are_refused(pair: Pair) -> None:
    for kind in ("tf", "jax"):
        with pytest.raises(ValueError, match=f"return_tensors must be 'pt', 'np' or None, got '{kind}'"):
            pair[0](TEXTS[0], return_tensors=kind)


def test_tokens_and_their_text(pair: Pair) -> None:
    ours, theirs = pair
    for text in TEXTS:
        tokens = theirs.tokenize(text)
        assert ours.tokenize(text) == tokens
        assert ours.convert_tokens_to_string(tokens) == theirs.convert_tokens_to_string(tokens)
        ids = theirs.convert_tokens_to_ids([*tokens, "no such token"])
        assert ours.convert_tokens_to_ids([*tokens, "no such token"]) == ids
        for skip in (False, True):
            assert ours.convert_ids_to_tokens(ids, skip) == theirs.convert_ids_to_tokens(ids, skip)
    ids = [theirs.encode(text) for text in TEXTS]
    for options in ({}, {"skip_special_tokens": True}, {"clean_up_tokenization_spaces": True}):
        assert ours.batch_decode(ids, **options) == theirs.batch_decode(ids, **options)
    if ours.is_fast:
        options = {"add_special_tokens": True, "pair": "b"}
        assert ours.tokenize(TEXTS[0], **options) == theirs.tokenize(TEXTS[0], **options)
    else:
        for one in pair:
            one.add_tokens("<doc>")
        tight = {"spaces_between_special_tokens": False}
        text = "the <doc>city"
        assert ours.decode(ours.encode(text), **tight) == theirs.decode(theirs.encode(text), **tight)


def test_building_sequences(pair: Pair) -> None:
    ours, theirs = pair
    for arguments in (([5, 6],), ([5, 6], [7])):
        built = theirs.build_inputs_with_special_tokens(*arguments)
        assert ours.build_inputs_with_special_tokens(*arguments) == built
        if ours.cls_token:
            types = theirs.create_token_type_ids_from_sequences(*arguments)
            assert ours.create_token_type_ids_from_sequences(*arguments) == types == [0] * len(built)
    for is_pair in (False, True):
        assert ours.num_special_tokens_to_add(is_pair) == theirs.num_special_tokens_to_add(is_pair)


@pytest.mark.parametrize("fast", [False, True])
def test_pegasus_token_types(spiece_files: dict[str, Path], fast: bool) -> None:
    """Theirs are those of a sequence without its end: one too few, and a call that pads them cannot make a tensor."""
    ours, theirs = pegasus_pair(spiece_files["unigram"], fast=fast)
    assert theirs.create_token_type_ids_from_sequences([5, 6], [7]) == [0, 0, 1]
    assert ours.create_token_type_ids_from_sequences([5, 6], [7]) == [0] * 4
    if not fast:
        row = theirs("the city", return_token_type_ids=True)
        assert len(row.token_type_ids) == len(row.input_ids) - 1
    assert set(ours("the city", "the", return_token_type_ids=True).token_type_ids) == {0}


def test_a_batch_heeds_split_special_tokens(spiece_files: dict[str, Path]) -> None:
    """Their step-by-step class forgets the argument in a batch, and not for one text."""
    ours, theirs = pegasus_pair(spiece_files["unigram"])
    options = {"split_special_tokens": True}
    assert theirs(["a</s>"], **options).input_ids != [theirs("a</s>", **options).input_ids]
    assert ours(["a</s>"], **options).input_ids == [ours("a</s>", **options).input_ids]
    assert ours("a</s>", **options).input_ids == theirs("a</s>", **options).input_ids


def test_pad(pair: Pair) -> None:
    rows = [dict(pair[1](text, return_special_tokens_mask=True)) for text in TEXTS]
    columns = {"input_ids": [row["input_ids"] for row in rows]}
    to_length = {"padding": "max_length", "max_length": 64, "pad_to_multiple_of": 24}
    for encodings, options in (
        (rows, {}),
        (rows, {**to_length, "return_tensors": "pt"}),
        (rows[0], to_length),
        (columns, {"padding_side": "left", "return_attention_mask": False, "return_tensors": "np"}),
    ):
        # They pad in place.
        assert_same_outcome([partial(one.pad, deepcopy(encodings)) for one in pair], **options)
