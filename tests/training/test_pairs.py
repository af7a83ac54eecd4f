from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pegasus_batch.training.pairs import EncodedPairs, collate, encode_pairs, plan_batches, read_pairs


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [("a b", "x"), ("a b", "x"), ("a b", "y"), (None, "x"), ("  ", "x"), ("c", None), ("c", ""), ("d\ne", "z")]
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"text": [text for text, _ in rows], "short": [short for _, short in rows]}), path)
    return path


def test_rows_without_text_are_left_out(table: Path) -> None:
    pairs = read_pairs(table, "text", "short")
    assert list(zip(pairs.documents, pairs.summaries, strict=True)) == [
        ("a b", "x"),
        ("a b", "x"),
        ("a b", "y"),
        ("d\ne", "z"),
    ]


def test_exact_repetitions_can_be_dropped(table: Path) -> None:
    pairs = read_pairs(table, "text", "short", drop_duplicates=True)
    assert pairs.documents == ["a b", "a b", "d\ne"]
    assert pairs.summaries == ["x", "y", "z"]


def test_a_missing_column_is_named_with_those_there_are(table: Path) -> None:
    with pytest.raises(ValueError, match="no column 'document'; its columns: text, short"):
        read_pairs(table)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.parquet"):
        read_pairs(tmp_path / "nowhere.parquet")


def test_a_file_without_any_pair_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"document": [""], "summary": ["x"]}), tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match=r"empty\.parquet holds no row"):
        read_pairs(tmp_path / "empty.parquet")


class Letters:
    def encode(self, text: str, *, truncation: bool, max_length: int) -> list[int]:
        assert truncation
        return [*map(ord, text[: max_length - 1]), 1]


def test_texts_are_cut_and_keep_their_end(table: Path) -> None:
    encoded = encode_pairs(read_pairs(table, "text", "short"), Letters(), 3, 2)
    assert encoded.sources[0].tolist() == [97, 32, 1]
    assert encoded.targets[0].tolist() == [120, 1]
    assert encoded.sources[0].dtype == np.int32


@pytest.mark.parametrize("seed", [None, (0, 0), (0, 1)])
def test_every_document_is_in_one_batch_within_the_budget(seed: tuple[int, int] | None) -> None:
    lengths = np.random.default_rng(5).integers(2, 60, 500).tolist()
    batches = plan_batches(lengths, 200, seed)
    assert sorted(np.concatenate(batches).tolist()) == list(range(500))
    for batch in batches:
        assert max(lengths[i] for i in batch) * len(batch) <= 200


def test_a_document_beyond_the_budget_travels_alone() -> None:
    batches = plan_batches([3, 50, 4], 20)
    assert [batch.tolist() for batch in batches] == [[1], [2, 0]]


def test_epochs_differ_and_repeat() -> None:
    lengths = np.random.default_rng(5).integers(2, 60, 200).tolist()

    def plan(*seed: int) -> list[list[int]]:
        return [batch.tolist() for batch in plan_batches(lengths, 200, seed)]

    assert plan(0, 1) == plan(0, 1)
    assert plan(0, 1) != plan(0, 2)
    assert plan(0, 1) != plan(1, 1)


def test_batches_waste_little_on_padding() -> None:
    lengths = np.random.default_rng(5).integers(5, 120, 2000)
    batches = plan_batches(lengths.tolist(), 2500, (0, 0))
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    assert padded < 1.1 * lengths.sum()


def test_the_decoder_reads_the_labels_one_step_behind() -> None:
    sources = [np.array([9, 0, 8, 1], dtype=np.int32), np.array([7, 1], dtype=np.int32)]
    targets = [np.array([5, 1], dtype=np.int32), np.array([6, 0, 4, 1], dtype=np.int32)]
    batch = collate(EncodedPairs(sources, targets), [0, 1], pad_token_id=0, decoder_start_token_id=2)
    assert batch.input_ids.tolist() == [[9, 0, 8, 1], [7, 1, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]  # the padding id inside a text is attended
    assert batch.labels.tolist() == [[5, 1, -100, -100], [6, 0, 4, 1]]
    assert batch.decoder_input_ids.tolist() == [[2, 5, 1, 0], [2, 6, 0, 4]]
    assert all(tensor.dtype == torch.int64 for tensor in vars(batch).values())
