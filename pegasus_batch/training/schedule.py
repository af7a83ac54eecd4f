"""How the learning rate moves, and the running average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def rate_factor(step: int, progress: float, *, warmup_steps: int, decay: str) -> float:
    """Return the factor on the learning rate at ``step`` (from 0) when ``progress`` (0 to 1) of the training is behind.

    Rises linearly over ``warmup_steps``; meanwhile and after falls to 0 with progress: "linear", "cosine", or not at
    all ("constant"). "inverse_sqrt" falls with one over the square root of the step from the end of the rise on, whenever
    the training ends. Raises ValueError for another ``decay``.
    """
    rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if decay == "inverse_sqrt":
        return min(rise, math.sqrt(max(1, warmup_steps) / (step + 1)))
    left = 1.0 - min(max(progress, 0.0), 1.0)
    if decay == "linear":
        return rise * left
    if decay == "cosine":
        return rise * 0.5 * (1.0 - math.cos(math.pi * left))
    if decay == "constant":
        return rise
    raise ValueError(f"decay {decay!r} is not one of linear, cosine, inverse_sqrt, constant")


class WeightAverage:
    """Exponential moving average of a model's parameters: smoother than any single step, at the price of one copy.

    The effective decay starts at 0 and rises to ``decay`` as (1 + n) / (10 + n) over n updates, so that the random
    initial weights fade early.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"the average's decay must be at least 0 and below 1, got {decay}")
        self.decay = decay
        self.n_updates = 0
        self._parameters: list[Tensor] = list(parameters)
        self._average = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights."""
        decay = min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))
        torch._foreach_lerp_(self._average, self._parameters, 1.0 - decay)
        self.n_updates += 1

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the model's weights in place; a second call undoes it exactly."""
        for parameter, average in zip(self._parameters, self._average, strict=True):
            held = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(held)

    def state_dict(self) -> dict[str, object]:
        """Return what ``load_state_dict`` takes."""
        return {"n_updates": self.n_updates, "average": self._average}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a saved state; raises ValueError if it is of another model."""
        saved = state["average"]
        assert isinstance(saved, list)
        if [tuple(tensor.shape) for tensor in saved] != [tuple(tensor.shape) for tensor in self._average]:
            raise ValueError("the saved weight average belongs to a model of other shapes")
        for average, tensor in zip(self._average, saved, strict=True):
            assert isinstance(tensor, Tensor)
            average.copy_(tensor)
        assert isinstance(state["n_updates"], int)
        self.n_updates = state["n_updates"]
