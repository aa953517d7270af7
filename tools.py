"""Settings, logging, schedules and seeding."""

import contextlib
import ctypes
import difflib
import io
import json
import os
import pathlib
import random
import signal
import sys
import time

import numpy as np
import torch
from PIL import Image
from ruamel.yaml import YAML

CONFIG_FILE = pathlib.Path(__file__).parent / "configs.yaml"
RENAMED = {"stickey": "sticky"}  # names of dreamerv3-torch
IGNORED = {
    "parallel": "environments always run in parallel",
    "resize": "Atari frames are resized by ALE",
    "imag_gradient_mix": "the policy follows one gradient, see imag_gradient",
    "eval_state_mean": "evaluation samples latents",
    "actor.temp": "no action distribution has a temperature",
}


class Config(dict):
    """Settings whose entries are attributes. Assigning an unknown name is an error, as is reading one."""

    def __getattr__(self, key: str):
        try:
            return self[key]
        except KeyError:
            raise AttributeError(_unknown("setting", key, self)) from None

    def __setattr__(self, key: str, value) -> None:
        self[key] = _coerce(key, value, self.__getattr__(key))


def load_config(presets: list[str] = ("defaults",), overrides: dict | None = None) -> Config:
    """Settings from configs.yaml: defaults, the task's suite, presets in order, overrides.

    Args:
        presets: names of sections; "defaults" is always the first, named or not.
        overrides: values by name, nested ones with dots ("encoder.cnn_depth"); strings are read as YAML.
    Raises:
        ValueError: for an unknown preset, suite or setting, or a value of the wrong type.
    """
    sections = YAML(typ="safe", pure=True).load(CONFIG_FILE)
    defaults, suites = sections.pop("defaults"), sections.pop("suites")
    layers = []
    for name in presets:
        if name not in sections and name != "defaults":
            raise ValueError(_unknown("preset", name, ["defaults", *sections]))
        layers.append(_flatten(sections.get(name, {})))
    layers.append(_current_names(overrides or {}))

    flat = _flatten(defaults)
    task = next((layer["task"] for layer in reversed(layers) if "task" in layer), flat["task"])
    suite = task.partition("_")[0]
    if suite not in suites or suite == task:
        raise ValueError(f"task {task!r} does not begin with a suite; {_unknown('suite', suite, suites)} (for example atari_pong, "
                         "gym_CartPole-v1)")
    flat.update(_flatten(suites[suite]))
    for layer in layers:
        for key, value in layer.items():
            if key not in flat:
                homes = [name for name in suites if key in suites[name]]
                hint = f"; it is a setting of the {', '.join(homes)} suite, and the task is {task!r}" if homes else ""
                raise ValueError(_unknown("setting", key, flat) + hint)
            flat[key] = _coerce(key, value, flat[key])
    return _nest(flat)


def _unknown(kind: str, name: str, known) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}"
    return f"unknown {kind} {name!r}; {hint}"


def _flatten(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def _nest(flat: dict) -> Config:
    root = Config()
    for key, value in flat.items():
        *path, last = key.split(".")
        node = root
        for name in path:
            node = node.setdefault(name, Config())
        node[last] = value
    return root


def _current_names(overrides: dict) -> dict:
    current = {}
    for key, value in _flatten(overrides).items():
        if key in IGNORED:
            print(f"Note: {key} is ignored: {IGNORED[key]}.", file=sys.stderr)
        else:
            current[RENAMED.get(key, key)] = value
    return current


def _coerce(key: str, value, default):
    """`value` in the type of `default`; strings are read as YAML where another type is wanted."""
    if isinstance(value, str) and not isinstance(default, str) and default is not None:
        value = YAML(typ="safe", pure=True).load(value)
    kind = type(default)
    if default is None or type(value) is kind:
        return value
    if kind is int and type(value) is float and value.is_integer():
        return int(value)
    if kind is float and type(value) is int:
        return float(value)
    if kind is str and type(value) in (int, float):
        return str(value)
    if kind is list and type(value) is tuple:
        return list(value)
    raise ValueError(f"setting {key!r} is {value!r}; it must be of type {kind.__name__}, such as {default!r}")


def plain(config: Config) -> dict:
    """The settings as an ordinary nested dict."""
    return {key: plain(value) if isinstance(value, Config) else value for key, value in config.items()}


def parse_flags(argv: list[str]) -> tuple[list[str], dict]:
    """Splits a command line into presets (after --configs) and overrides by name.

    Raises:
        ValueError: for a word that belongs to no flag, or a flag without a value.
    """
    words, flags = list(argv), {}
    while words:
        flag = words.pop(0)
        if not flag.startswith("--") or len(flag) < 3:
            raise ValueError(f"unexpected word {flag!r}; settings are given as --name value")
        name, equals, value = flag[2:].partition("=")
        values = [value] if equals else []
        while not equals and words and not words[0].startswith("--"):
            values.append(words.pop(0))
        if not values:
            raise ValueError(f"setting --{name} has no value; booleans are given as --{name} true")
        flags[name] = values
    presets = flags.pop("configs", ["defaults"])
    return presets, {name: v[0] if len(v) == 1 else f"[{', '.join(v)}]" for name, v in flags.items()}


class Logger:
    """Collects metrics and writes their means to metrics.jsonl, TensorBoard and the console.

    Args:
        logdir: folder of the run.
    """

    def __init__(self, logdir: pathlib.Path):
        from torch.utils.tensorboard import SummaryWriter

        self.logdir = logdir
        self._values = {}
        self._writer = SummaryWriter(str(logdir), max_queue=1000)

    def add(self, metrics: dict, prefix: str = "") -> None:
        """Collects numbers or scalar tensors by name until the next `write`."""
        for key, value in metrics.items():
            self._values.setdefault(f"{prefix}/{key}" if prefix else key, []).append(value)

    def write(self, step: int) -> dict[str, float]:
        """Writes the means of all that was collected, at this many frames, and returns them."""
        means = {key: _mean(values) for key, values in self._values.items()}
        self._values = {}
        if means:
            with open(self.logdir / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"step": step, **means}) + "\n")
            for key, value in means.items():
                self._writer.add_scalar(key, value, step)
            self._writer.flush()
            shown = {key: value for key, value in means.items() if not key.startswith("train/") or key.endswith("_loss")}
            print(f"[{step}] " + "  ".join(f"{key} {value:.4g}" for key, value in shown.items()), flush=True)
        return means

    def video(self, name: str, frames: np.ndarray, step: int, fps: int = 10) -> pathlib.Path:
        """Writes a video (T, H, W, C) in [0, 1] as an animated GIF, into the logdir and TensorBoard; returns its path."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        frames = (255 * frames).round().astype(np.uint8)
        frames = frames.repeat(3, -1) if frames.shape[-1] == 1 else frames
        first, *rest = [Image.fromarray(frame) for frame in frames[..., :3]]
        buffer = io.BytesIO()
        first.save(buffer, "GIF", save_all=True, append_images=rest, duration=1000 // fps, loop=0)
        path = self.logdir / "videos" / f"{name.replace('/', '_')}_{step:09d}.gif"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(buffer.getvalue())
        image = Summary.Image(height=first.height, width=first.width, colorspace=3, encoded_image_string=buffer.getvalue())
        self._writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)
        return path

    def close(self) -> None:
        self._writer.close()


def _mean(values: list) -> float:
    if torch.is_tensor(values[0]):
        return torch.stack([value.float() for value in values]).mean().item()
    return float(np.mean(values))


class Every:
    """True when a counter has passed another multiple of `every` since the last call; never if `every` is 0."""

    def __init__(self, every: int, start: int = 0):
        self._every = every
        self._last = start // every if every else 0

    def __call__(self, count: int) -> bool:
        if not self._every or count // self._every == self._last:
            return False
        self._last = count // self._every
        return True


class Timer:
    """True when `seconds` have passed since it last was."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._last = time.monotonic()

    def __call__(self) -> bool:
        if time.monotonic() - self._last < self._seconds:
            return False
        self.restart()
        return True

    def restart(self) -> None:
        self._last = time.monotonic()


@contextlib.contextmanager
def replacing(path: pathlib.Path):
    """Opens a file for writing that takes the place of `path` only when it is complete and on the disk."""
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


class Speed:
    """Rates of counters between calls, per second.

    Args:
        counts: starting values by the names of the rates.
    """

    def __init__(self, **counts: int):
        self._counts, self._time = counts, time.monotonic()

    def __call__(self, **counts: int) -> dict[str, float]:
        now = time.monotonic()
        rates = {name: (count - self._counts[name]) / (now - self._time) for name, count in counts.items()}
        self._counts, self._time = counts, now
        return rates


class StopSignal:
    """True once Ctrl-C or SIGTERM has asked the program to end; a second Ctrl-C ends it at once. Use as a context manager."""

    def __init__(self):
        self._requested = False

    def __bool__(self) -> bool:
        return self._requested

    def __enter__(self) -> "StopSignal":
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _) -> None:
        self._requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("Stopping after this update; everything is saved first (Ctrl-C again to stop at once).", flush=True)


class UpdateBudget:
    """How many updates are due, so that every collected step is replayed `train_ratio` times.

    Args:
        train_ratio: replayed steps per agent step.
        batch_steps: steps that one update replays.
    """

    def __init__(self, train_ratio: float, batch_steps: int):
        self._updates_per_step = train_ratio / batch_steps
        self.credit = 0.0  # updates due, fractions carried over

    def add(self, steps: int) -> None:
        """Counts collected agent steps."""
        self.credit += steps * self._updates_per_step

    def take(self) -> int:
        """The number of updates that are due now."""
        updates = int(self.credit)
        self.credit -= updates
        return updates


def pick_device(name: str) -> str:
    """The device that the setting `device` means; auto takes a GPU where there is one."""
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def keep_freed_memory() -> None:
    """Tells glibc to keep large freed blocks, which an update would otherwise fetch anew from the kernel each time."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_max = -1, -4  # from glibc's malloc.h
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2 ** 31 - 1)
    except (OSError, AttributeError):
        pass  # another C library: nothing to tune


def set_seed(seed: int) -> None:
    """Seeds Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
