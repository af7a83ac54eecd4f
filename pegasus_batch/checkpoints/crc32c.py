"""The checksum CRC-32C (Castagnoli) of large buffers, many places of a buffer at a time."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78  # reflected
_ALL = 0xFFFFFFFF
_MOST_LANES = 1 << 14
_LEAST_BYTES = 64  # of a lane
_BITS = np.arange(32, dtype=np.uint32)
States = NDArray[np.uint32]


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """Return the CRC-32C of bytes.

    The register is linear in what it has read, so lanes that start from zero run side by side, four bytes a step, and
    are then joined, each moved past the bytes of its right neighbour (Mark Adler's crc32_combine).
    """
    n_bytes = len(data)
    lanes = min(1 << (n_bytes // _LEAST_BYTES).bit_length(), _MOST_LANES)
    width = -(-n_bytes // (4 * lanes)) * 4
    padded = np.zeros(lanes * width, np.uint8)  # zeros in front leave a register of zero as it is
    padded[lanes * width - n_bytes :] = np.frombuffer(data, np.uint8)
    words = padded.view("<u4").reshape(lanes, -1)
    low, high = _tables()
    states = np.zeros(lanes, np.uint32)
    for column in range(words.shape[1]):
        states ^= words[:, column]
        states = low[states & 0xFFFF] ^ high[states >> 16]
    while len(states) > 1:
        states = _move(_zeros(width), states[0::2]) ^ states[1::2]
        width *= 2
    start = _move(_zeros(n_bytes), np.array([_ALL], np.uint32))
    return int(states[0] ^ start[0]) ^ _ALL


def mask(crc: int) -> int:
    """Return a checksum as LevelDB's formats store it, changed so that a checksum over checksums works."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & _ALL


@functools.cache
def _tables() -> tuple[States, States]:
    """Return what four zero bytes make of a register's lower and of its upper half."""
    four = _zeros(4)
    halves = np.arange(1 << 16, dtype=np.uint32)
    return _move(four, halves), _move(four, halves << np.uint32(16))


@functools.cache
def _zeros(n_bytes: int) -> States:
    """Return the matrix [32] over GF(2), a word for each column, that takes a register past ``n_bytes`` zero bytes."""
    if n_bytes == 0:
        return np.uint32(1) << _BITS
    if n_bytes == 1:
        columns: States = np.uint32(1) << _BITS
        for _ in range(8):
            columns = (columns >> np.uint32(1)) ^ np.where(columns & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
        return columns
    half = _zeros(n_bytes // 2)
    whole = _move(half, half)
    return _move(_zeros(1), whole) if n_bytes % 2 else whole


def _move(matrix: States, states: NDArray[Any]) -> States:
    chosen = np.where(states[:, None] >> _BITS & 1, matrix, np.uint32(0))
    return np.bitwise_xor.reduce(chosen, axis=1)
