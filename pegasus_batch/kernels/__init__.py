"""The ops of the engine: three kinds of attention, ``beam_step``, and the linear layer in 8 bits.

This module alone decides which implementation runs: the native extension for float32 and bfloat16 tensors on the CPU
when no gradient is recorded, plain PyTorch (``reference``) for everything else. ``backend()`` tells what the former is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

from pegasus_batch.kernels import reference
from pegasus_batch.kernels.reference import PANEL, apply_edits, pack_int8

__all__ = [
    "PANEL",
    "apply_edits",
    "attention",
    "backend",
    "beam_step",
    "cached_attention",
    "linear_int8",
    "pack_int8",
    "pack_source",
    "source_attention",
    "use",
]

_NATIVE_DTYPES = (torch.float32, torch.bfloat16)
# A head's keys and values are copied in tiles to the stack; wider heads would not fit there.
_MAX_NATIVE_HEAD_SIZE = 256

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


def _implementation(*tensors: Tensor) -> ModuleType:
    # The first tensor decides device and dtype; the native op itself refuses a mixture.
    if _native is None or _forced == "reference":
        return reference
    if _forced == "native":
        return _native
    first = tensors[0]
    if first.device.type != "cpu" or first.dtype not in _NATIVE_DTYPES:
        return reference
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return reference
    return _native


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_begin: Tensor,
    key_begin: Tensor,
    n_keys: Tensor,
    scale: float,
) -> Tensor:
    """Attend the query rows of each document to that document's keys; see ``reference.attention``.

    The native op also promises that a row's result has the same bits whatever else is in the call and however many
    threads run.
    """
    implementation = _implementation(query, key, value)
    if query.shape[-1] > _MAX_NATIVE_HEAD_SIZE:
        implementation = reference
    result: Tensor = implementation.attention(query, key, value, query_begin, key_begin, n_keys, scale)
    return result


def cached_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    ancestry: Tensor,
    n_keys: Tensor,
    scale: float,
) -> Tensor:
    """Attend each decoder row to its own past through its ancestry; see ``reference.cached_attention``."""
    implementation = _implementation(query, key_cache, value_cache)
    if query.shape[-1] > _MAX_NATIVE_HEAD_SIZE:
        implementation = reference
    result: Tensor = implementation.cached_attention(query, key_cache, value_cache, ancestry, n_keys, scale)
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
    _packer(key, value).pack_source(key, value, key_begin, n_keys, panel_begin, key_panels, value_panels)


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
    result: Tensor = _packer(query).source_attention(
        query, key_panels, value_panels, query_begin, panel_begin, n_keys, scale
    )
    return result


def _packer(*tensors: Tensor) -> ModuleType:
    implementation = _implementation(*tensors)
    on_cpu = tensors[0].device.type == "cpu"  # there is none for CUDA
    return implementation if on_cpu and tensors[0].shape[-1] <= _MAX_NATIVE_HEAD_SIZE else reference


def beam_step(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Choose the K best continuations of every document; see ``reference.beam_step``."""
    result: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor] = _implementation(
        logits
    ).beam_step(
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
    )
    return result


def linear_int8(
    states: Tensor,
    weights: Tensor,
    weight_scales: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    relu: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Compute a linear layer with 8-bit weights, packed by ``pack_int8``; see ``reference.linear_int8``."""
    result: Tensor = _implementation(states).linear_int8(states, weights, weight_scales, bias, residual, relu, dtype)
    return result
