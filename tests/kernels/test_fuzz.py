"""Any shapes and lengths, NaN in whatever must not be read: attention and the linear layer against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pegasus_batch import kernels
from pegasus_batch.kernels import native, reference
from tests.kernels.test_attention import make_call, widened
from tests.kernels.test_source_attention import packed

Check = Callable[[Tensor, Tensor, Tensor], None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("isa", native.available_isas())
def test_documents_of_any_size(isa: str, dtype: torch.dtype, assert_accurate: Check) -> None:
    @settings(max_examples=60)
    @given(
        st.integers(1, 140),
        st.lists(st.tuples(st.integers(0, 40), st.integers(0, 150)), min_size=1, max_size=6),
        st.integers(1, 4),
        st.sampled_from([1e-3, 1.0, 8.0]),
    )
    def check(head_size: int, sizes: list[tuple[int, int]], gap: int, spread: float) -> None:
        query, *rest = make_call(dtype, head_size, [rows for rows, _ in sizes], [keys for _, keys in sizes], gap=gap)
        call = (query * spread, *rest)
        got = native.attention(*call)
        assert torch.equal(native.source_attention(*packed(call, gap=gap)), got)
        if dtype == torch.bfloat16 and spread <= 1 and len(query):
            plain = reference.source_attention(*packed(call, reference, gap=gap, codes=True))
            coded = native.source_attention(*packed(call, gap=gap, codes=True))
            torch.testing.assert_close(coded, plain, rtol=0.05, atol=0.05)
        if len(query):
            assert_accurate(got, reference.attention(*call), reference.attention(*widened(call)))

    with_isa(isa, check)


@pytest.mark.parametrize("weight_type", [torch.float32, torch.bfloat16, torch.int8], ids=["fp32", "bf16", "int8"])
@pytest.mark.parametrize("isa", native.available_isas())
def test_linear_layers_of_any_size(isa: str, weight_type: torch.dtype) -> None:
    @settings(max_examples=60)
    @given(
        st.integers(0, 40),
        st.one_of(st.integers(1, 300), st.integers(2040, 2060), st.integers(4090, 4200)),
        st.integers(1, 140),
        st.integers(1, 3),
        st.booleans(),
        st.booleans(),
    )
    def check(rows: int, inputs: int, outputs: int, gap: int, relu: bool, with_norm: bool) -> None:
        generator = torch.Generator().manual_seed(rows * inputs + outputs)
        dtype = torch.float32 if weight_type == torch.int8 else weight_type
        wide = torch.full((rows, inputs + 2 * gap), torch.nan, dtype=dtype)
        states = wide[:, gap : gap + inputs].normal_(generator=generator)
        weights = torch.randint(-127, 128, (outputs, inputs), generator=generator).to(weight_type)
        bias, residual = (torch.randn(*size, generator=generator) for size in ((outputs,), (rows, outputs)))
        scales = torch.rand(outputs, generator=generator) if weight_type == torch.int8 else None
        norm = (*torch.randn(2, inputs, generator=generator), 1e-5) if with_norm else ()
        call = (states, kernels.pack_weights(weights), scales, bias, residual.to(dtype), relu, dtype, *norm)
        read, steps, off = states.double(), torch.ones(outputs), torch.zeros(rows, 1)
        if with_norm:
            read = F.layer_norm(read, (inputs,), *(x.double() for x in norm[:2]), norm[2])
            # Rounded to the weights' type, or to the nearest code.
            unit = {torch.float32: 1e-5, torch.bfloat16: 2.0**-8, torch.int8: 0.51 / 127}[weight_type]
            off = read.abs().amax(1, keepdim=True) * unit
        if scales is not None:
            steps = scales
            if not with_norm:
                codes, row_scales = reference.quantize_rows(states)
                read = codes.double() * row_scales[:, None].double()
        wide_weights = (weights.double() * steps[:, None]).T
        exact = read @ wide_weights + bias
        exact = (exact.relu() if relu else exact) + residual.to(dtype)
        bound = read.abs() @ wide_weights.abs() + bias.abs() + residual.abs()
        rounding = exact.abs() * 2.0**-8 if dtype == torch.bfloat16 else 0.0
        got = native.linear(*call)
        tolerance = bound * inputs**0.5 * 2.0**-22 + rounding + off * wide_weights.abs().sum(0)
        assert ((got.double() - exact).abs() <= tolerance).all()

    with_isa(isa, check)


def with_isa(isa: str, check: Callable[[], None]) -> None:
    before = native.isa()
    native.select_isa(isa)
    try:
        check()
    finally:
        native.select_isa(before)
