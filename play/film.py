"""Films of an episode with the world model's reconstructions and open-loop predictions.

Shapes: T steps of an episode, H height, W width.
"""

from collections.abc import Iterator

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from models import WorldModel
from networks import State
from play.camera import as_rgb, join_images, shrink
from play.playing import RENDERED, Data, decode, observe, observe_top, seen

DREAM = 50  # steps of an open-loop prediction; then a new one begins
FPS = 15
SIDE, MARGIN, BAND, FONT = 192, 4, 24, 14  # pixels: about the side of enlarged images; space; height of titles; their font
IMAGE_SIDE = 360  # pixels of the longest side of an image beside curves, at most
DRAWN_NUMBERS = 6  # of all vectors, at most
TITLES = {"seen": "ground truth", "reconstruction": "reconstruction", "top": "from the top level", "dream": "open loop"}


def film(model: WorldModel, data: Data) -> np.ndarray:
    """An episode, its reconstruction and open-loop predictions, as frames (T, H, W, 3) in [0, 1] or uint8.

    With two levels there is also a reconstruction from the top level, with the bottom drawn from its prior. An open-loop
    prediction begins at a posterior and from then on knows only the actions. A new one begins every DREAM steps.
    If no image is decoded, curves of numbers are drawn, next to images of the environment, if there are any.

    Args:
        data: arrays (1, T, ...) from `playing.play`.
    """
    post, _ = observe(model, data)
    reconstruction = decode(model, post)
    views = {"seen": seen(data, reconstruction), "reconstruction": reconstruction}
    if "top" in model.dynamics.levels:
        views["top"] = decode(model, observe_top(model, data))
    views["dream"] = decode(model, dream_along(model, data, post))
    views = {title: {key: value[0] for key, value in view.items()} for title, view in views.items()}
    if images := model.heads["decoder"].image_keys:
        return np.stack(list(image_frames(views, images)))
    images = environment_images(data)
    return np.stack(list(number_frames(views) if images is None else beside(images, number_frames(views))))


def environment_images(data: Data) -> np.ndarray | None:
    """Images (T, H, W, C) of the environment: rendered or observed; None if there are none."""
    if RENDERED in data:
        return data[RENDERED][0]
    keys = [key for key, value in data.items() if value.dtype == np.uint8 and value.ndim == 5 and not key.startswith("log_")]
    return join_images(data, keys, 0) if keys else None


@torch.no_grad()
def dream_along(model: WorldModel, data: Data, post: State) -> State:
    """States (1, T, ...) of open-loop predictions from the posterior of every DREAM-th step and the recorded actions."""
    action, parts = torch.as_tensor(data["action"]), []
    device = model.dynamics.device
    for start in range(0, action.shape[1], DREAM):
        parts.append({key: value[:, start : start + 1] for key, value in post.items()})
        ahead = action[:, start + 1 : start + DREAM].to(device)
        if ahead.shape[1]:
            future = model.dynamics.imagine_with_action(ahead, {key: value[:, start].to(device) for key, value in post.items()})
            parts.append({key: value.cpu() for key, value in future.items()})
    return {key: torch.cat([part[key] for part in parts], 1) for key in post}


def image_frames(views: dict[str, dict[str, np.ndarray]], keys: list[str]) -> Iterator[np.ndarray]:
    """Frames with a column for each view and a row for each image."""
    titles = list(views)
    for step in range(len(views["seen"][keys[0]])):
        rows = []
        for key in keys:
            height, width = views["seen"][key].shape[1:3]
            scale = max(1, SIDE // height)
            tiles = [as_rgb(views[title][key][step].clip(0.0, 1.0).repeat(scale, 0).repeat(scale, 1)) for title in titles]
            rows.append(np.concatenate([np.pad(tile, ((MARGIN, 0), (0, MARGIN), (0, 0))) for tile in tiles], 1))
        widest = max(row.shape[1] for row in rows)
        picture = np.concatenate([np.pad(row, ((0, 0), (0, widest - row.shape[1]), (0, 0))) for row in rows])
        band = Image.new("RGB", (widest, BAND))
        for column, title in enumerate(titles):
            text = TITLES[title] + (f", {step % DREAM} steps" if title == "dream" else "")
            place = (column * (width * scale + MARGIN) + MARGIN, MARGIN)
            ImageDraw.Draw(band).text(place, text, fill="white", font=ImageFont.load_default(FONT))
        yield np.concatenate([np.asarray(band) / 255.0, picture])


def number_frames(views: dict[str, dict[str, np.ndarray]]) -> Iterator[np.ndarray]:
    """Frames uint8 of growing curves: the first few numbers of the observation, in each view."""
    names = [(key, index) for key, value in views["seen"].items() for index in range(value.shape[-1])][:DRAWN_NUMBERS]
    steps = len(views["seen"][names[0][0]])
    figure = Figure((7.2, 1.3 * len(names) + 0.4), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    styles = {
        "seen": dict(color="0.6", linewidth=3.5),
        "reconstruction": dict(color="C0", linewidth=1.5),
        "top": dict(color="C2", linewidth=1.5),
        "dream": dict(color="C1", linewidth=1.5),
    }
    styles = {title: style for title, style in styles.items() if title in views}
    lines = []
    for axes, (key, index) in zip(figure.subplots(len(names), sharex=True, squeeze=False)[:, 0], names):
        curves = {title: views[title][key][:, index] for title in styles}
        axes.set(ylabel=f"{key}[{index}]", xlim=(0, max(1, steps - 1)))
        axes.update_datalim(np.stack([np.tile(np.arange(steps), len(curves)), np.concatenate(list(curves.values()))], 1))
        axes.autoscale_view(scalex=False)
        for start in range(DREAM, steps, DREAM):
            axes.axvline(start, color="0.9", linewidth=1, zorder=0)
        lines += [(axes.plot([], [], label=TITLES[title], **styles[title])[0], curve) for title, curve in curves.items()]
    figure.axes[-1].set_xlabel(f"step; an open-loop prediction begins every {DREAM} steps")
    figure.axes[-1].locator_params("x", integer=True)
    figure.legend(handles=[line for line, _ in lines[: len(styles)]], loc="outside upper right", ncols=len(styles))
    for step in range(steps):
        for line, curve in lines:
            line.set_data(np.arange(step + 1), curve[: step + 1])
        canvas.draw()
        yield np.array(canvas.buffer_rgba())[..., :3]


def beside(images: np.ndarray, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Frames uint8 with the image of the same step on their left, on white."""
    for image, frame in zip(images, frames):
        image = shrink(as_rgb(image), IMAGE_SIDE)
        height, width = image.shape[:2]
        picture = Image.new("RGB", (width + MARGIN, max(height + BAND, len(frame))), "white")
        ImageDraw.Draw(picture).text((MARGIN, MARGIN), "environment", fill="black", font=ImageFont.load_default(FONT))
        picture.paste(Image.fromarray(image), (MARGIN, BAND))
        bottom = picture.height - len(frame)
        yield np.concatenate([np.asarray(picture), np.pad(frame, ((0, bottom), (0, 0), (0, 0)), constant_values=255)], 1)
