"""Two systems on the same documents: what differs, how surely, and on how many of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from pegasus_batch.evaluation.estimates import Estimate, average
from pegasus_batch.evaluation.measures import MEASURES, Measure, Output

_SAME = 1e-9  # closer than this is rounding, not a difference


@dataclass(frozen=True)
class Difference:
    """One measure of a system against a baseline, over the ``n_rows`` documents where both have a value.

    ``difference`` is the mean of system minus baseline with its paired-bootstrap interval. Wins, ties and losses are the
    system's, in percent of those documents: on a measure without a better side a win is the higher value. All are NaN
    where no document has both values.
    """

    measure: Measure
    n_rows: int
    system: float
    baseline: float
    difference: Estimate
    wins: float
    ties: float
    losses: float

    @property
    def is_sure(self) -> bool:
        """Whether the interval leaves out zero."""
        low, high = self.difference.low, self.difference.high
        return low is not None and high is not None and (low > 0 or high < 0)


def row_differences(system: Output, baseline: Output, name: str) -> np.ndarray:
    """Return system minus baseline of one measure, float64 [B], NaN where either has no value."""
    gaps = system.values[name] - baseline.values[name]
    return np.where(np.abs(gaps) < _SAME, 0.0, gaps)


def compare(system: Output, baseline: Output, *, n_resamples: int = 1000, seed: int = 0) -> list[Difference]:
    """Compare two systems on every measure that both have, in the order of MEASURES.

    Raises ValueError where they do not have the same number of documents, or have none.
    """
    if len(system.summaries) != len(baseline.summaries):
        raise ValueError(
            f"{system.name} has {len(system.summaries)} summaries, {baseline.name} {len(baseline.summaries)}: only "
            "summaries of the same documents can be compared"
        )
    if not system.summaries:
        raise ValueError(f"{system.name} and {baseline.name} hold no summaries: there is nothing to compare")
    names = [name for name in MEASURES if name in system.values and name in baseline.values]
    gaps = {name: row_differences(system, baseline, name) for name in names}
    estimates = average(gaps, n_resamples=n_resamples, seed=seed)
    return [_difference(MEASURES[name], system, baseline, gaps[name], estimates[name]) for name in names]


def _difference(measure: Measure, system: Output, baseline: Output, gaps: np.ndarray, estimate: Estimate) -> Difference:
    both = ~np.isnan(gaps)
    n_rows = int(both.sum())
    signs = np.sign(gaps[both]) * (measure.better or 1)
    means = [float(o.values[measure.name][both].mean()) if n_rows else float("nan") for o in (system, baseline)]
    wins, ties, losses = (
        float(100.0 * (signs == sign).mean()) if n_rows else float("nan") for sign in (1.0, 0.0, -1.0)
    )
    return Difference(measure, n_rows, means[0], means[1], estimate, wins, ties, losses)


def render(differences: list[Difference], system: str, baseline: str) -> Table:
    """Lay a comparison out as a table, one measure a row; differences whose interval leaves out zero are bold."""
    table = Table(
        box=SIMPLE_HEAD,  # seven columns between rules would not fit 80 characters
        padding=0,
        show_edge=False,
        title=escape(f"{system}\nagainst {baseline}"),
        caption="wins, ties, losses: % of documents; ↑ higher is better, ↓ lower; without an arrow a win is the higher value",
    )
    table.add_column("measure", no_wrap=True)
    table.add_column("system", justify="right", no_wrap=True)
    table.add_column("baseline", justify="right", no_wrap=True)
    table.add_column("difference [95 %]", justify="right")  # on a narrow terminal the interval takes a line of its own
    for title in ("wins", "ties", "losses"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in differences:
        change = format_difference(row.difference)
        table.add_row(
            row.measure.label,
            format_number(row.system),
            format_number(row.baseline),
            f"[bold]{change}[/bold]" if row.is_sure else change,
            *(format_number(share, 1) for share in (row.wins, row.ties, row.losses)),
        )
    return table


def format_number(value: float, digits: int = 2) -> str:
    """Write a number for a table; a dash for NaN."""
    return "–" if np.isnan(value) else f"{value:.{digits}f}"


def format_difference(estimate: Estimate) -> str:
    """Write a difference with its sign and, where there is one, its interval."""
    if np.isnan(estimate.mean):
        return "–"
    text = f"{estimate.mean:+.2f}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{estimate.low:+.2f}, {estimate.high:+.2f}]"
