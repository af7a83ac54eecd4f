from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from torch import Tensor

from pegasus_batch import kernels
from pegasus_batch.kernels import native, reference
from tests.kernels.conftest import on_the_cpu

HEAD_SIZES = [9, 15, 16, 64, 80, 128]


def offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def make_call(
    dtype: torch.dtype,
    head_size: int,
    query_lengths: list[int],
    key_lengths: list[int],
    *,
    n_heads: int = 2,
    gap: int = 3,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float]:
    """Documents whose keys are slices of one fused buffer, with `gap` rows of NaN after each document's keys."""
    torch.manual_seed(head_size)
    n_heads = 2
    query = torch.randn(sum(query_lengths), n_heads, head_size).to(dtype)
    stored = [n + gap for n in key_lengths]
    fused = torch.full((sum(stored), 2, n_heads, head_size), torch.nan, dtype=dtype)
    key_begin = offsets(stored)[:-1].clone()
    for begin, n in zip(key_begin.tolist(), key_lengths, strict=True):
        fused[begin : begin + n] = torch.randn(n, 2, n_heads, head_size).to(dtype)
    n_keys = torch.tensor(key_lengths, dtype=torch.int32)
    return query, fused[:, 0], fused[:, 1], offsets(query_lengths), key_begin, n_keys, head_size**-0.5


def widened(call: tuple) -> tuple:
    return (*(x.double() if x.is_floating_point() else x for x in call[:-1]), call[-1])


@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_accuracy(isa, dtype, head_size, assert_accurate):
    """Lengths around the tile of 64 keys and the block of 64 rows, and a document without keys or without rows."""
    call = make_call(dtype, head_size, [1, 67, 3, 5, 0, 64], [64, 131, 0, 1, 7, 63])
    got = native.attention(*call)
    assert_accurate(got, reference.attention(*call), reference.attention(*widened(call)))
    assert got.is_contiguous()
    assert torch.equal(got[68:71], torch.zeros_like(got[68:71]))


def test_large_scores_do_not_overflow(isa, dtype, assert_accurate):
    """Scores of several hundred: only differences from the running maximum may reach the exponential."""
    query, *rest, scale = make_call(dtype, 16, [5], [200])
    call = (query * 100, *rest, scale)
    assert_accurate(native.attention(*call), reference.attention(*call), reference.attention(*widened(call)))


@pytest.mark.parametrize("growth", [0.02, 0.08, 0.3, 2.0])
def test_scores_that_grow(isa, dtype, growth, assert_accurate):
    """From tile to tile by less, about and more than what a row's reference takes without being moved; and falling ones."""
    _, _, value, *rest, _ = make_call(dtype, 16, [9, 5], [400, 300])
    ones, times = torch.ones(14, 2, 16), torch.arange(len(value))[:, None, None]
    query = (ones * torch.linspace(-1, 1, 14)[:, None, None]).to(dtype)
    key = (growth / 16 * times).expand_as(value).to(dtype).contiguous()
    call = (query, key, value, *rest, 1.0)
    assert_accurate(native.attention(*call), reference.attention(*call), reference.attention(*widened(call)))


def test_keys_that_are_never_seen(isa, dtype, assert_accurate):
    """Whole tiles of scores of -inf, before and after others: they weigh nothing."""
    query, key, *rest = make_call(dtype, 16, [5], [300], gap=0)
    query, key = query.abs(), key.clone()
    key[:70] = key[200:290] = -torch.inf
    call = (query, key, *rest)
    assert_accurate(native.attention(*call), reference.attention(*call), reference.attention(*widened(call)))


@pytest.mark.parametrize("head_size", [15, 64])
def test_rows_do_not_depend_on_their_neighbours(isa, dtype, head_size, set_threads):
    """A row has the same bits alone, in any position of a block, beside any document, with one thread or two."""
    query, key, value, query_begin, key_begin, n_keys, scale = make_call(dtype, head_size, [7, 66, 2], [90, 70, 5])
    set_threads(1)
    together = native.attention(query, key, value, query_begin, key_begin, n_keys, scale)
    set_threads(2)
    assert torch.equal(native.attention(query, key, value, query_begin, key_begin, n_keys, scale), together)
    for document in range(3):
        for row in {
            query_begin[document].item(),
            query_begin[document].item() + 1,
            query_begin[document + 1].item() - 1,
        }:
            alone = native.attention(
                query[row : row + 1],
                key,
                value,
                offsets([1]),
                key_begin[document : document + 1],
                n_keys[document : document + 1],
                scale,
            )
            assert torch.equal(alone[0], together[row])


def test_nan_among_the_keys_in_use_stays_visible(isa):
    """A broken weight upstream must not be hidden: the exponential once turned NaN scores into zero weights."""
    query, key, value, query_begin, key_begin, n_keys, scale = make_call(torch.float32, 16, [2, 2], [5, 5], gap=0)
    key[1, 0, 3] = torch.nan
    got = native.attention(query, key, value, query_begin, key_begin, n_keys, scale)
    assert got[:2, 0].isnan().all()
    assert got[:2, 1].isfinite().all()
    assert got[2:].isfinite().all()


@on_the_cpu
def test_rows_outside_every_document_are_zero(isa):
    query, key, value, _, key_begin, n_keys, scale = make_call(torch.float32, 16, [10], [5])
    query_begin = torch.tensor([2, 7], dtype=torch.int32)
    got = native.attention(query, key, value, query_begin, key_begin, n_keys, scale)
    expected = reference.attention(query, key, value, query_begin, key_begin, n_keys, scale)
    torch.testing.assert_close(got, expected)
    assert got[:2].eq(0).all() and got[7:].eq(0).all()


def test_strided_query_is_read_in_place(isa):
    """Query, key and value as slices of one fused projection, as the encoder passes them."""
    fused = torch.randn(12, 3, 2, 16)
    begin, count = offsets([12]), torch.tensor([12], dtype=torch.int32)
    got = native.attention(fused[:, 0], fused[:, 1], fused[:, 2], begin, begin[:1], count, 0.25)
    dense = [x.contiguous() for x in fused.unbind(1)]
    assert torch.equal(got, native.attention(*dense, begin, begin[:1], count, 0.25))


def test_no_documents(isa):
    empty = torch.zeros(0, 2, 16)
    begin = torch.zeros(1, dtype=torch.int32)
    assert native.attention(empty, empty, empty, begin, begin[:0], begin[:0], 1.0).shape == (0, 2, 16)


def change(position: int, new: object):
    def apply(call: list) -> None:
        call[position] = new(call[position]) if callable(new) else new

    return apply


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (
            change(0, lambda q: q[0]),
            r"attention: query must be float32 or bfloat16.* \[any, any, any\], got .* \[2, 16\]",
        ),
        (change(0, lambda q: q.double()), r"query must be float32 or bfloat16"),
        (change(1, lambda k: k.bfloat16()), r"key must be float32 \[any, 2, 16\], got bfloat16"),
        (change(2, lambda v: v[1:]), r"value must be float32 \[16, 2, 16\], got float32 \[15, 2, 16\]"),
        (
            change(2, lambda v: v.transpose(1, 2).contiguous().transpose(1, 2)),
            r"value must be contiguous in its last 2",
        ),
        (change(3, lambda b: b.long()), r"query_begin must be int32"),
        (change(3, lambda b: b[:-1]), r"query_begin must be int32 \[3\], got int32 \[2\]"),
    ],
)
def test_bad_arguments(mistake, message):
    call = list(make_call(torch.float32, 16, [3, 5], [4, 6]))
    mistake(call)
    with pytest.raises(ValueError, match=message):
        native.attention(*call)


@on_the_cpu
@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (change(3, torch.tensor([0, 6, 5], dtype=torch.int32)), r"query_begin\[2\] = 5; offsets must not decrease"),
        (change(3, torch.tensor([0, 6, 9], dtype=torch.int32)), r"query_begin\[2\] = 9; .* 0..8"),
        (change(3, torch.tensor([-1, 6, 8], dtype=torch.int32)), r"query_begin\[0\] = -1"),
        (change(4, torch.tensor([0, -1], dtype=torch.int32)), r"key_begin\[1\] = -1 is outside"),
        (change(5, torch.tensor([4, -2], dtype=torch.int32)), r"document 1 has keys 7 : 5"),
        (change(5, torch.tensor([4, 10], dtype=torch.int32)), r"document 1 has keys 7 : 17, but key has 16 rows"),
    ],
)
def test_bad_indices(mistake, message):
    test_bad_arguments(mistake, message)


def test_too_large_heads(assert_accurate):
    """The native op refuses what does not fit its stack tiles; the dispatcher sends it to the reference."""
    call = make_call(torch.float32, 257, [2], [3])
    with pytest.raises(ValueError, match=r"head size must be 1\.\.256, got 257"):
        native.attention(*call)
    assert torch.equal(kernels.attention(*call), reference.attention(*call))


def test_dispatch():
    """float64, float16 and anything that records gradients go to the reference, the rest to the extension."""
    call = make_call(torch.float32, 16, [3, 5], [4, 6])
    with kernels.use("native"):
        assert torch.equal(kernels.attention(*call), native.attention(*call))
    with kernels.use("reference"):
        assert kernels.backend() == "reference"
        assert torch.equal(kernels.attention(*call), reference.attention(*call))
    assert kernels.backend() == f"native:{native.isa()}"
    wide = widened(call)
    assert kernels.attention(*wide).dtype == torch.float64
    query = call[0].clone().requires_grad_()
    kernels.attention(query, *call[1:]).sum().backward()
    assert query.grad is not None and query.grad.isfinite().all()
    with pytest.raises(ValueError, match=r"use\('cuda'\): choose"), kernels.use("cuda"):
        pass


def test_opcheck():
    torch.library.opcheck(
        torch.ops.pegasus_batch.attention.default, make_call(torch.float32, 16, [3, 5], [4, 6], gap=0)
    )
