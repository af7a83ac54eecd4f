"""Any shapes and lengths, NaN in whatever must not be read: the attention kernels against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

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
        if len(query):
            assert_accurate(got, reference.attention(*call), reference.attention(*widened(call)))

    before = native.isa()
    native.select_isa(isa)
    try:
        check()
    finally:
        native.select_isa(before)
