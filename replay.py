"""Replay memory."""

import collections
import copy
import mmap
import pathlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import gymnasium
import numpy as np

import console
from storage import archives
from storage import latents as latent_files
from storage.episodes import episode_headers, load_episode, names_in
from storage.memory import available_memory

FLAGS = ("is_first", "is_last", "is_terminal")
PIECE = 1000  # steps whose latents are written or read at once


def _unless_damaged(read: Callable, path: pathlib.Path, *args):
    """The result of `read(path, *args)`; if it fails, warns and returns None."""
    try:
        return read(path, *args)
    except Exception as error:  # damaged files cause errors of nearly any kind
        console.warn(f"skipped the episode {path}, which cannot be read: {' '.join(str(error).split())}")
        return None


class Drawn(NamedTuple):
    """The positions of a batch.

    Attributes:
        stream: (B, 1).
        number: running numbers of the steps in their streams, (B, T).
        seam: whether a step is the oldest of its stream, (B, T).
        context: latents of the step before each sequence, (B, ...) by key; zeros before the oldest step.
    """

    stream: np.ndarray
    number: np.ndarray
    seam: np.ndarray
    context: dict[str, np.ndarray]


class StoredEpisode(NamedTuple):
    """The steps of a stream that an episode on disk holds.

    Attributes:
        first: number of the first step, which may be overwritten by now.
        length: number of steps.
        name: of the file.
    """

    first: int
    length: int
    name: str


class Replay:
    """The newest steps of several environments in preallocated arrays, sampled as sequences.

    Each environment writes to its own ring buffer, called a stream. Start positions are uniform over all stored steps.
    A sequence continues across episode ends, and from the newest step of a stream to its oldest. `is_first` is true at
    the start of an episode and at this seam; `is_last` is true before each of them.

    As an iterator, the memory copies the next batch in a thread while the caller uses the present one. A batch
    therefore lacks the steps that were added after the previous call.

    With `latents` the memory stores the agent's latents with every step, at first zeros. A batch then has two more
    entries: "replay.context", the latents of the step before each sequence, (B, ...) by key, and "replay.steps"
    (B, T, 2) int64, the stream and the running number of each step, for `write_latents`. The context is read when the
    batch is handed out. Where a sequence begins with the oldest step of a stream, it is zeros.

    Shapes: B batch, T time, N environments, L length of an episode, A action.

    Args:
        obs_space: gymnasium Dict of images and vectors.
        action_size: length A of an action vector.
        capacity: largest number of steps, over all streams.
        streams: number of environments N.
        batch_size: B.
        batch_length: T.
        seed: seed of the sampling.
        online: replay every stretch of T new steps (T + 1 with latents) once before steps are drawn at random.
        latents: shape and dtype of a step's latents by key; None to store none.
        sharers: how many processes on this machine have a memory of this size.
    Attributes:
        latent_layout: shape and dtype of a step's latents by key; empty if none are stored.
        nbytes: size of the arrays.
        latent_nbytes: size of the latents alone.
        latents_changed: whether latents of episodes on disk differ from those that were last saved or loaded.
        rng: random generator of the sampling.
    Raises:
        ValueError: if the arrays do not fit into free memory.
    """

    def __init__(
        self,
        obs_space: gymnasium.spaces.Dict,
        action_size: int,
        *,
        capacity: int,
        streams: int,
        batch_size: int,
        batch_length: int,
        seed: int = 0,
        online: bool = False,
        latents: dict[str, tuple[tuple[int, ...], np.dtype]] | None = None,
        sharers: int = 1,
    ):
        self.action_size = action_size
        self._batch_size, self._batch_length = batch_size, batch_length
        self._stream_capacity = max(1, capacity // streams)
        self._count = np.zeros(streams, np.int64)  # (N,), steps that each stream has received: the next one's number
        self.rng = np.random.default_rng(seed)
        layout = {key: (space.shape, space.dtype) for key, space in obs_space.spaces.items() if not key.startswith("log_")}
        layout.update({"action": ((action_size,), np.dtype(np.float32)), "reward": ((), np.dtype(np.float32))})
        layout.update({flag: ((), np.dtype(bool)) for flag in FLAGS})
        self.latent_layout = latents or {}
        latent_bytes = _step_bytes(self.latent_layout)
        step_bytes = _step_bytes(layout) + latent_bytes
        self.nbytes, self.latent_nbytes = step_bytes * self.capacity, latent_bytes * self.capacity
        free = available_memory()
        if free is not None and sharers * self.nbytes > free.bytes:
            raise ValueError(
                f"replay memory of {sharers * self.capacity} steps takes {sharers * self.nbytes / 1e9:.1f} GB, but "
                f"{free.bytes / 1e9:.1f} GB are free ({free.limit}); set dataset_size to at most {int(0.9 * free.bytes / step_bytes)}"
            )
        self._copier: ThreadPoolExecutor | None = None
        self._next: Future | None = None  # the batch that the thread copies
        self._drawn: Drawn | None = None  # its positions
        self._arrays = self._allocate(layout)
        self._latents = self._allocate(self.latent_layout)  # only the caller's thread reads and writes them
        self.latents_changed = False
        self._stored_episodes = [collections.deque() for _ in range(streams)]  # `StoredEpisode` of each stream, the oldest first
        self._stretch = batch_length + bool(latents)
        self._unqueued = np.zeros(streams, np.int64)  # (N,), steps since the last queued stretch
        # The stream and the first replayed number of stretches that wait; no more than the memory holds.
        self._queue = collections.deque(maxlen=streams * (self._stream_capacity // self._stretch) if online else 0)

    def _allocate(self, layout: dict) -> dict[str, np.ndarray]:
        """Arrays (N, capacity of a stream, ...) by key."""
        return {key: _own_array((len(self._count), self._stream_capacity, *shape), dtype) for key, (shape, dtype) in layout.items()}

    @property
    def capacity(self) -> int:
        """Largest number of steps, over all streams."""
        return len(self._count) * self._stream_capacity

    @property
    def stores_latents(self) -> bool:
        """Whether the agent's latents are stored with every step."""
        return bool(self._latents)

    @property
    def _size(self) -> np.ndarray:
        """Stored steps of each stream, (N,)."""
        return np.minimum(self._count, self._stream_capacity)

    @property
    def _oldest(self) -> np.ndarray:
        """Number of the oldest stored step of each stream, (N,)."""
        return self._count - self._size

    def __len__(self) -> int:
        return int(self._size.sum())

    def add(self, step: dict[str, np.ndarray]) -> None:
        """Appends one step of every environment.

        Args:
            step: arrays (N, ...) by key; keys without an array in memory are ignored.
        """
        self._finish_copy()
        streams, index = np.arange(len(self._count)), self._count % self._stream_capacity
        for key, array in self._arrays.items():
            array[streams, index] = step[key]
        for array in self._latents.values():
            array[streams, index] = 0
        self._count += 1
        self._unqueued += 1
        for stream in np.flatnonzero(self._unqueued == self._stretch):
            self._queue.append((stream, self._count[stream] - self._batch_length))
            self._unqueued[stream] = 0

    def add_episode(self, episode: dict[str, np.ndarray], name: str = "") -> None:
        """Appends an episode to the stream with the fewest steps. It is not replayed before others.

        Args:
            episode: arrays (L, ...) by key; if L exceeds the stream's capacity, the first steps are dropped.
            name: of its file; empty if it has none.
        """
        self._finish_copy()
        stream = int(self._size.argmin())
        length = min(len(episode["reward"]), self._stream_capacity)
        index = (self._count[stream] + np.arange(length)) % self._stream_capacity
        for key, array in self._arrays.items():
            array[stream, index] = episode[key][-length:]
        for array in self._latents.values():
            array[stream, index] = 0
        self._count[stream] += length
        self._unqueued[stream] = 0
        if name:
            self.note_episode(stream, len(episode["reward"]), name)

    def note_episode(self, stream: int, length: int, name: str) -> None:
        """Notes that the newest `length` steps of a stream are the episode in the file `name`; see `save_latents`."""
        if not self._latents:
            return
        named, oldest = self._stored_episodes[stream], self._oldest[stream]
        while named and named[0].first + named[0].length <= oldest:
            named.popleft()
        named.append(StoredEpisode(int(self._count[stream]) - length, length, name))
        self.latents_changed = True

    def end_episodes(self, streams: np.ndarray | None = None) -> None:
        """Sets `is_last` on the newest step of streams whose environments are reset in the middle of an episode.

        Args:
            streams: their indices; None for all.
        """
        self._finish_copy()
        streams = np.arange(len(self._count)) if streams is None else streams
        newest = (self._count[streams] - 1) % self._stream_capacity
        self._arrays["is_last"][streams, newest] |= self._count[streams] > 0

    def sample(self, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """Draws a batch of sequences.

        Args:
            rng: random generator, which leaves the memory as it is; None for the memory's own, and the waiting stretches.
        Returns:
            arrays (B, T, ...) by key.
        Raises:
            ValueError: if no step is stored.
        """
        drawn = self._draw(self.rng, self._take_stretches()) if rng is None else self._draw(rng)
        return self._hand_out(self._copy(drawn), drawn)

    def _take_stretches(self) -> list[tuple[int, int]]:
        """Stream and first number of up to B new stretches that are still stored; they wait no longer."""
        taken, oldest = [], self._oldest
        while self._queue and len(taken) < self._batch_size:
            stream, first = self._queue.popleft()
            if first + self._batch_length - self._stretch >= oldest[stream]:
                taken.append((stream, first))
        return taken

    def _draw(self, rng: np.random.Generator, given: list[tuple[int, int]] | None = None) -> Drawn:
        """Draws the positions of a batch; its first rows begin with the `given` streams and numbers."""
        if not len(self):
            raise ValueError("replay memory is empty; collect steps before sampling")
        size, oldest = self._size, self._oldest
        ends = size.cumsum()
        given = np.array(given or [], np.int64).reshape(-1, 2)
        start = rng.integers(ends[-1], size=self._batch_size - len(given))
        stream = np.searchsorted(ends, start, side="right")
        age = start - (ends - size)[stream]  # steps since the stream's oldest
        age = np.concatenate([given[:, 1] - oldest[given[:, 0]], age])  # (B,)
        stream = np.concatenate([given[:, 0], stream])[:, None]  # (B, 1)
        position = (age[:, None] + np.arange(self._batch_length)) % size[stream]  # (B, T)
        number = oldest[stream] + position
        context = self._latents_of(stream[:, 0], number[:, 0] - 1)
        for value in context.values():
            value[age == 0] = 0
        return Drawn(stream, number, position == 0, context)

    def _copy(self, drawn: Drawn) -> dict[str, np.ndarray]:
        """Copies the steps of a batch, (B, T, ...)."""
        index = drawn.number % self._stream_capacity
        batch = {key: array[drawn.stream, index] for key, array in self._arrays.items()}
        batch["is_first"] |= drawn.seam
        batch["is_last"][:, :-1] |= batch["is_first"][:, 1:]
        return batch

    def _hand_out(self, batch: dict[str, np.ndarray], drawn: Drawn) -> dict:
        """Adds step ids and the newest context. The context of a step that is no longer stored is that of the draw."""
        if self._latents:
            stream, before = drawn.stream[:, 0], drawn.number[:, 0] - 1
            held = before >= self._oldest[stream]
            for key, value in self._latents_of(stream[held], before[held]).items():
                drawn.context[key][held] = value
            batch["replay.context"] = drawn.context
            batch["replay.steps"] = np.stack(np.broadcast_arrays(drawn.stream, drawn.number), -1)
        return batch

    def _latents_of(self, stream: np.ndarray, number: np.ndarray) -> dict[str, np.ndarray]:
        """Copies the latents at these places, (B, ...) by key."""
        return {key: array[stream, number % self._stream_capacity] for key, array in self._latents.items()}

    def write_latents(self, steps: np.ndarray, latents: dict[str, np.ndarray]) -> None:
        """Stores new latents with steps. Left out are steps that are no longer stored, and latents that are not finite.

        Args:
            steps: their streams and numbers (..., 2), as in the entry "replay.steps" of a batch; of a repeated step the last one counts.
            latents: arrays (..., n) by key.
        """
        stream, number = steps[..., 0], steps[..., 1]
        kept = number >= self._oldest[stream]
        for value in latents.values():
            kept &= np.isfinite(value).all(-1)
        stream, index = stream[kept], number[kept] % self._stream_capacity
        for key, array in self._latents.items():
            array[stream, index] = latents[key][kept]
        self.latents_changed = True

    def set_newest_latents(self, latents: dict[str, np.ndarray]) -> None:
        """Stores latents (N, n) by key with the newest step of every stream."""
        self.write_latents(np.stack([np.arange(len(self._count)), self._count - 1], -1), latents)

    def save_latents(self, path: pathlib.Path) -> None:
        """Writes the latents of all steps that episodes on disk hold, see `note_episode`, without copying them.

        Raises:
            OSError: if the file cannot be written; an older one stays as it was.
        """
        places = []  # stream, index in it, and piece of an episode
        for stream, named in enumerate(self._stored_episodes):
            oldest = int(self._oldest[stream])
            for first, length, name in named:
                number = max(first, oldest)
                while number < first + length:
                    index = number % self._stream_capacity
                    count = min(first + length - number, self._stream_capacity - index, PIECE)
                    places.append((stream, index, latent_files.Piece(name, number - first, count)))
                    number += count
        latent_files.write(
            path,
            self.latent_layout,
            [piece for *_, piece in places],
            lambda key: (self._latents[key][stream, index : index + piece.length] for stream, index, piece in places),
        )
        self.latents_changed = False

    def load_latents(self, path: pathlib.Path, codes: dict[str, int] | None = None) -> int:
        """Reads what `save_latents` wrote, for the stored steps of episodes that were loaded by name.

        Args:
            path: the file.
            codes: how many values the codes of `RSSM.pack` have, by key.
        Returns:
            how many stored steps got their latents; the others keep theirs.
        Raises:
            Exception: of nearly any kind, for a damaged file, or one of another layout; the latents of its steps are zeros then.
        """
        named = {episode.name: (stream, episode) for stream, found in enumerate(self._stored_episodes) for episode in found}
        places, oldest = [], self._oldest
        pieces = latent_files.read_index(path, self.latent_layout)
        for name, start, length in pieces:
            stream, episode = named.get(name, (0, StoredEpisode(0, 0, "")))
            number = episode.first + start + np.arange(min(length, max(0, episode.length - start)))
            places.append((stream, number, number >= oldest[stream]))
        try:
            for key, array in self._latents.items():
                rows = latent_files.read_rows(path, key, pieces, (codes or {}).get(key))
                for (stream, number, kept), values in zip(places, rows):
                    array[stream, number[kept] % self._stream_capacity] = values[: len(number)][kept]
        except Exception:
            for array in self._latents.values():
                for stream, number, kept in places:
                    array[stream, number[kept] % self._stream_capacity] = 0
            raise
        self.latents_changed = False
        return int(sum(kept.sum() for *_, kept in places))

    def _finish_copy(self) -> None:
        """Waits for the thread. Without this, it could read steps while they are overwritten."""
        if self._next:
            self._next.result()

    def __getstate__(self) -> dict:
        # Threads cannot be copied. A copy of the memory draws its next batch itself.
        return {**self.__dict__, "_copier": None, "_next": None}

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch, as from `sample`; a thread then copies the one after it.

        The positions of that batch are drawn now, from the steps stored by now.
        """
        batch = self._hand_out(self._next.result(), self._drawn) if self._next else self.sample()
        self._copier = self._copier or ThreadPoolExecutor(1)
        self._before_next = copy.deepcopy(self.rng)
        self._drawn = self._draw(self.rng, self._take_stretches())  # here, and not in the thread, for reproducibility
        self._next = self._copier.submit(self._copy, self._drawn)
        return batch

    @property
    def next_rng(self) -> np.random.Generator:
        """The generator before it drew the batch that waits. A resumed run draws the same batch from it."""
        return self._before_next if self._next else self.rng

    def load(self, directory: pathlib.Path, rank: int = 0, count: int = 1) -> int:
        """Appends the newest episodes on disk that fit, oldest first. Warns of damaged files and skips them.

        Args:
            directory: folder of .npz files, named so that their order is that of time.
            rank, count: which of so many equal parts of the episodes are loaded.
        Returns:
            loaded agent steps; the first observation of an episode is not a step.
        """
        names = names_in(directory)[rank::count]
        with console.Progress("look for episodes", self.capacity, "steps", brief=True) as progress:
            chosen, skipped = self._choose(directory, names, progress)
        loaded = []
        with console.Progress("load", len(chosen), "episodes", brief=True) as progress:
            for number, path in enumerate(reversed(chosen), start=1):
                if episode := _unless_damaged(load_episode, path, self._arrays.keys()):
                    self.add_episode(episode, path.name)
                    loaded.append(len(episode["reward"]))
                progress.update(number)
        skipped += len(chosen) - len(loaded)
        if skipped:
            console.warn(
                f"skipped {skipped} damaged episode{'s' if skipped > 1 else ''}, loaded {len(loaded)}; training goes on "
                "without what they held"
            )
        return sum(loaded) - len(loaded)

    def _choose(self, directory: pathlib.Path, names: list[str], progress: console.Progress) -> tuple[list[pathlib.Path], int]:
        """The newest episodes that fit, the newest first, and how many others were skipped. No headers of older files are read."""
        chosen, room, skipped = [], self.capacity, 0
        for name in reversed(names):
            if room <= 0:
                break
            path = directory / name
            if length := _unless_damaged(self._length_of, path):
                chosen.append(path)
                room -= length
            else:
                skipped += 1
            progress.update(self.capacity - room)
        return chosen, skipped

    def _length_of(self, path: pathlib.Path) -> int:
        """Length of an episode on disk.

        Raises:
            ValueError: if its arrays do not fit into this memory.
            Exception: of nearly any kind, for a damaged file.
        """
        length, headers = episode_headers(path)
        missing = self._arrays.keys() - headers.keys() - {"is_last"}
        if missing:
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        for key, array in self._arrays.items():
            shape, dtype = headers.get(key, archives.Header((length,), np.dtype(bool)))
            if shape[1:] != array.shape[2:]:
                raise ValueError(f"{key} has shape {shape[1:]}, expected {array.shape[2:]}")
            if dtype.kind not in "biuf" or (array.dtype == np.uint8) != (dtype == np.uint8 and len(shape) == 4):
                raise ValueError(f"{key} is {dtype}, expected {array.dtype}")
        return length


def _step_bytes(layout: dict[str, tuple[tuple[int, ...], np.dtype]]) -> int:
    return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in layout.values())


def _own_array(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros in memory that is not inherited by forked processes.

    Inherited pages would be duplicated as soon as they are overwritten here.
    """
    size = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_DONTFORK"):
        memory.madvise(mmap.MADV_DONTFORK)
    return np.frombuffer(memory, dtype, int(np.prod(shape))).reshape(shape)
