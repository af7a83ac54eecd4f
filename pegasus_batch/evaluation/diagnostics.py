"""What summaries are like beside their sources, without a reference: copying, length, repetition, invented facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pegasus_batch.evaluation.words import facts, forms, ngrams, spellings, words

NOVEL_SIZES = (1, 2, 3, 4)
REPEATED_SIZES = (1, 3)
DIAGNOSTICS = (
    *(f"novel{n}" for n in NOVEL_SIZES),
    "coverage",
    "density",
    "compression",
    "length",
    *(f"repeated{n}" for n in REPEATED_SIZES),
    "unsupported",
    "any_unsupported",
)


@dataclass(frozen=True)
class Diagnostics:
    """Measures of one system's summaries, row by row.

    ``values`` holds a float64 [B] for every name in DIAGNOSTICS, NaN where a measure is undefined; ``unsupported`` holds
    the numbers and names of each summary that its source does not have.
    """

    values: dict[str, np.ndarray]
    unsupported: list[list[str]]


class Source:
    """A document, indexed once for all the summaries that are measured against it."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.words = words(text)
        self._places: dict[str, list[int]] = {}
        for place, word in enumerate(self.words):
            self._places.setdefault(word, []).append(place)

    @cached_property
    def spellings(self) -> set[str]:
        """Every form of every word, for numbers and names."""
        return spellings(self._text)

    def fragments(self, summary: Sequence[str]) -> list[tuple[int, int]]:
        """Return the (start, length) of the pieces of ``summary`` that are copied from the document, words in, greedily.

        This is F(A, S) of Grusky et al. 2018 (arXiv 1804.11283, section 4, figure 1), to its detail that a search goes on
        behind a match, not inside it. Only the places of the next word are visited instead of the whole document.
        """
        found = []
        start = 0
        while start < len(summary):
            longest = searched = 0
            for place in self._places.get(summary[start], ()):
                if place < searched:
                    continue
                length = self._match(summary, start, place, len(summary) - start)
                longest = max(longest, length)
                searched = place + length
            if longest:
                found.append((start, longest))
            start += max(longest, 1)
        return found

    def reaches(self, summary: Sequence[str], cap: int) -> list[int]:
        """Return, for each place in ``summary``, how many words from there on occur together in the document, up to ``cap``.

        An n-gram of the summary is in the document where this is n or more, which spares a set of the document's n-grams.
        """
        found = []
        for start, word in enumerate(summary):
            most = min(cap, len(summary) - start)
            longest = 0
            for place in self._places.get(word, ()):
                longest = max(longest, self._match(summary, start, place, most))
                if longest == most:
                    break
            found.append(longest)
        return found

    def _match(self, summary: Sequence[str], start: int, place: int, most: int) -> int:
        length = 1
        longest = min(most, len(self.words) - place)
        while length < longest and summary[start + length] == self.words[place + length]:
            length += 1
        return length

    def unsupported(self, summary: str) -> tuple[list[str], int]:
        """Return the numbers and names of a summary that the document lacks, as written, and how many it has in all."""
        claimed = facts(summary)
        missing = [word for word in claimed if forms(word).isdisjoint(self._places)]
        # Most words stand in the document as they are; only for the others are all of its spellings worth their time.
        return [word for word in missing if not forms(word) & self.spellings], len(claimed)

    def measure(self, summary: str) -> tuple[list[float], list[str]]:
        """Return the values of DIAGNOSTICS, in that order, and the unsupported numbers and names."""
        tokens = words(summary)
        fragments = self.fragments(tokens)
        missing, n_facts = self.unsupported(summary)
        reaches = self.reaches(tokens, max(NOVEL_SIZES))
        novel = []
        for n in NOVEL_SIZES:
            starts = reaches[: max(len(tokens) - n + 1, 0)]
            novel.append(_percent(sum(reach < n for reach in starts), len(starts)))
        repeated = []
        for n in REPEATED_SIZES:
            grams = ngrams(tokens, n)
            repeated.append(_percent(len(grams) - len(set(grams)), len(grams)))
        values = [
            *novel,
            _percent(sum(length for _, length in fragments), len(tokens)),
            _ratio(sum(length**2 for _, length in fragments), len(tokens)),
            _ratio(len(self.words), len(tokens)),
            float(len(tokens)),
            *repeated,
            _percent(len(missing), n_facts),
            100.0 if missing else 0.0,
        ]
        return values, missing


def diagnose(texts: Sequence[str], systems: Mapping[str, Sequence[str | None]]) -> dict[str, Diagnostics]:
    """Measure every system's summaries of ``texts``; shares are percentages.

    novel1..4: share of the summary's n-grams that the source lacks. coverage, density: Grusky et al. 2018, equations 1
    and 2, the first as a percentage. compression: source words per summary word. length: words. repeated1, repeated3:
    share of words and trigrams that the summary has said before. unsupported: share of its numbers and names that the
    source lacks; any_unsupported: 100 for a summary with at least one.

    A share of nothing is NaN (the trigrams of two words, the names of a summary without any), as is every measure of a
    missing summary (None). Raises ValueError when lists differ in length.
    """
    for name, summaries in systems.items():
        if len(summaries) != len(texts):
            raise ValueError(f"{len(summaries)} summaries of {name} for {len(texts)} texts: they must pair up")
    tables = {name: np.full((len(DIAGNOSTICS), len(texts)), np.nan) for name in systems}
    unsupported: dict[str, list[list[str]]] = {name: [] for name in systems}
    for row, text in enumerate(texts):
        source = Source(text)
        for name, summaries in systems.items():
            summary = summaries[row]
            missing: list[str] = []
            if summary is not None:
                tables[name][:, row], missing = source.measure(summary)
            unsupported[name].append(missing)
    return {
        name: Diagnostics(dict(zip(DIAGNOSTICS, table, strict=True)), unsupported[name])
        for name, table in tables.items()
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _percent(part: float, whole: float) -> float:
    return 100.0 * _ratio(part, whole)
