"""One small Ray cluster for the whole session, with GPUs that exist only in its books, and documents to run on it."""

from __future__ import annotations

import datetime
import decimal
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray import cloudpickle

from tests.conftest import sentence
from tests.pipeline import fakes

cloudpickle.register_pickle_by_value(fakes)  # workers do not have the tests on their path


ROOT = Path(__file__).parents[2]


def run_script(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process, and so in a Ray session, of its own; it may import the tests."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A Ray session of four CPUs and two pretended GPUs."""
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=2,
        include_dashboard=False,
        object_store_memory=150 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


HARD_TEXTS = (
    None,
    "",
    " \n\t ",
    "a\x00b\x07 \x1b[31m fox",
    "quick </s> brown</s> fox",
    "tools\r\nfor\u2028reading \ud7ff\ufeff",
)


@pytest.fixture(scope="session")
def hard_table() -> pa.Table:
    """Rows that a careless pipeline loses or changes: hard texts, and passengers of every kind with nulls."""
    rng = random.Random(1)
    texts = [*HARD_TEXTS, sentence(rng, 100_000), *(sentence(rng, rng.randint(1, 70)) for _ in range(41))]
    n = len(texts)
    noon = datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.UTC)

    def cycle(*values: object) -> list[object]:
        return [values[i % len(values)] for i in range(n)]

    return pa.table(
        {
            "document": pa.array(texts, pa.string()),
            "id": pa.array(range(n), pa.int32()),
            "category": pa.array(cycle("a", None, "c"), pa.string()).dictionary_encode(),
            "nested": pa.array(
                cycle({"a": 1, "b": [{"c": "x"}, None]}, None, {"a": None, "b": []}),
                pa.struct([("a", pa.int8()), ("b", pa.list_(pa.struct([("c", pa.string())])))]),
            ),
            "list": pa.array(cycle([1, None], None, []), pa.list_(pa.int16())),
            "map": pa.array(cycle([("k", 1)], None), pa.map_(pa.string(), pa.int64())),
            "when": pa.array(cycle(noon, None), pa.timestamp("ns", "Europe/Paris")),
            "naive": pa.array(cycle(noon.replace(tzinfo=None), None), pa.timestamp("us")),
            "day": pa.array(cycle(datetime.date(1582, 10, 15), None), pa.date32()),
            "price": pa.array(cycle(decimal.Decimal("12345678.90"), None), pa.decimal128(10, 2)),
            "large": pa.array(cycle("x", None), pa.large_string()),
            "bytes": pa.array(cycle(b"\x00\xff", None), pa.binary()),
            "flag": pa.array(cycle(True, None, False), pa.bool_()),
            "ratio": pa.array(cycle(0.1, float("inf"), None), pa.float32()),
            "count": pa.array(cycle(2**63, None), pa.uint64()),
            "nothing": pa.nulls(n, pa.string()),
        }
    )


@pytest.fixture
def hard_dir(hard_table: pa.Table, tmp_path: Path) -> Path:
    """The hard rows in two files."""
    directory = tmp_path / "docs in" / "part #1%20"
    directory.mkdir(parents=True)
    pq.write_table(hard_table.slice(0, 20), directory / "a.parquet")
    pq.write_table(hard_table.slice(20), directory / "b.parquet", row_group_size=10)
    (directory / "_SUCCESS").touch()
    return directory


def write_documents(path: Path, texts: list[str | None], start: int = 0, **columns: object) -> Path:
    """Write a file of documents numbered from ``start``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = list(range(start, start + len(texts)))
    pq.write_table(pa.table({"id": ids, "document": pa.array(texts, pa.string()), **columns}), path)
    return path
