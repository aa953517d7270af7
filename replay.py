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
    """What `read` returns; None, with a warning, where it fails."""
    try:
        return read(path, *args)
    except Exception as error:  # a damaged file makes its readers raise nearly anything
        console.warn(f"skipped the episode {path}, which cannot be read: {' '.join(str(error).split())}")
        return None


class Replay:
    """The latest steps of several environments in preallocated arrays, sampled as sequences.

    Each environment writes to a ring of its own, its stream. A sequence starts at a uniformly drawn step of all that are stored
    and follows the stream through the ends of episodes; after the newest step it goes on at the oldest. `is_first` marks the
    starts of episodes and that seam.

    As an iterator it copies the next batch in a thread while the caller works on the last one. So a batch contains no step that was
    added after the call before.

    Args:
        obs_space: gymnasium Dict of images and vectors.
        action_size: length A of an action vector.
        capacity: steps kept, over all streams.
        streams: number of environments.
        batch_size, batch_length: B and T of the sampled batches.
        seed: of the sampling.
    Raises:
        ValueError: if the arrays would not fit into free memory.
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
        self._head = np.zeros(streams, np.int64)  # where each stream writes next
        self._size = np.zeros(streams, np.int64)  # how many steps it holds
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
        self._next: Future | None = None  # the batch that is being copied
        self._arrays = {key: _own_array((streams, self._stream_capacity, *shape), dtype) for key, (shape, dtype) in layout.items()}

    @property
    def capacity(self) -> int:
        """Steps that fit, over all streams."""
        return len(self._head) * self._stream_capacity

    def __len__(self) -> int:
        return int(self._size.sum())

    def add(self, step: dict[str, np.ndarray]) -> None:
        """Appends one step of every environment, arrays (N, ...); keys that are not stored are left out."""
        self._finish_copy()
        streams = np.arange(len(self._head))
        for key, array in self._arrays.items():
            array[streams, self._head] = step[key]
        self._head = (self._head + 1) % self._stream_capacity
        self._size = np.minimum(self._size + 1, self._stream_capacity)

    def add_episode(self, episode: dict[str, np.ndarray]) -> None:
        """Appends an episode, arrays (L, ...), to the stream that holds least; what exceeds the stream's capacity is cut off."""
        self._finish_copy()
        stream = int(self._size.argmin())
        length = min(len(episode["reward"]), self._stream_capacity)
        index = (self._head[stream] + np.arange(length)) % self._stream_capacity
        for key, array in self._arrays.items():
            array[stream, index] = episode[key][-length:]
        self._head[stream] = (self._head[stream] + length) % self._stream_capacity
        self._size[stream] = min(self._size[stream] + length, self._stream_capacity)

    def end_episodes(self, streams: np.ndarray | None = None) -> None:
        """Marks the newest step of some streams, or of all, as the last of its episode, before its environment is reset from outside."""
        self._finish_copy()
        streams = np.arange(len(self._head)) if streams is None else streams
        newest = (self._head[streams] - 1) % self._stream_capacity
        self._arrays["is_last"][streams, newest] |= self._size[streams] > 0

    def sample(self, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """A batch of sequences, arrays (B, T, ...), drawn by the memory's own generator if no other is given."""
        return self._copy(*self._draw(rng or self.rng))

    def _draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where the steps of a batch lie: their streams (B, 1), places in them (B, T), and where a sequence meets the seam (B, T)."""
        if not len(self):
            raise ValueError("replay memory is empty; collect steps before sampling")
        ends = self._size.cumsum()
        start = rng.integers(ends[-1], size=self._batch_size)
        stream = np.searchsorted(ends, start, side="right")  # (B,)
        age = start - (ends - self._size)[stream]  # steps since the oldest one of the stream
        size = self._size[stream, None]
        position = (age[:, None] + np.arange(self._batch_length)) % size  # (B, T)
        index = (self._head[stream, None] - size + position) % self._stream_capacity
        return stream[:, None], index, position == 0

    def _copy(self, stream: np.ndarray, index: np.ndarray, seam: np.ndarray) -> dict[str, np.ndarray]:
        """The steps that `_draw` chose, arrays (B, T, ...)."""
        batch = {key: array[stream, index] for key, array in self._arrays.items()}
        batch["is_first"] |= seam
        return batch

    def _finish_copy(self) -> None:
        """Waits for the thread, before steps that it may be reading are overwritten."""
        if self._next:
            self._next.result()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_copier": None, "_next": None}  # threads cannot be copied; a copy draws its next batch anew

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """A batch as from `sample`, while a thread copies the one after it; that one knows the steps stored by now."""
        batch = self._next.result() if self._next else self.sample()
        self._copier = self._copier or ThreadPoolExecutor(1)
        self._before_next = copy.deepcopy(self.rng)
        self._next = self._copier.submit(self._copy, *self._draw(self.rng))  # drawn here, so that runs repeat
        return batch

    @property
    def next_rng(self) -> np.random.Generator:
        """The generator as it was before it drew the batch that lies ready: with it a continued run draws that batch again."""
        return self._before_next if self._next else self.rng

    def load(self, directory: pathlib.Path) -> int:
        """Appends the newest episodes on disk that fit, oldest first; damaged files are named, counted and skipped.

        They are read one at a time.

        Returns:
            agent steps loaded; the first observation of an episode is not a step.
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
            Exception: nearly anything, if it cannot be added to this memory.
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
    """Zeros that processes forked later do not share: they would keep every page that is overwritten here."""
    size = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_DONTFORK"):
        memory.madvise(mmap.MADV_DONTFORK)
    return np.frombuffer(memory, dtype, int(np.prod(shape))).reshape(shape)


def available_memory() -> int | None:
    """Bytes of memory that are free for use; None where the system does not tell."""
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":") for line in file)
        return 1024 * int(fields["MemAvailable"].split()[0])
    except (OSError, KeyError):
        return None
