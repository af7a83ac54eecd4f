"""Tiny random models of transformers, the independent word on what a model should compute, and inputs that each class takes.

transformers has no Pegasus classifier and no Pegasus answer finder. Their oracle is BART's class around a PegasusModel, which
shifts the source where nobody gives decoder ids, as a BartModel does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.pegasus.modeling_pegasus import shift_tokens_right

import pegasus_batch
from tests.conftest import tiny_settings

BARE = ["PegasusModel", "BartModel"]
GENERATING = ["PegasusForConditionalGeneration", "BartForConditionalGeneration"]
CAUSAL = ["PegasusForCausalLM", "BartForCausalLM"]
CLASSIFYING = ["PegasusForSequenceClassification", "BartForSequenceClassification"]
ANSWERING = ["PegasusForQuestionAnswering", "BartForQuestionAnswering"]
SEQ2SEQ = BARE + GENERATING + CLASSIFYING + ANSWERING
CLASSES = SEQ2SEQ + CAUSAL

ROWS, SOURCE, TARGET = 3, 9, 6


class _ShiftingPegasus(transformers.PegasusModel):
    def forward(self, input_ids: Any = None, *args: Any, decoder_input_ids: Any = None, **options: Any) -> Any:
        if decoder_input_ids is None and options.get("decoder_inputs_embeds") is None:
            config = self.config
            decoder_input_ids = shift_tokens_right(input_ids, config.pad_token_id, config.decoder_start_token_id)
        return super().forward(input_ids, *args, decoder_input_ids=decoder_input_ids, **options)


class PegasusForSequenceClassification(transformers.BartForSequenceClassification):
    config_class = transformers.PegasusConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = _ShiftingPegasus(config)


class PegasusForQuestionAnswering(transformers.BartForQuestionAnswering):
    config_class = transformers.PegasusConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = _ShiftingPegasus(config)


def class_named(name: str) -> str:
    """Return a class's name; a family alone stands for its model that generates."""
    return f"{name.title()}ForConditionalGeneration" if name in ("pegasus", "bart") else name


def theirs_named(name: str) -> Any:
    """Return transformers' class, or what stands for it."""
    return globals().get(class_named(name)) or getattr(transformers, class_named(name))


def ours_named(name: str) -> Any:
    """Return our class."""
    return getattr(pegasus_batch, class_named(name))


def random_model(name: str, **settings: Any) -> Any:
    """Return a random model of transformers with eager attention and a logits bias that is not zero."""
    config_class = transformers.PegasusConfig if name.lower().startswith("pegasus") else transformers.BartConfig
    config = config_class(**{"classifier_dropout": 0.0, **tiny_settings(**settings)}, attn_implementation="eager")
    model = theirs_named(name)(config).eval()
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_()
    for key, parameter in model.named_parameters():
        if key.endswith("bias") or "norm" in key:  # a fresh model has zeros and ones there, which hide mistakes
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in key and key.endswith("weight") else 0.0, std=0.2)
    return model


def pair(name: str, directory: Path, **settings: Any) -> tuple[Any, Any]:
    """Return a random transformers model and ours loaded from its directory."""
    theirs = random_model(name, **settings)
    theirs.save_pretrained(directory)
    return theirs, ours_named(name).from_pretrained(directory)


def batch(rows: int, length: int, vocabulary: int = 61) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random ids [rows, length] padded on the right, on the left and not at all, and their mask."""
    ids = torch.randint(3, vocabulary, (rows, length))
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        padding = int(torch.randint(1, length - 2, ()))
        where = slice(length - padding, None) if row % 2 else slice(0, padding)
        mask[row, where] = 0
    return ids, mask


def sources(config: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids [ROWS, SOURCE] of several lengths, each with one end token, padded on the right, and their mask."""
    ids = torch.randint(4, config.vocab_size, (ROWS, SOURCE))
    mask = torch.ones_like(ids)
    for row in range(ROWS):
        end = SOURCE - 1 - 2 * row
        ids[row, end] = config.eos_token_id
        ids[row, end + 1 :] = config.pad_token_id
        mask[row, end + 1 :] = 0
    return ids, mask


def inputs(name: str, config: Any) -> dict[str, torch.Tensor]:
    """Return a batch that the class takes: texts of several lengths, and where it can be targets of its own."""
    ids, mask = sources(config)
    given = {"input_ids": ids, "attention_mask": mask}
    if name in CAUSAL:
        states = torch.randn(ROWS, 5, config.d_model)
        others = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
        return {**given, "encoder_hidden_states": states, "encoder_attention_mask": others}
    if name in BARE + GENERATING:
        given["decoder_input_ids"] = torch.randint(4, config.vocab_size, (ROWS, TARGET))
        given["decoder_attention_mask"] = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0], [1, 0, 1, 1, 1, 1]])
    return given


def assert_close(ours: Any, theirs: Any) -> None:
    """Compare two results of a model, tuples element by element, None with None: within 1e-4, shapes and types exactly."""
    if hasattr(theirs, "to_legacy_cache"):
        theirs = theirs.to_legacy_cache()
    if theirs is None:
        assert ours is None
    elif isinstance(theirs, torch.Tensor):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0, equal_nan=True)
    else:
        assert isinstance(ours, tuple) and isinstance(theirs, tuple) and len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_close(one, other)


def compare(ours: Any, theirs: Any, given: Mapping[str, Any], **request: Any) -> Any:
    """Compare every field of both outputs, what is set, and in which order; returns ours.

    Attentions and states of every layer are asked for unless ``request`` says otherwise.
    """
    request = {"output_attentions": True, "output_hidden_states": True, **request}
    expected, found = theirs(**given, **request), ours(**given, **request)
    if request.get("return_dict") is False:
        assert_close(found, tuple(expected))
        return found
    assert type(found).__name__ in (type(expected).__name__, "BaseModelOutput")
    assert list(found) == list(expected)
    for name in expected:
        assert_close(found[name], expected[name])
    return found
