"""Attention of whole packed documents on a GPU, by torch's own kernels: hundreds of queries each keep those busy."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)
_FLASH_CAPABILITY = (8, 0)  # Ampere


def self_attention(query: Tensor, key: Tensor, value: Tensor, begins: Tensor, longest: int, scale: float) -> Tensor:
    """Attend the rows of each document to one another; as ``reference.attention`` with keys where the queries are.

    query, key, value [N, H, D]; begins [B+1] int32: document b is the rows begins[b] : begins[b+1], at most ``longest``.
    Rows that belong to no document yield anything.
    """
    flash = _flash() if _can_flash(query) else None
    if flash is not None:
        if scale != query.shape[-1] ** -0.5:
            query = query * (scale * query.shape[-1] ** 0.5)
        result: Tensor = flash(query, key, value, begins, begins, longest, longest)
        return result
    return _padded(query, key, value, begins, longest, scale)


@cache
def _flash() -> Callable[..., Any] | None:
    # Not at the top: it takes torch's compiler along, a second and 80 MB for every process.
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # this torch has no flash attention for packed documents
        return None
    return varlen_attn


def _can_flash(query: Tensor) -> bool:
    return (
        query.device.type == "cuda"
        and query.dtype in _HALF
        and query.shape[-1] % 8 == 0
        and torch.cuda.get_device_capability(query.device) >= _FLASH_CAPABILITY
    )


def _padded(query: Tensor, key: Tensor, value: Tensor, begins: Tensor, longest: int, scale: float) -> Tensor:
    counts = begins.diff()
    place = torch.arange(longest, device=query.device)
    seen = place < counts[:, None]  # [B, longest]
    rows = torch.where(seen, begins[:-1, None] + place, 0)
    # A document without rows sees row 0, whose result nobody takes.
    mask = (seen | (counts[:, None] == 0) & (place == 0))[:, None, None, :]
    q, k, v = (x[rows.long()].transpose(1, 2) for x in (query, key, value))  # [B, H, longest, D]
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2)
    out = torch.zeros_like(query, memory_format=torch.contiguous_format)
    # Padding is written where no row is read: beyond the last one.
    spare = torch.cat((out, out.new_zeros(1, *out.shape[1:])))
    spare.index_copy_(0, torch.where(seen, rows, len(out)).flatten().long(), attended.flatten(0, 1))
    return spare[:-1]
