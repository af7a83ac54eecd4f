"""What a benchmark saw: memory and processor time of this process and its Ray session, and the machine that it ran on."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import ray

MB = 1e6
PACKAGES = ("pegasus-batch", "ray", "pyarrow", "numpy", "torch")
KINDS = ("driver", "model", "task", "guard", "ray")  # of processes; "ray" is what Ray runs for itself
_RAYS_OWN = ("Agent", "_StatsActor", "ActorLocationTracker", "_AutoscalingCoordinatorActor")


def machine() -> dict[str, Any]:
    """Return where and when a measurement was made, and how busy the machine was before it."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=False)
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "cpu": cpu[0].split(":")[1].strip() if cpu else platform.machine(),
        "cpus": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "kernel": platform.release(),
        "load_before": [round(load, 1) for load in os.getloadavg()],
    }


def own_bytes(pid: int | str = "self") -> tuple[int, int]:
    """Return a process's memory and its resident set, in bytes.

    The first leaves the object store out and counts a page that n processes share as an n-th in each; the second counts
    every page in full, those of the object store that the process has touched too.
    """
    words = Path(f"/proc/{pid}/smaps_rollup").read_text().split()
    rss, pss, shared = (1024 * int(words[words.index(name) + 1]) for name in ("Rss:", "Pss:", "Pss_Shmem:"))
    return pss - shared, rss


@contextmanager
def ray_on_this_machine(store_bytes: int | None = None) -> Iterator[None]:
    """Start the session that the job would start here, with an object store of a given size."""
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    ray.init(
        address="local",
        num_cpus=(os.cpu_count() or 1) + 1,
        object_store_memory=store_bytes,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    for handler in logging.getLogger("ray.data").handlers:
        handler.setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


@dataclass
class Step:
    """A part of a measurement: its time, and the highest resident set within it."""

    seconds: float = 0.0
    before: int = 0  # bytes
    peak: int = 0  # bytes


@contextmanager
def step(steps: dict[str, Step], name: str) -> Iterator[None]:
    """Measure a step of this process; Linux only, for it resets the process's high-water mark."""
    Path("/proc/self/clear_refs").write_text("5")
    before = own_bytes()[1]
    started = time.perf_counter()
    yield
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text().split()
    steps[name] = Step(seconds, before, 1024 * int(status[status.index("VmHWM:") + 1]))


@dataclass
class Sample:
    """One look at all processes. Bytes, but for the time."""

    seconds: float
    largest: dict[str, int] = field(default_factory=dict)  # of each kind: memory of its largest process
    resident: dict[str, int] = field(default_factory=dict)  # the same by resident set
    total: int = 0  # of all processes, without the object store
    store_used: int = 0  # of the object store, as Ray accounts for it
    store_touched: int = 0  # pages of shared memory that it has ever needed; it gives none back


class Sampler(threading.Thread):
    """Looks at this process and its descendants, which are the Ray session that it started, at an interval."""

    def __init__(self, interval: float = 1.0, memory: bool = True) -> None:
        super().__init__(daemon=True)
        self.samples: list[Sample] = []
        self._interval, self._memory = interval, memory
        self._begin = time.monotonic()
        self._cpu: dict[int, float] = {}
        self._cpu_before: dict[int, float] = {}
        self._done = threading.Event()

    def __enter__(self) -> Sampler:
        self._look()
        self._cpu_before = dict(self._cpu)
        self.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._done.set()
        self.join()
        self._look()

    def run(self) -> None:
        """Look until told to stop."""
        while not self._done.wait(self._interval):
            self._look()

    @property
    def cpu_seconds(self) -> float:
        """Processor time of all processes since the start; what one uses between its last look and its end is lost."""
        return sum(seconds - self._cpu_before.get(pid, 0.0) for pid, seconds in self._cpu.items())

    def peak(self, name: str, kind: str | None = None) -> int:
        """Return the highest value of a field, for one kind of process where the field has one for each."""
        values = (getattr(sample, name) for sample in self.samples)
        return max((value if kind is None else value.get(kind, 0) for value in values), default=0)

    def record(self, points: int = 100) -> dict[str, Any]:
        """Return the peaks and the course, in MB."""
        return {
            "peak_mb": {kind: round(self.peak("largest", kind) / MB, 1) for kind in KINDS},
            "peak_resident_mb": {kind: round(self.peak("resident", kind) / MB, 1) for kind in KINDS},
            "peak_total_mb": round(self.peak("total") / MB, 1),
            "store_used_mb": round(self.peak("store_used") / MB, 1),
            "store_touched_mb": round(self.peak("store_touched") / MB, 1),
            "cpu_seconds": round(self.cpu_seconds, 1),
            "course_mb": self._course(points),
        }

    def _course(self, points: int) -> dict[str, list[float]]:
        """Return columns of at most ``points`` moments: each the highest of neighbouring samples."""
        every = max(1, -(-len(self.samples) // points))
        parts = [self.samples[start : start + every] for start in range(0, len(self.samples), every)]
        columns = {kind: [max(one.largest.get(kind, 0) for one in part) for part in parts] for kind in KINDS}
        columns["total"] = [max(one.total for one in part) for part in parts]
        columns["store_used"] = [max(one.store_used for one in part) for part in parts]
        rounded = {name: [round(value / MB, 1) for value in column] for name, column in columns.items()}
        return {"seconds": [round(part[0].seconds, 1) for part in parts], **rounded}

    def _look(self) -> None:
        sample = Sample(time.monotonic() - self._begin)
        own = psutil.Process()
        for process in (own, *own.children(recursive=True)):
            try:
                command = process.cmdline()
                kind = "driver" if process == own else _kind(command)
                times = process.cpu_times()
                self._cpu[process.pid] = times.user + times.system
                memory, resident = own_bytes(process.pid) if self._memory else (0, 0)
                if self._memory and command[0].endswith("/raylet"):
                    sample.store_touched = _store_pages(process.pid)
            except (psutil.Error, OSError, ValueError, IndexError):
                continue  # it has ended
            sample.largest[kind] = max(memory, sample.largest.get(kind, 0))
            sample.resident[kind] = max(resident, sample.resident.get(kind, 0))
            sample.total += memory
        if self._memory and ray.is_initialized():
            name = "object_store_memory"
            sample.store_used = int(ray.cluster_resources()[name] - ray.available_resources()[name])
        self.samples.append(sample)


def store_totals() -> dict[str, float]:
    """Return what went through the object store since the session began, in MB."""
    from ray._private.internal_api import node_stats

    (node,) = ray.nodes()
    store = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False).store_stats
    return {
        "limit": round(ray.cluster_resources()["object_store_memory"] / MB, 1),
        "created": round(store.cumulative_created_bytes / MB, 1),
        "spilled": round(store.spilled_bytes_total / MB, 1),
        "fallback": round(store.object_store_bytes_fallback / MB, 1),
    }


def _store_pages(raylet: int) -> int:
    """Return the bytes of the object store's shared memory that are backed by pages."""
    blocks = 0
    for file in Path(f"/proc/{raylet}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            blocks += file.stat().st_blocks if "/plasma" in str(file.readlink()) else 0
    return 512 * blocks


def _kind(command: list[str]) -> str:
    title = command[0] if command else ""
    if not title.startswith("ray::") or any(name in title for name in _RAYS_OWN):
        return "ray"
    if "RunModel" in title:
        return "model"
    return "guard" if "CrashGuard" in title else "task"
