"""Writes TensorFlow's checkpoints, whole or broken on purpose; the checksum is the textbook's, a bit at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

TENSORFLOW_TYPES = {"float32": 1, "int64": 9, "float16": 19}
MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")


def slow_crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    crc = slow_crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(value: int) -> bytes:
    head = b""
    while value > 127:
        head += bytes([value & 127 | 128])
        value >>= 7
    return head + bytes([value])


def block(entries: list[tuple[bytes, bytes]]) -> bytes:
    body, last = b"", b""
    for key, value in entries:
        shared = next((i for i, (a, b) in enumerate(zip(key, last, strict=False)) if a != b), min(len(key), len(last)))
        body += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    return body + bytes(4) + (1).to_bytes(4, "little")


def table(
    entries: Mapping[bytes, bytes], compress: Callable[[bytes], bytes] | None = None, per_block: int = 3
) -> bytes:
    """Lay out a LevelDB table: data blocks, an empty meta block, the index, the footer."""
    out, handles = b"", []

    def add(content: bytes) -> bytes:
        nonlocal out
        stored = content if compress is None else compress(content)
        trailer = b"\x00" if compress is None else b"\x01"
        handle = varint(len(out)) + varint(len(stored))
        out += stored + trailer + masked(stored + trailer).to_bytes(4, "little")
        return handle

    items = sorted(entries.items())
    for start in range(0, len(items), per_block):
        part = items[start : start + per_block]
        handles.append((part[-1][0], add(block(part))))
    footer = add(block([])) + add(block(handles))
    return out + footer.ljust(40, b"\0") + MAGIC


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value % (1 << 64))
    return varint(number << 3 | 2) + varint(len(value)) + value


def entry(dtype: int, shape: tuple[int, ...], offset: int, size: int, checksum: int, shard: int = 0) -> bytes:
    dimensions = b"".join(field(2, field(1, length)) for length in shape)
    numbers = field(3, shard) + field(4, offset) + field(5, size)
    return field(1, dtype) + field(2, dimensions) + numbers + varint(6 << 3 | 5) + checksum.to_bytes(4, "little")


def write_bundle(
    prefix: Path,
    tensors: Mapping[str, np.ndarray],
    replaced: Mapping[str, bytes] | None = None,
    compress: Callable[[bytes], bytes] | None = None,
) -> Path:
    """Write a checkpoint; ``replaced`` entries stand instead of the right ones."""
    data, entries = b"", {b"": field(1, 1) + field(3, field(1, 1))}
    for name, array in tensors.items():
        raw = array.tobytes()
        kind = TENSORFLOW_TYPES[array.dtype.name]
        entries[name.encode()] = entry(kind, array.shape, len(data), len(raw), masked(raw))
        data += raw
    entries |= {name.encode(): value for name, value in (replaced or {}).items()}
    prefix.with_name(f"{prefix.name}.index").write_bytes(table(entries, compress))
    prefix.with_name(f"{prefix.name}.data-00000-of-00001").write_bytes(data)
    return prefix
