"""What forward passes do in training: dropouts and LayerDrop draw transformers' own numbers; layers are computed twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.oracle import (
    BARE,
    CAUSAL,
    CLASSES,
    CLASSIFYING,
    GENERATING,
    assert_close,
    compare,
    inputs,
    pair,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
EVERY_DROPOUT = {"dropout": 0.2, "attention_dropout": 0.3, "activation_dropout": 0.25, "classifier_dropout": 0.3}


def with_labels(name: str, config: Any) -> dict[str, torch.Tensor]:
    """Return a batch of the class that has a loss."""
    batch = inputs(name, config)
    if name in CLASSIFYING:
        return {**batch, "labels": torch.tensor([1, 0, 1])}
    if name in GENERATING + CAUSAL:
        return {**batch, "labels": batch["input_ids" if name in CAUSAL else "decoder_input_ids"]}
    return {**batch, "start_positions": torch.tensor([1, 0, 2]), "end_positions": torch.tensor([1, 3, 2])}


class Seeded:
    """A model whose every call starts from the same random state."""

    def __init__(self, model: Any, seed: int) -> None:
        self.model, self.seed = model.train(), seed

    def __call__(self, **options: Any) -> Any:
        torch.manual_seed(self.seed)
        return self.model(**options)


@pytest.mark.parametrize("dropped", [0.0, 0.5])
@pytest.mark.parametrize("name", CLASSES)
def test_a_seed_drops_what_transformers_drops(name: str, dropped: float, tmp_path: Path) -> None:
    """Every dropout in its place with its probability, every layer's fate: outputs of a training pass are equal."""
    drops = {"encoder_layerdrop": dropped, "decoder_layerdrop": dropped}
    theirs, ours = pair(name, tmp_path, encoder_layers=3, decoder_layers=3, **EVERY_DROPOUT, **drops)
    batch = inputs(name, ours.config)
    fates = set()
    for seed in range(4 if dropped else 1):
        for asked in (True, False):  # two ways of attending
            one, other = Seeded(ours, seed), Seeded(theirs, seed)
            found = compare(one, other, batch, use_cache=False, output_attentions=asked)
            if asked:
                weights = found.get("attentions", found.get("decoder_attentions"))
                fates.add((len(weights), tuple(layer is None for layer in found.get("encoder_attentions", ()))))
                states = found.get("hidden_states", found.get("decoder_hidden_states"))
                assert len(states) == 4, "one of each layer, dropped or not, and one of the embeddings"
    assert (len(fates) > 1) == bool(dropped)


@pytest.mark.parametrize("kind", [*EVERY_DROPOUT, "encoder_layerdrop", "decoder_layerdrop"])
def test_each_kind_of_dropout_changes_a_pass_and_a_seed_repeats_it(kind: str, family: str, tmp_path: Path) -> None:
    name = f"{family.title()}ForSequenceClassification"
    off = dict.fromkeys([*EVERY_DROPOUT, "encoder_layerdrop", "decoder_layerdrop"], 0.0)
    _, ours = pair(name, tmp_path, **{**off, kind: 0.5})
    batch = inputs(name, ours.config)
    calm = ours(**batch).logits
    drawn = [Seeded(ours, seed)(**batch).logits for seed in (0, 0, 1, 2, 3)]
    assert torch.equal(drawn[0], drawn[1])
    assert any(not torch.equal(drawn[0], other) for other in drawn[2:])
    assert torch.equal(ours.eval()(**batch).logits, calm)


def test_layers_are_dropped_as_often_as_the_config_says(family: str, tmp_path: Path) -> None:
    name = f"{family.title()}Model"
    _, ours = pair(name, tmp_path, encoder_layerdrop=0.2, decoder_layerdrop=0.6, decoder_layers=1, encoder_layers=1)
    runs = dict.fromkeys((ours.encoder, ours.decoder), 0)
    for stack in runs:
        stack.layers[0].register_forward_hook(lambda *_, stack=stack: runs.__setitem__(stack, runs[stack] + 1))
    ids, trials = torch.full((1, 2), 5), 600
    ours.train()
    with torch.no_grad():
        for _ in range(trials):
            ours(ids, decoder_input_ids=ids)
    for stack, probability in ((ours.encoder, 0.2), (ours.decoder, 0.6)):
        deviation = (trials * probability * (1 - probability)) ** 0.5
        assert abs(trials - runs[stack] - trials * probability) < 4 * deviation


@pytest.mark.parametrize("options", [None, {"use_reentrant": True}])
@pytest.mark.parametrize("name", [name for name in CLASSES if name not in BARE])
def test_checkpointing_computes_the_same_gradients(name: str, options: Any, tmp_path: Path) -> None:
    """Dropout included: what is computed again is dropped again. And equal to transformers' gradients."""
    theirs, ours = pair(name, tmp_path, **EVERY_DROPOUT, encoder_layerdrop=0.3)
    batch = with_labels(name, ours.config)
    Seeded(theirs, 3)(**batch).loss.backward()
    expected = {key: parameter.grad for key, parameter in theirs.named_parameters() if parameter.requires_grad}
    plain = Seeded(ours, 3)(**batch).loss
    plain.backward()
    gradients = {key: parameter.grad for key, parameter in ours.named_parameters()}
    assert sum(gradient is None for gradient in gradients.values()) < len(gradients) / 2  # a dropped layer has none
    for key, gradient in gradients.items():
        there = key.replace("model.shared", "model.decoder.embed_tokens") if name in CAUSAL else key
        assert_close(gradient, expected[there])
    ours.zero_grad()
    ours.gradient_checkpointing_enable(options)
    assert ours.is_gradient_checkpointing
    again = Seeded(ours, 3)(**batch)
    again.loss.backward()
    torch.testing.assert_close(again.loss, plain)
    for key, parameter in ours.named_parameters():
        assert_close(parameter.grad, gradients[key])


@pytest.mark.parametrize("name", CLASSES)
def test_checkpointing_keeps_less_and_no_cache(name: str, tmp_path: Path) -> None:
    theirs, ours = pair(name, tmp_path)
    batch = inputs(name, ours.config)
    kept: list[int] = []

    def weigh() -> int:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: (kept.append(tensor.numel()), tensor)[1], lambda x: x
        ):
            ours(**batch)
        return sum(kept)

    ours.train()
    whole = weigh()
    ours.gradient_checkpointing_enable()
    theirs.gradient_checkpointing_enable()
    assert weigh() < whole / 2
    compare(Seeded(ours, 0), Seeded(theirs, 0), batch, use_cache=True)
    compare(ours.eval(), theirs.eval(), batch, use_cache=True)  # where nothing is trained, the cache is back
    ours.train().gradient_checkpointing_disable()
    assert not ours.is_gradient_checkpointing and weigh() == whole
