"""plan_edits against edits worked out by hand and against its specification, on whatever runs it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from pegasus_batch import kernels
from pegasus_batch.kernels import native, reference_state
from pegasus_batch.kernels.reference import ADD, DECAY, PENALIZE, SET

Edit = tuple[int, int, float]  # token, kind, value
BANNED = -math.inf
CPU = torch.device("cpu")


def ints(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@dataclass
class Plan:
    """The arguments of one call; ``phases`` and ``forced`` by length."""

    sequences: Tensor  # [S, K, L]
    lengths: Tensor
    phases: dict[int, list[Edit]] = field(default_factory=dict)
    forced: dict[int, int] = field(default_factory=dict)
    penalty: float = 1.0
    ngram_size: int = 0
    stretch: int | None = None  # two histories and the longest phase where left out

    def arguments(self) -> list[object]:
        documents, beams, width = self.sequences.shape
        every = [self.phases.get(length, []) for length in range(width + 1)]
        flat = [edit for phase in every for edit in phase]
        counts = ints([0, *(len(phase) for phase in every)])
        stretch = 2 * width + int(counts.max()) if self.stretch is None else self.stretch
        rows = documents * beams
        return [
            self.sequences,
            self.lengths,
            counts.cumsum(0).int(),
            ints([token for token, _, _ in flat]),
            ints([kind for _, kind, _ in flat]),
            torch.tensor([value for _, _, value in flat], dtype=torch.float32),
            ints([self.forced.get(length, -1) for length in range(width + 1)]),
            self.penalty,
            self.ngram_size,
            *torch.full((2, rows), -7, dtype=torch.int32),
            *torch.full((2, rows * stretch), -7, dtype=torch.int32),
            torch.full((rows * stretch,), math.nan),
            torch.full((rows,), -7, dtype=torch.int32),
        ]

    def run(self, device: torch.device = CPU, op=kernels.plan_edits) -> list[Tensor]:
        """Return begin, end, token, kind, value, forced."""
        arguments = [x.to(device) if isinstance(x, Tensor) else x for x in self.arguments()]
        op(*arguments)
        return [x.cpu() for x in arguments[9:]]

    def edits(self, device: torch.device) -> tuple[list[list[Edit]], list[int]]:
        """Return the edits of every row, and the tokens that are forced."""
        begin, end, token, kind, value, forced = self.run(device)
        stretch = len(token) // max(len(begin), 1)
        assert begin.tolist() == [row * stretch for row in range(len(begin))]
        untouched = torch.ones(len(token), dtype=torch.bool)
        rows = []
        for first, last in zip(begin.tolist(), end.tolist(), strict=True):
            untouched[first:last] = False
            columns = (x[first:last].tolist() for x in (token, kind, value))
            rows.append(list(zip(*columns, strict=True)))
        assert (token[untouched] == -7).all() and (kind[untouched] == -7).all() and value[untouched].isnan().all()
        return rows, forced.tolist()


HISTORIES = ints([[[5, 6, 5, 6, 9, 9], [5, 5, 5, 5, 9, 9]], [[3, 0, 0, 0, 0, 0], [4, 0, 0, 0, 0, 0]]])


def test_distinct_tokens_are_penalized_once(device):
    """In the order of their first occurrence; what stands beyond a row's length is no history."""
    rows, forced = Plan(HISTORIES, ints([4, 1]), penalty=1.5).edits(device)
    assert rows == [
        [(5, PENALIZE, 1.5), (6, PENALIZE, 1.5)],
        [(5, PENALIZE, 1.5)],
        [(3, PENALIZE, 1.5)],
        [(4, PENALIZE, 1.5)],
    ]
    assert forced == [-1] * 4


@pytest.mark.parametrize(
    ("size", "banned"),
    [
        (1, [[5, 6, 5, 6], [5, 5, 5, 5], [3], [4]]),
        (2, [[5], [5, 5, 5], [], []]),  # 5 6 5 6: after 6 came 5; after 5 5 5 5 came 5, three times
        (3, [[5], [5, 5], [], []]),
        (4, [[], [5], [], []]),
        (5, [[], [], [], []]),
        (99, [[], [], [], []]),
    ],
)
def test_tokens_that_would_repeat_are_banned(size, banned, device):
    rows, _ = Plan(HISTORIES, ints([4, 1]), ngram_size=size).edits(device)
    assert rows == [[(token, SET, BANNED) for token in tokens] for tokens in banned]


def test_the_order_is_penalty_then_ban_then_phase(device):
    phases = {1: [(7, ADD, 0.5)], 4: [(5, SET, -2.0), (8, DECAY, 0.25)]}
    rows, forced = Plan(HISTORIES, ints([4, 1]), phases, {0: 1}, penalty=2.0, ngram_size=2).edits(device)
    assert rows[0] == [(5, PENALIZE, 2.0), (6, PENALIZE, 2.0), (5, SET, BANNED), (5, SET, -2.0), (8, DECAY, 0.25)]
    assert rows[3] == [(4, PENALIZE, 2.0), (7, ADD, 0.5)]
    assert forced == [-1] * 4


def test_a_forced_row_has_the_edits_of_its_phase_alone(device):
    phases = {1: [(7, SET, 0.0)], 4: [(8, SET, 0.0)]}
    rows, forced = Plan(HISTORIES, ints([4, 1]), phases, {4: 2}, penalty=2.0, ngram_size=1).edits(device)
    assert rows[:2] == [[(8, SET, 0.0)]] * 2
    assert rows[2] == [(3, PENALIZE, 2.0), (3, SET, BANNED), (7, SET, 0.0)]
    assert forced == [2, 2, -1, -1]


def test_nothing_to_do_needs_no_room(device):
    rows, forced = Plan(HISTORIES, ints([4, 0]), forced={0: 3}, stretch=0).edits(device)
    assert rows == [[]] * 4
    assert forced == [-1, -1, 3, 3]


def test_an_empty_and_a_full_history(device):
    plan = Plan(ints([[[4, 4, 2]], [[4, 4, 2]]]), ints([0, 3]), {0: [(1, SET, 0.0)], 3: []}, penalty=3.0, ngram_size=1)
    rows, _ = plan.edits(device)
    assert rows[0] == [(1, SET, 0.0)]
    assert rows[1] == [(4, PENALIZE, 3.0), (2, PENALIZE, 3.0), *[(token, SET, BANNED) for token in (4, 4, 2)]]


def test_no_documents(device):
    assert Plan(torch.zeros(0, 4, 9, dtype=torch.int32), ints([]), penalty=2.0).edits(device) == ([], [])


@pytest.mark.parametrize("width", [1, 31, 33, 150, 1100])
@pytest.mark.parametrize("alphabet", [2, 40, 96103])
def test_any_history_is_planned_as_specified(width, alphabet, device):
    """Lengths around a warp and beyond a thousand; beams of a document share their length alone."""
    documents, beams = 4, 3
    sequences = torch.randint(0, alphabet, (documents, beams, width), dtype=torch.int32)
    lengths = torch.cat([torch.randint(0, width + 1, (documents - 2,), dtype=torch.int32), ints([width, width - 1])])
    phases = {length: [(token, SET, BANNED) for token in range(length % 70)] for length in range(width + 1)}
    for penalty, size in ((1.3, 3), (0.8, 0), (1.0, 2)):
        plan = Plan(sequences, lengths, phases, {width: 1}, penalty, size)
        for got, wanted in zip(plan.run(device), plan.run(op=reference_state.plan_edits), strict=True):
            assert torch.equal(got.nan_to_num(-1.0), wanted.nan_to_num(-1.0))


def test_a_stretch_without_room_for_the_phase_stops():
    """Never into the next row's stretch; a GPU would trap, which no process survives, so only the emulator is asked."""
    plan = Plan(HISTORIES, ints([4, 4]), {4: [(1, SET, 0.0)] * 9}, stretch=8)
    with pytest.raises((ValueError, RuntimeError), match=r"a row needs 9 edits, but a stretch has 8|has trapped"):
        plan.run()


@pytest.mark.parametrize(
    ("position", "new", "message"),
    [
        (0, torch.zeros(2, 2, 6), r"sequences must be int32 \[any, any, any\], got float32 \[2, 2, 6\]"),
        (1, ints([1]), r"lengths must be int32 \[2\]"),
        (2, ints([0] * 7), r"phase_begin must be int32 \[8\]"),
        (4, ints([0, 0]), r"phase_kind must be int32 \[1\]"),
        (6, ints([-1] * 6), r"phase_forced must be int32 \[7\]"),
        (8, -1, r"ngram_size must be 0 \(for none\) or a length, got -1"),
        (10, ints([0] * 3), r"end must be int32 \[4\]"),
        (11, ints([0] * 44), r"kind must be int32 \[44\]"),
        (13, torch.zeros(52).double(), r"value must be float32 \[52\]"),
        (14, ints([0]), r"forced must be int32 \[4\]"),
    ],
)
def test_bad_arguments(position, new, message):
    arguments = Plan(HISTORIES, ints([4, 1]), {1: [(7, ADD, 0.5)]}, penalty=2.0, ngram_size=2).arguments()
    arguments[position] = new
    with pytest.raises(ValueError, match=message):
        native.plan_edits(*arguments)


def test_too_little_room_for_histories_is_refused():
    plan = Plan(HISTORIES, ints([4, 1]), penalty=2.0, ngram_size=2, stretch=11)
    with pytest.raises(ValueError, match=r"6 tokens can need 12 edits a row, but 44 places for 4 rows leave only 11"):
        native.plan_edits(*plan.arguments())


@pytest.mark.skipif(native.emulated, reason="the emulated kernel takes CPU tensors")
def test_there_is_no_kernel_for_the_cpu():
    with pytest.raises(ValueError, match="plan_edits: no kernel for int32"):
        native.plan_edits(*Plan(HISTORIES, ints([4, 1])).arguments())


@pytest.mark.skipif(not native.emulated, reason="needs a kernel that takes CPU tensors")
def test_opcheck():
    plan = Plan(HISTORIES, ints([4, 1]), {1: [(7, ADD, 0.5)]}, penalty=2.0, ngram_size=2)
    torch.library.opcheck(torch.ops.pegasus_batch.plan_edits.default, tuple(plan.arguments()))
