from __future__ import annotations

import io

import pytest
from ray.data.exceptions import SystemException
from ray.exceptions import RayError, RayTaskError
from rich.console import Console

from pegasus_batch.pipeline import report


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_meter_reports_rows_speed_and_time_left() -> None:
    clock = Clock()
    meter = report.Meter(1000, clock)
    clock.now += 30
    meter.update(0)
    assert meter.line() == "0/1,000 rows  starting workers and loading the model (30.0 s)"
    meter.update(100)
    assert meter.line() == "100/1,000 rows  10.0%  3.3 documents/s  4m30s left"
    clock.now += 10
    meter.update(300)  # from now on the half minute of loading does not count
    assert meter.line() == "300/1,000 rows  30.0%  20.0 documents/s  35.0 s left"
    clock.now += 35
    meter.update(1000)
    assert meter.line().endswith("100.0%  20.0 documents/s  0.0 s left")


@pytest.mark.parametrize(("seconds", "words"), [(4.25, "4.2 s"), (119.6, "2m00s"), (3661, "1h01m")])
def test_durations(seconds: float, words: str) -> None:
    assert report.human_seconds(seconds) == words


def test_a_line_every_ten_seconds_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(report.time, "monotonic", clock)
    lines: list[str] = []

    class Operator:
        name = "MapBatches(RunModel)"

        class metrics:
            row_outputs_taken = 7

    class Executor:
        _topology = (Operator(),)

    callback = report.ProgressCallback()
    callback.on_execution_step(Executor())  # outside of a job: nothing to report to
    with report.progress(50, lines.append):
        for _ in range(25):
            clock.now += 1
            callback.on_execution_step(Executor())
    assert len(lines) == 2
    assert lines[0].startswith("7/50 rows  14.0%")


def test_examples_cannot_act_on_the_terminal() -> None:
    outcome = report.Outcome(
        "out/run",
        2,
        {"ok": 1, "invalid": 1},
        (("the text is [red]null\x1b[2J", 1),),
        2.0,
        5.0,
        (("a\x1b[31m\nb", "[b]x[/b]"),),
        n_worked=2,
    )
    stream = io.StringIO()
    Console(file=stream, width=100, force_terminal=False).print(report.outcome_table(outcome))
    text = stream.getvalue()
    assert "\x1b" not in text
    assert "[b]x[/b]" in text
    assert "1 x the text is [red]null" in text
    assert "documents/s  │ 1.0" in text
    assert "2.0 s of 5.0 s with start-up" in text


def table_text(outcome: report.Outcome) -> str:
    stream = io.StringIO()
    Console(file=stream, width=120, force_terminal=False).print(report.outcome_table(outcome))
    return stream.getvalue()


def test_the_table_says_what_was_not_done_now() -> None:
    assert "nothing new" in table_text(report.Outcome("out"))
    bad = tuple((f"/in/{i}.parquet", "the file is empty") for i in range(report.N_BAD_FILES + 2))
    text = table_text(
        report.Outcome("out/r", 100, {"ok": 100}, n_worked=40, seconds=4.0, carried=7, duplicate_ids=3, bad_files=bad)
    )
    for line in ("done before  │ 60 of them", "carried over │ 7 of them", "repeated ids │ 3 rows"):
        assert line in text
    assert text.count("the file is empty") == report.N_BAD_FILES
    assert "and 2 more" in text
    assert "documents/s  │ 10.0" in text


def test_several_runs_are_told_as_one() -> None:
    first = report.Outcome("out/1", 3, {"ok": 1, "failed": 2}, (("hot", 2),), 1.0, 5.0, n_worked=3, carried=1)
    second = report.Outcome("out/2", 2, {"invalid": 1, "failed": 1}, (("hot", 1), ("a", 1)), 2.0, 9.0, n_worked=2)
    both = report.together([first, second])
    assert (both.path, both.n_rows, both.n_worked, both.carried) == ("out/2", 5, 5, 1)
    assert list(both.by_status.items()) == [("ok", 1), ("invalid", 1), ("failed", 3)]
    assert both.errors == (("hot", 3), ("a", 1))
    assert (both.seconds, both.total_seconds) == (3.0, 9.0)


def test_the_innermost_reason_is_shown() -> None:
    inner = OSError("weights are truncated\n\nsecond line")
    task = RayTaskError("f", "Traceback ...\nlong", inner)
    outer = RuntimeError("the actor died")
    outer.__cause__ = task
    assert report.root_cause(outer) == "OSError: weights are truncated"
    died = RayError("The actor died ... its creation task, ray::__init__()\n  File x\nOSError: no space left")
    died.__cause__ = SystemException()  # as Ray Data raises it
    assert report.root_cause(died) == "OSError: no space left"
    assert report.root_cause(ValueError("")) == "ValueError: "
