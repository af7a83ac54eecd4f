"""Attention of packed documents by torch's kernels, in the padded form that runs everywhere."""

from __future__ import annotations

import pytest
import torch

from pegasus_batch.kernels import packed, reference


@pytest.mark.parametrize("lengths", [[5, 1, 0, 17], [64], [0, 3]])
def test_equals_the_reference(lengths: list[int]) -> None:
    begins = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    qkv = torch.randn(3, sum(lengths), 2, 8, dtype=torch.float64)
    got = packed.self_attention(*qkv, begins, max(lengths), 0.3)
    counts = torch.tensor(lengths, dtype=torch.int32)
    torch.testing.assert_close(got, reference.attention(*qkv, begins, begins[:-1], counts, 0.3))
