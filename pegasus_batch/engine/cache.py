"""What decoding remembers: the keys and values of the documents in flight, and of the tokens written so far.

Documents come and go at any step. Neither memory moves a key for that: a document keeps its place until it leaves, and the
next one takes a place that is free.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from pegasus_batch import kernels

_FIRST_COLUMNS = 32  # of an ancestry; doubled when full
_FIRST_TOKENS = 16  # of every row that there may be: what slots are made for at first; doubled when full
_NOWHERE = -1
_GROWTH = 1.25  # of places, when more are wanted than ever before

Stretch = tuple[int, int]  # begin and length, in panels


class Panels:
    """Keys and values of every decoder layer for the source tokens of the documents in flight, a stretch of panels each."""

    def __init__(self, layers: int, heads: int, head_size: int, dtype: torch.dtype, device: torch.device) -> None:
        empty = torch.empty(0, heads, kernels.panel_elements(head_size, dtype), dtype=dtype, device=device)
        self.keys, self.values = [empty] * layers, [empty] * layers
        self._free: list[Stretch] = []  # ascending; none touches another

    def take(self, tokens: Sequence[int]) -> list[Stretch]:
        """Find stretches for documents of so many tokens."""
        wanted = [-(-length // kernels.PANEL) for length in tokens]
        return [self._take(length, sum(wanted[index:])) for index, length in enumerate(wanted)]

    def give_back(self, stretches: Iterable[Stretch]) -> None:
        """Free the stretches of documents that have left."""
        gaps = sorted([*self._free, *stretches])
        self._free = []
        for begin, length in gaps:
            if self._free and sum(self._free[-1]) == begin:
                begin, length = self._free[-1][0], self._free.pop()[1] + length
            self._free.append((begin, length))

    def grow(self, more: int) -> None:
        """Add ``more`` panels at the end, free; what is there moves to new memory."""
        panels = len(self.keys[0])
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                tensors[layer] = old.new_empty(panels + more, *old.shape[1:])
                tensors[layer][:panels] = old
        self.give_back([(panels, more)])

    def write(self, layer: int, keys: Tensor, values: Tensor, rows: Tensor, lengths: Tensor, begins: Tensor) -> None:
        """Store keys and values [tokens, H, D]: of each document ``lengths`` rows from ``rows`` on, at the panel ``begins``."""
        kernels.pack_source(keys, values, rows, lengths, begins, self.keys[layer], self.values[layer])

    def _take(self, length: int, wanted: int) -> Stretch:
        """Take ``length`` panels of the smallest gap that holds them; where there is none, make ``wanted`` more."""
        if all(gap[1] < length for gap in self._free):
            self.grow(max(wanted, int(len(self.keys[0]) * (_GROWTH - 1))))
        begin, size = min((gap for gap in self._free if gap[1] >= length), key=lambda gap: gap[1])
        index = self._free.index((begin, size))
        self._free[index : index + 1] = [(begin + length, size - length)] if size > length else []
        return begin, length


class SourceCache:
    """The sources of the documents in flight, in the order of their admission.

    ``begin`` (in panels), ``length`` (in tokens) [B] int32: where they lie.
    """

    def __init__(self, layers: int, heads: int, head_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self._panels, self._device = Panels(layers, heads, head_size, dtype, device), device
        self._stretches: list[Stretch] = []
        self._lengths: list[int] = []
        self._place()

    def admit(self, lengths: Sequence[int]) -> int:
        """Find room for documents of so many tokens; returns the number of the first of them."""
        first = len(self._lengths)
        self._stretches += self._panels.take(lengths)
        self._lengths += lengths
        self._place()
        return first

    def write(self, layer: int, keys: Tensor, values: Tensor, begins: Tensor, first: int) -> None:
        """Store keys and values [tokens, H, D] of documents from number ``first`` on; theirs begin at ``begins`` [n]."""
        own = slice(first, first + len(begins))
        self._panels.write(layer, keys, values, begins, self.length[own], self.begin[own])

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the panels of keys and of values of a layer."""
        return self._panels.keys[index], self._panels.values[index]

    def keep(self, documents: Sequence[int]) -> None:
        """Forget all documents but these, indices into the present order."""
        kept = [self._stretches[document] for document in documents]
        self._panels.give_back(set(self._stretches) - set(kept))
        self._stretches, self._lengths = kept, [self._lengths[document] for document in documents]
        self._place()

    def _place(self) -> None:
        self.begin = torch.tensor([begin for begin, _ in self._stretches], dtype=torch.int32, device=self._device)
        self.length = torch.tensor(self._lengths, dtype=torch.int32, device=self._device)


class DecoderCache:
    """Keys and values of the tokens that were fed, per layer, reached through an ancestry index.

    ``ancestry[r, t]`` names the slot that holds the token of row r at time t, so a beam reorder permutes small integer rows
    and moves no key. A slot holds one token, which the beams that come from it share, and is used again as soon as no row
    comes from it: of eight beams' tokens less than a quarter stay. ``lengths`` [R] int32: the tokens of every row;
    ``positions`` [R] int64: the time of the newest one.
    """

    def __init__(
        self, layers: int, n_beams: int, heads: int, head_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._n_beams = n_beams
        self._times: list[int] = []  # tokens of each document
        self._widths: list[int] = []  # rows of each document
        empty = torch.empty(0, 1, heads, head_size, dtype=dtype, device=device)
        self._keys, self._values = [empty] * layers, [empty] * layers
        self.ancestry = torch.zeros(0, 0, dtype=torch.int32, device=device)  # _NOWHERE from a row's length on
        self.lengths = torch.zeros(0, dtype=torch.int32, device=device)
        self.positions = torch.zeros(0, dtype=torch.int64, device=device)

    @property
    def longest(self) -> int:
        """The most tokens of any row."""
        return max(self._times, default=0)

    def admit(self, n_documents: int) -> None:
        """Add documents of one row each, without a token."""
        self._times += [0] * n_documents
        self._widths += [1] * n_documents
        self.ancestry = pad(self.ancestry, (0, 0, 0, n_documents), value=_NOWHERE)

    def advance(self, parents: Tensor, widths: Sequence[int]) -> None:
        """Open the next position: row r continues old row parents[r] [R]; a document has ``widths[document]`` rows now."""
        if self.longest == self.ancestry.shape[1]:
            self.ancestry = pad(self.ancestry, (0, max(self.longest, _FIRST_COLUMNS)), value=_NOWHERE)
        device = self.ancestry.device
        self.positions = torch.from_numpy(np.repeat(np.asarray(self._times), widths)).to(device)
        self.ancestry = self.ancestry[parents]
        newest = torch.from_numpy(self._unused(len(parents))).to(device)
        self.ancestry.scatter_(1, self.positions[:, None], newest[:, None].int())
        self.lengths = (self.positions + 1).int()
        self._times = [time + 1 for time in self._times]
        self._widths = list(widths)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the keys and the values of a layer [slots, 1, H, D], which attention adds the newest ones to."""
        return self._keys[index], self._values[index]

    def keep(self, documents: Sequence[int]) -> None:
        """Forget every document but these, indices into the present order; what stays, stays where it is."""
        begins = np.cumsum(self._widths) - self._widths
        rows = [np.arange(begins[index], begins[index] + self._widths[index]) for index in documents]
        kept = torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *rows])).to(self.ancestry.device)
        self.ancestry = self.ancestry[kept]
        self._times, self._widths = ([values[index] for index in documents] for values in (self._times, self._widths))

    def _unused(self, wanted: int) -> NDArray[np.int64]:
        """Return so many slots that no row comes from: the first ones, for memory never used costs nothing."""
        slots = len(self._keys[0])
        used = np.zeros(slots + 1, dtype=bool)  # the last one is _NOWHERE
        used[self.ancestry.cpu().numpy()] = True
        unused = np.flatnonzero(~used[:-1])[:wanted]
        if len(unused) == wanted:
            return unused
        self._grow(max(2 * slots, slots + wanted, _FIRST_TOKENS * self._n_beams * len(self._times)))
        return self._unused(wanted)

    def _grow(self, slots: int) -> None:
        for tensors in (self._keys, self._values):
            for layer, old in enumerate(tensors):
                tensors[layer] = old.new_empty(slots, *old.shape[1:])
                tensors[layer][: len(old)] = old
