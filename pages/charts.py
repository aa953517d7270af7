"""Charts of curves as SVG within a page, made of few enough points to be drawn while a run trains.

A chart is a text of `<svg>` with classes: `STYLE` gives them colours, beside those of the page (`web.STYLE`).
"""

import html
import math
from collections.abc import Callable

import numpy as np

import console
from pages import curves
from pages.curves import Band, Curve

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 340, 8, 166  # of the plot inside
POINTS, DOTS = 240, 40  # a curve is drawn with at most so many points; dots that tell their value if there are fewer than these
COLORS = {  # of a curve by its name, the same in every chart: on a light page, on a dark one
    "training": ("#1f6fc4", "#6cb0f5"),
    "evaluation": ("#d9571f", "#f59a62"),
    "training, cut off": ("#1a8f63", "#55c99b"),
    "held out": ("#8250c4", "#bb96f2"),
    "flat": ("#8a6a00", "#d9b544"),
    "flat, held out": ("#c9a93f", "#8f7a35"),
    "top": ("#b3243c", "#f27a8c"),
    "top, held out": ("#e58fa0", "#a34d5c"),
    "bottom": ("#0c7f92", "#4fc8da"),
    "bottom, held out": ("#74bfcc", "#2f7f8c"),
    "": ("#1f6fc4", "#6cb0f5"),  # a curve alone
}
STYLE = """
figure.chart { margin: 0; min-width: 0; padding: .5em .6em .2em; background: var(--card); border: 1px solid var(--line);
  border-radius: 6px }
figure.chart figcaption { font-size: .9em; display: flex; flex-wrap: wrap; gap: 0 1em; font-variant-numeric: tabular-nums }
figure.chart svg { display: block; width: 100%; height: auto; font: 10px system-ui, sans-serif }
.chart text { fill: var(--faint) } .chart .grid { stroke: var(--line); stroke-width: 1; fill: none }
.chart polyline { fill: none; stroke: var(--own); stroke-width: 1.8; stroke-linejoin: round }
.chart circle { fill: var(--own) } .chart polygon { fill: var(--own); opacity: .18 } .chart b { color: var(--own) }
"""
LIGHT, DARK = ("".join(f".k{number} {{ --own: {color} }}\n" for number, color in enumerate(theme)) for theme in zip(*COLORS.values()))
STYLE += f"{LIGHT}@media (prefers-color-scheme: dark) {{\n{DARK}}}\n"


def chart(title: str, lines: dict[str, Curve], end: int, unit: str = "frame") -> str:
    """A figure of curves by name over steps, with their last values.

    The vertical axis is logarithmic where values are above zero and span two orders of magnitude. Long curves are drawn as means
    of equal parts, with the range of each part as a shade. Values that are no numbers are left out of the curve.

    Args:
        lines: the names are those of `COLORS`.
        end: step at which the horizontal axis ends.
        unit: what steps count.
    """
    bands = {
        name: curves.thinned(kept, POINTS)
        for name, kept in ((name, curves.finite(line)) for name, line in lines.items())
        if len(kept.steps)
    }
    last = [f'<b class="{_class(name)}">{html.escape(name)} {console.number(line.values[-1])}</b>' for name, line in lines.items()]
    drawn = _plot(bands, max(end, 1), unit) if bands else ""
    return (
        f'<figure class="chart"><figcaption><span>{html.escape(title)}</span>{"".join(last)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">{drawn}</svg></figure>'
    )


def _class(name: str) -> str:
    """The class of a curve, which has its colour."""
    return f"k{list(COLORS).index(name)}"


def _plot(bands: dict[str, Band], end: int, unit: str) -> str:
    """Grid, labels and curves."""
    low, high = min(band.low.min() for band in bands.values()), max(band.high.max() for band in bands.values())
    if low > 0.0 and high >= 100.0 * low:
        ticks, scale = powers_of_ten(low, high), np.log10
    else:
        low, high = (low, high) if high > low else (low - 1.0, high + 1.0)
        ticks, scale = round_ticks(low, high), np.asarray
    bottom, top = scale(low), scale(high)

    def x(steps: np.ndarray) -> np.ndarray:
        return LEFT + (RIGHT - LEFT) * np.asarray(steps) / end

    def y(values: np.ndarray) -> np.ndarray:
        return BOTTOM - (BOTTOM - TOP) * (scale(values) - bottom) / (top - bottom)

    parts = [
        f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{RIGHT}"/><text x="{LEFT - 5}" y="{y(tick) + 3:.1f}" text-anchor="end">'
        f"{short(tick)}</text>"
        for tick in ticks
    ]
    steps = [tick for tick in round_ticks(0, end) if float(tick).is_integer()]
    parts += [f'<text x="{x(tick):.1f}" y="{BOTTOM + 16}" text-anchor="middle">{short(tick)}</text>' for tick in steps]
    parts += [f'<g class="{_class(name)}">{_line(band, x, y, unit)}</g>' for name, band in bands.items()]
    return "".join(parts)


def _line(band: Band, x: Callable, y: Callable, unit: str) -> str:
    """A curve with the range of its parts, or with dots that tell their values."""
    points = _points(x(band.steps), y(band.mean))
    parts = [f'<polyline points="{points}"/>']
    if (band.high > band.low).any():
        parts.append(f'<polygon points="{_points(x(band.steps), y(band.low))} {_points(x(band.steps[::-1]), y(band.high[::-1]))}"/>')
    if len(band.steps) <= DOTS:
        parts += [
            f'<circle cx="{across:.1f}" cy="{down:.1f}" r="2.2"><title>{unit} {step:,.0f}: {console.number(value)}</title></circle>'
            for across, down, step, value in zip(x(band.steps), y(band.mean), band.steps, band.mean)
        ]
    return "".join(parts)


def _points(x: np.ndarray, y: np.ndarray) -> str:
    return " ".join(f"{across:.1f},{down:.1f}" for across, down in zip(x.tolist(), y.tolist()))


def round_ticks(low: float, high: float) -> list[float]:
    """Three to six multiples of 1, 2 or 5 times a power of ten from `low` to `high`."""
    power = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = max(factor * power for factor in (1, 2, 5) if factor * power <= (high - low) / 3 * (1 + 1e-9))
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def powers_of_ten(low: float, high: float) -> list[float]:
    """At most five powers of ten from `low` to `high`."""
    exponents = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    return [10.0**exponent for exponent in exponents[:: -(-len(exponents) // 5)]]


def short(value: float) -> str:
    """A number of an axis."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):,.4g}{unit}"
    return f"{value:,.4g}"
