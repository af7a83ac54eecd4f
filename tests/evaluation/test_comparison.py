from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pegasus_batch.evaluation.comparison import Difference, compare, render, row_differences
from pegasus_batch.evaluation.measures import Output, measure_outputs
from pegasus_batch.evaluation.report import describe_missing, describe_unsupported, render_diagnostics, render_rouge

TEXTS = ["Debian has an editor of maps. It is old.", "A game of stars. It is new.", "Tools for text, and more tools."]
REFERENCES = ["editor of maps", "game of stars", "tools for text"]
SYSTEM = ["editor of maps", "game by ACME", None]
BASELINE = ["Debian has an editor", "game by ACME", "tools for text"]


def outputs() -> tuple[Output, Output]:
    found = measure_outputs(TEXTS, REFERENCES, {"ours": SYSTEM, "theirs": BASELINE})
    return found["ours"], found["theirs"]


def output(name: str, **values: list[float]) -> Output:
    n = len(next(iter(values.values())))
    return Output(name, ["x"] * n, {key: np.array(column) for key, column in values.items()}, [[]] * n)


def by_name(rows: list[Difference]) -> dict[str, Difference]:
    return {row.measure.name: row for row in rows}


def test_wins_ties_and_losses_follow_the_better_side() -> None:
    ours = output("ours", rouge1=[50, 50, 50, 10], unsupported=[0, 0, 50, 50], length=[3, 4, 5, 6])
    theirs = output("theirs", rouge1=[40, 50, 60, 0], unsupported=[10, 10, 50, 0], length=[1, 4, 6, 9])
    rows = by_name(compare(ours, theirs, n_resamples=20))
    assert list(rows) == ["rouge1", "length", "unsupported"]
    assert (rows["rouge1"].wins, rows["rouge1"].ties, rows["rouge1"].losses) == (50, 25, 25)
    assert (rows["unsupported"].wins, rows["unsupported"].ties, rows["unsupported"].losses) == (50, 25, 25)
    assert (rows["length"].wins, rows["length"].losses) == (25, 50)
    assert rows["rouge1"].difference.mean == pytest.approx(rows["rouge1"].system - rows["rouge1"].baseline)


def test_only_documents_with_both_values_count() -> None:
    """A mean over one set of documents minus a mean over another is no difference between systems."""
    ours = output("ours", unsupported=[0, float("nan"), 30], rouge1=[float("nan")] * 3)
    theirs = output("theirs", unsupported=[10, 99, float("nan")], rouge1=[1, 2, 3])
    rows = by_name(compare(ours, theirs))
    assert (rows["unsupported"].n_rows, rows["unsupported"].system, rows["unsupported"].baseline) == (1, 0, 10)
    assert rows["rouge1"].n_rows == 0
    assert np.isnan([rows["rouge1"].system, rows["rouge1"].wins, rows["rouge1"].difference.mean]).all()


def test_the_interval_is_paired() -> None:
    """Systems that differ by one point everywhere do so surely, however much the documents differ."""
    scores = np.random.default_rng(0).uniform(0, 100, 50)
    (row,) = compare(output("a", rouge1=list(scores + 1)), output("b", rouge1=list(scores)))
    assert row.difference.low == pytest.approx(1) == row.difference.high
    assert row.is_sure and row.wins == 100
    noise = np.random.default_rng(1).normal(0, 20, 50)
    (row,) = compare(output("a", rouge1=list(scores + noise)), output("b", rouge1=list(scores)))
    assert not row.is_sure


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=20))
def test_swapping_the_systems_swaps_everything(pairs: list[tuple[float, float]]) -> None:
    one = output("one", rouge1=[first for first, _ in pairs])
    two = output("two", rouge1=[second for _, second in pairs])
    (there,) = compare(one, two, n_resamples=5)
    (back,) = compare(two, one, n_resamples=5)
    assert there.wins + there.ties + there.losses == pytest.approx(100)
    assert (there.wins, there.ties, there.losses) == (back.losses, back.ties, back.wins)
    assert there.difference.mean == pytest.approx(-back.difference.mean)
    assert there.difference.low == pytest.approx(-(back.difference.high or 0), abs=1e-9)
    (same,) = compare(one, one, n_resamples=5)
    assert (same.ties, same.difference.mean, same.is_sure) == (100, 0, False)


def test_a_missing_summary_loses_rouge_and_has_no_diagnostics() -> None:
    ours, theirs = outputs()
    rows = by_name(compare(ours, theirs))
    assert ours.values["rouge1"][2] == 0
    assert (rows["rouge1"].n_rows, rows["length"].n_rows) == (3, 2)
    assert np.isnan(row_differences(ours, theirs, "length")[2])


def test_unequal_and_empty_outputs_are_refused() -> None:
    with pytest.raises(ValueError, match="a has 1 summaries, b 2: only summaries of the same documents"):
        compare(output("a", rouge1=[1]), output("b", rouge1=[1, 2]))
    nothing = Output("a", [], {"rouge1": np.zeros(0)}, [])
    with pytest.raises(ValueError, match="hold no summaries"):
        compare(nothing, nothing)


def test_the_tables_hold_every_measure() -> None:
    ours, theirs = outputs()
    table = render(compare(ours, theirs, n_resamples=20), "[ours]", "theirs")
    assert [column.header for column in table.columns][:3] == ["measure", "system", "baseline"]
    assert len(table.rows) == 16
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(table)
    scores = {name: found.estimates(n_resamples=5) for name, found in (("[ours]", ours), ("theirs", theirs))}
    console.print(render_rouge(scores, "3 rows of [data]"))
    console.print(render_diagnostics(scores))
    text = console.export_text()
    for shown in ("[ours]", "against theirs", "3 rows of [data]", "ROUGE-Lsum ↑", "novel 4-grams %", "density"):
        assert shown in text
    assert "…" not in text


def test_the_rouge_table_shows_every_system() -> None:
    found = measure_outputs(TEXTS, REFERENCES, {"first": REFERENCES, "model": SYSTEM}, diagnostics=False)
    assert set(found["model"].values) == {"rouge1", "rouge2", "rougeL", "rougeLsum"}
    table = render_rouge({name: output.estimates(n_resamples=10) for name, output in found.items()}, "3 rows")
    assert [column.header for column in table.columns] == ["system", "ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum"]
    assert list(table.columns[0].cells) == ["first", "model"]
    assert next(iter(table.columns[1].cells)) == "100.00\n[100.0, 100.0]"


def test_invented_and_missing_summaries_are_told() -> None:
    ours, theirs = outputs()
    assert describe_unsupported(ours) == "not in the source, ours: ACME"
    assert describe_missing([ours, theirs]) == ["ours: 1 of 3 rows have no summary; their ROUGE is 0"]
    copies = measure_outputs(TEXTS, REFERENCES, {"copies": TEXTS})["copies"]
    assert describe_unsupported(copies) is None
    many = Output("many", ["x"], {}, [[f"A{i}" for i in range(20)] + ["A1"]])
    assert describe_unsupported(many, most=2) == "not in the source, many: A1 (2), A0 and 18 more"
