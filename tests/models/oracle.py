"""Tiny random Hugging Face models: the independent word on what a model should compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from pegasus_batch import BartForConditionalGeneration, PegasusForConditionalGeneration
from tests.conftest import tiny_settings

OURS = {"pegasus": PegasusForConditionalGeneration, "bart": BartForConditionalGeneration}
THEIRS = {
    "pegasus": (transformers.PegasusConfig, transformers.PegasusForConditionalGeneration),
    "bart": (transformers.BartConfig, transformers.BartForConditionalGeneration),
}


def random_model(family: str, **settings: Any) -> transformers.PreTrainedModel:
    """Return a random model of transformers with eager attention and a logits bias that is not zero."""
    config_class, model_class = THEIRS[family]
    model = model_class(config_class(**tiny_settings(**settings), attn_implementation="eager")).eval()
    model.final_logits_bias.normal_()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:  # a fresh model has zeros and ones there, which hide mistakes
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name and name.endswith("weight") else 0.0, std=0.2)
    return model


def pair(family: str, directory: Path, **settings: Any) -> tuple[Any, Any]:
    """Return a random transformers model and ours loaded from its directory."""
    theirs = random_model(family, **settings)
    theirs.save_pretrained(directory)
    return theirs, OURS[family].from_pretrained(directory)


def batch(rows: int, length: int, vocabulary: int = 61) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random ids [rows, length] padded on the right, on the left and not at all, and their mask."""
    ids = torch.randint(3, vocabulary, (rows, length))
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        padding = int(torch.randint(1, length - 2, ()))
        where = slice(length - padding, None) if row % 2 else slice(0, padding)
        mask[row, where] = 0
    return ids, mask
