"""A histogram as an inline SVG, coloured by a stylesheet's classes ``up``, ``down``, ``even`` and ``axis``."""

from __future__ import annotations

from html import escape

import numpy as np

N_BINS = 21  # odd: the middle bin lies around zero
_WIDTH, _HEIGHT, _TOP, _BOTTOM = 300, 120, 14, 18  # in the SVG's own units
_SMALLEST = 1e-9  # of an axis; below it is rounding, and no room for bins between neighbouring floats


def draw_histogram(differences: np.ndarray, title: str, better: int = 0) -> str:
    """Return a figure of how many of ``differences``, float64 [B] without NaN, lie in each of N_BINS bins around zero.

    The axis ends where 98 % of them lie within; what is beyond counts in the outermost bins. Bars on the side that
    ``better`` names (1, -1, or 0 for neither) are ``up``, those on the other ``down``. The caption says in words how many
    lie on each side.
    """
    counts, limit = count_bins(differences)
    below, above = int((differences < 0).sum()), int((differences > 0).sum())
    tallest = max(int(counts.max()), 1)
    step = _WIDTH / N_BINS
    floor = _HEIGHT - _BOTTOM
    bars = []
    for place, count in enumerate(counts):
        if count:
            side = int(np.sign(place - N_BINS // 2)) * better
            height = max((floor - _TOP) * int(count) / tallest, 1.0)  # one document must stay visible among thousands
            low, high = (2 * limit * edge / N_BINS - limit for edge in (place, place + 1))
            bars.append(
                f'<rect class="{("even", "up", "down")[side]}" x="{place * step + 1:.1f}" y="{floor - height:.1f}" '
                f'width="{step - 2:.1f}" height="{height:.1f}"><title>{low:+.3g} to {high:+.3g}: {count:,}</title></rect>'
            )
    caption = f"{escape(title)}: {above:,} above, {len(differences) - above - below:,} equal, {below:,} below"
    label = f"Histogram of differences, {caption}"
    return (
        f'<figure>\n<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">\n{"".join(bars)}\n'
        f'<line class="axis" x1="0" y1="{floor}" x2="{_WIDTH}" y2="{floor}"/>\n'
        f'<text x="0" y="{_HEIGHT - 4}">{-limit:+.3g}</text>'
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 4}" text-anchor="middle">0</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT - 4}" text-anchor="end">{limit:+.3g}</text>'
        f'<text x="0" y="10">{tallest:,}</text>\n</svg>\n<figcaption>{caption}</figcaption>\n</figure>\n'
    )


def count_bins(differences: np.ndarray) -> tuple[np.ndarray, float]:
    """Return int64 [N_BINS] counts over bins of equal width from -limit to limit, and the limit (1 for rounding alone)."""
    sizes = np.abs(differences)
    limit = float(np.percentile(sizes, 98)) if sizes.size else 0.0
    if limit < _SMALLEST:
        limit = float(sizes.max(initial=0.0))
    if limit < _SMALLEST:
        limit = 1.0
    counts, _ = np.histogram(np.clip(differences, -limit, limit), bins=N_BINS, range=(-limit, limit))
    return counts, limit
