"""Rows that end their worker: charged by their own deaths, never by their neighbours'."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import ray
import ray.data
from ray import cloudpickle

from pegasus_batch.documents import Document, Summary
from pegasus_batch.pipeline import guard as guard_module
from pegasus_batch.pipeline.guard import CrashGuard, run_guarded, start_guard
from pegasus_batch.pipeline.schema import ROW_KEY
from pegasus_batch.pipeline.stages import TokenizeDocuments, Workers, transform
from pegasus_batch.pipeline.summarize import Summarize
from pegasus_batch.pipeline.task import ModelSettings
from tests.pipeline.fakes import POISON, EchoModel, word_tokenizer

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not have the tests on their path


def document(key: int) -> Document:
    return Document([key, 1], 2, False)


def summary(of: Document) -> Summary:
    if of.error is not None:
        return Summary(None, None, 0, 0, False, "invalid", of.error)
    return Summary(f"summary of {of.token_ids[0]}", -1.0, 2, 2, False)


class Killed(BaseException):
    """The process ends here: nothing of it runs any further, not even its handlers of errors."""


class Job:
    """Plays Ray without Ray: replays a window until it comes through, on a worker that rows can kill."""

    def __init__(self, kills: Callable[[list[int]], bool] = lambda keys: False) -> None:
        self.guard = CrashGuard()
        self.kills = kills
        self.calls: list[list[int]] = []
        self.deaths = 0

    def summarize(self, documents: list[Document]) -> list[Summary]:
        keys = [of.token_ids[0] for of in documents if of.error is None]
        self.calls.append(keys)
        if self.kills(keys):
            raise Killed
        return [summary(of) for of in documents]

    def once(self, keys: Iterable[int], invalid: Iterable[int] = ()) -> list[Summary]:
        bad = Document([], 0, False, "the text is null")
        keys = list(keys)
        documents = [bad if key in set(invalid) else document(key) for key in keys]
        return run_guarded(self.summarize, documents, keys, handle_of(self.guard), Summary.missing)

    def run(self, keys: Iterable[int], invalid: Iterable[int] = ()) -> list[Summary]:
        keys, invalid = list(keys), list(invalid)
        while self.deaths < 50:
            try:
                return self.once(keys, invalid)
            except Killed:
                self.deaths += 1
        raise AssertionError("the window is replayed for ever")

    def forgot_everything(self) -> bool:
        return not any(vars(self.guard).values())


def handle_of(guard: CrashGuard) -> Any:
    """Dress a guard as the handle of an actor."""
    return SimpleNamespace(begin=SimpleNamespace(remote=guard.begin), end=SimpleNamespace(remote=guard.end))


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Answers of a guard in this process are there at once."""
    monkeypatch.setattr(guard_module.ray, "get", lambda answer: answer)
    yield


def statuses(summaries: list[Summary]) -> str:
    return "".join({"ok": ".", "failed": "F", "invalid": "-"}[made.status] for made in summaries)


# ---- what the guard remembers


def test_a_worker_that_starts_again_succeeds_one_that_died() -> None:
    guard = CrashGuard()
    assert [guard.enlist(worker) for worker in ("a", "b", "a", "b", "c")] == [False, False, True, True, False]


@pytest.mark.usefixtures("no_ray")
def test_the_first_window_of_a_successor_is_taken_apart() -> None:
    """Nobody has told the guard what the predecessor was at."""
    guard, batches = CrashGuard(), []

    def summarize(documents: list[Document]) -> list[Summary]:
        batches.append(len(documents))
        return [Summary("ok", 0.0, 1, 1, False) for _ in documents]

    window = [document(1), document(2), document(3)]
    assert len(run_guarded(summarize, window, [1, 2, 3], handle_of(guard), Summary.missing, suspect=True)) == 3
    assert batches == [1, 1, 1]
    run_guarded(summarize, window, [4, 5, 6], handle_of(guard), Summary.missing)
    assert batches == [1, 1, 1, 3]
    assert guard.begin([1, 2, 3, 4, 5, 6], "next") == {}


def test_nothing_is_suspect_that_ended() -> None:
    guard = CrashGuard()
    assert guard.begin([1, 2, 3], "a") == {}
    guard.end([1, 2, 3], "a")
    assert guard.begin([1, 2, 3], "b") == {}


def test_a_death_in_company_charges_nobody() -> None:
    guard = CrashGuard()
    guard.begin([1, 2, 3], "a")
    assert guard.begin([2, 3, 4], "b") == {2: 0, 3: 0}
    assert guard.begin([2, 3, 4], "c") == {2: 0, 3: 0, 4: 0}


def test_a_death_alone_charges_the_row() -> None:
    guard = CrashGuard()
    guard.begin([1, 2, 3], "a")
    guard.begin([1, 2, 3], "b")
    assert guard.begin([2], "b") == {2: 0}  # its holder lives: that is no death
    assert guard.begin([1, 2, 3], "c") == {1: 0, 2: 1, 3: 0}
    assert guard.begin([1, 2, 3], "d") == {1: 0, 2: 1, 3: 0}  # died before anything was alone


def test_a_request_that_is_sent_twice_counts_once() -> None:
    """Ray repeats a call to an actor whose answer was lost."""
    guard = CrashGuard()
    assert guard.begin([1], "a") == guard.begin([1], "a") == {}
    assert guard.begin([1], "b") == guard.begin([1], "b") == {1: 1}


def test_suspicion_ends_with_the_row() -> None:
    guard = CrashGuard()
    guard.begin([1], "a")
    assert guard.begin([1], "b") == {1: 1}
    guard.end([1], "b")
    assert guard.begin([1], "c") == {}


def test_a_dead_holder_ends_nothing_of_its_successor() -> None:
    guard = CrashGuard()
    guard.begin([1, 2], "a")
    guard.begin([1, 2], "b")
    guard.end([1, 2], "a")
    assert guard.begin([1, 2], "c") == {1: 0, 2: 0}
    guard.end([7], "c")  # a guard that started again does not know it


# ---- windows


@pytest.mark.usefixtures("no_ray")
class TestWindows:
    def test_a_healthy_window_is_one_call(self) -> None:
        job = Job()
        assert job.run(range(5)) == [summary(document(key)) for key in range(5)]
        assert job.calls == [[0, 1, 2, 3, 4]]
        assert job.forgot_everything()

    def test_begun_before_the_work(self) -> None:
        job = Job(kills=lambda keys: True)
        with pytest.raises(Killed):
            job.once([1, 2])
        assert job.guard.begin([1, 2], "next") == {1: 0, 2: 0}

    @pytest.mark.parametrize("culprit", range(4))
    def test_the_culprit_fails_and_nobody_else(self, culprit: int) -> None:
        job = Job(kills=lambda keys: culprit in keys)
        found = job.run(range(4))
        assert [made.status for made in found] == ["failed" if key == culprit else "ok" for key in range(4)]
        assert [made.text for key, made in enumerate(found) if key != culprit] == [
            f"summary of {key}" for key in range(4) if key != culprit
        ]
        assert "twice" in str(found[culprit].error) and found[culprit].n_source_tokens == 2
        assert job.deaths == 3  # with its window, and twice alone
        assert job.forgot_everything()

    def test_what_runs_when(self) -> None:
        job = Job(kills=lambda keys: 2 in keys)
        job.run(range(5))
        assert job.calls == [
            [0, 1, 2, 3, 4],  # dies
            [0], [1], [2],  # dies alone; 0 and 1 have ended, 3 and 4 were never alone
            [0, 1], [2],  # dies alone again
            [0, 1], [3], [4],
        ]  # fmt: skip

    def test_several_culprits_in_one_window(self) -> None:
        """A row that was given up must not be tried again when the next culprit kills the worker."""
        job = Job(kills=lambda keys: bool({1, 4} & set(keys)))
        assert statuses(job.run(range(6))) == ".F..F."
        assert job.deaths == 5
        assert job.forgot_everything()

    def test_one_death_alone_is_forgiven(self) -> None:
        """The machine was taken away, twice; the second time a healthy row happened to be alone."""
        deaths = iter([True, False, True])
        job = Job(kills=lambda keys: next(deaths, False))
        assert statuses(job.run(range(3))) == "..."
        assert job.deaths == 2 and job.calls == [[0, 1, 2], [0], [1], [0], [1], [2]]
        assert job.forgot_everything()

    def test_deaths_in_company_never_condemn(self) -> None:
        """Workers that die before they reach the first row alone charge nobody, however often."""
        job = Job()
        for _ in range(10):
            job.guard.begin([1, 2, 3], os.urandom(4).hex())
        assert statuses(job.run([1, 2, 3])) == "..."
        assert job.calls == [[1], [2], [3]]

    def test_only_those_in_flight_are_suspect(self) -> None:
        """A replay may draw its window otherwise; what was not there when the worker died runs in company."""
        job = Job(kills=lambda keys: 3 in keys)
        with pytest.raises(Killed):
            job.once([1, 3])
        assert statuses(job.run([0, 1, 2, 3])) == "...F"
        assert job.calls[1:4] == [[0, 2], [1], [3]]

    def test_company_that_kills_becomes_suspect(self) -> None:
        """Rows that only kill together: none is guilty alone, so all come out."""
        job = Job(kills=lambda keys: {0, 2} <= set(keys))
        job.guard.begin([1, 9], "dead")
        assert statuses(job.run(range(4))) == "...."
        assert job.deaths == 1 and job.calls == [[0, 2, 3], [0], [1], [2], [3]]

    @pytest.mark.parametrize("invalid", [(), (7, 8)])
    def test_a_window_of_one_row(self, invalid: tuple[int, ...]) -> None:
        """It is alone from the start, and beginning it anew in the same call is not another death."""
        job = Job(kills=lambda keys: 5 in keys)
        assert statuses(job.run([*invalid, 5], invalid)) == "-" * len(invalid) + "F"
        assert job.deaths == 2

    def test_invalid_documents_are_not_guarded(self) -> None:
        job = Job(kills=lambda keys: 1 in keys)
        with pytest.raises(Killed):
            job.once([0, 1, 2], invalid=[0])
        assert set(job.guard.begin([0, 1, 2], "next")) == {1, 2}
        job = Job(kills=lambda keys: 1 in keys)
        found = job.run([0, 1, 2], invalid=[0])
        assert statuses(found) == "-F." and found[0].error == "the text is null"
        job = Job()
        job.guard = None  # type: ignore[assignment]  # a window of nothing asks nobody
        assert statuses(run_guarded(job.summarize, [Document([], 0, False, "x")], [3], None, Summary.missing)) == "-"

    @pytest.mark.parametrize("after_a_death", [False, True])
    def test_an_error_is_no_death(self, after_a_death: bool) -> None:
        def fail(keys: list[int]) -> bool:
            if 1 in keys:
                raise KeyError("1")
            return False

        job = Job(kills=fail)
        if after_a_death:
            job.guard.begin([0, 1, 2], "dead")
        with pytest.raises(KeyError):
            job.once([0, 1, 2])
        assert job.forgot_everything()

    def test_an_exit_is_a_death(self) -> None:
        def leave(keys: list[int]) -> bool:
            raise SystemExit(1)

        job = Job(kills=leave)
        with pytest.raises(SystemExit):
            job.once([1])
        assert job.guard.begin([1], "next") == {1: 1}

    def test_a_guard_that_started_again_forgets_and_goes_on(self) -> None:
        """It dies while a suspect is alone: what it knew is lost, its end is word of a row that it does not know."""

        def lose(keys: list[int]) -> bool:
            if keys == [1]:
                vars(job.guard).update(vars(CrashGuard()))
            return False

        job = Job(kills=lose)
        job.guard.begin([0, 1, 2], "dead")
        assert statuses(job.run([0, 1, 2])) == "..."
        assert job.forgot_everything()


# ---- on Ray


class KilledModel(EchoModel):
    """A poisoned document kills the process that meets it."""

    def __init__(self, marks: str) -> None:
        super().__init__()
        self.marks = marks

    def summarize_documents(self, documents: Sequence[Document]) -> list[Summary]:
        if any(POISON in of.token_ids for of in documents):
            with Path(self.marks).open("a") as marks:
                marks.write(f"among {len(documents)}\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return [self._one(of) for of in documents]


def read_unit(units: pa.Table) -> Iterator[pa.Table]:
    """Sixty documents with their keys, one of them poisoned."""
    keys = [60 * unit + row for unit in units["unit"].to_pylist() for row in range(60)]
    yield pa.table({"document": ["poison" if key == 73 else "fox" for key in keys], ROW_KEY: keys})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`use_\\w+` is deprecated:DeprecationWarning")  # Ray warns of its own defaults
@pytest.mark.usefixtures("cluster")
def test_killed_workers(tmp_path: Path) -> None:
    """Several windows are on their way to a worker when a row in the midst of one kills it."""
    marks = tmp_path / "deaths"
    workers = Workers(count=2, cpus=0.5, window=10)
    factory = functools.partial(_killed_model, marks=str(marks))
    units = ray.data.from_arrow([pa.table({"unit": [unit]}) for unit in range(4)])
    task = Summarize(ModelSettings("", device="cpu"), factory, tokenizer_factory=word_tokenizer)
    ds = transform(units, TokenizeDocuments(task, ("document",)), workers, start_guard(), read_unit)
    found = ds.take_all()
    assert sorted(row[ROW_KEY] for row in found) == list(range(240))
    assert [row[ROW_KEY] for row in found if row["status"] != "ok"] == [73]
    # Once more in company where the window was not the first that the successor was given.
    *in_company, last, least = marks.read_text().splitlines()
    assert (last, least) == ("among 1", "among 1")
    assert in_company in (["among 10"], ["among 10"] * 2)


def _killed_model(settings: ModelSettings, device: str, marks: str) -> KilledModel:
    return KilledModel(marks)


@pytest.mark.usefixtures("cluster")
def test_the_guard_itself_may_die() -> None:
    guard = start_guard()
    for attempt in ("first", "second"):
        assert ray.get(guard.begin.remote([1], f"{attempt} a"), timeout=60) == {}
        assert ray.get(guard.begin.remote([1], f"{attempt} b"), timeout=60) == {1: 1}
        os.kill(ray.get(guard.__ray_call__.remote(lambda self: os.getpid())), signal.SIGKILL)
