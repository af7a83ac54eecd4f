"""The cost of resuming: a run with most of its rows done, read by this job's ledger and by Ray Data's checkpoints."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from chart import markdown_table
from ray.data import DataContext
from ray.data._internal.planner.checkpoint.plan_read_op import CHECKPOINT_MEMORY_SAFETY_FACTOR
from ray.data.checkpoint import CheckpointConfig, IdColumnCheckpointManager, NumpyArrayBasedCheckpointFilter
from ray.data.checkpoint.checkpoint_writer import CheckpointWriter
from sampling import MB, Sampler, Step, own_bytes, ray_on_this_machine, step, store_totals

from pegasus_batch.pipeline.config import build_config
from pegasus_batch.pipeline.inputs import locate
from pegasus_batch.pipeline.ledger import Ledger
from pegasus_batch.pipeline.plan import PlannedFile, RunPlan, Version, check_job
from pegasus_batch.pipeline.reader import ReadUnits, plan_units
from pegasus_batch.pipeline.report import read_outcome
from pegasus_batch.pipeline.schema import CARRIED, ID_HASH, POSITION_BITS, ROW_KEY, TEXT_HASH
from pegasus_batch.pipeline.sink import SummaryDatasink
from pegasus_batch.pipeline.summarize import summary_fields

WINDOW = 64  # rows that are finished together
_N_INPUTS, _GROUP_ROWS = 100, 10_000
_MISSING_EVERY = 100  # windows
_NEIGHBOURS = 1024  # windows that finish in any order
_BLOCK_ROWS = 100_000  # that Ray's filter is given at a time


def write_run(directory: Path, rows: int, files: int) -> None:
    """Write a run of ``rows`` rows in ``files`` files, nearly done, its input, and Ray Data's checkpoints of it.

    Of its windows of 64 rows one in a hundred is missing, here and there; that is the worst for who has to find it.
    """
    plan = _plan(directory, rows)
    keys = _finished_keys(plan)
    per_file = -(-len(keys) // files)
    schema = pa.schema([*plan.passengers, *summary_fields().values()])
    for index, file in enumerate(plan.files):
        path = Path(file.at)
        path.parent.mkdir(exist_ok=True)
        ids = np.arange(file.rows) + (index << POSITION_BITS)
        table = pa.table({"id": ids, "document": [f"document {i}" for i in range(file.rows)]})
        pq.write_table(table, path, row_group_size=_GROUP_ROWS)
    ledger = Ledger(locate(str(directory / "out")))
    ledger.begin(plan)
    at = ledger.open_run(plan)
    sink = SummaryDatasink(at, 1, schema, per_file, WINDOW)
    writers = {
        name: CheckpointWriter.create(_checkpoints(directory, name, column))
        for name, column in (("int64", "key"), ("text", "id"))
    }
    for task, start in enumerate(range(0, len(keys), per_file)):
        part = keys[start : start + per_file]
        sink.write([_rows(part)], SimpleNamespace(task_idx=task))
        for name, ids in (("int64", pa.array(part)), ("text", _text_ids(part))):
            pending = writers[name].write_pending_checkpoint(ids, f"run_{task:06d}")
            assert pending is not None
            writers[name].commit_checkpoint(pending)


def measure_ledger(directory: str) -> dict[str, Any]:
    """Resume the run as the job does, up to the commit; return time and peak memory of every step."""
    steps: dict[str, Step] = {}
    ledger = Ledger(locate(str(Path(directory) / "out")))
    (plan,) = ledger.unfinished()
    job = check_job(build_config({"input": plan.files[0].at, "output": ledger.output.path, "device": "cpu"}))
    began = own_bytes()[1]
    at = ledger.open_run(plan)
    with step(steps, "scan"):
        progress = ledger.scan(plan, at)
    with step(steps, "plan units"):
        units = plan_units(plan, progress.done, 8192)
    read = ReadUnits(("id", "document"), ("document",), "id", False, ledger.output.path, ())
    with step(steps, "read what is missing"):
        n_read = sum(len(table) for unit in units for table in read(unit))
    missing = plan.n_rows - progress.n_done
    assert n_read == progress.missing == missing == WINDOW * len(_missing_windows(plan)), (n_read, missing)
    with step(steps, "scan before the commit"):
        progress = ledger.scan(plan, at, before=progress)
    with step(steps, "count statuses"):
        read_outcome(job, plan, at, progress, missing, 0.0, 0.0)
    with step(steps, "count repeated ids"):
        assert ledger.duplicate_ids(at, progress.files) == 0
    return {
        "process_before_mb": round(began / MB, 1),
        "units": len(units),
        "rows_missing": missing,
        "rows_in_units": sum(_rows_of(plan, unit) for unit in units),
        "steps": {name: _step_record(measured) for name, measured in steps.items()},
    }


def measure_ray(directory: str, name: str = "int64", column: str = "key") -> dict[str, Any]:
    """Load Ray Data's checkpoint as a resumed dataset does, and filter all rows of the run by it."""
    (plan,) = Ledger(locate(str(Path(directory) / "out"))).unfinished()
    config = _checkpoints(Path(directory), name, column)
    with Sampler(0.2) as sampler, ray_on_this_machine(int(6e9)):
        ray.get(ray.remote(_nothing).remote())  # a worker process is there
        idle = sampler.peak("total")
        started = time.perf_counter()
        manager = IdColumnCheckpointManager(checkpoint_config=config, data_context=DataContext.get_current())
        ids, size = manager.load_checkpoint()
        loaded = time.perf_counter()
        filtering: Any = ray.remote(_Filter).remote(config, [ids])
        n_left, seconds, memory, resident = ray.get(filtering.run.remote([file.rows for file in plan.files], name))
        totals = store_totals()
    assert n_left == WINDOW * len(_missing_windows(plan)), n_left
    return {
        "load_seconds": round(loaded - started, 2),
        "filter_seconds": round(seconds, 2),
        "ids_mb": round(size / MB, 1),
        "filter_actor_mb": round(memory / MB, 1),
        "filter_actor_resident_mb": round(resident / MB, 1),
        "filter_actor_reserves_mb": round(
            max(config.checkpoint_actor_memory_bytes, size * CHECKPOINT_MEMORY_SAFETY_FACTOR) / MB
        ),
        "idle_total_mb": round(idle / MB, 1),
        "store_mb": totals,
        **sampler.record(),
    }


def measure_ray_text(directory: str) -> dict[str, Any]:
    """The same where the id is a text of 32 characters, as in data that has no numbers."""
    return measure_ray(directory, "text", "id")


class _Filter:
    """What each of Ray Data's one to ten filter actors holds and does."""

    def __init__(self, config: CheckpointConfig, ids: list[Any]) -> None:
        self._before = own_bytes()
        self._filter = NumpyArrayBasedCheckpointFilter(config, ids[0])
        self._column = config.id_column

    def run(self, rows: list[int], name: str) -> tuple[int, float, int, int]:
        """Return the rows left of all rows of the run, seconds, and by how much memory and resident set have grown."""
        n_left, seconds = 0, 0.0
        for index, n in enumerate(rows):
            for start in range(0, n, _BLOCK_ROWS):
                keys = np.arange(start, min(n, start + _BLOCK_ROWS)) + (index << POSITION_BITS)
                block = pa.table({self._column: keys if name == "int64" else _text_ids(keys)})
                started = time.perf_counter()
                n_left += len(self._filter.filter_rows_for_block(block))
                seconds += time.perf_counter() - started
        memory, resident = (after - before for before, after in zip(self._before, own_bytes(), strict=True))
        return n_left, seconds, memory, resident


def tables(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the medians of both sides as tables."""
    ours = [run["ledger"] for run in runs]
    cells = [
        [name, *(f"{statistics.median(run['steps'][name][key] for run in ours):,.{digits}f}" for key, digits in _SHOWN)]
        for name in ours[0]["steps"]
    ]
    missing, read = ours[0]["rows_missing"], ours[0]["rows_in_units"]
    out = markdown_table(["the ledger", "seconds", "peak MB", "above the start of the step, MB"], cells)
    out += f"\n{missing:,} rows are missing, in {ours[0]['units']:,} units of {read:,} rows\n\n"
    shown = {
        "load, s": lambda run: run["load_seconds"],
        "filter all rows, s": lambda run: run["filter_seconds"],
        "object store, MB": lambda run: run["store_touched_mb"],
        "largest task, MB": lambda run: run["peak_mb"]["task"],
        "each filter actor adds, MB": lambda run: run["filter_actor_mb"],
        "each reserves, MB": lambda run: run["filter_actor_reserves_mb"],
    }
    cells = [
        [name, *(f"{statistics.median(value(run[kind]) for run in runs):,.1f}" for value in shown.values())]
        for kind, name in (("ray", "int64 keys"), ("ray_text", "texts of 32 characters"))
    ]
    return out + markdown_table(["Ray Data's checkpoint of the same rows", *shown], cells)


_SHOWN = (("seconds", 2), ("peak_mb", 0), ("above_mb", 0))


def _step_record(measured: Step) -> dict[str, float]:
    return {
        "seconds": round(measured.seconds, 3),
        "peak_mb": round(measured.peak / MB, 1),
        "above_mb": round((measured.peak - measured.before) / MB, 1),
    }


def _plan(directory: Path, rows: int) -> RunPlan:
    """Return the plan of the run; the rows that are missing come on top of ``rows``."""
    per_input = WINDOW * -(-rows * _MISSING_EVERY // ((_MISSING_EVERY - 1) * _N_INPUTS * WINDOW))
    groups = tuple(min(_GROUP_ROWS, per_input - start) for start in range(0, per_input, _GROUP_ROWS))
    names = [str(directory / "in" / f"{index:03d}.parquet") for index in range(_N_INPUTS)]
    files = tuple(PlannedFile(Version(name, 1, 1), name, groups, per_input) for name in names)
    schema = pa.schema([("id", pa.int64())])
    return RunPlan("20260101T000000-abcdef", "f", "2026-01-01T00:00:00Z", files, (), schema)


def _finished_keys(plan: RunPlan) -> np.ndarray:
    """Return the keys of the rows that are done, in the order in which they were finished."""
    rng = np.random.default_rng(1)
    keys = np.concatenate([np.arange(file.rows) + (i << POSITION_BITS) for i, file in enumerate(plan.files)])
    windows = keys.reshape(-1, WINDOW)
    order = np.delete(np.arange(len(windows)), _missing_windows(plan))
    for start in range(0, len(order), _NEIGHBOURS):
        rng.shuffle(order[start : start + _NEIGHBOURS])
    return windows[order].reshape(-1)


def _missing_windows(plan: RunPlan) -> range:
    return range(_MISSING_EVERY // 2, plan.n_rows // WINDOW, _MISSING_EVERY)


def _rows(keys: np.ndarray) -> pa.Table:
    """Return finished rows as the job hands them to its sink."""
    n = len(keys)
    hashes = np.random.default_rng(int(keys[0])).bytes(16 * n)
    return pa.table(
        {
            "id": keys,
            "summary": [f"the summary of document {key}" for key in keys.tolist()],
            "score": np.full(n, -0.5),
            "n_source_tokens": np.full(n, 90),
            "n_summary_tokens": np.full(n, 12),
            "truncated": np.zeros(n, bool),
            "status": ["ok"] * n,
            "error": pa.nulls(n, pa.string()),
            ROW_KEY: keys,
            TEXT_HASH: pa.Array.from_buffers(pa.binary(16), n, [None, pa.py_buffer(hashes)]),
            ID_HASH: keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15),  # odd, so no two ids share a hash
            CARRIED: pa.nulls(n, pa.bool_()),
        }
    )


def _text_ids(keys: np.ndarray) -> pa.Array:
    """Return 32 hexadecimal digits for every key, as random as a UUID."""
    return pa.array([hashlib.blake2b(key.to_bytes(8), digest_size=16).hexdigest() for key in keys.tolist()])


def _checkpoints(directory: Path, name: str, column: str) -> CheckpointConfig:
    return CheckpointConfig(column, str(directory / f"checkpoint-{name}"), delete_checkpoint_on_success=False)


def _rows_of(plan: RunPlan, unit: pa.Table) -> int:
    (values,) = unit.to_pylist()
    return sum(plan.files[values["file"]].row_groups[values["first"] : values["last"] + 1])


def _nothing() -> None:
    """Start a worker process."""
