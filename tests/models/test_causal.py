"""The decoder alone against transformers: every input, every output, both directions of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pegasus_batch import BartForCausalLM, PegasusForCausalLM
from tests.models.oracle import batch, random_model
from tests.models.test_heads import compare
from tests.models.test_seq2seq import assert_close

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
OURS = {"pegasus": PegasusForCausalLM, "bart": BartForCausalLM}
THEIRS = {"pegasus": transformers.PegasusForCausalLM, "bart": transformers.BartForCausalLM}


def pair(family: str, directory: Path, **settings: Any) -> tuple[Any, Any]:
    """Return both decoders of one checkpoint of an encoder-decoder."""
    whole = random_model(family, **settings)
    whole.save_pretrained(directory)
    # By hand: transformers does not find the shared embedding in its own file and draws a new one.
    theirs = THEIRS[family](whole.config).eval()
    theirs.model.decoder.load_state_dict(whole.model.decoder.state_dict())
    theirs.lm_head.weight = theirs.model.decoder.embed_tokens.weight
    return theirs, OURS[family].from_pretrained(directory)


@pytest.mark.parametrize("crosses", [True, False])
@torch.no_grad()
def test_every_output_equals_transformers(family: str, crosses: bool, tmp_path: Path) -> None:
    theirs, ours = pair(family, tmp_path, scale_embedding=True)
    ids, mask = batch(3, 8)
    labels = ids.masked_fill(mask == 0, -100)
    options: dict[str, Any] = {"attention_mask": mask, "labels": labels, "use_cache": False}
    if crosses:
        options |= {
            "encoder_hidden_states": torch.randn(3, 5, ours.config.d_model),
            "encoder_attention_mask": torch.ones(3, 5, dtype=torch.long),
        }
        options["encoder_attention_mask"][1, 3:] = 0
    found = compare(ours, theirs, ids, **options)
    assert found.logits.shape == (3, 8, 61) and (found.cross_attentions is not None) == crosses


@torch.no_grad()
def test_embeddings_head_masks_and_tuples(family: str, tmp_path: Path) -> None:
    theirs, ours = pair(family, tmp_path, scale_embedding=True)
    layers, heads = ours.config.decoder_layers, ours.config.decoder_attention_heads
    masks = {"head_mask": torch.rand(layers, heads).round()}
    embeds = torch.randn(2, 6, ours.config.d_model)
    compare(ours, theirs, inputs_embeds=embeds, use_cache=False, **masks)
    ids, _ = batch(2, 6)
    one, other = (model(ids, return_dict=False, use_cache=False) for model in (ours, theirs))
    assert_close(one, other)


@torch.no_grad()
def test_the_cache_reproduces_the_full_pass(family: str, tmp_path: Path) -> None:
    _, ours = pair(family, tmp_path)
    ids, _ = batch(2, 9)
    states = torch.randn(2, 4, ours.config.d_model)
    full = ours(ids, encoder_hidden_states=states).logits
    first = ours(ids[:, :5], encoder_hidden_states=states)
    rest = ours(ids[:, 5:], past_key_values=first.past_key_values)
    assert_close(torch.cat((first.logits, rest.logits), 1), full)
    alone = ours(ids[:, :5])
    rest = ours(ids[:, 5:], past_key_values=alone.past_key_values)
    assert_close(torch.cat((alone.logits, rest.logits), 1), ours(ids).logits)


@torch.no_grad()
def test_saved_here_loads_there_and_back(family: str, tmp_path: Path) -> None:
    _, ours = pair(family, tmp_path / "whole")
    ours.save_pretrained(tmp_path / "decoder")
    ids, _ = batch(2, 7)
    theirs = THEIRS[family].from_pretrained(tmp_path / "decoder").eval()
    assert_close(ours(ids).logits, theirs(ids, use_cache=False).logits)
    theirs.save_pretrained(tmp_path / "again")
    assert torch.equal(OURS[family].from_pretrained(tmp_path / "again")(ids).logits, ours(ids).logits)


def test_wrong_inputs_are_named(family: str, tmp_path: Path) -> None:
    _, ours = pair(family, tmp_path)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        ours()
    with pytest.raises(ValueError, match=r"token ids must lie in \[0, 61\), got 61 to 61"):
        ours(torch.tensor([[61]]))
