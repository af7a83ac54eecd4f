"""The lock under schedules drawn by lot: whoever pauses where, wakes when, and dies how, two never hold it."""

from __future__ import annotations

import random
import threading
import uuid
from types import SimpleNamespace

import pytest
from pyarrow import fs

from pegasus_batch.pipeline.lock import BEAT_SECONDS, STALE_SECONDS, OutputLock, OutputLocked
from pegasus_batch.pipeline.store import Store


class Killed(BaseException):
    """What ends a process in the middle of anything."""


class World:
    """Files, a clock, and processes on hosts of their own, of which one at a time does one thing."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.clock = 0.0
        self.files: dict[str, tuple[bytes, float]] = {}
        self.processes: list[Process] = []
        self.back = threading.Semaphore(0)
        self.entered, self.lost = 0, 0

    def run(self, n_processes: int, n_steps: int) -> None:
        """Let processes come and go; after each thing that one did, look who holds the lock."""
        rng = self.rng
        for _ in range(n_steps):
            while len(self.processes) < n_processes:
                self.processes.append(Process(self))
            self.clock += rng.choice((0.001, 0.1, 0.5))
            ready = [process for process in self.processes if process.asleep_until <= self.clock]
            if not ready:
                self.clock = min(process.asleep_until for process in self.processes)
                continue
            process = rng.choice(ready)
            fate = rng.random()
            if fate < 0.02:  # a pause wherever it stands, perhaps so long that others take it for dead
                process.asleep_until = self.clock + rng.uniform(0, 2.5 * STALE_SECONDS)
            elif fate < 0.025:
                self.kill(process)
            else:
                process.step()
            holders = [process for process in self.processes if process.holds()]
            assert len(holders) <= 1, [process.lock._current for process in holders]
        for process in list(self.processes):
            self.kill(process)

    def kill(self, process: Process) -> None:
        process.killed = True
        process.step()
        process.thread.join()
        self.processes.remove(process)


class Process:
    """Takes the lock, gives some signs of life, and leaves; again and again."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.host = f"host-{world.rng.getrandbits(64):x}"
        self.asleep_until, self.killed, self.inside = 0.0, False, False
        self.lock = ScheduledLock(self)
        self.turn = threading.Semaphore(0)
        self.thread = threading.Thread(target=self._live, daemon=True)
        self.thread.start()

    def holds(self) -> bool:
        """Whether it is in its block, and ``check`` would let it go on."""
        return self.inside and self.lock._current in self.world.files

    def step(self) -> None:
        """Let it do one thing."""
        self.turn.release()
        self.world.back.acquire()

    def wait(self) -> None:
        """Stop until the schedule says otherwise."""
        if not self.killed:
            self.world.back.release()
            self.turn.acquire()
        if self.killed:
            raise Killed

    def sleep(self, seconds: float) -> None:
        """Stop for a while at least."""
        self.asleep_until = self.world.clock + seconds
        self.wait()

    def _live(self) -> None:
        self.turn.acquire()
        try:
            while not self.killed:
                self._work()
        except Killed:
            pass
        self.world.back.release()

    def _work(self) -> None:
        try:
            with self.lock:
                self.inside = True
                self.world.entered += 1
                for _ in range(self.world.rng.choice((0, 1, 2, 20))):
                    self.sleep(BEAT_SECONDS)
                    self.lock._beat()
                    self.lock.check()
        except OutputLocked:
            self.world.lost += self.inside
        self.inside = False
        self.sleep(self.world.rng.choice((0, 20)))


class ScheduledStore(Store):
    """Files of the world; each call, and each half of a listing, is one thing."""

    def __init__(self, process: Process) -> None:
        self.location = SimpleNamespace(given="the world")  # type: ignore[assignment]
        self.wait, self.world = process.wait, process.world

    def read(self, name: str) -> bytes | None:
        self.wait()
        return self.world.files.get(name, (None, 0))[0]

    def info(self, name: str) -> fs.FileInfo:
        self.wait()
        if name not in self.world.files:
            return fs.FileInfo(name, fs.FileType.NotFound)
        return fs.FileInfo(name, fs.FileType.File, mtime_ns=int(self.world.files[name][1] * 1e9))

    def names(self, prefix: str = "") -> list[str]:
        # What is there all the while is listed; what comes or goes, only if it is there when its half is looked at.
        self.wait()
        first = self.world.rng.getrandbits(64)
        found = {name for name in self.world.files if _half(name, first)}
        self.wait()
        return sorted(found | {name for name in self.world.files if not _half(name, first)})

    def put(self, name: str, data: bytes) -> None:
        self.wait()
        self.world.files[name] = (data, self.world.clock)

    def delete(self, name: str) -> None:
        self.wait()
        self.world.files.pop(name, None)


def _half(name: str, key: int) -> bool:
    return bool(random.Random(f"{name}{key}").getrandbits(1))


class ScheduledLock(OutputLock):
    """A lock whose clock and pauses are those of the world, and whose signs of life its process gives itself."""

    def __init__(self, process: Process) -> None:
        super().__init__(ScheduledStore(process))
        self.process = process

    def _machine(self) -> tuple[str, str, str]:  # type: ignore[override]
        return self.process.host, "", ""

    def _now(self) -> float:  # type: ignore[override]
        return self.process.world.clock

    def _pause(self, seconds: float) -> None:  # type: ignore[override]
        self.process.sleep(seconds)

    def _start_heartbeat(self) -> None:
        pass


@pytest.mark.parametrize("n_processes", [2, 3, 5])
def test_two_never_hold_it(n_processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    entered = lost = 0
    for seed in range(12):
        world = World(seed)
        rng = random.Random(seed)
        monkeypatch.setattr(uuid, "uuid4", lambda rng=rng: uuid.UUID(int=rng.getrandbits(128)))
        monkeypatch.setattr(random, "uniform", rng.uniform)
        world.run(n_processes, 1500)
        entered, lost = entered + world.entered, lost + world.lost
    assert entered > 30, "the schedules are about the lock being taken"
    assert lost > 3, "and about its being lost"
