"""A comparison as one HTML page that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np

from pegasus_batch.evaluation.comparison import Difference, format_difference, format_number, row_differences
from pegasus_batch.evaluation.histogram import draw_histogram
from pegasus_batch.evaluation.inputs import Documents
from pegasus_batch.evaluation.measures import MEASURES, Output
from pegasus_batch.evaluation.rouge import ROUGE_TYPES
from pegasus_batch.evaluation.words import facts, find_words, forms, normalize, spellings, words
from pegasus_batch.sentences import NEWLINE

# The policy makes the browser refuse what the page must not have: scripts, and anything from elsewhere.
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --text: #1d2329; --soft: #5b6670; --line: #d5dbe0; --page: #fff; --card: #f6f8f9;
  --novel: #fff0b8; --wrong: #b3261e; --up: #1b7f5c; --down: #b3261e; --link: #1a5fb4 }}
@media (prefers-color-scheme: dark) {{ :root {{ --text: #e4e8eb; --soft: #9aa6b0; --line: #3a444d; --page: #14181c;
  --card: #1d2329; --novel: #574a12; --wrong: #ff9c94; --up: #5fd0a5; --down: #ff9c94; --link: #8ab8ff }} }}
body {{ margin: 0 auto; max-width: 62rem; padding: 1rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif }}
h1 {{ font-size: 1.4rem; overflow-wrap: anywhere }} h2 {{ font-size: 1.15rem; margin-top: 2.2rem }}
h3 {{ font-size: 1rem; margin: 0; overflow-wrap: anywhere }}
a {{ color: var(--link) }} nav a {{ margin-right: 1.2rem }}
:focus-visible {{ outline: 3px solid var(--link); outline-offset: 2px }}
.wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }}
th, td {{ padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }}
th:first-child {{ text-align: left }} thead th {{ border-bottom-width: 2px }} .sure {{ font-weight: 700 }}
.plots {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem }}
figure {{ margin: 0 }} figcaption, .soft {{ color: var(--soft); font-size: .88rem }}
svg {{ width: 100%; height: auto }} svg text {{ fill: var(--soft); font-size: 11px }}
.up {{ fill: var(--up) }} .down {{ fill: var(--down) }} .even {{ fill: var(--soft) }} .axis {{ stroke: var(--soft) }}
article {{ background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem 1rem;
  margin: .8rem 0 }}
dl {{ margin: .5rem 0; display: grid; grid-template-columns: 7rem 1fr; gap: .3rem .8rem }}
dt {{ color: var(--soft) }} dd {{ margin: 0 }} dd, .source {{ white-space: pre-line; overflow-wrap: anywhere }}
@media (max-width: 34rem) {{ dl {{ grid-template-columns: 1fr }} }}
summary {{ cursor: pointer; color: var(--soft) }} details .plots {{ margin-top: .8rem }} .source {{ margin: .4rem 0 }}
mark {{ background: var(--novel); color: inherit; border-radius: .2rem; padding: 0 .1rem }}
mark.wrong {{ color: var(--wrong); font-weight: 600; text-decoration: underline wavy }}
</style>
</head>
"""


def write_page(
    path: str | Path,
    documents: Documents,
    system: Output,
    baseline: Output,
    differences: Sequence[Difference],
    *,
    sort_by: str = "rougeL",
    n_examples: int = 20,
    seed: int = 0,
) -> None:
    """Write a comparison to ``path``: its table, a histogram of each measure's differences, and paired examples.

    The examples are the ``n_examples`` documents on which the system is furthest above the baseline by the measure
    ``sort_by``, as many furthest below, and as many drawn at random with ``seed``. Raises ValueError for a measure that
    was not taken, and OSError where ``path`` cannot be written.
    """
    known = [row.measure.name for row in differences]
    if sort_by not in known:
        raise ValueError(f"cannot sort examples by {sort_by!r}; the measures taken are {', '.join(known)}")
    gaps = row_differences(system, baseline, sort_by)
    above, below, drawn = choose_examples(gaps, n_examples, seed)
    title = escape(f"{system.name} against {baseline.name}")
    measure = escape(MEASURES[sort_by].title)
    sections = (
        ("above", "System above", f"System furthest above the baseline in {measure}", above),
        ("below", "System below", f"System furthest below the baseline in {measure}", below),
        ("sample", "Sample", f"A random sample, seed {seed}", drawn),
    )
    parts = [
        _HEAD.format(title=title),
        f"<body>\n<header>\n<h1>{title}</h1>\n<p>{len(documents.texts):,} documents. System: {escape(system.name)}. "
        f"Baseline: {escape(baseline.name)}.</p>\n",
        '<nav aria-label="Sections"><a href="#measures">Measures</a><a href="#differences">Differences</a>',
        *(f'<a href="#{anchor}">{link} ({len(rows)})</a>' for anchor, link, _, rows in sections),
        "</nav>\n</header>\n<main>\n",
        _table(differences),
        _plots(system, baseline, differences),
        '<p class="soft">In the summaries below, <mark>marked</mark> words are not in the source; '
        '<mark class="wrong">underlined</mark> ones are numbers or names among them.</p>\n',
    ]
    for anchor, _, heading, rows in sections:
        parts.append(f'<section id="{anchor}">\n<h2>{heading}</h2>\n')
        parts += [_example(documents, system, baseline, i, gaps[i], measure) for i in rows]
        parts.append("</section>\n" if rows else '<p class="soft">There are none.</p>\n</section>\n')
    parts.append("</main>\n</body>\n</html>\n")
    # A lone surrogate in an id or text has no UTF-8 form; it must not cost the whole report.
    Path(path).write_text("".join(parts), encoding="utf-8", errors="replace")


def choose_examples(gaps: np.ndarray, n: int, seed: int) -> tuple[list[int], list[int], list[int]]:
    """Return the rows furthest above zero, furthest below, and drawn at random, at most ``n`` each.

    gaps float64 [B]; NaN, where a summary has no value, is neither above nor below. Equal gaps keep the order of rows.
    """
    order = np.argsort(-gaps, kind="stable")
    above = [int(i) for i in order if gaps[i] > 0][:n]
    below = [int(i) for i in np.argsort(gaps, kind="stable") if gaps[i] < 0][:n]
    drawn = np.random.default_rng(seed).choice(len(gaps), size=min(n, len(gaps)), replace=False)
    return above, below, sorted(int(i) for i in drawn)


def mark_novel(summary: str, source: str) -> str:
    """Return a summary as escaped HTML in which words that the source lacks are marked, numbers and names of them twice."""
    known, known_forms = set(words(source)), spellings(source)
    text = summary.replace(NEWLINE, "\n")
    claimed = {word for word in facts(text) if not forms(word) & known_forms}
    parts, end = [], 0
    for match in find_words(text):
        word = match[0]
        parts.append(escape(text[end : match.start()]))
        if word in claimed:
            parts.append(f'<mark class="wrong">{escape(word)}</mark>')
        elif normalize(word) not in known:
            parts.append(f"<mark>{escape(word)}</mark>")
        else:
            parts.append(escape(word))
        end = match.end()
    return "".join(parts) + escape(text[end:])


def _table(differences: Sequence[Difference]) -> str:
    rows = []
    for row in differences:
        cells = [format_number(row.system), format_number(row.baseline)]
        shares = [format_number(share, 1) for share in (row.wins, row.ties, row.losses)]
        rows.append(
            f'<tr><th scope="row">{escape(row.measure.label)}</th>{_cells(cells)}'
            f'<td class="{"sure" if row.is_sure else "open"}">{format_difference(row.difference)}</td>'
            f"{_cells([*shares, f'{row.n_rows:,}'])}</tr>\n"
        )
    titles = ("measure", "system", "baseline", "difference [95 %]", "wins %", "ties %", "losses %", "documents")
    return (
        '<section id="measures">\n<h2>Measures</h2>\n<p class="soft">Means over the documents where both have a value. ↑ '
        "higher is better, ↓ lower is better; without an arrow a win is the higher value. Bold: the interval of the "
        'difference, by a paired bootstrap, leaves out zero.</p>\n<div class="wide" tabindex="0" role="region" '
        'aria-label="Measures">\n<table>\n<thead><tr>'
        + "".join(f'<th scope="col">{title}</th>' for title in titles)
        + f"</tr></thead>\n<tbody>\n{''.join(rows)}</tbody>\n</table>\n</div>\n</section>\n"
    )


def _cells(values: Iterable[str]) -> str:
    return "".join(f"<td>{value}</td>" for value in values)


def _plots(system: Output, baseline: Output, differences: Sequence[Difference]) -> str:
    scores: list[str] = []
    others: list[str] = []
    for row in differences:
        gaps = row_differences(system, baseline, row.measure.name)
        plot = draw_histogram(gaps[~np.isnan(gaps)], row.measure.title, row.measure.better)
        (scores if row.measure.name in ROUGE_TYPES else others).append(plot)
    more = (
        f'<details>\n<summary>All other measures</summary>\n<div class="plots">\n{"".join(others)}</div>\n</details>\n'
    )
    return (
        '<section id="differences">\n<h2>Differences by document</h2>\n<p class="soft">System minus baseline, documents '
        f'counted by bin.</p>\n<div class="plots">\n{"".join(scores)}</div>\n{more if others else ""}</section>\n'
    )


def _example(documents: Documents, system: Output, baseline: Output, i: int, gap: float, measure: str) -> str:
    text, reference = (values[i].replace(NEWLINE, "\n") for values in (documents.texts, documents.references))
    shown = []
    for role, output in (("System", system), ("Baseline", baseline)):
        summary = output.summaries[i]
        body = "<em>no summary</em>" if summary is None else mark_novel(summary, text)
        shown.append(f'<dt>{role}</dt><dd dir="auto">{body}</dd>\n')
    change = "" if np.isnan(gap) else f' <span class="soft">{measure} {gap:+.1f}</span>'
    names = [name for name in MEASURES if name in system.values and name in baseline.values]
    scores = "".join(
        f'<tr><th scope="row">{escape(MEASURES[name].label)}</th>'
        f"{_cells(format_number(output.values[name][i]) for output in (system, baseline))}</tr>\n"
        for name in names
    )
    return (
        f"<article>\n<h3>{escape(str(documents.ids[i]))}{change}</h3>\n<dl>\n{''.join(shown)}"
        f'<dt>Reference</dt><dd dir="auto">{escape(reference)}</dd>\n</dl>\n'
        f'<details>\n<summary>Source, {len(words(text)):,} words</summary>\n<p class="source" dir="auto">'
        f"{escape(text)}</p>\n</details>\n<details>\n<summary>Scores</summary>\n<table>\n"
        '<thead><tr><th scope="col">measure</th><th scope="col">system</th><th scope="col">baseline</th></tr></thead>\n'
        f"<tbody>\n{scores}</tbody>\n</table>\n</details>\n</article>\n"
    )
