"""Fewer layers, the same weights: ours and transformers' reading of the smaller directory."""

from __future__ import annotations

import importlib.util
import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from pegasus_batch.config import load_config
from pegasus_batch.tokenization import load_tokenizer
from pegasus_batch.training.shrink import Layers, choose_layers, parse_layers, shrink, spread_layers
from tests.models.oracle import batch, ours_named, random_model, theirs_named

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
N_LAYERS = {"encoder_layers": 5, "decoder_layers": 4}


@pytest.fixture
def teacher(family: str, tmp_path: Path) -> Path:
    """A random model of transformers with 5 encoder and 4 decoder layers."""
    random_model(family, **N_LAYERS).save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def logits(model: Any) -> torch.Tensor:
    torch.manual_seed(1)
    ids, mask = batch(3, 9)
    with torch.no_grad():
        return model(ids, attention_mask=mask, decoder_input_ids=ids).logits


@pytest.mark.parametrize(
    ("n_layers", "n_kept", "expected"),
    [
        (12, 3, (0, 6, 11)),
        (16, 4, (0, 5, 10, 15)),
        (12, 6, (0, 2, 4, 7, 9, 11)),
        (12, 1, (0,)),
        (16, 2, (0, 15)),
        (1, 1, (0,)),
    ],
)
def test_spread_layers(n_layers: int, n_kept: int, expected: tuple[int, ...]) -> None:
    assert spread_layers(n_layers, n_kept) == expected


@given(st.integers(1, 40), st.data())
def test_layers_are_spread_evenly(n_layers: int, data: st.DataObject) -> None:
    n_kept = data.draw(st.integers(1, n_layers))
    layers = spread_layers(n_layers, n_kept)
    assert len(layers) == n_kept
    assert layers[0] == 0
    gaps = {later - earlier for earlier, later in pairwise(layers)}
    if n_kept > 1:
        assert layers[-1] == n_layers - 1
        assert min(gaps) >= 1 and max(gaps) - min(gaps) <= 1
    assert choose_layers("encoder", n_layers, n_kept) == choose_layers("encoder", n_layers, layers) == layers


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (0, "decoder: cannot keep 0 of 4 layers: choose from 1 to 4"),
        (5, "decoder: cannot keep 5 of 4 layers"),
        ([], "decoder: the list of layers is empty"),
        ([0, 4], "decoder: there is no layer 4; the model has layers 0 to 3"),
        ([-1], "decoder: there is no layer -1"),
        ([1, 1], "must ascend without repetition"),
        ([2, 0], "must ascend without repetition"),
    ],
)
def test_impossible_layers_are_refused(layers: Layers, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_layers("decoder", 4, layers)


@pytest.mark.parametrize(
    ("text", "layers"), [("all", None), ("3", 3), ("0,6,11", [0, 6, 11]), ("4,", [4]), ("0, 2", [0, 2])]
)
def test_layers_are_read(text: str, layers: Layers) -> None:
    assert parse_layers(text) == layers


@pytest.mark.parametrize("text", ["", ",", "some", "-1", "1,,2", "1.5", "²"])
def test_other_words_are_no_layers(text: str) -> None:
    with pytest.raises(ValueError, match="names no layers"):
        parse_layers(text)


def test_the_kept_layers_are_the_teachers(family: str, teacher: Path, tmp_path: Path) -> None:
    kept = shrink(teacher, tmp_path / "student", encoder_layers=3, decoder_layers=[1, 3])
    assert kept == {"encoder": (0, 2, 4), "decoder": (1, 3)}
    large, small = (ours_named(family).from_pretrained(path) for path in (teacher, tmp_path / "student"))
    for stack, layers in kept.items():
        olds, news = (getattr(model.model, stack).layers for model in (large, small))
        assert len(news) == len(layers)
        for place, layer in enumerate(layers):
            old, new = olds[layer].state_dict(), news[place].state_dict()
            assert all(torch.equal(new[name], tensor) for name, tensor in old.items())
    rest, copied = (
        {name: tensor for name, tensor in model.state_dict().items() if ".layers." not in name}
        for model in (large, small)
    )
    assert rest.keys() == copied.keys()
    assert all(torch.equal(copied[name], tensor) for name, tensor in rest.items())


def test_the_student_runs_here_and_in_transformers(family: str, teacher: Path, tmp_path: Path) -> None:
    """num_hidden_layers, where transformers wrote it, must shrink too: its cache is built from it."""
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    shrink(teacher, tmp_path / "student", encoder_layers=1, decoder_layers=3)
    ours = ours_named(family).from_pretrained(tmp_path / "student")
    theirs = theirs_named(family).from_pretrained(tmp_path / "student", attn_implementation="eager").eval()
    assert theirs.config.num_hidden_layers == theirs.config.encoder_layers == 1
    assert theirs.config.decoder_layers == 3
    assert (logits(ours) - logits(theirs)).abs().max() < 1e-4
    ids, mask = batch(2, 7)
    options = {"num_beams": 2, "max_length": 9}
    assert torch.equal(ours.generate(ids, mask, **options), theirs.generate(ids, attention_mask=mask, **options))


@pytest.mark.parametrize("layout", ["safetensors", "bin", "shards"])
def test_keeping_all_layers_changes_nothing(family: str, layout: str, tmp_path: Path) -> None:
    """Whatever the format; the pickled one holds the tied embeddings under four names."""
    theirs = random_model(family, **N_LAYERS)
    options = {"bin": {"safe_serialization": False}, "shards": {"max_shard_size": "20KB"}}.get(layout, {})
    theirs.save_pretrained(tmp_path / "teacher", **options)
    assert shrink(tmp_path / "teacher", tmp_path / "student") == {"encoder": (0, 1, 2, 3, 4), "decoder": (0, 1, 2, 3)}
    again = theirs_named(family).from_pretrained(tmp_path / "student", attn_implementation="eager").eval()
    assert torch.equal(logits(again), logits(theirs))
    ours = [ours_named(family).from_pretrained(tmp_path / name) for name in ("teacher", "student")]
    assert torch.equal(logits(ours[0]), logits(ours[1]))
    assert load_config(tmp_path / "student") == load_config(tmp_path / "teacher")


def test_types_and_files_are_carried_over(model_dir: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(model_dir, teacher)
    half = {name: tensor.half() for name, tensor in load_file(teacher / "model.safetensors").items()}
    save_file(half, teacher / "model.safetensors", metadata={"format": "pt"})
    (teacher / "README.md").write_text("about the teacher")
    (tmp_path / "student").mkdir()  # empty: that may be
    shrink(teacher, tmp_path / "student", decoder_layers=1)
    files = {file.name for file in (tmp_path / "student").iterdir()}
    assert files == {file.name for file in teacher.iterdir()} - {"README.md"}
    assert {tensor.dtype for tensor in load_file(tmp_path / "student" / "model.safetensors").values()} == {
        torch.float16
    }
    assert load_tokenizer(tmp_path / "student")("the quick fox") == load_tokenizer(teacher)("the quick fox")
    student = ours_named("pegasus").from_pretrained(tmp_path / "student")
    assert student.generation_config == ours_named("pegasus").from_pretrained(teacher).generation_config
    before, after = (json.loads((path / "config.json").read_text()) for path in (teacher, tmp_path / "student"))
    assert {name for name in before if before[name] != after[name]} == {"decoder_layers"}
    assert len({file.stat().st_mode for file in (tmp_path / "student").glob("*.json")}) == 1


def test_nothing_is_overwritten(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "kept.txt"):
        with pytest.raises(FileExistsError, match="choose another output"):
            shrink(model_dir, place, decoder_layers=1)
    assert [file.name for file in tmp_path.iterdir()] == ["kept.txt"]


def test_a_damaged_teacher_leaves_no_student(model_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(model_dir, tmp_path / "teacher")
    config = json.loads((model_dir / "config.json").read_text())
    (tmp_path / "teacher" / "config.json").write_text(json.dumps({**config, "decoder_layers": 4}))
    with pytest.raises(ValueError, match=r"promises 4 decoder layers, the weights hold \[0, 1\]"):
        shrink(tmp_path / "teacher", tmp_path / "student", decoder_layers=1)
    with pytest.raises(FileNotFoundError, match="nowhere is not a directory"):
        shrink(tmp_path / "nowhere", tmp_path / "student")
    pruned = {**config, "pruned_heads": {"decoder.layers.1.self_attn": [0]}}  # by numbers that shrinking would change
    (tmp_path / "teacher" / "config.json").write_text(json.dumps(pruned))
    with pytest.raises(ValueError, match=r"has pruned heads \(decoder.layers.1.self_attn\): shrink first"):
        shrink(tmp_path / "teacher", tmp_path / "student", decoder_layers=1)
    assert not (tmp_path / "student").exists()


def test_the_job(model_dir: Path, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("job", Path(__file__).parents[2] / "jobs" / "shrink.py")
    assert spec is not None and spec.loader is not None
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    app = typer.Typer()
    app.command()(job.main)
    arguments = ["--model", str(model_dir), "--output", str(tmp_path / "student"), "--decoder-layers"]
    result = CliRunner().invoke(app, [*arguments, "7"], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "cannot keep 7 of 2 layers" in result.output
    result = CliRunner().invoke(app, [*arguments, "1,"])
    assert result.output.splitlines() == ["encoder: kept layers 0, 1", "decoder: kept layers 1"]
