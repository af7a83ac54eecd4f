"""Linear layers in the form that the engine computes with: our own product, oneDNN's, PyTorch's, and a GPU's head.

Each takes along the layer norm that comes before it in a pre-norm network; our own product makes it part of the layer.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from pegasus_batch import kernels

_PACKING_ROWS = 64  # the row count that oneDNN packs for; one packing serves every count from two up
_PACKED_DTYPES = (torch.float32, torch.bfloat16)
_QUANTIZED_ROWS = 4096  # at a time: a vocabulary's worth in float32, several times over, is a lot of memory
_HEAD_ROWS = 1024  # what the rows of a head on a GPU are a multiple of


class Norm:
    """A layer norm."""

    def __init__(self, weight: Tensor, bias: Tensor, eps: float) -> None:
        """Take weight and bias [D]."""
        self.weight, self.bias, self.eps = weight, bias, eps
        self.wide = weight.float(), bias.float(), eps

    def __call__(self, states: Tensor) -> Tensor:
        """Normalise states [N, D]."""
        return F.layer_norm(states, self.weight.shape, self.weight, self.bias, self.eps)


class OwnLinear:
    """A linear layer through our own CPU kernel, in float32, bfloat16, or with 8-bit weights.

    Of these, each output has a scale, and so has each row of inputs, quantized on the way; sums of their products are
    integers. A row's result never depends on the rows beside it.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, scales: Tensor | None, dtype: torch.dtype) -> None:
        """Lay weight [out, in] out: float32, bfloat16, or codes in int8 with scales [out]. Results have ``dtype``."""
        self.dtype = dtype
        self._inputs = weight.shape[1]
        self._compute_dtype = dtype if scales is not None else weight.dtype
        self._bias = torch.zeros(len(weight)) if bias is None else bias.detach().float().contiguous()
        self._scales = scales
        self._weights = kernels.pack_weights(weight)

    @property
    def packed(self) -> kernels.PackedLayer | None:
        """What a block takes of this layer; None where results have another type than they are computed in."""
        return (self._weights, self._scales, self._bias) if self.dtype == self._compute_dtype else None

    def rows(self, outputs: Tensor) -> Tensor:
        """Return the weights [N, in] of these outputs [N] int64, as the layer multiplies them."""
        rows = kernels.weight_rows(self._weights, outputs, self._inputs).to(self.dtype)
        return rows if self._scales is None else rows * self._scales[outputs, None]

    def __call__(
        self, states: Tensor, *, norm: Norm | None = None, relu: bool = False, residual: Tensor | None = None
    ) -> Tensor:
        """Map states [N, in], normalised if asked, to [N, out]; apply ReLU or add ``residual`` [N, out] before rounding."""
        dtype = self._compute_dtype
        if self._scales is None:
            states = states.to(dtype)
        if residual is not None:
            residual = residual.to(dtype).contiguous()
        before = () if norm is None else norm.wide
        result = kernels.linear(states, self._weights, self._scales, self._bias, residual, relu, dtype, *before)
        return result.to(self.dtype)


class OneDnnLinear:
    """A linear layer through oneDNN's packed product, which computes every row alike whatever their number, from two up."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        """Pack weight [out, in], float32 or bfloat16. Results have ``dtype``."""
        self.dtype, self._compute_dtype = dtype, weight.dtype
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACKING_ROWS)
        self._bias = None if bias is None else bias.detach().to(weight.dtype).contiguous()

    def __call__(
        self, states: Tensor, *, norm: Norm | None = None, relu: bool = False, residual: Tensor | None = None
    ) -> Tensor:
        """Map states [N, in], normalised if asked, to [N, out]; apply ReLU or add ``residual`` [N, out] before rounding."""
        states = states if norm is None else norm(states)
        rows = states.shape[0]
        if rows == 1:  # a single row would take another kernel, with other rounding
            states = states.expand(2, -1)
            residual = None if residual is None else residual.expand(2, -1)
        states = states.to(self._compute_dtype).contiguous()
        if residual is None:
            kind = "relu" if relu else "none"
            result = torch.ops.mkldnn._linear_pointwise(states, self._weight, self._bias, kind, [], "")
        else:
            wide = residual.to(self._compute_dtype).contiguous()
            result = torch.ops.mkldnn._linear_pointwise.binary(states, wide, self._weight, self._bias, "add")
        return result[:rows].to(self.dtype)


class TorchLinear:
    """A linear layer through PyTorch's own product: on a GPU, and on a CPU that has no better one."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        """Take weight [out, in] and bias [out]. Results have ``dtype``."""
        self.dtype = dtype
        self._weight = weight
        self._bias = None if bias is None else bias.detach().to(weight.dtype)

    def __call__(
        self, states: Tensor, *, norm: Norm | None = None, relu: bool = False, residual: Tensor | None = None
    ) -> Tensor:
        """Map states [N, in], normalised if asked, to [N, out], then apply ReLU or add ``residual`` [N, out], if asked."""
        states = states if norm is None else norm(states)
        states = states.to(self._weight.dtype)
        if relu and self._bias is not None and states.is_cuda:  # cuBLAS applies it on the way out
            return torch._addmm_activation(self._bias, states, self._weight.t())
        result = F.linear(states, self._weight, self._bias).to(self.dtype)
        result = torch.relu(result) if relu else result
        return result if residual is None else residual + result


class WideHead:
    """The language-model head on a GPU: float32 logits, because half of their digits would reorder beams.

    The vocabulary is padded with rows of zeros: an odd number of columns makes cuBLAS take slow kernels, and the beam step
    reads 16 bytes at a time.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Take weight [V, D] and bias [V]."""
        padding = -weight.shape[0] % _HEAD_ROWS
        self._weight = F.pad(weight, (0, 0, 0, padding)).t()
        self._bias = F.pad(bias.float(), (0, padding)) if bool(bias.any()) else None

    def __call__(self, states: Tensor) -> Tensor:
        """Map states [N, D] to logits [N, V or more] float32."""
        if states.is_cuda and states.dtype != torch.float32:
            logits = torch.mm(states, self._weight, out_dtype=torch.float32)
        else:
            logits = (states @ self._weight).float()
        return logits if self._bias is None else logits + self._bias


Linear = OwnLinear | OneDnnLinear | TorchLinear


def make_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """Lay weight [out, in] and bias [out] out for the fastest product of their type where they are; results have that type.

    float16, which few CPUs multiply, is computed there in float32 and rounded.
    """
    dtype, weight = weight.dtype, weight.detach()
    if weight.device.type == "cpu":
        weight = weight.float() if dtype == torch.float16 else weight
        if weight.dtype in _PACKED_DTYPES and _is_fast(weight.dtype):
            return OwnLinear(weight, bias, None, dtype)
        if weight.dtype in _PACKED_DTYPES and _can_pack(weight.dtype):
            return OneDnnLinear(weight, bias, dtype)
    return TorchLinear(weight, bias, dtype)


def quantize_linear(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> OwnLinear:
    """Quantize weight [out, in], on the CPU, to 8 bits with a scale for each output; results have ``dtype``."""
    scales = torch.empty(len(weight))
    codes = torch.empty(weight.shape, dtype=torch.int8)
    for begin in range(0, len(weight), _QUANTIZED_ROWS):
        part = slice(begin, begin + _QUANTIZED_ROWS)
        wide = weight[part].detach().float()
        scales[part] = wide.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127.0
        codes[part] = (wide / scales[part, None]).round()
    return OwnLinear(codes, bias, scales, dtype)


def _is_fast(dtype: torch.dtype) -> bool:
    """Tell whether our own product of ``dtype`` is at least as fast as oneDNN's on this CPU.

    It is with vectors of 256 bits and more, but for bfloat16 where the processor has tiles (AMX), which only oneDNN uses.
    """
    vectors = kernels.backend() not in ("reference", "native:baseline")
    return vectors and not (dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported())


@functools.cache
def _can_pack(dtype: torch.dtype) -> bool:
    """Tell whether this torch has oneDNN's packed product for ``dtype`` on this CPU.

    It is private to torch: it may be missing, refuse this CPU or compute something else.
    """
    try:
        weight = torch.ops.mkldnn._reorder_linear_weight(torch.eye(16, dtype=dtype), _PACKING_ROWS)
        ones = torch.ones(2, 16, dtype=dtype)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(ones, weight, None, "none", [], "")
    except (RuntimeError, AttributeError):
        return False
    return bool((product == 1).all())
