"""Forward passes of every class against transformers: every input, every output, in every form."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

import pegasus_batch
from pegasus_batch import PegasusConfig, PegasusForConditionalGeneration
from pegasus_batch.engine.numerics import sinusoids
from tests.conftest import tiny_settings
from tests.models.oracle import (
    BARE,
    CAUSAL,
    CLASSES,
    CLASSIFYING,
    GENERATING,
    SEQ2SEQ,
    TARGET,
    assert_close,
    compare,
    inputs,
    ours_named,
    pair,
    sources,
    theirs_named,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
NO_GRADIENTS = torch.no_grad()


@pytest.mark.parametrize("name", CLASSES)
def test_arguments_stand_in_the_same_order(name: str) -> None:
    ours, theirs = (
        [key for key in inspect.signature(model.forward).parameters if key != "cache_position"]
        for model in (ours_named(name), theirs_named(name))
    )
    assert ours == theirs


@pytest.mark.parametrize("name", CLASSES)
def test_outputs_have_the_same_fields(name: str) -> None:
    kinds = [
        next(kind for kind in get_args(get_type_hints(model.forward)["return"]) if dataclasses.is_dataclass(kind))
        for model in (ours_named(name), theirs_named(name))
    ]
    ours, theirs = ([field.name for field in dataclasses.fields(kind)] for kind in kinds)
    assert ours == theirs and kinds[0].__name__ == kinds[1].__name__


@pytest.mark.parametrize("name", CLASSES)
@NO_GRADIENTS
def test_every_output(name: str, tmp_path: Path) -> None:
    """Three decoder layers on three encoder layers, whose numbers of heads differ."""
    theirs, ours = pair(name, tmp_path, decoder_layers=3, encoder_layers=3, scale_embedding=True)
    batch = inputs(name, ours.config)
    found = compare(ours, theirs, batch)
    assert len(found.past_key_values) == len(found.cross_attentions) == 3
    compare(ours, theirs, batch, use_cache=False, output_attentions=False, output_hidden_states=False)
    compare(ours, theirs, {"input_ids": batch["input_ids"], **batch, "attention_mask": None})


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_new", "silu"])
@NO_GRADIENTS
def test_activations(family: str, activation: str, tmp_path: Path) -> None:
    name = f"{family.title()}Model"
    theirs, ours = pair(name, tmp_path, activation_function=activation)
    compare(ours, theirs, inputs(name, ours.config))


@pytest.mark.parametrize("name", CLASSES)
@NO_GRADIENTS
def test_tuples_hold_the_same_in_the_same_order(name: str, tmp_path: Path) -> None:
    theirs, ours = pair(name, tmp_path)
    batch = inputs(name, ours.config)
    whole = compare(ours, theirs, batch, return_dict=False)
    short = compare(ours, theirs, batch, return_dict=False, use_cache=False, output_hidden_states=False)
    assert len(short) < len(whole)
    theirs.config.return_dict = False
    assert_close(type(ours).from_pretrained(tmp_path, return_dict=False)(**batch), tuple(theirs(**batch)))


@pytest.mark.parametrize("name", CLASSES)
@NO_GRADIENTS
def test_the_config_may_ask(name: str, tmp_path: Path) -> None:
    wishes: dict[str, Any] = {"output_attentions": True, "output_hidden_states": True, "use_cache": False}
    theirs, ours = pair(name, tmp_path, **wishes)
    unsaid = dict.fromkeys(wishes)
    found = compare(ours, theirs, inputs(name, ours.config), **unsaid)
    assert "past_key_values" not in found and "cross_attentions" in found


@pytest.mark.parametrize("name", CLASSES)
@NO_GRADIENTS
def test_head_masks_act(name: str, tmp_path: Path) -> None:
    """Transformers obeys them under eager attention only, which the oracle uses."""
    theirs, ours = pair(name, tmp_path)
    batch = inputs(name, ours.config)
    encoder = torch.tensor([[1.0, 0.0], [1.0, 0.5]])
    decoder, cross = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]], [[0.0, 0.0, 1.0], [1.0, 0.3, 1.0]]])
    masks = {"head_mask": encoder, "decoder_head_mask": decoder, "cross_attn_head_mask": cross}
    if name in CAUSAL:
        masks = {"head_mask": decoder, "cross_attn_head_mask": cross}
    for asked in (True, False):  # two ways of attending
        plain = compare(ours, theirs, batch, output_attentions=asked)
        for key, mask in masks.items():
            found = compare(ours, theirs, {**batch, key: mask}, output_attentions=asked)
            one, other = (output.get("hidden_states", output.get("decoder_hidden_states")) for output in (found, plain))
            assert (one[-1] - other[-1]).abs().max() > 1e-3, f"{key} does nothing"
    compare(ours, theirs, {**batch, **masks})
    for key, mask in masks.items():
        with pytest.raises(ValueError, match=r"head_mask is \[1, .\], expected \[2, .\]"):
            ours(**batch, **{key: mask[:1]})


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in CLASSIFYING])
@NO_GRADIENTS
def test_embeddings_may_stand_for_ids(name: str, tmp_path: Path) -> None:
    theirs, ours = pair(name, tmp_path, scale_embedding=True)
    batch = inputs(name, ours.config)
    del batch["input_ids"]
    batch["inputs_embeds"] = torch.randn(3, 9, 18)
    if name not in CAUSAL:
        batch.pop("decoder_input_ids", None)
        batch["decoder_inputs_embeds"] = torch.randn(3, TARGET, 18)
    compare(ours, theirs, batch)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        ours(**batch, input_ids=torch.ones(3, 9, dtype=torch.long))
    if name in BARE:
        with pytest.raises(ValueError, match=r"exactly one of decoder_input_ids|pass decoder_input_ids"):
            ours(inputs_embeds=batch["inputs_embeds"])


@pytest.mark.parametrize("name", SEQ2SEQ)
@NO_GRADIENTS
def test_encoder_outputs_skip_the_encoder(name: str, tmp_path: Path) -> None:
    """As a tuple of one or three, our output object or theirs."""
    theirs, ours = pair(name, tmp_path)
    batch = inputs(name, ours.config)
    parts = (torch.randn(3, 9, 18), (torch.randn(3, 9, 18),) * 3, (torch.rand(3, 2, 9, 9),) * 2)
    if name in BARE + GENERATING:
        del batch["input_ids"]
    for given in (parts[:1], parts, list(parts), BaseModelOutput(*parts)):
        compare(ours, theirs, {**batch, "encoder_outputs": given})
    network = getattr(ours, "model", ours)
    own = network.get_encoder()(batch.get("input_ids", sources(ours.config)[0]), output_hidden_states=True)
    states = {"last_hidden_state": own.last_hidden_state, "hidden_states": own.hidden_states}
    expected = theirs(**batch, encoder_outputs=BaseModelOutput(**states))
    assert_close(ours(**batch, encoder_outputs=own)[0], expected[0])


@pytest.mark.parametrize(
    ("name", "crosses"),
    [(name, True) for name in BARE + GENERATING + CAUSAL] + [(name, False) for name in CAUSAL],
)
@NO_GRADIENTS
def test_caches_of_every_form(name: str, crosses: bool, tmp_path: Path) -> None:
    """A tuple of ours, a legacy tuple and a cache object of transformers; the next tokens under a mask of all."""
    theirs, ours = pair(name, tmp_path)
    batch = inputs(name, ours.config)
    ids, mask = ("input_ids", "attention_mask") if name in CAUSAL else ("decoder_input_ids", "decoder_attention_mask")
    if not crosses:
        batch = {key: value for key, value in batch.items() if not key.startswith("encoder")}
    whole = ours(**batch)[0]
    first = {**batch, ids: batch[ids][:, :3], mask: batch[mask][:, :3]}
    rest = {**batch, ids: batch[ids][:, 3:]}
    if name not in CAUSAL:
        del rest["input_ids"]
        rest["encoder_outputs"] = (ours(**first).encoder_last_hidden_state,)
    own = ours(**first).past_key_values
    assert [len(layer) for layer in own] == [4 if crosses else 2] * 2
    assert own[0][0].shape == (3, 3, 3, 6)
    for form in ("ours", "legacy", "object"):
        fresh = theirs(**first).past_key_values  # a step writes into it
        given = {"ours": own, "legacy": fresh.to_legacy_cache(), "object": fresh}[form]
        found = ours(**rest, past_key_values=given)
        assert_close(found[0], whole[:, 3:])
        expected = theirs(**rest, past_key_values=fresh)
        assert list(found) == list(expected)
        assert_close(tuple(found.values()), tuple(expected.values()))
    unasked = ours(**rest, past_key_values=own, use_cache=False)
    assert list(unasked) == list(theirs(**rest, past_key_values=theirs(**first).past_key_values, use_cache=False))
    with pytest.raises(ValueError, match="past_key_values has 1 layers, the decoder 2"):
        ours(**rest, past_key_values=own[:1])


@pytest.mark.parametrize("name", BARE + GENERATING + CAUSAL)
@NO_GRADIENTS
def test_more_decoder_than_encoder_layers(name: str, tmp_path: Path) -> None:
    """A causal model of transformers cannot cache them (IndexError); here the cache goes as deep as the decoder."""
    theirs, ours = pair(name, tmp_path, encoder_layers=1, decoder_layers=3)
    batch = inputs(name, ours.config)
    found = compare(ours, theirs, batch, use_cache=name not in CAUSAL)
    if name in CAUSAL:
        states = {key: batch[key] for key in ("encoder_hidden_states", "encoder_attention_mask")}
        first = ours(batch["input_ids"][:, :4], batch["attention_mask"][:, :4], **states)
        rest = ours(batch["input_ids"][:, 4:], batch["attention_mask"], **states, past_key_values=first.past_key_values)
        assert len(first.past_key_values) == 3
        assert_close(rest.logits, found.logits[:, 4:])


@NO_GRADIENTS
def test_cross_attention_may_live_on_its_cache_alone(family: str, tmp_path: Path) -> None:
    """Transformers needs the encoder's states again; here the cached keys do."""
    _, ours = pair(f"{family.title()}ForCausalLM", tmp_path)
    ids, states = torch.randint(4, 61, (2, 9)), torch.randn(2, 4, 18)
    first = ours(ids[:, :5], encoder_hidden_states=states)
    rest = ours(ids[:, 5:], past_key_values=first.past_key_values)
    assert_close(rest.logits, ours(ids, encoder_hidden_states=states).logits[:, 5:])


@pytest.mark.parametrize("name", GENERATING + CAUSAL)
@NO_GRADIENTS
def test_losses_of_words(name: str, tmp_path: Path) -> None:
    """Labels of -100 do not count; alone they make the decoder's ids; they end caching where a decoder is shifted."""
    theirs, ours = pair(name, tmp_path)
    batch = inputs(name, ours.config)
    labels = torch.randint(4, 61, (3, 9 if name in CAUSAL else TARGET))
    labels[0, 4:] = labels[2, 1] = -100
    found = compare(ours, theirs, {**batch, "labels": labels})
    assert found.loss.shape == () and ("past_key_values" in found) == (name in CAUSAL)
    compare(ours, theirs, {**batch, "labels": labels}, return_dict=False)
    if name in GENERATING:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        compare(ours, theirs, {"input_ids": ids, "attention_mask": mask, "labels": labels}, use_cache=True)


@pytest.mark.parametrize("name", ["BartModel", "BartForConditionalGeneration"])
@NO_GRADIENTS
def test_bart_shifts_the_source(name: str, tmp_path: Path) -> None:
    theirs, ours = pair(name, tmp_path)
    ids, mask = sources(ours.config)
    found = compare(ours, theirs, {"input_ids": ids, "attention_mask": mask})
    start = torch.full((3, 1), ours.config.decoder_start_token_id)
    explicit = ours(ids, mask, torch.cat((start, ids[:, :-1]), 1))
    assert_close(found[0], explicit[0])
    with pytest.raises(ValueError, match="they can be made from input_ids only"):
        ours(encoder_outputs=(torch.zeros(1, 3, 18),))


@pytest.mark.parametrize("name", ["PegasusModel", "PegasusForConditionalGeneration"])
def test_pegasus_wants_decoder_ids(name: str) -> None:
    model = ours_named(name)(PegasusConfig(**tiny_settings()))
    with pytest.raises(ValueError, match="exactly one of decoder_input_ids and decoder_inputs_embeds"):
        model(torch.full((1, 4), 5))


def test_outputs_read_as_records_tuples_and_mappings(tiny_config: PegasusConfig, family: str) -> None:
    name = f"{family.title()}ForConditionalGeneration"
    ids = torch.randint(3, 61, (2, 5))
    output = ours_named(name)(tiny_config).eval()(ids, decoder_input_ids=ids)
    assert output[0] is output.logits is output["logits"] is output.get("logits")
    assert output.loss is None and "loss" not in output and output.get("loss") is None
    assert [*output] == ["logits", "past_key_values", "encoder_last_hidden_state"] and len(output) == 3
    assert output[:2] == output.to_tuple()[:2]
    with pytest.raises(KeyError):
        output["loss"]


def test_bad_input_says_what_is_wrong(tiny_config: PegasusConfig, family: str) -> None:
    name = f"{family.title()}ForConditionalGeneration"
    model = ours_named(name)(tiny_config)
    good = torch.full((1, 4), 5)
    with pytest.raises(ValueError, match=r"\[0, 61\), got 5 to 61"):
        model(torch.tensor([[5, 61]]), decoder_input_ids=good)
    with pytest.raises(ValueError, match="position 64 is beyond the model's 64 positions"):
        model(torch.full((1, 65), 5), decoder_input_ids=good)
    with pytest.raises(ValueError, match="covers 3 positions, expected 4"):
        model(good, decoder_input_ids=good, decoder_attention_mask=torch.ones(1, 3))
    other = pegasus_batch.BartModel if family == "pegasus" else pegasus_batch.PegasusModel
    with pytest.raises(TypeError, match=r"Model takes a (Bart|Pegasus)Config"):
        other(tiny_config)


@pytest.mark.parametrize("width", [6, 7])
def test_sinusoids_put_sines_first(width: int) -> None:
    from transformers.models.pegasus.modeling_pegasus import PegasusSinusoidalPositionalEmbedding

    theirs = PegasusSinusoidalPositionalEmbedding(50, width)
    theirs._init_weight()
    torch.testing.assert_close(sinusoids(50, width), theirs.weight.detach(), atol=0, rtol=0)


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
