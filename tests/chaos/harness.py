"""Episodes: one job each, disturbed and begun again until it succeeds, and judged by what lies in its output directory."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.checks import check_finished, check_visible
from tests.chaos.cluster import ChaosCluster, uptime
from tests.chaos.corpus import Corpus
from tests.chaos.driver import LAST_STEPS, STEPS
from tests.chaos.faults import ARMED, END, Attempt, Fault, draw_attempts

ROOT = Path(__file__).parents[2]
MOST_ATTEMPTS = 25  # of a job; without a fault one is enough
STALL_SECONDS = 420.0  # without a new file; the machine may be busy with other things
STOP_SECONDS = 180.0  # from SIGTERM to the end
READ_SECONDS = 2.0  # between two looks at what an unfinished job shows
_TERMINATED = {128 + signal.SIGTERM, -signal.SIGTERM}  # the latter before there is anything to unwind
_ZOMBIE = "900"  # what the numbers of their tasks begin with
_TITLES = {
    "actor killed": r"ray::MapWorker\(MapBatches\(RunModel",
    "writer killed": r"ray::Write",
    "reader killed": r"ray::MapBatches\(ReadAndTokenize",
    "guard killed": r"ray::CrashGuard",
}


@dataclass
class Episode:
    """What became of one job."""

    number: int
    renames: bool = True  # False is work as on an object store, which cannot rename
    rows: int = 0
    attempts: int = 0
    seconds: float = 0.0
    struck: Counter[str] = field(default_factory=Counter)  # by the fault's name
    late: Counter[str] = field(default_factory=Counter)  # faults that found nothing to strike any more, by kind
    gave_up: list[str] = field(default_factory=list)  # reasons of attempts that ended without a fault that ends them
    lost: int = 0
    doubled: int = 0
    wrong: list[str] = field(default_factory=list)

    def line(self) -> str:
        """Return the episode in one line, or a few where something is to be told."""
        faults = ", ".join(f"{count} x {name}" if count > 1 else name for name, count in self.struck.items()) or "none"
        verdict = "WRONG" if self.wrong else "ok"
        line = (
            f"episode {self.number}: {verdict}, {self.rows:,} rows, {self.attempts} attempts, {self.seconds:.0f} s, "
            f"{'' if self.renames else 'as on an object store, '}"
            f"{self.struck.total()} faults: {faults}"
        )
        notes = [f"the job gave up: {reason}" for reason in self.gave_up] + [f"WRONG: {what}" for what in self.wrong]
        return "\n    ".join([line, *notes])


class Workplace:
    """A directory, a cluster for all episodes, and a driver process that waits for its orders."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._cluster: ChaosCluster | None = None
        self._n_clusters = 0
        self._spare: subprocess.Popen[str] | None = None

    def __enter__(self) -> Workplace:
        return self

    def __exit__(self, *_: object) -> None:
        self._dismiss_spare()
        if self._cluster is not None:
            self._cluster.stop()

    @property
    def cluster(self) -> ChaosCluster:
        """The cluster; a fresh one if it is not whole any more."""
        if self._cluster is not None and not self._cluster.is_well():
            print("the cluster is not whole: a new one is started", flush=True)
            self._dismiss_spare()  # it knows the old address
            self._cluster.stop()
            self._cluster = None
        if self._cluster is None:
            self._n_clusters += 1
            # Sockets lie below, and a socket's path has at most 107 characters.
            self._cluster = ChaosCluster(Path(f"/tmp/pegasus_chaos_{os.getpid()}_{self._n_clusters}"))
        return self._cluster

    def start_driver(self, orders: dict[str, Any], log: Path) -> subprocess.Popen[str]:
        """Start a job, and have the process for the next one ready meanwhile."""
        assert self._cluster is not None
        driver = self._spare or self._new_driver(self._cluster.address)
        assert driver.stdin is not None
        driver.stdin.write(json.dumps({**orders, "log": str(log)}) + "\n")
        driver.stdin.close()
        self._spare = self._new_driver(self._cluster.address)
        return driver

    @staticmethod
    def _new_driver(address: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.driver"],
            cwd=ROOT,
            env={**os.environ, "RAY_ADDRESS": address, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,  # an interrupted suite ends its drivers itself
        )

    def _dismiss_spare(self) -> None:
        if self._spare is not None and self._spare.stdin is not None:
            self._spare.stdin.close()
            self._spare.wait()
            self._spare = None


class Runner:
    """Carries out one episode."""

    def __init__(self, place: Workplace, episode: Episode, corpus: Corpus, seconds_per_row: float) -> None:
        self.place, self.episode, self.corpus = place, episode, corpus
        self.directory = corpus.directory.parent
        self.output = self.directory / "out"
        self._seconds_per_row = seconds_per_row
        self._zombies: list[Zombie] = []

    def carry_out(self, attempts: Sequence[Attempt], arrival: int | None = None) -> None:
        """Run the job through its attempts until it succeeds; new files arrive after attempt number ``arrival``."""
        begun = time.monotonic()
        left, waiting = list(attempts), list[Fault]()
        while True:
            waiting += left.pop(0) if left else ()
            code, waiting = self._attempt(waiting)
            arrives = self.episode.attempts == arrival
            if arrives:
                self.corpus.add(150, 2)
            if code == 0 and not arrives and (arrival is None or self.episode.attempts > arrival):
                break
            if self.episode.attempts == MOST_ATTEMPTS:
                self.episode.wrong.append(f"{MOST_ATTEMPTS} attempts were not enough")
                break
        self.episode.late.update(fault.kind for attempt in [waiting, *left] for fault in attempt)
        self._judge()
        self.episode.rows = len(self.corpus.expected)
        self.episode.seconds = time.monotonic() - begun

    def _judge(self) -> None:
        verdict = check_finished(self.output, self.corpus)
        self.episode.lost, self.episode.doubled = verdict.lost, verdict.doubled
        self.episode.wrong += verdict.wrong
        if self.episode.renames and any(zombie.haunt() for zombie in self._zombies):
            self.episode.wrong.append("a write task of a dead driver can still write")
        code, _ = self._attempt([])
        self.episode.attempts -= 1
        if code == 0 and (again := _read_result(self.directory / "result")["n_rows"]):
            self.episode.wrong.append(f"a further run found {again} rows to do")

    # One attempt

    def _attempt(self, faults: Sequence[Fault]) -> tuple[int, list[Fault]]:
        """Run the job once; return how it ended, and the faults that did not strike."""
        self.episode.attempts += 1
        cluster = self.place.cluster
        orders, markers = self._orders(faults)
        watch = _Watch(self.output, self.corpus)
        (self.directory / "result").unlink(missing_ok=True)
        driver = self.place.start_driver(orders, self.directory / f"driver {self.episode.attempts}.log")
        pending = [fault for fault in faults if fault.kind not in ARMED]
        struck: list[Fault] = []
        try:
            while driver.poll() is None and not (struck and struck[-1].kind in END):
                time.sleep(0.02)
                if watch.look() > STALL_SECONDS:
                    self.episode.wrong.append(f"attempt {self.episode.attempts} stood still for {STALL_SECONDS:g} s")
                    break
                if watch.n_files and not self.episode.renames:
                    self._zombies = []  # nothing else would stop them, and some time they end
                self._zombies = [zombie for zombie in self._zombies if zombie.haunt()]
                due = [fault for fault in pending if watch.is_due(fault)]
                done = next((fault for fault in due if self._strike(fault, driver, cluster, watch.begun)), None)
                if done is not None:
                    pending.remove(done)
                    struck.append(done)
            if struck and struck[-1].kind == "driver terminated":
                self._await_end(driver)
        finally:
            if driver.poll() is None:
                driver.kill()
            code = driver.wait()
        for fault, marker in markers.items():
            (struck if marker.exists() else pending).append(fault)
        self.episode.struck.update(fault.name for fault in struck)
        self.episode.wrong += watch.wrong
        self._check_end(code, struck)
        return code, pending

    def _orders(self, faults: Sequence[Fault]) -> tuple[dict[str, Any], dict[Fault, Path]]:
        """Return what the driver is told, and for every fault that it is told of, the file that appears when it strikes."""
        armed = [fault for fault in faults if fault.kind in ARMED]
        markers = {
            fault: self.directory / f"struck {self.episode.attempts} {number}" for number, fault in enumerate(armed)
        }
        step = next((fault for fault in armed if fault.where in STEPS), None)
        config = {
            "input": [str(self.corpus.directory)],
            "output": str(self.output),
            "device": "cpu",
            "num_workers": 2,
            "num_gpus_per_worker": 1,
            "rows_per_file": 40,
            "batch_tokens": 1024,
        }
        return {
            "config": config,
            "seconds_per_row": self._seconds_per_row,
            "renames": self.episode.renames,
            "step": step and step.where,
            "marker": step and str(markers[step]),
            "writes": [
                {"place": fault.where, "task": fault.task, "marker": str(marker), "driver": fault.kind in END}
                for fault, marker in markers.items()
                if fault is not step
            ],
            "result": str(self.directory / "result"),
        }, markers

    def _strike(self, fault: Fault, driver: subprocess.Popen[str], cluster: ChaosCluster, begun: float) -> bool:
        """Do what the fault says, if there is something to do it to."""
        if fault.kind == "driver killed":
            driver.kill()
        elif fault.kind == "driver terminated":
            driver.terminate()
        elif fault.kind == "driver killed, writer lives on":
            driver.kill()
            driver.wait()
            self._zombies += Zombie.of(self.output)
        elif fault.kind == "second driver started":
            self._start_second(driver)
        elif fault.kind == "node lost":
            cluster.replace_node(fault.choice, seconds=fault.choice / 50)
        else:
            wanted = re.compile(_TITLES[fault.kind])
            # Those of an attempt before this one may live for another moment.
            found = [each for each in cluster.workers() if wanted.match(each.title) and each.started >= begun - 0.1]
            if not found:
                return False
            try:
                os.kill(found[fault.choice % len(found)].pid, signal.SIGKILL)
            except ProcessLookupError:
                return False
        return True

    def _start_second(self, first: subprocess.Popen[str]) -> None:
        """Start the job a second time while it runs: it must be refused."""
        orders, _ = self._orders([])
        result = self.directory / "result of a second"
        result.unlink(missing_ok=True)
        second = self.place.start_driver({**orders, "result": str(result)}, self.directory / "second driver.log")
        try:
            second.wait(STALL_SECONDS)
        finally:
            second.kill()
            code = second.wait()
        if first.poll() is None and "OutputLocked" not in _read_result(result).get("error", ""):
            self.episode.wrong.append(f"a second driver was not refused but ended with {code}")

    def _await_end(self, driver: subprocess.Popen[str]) -> None:
        try:
            driver.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.episode.wrong.append(f"the driver still ran {STOP_SECONDS:g} s after SIGTERM")

    def _check_end(self, code: int, struck: Sequence[Fault]) -> None:
        """Check how the driver ended, and what is seen of an unfinished job."""
        wrong, attempt = self.episode.wrong, f"attempt {self.episode.attempts}"
        end = next((fault for fault in struck if fault.kind in END), None)
        due = {0} if end is None or end.kind not in ARMED else set()  # the job may have been faster
        if end is not None:
            due |= _TERMINATED if end.kind == "driver terminated" else {-signal.SIGKILL}
        if code == 1:
            reason = f"{attempt}: {_read_result(self.directory / 'result').get('error')}"
            (self.episode.gave_up if struck else wrong).append(reason)
        elif code not in due:
            wrong.append(f"{attempt} ended with {code}, expected one of {sorted(due)}")
        wrong += check_visible(self.output, self.corpus.batches)
        names = [path.name for path in self.output.iterdir()] if self.output.is_dir() else []
        if code >= 0 and any(name.startswith("_lock-") for name in names):
            wrong.append(f"{attempt} ended with {code} and left its lock")


def _read_result(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {"error": "no result"}


class _Watch:
    """What is seen of an attempt from outside: how long it has run, and which files it has written."""

    def __init__(self, output: Path, corpus: Corpus) -> None:
        self.begun = uptime()
        self.wrong: list[str] = []
        self._output, self._batches = output, list(corpus.batches)
        self._seen = self._files()
        self._reached = [self.begun]  # when the attempt had added no file, one, two, ...
        self._read = self.begun

    def look(self) -> float:
        """Look again; return for how many seconds nothing has come."""
        new = self._files() - self._seen
        self._seen |= new
        self._reached += [uptime()] * len(new)
        if uptime() - self._read > READ_SECONDS and not self.wrong:
            self.wrong += check_visible(self._output, self._batches)
            self._read = uptime()
        return uptime() - self._reached[-1]

    @property
    def n_files(self) -> int:
        """Data files that have been added."""
        return len(self._reached) - 1

    def is_due(self, fault: Fault) -> bool:
        """Whether a fault's moment has come."""
        return self.n_files >= fault.after and uptime() - self._reached[fault.after] >= fault.delay

    def _files(self) -> set[str]:
        """Return the data files of all runs, in work or not."""
        found = set()
        with contextlib.suppress(FileNotFoundError):  # a directory got another name
            for run in os.scandir(self._output):
                if run.is_dir():
                    names = {entry.name for entry in os.scandir(run.path)}
                    found |= {name for name in names if not name.startswith(("_", ".")) and f"-{_ZOMBIE}" not in name}
        return found


class Zombie:
    """A write task that outlives its driver: writes again what is there already, for as long as it finds its directory."""

    def __init__(self, directory: Path, attempt: str, keys: bytes, rows: bytes) -> None:
        self._directory, self._attempt, self._keys, self._rows = directory, attempt, keys, rows
        self._n_written = 0
        self._written = 0.0

    @classmethod
    def of(cls, output: Path) -> list[Zombie]:
        """Return one with the rows of a whole pair of the run in work, if it has any."""
        committed = [path.stem.removeprefix("_manifest-") for path in output.glob("_manifest-*")]
        for rows in sorted(output.glob("*/[!._]*.parquet")):
            if rows.parent.name not in committed:
                with contextlib.suppress(FileNotFoundError):
                    keys = rows.with_name(f"_rows-{rows.name}").read_bytes()
                    return [cls(rows.parent, rows.name.split("-")[0], keys, rows.read_bytes())]
        return []

    def haunt(self) -> bool:
        """Write once more, if it is time; return whether that is still possible."""
        if time.monotonic() - self._written < 0.2:
            return True
        name = f"{self._attempt}-{_ZOMBIE}{self._n_written:03d}-000.parquet"
        try:
            self._put(f"_rows-{name}", self._keys)
            self._put(name, self._rows)
        except FileNotFoundError:
            return False
        self._n_written += 1
        self._written = time.monotonic()
        return True

    def _put(self, name: str, data: bytes) -> None:
        hidden = self._directory / f".{name}.tmp"
        hidden.write_bytes(data)
        hidden.rename(self._directory / name)


def run_episode(place: Workplace, seed: str, number: int, n_faults: int) -> Episode:
    """Draw an episode and carry it out. What lies in its directory is removed if all is well."""
    rng = random.Random(f"{seed}/{number}")
    attempts = draw_attempts(rng, n_faults)
    ends = sum(attempt[-1].kind in END and attempt[-1].where not in LAST_STEPS for attempt in attempts)
    arrival = rng.randint(1, ends) if ends and rng.random() < 0.4 else None
    episode = Episode(number, renames=rng.random() < 0.7)
    return play(place, episode, rng, attempts, n_rows=rng.randint(900, 1400), arrival=arrival)


def play(
    place: Workplace,
    episode: Episode,
    rng: random.Random,
    attempts: Sequence[Attempt],
    *,
    n_rows: int,
    arrival: int | None = None,
    seconds_per_row: float = 0.01,
) -> Episode:
    """Carry out an episode."""
    directory = place.directory / f"episode {episode.number}"
    corpus = Corpus(directory / "in", rng)
    corpus.add(n_rows, rng.randint(3, 6))
    Runner(place, episode, corpus, seconds_per_row).carry_out(attempts, arrival)
    if not episode.wrong:
        shutil.rmtree(directory)
    return episode
