"""Videos as animated GIFs."""

import io

import numpy as np
from PIL import Image


def encode_gif(frames: np.ndarray, fps: int, comment: str = "") -> bytes:
    """A video (T, H, W, C) in [0, 1] or as uint8 as an animated GIF with a comment. It shows one channel, or the first three."""
    frames = frames if frames.dtype == np.uint8 else (255 * frames).round().astype(np.uint8)
    frames = frames if frames.shape[-1] >= 3 else frames[..., :1].repeat(3, -1)
    first, *rest = [Image.fromarray(frame) for frame in frames[..., :3]]
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=1000 // fps, loop=0, **({"comment": comment} if comment else {}))
    return buffer.getvalue()
