"""Hugging Face directories in every layout that they come in, and the errors for broken ones."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pegasus_batch import BartConfig, GenerationConfig, PegasusForConditionalGeneration, PegasusModel
from pegasus_batch.checkpoints import huggingface
from pegasus_batch.checkpoints.location import resolve
from pegasus_batch.config import load_config
from tests.models.oracle import batch, ours_named, pair, theirs_named

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def same_logits(one: Any, other: Any) -> bool:
    ids, mask = batch(3, 9)
    with torch.no_grad():
        first, second = (model(ids, attention_mask=mask, decoder_input_ids=ids).logits for model in (one, other))
    return bool((first - second).abs().max() < 1e-4)


def test_round_trip_through_transformers(family: str, tmp_path: Path) -> None:
    """A directory saved there loads here, one saved here loads there; logits, summaries and settings are equal."""
    theirs, ours = pair(family, tmp_path / "theirs")
    ours.generation_config = ours.generation_config.updated(num_beams=3, max_length=14, no_repeat_ngram_size=2)
    ours.save_pretrained(tmp_path / "ours")
    back = theirs_named(family).from_pretrained(tmp_path / "ours").eval()
    assert same_logits(theirs, ours) and same_logits(back, ours)
    ids, mask = batch(3, 9)
    assert torch.equal(back.generate(ids, attention_mask=mask), ours.generate(ids, mask))
    again = ours_named(family).from_pretrained(tmp_path / "ours")
    assert again.generation_config == ours.generation_config
    modes = {file.stat().st_mode for file in (tmp_path / "ours").iterdir()}
    assert len(modes) == 1, "the weights are readable to whoever may read the config"
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in ours.state_dict().items())


def test_bare_model_loads_from_a_full_checkpoint(tmp_path: Path) -> None:
    _, ours = pair("pegasus", tmp_path)
    bare = PegasusModel.from_pretrained(tmp_path)
    ids, _ = batch(2, 5)
    with torch.no_grad():
        assert torch.equal(bare(ids, decoder_input_ids=ids)[0], ours.model(ids, decoder_input_ids=ids)[0])


def test_shards_and_pickled_tensors(family: str, tmp_path: Path) -> None:
    theirs, ours = pair(family, tmp_path / "one")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    theirs.save_pretrained(tmp_path / "bin", safe_serialization=False)
    assert (tmp_path / "bin" / "pytorch_model.bin").is_file()
    for layout in ("shards", "bin"):
        assert same_logits(ours_named(family).from_pretrained(tmp_path / layout), ours)


@pytest.mark.parametrize(
    "kept", ["model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"]
)
def test_tied_tensors_under_any_one_name(family: str, kept: str, tmp_path: Path) -> None:
    """Released files hold one of the four names of the token embedding, and not always the same."""
    _, ours = pair(family, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[f"{kept}.weight"] = tensors.pop("model.shared.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    assert same_logits(ours_named(family).from_pretrained(tmp_path), ours)


def test_released_pegasus_files_lack_positions_and_bias(tmp_path: Path) -> None:
    """Without the sinusoids in the file the table is rebuilt, not left random."""
    theirs, _ = pair("pegasus", tmp_path)
    theirs.final_logits_bias.zero_()
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {
        name.removeprefix("model."): tensor
        for name, tensor in tensors.items()
        if "embed_positions" not in name and name != "final_logits_bias"
    }
    save_file(kept, tmp_path / "model.safetensors")
    assert same_logits(PegasusForConditionalGeneration.from_pretrained(tmp_path), theirs)


def test_untied_head(tmp_path: Path) -> None:
    theirs, ours = pair("pegasus", tmp_path, tie_word_embeddings=False)
    assert not torch.equal(ours.lm_head.weight, ours.model.shared.weight)
    assert same_logits(theirs, ours)


def test_one_error_names_every_tensor_that_does_not_fit(tmp_path: Path) -> None:
    pair("pegasus", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.encoder.layers.0.fc1.weight"]
    tensors["model.decoder.layers.1.fc2.bias"] = torch.zeros(5)
    tensors["model.encoder.layers.7.fc1.weight"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as caught:
        PegasusForConditionalGeneration.from_pretrained(tmp_path)
    for part in (
        "missing: model.encoder.layers.0.fc1.weight",
        "unexpected: encoder.layers.7.fc1.weight",
        "model.decoder.layers.1.fc2.bias is [5], expected [18]",
    ):
        assert part in str(caught.value)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    pair("pegasus", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (marker.write_text, ("boom",))

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Bomb()}))
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is damaged or holds more than tensors"):
        PegasusForConditionalGeneration.from_pretrained(tmp_path)
    assert not marker.exists()


def test_a_damaged_file_and_a_wandering_index(tmp_path: Path) -> None:
    pair("pegasus", tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        PegasusForConditionalGeneration.from_pretrained(tmp_path)
    weights.rename(tmp_path.parent / "elsewhere.safetensors")
    index = {"weight_map": {"x": "../elsewhere.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="not a plain file name"):
        PegasusForConditionalGeneration.from_pretrained(tmp_path)


def test_missing_directories_and_foreign_models(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a directory"):
        resolve("/nowhere/at/all")
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
        PegasusForConditionalGeneration.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ValueError, match="model_type 't5'"):
        load_config(tmp_path)
    with pytest.raises(ValueError, match="BartConfig reads 'bart'"):
        BartConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", ["float16", torch.bfloat16, "auto"])
def test_dtype_on_loading(dtype: Any, tmp_path: Path) -> None:
    pair("pegasus", tmp_path)
    expected = torch.float32 if dtype == "auto" else huggingface.parse_dtype(dtype)
    assert PegasusForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype).dtype == expected
    with pytest.raises(ValueError, match="dtype 'int3'"):
        PegasusForConditionalGeneration.from_pretrained(tmp_path, dtype="int3")


def test_generation_values_of_an_old_config_json(tmp_path: Path) -> None:
    """Before generation_config.json existed, config.json held these values."""
    pair("bart", tmp_path)
    (tmp_path / "generation_config.json").unlink()
    path = tmp_path / "config.json"
    old = {"num_beams": 4, "length_penalty": 2.0, "min_length": 5, "max_length": 14, "no_repeat_ngram_size": 3}
    config = {**json.loads(path.read_text()), **old, "early_stopping": True, "force_bos_token_to_be_generated": True}
    path.write_text(json.dumps(config))
    found = GenerationConfig.from_pretrained(tmp_path)
    assert {name: getattr(found, name) for name in old} == old
    assert (found.early_stopping, found.forced_bos_token_id, found.forced_eos_token_id) == (True, 0, 2)
    ours = ours_named("bart").from_pretrained(tmp_path)
    theirs = theirs_named("bart").from_pretrained(tmp_path).eval()
    theirs.generation_config.forced_bos_token_id = 0  # transformers 4.57 no longer reads the old flag
    ids, mask = batch(3, 9)
    assert torch.equal(theirs.generate(ids, attention_mask=mask), ours.generate(ids, mask))


def test_what_a_file_turns_off_stays_off(tmp_path: Path) -> None:
    """Its null once came back as the default, 50 for top_k."""
    options = GenerationConfig(do_sample=True, top_k=None, temperature=None, force_words_ids=None)
    options.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path) == options
    # Unused in a file, they wait for whoever draws.
    assert GenerationConfig.from_dict({"temperature": 0.5, "top_k": 9}).updated(do_sample=True).temperature == 0.5


def test_generation_options_that_are_not_ours_are_refused() -> None:
    with pytest.raises(ValueError, match=r"penalty_alpha=0.6 is not supported"):
        GenerationConfig.from_dict({"penalty_alpha": 0.6})
    for options, message in (
        ({"num_beam": 4}, "did you mean 'num_beams'"),
        ({"num_return_sequences": 2}, "cannot exceed num_beams"),
        ({"do_sample": "yes"}, "must be True or False"),
        ({"temperature": 0.7}, "temperature=0.7 has no effect on a search: set do_sample=True"),
        ({"do_sample": True, "temperature": 0.0}, "for the most probable tokens set do_sample=False"),
        ({"do_sample": True, "top_p": 1.5}, "top_p=1.5: must lie between 0 and 1"),
        ({"do_sample": True, "typical_p": 0}, "typical_p=0: must be above 0"),
        ({"do_sample": True, "eta_cutoff": 1.0}, "below 1"),
        ({"do_sample": True, "top_k": -1}, "top_k=-1: must be a non-negative integer"),
        ({"do_sample": True, "num_beams": 2, "num_return_sequences": 3}, "cannot exceed num_beams"),
        ({"seed": -3}, "seed=-3"),
        ({"num_beams": 4, "num_beam_groups": 3, "diversity_penalty": 1.0}, r"a divisor of num_beams \(4\)"),
        ({"num_beams": 4, "num_beam_groups": 2}, "the groups would be identical"),
        ({"num_beams": 4, "diversity_penalty": 1.0}, "needs num_beam_groups above 1"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, "do_sample": True}, "set do_sample=False"),
        ({"force_words_ids": [[3]]}, "needs num_beams above 1"),
        ({"num_beams": 2, "force_words_ids": [[3], []]}, "none of them empty"),
        ({"num_beams": 2, "force_words_ids": [[[3], [-4]]]}, "none of them empty"),
        ({"max_time": 0}, "must be a positive number of seconds"),
        ({"stop_strings": ["a", ""]}, "none of them empty"),
        ({"early_stopping": "always"}, "must be True, False"),
        ({"min_length": 9, "max_length": 4}, "exceeds max_length"),
        ({"length_penalty": float("nan")}, "must be a finite number"),
        ({"bad_words_ids": [[]]}, "non-empty list"),
        ({"eos_token_id": -1}, "must hold token ids"),
    ):
        with pytest.raises(ValueError, match=message):
            GenerationConfig().updated(**options)
