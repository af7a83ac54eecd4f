"""Benchmarks of the nightly job; README.md says what each measures. ``python benchmarks/pipeline.py COMMAND --help``."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import typer
from chart import line_chart, markdown_table, replace_table
from sampling import MB, Sampler, machine, ray_on_this_machine, store_totals

from pegasus_batch.documents import Document, Summary
from pegasus_batch.pipeline import JobConfig, run_job
from pegasus_batch.pipeline import run as job_run
from pegasus_batch.pipeline.cluster import choose_workers
from pegasus_batch.pipeline.config import build_config
from pegasus_batch.pipeline.plan import check_job, plan_run
from pegasus_batch.pipeline.reader import ReadUnits, plan_units
from pegasus_batch.pipeline.report import say
from pegasus_batch.pipeline.schema import ROW_KEY
from pegasus_batch.pipeline.sink import ROW_GROUP_ROWS
from pegasus_batch.pipeline.stages import WRITE_CPUS, TokenizeDocuments, transform
from pegasus_batch.pipeline.task import ModelSettings

ROOT = Path(__file__).parents[1]
N_WORKERS = 2
_ROWS_PER_INPUT, _GROUP_ROWS = 50_000, 5_000

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
Results = Annotated[Path, typer.Option(help="Where the JSON goes.")]
Docs = Annotated[Path, typer.Option(help="Where the page and the chart go.")]
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"


class SleepingModel:
    """Answers every document with the same words, after a fixed time for each."""

    def __init__(self, seconds_per_row: float) -> None:
        self._seconds_per_row = seconds_per_row

    def summarize_documents(self, documents: Sequence[Document]) -> list[Summary]:
        """Sleep, then answer."""
        time.sleep(self._seconds_per_row * len(documents))
        text = "a summary of about as many words as the embedded model writes, and no more than that"
        return [
            Summary(text, -0.5, document.n_source_tokens, 16, document.truncated, texts=(text,))
            for document in documents
        ]


class SleepingFactory:
    """Makes sleeping models, in the place of what loads a real one."""

    def __init__(self, seconds_per_row: float) -> None:
        self._seconds_per_row = seconds_per_row

    def __call__(self, settings: ModelSettings, device: str) -> SleepingModel:
        """Return a model; nothing is loaded."""
        return SleepingModel(self._seconds_per_row)


def write_corpus(directory: Path, rows: int, characters: int) -> Path:
    """Write ``rows`` different documents of about as many characters into files of at most 50,000."""
    rng = np.random.default_rng(1)
    words = ["".join(rng.choice(list("abcdefghijklmnoprstuvw"), n)) for n in rng.integers(2, 10, 3000)]
    pool = [" ".join(rng.choice(words, characters // 6)) for _ in range(min(500, rows))]
    directory.mkdir(parents=True)
    per_file = min(_ROWS_PER_INPUT, max(1, rows // 4))
    for start in range(0, rows, per_file):
        ids = range(start, min(rows, start + per_file))
        texts = [f"{i} {pool[i % len(pool)]}" for i in ids]
        pq.write_table(
            pa.table({"id": list(ids), "document": texts}),
            directory / f"{start:09d}.parquet",
            row_group_size=_GROUP_ROWS,
            use_dictionary=False,
        )
    return directory


def job_config(source: Path, output: Path, rows_per_file: int | None = None) -> JobConfig:
    """Return the job that is measured: two workers on CPUs, everything else as the job chooses it."""
    values = {"input": str(source), "output": str(output), "device": "cpu", "num_workers": N_WORKERS}
    return build_config({**values, "rows_per_file": rows_per_file})


def in_fresh_process(name: str, **options: Any) -> dict[str, Any]:
    """Run one of the measurements below in a process of its own and return what it found."""
    command = [sys.executable, __file__, "child", name, json.dumps(options)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def save(results: Path, name: str, at: dict[str, Any], **values: Any) -> None:
    """Write the results of a command."""
    at["load_after"] = [round(load, 1) for load in os.getloadavg()]
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"{name}.json"
    text = json.dumps({"benchmark": name, "machine": at, **values}, indent=1)
    text = re.sub(r"\[[-\d.,\s]+\]", lambda found: re.sub(r"\s+", " ", found[0]), text)  # a list of numbers in a line
    path.write_text(text + "\n", encoding="utf-8")
    say(f"{path}  (load before {at['load_before']}, after {at['load_after']}, on {at['cpus']} CPUs)")


@contextmanager
def scratch(work: Path | None) -> Iterator[Path]:
    """Yield an empty directory that is removed afterwards."""
    path = Path(tempfile.mkdtemp(prefix="pegasus-bench-", dir=work))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def measure_job(
    directory: str, rows: int, characters: int, seconds_per_row: float, store_mb: float, rows_per_file: int | None
) -> dict[str, Any]:
    """Run a job on a corpus made for it; return the peaks of its processes."""
    source = Path(directory) / f"in-{rows}"
    subprocess.run([sys.executable, __file__, "corpus", str(source), str(rows), str(characters)], check=True)
    config = job_config(source, Path(directory) / f"out-{rows}", rows_per_file)
    with Sampler() as sampler, ray_on_this_machine(int(store_mb * MB)):
        outcome = run_job(config, factory=SleepingFactory(seconds_per_row))
        totals = store_totals()
    assert outcome.by_status == {"ok": rows}, outcome
    shutil.rmtree(source)
    shutil.rmtree(config.output)
    return {
        "rows": rows,
        "seconds": round(outcome.seconds, 1),
        "model_busy": round(rows * seconds_per_row / N_WORKERS / outcome.seconds, 3),
        "store_mb": totals,
        **sampler.record(),
    }


@app.command(hidden=True)
def corpus(directory: Path, rows: int, characters: int) -> None:
    """Write a corpus, in a process whose memory nobody measures."""
    write_corpus(directory, rows, characters)


@app.command()
def memory(
    rows: Annotated[list[int], typer.Option(help="Sizes of the corpora.")] = [10_000, 100_000, 1_000_000],  # noqa: B006
    characters: Annotated[int, typer.Option(help="Of a document.")] = 500,
    store_mb: Annotated[float, typer.Option(help="Size of Ray's object store.")] = 500,
    work: Annotated[Path | None, typer.Option(help="Where the corpora and outputs go meanwhile.")] = None,
    results: Results = RESULTS,
    docs: Docs = DOCS,
) -> None:
    """Peak memory of the job's processes against the number of rows; the model does nothing."""
    at = machine()
    options = {"characters": characters, "seconds_per_row": 0.0, "store_mb": store_mb, "rows_per_file": None}
    with scratch(work) as directory:
        found = [in_fresh_process("job", directory=str(directory), rows=n, **options) for n in rows]
    lines = {
        "driver": [(run["rows"], run["peak_mb"]["driver"]) for run in found],
        "model actor": [(run["rows"], run["peak_mb"]["model"]) for run in found],
        "largest task worker": [(run["rows"], run["peak_mb"]["task"]) for run in found],
        "crash guard": [(run["rows"], run["peak_mb"]["guard"]) for run in found],
        "object store": [(run["rows"], run["store_touched_mb"]) for run in found],
    }
    headers = ["rows", *lines, "spilled to disk", "all processes"]
    cells = [
        [
            f"{run['rows']:,}",
            *(f"{line[i][1]:,.0f}" for line in lines.values()),
            f"{run['store_mb']['spilled']:,.0f}",
            f"{run['peak_total_mb']:,.0f}",
        ]
        for i, run in enumerate(found)
    ]
    table = markdown_table(headers, cells)
    print(table)
    save(results, "memory", at, options=options, runs=found)
    docs.mkdir(parents=True, exist_ok=True)
    chart = line_chart("Peak memory of the job's processes", "rows of input", "MB", lines)
    (docs / "pipeline_memory.svg").write_text(chart, encoding="utf-8")
    replace_table(docs / "pipeline_memory.md", "memory", table)


@app.command()
def backpressure(
    rows: Annotated[list[int], typer.Option(help="Sizes of the corpora.")] = [10_000, 40_000],  # noqa: B006
    characters: Annotated[int, typer.Option(help="Of a document.")] = 20_000,
    seconds_per_row: Annotated[float, typer.Option(help="That the model takes.")] = 0.005,
    store_mb: Annotated[float, typer.Option(help="Size of Ray's object store.")] = 200,
    rows_per_file: Annotated[int | None, typer.Option(help="As the job's own option.")] = None,
    work: Annotated[Path | None, typer.Option(help="Where the corpora and outputs go meanwhile.")] = None,
    results: Results = RESULTS,
    docs: Docs = DOCS,
) -> None:
    """Peak of the object store where long documents wait for a slow model."""
    at = machine()
    options: dict[str, Any] = {"characters": characters, "seconds_per_row": seconds_per_row, "store_mb": store_mb}
    options["rows_per_file"] = rows_per_file
    with scratch(work) as directory:
        found = [in_fresh_process("job", directory=str(directory), rows=n, **options) for n in rows]
    headers = [
        "rows",
        "documents MB",
        "through the store MB",
        "its limit MB",
        "its peak MB",
        "spilled MB",
        "model busy",
    ]
    cells = [
        [
            f"{run['rows']:,}",
            f"{run['rows'] * characters / MB:,.0f}",
            *(f"{value:,.0f}" for value in (run["store_mb"]["created"], run["store_mb"]["limit"])),
            f"{run['store_touched_mb']:,.0f}",
            f"{run['store_mb']['spilled']:,.0f}",
            f"{run['model_busy']:.0%}",
        ]
        for run in found
    ]
    table = markdown_table(headers, cells)
    print(table)
    save(results, "backpressure", at, options=options, runs=found)
    docs.mkdir(parents=True, exist_ok=True)
    replace_table(docs / "pipeline_memory.md", "backpressure", table)


@app.command()
def checkpoint(
    rows: Annotated[int, typer.Option(help="Rows that are done; one in a hundred more is missing.")] = 10_000_000,
    files: Annotated[int, typer.Option(help="That they are in.")] = 200,
    repeats: Annotated[int, typer.Option(help="Of each measurement, alternating.")] = 3,
    work: Annotated[Path | None, typer.Option(help="Where the files go meanwhile.")] = None,
    results: Results = RESULTS,
) -> None:
    """What it costs to learn which rows are done: this job's ledger, and Ray Data's checkpoints of the same rows."""
    import resume

    at = machine()
    with scratch(work) as directory:
        resume.write_run(directory, rows, files)
        say(f"{rows:,} rows in {files} files: written")
        names = ("ledger", "ray", "ray_text")
        runs = [
            {name: in_fresh_process(name, directory=str(directory)) for name in names} for _ in range(max(1, repeats))
        ]
    print(resume.tables(runs))
    save(results, "checkpoint", at, rows=rows, files=files, runs=runs)


class PlainRead(ReadUnits):
    """The job's reader without the keys and hashes that only the ledger needs."""

    def _note(self, table: pa.Table, unit: dict[str, Any]) -> pa.Table:
        return table.drop_columns([ROW_KEY])


def run_plain(config: JobConfig, factory: SleepingFactory) -> None:
    """Do a job's work as a plain Ray Data pipeline: nothing is remembered, counted or published."""
    job = check_job(config)
    plan = plan_run(job, (), (), {})
    assert plan is not None
    workers = choose_workers(config, plan.n_rows, ray.nodes(), None)
    done = [np.zeros(file.rows, dtype=bool) for file in plan.files]
    units = plan_units(plan, done, max(workers.window, min(job_run._UNIT_ROWS, plan.n_rows // 32)))
    read = PlainRead(
        tuple(plan.columns(job)), tuple(config.texts.values()), config.id_column, False, job.output.path, ()
    )
    with ray.data.DataContext.current(job_run.data_context(workers)):
        task = dataclasses.replace(job.task, factory=factory)
        tokenize = TokenizeDocuments(task, tuple(config.texts.values()), plan.passengers)
        ds = ray.data.from_arrow(units)
        ds = transform(ds, tokenize, workers, read=read)
        ds.write_parquet(
            job.output.path,
            min_rows_per_file=job_run._rows_per_file(plan.n_rows, workers.window) - workers.window + 1,
            row_group_size=ROW_GROUP_ROWS,
            schema=plan.schema(job),
            ray_remote_args={"num_cpus": WRITE_CPUS},
        )


def measure_overhead(directory: str, rows: int, warm_rows: int, pairs: int, seconds_per_row: float) -> dict[str, Any]:
    """Alternate the job and the plain pipeline in one Ray session; return the times of both."""
    factory = SleepingFactory(seconds_per_row)
    corpora = {n: write_corpus(Path(directory) / f"in-{n}", n, 500) for n in (warm_rows, rows)}

    def measure(name: str, n: int, turn: int) -> dict[str, float]:
        config = job_config(corpora[n], Path(directory) / f"{name}-{n}-{turn}")
        with Sampler(memory=False) as sampler:
            started = time.perf_counter()
            if name == "job":
                run_job(config, factory=factory, show=lambda line: None)
            else:
                run_plain(config, factory)
            seconds = time.perf_counter() - started
        files = [file for file in Path(config.output).rglob("*.parquet") if not file.name.startswith("_")]
        assert sum(pq.read_metadata(file).num_rows for file in files) == n
        shutil.rmtree(config.output)
        say(f"{name:<5} {n:,} rows: {seconds:.2f} s, {sampler.cpu_seconds:.1f} CPU seconds, {len(files)} files")
        return {"seconds": round(seconds, 3), "cpu_seconds": round(sampler.cpu_seconds, 2), "files": len(files)}

    with ray_on_this_machine(int(500 * MB)):
        for name in ("job", "plain"):
            measure(name, warm_rows, 0)
        found: dict[str, list[dict[str, float]]] = {"job": [], "plain": []}
        for turn in range(pairs):
            for name in sorted(found, reverse=bool(turn % 2)):
                found[name].append(measure(name, rows, turn))
    return found


@app.command()
def overhead(
    rows: Annotated[int, typer.Option(help="Of each run.")] = 100_000,
    pairs: Annotated[int, typer.Option(help="Of runs; they alternate.")] = 3,
    seconds_per_row: Annotated[float, typer.Option(help="That the model takes.")] = 0.001,
    work: Annotated[Path | None, typer.Option(help="Where the corpora and outputs go meanwhile.")] = None,
    results: Results = RESULTS,
) -> None:
    """What exactly-once costs: the job against the same Ray Data pipeline without ledger, guard and lock."""
    at = machine()
    options = {"rows": rows, "warm_rows": min(rows, 2000), "pairs": pairs, "seconds_per_row": seconds_per_row}
    with scratch(work) as directory:
        found = in_fresh_process("overhead", directory=str(directory), **options)
    medians = {
        name: {unit: statistics.median(run[unit] for run in runs) for unit in ("seconds", "cpu_seconds")}
        for name, runs in found.items()
    }
    ratios = {unit: medians["job"][unit] / medians["plain"][unit] - 1 for unit in ("seconds", "cpu_seconds")}
    floor = rows * seconds_per_row / N_WORKERS
    cells = [[name, f"{values['seconds']:.2f}", f"{values['cpu_seconds']:.1f}"] for name, values in medians.items()]
    cells.append(["difference", *(f"{100 * ratio:+.1f} %" for ratio in ratios.values())])
    print(markdown_table([f"median of {pairs}", "seconds", "CPU seconds"], cells))
    print(f"the models alone sleep {floor:.1f} s of it")
    save(results, "overhead", at, options=options, runs=found, medians=medians, ratios=ratios)


@app.command(hidden=True)
def child(name: str, options: str) -> None:
    """Do one measurement in this process and print what it found."""
    import resume

    measurements: dict[str, Callable[..., dict[str, Any]]] = {
        "job": measure_job,
        "overhead": measure_overhead,
        "ledger": resume.measure_ledger,
        "ray": resume.measure_ray,
        "ray_text": resume.measure_ray_text,
    }
    print(json.dumps(measurements[name](**json.loads(options))))


if __name__ == "__main__":
    app()
