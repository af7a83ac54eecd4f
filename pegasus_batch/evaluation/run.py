"""Measure a model, or the summaries that a job has written, against references and another system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from rich.console import Console

from pegasus_batch.evaluation.comparison import compare, render
from pegasus_batch.evaluation.diagnostics import DIAGNOSTICS, diagnose
from pegasus_batch.evaluation.estimates import Estimate, average
from pegasus_batch.evaluation.inputs import Documents, read_documents, read_output
from pegasus_batch.evaluation.measures import MEASURES, Output, measure_outputs
from pegasus_batch.evaluation.page import write_page
from pegasus_batch.evaluation.report import (
    describe_missing,
    describe_unsupported,
    render_diagnostics,
    render_rouge,
)
from pegasus_batch.evaluation.rouge import first_sentence
from pegasus_batch.summarizer import Summarizer

BASELINE = "first sentence"
REFERENCE = "reference"
COMPARISON_RESAMPLES = 1000  # a difference without its interval invites wrong conclusions


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
    baseline: Path | None = None,
    text_column: str = "document",
    summary_column: str = "summary",
    prediction_column: str = "summary",
    baseline_column: str | None = None,
    id_column: str = "id",
    options: Sequence[str] = (),
    device: str = "auto",
    dtype: str = "auto",
    limit: int | None = None,
    n_resamples: int = 0,
    diagnostics: bool = True,
    html: Path | None = None,
    sort_by: str = "rougeL",
    n_examples: int = 20,
    seed: int = 0,
    save: Path | None = None,
) -> dict[str, dict[str, Estimate]]:
    """Score the first-sentence baseline and one or two systems on ``data``, and print the tables.

    The system is ``model``, run here with generation ``options``, or the rows of ``predictions``, joined by ``id_column``.
    ``baseline`` holds another system's rows (column ``baseline_column``, by default ``prediction_column``) to compare it
    with. ``html`` writes the comparison as a page, against the first sentence where there is no ``baseline``; its examples
    are sorted by the measure ``sort_by``. ``diagnostics`` adds what needs no reference. ``save`` keeps texts, references
    and summaries in a Parquet file.

    Returns the means by system and measure. Raises ValueError or OSError, naming the cause and the remedy, for unusable
    arguments.
    """
    if (model is None) == (predictions is None):
        raise ValueError("give either --model or --predictions")
    if sort_by not in MEASURES or (sort_by in DIAGNOSTICS and not diagnostics):
        raise ValueError(f"--sort-by {sort_by!r} is not a measure that is taken; choose of {', '.join(MEASURES)}")
    documents = read_documents(
        data,
        id_column=id_column,
        text_column=text_column,
        summary_column=summary_column,
        limit=limit,
        need_ids=predictions is not None or baseline is not None,
    )
    texts, references = documents.texts, documents.references
    rival = BASELINE
    systems: dict[str, Sequence[str | None]] = {BASELINE: [first_sentence(text) for text in texts]}
    # All that can fail does so before a model runs for an hour.
    if baseline is not None:
        column = baseline_column or prediction_column
        rival = f"{baseline} ({column})" if baseline == predictions else str(baseline)
        systems[rival] = read_output(baseline, documents, column, "--baseline-column")
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
    if model is not None:
        summarizer = Summarizer(model, device=device, dtype=dtype, generation=parse_options(options))
        summaries: list[str | None] = [summary.text for summary in summarizer.summarize(texts)]
    else:
        assert predictions is not None
        summaries = read_output(predictions, documents, prediction_column, "--prediction-column")
    name = str(model or predictions)
    systems[name] = summaries
    if save is not None:
        columns = {text_column: texts, "reference": references, "prediction": summaries}
        pq.write_table(pa.table(columns | ({} if baseline is None else {"baseline": systems[rival]})), save)
    outputs = measure_outputs(texts, references, systems, diagnostics=diagnostics)
    scores = {system: output.estimates(n_resamples=n_resamples) for system, output in outputs.items()}
    console = Console()
    console.print(render_rouge(scores, f"{len(references):,} rows of {data}"))
    if diagnostics:
        _print_diagnostics(console, documents, outputs, scores, n_resamples)
    for line in describe_missing(outputs.values()):
        console.print(line, markup=False)
    if baseline is not None or html is not None:
        differences = compare(outputs[name], outputs[rival], n_resamples=n_resamples or COMPARISON_RESAMPLES)
        console.print(render(differences, name, rival))
        if html is not None:
            write_page(
                html,
                documents,
                outputs[name],
                outputs[rival],
                differences,
                sort_by=sort_by,
                n_examples=n_examples,
                seed=seed,
            )
            console.print(f"wrote {html}", markup=False)
    return scores


def _print_diagnostics(
    console: Console,
    documents: Documents,
    outputs: Mapping[str, Output],
    scores: Mapping[str, Mapping[str, Estimate]],
    n_resamples: int,
) -> None:
    """Print the diagnostics of every system but the first sentence, which copies by design, and of the references."""
    shown = {name: by_name for name, by_name in scores.items() if name != BASELINE}
    human = diagnose(documents.texts, {REFERENCE: documents.references})[REFERENCE]
    console.print(render_diagnostics({**shown, REFERENCE: average(human.values, n_resamples=n_resamples)}))
    for name in shown:
        line = describe_unsupported(outputs[name])
        if line is not None:
            console.print(line, markup=False)
