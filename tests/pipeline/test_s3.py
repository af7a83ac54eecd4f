"""The whole job on an object store: killed with SIGKILL in the middle, then run again."""

from __future__ import annotations

import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pegasus_batch import read_summaries
from pegasus_batch.pipeline.inputs import locate
from pegasus_batch.pipeline.ledger import Ledger
from tests.pipeline.conftest import run_script
from tests.pipeline.s3 import S3, s3_service  # noqa: F401  (a fixture)

N_ROWS = 400

# Arguments: input, output, model, and how many data files must be there when the process kills itself (0: never).
DRIVER = """
import os, signal, sys, threading, time
from ray import cloudpickle
from pegasus_batch.pipeline import JobConfig, run_job
from pegasus_batch.pipeline.inputs import locate
from tests.pipeline import fakes
cloudpickle.register_pickle_by_value(fakes)
source, output, model, n_files = sys.argv[1:4] + [int(sys.argv[4])]

def watch():
    place = locate(output)
    selector = __import__("pyarrow.fs").fs.FileSelector(place.path, recursive=True, allow_not_found=True)
    while True:
        names = [entry.base_name for entry in place.filesystem.get_file_info(selector)]
        if sum(name[0].isdigit() and name.endswith(".parquet") for name in names) >= n_files:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)

if n_files:
    threading.Thread(target=watch, daemon=True).start()
config = JobConfig(input=(source,), output=output, model=model, device="cpu", num_gpus_per_worker=0, num_workers=1,
                   rows_per_file=20, batch_tokens=64)
outcome = run_job(config, factory=fakes.slow_echo_model)
print(outcome.n_rows, outcome.n_worked)
"""


@pytest.mark.slow
def test_killed_and_run_again(s3: S3, model_dir: Path) -> None:
    source, output = s3.uri(), s3.uri()
    place = locate(source)
    for part in range(2):
        ids = range(part * N_ROWS // 2, (part + 1) * N_ROWS // 2)
        table = pa.table({"id": ids, "document": ["fox " * (1 + i % 7) for i in ids]})
        with place.filesystem.open_output_stream(f"{place.path}/{part}.parquet") as file:
            pq.write_table(table, file, row_group_size=50)

    killed = run_script(DRIVER, source, output, model_dir, 3)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    ledger = Ledger(locate(output))
    (plan,) = ledger.unfinished()
    assert plan.n_rows == N_ROWS
    with pytest.raises(ValueError, match="it has: none"):
        read_summaries(output)

    finished = run_script(DRIVER, source, output, model_dir, 0)
    assert finished.returncode == 0, finished.stderr
    n_rows, n_worked = map(int, finished.stdout.split())
    assert n_rows == N_ROWS
    assert 0 < n_worked <= N_ROWS - 3 * 16  # a window is 16 rows
    table = read_summaries(output)
    assert sorted(table["id"].to_pylist()) == list(range(N_ROWS))
    assert len(table["summary"].unique()) == 7
    assert ledger.unfinished() == []
    assert ledger.store.names("_lock") == []
    assert sorted(pq.read_table(locate(output).path, filesystem=place.filesystem)["id"].to_pylist()) == list(
        range(N_ROWS)
    )
    for text in (killed.stderr, finished.stderr, (ledger.store.read(f"_manifest-{plan.run_id}.json") or b"").decode()):
        assert "testing" not in text  # the key and the secret
