"""What lets a device plan the edits of every step of a search by itself, made once from the same processors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pegasus_batch.kernels import plan_edits


@dataclass(frozen=True)
class DeviceTables:
    """What ``plan_edits`` needs in order to plan every step of a search where its histories are.

    begin [max_length+2], token, kind [P] int32, value [P] float32, forced [max_length+1] int32: the edits that the number of
    tokens so far decides, as that op takes them. ``stretch``: the most edits that a row can have. ``idle``: no step has any.
    """

    begin: Tensor
    token: Tensor
    kind: Tensor
    value: Tensor
    forced: Tensor
    repetition_penalty: float
    ngram_size: int
    stretch: int
    idle: bool

    def room(self, n_rows: int) -> Room:
        """Return memory for the edits of so many rows, at first without any."""
        device = self.begin.device
        begin, end, forced = (torch.full((n_rows,), fill, dtype=torch.int32, device=device) for fill in (0, 0, -1))
        token, kind = torch.zeros(2, n_rows * self.stretch, dtype=torch.int32, device=device)
        return Room(begin, end, token, kind, torch.zeros(len(token), device=device), forced)

    def plan(self, sequences: Tensor, lengths: Tensor, room: Room) -> None:
        """Write the edits of the step that follows the first ``lengths`` [S] tokens of sequences [S, K, max_length] int32."""
        phases = (self.begin, self.token, self.kind, self.value, self.forced)
        plan_edits(sequences, lengths, *phases, self.repetition_penalty, self.ngram_size, *room)


class Room(NamedTuple):
    """The edits of R rows in N places, of which row r uses begin[r] : end[r]; otherwise as ``Edits``."""

    begin: Tensor
    end: Tensor
    token: Tensor
    kind: Tensor
    value: Tensor
    forced: Tensor
