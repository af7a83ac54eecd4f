"""Classifiers and answer finders: BART's against transformers, Pegasus' (which it lacks) against BART's rules by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pegasus_batch import (
    BartForQuestionAnswering,
    BartForSequenceClassification,
    PegasusForConditionalGeneration,
    PegasusForQuestionAnswering,
    PegasusForSequenceClassification,
    PegasusModel,
)
from pegasus_batch.models.seq2seq import shift_right
from tests.conftest import tiny_settings
from tests.models.test_seq2seq import assert_close

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def bart_pair(theirs_class: Any, ours_class: Any, directory: Path, **settings: Any) -> tuple[Any, Any]:
    """Return a random transformers model and ours, loaded from its directory."""
    config = transformers.BartConfig(**tiny_settings(**settings), attn_implementation="eager")
    theirs = theirs_class(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(directory)
    return theirs, ours_class.from_pretrained(directory)


def sources(rows: int = 3, length: int = 9, eos: int = 2, pad: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids of several lengths, each with one end token, and their mask."""
    ids = torch.randint(4, 61, (rows, length))
    mask = torch.ones_like(ids)
    for row in range(rows):
        end = length - 1 - 2 * row
        ids[row, end] = eos
        ids[row, end + 1 :] = pad
        mask[row, end + 1 :] = 0
    return ids, mask


def compare(ours: Any, theirs: Any, *arguments: Any, **options: Any) -> Any:
    """Compare every field of both outputs; returns ours."""
    request = {"output_hidden_states": True, "output_attentions": True, **options}
    expected, found = theirs(*arguments, **request), ours(*arguments, **request)
    assert list(found) == [name for name in expected if name != "past_key_values" or name in found]
    for name in found:
        if name != "past_key_values":
            assert_close(found[name], expected[name])
    return found


@pytest.mark.parametrize(
    ("n_labels", "problem", "labels"),
    [
        (4, None, torch.tensor([3, 0, 1])),
        (1, None, torch.tensor([0.5, -2.0, 1.0])),
        (4, "multi_label_classification", torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])),
        (4, None, torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])),
        (2, "single_label_classification", torch.tensor([1, 1, 0])),
    ],
)
@torch.no_grad()
def test_classification_equals_transformers(n_labels: int, problem: str | None, labels: Any, tmp_path: Path) -> None:
    theirs, ours = bart_pair(
        transformers.BartForSequenceClassification,
        BartForSequenceClassification,
        tmp_path,
        num_labels=n_labels,
        problem_type=problem,
    )
    ids, mask = sources()
    found = compare(ours, theirs, ids, attention_mask=mask, labels=labels)
    assert found.logits.shape == (3, n_labels) and found.loss.shape == ()
    plain = compare(ours, theirs, ids, attention_mask=mask)
    assert plain.loss is None and plain.past_key_values is not None


@torch.no_grad()
def test_question_answering_equals_transformers(tmp_path: Path) -> None:
    theirs, ours = bart_pair(transformers.BartForQuestionAnswering, BartForQuestionAnswering, tmp_path)
    ids, mask = sources()
    positions = {"start_positions": torch.tensor([1, 40, 0]), "end_positions": torch.tensor([[3], [9], [-5]])}
    found = compare(ours, theirs, ids, attention_mask=mask, **positions)
    assert found.start_logits.shape == found.end_logits.shape == (3, 9)
    compare(ours, theirs, ids, attention_mask=mask)


@torch.no_grad()
def test_pegasus_heads_follow_the_same_rules(tmp_path: Path) -> None:
    """Made from a checkpoint for generation: its network, the source shifted right, the state at the last end token."""
    config = transformers.PegasusConfig(**tiny_settings(), num_labels=3)
    transformers.PegasusForConditionalGeneration(config).save_pretrained(tmp_path)
    base = PegasusForConditionalGeneration.from_pretrained(tmp_path).model
    torch.manual_seed(1)
    ids, mask = sources(eos=1, pad=0)
    ids[0, 2] = 1  # an end token inside
    states = base(ids, mask, decoder_input_ids=shift_right(ids, base.config)).last_hidden_state

    with pytest.raises(ValueError, match=r"missing: classification_head"):
        PegasusForSequenceClassification.from_pretrained(tmp_path)
    classifier = PegasusForSequenceClassification.from_pretrained(tmp_path, new_head=True)
    last = torch.stack([states[0, 8], states[1, 6], states[2, 4]])
    assert_close(classifier(ids, mask).logits, classifier.classification_head(last))
    assert classifier(ids, mask).logits.shape == (3, 3)
    classifier.save_pretrained(tmp_path / "classifier")
    again = PegasusForSequenceClassification.from_pretrained(tmp_path / "classifier")
    assert torch.equal(again(ids, mask).logits, classifier(ids, mask).logits)

    finder = PegasusForQuestionAnswering.from_pretrained(tmp_path, new_head=True)
    found = finder(ids, mask, return_dict=False)
    assert_close(torch.stack(found[:2], -1), finder.qa_outputs(states))


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
    ids, mask = sources(eos=1, pad=0)
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


def test_what_cannot_be_classified_is_named(tmp_path: Path) -> None:
    _, ours = bart_pair(transformers.BartForSequenceClassification, BartForSequenceClassification, tmp_path)
    ids, _ = sources()
    ids[1] = 7
    with pytest.raises(ValueError, match=r"row 1 of input_ids has no end token 2"):
        ours(ids)
    with pytest.raises(ValueError, match="needs input_ids"):
        ours(inputs_embeds=torch.zeros(1, 3, 24))
    wrong = type(ours.config).from_dict({**ours.config.to_dict(), "problem_type": "ranking"})
    with pytest.raises(ValueError, match="problem_type 'ranking' is not one of"):
        BartForSequenceClassification(wrong)(sources()[0], labels=torch.zeros(3))
