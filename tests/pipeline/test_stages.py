"""The stages called as plain functions, with a fake model: no Ray."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from pegasus_batch.documents import Document, Summary
from pegasus_batch.pipeline import cpus, stages
from pegasus_batch.pipeline.schema import INTERNAL_FIELDS
from pegasus_batch.pipeline.stages import RunModel, TokenizeDocuments, choose_window, read_documents, read_texts
from pegasus_batch.pipeline.summarize import Summarize, check_model, summary_fields
from pegasus_batch.pipeline.task import ModelSettings, model_name
from tests.pipeline.fakes import EchoModel, word_tokenizer


@pytest.fixture(autouse=True)
def same_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what a worker sets for its process."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def task(factory: Callable[..., Any] = EchoModel, several: bool = False, **settings: Any) -> Summarize:
    return Summarize(ModelSettings("unused", **settings), factory, "brief", several, tokenizer_factory=word_tokenizer)


def tokenize(table: pa.Table, passengers: pa.Schema | None = None) -> pa.Table:
    return TokenizeDocuments(task(), ("document",), passengers)(table)


def worker(several: bool = False) -> tuple[RunModel, EchoModel]:
    model = EchoModel()
    return RunModel(task(lambda settings, device: model, several), False, 1), model


@pytest.mark.parametrize(("usable", "expected"), [(8, 3), (2, 2)])
def test_a_worker_computes_with_its_threads_wherever_it_is_called(
    monkeypatch: pytest.MonkeyPatch, usable: int, expected: int
) -> None:
    """Ray calls from a thread of its own, and what OpenMP was told in another one does not count there.

    A cluster may announce more CPUs than there are.
    """
    monkeypatch.setattr(stages, "usable_cpus", lambda: usable)
    openmp = ctypes.CDLL("libgomp.so.1")
    found = []

    class Counting(EchoModel):
        def summarize_documents(self, documents: Sequence[Document]) -> list[Summary]:
            found.append(openmp.omp_get_max_threads())
            return super().summarize_documents(documents)

    made = RunModel(task(lambda settings, device: Counting()), False, 3)
    table = tokenize(pa.table({"document": ["a fox"]}))
    thread = threading.Thread(target=made, args=(table,))
    thread.start()
    thread.join()
    assert found == [expected]


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 6), ("250000 100000", 2), ("50000 100000", 1), ("nonsense", 6), ("1 0", 6), ("a b", 6), (None, 6)],
)
def test_a_containers_quota_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str | None, expected: int
) -> None:
    path = tmp_path / "cpu.max"
    if quota is not None:
        path.write_text(quota + "\n")
    monkeypatch.setattr(cpus, "_QUOTA", path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    assert cpus.usable_cpus() == expected


def not_utf8() -> pa.Array:
    offsets = pa.array([0, 3, 5, 6], pa.int32()).buffers()[1]
    return pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"fox\xff\xfex")])


def test_text_that_is_not_utf8_is_its_own_problem() -> None:
    """Parquet's writers do not check; converting such a column as a whole raises."""
    texts, reasons = read_texts(pa.chunked_array([not_utf8()]))
    assert texts == ["fox", None, "x"]
    assert reasons == {1: "the text is not valid UTF-8: byte 0 is 0xff"}


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, None], pa.int64()),
        pa.array([b"x", None], pa.binary()),
        pa.array([["x"], None], pa.list_(pa.string())),
        pa.array([10**18 + 1, None], pa.timestamp("ns")),  # has no Python value without loss
    ],
)
def test_a_column_that_is_not_text(column: pa.Array) -> None:
    texts, reasons = read_texts(pa.chunked_array([column]))
    assert texts == [None, None]
    assert reasons == {0: f"the text is of type {column.type}, expected a string"}


@pytest.mark.parametrize("data_type", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())])
def test_texts_of_every_string_type(data_type: pa.DataType) -> None:
    column = pa.chunked_array([pa.array(["x", None]).cast(data_type), pa.array(["y"]).cast(data_type)])
    assert read_texts(column) == (["x", None, "y"], {})


def test_tokens_travel_beside_the_passengers() -> None:
    table = pa.table({"document": ["a bb", None, " ".join(["c"] * 9)], "id": [1, 2, 3], "url": ["u", "v", "w"]})
    tokenized = tokenize(table, pa.schema([("id", pa.int64()), ("lang", pa.string())]))
    assert tokenized.column_names == ["id", "lang", *(field.name for field in INTERNAL_FIELDS)]
    documents = read_documents(tokenized)
    assert [list(document.token_ids) for document in documents] == [[1, 2], [], [1] * 8]
    assert [document.n_source_tokens for document in documents] == [2, 0, 9]
    assert [document.truncated for document in documents] == [False, False, True]
    assert [document.error for document in documents] == [None, "the text is null", None]


def test_a_missing_text_column_lists_the_others() -> None:
    with pytest.raises(ValueError, match="text column 'document' is not among the columns: id"):
        tokenize(pa.table({"id": [1]}))


def test_result_columns_follow_the_passengers() -> None:
    table = pa.table({"document": ["a bb", None], "id": [1, 2]})
    made, _ = worker(several=True)
    result = made(tokenize(table))
    assert result.schema.equals(pa.schema([*table.schema, *summary_fields("brief", several=True).values()]))
    assert result.to_pylist() == [
        {
            "document": "a bb", "id": 1, "brief": "2 tokens", "score": -0.5, "n_source_tokens": 2,
            "n_summary_tokens": 2, "truncated": False, "status": "ok", "error": None,
            "summaries": ["2 tokens", "second"],
        },
        {
            "document": None, "id": 2, "brief": None, "score": None, "n_source_tokens": 0,
            "n_summary_tokens": 0, "truncated": False, "status": "invalid", "error": "the text is null",
            "summaries": None,
        },
    ]  # fmt: skip


def test_types_stay_where_every_row_is_null() -> None:
    made, _ = worker(several=True)
    result = made(tokenize(pa.table({"document": pa.nulls(2, pa.string())})))
    assert result.schema.field("brief").type == pa.string()
    assert result.schema.field("summaries").type == pa.list_(pa.string())
    assert result.column("brief").null_count == 2


def test_one_bad_document_does_not_fail_its_neighbours() -> None:
    made, model = worker()
    result = made(tokenize(pa.table({"document": ["a", "poison", "b b"]})))
    assert result.column("status").to_pylist() == ["ok", "failed", "ok"]
    assert result.column("brief").to_pylist() == ["1 tokens", None, "2 tokens"]
    assert result.column("error").to_pylist() == [None, "IndexError: token 7777 is out of range", None]
    assert model.calls == [3, 1, 1, 1]


def test_auto_device_follows_the_reservation(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def factory(settings: ModelSettings, device: str) -> EchoModel:
        seen.append(device)
        return EchoModel()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for device, on_gpu in (("auto", True), ("auto", False), ("cpu", True)):
        RunModel(task(factory, device=device), on_gpu, 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    RunModel(task(factory), True, 1)
    assert seen == ["cuda", "cpu", "cpu", "cpu"]


@pytest.mark.parametrize(
    ("batch_tokens", "on_gpu", "workers", "rows", "window"),
    [
        (None, False, 1, None, 64),
        (None, True, 1, None, 8192),
        (10**9, False, 1, None, 8192),
        (1, False, 1, None, 16),
        (None, True, 8, 1000, 32),  # every worker gets several windows of a small job
        (None, False, 2, 3, 16),
        (None, False, 1, 0, 64),
        (None, False, 1, 290, 58),  # of one size: no last one of a few rows
        (None, False, 2, 10**6, 122),  # no more than some thousand windows, however long the job
        (None, True, 8, 10**9, 8192),
    ],
)
def test_windows(batch_tokens: int | None, on_gpu: bool, workers: int, rows: int | None, window: int) -> None:
    assert choose_window(batch_tokens, on_gpu, workers, rows) == window


@pytest.mark.parametrize(
    ("text_bytes", "longest", "window"),
    [
        (0, None, 64),
        (1, None, 1021),  # 98 of one size
        (448, None, 292),
        (1720, None, 76),
        (1720, 112, 292),
        (0, 112, 292),
        (448, 1024, 292),
        (10**6, 1024, 64),
    ],
)
def test_short_documents_share_larger_windows(text_bytes: int, longest: int | None, window: int) -> None:
    assert choose_window(None, False, 1, 10**5, text_bytes, longest) == window


def test_workers_open_the_model_from_other_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_name("google/pegasus-xsum") == "google/pegasus-xsum"  # a hub id, unless there is such a directory
    (tmp_path / "google" / "pegasus-xsum").mkdir(parents=True)
    assert model_name("google/pegasus-xsum") == str(tmp_path / "google" / "pegasus-xsum")
    assert model_name("absent") == str(tmp_path / "absent")


def test_a_model_is_checked_without_its_weights(model_dir: Path, tmp_path: Path) -> None:
    assert check_model(ModelSettings(str(model_dir), generation={"num_beams": 3}, max_source_tokens=40)).num_beams == 3
    with pytest.raises(ValueError, match="max_source_tokens=65"):
        check_model(ModelSettings(str(model_dir), generation={}, max_source_tokens=65))
    with pytest.raises(ValueError, match="num_return_sequences=3"):
        check_model(ModelSettings(str(model_dir), generation={"num_return_sequences": 3}, max_source_tokens=None))
    with pytest.raises(ValueError, match="positions: lower max_length"):
        check_model(ModelSettings(str(model_dir), generation={"max_length": 1000}, max_source_tokens=None))
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in model_dir.iterdir():
        if path.suffix != ".safetensors":
            (bare / path.name).write_bytes(path.read_bytes())
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        check_model(ModelSettings(str(bare), generation={}, max_source_tokens=None))
