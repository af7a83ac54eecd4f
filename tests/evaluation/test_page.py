"""The page of a comparison: what it shows, and that nothing in it comes from elsewhere or runs."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegasus_batch.evaluation.comparison import compare
from pegasus_batch.evaluation.histogram import N_BINS, count_bins, draw_histogram
from pegasus_batch.evaluation.inputs import Documents
from pegasus_batch.evaluation.measures import measure_outputs
from pegasus_batch.evaluation.page import choose_examples, mark_novel, write_page

EVIL = "<script>alert('x')</script> & \"quoted\" <img src=http://example.org/a.png onerror=x>"
TEXTS = [EVIL + " An editor of maps.", "A game of stars.<n>It is new.", "Tools for text, and more tools.", "Maps."]
REFERENCES = [EVIL, "game of stars", "tools for text", "maps"]
SYSTEM = ["editor of maps", "game by ACME & 2,000", None, "maps"]
BASELINE = [EVIL, "game<n>of stars", "tools for text", "maps"]
VOID = {"meta", "line", "rect", "br"}


class Checker(HTMLParser):
    """Raises on tags that do not close in order; keeps tags, attributes and the text outside the stylesheet."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:  # a rect has a title inside
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def parse(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert not checker.open
    return checker


def make_page(path: Path, **options: object) -> str:
    outputs = measure_outputs(TEXTS, REFERENCES, {f"ours {EVIL}": SYSTEM, "theirs": BASELINE})
    ours, theirs = outputs.values()
    documents = Documents(path, "id", ["<b>0</b>", 1, "two", "3\ud800"], TEXTS, REFERENCES)
    write_page(path, documents, ours, theirs, compare(ours, theirs, n_resamples=20), **options)  # type: ignore[arg-type]
    return path.read_text(encoding="utf-8")


def test_texts_are_shown_and_never_interpreted(tmp_path: Path) -> None:
    page = parse(make_page(tmp_path / "page.html"))
    assert not {"script", "img", "link", "iframe", "b"} & set(page.tags)
    assert "<script>alert('x')</script>" in page.text
    assert "<b>0</b>" in page.text
    assert "no summary" in page.text


def test_nothing_comes_from_elsewhere(tmp_path: Path) -> None:
    text = make_page(tmp_path / "page.html")
    page = parse(text)
    assert "default-src 'none'" in text
    for name, value in page.attributes:
        assert name not in {"src", "srcset", "style", "action"} and not name.startswith("on"), (name, value)
        assert name != "href" or (value or "").startswith("#")
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert "prefers-color-scheme: dark" in style


def test_links_lead_to_sections_and_ids_are_unique(tmp_path: Path) -> None:
    page = parse(make_page(tmp_path / "page.html"))
    anchors = [value for name, value in page.attributes if name == "id"]
    assert len(set(anchors)) == len(anchors)
    assert {(value or "")[1:] for name, value in page.attributes if name == "href"} == set(anchors)


def test_sources_and_scores_fold(tmp_path: Path) -> None:
    page = parse(make_page(tmp_path / "page.html"))
    n_examples = page.tags.count("article")
    assert page.tags.count("details") == page.tags.count("summary") == 2 * n_examples + 1
    assert page.tags.count("svg") == 16


def test_the_page_repeats(tmp_path: Path) -> None:
    assert make_page(tmp_path / "one.html", seed=3) == make_page(tmp_path / "two.html", seed=3)


def test_examples_are_limited_and_sorted_by_the_measure(tmp_path: Path) -> None:
    text = make_page(tmp_path / "page.html", sort_by="length", n_examples=1)
    above = text[text.index('id="above"') : text.index('id="below"')]
    assert re.findall(r"<h3>(.*?) <span", above) == ["1"]  # four words against three
    assert "length, words +1.0" in above
    with pytest.raises(ValueError, match="cannot sort examples by 'size'; the measures taken are rouge1"):
        make_page(tmp_path / "page.html", sort_by="size")


def test_words_that_the_source_lacks_are_marked() -> None:
    marked = mark_novel("A new game by ACME & 2,000 <stars><n>of Debian", "A game of stars from debian. It is old.")
    assert marked == (
        'A <mark>new</mark> game <mark>by</mark> <mark class="wrong">ACME</mark> &amp; <mark class="wrong">2,000</mark> '
        "&lt;stars&gt;\nof Debian"
    )


@given(st.text(max_size=40), st.text(max_size=40))
def test_marking_keeps_the_text(summary: str, source: str) -> None:
    checker = parse(f"<p>{mark_novel(summary, source)}</p>")
    seen, said = checker.text.replace("\r", "\n"), summary.replace("<n>", "\n").replace("\r", "\n")
    assert seen == said
    assert "<mark" not in mark_novel(summary, summary)


@given(st.lists(st.floats(-100, 100) | st.just(float("nan")), min_size=1, max_size=30), st.integers(0, 12))
def test_examples_are_the_furthest(values: list[float], n: int) -> None:
    gaps = np.array(values)
    above, below, drawn = choose_examples(gaps, n, seed=1)
    assert [gaps[i] for i in above] == sorted((gap for gap in values if gap > 0), reverse=True)[:n]
    assert [gaps[i] for i in below] == sorted(gap for gap in values if gap < 0)[:n]
    assert len(drawn) == len(set(drawn)) == min(n, len(values))
    assert drawn == choose_examples(gaps, n, seed=1)[2]


@given(st.lists(st.floats(-1e6, 1e6), max_size=50), st.sampled_from([-1, 0, 1]))
def test_a_histogram_counts_everyone(values: list[float], better: int) -> None:
    counts, limit = count_bins(np.array(values))
    assert (len(counts), counts.sum()) == (N_BINS, len(values))
    assert limit > 0
    figure = parse(draw_histogram(np.array(values), "a & b", better))
    assert figure.tags.count("rect") == np.count_nonzero(counts)
    assert f"a & b: {sum(value > 0 for value in values):,} above" in figure.text


def test_bars_are_coloured_by_the_better_side() -> None:
    values = np.array([-10.0, 10.0])
    classes = [re.findall(r'rect class="(\w+)"', draw_histogram(values, "x", better)) for better in (1, -1, 0)]
    assert classes == [["down", "up"], ["up", "down"], ["even", "even"]]
