"""The Pegasus tokenizer: its ids read off hand-made models, and equal to transformers' on texts that are hard."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from pegasus_batch.tokenization import AddedToken, PegasusTokenizer, PegasusTokenizerFast
from tests.tokenization.vocabularies import write_spiece

PIECES = [
    ("<pad>", 0.0, 3),
    ("</s>", 0.0, 3),
    ("<unk>", 0.0, 2),
    ("▁hello", -1.0, 1),
    ("▁world", -2.0, 1),
    ("▁", -3.0, 1),
    ("s", -4.0, 1),
    ("<n>", 0.0, 4),
    ("!", -4.0, 1),
]


@pytest.fixture(scope="session")
def handmade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_spiece(tmp_path_factory.mktemp("handmade") / "spiece.model", PIECES, 2)


@pytest.fixture
def tokenizer(handmade: Path) -> PegasusTokenizer:
    return PegasusTokenizer(handmade)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("hello worlds", [106, 107, 109, 1]),
        ("", [1]),
        ("   ", [1]),
        ("hello  world ", [106, 107, 1]),
        ("hello<n> hello", [106, 110, 106, 1]),
        ("hello</s>world", [106, 1, 107, 1]),
        ("<mask_1> hello <mask_2>!", [2, 106, 3, 108, 111, 1]),
        ("<pad><unk_2><unk_7><unk_102>", [0, 4, 9, 104, 1]),
        ("<unk>", [105, 1]),
        ("友達", [108, 105, 1]),
        ("hello 友達 world", [106, 108, 105, 107, 1]),
    ],
)
def test_golden_ids(handmade: Path, tokenizer: PegasusTokenizer, text: str, ids: list[int]) -> None:
    assert tokenizer.encode(text) == ids
    assert PegasusTokenizerFast(handmade).encode(text) == ids


def test_new_lines_are_white_space(spiece_files: dict[str, Path]) -> None:
    """Google's own pipeline wrote <n> for a new line; the released checkpoints' tokenizer does not."""
    tokenizer = PegasusTokenizer(spiece_files["unigram"])
    assert tokenizer.encode("the city\nthe people\t.\n") == tokenizer.encode("the city the people .")
    assert tokenizer.encode(" \n\t ") == [1]


def test_id_layout(tokenizer: PegasusTokenizer) -> None:
    assert tokenizer.vocab_size == len(tokenizer) == len(PIECES) + 103
    named = ("pad_token", "eos_token", "mask_token", "unk_token")
    assert [getattr(tokenizer, f"{name}_id") for name in named] == [0, 1, 3, 105]
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 4, 104, 105, 106]) == [
        "<pad>", "</s>", "<mask_1>", "<mask_2>", "<unk_2>", "<unk_102>", "<unk>", "▁hello",
    ]  # fmt: skip
    assert tokenizer.additional_special_tokens == ["<mask_1>", *(f"<unk_{i}>" for i in range(2, 103))]
    assert sorted(tokenizer.all_special_ids) == list(range(106))
    assert tokenizer.bos_token_id is None


def test_unknown_piece_is_the_models_own(tmp_path: Path) -> None:
    """Unknown text was once given id 105 whatever the model's unknown piece was."""
    pieces = [PIECES[2], PIECES[0], PIECES[1], *PIECES[3:]]
    tokenizer = PegasusTokenizer(write_spiece(tmp_path / "spiece.model", pieces, 0))
    assert tokenizer.encode("友達") == [108, 103, 1]
    assert tokenizer.convert_tokens_to_ids("no such piece") == 103


def test_offset_0_puts_the_reserved_tokens_over_the_models_own(handmade: Path) -> None:
    tokenizer = PegasusTokenizer(handmade, offset=0)
    assert tokenizer.vocab_size == len(PIECES)
    assert tokenizer.encode("hello!<mask_1>") == [3, 8, 2, 1]
    assert tokenizer.additional_special_tokens == ["<mask_1>"]


def test_decode(tokenizer: PegasusTokenizer) -> None:
    ids = [106, 107, 109, 1, 0, 0]
    assert tokenizer.decode(ids) == "hello worlds</s><pad><pad>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hello worlds"
    assert tokenizer.decode([106, 105, 104, 2, 107], skip_special_tokens=True) == "hello world"
    assert tokenizer.decode([108, 106, 108]) == "hello"
    assert tokenizer.decode([]) == tokenizer.decode([1], skip_special_tokens=True) == ""
    assert tokenizer.decode(106) == tokenizer.decode(torch.tensor(106)) == "hello"
    assert tokenizer.decode([106, 108, 111]) == "hello !"
    assert tokenizer.decode([106, 108, 111], clean_up_tokenization_spaces=True) == "hello!"
    assert tokenizer.batch_decode(torch.tensor([[106, 1], [107, 0]]), skip_special_tokens=True) == ["hello", "world"]
    assert tokenizer.batch_decode(np.array([[106, 1]])) == ["hello</s>"]


@pytest.mark.parametrize("index", [-100, 112, 10**9])
def test_decode_refuses_an_id_outside_the_vocabulary(tokenizer: PegasusTokenizer, index: int) -> None:
    with pytest.raises(ValueError, match=f"{index} is outside the vocabulary of 112"):
        tokenizer.decode([106, index])


def test_pairs_and_masks(tokenizer: PegasusTokenizer) -> None:
    assert tokenizer.encode("hello", "world") == [106, 107, 1]
    assert tokenizer.num_special_tokens_to_add() == tokenizer.num_special_tokens_to_add(pair=True) == 1
    assert tokenizer.get_special_tokens_mask([106, 105, 2]) == [0, 0, 1, 1]
    assert tokenizer.get_special_tokens_mask([106], [107, 0]) == [0, 0, 1, 1]
    assert tokenizer.get_special_tokens_mask([106, 1, 0], already_has_special_tokens=True) == [0, 1, 1]


def test_split_special_tokens_reads_them_as_text(tokenizer: PegasusTokenizer) -> None:
    assert 1 not in tokenizer.encode("hello</s>", split_special_tokens=True)[:-1]
    tokenizer.split_special_tokens = True
    assert 1 not in tokenizer.encode("hello</s>")[:-1]


def test_sampling_options_reach_sentencepiece_and_survive_pickling(spiece_files: dict[str, Path]) -> None:
    options = {"enable_sampling": True, "nbest_size": -1, "alpha": 0.1}
    sampling = PegasusTokenizer(spiece_files["unigram"], sp_model_kwargs=options)
    text = "the people of the city council"
    for tokenizer in (sampling, pickle.loads(pickle.dumps(sampling))):
        assert len({tuple(tokenizer.encode(text)) for _ in range(30)}) > 1


def test_pickle_needs_no_file(tmp_path: Path, handmade: Path) -> None:
    """A worker on another machine does not have the driver's files."""
    copy = tmp_path / "spiece.model"
    copy.write_bytes(handmade.read_bytes())
    pickled = pickle.dumps(PegasusTokenizer(copy))
    copy.unlink()
    assert pickle.loads(pickled).encode("hello<mask_1>") == [106, 2, 1]


def test_additional_special_tokens(handmade: Path) -> None:
    tokenizer = PegasusTokenizer(handmade, additional_special_tokens=["<mask_1>", "<unk_2>", "<doc>"])
    assert tokenizer.encode("<doc>hello") == [len(PIECES) + 103, 106, 1]
    assert tokenizer.decode(tokenizer.encode("<doc>hello"), skip_special_tokens=True) == "hello"
    assert PegasusTokenizer(handmade, additional_special_tokens=["<unk_5>"]).encode("<unk_5>") == [7, 1]
    with pytest.raises(ValueError, match="must be a list"):
        PegasusTokenizer(handmade, additional_special_tokens="<unk_5>")


def test_add_tokens(tokenizer: PegasusTokenizer) -> None:
    assert tokenizer.add_tokens(["<doc>", "<mask_1>", AddedToken("<tab>", lstrip=True)]) == 2
    assert len(tokenizer) == tokenizer.vocab_size + 2
    assert tokenizer.encode("hello <doc>world  <tab>") == [106, 112, 107, 113, 1]
    assert tokenizer.decode([106, 112, 107], skip_special_tokens=True) == "hello <doc> world"
    assert tokenizer.add_tokens("<sep>", special_tokens=True) == 1
    assert tokenizer.decode([106, 114], skip_special_tokens=True) == "hello"


def test_add_tokens_never_takes_an_id_in_use(spiece_files: dict[str, Path]) -> None:
    """With an unknown piece 0 there are fewer different tokens than ids, and counting them gave one away twice."""
    tokenizer = PegasusTokenizer(spiece_files["unk_is_0"])
    taken = set(tokenizer.get_vocab().values())
    tokenizer.add_tokens("<doc>")
    assert tokenizer.convert_tokens_to_ids("<doc>") not in taken


def test_longest_special_token_wins(tokenizer: PegasusTokenizer) -> None:
    tokenizer.add_tokens(["<a", "<a b>"])
    assert tokenizer.tokenize("<a b><a") == ["<a b>", "<a"]


def test_long_documents(tokenizer: PegasusTokenizer) -> None:
    """Anything quadratic in 100,000 words, special tokens or letters of one word would not come back."""
    n = 100_000
    assert tokenizer.encode("hello world " * n) == [106, 107] * n + [1]
    assert tokenizer.encode("hello</s> " * n) == [106, 1] * n + [1]
    assert tokenizer.encode("hello" + "s" * n) == [106] + [109] * n + [1]
    assert tokenizer.decode([106, 107] * n) == " ".join(["hello world"] * n)


@pytest.mark.parametrize("text", ["\ud800", "hello \udfff world", "a\ud83d b"])
def test_lone_surrogates_are_named(tokenizer: PegasusTokenizer, text: str) -> None:
    with pytest.raises(ValueError, match="lone surrogate"):
        tokenizer.encode(text)
    with pytest.raises(ValueError, match="text 1: the text has a lone surrogate"):
        tokenizer(["hello", text])


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    pointer = tmp_path / "spiece.model"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        PegasusTokenizer(pointer)
    with pytest.raises(FileNotFoundError, match="missing"):
        PegasusTokenizer(tmp_path / "none.model")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offset": -1}, "offset"),
        ({"mask_token": None}, "mask_token"),
        ({"pad_token": None}, "pad_token must be a string"),
        ({"padding_side": "middle"}, "padding_side"),
    ],
)
def test_impossible_options(handmade: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PegasusTokenizer(handmade, **options)
    with pytest.raises(ValueError, match=message):
        PegasusTokenizerFast(handmade, **options)
