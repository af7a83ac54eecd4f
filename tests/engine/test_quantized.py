"""8-bit weights: how far from the real ones, what is refused, and that nothing but generate() changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pegasus_batch import PegasusConfig, PegasusForConditionalGeneration, PegasusModel, Summarizer
from pegasus_batch.engine.engine import Engine
from pegasus_batch.engine.linear import quantize_linear
from tests.conftest import tiny_settings


def layer(outputs: int, inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(inputs)
    return torch.randn(outputs, inputs) * torch.logspace(-2, 1, outputs)[:, None], torch.randn(outputs)


@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (30, 27), (64, 128), (200, 1024)])
def test_rows_and_outputs_of_any_size_are_close(outputs: int, inputs: int) -> None:
    """A scale for each row and each output: every product errs by little beside the length of its row and its weights."""
    weight, bias = layer(outputs, inputs)
    states = torch.randn(9, inputs) * torch.logspace(-3, 3, 9)[:, None]
    exact = states.double() @ weight.double().T
    got = quantize_linear(weight, torch.zeros(outputs), torch.float32)(states).double()
    lengths = states.double().norm(dim=1)[:, None] * weight.double().norm(dim=1)
    assert ((got - exact).abs() / lengths).max() < 0.02
    with_bias = quantize_linear(weight, bias, torch.float32)(states)
    torch.testing.assert_close(with_bias.double(), got + bias, rtol=1e-5, atol=1e-5)


def test_the_end_of_a_layer_is_part_of_it() -> None:
    weight, bias = layer(30, 27)
    states, residual = torch.randn(5, 27), torch.randn(5, 30)
    linear = quantize_linear(weight, bias, torch.float32)
    plain = linear(states)
    assert torch.equal(linear(states, relu=True), plain.relu())
    assert torch.equal(linear(states, residual=residual), plain + residual)
    assert torch.equal(linear(states[2:3]), plain[2:3])
    assert quantize_linear(weight, bias, torch.bfloat16)(states.bfloat16()).dtype == torch.bfloat16


def test_only_generate_changes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = PegasusConfig(**tiny_settings())
    PegasusForConditionalGeneration(config).save_pretrained(tmp_path)
    plain = PegasusForConditionalGeneration.from_pretrained(tmp_path)
    small = PegasusForConditionalGeneration.from_pretrained(tmp_path, dtype="int8")
    ids = torch.tensor([[5, 6, 7, 1]])
    assert small.dtype == torch.float32
    assert torch.equal(small(ids, decoder_input_ids=ids).logits, plain(ids, decoder_input_ids=ids).logits)
    options = {"num_beams": 3, "max_new_tokens": 6, "return_dict_in_generate": True, "output_scores": True}
    got, expected = (model.generate(ids, **options).sequences_scores for model in (small, plain))
    assert got is not None
    assert expected is not None
    assert not torch.equal(got, expected)
    torch.testing.assert_close(got, expected, rtol=0.02, atol=0.02)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    config = PegasusConfig(**tiny_settings())
    model = PegasusForConditionalGeneration(config)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="int8 is for generate"):
        PegasusModel.from_pretrained(tmp_path, dtype="int8")
    with pytest.raises(ValueError, match="int8 is for the CPU, made from float32 weights"):
        Engine(config, model.bfloat16().engine_weights(), quantized=True)


def test_a_summarizer_takes_it(model_dir: Path) -> None:
    texts = ["quick brown fox", "searching large text files on many machines"]
    small = Summarizer(model_dir, device="cpu", dtype="int8").summarize(texts)
    plain = Summarizer(model_dir, device="cpu").summarize(texts)
    assert [summary.status for summary in small] == ["ok", "ok"]
    for got, expected in zip(small, plain, strict=True):
        assert got.score == pytest.approx(expected.score, abs=0.15)  # of a network of 18 channels
