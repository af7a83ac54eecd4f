"""The Ray session that a job runs in, and how its workers fit the cluster."""

from __future__ import annotations

import logging
import math
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray

from pegasus_batch.pipeline.config import ConfigError, CorpusConfig
from pegasus_batch.pipeline.cpus import usable_cpus
from pegasus_batch.pipeline.stages import READ_CPUS, WRITE_CPUS, Workers, choose_window

CPUS_PER_WORKER = 4  # matrix products of one document gain little beyond this
_LOCAL_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # a local cluster would write a token to the home directory and then demand it
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # an actor pool logs an error about its arguments at every start
}


def choose_workers(
    config: CorpusConfig,
    n_rows: int,
    nodes: Sequence[dict[str, Any]],
    local_cpus: int | None,
    text_bytes: int = 0,
    longest: int | None = None,
) -> Workers:
    """Fit the workers to the cluster. Raises ConfigError where it cannot hold one.

    ``nodes`` is what ``ray.nodes()`` returns; ``local_cpus`` the machine's where this process started the cluster, else
    None. Somebody else's cluster may grow on demand: there, a number of workers that the user gave is taken as it is.
    ``text_bytes`` and ``longest`` are for ``choose_window``.
    """
    alive = [node.get("Resources", {}) for node in nodes if node.get("Alive")]
    cpus = [int(node["CPU"]) for node in alive if node.get("CPU", 0) >= 1]
    gpus = [node["GPU"] for node in alive if node.get("GPU", 0) > 0]
    per_worker = config.num_gpus_per_worker
    if per_worker is None:
        per_worker = 1.0 if (gpus or config.device == "cuda") and config.device != "cpu" else 0.0
    if per_worker > 1 and per_worker != int(per_worker):
        raise ConfigError(f"--num-gpus-per-worker {per_worker}: above 1 only whole GPUs can be reserved")
    may_grow = local_cpus is None and config.num_workers is not None
    if per_worker and not may_grow and not any(node >= per_worker for node in gpus):
        most = max(gpus, default=0)
        raise ConfigError(
            f"each worker wants {per_worker:g} GPUs and no node of the cluster has more than {most:g}: pass "
            "--num-gpus-per-worker 0 to run on CPUs"
            + (", or --num-workers N if the cluster will grow" if local_cpus is None else "")
        )
    if config.num_workers is not None:
        count = config.num_workers
    elif per_worker:
        count = sum(math.floor(node / per_worker + 1e-9) for node in gpus)
    else:
        count = sum(max(1, node // CPUS_PER_WORKER) for node in cpus)
    count = max(1, min(count, n_rows))
    threads = 1 if per_worker and config.device != "cpu" else max(1, (local_cpus or sum(cpus)) // count)
    reserve = _reserve(cpus, count, most=1.0 if per_worker else float(threads))
    window = choose_window(config.batch_tokens, per_worker > 0, count, n_rows, text_bytes, longest)
    return Workers(count, per_worker, reserve, threads, window)


def _reserve(cpus: Sequence[int], count: int, most: float) -> float:
    """Return the CPUs that a worker reserves, so that some node keeps enough free for a task that reads and one that writes.

    Nothing moves until one of each has found its place.
    """
    tasks = READ_CPUS + WRITE_CPUS
    free = (sum(cpus) - tasks * len(cpus)) / count
    share = min(most, free, max(cpus, default=0) - tasks)
    while share > 0.01 and sum(math.floor(node / share) for node in cpus) < count:
        share *= 0.9
    return max(0.0, math.floor(share * 100) / 100)


@contextmanager
def ray_session(shows_workers: bool = False) -> Iterator[int | None]:
    """Join the cluster that surrounds this process, or start one for it; leave a session that the caller opened alone.

    Yields the CPUs of the machine where it started the cluster, else None. ``shows_workers``: what the workers print
    appears here.
    """
    if ray.is_initialized():
        _quiet()
        yield None
        return
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"RAY_ADDRESS={address} is a dashboard's address, which only ray job submit takes: unset it to run on this "
            "machine, or set it to HOST:6379 of the cluster"
        )
    cpus = None if address else usable_cpus()
    options: dict[str, Any] = {"log_to_driver": shows_workers, "logging_level": logging.ERROR}
    if cpus:
        for name, value in _LOCAL_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # One CPU more than there are: for Ray Data's own tasks, which wait rather than compute but claim a whole one.
        options |= {"address": "local", "include_dashboard": False, "num_cpus": cpus + 1}
    try:
        ray.init(**options)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConnectionError(f"no Ray session (RAY_ADDRESS={address or 'unset'}): {error}") from error
    _quiet()
    try:
        yield cpus
    finally:
        ray.shutdown()


def _quiet() -> None:
    # Ray Data tells the terminal of its plans and prints whole tracebacks; failures reach us as exceptions, and its log
    # file keeps the rest.
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)


@contextmanager
def termination_unwinds() -> Iterator[None]:
    """Turn SIGTERM, which ``ray job stop`` sends, into an exception, so that the output's lock is released.

    The exit code is then 143. Ray sets a handler of its own when it starts; one of these around that and another within
    cover the time between.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: the caller handles signals
        yield
        return
    try:
        yield
    except SystemExit as ended:
        if ended.code == signal.SIGTERM:  # Ray's handler was there first
            raise SystemExit(128 + signal.SIGTERM) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
