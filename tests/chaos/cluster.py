"""A Ray cluster of several nodes on this machine, with GPUs that exist only in its books, and the processes in it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
# Workers are as important as everything else: on a busy machine they would otherwise take minutes to start.
os.environ.setdefault("RAY_worker_niceness", "0")
# A node that is gone refuses connections at once; one that is only slow still gets its ten seconds for an answer.
os.environ.setdefault("RAY_health_check_period_ms", "1000")

from ray._private.utils import get_ray_address_file
from ray.cluster_utils import Cluster

NODE_SECONDS = 180.0  # for a node to join; the machine may be busy with other things
_STORE_BYTES = 100 * 2**20
_HEAD: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
_NODE: dict[str, Any] = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": _STORE_BYTES}
_TRIES = 5
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    """A process of the cluster: what Ray calls it, and when it started (seconds since the machine did)."""

    pid: int
    title: str
    started: float


class ChaosCluster:
    """A head node without work for models, and two nodes with a GPU each that can be lost."""

    def __init__(self, directory: Path) -> None:
        """Start it; its files go into ``directory``, whose name must be short, for Ray puts sockets there."""
        self._directory = directory
        self._replacement: threading.Timer | None = None
        self._cluster = _start_head(directory)
        # The hooks of Ray's nodes need the main thread, and nodes are replaced on another. These end without their head.
        self._cluster._shutdown_at_exit = False
        for _ in range(2):
            self.add_node()

    @property
    def address(self) -> str:
        """What RAY_ADDRESS is set to."""
        return str(self._cluster.address)

    def add_node(self) -> None:
        """Start another node and wait until it has joined."""
        for _ in range(_TRIES):
            with contextlib.suppress(
                Exception
            ):  # Ray gives a node half a minute to start; on a busy machine it takes more
                node = self._cluster.add_node(wait=False, **_NODE)
                break
        else:
            raise TimeoutError("no node of the cluster starts")
        deadline = time.monotonic() + NODE_SECONDS
        while node.plasma_store_socket_name not in self._alive():
            if time.monotonic() > deadline:
                raise TimeoutError(f"a node has not joined the cluster after {NODE_SECONDS:g} s")
            time.sleep(0.1)

    def replace_node(self, number: int, seconds: float) -> None:
        """Kill everything of one of the nodes with GPUs, and start another one so many seconds later, meanwhile."""
        self.settle()
        nodes = sorted(self._cluster.worker_nodes, key=lambda node: node.plasma_store_socket_name)
        node = nodes[number % len(nodes)]
        pids = [child.pid for child in children(_raylets([node]))]
        self._cluster.remove_node(node, allow_graceful=False)
        for pid in pids:  # a machine that is gone runs nothing any more, not even for a moment
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._replacement = threading.Timer(seconds, self._try_to_add_node)
        self._replacement.start()

    def settle(self) -> None:
        """Wait until a node that is being replaced has been."""
        if self._replacement is not None:
            self._replacement.join()
            self._replacement = None

    def _try_to_add_node(self) -> None:
        with contextlib.suppress(Exception):  # then is_well says so
            self.add_node()

    def workers(self) -> list[Process]:
        """Return what the nodes run: tasks and actors."""
        return children(_raylets(self._cluster.list_all_nodes()))

    def is_well(self) -> bool:
        """Whether all its nodes are there."""
        self.settle()
        nodes = {node.plasma_store_socket_name for node in self._cluster.list_all_nodes()}
        return len(nodes) == 3 and self._cluster.remaining_processes_alive() and nodes <= self._alive()

    def stop(self) -> None:
        """End it, with all that it runs, and remove its files."""
        self.settle()
        workers = self.workers()
        with contextlib.suppress(Exception):
            self._cluster.shutdown()
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _alive(self) -> set[str]:
        """Return the nodes that the head counts in, by their sockets; a lost one for a few seconds more."""
        return {node["ObjectStoreSocketName"] for node in self._cluster.global_state.node_table() if node["Alive"]}


def _start_head(directory: Path) -> Cluster:
    # The head notes its address where Ray keeps its files by default, and expects that somebody has made that place.
    Path(get_ray_address_file(None)).parent.mkdir(parents=True, exist_ok=True)
    for _ in range(_TRIES - 1):
        with contextlib.suppress(Exception):  # as in add_node
            return Cluster(initialize_head=True, head_node_args={**_HEAD, "temp_dir": str(directory)})
    return Cluster(initialize_head=True, head_node_args={**_HEAD, "temp_dir": str(directory)})


def _raylets(nodes: Sequence[Any]) -> set[int]:
    return {info.process.pid for node in nodes for info in node.all_processes.get("raylet", ())}


def children(parents: set[int]) -> list[Process]:
    """Return the processes whose parent is one of these."""
    return list(_children(parents))


def _children(parents: set[int]) -> Iterator[Process]:
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError):  # it has just ended
            fields = Path(entry.path, "stat").read_text().rsplit(")", 1)[1].split()
            if int(fields[1]) in parents:
                title = Path(entry.path, "cmdline").read_bytes().split(b"\0", 1)[0].decode(errors="replace")
                yield Process(int(entry.name), title, int(fields[19]) / _TICKS)


def uptime() -> float:
    """Return the seconds since the machine started: the clock of Process.started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
