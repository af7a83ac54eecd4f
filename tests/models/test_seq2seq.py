"""The forward pass against transformers: every input, every output."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pegasus_batch import BartModel, PegasusConfig, PegasusForConditionalGeneration, PegasusModel
from pegasus_batch.engine.weights import sinusoids
from tests.conftest import tiny_settings
from tests.models.oracle import OURS, batch, pair

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
TOLERANCE = 1e-4


def assert_close(ours: object, theirs: object) -> None:
    """Compare two outputs field by field, tuples element by element."""
    if isinstance(theirs, torch.Tensor):
        torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)
        return
    assert isinstance(ours, tuple) and isinstance(theirs, tuple) and len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("scale_embedding", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_new", "silu"])
@torch.no_grad()
def test_every_output_equals_transformers(family: str, scale_embedding: bool, activation: str, tmp_path: Path) -> None:
    theirs, ours = pair(
        family, tmp_path, scale_embedding=scale_embedding, activation_function=activation, decoder_layers=3
    )
    ids, mask = batch(4, 11)
    labels = torch.randint(3, 61, (4, 6))
    labels[0, 4:] = -100
    labels[2, 1] = -100
    request = {"attention_mask": mask, "labels": labels, "output_hidden_states": True, "output_attentions": True}
    expected = theirs(ids, **request)
    found = ours(ids, **request)
    assert list(found) == [name for name in expected if name != "past_key_values"]
    for name in found:
        assert_close(found[name], expected[name])


@torch.no_grad()
def test_the_cache_reproduces_the_full_pass(family: str, tmp_path: Path) -> None:
    theirs, ours = pair(family, tmp_path)
    ids, mask = batch(3, 9)
    targets = torch.randint(3, 61, (3, 7))
    full = theirs(ids, attention_mask=mask, decoder_input_ids=targets).logits
    first = ours(ids, attention_mask=mask, decoder_input_ids=targets[:, :4])
    assert [tuple(tensor.shape) for tensor in first.past_key_values[0]] == [(3, 3, 4, 6)] * 2 + [(3, 3, 9, 6)] * 2
    rest = ours(
        attention_mask=mask,
        decoder_input_ids=targets[:, 4:],
        past_key_values=first.past_key_values,
        encoder_outputs=(first.encoder_last_hidden_state,),
    )
    assert_close(torch.cat((first.logits, rest.logits), 1), full)


@torch.no_grad()
def test_head_masks_and_decoder_mask(family: str, tmp_path: Path) -> None:
    """Transformers obeys head masks under eager attention only, which the oracle uses."""
    theirs, ours = pair(family, tmp_path)
    ids, mask = batch(3, 9)
    targets = torch.randint(3, 61, (3, 5))
    request = {
        "attention_mask": mask,
        "decoder_input_ids": targets,
        "decoder_attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 1, 1]]),
        "head_mask": torch.tensor([[1.0, 0.0], [1.0, 1.0]]),
        "decoder_head_mask": torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]),
        "cross_attn_head_mask": torch.tensor([[0.0, 0.0, 1.0], [1.0, 1.0, 1.0]]),
    }
    assert_close(ours(ids, **request).logits, theirs(ids, **request).logits)


@torch.no_grad()
def test_embeddings_may_stand_for_ids(family: str, tmp_path: Path) -> None:
    theirs, ours = pair(family, tmp_path, scale_embedding=True)
    request = {"inputs_embeds": torch.randn(2, 7, 18), "decoder_inputs_embeds": torch.randn(2, 4, 18)}
    assert_close(ours(**request).logits, theirs(**request).logits)


@torch.no_grad()
def test_bart_shifts_the_source_and_pegasus_refuses(tmp_path: Path) -> None:
    ids, _ = batch(2, 6)
    theirs, ours = pair("bart", tmp_path)
    assert_close(ours(ids).logits, theirs(ids).logits)
    with pytest.raises(ValueError, match="exactly one of decoder_input_ids"):
        PegasusModel(PegasusConfig(**tiny_settings()))(ids)


def test_return_dict_false_gives_the_same_as_a_tuple(tiny_config: PegasusConfig, family: str) -> None:
    model = OURS[family](tiny_config).eval()
    ids = torch.randint(3, 61, (2, 5))
    as_dict = model(ids, decoder_input_ids=ids)
    as_tuple = model(ids, decoder_input_ids=ids, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], as_dict.logits)
    assert torch.equal(as_dict[0], as_dict["logits"]) and len(as_tuple) == len(as_dict)


def test_released_pegasus_size() -> None:
    """16 + 16 layers over 96,103 tokens have the published 568,699,904 trainable parameters."""
    config = PegasusConfig(vocab_size=96103, encoder_layers=16, decoder_layers=16)
    with torch.device("meta"):
        model = PegasusForConditionalGeneration(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 568_699_904


@pytest.mark.parametrize("width", [6, 7])
def test_sinusoids_put_sines_first(width: int) -> None:
    from transformers.models.pegasus.modeling_pegasus import PegasusSinusoidalPositionalEmbedding

    theirs = PegasusSinusoidalPositionalEmbedding(50, width)
    weight = theirs._init_weight() if hasattr(theirs, "_init_weight") else theirs.weight
    expected = theirs.weight if weight is None else weight
    torch.testing.assert_close(sinusoids(50, width), expected.detach(), atol=0, rtol=0)


def test_bad_input_says_what_is_wrong(tiny_config: PegasusConfig, family: str) -> None:
    model = OURS[family](tiny_config)
    good = torch.full((1, 4), 5)
    with pytest.raises(ValueError, match=r"\[0, 61\), got 5 to 61"):
        model(torch.tensor([[5, 61]]), decoder_input_ids=good)
    with pytest.raises(ValueError, match="position 64 is beyond the model's 64 positions"):
        model(torch.full((1, 65), 5), decoder_input_ids=good)
    with pytest.raises(ValueError, match="covers 3 positions, expected 4"):
        model(good, decoder_input_ids=good, decoder_attention_mask=torch.ones(1, 3))
    with pytest.raises(TypeError, match="takes a BartConfig"):
        BartModel(PegasusConfig(**tiny_settings()))
    with pytest.raises(ValueError, match="not divisible by encoder_attention_heads"):
        PegasusConfig(**tiny_settings(encoder_attention_heads=5))


def test_half_precision_stays_finite_where_the_stream_would_overflow() -> None:
    """Released Pegasus grows its residual stream past float16's 65,504; the scaled stream holds it."""
    config = PegasusConfig(**tiny_settings(d_model=16, decoder_attention_heads=2, encoder_layers=6))
    model = PegasusForConditionalGeneration(config).eval()
    with torch.no_grad():
        for layer in model.model.encoder.layers:
            layer.fc2.weight.mul_(10_000.0)
    ids = torch.randint(3, 61, (2, 9))
    output = model(ids, decoder_input_ids=ids, output_hidden_states=True)
    exact = output.logits
    assert output.encoder_hidden_states[-2].abs().max() > torch.finfo(torch.float16).max
    half = model.half()(ids, decoder_input_ids=ids).logits
    assert torch.isfinite(half).all()
    assert (half.float() - exact).abs().max() < 0.02 * exact.abs().max()
    tokens = model.generate(ids, num_beams=3, max_length=12)
    assert tokens.shape[0] == 2
