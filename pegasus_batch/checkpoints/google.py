"""The original Pegasus checkpoints, of github.com/google-research/pegasus: names, and settings that are nowhere written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pegasus_batch.checkpoints.bundle import Bundle
from pegasus_batch.checkpoints.foreign import Ignored, Place, Stored, derive_stacks, sides

_EMBEDDING = "embeddings/weights"
PADDING = {f"row 0 of {_EMBEDDING}": "the padding token's, which that project multiplies by zero"}
_MODULES = {
    "self_attention/LayerNorm": "self_attn_layer_norm",
    "memory_attention/LayerNorm": "encoder_attn_layer_norm",
    "ffn/LayerNorm": "final_layer_norm",
    "ffn/dense": "fc1",
    "ffn/dense_1": "fc2",
    "LayerNorm": "layer_norm",
    **{
        f"{original}/{projection}": f"{name}.{projection.replace('output', 'out')}"
        for original, name in (("self_attention", "self_attn"), ("memory_attention", "encoder_attn"))
        for projection in ("q_proj", "k_proj", "v_proj", "output_proj")
    },
}
_LEAVES = {"kernel": "weight", "gamma": "weight", "bias": "bias", "beta": "bias"}
_HEAD_SIZE = 64  # of both released sizes; no shape shows it
# Longest source and summary in tokens and the length penalty, by data set: table 12 and appendix C of arXiv 1912.08777.
_TASKS = {
    "aeslc": (512, 32, 0.6),
    "arxiv": (1024, 256, 0.8),
    "big_patent": (1024, 256, 0.7),
    "billsum": (1024, 256, 0.6),
    "cnn_dailymail": (1024, 128, 0.8),
    "gigaword": (128, 32, 0.6),
    "multi_news": (1024, 256, 0.8),
    "newsroom": (512, 128, 0.8),
    "pubmed": (1024, 256, 0.8),
    "reddit_tifu": (512, 128, 0.6),
    "wikihow": (512, 256, 0.6),
    "xsum": (512, 64, 0.8),
}
_PRETRAINED = (1024, 256, 0.8)


def read(prefix: Path) -> Stored:
    """Yield a checkpoint's variables, each read at its call, the padding token's row of the embedding as zeros."""
    bundle = Bundle(prefix)

    def load(name: str) -> Tensor:
        tensor = bundle.read(name)
        if name == _EMBEDDING and tensor.ndim:
            tensor[:1] = 0
        return tensor

    for name in bundle.entries:
        yield name, lambda name=name: load(name)  # type: ignore[misc]


def rename(name: str) -> Place | Ignored | None:
    """Return where a variable belongs."""
    if name == "global_step" or "Adafactor" in name:
        return Ignored("state of the training")
    if name == _EMBEDDING:
        return Place("shared.weight")
    stack, _, path = name.partition("/")
    layer, _, rest = path.partition("/")
    inner = rest if layer.startswith("layer_") else path
    module, _, leaf = inner.rpartition("/")
    if stack not in ("encoder", "decoder") or module not in _MODULES or leaf not in _LEAVES:
        return None
    if inner is rest:
        stack = f"{stack}.layers.{layer.removeprefix('layer_')}"
    return Place(f"{stack}.{_MODULES[module]}.{_LEAVES[leaf]}", leaf == "kernel")


def complete(tensors: dict[str, Tensor]) -> list[str]:
    """Add zeros for the biases that the original's attention goes without; return their names."""
    weights = [name for name in tensors if name.endswith("_proj.weight")]
    added = [bias for name in weights if (bias := name.replace("weight", "bias")) not in tensors]
    weights = [name.replace("bias", "weight") for name in added]
    tensors |= {
        bias: tensors[name].new_zeros(tensors[name].shape[:1]) for bias, name in zip(added, weights, strict=True)
    }
    return added


def derive_settings(tensors: Mapping[str, Tensor], prefix: Path) -> dict[str, Any]:
    """Return what config.json says of such a checkpoint: from its shapes and, for lengths, its directory's name."""
    vocabulary, d_model = sides(tensors, "shared.weight")
    positions, longest, penalty = _TASKS.get(prefix.absolute().parent.name, _PRETRAINED)
    heads = d_model // _HEAD_SIZE
    return {
        **derive_stacks(tensors),
        "model_type": "pegasus",
        "vocab_size": vocabulary,
        "d_model": d_model,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "max_position_embeddings": positions,
        "activation_function": "relu",
        "scale_embedding": True,
        "attention_dropout": 0.1,
        "activation_dropout": 0.1,
        "num_beams": 8,
        "max_length": longest,
        "length_penalty": penalty,
    }
