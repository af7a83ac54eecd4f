"""Which tokenizer a directory holds, and what its settings files may say."""

import json
from pathlib import Path

import pytest

from pegasus_batch.tokenization import BartTokenizer, PegasusTokenizer, load_tokenizer


@pytest.fixture
def pegasus_directory(tmp_path: Path, spiece_files: dict[str, Path]) -> Path:
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    (directory / "spiece.model").write_bytes(spiece_files["unigram"].read_bytes())
    return directory


def test_the_files_decide(pegasus_directory: Path, bart_directory: Path) -> None:
    assert isinstance(load_tokenizer(pegasus_directory), PegasusTokenizer)
    assert isinstance(load_tokenizer(str(bart_directory)), BartTokenizer)
    assert load_tokenizer(pegasus_directory, model_max_length=5).model_max_length == 5


def test_directories_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a directory"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="is not a directory"):
        PegasusTokenizer.from_pretrained(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="found nothing"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"expected spiece\.model .* found config\.json"):
        load_tokenizer(tmp_path)


def test_a_unigram_tokenizer_json_is_not_enough(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram"}}))
    with pytest.raises(FileNotFoundError, match=r"no spiece\.model.*copy spiece\.model"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "\udcff"])
def test_broken_settings_are_named(pegasus_directory: Path, content: str) -> None:
    path = pegasus_directory / "tokenizer_config.json"
    path.write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json"):
        load_tokenizer(pegasus_directory)


def test_settings_are_honoured_and_saved(pegasus_directory: Path, tmp_path: Path) -> None:
    settings = {
        "model_max_length": 9,
        "padding_side": "left",
        "truncation_side": "left",
        "clean_up_tokenization_spaces": True,
        "split_special_tokens": True,
        "offset": 20,
        "mask_token_sent": "<gap>",
        "sp_model_kwargs": {"enable_sampling": False},
        "pad_token": {"__type": "AddedToken", "content": "[PAD]", "rstrip": True},
        "a_later_invention": 1,
    }
    (pegasus_directory / "tokenizer_config.json").write_text(json.dumps(settings))
    first = load_tokenizer(pegasus_directory)
    first.save_pretrained(tmp_path / "again")
    for tokenizer in (first, load_tokenizer(tmp_path / "again")):
        for name in ("model_max_length", "padding_side", "offset", "mask_token_sent", "sp_model_kwargs"):
            assert getattr(tokenizer, name) == settings[name]
        assert tokenizer.truncation_side == "left"
        assert tokenizer.clean_up_tokenization_spaces and tokenizer.split_special_tokens
        assert tokenizer.encode("the<gap>[PAD]  city", split_special_tokens=False)[1:3] == [2, 0]
        assert tokenizer.convert_ids_to_tokens(19) == "<unk_17>"


def test_saving_again_drops_tokens_that_are_gone(pegasus_directory: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(pegasus_directory)
    tokenizer.add_tokens("<doc>")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "added_tokens.json").read_text()) == {"<doc>": tokenizer.vocab_size}
    load_tokenizer(pegasus_directory).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "added_tokens.json").exists()
    assert len(load_tokenizer(tmp_path / "saved")) == tokenizer.vocab_size


def test_saving_into_the_directory_it_came_from(pegasus_directory: Path) -> None:
    before = (pegasus_directory / "spiece.model").read_bytes()
    load_tokenizer(pegasus_directory).save_pretrained(pegasus_directory)
    assert (pegasus_directory / "spiece.model").read_bytes() == before


def test_special_tokens_under_other_names(pegasus_directory: Path) -> None:
    path = pegasus_directory / "tokenizer_config.json"
    path.write_text(json.dumps({"extra_special_tokens": {"image_token": "<image>"}}))
    with pytest.raises(ValueError, match="image_token"):
        load_tokenizer(pegasus_directory)
    path.write_text(json.dumps({"extra_special_tokens": ["<mask_1>", "<doc>"]}))
    assert load_tokenizer(pegasus_directory).additional_special_tokens[:3] == ["<mask_1>", "<doc>", "<unk_2>"]
