"""Texts in, summaries out: one device's share of the corpus, without Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from pegasus_batch.checkpoints.location import resolve
from pegasus_batch.config import GenerationConfig, load_config
from pegasus_batch.device import choose_device, choose_dtype, is_lack_of_memory, is_lost
from pegasus_batch.documents import BATCH_TOKENS, DeviceLost, Document, DocumentTokenizer, LongDocuments, Summary
from pegasus_batch.engine.allocator import keep_freed_memory, return_freed_memory
from pegasus_batch.engine.engine import Engine
from pegasus_batch.engine.slots import make_engine
from pegasus_batch.generation.callbacks import Callbacks
from pegasus_batch.generation.choice import Hypothesis
from pegasus_batch.generation.search import Search
from pegasus_batch.models.seq2seq import model_class_of


@dataclass(frozen=True)
class _Failure:
    """What ended a search: the documents that were in work then, and those that had not been touched."""

    reason: str
    does_not_fit: bool
    suspects: list[int]
    others: list[int]


class Summarizer:
    """A model, its tokenizer and its search settings, ready on one device.

    Weights load once, here. A text that cannot be summarized gets a status and no summary; it never fails its neighbours,
    and a summary does not depend on them.
    """

    def __init__(
        self,
        model_dir: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        generation: Mapping[str, Any] | GenerationConfig | None = None,
        max_source_tokens: int | None = None,
        batch_tokens: int | None = None,
        newline_token: str | None = None,
        long_documents: LongDocuments = "truncate",
    ) -> None:
        """Load ``model_dir``.

        device: "cpu", "cuda", "cuda:N" or "auto" (a GPU if there is one). dtype: a name, or "auto" (float32 on the CPU,
        bfloat16 on a GPU); "int8", weights of 8 bits, is for the CPU. generation: options over the checkpoint's own, or
        a whole GenerationConfig. batch_tokens: source tokens in work at a time, by default what suits the device.
        newline_token: a literal of the model's output, such as Pegasus' "<n>", to turn into a line break. long_documents:
        "truncate" reads the beginning of a text that is longer than ``max_source_tokens``; "chunk" reads it in windows and
        joins their summaries, and summarizes these again for as long as they are longer than a window themselves and
        become shorter.
        """
        if batch_tokens is not None and batch_tokens < 1:
            raise ValueError(f"batch_tokens={batch_tokens}: must be positive")
        path = resolve(model_dir)
        self.device = choose_device("cpu" if (device, dtype) == ("auto", "int8") else device)
        self.documents = DocumentTokenizer(path, max_source_tokens, long_documents)
        self.batch_tokens = batch_tokens or BATCH_TOKENS[self.device.type]
        self.newline_token = newline_token
        self._engine, default = load_engine(path, choose_dtype(dtype, self.device), self.device)
        self.generation = (
            generation if isinstance(generation, GenerationConfig) else default.updated(**(generation or {}))
        )
        self.generation.lengths(1, self._engine.max_positions)  # refuses an impossible maximum before any work

    def summarize(self, texts: Sequence[object]) -> list[Summary]:
        """Summarize texts; one Summary for each, in order."""
        return self.summarize_documents(self.documents.tokenize(texts))

    def summarize_documents(self, documents: Sequence[Document]) -> list[Summary]:
        """Summarize tokenized texts; one Summary for each, in order. Similar lengths are computed together, longest first.

        Raises DeviceLost where the GPU fails for good.
        """
        summaries = self._summarize_parts(documents)
        joined = self.documents.tokenize([summary.text if summary.chunks > 1 else None for summary in summaries])
        long = {index: document for index, document in enumerate(joined) if document.further}
        while long:
            again = self._summarize_parts(list(long.values()))
            texts = self.documents.tokenize([summary.text for summary in again])
            longer, long = long, {}
            for (index, before), summary, after in zip(longer.items(), again, texts, strict=True):
                if after.n_source_tokens < before.n_source_tokens:  # also where it failed and there is no text
                    source = documents[index]
                    summaries[index] = replace(
                        summary, n_source_tokens=source.n_source_tokens, chunks=len(source.windows)
                    )
                    if after.further:
                        long[index] = after
        return summaries

    def _summarize_parts(self, documents: Sequence[Document]) -> list[Summary]:
        """Summarize every window as a document of its own, and join the summaries of each document's."""
        parts = [replace(document, token_ids=ids, further=()) for document in documents for ids in document.windows]
        found = iter(self._summarize_windows(parts))
        return [_join(document, list(islice(found, len(document.windows)))) for document in documents]

    def _summarize_windows(self, documents: Sequence[Document]) -> list[Summary]:
        """Summarize documents of one window each."""
        summaries: dict[int, Summary] = {
            index: Summary.missing(document, "invalid", document.error)
            for index, document in enumerate(documents)
            if document.error is not None
        }
        valid = [index for index in range(len(documents)) if index not in summaries]
        valid.sort(key=lambda index: len(documents[index].token_ids), reverse=True)
        todo = [(valid, self.batch_tokens)] if valid else []  # with how many source tokens at a time
        while todo:
            indices, budget = todo.pop()
            failure = self._run(indices, budget, documents, summaries)
            if failure is None:
                continue
            suspects, others = failure.suspects, failure.others
            if failure.does_not_fit and self._engine.make_smaller():
                others = suspects + others
            elif len(suspects) == 1:
                summaries[suspects[0]] = Summary.missing(documents[suspects[0]], "failed", failure.reason)
            elif failure.does_not_fit:
                budget = sum(len(documents[index].token_ids) for index in suspects) // 2
                others = suspects + others
            else:
                todo += [([index], budget) for index in suspects]
            if others:
                todo.append((others, budget))
        return [summaries[index] for index in range(len(documents))]

    def _run(
        self, indices: list[int], budget: int, documents: Sequence[Document], summaries: dict[int, Summary]
    ) -> _Failure | None:
        """Summarize the documents of these indices until the end or an error."""
        search = None
        chosen = [documents[index] for index in indices]
        try:
            search = self._search(chosen, budget)
            for number, found in search:
                summaries[indices[number]] = self._summary(chosen[number], found)
            return None
        except (MemoryError, RuntimeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            does_not_fit = is_lack_of_memory(error)
            if not does_not_fit and is_lost(self.device, error):
                raise DeviceLost(f"{self.device} is unusable: {reason}") from error
        # Not before the handler is left: the error holds on to the tensors of the documents.
        if does_not_fit:
            self._free_memory()
            reason = (
                f"the document alone does not fit the memory of {self.device}: lower num_beams or max_source_tokens"
            )
        others = [] if search is None else [indices[number] for number in search.waiting]
        suspects = [index for index in indices if index not in summaries and index not in set(others)]
        return _Failure(reason, does_not_fit, suspects, others)

    def _search(self, documents: Sequence[Document], budget: int) -> Search:
        sources = [document.token_ids for document in documents]
        prompts = [[self.generation.start_token]] * len(sources)
        limit = self._engine.max_positions
        self._engine.load(sources)
        callbacks = Callbacks(tokenizer=self.documents.tokenizer)
        return Search(
            self._engine, self.generation, sources, prompts, budget=budget, max_positions=limit, callbacks=callbacks
        )

    def _free_memory(self) -> None:
        """Forget the documents that the engine holds and give unused memory back."""
        self._engine.release()
        if self.device.type != "cuda":
            return
        try:
            torch.cuda.empty_cache()
        except RuntimeError as error:
            raise DeviceLost(f"{self.device} is unusable: {error}") from error

    def _summary(self, document: Document, found: Sequence[Hypothesis]) -> Summary:
        best = found[0]
        if not best.score > -1e8:  # NaN, or a beam that never held a continuation
            return Summary.missing(document, "failed", f"the model's output is not finite (score {best.score})")
        texts = tuple(self._text(hypothesis) for hypothesis in found)
        return Summary(
            texts[0], best.score, document.n_source_tokens, len(best.tokens) - 1, document.truncated, texts=texts
        )

    def _text(self, hypothesis: Hypothesis) -> str:
        text = self.documents.tokenizer.decode(hypothesis.tokens, skip_special_tokens=True)
        return text.replace(self.newline_token, "\n") if self.newline_token else text


def _join(document: Document, parts: Sequence[Summary]) -> Summary:
    """Return the summary of a document from those of its windows; one that failed fails it."""
    if len(parts) == 1:
        return parts[0]
    for number, part in enumerate(parts, 1):
        if part.status != "ok":
            return Summary.missing(document, part.status, f"window {number} of {len(parts)}: {part.error}")
    texts = tuple(" ".join(texts) for texts in zip(*(part.texts for part in parts), strict=True))
    score = fmean(part.score for part in parts if part.score is not None)
    n_tokens = sum(part.n_summary_tokens for part in parts)
    n_source, n_windows = document.n_source_tokens, len(parts)
    return Summary(texts[0], score, n_source, n_tokens, document.truncated, texts=texts, chunks=n_windows)


def load_engine(directory: Path, dtype: torch.dtype, device: torch.device) -> tuple[Engine, GenerationConfig]:
    """Load a checkpoint's engine and its generation options; the weights are never in memory twice."""
    if device.type == "cpu":
        return_freed_memory()
    model = model_class_of(load_config(directory)).from_pretrained(directory, dtype, device)
    config, generation, quantized = model.config, model.generation_config, model.quantized
    weights = model.engine_weights()
    del model
    engine = make_engine(config, weights, quantized=quantized)
    if device.type == "cpu":
        keep_freed_memory()
    return engine, generation
