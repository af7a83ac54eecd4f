"""Averages over rows, with the bounds that a bootstrap gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean over rows and, if asked for, the bounds of its 95 % bootstrap interval; NaN where no row has a value."""

    mean: float
    low: float | None = None
    high: float | None = None


def average(values: Mapping[str, np.ndarray], *, n_resamples: int = 0, seed: int = 0) -> dict[str, Estimate]:
    """Average columns of per-row values, float64 [B] each; NaN marks a row without a value and is left out.

    ``n_resamples`` > 0 adds 95 % percentile intervals (Efron 1979). Every column is averaged over the same drawn rows, so
    that intervals of one call belong together. Raises ValueError for columns without rows.
    """
    if not values:
        return {}
    table = np.stack([np.asarray(column, dtype=np.float64) for column in values.values()], axis=1)
    if not len(table):
        raise ValueError(f"no rows to average {', '.join(values)} over: the data is empty")
    present = ~np.isnan(table)
    filled = np.where(present, table, 0.0)
    means = _means(np.ones(len(table)), filled, present)
    if not n_resamples:
        return {name: Estimate(float(mean)) for name, mean in zip(values, means, strict=True)}
    random = np.random.default_rng(seed)
    resampled = np.empty((n_resamples, len(values)))
    for i in range(n_resamples):  # one at a time: [n_resamples, B] would not fit for large B
        drawn = np.bincount(random.integers(0, len(table), len(table)), minlength=len(table))
        resampled[i] = _means(drawn.astype(np.float64), filled, present)
    bounds = [_interval(column[~np.isnan(column)]) for column in resampled.T]
    return {
        name: Estimate(float(mean), low, high) for name, mean, (low, high) in zip(values, means, bounds, strict=True)
    }


def _means(weights: np.ndarray, filled: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Weigh rows [B] of a table [B, M]; NaN for a column of which no row with a value was drawn."""
    count = weights @ present
    return np.divide(weights @ filled, count, out=np.full(len(count), np.nan), where=count > 0)


def _interval(means: np.ndarray) -> tuple[float, float]:
    if not len(means):
        return float("nan"), float("nan")
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
