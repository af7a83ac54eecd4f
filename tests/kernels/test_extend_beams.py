"""extend_beams against states worked out by hand, its specification, and the search and cache that it stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import pytest
import torch
from torch import Tensor

from pegasus_batch import kernels
from pegasus_batch.config import GenerationConfig
from pegasus_batch.engine.cache import DecoderCache
from pegasus_batch.generation import EditPlanner, choice
from pegasus_batch.kernels import native, reference_state

CPU = torch.device("cpu")
WILD = 1 << 28


def tensors(x: Step | State) -> list[Tensor]:
    """Return the fields themselves, where ``astuple`` would copy them."""
    return [getattr(x, field.name) for field in fields(x)]


def ints(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@dataclass
class Step:
    """What a beam step returns."""

    scores: Tensor
    parents: Tensor
    tokens: Tensor
    pool_scores: Tensor
    pool_finished: Tensor
    pool_source: Tensor
    pool_tokens: Tensor
    open: Tensor
    done: Tensor

    @classmethod
    def random(cls, documents: int, beams: int, done: Sequence[int] = ()) -> Step:
        """Any parents and pool entries that a step may choose."""
        sources = torch.randint(0, 2 * beams, (documents, beams), dtype=torch.int32)
        tokens = torch.randint(0, 99, (2, documents, beams), dtype=torch.int32)
        return cls(
            scores=torch.randn(documents, beams),
            parents=torch.randint(0, beams, (documents, beams), dtype=torch.int32),
            tokens=tokens[0],
            pool_scores=torch.randn(documents, beams),
            pool_finished=torch.rand(documents, beams) < 0.5,
            pool_source=sources,
            pool_tokens=torch.where(sources < beams, -1, tokens[1]),
            open=torch.rand(documents) < 0.5,
            done=torch.isin(torch.arange(documents), torch.tensor(done, dtype=torch.int64)),
        )


@dataclass
class State:
    """What a search holds in S slots of K beams; extended in place."""

    active: Tensor
    lengths: Tensor
    scores: Tensor
    pool_scores: Tensor
    pool_finished: Tensor
    open: Tensor
    sequences: Tensor
    pool_sequences: Tensor
    pool_lengths: Tensor
    next_tokens: Tensor
    ancestry: Tensor
    n_keys: Tensor
    source_length: Tensor

    @classmethod
    def random(cls, lengths: list[int], beams: int, columns: int, times: int) -> State:
        """Documents of these lengths; one of length -1 is not active, and all that it holds is wild."""
        documents = len(lengths)
        shape = (documents, beams)
        active = ints(lengths) >= 0
        keys = ints(lengths).clamp(max=times).repeat_interleave(beams)
        return cls(
            active=active,
            lengths=torch.where(active, ints(lengths), WILD),
            scores=torch.randn(shape),
            pool_scores=torch.randn(shape),
            pool_finished=torch.rand(shape) < 0.5,
            open=torch.rand(documents) < 0.5,
            sequences=torch.randint(0, 99, (*shape, columns), dtype=torch.int32),
            pool_sequences=torch.randint(100, 199, (*shape, columns), dtype=torch.int32),
            pool_lengths=torch.randint(1, columns, shape, dtype=torch.int32),
            next_tokens=torch.randint(0, 99, (documents * beams,), dtype=torch.int32),
            ancestry=torch.randint(0, 99, (documents * beams, times), dtype=torch.int32),
            n_keys=torch.where(active.repeat_interleave(beams), keys, WILD),
            source_length=torch.randint(1, 99, (documents,), dtype=torch.int32),
        )

    def extend(self, step: Step, device: torch.device = CPU, op=kernels.extend_beams) -> State:
        """Return the state after a step, and leave this one as it is."""
        after = [x.to(device, copy=True) for x in tensors(self)]
        op(*(x.to(device) for x in tensors(step)), *after)
        return State(*(x.cpu() for x in after))


def assert_equal(got: State, wanted: State, documents: Tensor | slice = slice(None)) -> None:
    for field in fields(State):
        one, other = (getattr(state, field.name).reshape(len(got.active), -1)[documents] for state in (got, wanted))
        assert torch.equal(one, other), field.name


def test_a_step_worked_out_by_hand(device):
    """Three slots of two beams: one goes on, one is done, one is empty."""
    state = State(
        active=torch.tensor([True, False, True]),
        lengths=ints([2, 7, 3]),
        scores=torch.zeros(3, 2),
        pool_scores=torch.zeros(3, 2),
        pool_finished=torch.zeros(3, 2, dtype=torch.bool),
        open=torch.tensor([True, True, True]),
        sequences=ints([[[0, 10, -1, -1], [0, 11, -1, -1]], [[5] * 4, [6] * 4], [[0, 20, 21, -1], [0, 30, 31, -1]]]),
        pool_sequences=ints([[[0, 40, -2, -2], [0, 41, -2, -2]], [[7] * 4, [8] * 4], [[9] * 4, [9] * 4]]),
        pool_lengths=ints([[2, 1], [3, 4], [1, 2]]),
        next_tokens=ints([10, 11, 5, 6, 21, 31]),
        ancestry=ints([[0, 0, -3], [1, 1, -3], [2, 2, 2], [3, 3, 3], [4, 4, 5], [5, 5, 4]]),
        n_keys=ints([2, 2, 0, 0, 3, 3]),
        source_length=ints([50, 0, 60]),
    )
    step = Step(
        scores=torch.tensor([[-1.0, -2.0], [-3.0, -4.0], [-5.0, -6.0]]),
        parents=ints([[1, 1], [WILD, -WILD], [1, 0]]),
        tokens=ints([[12, 13], [WILD, WILD], [22, 32]]),
        pool_scores=torch.tensor([[-0.1, -0.2], [-0.3, -0.4], [-0.5, -0.6]]),
        pool_finished=torch.tensor([[True, False], [True, True], [True, True]]),
        pool_source=ints([[2, 0], [WILD, -WILD], [1, 3]]),
        pool_tokens=ints([[1, -1], [1, 1], [-1, 1]]),
        open=torch.tensor([True, False, False]),
        done=torch.tensor([False, True, True]),
    )
    after = state.extend(step, device)
    assert after.active.tolist() == [True, False, False]
    assert after.lengths.tolist() == [3, 7, 4]
    assert after.sequences.tolist() == [
        [[0, 11, 12, -1], [0, 11, 13, -1]],
        [[5] * 4, [6] * 4],
        [[0, 30, 31, 22], [0, 20, 21, 32]],
    ]
    # Of a pool entry no more counts than its length; what was behind it stays or moves along.
    assert after.pool_sequences[0].tolist() == [[0, 10, 1, -2], [0, 40, -2, -2]]
    assert after.pool_sequences[1].tolist() == [[7] * 4, [8] * 4]
    assert after.pool_sequences[2].tolist() == [[9, 9, 9, 9], [0, 30, 31, 1]]
    assert after.pool_lengths.tolist() == [[3, 2], [3, 4], [2, 4]]
    assert after.next_tokens.tolist() == [12, 13, 5, 6, 22, 32]
    assert after.ancestry.tolist() == [[1, 1, 0], [1, 1, 1], [2, 2, 2], [3, 3, 3], [5, 5, 4], [4, 4, 5]]
    assert after.n_keys.tolist() == [3, 3, 0, 0, 0, 0]
    assert after.source_length.tolist() == [50, 0, 0]
    going = torch.tensor([True, False, True])
    for name in ("scores", "pool_scores", "pool_finished", "open"):
        assert torch.equal(getattr(after, name)[going], getattr(step, name)[going])
        assert torch.equal(getattr(after, name)[1], getattr(state, name)[1])


@pytest.mark.parametrize("beams", [1, 2, 4, 5, 8, 9, 16, 17, 32])
@pytest.mark.parametrize(("columns", "times"), [(2, 2), (40, 30), (300, 310)])
def test_any_step_is_as_specified(beams, columns, times, device):
    """Empty slots hold wild numbers; the last column of sequences and the last time of the ancestry may be the new one."""
    lengths = [columns - 1, 1, -1, columns // 2, -1, 0]
    state, step = State.random(lengths, beams, columns, times), Step.random(6, beams, done=[0, 2, 3])
    for name in ("parents", "pool_source", "tokens", "pool_tokens"):
        getattr(step, name)[2] = WILD
    after = state.extend(step, device)
    assert_equal(after, state.extend(step, op=reference_state.extend_beams))
    empty = ~state.active
    assert_equal(after, state, empty)
    assert after.active.tolist() == [False, True, False, False, False, True]


def test_nothing_moves_where_every_row_is_its_own_parent(device):
    state, step = State.random([7, 9], 4, 12, 12), Step.random(2, 4)
    step.parents[:] = step.pool_source[:] = torch.arange(4, dtype=torch.int32)
    step.pool_tokens[:] = -1
    after = state.extend(step, device)
    assert torch.equal(after.pool_sequences, state.pool_sequences)
    assert torch.equal(after.pool_lengths, state.pool_lengths)
    for document, length in enumerate((7, 9)):
        assert torch.equal(after.sequences[document, :, length], step.tokens[document])
        after.sequences[document, :, length] = state.sequences[document, :, length]
    assert torch.equal(after.sequences, state.sequences)


def test_more_beams_than_the_kernel_takes(device):
    state, step = State.random([5, -1], 40, 9, 9), Step.random(2, 40)
    assert_equal(state.extend(step, device), state.extend(step, op=reference_state.extend_beams))
    if native.emulated:
        with pytest.raises(ValueError, match=r"up to 32 beams, got int32 \[2, 40, 9\]"):
            state.extend(step, op=native.extend_beams)


@pytest.mark.parametrize("seed", range(5))
def test_a_search_and_its_cache_go_the_same_way(seed, device, monkeypatch):
    """Searches over random logits: after each step the state holds what BeamChoice and DecoderCache hold."""
    torch.manual_seed(seed)
    documents, beams, vocabulary, columns = 4, 3, 12, 9
    options = GenerationConfig(
        num_beams=beams, num_return_sequences=beams, eos_token_id=1, pad_token_id=0, max_length=columns
    )
    prompts = torch.randint(2, vocabulary, (documents, 2))
    owners = torch.arange(documents).repeat_interleave(beams)
    rows = torch.arange(documents * beams)
    planner = EditPlanner(options, [[1]] * documents, 2, vocab_size=vocabulary)
    search = choice.BeamChoice(options, 2, columns, CPU)
    search.add(prompts)
    cache = DecoderCache(1, beams, 1, 1, torch.float32, CPU)
    cache.admit(documents)
    slots = torch.zeros(2 * documents * beams * columns, dtype=torch.int32)  # of the state, for each slot of the cache

    def advance(parents: Tensor, own: Tensor) -> None:
        time = cache.longest
        cache.advance(parents, [beams] * (len(own) // beams))
        slots[cache.ancestry[:, time].long()] = own.int()

    for parents in (owners, rows):  # the prompt is fed to every beam
        advance(parents, rows)
    state = State.random([2] * documents, beams, columns, columns)
    state.sequences[:, :, :2] = state.pool_sequences[:, :, :2] = prompts[:, None]
    state.pool_lengths[:] = 2
    state.ancestry[:, :2] = rows[:, None]

    chosen: list[list[Tensor]] = []

    def recorded(*arguments: object) -> list[Tensor]:
        chosen.append(beam_step(*arguments))
        return chosen[-1]

    beam_step = choice.beam_step
    monkeypatch.setattr(choice, "beam_step", recorded)
    running = torch.arange(documents)
    for n in range(2, columns):
        logits = torch.randn(len(running) * beams, vocabulary) * 2
        edits = planner.edits(search.sequences.flatten(0, 1)[:, :n], owners[: len(logits)])
        done = search.choose(logits, edits, torch.full((len(running),), n), running)
        step = Step.random(documents, beams)  # anything for the slots that are empty
        for whole, part in zip(tensors(step), chosen[-1], strict=True):
            whole[running] = part
        state = state.extend(step, device)
        assert torch.equal(state.sequences[running, :, : n + 1], search.sequences[:, :, : n + 1].int())
        for place, document in enumerate(running):
            entries = zip(state.pool_sequences[document], state.pool_lengths[document], strict=True)
            wanted = [hypothesis.tokens for hypothesis in search.hypotheses(place, logits)]
            assert [tokens[:length].tolist() for tokens, length in entries] == wanted
        within = torch.arange(len(running))[:, None] * beams
        own = rows.view(documents, beams)[running].flatten()
        advance((search.parents + within).flatten(), own)
        assert torch.equal(state.ancestry[own, : n + 1], slots[cache.ancestry[:, : n + 1].long()])
        assert torch.equal(state.next_tokens[own], search.tokens.flatten().int())
        staying = (~done).nonzero().flatten()
        running = running[staying]
        assert state.active.nonzero().flatten().tolist() == running.tolist()
        assert state.lengths[running].tolist() == [n + 1] * len(running)
        assert (state.n_keys == torch.where(state.active, n + 1, 0).repeat_interleave(beams)).all()
        assert ((state.source_length > 0) == state.active).all()
        if not len(running):
            return
        search.keep(staying)
        cache.keep(staying.tolist())
    raise AssertionError("a search ends at its maximum length")


@pytest.mark.parametrize(
    ("name", "new", "message"),
    [
        ("sequences", torch.zeros(2, 3), r"sequences must be int32 \[any, any, any\], got float32 \[2, 3\]"),
        ("pool_sequences", ints([0]), r"pool_sequences must be int32 \[2, 3, 6\]"),
        ("parents", torch.zeros(2, 3), r"parents must be int32 \[2, 3\], got float32"),
        ("done", ints([0, 0]), r"done must be bool \[2\], got int32"),
        ("kept_scores", torch.zeros(3, 2), r"kept_scores must be float32 \[2, 3\]"),
        ("pool_lengths", torch.zeros(2, 3, dtype=torch.int64), r"pool_lengths must be int32 \[2, 3\]"),
        ("ancestry", torch.zeros(5, 8, dtype=torch.int32), r"ancestry must be int32 \[6, any\]"),
        ("n_keys", ints([1]), r"n_keys must be int32 \[6\]"),
    ],
)
def test_bad_arguments(name, new, message):
    schema = [argument.name for argument in torch.ops.pegasus_batch.extend_beams.default._schema.arguments]
    arguments = tensors(Step.random(2, 3)) + tensors(State.random([3, -1], 3, 6, 8))
    arguments[schema.index(name)] = new
    with pytest.raises(ValueError, match=message):
        native.extend_beams(*arguments)


def test_one_memory_for_both_kinds_of_sequences_is_refused():
    state = State.random([3, -1], 3, 6, 8)
    state.pool_sequences = state.sequences
    with pytest.raises(ValueError, match="pool_sequences must not be the memory of sequences"):
        native.extend_beams(*tensors(Step.random(2, 3)), *tensors(state))


@pytest.mark.skipif(not native.emulated, reason="needs a kernel that takes CPU tensors")
def test_opcheck():
    arguments = tensors(Step.random(2, 3)) + tensors(State.random([3, -1], 3, 6, 8))
    torch.library.opcheck(torch.ops.pegasus_batch.extend_beams.default, tuple(arguments))
