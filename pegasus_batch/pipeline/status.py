"""What an output directory holds, for the person who looks after it."""

from __future__ import annotations

import json
from collections.abc import Iterator

from rich.console import Group
from rich.table import Table
from rich.text import Text

from pegasus_batch.pipeline.config import ConfigError
from pegasus_batch.pipeline.inputs import locate
from pegasus_batch.pipeline.ledger import Ledger
from pegasus_batch.pipeline.lock import LOCK_PREFIX
from pegasus_batch.pipeline.manifest import Manifest, current_files
from pegasus_batch.pipeline.report import printable

N_ERRORS = 10  # most frequent ones shown of each run
N_BAD_FILES = 50


def describe_output(output: str) -> Group:
    """Return the runs of an output directory, committed and unfinished, with their rows, errors and skipped files.

    Raises ConfigError where there is no run.
    """
    ledger = Ledger(locate(output))
    manifests, unfinished = ledger.manifests(), ledger.unfinished()
    if not manifests and not unfinished:
        raise ConfigError(f"{output}: no run of this job has written there")
    return Group(_runs(ledger, manifests), *_errors(manifests), *_bad_files(manifests))


def _runs(ledger: Ledger, manifests: list[Manifest]) -> Table:
    table = Table(title=Text(ledger.output.given), show_lines=True)
    table.add_column("run", no_wrap=True)  # to be copied
    table.add_column("state")
    table.add_column("rows", justify="right", no_wrap=True)
    current = _current_rows(ledger, manifests)
    for manifest in manifests:
        record = manifest.record
        state = [
            f"committed {manifest.committed}",
            f"fingerprint {manifest.fingerprint}",
            f"{len(manifest.inputs):,} input files",
        ]
        if manifest.bad:
            state.append(f"{len(manifest.bad):,} skipped files")
        if record["carried"]:
            state.append(f"{record['carried']:,} rows carried over")
        if record["duplicate_ids"]:
            state.append(f"{record['duplicate_ids']:,} rows with repeated ids")
        counts = {"": record["rows"], **record["rows_by_status"], "current": current[manifest.run_id]}
        rows = [f"{count:,} {name}".rstrip() for name, count in counts.items()]
        table.add_row(manifest.run_id, "\n".join(state), "\n".join(rows))
    holders = [json.loads(ledger.store.read(name) or b"{}") for name in ledger.store.names(LOCK_PREFIX)]
    at_work = [f"process {holder.get('pid')} on {holder.get('host')} holds the lock" for holder in holders]
    for plan in ledger.unfinished():
        state = [f"unfinished, planned {plan.created}", f"fingerprint {plan.fingerprint}", *at_work]
        table.add_row(plan.run_id, "\n".join(state), f"{ledger.peek(plan):,}\nof {plan.n_rows:,}")
    return table


def _current_rows(ledger: Ledger, manifests: list[Manifest]) -> dict[str, int]:
    """Return for each run how many of its rows ``read_summaries`` gives for the run's fingerprint."""
    rows = dict.fromkeys((manifest.run_id for manifest in manifests), 0)
    for fingerprint in {manifest.fingerprint for manifest in manifests}:
        chosen = [manifest for manifest in manifests if manifest.fingerprint == fingerprint]
        for manifest, file, standing in current_files(chosen):
            rows[manifest.run_id] += ledger.count_rows(manifest, file, standing)
    return rows


def _errors(manifests: list[Manifest]) -> Iterator[Table]:
    table = Table(title="errors of rows")
    for name in ("run", "rows", "error"):
        table.add_column(name, justify="right" if name == "rows" else "left")
    for manifest in manifests:
        for reason, count in manifest.record["errors"][:N_ERRORS]:
            table.add_row(manifest.run_id, f"{count:,}", Text(printable(reason)))
    if table.row_count:
        yield table


def _bad_files(manifests: list[Manifest]) -> Iterator[Table]:
    table = Table(title="skipped files")
    for name in ("run", "file", "reason"):
        table.add_column(name)
    entries = [(manifest.run_id, entry) for manifest in manifests for entry in manifest.bad]
    for run, entry in entries[:N_BAD_FILES]:
        table.add_row(run, Text(printable(entry.version.uri)), Text(printable(entry.reason)))
    if len(entries) > N_BAD_FILES:
        table.add_row("", f"and {len(entries) - N_BAD_FILES:,} more", "")
    if entries:
        yield table
