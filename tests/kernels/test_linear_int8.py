"""linear_int8 against integers and against its specification, for every instruction set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pegasus_batch import kernels
from pegasus_batch.kernels import native, reference

# Rows, inputs, outputs: whole and broken panels, quads and tiles of every height.
SHAPES = [
    (1, 1, 1),
    (2, 15, 64),
    (3, 16, 65),
    (4, 100, 63),
    (5, 64, 128),
    (7, 7, 200),
    (64, 1024, 130),
    (0, 8, 8),
    (4, 0, 3),
]


def rows(n: int, size: int, dtype: torch.dtype) -> Tensor:
    """Rows of very different size, as layer norms and ReLUs make them."""
    generator = torch.Generator().manual_seed(n * 1000 + size)
    states = torch.randn(n, size, generator=generator) * torch.logspace(-3, 3, max(n, 1))[:n, None]
    return states.to(dtype)


def codes(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)


def multiply(states: Tensor, weights: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the native product with weights [M, K] int8 as they are, nothing added."""
    outputs = len(weights)
    packed = kernels.pack_int8(weights)
    return native.linear_int8(states, packed, torch.ones(outputs), torch.zeros(outputs), None, False, dtype)


def quantize(states: Tensor) -> Tensor:
    """Return what the native op sees in states [N, K]: code times scale, by the product with ones."""
    return multiply(states, torch.eye(states.shape[1], dtype=torch.int8))


@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_exact(isa, dtype, shape):
    """A row of whole numbers, the largest 127, is its own codes; the product of integers is the oracle."""
    n, inputs, outputs = shape
    states, weights = codes(n, inputs), codes(outputs, inputs)
    states[:, :1] = 127
    expected = states.long() @ weights.long().T
    assert torch.equal(multiply(states.to(dtype), weights), expected.float())


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_do_not_overflow(isa, sign):
    """Pairs of products exceed 16 bits, and the sums of as many inputs as are taken nearly 32."""
    inputs = 65536
    product = multiply(torch.full((7, inputs), 3.0), torch.full((65, inputs), 127 * sign, dtype=torch.int8))
    # 127 * 3 / 127 is the row's scale
    torch.testing.assert_close(product, torch.full((7, 65), 3.0 * 127 * sign * inputs), rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [1, 15, 16, 100, 1024])
def test_codes_equal_their_specification(isa, dtype, size):
    states = rows(5, size, dtype)
    expected_codes, expected_scales = reference.quantize_rows(states)
    assert torch.equal(quantize(states), expected_codes * expected_scales[:, None])


def test_values_come_back_within_half_a_step(isa, dtype):
    states = rows(8, 200, dtype)
    step = states.float().abs().amax(1) / 127
    assert ((quantize(states) - states.float()).abs() <= step[:, None] * 0.501).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 16, 36])
def test_a_row_that_is_not_finite_is_marked_and_alone(isa, dtype, bad, place):
    states, weights = rows(3, 37, torch.float32), kernels.pack_int8(codes(20, 37))
    states[1, place] = bad
    got = native.linear_int8(states, weights, torch.ones(20), torch.zeros(20), None, True, dtype)
    assert got.isnan().any(1).tolist() == got.isnan().all(1).tolist() == [False, True, False]
    assert torch.equal(quantize(states)[[0, 2]], quantize(states[[0, 2]]))


@pytest.mark.parametrize("value", [0.0, 1e-38, -1e-45])
def test_nothing_has_a_scale_of_zero(isa, value):
    assert torch.equal(multiply(torch.full((2, 20), value), codes(30, 20)), torch.zeros(2, 30))


def test_strided_rows_are_read_where_they_are(isa, dtype):
    wide, weights = rows(6, 90, dtype), codes(30, 53)
    part = wide[:, 7:60]
    assert torch.equal(multiply(part, weights), multiply(part.contiguous(), weights))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_layer_is_close_to_its_specification(isa, dtype, shape, relu, with_residual):
    """The last product and sum are rounded once here and twice there."""
    n, inputs, outputs = shape
    generator = torch.Generator().manual_seed(1)
    weights = kernels.pack_int8(codes(outputs, inputs))
    scales, bias = (torch.rand(outputs, generator=generator) for _ in range(2))
    residual = torch.randn(n, outputs, generator=generator).to(dtype) if with_residual else None
    arguments = (rows(n, inputs, dtype), weights, scales, bias, residual, relu, dtype)
    got, expected = native.linear_int8(*arguments), reference.linear_int8(*arguments)
    assert got.dtype == dtype
    tolerance = 2e-6 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=2e-4 if dtype == torch.float32 else 2**-6)


@given(st.lists(st.floats(width=32), min_size=1, max_size=70), st.integers(1, 3))
def test_any_row_equals_the_specification(values, times):
    states = torch.tensor([values] * times, dtype=torch.float32)
    weights = codes(40, len(values))
    expected = reference.linear_int8(
        states, kernels.pack_int8(weights), torch.ones(40), torch.zeros(40), None, False, torch.float32
    )
    assert torch.equal(multiply(states, weights).nan_to_num(-1.0), expected.nan_to_num(-1.0))


def test_a_row_does_not_depend_on_threads_or_on_the_rows_beside_it(isa, set_threads):
    states, weights = rows(300, 500, torch.float32), codes(400, 500)
    set_threads(1)
    alone = torch.cat([multiply(states[row : row + 1], weights) for row in range(0, 300, 60)])
    for threads in (1, 2, 3):
        set_threads(threads)
        assert torch.equal(multiply(states, weights)[::60], alone)


def test_weights_lie_as_specified():
    """Two outputs of five inputs: 128 more than they are, four inputs of an output together, the rest of the panel 128."""
    packed = reference.pack_int8(torch.tensor([[1, 2, 3, 4, 5], [-1, -2, -127, -128, 127]], dtype=torch.int8))
    assert packed.shape == (1, 2, 256)
    assert packed[0, 0].tolist() == [129, 130, 131, 132, 127, 126, 1, 0] + [128] * 248
    assert packed[0, 1].tolist() == [133, 128, 128, 128, 255, 128, 128, 128] + [128] * 248


def test_the_specification_by_hand():
    """The codes of (2, -1, 0) are (127, -64, 0), half a step to even, at a scale of 2/127."""
    weights = reference.pack_int8(torch.tensor([[1, 1, 100], [-2, 0, 0]], dtype=torch.int8))
    scales, bias = torch.tensor([0.5, 3.0]), torch.tensor([1.0, 7.0])
    states = torch.tensor([[2.0, -1.0, 0.0]])
    assert reference.quantize_rows(states)[0].tolist() == [[127, -64, 0]]
    first, second = 63 * 0.5 * 2 / 127 + 1, -254 * 3 * 2 / 127 + 7  # the second is -5
    got = reference.linear_int8(states, weights, scales, bias, torch.tensor([[10.0, 20.0]]), True, torch.float32)
    torch.testing.assert_close(got, torch.tensor([[first + 10, 20.0]]))
    got = reference.linear_int8(states, weights, scales, bias, None, False, torch.float32)
    torch.testing.assert_close(got, torch.tensor([[first, second]]))


def test_wrong_shapes_are_refused():
    states, weights, ones = torch.zeros(2, 5), kernels.pack_int8(codes(3, 5)), torch.ones(3)

    def refuses(message: str, *arguments: object) -> None:
        with pytest.raises(ValueError, match=message):
            native.linear_int8(*arguments)

    last = (None, False, torch.float32)
    wide = torch.zeros(2, 5, dtype=torch.float64)
    refuses(r"linear_int8: states must be float32 or bfloat16.*float64", wide, weights, ones, ones, *last)
    refuses("weights", torch.zeros(2, 9), weights, ones, ones, *last)
    refuses("weights", states, kernels.pack_int8(codes(65, 5)), ones, ones, *last)
    refuses("bias", states, weights, ones, torch.zeros(4), *last)
    refuses("weight_scales", states, weights, ones.bfloat16(), ones, *last)
    refuses("residual", states, weights, ones, ones, torch.zeros(2, 3), False, torch.bfloat16)
    refuses("at most 65536 inputs", torch.zeros(1, 65537), weights, ones, ones, *last)


def test_opcheck():
    weights, ones = kernels.pack_int8(codes(3, 5)), torch.ones(3)
    torch.library.opcheck(
        native.linear_int8, (torch.randn(2, 5), weights, ones, ones, torch.ones(2, 3), True, torch.float32)
    )
    torch.library.opcheck(native.linear_int8, (torch.randn(2, 5), weights, ones, ones, None, False, torch.bfloat16))


def test_the_public_op_chooses():
    states, weights, ones = torch.randn(3, 20, dtype=torch.float64), kernels.pack_int8(codes(4, 20)), torch.ones(4)
    arguments = (states, weights, ones, ones, None, False, torch.float32)
    assert torch.equal(kernels.linear_int8(*arguments), reference.linear_int8(*arguments))
