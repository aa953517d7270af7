"""Images as the agent observes them: of one size, in colour or grey. Those of environments and of recorded episodes are converted alike."""

import numpy as np
from PIL import Image

LUMA = np.array([0.299, 0.587, 0.114])  # weights of red, green and blue


def convert(image: np.ndarray, size: tuple[int, int], grayscale: bool = False) -> np.ndarray:
    """Resizes an image (H, W, C) uint8 to (*size, C) by averaging areas; with `grayscale` its three colours become one channel."""
    if grayscale:
        image = (image @ LUMA).round().astype(np.uint8)[..., None]
    if image.shape[:2] != tuple(size):
        channels = np.moveaxis(image, -1, 0)
        image = np.stack([Image.fromarray(channel).resize(size[::-1], Image.Resampling.BOX) for channel in channels], -1)
    return image
