"""The few numeric facts of the network that others share: scales, positions, activations."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pegasus_batch.config import Seq2SeqConfig

_FP16_RESIDUAL_SCALE = 2.0**-6
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

    Position p and pair i give the angle p / 10000^(2i / d_model), computed in float64 as the released checkpoints expect;
    on the CPU, so that the last bits are the same for every default device, where the result then is.
    """
    columns, rows = (torch.arange(n, dtype=torch.float64, device="cpu") for n in (d_model, positions))
    angles = rows[:, None] / 10000.0 ** (2 * (columns // 2) / d_model)
    return torch.cat((angles[:, 0::2].sin(), angles[:, 1::2].cos()), dim=1).float().to(torch.get_default_device())


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
