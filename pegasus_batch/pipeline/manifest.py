"""A committed run as its manifest tells it: inputs, output files, counts, and everything that a person may ask."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pegasus_batch.pipeline.plan import BadFile, Version


@dataclass(frozen=True)
class DataFile:
    """One output file: its rows, its bytes, and which files of the plan they come from."""

    name: str
    rows: int
    size: int
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """A committed run."""

    run_id: str
    sequence: int  # later commits have higher ones
    fingerprint: str
    committed: str
    inputs: tuple[tuple[Version, int, bool], ...]  # in the plan's order: version, rows, whether that is the whole file
    bad: tuple[BadFile, ...]
    files: tuple[DataFile, ...]
    record: dict[str, Any]  # everything else, for people

    def to_bytes(self) -> bytes:
        """Return the manifest as JSON."""
        values = {
            "run": self.run_id,
            "sequence": self.sequence,
            "fingerprint": self.fingerprint,
            "committed": self.committed,
            **self.record,
            "inputs": [
                {**asdict(version), "rows": rows, "complete": complete} for version, rows, complete in self.inputs
            ],
            "bad_files": [{**asdict(bad.version), "reason": bad.reason} for bad in self.bad],
            "files": [asdict(file) for file in self.files],
        }
        return json.dumps(values, indent=1, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read what ``to_bytes`` wrote."""
        values = json.loads(data)

        def version(entry: dict[str, Any]) -> Version:
            return Version(entry["uri"], entry["size"], entry["mtime_ns"])

        return cls(
            run_id=values.pop("run"),
            sequence=values.pop("sequence"),
            fingerprint=values.pop("fingerprint"),
            committed=values.pop("committed"),
            inputs=tuple((version(entry), entry["rows"], entry["complete"]) for entry in values.pop("inputs")),
            bad=tuple(BadFile(version(entry), entry["reason"]) for entry in values.pop("bad_files")),
            files=tuple(
                DataFile(entry["name"], entry["rows"], entry["size"], tuple(entry["inputs"]))
                for entry in values.pop("files")
            ),
            record=values,
        )


def current_files(manifests: Iterable[Manifest]) -> Iterator[tuple[Manifest, DataFile, frozenset[int]]]:
    """Yield the data files of runs of one fingerprint, oldest first, with the inputs whose rows in them still stand."""
    ordered = list(manifests)
    # A file that changed while its run was being finished was left out of it: no rows, not complete.
    newest = {
        version.uri: manifest.run_id
        for manifest in ordered
        for version, rows, complete in manifest.inputs
        if rows or complete
    }
    for manifest in ordered:
        standing = {
            index for index, (version, _, _) in enumerate(manifest.inputs) if newest[version.uri] == manifest.run_id
        }
        for file in manifest.files:
            yield manifest, file, frozenset(file.inputs) & standing
