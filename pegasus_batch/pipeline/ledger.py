"""What an output directory holds: runs in work, committed runs, and which rows of a run are done.

The output files are the checkpoint. Beside each of them lies a hidden file of row keys, written first; a crash leaves both,
or something that ``scan`` throws away. A run is committed by its manifest, and what no manifest names was never published.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

import pegasus_batch
from pegasus_batch.pipeline.config import ConfigError
from pegasus_batch.pipeline.inputs import FOOTER_THREADS, Location, locate
from pegasus_batch.pipeline.manifest import DataFile, Manifest, current_files
from pegasus_batch.pipeline.plan import RunPlan, now, read_schema
from pegasus_batch.pipeline.schema import ID_HASH, POSITION_BITS, ROW_KEY
from pegasus_batch.pipeline.store import Store

DATA_FILE = re.compile(r"\d+-\d+-\d+\.parquet")
RUN_ID = re.compile(r"\d{8}T\d{6}-[0-9a-f]{6}")
KEYS_PREFIX = "_rows-"  # of the file of row keys that belongs to a data file
_PLAN, _MANIFEST, _WORK = "_plan-", "_manifest-", "_run-"
_IDS_AT_ONCE = 4_000_000  # id hashes held while counting duplicates: 32 MB


@dataclass
class Progress:
    """Which rows of a run are done, and in which files."""

    done: list[np.ndarray]  # of bool, one for each file of the plan
    files: list[DataFile] = field(default_factory=list)
    attempt: int = 1  # the number that files written from now on begin with

    @property
    def n_done(self) -> int:
        """Rows that are done."""
        return sum(file.rows for file in self.files)

    @property
    def missing(self) -> int:
        """Rows that are not."""
        return sum(int(len(done) - np.count_nonzero(done)) for done in self.done)


class Ledger:
    """The runs of one output directory. Whoever changes anything holds the directory's lock."""

    def __init__(self, output: Location) -> None:
        self.output = output
        self.store = Store(output)

    def manifests(self) -> list[Manifest]:
        """Return the committed runs, oldest first."""
        names = self.store.names(_MANIFEST)
        found = [self.manifest(name.removeprefix(_MANIFEST).removesuffix(".json")) for name in names]
        return sorted(found, key=lambda manifest: manifest.sequence)

    def manifest(self, run_id: str) -> Manifest:
        """Return one committed run. Raises ValueError if its manifest names anything outside of the run's directory."""
        name = f"{_MANIFEST}{run_id}.json"
        manifest = Manifest.from_bytes(self._read(name))
        if manifest.run_id != run_id or not RUN_ID.fullmatch(run_id):
            raise ValueError(f"{self.output.given}/{name} is the manifest of {manifest.run_id!r}: restore or remove it")
        for file in manifest.files:
            if not DATA_FILE.fullmatch(file.name):
                raise ValueError(
                    f"{self.output.given}/{name} names a file {file.name!r} that no run writes: restore it"
                )
        return manifest

    def unfinished(self) -> list[RunPlan]:
        """Return the plans that were not carried out yet, oldest first."""
        committed = {name.removeprefix(_MANIFEST) for name in self.store.names(_MANIFEST)}
        names = [name for name in self.store.names(_PLAN) if name.removeprefix(_PLAN) not in committed]
        plans = [RunPlan.from_bytes(self._read(name)) for name in names]
        for name, plan in zip(names, plans, strict=True):
            if name != f"{_PLAN}{plan.run_id}.json" or not RUN_ID.fullmatch(plan.run_id):
                raise ValueError(f"{self.output.given}/{name} is the plan of {plan.run_id!r}: restore or remove it")
        return plans

    def clear_committed(self) -> None:
        """Remove plans whose run is committed: their process ended between its commit and this."""
        committed = {name.removeprefix(_MANIFEST) for name in self.store.names(_MANIFEST)}
        for name in self.store.names(_PLAN):
            if name.removeprefix(_PLAN) in committed:
                self.store.delete(name)

    def check_foreign(self) -> None:
        """Raise ConfigError if the directory holds what no run of ours put there."""
        for name in self.store.names():
            if not name.startswith(("_", ".")) and not RUN_ID.fullmatch(name):
                raise ConfigError(
                    f"--output {self.output.given!r} is not empty (it holds {name}, which no run of this job wrote): "
                    "choose another directory, or remove this one"
                )

    def begin(self, plan: RunPlan) -> None:
        """Write a plan down, before any work on it."""
        self.store.put(f"{_PLAN}{plan.run_id}.json", plan.to_bytes())

    def open_run(self, plan: RunPlan) -> Location:
        """Return the directory in which a run's data goes now.

        Locally every attempt renames it: a write task of a dead process that still lives somewhere has lost its path, and
        can add nothing.
        """
        if not self.store.can_rename or plan.run_id in self.store.names(plan.run_id):
            return self._directory(plan.run_id)  # the latter was renamed for publication, and then not published
        found = sorted(self.store.names(f"{_WORK}{plan.run_id}."), key=_attempt)
        name = f"{_WORK}{plan.run_id}.{_attempt(found[-1]) + 1 if found else 1}"
        if found:
            self.store.rename(found[-1], name)
        else:
            self.output.filesystem.create_dir(f"{self.output.path.rstrip('/')}/{name}")
        return self._directory(name)

    def scan(self, plan: RunPlan, directory: Location, before: Progress | None = None) -> Progress:
        """Find the rows that are done, and delete what a crash left: halves of pairs, torn files, rows twice.

        ``before`` is what the present attempt found when it began: files of earlier attempts that have appeared since
        then come from a process that should be dead, and are deleted too.
        """
        progress = Progress([np.zeros(file.rows, dtype=bool) for file in plan.files])
        entries = directory.filesystem.get_file_info(fs.FileSelector(directory.path, allow_not_found=True))
        sizes = {entry.base_name: entry.size for entry in entries if entry.type == fs.FileType.File}
        names = sorted(name for name in sizes if not name.startswith(("_", ".")))
        progress.attempt = 1 + max((_attempt_of(name) for name in names), default=0)
        if before is not None:
            known = {file.name for file in before.files}
            progress.attempt = before.attempt
            names = [name for name in names if name in known or _attempt_of(name) == before.attempt]
        with ThreadPoolExecutor(FOOTER_THREADS) as pool:
            rows_of = pool.map(lambda name: _read_pair(directory, name) if KEYS_PREFIX + name in sizes else None, names)
            kept = set()
            for name, keys in zip(names, rows_of, strict=True):
                if keys is not None and _mark(progress.done, keys):
                    inputs = tuple(np.unique(keys >> POSITION_BITS).tolist())
                    progress.files.append(DataFile(name, len(keys), sizes[name], inputs))
                    kept |= {name, KEYS_PREFIX + name}
        for name in sizes.keys() - kept:
            directory.filesystem.delete_file(f"{directory.path}/{name}")
        return progress

    def commit(
        self, plan: RunPlan, directory: Location, progress: Progress, record: dict[str, Any]
    ) -> tuple[Manifest, Location]:
        """Publish a finished run: give the directory its name, then put the manifest, then forget the plan.

        Raises RuntimeError, and publishes nothing, unless every row of the plan is there exactly once.
        """
        if progress.missing or progress.n_done != plan.n_rows:
            raise RuntimeError(f"{progress.n_done} rows are written for {plan.n_rows} rows of input")
        if self.store.can_rename and not directory.path.endswith(f"/{plan.run_id}"):
            self.store.rename(directory.path.rsplit("/", 1)[1], plan.run_id)
        manifest = Manifest(
            run_id=plan.run_id,
            sequence=1 + max((manifest.sequence for manifest in self.manifests()), default=0),
            fingerprint=plan.fingerprint,
            committed=now(),
            inputs=tuple((file.version, file.rows, file.complete) for file in plan.files),
            bad=plan.bad,
            files=tuple(progress.files),
            record={**record, "version": pegasus_batch.__version__, "created": plan.created},
        )
        # Of two processes that both believe the run to be theirs, the first one's manifest stands.
        self.store.put_new(f"{_MANIFEST}{plan.run_id}.json", manifest.to_bytes())
        self.store.delete(f"{_PLAN}{plan.run_id}.json")
        return manifest, self._directory(plan.run_id)

    def abandon(self, run_id: str) -> None:
        """Forget an unfinished run and its data. Raises ConfigError if there is no such run."""
        plan = f"{_PLAN}{run_id}.json"
        known = self.store.names(_PLAN)
        if plan not in known:
            names = ", ".join(name.removeprefix(_PLAN).removesuffix(".json") for name in known) or "none"
            raise ConfigError(f"--abandon {run_id!r}: no unfinished run of that name; unfinished: {names}")
        for name in [*self.store.names(f"{_WORK}{run_id}."), *self.store.names(run_id)]:
            self.store.delete(name)
        self.store.delete(plan)  # last: until then the run can be abandoned again

    def read_keys(self, manifest: Manifest, file: DataFile, columns: Sequence[str] = (ROW_KEY,)) -> pa.Table:
        """Return what is noted of the rows of a committed data file, in its order."""
        return _read_table(self._directory(manifest.run_id), KEYS_PREFIX + file.name, columns)

    def read_rows(self, manifest: Manifest, file: DataFile, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of a committed data file."""
        return _read_table(self._directory(manifest.run_id), file.name, columns)

    def count_rows(self, manifest: Manifest, file: DataFile, standing: frozenset[int]) -> int:
        """Return how many rows of a data file come from the inputs ``standing``."""
        if len(standing) == len(file.inputs):
            return file.rows
        return int(np.isin(_inputs_of(self.read_keys(manifest, file)), list(standing)).sum()) if standing else 0

    def peek(self, plan: RunPlan) -> int:
        """Return about how many rows of an unfinished run are done, without touching anything."""
        names = [*self.store.names(f"{_WORK}{plan.run_id}."), *self.store.names(plan.run_id)]
        directory = self._directory(names[-1]) if names else None
        entries = directory.filesystem.get_file_info(fs.FileSelector(directory.path)) if directory else []
        data = [entry.base_name for entry in entries if not entry.base_name.startswith(("_", "."))]
        pairs = [_read_pair(directory, name) for name in data] if directory else []
        return sum(len(keys) for keys in pairs if keys is not None)

    def duplicate_ids(self, directory: Location, files: Sequence[DataFile]) -> int:
        """Count the rows whose id an earlier row had, in a bounded amount of memory."""
        passes = 1 + sum(file.rows for file in files) // _IDS_AT_ONCE
        duplicates = 0
        for turn in range(passes):
            held = [np.zeros(0, np.uint64)]
            for file in files:
                ids = _read_table(directory, KEYS_PREFIX + file.name, [ID_HASH]).column(0).to_numpy()
                held.append(ids[ids % passes == turn] if passes > 1 else ids)
            together = np.concatenate(held)
            duplicates += len(together) - len(np.unique(together))
        return duplicates

    def _directory(self, name: str) -> Location:
        return self.output.child(f"{self.output.path.rstrip('/')}/{name}")

    def _read(self, name: str) -> bytes:
        data = self.store.read(name)
        if data is None:
            raise FileNotFoundError(f"{self.output.given}/{name} vanished while it was read")
        return data


def read_summaries(output: str, fingerprint: str | None = None) -> pa.Table:
    """Return the committed summaries of an output directory, a local path or a URI.

    They are those of one ``fingerprint`` (model and options), by default of the newest commit's. Where an input file was
    summarized again, because it had changed, its newer rows stand for the older ones. Rows of unfinished runs are never
    seen. Raises ValueError where there is nothing of that fingerprint.
    """
    ledger = Ledger(locate(output))
    manifests = ledger.manifests()
    if fingerprint is None and manifests:
        fingerprint = manifests[-1].fingerprint
    chosen = [manifest for manifest in manifests if manifest.fingerprint == fingerprint]
    if not chosen:
        known = ", ".join(dict.fromkeys(manifest.fingerprint for manifest in manifests)) or "none"
        raise ValueError(f"{output} holds no committed summaries of fingerprint {fingerprint}; it has: {known}")
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        tables = list(pool.map(lambda part: _current_rows(ledger, *part), current_files(chosen)))
    tables += [read_schema(manifest.record["schema"]).empty_table() for manifest in chosen]
    return pa.concat_tables(tables, promote_options="default").replace_schema_metadata()


def _current_rows(ledger: Ledger, manifest: Manifest, file: DataFile, standing: frozenset[int]) -> pa.Table:
    table = ledger.read_rows(manifest, file)
    if len(standing) == len(file.inputs):
        return table
    return table.filter(pa.array(np.isin(_inputs_of(ledger.read_keys(manifest, file)), list(standing))))


def _inputs_of(keys: pa.Table) -> np.ndarray:
    return keys.column(ROW_KEY).to_numpy() >> POSITION_BITS


def _mark(done: Sequence[np.ndarray], keys: np.ndarray) -> bool:
    """Mark rows as done; False, and nothing marked, if one is not of this plan or is done already."""
    inputs, positions = keys >> POSITION_BITS, keys & ((1 << POSITION_BITS) - 1)
    parts = [(index, positions[inputs == index]) for index in np.unique(inputs)]
    for index, rows in parts:
        if not 0 <= index < len(done) or len(np.unique(rows)) < len(rows):
            return False
        if rows.max(initial=-1) >= len(done[index]) or done[index][rows].any():
            return False
    for index, rows in parts:
        done[index][rows] = True
    return True


def _read_pair(directory: Location, name: str) -> np.ndarray | None:
    """Return the row keys of a data file, or None unless it and they are whole."""
    try:
        keys = _read_table(directory, KEYS_PREFIX + name, [ROW_KEY]).column(0).to_numpy()
        with directory.filesystem.open_input_file(f"{directory.path}/{name}") as file:
            rows = pq.read_metadata(file).num_rows
    except (OSError, pa.ArrowException):
        return None
    return keys if len(keys) == rows else None


def _read_table(directory: Location, name: str, columns: Sequence[str] | None) -> pa.Table:
    with directory.filesystem.open_input_file(f"{directory.path}/{name}") as file:
        return pq.read_table(file, columns=None if columns is None else list(columns), partitioning=None)


def _attempt(name: str) -> int:
    """Return which attempt a working directory belongs to."""
    return int(name.rsplit(".", 1)[1])


def _attempt_of(name: str) -> int:
    """Return which attempt wrote a data file; 0 for what no attempt names so."""
    found = re.match(r"(\d+)-", name)
    return int(found.group(1)) if found else 0
