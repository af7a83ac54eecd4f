from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
import torch
from torch import Tensor

from pegasus_batch.kernels import native, reference
from tests.kernels.conftest import EMULATED, on_the_cpu

HEAD_SIZES = [9, 15, 16, 64, 80, 128]
N_KEYS = [[70, 1, 0], [64, 65], [20], [0, 0], [], [30 + row for row in range(19)]]  # of every row of every document
TIMES = 70

Call = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float]


def make_call(dtype: torch.dtype, head_size: int, documents: list[list[int]] = N_KEYS, times: int = TIMES) -> Call:
    """Documents with a slot per row and one more, where any row of theirs may have been.

    NaN in the cache wherever no row looks and where the newest keys are still to come, wild slots in the ancestry.
    """
    torch.manual_seed(head_size)
    counts, heads = [len(rows) for rows in documents], 2
    rows, slots = sum(counts), sum(counts) + len(counts)
    n_keys = torch.tensor([n for document in documents for n in document], dtype=torch.int32)
    ancestry = torch.full((rows, times), 1 << 30, dtype=torch.int32)
    written = torch.zeros(slots, times, dtype=torch.bool)
    row = slot = 0
    for document in documents:
        own = range(slot, slot + len(document) + 1)
        # Half of the time all rows have the same ancestor.
        shared = torch.randint(own.start, own.stop, (times,), dtype=torch.int32)
        for place, n in enumerate(document):
            other = torch.randint(own.start, own.stop, (times,), dtype=torch.int32)
            ancestry[row, :n] = torch.where(torch.rand(times) < 0.5, shared, other)[:n]
            ancestry[row, n - 1 : n] = own[place]
            written[ancestry[row, :n].long(), torch.arange(n)] = True
            row += 1
        slot = own.stop
    fed = n_keys > 0
    written[ancestry[fed, n_keys[fed].long() - 1].long(), n_keys[fed].long() - 1] = False
    keys, values = (torch.randn(slots, times, heads, head_size).to(dtype) for _ in range(2))
    keys[~written] = torch.nan
    values[~written] = torch.nan
    newest = torch.randn(rows, 3, heads, head_size).to(dtype)
    newest[~fed, 1:] = torch.nan
    query_begin = torch.tensor([0, *accumulate(counts)], dtype=torch.int32)
    return *newest.unbind(1), keys, values, query_begin, ancestry, n_keys, head_size**-0.5


def attend(call: Call, module: object = native, dtype: torch.dtype | None = None) -> Tensor:
    """Run a call on copies of its caches, in another type if there is one."""
    copies = (x.to(dtype or x.dtype, copy=True) if isinstance(x, Tensor) and x.is_floating_point() else x for x in call)
    return module.cached_attention(*copies)  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_accuracy(isa, dtype, head_size, assert_accurate):
    call = make_call(dtype, head_size)
    got = attend(call)
    assert_accurate(got, attend(call, reference), attend(call, reference, torch.float64))
    assert got[2].eq(0).all()


def test_long_pasts(dtype, assert_accurate):
    """More times than a list of live rows has room for, of few beams and of many."""
    call = make_call(dtype, 64, [[300] * 4, [129] * 11], 300)
    assert_accurate(attend(call), attend(call, reference), attend(call, reference, torch.float64))


@pytest.mark.parametrize("module", [native, reference], ids=["native", "reference"])
@pytest.mark.parametrize("head_size", [9, 64])
def test_the_newest_are_written_and_nothing_else(isa, dtype, module, head_size):
    call = make_call(dtype, head_size)
    _, key, value, keys, values, _, ancestry, n_keys, _ = call
    before = keys.clone(), values.clone()
    module.cached_attention(*call)
    for memory, old, newest in zip((keys, values), before, (key, value), strict=True):
        for row, n in enumerate(n_keys.tolist()):
            if n:
                old[ancestry[row, n - 1], n - 1] = newest[row]
        assert torch.equal(memory.nan_to_num(7.0), old.nan_to_num(7.0))


def test_results_do_not_depend_on_neighbours(isa, dtype, set_threads):
    """The same bits whatever other documents are there and however many threads run; on the CPU even other rows."""
    call = make_call(dtype, 64)
    set_threads(1)
    together = attend(call)
    set_threads(2)
    assert torch.equal(attend(call), together)
    query, key, value, keys, values, query_begin, ancestry, n_keys, scale = call
    native.cached_attention(*call)
    begins = query_begin.tolist() if EMULATED else range(len(query) + 1)
    for begin, end in pairwise(begins):
        one = slice(begin, end)
        own = torch.tensor([0, end - begin], dtype=torch.int32)
        alone = attend((query[one], key[one], value[one], keys, values, own, ancestry[one], n_keys[one], scale))
        assert torch.equal(alone, together[one])


def test_moving_a_row_in_the_cache_changes_no_bit(isa, dtype):
    """A beam reorder permutes ancestry; the same keys in other slots must give the same result."""
    query, key, value, keys, values, query_begin, ancestry, n_keys, scale = make_call(dtype, 64)
    slots = len(keys)
    order = torch.randperm(slots)
    moved = torch.argsort(order).int()
    renamed = torch.where(ancestry < slots, moved[ancestry.clamp(max=slots - 1).long()], ancestry)
    before = attend((query, key, value, keys, values, query_begin, ancestry, n_keys, scale))
    after = attend((query, key, value, keys[order], values[order], query_begin, renamed, n_keys, scale))
    assert torch.equal(before, after)


@pytest.mark.parametrize("head_size", [16, 64])
def test_cache_views_with_strides(isa, dtype, head_size):
    """A layer's slice of a cache of all layers, newest keys out of a fused projection, a longer ancestry buffer."""
    slots = torch.arange(3, dtype=torch.int32)[:, None].expand(3, 100)
    layers = torch.randn(3, 2, 70, 2, 2, head_size).to(dtype)  # slots, layers, times, keys and values, heads, D
    ancestry = torch.randint(0, 3, (3, 100), dtype=torch.int32)
    n_keys, query_begin = torch.tensor([70, 3, 12], dtype=torch.int32), torch.tensor([0, 3], dtype=torch.int32)
    ancestry.scatter_(1, n_keys[:, None].long() - 1, slots)
    fused = torch.randn(3, 3, 2, head_size).to(dtype)
    keys, values = layers[:, 1, :, 0], layers[:, 1, :, 1]
    rest = query_begin, ancestry[:, :70], n_keys, 0.25
    dense = attend((*(x.contiguous() for x in (*fused.unbind(1), keys, values)), *rest))
    assert torch.equal(native.cached_attention(*fused.unbind(1), keys, values, *rest), dense)


@pytest.mark.parametrize("module", [native, reference], ids=["native", "reference"])
def test_slots_of_one_token(isa, dtype, module):
    """In a cache of one time, a slot holds a token of any time: the same bits, and the same is written."""
    query, key, value, keys, values, query_begin, ancestry, n_keys, scale = make_call(dtype, 64)
    slots = len(keys) * TIMES
    renamed = torch.where(ancestry < len(keys), ancestry * TIMES + torch.arange(TIMES, dtype=torch.int32), ancestry)
    flat = [x.clone().view(slots, 1, 2, 64) for x in (keys, values)]
    got = module.cached_attention(query, key, value, *flat, query_begin, renamed, n_keys, scale)
    assert torch.equal(
        got, module.cached_attention(query, key, value, keys, values, query_begin, ancestry, n_keys, scale)
    )
    for memory, expected in zip(flat, (keys, values), strict=True):
        assert torch.equal(memory.flatten().nan_to_num(7.0), expected.flatten().nan_to_num(7.0))


NAMES = ("query", "key", "value", "keys", "values", "query_begin", "ancestry", "n_keys", "scale")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ancestry": lambda x: x.long()}, r"ancestry must be int32 \[27, any\], got another 64-bit type \[27, 70\]"),
        ({"key": lambda x: x[1:]}, r"key must be float32 \[27, 2, 16\], got float32 \[26, 2, 16\]"),
        ({"value": lambda x: x.double()}, r"value must be float32 \[27, 2, 16\], got float64"),
        ({"values": lambda x: x[:, 1:]}, r"value_cache must be float32 \[33, 70, 2, 16\]"),
        ({"query": lambda x: x[1:]}, r"key must be float32 \[26, 2, 16\]"),
        ({"query_begin": lambda x: x[:0]}, r"query_begin must have one entry more than there are documents"),
    ],
)
def test_bad_arguments(changes, message):
    call = dict(zip(NAMES, make_call(torch.float32, 16), strict=True))
    for name, change in changes.items():
        call[name] = change(call[name])
    with pytest.raises(ValueError, match=message):
        native.cached_attention(*call.values())


@on_the_cpu
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ancestry": lambda x: x.masked_fill(x < 9, 33)}, r"ancestry\[0, 0\] = 33 is outside 0..32"),
        ({"ancestry": lambda x: x[:, :69].contiguous()}, r"n_keys\[0\] = 70 is outside 0..69"),
        ({"n_keys": lambda x: x + 1}, r"n_keys\[0\] = 71 is outside 0..70"),
        ({"keys": lambda x: x[:, :1], "values": lambda x: x[:, :1], "n_keys": lambda x: x + 1}, r"71 is outside 0..70"),
        ({"n_keys": lambda x: x - 1}, r"n_keys\[2\] = -1 is outside"),
        ({"query_begin": lambda x: x[1:]}, r"query_begin must run from 0 to 27, the number of rows, got 3 to 27"),
        ({"query_begin": lambda x: x + 1}, r"query_begin\[6\] = 28"),
    ],
)
def test_bad_indices(changes, message):
    test_bad_arguments(changes, message)


def test_opcheck():
    call = make_call(torch.float32, 16)
    sound = [x.nan_to_num() if isinstance(x, Tensor) and x.is_floating_point() else x for x in call]
    torch.library.opcheck(torch.ops.pegasus_batch.cached_attention.default, sound)
