"""The words of a text, and those of them that a summary must not make up: numbers and names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from pegasus_batch.sentences import NEWLINE, split_sentences

# A number keeps its point and its groups of three digits; everything else ends at the first sign that is not of a word,
# so that command-line equals command line.
_WORD = re.compile(r"\w+(?:['’](?=\w)\w+|\.(?=\d)\w+|,\d{3}(?!\w))*")
_GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_ORDINAL = re.compile(r"(\d+)(?:st|nd|rd|th)")
_FIRST_PERSON = re.compile(r"I(?:['’]\w+)?")
_SPELLED = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
_DIGITS = {word: str(i) for i, word in enumerate(_SPELLED)} | {word: str(i) for i, word in enumerate(_ORDINALS, 1)}


def find_words(text: str) -> Iterator[re.Match[str]]:
    """Yield every word with its place; ``<n>`` must have been replaced by a line end."""
    return _WORD.finditer(text)


@lru_cache(maxsize=1 << 16)  # few words make up most of a corpus
def normalize(word: str) -> str:
    """Fold case and apostrophes, and write 1,000 as 1000: the form in which words are compared."""
    return word.replace(",", "") if _GROUPED.fullmatch(word) else word.replace("’", "'").casefold()


def words(text: str) -> list[str]:
    """Return the words in comparable form: of letters, digits and underscores, with 3.14, 1,000 and don't kept whole."""
    return list(map(normalize, _WORD.findall(text.replace(NEWLINE, "\n"))))


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return every run of ``n`` tokens, in order; none for a shorter text."""
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


def facts(text: str) -> list[str]:
    """Return the words, as written, whose invention would be an error: numbers and names, in order.

    A number is a word with a digit, such as 1,000, 2.0.1 or x86. A name is a word with two capitals (an acronym, or
    JavaScript), or a capitalised one that does not begin a sentence; "I" is none. Headlines in which every word is
    capitalised yield more than their names.
    """
    found = []
    for sentence in split_sentences(text):
        for place, word in enumerate(_WORD.findall(sentence)):
            capitals = sum(letter.isupper() for letter in word)
            named = capitals > 1 or (place > 0 and word[0].isupper() and not _FIRST_PERSON.fullmatch(word))
            if named or any(letter.isdigit() for letter in word):
                found.append(word)
    return found


@lru_cache(maxsize=1 << 16)
def forms(word: str) -> frozenset[str]:
    """Return the spellings under which a number or name counts as the same.

    Case, a possessive, a plural s, the v of v2.0 and the ending of 3rd are ignored, and three is 3.
    """
    bare = re.sub(r"['’]s?$", "", word)
    found = {normalize(bare)}
    if len(bare) > 2 and bare.endswith("s"):
        found.add(normalize(bare[:-1]))
    folded = normalize(bare)
    if folded[:1] == "v" and folded[1:2].isdigit():
        found.add(folded[1:])
    if ordinal := _ORDINAL.fullmatch(folded):
        found.add(ordinal[1])
    if folded in _DIGITS:
        found.add(_DIGITS[folded])
    return frozenset(found)


def spellings(text: str) -> set[str]:
    """Return every form of every word of a text: what its summaries may say."""
    found: set[str] = set()
    return found.union(*map(forms, set(_WORD.findall(text.replace(NEWLINE, "\n")))))
