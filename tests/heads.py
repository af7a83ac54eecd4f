"""Tiny random BARTs with other heads, as transformers saves them, and their pipelines: the oracle of what they say."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.conftest import tiny_settings

NAMES = {0: "contradiction", 1: "neutral", 2: "entailment"}


def save_head(kind: type[transformers.PreTrainedModel], source: Path, directory: Path, **settings: Any) -> Path:
    """Write a random model of ``kind`` with the tokenizer of ``source``; weights large enough to make it decided."""
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    tokenizer = transformers.BartTokenizerFast.from_pretrained(directory)
    if labels := settings.get("id2label"):
        settings["label2id"] = {name: index for index, name in labels.items()}
    config = transformers.BartConfig(**tiny_settings(vocab_size=len(tokenizer)), **settings)
    model = kind(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.4)
    model.save_pretrained(directory)
    return directory


def pipeline(task: str, kind: type[transformers.PreTrainedModel], directory: Path) -> Any:
    """Return transformers' pipeline on a model directory."""
    tokenizer = transformers.BartTokenizerFast.from_pretrained(directory)
    model = kind.from_pretrained(directory, attn_implementation="eager").eval()
    return transformers.pipeline(task, model=model, tokenizer=tokenizer, device="cpu")
