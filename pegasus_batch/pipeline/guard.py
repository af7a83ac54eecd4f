"""Rows that end the process that computes them: found by who was at work when it died, and given up after two deaths.

Ray gives the windows of a worker that died to its successor, without limit. So one row that makes a kernel crash or a
machine run out of memory would hold up its window for ever. A worker that has died once is watched: its successor takes
every row of the first window for the possible cause, which nearly always is the one that its predecessor was at, and
tells the driver's guard from then on which rows are in flight; what is begun again by somebody else, without an end, was in
flight when its holder died. Nobody waits for the guard before the first death.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pegasus_batch.documents import Document, Status
from pegasus_batch.pipeline.task import Found, Run

if TYPE_CHECKING:
    from ray.actor import ActorHandle

# A machine taken away or an operator's kill may hit a healthy row while it happens to be alone; hardly the same row twice.
_DEATHS = 2
_GIVEN_UP = (
    "the document ended its worker process twice while it was alone there, and before that with its window: the worker's "
    "log may tell a crash in native code from a lost GPU or a lack of memory"
)

Missing = Callable[[Document, Status, str], Found]  # what stands for the result of a document that has none


@dataclass
class _InFlight:
    holder: str
    alone: bool
    deaths: int | None = None  # of its own; None for a row that nobody suspects


class CrashGuard:
    """Remembers the keys of the rows in flight, and which of them were there when a worker died.

    A holder is one call of ``run_guarded``. It may begin a row twice, in its window and then alone; the same row
    begun by another holder means that the first one died. Rows that have ended are forgotten, so no more is held than
    one window of every worker.
    """

    def __init__(self) -> None:
        """Start with nothing in flight."""
        self._rows: dict[int, _InFlight] = {}
        self._workers: set[str] = set()

    def enlist(self, worker: str) -> bool:
        """Note a worker (an actor's id) that has started; returns whether it has before, and so died meanwhile."""
        known = worker in self._workers
        self._workers.add(worker)
        return known

    def begin(self, keys: list[int], holder: str, suspect: bool = False) -> dict[int, int]:
        """Record that ``holder`` is about to summarize these rows together; one key means that it is alone.

        With ``suspect`` any of them may have ended the holder's predecessor.

        Returns the suspects among them: rows that were in flight when an earlier holder died, each with the number of
        deaths that it suffered alone. Those in company come without a count of their own: any of them may be the cause.
        """
        suspects = {}
        for key in keys:
            row = _InFlight(holder, alone=len(keys) == 1)
            before = self._rows.get(key)
            if before is not None:
                row.deaths = before.deaths
                if before.holder != holder:
                    row.deaths = (before.deaths or 0) + before.alone
            if suspect and row.deaths is None:
                row.deaths = 0
            if row.deaths is not None:
                suspects[key] = row.deaths
            self._rows[key] = row
        return suspects

    def end(self, keys: list[int], holder: str) -> None:
        """Forget rows that ``holder`` is done with, and all suspicion of them.

        Rows that another holder has begun since are left alone: word of a worker that died may come late.
        """
        for key in keys:
            if key in self._rows and self._rows[key].holder == holder:
                del self._rows[key]


def start_guard() -> ActorHandle:
    """Start a guard beside the driver; it lives for as long as somebody keeps the handle.

    Should it die it starts again with nothing in flight, and calls under way are made again: a crash may then go
    unnoticed, and costs its row one more.
    """
    beside = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor: Any = ray.remote(CrashGuard)
    return actor.options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=beside).remote()


def enlist(guard: Any) -> bool:
    """Tell the guard that this worker has started; returns whether it succeeds one that died."""
    return bool(ray.get(guard.enlist.remote(ray.get_runtime_context().get_actor_id())))


class _Holder:
    """One call's side of the guard; waits for answers, for a record that comes after the crash is none."""

    def __init__(self, guard: ActorHandle) -> None:
        self._guard: Any = guard
        self._name = uuid.uuid4().hex

    def begin(self, keys: list[int], suspect: bool = False) -> dict[int, int]:
        return ray.get(self._guard.begin.remote(keys, self._name, suspect))

    def end(self, keys: list[int]) -> None:
        ray.get(self._guard.end.remote(keys, self._name))

    def end_last(self, keys: list[int]) -> None:
        """End without waiting: should the word be lost with this process, a window that was finished only runs apart."""
        self._guard.end.remote(keys, self._name)


def run_guarded(
    run: Run[Found],
    documents: list[Document],
    keys: list[int],
    guard: ActorHandle,
    missing: Missing[Found],
    suspect: bool = False,
) -> list[Found]:
    """Run the model on a window in a worker whose predecessor died; one result for each document, in order.

    ``suspect``: it is the first of this worker, and so the one at which the predecessor was, most likely.
    ``keys`` are the documents' row keys. Rows that were in flight when a worker died are computed one at a time, after
    the others; one that has ended its worker twice while it was alone there is not run any more but is ``missing``.
    """
    holder = _Holder(guard)
    window = [key for key, document in zip(keys, documents, strict=True) if document.error is None]
    if not window:
        return run(documents)  # there is nothing that the model would see
    suspects = holder.begin(window, suspect)
    try:
        results = _run_apart(run, documents, keys, suspects, holder, missing) if suspects else run(documents)
    except Exception:  # an error is no death; what does end the process, sys.exit too, leaves its rows in flight
        holder.end_last(window)
        raise
    holder.end_last(window)
    return results


def _run_apart(
    run: Run[Found],
    documents: list[Document],
    keys: list[int],
    suspects: dict[int, int],
    holder: _Holder,
    missing: Missing[Found],
) -> list[Found]:
    """Run the rows that are above suspicion together and the suspects one at a time."""
    results: dict[int, Found] = {}
    trusted = [row for row, key in enumerate(keys) if key not in suspects]
    if trusted:
        results.update(zip(trusted, run([documents[row] for row in trusted]), strict=True))
        # Now, not with the window: they must not come under suspicion when a suspect ends this process.
        holder.end([keys[row] for row in trusted])
    for row, key in enumerate(keys):
        if key not in suspects:
            continue
        if suspects[key] >= _DEATHS:
            # It stays in flight until the window ends: forgotten earlier, it would be tried afresh if another row of
            # the window ends this process.
            results[row] = missing(documents[row], "failed", _GIVEN_UP)
            continue
        holder.begin([key])
        results[row] = run([documents[row]])[0]
        holder.end([key])
    return [results[row] for row in range(len(documents))]
