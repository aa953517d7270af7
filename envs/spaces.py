"""Conversion between gymnasium's spaces and the arrays that the agent works with.

Observations become a flat dict of images (H, W, C) uint8 and vectors (n,) float32. Actions become a vector (A,): the
concatenated parts of a Dict or Tuple, each of them one-hots, or numbers in [-1, 1] for continuous actions.
"""

import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from PIL import Image

KINDS = ("Dict", "Tuple", "Box", "OneHot", "Discrete", "MultiDiscrete", "MultiBinary")  # of stored descriptions
MOST_NUMBERS = 2**24  # largest size of an observation or action in a stored description
STATE_PREFIX = "log_state_"  # of keys with the environment's state, for probes
# Keys of a step that are not observations
RESERVED = ("action", "reward", "discount", "is_first", "is_last", "is_terminal", "cont", "logprob")


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
        self.parts = {key: codec.part for key, codec in self._codecs.items()}
        self.size = sum(part.size for part in self.parts.values())

    @property
    def layout(self) -> tuple[int | None, ...]:
        """What an action vector consists of: the class count of each one-hot, None for each continuous number."""
        return tuple(entry for part in self.parts.values() for entry in part.classes or (None,) * part.size)

    def decode(self, vectors: np.ndarray) -> np.ndarray | list:
        """Converts action vectors to actions of the environment.

        Numbers with finite bounds are scaled from [-1, 1] to their bounds. Others are clipped to [-1, 1] and the Box.

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
        elif isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.integer):
            # Python integers, because a range may exceed the dtype.
            counts = space.high.astype(object) - space.low.astype(object) + 1
            if max(counts.flatten()) > self.MOST_INTEGERS:
                raise ValueError(
                    f"the action space {space} has numbers of more than {self.MOST_INTEGERS} values; use floats, or "
                    "offer fewer in a wrapper"
                )
            classes, self._starts = tuple(int(n) for n in counts.flatten()), space.low
        elif not (isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)):
            raise ValueError(
                f"the action space {space} is not supported; allowed are Discrete, MultiDiscrete, MultiBinary and Box, and "
                "dicts and tuples of them; wrap the environment to offer one of them"
            )
        self.part = ActionPart(sum(classes) if classes else int(np.prod(space.shape)), classes)

    def decode(self, vectors: np.ndarray) -> np.ndarray:
        """Action vectors (N, A) -> N actions."""
        if self.part.classes is None:
            vectors = np.clip(vectors, -1.0, 1.0).reshape(-1, *self._space.shape)
            low, high = self._space.low, self._space.high
            bounded = np.isfinite(low) & np.isfinite(high)
            scaled = np.where(bounded, low, 0.0) + (vectors + 1.0) / 2.0 * np.where(bounded, high - low, 0.0)
            return np.where(bounded, scaled, np.clip(vectors, low, high)).astype(self._space.dtype)
        parts = np.split(vectors, np.cumsum(self.part.classes)[:-1], -1)
        index = np.stack([part.argmax(-1) for part in parts], -1)  # (N, number of one-hots)
        return (index.reshape(-1, *self._space.shape) + self._starts).astype(self._space.dtype)

    def random(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Uniformly random action vectors, (count, A)."""
        if self.part.classes is None:
            return rng.uniform(-1.0, 1.0, (count, self.part.size)).astype(np.float32)
        return np.concatenate([np.eye(n, dtype=np.float32)[rng.integers(n, size=count)] for n in self.part.classes], -1)


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


class ObservationCodec:
    """Converts observations of a single environment to a flat dict of images and vectors.

    Args:
        space: observation space: Box, Discrete, MultiDiscrete, MultiBinary, or a (nested) Dict or Tuple of them.
        size: (H, W) that images are resized to.
        grayscale: whether images are reduced to one channel.
    Attributes:
        space: gymnasium Dict of the converted observations, with `OneHot` for discrete ones. Keys of nested spaces are
            joined by "/". A single image is called `image`, a single vector `vector`.
    Raises:
        ValueError: for a space that is not supported, or a key that is reserved or has a dot.
    """

    def __init__(self, space: gymnasium.Space, size: tuple[int, int], grayscale: bool = False):
        self._size, self._grayscale = tuple(size), grayscale
        self._leaves = {key or ("image" if _is_image(leaf) else "vector"): leaf for key, leaf in _leaves(space)}
        for key in self._leaves:
            if key in RESERVED or "." in key:
                raise ValueError(f"the observation key {key!r} is reserved or has a dot; rename it in a wrapper")
        self.space = spaces.Dict({key: self._out_space(key, leaf) for key, leaf in self._leaves.items()})

    def __call__(self, obs) -> dict[str, np.ndarray]:
        """Converts one observation.

        Raises:
            ValueError: if its shape or dtype does not match the space.
        """
        values = dict(_values(obs)) if isinstance(obs, (dict, tuple)) else {next(iter(self._leaves)): obs}
        return {key: self._encode(key, leaf, values[key]) for key, leaf in self._leaves.items()}

    def _out_space(self, key: str, leaf: gymnasium.Space) -> spaces.Box:
        if _is_image(leaf):
            channels = 1 if self._grayscale or len(leaf.shape) == 2 else leaf.shape[-1]
            return spaces.Box(0, 255, (*self._size, channels), np.uint8)
        if isinstance(leaf, spaces.Discrete):
            return OneHot([leaf.n])
        if isinstance(leaf, spaces.MultiDiscrete):
            return OneHot(leaf.nvec.flatten())
        if isinstance(leaf, (spaces.MultiBinary, spaces.Box)):
            return spaces.Box(-np.inf, np.inf, (spaces.flatdim(leaf),), np.float32)
        raise ValueError(
            f"the observation {key!r} has the space {leaf}, which is not supported; allowed are Box, Discrete, "
            "MultiDiscrete and MultiBinary, and dicts and tuples of them"
        )

    def _encode(self, key: str, leaf: gymnasium.Space, value) -> np.ndarray:
        if isinstance(leaf, spaces.Box):
            value = np.asarray(value)
            if value.shape != leaf.shape or not np.can_cast(value.dtype, leaf.dtype, "same_kind"):
                raise ValueError(f"the observation {key!r} has shape {value.shape} and dtype {value.dtype}; its space says {leaf}")
        if _is_image(leaf):
            return self._image(value)
        return np.asarray(spaces.flatten(leaf, value), np.float32)

    def _image(self, image: np.ndarray) -> np.ndarray:
        image = image[..., None] if image.ndim == 2 else image
        if self._grayscale and image.shape[-1] > 1:
            image = (image[..., :3] @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)[..., None]
        if image.shape[:2] != self._size:
            channels = np.moveaxis(image, -1, 0)
            image = np.stack([Image.fromarray(x).resize(self._size[::-1], Image.Resampling.BOX) for x in channels], -1)
        return image


def _is_image(space: gymnasium.Space) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)


def _leaves(space: gymnasium.Space, prefix: str = "") -> Iterator[tuple[str, gymnasium.Space]]:
    """Yields (key, space) of all parts that are not a Dict or Tuple; nested keys are joined by "/". A lone space has the key ""."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        for key, part in _items(space.spaces):
            yield from _leaves(part, _join(prefix, key))
    else:
        yield prefix, space


def _values(obs, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yields (key, value) of an observation, with the keys of `_leaves`."""
    if isinstance(obs, (dict, tuple)):
        for key, part in _items(obs):
            yield from _values(part, _join(prefix, key))
    else:
        yield prefix, obs


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
        obs: arrays by name, or a single array if there is only one name.
        shapes: shape of a single observation by name. Other names pass unchecked.
    Returns:
        arrays (N, ...) by name, and whether `obs` was a single observation.
    Raises:
        ValueError: for a missing name or a wrong shape.
    """
    if not isinstance(obs, dict):
        if len(shapes) > 1:
            raise ValueError(f"the agent observes {', '.join(shapes)}; give a dict of arrays with these names")
        obs = {next(iter(shapes)): obs}
    leading = {}
    for key, shape in shapes.items():
        if key not in obs:
            raise ValueError(f"the observation lacks {key!r}; it has {', '.join(obs)}")
        given = tuple(np.shape(obs[key]))
        leading[key] = len(given) - len(shape)
        if leading[key] not in (0, 1) or given[leading[key] :] != tuple(shape):
            raise ValueError(
                f"the observation {key!r} has the shape {given}; the agent needs {tuple(shape)}, or a batch of such. "
                "envs.spaces.ObservationCodec resizes images and flattens vectors"
            )
    if len(set(leading.values())) > 1:
        raise ValueError(f"of {', '.join(leading)} some are single observations and some are batches")
    single = 0 in leading.values()
    return {key: value[None] if np.ndim(value) else np.array([value]) for key, value in obs.items()} if single else obs, single


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
        low, high = (bound.flat[0].item() if (bound == bound.flat[0]).all() else bound.tolist() for bound in (space.low, space.high))
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
