from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pegasus_batch.kernels import native, reference

HEAD_SIZES = [9, 15, 16, 64, 80, 128]
N_KEYS = [70, 1, 0, 64, 65, 20]


def make_call(dtype: torch.dtype, head_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]:
    """Six rows over eight slots of 70 times; NaN in the cache and wild slots in the ancestry wherever no row looks."""
    torch.manual_seed(head_size)
    rows, slots, times, heads = len(N_KEYS), 8, 70, 2
    n_keys = torch.tensor(N_KEYS, dtype=torch.int32)
    ancestry = torch.randint(0, slots, (rows, times), dtype=torch.int32)
    used = torch.zeros(slots, times, dtype=torch.bool)
    for row, n in enumerate(N_KEYS):
        used[ancestry[row, :n].long(), torch.arange(n)] = True
        ancestry[row, n:] = 1 << 30
    keys, values = (torch.randn(slots, times, heads, head_size).to(dtype) for _ in range(2))
    keys[~used] = torch.nan
    values[~used] = torch.nan
    query = torch.randn(rows, heads, head_size).to(dtype)
    return query, keys, values, ancestry, n_keys, head_size**-0.5


@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_accuracy(isa, dtype, head_size, assert_accurate):
    query, keys, values, *rest = make_call(dtype, head_size)
    got = native.cached_attention(query, keys, values, *rest)
    plain = reference.cached_attention(query, keys, values, *rest)
    exact = reference.cached_attention(query.double(), keys.double(), values.double(), *rest)
    assert_accurate(got, plain, exact)
    assert got[2].eq(0).all()


def test_rows_do_not_depend_on_their_neighbours(isa, dtype, set_threads):
    query, keys, values, ancestry, n_keys, scale = make_call(dtype, 64)
    set_threads(1)
    together = native.cached_attention(query, keys, values, ancestry, n_keys, scale)
    set_threads(2)
    assert torch.equal(native.cached_attention(query, keys, values, ancestry, n_keys, scale), together)
    for row in range(len(N_KEYS)):
        one = slice(row, row + 1)
        alone = native.cached_attention(query[one], keys, values, ancestry[one], n_keys[one], scale)
        assert torch.equal(alone[0], together[row])


def test_moving_a_row_in_the_cache_changes_no_bit(isa):
    """A beam reorder permutes ancestry; the same keys in other slots must give the same result."""
    query, keys, values, ancestry, n_keys, scale = make_call(torch.float32, 64)
    order = torch.randperm(keys.shape[0])
    moved = torch.argsort(order).int()
    renamed = torch.where(ancestry < 8, moved[ancestry.clamp(max=7).long()], ancestry)
    before = native.cached_attention(query, keys, values, ancestry, n_keys, scale)
    after = native.cached_attention(query, keys[order], values[order], renamed, n_keys, scale)
    assert torch.equal(before, after)


def test_same_bits_as_attention_over_packed_keys(isa, dtype):
    query, keys, values, ancestry, n_keys, scale = make_call(dtype, 64)
    slots, times = ancestry[0].long(), torch.arange(70)
    packed = native.attention(
        query[:1],
        keys[slots, times],
        values[slots, times],
        torch.tensor([0, 1], dtype=torch.int32),
        torch.tensor([0], dtype=torch.int32),
        n_keys[:1],
        scale,
    )
    assert torch.equal(packed, native.cached_attention(query[:1], keys, values, ancestry[:1], n_keys[:1], scale))


def test_cache_views_with_strides(isa):
    """One layer's slice of a cache that holds keys and values of all layers, and a longer ancestry buffer."""
    layers = torch.randn(8, 2, 70, 2, 2, 16)  # slots, layers, times, keys and values, heads, D
    ancestry = torch.randint(0, 8, (3, 100), dtype=torch.int32)
    query, n_keys = torch.randn(3, 2, 16), torch.tensor([70, 3, 12], dtype=torch.int32)
    keys, values = layers[:, 1, :, 0], layers[:, 1, :, 1]
    got = native.cached_attention(query, keys, values, ancestry[:, :70], n_keys, 0.25)
    dense = native.cached_attention(
        query, keys.contiguous(), values.contiguous(), ancestry[:, :70].contiguous(), n_keys, 0.25
    )
    assert torch.equal(got, dense)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ancestry": lambda x: x.masked_fill(x < 9, 8)}, r"ancestry\[0, 0\] = 8 is outside 0..7"),
        ({"ancestry": lambda x: x[:, :69].contiguous()}, r"n_keys\[0\] = 70 is outside 0..69"),
        (
            {"ancestry": lambda x: x.long()},
            r"ancestry must be int32 \[6, any\], got another 64-bit type \[6, 70\]",
        ),
        ({"n_keys": lambda x: x + 1}, r"n_keys\[0\] = 71 is outside 0..70"),
        ({"n_keys": lambda x: x - 1}, r"n_keys\[2\] = -1 is outside"),
        ({"values": lambda x: x[:, 1:]}, r"value_cache must be float32 \[8, 70, 2, 16\]"),
        ({"query": lambda x: x[1:]}, r"ancestry must be int32 \[5, any\]"),
    ],
)
def test_bad_arguments(changes, message):
    names = ("query", "keys", "values", "ancestry", "n_keys", "scale")
    call = dict(zip(names, make_call(torch.float32, 16), strict=True))
    for name, change in changes.items():
        call[name] = change(call[name])
    with pytest.raises(ValueError, match=message):
        native.cached_attention(*call.values())


def test_opcheck():
    query, keys, values, ancestry, n_keys, scale = make_call(torch.float32, 16)
    call = (query, keys.nan_to_num(), values.nan_to_num(), ancestry, n_keys, scale)
    torch.library.opcheck(torch.ops.pegasus_batch.cached_attention.default, call)
