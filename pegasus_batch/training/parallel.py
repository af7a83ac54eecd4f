"""Several processes that train one model, each on its share of every batch.

Started by Ray Train or by ``torchrun --nproc-per-node N``; alone, every function here does nothing. On a shared CPU two
processes of one thread are faster than one process of two threads: they wait for each other once a step, not once an
operator.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(hours=2)  # the others wait while rank 0 validates


class Group:
    """The processes of this run: ``rank`` 0 to ``size`` - 1; rank 0 writes files and speaks."""

    def __init__(self, device: torch.device) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        if self.size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)

    @property
    def leads(self) -> bool:
        """Whether this process is rank 0."""
        return self.rank == 0

    def share(self, indices: np.ndarray) -> np.ndarray:
        """Return this process's part of a batch; parts differ by at most one document, and may be empty."""
        return indices[self.rank :: self.size]

    @torch.no_grad()
    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the processes; a missing one counts as zero."""
        if self.size == 1:
            return
        held = list(parameters)
        flat = torch.cat([p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in held])
        dist.all_reduce(flat)
        for parameter, total in zip(held, flat.split([p.numel() for p in held]), strict=True):
            parameter.grad = total.view_as(parameter)

    def sum_numbers(self, numbers: Sequence[float]) -> list[float]:
        """Return the sums of some numbers over the processes."""
        if self.size == 1:
            return list(numbers)
        totals = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(totals)
        return [float(total) for total in totals]

    def gather(self, state: Tensor) -> list[Tensor]:
        """Return a CPU tensor of one shape from every process, in rank order."""
        if self.size == 1:
            return [state]
        states = [torch.empty_like(state) for _ in range(self.size)]
        dist.all_gather(states, state)
        return states

    def broadcast(self, values: list[float]) -> list[float]:
        """Return rank 0's numbers in every process; also a point where all meet."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(tensor, src=0)
        return [float(value) for value in tensor]
