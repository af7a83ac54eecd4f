"""Checkpoints of every kind against what their own projects computed from them."""

from __future__ import annotations

import argparse
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from typer.testing import CliRunner

from pegasus_batch import conversion
from pegasus_batch.checkpoints import flax, sources, tensorflow
from pegasus_batch.cli import app
from pegasus_batch.config import GenerationConfig, read_json
from pegasus_batch.conversion import ARCHITECTURES, Conversion, convert
from pegasus_batch.tokenization import BartTokenizer, PegasusTokenizer, load_tokenizer
from tests.checkpoints.bundles import write_bundle
from tests.checkpoints.conftest import FIXTURES
from tests.conftest import tiny_settings
from tests.models.oracle import batch, random_model
from tests.tokenization.vocabularies import train_byte_level

Checkpoint = Callable[[str, str], Path]
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 3}  # no shape shows them
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def names(kind: str) -> list[str]:
    with zipfile.ZipFile(FIXTURES / f"{kind}.zip") as archive:
        return sorted({member.split("/")[0] for member in archive.namelist()})


def heads_file(directory: Path) -> Path:
    path = directory / "heads.json"
    path.write_text(json.dumps({**HEADS, "max_position_embeddings": 20}))
    return path


def compute(model: Any, given: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    ids, mask, decoder_ids = (torch.from_numpy(given[name]).long() for name in ("ids", "mask", "decoder_ids"))
    decodes = type(model).__name__.endswith(("Model", "ForConditionalGeneration"))
    with torch.no_grad():
        return dict(
            model(ids, attention_mask=mask, use_cache=False, **({"decoder_input_ids": decoder_ids} if decodes else {}))
        )


def agrees(directory: Path, source: Path, model_class: Any) -> bool:
    """Whether a model of a directory computes what the source's own project did."""
    found = compute(model_class.from_pretrained(directory).eval(), dict(np.load(source / "inputs.npz")))
    expected = dict(np.load(source / "outputs.npz"))
    assert expected
    return all((found[name] - torch.from_numpy(value)).abs().max() < 1e-5 for name, value in expected.items())


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in ("flax", "tensorflow") for name in names(kind)])
def test_what_transformers_saved_from_other_frameworks(
    kind: str, name: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Every class, in float32, half precision and chunks: ours and transformers' PyTorch compute what Flax and TensorFlow did."""
    if kind == "tensorflow":
        pytest.importorskip("h5py")
    source = checkpoint(kind, name)
    done = convert(source, tmp_path / "here")
    assert done.architecture.lower() == name.split("-")[0].lower()
    assert agrees(tmp_path / "here", source, ARCHITECTURES[done.architecture])
    assert agrees(tmp_path / "here", source, getattr(transformers, done.architecture))
    dtype = read_json(tmp_path / "here" / "config.json")["dtype"]
    assert dtype == (name.split("-")[1] if "float" in name else "float32")


@pytest.mark.parametrize("kind", ["flax", "tensorflow"])
def test_written_for_other_frameworks_as_they_write_it(kind: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """From a Hugging Face directory back: names, attributes and arrays equal what transformers itself had saved."""
    pytest.importorskip({"flax": "msgpack", "tensorflow": "h5py"}[kind])
    for name in names(kind):
        source = checkpoint(kind, name)
        convert(source, tmp_path / name / "one")
        convert(tmp_path / name / "one", tmp_path / name / "back", to=kind)
        before, after = (contents(kind, directory) for directory in (source, tmp_path / name / "back"))
        assert before == after and before


def contents(kind: str, directory: Path) -> dict[str, Any]:
    """Return a file's names with their bytes, and, of an HDF5 file, Keras' lists of them."""
    if kind == "flax":
        return {name: load().numpy(force=True).tobytes() if load else None for name, load in decoded(directory)}
    import h5py

    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = (item.shape, item[()].tobytes())
        elif "weight_names" in item.attrs and name != "top_level_model_weights":  # which Keras writes and has none of
            found[name] = sorted(item.attrs["weight_names"])

    with h5py.File(directory / tensorflow.FILE) as file:
        file.visititems(visit)
        return {**found, "layers": sorted(file.attrs["layer_names"])}


def decoded(directory: Path) -> Any:
    for name, load in flax.read(directory / flax.FILE):
        yield name, (lambda load=load: load().view(torch.uint8))


def test_older_keras_files(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Before transformers 4.27 the embeddings were called weight, and a second model of a process had a number."""
    h5py = pytest.importorskip("h5py")
    source = checkpoint("tensorflow", "bartModel")
    with h5py.File(source / tensorflow.FILE, "a") as file:
        file["model"].move("model.shared/model.shared/embeddings:0", "model.shared/model.shared/weight:0")
        file["model"].move("tf_bart_model", "tf_bart_model_1")
    convert(source, tmp_path / "here")
    assert agrees(tmp_path / "here", source, ARCHITECTURES["BartModel"])


@pytest.mark.parametrize("beside", [None, {"_from_model_config": True}, {"num_beams": 2, "decoder_start_token_id": 2}])
def test_settings_of_generate_go_where_they_belong(
    beside: dict[str, Any] | None, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Out of an old config.json that holds them, unless a generation_config.json says more than that it mirrors them."""
    source = checkpoint("flax", "bartForConditionalGeneration")
    config = {**read_json(source / "config.json"), "num_beams": 4, "length_penalty": 2.0, "max_length": 17}
    (source / "config.json").write_text(json.dumps(config))
    (source / "generation_config.json").unlink()
    if beside is not None:
        (source / "generation_config.json").write_text(json.dumps(beside))
    convert(source, tmp_path / "new")
    assert not {"num_beams", "length_penalty"} & set(read_json(tmp_path / "new" / "config.json"))
    found = GenerationConfig.from_pretrained(tmp_path / "new")
    assert found == GenerationConfig.from_pretrained(source)
    assert found.num_beams == (beside or {}).get("num_beams", 4)


def test_tokenizer_files_go_along(checkpoint: Checkpoint, vocabulary_file: Path, tmp_path: Path) -> None:
    source = checkpoint("flax", "pegasusForConditionalGeneration")
    PegasusTokenizer(vocabulary_file, model_max_length=77).save_pretrained(source)
    done = convert(source, tmp_path / "here")
    assert done.tokenizer.startswith("copied: spiece.model, tokenizer_config.json")
    assert load_tokenizer(tmp_path / "here").model_max_length == 77


def test_the_command(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint("flax", "bartForSequenceClassification")
    result = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "here")])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert (
        lines[0] == f"Flax checkpoint {source / flax.FILE} is now the BartForSequenceClassification {tmp_path / 'here'}"
    )
    n_parameters = sum(tensor.numel() for tensor in load_file(tmp_path / "here" / "model.safetensors").values())
    assert any(line.split() == ["all", "79", f"{n_parameters:,}"] for line in lines)
    again = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "here")])
    assert again.exit_code == 2 and "is not empty" in again.output


def test_large_arrays_are_written_in_chunks(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint("flax", "pegasusModel-chunked")
    convert(source, tmp_path / "one")
    monkeypatch.setattr(flax, "_CHUNK_BYTES", 500)  # what the archive was written with
    convert(tmp_path / "one", tmp_path / "two", to="flax")
    assert (tmp_path / "two" / flax.FILE).stat().st_size == (source / flax.FILE).stat().st_size
    assert contents("flax", source) == contents("flax", tmp_path / "two")


def test_flax_computes_the_sinusoids(tmp_path: Path) -> None:
    """Files that hold them can go there; files that hold other positions cannot."""
    model = random_model("pegasus")
    model.save_pretrained(tmp_path / "one")
    assert "model.encoder.embed_positions.weight" in load_file(tmp_path / "one" / "model.safetensors")
    done = convert(tmp_path / "one", tmp_path / "two", to="flax")
    assert "sinusoids, which Flax computes" in done.source.ignored.values()
    assert not [name for name, _ in flax.read(tmp_path / "two" / flax.FILE) if "positions" in name]
    model.model.encoder.embed_positions.weight.data += 0.1
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"embed_positions\.weight are no sinusoids"):
        convert(tmp_path / "other", tmp_path / "three", to="flax")


def test_the_original_checkpoint(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """What TensorFlow's Saver wrote under google-research's names; transformers' TensorFlow model had the same weights."""
    source = checkpoint("google", "xsum")
    done = convert(source, tmp_path / "here", config=heads_file(tmp_path))
    assert agrees(tmp_path / "here", source, ARCHITECTURES[done.architecture])
    assert agrees(tmp_path / "here", source, transformers.PegasusForConditionalGeneration)
    settings = GenerationConfig.from_pretrained(tmp_path / "here")
    assert (settings.num_beams, settings.max_length, settings.length_penalty) == (8, 64, 0.8)
    assert set(done.source.ignored) == {
        "global_step",
        "embeddings/weights/Adafactor",
        "decoder/layer_0/ffn/dense/kernel/Adafactor",
        "decoder/layer_0/ffn/dense/kernel/Adafactor_1",
        "row 0 of embeddings/weights",
    }
    assert len(done.source.added) == 4 * 5, "four projections of one encoder and of two decoder layers' attentions"
    assert any("1,694" in line for line in conversion.describe(done))


@pytest.mark.parametrize("path", ["model.ckpt-1500", "model.ckpt-1500.index", "."])
def test_every_name_of_an_original_checkpoint(path: str, checkpoint: Checkpoint) -> None:
    assert sources.detect(checkpoint("google", "xsum") / path).kind == "google"


def original_weights(vocabulary: int, d_model: int) -> dict[str, np.ndarray]:
    """Variables of a checkpoint with a layer on each side."""
    draw = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"embeddings/weights": (vocabulary, d_model)}
    for stack, attentions in (("encoder", ["self"]), ("decoder", ["self", "memory"])):
        for attention in attentions:
            for part in ("q", "k", "v", "output"):
                shapes[f"{stack}/layer_0/{attention}_attention/{part}_proj/kernel"] = (d_model, d_model)
        for dense, shape in (("dense", (d_model, 8)), ("dense_1", (8, d_model))):
            shapes |= {f"{stack}/layer_0/ffn/{dense}/kernel": shape, f"{stack}/layer_0/ffn/{dense}/bias": shape[1:]}
        for norm in ("", "layer_0/ffn/", *(f"layer_0/{attention}_attention/" for attention in attentions)):
            shapes |= {f"{stack}/{norm}LayerNorm/{leaf}": (d_model,) for leaf in ("gamma", "beta")}
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_the_original_vocabulary(vocabulary_file: Path, tmp_path: Path) -> None:
    """The SentencePiece model above the checkpoint, as the authors laid theirs out, or the given one; pieces follow 103 ids."""
    tokenizer = PegasusTokenizer(vocabulary_file)
    directory = tmp_path / "ckpt" / "gigaword"
    directory.mkdir(parents=True)
    write_bundle(directory / "model.ckpt-5", original_weights(tokenizer.vocab_size, 64))
    (tmp_path / "ckpt" / "c4.unigram.model").write_bytes(vocabulary_file.read_bytes())
    convert(directory, tmp_path / "near")
    (tmp_path / "ckpt" / "c4.unigram.model").unlink()
    convert(directory, tmp_path / "given", vocabulary=vocabulary_file)
    for name in ("near", "given"):
        found = load_tokenizer(tmp_path / name)
        text = "Seven packages provide small tools."
        assert found(text).input_ids == tokenizer(text).input_ids and found.model_max_length == 128
    assert convert(directory, tmp_path / "without").tokenizer.startswith("none: which SentencePiece model")
    write_bundle(directory / "model.ckpt-5", original_weights(tokenizer.vocab_size + 1, 64))
    with pytest.raises(
        ValueError, match=f"{tokenizer.vocab_size}; the checkpoint's embedding has {tokenizer.vocab_size + 1}"
    ):
        convert(directory, tmp_path / "wrong", vocabulary=vocabulary_file)
    assert not (tmp_path / "wrong").exists()


def save_fairseq(model: Any, path: Path, zipped: bool = True, **more: Any) -> None:
    """Save a transformers BART as fairseq's trainer saved its own: tied tensors, versions and what else it has in it."""
    config = model.config
    tensors = {
        name.removeprefix("model."): tensor.clone()
        for name, tensor in model.state_dict().items()
        if not name.endswith(("shared.weight", "final_logits_bias", "lm_head.weight"))
    }
    for name in [name for name in tensors if name.startswith("classification_head")]:
        tensors[name.replace("classification_head", "classification_heads.mnli")] = tensors.pop(name)
    marks = {name: torch.tensor([3.0]) for name in ("encoder.version", "decoder.version")}
    output = {"decoder.output_projection.weight": tensors["decoder.embed_tokens.weight"]}
    arguments = argparse.Namespace(
        arch="bart_large",
        encoder_attention_heads=config.encoder_attention_heads,
        decoder_attention_heads=config.decoder_attention_heads,
        activation_fn=config.activation_function,
        encoder_normalize_before=False,
        no_scale_embedding=True,
        layernorm_embedding=True,
        share_all_embeddings=True,
        **more,
    )
    saved = {"args": arguments, "model": {**tensors, **marks, **output}, "optimizer_history": [{"num_updates": 9}]}
    torch.save({**saved, "extra_state": {"epoch": 1}}, path, _use_new_zipfile_serialization=zipped)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("head", ["ForConditionalGeneration", "ForSequenceClassification"])
def test_fairseq(head: str, zipped: bool, tmp_path: Path) -> None:
    """Logits are those of the transformers model whose weights were saved under fairseq's names."""
    if head == "ForConditionalGeneration":
        theirs: Any = random_model("bart")
        theirs.final_logits_bias.zero_()  # fairseq has none
    else:
        config = transformers.BartConfig(**tiny_settings(), num_labels=3, attn_implementation="eager")
        theirs = transformers.BartForSequenceClassification(config).eval()
    save_fairseq(theirs, tmp_path / "model.pt", zipped)
    done = convert(tmp_path / "model.pt", tmp_path / "here")
    ours: Any = ARCHITECTURES[done.architecture].from_pretrained(tmp_path / "here")
    assert done.architecture == f"Bart{head}"
    ids, mask = batch(3, 9)
    ids[:, -1] = 2
    with torch.no_grad():
        assert (ours(ids, attention_mask=mask).logits - theirs(ids, attention_mask=mask).logits).abs().max() < 1e-4
    if "Class" in head:
        assert list(ours.config.extra["id2label"].values()) == ["contradiction", "neutral", "entailment"]


def test_fairseq_vocabulary(tmp_path: Path) -> None:
    """Its three files make the tokenizer whose vocabulary they were taken from, the mask token last."""
    train_byte_level(tmp_path)
    ids = json.loads((tmp_path / "vocab.json").read_text())
    near = tmp_path / "fairseq"
    near.mkdir()
    words = [
        word for word in sorted(ids, key=ids.__getitem__) if word not in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    ]
    numbers = {word: (7 * i + 3) % len(words) for i, word in enumerate(words)}
    assert len(set(numbers.values())) == len(words)
    (near / "encoder.json").write_text(json.dumps(numbers))
    (near / "dict.txt").write_text("".join(f"{numbers[word]} {9000 - i}\n" for i, word in enumerate(words)))
    (near / "vocab.bpe").write_bytes((tmp_path / "merges.txt").read_bytes())
    save_fairseq(random_model("bart", vocab_size=len(ids)), near / "model.pt")
    convert(near, tmp_path / "here")
    expected = BartTokenizer(tmp_path / "vocab.json", tmp_path / "merges.txt")
    found = load_tokenizer(tmp_path / "here")
    for text in ("Hello world", " the mayor of São <mask> naïve", "PG&E x=y"):
        assert found(text).input_ids == expected(text).input_ids
    save_fairseq(random_model("bart", vocab_size=len(ids) - 1), near / "model.pt")
    convert(near, tmp_path / "unmasked")
    assert load_tokenizer(tmp_path / "unmasked").mask_token_id == len(ids) - 1, (
        "bart.large.cnn has no row for it either"
    )
    save_fairseq(random_model("bart", vocab_size=len(ids) + 2), near / "model.pt")
    with pytest.raises(
        ValueError, match=rf"dict.txt has {len(words)} subwords, the checkpoint has {len(ids) + 2} rows"
    ):
        convert(near, tmp_path / "wrong")


def test_a_fairseq_network_that_is_not_barts_is_refused(tmp_path: Path) -> None:
    save_fairseq(random_model("bart"), tmp_path / "model.pt", decoder_normalize_before=True)
    with pytest.raises(ValueError, match="decoder_normalize_before is True"):
        convert(tmp_path / "model.pt", tmp_path / "here")


def edit_flax(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    msgpack = pytest.importorskip("msgpack")
    tree = msgpack.unpackb((directory / flax.FILE).read_bytes())
    change(tree)
    (directory / flax.FILE).write_bytes(msgpack.packb(tree))


def test_tensors_that_are_missing_belong_nowhere_or_differ(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def fails(change: Callable[[dict[str, Any]], object], message: str) -> None:
        source = checkpoint("flax", "bartForConditionalGeneration")
        edit_flax(source, change)
        with pytest.raises(ValueError, match=message):
            convert(source, tmp_path / "here")
        assert not (tmp_path / "here").exists() and not list(tmp_path.iterdir())

    fails(
        lambda tree: tree["model"]["encoder"].pop("embed_positions"), r"missing: model.encoder.embed_positions.weight"
    )
    fails(lambda tree: tree.update(adapter=tree["model"]["shared"]), r"unexpected: adapter.weight")
    fails(lambda tree: tree.update(adapter={"lora": tree["final_logits_bias"]}), "belong nowhere: adapter/lora")
    source = checkpoint("flax", "bartForConditionalGeneration")
    (tmp_path / "layers.json").write_text('{"encoder_layers": 1000000000}')
    with pytest.raises(ValueError, match="should have 1000000000 and 2 layers"):
        convert(source, tmp_path / "here", config=tmp_path / "layers.json")
    (tmp_path / "layers.json").unlink()
    other = {"kernel": b""}
    fails(
        lambda tree: tree.update(lm_head={**other, "kernel": tree["model"]["encoder"]["layers"]["0"]["fc1"]["kernel"]}),
        "lm_head/kernel and model/shared/embedding differ",
    )


def test_a_copy_that_differs_is_not_delivered(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = conversion.huggingface.write

    def damage(directory: Path, tensors: dict[str, torch.Tensor], *rest: Any) -> None:
        write(
            directory,
            {name: tensor + (name == "model.decoder.layers.1.fc1.bias") for name, tensor in tensors.items()},
            *rest,
        )

    monkeypatch.setattr(conversion.huggingface, "write", damage)
    with pytest.raises(ValueError, match=r"is not what was read: decoder.layers.1.fc1.bias"):
        convert(checkpoint("flax", "bartForConditionalGeneration"), tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_weights_that_are_not_finite_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint("google", "xsum")
    loaded = sources.detect(source)
    sources.load(loaded, HEADS)
    weights = original_weights(37, 64)
    weights["encoder/LayerNorm/gamma"][3] = np.nan
    write_bundle(tmp_path / "model.ckpt-5", weights)
    with pytest.raises(ValueError, match="computes logits that are not finite"):
        convert(tmp_path / "model.ckpt-5", tmp_path / "here")


def test_what_was_asked_wrongly(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint("flax", "pegasusModel")
    done: Conversion = convert(source, tmp_path / "here")
    assert done.tokenizer.startswith("none")
    with pytest.raises(FileExistsError, match="is not empty"):
        convert(source, tmp_path / "here")
    with pytest.raises(ValueError, match="cannot convert to 'onnx'"):
        convert(source, tmp_path / "there", to="onnx")
    with pytest.raises(FileNotFoundError, match="neither a checkpoint's file nor a directory"):
        convert(tmp_path / "absent", tmp_path / "there")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no checkpoint of a known kind"):
        convert(tmp_path / "empty", tmp_path / "there")
    (source / "tf_model.h5").write_bytes(b"")
    with pytest.raises(ValueError, match=r"several checkpoints: Flax \(flax_model.msgpack\), TensorFlow"):
        convert(source, tmp_path / "there")
    (source / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config.json, and the weights alone do not say"):
        convert(source / flax.FILE, tmp_path / "there")
    with pytest.raises(ValueError, match="has no BartForQuestionAnswering for TensorFlow"):
        convert(checkpoint("flax", "bartForQuestionAnswering"), tmp_path / "there", to="tensorflow")


def test_an_absent_package_is_named(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "msgpack", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"msgpack, which is not installed: pip install 'pegasus-batch\[convert\]'"
    ):
        convert(checkpoint("flax", "pegasusModel"), tmp_path / "here")
