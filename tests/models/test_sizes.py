"""Vocabulary, positions and heads changed on a model that exists; embeddings read and replaced; weights counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pegasus_batch import PegasusConfig, PegasusForConditionalGeneration
from tests.conftest import tiny_settings
from tests.models.oracle import (
    BARE,
    CAUSAL,
    CLASSES,
    GENERATING,
    SEQ2SEQ,
    assert_close,
    compare,
    inputs,
    ours_named,
    pair,
    theirs_named,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.mark.parametrize(
    ("arguments", "size", "tied"),
    [((65, 8), 72, True), ((40,), 40, True), ((70, None, False), 70, True), ((None, 8), 64, False), ((70,), 70, False)],
)
@pytest.mark.parametrize("name", CLASSES)
@torch.no_grad()
def test_the_vocabulary_is_resized(
    name: str, arguments: tuple[Any, ...], size: int, tied: bool, tmp_path: Path
) -> None:
    """Old rows stay, new ones are alike (the mean, or drawn), the head and its bias follow, and the result is saved."""
    theirs, ours = pair(name, tmp_path, tie_word_embeddings=tied)
    before = ours.get_input_embeddings().weight.clone()
    table = ours.resize_token_embeddings(*arguments)
    theirs.resize_token_embeddings(*arguments)
    assert table is ours.get_input_embeddings() and table.weight.requires_grad
    assert table.weight.shape == (size, 18) and table.num_embeddings == size
    assert ours.config.vocab_size == theirs.config.vocab_size == size
    kept = min(size, 61)
    assert torch.equal(table.weight[:kept], before[:kept])
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        one, other = getattr(ours, getter)(), getattr(theirs, getter)()
        if one is not None:
            if False in arguments:
                assert 0.2 < one.weight[61:].std() < 0.6  # drawn with the config's 0.4
            else:
                assert_close(one.weight, other.weight)
            other.weight.copy_(one.weight)  # there the new rows have a noise of a thousandth
    batch = inputs(name, ours.config)
    batch = {key: ids.clamp(max=kept - 1) if "input_ids" in key else ids for key, ids in batch.items()}
    found = compare(ours, theirs, batch)
    if name in GENERATING + CAUSAL:
        assert found.logits.shape[-1] == size
        labels = torch.full_like(batch["input_ids" if name in CAUSAL else "decoder_input_ids"], kept - 1)
        compare(ours, theirs, {**batch, "labels": labels})
    if name in GENERATING:
        assert_close(ours.final_logits_bias, theirs.final_logits_bias)
        source = {"attention_mask": batch["attention_mask"], "max_length": 6, "min_length": 6, "num_beams": 2}
        assert_close(ours.generate(batch["input_ids"], **source), theirs.generate(batch["input_ids"], **source))
    ours.save_pretrained(tmp_path / "resized")
    again = type(ours).from_pretrained(tmp_path / "resized")
    assert torch.equal(again(**batch)[0], ours(**batch)[0])


def test_sizes_that_change_nothing(tiny_config: PegasusConfig, family: str) -> None:
    model = ours_named(f"{family.title()}Model")(tiny_config)
    weight = model.shared.weight
    assert model.resize_token_embeddings() is model.shared and model.shared.weight is weight
    assert torch.equal(model.resize_token_embeddings(61).weight, weight)


def test_a_vocabulary_cannot_lose_a_special_token(tiny_config: PegasusConfig, family: str) -> None:
    model = ours_named(f"{family.title()}Model")(tiny_config)
    with pytest.raises(ValueError, match=r"_token_id \d is outside the vocabulary of 1"):
        model.resize_token_embeddings(1)
    assert model.config.vocab_size == len(model.shared.weight) == 61


def test_new_tokens_train(family: str, tmp_path: Path) -> None:
    name = f"{family.title()}ForConditionalGeneration"
    _, ours = pair(name, tmp_path)
    ours.resize_token_embeddings(66)
    batch = inputs(name, ours.config)
    batch["input_ids"][0, 0] = 65
    ours(**batch, labels=torch.full((3, 6), 64)).loss.backward()
    gradient = ours.get_input_embeddings().weight.grad
    assert gradient is not None and gradient[64].abs().sum() > 0 and gradient[65].abs().sum() > 0


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", CLASSES)
@torch.no_grad()
def test_embeddings_are_read_and_replaced(name: str, tied: bool, tmp_path: Path) -> None:
    theirs, ours = pair(name, tmp_path, tie_word_embeddings=tied)
    batch = inputs(name, ours.config)
    for model in (theirs, ours):
        torch.manual_seed(5)
        other = type(model.get_input_embeddings())(61, 18, 0, *([1.0] if model is theirs and "Bart" in name else []))
        model.set_input_embeddings(other)
        if model is theirs:
            model.tie_weights()
        assert model.get_input_embeddings() is other
    compare(ours, theirs, batch)
    with pytest.raises(ValueError, match=r"is \[62, 18\], expected \[61, 18\]: call resize"):
        ours.set_input_embeddings(torch.nn.Embedding(62, 18))
    if name not in GENERATING + CAUSAL:
        assert ours.get_output_embeddings() is theirs.get_output_embeddings() is None
        return
    head = ours.get_output_embeddings()
    assert_close(head.weight, theirs.get_output_embeddings().weight)
    assert (head.weight is ours.get_input_embeddings().weight) == tied
    new = torch.nn.Linear(18, 61, bias=False)
    if tied:
        with pytest.raises(ValueError, match="tied to the token embedding"):
            ours.set_output_embeddings(new)
        return
    ours.set_output_embeddings(new)
    theirs.set_output_embeddings(new)
    assert ours.get_output_embeddings() is new
    compare(ours, theirs, batch)
    with pytest.raises(ValueError, match=r"the head is \[60, 18\], expected \[61, 18\]"):
        ours.set_output_embeddings(torch.nn.Linear(18, 60, bias=False))


@pytest.mark.parametrize("name", CLASSES)
def test_weights_are_counted_alike(name: str, tmp_path: Path) -> None:
    theirs, ours = pair(name, tmp_path)
    for options in ({}, {"only_trainable": True}, {"exclude_embeddings": True}):
        assert ours.num_parameters(**options) == theirs.num_parameters(**options)
    frozen = f"{'' if name in BARE else 'model.'}decoder.layers.0.fc1.weight"
    for model in (theirs, ours):
        model.get_parameter(frozen).requires_grad_(False)
    assert ours.num_parameters(only_trainable=True) == theirs.num_parameters(only_trainable=True)


def test_released_pegasus_size() -> None:
    """16 + 16 layers over 96,103 tokens have the published 568,699,904 trained parameters, position tables beside."""
    config = PegasusConfig(vocab_size=96103, encoder_layers=16, decoder_layers=16)
    with torch.device("meta"):
        model = PegasusForConditionalGeneration(config)
    assert model.num_parameters(only_trainable=True) == 568_699_904
    assert model.num_parameters() == 570_797_056


@pytest.mark.parametrize("positions", [100, 40])
@pytest.mark.parametrize("name", [name for name in CLASSES if name.startswith("Pegasus")])
@torch.no_grad()
def test_pegasus_positions_are_resized(name: str, positions: int, tmp_path: Path) -> None:
    theirs, ours = pair(name, tmp_path)
    ours.resize_position_embeddings(positions)
    network = theirs if hasattr(theirs, "resize_position_embeddings") and name not in SEQ2SEQ[4:] else theirs.model
    network.resize_position_embeddings(positions)
    assert_close(_weights(ours.get_position_embeddings()), _weights(network.get_position_embeddings()))
    assert ours.config.max_position_embeddings == positions
    ids = torch.randint(4, 61, (2, positions))
    ids[:, -1] = ours.config.eos_token_id
    batch = {"input_ids": ids} if name in CAUSAL else {"input_ids": ids, "decoder_input_ids": ids}
    compare(ours, theirs, batch, use_cache=False)
    with pytest.raises(ValueError, match=f"position {positions} is beyond the model's {positions} positions"):
        ours(**{key: torch.cat((ids, ids[:, -1:]), 1) for key in batch})
    ours.save_pretrained(tmp_path / "longer")
    again = type(ours).from_pretrained(tmp_path / "longer")
    assert torch.equal(again(**batch)[0], ours(**batch)[0])


def _weights(tables: Any) -> Any:
    return tuple(table.weight for table in tables) if isinstance(tables, tuple) else tables.weight


@torch.no_grad()
def test_pegasus_generates_beyond_its_old_positions(tmp_path: Path) -> None:
    theirs, ours = pair("PegasusForConditionalGeneration", tmp_path)
    ids = torch.randint(4, 61, (2, 90))
    options = {"num_beams": 2, "max_length": 80, "min_length": 75}
    with pytest.raises(ValueError, match="64 positions"):
        ours.generate(ids, **options)
    for model in (ours, theirs):
        model.resize_position_embeddings(100)
    tokens = ours.generate(ids, **options)
    assert tokens.shape[1] > 70
    assert_close(tokens, theirs.generate(ids, attention_mask=torch.ones_like(ids), **options))


@pytest.mark.parametrize("name", [name for name in CLASSES if name.startswith("Bart")])
def test_learned_positions_are_not_resized(name: str, tmp_path: Path) -> None:
    theirs, ours = pair(name, tmp_path)
    for model in (theirs, ours):
        with pytest.raises(NotImplementedError, match=r"truncate the texts|not implemented"):
            model.resize_position_embeddings(100)
    tables = ours.get_position_embeddings()
    assert _weights(tables[0] if name not in CAUSAL else tables).shape == (66, 18)


@pytest.mark.parametrize("kind", ["encoder", "decoder", "cross"])
@pytest.mark.parametrize("name", CLASSES)
@torch.no_grad()
def test_pruned_heads_are_masked_heads(name: str, kind: str, tmp_path: Path) -> None:
    """The oracle masks: transformers prunes no BART or Pegasus. A whole layer's heads may go, and more later."""
    theirs, ours = pair(name, tmp_path)
    batch = inputs(name, ours.config)
    if name in CAUSAL and kind == "encoder":
        with pytest.raises(ValueError, match=r"'encoder' is not one of decoder, cross, which \w+ForCausalLM has"):
            ours.prune_heads({0: [1]}, kind)
        return
    mask = torch.ones(2, 2 if kind == "encoder" else 3)
    mask[0, 1] = mask[1, 0] = 0.0
    own = kind == "encoder" or (name in CAUSAL and kind == "decoder")
    key = "head_mask" if own else {"decoder": "decoder_head_mask", "cross": "cross_attn_head_mask"}[kind]
    weights = ours.num_parameters()
    ours.prune_heads({0: [1], 1: [0]}, *([] if own else [kind]))
    size = 9 if kind == "encoder" else 6
    assert weights - ours.num_parameters() == 2 * (4 * size * 18 + 3 * size)
    batch |= {key: mask}
    quiet = {"output_attentions": False, "use_cache": False}
    compare(ours, theirs, {**batch, key: torch.ones_like(mask)} | {key: mask}, **quiet)
    assert_close(ours(**{**batch, key: None})[0], theirs(**batch)[0])
    mask[0] = 0.0
    ours.prune_heads({0: range(mask.shape[1])}, kind)
    found = ours(**{**batch, key: None}, output_attentions=True)
    assert_close(found[0], theirs(**batch)[0])
    ours.save_pretrained(tmp_path / "pruned")
    again = type(ours).from_pretrained(tmp_path / "pruned")
    assert again.num_parameters() == ours.num_parameters()
    assert torch.equal(again(**{**batch, key: None})[0], ours(**{**batch, key: None})[0])
    with pytest.raises((AttributeError, ValueError)):  # loudly, not with other weights
        theirs_named(name).from_pretrained(tmp_path / "pruned")
    with pytest.raises(ValueError, match=r"cannot prune heads \[.*9\] of \S+1\S+: there are [23] in each of 2 layers"):
        ours.prune_heads({1: [9]}, kind)
    with pytest.raises(ValueError, match=r"cannot prune heads \[0\] of \w+\.layers\.7\."):
        ours.prune_heads({7: [0]}, kind)
    with pytest.raises(ValueError, match=r"attention 'all' is not one of .*decoder, cross"):
        ours.prune_heads({0: [0]}, "all")


@pytest.mark.parametrize("name", GENERATING)
@torch.no_grad()
def test_generation_from_a_pruned_model(name: str, tmp_path: Path) -> None:
    theirs, ours = pair(name, tmp_path)
    batch = inputs(name, ours.config)
    masks = {"head_mask": torch.tensor([[0.0, 1.0], [1.0, 1.0]])}
    masks |= {
        key: torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]) for key in ("decoder_head_mask", "cross_attn_head_mask")
    }
    ours.prune_heads({0: [0]})
    for kind in ("decoder", "cross"):
        ours.prune_heads({0: [0, 2], 1: [2]}, kind)
    source = {"attention_mask": batch["attention_mask"], "max_length": 12, "no_repeat_ngram_size": 1}
    tokens = ours.generate(batch["input_ids"], **source)
    assert_close(tokens, theirs.generate(batch["input_ids"], **source, **masks))
    assert not torch.equal(tokens, theirs.generate(batch["input_ids"], **source))
    ours.save_pretrained(tmp_path / "pruned")
    assert_close(type(ours).from_pretrained(tmp_path / "pruned").generate(batch["input_ids"], **source), tokens)


def test_pruned_heads_of_a_config_are_checked() -> None:
    with pytest.raises(ValueError, match="pruned_heads names '0', expected a block such as"):
        PegasusConfig(**tiny_settings(), pruned_heads={"0": [1]})
