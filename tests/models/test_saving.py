"""Directories of every class travel to transformers and back: names, weights, configs, settings given on loading."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import pegasus_batch
from tests.conftest import tiny_settings
from tests.models.oracle import (
    ANSWERING,
    BARE,
    CAUSAL,
    CLASSES,
    CLASSIFYING,
    GENERATING,
    compare,
    inputs,
    ours_named,
    pair,
    theirs_named,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", CLASSES)
@torch.no_grad()
def test_directories_travel_both_ways(name: str, tied: bool, tmp_path: Path) -> None:
    theirs, ours = pair(name, tmp_path / "theirs", tie_word_embeddings=tied)
    batch = inputs(name, ours.config)
    compare(ours, theirs, batch)
    ours.save_pretrained(tmp_path / "ours")
    tensors, expected = (load_file(tmp_path / side / "model.safetensors") for side in ("ours", "theirs"))
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], expected[key]) for key in expected)
    back = theirs_named(name).from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    if tied:  # an untied model of transformers does not read its own file: the embedding that no name holds is drawn
        compare(ours, back, batch)
        back.save_pretrained(tmp_path / "back")
        again = type(ours).from_pretrained(tmp_path / "back")
        assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in ours.state_dict().items())


@pytest.mark.parametrize("name", CLASSES)
def test_configs_travel_both_ways(name: str, tmp_path: Path) -> None:
    """What transformers wrote comes back as it was, its own extra settings included."""
    settings = {
        "dropout": 0.25,
        "scale_embedding": True,
        "task_specific_params": {"a": {"num_beams": 8}},
        "id2label": {0: "x", 1: "y"},
    }
    theirs, ours = pair(name, tmp_path / "theirs", **settings, label2id={"x": 0, "y": 1})
    ours.save_pretrained(tmp_path / "ours")
    written, expected = (json.loads((tmp_path / side / "config.json").read_text()) for side in ("ours", "theirs"))
    assert {key: written.get(key) for key in expected if key != "transformers_version"} == {
        key: value for key, value in expected.items() if key != "transformers_version"
    }
    again = type(theirs.config).from_pretrained(tmp_path / "ours")
    # What a fresh config would say, transformers leaves out and we write; what only we know it keeps as it is.
    ours_alone = {
        "positions_from_mask",
        "num_labels",
        "architectures",
        "dtype",
        "transformers_version",
        "_name_or_path",
    }
    assert {key: value for key, value in again.to_dict().items() if key not in ours_alone} == {
        key: value for key, value in theirs.config.to_dict().items() if key not in ours_alone
    }
    assert type(ours.config).from_pretrained(tmp_path / "ours") == type(ours).from_pretrained(tmp_path / "ours").config
    assert ours.config.is_decoder == (name in CAUSAL) and ours.config.is_encoder_decoder == (name not in CAUSAL)


@pytest.mark.parametrize("name", ["PegasusConfig", "BartConfig"])
def test_a_fresh_config_is_transformers(name: str) -> None:
    """Every default of transformers' constructor and everything that its config holds and ours knows."""
    ours, theirs = ours_named(name)().to_dict(), getattr(transformers, name)()
    documented = set(inspect.signature(type(theirs).__init__).parameters) - {"self", "kwargs"}
    assert documented <= ours.keys()
    for key, value in ours.items():
        if key != "positions_from_mask" and hasattr(theirs, key):
            assert value == getattr(theirs, key), key


@pytest.mark.parametrize("name", [*GENERATING, *CAUSAL, *CLASSIFYING, *ANSWERING])
@torch.no_grad()
def test_a_network_is_loaded_from_a_checkpoint_for_generation(name: str, tmp_path: Path) -> None:
    family = "Pegasus" if name.startswith("Pegasus") else "Bart"
    whole, _ = pair(f"{family}ForConditionalGeneration", tmp_path)
    ours = ours_named(name).from_pretrained(tmp_path, new_head=name in CLASSIFYING + ANSWERING)
    decoder = whole.model.decoder.state_dict()
    for key, tensor in ours.model.decoder.state_dict().items():
        assert torch.equal(tensor, decoder[key])
    if name in CAUSAL:  # transformers draws a new embedding here: it looks for it under another name than it wrote
        ids = torch.randint(4, 61, (2, 7))
        theirs = theirs_named(name)(whole.config).eval()
        theirs.model.decoder.load_state_dict(decoder)
        compare(ours, theirs, {"input_ids": ids})


@pytest.mark.parametrize("keyword", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("name", CLASSES)
def test_dtype_on_loading(name: str, keyword: str, tmp_path: Path) -> None:
    _, ours = pair(name, tmp_path)
    for dtype in (torch.bfloat16, "bfloat16"):
        half = type(ours).from_pretrained(tmp_path, **{keyword: dtype})
        assert {tensor.dtype for tensor in half.state_dict().values()} == {
            torch.bfloat16
        } and half.dtype == torch.bfloat16
    half.save_pretrained(tmp_path / "half")
    assert type(ours).from_pretrained(tmp_path / "half", **{keyword: "auto"}).dtype == torch.bfloat16
    assert type(ours).from_pretrained(tmp_path / "half").dtype == torch.float32
    if name not in GENERATING + CAUSAL:
        with pytest.raises(ValueError, match=f"dtype int8 is for generate.. in the engine, which {name} does not use"):
            type(ours).from_pretrained(tmp_path, dtype="int8")


@pytest.mark.parametrize("name", CLASSES)
@torch.no_grad()
def test_settings_given_on_loading(name: str, tmp_path: Path) -> None:
    """Those that the documents give: they replace the file's, and reach the network."""
    _, ours = pair(name, tmp_path)
    settings: dict[str, Any] = {
        "add_cross_attention": False,
        "dropout": 0.3,
        "problem_type": "regression",
        "use_cache": False,
    }
    found = type(ours).from_pretrained(tmp_path, **settings)
    theirs = theirs_named(name).from_pretrained(tmp_path, attn_implementation="eager", **settings).eval()
    assert {key: getattr(found.config, key) for key in settings} == {
        key: getattr(theirs.config, key) for key in settings
    }
    compare(found, theirs, inputs(name, ours.config))
    with pytest.raises(ValueError, match=r"num_label: no setting of (Bart|Pegasus)Config"):
        type(ours).from_pretrained(tmp_path, num_label=3)
    if name not in GENERATING + CAUSAL:
        with pytest.raises(ValueError, match="forced_bos_token_id: no setting"):
            type(ours).from_pretrained(tmp_path, forced_bos_token_id=0)


@pytest.mark.parametrize("name", GENERATING)
@torch.no_grad()
def test_generation_settings_given_on_loading(name: str, tmp_path: Path) -> None:
    theirs, _ = pair(name, tmp_path)
    ours = ours_named(name).from_pretrained(tmp_path, forced_bos_token_id=7, num_beams=2, max_length=6)
    ids = torch.randint(4, 61, (2, 7))
    tokens = ours.generate(ids, min_length=6)
    options = {"forced_bos_token_id": 7, "num_beams": 2, "max_length": 6, "min_length": 6}
    assert torch.equal(tokens, theirs.generate(ids, attention_mask=torch.ones_like(ids), **options))
    assert (tokens[:, 1] == 7).all()


@pytest.mark.parametrize("name", CLASSIFYING)
def test_another_number_of_labels_on_a_bare_checkpoint(name: str, tmp_path: Path) -> None:
    pair(f"{name.removesuffix('ForSequenceClassification')}Model", tmp_path)
    model = ours_named(name).from_pretrained(tmp_path, new_head=True, num_labels=5)
    assert model.classification_head.out_proj.weight.shape == (5, 18) and model.config.num_labels == 5
    model.save_pretrained(tmp_path / "saved")
    again = theirs_named(name).from_pretrained(tmp_path / "saved")
    assert again.config.num_labels == 5 and again.config.id2label[4] == "LABEL_4"


@pytest.mark.parametrize("name", CLASSES)
@torch.no_grad()
def test_a_config_alone_makes_a_model(name: str) -> None:
    """Weights are drawn with the config's deviation, norms and biases are plain, padding is zero."""
    config_class = pegasus_batch.PegasusConfig if name.startswith("Pegasus") else pegasus_batch.BartConfig
    model = ours_named(name)(config_class(**tiny_settings(d_model=48, init_std=0.3))).eval()
    their_config = getattr(transformers, config_class.__name__)(
        **tiny_settings(d_model=48, init_std=0.3), classifier_dropout=0.0
    )
    theirs = theirs_named(name)(their_config)
    assert model.num_parameters() == theirs.num_parameters()
    for key, tensor in model.named_parameters():
        there = key.replace("model.shared", "model.decoder.embed_tokens") if name in CAUSAL else key
        other = theirs.get_parameter(there)
        assert tensor.shape == other.shape and abs(float(tensor.std() - other.std())) < 0.1, key
        assert (tensor.std() == 0) == (other.std() == 0) and abs(float(tensor.mean() - other.mean())) < 0.1, key
    assert not model.get_input_embeddings().weight[model.config.pad_token_id].any()
    assert name in BARE or model.model.decoder.layers[0].fc1.bias.abs().sum() == 0
    assert model(**inputs(name, model.config))[0].shape[0] == 3
