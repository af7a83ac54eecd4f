"""The log, the curves and TensorBoard's files of a run."""

from __future__ import annotations

import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pegasus_batch.training.record import RunRecord, read_log


def fill(record: RunRecord, steps: list[int]) -> None:
    for step in steps:
        record.write(step, {"loss": 5.0 - step / 10, "nll": 4.0 - step / 10, "rate": 0.1, "minutes_left": None})
    measured = {"loss": 3.5, "rouge1": 10.0, "rouge2": 2.0, "rougeL": 9.0}
    record.write(steps[-1], {"validation": measured, "best": True})


def test_a_continued_log_has_every_step_once(tmp_path: Path) -> None:
    fill(RunRecord(tmp_path, 0, tensorboard=False), [1, 2, 3, 4])
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 5, "los')  # a crash
    fill(RunRecord(tmp_path, 2, tensorboard=False), [3, 4, 5])
    entries = list(read_log(tmp_path / "log.jsonl"))
    assert [entry["step"] for entry in entries if "loss" in entry] == [1, 2, 3, 4, 5]
    assert [entry["step"] for entry in entries if "validation" in entry] == [5]
    assert all(json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())


def test_the_curves_are_drawn(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, 0, tensorboard=False)
    record.draw()  # nothing yet is no error
    fill(record, [1, 2, 3])
    record.draw()
    assert "</svg>" in (tmp_path / "curves.svg").read_text()


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    fill(RunRecord(tmp_path, 0, tensorboard=True), [1, 2])
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("validation/rouge1")] == [(2, 10.0)]
    assert [event.step for event in events.Scalars("loss")] == [1, 2]
    assert "minutes_left" not in events.Tags()["scalars"]
