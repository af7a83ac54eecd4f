"""The BART tokenizer: its ids read off a hand-made vocabulary, and the files that it loads."""

import json
import pickle
from pathlib import Path

import pytest
import torch

from pegasus_batch.tokenization import BartTokenizer

VOCABULARY = ["<s>", "<pad>", "</s>", "<unk>", "h", "i", "Ġ", "hi", "Ġhi", "'", "s", "'s", "Ċ", "Ã", "©", "!", "Ġ!"]
MERGES = ["h i", "Ġ hi", "' s", "Ġ !"]


@pytest.fixture(scope="session")
def handmade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("handmade")
    ids = {token: index for index, token in enumerate([*VOCABULARY, "<mask>"])}
    (directory / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]), encoding="utf-8")
    return directory


@pytest.fixture
def tokenizer(handmade: Path) -> BartTokenizer:
    return BartTokenizer(handmade / "vocab.json", handmade / "merges.txt")


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("hi", [0, 7, 2]),
        (" hi", [0, 8, 2]),
        ("hi hi", [0, 7, 8, 2]),
        ("hi  hi", [0, 7, 6, 8, 2]),
        ("", [0, 2]),
        (" ", [0, 6, 2]),
        ("hi's", [0, 7, 11, 2]),
        ("hi'S", [0, 7, 9, 3, 2]),
        ("hi\nhi", [0, 7, 12, 7, 2]),
        ("é", [0, 13, 14, 2]),
        ("xx", [0, 3, 3, 2]),
        ("hi  <mask> hi", [0, 7, 17, 8, 2]),
        ("hi </s> hi", [0, 7, 6, 2, 8, 2]),
        ("<s><pad><unk>", [0, 0, 1, 3, 2]),
        ("hi !", [0, 7, 16, 2]),
    ],
)
def test_golden_ids(tokenizer: BartTokenizer, text: str, ids: list[int]) -> None:
    assert tokenizer.encode(text) == ids


def test_prefix_space_at_construction_and_at_call_time(handmade: Path, tokenizer: BartTokenizer) -> None:
    prefixed = BartTokenizer.from_pretrained(handmade, add_prefix_space=True)
    assert prefixed.encode("hi") == tokenizer.encode("hi", add_prefix_space=True) == [0, 8, 2]
    assert prefixed.encode("\nhi") == [0, 12, 7, 2]
    assert prefixed.encode("") == [0, 2]
    assert prefixed.encode("hi", add_prefix_space=False) == [0, 7, 2]


def test_words_get_a_space_each(tokenizer: BartTokenizer) -> None:
    assert tokenizer.encode(["hi", "hi"], is_split_into_words=True) == [0, 8, 8, 2]
    assert tokenizer([["hi", "!"], ["hi"]], is_split_into_words=True).input_ids == [[0, 8, 16, 2], [0, 8, 2]]
    assert tokenizer(["hi", "!"], is_split_into_words=True).input_ids == [0, 8, 16, 2]


def test_pairs_and_masks(tokenizer: BartTokenizer) -> None:
    assert tokenizer.encode("hi", " hi") == [0, 7, 2, 2, 8, 2]
    assert (tokenizer.num_special_tokens_to_add(), tokenizer.num_special_tokens_to_add(pair=True)) == (2, 4)
    assert tokenizer.get_special_tokens_mask([7, 7]) == [1, 0, 0, 1]
    assert tokenizer.get_special_tokens_mask([7], [8]) == [1, 0, 1, 1, 0, 1]
    assert tokenizer.get_special_tokens_mask([0, 7, 3, 2, 1], already_has_special_tokens=True) == [1, 0, 1, 1, 1]
    assert tokenizer.create_token_type_ids_from_sequences([7], [8, 8]) == [0] * 7


def test_decode(tokenizer: BartTokenizer) -> None:
    assert tokenizer.decode([0, 8, 16, 2, 1]) == "<s> hi !</s><pad>"
    assert tokenizer.decode([0, 8, 16, 3, 2], skip_special_tokens=True) == " hi !"
    assert tokenizer.decode([8, 16], clean_up_tokenization_spaces=True) == " hi!"
    assert tokenizer.batch_decode(torch.tensor([[0, 13, 14, 2]]), skip_special_tokens=True) == ["é"]


def test_cut_utf_8(handmade: Path, tokenizer: BartTokenizer) -> None:
    """A summary may end between the two bytes of a character."""
    assert tokenizer.decode([7, 13]) == "hi\ufffd"
    assert BartTokenizer.from_pretrained(handmade, errors="ignore").decode([7, 13]) == "hi"
    with pytest.raises(UnicodeDecodeError):
        BartTokenizer.from_pretrained(handmade, errors="strict").decode([7, 13])


@pytest.mark.parametrize("index", [-100, 18])
def test_decode_refuses_an_id_outside_the_vocabulary(tokenizer: BartTokenizer, index: int) -> None:
    with pytest.raises(ValueError, match=f"{index} is outside the vocabulary of 18"):
        tokenizer.decode([7, index])


def test_missing_special_tokens_get_new_ids(tmp_path: Path) -> None:
    """Checkpoints exist whose vocabulary has no mask token, and one without <unk> must not lose bytes silently."""
    ids = {token: index for index, token in enumerate(["<s>", "<pad>", "</s>", "h"])}
    (tmp_path / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer = BartTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("hx<mask>") == [0, 3, 4, 5, 2]
    assert len(tokenizer) == 6
    assert BartTokenizer.from_pretrained(tmp_path, mask_token=None).mask_token_id is None


def test_merges_file_format(tmp_path: Path, handmade: Path) -> None:
    """The first line is never a merge, nor is what follows the last new line; of repeated merges the last one ranks."""
    (tmp_path / "vocab.json").write_bytes((handmade / "vocab.json").read_bytes())
    (tmp_path / "merges.txt").write_text("' s\nh i\n\nĠ hi\nĠ !", encoding="utf-8")
    assert BartTokenizer.from_pretrained(tmp_path).encode(" hi's !") == [0, 8, 9, 10, 6, 15, 2]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n' s\nĠ h\nh i\nĠ hi\nĠ h\n", encoding="utf-8")
    with pytest.raises(ValueError, match="'Ġh' is not in the vocabulary"):
        BartTokenizer.from_pretrained(tmp_path)
    vocabulary = json.loads((handmade / "vocab.json").read_text(encoding="utf-8"))
    (tmp_path / "vocab.json").write_text(json.dumps({**vocabulary, "Ġh": 18}), encoding="utf-8")
    assert BartTokenizer.from_pretrained(tmp_path).encode(" hi h") == [0, 8, 18, 2]


def test_tokenizer_json_alone(tmp_path: Path, handmade: Path, tokenizer: BartTokenizer) -> None:
    ids = json.loads((handmade / "vocab.json").read_text(encoding="utf-8"))
    mask = {"id": 17, "content": "<mask>", "lstrip": True, "rstrip": False, "single_word": False, "special": True}
    content = {
        "added_tokens": [{**mask, "normalized": False}, {**mask, "id": 18, "content": "<doc>", "special": False}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "model": {"type": "BPE", "vocab": ids, "merges": MERGES},
    }
    for merges in (MERGES, [merge.split() for merge in MERGES]):
        content["model"]["merges"] = merges
        (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
        loaded = BartTokenizer.from_pretrained(tmp_path)
        for text in ("hi  <mask> hi's", " hi</s>!"):
            assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.encode("hi  <doc> hi") == [0, 7, 18, 8, 2]
    content["pre_tokenizer"] = {"type": "Whitespace"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="'Whitespace'"):
        BartTokenizer.from_pretrained(tmp_path)


def test_files_that_do_not_fit_together(tmp_path: Path, handmade: Path) -> None:
    (tmp_path / "vocab.json").write_bytes((handmade / "vocab.json").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"merges\.txt is missing"):
        BartTokenizer.from_pretrained(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh s\n", encoding="utf-8")
    with pytest.raises(ValueError, match="'hs' is not in the vocabulary"):
        BartTokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pass both"):
        BartTokenizer(handmade / "vocab.json")


def test_impossible_options(handmade: Path) -> None:
    with pytest.raises(ValueError, match="cls_token must be a string"):
        BartTokenizer.from_pretrained(handmade, cls_token=None)
    with pytest.raises(ValueError, match=r"no option \['offset'\]"):
        BartTokenizer.from_pretrained(handmade, offset=3)


def test_lone_surrogates_are_named(tokenizer: BartTokenizer) -> None:
    with pytest.raises(ValueError, match=r"lone surrogate, .* at character 3"):
        tokenizer.encode("hi \udc80")


def test_long_documents(tokenizer: BartTokenizer) -> None:
    """Anything quadratic in 100,000 words or in the letters of one word would not come back."""
    n = 100_000
    assert tokenizer.encode(" hi" * n) == [0, *[8] * n, 2]
    assert tokenizer.encode("hi" * n) == [0, *[7] * n, 2]
    assert tokenizer.encode(" <mask>" * n) == [0, *[17] * n, 2]


def test_pickle(tokenizer: BartTokenizer) -> None:
    assert pickle.loads(pickle.dumps(tokenizer)).encode("hi <mask>'s") == tokenizer.encode("hi <mask>'s")
