"""Packed keys: the same bits as attention to the rows that were packed, and nothing read or written outside; and codes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pegasus_batch import kernels
from pegasus_batch.kernels import native, reference
from tests.kernels.conftest import EMULATED, on_the_cpu
from tests.kernels.test_attention import HEAD_SIZES, change, make_call, offsets, widened

Call = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float]


def packed(call: Call, module: object = native, gap: int = 1, codes: bool = False) -> Call:
    """Pack the keys of a call of ``attention``: documents in reverse order, NaN wherever nobody may look."""
    query, key, value, query_begin, key_begin, n_keys, scale = call
    panels = (n_keys + kernels.PANEL - 1) // kernels.PANEL + gap
    panel_begin = panels.flip(0).cumsum(0).flip(0).int() - panels.int()
    dtype = torch.uint8 if codes else query.dtype
    shape = (int(panels.sum()), query.shape[1], kernels.panel_elements(query.shape[2], dtype))
    # As float32, four bytes of 255 are NaN.
    key_panels, value_panels = (torch.full(shape, 255 if codes else torch.nan, dtype=dtype) for _ in range(2))
    module.pack_source(key, value, key_begin, n_keys, panel_begin, key_panels, value_panels)  # type: ignore[attr-defined]
    for document, n in enumerate(n_keys.tolist()):
        behind = int(panel_begin[document]) + -(-n // kernels.PANEL)
        for memory in (key_panels, value_panels):
            beyond, own = memory[behind : behind + gap], memory[int(panel_begin[document]) : behind]
            assert ((beyond == 255) if codes else beyond.isnan()).all(), "written beyond the document's panels"
            assert EMULATED or own.isfinite().all(), "CUDA writes no padding"
    return query, key_panels, value_panels, query_begin, panel_begin, n_keys, scale


@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_equals_attention(isa, dtype, head_size, assert_accurate):
    """To the last bit: lengths around the panel, the tile, the block of rows; a document without keys or without rows."""
    call = make_call(dtype, head_size, [1, 67, 3, 5, 0, 64, 8, 8], [64, 131, 0, 1, 7, 63, 16, 17])
    got = native.source_attention(*packed(call))
    assert torch.equal(got, native.attention(*call))
    plain = reference.source_attention(*packed(call, reference))
    assert_accurate(got, plain, reference.attention(*widened(call)))


@pytest.mark.parametrize("n_keys", [513, 1100])
def test_long_documents_do_not_depend_on_their_neighbours(dtype, n_keys, assert_accurate):
    """Few long documents are shared out among blocks on CUDA, which must change no bit of what one block would give."""
    query, key, value, query_begin, key_begin, lengths, scale = make_call(dtype, 64, [3, 1, 0, 2], [n_keys, 7, 1, 20])
    together = native.source_attention(*packed((query, key, value, query_begin, key_begin, lengths, scale), gap=0))
    own = query[:3], key, value, query_begin[:2], key_begin[:1], lengths[:1], scale
    alone = native.source_attention(*packed(own, gap=0))
    assert torch.equal(alone, together[:3])
    assert_accurate(alone, reference.attention(*own), reference.attention(*widened(own)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_reference(dtype):
    call = make_call(dtype, 9, [1, 3, 5, 2], [64, 0, 1, 17])
    torch.testing.assert_close(reference.source_attention(*packed(call, reference)), reference.attention(*call))
    with kernels.use("reference"):
        assert torch.equal(
            kernels.source_attention(*packed(call, kernels)), reference.source_attention(*packed(call, reference))
        )


def test_nan_among_the_keys_in_use_stays_visible(isa, dtype):
    call = make_call(dtype, 16, [2, 2], [5, 5], gap=0)
    call[1][1, 0, 3] = torch.nan
    query, key, value, query_begin, key_begin, n_keys, scale = call
    begin = torch.tensor([0, 1], dtype=torch.int32)
    memory = [torch.zeros(2, 2, 256, dtype=dtype) for _ in range(2)]
    native.pack_source(key, value, key_begin, n_keys, begin, *memory)
    got = native.source_attention(query, *memory, query_begin, begin, n_keys, scale)
    assert got[:2, 0].isnan().all() and got[:2, 1].isfinite().all() and got[2:].isfinite().all()


@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_codes(isa, head_size, assert_accurate):
    """Of 8 bits: as near to the truth as the reference's codes; no document depends on its neighbours, nor a row on others."""
    call = make_call(torch.bfloat16, head_size, [1, 67, 3, 5, 0, 64, 8, 8], [64, 131, 0, 1, 7, 63, 16, 17])
    got = native.source_attention(*packed(call, codes=True))
    plain = reference.source_attention(*packed(call, reference, codes=True))
    assert_accurate(got, plain, reference.attention(*widened(call)))
    torch.testing.assert_close(got, plain, rtol=0.02, atol=0.02)
    query, key, value, _, key_begin, n_keys, scale = call
    alone = query[1:60], key, value, offsets([59]), key_begin[1:2].clone(), n_keys[1:2].clone(), scale
    assert torch.equal(native.source_attention(*packed(alone, codes=True)), got[1:60])


def test_codes_of_any_magnitude(isa):
    """A panel has a scale of its own, however large or small the others are; and zeros stay zeros."""
    query, key, value, query_begin, key_begin, n_keys, scale = make_call(torch.bfloat16, 64, [3, 3], [48, 16], gap=0)
    key[:16], value[:16] = key[:16] * 1e-30, value[:16] * 1e30
    key[16:32], value[48:] = 0, 0
    call = query, key, value, query_begin, key_begin, n_keys, scale
    got, plain = native.source_attention(*packed(call, codes=True)), reference.attention(*call)
    torch.testing.assert_close(got[:3], plain[:3], rtol=0.05, atol=0.05 * plain.abs().max().item())
    assert not got[3:].any()


def test_nan_among_codes_stays_visible(isa):
    """In its document and head, and nowhere else."""
    query, key, value, *rest = make_call(torch.bfloat16, 16, [2, 2, 2], [5, 5, 40], gap=0)
    key[1, 0, 3], value[30, 1, 0] = torch.nan, torch.inf
    got = native.source_attention(*packed((query, key, value, *rest), codes=True))
    assert got[:2, 0].isnan().all() and got[4:, 1].isnan().all()
    assert got[:2, 1].isfinite().all() and got[2:4].isfinite().all() and got[4:, 0].isfinite().all()


def test_too_large_heads():
    call = make_call(torch.float32, 257, [2], [3])
    assert torch.equal(kernels.source_attention(*packed(call, kernels)), reference.attention(*call))


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (change(0, lambda q: q.double()), r"source_attention: query must be float32 or bfloat16"),
        (change(1, lambda k: k[:, :, :-1]), r"key_panels must be float32 \[any, 2, 256\]"),
        (change(1, lambda k: k.byte()), r"key_panels must be float32 \[any, 2, 256\], got uint8"),
        (
            change(2, lambda v: v[1:].contiguous()),
            r"value_panels must be float32 \[4, 2, 256\], got float32 \[3, 2, 256\]",
        ),
    ],
)
def test_bad_arguments(mistake, message):
    call = list(packed(make_call(torch.float32, 16, [3, 5], [4, 6])))
    mistake(call)
    with pytest.raises(ValueError, match=message):
        native.source_attention(*call)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (change(1, lambda v: v.bfloat16()), r"pack_source: value must be float32"),
        (change(5, lambda k: k.transpose(0, 1)), r"key_panels must be"),
    ],
)
def test_bad_packing(mistake, message):
    _, key, value, _, key_begin, n_keys, _ = make_call(torch.float32, 16, [3, 5], [4, 6])
    begin = torch.tensor([0, 1], dtype=torch.int32)
    call = [key, value, key_begin, n_keys, begin, torch.zeros(2, 2, 256), torch.zeros(2, 2, 256)]
    mistake(call)
    with pytest.raises(ValueError, match=message):
        native.pack_source(*call)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (change(1, lambda k: k[:, :, :256]), r"key_panels must be uint8 \[any, 2, 272\]"),
        (change(2, lambda v: v[:, :, :256].bfloat16()), r"value_panels must be uint8 \[4, 2, 272\], got bfloat16"),
    ],
)
def test_bad_codes(mistake, message):
    call = list(packed(make_call(torch.bfloat16, 16, [3, 5], [4, 6]), codes=True))
    mistake(call)
    with pytest.raises(ValueError, match=message):
        native.source_attention(*call)


@on_the_cpu
@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (change(3, torch.tensor([0, 6, 9], dtype=torch.int32)), r"query_begin\[2\] = 9; .* 0..8"),
        (change(4, torch.tensor([0, -1], dtype=torch.int32)), r"panel_begin\[1\] = -1 is outside"),
        (change(5, torch.tensor([4, -2], dtype=torch.int32)), r"document 1 with -2 keys"),
        (change(5, torch.tensor([4, 65], dtype=torch.int32)), r"with 65 keys needs panels 0 : 5, but there are 4"),
    ],
)
def test_bad_indices(mistake, message):
    test_bad_arguments(mistake, message)


@on_the_cpu
@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (change(2, torch.tensor([0, 13], dtype=torch.int32)), r"document 1 has keys 13 : 19, but key has 16 rows"),
        (change(3, torch.tensor([4, -6], dtype=torch.int32)), r"document 1 has keys 7 : 1"),
        (
            change(4, torch.tensor([0, 2], dtype=torch.int32)),
            r"document 1 with 6 keys needs panels 2 : 3, but there are 2",
        ),
    ],
)
def test_bad_indices_of_packing(mistake, message):
    test_bad_packing(mistake, message)


def test_opcheck():
    call = make_call(torch.float32, 16, [3, 5], [4, 6], gap=0)
    _, key, value, _, key_begin, n_keys, _ = call
    memory = [torch.zeros(2, 2, 256) for _ in range(2)]
    begin = offsets([1, 1])[:-1].clone()
    torch.library.opcheck(torch.ops.pegasus_batch.pack_source.default, (key, value, key_begin, n_keys, begin, *memory))
    torch.library.opcheck(torch.ops.pegasus_batch.source_attention.default, packed(call, gap=0))
