"""The smoothed loss against its definition and against Hugging Face's label smoother."""

from __future__ import annotations

import pytest
import torch

from pegasus_batch.training.loss import smoothed_cross_entropy


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, 29, generator=random) * 4
    labels = torch.randint(0, 29, (3, 7), generator=random)
    labels[0, 4:] = -100
    labels[2, 0] = -100
    labels[1, 3] = 0  # the padding id, which counts unless it is written as -100
    return logits, labels


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_equals_the_label_smoother_of_transformers(smoothing: float) -> None:
    from transformers.trainer_pt_utils import LabelSmoother

    logits, labels = inputs()
    expected = LabelSmoother(epsilon=smoothing)({"logits": logits}, labels)
    loss, _ = smoothed_cross_entropy(logits, labels, smoothing)
    torch.testing.assert_close(loss, expected)


def test_without_smoothing_both_results_are_the_cross_entropy() -> None:
    logits, labels = inputs()
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    loss, nll = smoothed_cross_entropy(logits, labels, 0.0)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(nll, expected)


def test_ignored_positions_get_no_gradient() -> None:
    logits, labels = inputs()
    logits.requires_grad_()
    smoothed_cross_entropy(logits, labels, 0.1)[0].backward()
    assert logits.grad is not None
    moved = logits.grad.abs().sum(-1) > 0
    assert torch.equal(moved, labels != -100)


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits, labels = inputs()
    loss, nll = smoothed_cross_entropy(logits.bfloat16(), labels, 0.1)
    exact, _ = smoothed_cross_entropy(logits.bfloat16().double().float(), labels, 0.1)
    assert loss.dtype == nll.dtype == torch.float32
    torch.testing.assert_close(loss, exact)
