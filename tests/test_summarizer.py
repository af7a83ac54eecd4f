"""Texts in, summaries out: order, statuses, truncation, and what one bad text does to the others."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from pegasus_batch import Summarizer
from pegasus_batch.config import load_config
from pegasus_batch.models.seq2seq import PegasusForConditionalGeneration
from pegasus_batch.summarizer import Document, DocumentTokenizer
from tests.conftest import sentence


def texts(n: int = 12) -> list[str]:
    rng = random.Random(3)
    return [sentence(rng, rng.randint(1, 40)) for _ in range(n)]


def test_equals_generate_on_each_text(model_dir: Path) -> None:
    summarizer = Summarizer(model_dir, device="cpu", batch_tokens=50, generation={"num_return_sequences": 2})
    model = PegasusForConditionalGeneration.from_pretrained(model_dir)
    tokenizer = summarizer.documents.tokenizer
    for text, summary in zip(texts(), summarizer.summarize(texts()), strict=True):
        batch = tokenizer([text], truncation=True, max_length=64, return_tensors="pt")
        ids = model.generate(batch["input_ids"], num_return_sequences=2)
        assert summary.texts == tuple(tokenizer.batch_decode(ids, skip_special_tokens=True))
        assert (summary.status, summary.error, summary.text) == ("ok", None, summary.texts[0])
        assert summary.n_source_tokens == len(tokenizer.encode(text))


def test_what_cannot_be_summarized_gets_a_status(model_dir: Path) -> None:
    good = texts(3)
    mixed = [good[0], None, "", "  \n\t", 7, good[1], "bad \ud800 text", good[2]]
    found = Summarizer(model_dir, device="cpu").summarize(mixed)
    assert [summary.status for summary in found] == ["ok", *["invalid"] * 4, "ok", "invalid", "ok"]
    assert [found[index] for index in (0, 5, 7)] == Summarizer(model_dir, device="cpu").summarize(good)
    for summary, message in zip(found[1:5], ("null", "empty", "blank", "type int"), strict=True):
        assert summary.text is None and summary.score is None and message in str(summary.error)


def test_long_texts_are_cut_and_say_so(model_dir: Path) -> None:
    rng = random.Random(1)
    long = sentence(rng, 3000)
    documents = DocumentTokenizer(model_dir, max_source_tokens=20)
    (document,) = documents.tokenize([long])
    assert document.truncated and len(document.token_ids) == 20 and document.n_source_tokens > 3000
    assert document.token_ids[-1] == documents.tokenizer.eos_token_id
    (summary,) = Summarizer(model_dir, device="cpu", max_source_tokens=20).summarize([long])
    assert summary.truncated and summary.n_source_tokens == document.n_source_tokens
    with pytest.raises(ValueError, match="max_source_tokens=65: the model reads 2 to 64 tokens"):
        DocumentTokenizer(model_dir, max_source_tokens=65)


def test_one_document_that_breaks_the_model_fails_alone(model_dir: Path) -> None:
    summarizer = Summarizer(model_dir, device="cpu")
    documents = summarizer.documents.tokenize(texts(4))
    wild = load_config(model_dir).vocab_size
    found = summarizer.summarize_documents([*documents[:2], Document([5, wild, 1], 3, False), *documents[2:]])
    assert [summary.status for summary in found] == ["ok", "ok", "failed", "ok", "ok"]
    assert "token ids must lie in" in str(found[2].error)
    assert [*found[:2], *found[3:]] == summarizer.summarize_documents(documents)


def test_logits_that_are_not_numbers_fail_the_document(model_dir: Path, tmp_path: Path) -> None:
    model = PegasusForConditionalGeneration.from_pretrained(model_dir)
    with torch.no_grad():
        model.final_logits_bias.fill_(float("nan"))
    model.save_pretrained(tmp_path)
    for name in ("spiece.model", "tokenizer_config.json", "special_tokens_map.json"):
        if (model_dir / name).exists():
            (tmp_path / name).write_bytes((model_dir / name).read_bytes())
    for num_beams in (1, 3):
        (summary,) = Summarizer(tmp_path, device="cpu", generation={"num_beams": num_beams}).summarize(["the fox"])
        assert summary.status == "failed" and "not finite" in str(summary.error) and summary.text is None


def test_newline_token_becomes_a_line_break(model_dir: Path) -> None:
    plain = Summarizer(model_dir, device="cpu").summarize(texts(6))
    piece = next(summary.text.split()[0] for summary in plain if summary.text and summary.text.split())
    broken = Summarizer(model_dir, device="cpu", newline_token=piece).summarize(texts(6))
    assert [summary.text for summary in broken] == [str(summary.text).replace(piece, "\n") for summary in plain]


def test_bad_settings_are_refused_before_any_text(model_dir: Path) -> None:
    for settings, message in (
        ({"generation": {"num_beam": 2}}, "unknown generation option 'num_beam'"),
        ({"generation": {"max_length": 400}}, "exceeds the model's 64 positions"),
        ({"device": "tpu-7"}, "device 'tpu-7'"),
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"batch_tokens": 0}, "batch_tokens=0"),
    ):
        with pytest.raises(ValueError, match=message):
            Summarizer(model_dir, **{"device": "cpu", **settings})
    with pytest.raises(FileNotFoundError, match="is not a directory"):
        Summarizer("/no/such/model")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_batches_do_not_change_summaries(model_dir: Path, dtype: str) -> None:
    found = [
        Summarizer(model_dir, device="cpu", dtype=dtype, batch_tokens=tokens).summarize(texts())
        for tokens in (1, 40, 10_000)
    ]
    assert found[0] == found[1] == found[2]
