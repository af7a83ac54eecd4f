"""Measure a model, or the summaries that a job has written, against references."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from rich.console import Console

from pegasus_batch.evaluation.report import compare, render
from pegasus_batch.evaluation.rouge import RougeScore, first_sentence
from pegasus_batch.evaluation.tables import join_predictions, read_columns
from pegasus_batch.summarizer import Summarizer

BASELINE = "first sentence"


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Read generation options written as NAME=VALUE, the value as in YAML; ValueError for anything else."""
    for pair in pairs:
        if "=" not in pair:
            raise ValueError(f"--option {pair!r} is not NAME=VALUE")
    return {name: yaml.safe_load(value) for name, value in (pair.split("=", 1) for pair in pairs)}


def evaluate(
    data: Path,
    *,
    model: Path | None = None,
    predictions: Path | None = None,
    text_column: str = "document",
    summary_column: str = "summary",
    prediction_column: str = "summary",
    id_column: str = "id",
    options: Sequence[str] = (),
    device: str = "auto",
    dtype: str = "auto",
    limit: int | None = None,
    n_resamples: int = 0,
    save: Path | None = None,
) -> dict[str, dict[str, RougeScore]]:
    """Score the first-sentence baseline and one system on ``data``, and print the table.

    The system is ``model``, run here with generation ``options``, or the rows of ``predictions``, joined by ``id_column``.
    ``save`` keeps texts, references and summaries in a Parquet file. Returns the scores by system and ROUGE type. Raises
    ValueError or OSError, naming the cause, for unusable arguments.
    """
    if (model is None) == (predictions is None):
        raise ValueError("give either --model or --predictions")
    texts, references = (values[:limit] for values in read_columns(data, [text_column, summary_column]))
    if model is not None:
        summarizer = Summarizer(model, device=device, dtype=dtype, generation=parse_options(options))
        summaries: list[str | None] = [summary.text for summary in summarizer.summarize(texts)]
    else:
        assert predictions is not None
        (ids,) = read_columns(data, [id_column])
        found = read_columns(predictions, [id_column, prediction_column])
        summaries = join_predictions(ids[:limit], found[0], found[1])
    if save is not None:
        pq.write_table(pa.table({text_column: texts, "reference": references, "prediction": summaries}), save)
    systems: dict[str, Sequence[str | None]] = {
        BASELINE: [first_sentence(text) for text in texts],
        str(model or predictions): summaries,
    }
    scores = compare(systems, references, n_resamples=n_resamples)
    Console().print(render(scores, f"{len(references):,} rows of {data}"))
    return scores
