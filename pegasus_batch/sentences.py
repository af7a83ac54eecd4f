"""Where sentences end: the one definition for windows of long documents, gap sentences, baselines and ROUGE-Lsum."""

from __future__ import annotations

import re

NEWLINE = "<n>"  # how Google's Pegasus wrote a line end: its summaries of several sentences hold it literally
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[^a-z])")


def split_lines(text: str) -> list[str]:
    """Split at line ends and at Pegasus' ``<n>``; blank lines are dropped."""
    return [line.strip() for line in text.replace(NEWLINE, "\n").splitlines() if line.strip()]


def split_sentences(text: str) -> list[str]:
    """Split at line ends and after . ! ? before anything but a small letter: rough, and the same everywhere."""
    return [
        sentence.strip() for line in split_lines(text) for sentence in _SENTENCE_END.split(line) if sentence.strip()
    ]


def locate_sentences(text: str) -> list[tuple[int, int]]:
    """Return [begin, end) of every sentence, in order; only white space and ``<n>`` lie outside of them."""
    spans, end = [], 0
    for sentence in split_sentences(text):
        begin = text.index(sentence, end)
        end = begin + len(sentence)
        spans.append((begin, end))
    return spans
