"""Classifiers and answer finders: losses, pooling, errors; Pegasus' too, by BART's rules around transformers' PegasusModel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pegasus_batch import (
    BartConfig,
    BartForQuestionAnswering,
    PegasusForConditionalGeneration,
    PegasusForQuestionAnswering,
    PegasusForSequenceClassification,
    PegasusModel,
)
from tests.conftest import tiny_settings
from tests.models.oracle import ANSWERING, CLASSIFYING, assert_close, compare, inputs, pair, sources

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
SEVERAL = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])


@pytest.mark.parametrize(
    ("n_labels", "problem", "labels", "inferred"),
    [
        (4, None, torch.tensor([3, 0, 1]), "single_label_classification"),
        (4, None, torch.tensor([3, 0, 1], dtype=torch.int32), "single_label_classification"),
        (1, None, torch.tensor([0.5, -2.0, 1.0]), "regression"),
        (1, None, torch.tensor([[0.5], [-2.0], [1.0]]), "regression"),
        (4, None, SEVERAL, "multi_label_classification"),
        (4, "regression", SEVERAL, "regression"),
        (4, "multi_label_classification", SEVERAL, "multi_label_classification"),
        (4, "multi_label_classification", SEVERAL.long(), "multi_label_classification"),
        (2, "single_label_classification", torch.tensor([1, 1, 0]), "single_label_classification"),
    ],
)
@pytest.mark.parametrize("name", CLASSIFYING)
@torch.no_grad()
def test_classification(
    name: str, n_labels: int, problem: str | None, labels: Any, inferred: str, tmp_path: Path
) -> None:
    theirs, ours = pair(name, tmp_path, num_labels=n_labels, problem_type=problem)
    batch = {**inputs(name, ours.config), "labels": labels}
    taken = {"single_label_classification": torch.int64, "multi_label_classification": torch.float32}
    if labels.dtype != taken.get(inferred, labels.dtype):  # transformers infers as we do, and then fails
        with pytest.raises(RuntimeError, match=r"Int|Long"):
            theirs(**batch)
        assert_close(ours(**batch).loss, theirs(**{**batch, "labels": labels.to(taken[inferred])}).loss)
    else:
        found = compare(ours, theirs, batch)
        assert found.logits.shape == (3, n_labels) and found.loss.shape == () and found.past_key_values is None
    assert ours.config.problem_type == theirs.config.problem_type == inferred
    ours.save_pretrained(tmp_path / "saved")
    assert type(ours).from_pretrained(tmp_path / "saved").config.problem_type == inferred


@pytest.mark.parametrize("name", CLASSIFYING)
@torch.no_grad()
def test_the_last_end_token_is_classified_and_their_numbers_must_be_equal(name: str, tmp_path: Path) -> None:
    theirs, ours = pair(name, tmp_path)
    batch = inputs(name, ours.config)
    batch["input_ids"][:, 1] = ours.config.eos_token_id  # two in every row
    compare(ours, theirs, batch)
    batch["input_ids"][0, 2] = ours.config.eos_token_id
    with pytest.raises(ValueError, match=r"different numbers of the end token [12]: \[3, 2, 2\]"):
        ours(**batch)
    with pytest.raises(ValueError, match="same number"):
        theirs(**batch)
    batch["input_ids"][1] = 7
    with pytest.raises(ValueError, match=r"row 1 of input_ids has no end token"):
        ours(**batch)
    with pytest.raises(ValueError, match="needs input_ids"):
        ours(inputs_embeds=torch.zeros(1, 3, 18))
    with pytest.raises(NotImplementedError):
        theirs(inputs_embeds=torch.zeros(1, 3, 18))


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (torch.tensor([1, 3, 0]), torch.tensor([3, 3, 2])),
        (torch.tensor([1, 40, 0]), torch.tensor([[3], [9], [-5]])),  # 9 is the first that is outside; -5 counts as 0
        (torch.tensor([9, 9, 9]), torch.tensor([1, 1, 1])),  # nothing counts: no number, there as here
    ],
)
@pytest.mark.parametrize("name", ANSWERING)
@torch.no_grad()
def test_answers(name: str, start: torch.Tensor, end: torch.Tensor, tmp_path: Path) -> None:
    theirs, ours = pair(name, tmp_path)
    batch = inputs(name, ours.config)
    found = compare(ours, theirs, {**batch, "start_positions": start, "end_positions": end})
    assert found.start_logits.shape == found.end_logits.shape == (3, 9) and found.past_key_values is None
    alone = compare(ours, theirs, {**batch, "start_positions": start})
    assert alone.loss is None and alone.past_key_values is not None
    decoder = torch.randint(4, 61, (3, 5))
    assert compare(ours, theirs, {**batch, "decoder_input_ids": decoder}).start_logits.shape == (3, 5)
    assert ours.config.num_labels == theirs.config.num_labels == 2


def test_numbers_of_labels() -> None:
    """Stated, counted from their names, or the family's; names of another number of classes go."""
    assert BartConfig().num_labels == 3 and BartConfig(num_labels=5).num_labels == 5
    names = {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}
    named = BartConfig.from_dict(names)
    assert named.num_labels == 2 and named.to_dict()["id2label"] == names["id2label"]
    renumbered = BartConfig.from_dict({**names, "num_labels": 4})
    assert renumbered.num_labels == 4 and not {"id2label", "label2id"} & renumbered.to_dict().keys()
    assert transformers.BartConfig(**named.to_dict()).id2label == {0: "no", 1: "yes"}
    assert transformers.BartConfig(**renumbered.to_dict()).num_labels == 4
    assert BartForQuestionAnswering(BartConfig(**tiny_settings(), num_labels=4)).config.num_labels == 2
    with pytest.raises(ValueError, match="problem_type 'ranking' is not one of"):
        BartConfig(problem_type="ranking")
    with pytest.raises(ValueError, match="num_labels must be a positive integer, got -1"):
        BartConfig(num_labels=-1)


def test_a_new_head_on_a_checkpoint_for_generation(tmp_path: Path) -> None:
    config = transformers.PegasusConfig(**tiny_settings(), num_labels=4)
    transformers.PegasusForConditionalGeneration(config).save_pretrained(tmp_path)
    base = PegasusForConditionalGeneration.from_pretrained(tmp_path).model
    with pytest.raises(ValueError, match=r"missing: classification_head"):
        PegasusForSequenceClassification.from_pretrained(tmp_path)
    ids, mask = sources(base.config)
    for model_class, shape in ((PegasusForSequenceClassification, (3, 4)), (PegasusForQuestionAnswering, (3, 9))):
        model = model_class.from_pretrained(tmp_path, new_head=True)
        assert all(torch.equal(tensor, model.model.state_dict()[name]) for name, tensor in base.state_dict().items())
        assert model(ids, mask)[0].shape == shape


def test_a_new_head_is_no_new_network(tmp_path: Path) -> None:
    """What the bare network lacks is an error all the same."""
    config = transformers.PegasusConfig(**tiny_settings())
    transformers.PegasusForConditionalGeneration(config).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.decoder.layers.0.fc1.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for model_class in (PegasusModel, PegasusForSequenceClassification):
        with pytest.raises(ValueError, match=r"missing: (model\.)?decoder\.layers\.0\.fc1\.weight"):
            model_class.from_pretrained(tmp_path, new_head=True)


def test_heads_train(tmp_path: Path) -> None:
    """A few steps on a decision that the first token gives away."""
    config = transformers.PegasusConfig(**tiny_settings(), num_labels=2)
    transformers.PegasusForConditionalGeneration(config).save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = PegasusForSequenceClassification.from_pretrained(tmp_path, new_head=True).train()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    ids, mask = sources(model.config)
    ids, mask = ids.repeat(8, 1), mask.repeat(8, 1)
    ids[:, 0] = torch.randint(4, 61, (24,))
    labels = (ids[:, 0] > 30).long()
    losses = []
    for _ in range(120):
        loss = model(ids, mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < 0.3 * losses[0]
