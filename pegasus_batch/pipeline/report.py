"""What a job tells its user: the plan, progress while it runs, and what became of the rows."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc
import pyarrow.dataset
from ray.data.exceptions import SystemException
from ray.exceptions import RayError, RayTaskError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from pegasus_batch.pipeline.stages import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS, SummarizeDocuments, Workers

if TYPE_CHECKING:
    from pegasus_batch.pipeline.plan import Plan

LINE_SECONDS = 10.0  # between progress lines where there is no terminal
N_EXAMPLES = 8
N_REASONS = 3  # most frequent errors shown
_EXAMPLE_CHARACTERS = 300


@dataclass(frozen=True)
class Outcome:
    """What became of a job's rows. ``errors`` holds the most frequent reasons with their counts."""

    path: str  # of the published rows
    n_rows: int
    by_status: dict[str, int]
    errors: tuple[tuple[str, int], ...]
    seconds: float  # of reading, summarizing and writing
    total_seconds: float  # with checking the input and starting Ray
    examples: tuple[tuple[str, str], ...] = ()

    @property
    def documents_per_second(self) -> float:
        """Rows over the seconds that the pipeline ran, loading the model included."""
        return self.n_rows / self.seconds if self.seconds > 0 else 0.0


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
        """Note how many rows have been summarized since the start."""
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
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if sys.stderr.isatty() and show is say:
            self._bar = Progress(
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
            if SummarizeDocuments.__name__ in operator.name:
                _active.update(operator.metrics.row_outputs_taken)

    def after_execution_succeeds(self, executor: Any) -> None:
        """Nothing to do: the job prints its outcome."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Nothing to do: the job raises."""


def read_outcome(plan: Plan, path: str, seconds: float, total_seconds: float) -> Outcome:
    """Count the written rows by status, collect reasons, and pick examples if the job is a demonstration."""
    written = pyarrow.dataset.dataset(path, filesystem=plan.output.filesystem, format="parquet", partitioning=None)
    by_status: dict[str, int] = {}
    reasons: dict[str, int] = {}
    for batch in written.to_batches(columns=["status", "error"]):
        for entry in pc.value_counts(batch.column("status")).to_pylist():
            by_status[entry["values"]] = by_status.get(entry["values"], 0) + entry["counts"]
        for entry in pc.value_counts(batch.column("error").drop_null()).to_pylist():
            reasons[entry["values"]] = reasons.get(entry["values"], 0) + entry["counts"]
    examples: list[tuple[str, str]] = []
    config = plan.config
    if config.is_demo and config.text_column in plan.passengers.names:
        names = [config.text_column, config.summary_column]
        found = written.filter(pc.field("status") == "ok").head(N_EXAMPLES, columns=names)
        examples = list(zip(*(found.column(name).to_pylist() for name in names), strict=True))
    frequent = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:N_REASONS]
    return Outcome(
        path=f"{plan.output.given.rstrip('/')}/{plan.run_id}",
        n_rows=sum(by_status.values()),
        by_status={status: by_status[status] for status in ("ok", "invalid", "failed") if status in by_status},
        errors=tuple(frequent),
        seconds=seconds,
        total_seconds=total_seconds,
        examples=tuple(examples),
    )


def describe_start(plan: Plan, workers: Workers) -> str:
    """Return one line that says what begins."""
    where = f"{workers.gpus:g} GPU each" if workers.gpus else f"{workers.threads} threads each"
    return (
        f"summarizing {plan.n_rows:,} rows of {plan.n_files:,} files with {workers.count} "
        f"worker{'s' if workers.count > 1 else ''} ({where}) into {plan.output.given}"
    )


def plan_lines(plan: Plan) -> list[str]:
    """Return what ``--dry-run`` prints: one line for each subject."""
    config = plan.config
    given = ", ".join(config.input) or "the sample corpus"
    workers = f"{config.num_workers or 'as many as fit'}, "
    if config.num_gpus_per_worker is None and config.device != "cpu":
        workers += "on a GPU each" + (", or on CPUs where there are none" if config.device == "auto" else "")
    else:
        workers += f"{config.num_gpus_per_worker:g} GPUs each" if config.num_gpus_per_worker else "on CPUs"
    budget = (
        f"{config.batch_tokens:,}"
        if config.batch_tokens
        else f"{CPU_BATCH_TOKENS:,} on CPU or {GPU_BATCH_TOKENS:,} on GPU"
    )
    longest = config.max_source_tokens or "the model's maximum"
    subjects = {
        "input": f"{given}: {plan.n_files:,} files, {plan.n_bytes / 1e6:,.1f} MB",
        "rows": f"{plan.n_rows:,}" + (", limited" if config.limit == plan.n_rows else ""),
        "output": f"{plan.output.given.rstrip('/')}/{plan.run_id}/",
        "columns": ", ".join(f"{field.name} {field.type}" for field in plan.schema),
        "text": f"column {config.text_column!r}, up to {longest} tokens of each document",
        "model": f"{plan.settings.directory} (device {config.device}, dtype {config.dtype})",
        "workers": workers,
        "batches": f"{budget} source tokens",
        "generation": ", ".join(f"{name}={value}" for name, value in sorted(plan.generation.to_dict().items())),
    }
    return [
        "plan (nothing was run)",
        *(f"  {name:<11} {_clean(subject)}" for name, subject in subjects.items()),
        *(f"  {'note':<11} {note}" for note in plan.notes),
    ]


def outcome_table(outcome: Outcome) -> Table:
    """Return what a finished job prints."""
    table = Table(show_header=False)
    for status, count in outcome.by_status.items():
        table.add_row(f"rows {status}", f"{count:,}")
    for reason, count in outcome.errors:
        table.add_row("", Text(f"{count:,} x {_head(reason)}"))
    table.add_row("documents/s", f"{outcome.documents_per_second:.1f}")
    table.add_row("time", f"{human_seconds(outcome.seconds)} of {human_seconds(outcome.total_seconds)} with start-up")
    table.add_row("output", Text(outcome.path))
    for text, summary in outcome.examples:
        table.add_section()
        table.add_row("document", Text(_head(text)))
        table.add_row("summary", Text(_head(summary), style="bold"))
    return table


def _clean(text: str) -> str:
    """Return a text without the control characters that would act on a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def _head(text: str) -> str:
    return _clean(text if len(text) <= _EXAMPLE_CHARACTERS else text[:_EXAMPLE_CHARACTERS] + "...")


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
