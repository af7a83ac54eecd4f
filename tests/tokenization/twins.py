"""Our tokenizers beside transformers' of the same name, and what equal means for them."""

import warnings
from pathlib import Path
from typing import Any

import pytest

import pegasus_batch
from pegasus_batch.tokenization import Tokenizer

transformers = pytest.importorskip("transformers", reason="the oracle; install the test extra")
transformers.logging.set_verbosity(transformers.logging.CRITICAL)

Pair = tuple[Tokenizer, Any]

BART_FILES = ("vocab.json", "merges.txt")


def pegasus_pair(file: Path, *, fast: bool = False, **options: Any) -> Pair:
    """Both tokenizers from one SentencePiece model."""
    return make_pair("PegasusTokenizer", fast, [str(file)], options)


def bart_pair(directory: Path, *, fast: bool = False, **options: Any) -> Pair:
    """Both tokenizers from one byte-level vocabulary."""
    return make_pair("BartTokenizer", fast, [str(directory / name) for name in BART_FILES], options)


def make_pair(name: str, fast: bool, files: list[str], options: dict[str, Any]) -> Pair:
    # The oracle appends to the list that it is given.
    theirs = {name: list(value) if isinstance(value, list) else value for name, value in options.items()}
    name += "Fast" if fast else ""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(byte fallback|spells unknown characters in bytes)")
        return getattr(pegasus_batch, name)(*files, **options), getattr(transformers, name)(*files, **theirs)


def assert_same_vocabulary(ours: Tokenizer, theirs: Any) -> None:
    assert ours.get_vocab() == theirs.get_vocab()
    assert (ours.vocab_size, len(ours)) == (theirs.vocab_size, len(theirs))
    for name in ("all_special_tokens", "all_special_ids", "additional_special_tokens", "special_tokens_map"):
        assert getattr(ours, name) == getattr(theirs, name), name
    flags = ("content", "special", "lstrip", "rstrip", "single_word", "normalized")
    expected = {i: [getattr(token, flag) for flag in flags] for i, token in theirs.added_tokens_decoder.items()}
    assert {i: [getattr(token, flag) for flag in flags] for i, token in ours.added_tokens_decoder.items()} == expected
    for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id"), name


def assert_same_texts(ours: Tokenizer, theirs: Any, texts: list[str]) -> None:
    """Ids, masks, offsets where there are any, tokens, and the texts that the ids decode to."""
    differing = [difference for text in texts if (difference := first_difference(ours, theirs, text))]
    assert not differing, f"{len(differing)} of {len(texts)} texts differ, such as {differing[0]!r:.500}"


def first_difference(ours: Tokenizer, theirs: Any, text: str) -> tuple[Any, ...] | None:
    options = {"return_special_tokens_mask": True, **({"return_offsets_mapping": True} if ours.is_fast else {})}
    expected = dict(theirs(text, **options))
    if (found := dict(ours(text, **options))) != expected:
        return text, found, expected
    ids = expected["input_ids"]
    for decoding in ({}, {"skip_special_tokens": True}, {"clean_up_tokenization_spaces": True}):
        if (found := ours.decode(ids, **decoding)) != (wanted := theirs.decode(ids, **decoding)):
            return text, decoding, found, wanted
    return None
