"""What a crash leaves is recognised, what is published is whole, and readers see the newest of it. No Ray here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pegasus_batch
from pegasus_batch.pipeline.config import ConfigError
from pegasus_batch.pipeline.inputs import Location, locate
from pegasus_batch.pipeline.ledger import KEYS_PREFIX, Ledger, Progress
from pegasus_batch.pipeline.manifest import Manifest
from pegasus_batch.pipeline.plan import BadFile, PlannedFile, RunPlan, Version, write_schema
from pegasus_batch.pipeline.schema import ID_HASH, POSITION_BITS, ROW_KEY
from pegasus_batch.pipeline.sink import SummaryDatasink

SCHEMA = pa.schema([("id", pa.int64()), ("summary", pa.string()), ("status", pa.string())])
RECORD = {"rows_by_status": {"ok": 1}, "schema": write_schema(SCHEMA)}


def make_plan(run: int = 1, fingerprint: str = "f", mtime: int = 1, **rows: int) -> RunPlan:
    """A plan of files named by the keywords, with as many rows."""
    files = [PlannedFile(Version(f"/in/{name}", 9, mtime), f"/in/{name}", (n,), n) for name, n in rows.items()]
    schema = pa.schema([("id", pa.int64())])
    return RunPlan(f"20260101T00000{run}-abcdef", fingerprint, "2026-01-01", tuple(files), (), schema)


def rows_of(*keys: tuple[int, int], mark: str = "") -> pa.Table:
    """Finished rows of (file, position) pairs; the id is 100 * file + position."""
    ids = [100 * file + position for file, position in keys]
    return pa.table(
        {
            "id": ids,
            "summary": [f"summary {i}{mark}" for i in ids],
            "status": ["ok"] * len(ids),
            ROW_KEY: pa.array([(file << POSITION_BITS) + position for file, position in keys], pa.int64()),
            ID_HASH: pa.array(ids, pa.uint64()),
        }
    )


def span(file: int, begin: int, end: int) -> list[tuple[int, int]]:
    return [(file, i) for i in range(begin, end)]


def write(directory: Location, task: int, rows: pa.Table, attempt: int = 1, rows_per_file: int = 100) -> None:
    sink = SummaryDatasink(directory, attempt, SCHEMA, rows_per_file, window=4)
    sink.write([rows.slice(0, 2), rows.slice(2)], SimpleNamespace(task_idx=task))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(locate(str(tmp_path / "out put")))


def start(ledger: Ledger, plan: RunPlan) -> tuple[Location, Progress]:
    ledger.begin(plan)
    directory = ledger.open_run(plan)
    return directory, ledger.scan(plan, directory)


def publish(ledger: Ledger, plan: RunPlan, mark: str = "", **record: Any) -> Manifest:
    """Carry a whole plan out."""
    directory, progress = start(ledger, plan)
    for index, file in enumerate(plan.files):
        write(directory, index, rows_of(*span(index, 0, file.rows), mark=mark))
    progress = ledger.scan(plan, directory, before=progress)
    return ledger.commit(plan, directory, progress, {**RECORD, **record})[0]


def listed(directory: Location) -> list[str]:
    return sorted(path.name for path in Path(directory.path).iterdir())


def test_a_plan_survives_the_disk(ledger: Ledger) -> None:
    bad = BadFile(Version("/in/bad", 1, 2), "torn")
    file = PlannedFile(Version("/in/ä?#.parquet", 10, 123), "s3://b/x?region=y", (3, 4), 5, (("day", "mon"),), "run")
    plan = dataclasses.replace(make_plan(), files=(file,), bad=(bad,), notes=("n",))
    ledger.begin(plan)
    assert ledger.unfinished() == [plan]


def test_a_run_in_pieces(ledger: Ledger) -> None:
    plan = make_plan(a=5, b=3)
    directory, progress = start(ledger, plan)
    assert (progress.missing, progress.attempt) == (8, 1)
    write(directory, 0, rows_of((0, 0), (1, 2), (0, 3)), rows_per_file=2)
    assert len(listed(directory)) == 4
    again = ledger.open_run(plan)
    assert again.path != directory.path
    assert not Path(directory.path).exists()
    progress = ledger.scan(plan, again)
    assert (progress.n_done, progress.missing, progress.attempt) == (3, 5, 2)
    assert [np.flatnonzero(done).tolist() for done in progress.done] == [[0, 3], [2]]
    write(again, 0, rows_of((0, 1), (0, 2), (0, 4), (1, 0), (1, 1)), attempt=2)
    progress = ledger.scan(plan, again, before=progress)
    manifest, published = ledger.commit(plan, again, progress, RECORD)
    assert [file.inputs for file in manifest.files] == [(0, 1), (0,), (0, 1)]
    assert ledger.unfinished() == []
    assert published.path.endswith(plan.run_id)
    table = pegasus_batch.read_summaries(ledger.output.given)
    assert table.schema == SCHEMA
    assert sorted(table["id"].to_pylist()) == [0, 1, 2, 3, 4, 100, 101, 102]
    plain = pq.read_table(ledger.output.path)
    assert plain.sort_by("id") == table.sort_by("id")


@pytest.mark.parametrize("keep", range(5))
def test_whatever_a_crash_leaves_of_a_pair_is_not_believed(ledger: Ledger, keep: int) -> None:
    """Killed before the keys, in the middle of them, between keys and rows, in the rows, and with a foreign pair."""
    plan = make_plan(a=4)
    directory, _ = start(ledger, plan)
    write(directory, 0, rows_of(*span(0, 0, 4)))
    (keys,) = Path(directory.path).glob("_rows-*")
    data = Path(directory.path) / keys.name.removeprefix(KEYS_PREFIX)
    if keep == 0:
        keys.unlink()
    elif keep == 1:
        keys.write_bytes(keys.read_bytes()[:-9])
    elif keep == 2:
        data.unlink()
    elif keep == 3:
        data.write_bytes(data.read_bytes()[:-9])
    else:
        pq.write_table(pq.read_table(data).slice(1), data)  # as many keys as rows it must be
    (Path(directory.path) / ".half.parquet.123").write_bytes(b"PAR1")
    progress = ledger.scan(plan, directory)
    assert (progress.n_done, progress.missing) == (0, 4)
    assert listed(directory) == []


def test_rows_twice_or_of_another_plan_are_thrown_away(ledger: Ledger) -> None:
    plan = make_plan(a=4, b=2)
    directory, _ = start(ledger, plan)
    write(directory, 0, rows_of(*span(0, 0, 3)))
    write(directory, 1, rows_of((0, 2), (0, 3)))  # one row again: the other must not be lost with it
    write(directory, 2, rows_of((1, 0), (1, 0)))
    write(directory, 3, rows_of((1, 2)))
    write(directory, 4, rows_of((2, 0)))
    progress = ledger.scan(plan, directory)
    assert [file.name for file in progress.files] == ["001-000000-000.parquet"]
    assert [np.flatnonzero(~done).tolist() for done in progress.done] == [[3], [0, 1]]
    assert listed(directory) == ["001-000000-000.parquet", "_rows-001-000000-000.parquet"]


def test_a_writer_of_a_dead_process_adds_nothing(ledger: Ledger) -> None:
    plan = make_plan(a=4)
    before, _ = start(ledger, plan)
    write(before, 0, rows_of((0, 0)))
    directory = ledger.open_run(plan)
    progress = ledger.scan(plan, directory)
    with pytest.raises(FileNotFoundError):
        write(before, 1, rows_of((0, 1)))
    write(directory, 7, rows_of((0, 1)), attempt=1)  # where nothing can be renamed, it still finds its path
    write(directory, 0, rows_of(*span(0, 1, 4)), attempt=2)
    progress = ledger.scan(plan, directory, before=progress)
    assert [file.name[:10] for file in progress.files] == ["001-000000", "002-000000"]
    assert progress.missing == 0


def test_nothing_incomplete_is_published(ledger: Ledger) -> None:
    plan = make_plan(a=3)
    directory, _ = start(ledger, plan)
    write(directory, 0, rows_of(*span(0, 0, 2)))
    with pytest.raises(RuntimeError, match="2 rows are written for 3 rows of input"):
        ledger.commit(plan, directory, ledger.scan(plan, directory), RECORD)
    with pytest.raises(ValueError, match="it has: none"):
        pegasus_batch.read_summaries(ledger.output.given)
    assert not list(Path(ledger.output.path).glob("[!_.]*"))


def test_a_crash_between_data_and_manifest(ledger: Ledger) -> None:
    plan = make_plan(a=3)
    directory, _ = start(ledger, plan)
    write(directory, 0, rows_of(*span(0, 0, 3)))
    ledger.store.rename(Path(directory.path).name, plan.run_id)
    assert ledger.unfinished() == [plan]
    with pytest.raises(ValueError, match="none"):
        pegasus_batch.read_summaries(ledger.output.given)
    directory = ledger.open_run(plan)
    progress = ledger.scan(plan, directory)
    assert progress.missing == 0
    ledger.commit(plan, directory, progress, RECORD)
    assert len(pegasus_batch.read_summaries(ledger.output.given)) == 3


def test_a_crash_between_manifest_and_plan(ledger: Ledger) -> None:
    plan = make_plan(a=3)
    publish(ledger, plan)
    ledger.begin(plan)
    assert ledger.unfinished() == []
    ledger.clear_committed()
    assert ledger.store.names("_plan-") == []


def test_of_two_who_commit_a_run_one_wins(ledger: Ledger) -> None:
    plan = make_plan(a=3)
    publish(ledger, plan)
    directory = ledger.open_run(plan)
    with pytest.raises(FileExistsError):
        ledger.commit(plan, directory, ledger.scan(plan, directory), RECORD)


def test_newer_rows_of_a_file_stand_for_the_older(ledger: Ledger) -> None:
    publish(ledger, make_plan(1, a=3, b=2))
    publish(ledger, make_plan(2, mtime=2, a=1, c=1), mark=" new")
    publish(ledger, make_plan(3, "g", a=3), mark=" other")
    newest = pegasus_batch.read_summaries(ledger.output.given)
    assert newest["summary"].to_pylist() == ["summary 0 other", "summary 1 other", "summary 2 other"]
    table = pegasus_batch.read_summaries(ledger.output.given, "f")
    # File a is index 0 in both runs; file b is 1 in the first, file c 1 in the second.
    assert sorted(table["summary"].to_pylist()) == ["summary 0 new", "summary 100", "summary 100 new", "summary 101"]
    with pytest.raises(ValueError, match="no committed summaries of fingerprint h; it has: f, g"):
        pegasus_batch.read_summaries(ledger.output.given, "h")


def test_a_commit_without_rows_still_has_columns(ledger: Ledger) -> None:
    publish(ledger, make_plan(a=0))
    table = pegasus_batch.read_summaries(ledger.output.given)
    assert (len(table), table.schema) == (0, SCHEMA)


def test_a_file_that_left_its_run_hides_nothing(ledger: Ledger) -> None:
    publish(ledger, make_plan(1, a=2))
    second = make_plan(2, a=2, b=1)
    publish(ledger, dataclasses.replace(second, files=(dataclasses.replace(second.files[0], rows=0), second.files[1])))
    assert len(pegasus_batch.read_summaries(ledger.output.given)) == 3


def test_columns_that_came_later_are_null_before(ledger: Ledger) -> None:
    publish(ledger, make_plan(1, a=1))
    plan = make_plan(2, b=1)
    directory, progress = start(ledger, plan)
    sink = SummaryDatasink(directory, 1, SCHEMA.append(pa.field("lang", pa.string())), 10, 1)
    sink.write([rows_of((0, 0)).append_column("lang", [["en"]])], SimpleNamespace(task_idx=0))
    ledger.commit(plan, directory, ledger.scan(plan, directory, progress), RECORD)
    assert pegasus_batch.read_summaries(ledger.output.given)["lang"].to_pylist() == [None, "en"]


def test_abandon(ledger: Ledger) -> None:
    plan = make_plan(a=3)
    directory, _ = start(ledger, plan)
    write(directory, 0, rows_of((0, 0)))
    with pytest.raises(ConfigError, match=f"--abandon 'x': no unfinished run of that name; unfinished: {plan.run_id}"):
        ledger.abandon("x")
    with pytest.raises(ConfigError, match="no unfinished run"):
        ledger.abandon("../" + plan.run_id)
    ledger.abandon(plan.run_id)
    assert list(Path(ledger.output.path).iterdir()) == []


def test_a_uri_keeps_its_query() -> None:
    """The name of a run's directory once went behind it."""
    directory = Ledger(locate("s3://bucket/out?region=eu-west-1"))._directory("run")
    assert (directory.given, directory.path) == ("s3://bucket/out/run?region=eu-west-1", "bucket/out/run")


def test_duplicate_ids_are_counted_in_passes(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(a=9)
    directory, _ = start(ledger, plan)
    rows = rows_of(*span(0, 0, 9)).drop_columns([ID_HASH])
    rows = rows.append_column(ID_HASH, pa.array([1, 2, 3, 1, 2, 1, 2**64 - 1, 0, 0], pa.uint64()))
    write(directory, 0, rows, rows_per_file=4)
    progress = ledger.scan(plan, directory)
    assert ledger.duplicate_ids(directory, progress.files) == 4
    monkeypatch.setattr("pegasus_batch.pipeline.ledger._IDS_AT_ONCE", 2)
    assert ledger.duplicate_ids(directory, progress.files) == 4


@pytest.mark.parametrize(("old", "new"), [("001-000000-000.parquet", "../x.parquet"), ("20260101T", "../0101T")])
def test_a_manifest_cannot_lead_out_of_its_run(ledger: Ledger, old: str, new: str) -> None:
    publish(ledger, make_plan(a=1))
    (manifest,) = Path(ledger.output.path).glob("_manifest*")
    manifest.write_text(manifest.read_text().replace(old, new))
    with pytest.raises(ValueError, match="restore"):
        pegasus_batch.read_summaries(ledger.output.given)


def test_a_directory_of_somebody_else_is_refused(ledger: Ledger) -> None:
    publish(ledger, make_plan(a=1))
    ledger.check_foreign()
    (Path(ledger.output.path) / "_notes").touch()
    ledger.check_foreign()
    (Path(ledger.output.path) / "part-0.parquet").touch()
    with pytest.raises(ConfigError, match=r"is not empty \(it holds part-0\.parquet, which no run of this job wrote\)"):
        ledger.check_foreign()
