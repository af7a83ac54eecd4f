"""Hugging Face's logits processors, restated as a short list of edits for every row of scores.

A processor changes a handful of the [R, V] scores, so each one here names those entries instead of writing the matrix:
``beam_step`` applies the edits while it reads the row anyway. The functions work in NumPy over all rows at once; only
``EditPlanner`` knows the options, the order, and which processors a step needs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pegasus_batch.config import GenerationConfig
from pegasus_batch.generation.device_tables import DeviceTables
from pegasus_batch.kernels.reference import ADD, DECAY, PENALIZE, SET

BANNED = float("-inf")

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Edits:
    """The changes to one step's scores: row r applies the edits begin[r] : end[r], in order.

    begin, end [R] int32; token, kind [N] int32; value [N] float32; forced [R] int32, the token that a row must take or -1.
    A forced row starts from 0 at its token and -inf elsewhere, then applies its edits. ``idle`` tells without reading
    the device that nothing changes.
    """

    begin: Tensor
    end: Tensor
    token: Tensor
    kind: Tensor
    value: Tensor
    forced: Tensor
    idle: bool


class Part(NamedTuple):
    """One processor's edits: rows ascending, tokens and values [N] each, and the kind that all of them share."""

    rows: IntArray
    tokens: IntArray
    kind: int
    values: NDArray[np.float32]


def _part(rows: IntArray, tokens: IntArray, kind: int, value: float) -> Part:
    return Part(rows, tokens, kind, np.full(len(rows), value, dtype=np.float32))


def every_row(n_rows: int, tokens: Sequence[int], kind: int, value: float) -> Part:
    """Apply the same edit to the same tokens of all rows."""
    rows = np.repeat(np.arange(n_rows), len(tokens))
    return _part(rows, np.tile(np.asarray(tokens, dtype=np.int64), n_rows), kind, value)


def repetition_penalty(history: IntArray, penalty: float) -> Part:
    """Penalise every token of a row's history [R, T], prompt included, once."""
    ordered = np.sort(history, axis=1)
    first = np.ones(ordered.shape, dtype=bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    rows, positions = np.nonzero(first)
    return _part(rows, ordered[rows, positions], PENALIZE, penalty)


def no_repeat_ngram(history: IntArray, size: int) -> Part:
    """Ban each token that would complete an n-gram for the second time in its row of ``history`` [R, T]."""
    length = history.shape[1]
    windows = max(length - size + 1, 0)
    if size == 1:
        rows, starts = np.nonzero(np.ones_like(history))
    else:
        # Comparing first tokens leaves few windows, so the remaining positions are compared for those alone.
        first = history[:, windows : windows + 1]
        rows, starts = np.nonzero(history[:, :windows] == first)
    for offset in range(1, size - 1 if len(rows) else 1):
        same = history[rows, starts + offset] == history[rows, windows + offset]
        rows, starts = rows[same], starts[same]
    return _part(rows, history[rows, starts + size - 1], SET, BANNED)


class SourceNgrams:
    """The n-grams of every document's source, for ``encoder_no_repeat_ngram_size``."""

    def __init__(self, source_ids: Sequence[Sequence[int]], size: int) -> None:
        self.context = size - 1
        # A source is many times longer than a step has rows, so looking contexts up beats comparing windows.
        self.following: list[dict[tuple[int, ...], list[int]]] = []
        for ids in source_ids:
            following: dict[tuple[int, ...], list[int]] = {}
            for end in range(self.context, len(ids)):
                following.setdefault(tuple(ids[end - self.context : end]), []).append(ids[end])
            self.following.append({context: sorted(set(tokens)) for context, tokens in following.items()})

    def ban(self, history: IntArray, documents: IntArray) -> Part:
        """Ban each token that would complete an n-gram of its row's source; documents [R]: the document of each row."""
        contexts = history[:, history.shape[1] - self.context :] if self.context <= history.shape[1] else history
        found = [
            self.following[document].get(tuple(context), [])
            for document, context in zip(documents.tolist(), contexts.tolist(), strict=True)
        ]
        rows = np.repeat(np.arange(len(found)), [len(tokens) for tokens in found])
        return _part(rows, np.array([token for tokens in found for token in tokens], dtype=np.int64), SET, BANNED)


class SourceTokens:
    """The distinct source tokens of every document, for ``encoder_repetition_penalty``."""

    def __init__(self, source_ids: Sequence[Sequence[int]]) -> None:
        distinct = [np.unique(np.asarray(ids, dtype=np.int64)) for ids in source_ids]
        self.counts = np.array([len(tokens) for tokens in distinct], dtype=np.int64)
        self.begin = np.cumsum(self.counts) - self.counts
        self.tokens = np.concatenate(distinct)

    def penalty(self, documents: IntArray, penalty: float) -> Part:
        """Penalise each row's source tokens with 1 / ``penalty``: a value above 1 favours what the source says.

        documents [R]: the document of each row. Every beam sees its own document, as in transformers 5; release 4.57
        changes the first rows only.
        """
        counts = self.counts[documents]
        rows = np.repeat(np.arange(len(documents)), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        return _part(rows, self.tokens[np.repeat(self.begin[documents], counts) + within], PENALIZE, 1 / penalty)


class TokenSequences:
    """Token sequences of two or more tokens, each with a value that the completing token receives."""

    def __init__(self, sequences: Mapping[tuple[int, ...], float]) -> None:
        by_length: dict[int, list[int]] = {}
        words = list(sequences)
        for entry, word in enumerate(words):
            by_length.setdefault(len(word), []).append(entry)
        self.groups = [
            (np.array(entries), np.array([words[entry][:-1] for entry in entries], dtype=np.int64))
            for entries in by_length.values()
        ]
        self.last = np.array([word[-1] for word in words], dtype=np.int64)
        self.values = np.array(list(sequences.values()), dtype=np.float32)

    def completed(self, history: IntArray) -> tuple[IntArray, IntArray]:
        """Return (rows, entries), rows ascending: sequence ``entries[i]`` lacks but its last token in row ``rows[i]``.

        A sequence longer than the history never applies, even where its beginning is all of the history: Hugging Face's
        rule.
        """
        found_rows, found_entries = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        for entries, beginnings in self.groups:
            size = beginnings.shape[1]
            if size >= history.shape[1]:
                continue
            ending = history[:, -size:]
            rows, index = np.nonzero(ending[:, -1:] == beginnings[:, -1])
            for position in range(size - 1):
                same = ending[rows, position] == beginnings[index, position]
                rows, index = rows[same], index[same]
            found_rows.append(rows)
            found_entries.append(entries[index])
        all_rows, all_entries = np.concatenate(found_rows), np.concatenate(found_entries)
        order = np.lexsort((all_entries, all_rows))
        return all_rows[order], all_entries[order]


class SequenceBias:
    """``sequence_bias``: a bias for tokens, and for the tokens that would complete a sequence."""

    def __init__(self, sequence_bias: Mapping[tuple[int, ...], float]) -> None:
        self.sequences = TokenSequences({word: bias for word, bias in sequence_bias.items() if len(word) > 1})
        self.tokens = np.unique([word[-1] for word in sequence_bias])
        self.single = np.zeros(len(self.tokens), dtype=np.float32)
        for word, bias in sequence_bias.items():
            if len(word) == 1:
                self.single[np.searchsorted(self.tokens, word[0])] = bias

    def bias(self, history: IntArray) -> Part:
        """Add to each token the sum of its biases; summed before, in float32, because Hugging Face adds only once."""
        total = np.tile(self.single, (len(history), 1))
        rows, entries = self.sequences.completed(history)
        columns = np.searchsorted(self.tokens, self.sequences.last[entries])
        np.add.at(total, (rows, columns), self.sequences.values[entries])
        rows, columns = np.nonzero(total)
        return Part(rows, self.tokens[columns], ADD, total[rows, columns])


class BadWords:
    """``bad_words_ids``: banned tokens and the last tokens of banned sequences; an end token alone is never banned."""

    def __init__(self, bad_words: Sequence[Sequence[int]], eos_ids: Sequence[int]) -> None:
        words = [tuple(word) for word in bad_words if tuple(word) not in {(eos,) for eos in eos_ids}]
        self.tokens = tuple(dict.fromkeys(word[0] for word in words if len(word) == 1))
        self.sequences = TokenSequences({word: BANNED for word in words if len(word) > 1})

    def ban(self, history: IntArray) -> Part:
        """Ban the tokens that would complete a banned sequence."""
        rows, entries = self.sequences.completed(history)
        return _part(rows, self.sequences.last[entries], SET, BANNED)


def diversity(others: IntArray, penalty: float) -> Part:
    """Lower each token of ``others`` [R, m], which other groups of beams have just chosen, once for every choice."""
    rows = np.repeat(np.arange(len(others)), others.shape[1])
    pairs, counts = np.unique(np.stack((rows, others.ravel())), axis=1, return_counts=True)
    return Part(pairs[0], pairs[1], ADD, (-penalty * counts).astype(np.float32))


def allowed_only(
    history: IntArray, documents: IntArray, vocab_size: int, allowed_tokens: Callable[[int, Tensor], Sequence[int]]
) -> Part:
    """Ban all but ``allowed_tokens(document, row's tokens)`` in every row; ValueError where nothing is left."""
    banned = []
    for document, tokens in zip(documents.tolist(), history, strict=True):
        allowed = np.asarray(allowed_tokens(document, torch.from_numpy(tokens.copy())), dtype=np.int64)
        if not len(allowed) or not 0 <= allowed.min() <= allowed.max() < vocab_size:
            raise ValueError(
                f"prefix_allowed_tokens_fn returned {allowed.tolist()[:8]} for document {document}: it must return at least "
                f"one token id, all below {vocab_size}"
            )
        banned.append(np.delete(np.arange(vocab_size), allowed))
    rows = np.repeat(np.arange(len(banned)), [len(tokens) for tokens in banned])
    return _part(rows, np.concatenate(banned), SET, BANNED)


class _Phase(NamedTuple):
    """What the length alone decides about a step; equal phases give equal edits to rows without a history processor."""

    forced: tuple[int, ...]
    too_short: bool
    decay: float | None
    first: bool


class EditPlanner:
    """Turn generation options into the edits of each step, processor for processor in Hugging Face's order.

    source_ids: each document's own ids, end token included, never padded, so that no document sees its batch.
    prompt_length: decoder tokens before the first generated one. ``max_positions`` limits a default maximum length.
    Raises ValueError on token ids outside ``vocab_size`` where they would index the scores.
    """

    def __init__(
        self,
        options: GenerationConfig,
        source_ids: Sequence[Sequence[int]],
        prompt_length: int,
        *,
        vocab_size: int | None = None,
        max_positions: int | None = None,
        prefix_allowed_tokens_fn: Callable[[int, Tensor], Sequence[int]] | None = None,
    ) -> None:
        self.max_length, self.min_length = options.lengths(prompt_length, max_positions or sys.maxsize - 1)
        self._options = options
        self._prompt_length = prompt_length
        self._vocab_size = sys.maxsize if vocab_size is None else vocab_size
        self._check_vocabulary(source_ids)
        self._eos = tuple(dict.fromkeys(options.eos_ids))
        decay = options.exponential_decay_length_penalty
        if decay is not None and not self._eos:
            raise ValueError(f"exponential_decay_length_penalty={decay!r} needs an eos_token_id to favour")
        # Hugging Face ignores these ids where they lie outside the vocabulary.
        self._ending = self._inside(self._eos)
        self._suppress = self._inside(options.suppress_tokens or ())
        self._begin_suppress = self._inside(options.begin_suppress_tokens or ())
        # A forced first token is followed by the first free one, which is then the beginning.
        forced_first = options.forced_bos_token_id is not None and prompt_length == 1
        self._begin_length = prompt_length + 1 if forced_first else prompt_length
        forced_last = options.forced_eos_token_id
        self._forced_last = (forced_last,) if isinstance(forced_last, int) else tuple(forced_last or ())

        self._bias = SequenceBias(options.sequence_bias) if options.sequence_bias else None
        self._bad_words = BadWords(options.bad_words_ids or (), self._eos)
        self._source_tokens = SourceTokens(source_ids) if options.encoder_repetition_penalty != 1 else None
        source_size = options.encoder_no_repeat_ngram_size
        self._source_ngrams = SourceNgrams(source_ids, source_size) if source_size else None
        self._allowed_tokens = prefix_allowed_tokens_fn
        self._needs_history = (
            self._bias is not None
            or self._allowed_tokens is not None
            or options.diversity_penalty > 0
            or self._source_tokens is not None
            or self._source_ngrams is not None
            or options.repetition_penalty != 1
            or options.no_repeat_ngram_size > 0
            or bool(self._bad_words.sequences.groups)
        )
        self._last_key: tuple[object, ...] | None = None
        self._last_edits: Edits | None = None

    def edits(
        self, sequences: Tensor, documents: Tensor, lengths: Tensor | None = None, others: Tensor | None = None
    ) -> Edits:
        """Plan the edits of one step, on the device of ``sequences``.

        sequences [R, T] int64: every row's tokens so far, prompt included, ``lengths`` [R] of them (T where left out).
        documents [R] int64: the index into ``source_ids`` that each row belongs to. others [R, m] int64: what the
        groups of beams before the rows' own have chosen in this step.
        """
        n_rows, device = sequences.shape[0], sequences.device
        counts = np.full(n_rows, sequences.shape[1]) if lengths is None else lengths.cpu().numpy()
        # Rows of one length go through a processor together.
        present = np.unique(counts) if (counts[1:] != counts[:-1]).any() else counts[:1]
        groups = [(int(length), np.flatnonzero(counts == length)) for length in present]
        phases = [self._phase(length) for length, _ in groups]
        reads = self._needs_history and not all(phase.forced for phase in phases)
        key = (n_rows, device, *((phase, rows.tobytes()) for phase, (_, rows) in zip(phases, groups, strict=True)))
        if not reads and self._last_edits is not None and self._last_key == key:
            return self._last_edits
        forced, parts = np.full(n_rows, -1, dtype=np.int32), []
        history, owners = sequences.cpu().numpy(), documents.cpu().numpy()
        chosen = None if others is None else others.cpu().numpy()
        for phase, (length, rows) in zip(phases, groups, strict=True):
            found = self._phase_parts(len(rows), phase)
            if phase.forced:
                forced[rows] = phase.forced[0]
            elif self._needs_history:
                found = (
                    self._history_parts(history[rows, :length], owners[rows], None if chosen is None else chosen[rows])
                    + found
                )
            parts += [part._replace(rows=rows[part.rows]) for part in found]
        edits = _assemble(parts, forced, device)
        self._last_key, self._last_edits = (None, None) if reads else (key, edits)
        return edits

    def device_tables(self, device: torch.device | None = None) -> DeviceTables | None:
        """Return what lets a device plan as ``edits`` does, or None where an option needs more than history and length."""
        device = device or torch.device("cpu")
        if self._bias or self._source_tokens or self._source_ngrams or self._bad_words.sequences.groups:
            return None
        if self._allowed_tokens is not None or self._options.diversity_penalty > 0:
            return None
        phases = [self._phase(length) for length in range(self.max_length + 1)]
        # Each length is a row here: what all rows of that length get. Most lengths have the same phase.
        rows: dict[_Phase, list[int]] = {}
        for length, phase in enumerate(phases):
            rows.setdefault(phase, []).append(length)
        parts = [
            part._replace(rows=np.array(lengths)[part.rows])
            for phase, lengths in rows.items()
            for part in self._phase_parts(len(lengths), phase)
        ]
        forced = np.array([phase.forced[0] if phase.forced else -1 for phase in phases], dtype=np.int32)
        every = _assemble(parts, forced, device)
        begin = torch.nn.functional.pad(every.begin[: len(phases)], (0, 1), value=len(every.token))
        penalty, size = self._options.repetition_penalty, self._options.no_repeat_ngram_size
        reads = int(penalty != 1) + int(size > 0)
        return DeviceTables(
            begin=begin,
            token=every.token,
            kind=every.kind,
            value=every.value,
            forced=every.forced,
            repetition_penalty=penalty,
            ngram_size=size,
            stretch=reads * self.max_length + int(begin.diff().max()),
            idle=every.idle and not reads,
        )

    def _phase(self, length: int) -> _Phase:
        options = self._options
        forced: tuple[int, ...] = ()
        if length == 1 and options.forced_bos_token_id is not None:
            forced = (options.forced_bos_token_id,)
        if length == self.max_length - 1 and self._forced_last:
            forced = self._forced_last
        decay = None
        if options.exponential_decay_length_penalty is not None:
            start, factor = options.exponential_decay_length_penalty
            excess = length - self._prompt_length - start
            decay = factor**excess - 1 if excess > 0 else None
        too_short = bool(self._ending) and length < self.min_length
        first = bool(self._begin_suppress) and length == self._begin_length
        return _Phase(forced, too_short, decay, first)

    def _history_parts(self, history: IntArray, documents: IntArray, others: IntArray | None) -> list[Part]:
        options, parts = self._options, []
        if self._bias is not None:
            parts.append(self._bias.bias(history))
        if others is not None:
            parts.append(diversity(others, options.diversity_penalty))
        if self._source_tokens is not None:
            parts.append(self._source_tokens.penalty(documents, options.encoder_repetition_penalty))
        if options.repetition_penalty != 1:
            parts.append(repetition_penalty(history, options.repetition_penalty))
        if options.no_repeat_ngram_size:
            parts.append(no_repeat_ngram(history, options.no_repeat_ngram_size))
        if self._source_ngrams is not None:
            parts.append(self._source_ngrams.ban(history, documents))
        if self._bad_words.sequences.groups:
            parts.append(self._bad_words.ban(history))
        if self._allowed_tokens is not None:
            parts.append(allowed_only(history, documents, self._vocab_size, self._allowed_tokens))
        return parts

    def _phase_parts(self, n_rows: int, phase: _Phase) -> list[Part]:
        parts = []
        if not phase.forced:  # forcing overwrites the row, so whatever came before is lost
            parts.append(every_row(n_rows, self._bad_words.tokens, SET, BANNED))
            if phase.too_short:
                parts.append(every_row(n_rows, self._ending, SET, BANNED))
        parts.append(every_row(n_rows, phase.forced[1:], SET, 0.0))
        if phase.decay is not None:
            parts.append(every_row(n_rows, self._eos, DECAY, phase.decay))
        parts.append(every_row(n_rows, self._suppress, SET, BANNED))
        if phase.first:
            parts.append(every_row(n_rows, self._begin_suppress, SET, BANNED))
        return parts

    def _inside(self, tokens: Sequence[int]) -> tuple[int, ...]:
        return tuple(token for token in dict.fromkeys(tokens) if token < self._vocab_size)

    def _check_vocabulary(self, source_ids: Sequence[Sequence[int]]) -> None:
        options = self._options
        forced_last = options.forced_eos_token_id
        used: dict[str, Sequence[int]] = {
            "forced_bos_token_id": () if options.forced_bos_token_id is None else (options.forced_bos_token_id,),
            "forced_eos_token_id": (forced_last,) if isinstance(forced_last, int) else (forced_last or ()),
            "bad_words_ids": [token for word in options.bad_words_ids or () for token in word],
            "sequence_bias": [token for word in options.sequence_bias or {} for token in word],
        }
        if options.exponential_decay_length_penalty is not None:
            used["eos_token_id"] = options.eos_ids
        if options.encoder_repetition_penalty != 1 or options.encoder_no_repeat_ngram_size:
            used["source ids"] = [max(ids) for ids in source_ids if len(ids)]
        for name, tokens in used.items():
            wild = [token for token in tokens if not 0 <= token < self._vocab_size]
            if wild:
                raise ValueError(f"{name} holds token {wild[0]}, but the vocabulary has {self._vocab_size} tokens")


def _assemble(parts: list[Part], forced: NDArray[np.int32], device: torch.device) -> Edits:
    n_rows, parts = len(forced), [part for part in parts if len(part.rows)]
    rows = np.concatenate([np.zeros(0, dtype=np.int64), *(part.rows for part in parts)])
    tokens = np.concatenate([np.zeros(0, dtype=np.int64), *(part.tokens for part in parts)])
    kinds = np.repeat(np.array([part.kind for part in parts], dtype=np.int32), [len(part.rows) for part in parts])
    values = np.concatenate([np.zeros(0, dtype=np.float32), *(part.values for part in parts)])
    if len(parts) > 1:
        order = np.argsort(rows, kind="stable")  # keeps the processors' order within a row
        tokens, kinds, values = tokens[order], kinds[order], values[order]
    limits = np.zeros(n_rows + 1, dtype=np.int32)
    limits[1:] = np.cumsum(np.bincount(rows, minlength=n_rows))
    limits_there = torch.from_numpy(limits).to(device)
    return Edits(
        begin=limits_there[:-1],
        end=limits_there[1:],
        token=torch.from_numpy(tokens.astype(np.int32)).to(device),
        kind=torch.from_numpy(kinds).to(device),
        value=torch.from_numpy(values).to(device),
        forced=torch.from_numpy(forced).to(device),
        idle=not parts and bool((forced < 0).all()),
    )
