"""``pegasus-batch verify``: what its examples compute, against transformers running the documentation's own code."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from typer.testing import CliRunner

from pegasus_batch import PegasusConfig, PegasusForConditionalGeneration, verification
from pegasus_batch.cli import app
from pegasus_batch.tokenization import BartTokenizer, PegasusTokenizer
from pegasus_batch.verification import EXAMPLES, PASSAGE, RELEASED, Checkpoint, Example, identify, verify
from tests.conftest import tiny_settings
from tests.tokenization.vocabularies import train_byte_level

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory, vocabulary_file: Path) -> Callable[[str], Path]:
    """Tiny random models of transformers' with the class that an example loads, by that class."""
    byte_level = train_byte_level(tmp_path_factory.mktemp("byte_level"))
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            torch.manual_seed(0)
            directory = tmp_path_factory.mktemp("models") / "some-model"
            pegasus = "Pegasus" in name
            tokenizer = (
                PegasusTokenizer(vocabulary_file, model_max_length=512)
                if pegasus
                else BartTokenizer(byte_level / "vocab.json", byte_level / "merges.txt", model_max_length=1024)
            )
            tokenizer.save_pretrained(directory)
            labels = {"id2label": {0: "NEGATIVE", 1: "POSITIVE"}} if "Classification" in name else {}
            sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 1024}
            config = (transformers.PegasusConfig if pegasus else transformers.BartConfig)(
                **tiny_settings(**sizes), **labels
            )
            getattr(transformers, name)(config).eval().save_pretrained(directory)
            made[name] = directory
        return made[name]

    return make


def load(directory: Path, name: str) -> tuple[Any, Any]:
    tokenizer = transformers.PegasusTokenizer if "Pegasus" in name else transformers.BartTokenizer
    return getattr(transformers, name).from_pretrained(directory).eval(), tokenizer.from_pretrained(directory)


def pegasus_usage(model: Any, tokenizer: Any) -> Any:
    batch = tokenizer([" " + PASSAGE], truncation=True, padding="longest", return_tensors="pt")
    return tokenizer.batch_decode(model.generate(**batch), skip_special_tokens=True)[0]


def pegasus_ids(model: Any, tokenizer: Any) -> Any:
    inputs = tokenizer(PASSAGE, max_length=1024, return_tensors="pt")
    ids = model.generate(inputs["input_ids"])
    return tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)[0]


def mask_filling(model: Any, tokenizer: Any) -> Any:
    batch = tokenizer("UN Chief Says There Is No <mask> in Syria", return_tensors="pt")
    ids = model.generate(batch["input_ids"], forced_bos_token_id=0)
    return tokenizer.batch_decode(ids, skip_special_tokens=True)[0]


def bart_summary(model: Any, tokenizer: Any) -> Any:
    inputs = tokenizer([PASSAGE], max_length=1024, return_tensors="pt")
    ids = model.generate(inputs["input_ids"], num_beams=2, min_length=0, max_length=20)
    return tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)[0]


def five_best(model: Any, tokenizer: Any) -> Any:
    ids = tokenizer(["My friends are <mask> but they eat too many carbs."], return_tensors="pt")["input_ids"]
    logits = model(ids).logits
    masked_index = (ids[0] == tokenizer.mask_token_id).nonzero().item()
    _, predictions = logits[0, masked_index].softmax(dim=0).topk(5)
    return tokenizer.decode(predictions).split()


def classification(model: Any, tokenizer: Any) -> Any:
    inputs = tokenizer("Hello, my dog is cute", return_tensors="pt")
    label = model.config.id2label[model(**inputs).logits.argmax().item()]
    return label, round(model(**inputs, labels=torch.tensor([1])).loss.item(), 2)


def answer(model: Any, tokenizer: Any) -> Any:
    inputs = tokenizer("Who was Jim Henson?", "Jim Henson was a nice puppet", return_tensors="pt")
    outputs = model(**inputs, start_positions=torch.tensor([14]), end_positions=torch.tensor([15]))
    first, last = outputs.start_logits.argmax(), outputs.end_logits.argmax()
    tokens = inputs.input_ids[0, first : last + 1]
    return tokenizer.decode(tokens, skip_special_tokens=True), round(outputs.loss.item(), 2)


DOCUMENTED: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "Pegasus' usage example": ("PegasusForConditionalGeneration", pegasus_usage),
    "PegasusForConditionalGeneration, ids alone": ("PegasusForConditionalGeneration", pegasus_ids),
    "BART's mask filling by generate()": ("BartForConditionalGeneration", mask_filling),
    "BartForConditionalGeneration, a summary": ("BartForConditionalGeneration", bart_summary),
    "BART's mask filling by its logits": ("BartForConditionalGeneration", five_best),
    "BartForSequenceClassification, label and loss": ("BartForSequenceClassification", classification),
    "BartForQuestionAnswering, answer and loss": ("BartForQuestionAnswering", answer),
    "BartTokenizer, 'Hello world'": ("BartModel", lambda model, tokenizer: tokenizer("Hello world")["input_ids"]),
    "BartTokenizer, ' Hello world'": ("BartModel", lambda model, tokenizer: tokenizer(" Hello world")["input_ids"]),
    "BartModel without decoder ids": ("BartModel", lambda model, tokenizer: True),
    "BartForCausalLM, shape of its logits": ("BartForConditionalGeneration", lambda model, tokenizer: True),
    "PegasusForCausalLM, shape of its logits": ("PegasusForConditionalGeneration", lambda model, tokenizer: True),
    "PegasusModel, shape of its states": (
        "PegasusModel",
        lambda model, tokenizer: [1, len(tokenizer("Studies show that")["input_ids"]), 18],
    ),
    "Pegasus' 568 million parameters": (
        "PegasusForConditionalGeneration",
        lambda model, tokenizer: sum(
            p.numel() for name, p in model.named_parameters() if "embed_positions" not in name
        ),
    ),
    "Pegasus' reserved ids": (
        "PegasusForConditionalGeneration",
        lambda model, tokenizer: [0, 1, 2, 3, 4, 104, 105, tokenizer.vocab_size],
    ),
}


def find(title: str) -> Example:
    return next(example for example in EXAMPLES if example.title == title)


@pytest.mark.parametrize("title", [example.title for example in EXAMPLES])
def test_examples_compute_what_the_documented_code_does(title: str, directories: Callable[[str], Path]) -> None:
    name, documented = DOCUMENTED[title]
    model, tokenizer = load(directories(name), name)
    with torch.no_grad():
        expected = documented(model, tokenizer)
    assert expected
    assert find(title).compute(Checkpoint(directories(name))) == expected


def test_the_number_of_parameters_is_the_released_models() -> None:
    config = PegasusConfig(vocab_size=96_103, encoder_layers=16, decoder_layers=16)
    with torch.device("meta"):
        model = PegasusForConditionalGeneration(config)
    expected = find("Pegasus' 568 million parameters").expected
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_the_passage_is_transformers_own() -> None:
    """It is quoted there twice, in pieces."""
    for model in (transformers.PegasusForConditionalGeneration, transformers.BartForConditionalGeneration):
        text = " ".join((model.forward.__doc__ or "").replace('"', "").replace("...", "").split())
        assert PASSAGE in text
        assert any(isinstance(e.expected, str) and e.expected in text for e in EXAMPLES)


def test_findings_and_status(
    directories: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random model holds nothing but what is true of it: the rest is said line by line, and the status tells."""
    directory = tmp_path / "pegasus-xsum"
    directory.symlink_to(directories("PegasusForConditionalGeneration"))
    result = CliRunner().invoke(app, ["verify", str(directory)])
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert len(lines) == len(EXAMPLES)
    assert sum(line.startswith("NOT HELD") for line in lines) == 4
    assert sum(line.startswith("cannot show") for line in lines) == len(EXAMPLES) - 4
    assert any("expected 568699904, got" in line for line in lines)
    checkpoint = Checkpoint(directory)
    true = [
        dataclasses.replace(example, expected=example.compute(checkpoint))
        for example in EXAMPLES
        if "google/pegasus-xsum" in example.checkpoints
    ]
    found = verify(str(directory), examples=[*true, find("BartModel without decoder ids")])
    assert [finding.held for finding in found] == [True] * 4 + [None]
    monkeypatch.setattr(verification.verify, "__defaults__", (None, true))
    result = CliRunner().invoke(app, ["verify", str(directory)])
    assert result.exit_code == 0 and result.output.splitlines()[0] == "held        Pegasus' usage example"


def test_an_example_that_fails_did_not_hold(directories: Callable[[str], Path], tmp_path: Path) -> None:
    """A classifier without its labels' tensors: the error is the remark."""
    found = verify(str(directories("BartModel")), "valhalla/bart-large-sst2")
    failed = [finding for finding in found if finding.held is False]
    assert len(failed) == 1 and "it failed: the checkpoint does not fit a bart model" in failed[0].remark


@pytest.mark.parametrize(
    ("path", "name", "expected"),
    [
        ("models/bart-large-cnn", None, "facebook/bart-large-cnn"),
        ("hub/models--facebook--bart-large/snapshots/0123", None, "facebook/bart-large"),
        ("mine", "google/pegasus-xsum", "google/pegasus-xsum"),
        ("valhalla/bart-large-sst2", "facebook/bart-large", "valhalla/bart-large-sst2"),
        ("mine", None, None),
        ("my-bart-large", None, None),
    ],
)
def test_which_checkpoint_it_is(path: str, name: str | None, expected: str | None, tmp_path: Path) -> None:
    directory = tmp_path / path
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"_name_or_path": name} if name else {}))
    assert identify(str(directory), directory) == expected


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    import huggingface_hub

    def snapshot_download(name: str, local_files_only: bool = False) -> str:
        assert local_files_only, "nothing may be downloaded"
        raise huggingface_hub.errors.LocalEntryNotFoundError(name)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    yield


@pytest.mark.usefixtures("no_cache")
@pytest.mark.parametrize("name", [RELEASED[0], RELEASED[-1], "/nowhere/bart-base"])
def test_what_is_not_there_is_said(name: str) -> None:
    result = CliRunner().invoke(app, ["verify", name])
    assert result.exit_code == 2
    assert f"{name} is not on this machine, and nothing is downloaded" in " ".join(result.output.split())
    assert ("spiece.model" if "pegasus" in name else "vocab.json") in result.output


def test_a_model_that_could_be_any(directories: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match="cannot be told; say it with --as: google/pegasus-xsum"):
        verify(str(directories("BartModel")))
    with pytest.raises(ValueError, match="cannot be told from 'facebook/opt'"):
        verify(str(directories("BartModel")), "facebook/opt")
