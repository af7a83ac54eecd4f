"""The decoder's memory: every beam's keys and values stay where they were written, and an index says whose past is whose."""

from __future__ import annotations

import torch
from torch import Tensor

_FIRST_CAPACITY = 32  # positions; doubled when full


class DecoderCache:
    """Keys and values of R rows over time, per layer, reached through an ancestry index.

    Row r writes its token of time t to slot r, column t, once. ``ancestry[r, t]`` names the slot that holds row r's past
    at time t, so a beam reorder permutes small integer rows and moves no key.
    """

    def __init__(self, layers: int, rows: int, heads: int, head_size: int, dtype: torch.dtype, device: torch.device):
        """Reserve room for ``rows`` rows in every layer."""
        self._shape = (rows, heads, head_size)
        self._capacity = _FIRST_CAPACITY
        self.keys = [self._room(dtype, device) for _ in range(layers)]
        self.values = [self._room(dtype, device) for _ in range(layers)]
        self.ancestry = torch.zeros(rows, self._capacity, dtype=torch.int32, device=device)
        self.length = 0

    def _room(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        rows, heads, size = self._shape
        return torch.empty(rows, self._capacity, heads, size, dtype=dtype, device=device)

    def advance(self, parents: Tensor) -> None:
        """Open the next position: row r continues old row parents[r] [R] and will write to slot r."""
        if self.length == self._capacity:
            self._grow()
        self.ancestry = self.ancestry[parents]
        rows = self.ancestry.shape[0]
        self.ancestry[:, self.length] = torch.arange(rows, dtype=torch.int32, device=self.ancestry.device)
        self.length += 1

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the newest keys and values [R, H, D] of a layer; returns its whole cache [slots, T, H, D]."""
        rows = keys.shape[0]
        self.keys[layer][:rows, self.length - 1] = keys
        self.values[layer][:rows, self.length - 1] = values
        return self.keys[layer], self.values[layer]

    def keep(self, rows: Tensor) -> None:
        """Forget every row but these [R'], in this order; their past stays in the slots where it is."""
        self.ancestry = self.ancestry[rows]

    def _grow(self) -> None:
        self._capacity *= 2
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                tensors[layer] = self._room(old.dtype, old.device)
                tensors[layer][:, : old.shape[1]] = old
        self.ancestry = torch.cat((self.ancestry, torch.zeros_like(self.ancestry)), dim=1)
