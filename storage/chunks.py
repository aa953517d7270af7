"""Replay chunks of the JAX DreamerV3 (danijar/dreamerv3, 2025), converted to episodes and latents as this program stores them.

A chunk is a file {timestamp}-{uuid}-{uuid of the next chunk}-{L}.npz of arrays (L, ...): L consecutive steps of one environment. The next
chunk goes on with that environment. An episode can span several chunks, and a chunk can hold several episodes.

Shapes: L steps of a chunk or an episode, A action, S categoricals of K classes.
"""

import functools
import itertools
import math
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import gymnasium
import numpy as np

import console
from envs.spaces import ActionPart, OneHot
from storage import archives
from storage import latents as latent_files
from storage.episodes import save_episode

MOST_CHUNK_BYTES = 2**30  # unpacked
MOST_WARNINGS = 10  # of chunks that cannot be used; `Taken` counts all
MOST_EPISODE_BYTES = 2**28  # longer episodes are cut: they are written from memory
FLAGS = ("is_first", "is_last", "is_terminal")
NAME = re.compile(r"([0-9]{8}T[0-9]{6})F([0-9]{6})-([0-9A-Za-z]+)-([0-9A-Za-z]+)-([0-9]{1,9})")
NUMBERS, INTEGERS, FLOATS, BYTES, BOOLS = tuple("biuf"), tuple("biu"), ("f",), ("u1",), ("b",)  # how codes of dtypes begin


class Taken(NamedTuple):
    """What `take_over` has converted.

    Attributes:
        episodes: written files.
        steps: agent steps in them; the first observation of an episode is not a step.
        latents: observations in them that have latents, first ones included.
        skipped: chunks that cannot be used.
    """

    episodes: int
    steps: int
    latents: int
    skipped: int


class Chunk(NamedTuple):
    """A chunk with the expected headers; `latents`: whether it holds latents of the expected sizes."""

    path: pathlib.Path
    time: str
    uuid: str
    successor: str
    length: int
    latents: bool


class Field(NamedTuple):
    """An array that every chunk has: its name there, the size of a step (of any shape) or its exact shape, dtypes, and its conversion."""

    name: str
    size: int | tuple[int, ...]
    dtypes: tuple[str, ...]
    convert: Callable[[np.ndarray], np.ndarray] = np.asarray


class Part(NamedTuple):
    """Consecutive steps of an episode, from index `start` of a chunk on; `latents`: whether the chunk has latents for them."""

    chunk: Chunk
    start: int
    latents: bool
    steps: dict[str, np.ndarray]

    @property
    def length(self) -> int:
        """Number of steps."""
        return len(self.steps["stepid"])


class Place(NamedTuple):
    """Where the latents of a piece of an episode are: from index `start` of the chunk at `path` on."""

    path: pathlib.Path
    start: int
    piece: latent_files.Piece


def take_over(
    source: pathlib.Path,
    directory: pathlib.Path,
    obs_space: gymnasium.spaces.Dict,
    parts: dict[str, ActionPart],
    *,
    renamed: dict[str, str],
    latents: latent_files.Layout | None,
    latent: tuple[int, int],
    latents_path: pathlib.Path,
    capacity: int,
) -> Taken:
    """Converts chunks; warns of those that cannot be used. A repeated call writes the same files again, or replaces those that have grown.

    A step of a chunk holds the action chosen after its observation, a step of an episode the action that led to it. An episode whose
    beginning is missing starts with the first step that is there; one whose end is missing is cut off, as by a time limit. An episode
    of a single observation has no agent step and is left out, as `Collector` does.

    Args:
        source: folder of the chunks.
        directory: folder of the episodes.
        obs_space: converted observations, see `ObservationCodec`.
        parts: of the action vector, see `ActionCodec`.
        renamed: names in the chunks, by name of an observation or action part, where they differ.
        latents: shape and dtype of a step's latents by key; None to write none. The categoricals of a chunk fill the levels in the order
            of the layout. Further ones get code 0.
        latent: S and K of the chunks; those with other latents have none.
        latents_path: their file, see `storage.latents`.
        capacity: only the newest chunks are read that together hold so many steps.
    Raises:
        OSError: if a file cannot be written.
    """
    fields = _fields(obs_space, parts, renamed)
    chunks, skipped = _choose(source, fields, latents, latent, capacity)
    earlier = {path.stem.rpartition("-")[0]: path for path in directory.glob("*.npz")}
    lengths, used, places = [], set(), []
    with console.Progress("read replay", len(chunks), "chunks") as progress:
        for episode in _episodes(_parts(chunks, fields, latents, progress)):
            used.update(part.chunk for part in episode)
            length = sum(part.length for part in episode)
            if length > 1:
                lengths.append(length)
                places += _places(_save(directory, episode, earlier), episode)
    if latents is not None:
        _write_latents(latents_path, latents, places)
    stored = sum(place.piece.length for place in places)
    return Taken(len(lengths), sum(lengths) - len(lengths), stored, skipped + len(chunks) - len(used))


def _save(directory: pathlib.Path, episode: list[Part], earlier: dict[str, pathlib.Path]) -> str:
    """Writes the parts of an episode as one; returns the name of the file. Removes the `earlier` file of the same, shorter episode."""
    steps = {key: np.concatenate([part.steps[key] for part in episode]) for key in episode[0].steps}  # (L, ...)
    ids = steps.pop("stepid")
    steps["action"] = np.concatenate([np.zeros_like(steps["action"][:1]), steps["action"][:-1]])
    steps["is_first"][0] = steps["is_last"][-1] = True
    stem = f"{episode[0].chunk.time}-{ids[0].tobytes().hex()}"
    path = save_episode(directory, steps, stem=stem)
    if earlier.get(stem, path).name != path.name:
        earlier[stem].unlink()
    return path.name


def _places(name: str, episode: list[Part]) -> Iterator[Place]:
    """Yields where the latents of an episode are."""
    starts = itertools.accumulate((part.length for part in episode), initial=0)
    for part, start in zip(episode, starts):
        if part.latents:
            yield Place(part.chunk.path, part.start, latent_files.Piece(name, start, part.length))


def _fields(obs_space: gymnasium.spaces.Dict, parts: dict[str, ActionPart], renamed: dict[str, str]) -> dict[str, Field]:
    """What is read of a chunk. Parts of the action are called `action.<name>`, as no observation is."""
    fields = {"reward": Field("reward", (), NUMBERS, lambda values: _numbers(values)[:, 0]), "stepid": Field("stepid", (20,), BYTES)}
    fields |= {flag: Field(flag, (), BOOLS) for flag in FLAGS}
    for key, space in obs_space.spaces.items():
        name = renamed.get(key, key)
        if key.startswith("log_"):
            continue
        elif isinstance(space, OneHot):
            fields[key] = Field(name, len(space.classes), INTEGERS, functools.partial(_one_hots, classes=space.classes, least=-1))
        elif space.dtype == np.uint8:
            fields[key] = Field(name, space.shape, BYTES)
        else:
            fields[key] = Field(name, space.shape[0], NUMBERS, _observed)
    for key, part in parts.items():
        name = renamed.get(key, key)
        if part.classes:
            convert = functools.partial(_one_hots, classes=part.classes, least=0)
            fields[f"action.{key}"] = Field(name, len(part.classes), INTEGERS, convert)
        else:
            fields[f"action.{key}"] = Field(name, part.size, FLOATS, _bounded)
    return fields


def _one_hots(values: np.ndarray, classes: tuple[int, ...], least: int) -> np.ndarray:
    """Integers (L, ...) -> concatenated one-hots (L, sum of classes); -1, if allowed, becomes zeros."""
    values = values.reshape(len(values), -1)  # (L, number of one-hots)
    if (values < least).any() or (values >= np.array(classes)).any():
        raise ValueError(f"has values from {values.min()} to {values.max()}; expected are classes of {classes}")
    return np.concatenate([value[:, None] == np.arange(count) for value, count in zip(values.T, classes)], -1).astype(np.float32)


def _numbers(values: np.ndarray) -> np.ndarray:
    """Numbers (L, ...) -> (L, n) float32."""
    with np.errstate(over="ignore"):
        values = values.reshape(len(values), -1).astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise ValueError("has numbers that are not finite")
    return values


def _observed(values: np.ndarray) -> np.ndarray:
    """Observed numbers (L, ...) -> (L, n) float32; -inf, which stands for absent ones, becomes 0."""
    return _numbers(np.where(values == -np.inf, 0, values))


def _bounded(values: np.ndarray) -> np.ndarray:
    """Continuous actions (L, ...) -> (L, n) as the network there reads them, see `distributions.bounded`."""
    values = _numbers(values)
    return values / np.maximum(np.abs(values), 1.0)


def _choose(
    source: pathlib.Path, fields: dict[str, Field], latents: latent_files.Layout | None, latent: tuple[int, int], capacity: int
) -> tuple[list[Chunk], int]:
    """The newest chunks that hold `capacity` steps, each before its successor, and how many others cannot be used."""
    chosen, skipped, room = {}, 0, capacity
    for path in sorted(source.glob("*.npz"), reverse=True):
        if room <= 0:
            break
        chunk = _unless_damaged(f"replay chunk {path}", _check, path, fields, latents, latent, quiet=skipped >= MOST_WARNINGS)
        skipped += chunk is None
        if chunk and chunk.uuid not in chosen:
            chosen[chunk.uuid] = chunk
            room -= chunk.length
    successors = {chunk.successor for chunk in chosen.values()}
    waiting = {chunk.uuid: chunk for chunk in sorted(chosen.values(), key=lambda chunk: (chunk.uuid in successors, chunk.path.name))}
    ordered = []
    while waiting:
        uuid = next(iter(waiting))
        while uuid in waiting:
            ordered.append(waiting.pop(uuid))
            uuid = ordered[-1].successor
    return ordered, skipped


def _check(path: pathlib.Path, fields: dict[str, Field], latents: latent_files.Layout | None, latent: tuple[int, int]) -> Chunk:
    """Compares the name and the headers of a chunk with what is expected, and raises nearly any exception if they differ."""
    match = NAME.fullmatch(path.stem)
    if not path.is_file():
        raise ValueError("it is no file")
    if not match or not int(match[5]):
        raise ValueError("its name is not <timestamp>-<uuid>-<uuid of the next>-<number of steps>.npz")
    headers, length = archives.npz_headers(path, MOST_CHUNK_BYTES), int(match[5])
    for name, size, dtypes, _ in fields.values():
        if name not in headers:
            raise ValueError(f"it lacks {name}; it has {console.first(sorted(headers), count=20)}")
        shape, dtype = headers[name]
        found = math.prod(shape[1:]) if isinstance(size, int) else shape[1:]
        if shape[:1] != (length,) or found != size or not dtype.str[1:].startswith(dtypes):
            raise ValueError(f"{name} is {dtype} of shape {shape}; expected are {length} steps of {size}, dtype {' or '.join(dtypes)}")
    return Chunk(path, match[1] + match[2], match[3], match[4], length, latents is not None and _fit(headers, length, latents, latent))


def _fit(headers: dict[str, archives.Header], length: int, latents: latent_files.Layout, latent: tuple[int, int]) -> bool:
    """Whether a chunk has latents of these sizes: deter (L, D) and one-hots (L, S, K)."""
    expected = {"dyn/deter": (length, *latents["deter"][0]), "dyn/stoch": (length, *latent)}
    return all(name in headers and headers[name].shape == shape and headers[name].dtype.kind == "f" for name, shape in expected.items())


def _parts(
    chunks: list[Chunk], fields: dict[str, Field], latents: latent_files.Layout | None, progress: console.Progress
) -> Iterator[tuple[bool, Part]]:
    """Yields the steps of all chunks, split where episodes begin, and whether an episode begins with them."""
    expected = None  # the chunk that goes on with the last steps
    for number, chunk in enumerate(chunks):
        progress.update(number)
        steps = _unless_damaged(f"replay chunk {chunk.path}", _read, chunk.path, fields)
        if steps is None:
            continue
        stored = chunk.latents and bool(_unless_damaged(f"latents in {chunk.path}", _read_latents, chunk.path, latents))
        begins = steps["is_first"].copy()
        begins[1:] |= steps["is_last"][:-1]
        begins[0] |= chunk.uuid != expected
        for start, stop in itertools.pairwise([0, *(np.flatnonzero(begins[1:]) + 1).tolist(), chunk.length]):
            yield begins[start], Part(chunk, start, stored, {key: array[start:stop] for key, array in steps.items()})
        expected = None if steps["is_last"][-1] else chunk.successor
    progress.update(len(chunks))


def _read(path: pathlib.Path, fields: dict[str, Field]) -> dict[str, np.ndarray]:
    """Reads the steps of a chunk, arrays (L, ...). The entry `action` holds the action vectors (L, A) chosen at each step."""
    with np.load(path, allow_pickle=False) as file:
        steps = {key: _converted(field, file[field.name]) for key, field in fields.items()}
    steps["action"] = np.concatenate([steps.pop(key) for key in fields if key.startswith("action.")], -1)
    return steps


def _converted(field: Field, values: np.ndarray) -> np.ndarray:
    try:
        return field.convert(values)
    except ValueError as error:
        raise ValueError(f"{field.name} {error}") from error


def _episodes(parts: Iterator[tuple[bool, Part]]) -> Iterator[list[Part]]:
    """Yields the parts of each episode; those of one that is too long, in pieces."""
    episode, size = [], 0
    for begins, part in parts:
        if episode and (begins or size > MOST_EPISODE_BYTES):
            yield episode
            episode, size = [], 0
        episode.append(part)
        size += sum(array.nbytes for array in part.steps.values())
    if episode:
        yield episode


def _write_latents(path: pathlib.Path, layout: latent_files.Layout, places: list[Place]) -> None:
    """Writes the latents of all places. The chunks are read again for each key: all latents together may exceed the memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with console.Progress("read latents", len(places) * len(layout), "pieces") as progress:
        done = itertools.count(1)

        def rows(key: str) -> Iterator[np.ndarray]:
            previous = None
            for place in places:
                if place.path != previous:
                    values, previous = _read_latents(place.path, layout, deter=key == "deter")[key], place.path
                yield values[place.start : place.start + place.piece.length]
                progress.update(next(done))

        latent_files.write(path, layout, [place.piece for place in places], rows)


def _read_latents(path: pathlib.Path, layout: latent_files.Layout, deter: bool = True) -> dict[str, np.ndarray]:
    """Latents (L, n) by key, `deter` only if asked for; codes beyond the categoricals of the chunk are 0."""
    latents, first = {}, 0  # the first categorical of a level
    with np.load(path, allow_pickle=False) as file:
        codes = _codes(file["dyn/stoch"])  # (L, S)
        if deter:
            latents["deter"] = np.ascontiguousarray(_numbers(file["dyn/deter"]))
    for key, ((size,), dtype) in layout.items():
        if key != "deter":
            taken = codes[:, first : first + size]
            latents[key] = np.pad(taken, ((0, 0), (0, size - taken.shape[1]))).astype(dtype)
            first += size
    return latents


def _codes(stoch: np.ndarray) -> np.ndarray:
    """One-hots or zeros (L, S, K) -> codes (L, S), 1 + class index or 0, see `RSSM.pack`."""
    hot = stoch > 0.5
    if not (np.abs(stoch - hot) < 1e-3).all() or (hot.sum(-1) > 1).any():
        raise ValueError("dyn/stoch has rows that are neither one-hots nor zeros")
    return np.where(hot.any(-1), hot.argmax(-1) + 1, 0)


def _unless_damaged(what: str, read: Callable, *args, quiet: bool = False):
    """The result of `read(*args)`; if it fails, warns, unless `quiet`, and returns None."""
    try:
        return read(*args)
    except Exception as error:  # damaged files cause errors of nearly any kind
        if quiet:
            return None
        console.warn(f"skipped the {what}, which cannot be used: {' '.join(str(error).split())}")
        return None
