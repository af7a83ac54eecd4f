"""Run a job on Ray and publish its output only once every row is accounted for."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq
import ray
import ray.data
from pyarrow import fs
from ray.data import Dataset
from ray.data.datasource.partitioning import Partitioning, PartitionStyle

import pegasus_batch
from pegasus_batch.pipeline import report
from pegasus_batch.pipeline.cluster import choose_workers, ray_session, termination_unwinds
from pegasus_batch.pipeline.config import JobConfig
from pegasus_batch.pipeline.plan import Plan, make_plan
from pegasus_batch.pipeline.stages import (
    TASK_CPUS,
    ModelSettings,
    SummarizesDocuments,
    TokenizeDocuments,
    Workers,
    load_summarizer,
    transform,
)

FILE_BYTES = 64 * 2**20  # of table data in one output file, before compression
ROW_GROUP_ROWS = 16384  # otherwise every window would be a row group of its own
STALL_SECONDS = 1800.0  # without a finished window; Ray Data would otherwise wait for an impossible worker for ever
_SECONDS_PER_ROW = 120.0  # nothing slower is expected of a model, so a window may take this for each row


class JobFailed(RuntimeError):
    """The job started and did not finish; nothing was published unless the message says so."""


def run_job(
    config: JobConfig,
    *,
    factory: Callable[[ModelSettings, str], SummarizesDocuments] = load_summarizer,
    show: Callable[[str], None] = report.say,
) -> report.Outcome:
    """Run a job and return what became of its rows.

    Raises ConfigError before any work and JobFailed after it began. ``show`` receives notes and progress.
    """
    plan = make_plan(config)
    for note in plan.notes:
        show(f"note: {note}")
    started = time.monotonic()
    with ray_session() as local_cpus, termination_unwinds():
        workers = choose_workers(config, plan.n_rows, ray.nodes(), local_cpus)
        show(report.describe_start(plan, workers))
        outcome = _execute(plan, workers, factory, show, started)
    if not outcome.by_status.get("ok") and outcome.by_status.get("failed"):
        raise JobFailed(
            f"the model failed on every document: {outcome.errors[0][0]}\n"
            f"{plan.output.given}/{plan.run_id} holds a row with the reason for each"
        )
    return outcome


def _execute(
    plan: Plan,
    workers: Workers,
    factory: Callable[[ModelSettings, str], SummarizesDocuments],
    show: Callable[[str], None],
    started: float,
) -> report.Outcome:
    target = f"{plan.output.path.rstrip('/')}/{plan.run_id}"
    # A local run is invisible until it is renamed; object stores have no rename, but show only finished files.
    working = f"{plan.output.path.rstrip('/')}/_run-{plan.run_id}" if plan.output.is_local else target
    filesystem = plan.output.filesystem
    existed = filesystem.get_file_info(plan.output.path).type != fs.FileType.NotFound
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = plan.config.limit is not None  # "the first N rows" means those
    context.execution_no_progress_timeout_s = max(STALL_SECONDS, _SECONDS_PER_ROW * workers.window)
    callbacks: list[Any] = [*context.custom_execution_callback_classes, report.ProgressCallback]
    context.custom_execution_callback_classes = callbacks
    try:
        begun = time.monotonic()
        with ray.data.DataContext.current(context), report.progress(plan.n_rows, show):
            _write(plan, _build(plan, workers, factory), working)
        ended = time.monotonic()
        n_written = _count_rows(filesystem, working)
        if n_written != plan.n_rows:
            raise JobFailed(
                f"{n_written} rows were written for {plan.n_rows} rows of input; did the input change meanwhile? "
                "Nothing was published; run the job again"
            )
        outcome = report.read_outcome(plan, working, ended - begun, ended - started)
        if working != target:
            filesystem.move(working, target)
    except BaseException as error:
        _discard(filesystem, working, None if existed else plan.output.path)
        if isinstance(error, Exception) and not isinstance(error, JobFailed):
            raise JobFailed(report.root_cause(error)) from error
        raise
    _write_record(plan, workers, outcome)
    return outcome


def _build(plan: Plan, workers: Workers, factory: Callable[[ModelSettings, str], SummarizesDocuments]) -> Dataset:
    parts = []
    for source in plan.sources:
        part = ray.data.read_parquet(
            list(source.files),
            filesystem=source.filesystem,
            partitioning=Partitioning(PartitionStyle.HIVE, base_dir=source.root) if source.keys else None,
            file_extensions=None,
            num_cpus=TASK_CPUS,
        )
        parts.append(part.select_columns([name for name in plan.columns if name in source.columns]))
    ds = parts[0].union(*parts[1:]) if len(parts) > 1 else parts[0]
    if plan.config.limit is not None:
        ds = ds.limit(plan.config.limit)
    tokenize = TokenizeDocuments(plan.settings, plan.config.text_column, plan.passengers)
    return transform(ds, tokenize, plan.config.summary_column, plan.several, workers, factory)


def _write(plan: Plan, ds: Dataset, path: str) -> None:
    ds.write_parquet(
        path,
        filesystem=plan.output.filesystem,
        min_bytes_per_file=FILE_BYTES,
        row_group_size=ROW_GROUP_ROWS,
        schema=plan.schema,
        ray_remote_args={"num_cpus": TASK_CPUS},
    )


def _count_rows(filesystem: fs.FileSystem, path: str) -> int:
    entries = filesystem.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    total = 0
    for entry in entries:
        if entry.type == fs.FileType.File:
            with filesystem.open_input_file(entry.path) as file:
                total += pq.read_metadata(file).num_rows
    return total


def _discard(filesystem: fs.FileSystem, path: str, created: str | None) -> None:
    """Remove an unfinished run, and the output directory if this job made it and nothing else is in it."""
    try:
        if filesystem.get_file_info(path).type == fs.FileType.Directory:
            filesystem.delete_dir(path)
        if created and not filesystem.get_file_info(fs.FileSelector(created, allow_not_found=True)):
            filesystem.delete_dir(created)
    except OSError:
        pass  # what remains begins with "_" and is read by nobody; the job's own error matters more


def _write_record(plan: Plan, workers: Workers, outcome: report.Outcome) -> None:
    record: dict[str, Any] = {
        "run": plan.run_id,
        "version": pegasus_batch.__version__,
        "job": plan.config.model_dump(),
        "generation": plan.generation.to_dict(),
        "inputs": [file for source in plan.sources for file in source.files],
        "workers": {"count": workers.count, "gpus": workers.gpus, "window": workers.window},
        "rows": outcome.n_rows,
        "rows_by_status": outcome.by_status,
        "seconds": round(outcome.seconds, 1),
    }
    path = f"{plan.output.path.rstrip('/')}/_job-{plan.run_id}.json"
    with plan.output.filesystem.open_output_stream(path) as file:
        file.write(json.dumps(record, indent=2, ensure_ascii=False).encode() + b"\n")
