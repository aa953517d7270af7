"""Curves of a run from its metrics.jsonl: one JSON object a line, with a count under "step" and numbers by name. The count is of
environment frames; of updates in runs on recorded episodes.

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
    "prior_ent": "train/prior_entropy",
    "post_ent": "train/post_entropy",
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
            "actor_entropy",
        )
    },
}


class Curve(NamedTuple):
    """A metric of a run: values (n,) at rising steps (n,)."""

    steps: np.ndarray
    values: np.ndarray


class Metrics(NamedTuple):
    """The curves of a run by name, and how many lines of its file could not be read."""

    curves: dict[str, Curve]
    damaged: int


def unit(stored: dict) -> str:
    """What the steps of a run count: "frame" or "update".

    Args:
        stored: its settings, empty if unknown.
    """
    return "update" if stored.get("offline_traindir") else "frame"


def read_rows(path: pathlib.Path) -> tuple[list[dict], int]:
    """Objects with a count under "step" from a file with one on each line, and how many lines are none; nothing from a missing file."""
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

    A last line that is still being written is left out. A run that was killed and continued goes over some steps again; then
    what it wrote last counts.
    """
    columns = {}
    rows, damaged = read_rows(logdir / "metrics.jsonl")
    for row in rows:
        step = row.pop("step")
        for name, value in row.items():
            if type(value) in (int, float):
                steps, values = columns.setdefault(RENAMED.get(name, name), ([], []))
                steps.append(step)
                values.append(value)
    return Metrics({name: _latest(np.array(steps), np.array(values, float)) for name, (steps, values) in columns.items()}, damaged)


def _latest(steps: np.ndarray, values: np.ndarray) -> Curve:
    """Entries (n,) in the order in which they were written, without those whose step was reached again later."""
    reached_later = np.minimum.accumulate(steps[::-1])[::-1][1:]
    keep = np.append(steps[:-1] < reached_later, True)
    return Curve(steps[keep], values[keep])


def finite(curve: Curve) -> Curve:
    """The curve without values that are no numbers."""
    keep = np.isfinite(curve.values)
    return Curve(curve.steps[keep], curve.values[keep])


def final_value(curve: Curve) -> float:
    """Mean over the last quarter of the steps: a single evaluation is a few episodes of an agent that still changes."""
    last = curve.steps[-1]
    return float(curve.values[(curve.steps > 0.75 * last) | (curve.steps == last)].mean())


class Band(NamedTuple):
    """Mean and range of several values at rising steps, all (n,)."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def over_seeds(curves: Sequence[Curve]) -> Band:
    """Mean, least and greatest of several curves at the steps that all of them cover, with straight lines between their entries."""
    start, end = max(curve.steps[0] for curve in curves), min(curve.steps[-1] for curve in curves)
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    steps = steps[(steps >= start) & (steps <= end)]
    values = np.array([np.interp(steps, curve.steps, curve.values) for curve in curves])  # (curves, n)
    return Band(steps, values.mean(0), values.min(0), values.max(0))


def thinned(curve: Curve, parts: int) -> Band:
    """A curve in at most so many parts of equal counts: the mean, least and greatest of each, at its mean step."""
    starts = np.unique(np.linspace(0, len(curve.steps), parts, endpoint=False).astype(int))
    counts = np.diff(starts, append=len(curve.steps))
    return Band(
        np.add.reduceat(curve.steps, starts) / counts,
        np.add.reduceat(curve.values, starts) / counts,
        np.minimum.reduceat(curve.values, starts),
        np.maximum.reduceat(curve.values, starts),
    )
