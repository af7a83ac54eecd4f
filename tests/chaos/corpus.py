"""Documents to disturb a job with: real texts and hard ones, repeated ids, passengers, in several files."""

from __future__ import annotations

import datetime
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pegasus_batch.documents import DocumentTokenizer
from pegasus_batch.pipeline.config import DEMO_MODEL
from pegasus_batch.pipeline.summarize import summary_fields
from tests.chaos.model import digest

TEXTS = Path(__file__).parents[2] / "data" / "debian_synopses" / "test.parquet"
HARD_TEXTS = (None, "", " \n\t ", "</s> in </s> text", "a\x00b\x1b[31m", "ﬁne\u2028\ufeff", "x")
GROUP_ROWS = 60  # of a row group: the reader's units are whole groups, and a resumed run reads parts of them
NOON = datetime.datetime(2026, 2, 28, 12, tzinfo=datetime.UTC)


class Corpus:
    """Input files of one job, and the rows that must come out. Files are added one batch after another."""

    def __init__(self, directory: Path, rng: random.Random) -> None:
        self.directory = directory
        self.batches: list[set[int]] = []  # the rows (by number) of each batch of files
        self._rng = rng
        self._expected: list[pa.Table] = []
        self._n_rows = 0

    @property
    def expected(self) -> pa.Table:
        """What must come out, by row number."""
        return pa.concat_tables(self._expected)

    def add(self, n_rows: int, n_files: int) -> None:
        """Write ``n_files`` more files with ``n_rows`` rows in all."""
        first, batch = self._n_rows, len(self.batches)
        cuts = sorted(self._rng.sample(range(1, n_rows), n_files - 1))
        for number, (begin, end) in enumerate(zip([0, *cuts], [*cuts, n_rows], strict=True)):
            day = f"2026-0{1 + batch}-{1 + number % 2:02d}"
            path = self.directory / f"day={day}" / f"part {number}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            table = self._rows(end - begin)
            pq.write_table(table, path, row_group_size=GROUP_ROWS)
            self._expected.append(with_summaries(table.append_column("day", pa.array([day] * len(table), pa.string()))))
        self.batches.append(set(range(first, self._n_rows)))

    def _rows(self, n: int) -> pa.Table:
        rng, numbers = self._rng, range(self._n_rows, self._n_rows + n)
        self._n_rows += n
        texts = pq.read_table(TEXTS, columns=["document"]).column(0).to_pylist()
        return pa.table(
            {
                "row": pa.array(numbers, pa.int64()),  # what a row is recognised by
                "id": pa.array([f"id {rng.randrange(max(1, self._n_rows * 2))}" for _ in numbers], pa.string()),
                "document": pa.array(
                    [rng.choice(HARD_TEXTS) if rng.random() < 0.08 else rng.choice(texts) for _ in numbers], pa.string()
                ),
                "category": pa.array([rng.choice(("a", None, "c")) for _ in numbers], pa.string()).dictionary_encode(),
                "nested": pa.array(
                    [rng.choice(({"n": number, "list": ["x", None]}, None)) for number in numbers],
                    pa.struct([("n", pa.int32()), ("list", pa.list_(pa.string()))]),
                ),
                "when": pa.array([NOON + datetime.timedelta(number) for number in numbers], pa.timestamp("us", "UTC")),
            }
        )


def with_summaries(table: pa.Table) -> pa.Table:
    """Return documents with what the job must add to them."""
    summaries = [digest(document) for document in DocumentTokenizer(DEMO_MODEL).tokenize(table["document"].to_pylist())]
    columns = {
        "summary": [summary.text for summary in summaries],
        "score": [summary.score for summary in summaries],
        "n_source_tokens": [summary.n_source_tokens for summary in summaries],
        "n_summary_tokens": [summary.n_summary_tokens for summary in summaries],
        "truncated": [summary.truncated for summary in summaries],
        "status": [summary.status for summary in summaries],
        "error": [summary.error for summary in summaries],
    }
    for field in summary_fields().values():
        table = table.append_column(field, pa.array(columns[field.name], field.type))
    return table
