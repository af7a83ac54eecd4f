"""Gap-sentence generation: the principal sentences of a document leave it, and become what the model has to write.

The objective of PEGASUS (arXiv 1912.08777, section 3). "Words" are those of Google's rouge-score without its stemmer:
runs of a-z and 0-9 of the lower-cased text. Stemming takes longer than everything else here, and would only merge forms
of words that a document repeats anyway. Other scripts have no words, as in rouge-score: such a sentence scores 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from pegasus_batch.sentences import locate_sentences
from pegasus_batch.training.examples import Example, document_random

Strategy = Literal["ind-orig", "ind-uniq", "seq-orig", "seq-uniq", "lead", "random"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
SENTENCE_MASK = "<mask_1>"  # the Pegasus tokenizer's mask_token_sent
_WORD = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True)
class GapSentences:
    """The objective's settings; calling it turns a text into an example.

    ``gap_ratio`` (low, high) bounds the share of sentences that are selected, drawn uniformly for every document; equal
    bounds fix it. ``importance_noise`` n multiplies every score by a number drawn uniformly from 1 - n to 1 + n. Each
    selected sentence stays readable in the document with probability ``unmasked_share``, which teaches the model to copy.
    The defaults are those of the paper's last checkpoints (mixed and stochastic).
    """

    strategy: Strategy = "ind-orig"
    gap_ratio: tuple[float, float] = (0.15, 0.45)
    unmasked_share: float = 0.2
    importance_noise: float = 0.2
    min_sentences: int = 2
    max_sentences: int = 500  # no model reads more, and the greedy strategies take quadratic time

    @property
    def left_out(self) -> str:
        """Why some texts make no example."""
        return f"fewer than {self.min_sentences} sentences"

    def __call__(self, text: str, seed: int) -> Example | None:
        """Return the example of a text, None where it has fewer than ``min_sentences``.

        Sentences beyond ``max_sentences`` are cut off. What stands between two sentences stays as it is; in the target,
        every sentence keeps what follows it in the text.
        """
        spans = locate_sentences(text)
        if len(spans) < self.min_sentences:
            return None
        cut = len(spans) > self.max_sentences
        spans = spans[: self.max_sentences]
        random = document_random(seed, text)
        n_gaps = count_gaps(len(spans), random.uniform(*self.gap_ratio))
        selected = select_sentences(
            [text[begin:end] for begin, end in spans],
            n_gaps,
            self.strategy,
            random=random,
            importance_noise=self.importance_noise,
        )
        masked = [i for i, draw in zip(selected, random.random(n_gaps), strict=True) if draw >= self.unmasked_share]
        return Example(_replace(text, spans, masked), _extract(text, spans, selected), cut)


def split_words(text: str) -> list[str]:
    """Return the words of a text as rouge-score sees them without its stemmer."""
    return _WORD.findall(text.lower())


def count_gaps(n_sentences: int, ratio: float) -> int:
    """Return how many of ``n_sentences`` >= 2 are selected: the share rounded, but at least one, and not all of them."""
    if n_sentences < 2:
        raise ValueError(f"{n_sentences} sentences: with fewer than 2 there is nothing left to write the gaps from")
    return min(max(1, int(ratio * n_sentences + 0.5)), n_sentences - 1)


def select_sentences(
    sentences: Sequence[str],
    n_gaps: int,
    strategy: Strategy = "ind-orig",
    *,
    random: np.random.Generator | None = None,
    importance_noise: float = 0.0,
) -> list[int]:
    """Return the positions of ``n_gaps`` of the sentences, ascending.

    "ind" takes the best by the ROUGE1-F1 of each alone against all others; "seq" adds, one by one, the sentence with
    which the selection has the highest ROUGE1-F1 against what is left. "orig" counts a word as often as it occurs,
    "uniq" once. "lead" takes the first, "random" any. Ties go to the earlier sentence. "seq" looks at every word
    ``n_gaps`` times.

    Raises ValueError for an unknown strategy, for more gaps than sentences, and where a random draw is needed and
    ``random`` is not given.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown strategy {strategy!r}: choose one of {', '.join(STRATEGIES)}")
    if not 0 <= n_gaps <= len(sentences):
        raise ValueError(f"cannot select {n_gaps} of {len(sentences)} sentences")
    if random is None and (strategy == "random" or importance_noise):
        raise ValueError(f"strategy {strategy!r} with importance noise {importance_noise} draws: give it a generator")
    if strategy == "lead":
        return list(range(n_gaps))
    if strategy == "random":
        assert random is not None
        return sorted(random.permutation(len(sentences))[:n_gaps].tolist())
    order, counting = strategy.split("-")
    importance = Importance([split_words(sentence) for sentence in sentences], unique=counting == "uniq")
    factors = np.ones(len(sentences))
    if random is not None and importance_noise:
        factors = random.uniform(1 - importance_noise, 1 + importance_noise, len(sentences))
    if order == "ind":
        return sorted(np.argsort(-importance.scores() * factors, kind="stable")[:n_gaps].tolist())
    selected: list[int] = []
    for _ in range(n_gaps):
        scores = importance.scores() * factors
        scores[selected] = -1.0
        selected.append(int(scores.argmax()))
        importance.add(selected[-1])
    return sorted(selected)


class Importance:
    """ROUGE1-F1 of a growing selection of sentences against the rest of their document, for each that may join it.

    With o words in common, precision o/|S| and recall o/|R| make F1 = 2o / (|S| + |R|). Counting repetitions, |S| + |R|
    is the length of the document; counting sets, it is the document's vocabulary plus o. So F1 follows from o, and o from
    two integers for each word: how often it is selected and how often it occurs at all.
    """

    def __init__(self, sentences: Sequence[Sequence[str]], *, unique: bool) -> None:
        """Take the words of every sentence; nothing is selected yet."""
        ids: dict[str, int] = {}
        words, counts, ends = [], [], []
        for sentence in sentences:
            for word, count in Counter(sentence).items():
                words.append(ids.setdefault(word, len(ids)))
                counts.append(1 if unique else count)
            ends.append(len(words))
        self._words = np.array(words, dtype=np.int64)  # [entries]: each sentence's distinct words, one after the other
        self._counts = np.array(counts, dtype=np.int64)  # [entries]
        self._bounds = np.array([0, *ends], dtype=np.int64)  # [n + 1]: where each sentence's entries begin and end
        self._owners = np.repeat(np.arange(len(sentences)), np.diff(self._bounds))  # [entries]: the sentence
        self._occurs = np.bincount(self._words, self._counts, len(ids)).astype(np.int64)[self._words]  # [entries]
        self._selected = np.zeros(len(ids), dtype=np.int64)  # [V]: how often each word is selected
        self._unique = unique
        self._size = len(ids) if unique else int(self._counts.sum())
        self._overlap = 0  # words in common between the selection and the rest

    def scores(self) -> np.ndarray:
        """Return F1, float64 [n], of the selection with each sentence; meaningless for those that are in it."""
        overlap = self._overlap + self._gains(slice(None), self._owners, len(self._bounds) - 1)
        return 2 * overlap / np.maximum(1, self._size + overlap if self._unique else self._size)

    def add(self, sentence: int) -> None:
        """Select a sentence."""
        entries = slice(self._bounds[sentence], self._bounds[sentence + 1])
        self._overlap += int(self._gains(entries, np.zeros_like(self._owners[entries]), 1)[0])
        self._selected[self._words[entries]] += self._counts[entries]

    def _gains(self, entries: slice, owners: np.ndarray, n: int) -> np.ndarray:
        """Return by how much the words in common grow if entries are selected, float64 [n], summed by owner."""
        before = self._selected[self._words[entries]]
        occurs = self._occurs[entries]
        gained = self._shared(before + self._counts[entries], occurs) - self._shared(before, occurs)
        return np.bincount(owners, gained, n)

    def _shared(self, selected: np.ndarray, occurs: np.ndarray) -> np.ndarray:
        """Return how often a word is in common that is selected so often and occurs so often."""
        shared = np.minimum(selected, occurs - selected)
        return np.minimum(shared, 1) if self._unique else shared


def _replace(text: str, spans: Sequence[tuple[int, int]], masked: Sequence[int]) -> str:
    """Return the text, to the end of the last span, with the mask in the place of some sentences."""
    parts, at = [], 0
    for i in masked:
        begin, end = spans[i]
        parts += [text[at:begin], SENTENCE_MASK]
        at = end
    return "".join([*parts, text[at : spans[-1][1]]]).strip()


def _extract(text: str, spans: Sequence[tuple[int, int]], selected: Sequence[int]) -> str:
    """Return some sentences, each with the white space behind it, as one text."""
    ends = [begin for begin, _ in spans[1:]] + [spans[-1][1]]
    return "".join(text[spans[i][0] : ends[i]] for i in selected).strip()
