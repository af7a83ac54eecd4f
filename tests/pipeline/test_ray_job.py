"""The job as an operator runs it: ``ray start --head``, then ``ray job submit``, each in its own process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pyarrow.parquet as pq
import pytest

from tests.pipeline.conftest import write_documents

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
START_SECONDS, JOB_SECONDS = 180, 400  # limits for a machine that is busy with other things
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PATH": f"{BIN}:{os.environ['PATH']}",
    # Stands for an installed package where the tests run from a checkout.
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
}


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@pytest.fixture
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a cluster of its own; yield the address that jobs are submitted to."""
    port, dashboard_port, agent_port = free_ports(3)
    # Ray keeps sockets below this directory, and a socket's path has at most 107 characters.
    directory = Path(f"/tmp/pegasus_ray_{os.getpid()}")
    log = (tmp_path_factory.mktemp("cluster") / "ray_start.log").open("w+")
    process = subprocess.Popen(
        [
            BIN / "ray", "start", "--head", "--block", f"--port={port}", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard_port}", f"--dashboard-agent-listen-port={agent_port}",
            f"--temp-dir={directory}", "--num-cpus=3", "--num-gpus=0", f"--object-store-memory={150 * 2**20}",
            "--disable-usage-stats",
        ],
        env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{dashboard_port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(f"{address}/api/version"):
            log.seek(0)
            assert process.poll() is None, log.read()
            assert time.monotonic() < deadline, "the dashboard does not answer; it needs ray[default]"
            time.sleep(0.3)
        yield address
    finally:
        stop_tree(process.pid)
        process.wait(timeout=60)
        log.close()
        subprocess.run(["rm", "-rf", str(directory)], check=True)


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as response:
            return response.status == 200
    except (URLError, OSError):
        return False


def stop_tree(root: int) -> None:
    """End a process and everything below it, by number."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
    tree = [root]
    for pid in tree:
        tree.extend(child for child, parent in parents.items() if parent == pid)
    for pid in tree:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def submit(dashboard: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [BIN / "ray", "job", "submit", "--address", dashboard, "--working-dir", ROOT / "jobs", "--"]
    return subprocess.run(
        [*map(str, command), "python", "summarize.py", *map(str, arguments)],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=JOB_SECONDS, check=False,
    )  # fmt: skip


def test_a_submitted_job_runs_on_the_cluster_and_reports_failure(
    dashboard: str, model_dir: Path, tmp_path: Path
) -> None:
    source = write_documents(tmp_path / "in.parquet", ["quick brown fox", None, "lazy dogs"])
    flags = ["--input", source, "--output", tmp_path / "out", "--model", model_dir, "--num-beams", 2]

    refused = submit(dashboard, *flags, "--text-column", "body")
    assert refused.returncode == 1, refused.stdout + refused.stderr  # ray job submit knows no other failure
    assert "--text-column 'body': the input has no such column" in refused.stdout
    assert not (tmp_path / "out").exists()

    done = submit(dashboard, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rows ok" in done.stdout
    result = pq.read_table(tmp_path / "out").sort_by("id")
    assert result["status"].to_pylist() == ["ok", "invalid", "ok"]
