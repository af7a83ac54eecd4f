"""TensorFlow's own checkpoints ("tensor bundles"), read without TensorFlow.

``NAME.index`` is a table of names and protocol buffers, ``NAME.data-0000I-of-0000N`` hold the bytes that those point at
(tensorflow/core/util/tensor_bundle and tensorflow/core/protobuf/tensor_bundle.proto). Every length is checked before it
is used, and every checksum before the bytes are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pegasus_batch.checkpoints.crc32c import crc32c, mask
from pegasus_batch.checkpoints.foreign import to_tensor
from pegasus_batch.checkpoints.sstable import Cursor, read_table

_DTYPES = {  # TensorFlow's numbers (types.proto)
    1: torch.float32,
    2: torch.float64,
    3: torch.int32,
    9: torch.int64,
    14: torch.bfloat16,
    19: torch.float16,
}
_MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class Entry:
    """Where a tensor's bytes lie, and what they are."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    partitioned: bool


class Bundle:
    """A checkpoint, by its path without ``.index``; ValueError for a damaged one, FileNotFoundError for a missing file."""

    def __init__(self, prefix: Path) -> None:
        self._prefix = prefix
        index = prefix.with_name(f"{prefix.name}.index")
        try:
            table = dict(read_table(index.read_bytes()))
            if b"" not in table:
                raise ValueError("it has no header")
            header = dict(_fields(table.pop(b"")))
            self._n_shards = _number(header.get(1, 1))
            if header.get(2, 0) != 0:
                raise ValueError("it was written on a big-endian machine, which is not supported")
            self.entries = {name.decode(): _parse_entry(value) for name, value in table.items()}
        except ValueError as error:
            raise ValueError(f"{index} is damaged or no checkpoint's index: {error}") from error

    def read(self, name: str) -> Tensor:
        """Read one tensor; its bytes are checked against their checksum."""
        entry = self.entries[name]
        path = self._prefix.with_name(f"{self._prefix.name}.data-{entry.shard:05d}-of-{self._n_shards:05d}")
        dtype = _DTYPES.get(entry.dtype)
        if dtype is None or entry.partitioned:
            kind = f"of TensorFlow's type {entry.dtype}" if dtype is None else "a partitioned variable"
            raise ValueError(f"{path}: {name} is {kind}, which is not supported")
        if math.prod(entry.shape) * dtype.itemsize != entry.size:
            raise ValueError(f"{path}: {name} has {entry.size} bytes for the shape {list(entry.shape)} of {dtype}")
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; the checkpoint is incomplete")
        if entry.offset + entry.size > path.stat().st_size:
            raise ValueError(f"{path} is cut short: {name} ends beyond its {path.stat().st_size} bytes")
        with path.open("rb") as file:
            file.seek(entry.offset)
            data = bytearray(entry.size)
            file.readinto(data)
        if mask(crc32c(data)) != entry.checksum:
            raise ValueError(f"{path} is damaged: the checksum of {name} is wrong")
        return to_tensor(data, dtype, entry.shape, name)


def _parse_entry(message: bytes) -> Entry:
    fields = dict(_fields(message))
    dimensions = [dict(_fields(_bytes(value))) for number, value in _fields(_bytes(fields.get(2, b""))) if number == 2]
    if len(dimensions) > _MOST_DIMENSIONS:
        raise ValueError(f"a tensor has {len(dimensions)} dimensions")
    lengths = tuple(_number(dimension.get(1, 0)) for dimension in dimensions)
    dtype, shard, offset, size, checksum = (_number(fields.get(number, 0)) for number in (1, 3, 4, 5, 6))
    return Entry(dtype, lengths, shard, offset, size, checksum, partitioned=7 in fields)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the numbers and values of a protocol buffer's fields."""
    cursor = Cursor(message)
    while cursor:
        tag = cursor.varint()
        match tag & 7:
            case 0:
                yield tag >> 3, cursor.varint()
            case 1:
                yield tag >> 3, cursor.fixed(8)
            case 2:
                yield tag >> 3, cursor.take(cursor.varint())
            case 5:
                yield tag >> 3, cursor.fixed(4)
            case kind:
                raise ValueError(f"a protocol buffer has a field of kind {kind}")


def _number(value: int | bytes) -> int:
    if not isinstance(value, int) or value >= 1 << 63:  # negative ones come as large ones
        raise ValueError(f"a protocol buffer has {value!r} where a number belongs")
    return value


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError(f"a protocol buffer has {value} where a message belongs")
    return value
