"""Texts in, summaries out: order, statuses, truncation, and what one bad text does to the others."""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pegasus_batch import Summarizer
from pegasus_batch.config import load_config
from pegasus_batch.documents import DeviceLost, Document, DocumentTokenizer, Summary
from pegasus_batch.models.seq2seq import PegasusForConditionalGeneration
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


def test_what_is_drawn_depends_on_the_text_alone(model_dir: Path) -> None:
    """Not on the size of the batches, the order, or when a text joined the others."""
    generation = {"do_sample": True, "num_beams": 1, "num_return_sequences": 2, "stop_strings": ["zz"]}
    found = Summarizer(model_dir, device="cpu", generation=generation).summarize(texts())
    assert len({summary.texts for summary in found}) == len(found)
    few = Summarizer(model_dir, device="cpu", batch_tokens=50, generation=generation)
    assert few.summarize(texts()[::-1]) == found[::-1]
    other = Summarizer(model_dir, device="cpu", generation={**generation, "seed": 1})
    assert all(one.texts != two.texts for one, two in zip(other.summarize(texts()), found, strict=True))


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


def long_text(rng: random.Random, n_sentences: int, longest: int) -> str:
    """Return sentences that end as sentences do."""
    return " ".join(sentence(rng, rng.randint(1, longest)).capitalize() + "." for _ in range(n_sentences))


def cut_by_hand(documents: DocumentTokenizer, text: str, limit: int) -> list[str]:
    """Put sentences into windows by tokenizing every candidate as a text of its own."""
    windows: list[str] = []
    for part in text.replace(". ", ".\n").split("\n"):
        longer = f"{windows[-1]} {part}" if windows else part
        if windows and len(documents.tokenizer.encode(longer)) <= limit:
            windows[-1] = longer
        else:
            windows.append(part)
    return windows


def test_windows_are_whole_sentences_and_as_full_as_fits(model_dir: Path, bart_dir: Path) -> None:
    for directory in (model_dir, bart_dir):
        documents = DocumentTokenizer(directory, 40, "chunk")
        for seed in range(5):
            text = long_text(random.Random(seed), 40, 6)
            (document,) = documents.tokenize([text])
            parts = cut_by_hand(documents, text, 40)
            assert document.windows == [documents.tokenizer.encode(part) for part in parts]
            assert len(parts) > 3 and not document.truncated
            assert document.n_source_tokens == len(documents.tokenizer.encode(text))


def test_a_sentence_longer_than_a_window_is_cut_where_that_is_full(model_dir: Path, bart_dir: Path) -> None:
    for directory in (model_dir, bart_dir):
        documents = DocumentTokenizer(directory, 20, "chunk")
        begin, long, end = "A fox.", "Quick" + 60 * " dogs" + ".", "Seven tools."
        (document,) = documents.tokenize([f"{begin} {long} {end}"])
        room = 20 - documents.tokenizer.num_special_tokens_to_add()
        ids = documents.tokenizer.encode(long, add_special_tokens=False)
        ids += documents.tokenizer.encode(f" {end}", add_special_tokens=False)
        windows = [ids[start : start + room] for start in range(0, len(ids), room)]
        build = documents.tokenizer.build_inputs_with_special_tokens
        assert document.windows == [documents.tokenizer.encode(begin), *map(build, windows)]
        short = DocumentTokenizer(directory, 20).tokenize([begin])
        assert documents.tokenize([begin]) == short and short[0].further == ()


def test_a_long_text_gives_the_join_of_its_windows_summaries(model_dir: Path) -> None:
    options: dict[str, Any] = {"device": "cpu", "max_source_tokens": 40, "generation": {"num_return_sequences": 2}}
    chunking = Summarizer(model_dir, long_documents="chunk", **options)
    text = long_text(random.Random(1), 12, 6)
    parts = Summarizer(model_dir, **options).summarize(cut_by_hand(chunking.documents, text, 40))
    short, null, found = chunking.summarize(["A fox.", None, text])
    assert len(parts) > 1 and found.chunks == len(parts) and (short.chunks, null.chunks) == (1, 1)
    assert found.text == " ".join(str(part.text) for part in parts)
    assert found.texts == tuple(" ".join(texts) for texts in zip(*(part.texts for part in parts), strict=True))
    assert found.score == pytest.approx(sum(part.score or 0 for part in parts) / len(parts))
    assert found.n_summary_tokens == sum(part.n_summary_tokens for part in parts)
    assert (found.truncated, found.status, null.status) == (False, "ok", "invalid")
    assert [short] == Summarizer(model_dir, **options).summarize(["A fox."])


class Shrinking(Summarizer):
    """Summarizes a window as its first ``keep`` words."""

    keep = 2

    def _summarize_windows(self, documents: Sequence[Document]) -> list[Summary]:
        found = []
        for document in documents:
            words = self.documents.tokenizer.decode(document.token_ids, skip_special_tokens=True).split()
            text = " ".join(words[: self.keep])
            found.append(Summary(text, -1.0, document.n_source_tokens, self.keep, False, texts=(text,)))
        return found


@pytest.mark.parametrize("keep", [1, 2, 50])
def test_joined_summaries_are_summarized_until_they_fit_or_do_not_shrink(model_dir: Path, keep: int) -> None:
    model = Shrinking(model_dir, device="cpu", max_source_tokens=12, long_documents="chunk")
    model.keep = keep
    text = "\n".join(["fox fox fox fox.", "dogs dogs dogs dogs."] * 40)  # of words that the vocabulary has
    (document,) = model.documents.tokenize([text])
    (summary,) = model.summarize([text])
    length = len(model.documents.tokenizer.encode(str(summary.text)))
    assert (length <= 12) == (keep < 50)
    assert (summary.chunks, summary.n_source_tokens) == (len(document.windows), document.n_source_tokens)
    if keep == 50:  # nothing is lost, and nothing is gained by another round
        assert str(summary.text).split() == text.split()


def test_a_window_that_fails_fails_its_document(model_dir: Path) -> None:
    summarizer = Summarizer(model_dir, device="cpu")
    (good,) = summarizer.documents.tokenize(texts(1))
    wild = load_config(model_dir).vocab_size
    broken = Document(good.token_ids, 30, False, further=[[5, wild, 1], good.token_ids])
    found = summarizer.summarize_documents([good, broken, good])
    assert [summary.status for summary in found] == ["ok", "failed", "ok"]
    assert str(found[1].error).startswith("window 2 of 3: ") and "token ids must lie in" in str(found[1].error)
    assert (found[1].text, found[1].chunks, found[1].n_source_tokens) == (None, 3, 30)


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
        ({"dtype": "int4"}, "dtype 'int4'"),
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


# ---- failures of the machine, which a device of this size does not have on demand


def cpu_allocator_error() -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    return RuntimeError(str(caught.value))


LACKS_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    cpu_allocator_error(),
    MemoryError("std::bad_alloc"),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]
LOSSES = [
    torch.AcceleratorError("device-side assert triggered"),  # the type says enough
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa, opb, m, n, k)`"),
]


def fail_beyond(
    summarizer: Summarizer, monkeypatch: pytest.MonkeyPatch, method: str, most: int, error: Exception
) -> list[int]:
    """Let a method of the engine raise where it holds more than ``most`` documents; returns how many joined each time.

    Asserts that what the engine had of documents that did not fit is gone before the next ones are encoded.
    """
    engine: Any = summarizer._engine
    original: Callable[..., Any] = getattr(engine, method)
    start, admit, keep = engine.start, engine.admit, engine.keep
    joined, held, n_held = [], [], 0

    def started(n_beams: int) -> None:
        nonlocal n_held
        n_held = 0
        start(n_beams)

    def admitted(documents: list[int]) -> None:
        nonlocal n_held
        assert all(tensor() is None for tensor in held)
        n_held += len(documents)
        joined.append(len(documents))
        limited(*documents) if method == "admit" else admit(documents)

    def kept(documents: list[int]) -> None:
        nonlocal n_held
        n_held = len(documents)
        keep(documents)

    def limited(*arguments: Any) -> Any:
        if n_held <= most:
            return admit(list(arguments)) if method == "admit" else original(*arguments)
        sources, past = engine._memory
        held.extend(weakref.ref(tensor) for tensor in [*sources._panels.keys, *past._keys])
        raise type(error)(*error.args)  # a new one, like a real one: the shared one would keep its frames

    monkeypatch.setattr(engine, "start", started)
    monkeypatch.setattr(engine, "keep", kept)
    monkeypatch.setattr(engine, "admit", admitted)
    if method != "admit":
        monkeypatch.setattr(engine, method, limited)
    return joined


@pytest.mark.parametrize("method", ["admit", "_attend_source", "step"])
@pytest.mark.parametrize("error", LACKS_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_documents_that_do_not_fit_are_halved(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, method: str, error: Exception
) -> None:
    summarizer = Summarizer(model_dir, device="cpu", batch_tokens=10_000, generation={"num_return_sequences": 2})
    whole = summarizer.summarize(texts(11))
    joined = fail_beyond(summarizer, monkeypatch, method, 3, error)
    assert summarizer.summarize(texts(11)) == whole
    assert joined[0] == 11 > joined[1] >= 2, "half of the tokens, which is not half of the documents"
    assert len(joined) < 15, "what has finished is not done again"


def raise_on(error: Exception, calls: list[str], when: Callable[[Sequence[Document]], bool] = lambda _: True) -> Any:
    """Return a decoder's ``admit`` for ``patch_admit``: it notes how many documents join and may raise."""

    def check(documents: Sequence[Document]) -> None:
        calls.append(f"run {len(documents)}")
        if when(documents):
            raise error

    return check


def patch_admit(summarizer: Summarizer, monkeypatch: pytest.MonkeyPatch, check: Any) -> None:
    """Let ``check`` see the documents that join, before the engine does."""
    engine, search = summarizer._engine, summarizer._search
    admit, chosen = engine.admit, []

    def searched(documents: Sequence[Document], budget: int) -> Any:
        chosen[:] = documents
        return search(documents, budget)

    def checked(documents: list[int]) -> None:
        check([chosen[document] for document in documents])
        admit(documents)

    monkeypatch.setattr(summarizer, "_search", searched)
    monkeypatch.setattr(engine, "admit", checked)


def test_a_document_that_does_not_fit_alone_fails(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summarizer = Summarizer(model_dir, device="cpu", batch_tokens=10_000)
    whole = summarizer.summarize(texts())
    longest = max(range(12), key=lambda index: whole[index].n_source_tokens)

    def too_long(documents: Sequence[Document]) -> bool:
        return any(document.n_source_tokens == whole[longest].n_source_tokens for document in documents)

    patch_admit(summarizer, monkeypatch, raise_on(torch.OutOfMemoryError("CUDA out of memory."), [], too_long))
    found = summarizer.summarize(texts())
    assert [summary.status for summary in found] == ["failed" if index == longest else "ok" for index in range(12)]
    assert "does not fit" in str(found[longest].error) and "lower num_beams or max_source_tokens" in str(
        found[longest].error
    )
    assert found[longest].n_source_tokens == whole[longest].n_source_tokens
    assert [s for i, s in enumerate(found) if i != longest] == [s for i, s in enumerate(whole) if i != longest]


def test_what_did_not_fit_is_freed_first(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that is still being handled holds its frames, and they the tensors that filled the memory."""
    summarizer = Summarizer(model_dir, device="cpu", batch_tokens=10_000)
    held: list[Any] = []

    def limited(documents: Sequence[Document]) -> None:
        assert all(tensor() is None for tensor in held)
        filler = torch.zeros(3)
        held.append(weakref.ref(filler))
        if len(documents) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    patch_admit(summarizer, monkeypatch, limited)
    assert {summary.status for summary in summarizer.summarize(texts(4))} == {"ok"}
    assert len(held) > 4


def on_a_gpu(summarizer: Summarizer, monkeypatch: pytest.MonkeyPatch, works: bool) -> list[str]:
    """Let a summarizer believe that it computes on a GPU; returns the calls of torch.cuda that it makes."""
    calls: list[str] = []

    def synchronize(device: torch.device) -> None:
        calls.append("synchronize")
        if not works:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty_cache"))
    monkeypatch.setattr(summarizer, "device", torch.device("cuda", 0))
    return calls


def test_the_cache_of_a_gpu_is_freed(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summarizer = Summarizer(model_dir, device="cpu", batch_tokens=10_000)
    calls = on_a_gpu(summarizer, monkeypatch, works=True)
    patch_admit(summarizer, monkeypatch, raise_on(torch.OutOfMemoryError("CUDA out of memory."), calls))
    assert [summary.status for summary in summarizer.summarize(texts(2))] == ["failed", "failed"]
    assert calls == ["run 2", "empty_cache", "run 1", "empty_cache", "run 1", "empty_cache"]


@pytest.mark.parametrize("error", LOSSES, ids=lambda error: type(error).__name__)
def test_a_lost_device_concludes_nothing_about_documents(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    summarizer = Summarizer(model_dir, device="cpu", batch_tokens=10_000)
    calls: list[str] = []
    patch_admit(summarizer, monkeypatch, raise_on(error, calls))
    with pytest.raises(DeviceLost, match=r"cpu is unusable: .*(device-side|CUBLAS_STATUS_EXE)") as caught:
        summarizer.summarize(texts(3))
    assert caught.value.__cause__ is error
    assert calls == ["run 3"]


def test_a_device_lost_in_our_own_kernels(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They raise without torch's words, so the device is asked; where it answers, the error was the document's."""
    error = RuntimeError("attention: an illegal memory access was encountered")
    for works in (False, True):
        summarizer = Summarizer(model_dir, device="cpu", batch_tokens=10_000)
        calls = on_a_gpu(summarizer, monkeypatch, works)
        patch_admit(summarizer, monkeypatch, raise_on(error, calls))
        if works:
            assert [summary.error for summary in summarizer.summarize(texts(2))] == [f"RuntimeError: {error}"] * 2
            assert calls == ["run 2", "synchronize", "run 1", "synchronize", "run 1", "synchronize"]
        else:
            with pytest.raises(DeviceLost, match="attention: an illegal memory access"):
                summarizer.summarize(texts(2))
            assert calls == ["run 2", "synchronize"]


def test_a_device_lost_while_memory_is_freed(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summarizer = Summarizer(model_dir, device="cpu", batch_tokens=10_000)
    calls = on_a_gpu(summarizer, monkeypatch, works=True)
    patch_admit(summarizer, monkeypatch, raise_on(torch.OutOfMemoryError("CUDA out of memory."), calls))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: (_ for _ in ()).throw(LOSSES[0]))
    with pytest.raises(DeviceLost, match="device-side assert"):
        summarizer.summarize(texts(2))
    assert calls == ["run 2"]


def test_an_ordinary_error_is_not_halved(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summarizer = Summarizer(model_dir, device="cpu", batch_tokens=10_000)
    calls: list[str] = []
    patch_admit(summarizer, monkeypatch, raise_on(ValueError("no"), calls))
    assert [summary.error for summary in summarizer.summarize(texts(3))] == ["ValueError: no"] * 3
    assert calls == ["run 3", *["run 1"] * 3]
