"""The extension's ops, registered with ``torch.library`` under ``pegasus_batch::``.

Importing this module fails with ImportError when the extension is not built. Outputs and workspaces are allocated here;
the extension fills them. Signatures and meaning: ``reference``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pegasus_batch import _native

_native.connect(torch.Tensor)

_library = torch.library.Library("pegasus_batch", "DEF")
_library.define(
    "attention(Tensor query, Tensor key, Tensor value, Tensor query_begin, Tensor key_begin, Tensor n_keys,"
    " float scale) -> Tensor"
)
_library.define(
    "cached_attention(Tensor query, Tensor key_cache, Tensor value_cache, Tensor ancestry, Tensor n_keys, float scale)"
    " -> Tensor"
)
_library.define(
    "pack_source(Tensor key, Tensor value, Tensor key_begin, Tensor n_keys, Tensor panel_begin, Tensor(a!) key_panels,"
    " Tensor(b!) value_panels) -> ()"
)
_library.define(
    "source_attention(Tensor query, Tensor key_panels, Tensor value_panels, Tensor query_begin, Tensor panel_begin,"
    " Tensor n_keys, float scale) -> Tensor"
)
_library.define(
    "beam_step(Tensor logits, Tensor scores, Tensor pool_scores, Tensor pool_finished, Tensor open_, Tensor edit_begin,"
    " Tensor edit_token, Tensor edit_kind, Tensor edit_value, Tensor forced, Tensor n_new, Tensor max_new,"
    " Tensor eos_ids, float length_penalty, int early_stopping, bool renormalize)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    "linear_int8(Tensor states, Tensor weights, Tensor weight_scales, Tensor bias, Tensor? residual, bool relu,"
    " ScalarType dtype) -> Tensor"
)

BeamStep = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def isa() -> str:
    """Return the instruction set of the CPU kernels: ``PEGASUS_ISA`` if set, else the best that the host has.

    Raises RuntimeError if ``PEGASUS_ISA`` names an instruction set that is unknown or that the host lacks.
    """
    name: str = _native.isa()
    return name


def available_isas() -> list[str]:
    """Return the instruction sets of this host, the plainest first."""
    names: list[str] = _native.available_isas()
    return names


def select_isa(name: str) -> None:
    """Switch the CPU kernels to another instruction set of this host; for tests."""
    _native.select_isa(name)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, query_begin: Tensor, key_begin: Tensor, n_keys: Tensor, scale: float
) -> Tensor:
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    _native.attention(query, key, value, query_begin, key_begin, n_keys, scale, out)
    return out


def _attention_fake(
    query: Tensor, key: Tensor, value: Tensor, query_begin: Tensor, key_begin: Tensor, n_keys: Tensor, scale: float
) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


def _cached_attention(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, ancestry: Tensor, n_keys: Tensor, scale: float
) -> Tensor:
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    _native.cached_attention(query, key_cache, value_cache, ancestry, n_keys, scale, out)
    return out


def _cached_attention_fake(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, ancestry: Tensor, n_keys: Tensor, scale: float
) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


def _pack_source(
    key: Tensor,
    value: Tensor,
    key_begin: Tensor,
    n_keys: Tensor,
    panel_begin: Tensor,
    key_panels: Tensor,
    value_panels: Tensor,
) -> None:
    _native.pack_source(key, value, key_begin, n_keys, panel_begin, key_panels, value_panels)


def _pack_source_fake(*_arguments: object) -> None:
    return None


def _source_attention(
    query: Tensor,
    key_panels: Tensor,
    value_panels: Tensor,
    query_begin: Tensor,
    panel_begin: Tensor,
    n_keys: Tensor,
    scale: float,
) -> Tensor:
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    _native.source_attention(query, key_panels, value_panels, query_begin, panel_begin, n_keys, scale, out)
    return out


def _source_attention_fake(query: Tensor, *_rest: object) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


def _beam_step_outputs(scores: Tensor) -> BeamStep:
    size, documents = scores.shape, scores.shape[:1]
    return (
        scores.new_empty(size),
        scores.new_empty(size, dtype=torch.int32),
        scores.new_empty(size, dtype=torch.int32),
        scores.new_empty(size),
        scores.new_empty(size, dtype=torch.bool),
        scores.new_empty(size, dtype=torch.int32),
        scores.new_empty(size, dtype=torch.int32),
        scores.new_empty(documents, dtype=torch.bool),
        scores.new_empty(documents, dtype=torch.bool),
    )


def _beam_step(
    logits: Tensor,
    scores: Tensor,
    pool_scores: Tensor,
    pool_finished: Tensor,
    open_: Tensor,
    edit_begin: Tensor,
    edit_token: Tensor,
    edit_kind: Tensor,
    edit_value: Tensor,
    forced: Tensor,
    n_new: Tensor,
    max_new: Tensor,
    eos_ids: Tensor,
    length_penalty: float,
    early_stopping: int,
    renormalize: bool,
) -> BeamStep:
    if scores.dim() != 2 or logits.dim() != 2:
        raise ValueError(
            f"beam_step: scores must be [B, K] and logits [B*K, V], got {list(scores.shape)} and {list(logits.shape)}"
        )
    outputs = _beam_step_outputs(scores)
    documents, beams = scores.shape
    n_bytes = _native.beam_step_workspace(documents, beams, logits.shape[1], edit_token.numel(), eos_ids.numel())
    workspace = logits.new_empty(n_bytes, dtype=torch.uint8)
    _native.beam_step(
        logits,
        scores,
        pool_scores,
        pool_finished,
        open_,
        edit_begin,
        edit_token,
        edit_kind,
        edit_value,
        forced,
        n_new,
        max_new,
        eos_ids,
        length_penalty,
        early_stopping,
        renormalize,
        *outputs,
        workspace,
    )
    return outputs


def _beam_step_fake(logits: Tensor, scores: Tensor, *_rest: object) -> BeamStep:
    return _beam_step_outputs(scores)


def _linear_int8(
    states: Tensor,
    weights: Tensor,
    weight_scales: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    relu: bool,
    dtype: torch.dtype,
) -> Tensor:
    out = states.new_empty(states.shape[0], bias.shape[0], dtype=dtype)
    workspace = states.new_empty(_native.linear_int8_workspace(*states.shape), dtype=torch.uint8)
    _native.linear_int8(states, weights, weight_scales, bias, residual, relu, out, workspace)
    return out


def _linear_int8_fake(
    states: Tensor,
    weights: Tensor,
    weight_scales: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    relu: bool,
    dtype: torch.dtype,
) -> Tensor:
    return states.new_empty(states.shape[0], bias.shape[0], dtype=dtype)


for _name, _implementation, _fake in (
    ("attention", _attention, _attention_fake),
    ("cached_attention", _cached_attention, _cached_attention_fake),
    ("pack_source", _pack_source, _pack_source_fake),
    ("source_attention", _source_attention, _source_attention_fake),
    ("beam_step", _beam_step, _beam_step_fake),
    ("linear_int8", _linear_int8, _linear_int8_fake),
):
    _library.impl(_name, _implementation, "CPU")
    torch.library.register_fake(f"pegasus_batch::{_name}", _fake, lib=_library)
# The attention kernels take CUDA tensors too (bfloat16, head size 64), on the caller's stream.
if _native.with_cuda:
    _library.impl("attention", _attention, "CUDA")
    _library.impl("cached_attention", _cached_attention, "CUDA")

attention = torch.ops.pegasus_batch.attention.default
cached_attention = torch.ops.pegasus_batch.cached_attention.default
pack_source = torch.ops.pegasus_batch.pack_source.default
source_attention = torch.ops.pegasus_batch.source_attention.default
beam_step = torch.ops.pegasus_batch.beam_step.default
linear_int8 = torch.ops.pegasus_batch.linear_int8.default
