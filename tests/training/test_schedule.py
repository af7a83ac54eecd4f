from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from pegasus_batch.training.schedule import WeightAverage, rate_factor


def test_rate_rises_then_falls_to_zero() -> None:
    rates = [rate_factor(step, step / 100, warmup_steps=10, decay="linear") for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0 * 0.91)
    assert all(later < earlier for earlier, later in pairwise(rates[9:]))
    assert rates[-1] == 0.0


@pytest.mark.parametrize(("decay", "halfway"), [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)])
def test_decays_without_warmup(decay: str, halfway: float) -> None:
    assert rate_factor(0, 0.0, warmup_steps=0, decay=decay) == pytest.approx(1.0)
    assert rate_factor(5, 0.5, warmup_steps=0, decay=decay) == pytest.approx(halfway)


def test_the_inverse_root_meets_the_rise_at_its_end() -> None:
    rates = [rate_factor(step, 0.5, warmup_steps=100, decay="inverse_sqrt") for step in (0, 49, 99, 399, 9999)]
    assert rates == pytest.approx([0.01, 0.5, 1.0, 0.5, 0.1])
    assert rate_factor(3, 0.0, warmup_steps=0, decay="inverse_sqrt") == pytest.approx(0.5)


def test_past_the_end_the_rate_stays_zero() -> None:
    assert rate_factor(200, 1.7, warmup_steps=0, decay="cosine") == pytest.approx(0.0)


def test_an_unknown_decay_is_named() -> None:
    with pytest.raises(ValueError, match="'square' is not one of linear, cosine, inverse_sqrt, constant"):
        rate_factor(0, 0.0, warmup_steps=0, decay="square")


def test_average_follows_its_definition() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    average = WeightAverage([weight], 0.5)
    expected = 1.0
    for n, value in enumerate([2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0]):
        weight.data.fill_(value)
        average.update()
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    average.swap()
    assert weight.item() == pytest.approx(expected)
    average.swap()
    assert weight.item() == 1024.0


def test_average_continues_from_its_state() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    average = WeightAverage([weight], 0.9)
    weight.data.fill_(5.0)
    average.update()
    other_weight = nn.Parameter(torch.zeros(2))
    other = WeightAverage([other_weight], 0.9)
    other.load_state_dict(average.state_dict())
    for one, its_weight in ((average, weight), (other, other_weight)):
        its_weight.data.fill_(7.0)
        one.update()
        one.swap()
    assert torch.equal(weight, other_weight)


def test_the_average_of_another_model_is_refused() -> None:
    average = WeightAverage([nn.Parameter(torch.zeros(2))], 0.9)
    with pytest.raises(ValueError, match="other shapes"):
        average.load_state_dict(WeightAverage([nn.Parameter(torch.zeros(3))], 0.9).state_dict())


def test_a_decay_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"below 1, got 1\.0"):
        WeightAverage([], 1.0)
