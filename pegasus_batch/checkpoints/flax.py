"""Flax checkpoints, ``flax_model.msgpack``: a MessagePack map of maps whose leaves are arrays, read and written without JAX."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pegasus_batch.checkpoints.foreign import (
    DTYPES,
    LINEAR_WEIGHT,
    Ignored,
    Place,
    Stored,
    import_optional,
    kind_of,
    to_tensor,
)

FILE = "flax_model.msgpack"
_ARRAY = 1  # the extension type of an array: (shape, dtype, bytes)
_CHUNKED = "__msgpack_chunked_array__"  # arrays near MessagePack's limit of 4 GB come as a map of flat pieces
_CHUNK_BYTES = 2**30
_MOST_LEVELS = 16
_LEAVES = {"embedding": "weight", "scale": "weight", "kernel": "weight", "bias": "bias"}
_WRITTEN = {("embedding", "weight"): "embedding", ("norm", "weight"): "scale", LINEAR_WEIGHT: "kernel"}


def read(path: Path) -> Stored:
    """Yield a file's arrays under names joined by slashes. Raises ValueError for a file that is damaged or no Flax file."""
    msgpack = import_optional("msgpack", path)

    def decode(code: int, payload: bytes) -> Tensor:
        if code != _ARRAY:
            raise ValueError(f"an extension of type {code}, where a checkpoint has arrays ({_ARRAY}) alone")
        fields = msgpack.unpackb(payload, max_array_len=64, max_map_len=0, max_ext_len=0)
        if not isinstance(fields, list) or len(fields) != 3 or not isinstance(fields[0], list):
            raise ValueError("an array without its shape, type and bytes")
        shape, dtype, data = fields
        if dtype not in DTYPES or not isinstance(data, bytes):
            raise ValueError(f"an array of type {dtype!r}; known are {', '.join(DTYPES)}")
        return to_tensor(bytearray(data), DTYPES[dtype], shape, "an array")

    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            # No list is ever nested in the maps, so that none can ask for memory.
            tree = msgpack.unpackb(data, ext_hook=decode, max_array_len=0, max_str_len=1024)
        leaves = dict(_flatten(tree, ()))
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"{path} is damaged or no Flax checkpoint: {error or type(error).__name__}") from error
    del tree
    for name in list(leaves):
        yield name, lambda name=name: leaves.pop(name)  # type: ignore[misc]


def _flatten(tree: Any, above: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, Tensor) and above:
        yield "/".join(above), tree
        return
    if not isinstance(tree, dict) or len(above) == _MOST_LEVELS:
        raise ValueError(f"{'/'.join(above) or 'the file'} is {type(tree).__name__}, not a map of arrays")
    if _CHUNKED in tree:
        yield "/".join(above), _join(tree)
        return
    for name, branch in tree.items():
        yield from _flatten(branch, (*above, name))


def _join(tree: Mapping[str, Any]) -> Tensor:
    """Put the pieces of a large array together."""
    try:
        shape, chunks = ([tree[part][str(i)] for i in range(len(tree[part]))] for part in ("shape", "chunks"))
        return torch.cat(chunks).reshape(shape)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"the chunks of an array do not fit together: {error}") from error


def rename(name: str) -> Place | Ignored | None:
    """Return where an array of a file belongs."""
    *path, leaf = name.split("/")
    if not path:
        return Place(leaf)
    return Place(".".join((*path, _LEAVES[leaf])), leaf == "kernel") if leaf in _LEAVES else None


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write Hugging Face's tensors as a file that Flax's classes load, one array at a time."""
    msgpack = import_optional("msgpack", path)
    packer = msgpack.Packer()
    tree: dict[str, Any] = {}
    for name in tensors:
        *above, leaf = name.split(".")
        branch = tree
        for part in above:
            branch = branch.setdefault(part, {})
        branch[_WRITTEN.get(kind_of(name), leaf)] = name

    def pack(node: dict[str, Any] | str) -> Iterator[bytes]:
        if isinstance(node, dict):
            yield packer.pack_map_header(len(node))
            for key, below in node.items():
                yield packer.pack(key)
                yield from pack(below)
            return
        tensor = tensors[node].t() if kind_of(node) == LINEAR_WEIGHT else tensors[node]
        chunks = tensor.flatten().split(_CHUNK_BYTES // tensor.element_size())
        if len(chunks) == 1:
            yield pack_array(chunks[0], tensor.shape)
            return
        yield packer.pack_map_header(3) + packer.pack(_CHUNKED) + packer.pack(True)
        yield packer.pack("shape") + packer.pack({str(i): length for i, length in enumerate(tensor.shape)})
        yield packer.pack("chunks") + packer.pack_map_header(len(chunks))
        for i, chunk in enumerate(chunks):
            yield packer.pack(str(i)) + pack_array(chunk, chunk.shape)

    def pack_array(flat: Tensor, shape: torch.Size) -> bytes:
        fields = (list(shape), str(flat.dtype).removeprefix("torch."), flat.view(torch.uint8).numpy().tobytes())
        packed: bytes = packer.pack(msgpack.ExtType(_ARRAY, msgpack.packb(fields)))
        return packed

    with path.open("wb") as file:
        file.writelines(pack(tree))
