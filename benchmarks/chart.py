"""Tables in Markdown, and a line chart in SVG with a logarithmic x axis."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 420, 70, 190, 50, 60
COLOURS = ("#2563eb", "#16a34a", "#d97706", "#7c3aed", "#be123c", "#0f766e")
_STYLE = "text{font-family:Helvetica,Arial,sans-serif;font-size:13px;fill:#1c1917}.t{font-size:15px;font-weight:bold}"
_LABEL_GAP = 16.0


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table whose first column is aligned left and whose others right."""
    lines = [headers, ["---", *["---:"] * (len(headers) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def replace_table(path: Path, name: str, table: str) -> None:
    """Put a table between the two comments that name it in a page; add both where they are missing."""
    page = path.read_text(encoding="utf-8") if path.exists() else ""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    marked = f"{begin}\n{table}{end}"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    page = pattern.sub(lambda _: marked, page) if pattern.search(page) else f"{page}\n{marked}\n".lstrip()
    path.write_text(page, encoding="utf-8")


def line_chart(title: str, x_name: str, y_name: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Return an SVG of (x, y) points by series: x by its logarithm, y from zero, every line named at its end."""
    points = [point for line in series.values() for point in line]
    low, high = (math.log10(choose(x for x, _ in points)) for choose in (min, max))
    step = _round_up(max(y for _, y in points) / 5)
    top = step * math.ceil(max(y for _, y in points) / step)

    def x_at(x: float) -> float:
        return LEFT + (math.log10(x) - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT)

    def y_at(y: float) -> float:
        return HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM)

    right = WIDTH - RIGHT
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="{escape(title)}">',
        f'<style>{_STYLE}</style><rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text class="t" x="{LEFT}" y="26">{escape(title)}</text>',
        f'<text x="{(LEFT + right) / 2:.0f}" y="{HEIGHT - 14}" text-anchor="middle">{escape(x_name)}</text>',
        f'<text x="{LEFT}" y="{TOP - 8}" text-anchor="end">{escape(y_name)}</text>',
    ]
    for i in range(round(top / step) + 1):
        y = y_at(i * step)
        out.append(f'<path d="M{LEFT},{y:.1f} H{right}" stroke="#e7e5e4"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{i * step:,.0f}</text>')
    for x in sorted({x for x, _ in points}):
        out.append(f'<path d="M{x_at(x):.1f},{HEIGHT - BOTTOM} v5" stroke="#78716c"/>')
        out.append(f'<text x="{x_at(x):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{x:,.0f}</text>')
    label = math.inf
    coloured = zip(COLOURS, series.items(), strict=False)
    for colour, (name, line) in sorted(coloured, key=lambda entry: entry[1][1][-1][1]):
        path = " L".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in line)
        out.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="3.5" fill="{colour}"/>' for x, y in line]
        label = min(y_at(line[-1][1]) + 4, label - _LABEL_GAP)  # from below upwards, none over another
        text = f"{escape(name)}, {line[-1][1]:,.0f}"
        out.append(f'<text x="{right + 10}" y="{label:.1f}" style="fill:{colour}">{text}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def _round_up(value: float) -> float:
    """Return the next number of the form 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value * (1 - 1e-9))
