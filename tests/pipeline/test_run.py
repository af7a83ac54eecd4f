"""Whole jobs on a small cluster, with a tiny random model. Starting a job's workers costs seconds, so jobs are few."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from rich.console import Console

from pegasus_batch.documents import DocumentTokenizer
from pegasus_batch.pipeline import ConfigError, JobConfig, JobFailed, read_summaries, run, run_job, summarize_dataset
from pegasus_batch.pipeline.inputs import locate
from pegasus_batch.pipeline.ledger import Ledger
from pegasus_batch.pipeline.lock import OutputLock, OutputLocked
from pegasus_batch.pipeline.reader import ReadUnits, plan_units
from pegasus_batch.pipeline.sink import SummaryDatasink
from pegasus_batch.pipeline.stages import RunModel, TokenizeDocuments, Workers, transform
from pegasus_batch.pipeline.status import describe_output
from pegasus_batch.pipeline.summarize import Summarize, summary_fields
from pegasus_batch.pipeline.task import ModelSettings
from pegasus_batch.summarizer import Summarizer
from tests.pipeline.conftest import HARD_TEXTS, run_script, write_documents
from tests.pipeline.fakes import echo_model, page_counter, unloadable_model

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
    assert result.schema == pa.schema([*hard_table.schema, *summary_fields().values()])
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

    assert sorted(path.name for path in output.iterdir()) == [
        Path(outcome.path).name,
        f"_manifest-{Path(outcome.path).name}.json",
    ]
    record = json.loads(next(output.glob("_manifest*")).read_text())
    assert record["rows_by_status"] == outcome.by_status
    for file in Path(outcome.path).glob("[!_]*.parquet"):
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
    fields = [
        ("id", pa.int64()),
        ("lang", pa.string()),
        ("day", pa.string()),
        *summary_fields("brief", several=True).values(),
    ]
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


def test_a_worker_keeps_the_memory_that_it_frees(model_dir: Path, tmp_path: Path) -> None:
    source = write_documents(tmp_path / "in.parquet", ["quick fox"])
    run_job(job(source, tmp_path / "out", model_dir), factory=page_counter)
    (pages,) = read(tmp_path / "out")["summary"].to_pylist()
    assert int(pages) < 1000  # of the 18,432 of the block, which several threads may share


def test_a_model_that_does_not_load_publishes_nothing(model_dir: Path, tmp_path: Path) -> None:
    write_documents(tmp_path / "in.parquet", ["quick fox"])
    with pytest.raises(JobFailed, match="OSError: weights are truncated\nNothing was published"):
        run_job(job(tmp_path / "in.parquet", tmp_path / "out", model_dir), factory=unloadable_model)
    assert not list((tmp_path / "out").glob("[!_.]*"))
    with pytest.raises(ValueError, match="it has: none"):
        read_summaries(str(tmp_path / "out"))


POISON = "fox " * 60


def echo(model_dir: Path, text: str) -> str:
    """Return the summary that the fake model gives."""
    return " ".join(map(str, DocumentTokenizer(model_dir).tokenize([text])[0].token_ids))


def test_nights(model_dir: Path, tmp_path: Path) -> None:
    """New files, a rewritten file, bad files, another model: every night does what is new, and readers see the newest."""
    corpus, output = tmp_path / "in", tmp_path / "out"
    write_documents(corpus / "a.parquet", ["quick fox", "lazy dogs", POISON, None])
    lines: list[str] = []

    def night(**options: Any) -> Any:
        lines.clear()
        return run_job(job(corpus, output, model_dir, **options), factory=echo_model, show=lines.append)

    def seen() -> dict[Any, Any]:
        table = read_summaries(str(output))
        return dict(zip(table["id"].to_pylist(), table["status"].to_pylist(), strict=True))

    first = night()
    assert (first.n_worked, first.by_status) == (4, {"ok": 2, "invalid": 1, "failed": 1})
    again = night()
    assert (again.n_rows, again.n_worked, lines) == (0, 0, [])

    write_documents(corpus / "b.parquet", ["small tools", "large text", "small tools"], start=1)
    second = night()
    assert (second.n_worked, second.duplicate_ids) == (3, 0)
    assert len(read_summaries(str(output))) == 7

    # A file is rewritten with one row changed, one new, in another order; the poisoned row failed and is tried again.
    texts = ["new dogs", "lazy dogs", "quick fox", POISON, "wholly new"]
    write_documents(corpus / "a.parquet", texts, start=10)
    third = night(changed_rows=True)
    assert (third.n_rows, third.carried) == (5, 2)
    assert third.by_status == {"ok": 4, "failed": 1}
    table = read_summaries(str(output))
    current = {row["id"]: row for row in table.to_pylist()}
    assert sorted(current) == [1, 2, 3, 10, 11, 12, 13, 14]
    assert [current[i]["document"] for i in range(10, 15)] == texts
    expected = [None if text == POISON else echo(model_dir, text) for text in texts]
    assert [current[i]["summary"] for i in range(10, 15)] == expected
    assert len(pq.read_table(output)) == 12  # a plain reader sees superseded rows too

    (corpus / "c.parquet").write_bytes(b"PAR1 torn")
    (corpus / "d.parquet").write_bytes(b"")
    write_documents(corpus / "e.parquet", ["late fox"], start=20)
    pq.write_table(pa.table({"id": ["x"], "document": ["types drift"]}), corpus / "f.parquet")
    pq.write_table(pa.table({"id": [30]}), corpus / "g.parquet")
    with pytest.raises(ConfigError, match=r"4 of 5 input files cannot be used; .*--on-bad-file skip"):
        night()
    assert len(seen()) == 8
    fourth = night(on_bad_file="skip")
    assert (fourth.n_rows, len(fourth.bad_files)) == (1, 4)
    reasons = {Path(uri).name: reason for uri, reason in fourth.bad_files}
    assert reasons["d.parquet"] == "the file is empty (0 bytes)"
    assert reasons["f.parquet"].startswith("column 'id' is string, but int64 in ")
    assert reasons["g.parquet"] == "there is no column 'document'"
    assert sum(line.startswith("skipping ") for line in lines) == 4
    fifth = night(on_bad_file="skip")
    assert (fifth.n_rows, dict(fifth.bad_files)) == (0, dict(fourth.bad_files))

    other = night(on_bad_file="skip", generation={"num_beams": 3}, limit=2)
    assert other.n_rows == 2
    assert len(seen()) == 2
    assert night(on_bad_file="skip").n_rows == 0  # the first one's work is still there

    stream = io.StringIO()
    Console(file=stream, width=200).print(describe_output(str(output)))
    text = stream.getvalue()
    assert text.count("committed ") == 5
    assert "IndexError: token 7777 is out of range" in text
    assert "the file is empty (0 bytes)" in text


def test_a_run_goes_on_where_it_stopped(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that were written count; a changed input is left out of the old run and done anew."""
    corpus, output = tmp_path / "in", tmp_path / "out"
    write_documents(corpus / "a.parquet", ["quick fox"] * 40)
    write_documents(corpus / "b.parquet", ["lazy dogs"] * 10, start=40)
    lines: list[str] = []

    def run_it(**options: Any) -> Any:
        return run_job(
            job(corpus, output, model_dir, rows_per_file=16, **options), factory=echo_model, show=lines.append
        )

    put = SummaryDatasink._put
    written: list[str] = []

    def stop_in_the_middle(self: SummaryDatasink, name: str, table: pa.Table) -> None:
        put(self, name, table)
        if not name.startswith("_rows-"):
            written.append(name)
        if len(written) == 2:
            raise SystemExit(143)

    def execute(self: Any, directory: Any, progress: Any, workers: Any) -> None:
        """Stand in for Ray: write two files of rows, then be told to stop."""
        sink = SummaryDatasink(directory, progress.attempt, self.plan.schema(self.job), 16, 16)
        monkeypatch.setattr(SummaryDatasink, "_put", stop_in_the_middle)
        tokenize = TokenizeDocuments(self.job.task, ("document",), self.plan.passengers)
        stage = RunModel(self.job.task, False, 1)
        for index, unit in enumerate(plan_units(self.plan, progress.done, 16)):
            reader = ReadUnits(("id", "document"), ("document",), "id", False, "", ())
            sink.write([stage(tokenize(table)) for table in reader(unit)], SimpleNamespace(task_idx=index))

    with monkeypatch.context() as patch:
        patch.setattr(run._Run, "_execute", execute)
        with pytest.raises(SystemExit):
            run_it()
    monkeypatch.setattr(SummaryDatasink, "_put", put)
    names = sorted(path.name for path in output.iterdir())
    assert [name.split("-")[0] for name in names] == ["_plan", "_run"]  # and no lock
    with pytest.raises(ValueError, match="it has: none"):
        read_summaries(str(output))

    other = run_job(
        job(corpus, output, model_dir, generation={"num_beams": 3}, limit=1), factory=echo_model, show=lines.append
    )
    assert other.n_rows == 1
    assert any("is unfinished, of another model or other options; finish it" in line for line in lines)

    write_documents(corpus / "b.parquet", ["changed dogs"] * 11, start=40)
    lines.clear()
    outcome = run_it()
    assert "is unfinished and goes on: 50 rows" in lines[0]
    assert "b.parquet is not what run" in lines[1]
    assert (outcome.n_rows, outcome.n_worked) == (51, 51 - 32)
    fingerprint = json.loads(sorted(output.glob("_manifest*"))[-1].read_text())["fingerprint"]
    table = read_summaries(str(output), fingerprint)
    assert sorted(table["id"].to_pylist()) == list(range(51))
    assert set(table["summary"].to_pylist()) == {echo(model_dir, "quick fox"), echo(model_dir, "changed dogs")}


STUCK = """
import sys
from ray import cloudpickle
from pegasus_batch.pipeline import JobConfig, JobFailed, run, run_job
from tests.pipeline import fakes
cloudpickle.register_pickle_by_value(fakes)
source, output, model = sys.argv[1:]
run.STALL_SECONDS, run._SECONDS_PER_ROW = 10.0, 0.0
config = JobConfig(input=(source,), output=output, model=model, device="cpu", num_gpus_per_worker=0, num_workers=1)
try:
    run_job(config, factory=fakes.stuck_model)
except JobFailed as error:
    print(error)
"""


def test_a_run_without_progress_ends_with_a_reason(model_dir: Path, tmp_path: Path) -> None:
    """In a Ray session of its own: a worker that never answers keeps its CPUs for as long as its session lasts."""
    source = write_documents(tmp_path / "in.parquet", ["quick fox"] * 4)
    done = run_script(STUCK, source, tmp_path / "out", model_dir)
    assert re.search(r"no progress.*\nNothing was published", done.stdout), done.stdout + done.stderr
    assert Ledger(locate(str(tmp_path / "out"))).unfinished()


def test_two_runs_at_a_time_are_one_too_many(model_dir: Path, tmp_path: Path) -> None:
    write_documents(tmp_path / "in.parquet", ["quick fox"])
    with OutputLock(Ledger(locate(str(tmp_path / "out"))).store), pytest.raises(OutputLocked, match=str(os.getpid())):
        run_job(job(tmp_path / "in.parquet", tmp_path / "out", model_dir))


def test_a_refused_job_leaves_no_directory(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        run_job(job(tmp_path / "absent", tmp_path / "out", model_dir))
    assert not (tmp_path / "out").exists()


def test_a_model_that_fails_on_every_document_fails_the_job_but_shows_why(model_dir: Path, tmp_path: Path) -> None:
    source = write_documents(tmp_path / "in.parquet", [POISON, None, POISON])
    for _ in range(2):  # the second run tries again
        with pytest.raises(JobFailed, match=r"the model failed on every document: IndexError: token 7777"):
            run_job(job(source, tmp_path / "out", model_dir), factory=echo_model)
        assert sorted(read_summaries(str(tmp_path / "out"))["status"].to_pylist()) == ["failed", "failed", "invalid"]


def test_a_directory_of_somebody_else_is_refused(model_dir: Path, tmp_path: Path) -> None:
    source = write_documents(tmp_path / "in.parquet", ["quick fox"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "part-0.parquet").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        run_job(job(source, tmp_path / "out", model_dir))


class NoteTask:
    """Reads a unit as forty documents that say which task read them."""

    def __call__(self, units: pa.Table) -> Iterator[pa.Table]:
        task = ray.get_runtime_context().get_task_id()
        for unit in units["unit"].to_pylist():
            yield pa.table({"document": ["quick fox"] * 40, "unit": [unit] * 40, "task": [task] * 40})


def test_units_are_read_in_parallel_and_cut_into_windows(model_dir: Path) -> None:
    """Ray would gather small blocks into one task for the whole corpus, and hand a large block to one worker."""
    ds = ray.data.from_arrow([pa.table({"unit": [unit]}) for unit in range(6)])
    task = Summarize(ModelSettings(str(model_dir), device="cpu"), echo_model)
    workers = Workers(count=1, gpus=0, cpus=0.5, threads=1, window=16)
    ds = transform(ds, TokenizeDocuments(task, ("document",)), workers, read=NoteTask())
    blocks = ray.get(ds.to_arrow_refs())
    assert sum(map(len, blocks)) == 240
    assert max(map(len, blocks)) < 2 * 16
    rows = pa.concat_tables(blocks).select(["unit", "task"]).to_pylist()
    assert len({(row["unit"], row["task"]) for row in rows}) == len({row["task"] for row in rows}) == 6


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
    assert result.schema == pa.schema([*table.schema, *summary_fields("brief").values()])
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
