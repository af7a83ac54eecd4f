"""Measure a model, or summaries in a Parquet file, by ROUGE and beside their sources; compare two of them, as a page too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pegasus_batch.evaluation.run import evaluate


def main(
    data: Annotated[Path, typer.Option(help="Parquet file or directory with texts and reference summaries.")],
    model: Annotated[Path | None, typer.Option(help="Model directory to summarize the texts with.")] = None,
    predictions: Annotated[Path | None, typer.Option(help="Parquet output of a job, instead of a model.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="Parquet output of another job, to compare with.")] = None,
    text_column: Annotated[str, typer.Option(help="Column of the texts.")] = "document",
    summary_column: Annotated[str, typer.Option(help="Column of the reference summaries.")] = "summary",
    prediction_column: Annotated[str, typer.Option(help="Column of the summaries in --predictions.")] = "summary",
    baseline_column: Annotated[
        str | None, typer.Option(help="Column of the summaries in --baseline; by default that of --predictions.")
    ] = None,
    id_column: Annotated[str, typer.Option(help="Column that joins --predictions and --baseline to --data.")] = "id",
    option: Annotated[list[str] | None, typer.Option(help="Generation option, NAME=VALUE; repeatable.")] = None,
    device: Annotated[str, typer.Option(help="Device of the model.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Type of the model's weights.")] = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows.")] = None,
    resamples: Annotated[
        int, typer.Option(min=0, help="Bootstrap resamples for a 95 % interval; 0 for none, 1000 in a comparison.")
    ] = 0,
    diagnostics: Annotated[
        bool, typer.Option(help="Also measure copying, length, repetition and invented facts against the texts.")
    ] = True,
    html: Annotated[
        Path | None, typer.Option(help="Write a page comparing with --baseline, or with the first sentence.")
    ] = None,
    sort_by: Annotated[str, typer.Option(help="Measure that picks the examples of --html.")] = "rougeL",
    examples: Annotated[int, typer.Option(min=0, help="Examples in each section of --html.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random examples of --html.")] = 0,
    save: Annotated[Path | None, typer.Option(help="Write texts, references and summaries to this file.")] = None,
) -> None:
    try:
        evaluate(
            data,
            model=model,
            predictions=predictions,
            baseline=baseline,
            text_column=text_column,
            summary_column=summary_column,
            prediction_column=prediction_column,
            baseline_column=baseline_column,
            id_column=id_column,
            options=option or [],
            device=device,
            dtype=dtype,
            limit=limit,
            n_resamples=resamples,
            diagnostics=diagnostics,
            html=html,
            sort_by=sort_by,
            n_examples=examples,
            seed=seed,
            save=save,
        )
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error


if __name__ == "__main__":
    typer.run(main)
