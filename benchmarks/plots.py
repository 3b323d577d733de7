"""Plots as SVG: lines over two axes, readable on a light and on a dark page.

Called by `page`. Knows nothing of what is plotted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from xml.sax.saxutils import escape

from figures import Plot, number

WIDTH, HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 240, 40, 50
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999999", "#ee8866", "#44aa99")
_STYLE = "text{font:12px sans-serif;fill:#767676}.t{font-size:15px}path{fill:none;stroke-width:2}.g{stroke:#8884}"

Scale = Callable[[float], float]


def svg(plot: Plot) -> str:
    """Return *plot* as a whole SVG document."""
    points = [point for line in plot.lines.values() for point in line]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    across = _scale(min(xs), max(xs), _LEFT, WIDTH - _RIGHT, logarithmic=plot.logarithmic)
    least = min(ys) if plot.logarithmic else 0.0
    up = _scale(least, max(ys), HEIGHT - _BOTTOM, _TOP, logarithmic=plot.logarithmic)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(plot.title)}</title><style>{_STYLE}</style>",
        _text(_LEFT, 20, plot.title, "t"),
        _text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 10, plot.x_title, anchor="middle"),
        _text(6, _TOP - 6, plot.y_title),
        *_grid(sorted(set(xs)), across, _ticks(least, max(ys), logarithmic=plot.logarithmic), up),
        *_lines(plot, across, up),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _scale(least: float, most: float, start: float, end: float, *, logarithmic: bool) -> Scale:
    of: Callable[[float], float] = math.log10 if logarithmic else float
    span = of(most) - of(least) or 1.0
    return lambda value: start + (of(value) - of(least)) / span * (end - start)


def _ticks(least: float, most: float, *, logarithmic: bool) -> list[float]:
    if logarithmic:
        powers = range(math.ceil(math.log10(least)), math.floor(math.log10(most)) + 1)
        return [10.0**power for power in powers]
    step = 10.0 ** math.floor(math.log10(most or 1.0))
    step = step / 5 if most / step < 2 else step / 2 if most / step < 5 else step
    return [step * count for count in range(int(most / step) + 1)]


def _grid(xs: list[float], across: Scale, ys: list[float], up: Scale) -> Iterator[str]:
    for y in ys:
        yield f'<line class="g" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{up(y):.1f}" y2="{up(y):.1f}"/>'
        yield _text(_LEFT - 6, up(y) + 4, number(y), anchor="end")
    for x in xs:
        yield f'<line class="g" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}" x1="{across(x):.1f}" x2="{across(x):.1f}"/>'
        yield _text(across(x), HEIGHT - _BOTTOM + 16, number(x), anchor="middle")


def _lines(plot: Plot, across: Scale, up: Scale) -> Iterator[str]:
    for index, (name, points) in enumerate(plot.lines.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        path = "L".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
        yield f'<path stroke="{colour}" d="M{path}"/>'
        yield from (f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3" fill="{colour}"/>' for x, y in points)
        y = _TOP + 18 * index + 6
        yield f'<circle cx="{WIDTH - _RIGHT + 16}" cy="{y - 4}" r="5" fill="{colour}"/>'
        yield _text(WIDTH - _RIGHT + 28, y, name)


def _text(x: float, y: float, text: str, kind: str = "", *, anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
