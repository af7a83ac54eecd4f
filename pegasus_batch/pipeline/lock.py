"""One run at a time in an output directory, by files that any store can hold: put, list and delete are all it takes.

Whoever wants the lock puts a file of his own and then lists the directory. He holds the lock if his is the only one; else
he removes it again, and of several who come at once the one whose name is the least waits for the others to do so. A holder
shows that he lives by a new file every few seconds: he puts the next one, sees that his last is still there, and removes
that. So no name is ever written twice, and a file that was removed stays removed: who was taken for dead, because he slept
too long, finds his last file gone and knows that he has lost the lock. Who takes another for dead removes the file that he
saw and lists again, so if the other has woken up, his next file is there.

A listing is no snapshot. It may miss a holder between two of his files, but two listings within the time between two of a
holder's signs of life cannot both.

What no lock can prevent: a process that stops between ``check`` and its next write, and goes on after its lock was taken.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import random
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import psutil  # type: ignore[import-untyped]
from pyarrow import fs

from pegasus_batch.pipeline.store import Store

LOCK_PREFIX = "_lock-"
BEAT_SECONDS = 10.0  # between two signs of life
STALE_SECONDS = 60.0  # without one, a process that cannot be asked counts as dead
PATIENCE_SECONDS = 2.0  # a lock that is younger may belong to somebody who steps back himself
_SAME_START = 0.05  # seconds; the kernel counts in hundredths
_MOST_LISTINGS = 50

_log = logging.getLogger(__name__)


class OutputLocked(RuntimeError):
    """Another run works on the output; the message says which, and what to do."""


class LockLost(OutputLocked):
    """The lock was held and is no longer: whoever took this process for dead may work on the output now."""


@dataclass(frozen=True)
class _Holder:
    """What a lock file says of its owner; a process is told from a later one of the same number by its start."""

    host: str
    boot: str
    pid_namespace: str
    pid: int
    process_start: float  # seconds from the boot of the host, which a change of its clock does not move
    since: str
    run: str
    token: str

    @classmethod
    def from_bytes(cls, data: bytes) -> _Holder | None:
        """Return what is written in a lock file, or None if that makes no sense."""
        try:
            entries = json.loads(data)
            texts = {name: str(entries[name]) for name in cls.__annotations__}
            numbers = {"pid": int(texts["pid"]), "process_start": float(texts["process_start"])}
        except (ValueError, KeyError, TypeError):
            return None
        return cls(**{**texts, **numbers}) if numbers["pid"] > 0 else None  # type: ignore[arg-type]

    @property
    def machine(self) -> tuple[str, str, str]:
        """Where its process number means something; a cloned machine has its original's boot, but seldom its name."""
        return self.host, self.boot, self.pid_namespace

    def is_alive(self) -> bool | None:
        """Return whether the process still exists, if it is one of this machine; None if that cannot be seen from here."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # somebody else's
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return abs(_start_of(process) - self.process_start) < _SAME_START
        except psutil.ZombieProcess:
            return False
        except psutil.Error:
            return None  # hidden from us


@dataclass(frozen=True)
class _Other:
    """Somebody else's lock file; ``age`` is in seconds, by the store's clock, negative if it is younger than ours."""

    name: str
    holder: _Holder | None
    age: float | None


class OutputLock:
    """The right to work on an output directory, from ``with`` to the end of its block.

    Entering raises OutputLocked if another run has it. A lock that a dead process left is removed: at once if that process
    ran on this machine, else ``stale`` seconds after its last sign of life, of which a living one gives one every ``beat``
    seconds. Only the process that entered holds it: what it forks does not, and cannot release it.
    """

    def __init__(
        self,
        store: Store,
        run: str = "",
        *,
        beat: float = BEAT_SECONDS,
        stale: float = STALE_SECONDS,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._store, self._run = store, run
        self._beat_seconds, self._stale_seconds, self._patience = beat, stale, patience
        self._mutex = threading.Lock()  # between the caller and the heartbeat
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._owner = 0  # the process that entered
        self._identity = ""
        self._n_files = 0
        self._current = ""  # the name of the file by which we hold the lock, or try to
        self._written: list[str] = []  # all our files that may still be there
        self._mtime: int | None = None  # of the current file when we tried, in ns

    def __enter__(self) -> OutputLock:
        if self._owner == os.getpid():
            raise RuntimeError("the lock is held already, by this very object")
        self._mutex, self._stop = threading.Lock(), threading.Event()
        self._owner, self._identity, self._n_files, self._written = os.getpid(), uuid.uuid4().hex[:12], 0, []
        self._since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        try:
            self._acquire()
            self._start_heartbeat()
        except BaseException:
            self.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def check(self) -> None:
        """Raise LockLost unless the lock is still ours. Call it before every step that another run must not see twice."""
        if self._owner != os.getpid():
            raise LockLost(f"{self._store.location.given}: this process does not hold the lock")
        with self._mutex:
            if not self._is_there(self._current):
                self._give_up()
            if not self._current:
                raise LockLost(
                    f"{self._store.location.given}: this run has lost its lock; it gave no sign of life for "
                    f"{self._stale_seconds:g} s and was taken for dead, or somebody deleted its {LOCK_PREFIX} file. Another "
                    "run may be at work there now, so this one stops; start it again when that has ended"
                )

    def release(self) -> None:
        """Let the next run in. Does nothing in a process that does not hold the lock."""
        if self._owner != os.getpid():
            return
        self._stop.set()
        with self._mutex:
            self._give_up()
        if self._thread is not None:
            self._thread.join()
        self._thread, self._owner = None, 0

    # Trying

    def _acquire(self) -> None:
        deadline = self._now() + 2 * self._patience
        while True:
            if not self._current:
                self._put_next()
                self._current = self._written[-1]
                self._mtime = self._store.info(self._current).mtime_ns
            others = self._find_others()
            if not others and self._current:
                return
            ages = [other.age for other in others]
            if self._now() > deadline or any(age is None or age >= self._patience for age in ages):
                raise OutputLocked(self._describe(others))
            if any(other.name < self._current for other in others):
                self._give_up()
            self._pause(random.uniform(0.05, 0.2) * self._patience)

    def _find_others(self) -> list[_Other]:
        """Return those who live, having removed what the dead left; and give up if our own file was removed."""
        begun, n_alone = self._now(), 0
        for _ in range(_MOST_LISTINGS):
            listed = self._now()
            names = self._store.names(LOCK_PREFIX)
            if self._current not in names:
                self._give_up()
                return []
            others = [name for name in names if name not in self._written]
            if others:
                n_alone = 0
                living = [other for other in map(self._look_at, others) if other is not None]
                if living:
                    return living
            else:
                n_alone += 1
                if n_alone == 1:
                    begun = listed
                elif self._now() - begun < self._beat_seconds:
                    return []
                else:
                    n_alone = 0
        raise OutputLocked(
            f"{self._store.location.given}: its lock files come and go faster than they can be listed; try again later"
        )

    def _look_at(self, name: str) -> _Other | None:
        """Return a lock file's owner, or None if he is gone; if he is dead, his file is removed."""
        data, info = self._store.read(name), self._store.info(name)
        if data is None or info.type == fs.FileType.NotFound:
            return None
        holder = _Holder.from_bytes(data)
        known = self._mtime is not None and info.mtime_ns is not None
        age = (self._mtime - info.mtime_ns) / 1e9 if known else None
        alive = holder.is_alive() if holder is not None and holder.machine == self._machine() else None
        if alive or (alive is None and (age is None or age <= self._stale_seconds)):
            return _Other(name, holder, age)
        self._store.delete(name)
        return None

    def _describe(self, others: list[_Other]) -> str:
        output = self._store.location.given
        if not others:
            return f"{output}: other runs want to work there at the same moment; try again"
        other = max(others, key=lambda other: other.age or 0)
        if other.holder is None:
            return f"{output} is locked by {other.name}, which cannot be read; delete it if no run works there"
        run = f" (run {other.holder.run})" if other.holder.run else ""
        who = f"process {other.holder.pid} on {other.holder.host}{run} has worked there since {other.holder.since}"
        if other.holder.machine == self._machine():
            return f"{output} is in use: {who}. Wait until it ends, or end it; then run this again"
        return (
            f"{output} is in use: {who}. Wait until it ends, or end it; if it is dead, run this again when its last sign of "
            f"life is {self._stale_seconds:g} s old"
        )

    # Holding

    def _start_heartbeat(self) -> None:
        self._thread = threading.Thread(target=self._live, name="output-lock", daemon=True)
        self._thread.start()

    def _live(self) -> None:
        while not self._stop.wait(self._beat_seconds):
            try:
                self._beat()
            except Exception as error:
                _log.warning("%s: no sign of life could be given: %s", self._store.location.given, error)

    def _beat(self) -> None:
        """Put the next file, and remove the one before; or give up, if somebody else removed that."""
        with self._mutex:
            if not self._current or self._stop.is_set():
                return
            self._put_next()
            if not self._is_there(self._current):
                self._give_up()
                return
            self._current = self._written[-1]
            self._remove_files(but=self._current)

    def _is_there(self, name: str) -> bool:
        # Opening a file asks an NFS server; its attributes may come from this machine's memory.
        return bool(name) and self._store.read(name) is not None

    def _put_next(self) -> None:
        self._n_files += 1
        token = f"{self._identity}-{self._n_files:06}"
        name = f"{LOCK_PREFIX}{token}.json"
        self._written.append(name)  # first, for a put that seems to fail may have succeeded
        self._store.put(name, json.dumps(asdict(self._holder(token)), indent=1).encode())

    def _give_up(self) -> None:
        self._current = ""
        try:
            self._remove_files()
        except OSError as error:
            _log.warning("%s: a lock file could not be removed: %s", self._store.location.given, error)

    def _remove_files(self, but: str = "") -> None:
        for name in [name for name in self._written if name != but]:
            self._store.delete(name)
            self._written.remove(name)

    def _holder(self, token: str) -> _Holder:
        process = psutil.Process()
        return _Holder(*self._machine(), process.pid, _start_of(process), self._since, self._run, token)

    @staticmethod
    def _machine() -> tuple[str, str, str]:
        return socket.gethostname(), _read_boot(), _read_pid_namespace()

    @staticmethod
    def _now() -> float:
        return time.monotonic()

    @staticmethod
    def _pause(seconds: float) -> None:
        time.sleep(seconds)


def _start_of(process: psutil.Process) -> float:
    return float(process.create_time() - psutil.boot_time())


def _read_boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""  # not Linux: the host's name has to do


def _read_pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
