"""Curves of a run from its metrics.jsonl: one JSON object a line, with the frame count under "step" and numbers by name.

Runs of dreamerv3-torch have the same file with other names, which are translated.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# What dreamerv3-torch calls differently. Its losses have the names of this program without the prefix.
RENAMED = {
    "train_return": "episode/return",
    "train_length": "episode/length",
    "eval_return": "eval/return",
    "eval_length": "eval/length",
    "fps": "time/fps",
    **{
        name: f"train/{name}"
        for name in (
            "image_loss",
            "vector_loss",
            "reward_loss",
            "cont_loss",
            "model_loss",
            "actor_loss",
            "value_loss",
            "kl",
            "dyn_loss",
            "rep_loss",
            "prior_ent",
            "post_ent",
            "actor_entropy",
        )
    },
}


class Curve(NamedTuple):
    """A metric of a run: values (n,) at rising frames (n,)."""

    frames: np.ndarray
    values: np.ndarray


class Metrics(NamedTuple):
    """The curves of a run by name, and how many lines of its file could not be read."""

    curves: dict[str, Curve]
    damaged: int


def read_rows(path: pathlib.Path) -> tuple[list[dict], int]:
    """Objects with a frame under "step" from a file with one on each line, and how many lines are none; nothing from a missing file."""
    *lines, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]  # behind the last line break a line is incomplete
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
            rows.append({**row, "step": int(row["step"])})
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
            continue
    return rows, len(lines) - len(rows)


def read(logdir: pathlib.Path) -> Metrics:
    """The metrics of the run in this folder; none if it has no metrics.jsonl.

    A last line that is still being written is left out. A run that was killed and continued goes over some frames again; then
    what it wrote last counts.
    """
    columns = {}
    rows, damaged = read_rows(logdir / "metrics.jsonl")
    for row in rows:
        frame = row.pop("step")
        for name, value in row.items():
            if type(value) in (int, float):
                frames, values = columns.setdefault(RENAMED.get(name, name), ([], []))
                frames.append(frame)
                values.append(value)
    return Metrics({name: _latest(np.array(frames), np.array(values, float)) for name, (frames, values) in columns.items()}, damaged)


def _latest(frames: np.ndarray, values: np.ndarray) -> Curve:
    """Entries (n,) in the order in which they were written, without those whose frame was reached again later."""
    reached_later = np.minimum.accumulate(frames[::-1])[::-1][1:]
    keep = np.append(frames[:-1] < reached_later, True)
    return Curve(frames[keep], values[keep])


def finite(curve: Curve) -> Curve:
    """The curve without values that are no numbers."""
    keep = np.isfinite(curve.values)
    return Curve(curve.frames[keep], curve.values[keep])


def final_value(curve: Curve) -> float:
    """Mean over the last quarter of the frames: a single evaluation is a few episodes of an agent that still changes."""
    last = curve.frames[-1]
    return float(curve.values[(curve.frames > 0.75 * last) | (curve.frames == last)].mean())


class Band(NamedTuple):
    """Mean and range of several values at rising frames, all (n,)."""

    frames: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def over_seeds(curves: Sequence[Curve]) -> Band:
    """Mean, least and greatest of several curves at the frames that all of them cover, with straight lines between their entries."""
    start, end = max(curve.frames[0] for curve in curves), min(curve.frames[-1] for curve in curves)
    frames = np.unique(np.concatenate([curve.frames for curve in curves]))
    frames = frames[(frames >= start) & (frames <= end)]
    values = np.array([np.interp(frames, curve.frames, curve.values) for curve in curves])  # (curves, n)
    return Band(frames, values.mean(0), values.min(0), values.max(0))


def thinned(curve: Curve, parts: int) -> Band:
    """A curve in at most so many parts of equal counts: the mean, least and greatest of each, at its mean frame."""
    starts = np.unique(np.linspace(0, len(curve.frames), parts, endpoint=False).astype(int))
    counts = np.diff(starts, append=len(curve.frames))
    return Band(
        np.add.reduceat(curve.frames, starts) / counts,
        np.add.reduceat(curve.values, starts) / counts,
        np.minimum.reduceat(curve.values, starts),
        np.maximum.reduceat(curve.values, starts),
    )
