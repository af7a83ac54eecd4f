"""Texts in, labels out: against transformers' text-classification and zero-shot-classification pipelines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pegasus_batch import Classifier, PegasusConfig, PegasusForSequenceClassification
from pegasus_batch.classification import ZeroShot
from pegasus_batch.documents import Document
from pegasus_batch.forward import Failure, run_windows
from tests.conftest import tiny_settings
from tests.heads import NAMES, pipeline, save_head

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

KIND = transformers.BartForSequenceClassification
TEXTS = ["The mayor said it would make a river.", "A market? No.", "naïve café\n\n at Köln, 3.14", "the " * 30 + "end."]
LABELS = ["city council", "market", "water"]


@pytest.fixture(scope="module")
def make(bart_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return what writes a random classifier with settings of its config."""
    return lambda **settings: save_head(KIND, bart_dir, tmp_path_factory.mktemp("head") / "model", **settings)


@pytest.fixture(scope="module")
def mnli(make: Callable[..., Path]) -> Path:
    return make(id2label=NAMES)


def close(found: Any, expected: Any) -> None:
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_labels": 4},
        {"id2label": NAMES},
        {"num_labels": 1},
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        {"num_labels": 2, "problem_type": "regression"},
    ],
)
def test_labels_of_the_checkpoint(make: Callable[..., Path], settings: dict[str, Any]) -> None:
    directory = make(**settings)
    oracle = pipeline("text-classification", KIND, directory)
    found = Classifier(directory, device="cpu").classify(TEXTS)
    for text, ours in zip(TEXTS, found, strict=True):
        theirs = oracle(text, top_k=None)
        assert list(ours.labels) == [entry["label"] for entry in theirs]
        close(ours.scores, [entry["score"] for entry in theirs])
        assert (ours.label, ours.score, ours.status) == (ours.labels[0], ours.scores[0], "ok")
        assert ours.n_source_tokens == len(oracle.tokenizer(text)["input_ids"]) and not ours.truncated


def test_pairs_of_texts(mnli: Path) -> None:
    oracle = pipeline("text-classification", KIND, mnli)
    pairs = TEXTS[::-1]
    for text, pair, ours in zip(TEXTS, pairs, Classifier(mnli, device="cpu").classify(TEXTS, pairs), strict=True):
        theirs = oracle({"text": text, "text_pair": pair}, top_k=None)
        assert list(ours.labels) == [entry["label"] for entry in theirs]
        close(ours.scores, [entry["score"] for entry in theirs])


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("labels", [LABELS, LABELS[:1]])
def test_any_labels_by_entailment(make: Callable[..., Path], first: int, multi_label: bool, labels: list[str]) -> None:
    """Where entailment is label 0, contradiction is the last one."""
    directory = make(id2label=NAMES if first else {0: "ENTAILMENT", 1: "neutral", 2: "contradiction"})
    oracle = pipeline("zero-shot-classification", KIND, directory)
    options: dict[str, Any] = {"multi_label": multi_label}
    found = Classifier(directory, device="cpu", labels=labels, hypothesis="This text is about {}.", **options).classify(
        TEXTS
    )
    for text, ours in zip(TEXTS, found, strict=True):
        theirs = oracle(text, candidate_labels=labels, hypothesis_template="This text is about {}.", **options)
        assert list(ours.labels) == theirs["labels"]
        close(ours.scores, theirs["scores"])


def test_long_texts_are_cut_and_say_so(mnli: Path) -> None:
    """The text loses tokens, the hypothesis does not; of a pair the longer one does."""
    text = "the river and " * 60
    oracle = pipeline("zero-shot-classification", KIND, mnli)
    (ours,) = Classifier(mnli, device="cpu", labels=LABELS).classify([text])
    theirs = oracle(text, candidate_labels=LABELS)
    assert list(ours.labels) == theirs["labels"] and ours.truncated and ours.n_source_tokens > 180
    close(ours.scores, theirs["scores"])
    documents = Classifier(mnli, device="cpu").documents
    (document,) = documents.tokenize([text], ["the mayor"])
    expected = oracle.tokenizer(text, "the mayor", truncation="longest_first", max_length=64)["input_ids"]
    assert document.token_ids == expected and document.truncated


def test_what_cannot_be_classified_gets_a_status(mnli: Path) -> None:
    texts = [TEXTS[0], None, " ", 7, "bad \ud800", TEXTS[1]]
    classifier = Classifier(mnli, device="cpu")
    found = classifier.classify(texts)
    assert [each.status for each in found] == ["ok", *["invalid"] * 4, "ok"]
    assert [found[0], found[5]] == classifier.classify(TEXTS[:2])
    assert found[2].error == "the text is blank" and found[2].label is None and found[2].labels == ()
    (pair,) = classifier.classify(["a"], [None])
    assert pair.error == "the pair is null"
    wild = Document([0, 10**6, 2], 3, False)
    broken = classifier.classify_documents([wild])[0]
    assert broken.status == "failed" and "token ids must lie in" in str(broken.error)


def test_logits_that_are_not_numbers_fail_the_text(mnli: Path) -> None:
    classifier = Classifier(mnli, device="cpu", labels=LABELS)
    with torch.no_grad():
        classifier._model.classification_head.out_proj.bias.fill_(float("nan"))
    (found,) = classifier.classify(["a river"])
    assert (found.status, found.error) == ("failed", "the model's output is not finite")


def test_a_checkpoint_of_another_kind_is_refused(make: Callable[..., Path], bart_dir: Path, mnli: Path) -> None:
    with pytest.raises(
        ValueError, match=r"is a BartForConditionalGeneration: this needs .* for SequenceClassification"
    ):
        Classifier(bart_dir, device="cpu")
    with pytest.raises(ValueError, match="labels are LABEL_0, LABEL_1: none begins with 'entail'"):
        Classifier(make(num_labels=2), device="cpu", labels=LABELS)
    with pytest.raises(ValueError, match=r"has no \{\}"):
        ZeroShot(("a",), "about it")
    with pytest.raises(ValueError, match=r"labels \['a', 'a'\]: name at least one, and each once"):
        ZeroShot(("a", "a"))
    with pytest.raises(ValueError, match="pairs and labels exclude each other"):
        Classifier(mnli, device="cpu", labels=LABELS).classify(["a"], ["b"])


def test_pegasus_classifies_too(model_dir: Path, tmp_path: Path) -> None:
    """Transformers has no such class, so the numbers are those of our own forward pass, which its own tests check."""
    for path in model_dir.iterdir():
        if path.suffix not in {".safetensors"} and path.name != "config.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    vocabulary = json.loads((model_dir / "config.json").read_text())["vocab_size"]
    model = PegasusForSequenceClassification(PegasusConfig(**tiny_settings(vocab_size=vocabulary))).eval()
    model.save_pretrained(tmp_path)
    classifier = Classifier(tmp_path, device="cpu")
    ids = classifier.documents.tokenizer("quick fox", "lazy dogs", return_tensors="pt").input_ids
    expected = model(ids, return_dict=True).logits.softmax(1)[0]
    (found,) = classifier.classify(["quick fox"], ["lazy dogs"])
    assert found.label == f"LABEL_{int(expected.argmax())}"
    close(found.score, float(expected.max()))


def test_batches_of_a_gpu_are_padded_and_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device whose batches fit eight ids, and one window that fails wherever it is."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    config = PegasusConfig(**tiny_settings())
    seen = []

    def forward(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        seen.append(ids.shape)
        assert bool(((ids != config.pad_token_id) == mask.bool()).all())
        if ids.numel() > 8:
            raise RuntimeError("CUDA out of memory")
        if bool((ids == 13).any()):
            raise ValueError("token 13")
        return ids.sum(1).double()

    class Elsewhere(str):
        type = "cuda"

    windows = [[1] * n for n in (1, 2, 3, 4, 4, 8, 1)] + [[13]]
    device: Any = Elsewhere("cpu")
    found = run_windows(windows, forward, config, device, batch_tokens=16)
    assert [each if isinstance(each, Failure) else float(each) for each in found[:-1]] == [1, 2, 3, 4, 4, 8, 1]
    assert found[-1] == "ValueError: token 13"
    assert max(rows for rows, _ in seen) > 1
