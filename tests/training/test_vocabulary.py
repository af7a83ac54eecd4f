"""A trained vocabulary has the layout that Pegasus' fixed ids need."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import sentencepiece

from pegasus_batch.tokenization import PegasusTokenizer, load_tokenizer
from pegasus_batch.training.vocabulary import train_vocabulary

VOCAB_SIZE = 150


@pytest.fixture(scope="module")
def texts(corpus: Path) -> list[str]:
    return pq.read_table(corpus / "train.parquet")["document"].to_pylist()


@pytest.fixture(scope="module")
def vocabulary(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary") / "spiece.model"
    train_vocabulary(texts, path, VOCAB_SIZE)
    return path


def test_special_ids_stand_where_pegasus_has_them(vocabulary: Path) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
    assert [pieces.id_to_piece(i) for i in range(3)] == ["<pad>", "</s>", "<unk>"]
    assert (pieces.pad_id(), pieces.eos_id(), pieces.unk_id(), pieces.bos_id()) == (0, 1, 2, -1)
    assert pieces.vocab_size() == VOCAB_SIZE - 103

    tokenizer = PegasusTokenizer(str(vocabulary))
    assert tokenizer.vocab_size == VOCAB_SIZE
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 105)
    ids = tokenizer.encode("This package is a library.")
    assert ids[-1] == 1
    assert ids[:-1] == [piece + 103 for piece in pieces.encode("This package is a library.")]
    assert max(ids) < VOCAB_SIZE


def test_text_survives_but_newlines_become_spaces(vocabulary: Path, tmp_path: Path) -> None:
    PegasusTokenizer(str(vocabulary), model_max_length=64).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("This package is a game.\nIt also knows stars.")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "This package is a game. It also knows stars."


def test_the_same_texts_give_the_same_vocabulary(texts: list[str], vocabulary: Path, tmp_path: Path) -> None:
    train_vocabulary(texts, tmp_path / "again.model", VOCAB_SIZE)
    assert (tmp_path / "again.model").read_bytes() == vocabulary.read_bytes()


def test_too_large_a_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size 5000: lower it"):
        train_vocabulary(["one short text"], tmp_path / "never.model", 5000)
    assert not (tmp_path / "never.model").exists()


def test_a_vocabulary_without_room_for_pieces_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size 104 leaves 1 pieces"):
        train_vocabulary(["text"], tmp_path / "never.model", 104)
