"""Draws an open-loop video of a run as a filmstrip with named rows, for papers and posters:

    python -m pages.filmstrip logdir/20261129-230605-atari_pong --out filmstrip.png

The columns are steps of one replayed sequence. The model observes the first few steps and predicts all later ones from
the actions alone.
"""

import argparse
import pathlib
import sys

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageSequence

import settings

CONTEXT = 5  # steps that the model observes, see `WorldModel.video_pred`
ROWS = ("ground truth", "model", "error", "top level alone")  # of a video, see `WorldModel.video_pred`
COLUMNS = 8  # steps that are drawn


def read_video(path: pathlib.Path, height: int, width: int) -> np.ndarray:
    """Reads a video of tiles.

    Args:
        path: a GIF with R x B tiles.
        height, width: of a tile in pixels.
    Returns:
        (T, R, B, height, width, 3) uint8.
    Raises:
        ValueError: if it cannot be divided into such tiles.
    """
    with Image.open(path) as gif:
        frames = np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)])
    if frames.shape[1] % height or frames.shape[2] % width or frames.shape[1] // height > len(ROWS):
        raise ValueError(f"{path} has frames of {frames.shape[1]} x {frames.shape[2]} pixels, which are not tiles of {height} x {width}")
    rows, sequences = frames.shape[1] // height, frames.shape[2] // width
    return frames.reshape(len(frames), rows, height, sequences, width, 3).swapaxes(2, 3)


def draw(video: np.ndarray) -> Figure:
    """Draws a filmstrip.

    Args:
        video: one sequence (T, R, height, width, 3) uint8.
    """
    names = [name for name in ROWS[: video.shape[1]] if name != "error"]
    steps = np.linspace(0, len(video) - 1, min(COLUMNS, len(video))).round().astype(int)
    height, width = video.shape[2:4]
    row_height = 1.25 * height / width  # inches
    figure = Figure((1.25 * len(steps) + 0.6, row_height * len(names) + 0.3), dpi=160, layout="constrained")
    axes = figure.subplots(len(names), len(steps), squeeze=False)
    for row, name in enumerate(names):
        for column, step in enumerate(steps):
            place = axes[row, column]
            place.imshow(video[step, ROWS.index(name)], interpolation="nearest")
            place.set(xticks=[], yticks=[])
        # A name that runs upwards is longer than a low row is high.
        beside = {"rotation": 0, "ha": "right", "va": "center"} if row_height < 0.8 else {}
        axes[row, 0].set_ylabel(name, **beside)
    for column, step in enumerate(steps):
        observed = f"step {step + 1}, observed" if step < CONTEXT else f"{step + 1 - CONTEXT} ahead"
        axes[0, column].set_title(observed, fontsize="medium")
    return figure


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for what the user can correct."""
    parser = argparse.ArgumentParser("python -m pages.filmstrip", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=pathlib.Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--sequence", type=int, default=1, help="which of the sequences in the video (default: %(default)s)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("filmstrip.png"), help="PNG, SVG or PDF (default: %(default)s)")
    options = parser.parse_args(argv)
    if options.out.suffix.lower() not in (".png", ".svg", ".pdf"):
        parser.error(f"--out is {str(options.out)!r}; it must end with .png, .svg or .pdf")
    try:
        found = {path.stem.rpartition("_")[2]: path for path in (options.run / "videos").glob("openl_*.gif") if path.is_file()}
        frames = sorted(frame for frame in found if frame.isdecimal())
        if not frames:
            raise ValueError(f"{options.run} has no open-loop video; a run with images writes one at each evaluation (video_pred_log)")
        latest = found[frames[-1]]
        config = settings.load_config(stored=settings.read_yaml(options.run / "config.yaml"))
        video = read_video(latest, *config.size)
        if not 1 <= options.sequence <= video.shape[2]:
            raise ValueError(f"--sequence is {options.sequence}; {latest} has sequences 1 to {video.shape[2]}")
        draw(video[:, :, options.sequence - 1]).savefig(options.out)
    except (ValueError, OSError, Image.DecompressionBombError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"Drawn from {latest}: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
