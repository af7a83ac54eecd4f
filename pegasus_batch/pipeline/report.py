"""What a job tells its user: the plan, progress while it runs, and what became of the rows."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ray.data.exceptions import SystemException
from ray.exceptions import RayError, RayTaskError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table
from rich.text import Text

from pegasus_batch.documents import BATCH_TOKENS
from pegasus_batch.pipeline.inputs import Location
from pegasus_batch.pipeline.ledger import KEYS_PREFIX, Progress
from pegasus_batch.pipeline.manifest import Manifest
from pegasus_batch.pipeline.plan import Job, RunPlan
from pegasus_batch.pipeline.schema import CARRIED
from pegasus_batch.pipeline.stages import RunModel, Workers

LINE_SECONDS = 10.0  # between progress lines where there is no terminal
N_EXAMPLES = 8
N_REASONS = 3  # most frequent errors shown
N_BAD_FILES = 5  # shown
_EXAMPLE_CHARACTERS = 300


@dataclass(frozen=True)
class Outcome:
    """What became of a job's rows. ``errors`` holds the most frequent reasons with their counts."""

    path: str  # of the published rows
    n_rows: int = 0
    by_status: dict[str, int] = field(default_factory=dict)
    errors: tuple[tuple[str, int], ...] = ()
    seconds: float = 0.0  # of reading, computing and writing
    total_seconds: float = 0.0  # with checking the input and starting Ray
    examples: tuple[tuple[str, str], ...] = ()
    n_worked: int = 0  # rows that this process took through the pipeline; the others were done before it
    carried: int = 0  # of the rows, those whose result an earlier run had for the same text
    duplicate_ids: int = 0  # rows whose id an earlier row has
    bad_files: tuple[tuple[str, str], ...] = ()  # skipped files (uri) and why

    @property
    def documents_per_second(self) -> float:
        """Rows over the seconds that the pipeline ran, loading the model included."""
        return self.n_worked / self.seconds if self.seconds > 0 else 0.0


def say(line: str) -> None:
    """Print a line for the user, apart from the result on standard output."""
    print(line, file=sys.stderr, flush=True)


def human_seconds(seconds: float) -> str:
    """Return a duration such as 12.3 s, 4m05s or 2h03m."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


class Meter:
    """Rows done so far, and what that says about speed and time left."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self.done = 0
        self._clock = clock
        self._begin = clock()
        self._first: tuple[float, int] | None = None

    def update(self, done: int) -> None:
        """Note how many rows have been done since the start."""
        if done and self._first is None:
            self._first = (self._clock(), done)
        self.done = done

    @property
    def rate(self) -> float:
        """Documents per second; starting and loading do not count once there is enough to go by without them."""
        now = self._clock()
        if self._first and self.done > self._first[1] and now > self._first[0]:
            return (self.done - self._first[1]) / (now - self._first[0])
        return self.done / (now - self._begin) if now > self._begin else 0.0

    def line(self) -> str:
        """Return rows, speed and time left in words."""
        share = f"{self.done:,}/{self.total:,} rows"
        if not self.done:
            return f"{share}  starting workers and loading the model ({human_seconds(self._clock() - self._begin)})"
        left = human_seconds((self.total - self.done) / self.rate) if self.rate else "unknown"
        return f"{share}  {100 * self.done / self.total:.1f}%  {self.rate:.1f} documents/s  {left} left"


class _Reporter:
    """Shows a Meter: a bar on a terminal, otherwise a line every ten seconds."""

    def __init__(self, total: int, show: Callable[[str], None]) -> None:
        self._meter = Meter(total)
        self._show = show
        self._last_line = time.monotonic()
        self._bar: ProgressBar | None = None
        self._task = TaskID(0)
        if sys.stderr.isatty() and show is say:
            self._bar = ProgressBar(
                BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), console=Console(stderr=True)
            )
            self._task = self._bar.add_task("", total=total)
            self._bar.start()

    def update(self, done: int) -> None:
        self._meter.update(done)
        if self._bar:
            words = self._meter.line().split("  ", 1)[1]
            self._bar.update(self._task, completed=done, description=words)
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            self._show(self._meter.line())

    def stop(self) -> None:
        if self._bar:
            self._bar.stop()


_active: _Reporter | None = None


@contextmanager
def progress(total: int, show: Callable[[str], None]) -> Iterator[None]:
    """Report the progress of the dataset that is executed meanwhile."""
    global _active
    _active = _Reporter(total, show)
    try:
        yield
    finally:
        _active.stop()
        _active = None


class ProgressCallback:
    """Ray Data's execution callback. The class travels to workers with the data context, so it holds nothing itself."""

    def before_execution_starts(self, executor: Any) -> None:
        """Nothing to do: the reporter counts from its own start."""

    def on_execution_step(self, executor: Any) -> None:
        """Count the rows that left the model stage."""
        if _active is None:
            return
        for operator in getattr(executor, "_topology", None) or ():
            if RunModel.__name__ in operator.name:
                _active.update(operator.metrics.row_outputs_taken)

    def after_execution_succeeds(self, executor: Any) -> None:
        """Nothing to do: the job prints its outcome."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Nothing to do: the job raises."""


def read_outcome(
    job: Job,
    plan: RunPlan,
    directory: Location,
    progress: Progress,
    n_worked: int,
    seconds: float,
    total_seconds: float,
) -> Outcome:
    """Count the written rows by status, collect reasons, and pick examples if the job is a demonstration."""
    by_status: dict[str, int] = {}
    reasons: dict[str, int] = {}
    carried = 0
    examples: list[tuple[str, str]] = []
    names = [*job.config.texts.values(), job.fields[0].name]
    wanted = N_EXAMPLES if job.config.is_demo and names[0] in plan.passengers.names else 0
    for file in progress.files:
        path = f"{directory.path}/{file.name}"
        table = _read(directory, path, ["status", "error"])
        for entry in pc.value_counts(table.column("status")).to_pylist():
            by_status[entry["values"]] = by_status.get(entry["values"], 0) + entry["counts"]
        for entry in pc.value_counts(table.column("error").drop_null()).to_pylist():
            reasons[entry["values"]] = reasons.get(entry["values"], 0) + entry["counts"]
        flags = _read(directory, f"{directory.path}/{KEYS_PREFIX}{file.name}", [CARRIED])
        carried += pc.sum(flags.column(0)).as_py() or 0
        if len(examples) < wanted:
            found = _read(directory, path, names).filter(pc.equal(table.column("status"), "ok"))
            examples += list(zip(*(found.column(name).to_pylist() for name in names), strict=True))[:wanted]
    return Outcome(
        path=directory.given,
        n_rows=sum(by_status.values()),
        by_status=_ordered(by_status),
        errors=_most_frequent(reasons.items()),
        seconds=seconds,
        total_seconds=total_seconds,
        examples=tuple(examples[:wanted]),
        n_worked=n_worked,
        carried=carried,
        bad_files=tuple((entry.version.uri, entry.reason) for entry in plan.bad),
    )


def _read(directory: Location, path: str, columns: list[str]) -> pa.Table:
    with directory.filesystem.open_input_file(path) as file:
        return pq.read_table(file, columns=columns, partitioning=None)


def _ordered(by_status: Mapping[str, int]) -> dict[str, int]:
    return {status: by_status[status] for status in ("ok", "invalid", "failed") if status in by_status}


def _most_frequent(reasons: Iterable[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(reasons, key=lambda item: (-item[1], item[0]))[:N_REASONS])


def together(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the outcome of several runs as one, under the path of the last."""
    by_status: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for outcome in outcomes:
        by_status.update(outcome.by_status)
        reasons.update(dict(outcome.errors))
    return Outcome(
        path=outcomes[-1].path,
        n_rows=sum(outcome.n_rows for outcome in outcomes),
        by_status=_ordered(by_status),
        errors=_most_frequent(reasons.items()),
        seconds=sum(outcome.seconds for outcome in outcomes),
        total_seconds=outcomes[-1].total_seconds,
        examples=outcomes[-1].examples,
        n_worked=sum(outcome.n_worked for outcome in outcomes),
        carried=sum(outcome.carried for outcome in outcomes),
        duplicate_ids=sum(outcome.duplicate_ids for outcome in outcomes),
        bad_files=tuple(entry for outcome in outcomes for entry in outcome.bad_files),
    )


def known_bad(job: Job, manifests: Iterable[Manifest]) -> tuple[tuple[str, str], ...]:
    """Return the files that runs of this job skipped and no run has taken since, with their reasons."""
    found: dict[str, str] = {}
    for manifest in manifests:
        if manifest.fingerprint == job.fingerprint:
            for version, _, _ in manifest.inputs:
                found.pop(version.uri, None)
            found.update((entry.version.uri, entry.reason) for entry in manifest.bad)
    return tuple(found.items())


def describe_start(job: Job, plan: RunPlan, workers: Workers, n_rows: int) -> str:
    """Return one line that says what begins."""
    where = f"{workers.gpus:g} GPU each" if workers.gpus else f"{_count(workers.threads, 'thread')} each"
    share = "" if n_rows == plan.n_rows else f" that are missing of {plan.n_rows:,}"
    return (
        f"{job.task.verb} {_count(n_rows, 'row')}{share} of {_count(len(plan.files), 'file')} with "
        f"{_count(workers.count, 'worker')} ({where}) into {job.output.given}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def plan_lines(job: Job, plans: Sequence[RunPlan]) -> list[str]:
    """Return what ``--dry-run`` prints: one line for each subject."""
    config = job.config
    given = ", ".join(config.input) or "the sample corpus"
    workers = f"{config.num_workers or 'as many as fit'}, "
    if config.num_gpus_per_worker is None and config.device != "cpu":
        workers += "on a GPU each" + (", or on CPUs where there are none" if config.device == "auto" else "")
    else:
        workers += f"{config.num_gpus_per_worker:g} GPUs each" if config.num_gpus_per_worker else "on CPUs"
    budget = (
        f"{config.batch_tokens:,}"
        if config.batch_tokens
        else f"{BATCH_TOKENS['cpu']:,} on CPU or {BATCH_TOKENS['cuda']:,} on GPU"
    )
    longest = config.max_source_tokens or "the model's maximum"
    files = [file for plan in plans for file in plan.files]
    n_rows = sum(file.rows for file in files)
    subjects = {
        "input": f"{given}: {len(files):,} files to do, {sum(file.version.size for file in files) / 1e6:,.1f} MB",
        "rows": f"{n_rows:,}" + (", limited" if not all(file.complete for file in files) else ""),
        "output": f"{job.output.given.rstrip('/')}/ (fingerprint {job.fingerprint})",
        "runs": ", ".join(plan.run_id for plan in plans) or "none: nothing is new",
        "columns": ", ".join(f"{field.name} {field.type}" for field in plans[-1].schema(job)) if plans else "",
        "text": f"column {', '.join(map(repr, config.texts.values()))}, up to {longest} tokens at a time",
        "model": f"{job.task.settings.directory} (device {config.device}, dtype {config.dtype})",
        "workers": workers,
        "batches": f"{budget} source tokens",
        **{
            heading: ", ".join(f"{name}={value}" for name, value in sorted(options.items()))
            for heading, options in job.task.options.items()
        },
    }
    return [
        "plan (nothing was run)",
        *(f"  {name:<11} {printable(subject)}" for name, subject in subjects.items() if subject),
    ]


def outcome_table(outcome: Outcome) -> Table:
    """Return what a finished job prints."""
    table = Table(show_header=False)
    if not outcome.n_rows and not outcome.bad_files:
        table.add_row("rows", "nothing new")
    for status, count in outcome.by_status.items():
        table.add_row(f"rows {status}", f"{count:,}")
    for reason, count in outcome.errors:
        table.add_row("", Text(f"{count:,} x {_head(reason)}"))
    if outcome.carried:
        table.add_row("carried over", f"{outcome.carried:,} of them, whose text an earlier run had done")
    if outcome.n_worked + outcome.carried < outcome.n_rows:
        table.add_row("done before", f"{outcome.n_rows - outcome.n_worked:,} of them, by a run that was interrupted")
    if outcome.duplicate_ids:
        table.add_row("repeated ids", f"{outcome.duplicate_ids:,} rows have the id of another; all are kept")
    for uri, reason in outcome.bad_files[:N_BAD_FILES]:
        table.add_row("skipped file", Text(f"{uri}: {_head(reason)}"))
    if len(outcome.bad_files) > N_BAD_FILES:
        table.add_row("", f"and {len(outcome.bad_files) - N_BAD_FILES:,} more; pegasus-batch status lists them")
    if outcome.n_worked:
        table.add_row("documents/s", f"{outcome.documents_per_second:.1f}")
    table.add_row("time", f"{human_seconds(outcome.seconds)} of {human_seconds(outcome.total_seconds)} with start-up")
    table.add_row("output", Text(outcome.path))
    for text, summary in outcome.examples:
        table.add_section()
        table.add_row("document", Text(_head(text)))
        table.add_row("summary", Text(_head(summary), style="bold"))
    return table


def printable(text: str) -> str:
    """Return a text without the control characters that would act on a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def _head(text: str) -> str:
    return printable(text if len(text) <= _EXAMPLE_CHARACTERS else text[:_EXAMPLE_CHARACTERS] + "...")


def root_cause(error: BaseException) -> str:
    """Return the innermost reason of an error that crossed process borders, without the tracebacks on the way."""
    while True:
        inner = error.cause if isinstance(error, RayTaskError) else error.__cause__
        # Ray Data raises its errors "from" an empty SystemException, which says nothing and is no cause.
        if not isinstance(inner, BaseException) or isinstance(inner, SystemException):
            break
        error = inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, RayError) and lines:
        return lines[-1]  # the message is a remote traceback, whose last line names the error
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
