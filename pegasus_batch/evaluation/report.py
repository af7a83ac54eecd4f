"""Systems side by side: tables for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
from rich.markup import escape
from rich.table import Table

from pegasus_batch.evaluation.diagnostics import DIAGNOSTICS
from pegasus_batch.evaluation.estimates import Estimate
from pegasus_batch.evaluation.measures import MEASURES, Output
from pegasus_batch.evaluation.rouge import ROUGE_TYPES


def render_rouge(scores: Mapping[str, Mapping[str, Estimate]], title: str) -> Table:
    """Lay ROUGE out as a table, one system a row; intervals stand below the means where there are any."""
    table = Table(title=escape(title))
    table.add_column("system", overflow="fold")
    for name in ROUGE_TYPES:
        table.add_column(MEASURES[name].title, justify="right", no_wrap=True)
    for system, by_name in scores.items():
        # Four intervals beside their means are wider than most terminals.
        table.add_row(escape(system), *(_cell(by_name[name], "\n") for name in ROUGE_TYPES))
    return table


def render_diagnostics(scores: Mapping[str, Mapping[str, Estimate]]) -> Table:
    """Lay the measures that need no reference out as a table, one measure a row and one system a column."""
    table = Table(title="Summaries beside their sources", caption="unsupported: numbers and names not in the source")
    table.add_column("measure", no_wrap=True)
    for system in scores:
        table.add_column(escape(system), justify="right", overflow="fold")
    for name in DIAGNOSTICS:
        table.add_row(MEASURES[name].label, *(_cell(by_name[name]) for by_name in scores.values()))
    return table


def describe_unsupported(output: Output, most: int = 12) -> str | None:
    """Name the numbers and names that summaries hold most often without their sources; None where there are none."""
    counts = Counter(word for words in output.unsupported for word in words)
    if not counts:
        return None
    shown = ", ".join(f"{word} ({count})" if count > 1 else word for word, count in counts.most_common(most))
    more = f" and {len(counts) - most:,} more" if len(counts) > most else ""
    return f"not in the source, {output.name}: {shown}{more}"


def describe_missing(outputs: Iterable[Output]) -> list[str]:
    """Say of every system that lacks summaries how many, since they score 0 and have no diagnostics."""
    return [
        f"{output.name}: {missing:,} of {len(output.summaries):,} rows have no summary; their ROUGE is 0"
        for output in outputs
        if (missing := sum(summary is None for summary in output.summaries))
    ]


def _cell(score: Estimate, separator: str = " ") -> str:
    if np.isnan(score.mean):
        return "–"
    if score.low is None or score.high is None:
        return f"{score.mean:.2f}"
    return f"{score.mean:.2f}{separator}[{score.low:.1f}, {score.high:.1f}]"
