"""Systems side by side: a table of ROUGE scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from pegasus_batch.evaluation.rouge import ROUGE_TYPES, RougeScore, rouge


def compare(
    systems: Mapping[str, Sequence[str | None]], references: Sequence[str], *, n_resamples: int = 0
) -> dict[str, dict[str, RougeScore]]:
    """Score every system's summaries against the same references."""
    return {name: rouge(predictions, references, n_resamples=n_resamples) for name, predictions in systems.items()}


def render(scores: Mapping[str, Mapping[str, RougeScore]], title: str) -> Table:
    """Lay scores out as a table, one system a row; intervals stand behind the means where there are any."""
    table = Table(title=title)
    table.add_column("system", no_wrap=True)
    for name in ROUGE_TYPES:
        table.add_column(name.replace("rouge", "ROUGE-"), justify="right", no_wrap=True)
    for system, by_type in scores.items():
        table.add_row(system, *(_cell(by_type[name]) for name in ROUGE_TYPES))
    return table


def _cell(score: RougeScore) -> str:
    if score.low is None or score.high is None:
        return f"{score.mean:.2f}"
    return f"{score.mean:.2f} [{score.low:.1f}, {score.high:.1f}]"
