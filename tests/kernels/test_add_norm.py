"""add_norm against numbers worked out by hand and float64, on whatever runs it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pegasus_batch import kernels
from pegasus_batch.kernels import native, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [1, 3, 18, 64, 100, 512, 516, 768, 1024, 1028, 2048, 2052, 2500]


def random_call(size: int, rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of very different size and mean, as they are in a residual stream."""
    stream = torch.randn(rows, size) * torch.logspace(-2, 3, rows)[:, None] + torch.linspace(-40, 40, rows)[:, None]
    return stream, torch.randn(rows, size).to(dtype), torch.randn(size), torch.randn(size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_worked_out_by_hand(dtype, device):
    """The sum 1, 3, 5, 7 has the mean 4 and the variance 5; eps of 4 makes the deviation 3."""
    stream = torch.tensor([[0.0, 2.0, 4.0, 6.0]], device=device)
    branch = torch.ones(1, 4, dtype=dtype, device=device)
    weight, bias = torch.tensor([3.0, 3.0, 3.0, 6.0]), torch.tensor([0.0, 0.0, 10.0, 0.5])
    arguments = (branch, weight.to(device), bias.to(device), 4.0)
    before = stream.clone()
    normed = kernels.add_norm(stream, *arguments, False, dtype)
    assert normed.dtype == dtype
    assert normed.tolist() == [[-3.0, -1.0, 11.0, 6.5]]
    assert stream.tolist() == [[1.0, 3.0, 5.0, 7.0]]
    assert torch.equal(kernels.add_norm(before, *arguments, True, dtype), normed)
    assert before.tolist() == normed.tolist()


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_accuracy(size, dtype, post_norm, assert_accurate, device):
    stream, branch, weight, bias = random_call(size, 7, dtype)
    total = stream + branch
    exact_stream = stream.double()
    exact = reference.add_norm(exact_stream, branch, weight.double(), bias.double(), 1e-5, post_norm, torch.float64)
    plain_stream = stream.clone()
    plain = reference.add_norm(plain_stream, branch, weight, bias, 1e-5, post_norm, dtype)
    got_stream = stream.to(device)
    got = kernels.add_norm(got_stream, *(x.to(device) for x in (branch, weight, bias)), 1e-5, post_norm, dtype).cpu()
    assert_accurate(got, plain, exact)
    if post_norm:
        assert_accurate(got_stream.cpu(), plain_stream, exact_stream)
        assert torch.equal(got_stream.cpu().to(dtype), got), "one norm, rounded"
    else:
        assert torch.equal(got_stream.cpu(), total)


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("size", [64, 1024, 1030])
def test_without_a_branch(size, post_norm, device):
    """Nothing is added: pre-norm leaves the stream as it is, post-norm is the norm of what is there."""
    stream, _, weight, bias = (x.to(device) for x in random_call(size, 5, torch.bfloat16))
    before = stream.clone()
    nothing = torch.zeros_like(stream, dtype=torch.bfloat16)
    normed = kernels.add_norm(stream, None, weight, bias, 1e-5, post_norm, torch.bfloat16)
    other = before.clone()
    assert torch.equal(normed, kernels.add_norm(other, nothing, weight, bias, 1e-5, post_norm, torch.bfloat16))
    assert torch.equal(stream, other)
    assert post_norm or torch.equal(stream, before)


@pytest.mark.parametrize("size", [8, 1024])
def test_a_large_mean_costs_no_accuracy(size, device):
    """The squares are centred first: the difference of large sums would be all rounding here."""
    deviation = torch.randn(3, size).sign()
    deviation[:, ::2] = -deviation[:, 1::2]
    stream = (deviation + 4096.0).to(device)
    ones = torch.ones(size, device=device)
    normed = kernels.add_norm(stream, None, ones, 0 * ones, 0.0, False, torch.float32)
    torch.testing.assert_close(normed.cpu(), deviation, rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", [12, 1024, 2501])
def test_rows_do_not_depend_on_their_neighbours(size, device):
    """Also where a neighbour is not finite, which must stay visible in its own row alone."""
    stream, branch, weight, bias = (x.to(device) for x in random_call(size, 9, torch.bfloat16))
    stream[3, size - 1] = torch.nan
    stream[4, 0] = torch.inf
    alone = [
        kernels.add_norm(stream[row : row + 1].clone(), branch[row : row + 1], weight, bias, 1e-5, False, branch.dtype)
        for row in range(9)
    ]
    normed = kernels.add_norm(stream, branch, weight, bias, 1e-5, False, branch.dtype)
    assert torch.equal(normed.nan_to_num(7.0), torch.cat(alone).nan_to_num(7.0))
    assert normed.isnan().all(1).tolist() == [row in (3, 4) for row in range(9)]


def test_memory_that_is_not_aligned(device):
    """Views may begin anywhere; 16 bytes at a time is for memory that allows it."""
    wide = [x.to(device) for x in (torch.randn(1, 4 * 64 + 1), torch.randn(1, 4 * 64 + 1).half())]
    stream, branch = (x[0, 1:].view(4, 64) for x in wide)
    weight, bias = torch.randn(64, device=device), torch.randn(64, device=device)
    aligned = kernels.add_norm(stream.clone(), branch.clone(), weight, bias, 1e-5, False, torch.float16)
    got = kernels.add_norm(stream, branch, weight, bias, 1e-5, False, torch.float16)
    torch.testing.assert_close(got, aligned, rtol=2**-10, atol=2**-10)
    assert got.isfinite().all()


def test_no_rows(device):
    stream, weight = torch.zeros(0, 16, device=device), torch.zeros(16, device=device)
    assert kernels.add_norm(stream, None, weight, weight, 1e-5, True, torch.bfloat16).shape == (0, 16)


@pytest.mark.parametrize(
    ("position", "new", "message"),
    [
        (0, torch.zeros(2, 16).bfloat16(), r"stream must be float32 \[any, any\], got bfloat16 \[2, 16\]"),
        (0, torch.zeros(16, 2).t(), r"stream must be contiguous in its last 2"),
        (1, torch.zeros(2, 16), r"branch must be float16 \[2, 16\], got float32"),
        (1, torch.zeros(3, 16).half(), r"branch must be float16 \[2, 16\]"),
        (2, torch.zeros(16).half(), r"weight must be float32 \[16\], got float16"),
        (3, torch.zeros(15), r"bias must be float32 \[16\]"),
        (6, torch.float64, r"normed must be float32 or bfloat16 or float16 \[2, 16\]"),
    ],
)
def test_bad_arguments(position, new, message):
    arguments = [torch.zeros(2, 16), torch.zeros(2, 16).half(), torch.ones(16), torch.ones(16), 1e-5, False]
    arguments.append(torch.float16)
    arguments[position] = new
    with pytest.raises(ValueError, match=message):
        native.add_norm(*arguments)


@pytest.mark.skipif(not native.emulated, reason="needs a kernel that takes CPU tensors")
def test_opcheck():
    stream, branch, weight, bias = random_call(20, 3, torch.bfloat16)
    for added in (branch, None):
        torch.library.opcheck(
            torch.ops.pegasus_batch.add_norm.default, (stream, added, weight, bias, 1e-5, True, torch.bfloat16)
        )
