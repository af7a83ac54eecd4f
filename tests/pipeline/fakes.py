"""Stand-ins for a model, for what a real one does not do on demand: fail, crash while loading, answer at once."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence

import torch

from pegasus_batch.documents import Document, Summary
from pegasus_batch.engine.allocator import keep_freed_memory
from pegasus_batch.pipeline.task import ModelSettings

POISON = 7777  # a token at which the fake model gives up


class EchoModel:
    """Summarizes a document as its length; raises on a batch that holds a poisoned document."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def summarize_documents(self, documents: Sequence[Document]) -> list[Summary]:
        self.calls.append(len(documents))
        if any(POISON in document.token_ids for document in documents):
            raise IndexError("token 7777 is out of range")
        return [self._one(document) for document in documents]

    def _one(self, document: Document) -> Summary:
        if document.error is not None:
            return Summary.missing(document, "invalid", document.error)
        text = f"{len(document.token_ids)} tokens"
        return Summary(text, -0.5, document.n_source_tokens, 2, document.truncated, texts=(text, "second"))


class WordTokenizer:
    """One token for each word, its value the word's length; "poison" becomes the poisoned token."""

    max_source_tokens = 8

    def tokenize(self, texts: Sequence[object]) -> list[Document]:
        return [self._one(text) for text in texts]

    def _one(self, text: object) -> Document:
        if not isinstance(text, str):
            return Document([], 0, False, "the text is null")
        ids = [POISON if word == "poison" else len(word) for word in text.split()]
        return Document(ids[: self.max_source_tokens], len(ids), len(ids) > self.max_source_tokens)


def word_tokenizer(directory: str, max_source_tokens: int | None, long_documents: str) -> WordTokenizer:
    return WordTokenizer()


KILLER_TOKENS = 40  # a document that is longer makes the model below raise


class TokenEcho(EchoModel):
    """For the real tokenizer: summarizes a document as its tokens; raises on a batch that holds a long document."""

    def summarize_documents(self, documents: Sequence[Document]) -> list[Summary]:
        if any(len(document.token_ids) > KILLER_TOKENS for document in documents):
            raise IndexError("token 7777 is out of range")
        return [self._one(document) for document in documents]

    def _one(self, document: Document) -> Summary:
        if document.error is not None:
            return super()._one(document)
        text = " ".join(map(str, document.token_ids))
        return Summary(text, -0.5, document.n_source_tokens, 2, document.truncated, texts=(text,))


def echo_model(settings: ModelSettings, device: str) -> TokenEcho:
    return TokenEcho()


class SlowEcho(TokenEcho):
    """Takes ten milliseconds for a document, so that there is time for an accident."""

    def summarize_documents(self, documents: Sequence[Document]) -> list[Summary]:
        time.sleep(0.01 * len(documents))
        return super().summarize_documents(documents)


def slow_echo_model(settings: ModelSettings, device: str) -> SlowEcho:
    return SlowEcho()


class StuckModel(EchoModel):
    """Never answers."""

    def summarize_documents(self, documents: Sequence[Document]) -> list[Summary]:
        time.sleep(3600)
        return []


def stuck_model(settings: ModelSettings, device: str) -> StuckModel:
    return StuckModel()


class PageCounter(EchoModel):
    """Frees a block of memory and asks for it again; the summary is the pages that the system brought anew, at the fewest.

    The block is larger than what an arena of a thread holds. The first times small allocations still settle in the hole that it
    leaves, so that it takes new memory.
    """

    def summarize_documents(self, documents: Sequence[Document]) -> list[Summary]:
        keep_freed_memory()
        counts = []
        for _ in range(20):
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
            torch.ones(72 * 2**20, dtype=torch.uint8)
            counts.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)
        pages = str(min(counts))
        return [Summary(pages, -0.5, document.n_source_tokens, 1, False, texts=(pages,)) for document in documents]


def page_counter(settings: ModelSettings, device: str) -> PageCounter:
    return PageCounter()


def unloadable_model(settings: ModelSettings, device: str) -> EchoModel:
    raise OSError("weights are truncated")
