"""The extension's ops, registered with ``torch.library`` under ``pegasus_batch::``.

Importing this module fails with ImportError when the extension is not built. Outputs and workspaces are allocated here;
the extension fills them. Signatures and meaning: ``reference``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import _profiler_enabled

from pegasus_batch import _native

_native.connect(torch.Tensor)
emulated: bool = _native.emulated  # the CUDA kernels run in place of the CPU's

_library = torch.library.Library("pegasus_batch", "DEF")
_library.define(
    "attention(Tensor query, Tensor key, Tensor value, Tensor query_begin, Tensor key_begin, Tensor n_keys,"
    " float scale) -> Tensor"
)
_library.define(
    "cached_attention(Tensor query, Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache,"
    " Tensor query_begin, Tensor ancestry, Tensor n_keys, float scale) -> Tensor"
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
    "greedy_step(Tensor logits, Tensor edit_begin, Tensor edit_end, Tensor edit_token, Tensor edit_kind,"
    " Tensor edit_value, Tensor forced, bool renormalize) -> (Tensor, Tensor, Tensor)"
)
_library.define(
    "beam_step(Tensor logits, Tensor scores, Tensor pool_scores, Tensor pool_finished, Tensor open_, Tensor edit_begin,"
    " Tensor edit_end, Tensor edit_token, Tensor edit_kind, Tensor edit_value, Tensor forced, Tensor n_new,"
    " Tensor max_new, Tensor eos_ids, float length_penalty, int early_stopping, bool renormalize)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    "linear(Tensor states, Tensor weights, Tensor? weight_scales, Tensor bias, Tensor? residual, bool relu,"
    " ScalarType dtype, Tensor? norm_weight=None, Tensor? norm_bias=None, float norm_eps=0.0) -> Tensor"
)
_library.define("weight_rows(Tensor weights, Tensor rows, int inputs) -> Tensor")
_library.define(
    "plan_edits(Tensor sequences, Tensor lengths, Tensor phase_begin, Tensor phase_token, Tensor phase_kind,"
    " Tensor phase_value, Tensor phase_forced, float repetition_penalty, int ngram_size, Tensor(a!) begin,"
    " Tensor(b!) end, Tensor(c!) token, Tensor(d!) kind, Tensor(e!) value, Tensor(f!) forced) -> ()"
)
_library.define(
    "extend_beams(Tensor scores, Tensor parents, Tensor tokens, Tensor pool_scores, Tensor pool_finished,"
    " Tensor pool_source, Tensor pool_tokens, Tensor open_, Tensor done, Tensor(a!) active, Tensor(b!) lengths,"
    " Tensor(c!) kept_scores, Tensor(d!) kept_pool_scores, Tensor(e!) kept_pool_finished, Tensor(f!) kept_open,"
    " Tensor(g!) sequences, Tensor(h!) pool_sequences, Tensor(i!) pool_lengths, Tensor(j!) next_tokens,"
    " Tensor(k!) ancestry, Tensor(l!) n_keys, Tensor(m!) source_length) -> ()"
)
_library.define(
    "add_norm(Tensor(a!) stream, Tensor? branch, Tensor weight, Tensor bias, float eps, bool post_norm,"
    " ScalarType dtype) -> Tensor"
)

BeamStep = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def on_cuda(x: Tensor) -> bool:
    """Tell whether the CUDA kernels would take a tensor; where they are emulated, it lies in the CPU's memory."""
    device = "cpu" if _native.emulated else "cuda"
    return bool(_native.with_cuda) and x.device.type == device


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
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    query_begin: Tensor,
    ancestry: Tensor,
    n_keys: Tensor,
    scale: float,
) -> Tensor:
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    _native.cached_attention(query, key, value, key_cache, value_cache, query_begin, ancestry, n_keys, scale, out)
    return out


def _cached_attention_fake(query: Tensor, *_rest: object) -> Tensor:
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


def _nothing_fake(*_arguments: object) -> None:
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
    n_bytes = _native.source_workspace(query, key_panels, n_keys)
    workspace = query.new_empty(n_bytes, dtype=torch.uint8) if n_bytes else None
    _native.source_attention(query, key_panels, value_panels, query_begin, panel_begin, n_keys, scale, out, workspace)
    return out


def _source_attention_fake(query: Tensor, *_rest: object) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


def _greedy_step_fake(logits: Tensor, *_rest: object) -> tuple[Tensor, Tensor, Tensor]:
    rows = logits.shape[:1]
    return (
        logits.new_empty(rows, dtype=torch.int32),
        logits.new_empty(rows, dtype=torch.float64),
        logits.new_empty(rows, dtype=torch.bool),
    )


def _greedy_step(
    logits: Tensor,
    edit_begin: Tensor,
    edit_end: Tensor,
    edit_token: Tensor,
    edit_kind: Tensor,
    edit_value: Tensor,
    forced: Tensor,
    renormalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if logits.dim() != 2:
        raise ValueError(f"greedy_step: logits must be [R, V], got {list(logits.shape)}")
    outputs = _greedy_step_fake(logits)
    workspace = logits.new_empty(_native.greedy_step_workspace(logits, edit_token.numel()), dtype=torch.uint8)
    edits = (edit_begin, edit_end, edit_token, edit_kind, edit_value, forced)
    _native.greedy_step(logits, *edits, renormalize, *outputs, workspace)
    return outputs


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
    edit_end: Tensor,
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
    n_bytes = _native.beam_step_workspace(logits, scores.shape[1], edit_token.numel(), eos_ids.numel())
    workspace = logits.new_empty(n_bytes, dtype=torch.uint8)
    _native.beam_step(
        logits,
        scores,
        pool_scores,
        pool_finished,
        open_,
        edit_begin,
        edit_end,
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


def _linear(
    states: Tensor,
    weights: Tensor,
    weight_scales: Tensor | None,
    bias: Tensor,
    residual: Tensor | None,
    relu: bool,
    dtype: torch.dtype,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    norm_eps: float = 0.0,
) -> Tensor:
    n_bytes = _native.linear_workspace(states, weights, norm_weight is not None)
    workspace = states.new_empty(n_bytes, dtype=torch.uint8)
    out = states.new_empty(states.shape[0], bias.shape[0], dtype=dtype)
    _native.linear(
        states, weights, weight_scales, bias, residual, relu, norm_weight, norm_bias, norm_eps, out, workspace
    )
    return out


def _weight_rows_fake(weights: Tensor, rows: Tensor, inputs: int) -> Tensor:
    dtype = torch.int8 if weights.dtype == torch.uint8 else weights.dtype
    return weights.new_empty(rows.shape[0], inputs, dtype=dtype)


def _weight_rows(weights: Tensor, rows: Tensor, inputs: int) -> Tensor:
    out = _weight_rows_fake(weights, rows, inputs)
    # What int32 cannot hold must not come round to a row that there is.
    _native.weight_rows(weights, rows.clamp(-1, 2**31 - 1).int(), out.view(weights.dtype))
    return out


def _plan_edits(*arguments: Tensor | float) -> None:
    _native.plan_edits(*arguments)


def _extend_beams(*arguments: Tensor) -> None:
    _native.extend_beams(*arguments)


def _add_norm_fake(stream: Tensor, *rest: object) -> Tensor:
    dtype = rest[-1]
    assert isinstance(dtype, torch.dtype)
    return torch.empty_like(stream, dtype=dtype, memory_format=torch.contiguous_format)


def _add_norm(
    stream: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float, post_norm: bool, dtype: torch.dtype
) -> Tensor:
    normed = _add_norm_fake(stream, dtype)
    _native.add_norm(stream, branch, weight, bias, eps, post_norm, normed)
    return normed


def _linear_fake(states: Tensor, *rest: object) -> Tensor:
    _, _, bias, _, _, dtype = rest[:6]
    assert isinstance(bias, Tensor) and isinstance(dtype, torch.dtype)
    return states.new_empty(states.shape[0], bias.shape[0], dtype=dtype)


def is_watched() -> bool:
    """Tell whether somebody traces or profiles, and has to see every op."""
    return bool(torch.compiler.is_compiling() or _profiler_enabled())


def _register(
    name: str, implementation: Callable[..., Any], fake: Callable[..., Any], *, on_cuda: bool = True
) -> Callable[..., Any]:
    """Register an op, on CUDA too, on the caller's stream; returns what calls it."""
    _library.impl(name, implementation, "CPU")
    if on_cuda and _native.with_cuda:
        _library.impl(name, implementation, "CUDA")
    torch.library.register_fake(f"pegasus_batch::{name}", fake, lib=_library)
    registered = getattr(torch.ops.pegasus_batch, name).default

    @wraps(implementation)
    def call(*arguments: Any) -> Any:
        # PyTorch's dispatcher takes a tenth of what a small product does, and only who traces or profiles needs it.
        return registered(*arguments) if is_watched() else implementation(*arguments)

    return call


attention = _register("attention", _attention, _attention_fake)
cached_attention = _register("cached_attention", _cached_attention, _cached_attention_fake)
pack_source = _register("pack_source", _pack_source, _nothing_fake)
source_attention = _register("source_attention", _source_attention, _source_attention_fake)
greedy_step = _register("greedy_step", _greedy_step, _greedy_step_fake)
beam_step = _register("beam_step", _beam_step, _beam_step_fake)
plan_edits = _register("plan_edits", _plan_edits, _nothing_fake)
extend_beams = _register("extend_beams", _extend_beams, _nothing_fake)
add_norm = _register("add_norm", _add_norm, _add_norm_fake)
linear = _register("linear", _linear, _linear_fake, on_cuda=False)
weight_rows = _register("weight_rows", _weight_rows, _weight_rows_fake, on_cuda=False)


def block(kind: str, states: Tensor, *arguments: object) -> Tensor:
    """Return what a block makes of states; ``arguments`` as those of the native ``kind``, but for its output."""
    out = torch.empty_like(states, memory_format=torch.contiguous_format)
    norm, enter, leave, *rest = arguments
    getattr(_native, f"{kind}_block")(states, norm, enter, leave, out, *rest)
    return out
