"""LevelDB's table format and Snappy's block format, read: what TensorFlow keeps its checkpoints' names in.

Sources: leveldb/doc/table_format.md and snappy/format_description.txt. Every length is checked before it is used.
"""

from __future__ import annotations

from collections.abc import Iterator

from pegasus_batch.checkpoints.crc32c import crc32c, mask

_FOOTER = 48
_MAGIC = 0xDB4775248B80FB57
_TRAILER = 5  # behind a block: the kind of its compression, its checksum
_LONGEST_KEY = 4096
_SNAPPY_RATIO = 32  # three bytes stand for 64 at most


class Cursor:
    """Reads little-endian numbers and runs of bytes; ValueError beyond the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, length: int) -> bytes:
        """Return the next ``length`` bytes."""
        if length > len(self._data) - self._at:
            raise ValueError(f"{length} bytes are promised where {len(self._data) - self._at} are left")
        self._at += length
        return self._data[self._at - length : self._at]

    def fixed(self, n_bytes: int) -> int:
        """Return the next number of so many bytes."""
        return int.from_bytes(self.take(n_bytes), "little")

    def varint(self) -> int:
        """Return the next number of up to 64 bits, seven to a byte."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.fixed(1)
            value |= (byte & 127) << shift
            if byte < 128:
                return value & (1 << 64) - 1
        raise ValueError("a number of more than ten bytes")


def read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield a table's keys and values, in order; ValueError where it is damaged."""
    if len(data) < _FOOTER or int.from_bytes(data[-8:], "little") != _MAGIC:
        raise ValueError("it does not end as a table does")
    footer = Cursor(data[-_FOOTER:])
    footer.varint(), footer.varint()  # the block of block filters
    end = 0
    for _, handle in _entries(_block(data, footer.varint(), footer.varint())):
        cursor = Cursor(handle)
        offset, size = cursor.varint(), cursor.varint()
        if offset < end:  # no block may be had twice: small files would grow without limit
            raise ValueError(f"its block at byte {offset} begins before the last one ends")
        end = offset + size
        yield from _entries(_block(data, offset, size))


def _block(data: bytes, offset: int, size: int) -> bytes:
    if offset + size + _TRAILER > len(data) - _FOOTER:
        raise ValueError(f"its block of {size} bytes at byte {offset} ends beyond the file's {len(data)}")
    content = data[offset : offset + size]
    kind = data[offset + size]
    stored = int.from_bytes(data[offset + size + 1 : offset + size + _TRAILER], "little")
    if mask(crc32c(data[offset : offset + size + 1])) != stored:
        raise ValueError(f"the checksum of its block at byte {offset} is wrong")
    if kind > 1:
        raise ValueError(f"its block at byte {offset} has a compression of unknown kind {kind}")
    return decompress_snappy(content) if kind else content


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield a block's entries: each key is stored as what differs from the one before it."""
    n_restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (n_restarts + 1)
    if end < 0:
        raise ValueError(f"a block of {len(block)} bytes promises {n_restarts} restarts")
    cursor = Cursor(block[:end])
    key = b""
    while cursor:
        shared, own, length = cursor.varint(), cursor.varint(), cursor.varint()
        if shared > len(key) or shared + own > _LONGEST_KEY:
            raise ValueError(f"a name shares {shared} bytes with one of {len(key)} and adds {own}")
        key = key[:shared] + cursor.take(own)
        yield key, cursor.take(length)


def decompress_snappy(data: bytes) -> bytes:
    """Return the bytes that a block of Snappy's stands for; ValueError where it is damaged."""
    cursor = Cursor(data)
    length = cursor.varint()
    if length > _SNAPPY_RATIO * len(data):
        raise ValueError(f"{len(data)} compressed bytes promise {length}")
    out = bytearray()
    while cursor:
        tag = cursor.fixed(1)
        kind, value = tag & 3, tag >> 2
        if kind == 0:  # bytes as they are; a long run's length follows
            run = (value if value < 60 else cursor.fixed(value - 59)) + 1
            out += cursor.take(run)
        else:
            if kind == 1:
                run, distance = (value & 7) + 4, (value >> 3) << 8 | cursor.fixed(1)
            else:
                run, distance = value + 1, cursor.fixed(2 if kind == 2 else 4)
            if not 0 < distance <= len(out):
                raise ValueError(f"a copy from {distance} bytes back, after {len(out)}")
            start = len(out) - distance
            piece = out[start : start + run]
            out += (piece * (run // len(piece) + 1))[:run]  # a copy may run into what it makes
        if len(out) > length:
            break
    if len(out) != length:
        raise ValueError(f"{length} bytes are promised and {len(out)} come out")
    return bytes(out)
