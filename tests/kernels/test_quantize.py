"""quantize_rows and dequantize_rows against the specification, for every instruction set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pegasus_batch import kernels
from pegasus_batch.kernels import native, reference

SHAPES = [(1, 1), (3, 15), (5, 16), (2, 100), (64, 1024), (0, 8), (4, 0)]


def rows(n: int, size: int, dtype: torch.dtype) -> Tensor:
    """Rows of very different size, as layer norms and ReLUs make them."""
    generator = torch.Generator().manual_seed(n * 1000 + size)
    states = torch.randn(n, size, generator=generator) * torch.logspace(-3, 3, max(n, 1))[:n, None]
    return states.to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_quantizing_equals_its_specification(isa, dtype, shape):
    states = rows(*shape, dtype)
    codes, scales = native.quantize_rows(states)
    expected_codes, expected_scales = reference.quantize_rows(states)
    assert torch.equal(codes, expected_codes)
    assert torch.equal(scales, expected_scales)
    assert codes.dtype == torch.uint8


def test_values_come_back_within_half_a_step(isa, dtype):
    states = rows(8, 200, dtype)
    codes, scales = native.quantize_rows(states)
    error = (scales[:, None] * (codes.float() - 128) - states.float()).abs()
    assert (error <= scales[:, None] * 0.501).all()
    assert ((codes.int() - 128).abs().amax(1) == 127).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 16, 36])
def test_a_row_that_is_not_finite_is_marked_and_alone(isa, dtype, bad, place):
    states = rows(3, 37, dtype)
    states[1, place] = bad
    codes, scales = native.quantize_rows(states)
    assert scales.isnan().tolist() == [False, True, False]
    assert (codes[1] == 128).all()
    assert torch.equal(codes[[0, 2]], native.quantize_rows(states[[0, 2]])[0])
    finished = native.dequantize_rows(torch.zeros(3, 4), scales, torch.zeros(4), None, True, torch.float32)
    assert finished.isnan().any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("value", [0.0, 1e-38, -1e-45])
def test_nothing_has_a_scale_of_zero(isa, value):
    codes, scales = native.quantize_rows(torch.full((2, 20), value))
    assert (codes == 128).all()
    assert (scales == 0).all()


def test_strided_rows_are_read_where_they_are(isa, dtype):
    wide = rows(6, 90, dtype)
    part = wide[:, 7:60]
    assert torch.equal(native.quantize_rows(part)[0], native.quantize_rows(part.contiguous())[0])


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_dequantizing_is_close_to_its_specification(isa, dtype, shape, relu, with_residual):
    """Product and sum are rounded once here and twice there."""
    generator = torch.Generator().manual_seed(1)
    n, size = shape
    products = torch.randn(n, size, generator=generator) * 1000
    scales, bias = torch.rand(n, generator=generator), torch.randn(size, generator=generator)
    residual = torch.randn(n, size, generator=generator).to(dtype) if with_residual else None
    got = native.dequantize_rows(products, scales, bias, residual, relu, dtype)
    expected = reference.dequantize_rows(products, scales, bias, residual, relu, dtype)
    assert got.dtype == dtype
    tolerance = 2e-6 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=2e-4 if dtype == torch.float32 else 2**-6)


@given(st.lists(st.floats(width=32), min_size=1, max_size=70), st.integers(1, 3))
def test_any_row_equals_the_specification(values, times):
    states = torch.tensor([values] * times, dtype=torch.float32)
    for got, expected in zip(native.quantize_rows(states), reference.quantize_rows(states), strict=True):
        assert torch.equal(got.nan_to_num(-1.0), expected.nan_to_num(-1.0))


def test_rows_do_not_depend_on_threads(isa, set_threads):
    states = rows(300, 500, torch.float32)
    set_threads(1)
    alone = native.quantize_rows(states)
    set_threads(2)
    assert all(torch.equal(a, b) for a, b in zip(alone, native.quantize_rows(states), strict=True))


def test_wrong_shapes_are_refused():
    products, scales, bias = torch.zeros(2, 3), torch.zeros(2), torch.zeros(3)
    with pytest.raises(ValueError, match=r"quantize_rows: states must be float32 or bfloat16.*64-bit"):
        native.quantize_rows(torch.zeros(2, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="bias"):
        native.dequantize_rows(products, scales, torch.zeros(4), None, False, torch.float32)
    with pytest.raises(ValueError, match="scales"):
        native.dequantize_rows(products, torch.zeros(3), bias, None, False, torch.float32)
    with pytest.raises(ValueError, match="residual"):
        native.dequantize_rows(products, scales, bias, torch.zeros(2, 3), False, torch.bfloat16)


def test_opcheck():
    residual = torch.ones(2, 3)
    torch.library.opcheck(native.quantize_rows, (torch.randn(2, 3),))
    arguments = (torch.randn(2, 3), torch.rand(2), torch.randn(3), residual, True, torch.float32)
    torch.library.opcheck(native.dequantize_rows, arguments)
    torch.library.opcheck(native.dequantize_rows, (*arguments[:3], None, False, torch.bfloat16))


def test_the_public_ops_choose(monkeypatch):
    states = torch.randn(3, 20, dtype=torch.float64)
    assert torch.equal(kernels.quantize_rows(states)[0], reference.quantize_rows(states)[0])
