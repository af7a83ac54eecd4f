from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegasus_batch.evaluation.words import facts, forms, ngrams, spellings, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A command-line tool.", ["a", "command", "line", "tool"]),
        ("Costs 1,000.50 of 2,000,000", ["costs", "1000.50", "of", "2000000"]),
        ("Version 2.0.1, or 3.x; 1,2 and 1,2345", ["version", "2.0.1", "or", "3", "x", "1", "2", "and", "1", "2345"]),
        ("It doesn’t, it don't", ["it", "doesn't", "it", "don't"]),
        ("Straße<n>ÉTÉ", ["strasse", "été"]),
        ("... -- !", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(st.text(max_size=60))
def test_any_text_has_words_without_space_or_capitals(text: str) -> None:
    for word in words(text):
        assert word == word.casefold()
        assert not any(letter.isspace() for letter in word)


@given(st.lists(st.sampled_from("abc"), max_size=8), st.integers(1, 4))
def test_ngrams_are_the_slices(tokens: list[str], n: int) -> None:
    assert ngrams(tokens, n) == [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        ("Editor for Debian and GNOME", ["Debian", "GNOME"]),
        ("GNOME editor. Made in Zürich. It works.", ["GNOME", "Zürich"]),  # made by position, GNOME by its capitals
        ("plays H.264 on x86 since 1999", ["H.264", "x86", "1999"]),
        ("JavaScript on iOS, I think, and I'm sure", ["JavaScript", "iOS"]),
        ("One line<n>Another Line", ["Line"]),
        ("nothing to see", []),
    ],
)
def test_numbers_and_names(summary: str, expected: list[str]) -> None:
    assert facts(summary) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1,000", "1000"),
        ("DEBIAN", "Debian"),
        ("Debian's", "debian"),
        ("Debian’s", "Debian"),
        ("APIs", "API"),
        ("v2.0", "2.0"),
        ("3rd", "third"),
        ("3", "Three"),
    ],
)
def test_spellings_of_the_same(one: str, other: str) -> None:
    assert forms(one) & forms(other)
    assert forms(one) & spellings(f"It has {other}, too.")


@pytest.mark.parametrize(
    ("one", "other"), [("1,000", "1.000"), ("2.0", "2.0.1"), ("1000", "100"), ("C", "CSS"), ("GNU", "GNOME")]
)
def test_spellings_of_different_things(one: str, other: str) -> None:
    assert not forms(one) & forms(other)
