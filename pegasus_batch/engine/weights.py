"""Weights in the form that the engine computes with, and the few numeric facts of the network that others share."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pegasus_batch import kernels
from pegasus_batch.config import Seq2SeqConfig

_FP16_RESIDUAL_SCALE = 2.0**-6
_PACKING_ROWS = 64  # the row count that oneDNN packs for; one packing serves every count from two up
_PACKED_DTYPES = (torch.float32, torch.bfloat16)
_QUANTIZED_ROWS = 4096  # at a time: a vocabulary's worth in float32, several times over, is a lot of memory
_HEAD_ROWS = 1024  # what the rows of a head on a GPU are a multiple of
_VECTOR = 64  # elements; a multiple of what torch unrolls its widest vectors to
_ONE_THREAD = 8192  # elements; below what torch shares among threads


def residual_scale(config: Seq2SeqConfig, dtype: torch.dtype) -> float:
    """Return the factor at which a network of ``dtype`` holds its residual stream.

    Pegasus' stream exceeds float16's largest value in the encoder's upper layers. In a pre-norm network the stream is only
    ever read through layer norms, so holding it at a power of two times its value, with eps shrunk by the square, changes
    nothing else. A post-norm network normalises the stream itself and has no need of it.
    """
    return _FP16_RESIDUAL_SCALE if config.pre_norm and dtype == torch.float16 else 1.0


def activation(name: str, states: Tensor) -> Tensor:
    """Apply the feed-forward activation of that Hugging Face name, elementwise."""
    match name:
        case "relu":
            return torch.relu(states)
        case "gelu":
            return F.gelu(states)
        case "gelu_new":
            return F.gelu(states, approximate="tanh")
        case "silu":
            return F.silu(states)
    raise ValueError(f"unknown activation function {name!r}")


def sinusoids(positions: int, d_model: int) -> Tensor:
    """Return Pegasus' position table [positions, d_model], float32: all sines in the first half, cosines in the second.

    Position p and pair i give the angle p / 10000^(2i / d_model), computed in float64 as the released checkpoints expect.
    """
    columns = torch.arange(d_model, dtype=torch.float64)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] / 10000.0 ** (2 * (columns // 2) / d_model)
    return torch.cat((angles[:, 0::2].sin(), angles[:, 1::2].cos()), dim=1).float()


class PackedLinear:
    """A linear layer with its weight laid out once for the matrix product.

    On the CPU, float32 and bfloat16 go through our own product or, where that is the faster one, oneDNN's; every row is
    computed the same way whatever the number of rows. float16, which few CPUs multiply, is computed in float32 and
    rounded. Elsewhere it is ``torch.nn.functional.linear``.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Pack weight [out, in] and bias [out]."""
        self.dtype = weight.dtype
        on_cpu = weight.device.type == "cpu"
        self._compute_dtype = torch.float32 if on_cpu and weight.dtype == torch.float16 else weight.dtype
        self._inputs = weight.shape[1]
        self._weight = weight.detach().to(self._compute_dtype)
        self._bias = None if bias is None else bias.detach().to(self._compute_dtype).contiguous()
        packed = on_cpu and self._compute_dtype in _PACKED_DTYPES
        self._product = "own" if packed and _is_fast(self._compute_dtype) else "torch"
        if self._product == "own":
            self._weight = kernels.pack_weights(self._weight)
            self._bias = torch.zeros(len(weight)) if self._bias is None else self._bias.float()
        elif packed and _can_pack(self._compute_dtype):
            self._product = "oneDNN"
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight.contiguous(), _PACKING_ROWS)

    @property
    def has_rows(self) -> bool:
        """Whether ``rows`` can be had of the packed weight."""
        return self._product == "own"

    def rows(self, outputs: Tensor) -> Tensor:
        """Return the weights [N, in] of these outputs [N] int64."""
        return kernels.weight_rows(self._weight, outputs, self._inputs).to(self.dtype)

    def __call__(self, states: Tensor, *, relu: bool = False, residual: Tensor | None = None) -> Tensor:
        """Map states [N, in] to [N, out] in the layer's dtype, then apply ReLU or add ``residual`` [N, out], if asked.

        The packed products do so before they round.
        """
        dtype = self._compute_dtype
        states = states.to(dtype)
        wide = None if residual is None else residual.to(dtype).contiguous()
        if self._product == "own":
            assert self._bias is not None
            return kernels.linear(states, self._weight, None, self._bias, wide, relu, dtype).to(self.dtype)
        if self._product == "oneDNN":
            return self._through_onednn(states, relu, wide).to(self.dtype)
        if relu and self._bias is not None and states.is_cuda:  # cuBLAS applies it on the way out
            return torch._addmm_activation(self._bias, states, self._weight.t())
        result = F.linear(states, self._weight, self._bias).to(self.dtype)
        result = torch.relu(result) if relu else result
        return result if residual is None else residual + result

    def _through_onednn(self, states: Tensor, relu: bool, residual: Tensor | None) -> Tensor:
        rows = states.shape[0]
        if rows == 1:  # a single row would take another kernel, with other rounding
            states = states.expand(2, -1)
            residual = None if residual is None else residual.expand(2, -1).contiguous()
        states = states.contiguous()
        if residual is None:
            kind = "relu" if relu else "none"
            result = torch.ops.mkldnn._linear_pointwise(states, self._weight, self._bias, kind, [], "")
        else:
            result = torch.ops.mkldnn._linear_pointwise.binary(states, residual, self._weight, self._bias, "add")
        return result[:rows]


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


class QuantizedLinear:
    """A linear layer with 8-bit weights, a scale for each output, and inputs quantized on the way, a scale for each row.

    The sums of products are integers, so a row's result does not depend on the rows beside it.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        """Quantize weight [out, in] and keep bias [out], on the CPU; results have ``dtype``, float32 or bfloat16."""
        self.dtype = dtype
        self._bias = bias.detach().float().contiguous()
        self._scales = torch.empty(len(weight))
        codes = torch.empty(weight.shape, dtype=torch.int8)
        for begin in range(0, len(weight), _QUANTIZED_ROWS):
            part = slice(begin, begin + _QUANTIZED_ROWS)
            wide = weight[part].detach().float()
            self._scales[part] = wide.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127.0
            codes[part] = (wide / self._scales[part, None]).round()
        self._weights = kernels.pack_weights(codes)

    def __call__(self, states: Tensor, *, relu: bool = False, residual: Tensor | None = None) -> Tensor:
        """Map states [N, in], float32 or bfloat16, to [N, out]; then ReLU or ``residual`` [N, out] of the result's type."""
        return kernels.linear(states, self._weights, self._scales, self._bias, residual, relu, self.dtype)


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


def embedding_scale(config: Seq2SeqConfig) -> float:
    """Return what token embeddings are multiplied by on their way in; the tied head is not."""
    return math.sqrt(config.d_model) if config.scale_embedding else 1.0


def row_activation(name: str, states: Tensor) -> Tensor:
    """Apply the activation to states [N, F] so that an element's result depends on nothing but the element.

    torch computes the ends of its loops and of its threads' shares with scalar code whose last bit may differ from the vector
    code's. Pieces that one thread takes, of a length that vectors divide, have no such ends. ReLU has no last bit to lose.
    """
    if name == "relu" or states.device.type != "cpu":
        return activation(name, states)
    flat = F.pad(states.flatten(), (0, -states.numel() % _VECTOR))
    pieces = [activation(name, piece) for piece in flat.split(_ONE_THREAD)]
    return torch.cat(pieces)[: states.numel()].view_as(states) if pieces else states
