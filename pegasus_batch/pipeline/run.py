"""Run a job on Ray, exactly once for every row: finish what an earlier process left, then do what is new."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from pyarrow import fs
from ray.actor import ActorHandle
from ray.data import Dataset

from pegasus_batch.pipeline import report
from pegasus_batch.pipeline.cluster import choose_workers, ray_session, termination_unwinds
from pegasus_batch.pipeline.config import ConfigError, CorpusConfig
from pegasus_batch.pipeline.guard import start_guard
from pegasus_batch.pipeline.inputs import Location, locate
from pegasus_batch.pipeline.ledger import Ledger, Progress
from pegasus_batch.pipeline.lock import OutputLock
from pegasus_batch.pipeline.manifest import Manifest
from pegasus_batch.pipeline.plan import Job, RunPlan, Version, check_job, plan_run, write_schema
from pegasus_batch.pipeline.reader import ReadUnits, plan_units
from pegasus_batch.pipeline.sink import SummaryDatasink
from pegasus_batch.pipeline.stages import WRITE_CPUS, TokenizeDocuments, Workers, transform

STALL_SECONDS = 1800.0  # without a finished window; Ray Data would otherwise wait for an impossible worker for ever
_SECONDS_PER_ROW = 120.0  # nothing slower is expected of a model, so a window may take this for each row
_MOST_PATIENCE = 4 * 3600.0  # but then the rows of a large window are not that slow all of them
_BLOCK_BYTES = 16 * 2**20  # of documents that wait between two stages; Ray's own 128 MB would start the workers late
_MOST_WAITING = 8  # windows that a reading task may be ahead
_MOST_BLOCKS = 4000  # of units to read; each is an object that the driver keeps
_UNIT_ROWS = 8192
_FILES_PER_RUN, _MOST_ROWS_PER_FILE = 200, 50_000


class JobFailed(RuntimeError):
    """The job started and did not finish. What it had done is kept: the same command goes on from there."""


def run_job(
    config: CorpusConfig,
    *,
    factory: Callable[..., Any] | None = None,
    show: Callable[[str], None] = report.say,
) -> report.Outcome:
    """Run a job and return what became of its rows.

    Raises ConfigError before any work, OutputLocked where another run works on the same output, and JobFailed after the
    work began. ``factory`` loads something else than the task's own model; ``show`` receives notes and progress.
    """
    started = time.monotonic()
    job = check_job(config)
    if factory is not None:
        job = dataclasses.replace(job, task=dataclasses.replace(job.task, factory=factory))
    ledger = Ledger(job.output)
    if job.output.filesystem.get_file_info(job.output.path).type == fs.FileType.File:
        raise ConfigError(f"--output {job.output.given!r} is a file: name a directory")
    ledger.store.check_put_new()
    try:
        with termination_unwinds(), OutputLock(ledger.store) as lock:
            plans = find_work(job, ledger, show)
            if not plans:
                return report.Outcome(
                    path=job.output.given,
                    total_seconds=time.monotonic() - started,
                    bad_files=report.known_bad(job, ledger.manifests()),
                )
            with ray_session() as local_cpus, termination_unwinds():
                guard = start_guard()
                outcomes = []
                for plan in plans:
                    lock.check()
                    outcomes.append(_Run(job, ledger, plan, show, guard, lock, local_cpus).carry_out(started))
    finally:
        ledger.store.remove_if_empty()
    outcome = report.together(outcomes)
    if not outcome.by_status.get("ok") and outcome.by_status.get("failed"):
        raise JobFailed(
            f"the model failed on every document: {outcome.errors[0][0]}\n"
            f"{outcome.path} holds a row with the reason for each; the next run tries them again"
        )
    return outcome


def find_work(job: Job, ledger: Ledger, show: Callable[[str], None], change: bool = True) -> list[RunPlan]:
    """Return the plans to carry out: what an earlier process left unfinished, then what is new.

    With ``change`` False nothing is written, as for a look at what would be done.
    """
    ledger.check_foreign()
    if change:
        ledger.clear_committed()
        if job.config.abandon:
            ledger.abandon(job.config.abandon)
    plans = []
    for plan in ledger.unfinished():
        if plan.fingerprint == job.fingerprint:
            show(f"run {plan.run_id} of {plan.created} is unfinished and goes on: {plan.n_rows:,} rows")
            plans.append(_still_there(plan, show))
        else:
            show(
                f"note: run {plan.run_id} of {plan.created} is unfinished, of another model or other options; finish it "
                f"with its own, or forget it with --abandon {plan.run_id}"
            )
    mine = [manifest for manifest in ledger.manifests() if manifest.fingerprint == job.fingerprint]
    newest, runs = _committed(mine)
    done = {version for version, complete in newest.values() if complete}
    done |= {file.version for plan in plans for file in plan.files if file.rows or file.complete}
    bad = {entry.version for manifest in mine for entry in manifest.bad}
    bad |= {entry.version for plan in plans for entry in plan.bad}
    fresh = plan_run(job, done, bad, runs)
    if fresh is not None:
        for note in fresh.notes:
            show(f"note: {note}")
        for entry in fresh.bad:
            show(f"skipping {entry.version.uri}: {entry.reason}")
        if change:
            ledger.begin(fresh)
        plans.append(fresh)
    return plans


def _committed(manifests: Sequence[Manifest]) -> tuple[dict[str, tuple[Version, bool]], dict[str, str]]:
    """Return for each file (by uri) its newest committed version and whether it is whole, and the run that has it."""
    newest: dict[str, tuple[Version, bool]] = {}
    runs: dict[str, str] = {}
    for manifest in manifests:
        statuses = manifest.record["rows_by_status"]
        worked = bool(statuses.get("ok")) or not statuses.get("failed")  # else it was the model's fault: try again
        for version, rows, complete in manifest.inputs:
            if rows or complete:
                newest[version.uri] = (version, complete and worked)
                runs[version.uri] = manifest.run_id
    return newest, runs


def _still_there(plan: RunPlan, show: Callable[[str], None]) -> RunPlan:
    """Take files that have changed since a run was planned out of it; their new versions are planned anew."""
    files = []
    for file in plan.files:
        at = locate(file.at)
        info = at.filesystem.get_file_info(at.path)
        if (info.type, info.size, info.mtime_ns or 0) != (fs.FileType.File, file.version.size, file.version.mtime_ns):
            show(f"note: {file.version.uri} is not what run {plan.run_id} was planned for: its rows are left out of it")
            file = dataclasses.replace(file, rows=0)
        files.append(file)
    return dataclasses.replace(plan, files=tuple(files))


@dataclasses.dataclass
class _Run:
    """One plan being carried out."""

    job: Job
    ledger: Ledger
    plan: RunPlan
    show: Callable[[str], None]
    guard: ActorHandle
    lock: OutputLock
    local_cpus: int | None

    def carry_out(self, started: float) -> report.Outcome:
        """Do the rows that are missing, publish all of them, and return what became of them."""
        plan, ledger = self.plan, self.ledger
        ledger.begin(plan)
        directory = ledger.open_run(plan)
        progress = ledger.scan(plan, directory)
        n_missing = progress.missing
        workers = choose_workers(
            self.job.config, n_missing, ray.nodes(), self.local_cpus, plan.text_bytes, self.job.task.longest
        )
        begun = time.monotonic()
        try:
            if n_missing:
                self.show(report.describe_start(self.job, plan, workers, n_missing))
                self._execute(directory, progress, workers)
                progress = ledger.scan(plan, directory, before=progress)
            if progress.missing:
                raise JobFailed(
                    f"{progress.n_done:,} rows were written for {plan.n_rows:,} rows of input; nothing was published. Run the "
                    "job again: it does the missing ones"
                )
            ended = time.monotonic()
            self.lock.check()
            outcome = report.read_outcome(
                self.job, plan, directory, progress, n_missing, ended - begun, ended - started
            )
            record = self._record(workers, outcome, ledger.duplicate_ids(directory, progress.files))
            _, published = ledger.commit(plan, directory, progress, record)
        except JobFailed:
            raise
        except Exception as error:
            raise JobFailed(
                f"{report.root_cause(error)}\nNothing was published; what is done is kept, and the same command goes on "
                f"from there (run {plan.run_id})"
            ) from error
        return dataclasses.replace(outcome, path=published.given, duplicate_ids=record["duplicate_ids"])

    def _execute(self, directory: Location, progress: Progress, workers: Workers) -> None:
        context = data_context(workers)
        callbacks: list[Any] = [*context.custom_execution_callback_classes, report.ProgressCallback]
        context.custom_execution_callback_classes = callbacks
        rows_per_file = self.job.config.rows_per_file or _rows_per_file(self.plan.n_rows, workers.window)
        sink = SummaryDatasink(directory, progress.attempt, self.plan.schema(self.job), rows_per_file, workers.window)
        with ray.data.DataContext.current(context), report.progress(progress.missing, self.show):
            ds = self._build(progress.done, workers)
            ds.write_datasink(sink, ray_remote_args={"num_cpus": WRITE_CPUS})

    def _build(self, done: Sequence[np.ndarray], workers: Workers) -> Dataset:
        job, config = self.job, self.job.config
        texts = tuple(config.texts.values())
        n_missing = sum(int(len(rows) - np.count_nonzero(rows)) for rows in done)
        units = plan_units(self.plan, done, max(workers.window, min(_UNIT_ROWS, n_missing // 32)))
        size = -(-len(units) // _MOST_BLOCKS)
        blocks = [pa.concat_tables(units[start : start + size]) for start in range(0, len(units), size)]
        read = ReadUnits(
            columns=tuple(self.plan.columns(job)),
            text_columns=texts,
            id_column=config.id_column,
            skip_bad=config.on_bad_file == "skip",
            output=self.ledger.output.child(self.ledger.output.path).given,
            results=tuple(field.name for field in job.fields),
        )
        tokenize = TokenizeDocuments(job.task, texts, self.plan.passengers)
        return transform(ray.data.from_arrow(blocks), tokenize, workers, self.guard, read)

    def _record(self, workers: Workers, outcome: report.Outcome, duplicate_ids: int) -> dict[str, Any]:
        return {
            "job": self.job.config.model_dump(exclude_none=True),
            **self.job.task.options,
            "workers": {"count": workers.count, "gpus": workers.gpus, "window": workers.window},
            "rows": outcome.n_rows,
            "rows_by_status": outcome.by_status,
            "carried": outcome.carried,
            "duplicate_ids": duplicate_ids,
            "errors": [list(entry) for entry in outcome.errors],
            "seconds": round(outcome.seconds, 1),
            "schema": write_schema(self.plan.schema(self.job)),
        }


def data_context(workers: Workers) -> ray.data.DataContext:
    """Return the present context of Ray Data with what a job changes in it."""
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.target_max_block_size = _BLOCK_BYTES
    context.max_consecutive_actor_init_deaths = 3  # Ray ends the job at the first; machines do go away while loading
    # Ray's own 2 would hold a reading task to some twenty windows a second: it waits until the driver has taken them.
    context._max_num_blocks_in_streaming_gen_buffer = _MOST_WAITING
    patience = min(_SECONDS_PER_ROW * workers.window, _MOST_PATIENCE)
    context.execution_no_progress_timeout_s = max(STALL_SECONDS, patience)
    return context


def _rows_per_file(n_rows: int, window: int) -> int:
    return max(8 * window, min(_MOST_ROWS_PER_FILE, n_rows // _FILES_PER_RUN))
