"""Replay memory."""

import copy
import mmap
import pathlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import gymnasium
import numpy as np

import console
from storage import archives
from storage.episodes import episode_headers, load_episode

FLAGS = ("is_first", "is_last", "is_terminal")


def _unless_damaged(read: Callable, path: pathlib.Path, *args):
    """The result of `read(path, *args)`; if it fails, warns and returns None."""
    try:
        return read(path, *args)
    except Exception as error:  # damaged files cause errors of nearly any kind
        console.warn(f"skipped the episode {path}, which cannot be read: {' '.join(str(error).split())}")
        return None


class Replay:
    """The newest steps of several environments in preallocated arrays, sampled as sequences.

    Each environment writes to its own ring buffer, called a stream. Start positions are uniform over all stored steps.
    A sequence continues across episode ends, and from the newest step of a stream to its oldest. `is_first` is true at
    the start of an episode and at this seam.

    As an iterator, the memory copies the next batch in a thread while the caller uses the present one. A batch
    therefore lacks the steps that were added after the previous call.

    Shapes: B batch, T time, N environments, L length of an episode, A action.

    Args:
        obs_space: gymnasium Dict of images and vectors.
        action_size: length A of an action vector.
        capacity: largest number of steps, over all streams.
        streams: number of environments N.
        batch_size: B.
        batch_length: T.
        seed: seed of the sampling.
    Attributes:
        nbytes: size of the arrays.
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
    ):
        self.action_size = action_size
        self._batch_size, self._batch_length = batch_size, batch_length
        self._stream_capacity = max(1, capacity // streams)
        self._head = np.zeros(streams, np.int64)  # (N,), where each stream writes next
        self._size = np.zeros(streams, np.int64)  # (N,), stored steps of each stream
        self.rng = np.random.default_rng(seed)
        layout = {key: (space.shape, space.dtype) for key, space in obs_space.spaces.items() if not key.startswith("log_")}
        layout.update({"action": ((action_size,), np.dtype(np.float32)), "reward": ((), np.dtype(np.float32))})
        layout.update({flag: ((), np.dtype(bool)) for flag in FLAGS})
        step_bytes = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in layout.values())
        self.nbytes = step_bytes * self.capacity
        free = available_memory()
        if free is not None and self.nbytes > free:
            raise ValueError(
                f"replay memory of {self.capacity} steps takes {self.nbytes / 1e9:.1f} GB, but {free / 1e9:.1f} GB are "
                f"free; set dataset_size to at most {int(0.9 * free / step_bytes)}"
            )
        self._copier: ThreadPoolExecutor | None = None
        self._next: Future | None = None  # the batch that the thread copies
        self._arrays = {key: _own_array((streams, self._stream_capacity, *shape), dtype) for key, (shape, dtype) in layout.items()}

    @property
    def capacity(self) -> int:
        """Largest number of steps, over all streams."""
        return len(self._head) * self._stream_capacity

    def __len__(self) -> int:
        return int(self._size.sum())

    def add(self, step: dict[str, np.ndarray]) -> None:
        """Appends one step of every environment.

        Args:
            step: arrays (N, ...) by key; keys without an array in memory are ignored.
        """
        self._finish_copy()
        streams = np.arange(len(self._head))
        for key, array in self._arrays.items():
            array[streams, self._head] = step[key]
        self._head = (self._head + 1) % self._stream_capacity
        self._size = np.minimum(self._size + 1, self._stream_capacity)

    def add_episode(self, episode: dict[str, np.ndarray]) -> None:
        """Appends an episode to the stream with the fewest steps.

        Args:
            episode: arrays (L, ...) by key; if L exceeds the stream's capacity, the first steps are dropped.
        """
        self._finish_copy()
        stream = int(self._size.argmin())
        length = min(len(episode["reward"]), self._stream_capacity)
        index = (self._head[stream] + np.arange(length)) % self._stream_capacity
        for key, array in self._arrays.items():
            array[stream, index] = episode[key][-length:]
        self._head[stream] = (self._head[stream] + length) % self._stream_capacity
        self._size[stream] = min(self._size[stream] + length, self._stream_capacity)

    def end_episodes(self, streams: np.ndarray | None = None) -> None:
        """Sets `is_last` on the newest step of streams whose environments are reset in the middle of an episode.

        Args:
            streams: their indices; None for all.
        """
        self._finish_copy()
        streams = np.arange(len(self._head)) if streams is None else streams
        newest = (self._head[streams] - 1) % self._stream_capacity
        self._arrays["is_last"][streams, newest] |= self._size[streams] > 0

    def sample(self, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """Draws a batch of sequences.

        Args:
            rng: random generator; None for the memory's own.
        Returns:
            arrays (B, T, ...) by key.
        Raises:
            ValueError: if no step is stored.
        """
        return self._copy(*self._draw(rng or self.rng))

    def _draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draws the positions of a batch.

        Returns:
            streams (B, 1), positions in the streams (B, T), and whether a step is the oldest of its stream (B, T).
        """
        if not len(self):
            raise ValueError("replay memory is empty; collect steps before sampling")
        ends = self._size.cumsum()
        start = rng.integers(ends[-1], size=self._batch_size)
        stream = np.searchsorted(ends, start, side="right")  # (B,)
        age = start - (ends - self._size)[stream]  # (B,), steps since the stream's oldest
        size = self._size[stream, None]
        position = (age[:, None] + np.arange(self._batch_length)) % size  # (B, T)
        index = (self._head[stream, None] - size + position) % self._stream_capacity
        return stream[:, None], index, position == 0

    def _copy(self, stream: np.ndarray, index: np.ndarray, seam: np.ndarray) -> dict[str, np.ndarray]:
        """Copies the steps at the positions from `_draw`, (B, T, ...)."""
        batch = {key: array[stream, index] for key, array in self._arrays.items()}
        batch["is_first"] |= seam
        return batch

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
        batch = self._next.result() if self._next else self.sample()
        self._copier = self._copier or ThreadPoolExecutor(1)
        self._before_next = copy.deepcopy(self.rng)
        self._next = self._copier.submit(self._copy, *self._draw(self.rng))  # drawn here for reproducibility
        return batch

    @property
    def next_rng(self) -> np.random.Generator:
        """The generator before it drew the batch that waits. A resumed run draws the same batch from it."""
        return self._before_next if self._next else self.rng

    def load(self, directory: pathlib.Path) -> int:
        """Appends the newest episodes on disk that fit, oldest first. Warns of damaged files and skips them.

        Args:
            directory: folder of .npz files, named so that their order is that of time.
        Returns:
            loaded agent steps; the first observation of an episode is not a step.
        """
        chosen, loaded, room, skipped = [], [], self.capacity, 0
        for path in sorted(directory.glob("*.npz"), reverse=True):
            if room <= 0:
                break
            if length := _unless_damaged(self._length_of, path):
                chosen.append(path)
                room -= length
            else:
                skipped += 1
        for path in reversed(chosen):
            if episode := _unless_damaged(load_episode, path, self._arrays.keys()):
                self.add_episode(episode)
                loaded.append(len(episode["reward"]))
            else:
                skipped += 1
        if skipped:
            console.warn(
                f"skipped {skipped} damaged episode{'s' if skipped > 1 else ''}, loaded {len(loaded)}; training goes on "
                "without what they held"
            )
        return sum(loaded) - len(loaded)

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


def _own_array(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros in memory that is not inherited by forked processes.

    Inherited pages would be duplicated as soon as they are overwritten here.
    """
    size = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_DONTFORK"):
        memory.madvise(mmap.MADV_DONTFORK)
    return np.frombuffer(memory, dtype, int(np.prod(shape))).reshape(shape)


def available_memory() -> int | None:
    """Free memory in bytes; None if the system does not report it."""
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":") for line in file)
        return 1024 * int(fields["MemAvailable"].split()[0])
    except (OSError, KeyError):
        return None
