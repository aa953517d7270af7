"""Episodes on disk: one .npz file each, named as dreamerv3-torch names them."""

import datetime
import io
import pathlib
import uuid
from collections.abc import Collection

import numpy as np

from storage import archives, files
from storage.disk import Disk


def save_episode(
    directory: pathlib.Path, episode: dict[str, np.ndarray], disk: Disk | None = None, stem: str | None = None
) -> pathlib.Path:
    """Writes an episode, arrays (L, ...), as {timestamp}-{uuid}-{L}.npz; the file appears under its name only when complete.

    Args:
        disk: tries again later what it cannot write now; without one, that is an error.
        stem: the name up to the length; by default the present time and a random id.
    """
    stem = stem or f"{datetime.datetime.now():%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex}"
    path = directory / f"{stem}-{len(episode['reward'])}.npz"
    content = io.BytesIO()
    np.savez_compressed(content, **episode, discount=1.0 - episode["is_terminal"].astype(np.float32))
    if disk:
        disk.write("episodes", path, content.getvalue())
    else:
        directory.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as file:
            file.write(content.getbuffer())
    return path


def episode_headers(path: pathlib.Path) -> tuple[int, dict[str, archives.Header]]:
    """Length L of an episode, and the headers of its arrays (L, ...) by name; nothing else of the file is read.

    Raises:
        archives.Unsafe: for a file that must not be read, see `archives.npz_headers`.
        Exception: nearly anything, for a damaged one.
    """
    headers = archives.npz_headers(path)
    if "reward" not in headers:
        raise ValueError(f"it lacks reward; it has {', '.join(sorted(headers)) or 'nothing'}")
    length = headers["reward"].shape[:1]
    if any(header.shape[:1] != length for header in headers.values()):
        raise ValueError("its arrays differ in length")
    if not length or not length[0]:
        raise ValueError("it has no steps")
    return length[0], headers


def load_episode(path: pathlib.Path, keys: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Reads an episode; the last flag, which files of dreamerv3-torch lack, is set on the last step.

    Args:
        keys: the arrays that are read; all if not given.
    Raises:
        As `episode_headers`.
    """
    length, headers = episode_headers(path)
    with np.load(path, allow_pickle=False) as file:
        episode = {key: file[key] for key in headers if keys is None or key in keys}
    if "is_last" not in episode:
        episode["is_last"] = np.arange(length) == length - 1
    return episode


def stored_steps(directory: pathlib.Path) -> dict[pathlib.Path, int]:
    """Agent steps of every episode on disk, oldest first, from their names; the first observation of an episode is not a step."""
    lengths = {path: path.stem.rpartition("-")[-1] for path in sorted(directory.glob("*-*-*.npz"))}
    return {path: int(length) - 1 for path, length in lengths.items() if length.isdecimal()}


def old_episodes(directory: pathlib.Path, capacity: int) -> list[tuple[pathlib.Path, int]]:
    """Episodes that a memory of this capacity would not load, since newer ones fill it, and their agent steps; the newest first."""
    old, room = [], capacity
    for path, steps in reversed(stored_steps(directory).items()):
        if room <= 0:
            old.append((path, steps))
        room -= steps + 1
    return old
