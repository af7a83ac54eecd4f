"""linear against float64, integers and its specification, for every instruction set."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
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
    packed = kernels.pack_weights(weights)
    return native.linear(states, packed, torch.ones(outputs), torch.zeros(outputs), None, False, dtype)


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
    states, weights = rows(3, 37, torch.float32), kernels.pack_weights(codes(20, 37))
    states[1, place] = bad
    got = native.linear(states, weights, torch.ones(20), torch.zeros(20), None, True, dtype)
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
    weights = kernels.pack_weights(codes(outputs, inputs))
    scales, bias = (torch.rand(outputs, generator=generator) for _ in range(2))
    residual = torch.randn(n, outputs, generator=generator).to(dtype) if with_residual else None
    arguments = (rows(n, inputs, dtype), weights, scales, bias, residual, relu, dtype)
    got, expected = native.linear(*arguments), reference.linear(*arguments)
    assert got.dtype == dtype
    tolerance = 2e-6 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=2e-4 if dtype == torch.float32 else 2**-6)


@given(st.lists(st.floats(width=32), min_size=1, max_size=70), st.integers(1, 3))
def test_any_row_equals_the_specification(values, times):
    states = torch.tensor([values] * times, dtype=torch.float32)
    weights = codes(40, len(values))
    expected = reference.linear(
        states, kernels.pack_weights(weights), torch.ones(40), torch.zeros(40), None, False, torch.float32
    )
    assert torch.equal(multiply(states, weights).nan_to_num(-1.0), expected.nan_to_num(-1.0))


def test_a_row_does_not_depend_on_threads_or_on_the_rows_beside_it(isa, set_threads):
    states, weights = rows(300, 500, torch.float32), codes(400, 500)
    set_threads(1)
    alone = torch.cat([multiply(states[row : row + 1], weights) for row in range(0, 300, 60)])
    for threads in (1, 2, 3):
        set_threads(threads)
        assert torch.equal(multiply(states, weights)[::60], alone)


def product(states: Tensor, weights: Tensor, **more: Any) -> Tensor:
    """Return the native product with weights [M, K] of the states' own type, nothing added unless told."""
    settings = {"bias": torch.zeros(len(weights)), "residual": None, "relu": False, "dtype": torch.float32, **more}
    return native.linear(states, kernels.pack_weights(weights), None, *settings.values())


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES, (9, 5000, 70), (140, 4097, 3)])
def test_a_product_is_as_exact_as_its_sums(isa, dtype, shape, relu, with_residual):
    """Against float64: a sum of K terms in float32 is off by about K roundings of the sum of their magnitudes."""
    n, inputs, outputs = shape
    generator = torch.Generator().manual_seed(2)
    states, weights = rows(n, inputs, dtype), torch.randn(outputs, inputs, generator=generator).to(dtype)
    bias = torch.randn(outputs, generator=generator)
    residual = torch.randn(n, outputs, generator=generator).to(dtype) if with_residual else None
    exact = states.double() @ weights.double().T + bias
    exact = torch.relu(exact) if relu else exact
    exact = exact if residual is None else exact + residual.double()
    bound = 2.0**-23 * (
        states.double().abs() @ weights.double().abs().T * max(1, inputs**0.5) + bias.abs() + exact.abs()
    )
    got = product(states, weights, bias=bias, residual=residual, relu=relu, dtype=dtype)
    assert got.dtype == dtype and got.shape == exact.shape
    rounding = exact.abs() * 2.0**-8 if dtype == torch.bfloat16 else 0.0
    assert ((got.double() - exact).abs() <= 4 * bound + rounding).all()
    expected = reference.linear(states, kernels.pack_weights(weights), None, bias, residual, relu, dtype)
    assert (
        (expected.double() - got.double()).abs()
        <= 8 * bound + exact.abs() * (2.0**-7 if dtype == torch.bfloat16 else 0)
    ).all()


@pytest.mark.parametrize("shape", [(300, 500, 400), (70, 4500, 130), (130, 33, 65)])
def test_a_product_of_a_row_does_not_depend_on_threads_or_on_the_rows_beside_it(isa, dtype, shape, set_threads):
    n, inputs, outputs = shape
    states, weights = rows(n, inputs, dtype), torch.randn(outputs, inputs).to(dtype)
    set_threads(1)
    alone = torch.cat([product(states[row : row + 1], weights) for row in range(0, n, 13)])
    for threads in (1, 2, 3):
        set_threads(threads)
        assert torch.equal(product(states, weights)[::13], alone)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_row(isa, dtype, bad):
    """Also where the neighbour in memory is the first of the next row: the last of an odd number of bfloat16."""
    states, weights = rows(3, 37, dtype), torch.randn(20, 37).to(dtype)
    states[:, -1], clean = 0, product(states[:, :-1], weights[:, :-1])
    states[1, -1] = bad
    got = product(states, weights)
    torch.testing.assert_close(got[[0, 2]], clean[[0, 2]], rtol=0, atol=0)
    assert not got[1].isfinite().any()
    assert product(states, weights, relu=True)[1].isnan().all() == (bad is torch.nan)


def norm_of(size: int) -> tuple[Tensor, Tensor, float]:
    """The weight, bias and epsilon of a layer norm."""
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, generator=generator), torch.randn(size, generator=generator), 1e-5


def normed(states: Tensor, norm: tuple[Tensor, Tensor, float]) -> Tensor:
    """Return the layer norm in float64."""
    return F.layer_norm(states.double(), norm[0].shape, norm[0].double(), norm[1].double(), norm[2])


@pytest.mark.parametrize("size", [1, 3, 16, 37, 64, 130, 1024])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_rows_are_normalised_on_the_way_in(isa, dtype, size, offset):
    """Read back through a layer that is the identity; what weights of 16 bits multiply is rounded."""
    states, norm = (rows(9, size, torch.float32) + offset).to(dtype), norm_of(size)
    exact = normed(states, norm)
    same = kernels.pack_weights(torch.eye(size).to(dtype))
    got = native.linear(states, same, None, torch.zeros(size), None, False, torch.float32, *norm)
    # A mean far from zero costs digits of the difference to it.
    small = 2e-6 + 4e-7 * offset * (states.float().var(1, correction=0) + 1e-5).rsqrt()[:, None]
    tolerance = small * (1 + exact.abs()) + (exact.abs() * 2**-8 if dtype == torch.bfloat16 else 0)
    assert ((got - exact).abs() <= tolerance).all()
    coded = native.linear(
        states, kernels.pack_weights(torch.eye(size, dtype=torch.int8)), torch.ones(size), torch.zeros(size), None, False,
        torch.float32, *norm,
    )  # fmt: skip
    step = exact.abs().amax(1, keepdim=True) / 127
    assert ((coded - exact).abs() <= 0.51 * step + small * (1 + exact.abs())).all()


@pytest.mark.parametrize("weight_type", [torch.float32, torch.bfloat16, torch.int8])
def test_a_normalised_row_does_not_depend_on_threads_or_on_the_rows_beside_it(isa, weight_type, set_threads):
    states, weights = rows(300, 333, torch.float32), codes(200, 333).to(weight_type)
    states = states.bfloat16() if weight_type == torch.bfloat16 else states
    scales = torch.ones(200) if weight_type == torch.int8 else None
    packed, norm = kernels.pack_weights(weights), norm_of(333)

    def layer(part: Tensor) -> Tensor:
        return native.linear(part, packed, scales, torch.zeros(200), None, False, torch.float32, *norm)

    set_threads(1)
    alone = torch.cat([layer(states[row : row + 1]) for row in range(0, 300, 13)])
    for threads in (1, 2, 3):
        set_threads(threads)
        assert torch.equal(layer(states)[::13], alone)
    states[5, 7] = torch.nan
    broken = layer(states).isnan()
    assert broken[5].all() and not broken[[4, 6]].any()
    assert torch.equal(layer(torch.cat((states, states), dim=1)[:, :333]).nan_to_num(), layer(states).nan_to_num())


def test_a_normalised_layer_is_close_to_its_specification(isa, dtype):
    states, weights, norm = rows(20, 100, dtype), torch.randn(70, 100), norm_of(100)
    bias, residual = torch.randn(70), torch.randn(20, 70).to(dtype)
    for packed, scales in (
        (kernels.pack_weights(weights.to(dtype)), None),
        (kernels.pack_weights(codes(70, 100)), torch.full((70,), 0.01)),
    ):
        arguments = (states, packed, scales, bias, residual, True, dtype, *norm)
        # A value halfway between two codes may become either.
        within = 2e-5 if scales is None and dtype == torch.float32 else 0.1
        torch.testing.assert_close(native.linear(*arguments), reference.linear(*arguments), rtol=within, atol=within)


def test_strided_rows_of_a_product_are_read_where_they_are(isa, dtype):
    wide, weights = rows(6, 90, dtype), torch.randn(30, 53).to(dtype)
    part = wide[:, 7:60]
    assert torch.equal(product(part, weights), product(part.contiguous(), weights))


@pytest.mark.parametrize("weight_type", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("shape", [(1, 1), (64, 8), (65, 9), (130, 31)])
def test_rows_come_out_of_packed_weights(weight_type, shape):
    weights = codes(*shape).to(weight_type)
    packed = kernels.pack_weights(weights)
    for n in (0, 1, 40, 5000):
        chosen = torch.randint(0, shape[0], (n,))
        for implementation in ("native", "reference"):
            with kernels.use(implementation):
                assert torch.equal(kernels.weight_rows(packed, chosen, shape[1]), weights[chosen])


def test_rows_that_packed_weights_do_not_have_are_refused():
    packed = kernels.pack_weights(torch.zeros(70, 9))
    for wrong in (128, -1, 2**32, -(2**32)):
        with pytest.raises(ValueError, match=r"weight_rows: rows\[1\] = .* is outside 0..127"):
            kernels.weight_rows(packed, torch.tensor([3, wrong]), 9)
    with pytest.raises(ValueError, match=r"weight_rows: weights .* have no rows of .*\[1, 10\]"):
        kernels.weight_rows(packed, torch.tensor([3]), 10)
    with pytest.raises(ValueError, match="weight_rows: weights"):
        kernels.weight_rows(packed.double(), torch.tensor([3]), 9)
    for weights in (packed, kernels.pack_weights(codes(70, 9))):
        torch.library.opcheck(torch.ops.pegasus_batch.weight_rows.default, (weights, torch.tensor([3, 69]), 9))


def test_weights_lie_as_specified():
    """Two outputs of five inputs: 128 more than they are, four inputs of an output together, the rest of the panel 128."""
    packed = reference.pack_weights(torch.tensor([[1, 2, 3, 4, 5], [-1, -2, -127, -128, 127]], dtype=torch.int8))
    assert packed.shape == (1, 2, 256)
    assert packed[0, 0].tolist() == [129, 130, 131, 132, 127, 126, 1, 0] + [128] * 248
    assert packed[0, 1].tolist() == [133, 128, 128, 128, 255, 128, 128, 128] + [128] * 248
    halves = reference.pack_weights(torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.bfloat16))
    assert halves.shape == (1, 2, 128) and halves[0, :, :4].tolist() == [[1, 2, 4, 5], [3, 0, 6, 0]]
    whole = reference.pack_weights(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert whole.shape == (1, 2, 64) and whole[0, :, :3].tolist() == [[1, 3, 0], [2, 4, 0]]


def test_the_specification_by_hand():
    """The codes of (2, -1, 0) are (127, -64, 0), half a step to even, at a scale of 2/127."""
    weights = reference.pack_weights(torch.tensor([[1, 1, 100], [-2, 0, 0]], dtype=torch.int8))
    scales, bias = torch.tensor([0.5, 3.0]), torch.tensor([1.0, 7.0])
    states = torch.tensor([[2.0, -1.0, 0.0]])
    assert reference.quantize_rows(states)[0].tolist() == [[127, -64, 0]]
    first, second = 63 * 0.5 * 2 / 127 + 1, -254 * 3 * 2 / 127 + 7  # the second is -5
    got = reference.linear(states, weights, scales, bias, torch.tensor([[10.0, 20.0]]), True, torch.float32)
    torch.testing.assert_close(got, torch.tensor([[first + 10, 20.0]]))
    got = reference.linear(states, weights, scales, bias, None, False, torch.float32)
    torch.testing.assert_close(got, torch.tensor([[first, second]]))


def test_wrong_shapes_are_refused():
    states, weights, ones = torch.zeros(2, 5), kernels.pack_weights(codes(3, 5)), torch.ones(3)

    def refuses(message: str, *arguments: object) -> None:
        with pytest.raises(ValueError, match=message):
            native.linear(*arguments)

    last = (None, False, torch.float32)
    wide = torch.zeros(2, 5, dtype=torch.float64)
    refuses(r"linear: states must be float32 or bfloat16.*float64", wide, weights, ones, ones, *last)
    refuses(
        r"linear: states must be float32 or bfloat16 \[any, any\], got float32 \[5\]",
        states[0],
        weights,
        ones,
        ones,
        *last,
    )
    halves = kernels.pack_weights(torch.zeros(3, 5, dtype=torch.bfloat16))
    refuses(r"linear: states must be bfloat16.*float32", states, halves, None, ones, *last)
    refuses("weights", states.bfloat16()[:, :4], halves, None, ones, *last)
    refuses("weights", states, halves.double(), None, ones, *last)
    refuses("weight_scales go with weights of 8 bits.*uint8", states, weights, None, ones, *last)
    refuses("weight_scales go with.*bfloat16", states.bfloat16(), halves, ones, ones, *last)
    refuses("weights", torch.zeros(2, 9), weights, ones, ones, *last)
    refuses("weights", states, kernels.pack_weights(codes(65, 5)), ones, ones, *last)
    refuses(r"weight_scales must be float32 \[4\]", states, weights, ones, torch.zeros(4), *last)
    refuses("bias must be float32", states, weights, ones, ones.double(), *last)
    refuses("weight_scales", states, weights, ones.bfloat16(), ones, *last)
    refuses("residual", states, weights, ones, ones, torch.zeros(2, 3), False, torch.bfloat16)
    refuses(r"norm_weight must be float32 \[5\]", states, weights, ones, ones, *last, ones, torch.ones(5), 1e-5)
    refuses(
        r"norm_bias must be float32", states, weights, ones, ones, *last, torch.ones(5), torch.ones(5).bfloat16(), 1e-5
    )
    refuses("norm_weight and norm_bias come together", states, weights, ones, ones, *last, torch.ones(5), None, 1e-5)
    refuses("at most 65536 inputs", torch.zeros(1, 65537), weights, ones, ones, *last)


@pytest.mark.parametrize("weights", [torch.zeros(3, 4).double(), torch.zeros(3, 4).half(), torch.zeros(3)])
def test_other_weights_are_refused(weights):
    with pytest.raises(ValueError, match=r"weights .* of float32, bfloat16 or int8, got"):
        kernels.pack_weights(weights)


def test_opcheck():
    weights, whole, ones = kernels.pack_weights(codes(3, 5)), kernels.pack_weights(torch.randn(3, 5)), torch.ones(3)
    states, norm = torch.randn(2, 5), (torch.ones(5), torch.ones(5), 1e-5)
    for arguments in (
        (states, weights, ones, ones, torch.ones(2, 3), True, torch.float32),
        (states, weights, ones, ones, None, False, torch.bfloat16),
        (states, whole, None, ones, None, True, torch.float32, *norm),
    ):
        torch.library.opcheck(torch.ops.pegasus_batch.linear.default, arguments)


def test_compiler_and_profiler_see_the_op():
    """Called without PyTorch's dispatcher, but not where somebody watches."""
    whole, ones, states = kernels.pack_weights(torch.randn(3, 5)), torch.ones(3), torch.randn(2, 5)

    def twice(x: Tensor) -> Tensor:
        return 2 * kernels.linear(x, whole, None, ones, None, True, torch.float32)

    compiled = torch.compile(twice, fullgraph=True, backend="eager")
    assert torch.equal(compiled(states), twice(states))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        twice(states)
    assert "pegasus_batch::linear" in {event.key for event in profiler.key_averages()}


def test_the_public_op_chooses():
    states, weights, ones = torch.randn(3, 20, dtype=torch.float64), kernels.pack_weights(codes(4, 20)), torch.ones(4)
    arguments = (states, weights, ones, ones, None, False, torch.float32)
    assert torch.equal(kernels.linear(*arguments), reference.linear(*arguments))
