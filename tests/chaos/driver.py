"""The job's own process, as the suite starts it: reads its orders from one line of standard input, then runs the job.

A process that has imported everything and waits for its line saves the episode those seconds.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray import cloudpickle

from pegasus_batch.pipeline import JobConfig, run, run_job
from pegasus_batch.pipeline.inputs import Location
from pegasus_batch.pipeline.ledger import Ledger
from pegasus_batch.pipeline.lock import OutputLock
from pegasus_batch.pipeline.plan import RunPlan
from pegasus_batch.pipeline.report import say
from pegasus_batch.pipeline.store import Store
from tests.chaos import model


def _is_locked(store: Store, *args: Any) -> bool:
    return any(name.startswith("_lock-") for name in store.names())


def _is_manifest(store: Store, name: str, *args: Any) -> bool:
    return name.startswith("_manifest-")


def _always(*args: Any, **kwargs: Any) -> bool:
    return True


# Steps of the driver at which it can be told to die: the call that marks the step, whether it dies before or after it,
# and which of those calls it is. In the order of a run.
STEPS: dict[str, tuple[type, str, str, Callable[..., bool]]] = {
    "the output locked": (OutputLock, "__enter__", "after", _always),
    "the plan half put": (Store, "_open_new", "after", _is_locked),
    "the run planned": (Ledger, "begin", "after", _always),
    "the attempt opened": (Ledger, "open_run", "after", _always),
    "the rows counted": (Ledger, "scan", "after", _always),
    "all rows written": (Ledger, "commit", "before", _always),
    "the run renamed": (Store, "put_new", "before", _is_manifest),
    "the manifest put": (Store, "put_new", "after", _is_manifest),
    "the plan removed": (Ledger, "commit", "after", _always),
}
LATE_STEPS = (
    "all rows written",
    "the run renamed",
    "the manifest put",
    "the plan removed",
)  # no work is left to disturb
LAST_STEPS = ("the manifest put", "the plan removed")  # the run is committed


def die_at(step: str, marker: Path) -> None:
    """Have this process kill itself at a step, leaving a file that says so."""
    owner, name, when, is_meant = STEPS[step]
    original = getattr(owner, name)

    def die() -> None:
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        meant = is_meant(*args, **kwargs)
        if meant and when == "before":
            die()
        result = original(*args, **kwargs)
        if meant:
            die()
        return result

    setattr(owner, name, wrapped)


def forbid_renaming() -> None:
    """Work as on an object store: data goes where it is published, and nothing can be renamed out of a dead writer's reach."""
    open_run = Ledger.open_run

    def open_as_is(ledger: Ledger, plan: RunPlan) -> Location:
        directory = open_run(ledger, plan)
        Path(directory.path).mkdir(parents=True, exist_ok=True)
        return directory

    Store.can_rename = property(lambda store: False)  # type: ignore[assignment, method-assign]
    Ledger.open_run = open_as_is  # type: ignore[method-assign]


def carry_out(orders: dict[str, Any]) -> dict[str, Any]:
    """Run the job and return its outcome."""
    if not orders["renames"]:
        forbid_renaming()
    if orders["step"]:
        die_at(orders["step"], Path(orders["marker"]))
    writes = [model.WriteFault(**fault) for fault in orders["writes"]]
    if writes:
        run.SummaryDatasink = functools.partial(model.FragileSink, faults=writes)  # type: ignore[misc, assignment]
    config = JobConfig(**orders["config"])
    return asdict(run_job(config, factory=model.model_factory(orders["seconds_per_row"]), show=say))


def main() -> int:
    cloudpickle.register_pickle_by_value(model)  # workers do not have the tests on their path
    line = sys.stdin.readline()
    if not line:  # whoever started this process is gone, or has no use for it any more
        return 0
    orders = json.loads(line)
    with Path(orders["log"]).open("ab") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    for fault in orders["writes"]:
        fault["driver"] = os.getpid() if fault["driver"] else None
    try:
        result = carry_out(orders)
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    Path(orders["result"]).write_text(json.dumps(result))
    return 1 if "error" in result else 0


if __name__ == "__main__":
    sys.exit(main())
