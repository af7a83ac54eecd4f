"""The attention ops on a GPU: the calls of the other tests, on CUDA tensors, and in a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pegasus_batch import kernels
from pegasus_batch.kernels import native, reference
from tests.kernels import test_attention, test_cached_attention

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not (torch.cuda.is_available() and native.on_cuda(torch.empty(0, device="cuda"))),
        reason="no CUDA device, or an extension without CUDA kernels",
    ),
]

Check = Callable[[Tensor, Tensor, Tensor], None]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def on_device(call: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.cuda() if isinstance(x, Tensor) else x for x in call)


def packed(call: tuple[Any, ...]) -> tuple[Any, ...]:
    """Pack the keys of a call of ``attention`` on the device; what is padding holds NaN."""
    query, key, value, query_begin, key_begin, n_keys, scale = on_device(call)
    panels = (n_keys + kernels.PANEL - 1) // kernels.PANEL
    begin = panels.cumsum(0).int() - panels.int()
    shape = int(panels.sum()), key.shape[1], kernels.PANEL * -(-key.shape[2] // kernels.PANEL) * kernels.PANEL
    memory = [torch.full(shape, torch.nan, dtype=key.dtype, device=key.device) for _ in range(2)]
    kernels.pack_source(key, value, key_begin, n_keys, begin, *memory)
    return query, *memory, query_begin, begin, n_keys, scale


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_size", [9, 64, 80])
@pytest.mark.parametrize("keys", [[64, 131, 0, 1, 7, 63], [513, 1100, 0, 3, 2, 1]], ids=["short", "long"])
def test_documents(dtype: torch.dtype, head_size: int, keys: list[int], assert_accurate: Check) -> None:
    """Also the same bits from panels, and alone, where long documents are shared out among blocks."""
    call = test_attention.make_call(dtype, head_size, [1, 67, 3, 5, 0, 8], keys)
    got = kernels.attention(*on_device(call))
    exact = reference.attention(*test_attention.widened(call))
    assert_accurate(got.cpu(), reference.attention(*call), exact)
    query, key_panels, value_panels, query_begin, begin, n_keys, scale = packed(call)
    assert torch.equal(
        kernels.source_attention(query, key_panels, value_panels, query_begin, begin, n_keys, scale), got
    )
    for document in range(len(keys)):
        rows, one = slice(int(query_begin[document]), int(query_begin[document + 1])), slice(document, document + 1)
        own = query_begin[document : document + 2] - query_begin[document]
        alone = kernels.source_attention(query[rows], key_panels, value_panels, own, begin[one], n_keys[one], scale)
        assert torch.equal(alone, got[rows])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_size", [9, 64, 80])
@pytest.mark.parametrize(
    "documents", [test_cached_attention.N_KEYS, [[300] * 4, [129] * 11, [300] * 19]], ids=["short", "long"]
)
def test_pasts(dtype: torch.dtype, head_size: int, documents: list[list[int]], assert_accurate: Check) -> None:
    call = test_cached_attention.make_call(dtype, head_size, documents, max(map(max, filter(None, documents))))
    device_call = on_device(call)
    got = kernels.cached_attention(*device_call)
    plain, exact = (test_cached_attention.attend(call, reference, kind) for kind in (dtype, torch.float64))
    assert_accurate(got.cpu(), plain, exact)
    reference.cached_attention(*call)
    for mine, theirs in zip(device_call[3:5], call[3:5], strict=True):
        assert torch.equal(mine.cpu().nan_to_num(7.0), theirs.nan_to_num(7.0))


def test_steps_in_a_graph() -> None:
    """A captured step follows what lies in its tensors: lengths and ancestry that change between replays."""
    query, key, value, keys, values, query_begin, ancestry, n_keys, scale = on_device(
        test_cached_attention.make_call(torch.bfloat16, 64)
    )
    source = packed(test_attention.make_call(torch.bfloat16, 64, [3, 2], [40, 700]))

    def step() -> tuple[Tensor, Tensor]:
        past = kernels.cached_attention(query, key, value, keys, values, query_begin, ancestry, n_keys, scale)
        return past, kernels.source_attention(*source)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()
    for _ in range(2):
        graph.replay()
        for got, wanted in zip(outputs, step(), strict=True):
            assert torch.equal(got, wanted)
        n_keys[:3] = 0  # a document has left
        source[5].sub_(30)
