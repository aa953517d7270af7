"""Metrics of a run: their means in metrics.jsonl, TensorBoard and the console; videos as animated GIFs."""

import pathlib
import shutil
import sys
import textwrap
from collections.abc import Sequence

import numpy as np
import torch

import console
from console import number
from storage.disk import Disk
from storage.files import file_name, json_text
from storage.gif import encode_gif
from training.events import EventFile

RATES = {"time/fps": "frames/s", "time/updates_per_second": "updates/s", "time/updates": "updates"}
NBSP = "\u00a0"


class Logger:
    """Collects metrics and writes their means to metrics.jsonl, TensorBoard and the console.

    Args:
        logdir: folder of the run.
        unit: what a step of the log is, for the console.
        more: writers beside these, see training/writers.py.
        disk: what writes the files, a `disk.Disk`.
    """

    def __init__(self, logdir: pathlib.Path, unit: str = "frame", more: Sequence = (), disk=None):
        self.logdir, self._unit, self._more = logdir, unit, more
        self._values = {}
        self._disk = disk or Disk()
        self._events = EventFile(logdir, self._disk)

    def add(self, metrics: dict, prefix: str = "") -> None:
        """Collects numbers or scalar tensors by name until the next `write`."""
        for key, value in metrics.items():
            self._values.setdefault(f"{prefix}/{key}" if prefix else key, []).append(value)

    @property
    def pending(self) -> bool:
        """Whether something was collected since the last `write`."""
        return bool(self._values)

    def write(self, step: int) -> dict[str, float]:
        """Writes the means of the finite values that were collected, at this step, and returns them.

        A name without a finite value is left out of the files; the console shows it.
        """
        found = {key: _finite_mean(values) for key, values in self._values.items()}
        means = {key: mean for key, mean in found.items() if mean is not None}
        missing = [key for key in found if key not in means]
        self._values = {}
        if found:
            self._disk.append("metrics", self.logdir / "metrics.jsonl", f"{json_text({'step': step, **means})}\n".encode())
            self._events.scalars(step, means)
            console.say(metrics_lines(step, means, self._unit, missing))
            for writer in self._more:
                writer.scalars(step, means)
        return means

    def video(self, name: str, frames: np.ndarray, step: int, fps: int = 10, comment: str = "") -> pathlib.Path:
        """Writes a video (T, H, W, C) in [0, 1] or uint8 as an animated GIF, into the logdir and TensorBoard; returns its path.

        Args:
            comment: what the run page says about it; stored in the GIF.
        """
        gif = encode_gif(frames, fps, comment)
        path = self.logdir / "videos" / f"{file_name(name)}_{step:09d}.gif"
        self._disk.write("videos", path, gif)
        self._events.video(name, gif, frames.shape[1:3], step)
        for writer in self._more:
            writer.video(name, path, step)
        return path

    def close(self) -> None:
        for writer in self._more:
            writer.close()


class Silent:
    """A logger that writes nothing, of the processes beside the first one."""

    pending = False

    def add(self, metrics: dict, prefix: str = "") -> None: ...

    def close(self) -> None: ...


def _finite_mean(values: list) -> float | None:
    """Mean of the finite ones of numbers or scalar tensors; None if there are none. Of a skipped update many metrics are not finite."""
    if torch.is_tensor(values[0]):
        values = torch.stack([value.float() for value in values]).tolist()
    values = np.array(values, float)
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None


def metrics_lines(step: int, means: dict[str, float], unit: str = "frame", missing: Sequence[str] = ()) -> str:
    """Returns, losses and rates of one log interval, and statistics of the latents if there are any; wrapped in a terminal.

    Args:
        missing: names of which no value was finite.
    """
    levels = [level for level in ("flat", "top", "bottom") if f"train/prior_entropy_{level}" in means]
    groups = [
        f"{unit} {step:,}",
        _pairs("", {name: means[f"episode/{name}"] for name in ("return", "length") if f"episode/{name}" in means}),
        _pairs("cut off", {name: means[f"cut_off/{name}"] for name in ("return", "length") if f"cut_off/{name}" in means}),
        _pairs("eval", {name: means[f"eval/{name}"] for name in ("return", "length", "score", "success") if f"eval/{name}" in means}),
        _pairs("held out", _losses(means, "eval/", levels)),
        _pairs("loss", _losses(means, "train/", levels)),
        _pairs("not finite, share of updates skipped", _skipped(means)),
        f"never finite {console.first(missing)}" if missing else "",
        " ".join(f"{number(means[key])}{NBSP}{rate}" for key, rate in RATES.items() if means.get(key)),
    ]
    lines = [" | ".join(group for group in groups if group)]
    for level in levels:
        found = {name: value for name, value in means.items() if name.startswith("train/") and name.endswith(f"_{level}")}
        found = {name.removeprefix("train/").removesuffix(f"_{level}"): value for name, value in found.items()}
        lines.append("    " + _pairs(f"{level} latents:", found))
    if sys.stdout.isatty():
        width = max(20, shutil.get_terminal_size().columns)
        lines = [textwrap.fill(line, width, subsequent_indent="    ", break_long_words=False) for line in lines]
    return "\n".join(lines).replace(NBSP, " ")


def _losses(means: dict[str, float], prefix: str, levels: list[str]) -> dict[str, float]:
    """Losses by short names, without those that others sum up, and those of the levels that have a line of their own."""
    hidden = ("agent_loss", "model_loss", "dyn_loss", "rep_loss", *(f"kl_{level}" for level in levels))
    found = {key.removeprefix(prefix): value for key, value in means.items() if key.startswith(prefix)}
    return {
        key.removesuffix("_loss"): value
        for key, value in found.items()
        if (key.endswith("_loss") or key.startswith("kl")) and key not in hidden
    }


def _skipped(means: dict[str, float]) -> dict[str, float]:
    """Shares of updates that were skipped, of optimizers that have skipped any."""
    ending = "_skipped"
    return {key.removeprefix("train/").removesuffix(ending): value for key, value in means.items() if key.endswith(ending) and value}


def _pairs(title: str, values: dict[str, float]) -> str:
    """Names and values, which a line break must not part; empty if there are none."""
    return " ".join([title, *(f"{name}{NBSP}{number(value)}" for name, value in values.items())]).strip() if values else ""
