"""Calls of beam_step for its tests: a step with defaults, random steps, and the comparison with the specification."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pegasus_batch.kernels import native, reference
from pegasus_batch.kernels.reference import ADD, BANISHED, DECAY, PENALIZE, SET

NAMES = ("scores", "parents", "tokens", "pool_scores", "pool_finished", "pool_source", "pool_tokens", "open", "done")
INF = math.inf
WILD = (1 << 30, 99, math.nan)  # an edit that is none


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


Edits = dict[int, list[tuple[int, int, float]]]  # row -> (token, kind, value)


def edit_arguments(rows: int, edits: Edits, forced: dict[int, int]) -> tuple[Tensor, ...]:
    """Return edit_begin, edit_end, edit_token, edit_kind, edit_value and forced."""
    # Between the rows' edits lies one that nobody may look at.
    flat = [edit for row in range(rows) for edit in (*edits.get(row, ()), WILD)]
    counts = torch.tensor([len(edits.get(row, ())) for row in range(rows)], dtype=torch.int32)
    end = (counts + 1).cumsum(0).int() - 1
    return (
        end - counts,
        end,
        torch.tensor([token for token, _, _ in flat], dtype=torch.int32),
        torch.tensor([kind for _, kind, _ in flat], dtype=torch.int32),
        torch.tensor([value for _, _, value in flat], dtype=torch.float32),
        torch.tensor([forced.get(row, -1) for row in range(rows)], dtype=torch.int32),
    )


def coarse_logits(rows: int, vocabulary: int, random: torch.Generator) -> Tensor:
    """Return logits of few different values, so that a row is full of ties; some rows repeat, others have their own grid."""
    logits = torch.randint(-4, 4, (rows, vocabulary), generator=random) * (
        1 + 0.1 * torch.rand(rows, 1, generator=random)
    )
    return logits[torch.randint(0, rows, (rows,), generator=random)]


def pad_rows(logits: Tensor, spare: int, dtype: torch.dtype) -> Tensor:
    """Return rows with logits between them that would win; given spare elements, no row but the first starts at 16 bytes."""
    rows, vocabulary = logits.shape
    padded = torch.full((rows, (vocabulary + 7) // 8 * 8 + spare), 3e4, dtype=dtype)
    padded[:, :vocabulary] = logits.to(dtype)
    return padded[:, :vocabulary]


def random_edits(rows: int, vocabulary: int, random: torch.Generator, most: int = 40) -> Edits:
    """Return up to ``most`` edits of each row, one token several times, that keep ties likely."""
    values = {SET: [-INF, -3.0, 0.0], PENALIZE: [2.0, 0.5, 1.0], ADD: [1.0, -1.0, 0.0], DECAY: [0.5, -0.5]}
    edits: Edits = {}
    for row in range(rows):
        n = int(torch.randint(0, most + 1, (), generator=random))
        # From few places at first, so that tokens repeat.
        tokens = torch.randint(0, min(vocabulary, n // 2 + 1), (n,), generator=random) * (
            vocabulary // (n // 2 + 1) or 1
        )
        kinds, picks = (torch.randint(0, high, (n,), generator=random).tolist() for high in (4, 6))
        edits[row] = [
            (token % vocabulary, kind, values[kind][pick % len(values[kind])])
            for token, kind, pick in zip(tokens.tolist(), kinds, picks, strict=True)
        ]
    return edits


@dataclass(frozen=True)
class Step:
    """The arguments of one call; what a test does not set is a first step without edits."""

    logits: Tensor
    scores: Tensor  # [B, K]
    edits: Edits = field(default_factory=dict)
    forced: dict[int, int] = field(default_factory=dict)
    pool_scores: Tensor | None = None
    pool_finished: Tensor | None = None
    open: Tensor | None = None
    n_new: Tensor | None = None
    max_new: Tensor | None = None
    eos: tuple[int, ...] = (1,)
    length_penalty: float = 1.0
    early_stopping: int = 0
    renormalize: bool = False

    def arguments(self) -> tuple:
        b, k = self.scores.shape
        begin, end, token, kind, value, forced = edit_arguments(b * k, self.edits, self.forced)

        def given(x: Tensor | None, fill: float, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            return torch.full(shape, fill, dtype=dtype) if x is None else x

        return (
            self.logits,
            self.scores,
            given(self.pool_scores, BANISHED, (b, k), torch.float32),
            given(self.pool_finished, False, (b, k), torch.bool),
            given(self.open, True, (b,), torch.bool),
            begin,
            end,
            token,
            kind,
            value,
            forced,
            given(self.n_new, 1, (b,), torch.int32),
            given(self.max_new, 8, (b,), torch.int32),
            ints(*self.eos),
            self.length_penalty,
            self.early_stopping,
            self.renormalize,
        )

    def run(self) -> dict[str, Tensor]:
        return dict(zip(NAMES, native.beam_step(*self.arguments()), strict=True))

    def specified(self) -> dict[str, Tensor]:
        return dict(zip(NAMES, reference.beam_step(*self.arguments()), strict=True))


def assert_as_specified(step: Step) -> dict[str, Tensor]:
    """Everything that is chosen is equal; sums agree to the rounding of a chunk's float32 sum of exponentials."""
    got, wanted = step.run(), step.specified()
    for name in NAMES:
        if wanted[name].dtype == torch.float32:
            torch.testing.assert_close(got[name], wanted[name], rtol=1e-6, atol=2e-6)
        else:
            assert torch.equal(got[name], wanted[name]), name
    return got


def random_step(seed: int, vocabulary: int, dtype: torch.dtype = torch.float32) -> Step:
    """Arbitrary but finite numbers without near-ties, and every kind of edit."""
    random = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=random))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    documents, beams, n_eos = pick(1, 4), pick(1, 6), pick(0, 4)
    rows = documents * beams
    edits = {}
    for row in range(rows):
        # Few distinct tokens, so that one token is edited several times in a row.
        tokens = torch.randint(0, vocabulary, (4,), generator=random).tolist()
        values = {SET: float(normal()) - 3, PENALIZE: 1.5 + pick(0, 2), ADD: float(normal()), DECAY: float(normal())}
        kinds = [pick(0, 4) for _ in range(pick(0, 9))]
        edits[row] = [
            (tokens[pick(0, 4)], kind, -INF if pick(0, 6) == 0 and kind == SET else values[kind]) for kind in kinds
        ]
    finished = torch.rand(documents, beams, generator=random) < 0.5
    pool = normal(documents, beams).sub(1).masked_fill(~finished, BANISHED).sort(dim=1, descending=True)
    return Step(
        logits=(normal(rows, vocabulary) * 3).to(dtype),
        scores=normal(documents, beams),
        edits=edits,
        forced={row: pick(0, vocabulary) for row in range(rows) if pick(0, 8) == 0},
        pool_scores=pool.values,
        pool_finished=finished.gather(1, pool.indices),
        open=torch.rand(documents, generator=random) < 0.8,
        n_new=torch.randint(1, 6, (documents,), generator=random, dtype=torch.int32),
        max_new=torch.randint(4, 9, (documents,), generator=random, dtype=torch.int32),
        eos=tuple(torch.randperm(vocabulary, generator=random)[:n_eos].tolist()),
        length_penalty=float(normal()),
        early_stopping=pick(0, 3),
        renormalize=pick(0, 2) == 1,
    )
