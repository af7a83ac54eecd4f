"""The ops of the engine: attention, norms, the steps of a search and what surrounds them, the linear layer in 8 bits.

This module alone decides which implementation runs: the native extension for float32 and bfloat16 tensors on the CPU,
and for these and float16 on a GPU, when no gradient is recorded; plain PyTorch (``reference``) for everything else.
``backend()`` tells what runs on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

from pegasus_batch.kernels import packed, reference, reference_state
from pegasus_batch.kernels.reference import PANEL, apply_edits, pack_weights, panel_elements

__all__ = [
    "PANEL",
    "PackedLayer",
    "PackedLayers",
    "add_norm",
    "apply_edits",
    "attention",
    "backend",
    "beam_step",
    "block",
    "cached_attention",
    "extend_beams",
    "greedy_step",
    "linear",
    "pack_source",
    "pack_weights",
    "panel_elements",
    "plan_edits",
    "source_attention",
    "takes_blocks",
    "use",
    "weight_rows",
]

PackedLayer = tuple[Tensor, Tensor | None, Tensor]  # of ``linear``: its weights, their scales, its bias
PackedLayers = tuple[PackedLayer, PackedLayer]  # the first and the last of a block

_CPU_DTYPES = (torch.float32, torch.bfloat16)
_CUDA_DTYPES = (*_CPU_DTYPES, torch.float16)
# A head's keys and values are copied in tiles to the stack, or held in registers; wider heads would not fit there.
_MAX_NATIVE_HEAD_SIZE = 256
_MAX_NATIVE_BEAMS = 32  # a thread holds one column of them
# The candidates of a document share a block's memory; beam_step on CUDA refuses more.
_MAX_CUDA_CANDIDATES = 1024

try:
    from pegasus_batch.kernels import native as _native_module

    _native: ModuleType | None = _native_module
    _native_error: ImportError | None = None
except ImportError as error:
    _native, _native_error = None, error

_forced: str | None = None  # set by use(): "native", "reference" or, in between, None


def backend() -> str:
    """Return what runs for float32 and bfloat16 on the CPU: ``"native:<isa>"`` or ``"reference"``."""
    if _forced == "reference" or _native is None:
        return "reference"
    return f"native:{_native.isa()}"


@contextmanager
def use(name: str) -> Iterator[None]:
    """Run every op by one implementation, ``"native"`` or ``"reference"``, inside a ``with`` block.

    Raises ValueError for another name and ImportError when native ops are demanded but the extension is missing. Not
    thread-safe: the choice is the process's.
    """
    global _forced
    if name not in ("native", "reference"):
        raise ValueError(f"kernels.use({name!r}): choose 'native' or 'reference'")
    if name == "native" and _native is None:
        raise ImportError(
            "the native kernels are not built; run `pip install -e . --no-build-isolation` in the source tree, or"
            f" install the pegasus-batch wheel ({_native_error})"
        ) from _native_error
    previous, _forced = _forced, name
    try:
        yield
    finally:
        _forced = previous


def on_gpu(tensor: Tensor) -> bool:
    """Tell whether a tensor lies on a GPU, or where the kernels for one are emulated, for tests."""
    return tensor.device.type == "cuda" or has_gpu_kernels(tensor)


def has_gpu_kernels(tensor: Tensor) -> bool:
    """Tell whether the extension has kernels for the GPU that a tensor lies on."""
    return _native is not None and _forced != "reference" and _native.on_cuda(tensor)


def _implementation(*tensors: Tensor, on_cuda: bool = False) -> ModuleType:
    # The first tensor decides device and dtype; the native op itself refuses a mixture. on_cuda: the op has a CUDA kernel.
    if _native is None or _forced == "reference":
        return reference
    if _forced == "native":
        return _native
    first = tensors[0]
    dtypes: tuple[torch.dtype, ...] = _CPU_DTYPES if first.device.type == "cpu" else ()
    if on_cuda and _native.on_cuda(first):
        dtypes = _CUDA_DTYPES
    records_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return _native if first.dtype in dtypes and not records_gradient else reference


def _attention_implementation(*tensors: Tensor) -> ModuleType:
    implementation = _implementation(*tensors, on_cuda=True)
    return implementation if tensors[0].shape[-1] <= _MAX_NATIVE_HEAD_SIZE else reference


def _native_on_gpu(tensor: Tensor) -> ModuleType | None:
    # For what has a CUDA kernel and none for the CPU.
    return _native if has_gpu_kernels(tensor) else None


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_begin: Tensor,
    key_begin: Tensor,
    n_keys: Tensor,
    scale: float,
    *,
    longest: int | None = None,
) -> Tensor:
    """Attend the query rows of each document to that document's keys; see ``reference.attention``.

    The native op also promises that a row's result has the same bits whatever else is in the call and however many
    threads run. ``longest`` says that the keys of a document lie where its queries do, and how many the longest has: then
    torch's own kernels serve on a GPU.
    """
    if longest is not None and on_gpu(query):
        return packed.self_attention(query, key, value, query_begin, longest, scale)
    result: Tensor = _attention_implementation(query, key, value).attention(
        query, key, value, query_begin, key_begin, n_keys, scale
    )
    return result


def cached_attention(
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
    """Cache each decoder row's newest key and attend it to its own past; see ``reference.cached_attention``."""
    result: Tensor = _attention_implementation(query, key, value, key_cache, value_cache).cached_attention(
        query, key, value, key_cache, value_cache, query_begin, ancestry, n_keys, scale
    )
    return result


def pack_source(
    key: Tensor,
    value: Tensor,
    key_begin: Tensor,
    n_keys: Tensor,
    panel_begin: Tensor,
    key_panels: Tensor,
    value_panels: Tensor,
) -> None:
    """Lay the keys and values of documents out for reading at every step; see ``reference.pack_source``."""
    _attention_implementation(key, value).pack_source(
        key, value, key_begin, n_keys, panel_begin, key_panels, value_panels
    )


def source_attention(
    query: Tensor,
    key_panels: Tensor,
    value_panels: Tensor,
    query_begin: Tensor,
    panel_begin: Tensor,
    n_keys: Tensor,
    scale: float,
) -> Tensor:
    """Attend the query rows of each document to its packed keys; see ``reference.source_attention``."""
    result: Tensor = _attention_implementation(query).source_attention(
        query, key_panels, value_panels, query_begin, panel_begin, n_keys, scale
    )
    return result


def greedy_step(
    logits: Tensor,
    edit_begin: Tensor,
    edit_end: Tensor,
    edit_token: Tensor,
    edit_kind: Tensor,
    edit_value: Tensor,
    forced: Tensor,
    renormalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the best token of every row; see ``reference.greedy_step``."""
    native = _native_on_gpu(logits) if logits.dtype in _CUDA_DTYPES else None
    tokens, gains, broken = (native or reference).greedy_step(
        logits, edit_begin, edit_end, edit_token, edit_kind, edit_value, forced, renormalize
    )
    return tokens, gains, broken


def beam_step(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Choose the K best continuations of every document; see ``reference.beam_step``."""
    native = _native_on_gpu(logits)
    if native is None:
        implementation = _implementation(logits)
    else:
        fits = max(2, 1 + eos_ids.numel()) * scores.shape[1] <= _MAX_CUDA_CANDIDATES
        implementation = native if fits and logits.dtype in _CUDA_DTYPES else reference
    result: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor] = implementation.beam_step(
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
    )
    return result


def plan_edits(
    sequences: Tensor,
    lengths: Tensor,
    phase_begin: Tensor,
    phase_token: Tensor,
    phase_kind: Tensor,
    phase_value: Tensor,
    phase_forced: Tensor,
    repetition_penalty: float,
    ngram_size: int,
    begin: Tensor,
    end: Tensor,
    token: Tensor,
    kind: Tensor,
    value: Tensor,
    forced: Tensor,
) -> None:
    """Write the edits of the coming step of every beam; see ``reference_state.plan_edits``."""
    (_native_on_gpu(sequences) or reference_state).plan_edits(
        sequences,
        lengths,
        phase_begin,
        phase_token,
        phase_kind,
        phase_value,
        phase_forced,
        repetition_penalty,
        ngram_size,
        begin,
        end,
        token,
        kind,
        value,
        forced,
    )


def extend_beams(
    scores: Tensor,
    parents: Tensor,
    tokens: Tensor,
    pool_scores: Tensor,
    pool_finished: Tensor,
    pool_source: Tensor,
    pool_tokens: Tensor,
    open_: Tensor,
    done: Tensor,
    active: Tensor,
    lengths: Tensor,
    kept_scores: Tensor,
    kept_pool_scores: Tensor,
    kept_pool_finished: Tensor,
    kept_open: Tensor,
    sequences: Tensor,
    pool_sequences: Tensor,
    pool_lengths: Tensor,
    next_tokens: Tensor,
    ancestry: Tensor,
    n_keys: Tensor,
    source_length: Tensor,
) -> None:
    """Carry what a beam step chose into the state of a search; see ``reference_state.extend_beams``."""
    native = _native_on_gpu(scores) if scores.shape[1] <= _MAX_NATIVE_BEAMS else None
    (native or reference_state).extend_beams(
        scores,
        parents,
        tokens,
        pool_scores,
        pool_finished,
        pool_source,
        pool_tokens,
        open_,
        done,
        active,
        lengths,
        kept_scores,
        kept_pool_scores,
        kept_pool_finished,
        kept_open,
        sequences,
        pool_sequences,
        pool_lengths,
        next_tokens,
        ancestry,
        n_keys,
        source_length,
    )


def add_norm(
    stream: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float, post_norm: bool, dtype: torch.dtype
) -> Tensor:
    """Add a branch to the residual stream and return the layer norm of the sum; see ``reference.add_norm``."""
    implementation = _native_on_gpu(stream) or reference
    result: Tensor = implementation.add_norm(stream, branch, weight, bias, eps, post_norm, dtype)
    return result


def linear(
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
    """Compute a linear layer with weights that ``pack_weights`` has laid out; see ``reference.linear``."""
    result: Tensor = _implementation(states).linear(
        states, weights, weight_scales, bias, residual, relu, dtype, norm_weight, norm_bias, norm_eps
    )
    return result


def weight_rows(weights: Tensor, rows: Tensor, inputs: int) -> Tensor:
    """Return weights [N, inputs] out of what ``pack_weights`` has laid out; see ``reference.weight_rows``."""
    native = _native if weights.device.type == "cpu" and _forced != "reference" else None
    result: Tensor = (native or reference).weight_rows(weights, rows, inputs)
    return result


def takes_blocks(states: Tensor, heads: int = 0) -> bool:
    """Tell whether ``block`` takes states [N, I] of so many heads: natively, on the CPU, while nobody has to see single ops."""
    if _native is None or states.device.type != "cpu" or has_gpu_kernels(states) or _native.is_watched():
        return False
    return _implementation(states) is _native and (not heads or states.shape[1] // heads <= _MAX_NATIVE_HEAD_SIZE)


def block(
    kind: str,
    states: Tensor,
    norm: tuple[Tensor, Tensor, float] | tuple[()],
    enter: PackedLayer,
    leave: PackedLayer,
    heads: int = 0,
    *rest: Tensor | float,
) -> Tensor:
    """Run a block of the network in one call: states [N, I] plus what a layer, an op and another layer make of them.

    ``kind``: ``"attention"``, ``"cached_attention"`` or ``"source_attention"``, with the number of heads and, as ``rest``, the
    op's arguments after query, key and value; or ``"feed_forward"``, without heads, ReLU in between. ``norm``: a layer norm's
    weight, bias and eps before the first layer, or nothing. The same bits as by single ops.
    """
    assert _native is not None, "takes_blocks() comes first"
    arguments = (heads, *rest) if kind != "feed_forward" else ()
    result: Tensor = _native.block(kind, states, norm, enter, leave, *arguments)
    return result
