"""The stream between the blocks of the network: what each block reads, and where it adds its result.

A pre-norm network (Pegasus) normalises what a block reads, a post-norm one (BART) what a block leaves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pegasus_batch import kernels
from pegasus_batch.engine.linear import Linear, Norm


class Residual:
    """The stream [N, D] in the weights' own type; the projection adds to it."""

    def __init__(self, states: Tensor, pre_norm: bool) -> None:
        self._states, self._pre_norm = states, pre_norm

    def enter(self, norm: Norm | None, project: Linear, *, relu: bool = False) -> Tensor:
        """Return what a block's first layer, or the head, makes of what it reads."""
        return project(self._states, norm=norm if self._pre_norm else None, relu=relu)

    def leave(self, norm: Norm, project: Linear, branch: Tensor) -> None:
        """Add a block's result, projected."""
        self._go_on(norm, project(branch, residual=self._states))

    def pass_block(
        self, norm: Norm, kind: str, layers: kernels.PackedLayers | None, heads: int = 0, *rest: Tensor | float
    ) -> bool:
        """Go through a whole block at once, where that can be; returns whether it could. See ``kernels.block``."""
        if layers is None or not kernels.takes_blocks(self._states, heads):
            return False
        before = norm.wide if self._pre_norm else ()
        self._go_on(norm, kernels.block(kind, self._states, before, *layers, heads, *rest))
        return True

    def _go_on(self, norm: Norm, total: Tensor) -> None:
        self._states = total if self._pre_norm else norm(total)

    def finish(self, norm: Norm | None) -> Tensor:
        """Return the final states [N, D], normalised where there is a norm for it."""
        return norm(self._states) if norm is not None else self._states


class WideResidual(Residual):
    """The stream in float32, whatever the type of the blocks: what sixteen layers add up is rounded once, when it is read.

    Adding a branch and normalising the sum for the next block are one kernel.
    """

    def __init__(self, states: Tensor, pre_norm: bool, dtype: torch.dtype) -> None:
        super().__init__(states.float(), pre_norm)
        self._narrow, self._dtype = states.to(dtype), dtype
        self._branch: Tensor | None = None  # not yet added

    def enter(self, norm: Norm | None, project: Linear, *, relu: bool = False) -> Tensor:
        """Return what a block's first layer makes of what the block reads."""
        return project(self._normalised(norm) if norm and self._pre_norm else self._narrow, relu=relu)

    def leave(self, norm: Norm, project: Linear, branch: Tensor) -> None:
        """Add a block's result, projected."""
        self._branch = project(branch)
        if not self._pre_norm:
            self._narrow = self._normalised(norm)

    def pass_block(
        self, norm: Norm, kind: str, layers: kernels.PackedLayers | None, heads: int = 0, *rest: Tensor | float
    ) -> bool:
        """Return False: blocks are for the CPU."""
        return False

    def finish(self, norm: Norm | None) -> Tensor:
        """Return the final states [N, D], in the blocks' type."""
        return self._normalised(norm) if norm is not None else self._narrow

    def _normalised(self, norm: Norm) -> Tensor:
        branch, self._branch = self._branch, None
        return kernels.add_norm(self._states, branch, norm.weight, norm.bias, norm.eps, not self._pre_norm, self._dtype)
