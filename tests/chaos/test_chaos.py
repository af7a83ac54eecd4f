"""A few faults of every kind, and whether the checks that judge them would notice anything.

``python -m tests.chaos`` draws as many faults as one likes.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pegasus_batch.pipeline import JobConfig
from pegasus_batch.pipeline.ledger import Ledger
from pegasus_batch.pipeline.plan import check_job, write_schema
from pegasus_batch.pipeline.run import find_work
from pegasus_batch.pipeline.schema import POSITION_BITS, ROW_KEY
from pegasus_batch.pipeline.sink import SummaryDatasink
from tests.chaos.checks import Verdict, check_finished, check_visible
from tests.chaos.corpus import Corpus
from tests.chaos.faults import ARMED, END, KINDS, draw_attempts
from tests.chaos.harness import ROOT

SHORT_SECONDS = 2400  # the limit, for a machine that is busy with other things; two free cores need about two minutes


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What became of the fixed episodes, in a process and a cluster of their own."""
    report = tmp_path_factory.mktemp("chaos") / "report.json"
    command = [sys.executable, "-m", "tests.chaos", "--short", "--seed", "7", "--report", str(report)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SHORT_SECONDS, check=False)
    assert report.is_file(), done.stdout + done.stderr
    return list(json.loads(report.read_text()))


@pytest.mark.slow
def test_no_row_is_lost_or_doubled_whatever_is_killed(episodes: list[dict[str, Any]]) -> None:
    assert [(episode["lost"], episode["doubled"], episode["wrong"]) for episode in episodes] == [(0, 0, [])] * 2
    assert sum(episode["rows"] for episode in episodes) == 1700
    assert not any(episode["gave_up"] for episode in episodes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_fault_has_struck(episodes: list[dict[str, Any]], kind: str) -> None:
    assert any(name.startswith(kind) for episode in episodes for name in episode["struck"])


# The judges.


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    corpus = Corpus(tmp_path / "in", random.Random(1))
    corpus.add(60, 2)
    return corpus


def publish(output: Path, corpus: Corpus, rows: pa.Table) -> Path:
    """Commit a run of these rows as they are; its keys say that they are the corpus's. Returns the run's directory."""
    job = check_job(JobConfig(input=(str(corpus.directory),), output=str(output)))
    ledger = Ledger(job.output)
    (plan,) = find_work(job, ledger, show=lambda line: None)
    directory = ledger.open_run(plan)
    progress = ledger.scan(plan, directory)
    keys = [np.arange(file.rows) + (index << POSITION_BITS) for index, file in enumerate(plan.files)]
    sink = SummaryDatasink(directory, 1, plan.schema(job), 40, 16)
    table = rows.append_column(ROW_KEY, pa.array(np.concatenate(keys), pa.int64()))
    sink.write([table], SimpleNamespace(task_idx=0))
    progress = ledger.scan(plan, directory, before=progress)
    record = {"rows_by_status": {"ok": len(rows)}, "schema": write_schema(plan.schema(job))}
    return Path(ledger.commit(plan, directory, progress, record)[1].path)


def test_a_job_that_did_well_passes(corpus: Corpus, tmp_path: Path) -> None:
    publish(tmp_path / "out", corpus, corpus.expected)
    assert check_finished(tmp_path / "out", corpus) == Verdict()
    assert check_visible(tmp_path / "out", corpus.batches) == []


def test_lost_and_doubled_rows_are_counted(corpus: Corpus, tmp_path: Path) -> None:
    rows = corpus.expected
    publish(tmp_path / "out", corpus, pa.concat_tables([rows.slice(2), rows.slice(5, 1), rows.slice(5, 1)]))
    verdict = check_finished(tmp_path / "out", corpus)
    assert (verdict.lost, verdict.doubled) == (2, 2)
    assert verdict.wrong == [
        "read_summaries sees 2 rows not at all and 2 more than once",
        "a plain reader sees 2 rows not at all and 2 more than once",
    ]
    assert check_visible(tmp_path / "out", corpus.batches) == ["an unfinished job shows 60 rows"]


@pytest.mark.parametrize("name", ["id", "document", "nested", "category", "day", "summary", "status", "score"])
def test_a_changed_value_is_found(corpus: Corpus, tmp_path: Path, name: str) -> None:
    rows = corpus.expected
    index = rows.schema.get_field_index(name)
    values = rows.column(index).to_pylist()
    row = next(row for row in range(1, 60) if values[row] != values[0])
    values[row] = values[0]
    column = pa.array(values, rows.schema.field(index).type)
    publish(tmp_path / "out", corpus, rows.set_column(index, rows.schema.field(index), column))
    wrong = check_finished(tmp_path / "out", corpus).wrong
    assert [what.split(" is ")[0] for what in wrong] == [
        f"{who}: {name} of row {row}" for who in ("read_summaries", "a plain reader")
    ]


def test_an_uncommitted_run_is_not_finished(corpus: Corpus, tmp_path: Path) -> None:
    run = publish(tmp_path / "out", corpus, corpus.expected)
    (manifest,) = (tmp_path / "out").glob("_manifest-*")
    manifest.unlink()
    verdict = check_finished(tmp_path / "out", corpus)
    assert (verdict.lost, verdict.wrong) == (60, ["read_summaries sees nothing", f"{run.name} is left"])


def test_what_is_left_is_found(corpus: Corpus, tmp_path: Path) -> None:
    run = publish(tmp_path / "out", corpus, corpus.expected)
    (run / ".half").touch()
    (tmp_path / "out" / "_lock-1.json").touch()
    (tmp_path / "out" / f".{'0' * 32}.tmp").touch()
    (keys,) = run.glob("_rows-*-000.parquet")
    keys.unlink()
    assert sorted(check_finished(tmp_path / "out", corpus).wrong) == sorted(
        [f"{run.name}/.half is left", "_lock-1.json is left", f"{run.name}/{keys.name} is missing"]
    )


def test_rows_of_later_files_may_come_later(corpus: Corpus, tmp_path: Path) -> None:
    publish(tmp_path / "out", corpus, corpus.expected)
    corpus.add(20, 2)
    assert check_visible(tmp_path / "out", corpus.batches) == []
    assert check_finished(tmp_path / "out", corpus).lost == 20


def test_the_corpus_holds_what_a_careless_job_loses(corpus: Corpus) -> None:
    expected = corpus.expected
    assert pc.count_distinct(expected["row"]).as_py() == 60
    assert pc.count_distinct(expected["id"]).as_py() < 60
    assert expected["document"].null_count > 0
    assert set(expected["status"].to_pylist()) == {"ok", "invalid"}
    assert len(list(corpus.directory.rglob("*.parquet"))) == 2
    assert sum(len(pq.read_table(path)) for path in corpus.directory.rglob("*.parquet")) == 60


# The faults.


def test_the_same_seed_draws_the_same_faults() -> None:
    draws = [draw_attempts(random.Random(seed), 6) for seed in ("a", "a", "b")]
    assert draws[0] == draws[1] != draws[2]


def test_faults_are_laid_out_so_that_all_can_strike() -> None:
    kinds = set()
    for seed in range(200):
        attempts = draw_attempts(random.Random(seed), 5)
        assert sum(map(len, attempts)) == 5
        for attempt in attempts:
            assert not any(fault.kind in END for fault in attempt[:-1])
            moments = [fault.after for fault in attempt if fault.kind not in ARMED]
            assert moments == sorted(moments)
            kinds |= {fault.kind for fault in attempt}
        late = [fault.is_late for attempt in attempts for fault in attempt]
        assert late == sorted(late)
    assert kinds == set(KINDS)
