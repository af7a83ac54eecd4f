"""fairseq's BART checkpoints, ``model.pt``, and its tokenizer's files. Nothing is unpickled but tensors and plain values."""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pegasus_batch.checkpoints.foreign import Ignored, Place, derive_stacks, sides
from pegasus_batch.config import read_json

FILE = "model.pt"
TOKENIZER_FILES = _DICTIONARY, _ENCODER, _MERGES = ("dict.txt", "encoder.json", "vocab.bpe")
_EMBEDDING = "encoder.embed_tokens.weight"
_HEAD = re.compile(r"classification_heads\.([^.]+)\.((?:dense|out_proj)\.(?:weight|bias))")
_LABELS = "out_proj.bias"
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
_MASK = "<mask>"
_MNLI = ("contradiction", "neutral", "entailment")  # examples/bart/README.md
# What the network must be for transformers' BART to be the same one, by fairseq's names.
_REQUIRED = {
    "encoder_normalize_before": False,
    "decoder_normalize_before": False,
    "encoder_learned_pos": True,
    "decoder_learned_pos": True,
    "layernorm_embedding": True,
    "share_all_embeddings": True,
}


def load(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Return a file's tensors, mapped from it where its format allows, and the arguments of its training.

    Raises ValueError for a file that is damaged, that holds more than tensors, plain values and one argparse.Namespace,
    or whose network differs from BART's.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises many kinds for a damaged or unsafe file
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path} is damaged or holds more than tensors: {reason}") from error
    tensors, arguments = (loaded.get(part) if isinstance(loaded, Mapping) else None for part in ("model", "args"))
    if not isinstance(tensors, Mapping) or not all(
        isinstance(tensor, Tensor) and tensor.layout == torch.strided for tensor in tensors.values()
    ):
        raise ValueError(f"{path} is no checkpoint of fairseq's: it has no tensors under 'model'")
    if not isinstance(arguments, argparse.Namespace):
        raise ValueError(f"{path} has no training arguments under 'args': only fairseq's files of before 2021 are read")
    found = vars(arguments)
    for name, needed in _REQUIRED.items():
        if bool(found.get(name, needed)) != needed:
            raise ValueError(f"{path} is no BART that transformers has: {name} is {found[name]!r}")
    return dict(tensors), found


def rename(name: str) -> Place | Ignored | None:
    """Return where a tensor belongs."""
    if name.endswith((".version", "_float_tensor")):
        return Ignored("a mark of fairseq's")
    if name == "decoder.output_projection.weight":
        return Place("lm_head.weight")
    if head := _HEAD.fullmatch(name):
        return Place(f"classification_head.{head[2]}")
    return Place(name) if name.startswith(("encoder.", "decoder.")) else None


def derive_settings(stored: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what config.json says of a loaded file; ValueError for one with several classification heads."""
    vocabulary, d_model = sides(stored, _EMBEDDING)
    output = stored.get("decoder.output_projection.weight")
    settings: dict[str, Any] = {
        **derive_stacks(stored),
        "model_type": "bart",
        "vocab_size": vocabulary,
        "d_model": d_model,
        "max_position_embeddings": sides(stored, "encoder.embed_positions.weight")[0] - 2,
        "activation_function": arguments.get("activation_fn", "gelu"),
        "scale_embedding": not arguments.get("no_scale_embedding", True),
        "dropout": arguments.get("dropout", 0.1),
        "attention_dropout": arguments.get("attention_dropout", 0.0),
        "activation_dropout": arguments.get("activation_dropout", arguments.get("relu_dropout", 0.0)),
        "classifier_dropout": arguments.get("pooler_dropout", 0.0),
        "tie_word_embeddings": output is None or output.equal(stored[_EMBEDDING]),
        "forced_bos_token_id": 0,  # as fairseq's own search begins
    }
    for name in ("encoder_attention_heads", "decoder_attention_heads"):
        if name not in arguments:
            raise ValueError(f"the checkpoint's arguments have no {name}; give a config.json that does")
        settings[name] = arguments[name]
    heads = {head[1]: stored[name].numel() for name in stored if (head := _HEAD.fullmatch(name)) and head[2] == _LABELS}
    if len(heads) > 1:
        raise ValueError(f"the checkpoint has the classification heads {', '.join(heads)}; transformers' BART has one")
    for title, n_labels in heads.items():
        names = _MNLI if title == "mnli" and n_labels == len(_MNLI) else [f"LABEL_{i}" for i in range(n_labels)]
        settings["id2label"] = {str(i): label for i, label in enumerate(names)}
        settings["label2id"] = {label: i for i, label in enumerate(names)}
    return settings


def read_vocabulary(directory: Path, n_rows: int) -> tuple[dict[str, int], str]:
    """Return BART's vocabulary and its merges, as vocab.json and merges.txt hold them, from fairseq's three files.

    ``dict.txt`` orders GPT-2's subwords, by the numbers that ``encoder.json`` gives them, behind four special tokens; the
    mask token comes last, and bart.large.cnn has no row for it. Raises ValueError where they do not fit ``n_rows``.
    """
    subwords = {str(number): subword for subword, number in read_json(directory / _ENCODER).items()}
    lines = (directory / _DICTIONARY).read_text(encoding="utf-8").splitlines()
    words = [line.rsplit(" ", 1)[0] for line in lines]
    tokens = [*_SPECIAL, *(subwords.get(word, word) for word in words)]
    if not len(tokens) <= n_rows <= len(tokens) + 1 or len(set(tokens)) != len(tokens):
        raise ValueError(
            f"{directory / _DICTIONARY} has {len(words)} subwords, the checkpoint has {n_rows} rows for them"
        )
    return {token: i for i, token in enumerate([*tokens, _MASK])}, (directory / _MERGES).read_text(encoding="utf-8")
