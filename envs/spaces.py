"""Conversion between gymnasium's spaces and the arrays that the agent works with.

Observations become a flat dict of images (H, W, C) uint8 and vectors (n,) float32. Actions become a vector (A,): the
concatenated parts of a Dict or Tuple, each of them one-hots, or numbers in [-1, 1] for continuous actions.
"""

import math
import operator
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.image_spaces import LEAST_SIDE, ImageReader, image_axes
from envs.names import check_key, check_observed

KINDS = ("Dict", "Tuple", "Box", "OneHot", "Discrete", "MultiDiscrete", "MultiBinary")  # of stored descriptions
LARGEST_BOUND = 1e12  # of actions; numbers with larger ones count as unbounded, since no environment needs such
MOST_NUMBERS = 2**24  # largest size of an observation or action in a stored description
STATE_PREFIX = "log_state_"  # of keys with the environment's state, for probes
# Keys of a step that are not observations
RESERVED = ("action", "reward", "discount", "is_first", "is_last", "is_terminal", "cont", "logprob", "log_return", "log_length")


def is_summed(key: str) -> bool:
    """Whether an observation is only logged, as a sum over repeated actions and over the episode."""
    return key.startswith("log_") and not key.startswith(STATE_PREFIX)


class ActionPart(NamedTuple):
    """What a part of an action vector consists of.

    Attributes:
        size: number of its entries.
        classes: class counts of its concatenated one-hots; None for continuous numbers.
    """

    size: int
    classes: tuple[int, ...] | None


class ActionCodec:
    """Converts between action vectors and an environment's actions.

    Args:
        space: Discrete, MultiDiscrete, MultiBinary or Box of a single environment, or a (nested) Dict or Tuple of them.
            Each number of an integer Box becomes a one-hot.
    Attributes:
        parts: the parts of an action vector by name, in their order. Those of a Dict or Tuple are sorted by name; nested
            names are joined by "/". Any other space is a single part called `action`.
        size: length A of an action vector.
    Raises:
        ValueError: for a space that is not supported.
    """

    def __init__(self, space: gymnasium.Space):
        self._space, self._nested = space, isinstance(space, (spaces.Dict, spaces.Tuple))
        leaves = list(_leaves(space)) if self._nested else [("action", space)]
        self._codecs = {key: _LeafCodec(leaf) for key, leaf in sorted(leaves, key=lambda item: item[0])}
        if not leaves or len(self._codecs) < len(leaves) or any(not key or "." in key for key in self._codecs):
            raise ValueError(
                f"the action space {space} has no parts, two with the same name, or a name that is empty or has a dot; rename "
                "them in a wrapper"
            )
        for key in self._codecs:
            check_key(key)
        self.parts = {key: codec.part for key, codec in self._codecs.items()}
        self.size = sum(part.size for part in self.parts.values())

    @property
    def layout(self) -> tuple[int | None, ...]:
        """What an action vector consists of: the class count of each one-hot, None for each continuous number."""
        return tuple(entry for part in self.parts.values() for entry in part.classes or (None,) * part.size)

    def decode(self, vectors: np.ndarray) -> np.ndarray | list:
        """Converts action vectors to actions of the environment.

        Numbers with two bounds are scaled from [-1, 1] to their bounds. Others are clipped to [-1, 1] and the Box. Bounds of
        `LARGEST_BOUND` and beyond, or of the dtype's largest number, do not count.

        Args:
            vectors: (N, A).
        Returns:
            N actions as one array; for a Dict or Tuple space, a list of N dicts or tuples.
        """
        pieces = np.split(vectors, np.cumsum([part.size for part in self.parts.values()])[:-1], -1)
        values = {key: codec.decode(piece) for (key, codec), piece in zip(self._codecs.items(), pieces)}
        if self._nested:
            return [_nested(self._space, {key: value[index] for key, value in values.items()}) for index in range(len(vectors))]
        return values["action"]

    def random(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws `count` uniformly random action vectors, (count, A)."""
        return np.concatenate([codec.random(rng, count) for codec in self._codecs.values()], -1)


class _LeafCodec:
    """The codec of an action space that is not a Dict or Tuple. `part` says what its vectors consist of."""

    MOST_INTEGERS = 256  # largest number of values of one number in an integer Box

    def __init__(self, space: gymnasium.Space):
        self._space = space
        classes, self._starts = None, 0  # `_starts`: the environment's value of each one-hot's first class
        if isinstance(space, spaces.Discrete):
            classes, self._starts = (int(space.n),), space.start
        elif isinstance(space, spaces.MultiDiscrete):
            classes, self._starts = tuple(int(n) for n in space.nvec.flatten()), space.start
        elif isinstance(space, spaces.MultiBinary):
            classes = (2,) * int(np.prod(space.shape))
        elif isinstance(space, spaces.Box) and space.dtype.kind in "biu":
            # Python integers, because a range may exceed the dtype.
            counts = space.high.astype(object) - space.low.astype(object) + 1
            if max(counts.flatten(), default=0) > self.MOST_INTEGERS:
                raise ValueError(
                    f"the action space {space} has numbers of more than {self.MOST_INTEGERS} values; use floats, or "
                    "offer fewer in a wrapper"
                )
            classes, self._starts = tuple(int(n) for n in counts.flatten()), space.low
        elif isinstance(space, spaces.Box) and space.dtype.kind == "f":
            self._set_bounds(space)
        else:
            raise ValueError(
                f"the action space {space} is not supported; allowed are Discrete, MultiDiscrete, MultiBinary and Box, and "
                "dicts and tuples of them; wrap the environment to offer one of them"
            )
        self.part = ActionPart(int(np.prod(space.shape)) if classes is None else sum(classes), classes)
        if not self.part.size:
            raise ValueError(f"the action space {space} has no numbers; leave it out in a wrapper")

    def decode(self, vectors: np.ndarray) -> np.ndarray:
        """Action vectors (N, A) -> N actions."""
        if self.part.classes is None:
            return self._scale(np.clip(vectors, -1.0, 1.0).reshape(-1, *self._space.shape))
        parts = np.split(vectors, np.cumsum(self.part.classes)[:-1], -1)
        index = np.stack([part.argmax(-1) for part in parts], -1)  # (N, number of one-hots)
        return (index.reshape(-1, *self._space.shape) + self._starts).astype(self._space.dtype)

    def _set_bounds(self, space: spaces.Box) -> None:
        """Finds the numbers of a Box of floats that are scaled to their bounds, and those bounds."""
        self._bounded = _is_bound(space.low) & _is_bound(space.high)
        if (~self._bounded & ((space.low >= 1.0) | (space.high <= -1.0))).any():
            raise ValueError(
                f"the action space {space} has a number without two bounds that must be beyond -1 or 1; such numbers are drawn from "
                f"[-1, 1]; give it two bounds below {LARGEST_BOUND:g} in a wrapper such as gymnasium.wrappers.TransformAction"
            )
        # The range of half-precision bounds may exceed their dtype.
        bounds = (bound.astype(np.promote_types(bound.dtype, np.float32)) for bound in (space.low, space.high))
        self._low, self._high = (np.where(self._bounded, bound, 0.0) for bound in bounds)

    def _scale(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers (N, ...) in [-1, 1] -> actions of a Box of floats."""
        scaled = np.where(self._bounded, self._low + (numbers + 1.0) / 2.0 * (self._high - self._low), numbers)
        return np.clip(scaled, self._space.low, self._space.high).astype(self._space.dtype)  # rounding may exceed a bound

    def random(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Uniformly random action vectors, (count, A)."""
        if self.part.classes is None:
            return rng.uniform(-1.0, 1.0, (count, self.part.size)).astype(np.float32)
        vectors, start = np.zeros((count, self.part.size), np.float32), 0
        for n in self.part.classes:
            vectors[np.arange(count), start + rng.integers(n, size=count)] = 1.0
            start += n
        return vectors


def _is_bound(bound: np.ndarray) -> np.ndarray:
    """Which bounds of a Box of floats limit anything. The largest number of a dtype is a usual way to say that there is none."""
    return np.abs(bound) < min(LARGEST_BOUND, float(np.finfo(bound.dtype).max))


class OneHot(spaces.Box):
    """Observations (n,) float32 that are concatenated one-hots.

    Args:
        classes: class counts of the one-hots.
    """

    def __init__(self, classes: Sequence[int]):
        self.classes = tuple(int(count) for count in classes)
        super().__init__(0.0, 1.0, (sum(self.classes),), np.float32)

    def __eq__(self, other) -> bool:
        return isinstance(other, OneHot) and self.classes == other.classes

    def __repr__(self) -> str:
        return f"OneHot({', '.join(map(str, self.classes))})"


class _VectorReader:
    """Converts the values of a space that is no image to vectors (n,) float32.

    Attributes:
        space: of the vectors, with `OneHot` for discrete ones.
        notes, warnings: see `ObservationCodec`.
    """

    MANY, VERY_MANY = 1024, 4096  # numbers that are worth a warning: of something like an image, of any vector

    def __init__(self, key: str, space: gymnasium.Space):
        self._given, self.notes, self.warnings = space, [], []
        if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
            raise ValueError(
                f"the observation {key!r} has the space {space}, which is not supported; allowed are Box, Discrete, "
                "MultiDiscrete and MultiBinary, and dicts and tuples of them; convert it with gymnasium.wrappers.TransformObservation, or "
                "leave it out with gymnasium.wrappers.FilterObservation"
            )
        size = spaces.flatdim(space)
        if size > MOST_NUMBERS:
            raise ValueError(f"the observation {key!r} has {size:,} numbers; allowed are {MOST_NUMBERS:,}; make it smaller in a wrapper")
        if isinstance(space, spaces.Discrete):
            self.space = OneHot([space.n])
        elif isinstance(space, spaces.MultiDiscrete):
            self.space = OneHot(space.nvec.flatten())
        else:
            self.space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self._tell(f"the observation {key!r}, {space.dtype} {space.shape},", space.shape, size)

    def _tell(self, name: str, shape: tuple[int, ...], size: int) -> None:
        grid = len(shape) > 2 or (len(shape) == 2 and min(shape) >= LEAST_SIDE)
        if size > self.VERY_MANY or (grid and size >= self.MANY):
            self.warnings.append(
                f"{name} becomes a vector of {size:,} numbers, which takes a large network; give an image as uint8 from 0 to 255 of the "
                "shape (height, width, channels), and make other observations smaller, for example with "
                "gymnasium.wrappers.TransformObservation"
            )
        elif self._given.dtype == np.uint8 and len(shape) == 2 and size:
            self.notes.append(f"{name} is read as a vector; if it is an image, give it the shape {(*shape, 1)}")

    def __call__(self, value) -> np.ndarray:
        """Converts a value of the space."""
        return np.asarray(spaces.flatten(self._given, value), np.float32)


class ObservationCodec:
    """Converts observations of a single environment to a flat dict of images and vectors.

    Args:
        space: observation space: Box, Discrete, MultiDiscrete, MultiBinary, or a (nested) Dict or Tuple of them.
        size: (H, W) that images are resized to.
        grayscale: whether colour images are reduced to one channel.
    Attributes:
        space: gymnasium Dict of the converted observations, with `OneHot` for discrete ones. Keys of nested spaces are
            joined by "/". A single image is called `image`, a single vector `vector`.
        notes, warnings: what a user should know of the conversion, as sentences.
    Raises:
        ValueError: for a space that is not supported, an image whose axes are not certain, or a key that is reserved, twice there or
            not allowed.
    """

    def __init__(self, space: gymnasium.Space, size: tuple[int, int], grayscale: bool = False):
        self._given, self._leaves, self._readers = space, {}, {}
        for name, leaf in _leaves(space):
            axes = image_axes(leaf, name or "image")
            key = name if isinstance(space, (spaces.Dict, spaces.Tuple)) else "vector" if axes is None else "image"
            _check_key(key, self._leaves)
            self._leaves[key] = leaf
            self._readers[key] = _VectorReader(key, leaf) if axes is None else ImageReader(key, leaf, axes, tuple(size), grayscale)
        if not any(math.prod(reader.space.shape) for reader in self._readers.values()):
            raise ValueError(f"the observation space {space} has no numbers; give at least one, such as a constant, in a wrapper")
        self.space = spaces.Dict({key: reader.space for key, reader in self._readers.items()})
        told = [reader for key, reader in self._readers.items() if not key.startswith("log_")]
        self.notes = [note for reader in told for note in reader.notes]
        self.warnings = [warning for reader in told for warning in reader.warnings]

    def __call__(self, obs) -> dict[str, np.ndarray]:
        """Converts one observation.

        Raises:
            ValueError: if a part is missing, or does not match its space.
        """
        parts = zip(self._leaves.items(), _values(self._given, obs))
        return {key: self._readers[key](_checked(key, leaf, value)) for (key, leaf), value in parts}


def _checked(key: str, space: gymnasium.Space, value) -> np.ndarray:
    """A value of a space as an array. Bounds of a Box are not checked.

    Raises:
        ValueError: if it is none of the space.
    """
    array = np.asarray(value)
    if isinstance(space, spaces.Box):
        if wrong := mismatch(array, space):
            raise ValueError(f"the observation {key!r} is {wrong}")
        return array
    if not is_in(array, space):
        raise ValueError(f"the observation {key!r} is {value!r:.200}, which is not in its space {space}")
    return array.astype(space.dtype)


def _check_key(key: str, others: Container[str]) -> None:
    """Raises ValueError if an observation cannot have this key."""
    if key in RESERVED or "." in key:
        raise ValueError(f"the observation key {key!r} is reserved or has a dot; rename it in a wrapper")
    if not key or key in others:
        raise ValueError(f"the observation key {key!r} is {'there twice' if key else 'empty'}; rename it in a wrapper")
    check_observed(key)


def mismatch(array: np.ndarray, space: spaces.Box) -> str:
    """Why an array is no value of a Box, whatever its bounds, as the end of "it is ..."; "" if it is one.

    Integers may be of any dtype, if the dtype of the space holds them.
    """
    if array.shape != space.shape:
        return f"of shape {array.shape}; its space says {space.shape}"
    if array.dtype.kind in "biu" and space.dtype.kind in "biu" and array.dtype != space.dtype and array.size:
        limits = np.iinfo(space.dtype) if space.dtype.kind in "iu" else None
        low, high = (limits.min, limits.max) if limits else (0, 1)
        least, most = int(array.min()), int(array.max())
        return "" if low <= least and most <= high else f"of numbers from {least} to {most}; its space says {space.dtype}"
    return "" if np.can_cast(array.dtype, space.dtype, "same_kind") else f"of dtype {array.dtype}; its space says {space.dtype}"


def is_in(value, space: gymnasium.Space) -> bool:
    """Whether a value, array, tensor or list belongs to a discrete space. Its integers may be of any dtype."""
    array = np.asarray(value)
    numbers = array.astype(space.dtype) if array.dtype.kind in "biu" else array
    return bool((numbers == array).all()) and space.contains(numbers)


def _leaves(space: gymnasium.Space, prefix: str = "") -> Iterator[tuple[str, gymnasium.Space]]:
    """Yields (key, space) of all parts that are not a Dict or Tuple; nested keys are joined by "/". A lone space has the key ""."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        for key, part in _items(space.spaces):
            yield from _leaves(part, _join(prefix, key))
    else:
        yield prefix, space


def _values(space: gymnasium.Space, value) -> Iterator:
    """Yields the parts of an observation in the order of `_leaves`."""
    if not isinstance(space, (spaces.Dict, spaces.Tuple)):
        yield value
        return
    for key, part in _items(space.spaces):
        try:
            inner = value[key]
        except (LookupError, TypeError) as error:
            raise ValueError(f"an observation lacks its part {key!r}; the space is {space}") from error
        yield from _values(part, inner)


def _nested(space: gymnasium.Space, values: dict, prefix: str = ""):
    """Builds a value of a space from values by the keys of `_leaves`."""
    if isinstance(space, spaces.Dict):
        return {key: _nested(part, values, _join(prefix, key)) for key, part in space.spaces.items()}
    elif isinstance(space, spaces.Tuple):
        return tuple(_nested(part, values, _join(prefix, key)) for key, part in enumerate(space.spaces))
    return values[prefix]


def _items(nested: dict | tuple) -> Iterable[tuple]:
    return nested.items() if isinstance(nested, dict) else enumerate(nested)


def _join(prefix: str, key) -> str:
    return f"{prefix}/{key}" if prefix else str(key)


def as_batch(obs: dict | np.ndarray, shapes: dict[str, tuple[int, ...]]) -> tuple[dict, bool]:
    """Turns a single observation into a batch; a batch stays as it is.

    Args:
        obs: arrays, tensors or lists by name, or a single one if there is only one name. Names other than these and `is_first`
            are left out.
        shapes: shape of a single observation by name.
    Returns:
        arrays (N, ...) by name, and whether `obs` was a single observation.
    Raises:
        ValueError: for a missing name, a wrong shape, batches of different sizes, or what is no finite number.
    """
    if not isinstance(obs, dict):
        if len(shapes) > 1:
            raise ValueError(f"the agent observes {', '.join(shapes)}; give a dict of arrays with these names")
        obs = {next(iter(shapes)): obs}
    if missing := [key for key in shapes if key not in obs]:
        raise ValueError(f"the observation lacks {missing[0]!r}; it has {', '.join(map(str, obs))}")
    given = {key: _numbers(key, obs[key]) for key in (*shapes, "is_first") if key in obs}
    leading = {key: _leading(key, tuple(given[key].shape), tuple(shape)) for key, shape in shapes.items()}
    if len(set(leading.values())) > 1:
        raise ValueError(f"of {', '.join(leading)} some are single observations and some are batches")
    single = 0 in leading.values()
    batch = {key: value[None] for key, value in given.items()} if single else given
    sizes = {key: len(batch[key]) for key in shapes}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the batches have different sizes: {', '.join(f'{key} {size}' for key, size in sizes.items())}")
    count = next(iter(sizes.values()))
    if "is_first" in batch and math.prod(batch["is_first"].shape) != count:
        raise ValueError(f"is_first has the shape {tuple(given['is_first'].shape)}; give one flag for each of the {count} observations")
    return batch, single


def _numbers(key: str, value):
    """A value as an array; a tensor stays on its device.

    Raises:
        ValueError: if it holds anything but finite numbers.
    """
    try:
        array = value if hasattr(value, "shape") else np.asarray(value)
    except ValueError as error:  # parts of different shapes
        raise ValueError(f"the observation {key!r} is no array of numbers: {error}") from error
    if hasattr(array, "isfinite"):  # a tensor
        finite = not array.is_floating_point() or bool(array.isfinite().all())
    elif array.dtype.kind not in "biuf":
        raise ValueError(f"the observation {key!r} has the dtype {array.dtype}; give numbers")
    else:
        finite = array.dtype.kind != "f" or bool(np.isfinite(array).all())
    if not finite:
        raise ValueError(f"the observation {key!r} has NaN or infinite values")
    return array


def _leading(key: str, given: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """How many dimensions a value has before those of a single observation: 0, or 1 for a batch.

    Raises:
        ValueError: if its shape is another one.
    """
    leading = len(given) - len(shape)
    if leading not in (0, 1) or given[leading:] != shape:
        raise ValueError(
            f"the observation {key!r} has the shape {given}; the agent needs {shape}, or a batch of such. "
            "envs.spaces.ObservationCodec resizes images and flattens vectors"
        )
    return leading


def describe_space(space: gymnasium.Space) -> dict:
    """Describes a space in plain values that a checkpoint can store.

    Raises:
        ValueError: for a space that is not supported.
    """
    kind = type(space).__name__
    if isinstance(space, spaces.Dict):
        return {"kind": kind, "spaces": {key: describe_space(part) for key, part in space.spaces.items()}}
    elif isinstance(space, spaces.Tuple):
        return {"kind": kind, "spaces": [describe_space(part) for part in space.spaces]}
    elif isinstance(space, OneHot):
        return {"kind": kind, "classes": list(space.classes)}
    elif isinstance(space, spaces.Box):
        low, high = (
            bound.flat[0].item() if bound.size and (bound == bound.flat[0]).all() else bound.tolist() for bound in (space.low, space.high)
        )
        return {"kind": kind, "low": low, "high": high, "shape": list(space.shape), "dtype": space.dtype.name}
    elif isinstance(space, spaces.Discrete):
        return {"kind": kind, "n": int(space.n), "start": int(space.start)}
    elif isinstance(space, spaces.MultiDiscrete):
        return {"kind": kind, "nvec": space.nvec.tolist(), "start": space.start.tolist(), "dtype": space.dtype.name}
    elif isinstance(space, spaces.MultiBinary):
        return {"kind": kind, "n": list(space.shape)}
    raise ValueError(f"the space {space} cannot be described; allowed are {', '.join(KINDS)}")


def space_of(description: dict) -> gymnasium.Space:
    """Builds a space from its description by `describe_space`.

    Raises:
        ValueError: for an invalid description.
    """
    try:
        kind, sizes = description["kind"], {key: value for key, value in description.items() if key != "kind"}
        if kind == "Dict":
            return spaces.Dict({key: space_of(part) for key, part in sizes["spaces"].items()})
        elif kind == "Tuple":
            return spaces.Tuple([space_of(part) for part in sizes["spaces"]])
        elif kind == "OneHot":
            classes = [operator.index(count) for count in sizes["classes"]]
            if min(classes) < 1 or sum(classes) > MOST_NUMBERS:
                raise ValueError(f"{classes!r:.200} are not the class counts of one-hots")
            return OneHot(classes)
        elif kind == "Box":
            dtype, shape = np.dtype(sizes["dtype"]), tuple(sizes["shape"])
            if dtype.kind not in "biuf" or math.prod(shape) > MOST_NUMBERS:
                raise ValueError(f"dtype {dtype} of shape {shape} is supported neither as observation nor as action")
            low, high = (np.broadcast_to(np.array(sizes[key], dtype), shape) for key in ("low", "high"))
            return spaces.Box(low, high, shape, dtype.type)
        elif kind == "MultiBinary":
            if math.prod(sizes["n"]) > MOST_NUMBERS:
                raise ValueError(f"{sizes['n']} are too many")
            return spaces.MultiBinary(sizes["n"] if len(sizes["n"]) > 1 else sizes["n"][0])  # MultiBinary([2]) != MultiBinary(2)
        elif kind in ("Discrete", "MultiDiscrete"):
            return getattr(spaces, kind)(**sizes)
    except (LookupError, TypeError, ValueError, AttributeError, AssertionError, OverflowError) as error:
        raise ValueError(f"{description!r:.200} describes no space ({type(error).__name__}: {error})") from error
    raise ValueError(f"{description!r:.200} describes no space; allowed kinds are {', '.join(KINDS)}")
