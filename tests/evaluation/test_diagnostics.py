from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegasus_batch.evaluation.diagnostics import DIAGNOSTICS, Source, diagnose
from pegasus_batch.evaluation.measures import MEASURES
from pegasus_batch.evaluation.rouge import first_sentence
from pegasus_batch.evaluation.tables import read_columns
from pegasus_batch.evaluation.words import ngrams, words

SOURCE = "Debian has an editor of maps. The editor reads 1,000 maps of stars, and writes them in 2.0."


def measure(source: str, summary: str | None) -> dict[str, float]:
    values = diagnose([source], {"system": [summary]})["system"].values
    return {name: float(column[0]) for name, column in values.items()}


def fragments_of_the_paper(article: Sequence[str], summary: Sequence[str]) -> list[tuple[int, int]]:
    """Figure 1 of Grusky et al. 2018, line by line, with places from 0 instead of 1."""
    found = []
    i = j = 0
    while i < len(summary):
        fragment = 0
        while j < len(article):
            if summary[i] == article[j]:
                i_end, j_end = i, j
                while i_end < len(summary) and j_end < len(article) and summary[i_end] == article[j_end]:
                    i_end, j_end = i_end + 1, j_end + 1
                if fragment < i_end - i:
                    fragment = i_end - i
                j = j_end
            else:
                j += 1
        if fragment:
            found.append((i, fragment))
        i, j = i + max(fragment, 1), 0
    return found


tokens = st.lists(st.sampled_from("abcd"), max_size=40)


@given(tokens, tokens)
def test_fragments_are_those_of_the_paper(article: list[str], summary: list[str]) -> None:
    assert Source(" ".join(article)).fragments(summary) == fragments_of_the_paper(article, summary)


@given(tokens, tokens)
def test_novel_ngrams_are_those_that_the_source_lacks(article: list[str], summary: list[str]) -> None:
    values = measure(" ".join(article), " ".join(summary))
    for n in (1, 2, 3, 4):
        there = set(ngrams(article, n))
        novel = [gram not in there for gram in ngrams(summary, n)]
        expected = 100 * sum(novel) / len(novel) if novel else float("nan")
        assert values[f"novel{n}"] == pytest.approx(expected, nan_ok=True)


def test_coverage_and_density_are_those_of_the_paper_on_real_texts() -> None:
    data = Path(__file__).parents[2] / "data" / "debian_synopses" / "test.parquet"
    texts, summaries = (values[:200] for values in read_columns(data, ["document", "summary"]))
    values = diagnose(texts, {"system": summaries})["system"].values
    for i, (text, summary) in enumerate(zip(texts, summaries, strict=True)):
        sizes = [length for _, length in fragments_of_the_paper(words(text), words(summary))]
        assert values["coverage"][i] == pytest.approx(100 * sum(sizes) / len(words(summary)))
        assert values["density"][i] == pytest.approx(sum(size * size for size in sizes) / len(words(summary)))


def test_known_values() -> None:
    """Worked by hand: "an editor of maps" and "the editor" are copied, "by" and "a cat" are not."""
    values = measure(SOURCE, "An editor of maps by the editor, a cat")
    assert values["length"] == 9
    assert values["compression"] == pytest.approx(18 / 9)
    assert values["novel1"] == pytest.approx(100 * 3 / 9)
    assert values["novel2"] == pytest.approx(100 * 4 / 8)  # maps by, by the, editor a, a cat
    assert values["novel3"] == pytest.approx(100 * 5 / 7)
    assert values["novel4"] == pytest.approx(100 * 5 / 6)
    assert values["coverage"] == pytest.approx(100 * 6 / 9)
    assert values["density"] == pytest.approx((4**2 + 2**2) / 9)
    assert values["repeated1"] == pytest.approx(100 * 1 / 9)  # the second editor
    assert values["repeated3"] == 0


def test_repetition_counts_what_was_said_before() -> None:
    assert measure(SOURCE, "the map of the map of the map of")["repeated3"] == pytest.approx(100 * 4 / 7)


def test_the_first_sentence_is_a_copy() -> None:
    values = measure(SOURCE, first_sentence(SOURCE))
    assert (values["coverage"], values["novel1"], values["novel4"], values["any_unsupported"]) == (100, 0, 0, 0)
    assert values["density"] == values["length"] == 6


def test_invented_numbers_and_names_are_listed() -> None:
    found = diagnose([SOURCE], {"system": ["Editor by ACME for DEBIAN reads 1000 maps, version 2.1, of Mars"]})[
        "system"
    ]
    assert found.unsupported == [["ACME", "2.1", "Mars"]]
    assert found.values["unsupported"][0] == pytest.approx(100 * 3 / 5)
    assert found.values["any_unsupported"][0] == 100


def test_what_is_undefined_is_nan() -> None:
    short = measure(SOURCE, "an editor")
    assert np.isnan([short["novel3"], short["repeated3"], short["unsupported"]]).all()
    assert short["any_unsupported"] == 0
    empty = measure(SOURCE, "")
    assert empty["length"] == 0
    assert np.isnan([empty["coverage"], empty["compression"], empty["novel1"]]).all()
    assert np.isnan(list(measure(SOURCE, None).values())).all()
    assert measure("", "an editor")["coverage"] == 0


@given(st.text(max_size=80), st.text(max_size=40))
def test_any_two_texts_can_be_measured(text: str, summary: str) -> None:
    values = measure(text, summary)
    for name, value in values.items():
        if MEASURES[name].title.endswith("%") and not np.isnan(value):
            assert 0 <= value <= 100, name
    if not np.isnan(values["coverage"]):
        assert values["coverage"] + values["novel1"] == pytest.approx(100)  # a word in the source is in a fragment
        assert values["density"] <= values["length"]


@given(st.lists(st.sampled_from(["maps", "of", "Debian", "1,000", "stars"]), min_size=1, max_size=30), st.data())
def test_a_copied_piece_is_one_fragment(article: list[str], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(article) - 1))
    end = data.draw(st.integers(start + 1, len(article)))
    values = measure(" ".join(article), " ".join(article[start:end]))
    assert values["coverage"] == 100
    assert values["novel1"] == 0
    assert np.isnan(values["unsupported"]) or values["unsupported"] == 0


def test_repetitive_texts_do_not_take_cubic_time() -> None:
    """Every word matches every other: the paper's search as written would visit 10^9 pairs here."""
    source = Source("the " * 20_000)
    start = time.perf_counter()
    assert source.fragments(["the"] * 2000 + ["cat"]) == [(0, 2000)]
    assert source.fragments(["the", "cat"] * 300) == [(2 * i, 1) for i in range(300)]
    assert time.perf_counter() - start < 20


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="1 summaries of ours for 2 texts"):
        diagnose(["a", "b"], {"ours": ["a"]})


def test_every_measure_has_a_title() -> None:
    assert set(DIAGNOSTICS) < set(MEASURES)
