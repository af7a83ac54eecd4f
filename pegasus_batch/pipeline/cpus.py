"""How many CPUs there really are: what a cluster announces is what somebody wrote on its command line."""

from __future__ import annotations

import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of this container: microseconds of CPU time in so many microseconds


def usable_cpus() -> int:
    """Return how many CPUs this process may use: those of the machine, of its affinity and of its container's quota.

    More threads than that are slower than one: every parallel loop waits for the thread that is not running.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, _QUOTA.read_text(encoding="ascii").split())
        return max(1, min(count, quota // period))
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max" in it: nothing is withheld
        return count
