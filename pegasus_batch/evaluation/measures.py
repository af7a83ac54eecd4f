"""Every measure of a summary: its name, its title in tables, and which side of it is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pegasus_batch.evaluation.diagnostics import Diagnostics, diagnose
from pegasus_batch.evaluation.estimates import Estimate, average
from pegasus_batch.evaluation.rouge import score_summaries


@dataclass(frozen=True)
class Measure:
    """A column of per-summary values. ``better`` is 1 where high values are good, -1 where low ones are, else 0."""

    name: str
    title: str
    better: int = 0

    @property
    def label(self) -> str:
        """The title with an arrow to the better side."""
        return f"{self.title} {'↓ ↑'[self.better + 1]}".rstrip()


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("rouge1", "ROUGE-1", 1),
        Measure("rouge2", "ROUGE-2", 1),
        Measure("rougeL", "ROUGE-L", 1),
        Measure("rougeLsum", "ROUGE-Lsum", 1),
        Measure("novel1", "novel words %"),
        Measure("novel2", "novel 2-grams %"),
        Measure("novel3", "novel 3-grams %"),
        Measure("novel4", "novel 4-grams %"),
        Measure("coverage", "coverage %"),
        Measure("density", "density"),
        Measure("compression", "compression"),
        Measure("length", "length, words"),
        Measure("repeated1", "repeated words %", -1),
        Measure("repeated3", "repeated 3-grams %", -1),
        Measure("unsupported", "unsupported facts %", -1),
        Measure("any_unsupported", "any unsupported %", -1),
    )
}


@dataclass(frozen=True)
class Output:
    """One system's summaries with their measures.

    ``summaries`` [B], None where there is none; ``values`` float64 [B] by measure; ``unsupported`` the numbers and names
    of each summary that its source lacks, empty lists where diagnostics were not asked for.
    """

    name: str
    summaries: Sequence[str | None]
    values: Mapping[str, np.ndarray]
    unsupported: Sequence[Sequence[str]]

    def estimates(self, *, n_resamples: int = 0) -> dict[str, Estimate]:
        """Average every measure."""
        return average(self.values, n_resamples=n_resamples)


def measure_outputs(
    texts: Sequence[str],
    references: Sequence[str],
    systems: Mapping[str, Sequence[str | None]],
    *,
    diagnostics: bool = True,
) -> dict[str, Output]:
    """Score the summaries of every system against the references and, unless told not to, against the texts."""
    no_facts: list[list[str]] = [[] for _ in texts]
    found = diagnose(texts, systems) if diagnostics else {name: Diagnostics({}, no_facts) for name in systems}
    return {
        name: Output(
            name,
            summaries,
            {**score_summaries(summaries, references), **found[name].values},
            found[name].unsupported,
        )
        for name, summaries in systems.items()
    }
