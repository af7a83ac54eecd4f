"""The corruptions from which BART learns to restore a text (arXiv 1910.13461, section 2.2), composable in any order."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from pegasus_batch.sentences import locate_sentences
from pegasus_batch.tokenization.base import Tokenizer
from pegasus_batch.tokenization.loading import load_tokenizer
from pegasus_batch.training.examples import Example, document_random


@dataclass(frozen=True)
class Tokens:
    """A text without its special tokens: ``ids`` int [S] and, for each, the number of its sentence, int [S]."""

    ids: np.ndarray
    sentences: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, order: np.ndarray) -> Tokens:
        """Return the tokens at these positions, in this order."""
        return Tokens(self.ids[order], self.sentences[order])


class Corruption(Protocol):
    """Makes one kind of noise."""

    name: ClassVar[str]

    def __call__(self, tokens: Tokens, mask_token_id: int, random: np.random.Generator) -> Tokens:
        """Return the corrupted tokens; those given stay as they are."""


def _count(share: float, n: int) -> int:
    return int(share * n + 0.5)


def _check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"{name}: the share {share} is not between 0 and 1")


@dataclass(frozen=True)
class TokenMasking:
    """Replaces a share of the tokens by the mask, each by its own."""

    share: float = 0.3
    name: ClassVar[str] = "token-masking"

    def __post_init__(self) -> None:
        _check_share(self.name, self.share)

    def __call__(self, tokens: Tokens, mask_token_id: int, random: np.random.Generator) -> Tokens:
        """Return as many tokens as before."""
        ids = tokens.ids.copy()
        ids[random.permutation(len(ids))[: _count(self.share, len(ids))]] = mask_token_id
        return Tokens(ids, tokens.sentences)


@dataclass(frozen=True)
class TokenDeletion:
    """Takes a share of the tokens out, so that the model must find where; one token always stays."""

    share: float = 0.3
    name: ClassVar[str] = "token-deletion"

    def __post_init__(self) -> None:
        _check_share(self.name, self.share)

    def __call__(self, tokens: Tokens, mask_token_id: int, random: np.random.Generator) -> Tokens:
        """Return the tokens that stay, in order."""
        n_deleted = min(_count(self.share, len(tokens)), max(0, len(tokens) - 1))
        return tokens.take(np.sort(random.permutation(len(tokens))[n_deleted:]))


@dataclass(frozen=True)
class TextInfilling:
    """Replaces spans by one mask each, so that the model must find how much is missing.

    Lengths are drawn from a Poisson distribution of mean ``mean_span`` until they add up to the share; the last is cut
    to fit. A span of length 0 inserts a mask. Spans never overlap; any arrangement of spans and other tokens is as
    likely as any other.
    """

    share: float = 0.3
    mean_span: float = 3.0
    name: ClassVar[str] = "text-infilling"

    def __post_init__(self) -> None:
        _check_share(self.name, self.share)
        if not self.mean_span >= 0.1:
            raise ValueError(f"{self.name}: a mean span of {self.mean_span} tokens is too short: take 0.1 or more")

    def __call__(self, tokens: Tokens, mask_token_id: int, random: np.random.Generator) -> Tokens:
        """Return fewer tokens, or more where most spans are empty."""
        spans = self._draw_spans(_count(self.share, len(tokens)), random)
        n_kept = len(tokens) - int(spans.sum())
        is_span = np.zeros(n_kept + len(spans), dtype=bool)
        is_span[random.permutation(len(is_span))[: len(spans)]] = True
        widths = np.ones(len(is_span), dtype=np.int64)  # tokens that each place of the new text stands for
        widths[is_span] = spans
        begins = np.cumsum(widths) - widths
        if not len(is_span):
            return tokens
        # An empty span at the very end has no token of its own to take the sentence from.
        taken = tokens.take(np.minimum(begins, len(tokens) - 1))
        return Tokens(np.where(is_span, mask_token_id, taken.ids), taken.sentences)

    def _draw_spans(self, total: int, random: np.random.Generator) -> np.ndarray:
        """Return lengths that add up to ``total``, in random order."""
        lengths = np.zeros(0, dtype=np.int64)
        while lengths.sum() < total:
            lengths = np.concatenate([lengths, random.poisson(self.mean_span, total + 1)])
        ends = np.cumsum(lengths)
        n_spans = int(np.searchsorted(ends, total)) + 1 if total else 0
        spans = lengths[:n_spans].copy()
        spans[n_spans - 1 :] -= ends[n_spans - 1 : n_spans] - total
        return random.permutation(spans)


@dataclass(frozen=True)
class SentencePermutation:
    """Puts the sentences into random order."""

    name: ClassVar[str] = "sentence-permutation"

    def __call__(self, tokens: Tokens, mask_token_id: int, random: np.random.Generator) -> Tokens:
        """Return the same tokens; a sentence that another corruption has torn moves in parts."""
        starts = np.flatnonzero(np.diff(tokens.sentences, prepend=tokens.sentences[:1] - 1))
        runs = np.split(np.arange(len(tokens)), starts[1:])
        return tokens.take(np.concatenate([runs[i] for i in random.permutation(len(runs))]))


@dataclass(frozen=True)
class DocumentRotation:
    """Lets the text begin at any of its tokens; what stood before it follows its end."""

    name: ClassVar[str] = "document-rotation"

    def __call__(self, tokens: Tokens, mask_token_id: int, random: np.random.Generator) -> Tokens:
        """Return the same tokens, rotated."""
        if not len(tokens):
            return tokens
        return tokens.take(np.roll(np.arange(len(tokens)), -int(random.integers(len(tokens)))))


CORRUPTIONS: dict[str, Any] = {
    kind.name: kind for kind in (TokenMasking, TokenDeletion, TextInfilling, SentencePermutation, DocumentRotation)
}


def read_corruption(text: str) -> Corruption:
    """Return the corruption that NAME or NAME:SHARE describes. Raises ValueError naming the choices."""
    name, _, share = text.partition(":")
    kind = CORRUPTIONS.get(name)
    if kind is None:
        raise ValueError(f"unknown corruption {name!r}: choose among {', '.join(CORRUPTIONS)}")
    if not share:
        return kind()
    if "share" not in kind.__dataclass_fields__:
        raise ValueError(f"{text!r}: {name} takes no share")
    try:
        return kind(float(share))
    except ValueError as error:
        raise ValueError(f"{text!r}: the share must be a number from 0 to 1, such as {name}:0.3") from error


def corrupt(
    token_ids: np.ndarray,
    sentences: np.ndarray,
    corruptions: Sequence[Corruption],
    *,
    mask_token_id: int,
    special_ids: Collection[int],
    random: np.random.Generator,
) -> np.ndarray:
    """Apply corruptions, one after the other, to a text; return its new ids, int [any length].

    token_ids int [S]; sentences int [S], the number of each token's sentence. Special tokens at either end (bos, eos, pad)
    stay where they are and are never changed; one that the text spells out in its middle is text.
    """
    token_ids, sentences = np.asarray(token_ids), np.asarray(sentences)
    if token_ids.shape != sentences.shape:
        raise ValueError(f"{token_ids.shape} tokens with {sentences.shape} sentence numbers: give each token one")
    inner = np.flatnonzero(~np.isin(token_ids, list(special_ids)))
    if not len(inner):
        return token_ids.copy()
    body = slice(int(inner[0]), int(inner[-1]) + 1)
    tokens = Tokens(token_ids[body], sentences[body])
    for corruption in corruptions:
        tokens = corruption(tokens, mask_token_id, random)
    return np.concatenate([token_ids[: body.start], tokens.ids, token_ids[body.stop :]])


@dataclass(frozen=True)
class Denoising:
    """The objective's settings; calling it turns a text into an example whose target is the text.

    ``directory`` holds the tokenizer, which must have a mask token. Of a text of more than ``max_tokens`` tokens (special
    tokens not counted) the first whole sentences that fit are taken, so that a model sees in its target what it saw in
    its source. The defaults are those of the released BART.
    """

    directory: str
    corruptions: tuple[Corruption, ...] = (SentencePermutation(), TextInfilling())
    max_tokens: int = 510

    @property
    def left_out(self) -> str:
        """Why some texts make no example."""
        return f"the first sentence has more than {self.max_tokens} tokens, or none"

    def __call__(self, text: str, seed: int) -> Example | None:
        """Return the example of a text, None where nothing of it fits.

        The corrupted ids come back as text. Where a piece of a word was deleted or masked, reading that text may cut it
        into other tokens than the corrupted ids.
        """
        tokenizer = _load_once(self.directory)
        ids, sentences, end = tokenize_sentences(text, tokenizer, self.max_tokens)
        if not len(ids):
            return None
        assert tokenizer.mask_token_id is not None
        corrupted = corrupt(
            ids,
            sentences,
            self.corruptions,
            mask_token_id=tokenizer.mask_token_id,
            special_ids=(),
            random=document_random(seed, text),
        )
        document = tokenizer.decode(corrupted.tolist()).strip()
        return Example(document, text[:end].strip(), cut=bool(text[end:].strip())) if document else None


def tokenize_sentences(text: str, tokenizer: Tokenizer, max_tokens: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the ids of the first whole sentences that fit, int [S], the sentence of each, int [S], and their end.

    The end counts characters of the text. A space stands before the first sentence too, as before every other: so its
    first word has the same tokens wherever a permutation moves it.
    """
    ids: list[int] = []
    sentences: list[int] = []
    end = 0
    for number, (_, sentence_end) in enumerate(locate_sentences(text)):
        piece = text[end:sentence_end] if number else " " + text[:sentence_end].lstrip()
        fresh = tokenizer.encode(piece, add_special_tokens=False, truncation=False)
        if len(ids) + len(fresh) > max_tokens:
            break
        ids += fresh
        sentences += [number] * len(fresh)
        end = sentence_end
    return np.array(ids, dtype=np.int64), np.array(sentences, dtype=np.int64), end


@functools.lru_cache(maxsize=4)
def _load_once(directory: str) -> Tokenizer:
    """Load a tokenizer once in each process: tasks come and go, their processes stay."""
    return load_tokenizer(directory)
