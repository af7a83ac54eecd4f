"""What only the fast tokenizers have: offsets, positions, tokenizer.json."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from pegasus_batch import BartTokenizerFast, PegasusTokenizer, PegasusTokenizerFast
from pegasus_batch.tokenization import load_tokenizer
from tests.tokenization.twins import (
    Pair,
    assert_same_texts,
    assert_same_vocabulary,
    bart_pair,
    pegasus_pair,
    transformers,
)

TEXT = "the  café's <mask_1> river\nof 東京"
WORDS = ["the", "café", "<mask>", "said"]


@pytest.fixture(params=["pegasus", "bart"])
def pair(request: pytest.FixtureRequest, spiece_files: dict[str, Path], bart_directory: Path) -> Pair:
    if request.param == "pegasus":
        return pegasus_pair(spiece_files["unigram"], fast=True, model_max_length=77)
    return bart_pair(bart_directory, fast=True, add_prefix_space=True, model_max_length=77)


def test_offsets_point_into_the_text(spiece_files: dict[str, Path], bart_directory: Path) -> None:
    """Read off by hand: a token's offsets are the characters that it stands for, spaces only where it has nothing else."""
    text = "the city <mask>"
    bart = BartTokenizerFast(bart_directory / "vocab.json", bart_directory / "merges.txt")
    encoding = bart(text, return_offsets_mapping=True)
    pieces = [text[begin:end] for begin, end in encoding.offset_mapping]
    assert (pieces[0], pieces[-1], "".join(pieces)) == ("", "", "thecity<mask>")
    untrimmed = BartTokenizerFast(bart_directory / "vocab.json", bart_directory / "merges.txt", trim_offsets=False)
    offsets = untrimmed(text, return_offsets_mapping=True).offset_mapping
    assert "".join(text[begin:end] for begin, end in offsets) == text
    pegasus = PegasusTokenizerFast(spiece_files["unigram"])
    encoding = pegasus("the city", return_offsets_mapping=True, return_tensors="pt")
    assert encoding.offset_mapping.shape == (1, len(encoding.tokens()), 2)
    assert encoding.offset_mapping.dtype == torch.int64


def test_positions(pair: Pair) -> None:
    ours, theirs = (one([TEXT, "a b"], ["the city", "c"], padding=True) for one in pair)
    assert (ours.is_fast, len(ours.encodings)) == (True, 2)
    for i in (0, 1):
        for name in ("tokens", "word_ids", "sequence_ids"):
            assert getattr(ours, name)(i) == getattr(theirs, name)(i), name
        for at in range(len(ours.input_ids[i])):
            assert ours.token_to_chars(i, at) == theirs.token_to_chars(i, at)
            assert ours.token_to_word(i, at) == theirs.token_to_word(i, at)
            assert ours.token_to_sequence(i, at) == theirs.token_to_sequence(i, at)
    for at in range(len(TEXT)):
        assert ours.char_to_token(0, at) == theirs.char_to_token(0, at)
        assert ours.char_to_word(0, at) == theirs.char_to_word(0, at)
    for at in (0, 1):
        for sequence in (0, 1):
            assert ours.word_to_tokens(0, at, sequence) == theirs.word_to_tokens(0, at, sequence)
            assert ours.word_to_chars(0, at, sequence) == theirs.word_to_chars(0, at, sequence)
    alone, their_alone = (one(TEXT) for one in pair)
    assert alone.char_to_token(6) == their_alone.char_to_token(6)
    assert alone.token_to_chars(1).end == their_alone.token_to_chars(1).end
    words, their_words = (one(WORDS, is_split_into_words=True) for one in pair)
    assert words.word_ids() == their_words.word_ids()
    assert words.word_to_tokens(3) == their_words.word_to_tokens(3)


def test_step_by_step_encodings_have_no_positions(spiece_files: dict[str, Path]) -> None:
    encoding = PegasusTokenizer(spiece_files["unigram"])("the city")
    assert not encoding.is_fast
    with pytest.raises(ValueError, match="name ends in Fast"):
        encoding.tokens()


def test_an_encoding_pickles(pair: Pair) -> None:
    encoding = pickle.loads(pickle.dumps(pair[0](TEXT, return_tensors="pt")))
    assert encoding.to("cpu").input_ids.tolist() == [pair[0].encode(TEXT)]
    assert encoding.tokens() == pair[1](TEXT).tokens()


def test_pickle_needs_no_file(tmp_path: Path, spiece_files: dict[str, Path]) -> None:
    copy = tmp_path / "spiece.model"
    copy.write_bytes(spiece_files["unigram"].read_bytes())
    pickled = pickle.dumps(PegasusTokenizerFast(copy))
    copy.unlink()
    assert pickle.loads(pickled)(TEXT) == PegasusTokenizerFast(spiece_files["unigram"])(TEXT)


def test_what_overflows_becomes_sequences(pair: Pair) -> None:
    tokenizer = pair[0]
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    options = {"truncation": True, "max_length": 7, "add_special_tokens": False, "return_overflowing_tokens": True}
    encoding = tokenizer(["a", TEXT], stride=2, **options)
    assert encoding.overflow_to_sample_mapping == [0] + [1] * (len(encoding.input_ids) - 1)
    assert encoding.input_ids[1:3] == [ids[:7], ids[5:12]]


def test_a_stride_without_room(pair: Pair) -> None:
    n_special = pair[0].num_special_tokens_to_add()
    options = {"truncation": True, "max_length": n_special + 2, "return_overflowing_tokens": True}
    with pytest.raises(ValueError, match="stride=2 must be less than the 2 tokens"):
        pair[0](TEXT, stride=2, **options)
    with pytest.raises(ValueError, match="a text cannot be cut"):
        pair[0](TEXT, "of", truncation="only_second", max_length=n_special + 4)


def test_options_of_the_other_class(pair: Pair, spiece_files: dict[str, Path]) -> None:
    for tokenizer in pair:
        with pytest.raises(TypeError, match="add_prefix_space"):
            tokenizer(TEXT, add_prefix_space=True)
    with pytest.raises(TypeError, match="sp_model_kwargs"):
        PegasusTokenizerFast(spiece_files["unigram"], sp_model_kwargs={})


@pytest.mark.parametrize("bad", [None, 3, b"bytes", ["the", "city", "of"], ["\ud800"]])
def test_what_is_no_text(pair: Pair, bad: Any) -> None:
    with pytest.raises(ValueError, match=r"a text must be a string|lone surrogate"):
        pair[0](["the", bad])
    with pytest.raises(ValueError, match="a text must be a string"):
        pair[0].encode(bad)


def test_ids_outside_the_vocabulary(pair: Pair) -> None:
    """Theirs leave such an id out of the text."""
    assert pair[1].decode([7, 10**6]) == pair[1].decode([7])
    for index in (-100, 10**6):
        with pytest.raises(ValueError, match=f"id {index} is outside the vocabulary"):
            pair[0].decode([7, index])


def test_an_empty_pair_of_one_text_is_no_pair(pair: Pair) -> None:
    """So it is in transformers' fast classes, and only there and only for one text."""
    ours, theirs = pair
    assert ours("the", "") == dict(theirs("the", "")) == ours("the")
    assert ours(["the"], [""]) == dict(theirs(["the"], [""]))


def test_bytes_without_a_subword(tmp_path: Path) -> None:
    """The fast class drops them as theirs does; the step-by-step class has <unk>. It never raises on cut characters."""
    (tmp_path / "vocab.json").write_text('{"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "h": 4, "Ã": 5, "<mask>": 6}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    for ours, theirs in (bart_pair(tmp_path, fast=fast, errors="strict") for fast in (False, True)):
        assert ours.encode("hxh") == theirs.encode("hxh") == ([0, 4, 4, 2] if ours.is_fast else [0, 4, 3, 4, 2])
    assert ours.decode([4, 5]) == theirs.decode([4, 5]) == "h\ufffd"


def test_byte_fallback_is_said(spiece_files: dict[str, Path]) -> None:
    with pytest.warns(UserWarning, match="PegasusTokenizer reads it in full"):
        fast = PegasusTokenizerFast(spiece_files["byte_fallback"])
    slow = PegasusTokenizer(spiece_files["byte_fallback"])
    assert slow.decode(slow.encode("友達"), skip_special_tokens=True) == "友達"
    assert fast.unk_token_id in fast.encode("友達")


def test_directories_travel_both_ways(tmp_path: Path, pair: Pair, hard_texts: list[str]) -> None:
    for one, name in zip(pair, ("ours", "theirs"), strict=True):
        one.add_tokens(["<doc>"])
        one.add_special_tokens({"additional_special_tokens": ["<x>"]}, replace_additional_special_tokens=False)
        one("the city", truncation=True, max_length=3, padding="max_length")  # must not be saved
        one.save_pretrained(tmp_path / name)
    assert {path.name for path in (tmp_path / "ours").iterdir()} == {
        path.name for path in (tmp_path / "theirs").iterdir()
    }
    texts = [*hard_texts[::4], "a <doc> b<x>"]
    for directory in (tmp_path / "ours", tmp_path / "theirs"):
        ours = type(pair[0]).from_pretrained(directory)
        theirs = type(pair[1]).from_pretrained(directory)
        assert_same_vocabulary(ours, theirs)
        assert_same_texts(ours, theirs, texts)
        assert ours.model_max_length == theirs.model_max_length == 77
        slow = load_tokenizer(directory)
        assert slow.get_vocab() == ours.get_vocab()
    assert 'truncation": null' in (tmp_path / "ours" / "tokenizer.json").read_text(encoding="utf-8")


def test_tokenizer_json_alone(tmp_path: Path, pair: Pair) -> None:
    """The settings given beside the file win over those in it."""
    pair[1].save_pretrained(tmp_path)
    options = {"add_prefix_space": False, "trim_offsets": False} if isinstance(pair[0], BartTokenizerFast) else {}
    again = [type(one)(tokenizer_file=str(tmp_path / "tokenizer.json"), **options) for one in pair]
    assert_same_vocabulary(*again)
    assert_same_texts(*again, [TEXT, "  the city", "the"])


def test_added_tokens_that_only_the_other_class_has(tmp_path: Path, spiece_files: dict[str, Path]) -> None:
    """Their fast class loses them, too, and says nothing."""
    slow = PegasusTokenizer(spiece_files["unigram"])
    slow.add_tokens("<doc>")
    slow.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"knows nothing of \['<doc>'\]"):
        fast = PegasusTokenizerFast.from_pretrained(tmp_path)
    assert fast.encode("<doc>") == transformers.PegasusTokenizerFast.from_pretrained(tmp_path).encode("<doc>")
    assert len(fast) == len(slow) - 1


def test_an_empty_directory_names_the_file(tmp_path: Path) -> None:
    for kind, file in ((PegasusTokenizerFast, "spiece.model"), (BartTokenizerFast, "vocab.json")):
        with pytest.raises(FileNotFoundError, match=f"{file} is missing"):
            kind.from_pretrained(tmp_path)


def test_pegasus_without_its_model(tmp_path: Path, spiece_files: dict[str, Path]) -> None:
    PegasusTokenizerFast(spiece_files["unigram"]).save_pretrained(tmp_path)
    (tmp_path / "spiece.model").unlink()
    alone = PegasusTokenizerFast.from_pretrained(tmp_path)
    assert alone.encode(TEXT) == PegasusTokenizerFast(spiece_files["unigram"]).encode(TEXT)
    with pytest.raises(ValueError, match="load the tokenizer with vocab_file"):
        alone.save_vocabulary(tmp_path)
    alone.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again" / "spiece.model").exists()
    with pytest.raises(ValueError, match=r"a tokenizer_file that has the tokens \[PAD\]"):
        PegasusTokenizerFast.from_pretrained(tmp_path, pad_token="[PAD]")
    with pytest.raises(FileNotFoundError, match=r"copy spiece\.model .*PegasusTokenizerFast reads it"):
        load_tokenizer(tmp_path)


def test_other_reserved_tokens_rebuild_the_pipeline(tmp_path: Path, spiece_files: dict[str, Path]) -> None:
    PegasusTokenizerFast(spiece_files["unigram"]).save_pretrained(tmp_path)
    ours = PegasusTokenizerFast.from_pretrained(tmp_path, pad_token="[PAD]")
    theirs = transformers.PegasusTokenizerFast.from_pretrained(tmp_path, pad_token="[PAD]")
    assert ours.pad_token_id == theirs.pad_token_id == 0
    assert_same_texts(ours, theirs, [TEXT, "[PAD] <pad>"])


def test_files_of_another_family(tmp_path: Path, spiece_files: dict[str, Path], bart_directory: Path) -> None:
    bart = BartTokenizerFast.from_pretrained(bart_directory)
    bart.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="another family's"):
        PegasusTokenizerFast(tokenizer_file=tmp_path / "tokenizer.json")
    PegasusTokenizerFast(spiece_files["unigram"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="another family's"):
        BartTokenizerFast(tokenizer_file=tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        BartTokenizerFast(tokenizer_file=tmp_path / "tokenizer.json")
    with pytest.raises(FileNotFoundError, match="is missing"):
        BartTokenizerFast(tokenizer_file=tmp_path / "none.json")
    with pytest.raises(ValueError, match="pass both vocab_file and merges_file, or tokenizer_file"):
        BartTokenizerFast("vocab.json")
    with pytest.raises(ValueError, match="pass vocab_file"):
        PegasusTokenizerFast()
    (tmp_path / "spiece.model").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        PegasusTokenizerFast(tmp_path / "spiece.model")


@pytest.mark.filterwarnings("ignore:.*Parameter `name` of Model.save:DeprecationWarning")  # their call of the library
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("family", ["pegasus", "bart"])
def test_vocabulary_files_under_a_prefix(
    tmp_path: Path, fast: bool, family: str, spiece_files: dict[str, Path], bart_directory: Path
) -> None:
    is_bart = family == "bart"
    ours, theirs = bart_pair(bart_directory, fast=fast) if is_bart else pegasus_pair(spiece_files["unigram"], fast=fast)
    for one, name in ((ours, "ours"), (theirs, "theirs")):
        (tmp_path / name).mkdir()
        paths = [Path(path) for path in one.save_vocabulary(str(tmp_path / name), "draft")]
        assert paths == [
            tmp_path / name / f"draft-{file}"
            for file in (("vocab.json", "merges.txt") if is_bart else ("spiece.model",))
        ]
    for path in (tmp_path / "ours").iterdir():
        read = (lambda file: json.loads(file.read_text())) if path.suffix == ".json" else Path.read_bytes
        assert read(path) == read(tmp_path / "theirs" / path.name)
    with pytest.raises(FileNotFoundError, match="is not a directory"):
        ours.save_vocabulary(tmp_path / "nowhere")
