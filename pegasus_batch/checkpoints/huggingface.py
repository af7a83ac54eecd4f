"""Hugging Face model directories: safetensors (one file or shards) and pytorch_model.bin, read and written.

Nothing here unpickles code: .bin files load with ``weights_only=True``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pegasus_batch.config import GenerationConfig, Seq2SeqConfig, read_json, write_json

FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TOKEN_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
HEAD = "lm_head.weight"
_BIAS = "final_logits_bias"
LEFTOVERS = ("encoder.version", "decoder.version")
_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
    "int8": torch.int8,
}


def parse_dtype(dtype: torch.dtype | str, config: Seq2SeqConfig | None = None) -> torch.dtype:
    """Return a torch dtype for itself, its name, or "auto" (the checkpoint's own); ValueError for another name."""
    if isinstance(dtype, torch.dtype):
        return dtype
    name = dtype
    if name == "auto" and config is not None:
        name = str(config.extra.get("dtype") or config.extra.get("torch_dtype") or "float32")
    if name not in _DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def read(directory: Path) -> dict[str, Tensor]:
    """Read every tensor of a model directory, whatever file format it has; FileNotFoundError or ValueError if it cannot."""
    for name in FILES:
        path = directory / name
        if path.is_file():
            return _read_shards(path) if name.endswith(".index.json") else _read_file(path)
    raise FileNotFoundError(f"{directory} holds none of {', '.join(FILES)}")


def _read_shards(index: Path) -> dict[str, Tensor]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise ValueError(f"{index} has no weight_map")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(shards.values())):
        if Path(shard).name != shard:  # an index must not reach outside its directory
            raise ValueError(f"{index} names the shard {shard!r}, which is not a plain file name")
        tensors |= _read_file(index.parent / shard)
    lacking = sorted(set(shards) - set(tensors))
    if lacking:
        raise ValueError(f"{index} promises tensors that no shard holds: {some(lacking)}")
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the checkpoint is incomplete")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                names = list(file.keys())
            return {name: _read_tensor(path, name) for name in names}
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or unsafe file
        if isinstance(error, SafetensorError) or path.suffix != ".safetensors":
            raise ValueError(f"{path} is damaged or holds more than tensors: {str(error).splitlines()[0]}") from error
        raise
    if not isinstance(loaded, Mapping) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise ValueError(f"{path} does not hold a mapping of names to tensors")
    return dict(loaded)


def _read_tensor(path: Path, name: str) -> Tensor:
    """Map one tensor of a file. Through a mapping of its own, so that whoever drops the tensor drops its pages."""
    with safe_open(path, "pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


def fit(
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    defaults: Mapping[str, Tensor],
    config: Seq2SeqConfig,
    prefix: str,
    left_out: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """Rename and complete a file's tensors to the names and shapes that a model expects.

    Tied tensors may be present under any of their names, the leading ``model.`` may be missing, and ``defaults`` stand for
    what a file may leave out. ``prefix`` is what the model puts before the bare network's names; tensors whose names there
    begin with ``left_out`` are passed over. Raises one ValueError that names every missing, extra and misshapen tensor.
    """
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    for name in LEFTOVERS:
        bare.pop(name, None)
    embeddings = [bare.pop(name) for name in TOKEN_EMBEDDINGS if name in bare]
    wants_head = HEAD in expected
    if config.tie_word_embeddings:
        head = bare.pop(HEAD, None)
        embeddings += [head] if head is not None else []
    elif not wants_head:
        bare.pop(HEAD, None)
    if _BIAS not in expected:
        bare.pop(_BIAS, None)
    if embeddings:
        bare["shared.weight"] = embeddings[0]
        differing = [
            other for other in embeddings[1:] if other.shape != embeddings[0].shape or not other.equal(embeddings[0])
        ]
        if differing and not config.tie_word_embeddings:
            raise ValueError(
                "the checkpoint has different encoder and decoder token embeddings; only one shared table is supported"
            )
    elif wants_head and HEAD in bare:
        raise ValueError("the checkpoint has an untied lm_head and no token embedding")
    bare = {name: tensor for name, tensor in bare.items() if not name.startswith(left_out)}
    fitted: dict[str, Tensor] = {}
    missing: list[str] = []
    misshapen: list[str] = []
    for name, shape in expected.items():
        key = name.removeprefix(prefix)
        tensor = bare.pop(key, None)
        if tensor is None:
            tensor = defaults.get(name)
        if tensor is None:
            missing.append(name)
        elif tuple(tensor.shape) != shape:
            misshapen.append(f"{name} is {list(tensor.shape)}, expected {list(shape)}")
        else:
            fitted[name] = tensor
    problems = [
        f"{kind}: {some(names)}"
        for kind, names in (("missing", missing), ("unexpected", sorted(bare)), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise ValueError(
            f"the checkpoint does not fit a {config.model_type} model of its config.json; " + "; ".join(problems)
        )
    return fitted


def write(
    directory: str | Path,
    tensors: Mapping[str, Tensor],
    config: Seq2SeqConfig,
    generation: GenerationConfig | None,
    architecture: str,
) -> None:
    """Write a model directory that Hugging Face's classes load: config.json, generation_config.json, model.safetensors."""
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    weights = path / "model.safetensors"
    save_file(contiguous, weights, metadata={"format": "pt"})
    dtype = str(next(iter(contiguous.values())).dtype).removeprefix("torch.")
    write_json(path / "config.json", {**config.to_dict(), "architectures": [architecture], "dtype": dtype})
    weights.chmod((path / "config.json").stat().st_mode)  # safetensors writes for the owner alone
    if generation is not None:
        generation.save_pretrained(path)


def some(names: list[str], most: int = 8) -> str:
    """Return a list of names for a sentence, cut short where it is long."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
