"""Whole jobs on a small cluster, with a tiny random model. Starting a job's workers costs seconds, so jobs are few."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray.data import Dataset

from pegasus_batch.pipeline import ConfigError, JobConfig, JobFailed, run, run_job, summarize_dataset
from pegasus_batch.pipeline.plan import Plan
from pegasus_batch.pipeline.schema import result_fields
from pegasus_batch.summarizer import Summarizer
from tests.pipeline.conftest import HARD_TEXTS, write_documents
from tests.pipeline.fakes import unloadable_model

pytestmark = [
    pytest.mark.usefixtures("cluster"),
    # Ray warns of the defaults of its own context.
    pytest.mark.filterwarnings("ignore:`use_\\w+` is deprecated:DeprecationWarning"),
    # Ray's file lister objects when a job ends before the listing does.
    pytest.mark.filterwarnings("ignore:.*completion-signaler:pytest.PytestUnhandledThreadExceptionWarning"),
]


def job(source: Path, output: Path, model: Path, **options: Any) -> JobConfig:
    options = {"device": "cpu", "num_gpus_per_worker": 0, "num_workers": 1, **options}
    return JobConfig(input=(str(source),), output=str(output), model=str(model), **options)


def read(output: Path) -> pa.Table:
    return pq.read_table(output).sort_by("id")


def summaries(table: pa.Table) -> dict[int, tuple[Any, ...]]:
    names = ["summary", "score", "n_source_tokens", "n_summary_tokens", "truncated", "status", "error"]
    return dict(zip(table["id"].to_pylist(), zip(*(table[n].to_pylist() for n in names), strict=True), strict=True))


def test_every_row_comes_out_the_same_however_the_work_is_cut(
    hard_dir: Path, hard_table: pa.Table, model_dir: Path, tmp_path: Path
) -> None:
    """Two files and one worker; one file, small batches and two workers on pretended GPUs; no pipeline at all."""
    lines: list[str] = []
    output = tmp_path / "out here"
    outcome = run_job(job(hard_dir, output, model_dir), show=lines.append)
    result = read(output)
    assert result.schema == pa.schema([*hard_table.schema, *result_fields("summary", several=False)])
    assert result.select(hard_table.column_names).equals(hard_table)
    n_invalid, long = 3, len(HARD_TEXTS)
    assert outcome.by_status == {"ok": len(hard_table) - n_invalid, "invalid": n_invalid}
    errors = result["error"].to_pylist()
    assert errors[:n_invalid] == ["the text is null", "the text is empty", "the text is blank"]
    assert not any(errors[n_invalid:])
    assert result["summary"].null_count == result["score"].null_count == n_invalid
    assert result["n_source_tokens"][long].as_py() > 100_000
    assert result["truncated"][long].as_py() is True
    assert lines[0].startswith("summarizing 48 rows of 2 files with 1 worker")

    published = sorted(path.name for path in output.iterdir())
    assert [name for name in published if not name.startswith("_")] == [Path(outcome.path).name]
    (record,) = (name for name in published if name.startswith("_"))
    assert json.loads((output / record).read_text())["rows_by_status"] == outcome.by_status
    for file in Path(outcome.path).glob("*.parquet"):
        assert pq.read_schema(file) == result.schema

    whole = write_documents(tmp_path / "all.parquet", hard_table["document"].to_pylist())
    gpus = {"num_gpus_per_worker": 1, "num_workers": 2, "batch_tokens": 64}
    run_job(job(whole, tmp_path / "two", model_dir, **gpus))
    assert summaries(result) == summaries(read(tmp_path / "two"))

    direct = Summarizer(model_dir, device="cpu").summarize(hard_table["document"].to_pylist())
    assert result["summary"].to_pylist() == [summary.text for summary in direct]
    assert result["score"].to_pylist() == [summary.score for summary in direct]


def test_options_limit_directories_by_key_and_files_of_nulls(model_dir: Path, tmp_path: Path) -> None:
    for day, start, texts in (("mon", 0, [None] * 5), ("tue", 5, ["quick fox"] * 5), ("wed", 10, ["x"])):
        write_documents(tmp_path / "in" / f"day={day}" / "x.parquet", texts, start=start, lang=pa.nulls(len(texts)))
    lone = write_documents(tmp_path / "lone.parquet", ["lazy dogs"] * 3, start=15, lang=["en"] * 3, url=["u"] * 3)
    config = JobConfig(
        input=(str(lone), str(tmp_path / "in")), output=str(tmp_path / "out"), model=str(model_dir), limit=10,
        device="cpu", num_gpus_per_worker=0, num_workers=1, columns=("day", "lang"), summary_column="brief",
        generation={"num_return_sequences": 2, "max_length": 6, "min_length": 4},
    )  # fmt: skip
    run_job(config)
    result = read(tmp_path / "out")
    fields = [("id", pa.int64()), ("lang", pa.string()), ("day", pa.string()), *result_fields("brief", several=True)]
    assert result.schema == pa.schema(fields)
    days = {**dict.fromkeys(range(5), "mon"), 5: "tue", 6: "tue", 15: None, 16: None, 17: None}
    rows = {row["id"]: row for row in result.to_pylist()}
    assert {key: row["day"] for key, row in rows.items()} == days
    assert {key: row["lang"] for key, row in rows.items() if row["lang"]} == dict.fromkeys((15, 16, 17), "en")
    assert {key for key, row in rows.items() if row["status"] == "invalid"} == set(range(5))
    for key in (5, 6, 15, 16, 17):
        assert len(rows[key]["summaries"]) == 2
        assert rows[key]["summaries"][0] == rows[key]["brief"]
        assert 3 <= rows[key]["n_summary_tokens"] <= 5
    assert result["summaries"].null_count == 5


def test_a_model_that_does_not_load_leaves_nothing_behind(model_dir: Path, tmp_path: Path) -> None:
    write_documents(tmp_path / "in.parquet", ["quick fox"])
    with pytest.raises(JobFailed, match="OSError: weights are truncated"):
        run_job(job(tmp_path / "in.parquet", tmp_path / "out", model_dir), factory=unloadable_model)
    assert not (tmp_path / "out").exists()


def write_statuses(*statuses: str) -> Any:
    """Return what stands in for the dataset's execution: a file with these statuses."""

    def write(plan: Plan, ds: Dataset, path: str) -> None:
        reasons = ["out of memory" if status == "failed" else None for status in statuses]
        nulls = {field.name: pa.nulls(len(statuses), field.type) for field in plan.schema}
        columns = {**nulls, "status": pa.array(statuses), "error": pa.array(reasons, pa.string())}
        Path(path).mkdir(parents=True)
        pq.write_table(pa.table(columns, schema=plan.schema), Path(path) / "x.parquet")

    return write


@pytest.fixture
def three(tmp_path: Path) -> Path:
    return write_documents(tmp_path / "in.parquet", ["quick fox", None, "lazy dogs"])


def test_a_model_that_fails_on_every_document_fails_the_job_but_shows_why(
    three: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_write", write_statuses("failed", "invalid", "failed"))
    with pytest.raises(JobFailed, match="the model failed on every document: out of memory"):
        run_job(job(three, tmp_path / "out", model_dir))
    assert sorted(pq.read_table(tmp_path / "out")["status"].to_pylist()) == ["failed", "failed", "invalid"]


def test_a_single_summary_makes_the_job_a_success(
    three: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_write", write_statuses("failed", "ok", "failed"))
    outcome = run_job(job(three, tmp_path / "out", model_dir))
    assert (outcome.by_status, outcome.errors) == ({"ok": 1, "failed": 2}, (("out of memory", 2),))


def test_lost_rows_are_not_published(
    three: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_write", write_statuses("ok", "ok"))
    (tmp_path / "out").mkdir()
    with pytest.raises(JobFailed, match="2 rows were written for 3 rows of input"):
        run_job(job(three, tmp_path / "out", model_dir))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143)])
def test_an_interrupted_job_cleans_up(
    error: BaseException, three: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(plan: Plan, ds: Dataset, path: str) -> None:
        write_statuses("ok")(plan, ds, path)
        raise error

    monkeypatch.setattr(run, "_write", write)
    with pytest.raises(type(error)):
        run_job(job(three, tmp_path / "out", model_dir))
    assert not (tmp_path / "out").exists()


def test_a_second_run_into_the_same_directory_is_refused(three: Path, model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "20240101").mkdir(parents=True)
    with pytest.raises(ConfigError, match="is not empty"):
        run_job(job(three, tmp_path / "out", model_dir))


def test_summarize_dataset_gives_the_same(model_dir: Path) -> None:
    texts = ["quick brown fox", None, "searching large text files on many machines", 5 * "lazy dogs "]
    table = pa.table(
        {"key": ["a", "b", "c", "d"], "body": texts, "when": pa.array([1, None, 3, 4], pa.timestamp("ns", "UTC"))}
    )
    ds = summarize_dataset(
        ray.data.from_arrow(table),
        model=model_dir,
        text_column="body",
        summary_column="brief",
        device="cpu",
        num_beams=3,
    )
    result = pa.concat_tables(ray.get(ds.to_arrow_refs())).sort_by("key")
    assert result.schema == pa.schema([*table.schema, *result_fields("brief", several=False)])
    assert result.select(table.column_names).equals(table)
    direct = Summarizer(model_dir, device="cpu", generation={"num_beams": 3}).summarize(texts)
    assert result["brief"].to_pylist() == [summary.text for summary in direct]
    assert result["status"].to_pylist() == [summary.status for summary in direct]


def test_summarize_dataset_refuses_before_any_work(model_dir: Path) -> None:
    ds = ray.data.from_arrow(pa.table({"id": [1], "document": ["x"], "score": [0.5]}))
    with pytest.raises(ValueError, match="'score' would overwrite"):
        summarize_dataset(ds, model=model_dir)
    with pytest.raises(ValueError, match="text_column 'body' is not among the columns: id, document, score"):
        summarize_dataset(ds, model=model_dir, text_column="body")
    with pytest.raises(ValueError, match="unknown generation option 'num_beam'"):
        summarize_dataset(ds, model=model_dir, num_beam=2)
    with pytest.raises(FileNotFoundError, match="is not a directory"):
        summarize_dataset(ds, model="/absent/model")
