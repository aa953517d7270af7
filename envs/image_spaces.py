"""Which observation spaces are images, and how their values become arrays (H, W, C) uint8.

Shapes: F stacked frames, H height, W width, C channels.
"""

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.images import convert

ORDERS = {2: [(0, 1)], 3: [(0, 1, 2), (1, 2, 0)], 4: [(1, 2, 0, 3), (2, 3, 0, 1)]}  # axes of (H, W), (H, W, C), (H, W, F, C)
ASPECT = 4  # largest ratio of the sides of an image without a channel axis; longer ones are vectors, such as stacked memory
LEAST_SIDE = 32  # smallest side of an image that is not uint8; what is smaller is a grid of numbers


def image_axes(space: gymnasium.Space, key: str) -> tuple[int, ...] | None:
    """The order of a space's axes that gives an image (H, W), (H, W, C) or (H, W, F, C); None if the space is a vector.

    Raises:
        ValueError: for a Box of uint8 that is an image, but may be read in several orders.
    """
    if not isinstance(space, spaces.Box) or len(space.shape) not in ORDERS or 0 in space.shape:
        return None
    axes = _order(space.shape)
    if space.dtype != np.uint8:
        large = axes is not None and min(space.shape[axis] for axis in axes[:2]) >= LEAST_SIDE
        return axes if large and _spans(space, 1) | _spans(space, 255) else None
    if axes is None and len(space.shape) > 2 and not key.startswith("log_"):
        readings = " or ".join(describe(space.shape, order) for order in ORDERS[len(space.shape)])
        raise ValueError(
            f"the observation {key!r} has the shape {space.shape}, which may be {readings}; give it another shape with "
            "gymnasium.wrappers.TransformObservation: with fewer channels than pixels on a side, or flat for a vector"
        )
    return axes


def _order(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The one order of the axes that makes sense; None if there are none or several."""
    if len(shape) == 2:
        return (0, 1) if min(shape) > 1 and max(shape) <= ASPECT * min(shape) else None
    sizes = {axes: [shape[axis] for axis in axes] for axes in ORDERS[len(shape)]}
    fewer = [axes for axes, (height, width, *rest) in sizes.items() if max(rest) < min(height, width)]
    # A board may have more planes than rows. Then only a square one tells its axes.
    square = [axes for axes, (height, width, *frames, _) in sizes.items() if height == width and all(count < height for count in frames)]
    found = fewer or square
    return found[0] if len(found) == 1 else None


def _spans(space: spaces.Box, largest: int) -> bool:
    return bool((space.low == 0).all() and (space.high == largest).all())


def describe(shape: tuple[int, ...], axes: tuple[int, ...]) -> str:
    """What a shape means when its axes are read in this order."""
    height, width, *rest = (shape[axis] for axis in axes)
    text = f"{height}x{width} pixels"
    if rest:
        last = axes[-1] == len(shape) - 1
        text += f" with {rest[-1]} channel{'s' if rest[-1] > 1 else ''} (channels {'last' if last else 'first'})"
    return f"{rest[0]} frames of {text}" if len(rest) > 1 else text


class ImageReader:
    """Converts the values of a Box to images. Frames become channels, the oldest first.

    Values are scaled to 0..255 by the bounds of their channel.

    Args:
        key: name of the observation.
        space: its space.
        axes: see `image_axes`.
        size: (H, W) that images are resized to.
        grayscale: whether colours become gray. Only frames of three channels have colours.
    Attributes:
        space: of the converted images.
        notes, warnings: see `ObservationCodec`.
    """

    def __init__(self, key: str, space: spaces.Box, axes: tuple[int, ...], size: tuple[int, int], grayscale: bool):
        self._key, self._axes, self._size = key, axes, size
        height, width, *rest = (space.shape[axis] for axis in axes)
        frames, channels = (1, 1, *rest)[-2:]
        self._shape = height, width, frames, channels
        low, high = (bound.transpose(axes).reshape(self._shape).astype(np.float64) for bound in (space.low, space.high))
        self._low, self._range = low.min((0, 1, 2)), high.max((0, 1, 2)) - low.min((0, 1, 2))  # (C,)
        self._scaled = space.dtype != np.uint8 or not _spans(space, 255)
        self._gray = grayscale and channels == 3
        self.space = spaces.Box(0, 255, (*size, frames * (1 if self._gray else channels)), np.uint8)
        self.notes, self.warnings = [], []
        if space.dtype != np.uint8 or axes != tuple(range(len(axes))):
            end = f", in one image of {self.space.shape[-1]} channels" if frames > 1 else ""
            self.notes.append(f"the observation {key!r}, {space.dtype} {space.shape}, is read as {describe(space.shape, axes)}{end}")
        if grayscale and channels not in (1, 3):
            self.notes.append(
                f"grayscale does not apply to the observation {key!r}: its {channels} channels are no colours, and all of them are kept"
            )

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """Converts a value of the space to (*size, C) uint8.

        Raises:
            ValueError: for NaN or infinite values.
        """
        image = value.transpose(self._axes).reshape(self._shape)
        image = self._scale(image) if self._scaled else image
        return np.concatenate([convert(frame, self._size, self._gray) for frame in np.moveaxis(image, 2, 0)], -1)

    def _scale(self, image: np.ndarray) -> np.ndarray:
        if not np.isfinite(image).all():
            raise ValueError(f"the observation {self._key!r} has NaN or infinite values")
        numbers = 255.0 * (image - self._low) / np.where(self._range > 0.0, self._range, 1.0)  # a constant channel becomes 0
        return np.rint(numbers.clip(0.0, 255.0)).astype(np.uint8)
