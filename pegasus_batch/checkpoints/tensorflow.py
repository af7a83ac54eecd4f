"""TensorFlow checkpoints of Hugging Face, ``tf_model.h5``: Keras' weights in an HDF5 file, read without TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pegasus_batch.checkpoints.foreign import DTYPES, LINEAR_WEIGHT, Ignored, Place, Stored, import_optional, kind_of

FILE = "tf_model.h5"
_LEAVES = {
    "embeddings": "weight",
    "weight": "weight",
    "gamma": "weight",
    "beta": "bias",
    "kernel": "weight",
    "bias": "bias",
}
_WRITTEN = {
    ("embedding", "weight"): "embeddings",
    ("norm", "weight"): "gamma",
    ("norm", "bias"): "beta",
    LINEAR_WEIGHT: "kernel",
}


def read(path: Path) -> Stored:
    """Yield a file's data sets by their paths in it, each read at its call.

    Links to other places or files are not followed, nor is data taken from other files. Raises ValueError for a file that
    is damaged or no HDF5 file.
    """
    h5py = import_optional("h5py", path)
    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} is damaged or no HDF5 file: {error}") from error
    with file:
        try:
            file.visititems(visit)
        except (RuntimeError, KeyError, OSError, ValueError) as error:  # h5py raises many kinds for a damaged file
            raise ValueError(f"{path} is damaged: {error}") from error
        for name, dataset in found.items():
            yield name, lambda name=name, dataset=dataset: _load(path, name, dataset)  # type: ignore[misc]


def _load(path: Path, name: str, dataset: Any) -> Tensor:
    try:
        # An HDF5 file may promise any shape and store nothing of it, so what is stored decides.
        if dataset.is_virtual or dataset.external or dataset.dtype.name not in DTYPES:
            raise ValueError(f"its type is {dataset.dtype}, or its data lies in another file")
        if dataset.id.get_storage_size() < dataset.nbytes:
            raise ValueError(f"{dataset.id.get_storage_size()} bytes are stored where its shape takes {dataset.nbytes}")
        return torch.from_numpy(dataset[()]) if dataset.ndim else torch.tensor(dataset[()])
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {name}: {error}") from error


def rename(name: str) -> Place | Ignored | None:
    """Return where a data set belongs: below the layer's group comes the model's name, which varies, then the weight's."""
    *path, leaf = name.removesuffix(":0").split("/")
    if not path:
        return None
    path = path[2:]
    if leaf == "final_logits_bias":
        return Place(leaf)
    return Place(".".join((*path, _LEAVES[leaf])), leaf == "kernel") if path and leaf in _LEAVES else None


def write(path: Path, tensors: Mapping[str, Tensor], architecture: str) -> None:
    """Write Hugging Face's tensors as a file that TensorFlow's classes load, laid out as Keras lays it out."""
    h5py = import_optional("h5py", path)
    lacking = {str(tensor.dtype) for tensor in tensors.values()} & {"torch.bfloat16"}
    if lacking:
        raise ValueError(
            f"{path.name} cannot hold torch.bfloat16, which HDF5 does not have: save the model in another dtype"
        )
    model = "tf" + re.sub(r"[A-Z]", lambda letter: f"_{letter[0].lower()}", architecture)
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, written = _keras_name(name, model)
        layers.setdefault(layer, {})[written] = tensor.t() if kind_of(name) == LINEAR_WEIGHT else tensor
    with h5py.File(path, "w") as file:
        file.attrs["backend"] = "tensorflow"
        file.attrs["layer_names"] = list(layers)
        for layer, weights in layers.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = list(weights)
            for written, tensor in weights.items():
                group[written] = tensor.contiguous().numpy()


def _keras_name(name: str, model: str) -> tuple[str, str]:
    """Return a weight's layer and its name there."""
    if "." not in name:
        return name, f"{name}:0"
    if name.endswith("shared.weight"):
        return "model", "model.shared/model.shared/embeddings:0"
    *path, leaf = name.removeprefix("model.").split(".")
    leaf = _WRITTEN.get(kind_of(name), leaf)
    inner = "/".join((*path, f"{leaf}:0")).replace("layers/", "layers.")
    if path[0] == "classification_head":
        return path[0], f"{model}/{inner}"
    return "model", f"{model}/model/{inner}"
