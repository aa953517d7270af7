"""Episodes on disk: one .npz file each, named as dreamerv3-torch names them."""

import datetime
import io
import os
import pathlib
import re
import uuid
import zipfile
from collections.abc import Collection

import numpy as np

from storage import archives, arrays, files
from storage.disk import Disk

NAME = re.compile(r".*?-(.*)-(\d+)\.npz")  # a time, an id and the length


def save_episode(
    directory: pathlib.Path, episode: dict[str, np.ndarray], disk: Disk | None = None, stem: str | None = None
) -> pathlib.Path:
    """Writes an episode, arrays (L, ...), as {timestamp}-{uuid}-{L}.npz; the file appears under its name only when complete.

    Args:
        disk: tries again later what it cannot write now; without one, that is an error.
        stem: the name up to the length; by default `new_stem()`.
    """
    stem = stem or new_stem()
    path = directory / f"{stem}-{len(episode['reward'])}.npz"
    content = io.BytesIO()
    arrays.write(content, {**episode, "discount": 1.0 - episode["is_terminal"].astype(np.float32)})
    if disk:
        disk.write("episodes", path, content.getvalue())
    else:
        directory.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as file:
            file.write(content.getbuffer())
    return path


def new_stem(id: str = "") -> str:
    """The name of an episode up to its length: the present time, and its id, by default a random one."""
    return f"{datetime.datetime.now():%Y%m%dT%H%M%S%f}-{id or uuid.uuid4().hex}"


def id_of(name: str) -> str:
    """The id in the name of an episode, which the parts of a long one share, see `collect.OpenEpisode`."""
    return NAME.fullmatch(name)[1]


def episode_headers(path: pathlib.Path) -> tuple[int, dict[str, archives.Header]]:
    """Length L of an episode, and the headers of its arrays (L, ...) by name; nothing else of the file is read.

    Raises:
        archives.Unsafe: for a file that must not be read, see `archives.npz_headers`.
        Exception: nearly anything, for a damaged one.
    """
    headers = archives.npz_headers(path)
    return _length(headers), headers


def _length(headers: dict[str, archives.Header]) -> int:
    if "reward" not in headers:
        raise ValueError(f"it lacks reward; it has {', '.join(sorted(headers)) or 'nothing'}")
    length = headers["reward"].shape[:1]
    if any(header.shape[:1] != length for header in headers.values()):
        raise ValueError("its arrays differ in length")
    if not length or not length[0]:
        raise ValueError("it has no steps")
    return length[0]


def load_episode(path: pathlib.Path, keys: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Reads an episode; the last flag, which files of dreamerv3-torch lack, is set on the last step.

    Args:
        keys: the arrays that are read; all if not given.
    Raises:
        As `episode_headers`.
    """
    with zipfile.ZipFile(path) as archive:
        headers = archives.headers_in(archive)
        length = _length(headers)
        episode = arrays.read(archive, [key for key in headers if keys is None or key in keys])
    if "is_last" not in episode:
        episode["is_last"] = np.arange(length) == length - 1
    return episode


def names_in(directory: pathlib.Path) -> list[str]:
    """Names of all .npz files of a folder, the oldest first; none if there is no such folder."""
    return sorted(name for name in os.listdir(directory) if name.endswith(".npz")) if directory.is_dir() else []


def stored_steps(directory: pathlib.Path) -> dict[str, int]:
    """Agent steps of every episode on disk by its file's name, oldest first; the first observation of an episode is not a step.

    Only names are read: there may be hundreds of thousands.
    """
    found = {name: NAME.fullmatch(name) for name in names_in(directory)}
    return {name: int(match[2]) - 1 for name, match in found.items() if match}


def old_episodes(directory: pathlib.Path, capacity: int) -> list[tuple[str, int]]:
    """Episodes that a memory of this capacity would not load, since newer ones fill it, and their agent steps; the newest first."""
    old, room = [], capacity
    for name, steps in reversed(stored_steps(directory).items()):
        if room <= 0:
            old.append((name, steps))
        room -= steps + 1
    return old
