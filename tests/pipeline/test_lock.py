"""Two runs never work on one output: not after crashes, pauses, lost answers, or by chance."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import psutil
import pytest

from pegasus_batch.pipeline.inputs import locate
from pegasus_batch.pipeline.lock import LOCK_PREFIX, LockLost, OutputLock, OutputLocked
from pegasus_batch.pipeline.store import Store
from tests.pipeline.s3 import S3, s3_service  # noqa: F401
from tests.pipeline.test_store import in_children

ELSEWHERE = ("other-host", "other boot", "pid:[1]")
OTHER = f"{LOCK_PREFIX}000000000000-000001.json"


class ElsewhereLock(OutputLock):
    """The lock of a process on another host."""

    @staticmethod
    def _machine() -> tuple[str, str, str]:
        return ELSEWHERE


@pytest.fixture
def disk(tmp_path: Path) -> Store:
    return Store(locate(str(tmp_path / "out")))


@pytest.fixture(params=["disk", "s3"])
def store(request: pytest.FixtureRequest, disk: Store) -> Store:
    return disk if request.param == "disk" else Store(locate(request.getfixturevalue("s3").uri()))


def lock(store: Store, run: str = "", **options: Any) -> OutputLock:
    return OutputLock(store, run, **{"patience": 0.2, **options})


def put_other(store: Store, age: float = 0, **changes: Any) -> None:
    """Put a lock file like our own, but for some entries; ``age`` in seconds."""
    store.delete(OTHER)
    with lock(store) as mine:
        content = json.loads(store.read(mine._current) or b"")
    store.put(OTHER, json.dumps({**content, "run": "other-run", **changes}).encode())
    then = time.time() - age
    os.utime(f"{store.location.path}/{OTHER}", (then, then))


def elsewhere() -> dict[str, str]:
    return dict(zip(("host", "boot", "pid_namespace"), ELSEWHERE, strict=True))


def is_refused(store: Store, match: str = "in use", **options: Any) -> bool:
    before = store.names()
    with pytest.raises(OutputLocked, match=match), lock(store, **options):
        pass
    return store.names() == before


def test_one_at_a_time(store: Store) -> None:
    with lock(store, "run-7") as first:
        assert len(store.names(LOCK_PREFIX)) == 1
        assert is_refused(store, rf"process {os.getpid()} on .* \(run run-7\) has worked there since 20")
        first.check()
    assert store.names() == []
    with pytest.raises(ZeroDivisionError), lock(store) as second:
        second.check()
        raise ZeroDivisionError
    assert store.names() == []
    with lock(store) as third:
        third.check()


def test_stores_that_only_fsspec_reaches_have_locks_too(s3: S3) -> None:
    store = Store(locate(s3.uri().replace("s3://", "s3a://")))
    with ElsewhereLock(store, patience=0.2) as far:
        assert is_refused(store, "on other-host")
        far._beat()
        far.check()
    assert store.names() == []


def test_a_lock_file_says_who_holds_it(disk: Store) -> None:
    with lock(disk, "run-7") as mine:
        content = json.loads(disk.read(mine._current) or b"")
        assert mine._current == f"{LOCK_PREFIX}{content['token']}.json"
    assert (content["pid"], content["run"]) == (os.getpid(), "run-7")
    assert content["host"]
    assert content["since"].endswith("+00:00")
    if sys.platform == "linux":
        assert content["boot"]
        assert content["pid_namespace"].startswith("pid:[")


def test_the_holder_gives_signs_of_life(store: Store) -> None:
    """Each is a file of its own: none is written twice, so none that was removed comes back."""
    seen: set[str] = set()
    with lock(store, beat=0.05) as mine:
        deadline = time.monotonic() + 20
        while len(seen) < 4 and time.monotonic() < deadline:
            seen.update(store.names(LOCK_PREFIX))
        mine.check()
        with pytest.raises(OutputLocked, match="in use"), lock(store):
            pass
    assert len(seen) >= 4
    assert store.names() == []


def test_signs_of_life_count_on_other_hosts(disk: Store) -> None:
    with ElsewhereLock(disk, "far", beat=0.3) as far:
        first = f"{disk.location.path}/{far._current}"
        os.utime(first, (0, 0))
        while Path(first).exists():
            time.sleep(0.01)
        with pytest.raises(OutputLocked, match="on other-host"), lock(disk):
            pass
        far.check()


def test_many_processes_take_turns(disk: Store, tmp_path: Path) -> None:
    inside = tmp_path / "inside"

    def take_turns(i: int) -> None:
        turns = 0
        while turns < 3:
            try:
                with lock(disk) as mine:
                    inside.touch(exist_ok=False)  # raises if another is there
                    time.sleep(random.uniform(0, 0.02))
                    mine.check()
                    inside.unlink()
                    turns += 1
            except OutputLocked:
                pass

    assert in_children(4, take_turns) == [0] * 4
    assert disk.names() == []


def test_of_many_who_come_at_once_one_gets_in(disk: Store, tmp_path: Path) -> None:
    """When all who met stepped back, nobody got in for as long as new ones came."""

    def work(i: int) -> None:
        try:
            with OutputLock(disk, patience=1.0):
                (tmp_path / f"in {i}").touch()
                while len(list(tmp_path.glob("* ?"))) < 6:
                    time.sleep(0.01)
        except OutputLocked:
            (tmp_path / f"out {i}").touch()

    assert in_children(6, work) == [0] * 6
    assert len(list(tmp_path.glob("in ?"))) == 1


@pytest.mark.parametrize(("other", "stays"), [("000000000000", False), ("zzzzzzzzzzzz", True)])
def test_of_two_who_meet_the_first_by_name_stays(
    disk: Store, monkeypatch: pytest.MonkeyPatch, other: str, stays: bool
) -> None:
    put_other(disk)
    name, met = f"{LOCK_PREFIX}{other}-000001.json", []
    disk.rename(OTHER, name)

    def pause(seconds: float) -> None:
        met.append(disk.names())
        disk.delete(name)

    mine = lock(disk, patience=60)
    monkeypatch.setattr(mine, "_pause", pause)
    with mine:
        assert disk.names() == [mine._current]
    assert [len(names) for names in met] == [1 + stays]


def test_threads_of_many_clients_take_turns_on_s3(s3: S3) -> None:
    uri, inside = s3.uri(), threading.Lock()

    def take_turn(i: int) -> None:
        while True:
            try:
                with OutputLock(Store(locate(uri))) as mine:
                    assert inside.acquire(blocking=False)
                    mine.check()
                    inside.release()
                    return
            except OutputLocked:
                pass

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(take_turn, range(3)))
    assert Store(locate(uri)).names() == []


# The dead


def fork_holder(store: Store) -> ForkProcess:
    """Return a child that holds the lock, and sleeps."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()

    def hold() -> None:
        with lock(store, "doomed"):
            ready.set()
            time.sleep(60)

    child = context.Process(target=hold)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child.start()
    assert ready.wait(20)
    return child


def test_a_killed_holder_makes_way_at_once(disk: Store) -> None:
    """Also while its parent has not yet asked how it ended, as in containers whose first process never asks."""
    child = fork_holder(disk)
    assert is_refused(disk, f"process {child.pid} ")
    child.kill()
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    with lock(disk) as mine:
        assert len(disk.names()) == 1
        mine.check()
    child.join()
    child = fork_holder(disk)
    child.kill()
    child.join()
    with lock(disk):
        pass
    assert disk.names() == []


def test_a_process_number_may_have_a_new_owner(disk: Store) -> None:
    put_other(disk, age=30)
    assert is_refused(disk), "the number is ours, and so is the start"
    put_other(disk, age=30, process_start=1.0)
    with lock(disk):
        assert OTHER not in disk.names()


def test_a_living_process_of_this_machine_may_be_silent(disk: Store) -> None:
    """It was stopped, or the machine was asleep: it goes on."""
    put_other(disk, age=3600)
    assert is_refused(disk)


def test_a_process_of_another_host_lives_for_a_minute(disk: Store) -> None:
    for changes in (elsewhere(), {"boot": "other"}, {"pid_namespace": "pid:[1]"}, {"host": "clone"}):
        put_other(disk, age=50, **changes)  # the number and start of a living process mean nothing there
        assert is_refused(disk, "if it is dead, run this again when its last sign of life is 60 s old")
        put_other(disk, age=70, **changes)
        with lock(disk):
            assert OTHER not in disk.names()


def test_a_process_that_is_hidden_lives_for_a_minute(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc may hide the processes of other users, which is not to say that they are dead."""
    real = psutil.Process

    def hide(pid: int | None = None) -> psutil.Process:
        if pid is not None:
            raise psutil.NoSuchProcess(pid)
        return real()

    put_other(disk, age=50, pid=os.getppid())
    monkeypatch.setattr(psutil, "Process", hide)
    assert is_refused(disk)
    put_other(disk, age=70, pid=os.getppid())
    with lock(disk):
        assert OTHER not in disk.names()


def test_age_goes_by_the_clock_of_the_store(s3: S3) -> None:
    """The service says how old an object is; what the other host believes the time to be does not matter."""
    store = Store(locate(s3.uri()))
    with ElsewhereLock(store, "far", beat=60) as far:
        content = json.loads(store.read(far._current) or b"")
        store.put(OTHER, json.dumps({**content, "since": "2099-01-01T00:00:00+00:00"}).encode())
    with pytest.raises(OutputLocked, match="since 2099"), lock(store):
        pass
    time.sleep(2.2)  # the service counts in seconds
    with lock(store, stale=1.0) as mine:
        assert OTHER not in store.names()
        mine.check()


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"pid": "x"}', b"\xff"])
def test_a_lock_that_makes_no_sense_lives_for_a_minute(disk: Store, content: bytes) -> None:
    disk.put(OTHER, content)
    assert is_refused(disk, "cannot be read; delete it")
    os.utime(f"{disk.location.path}/{OTHER}", (0, 0))
    with lock(disk):
        assert OTHER not in disk.names()


# Losing it


def test_who_was_taken_for_dead_learns_of_it(store: Store) -> None:
    with ElsewhereLock(store, patience=0.2, beat=60) as sleeper:
        store.delete(sleeper._current)  # as a successor does
        with lock(store) as successor:
            with pytest.raises(LockLost, match="taken for dead"):
                sleeper.check()
            assert store.names() == [successor._current]
            successor.check()
        with pytest.raises(LockLost):
            sleeper.check()


def test_a_sign_of_life_never_brings_a_removed_lock_back(store: Store) -> None:
    with ElsewhereLock(store, patience=0.2, beat=60) as sleeper:
        store.delete(sleeper._current)
        with lock(store) as successor:
            sleeper._beat()
            assert store.names() == [successor._current]
            with pytest.raises(LockLost):
                sleeper.check()


def test_the_heartbeat_of_a_lost_lock_ends(disk: Store) -> None:
    with lock(disk, beat=0.02) as mine:
        while disk.names():
            for name in disk.names():
                disk.delete(name)
            time.sleep(0.05)
        time.sleep(0.1)
        assert disk.names() == []
        with pytest.raises(LockLost):
            mine.check()


def test_a_waker_whose_lock_is_being_removed_keeps_it_or_loses_it(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one saw a dead man's file, and while it removed that, he turned in his grave."""
    far = ElsewhereLock(disk, beat=60, patience=0.2)
    with far:
        past = time.time() - 1000
        os.utime(f"{disk.location.path}/{far._current}", (past, past))
        real = disk.delete

        def delete(name: str) -> None:
            monkeypatch.setattr(disk, "delete", real)
            far._beat()
            real(name)

        monkeypatch.setattr(disk, "delete", delete)
        assert not is_refused(disk, "on other-host"), "the file has another name now"
        far.check()


def test_slow_listings_that_miss_a_holder_do_not_count(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """He puts his next file behind where the listing is, and removes the last one before it comes there; twice."""
    clock, left = [0.0], [2]
    with ElsewhereLock(disk, "far", beat=60) as far:
        real = disk.names

        def names(prefix: str = "") -> list[str]:
            clock[0] += 6
            before = real(prefix)
            if left[0]:
                left[0] -= 1
                far._beat()
            return [name for name in real(prefix) if name in before]

        monkeypatch.setattr(disk, "names", names)
        mine = lock(disk, patience=60)
        monkeypatch.setattr(mine, "_now", lambda: clock[0])
        monkeypatch.setattr(mine, "_pause", lambda seconds: None)
        with pytest.raises(OutputLocked, match="other-host"), mine:
            pass
        assert left == [0]
        far.check()


def test_what_a_process_forks_has_no_lock(disk: Store) -> None:
    with lock(disk) as mine:

        def leave(i: int) -> None:
            with pytest.raises(LockLost):
                mine.check()
            mine.release()
            mine.__exit__(None, None, None)

        assert in_children(1, leave) == [0]
        subprocess.run([sys.executable, "-c", ""], check=True)
        mine.check()
        assert len(disk.names()) == 1
    with pytest.raises(LockLost):
        mine.check()


# A store that fails


class Failing(Store):
    """A store whose ``method`` fails once, with or without having done its work."""

    method, done = "", False

    def _fail(self, method: str, call: Callable[[], Any]) -> Any:
        if self.method != method:
            return call()
        self.method = ""
        if self.done:
            call()
        raise OSError("no answer")

    def put(self, name: str, data: bytes) -> None:
        self._fail("put", lambda: Store.put(self, name, data))

    def read(self, name: str) -> bytes | None:
        return self._fail("read", lambda: Store.read(self, name))

    def names(self, prefix: str = "") -> list[str]:
        return self._fail("names", lambda: Store.names(self, prefix))

    def delete(self, name: str) -> None:
        self._fail("delete", lambda: Store.delete(self, name))


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("method", ["put", "read", "delete"])
def test_a_sign_of_life_may_fail(disk: Store, method: str, done: bool) -> None:
    store = Failing(disk.location)
    with lock(store) as mine:
        store.method, store.done = method, done
        with pytest.raises(OSError, match="no answer"):
            mine._beat()
        mine.check()
        assert is_refused(disk)
        mine._beat()
        mine.check()
        assert len(disk.names()) == 1
    assert disk.names() == []


@pytest.mark.parametrize("method", ["put", "names"])
def test_who_cannot_get_in_leaves_nothing(disk: Store, method: str) -> None:
    store = Failing(disk.location)
    store.method, store.done = method, True
    with pytest.raises(OSError, match="no answer"), lock(store):
        pass
    assert disk.names() == []
    with lock(store):
        pass


def test_a_lock_that_cannot_be_removed_does_not_fail_the_run(disk: Store, caplog: pytest.LogCaptureFixture) -> None:
    store = Failing(disk.location)
    with lock(store):
        store.method = "delete"
    assert "could not be removed: no answer" in caplog.text
