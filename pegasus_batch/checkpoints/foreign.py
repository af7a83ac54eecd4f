"""What the readers of other projects' checkpoints share: where a tensor belongs, and how bytes become one."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# A file's tensors: each one's name there, and what reads it. Nothing is read, as far as the format allows, before the call.
Stored = Iterator[tuple[str, Callable[[], Tensor]]]

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
}
LINEAR_WEIGHT = ("linear", "weight")  # which other projects store the other way round


@dataclass(frozen=True)
class Place:
    """Where a tensor belongs in a Hugging Face model; a matrix may be stored the other way round."""

    name: str
    transposed: bool = False


@dataclass(frozen=True)
class Ignored:
    """A tensor that no model needs, and why."""

    reason: str


def import_optional(module: str, path: Path) -> Any:
    """Import a package that reading or writing ``path`` takes; ModuleNotFoundError names the command that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path.name} takes the package {module}, which is not installed: pip install 'pegasus-batch[convert]'"
        ) from error


def to_tensor(data: bytearray, dtype: torch.dtype, shape: Sequence[int], what: str) -> Tensor:
    """Return bytes as a tensor that shares them; ValueError where the shape needs another number of bytes."""
    if not all(isinstance(length, int) and 0 <= length < 1 << 32 for length in shape):
        raise ValueError(f"{what} has the shape {list(shape)}")
    needed = math.prod(shape) * dtype.itemsize
    if needed != len(data):
        raise ValueError(f"{what} has {len(data)} bytes where shape {list(shape)} of {dtype} takes {needed}")
    return torch.frombuffer(data, dtype=dtype).reshape(tuple(shape)) if data else torch.empty(tuple(shape), dtype=dtype)


def sides(tensors: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    """Return the rows and columns of a matrix that must be there; ValueError where it is not."""
    if name not in tensors or tensors[name].ndim != 2:
        found = f"has the shape {list(tensors[name].shape)}" if name in tensors else "is missing"
        raise ValueError(f"{name}, which every checkpoint of this kind has as a matrix, {found}")
    rows, columns = tensors[name].shape
    return rows, columns


def derive_stacks(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the settings of config.json that the shapes of bare tensors show."""
    settings: dict[str, int] = {}
    for stack in ("encoder", "decoder"):
        layers = {name.split(".")[2] for name in tensors if name.startswith(f"{stack}.layers.")}
        settings |= {
            f"{stack}_layers": len(layers),
            f"{stack}_ffn_dim": sides(tensors, f"{stack}.layers.0.fc1.weight")[0],
        }
    return settings


def kind_of(name: str) -> tuple[str, str]:
    """Return what module a tensor of Hugging Face's is of, and its name there: other projects store each kind differently."""
    *above, leaf = name.split(".")
    if not above:
        return "plain", leaf
    if above[-1] in ("shared", "embed_tokens", "embed_positions"):
        return "embedding", leaf
    return ("norm" if "norm" in above[-1] else "linear"), leaf
