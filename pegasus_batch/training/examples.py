"""Examples that a text makes by itself, and the random numbers with which it does."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Example:
    """A damaged document and the text to write for it; ``cut`` says that the end of the source text is in neither."""

    document: str
    summary: str
    cut: bool = False


def document_random(seed: int, text: str) -> np.random.Generator:
    """Return a generator that depends on ``seed`` (>= 0) and the text alone.

    So an example is the same in every shard, batch and worker, and on every machine: Python's own hash() would change
    from process to process.
    """
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return np.random.default_rng([seed, int.from_bytes(digest, "little")])
