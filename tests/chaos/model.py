"""What the disturbed job runs in place of a model, and the sink that ends its process. Travels to the workers by value."""

from __future__ import annotations

import functools
import hashlib
import os
import signal
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pegasus_batch.documents import Document, Summary
from pegasus_batch.pipeline.ledger import KEYS_PREFIX
from pegasus_batch.pipeline.sink import SummaryDatasink
from pegasus_batch.pipeline.task import ModelSettings


class DigestModel:
    """Summarizes a document as a digest of its tokens, and takes its time."""

    def __init__(self, seconds_per_row: float) -> None:
        self._seconds_per_row = seconds_per_row

    def summarize_documents(self, documents: Sequence[Document]) -> list[Summary]:
        time.sleep(self._seconds_per_row * len(documents))
        return [digest(document) for document in documents]


def digest(document: Document) -> Summary:
    """Return what DigestModel makes of a document, here or anywhere."""
    if document.error is not None:
        return Summary.missing(document, "invalid", document.error)
    code = hashlib.blake2b(np.asarray(document.token_ids, np.int64).tobytes(), digest_size=8).digest()
    text, score = code.hex(), -int.from_bytes(code[:4], "big") / 2**32
    return Summary(text, score, document.n_source_tokens, len(code), document.truncated, texts=(text,))


def model_factory(seconds_per_row: float) -> Callable[[ModelSettings, str], DigestModel]:
    """Return what run_job takes as its factory."""
    return functools.partial(_load, seconds_per_row)


def _load(seconds_per_row: float, settings: ModelSettings, device: str) -> DigestModel:
    return DigestModel(seconds_per_row)


@dataclass(frozen=True)
class WriteFault:
    """Where a write task ends its process, once: the first task from number ``task`` on that gets there.

    ``place`` is one of PLACES; with ``driver``, a process id, that process is killed first.
    """

    place: str
    task: int
    marker: str  # the file whose creation makes it the first
    driver: int | None = None


# In the order of what a writer does for a part: half the keys, all of them, half the rows, all of them.
PLACES = ("in the keys", "between keys and rows", "in the rows", "after the rows")


class FragileSink(SummaryDatasink):
    """The job's sink with faults of its writers built in."""

    def __init__(self, *args: Any, faults: Sequence[WriteFault], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._faults = tuple(faults)
        self._task = 0

    def write(self, blocks: Any, ctx: Any) -> None:
        self._task = ctx.task_idx
        super().write(blocks, ctx)

    def _put(self, name: str, table: pa.Table) -> None:
        place = "keys" if name.startswith(KEYS_PREFIX) else "rows"
        if self._is_due(f"in the {place}"):
            (Path(self._directory.path) / f".{name}.{uuid.uuid4().hex}").write_bytes(b"PAR1" + bytes(100))
            self._die(f"in the {place}")
        super()._put(name, table)
        self._die("between keys and rows" if place == "keys" else "after the rows")

    def _is_due(self, place: str) -> bool:
        return any(fault.place == place and fault.task <= self._task for fault in self._faults)

    def _die(self, place: str) -> None:
        for fault in self._faults:
            if fault.place != place or fault.task > self._task:
                continue
            try:
                os.close(os.open(fault.marker, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            if fault.driver is not None:
                os.kill(fault.driver, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
