"""Document-summary pairs: read from Parquet, tokenised once, cut into batches of about equally long sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pegasus_batch.evaluation.tables import read_columns

IGNORED = -100  # the label that no loss counts


class Encodes(Protocol):
    """The part of the package's tokenizers that reading pairs uses."""

    def encode(self, text: str, *, truncation: bool, max_length: int) -> Any:
        """Return the ids of a text, cut to ``max_length`` with the end of sentence kept."""


@dataclass(frozen=True)
class TextPairs:
    """Documents and their reference summaries, in file order."""

    documents: list[str]
    summaries: list[str]

    def __len__(self) -> int:
        return len(self.documents)

    def head(self, n: int | None) -> TextPairs:
        """Return the first ``n`` pairs, or all for None."""
        return TextPairs(self.documents[:n], self.summaries[:n])


@dataclass(frozen=True)
class EncodedPairs:
    """Token ids (int32, end of sentence included) of sources and targets, in file order."""

    sources: list[np.ndarray]
    targets: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.sources)


@dataclass(frozen=True)
class Batch:
    """One step: ``input_ids``, ``attention_mask`` [B, S] and ``decoder_input_ids``, ``labels`` [B, T], all int64."""

    input_ids: Tensor
    attention_mask: Tensor
    decoder_input_ids: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Batch:
        """Copy to ``device``."""
        return Batch(*(tensor.to(device) for tensor in vars(self).values()))


def read_pairs(
    path: str | Path,
    document_column: str = "document",
    summary_column: str = "summary",
    *,
    drop_duplicates: bool = False,
) -> TextPairs:
    """Read a Parquet file or a directory of them.

    Rows whose document or summary is missing or blank teach nothing and are left out; ``drop_duplicates`` also leaves
    out exact repetitions of a pair, the first stays. Raises FileNotFoundError for a missing path and ValueError for a
    missing column or a file that leaves no pair.
    """
    documents, summaries = read_columns(path, [document_column, summary_column])
    rows = zip(documents, summaries, strict=True)
    kept = [
        (document, summary)
        for document, summary in rows
        if document and summary and document.strip() and summary.strip()
    ]
    if drop_duplicates:
        kept = list(dict.fromkeys(kept))
    if not kept:
        raise ValueError(f"{path} holds no row with both a {document_column!r} and a {summary_column!r}")
    return TextPairs([document for document, _ in kept], [summary for _, summary in kept])


def encode_pairs(pairs: TextPairs, tokenizer: Encodes, max_source_tokens: int, max_target_tokens: int) -> EncodedPairs:
    """Tokenise every pair once; longer texts are cut, their end of sentence kept."""

    def encode(texts: Sequence[str], limit: int) -> list[np.ndarray]:
        return [np.asarray(tokenizer.encode(text, max_length=limit, truncation=True), dtype=np.int32) for text in texts]

    return EncodedPairs(encode(pairs.documents, max_source_tokens), encode(pairs.summaries, max_target_tokens))


def plan_batches(lengths: Sequence[int], batch_tokens: int, seed: Sequence[int] | None = None) -> list[np.ndarray]:
    """Cut documents into batches of at most ``batch_tokens`` source tokens, padding counted.

    Returns arrays of indices into ``lengths``; a document longer than the budget travels alone. With a ``seed`` the
    batches come in random order and neighbours in length change from seed to seed (lengths are blurred by a tenth
    before sorting); without, the longest documents come first.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if seed is None:
        order = np.argsort(-sizes, kind="stable")
    else:
        random = np.random.default_rng(list(seed))
        order = np.argsort(sizes * random.uniform(0.95, 1.05, len(sizes)), kind="stable")
    batches: list[np.ndarray] = []
    start, longest = 0, 0
    for position, index in enumerate(order):
        longest = max(longest, int(sizes[index]))
        if position > start and longest * (position + 1 - start) > batch_tokens:
            batches.append(order[start:position])
            start, longest = position, int(sizes[index])
    if len(order):
        batches.append(order[start:])
    if seed is not None:
        batches = [batches[i] for i in random.permutation(len(batches))]
    return batches


def pad_rows(rows: Sequence[np.ndarray], fill: int) -> Tensor:
    """Stack rows of ids into int64 [B, longest], filled on the right."""
    padded = np.full((len(rows), max(map(len, rows))), fill, dtype=np.int64)
    for line, row in zip(padded, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(padded)


def collate(
    pairs: EncodedPairs, indices: Sequence[int] | np.ndarray, *, pad_token_id: int, decoder_start_token_id: int
) -> Batch:
    """Build the tensors of one batch; the decoder reads the labels shifted right behind the start token."""
    sources = [pairs.sources[i] for i in indices]
    labels = pad_rows([pairs.targets[i] for i in indices], IGNORED)
    shifted = labels.roll(1, dims=1)
    shifted[:, 0] = decoder_start_token_id
    return Batch(
        input_ids=pad_rows(sources, pad_token_id),
        # Not input_ids != pad: the literal text "<pad>" is a token of the document, and is attended as it is when
        # summarizing.
        attention_mask=pad_rows([np.ones(len(source), dtype=np.int64) for source in sources], 0),
        decoder_input_ids=shifted.masked_fill(shifted == IGNORED, pad_token_id),
        labels=labels,
    )


def iterate_batches(
    pairs: EncodedPairs, batch_tokens: int, *, pad_token_id: int, decoder_start_token_id: int
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yield every pair once, in a fixed order, as (indices, batch)."""
    for indices in plan_batches([len(source) for source in pairs.sources], batch_tokens):
        batch = collate(pairs, indices, pad_token_id=pad_token_id, decoder_start_token_id=decoder_start_token_id)
        yield indices, batch
