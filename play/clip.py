"""What a person saw of a dream, as the frames of a film.

Shapes: T frames, H height, W width, n numbers of a vector.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from play.camera import as_rgb

SIDE, GAP, BAND, FONT = 160, 6, 22, 12  # pixels: least height of a picture, space, height of a caption, its font
CURVE_WIDTH, CURVE_HEIGHT, CURVES = 360, 64, 6  # of the curve of a number, and how many are drawn
SHOWN = 100  # steps of a curve
BACK, TEXT = (24, 26, 29), (220, 222, 226)
TITLES = {"dream": "dream", "world": "world", "mean": "without the last level", "difference": "difference"}
COLORS = {"world": (150, 153, 160), "mean": (226, 149, 60), "dream": (96, 172, 245)}  # of curves, drawn in this order


class Seen(NamedTuple):
    """What is seen at a time.

    Attributes:
        steps: steps since the dream began.
        views: images (H, W, C) uint8 and vectors (n,) by key, of each view in `TITLES`.
    """

    steps: int
    views: dict[str, dict[str, np.ndarray]]


def difference(views: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Images of the dream minus those without the last level, around grey; empty without the latter."""
    images = {key: image for key, image in views.get("mean", {}).items() if image.ndim == 3}
    return {key: (views["dream"][key].astype(np.int16) - image + 128).clip(0, 255).astype(np.uint8) for key, image in images.items()}


class _Layout(NamedTuple):
    """Where things are in a frame.

    Attributes:
        size: of the frame, (H, W).
        pictures: place (left, above), size (H, W) and title of each picture, by view and key.
        curves: key and index of each number that is drawn, and the top of its curve.
        legend: titles of the views that curves show.
    """

    size: tuple[int, int]
    pictures: dict[tuple[str, str], tuple[tuple[int, int], tuple[int, int], str]]
    curves: list[tuple[str, int, int]]
    legend: dict[str, str]


def film(frames: Sequence[Seen], titles: dict[str, str]) -> np.ndarray:
    """A film (T, H, W, 3) uint8 of pictures side by side and curves of numbers below.

    Args:
        titles: replaces some of `TITLES`.
    """
    layout = _lay_out(frames, {**TITLES, **titles})
    return np.stack([_draw(frames[: index + 1][-SHOWN:], layout) for index in range(len(frames))])


def _lay_out(frames: Sequence[Seen], titles: dict[str, str]) -> _Layout:
    images = {}  # the first of each view and key
    for view in titles:
        for frame in frames:
            for key, value in frame.views.get(view, {}).items():
                if value.ndim == 3:
                    images.setdefault((view, key), value)
    pictures, left, below = {}, GAP, BAND
    for (view, key), image in images.items():
        scale = max(1, round(SIDE / image.shape[0]))
        height, width = scale * image.shape[0], scale * image.shape[1]
        pictures[view, key] = (left, BAND), (height, width), titles[view]
        left, below = left + width + GAP, max(below, BAND + height + GAP)
    numbers = [(key, index) for key, value in frames[0].views["dream"].items() if value.ndim == 1 for index in range(len(value))][:CURVES]
    curves = [(*number, below + row * (CURVE_HEIGHT + GAP)) for row, number in enumerate(numbers)]
    legend = {view: titles[view] for view in COLORS if any(view in frame.views for frame in frames)}
    size = below + len(curves) * (CURVE_HEIGHT + GAP), max(left, CURVE_WIDTH if curves else 0)
    return _Layout(size, pictures, curves, legend)


def _draw(frames: Sequence[Seen], layout: _Layout) -> np.ndarray:
    """The last one of these frames, with curves of all of them."""
    height, width = layout.size
    canvas, font = Image.new("RGB", (width, height), BACK), ImageFont.load_default(FONT)
    draw = ImageDraw.Draw(canvas)
    for (view, key), ((left, above), (high, wide), title) in layout.pictures.items():
        draw.text((left, 3), title, fill=TEXT, font=font)
        image = frames[-1].views.get(view, {}).get(key)
        if image is not None:
            enlarged = Image.fromarray(np.ascontiguousarray(as_rgb(image))).resize((wide, high), Image.Resampling.NEAREST)
            canvas.paste(enlarged, (left, above))
    draw.text((width - GAP, 3), str(frames[-1].steps), fill=TEXT, font=font, anchor="ra")
    for key, index, above in layout.curves:
        _curves(draw, (GAP, above, width - GAP, above + CURVE_HEIGHT), frames, key, index, font)
    right = width - GAP - 4
    for view, title in layout.legend.items() if layout.curves else ():
        draw.text((right, layout.curves[0][2] + 2), title, fill=COLORS[view], font=font, anchor="ra")
        right -= 8 + draw.textlength(title, font)
    return np.asarray(canvas)


def _curves(draw: ImageDraw.ImageDraw, area: tuple[int, int, int, int], frames: Sequence[Seen], key: str, index: int, font) -> None:
    left, above, right, below = area
    draw.rectangle(area, outline=(60, 64, 70))
    curves = {
        name: [(step, float(frame.views[name][key][index])) for step, frame in enumerate(frames) if key in frame.views.get(name, {})]
        for name in COLORS
    }
    values = [value for curve in curves.values() for _, value in curve]
    low, high = min(values), max(max(values), min(values) + 1e-3)
    for name, curve in curves.items():
        points = [
            (left + 2 + (right - left - 4) * step / SHOWN, below - 3 - (below - above - 6) * (value - low) / (high - low))
            for step, value in curve
        ]
        if len(points) > 1:
            draw.line(points, fill=COLORS[name], width=2)
    draw.text((left + 4, above + 2), f"{key}[{index}]", fill=TEXT, font=font, stroke_width=2, stroke_fill=BACK)
