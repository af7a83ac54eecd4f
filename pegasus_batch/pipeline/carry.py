"""Take over the summaries of rows that did not change when their file was rewritten."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pegasus_batch.pipeline.inputs import locate
from pegasus_batch.pipeline.ledger import Ledger
from pegasus_batch.pipeline.schema import POSITION_BITS, ROW_KEY, TEXT_HASH, is_text


def hash_texts(*columns: pa.ChunkedArray) -> pa.Array:
    """Return 128 bits for the texts of every row, whatever bytes they hold; null where one of them is none."""
    if len(columns) == 1:
        return _hash_column(columns[0])
    rows = zip(*(_hash_column(column).to_pylist() for column in columns), strict=True)
    digests = [None if None in row else hashlib.blake2b(b"".join(row), digest_size=16).digest() for row in rows]
    return pa.array(digests, pa.binary(16))


def _hash_column(column: pa.ChunkedArray) -> pa.Array:
    if not is_text(column.type) or pa.types.is_null(column.type):
        return pa.nulls(len(column), pa.binary(16))
    plain = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
    values = plain.cast(pa.large_binary()).to_pylist()
    return pa.array([None if v is None else hashlib.blake2b(v, digest_size=16).digest() for v in values], pa.binary(16))


def hash_ids(column: pa.ChunkedArray) -> pa.Array:
    """Return 64 bits for every id, of whatever type it is."""
    values = (str(scalar) if not is_text(column.type) else scalar.cast(pa.binary()) for scalar in column)
    digests = (hashlib.blake2b(str(value).encode("utf-8", "surrogatepass"), digest_size=8).digest() for value in values)
    return pa.array(np.frombuffer(b"".join(digests), dtype=np.uint64))


@dataclass(frozen=True)
class Previous:
    """The summaries of one file in one committed run, found by the hash of their text."""

    heads: np.ndarray  # the first 64 bits of the hashes, sorted
    tails: np.ndarray  # the other 64 bits, in the same order
    results: pa.Table

    def find(self, hashes: pa.Array) -> pa.StructArray:
        """Return for every hash the result columns of that text, or null."""
        halves = np.frombuffer(b"".join(value or bytes(16) for value in hashes.to_pylist()), np.uint64).reshape(-1, 2)
        if not len(self.heads):
            return pa.nulls(len(hashes), pa.struct(list(self.results.schema)))
        rows = np.minimum(np.searchsorted(self.heads, halves[:, 0]), len(self.heads) - 1)
        found = (self.heads[rows] == halves[:, 0]) & (self.tails[rows] == halves[:, 1])
        found &= hashes.is_valid().to_numpy(zero_copy_only=False)
        columns = [column.combine_chunks() for column in self.results.take(pa.array(rows)).columns]
        return pa.StructArray.from_arrays(columns, fields=list(self.results.schema), mask=pa.array(~found))


@functools.lru_cache(maxsize=4)
def load_previous(output: str, run_id: str, uri: str, names: tuple[str, ...]) -> Previous:
    """Read the result columns ``names`` of the rows of file ``uri`` that run ``run_id`` summarized, those that are ok."""
    ledger = Ledger(locate(output))
    manifest = ledger.manifest(run_id)
    index = next(i for i, (version, _, _) in enumerate(manifest.inputs) if version.uri == uri)
    hashes, results = [], []
    for file in manifest.files:
        if index not in file.inputs:
            continue
        keys = ledger.read_keys(manifest, file, [ROW_KEY, TEXT_HASH])
        rows = ledger.read_rows(manifest, file, names)
        own = pa.array((keys.column(ROW_KEY).to_numpy() >> POSITION_BITS) == index)
        own = pc.and_(own, pc.equal(rows.column("status").combine_chunks(), "ok"))
        hashes += [value or bytes(16) for value in keys.column(TEXT_HASH).filter(own).to_pylist()]
        results.append(rows.filter(own))
    halves = np.frombuffer(b"".join(hashes), np.uint64).reshape(-1, 2)
    order = np.argsort(halves[:, 0], kind="stable")
    table = pa.concat_tables(results).take(pa.array(order)) if results else pa.table({})
    return Previous(halves[order, 0], halves[order, 1], table)
