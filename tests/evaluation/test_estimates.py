from __future__ import annotations

import math

import numpy as np
import pytest

from pegasus_batch.evaluation.estimates import average


def test_the_interval_surrounds_the_mean_and_narrows_with_rows() -> None:
    random = np.random.default_rng(3)
    widths = []
    for n_rows in (50, 5000):
        values = random.uniform(0, 100, n_rows)
        score = average({"rouge1": values}, n_resamples=200)["rouge1"]
        assert score.low is not None
        assert score.high is not None
        assert score.low < score.mean < score.high
        widths.append(score.high - score.low)
    assert widths[1] < widths[0] / 5


def test_the_interval_is_that_of_the_normal_distribution_for_many_rows() -> None:
    values = np.random.default_rng(5).normal(10, 2, 2000)
    score = average({"x": values}, n_resamples=2000)["x"]
    error = 1.96 * values.std() / math.sqrt(len(values))
    assert (score.low, score.high) == pytest.approx((values.mean() - error, values.mean() + error), abs=error / 10)


def test_rows_without_a_value_are_left_out() -> None:
    columns = {"gaps": np.array([np.nan, 1.0, 3.0]), "none": np.full(3, np.nan), "all": np.array([1.0, 2.0, 6.0])}
    estimates = average(columns, n_resamples=50)
    assert estimates["gaps"].mean == 2.0
    assert math.isnan(estimates["none"].mean) and math.isnan(estimates["none"].low or 0)
    assert estimates["all"].mean == 3.0
    assert estimates["gaps"].low == 1.0
    assert estimates["gaps"].high == 3.0


def test_columns_share_their_draws() -> None:
    """Otherwise the interval of a difference would not be the difference of paired averages."""
    values = np.random.default_rng(1).uniform(size=40)
    both = average({"one": values, "two": values + 1}, n_resamples=30)
    assert both["two"].low == pytest.approx((both["one"].low or 0) + 1)


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="no rows to average rouge1 over"):
        average({"rouge1": np.zeros(0)})
