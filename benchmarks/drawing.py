"""Colors, panels and Markdown tables that all results share."""

from collections.abc import Collection
from typing import TypeVar

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

T = TypeVar("T")

# The same colors in all figures; darker is twice the learning rate.
FLAT, TWO_LEVELS, FASTER_FLAT, FASTER_TWO_LEVELS = "C0", "C1", "#0b2f57", "#8c2d04"
STYLE = {"font.size": 9, "axes.titlesize": 9, "legend.fontsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.frameon": False}


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table; rows may be shorter than its header."""
    first, *lines = (f"| {' | '.join(row + [''] * (len(header) - len(row)))} |" for row in (header, *rows))
    return "\n".join([first, "|" + "---|" * len(header), *lines])


def paired(ours: dict[int, T], theirs: dict[int, T]) -> list[tuple[T, T]]:
    """The results of the seeds that both have."""
    return [(result, theirs[seed]) for seed, result in ours.items() if seed in theirs]


def seeds_and_mean(values: Collection[float], digits: int = 0) -> str:
    """Every seed's value and their mean, as a cell of a table; empty without values."""
    return f"{', '.join(f'{value:.{digits}f}' for value in values)} (**{np.mean(list(values)):.{digits}f}**)" if values else ""


def panels(count: int, columns: int, xlabel: str, ylabel: str, legend: dict[str, tuple[str, str]]) -> tuple[Figure, list]:
    """A figure with so many panels, at most `columns` side by side, and their axes, below one legend of colors and line styles by label."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(9, 2.2 * rows + 0.4), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for number, axis in enumerate(axes):
        axis.set_visible(number < count)
        axis.set(xlabel=xlabel, ylabel="" if number % columns else ylabel)
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=(1, 2, 5, 10)))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.grid(alpha=0.25)
    lines = [
        Line2D([], [], color=color, linestyle=style, linewidth=2.2 if style == "-" else 1.3, label=label)
        for label, (color, style) in legend.items()
    ]
    figure.legend(handles=lines, loc="outside upper center", ncols=min(len(lines), 120 // (8 + max(map(len, legend)))))
    return figure, axes[:count]
