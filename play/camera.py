"""Films of real episodes: what the agent observes as an image, or what its environment renders.

Shapes: T frames of a film, H height, W width.
"""

import gymnasium
import numpy as np
from PIL import Image

from envs import EnvBatch
from storage.gif import encode_gif

FPS = 20
STEPS, FRAMES = 1000, 300  # at most: steps of an episode that are filmed, and frames of a film
SIDE, LEAST_SIDE = 256, 64  # pixels of the longest side: at most, and the limit to which large films are reduced
BYTES = 2**21  # of a film as a GIF, about


class Camera:
    """An `EnvBatch` that also films the first complete episode of environment 0. Steps and results are those of `envs`.

    Args:
        envs: the environments.
    Attributes:
        frames: images (H, W, 3) uint8, of every k-th step and of the last one; empty if the episode cannot be filmed.
        problem: why it cannot be filmed, as the rest of a sentence that begins with the task's name; otherwise empty.
    """

    def __init__(self, envs: EnvBatch):
        self._envs, self.count, self.scores, self.tell_cut = envs, envs.count, envs.scores, envs.tell_cut
        self.obs_space, self.act_space = envs.obs_space, envs.act_space
        self._keys = image_keys(envs.obs_space)
        self.frames, self.problem = [], ""
        if not self._keys:
            self._give_up(envs.prepare_render())

    def reset(self, seed: int | None = None) -> dict[str, np.ndarray]:
        obs = self._envs.reset(seed)
        self._begin(obs)
        return obs

    def send(self, actions: np.ndarray | list) -> None:
        self._envs.send(actions)

    def recv(self) -> dict[str, np.ndarray]:
        obs = self._envs.recv()
        if not self._ended and obs["is_first"][0]:  # the environment has failed and was restarted
            self._begin(obs)
        elif not self._ended:
            self._step += 1
            self._return += float(obs["reward"][0])
            self._ended = bool(obs["is_last"][0])
            self._take(obs)
        return obs

    def _begin(self, obs: dict[str, np.ndarray]) -> None:
        self.frames, self._every = [], 1
        self._step, self._return, self._ended = 0, 0.0, False
        self._take(obs)

    def _take(self, obs: dict[str, np.ndarray]) -> None:
        """Adds a frame if one is due; a film that is too long keeps every second frame."""
        if self.problem or self._step > STEPS or (self._step % self._every and not self._ended):
            return
        image = join_images(obs, self._keys, 0) if self._keys else self._envs.render()
        if isinstance(image, str):
            return self._give_up(image)
        image = shrink(as_rgb(image), SIDE)
        if self.frames and image.shape != self.frames[0].shape:
            return self._give_up("cannot be filmed: the size of its rendered images changes")
        self.frames.append(image)
        if len(self.frames) > FRAMES:
            self.frames, self._every = self.frames[::2], 2 * self._every

    def _give_up(self, problem: str) -> None:
        """Drops the film because of a problem, if there is one."""
        if problem:
            self.problem, self.frames = f"observes no image and {problem}", []

    @property
    def caption(self) -> str:
        """Return and length of the episode, and how much of it the film shows."""
        shown = f" (the film shows the first {STEPS:,})" if self._step > STEPS else ""
        return f"return {self._return:.4g}, {self._step:,} steps{shown}"

    def film(self) -> np.ndarray:
        """The frames (T, H, W, 3) uint8, reduced until their GIF has about BYTES at most."""
        side, frames = SIDE, self.frames
        while _estimate_bytes(frames) > BYTES and side > LEAST_SIDE:
            side = max(LEAST_SIDE, int(0.75 * side))
            frames = [shrink(frame, side) for frame in self.frames]
        return np.stack(frames)


def image_keys(obs_space: gymnasium.spaces.Dict) -> list[str]:
    """The observations that are images."""
    return [
        key for key, space in obs_space.spaces.items() if space.dtype == np.uint8 and len(space.shape) == 3 and not key.startswith("log_")
    ]


def join_images(obs: dict[str, np.ndarray], keys: list[str], index) -> np.ndarray:
    """The images of some observations side by side, (..., H, W, 3). They have the same height.

    Args:
        index: selects from the leading dimensions of observations.
    """
    return np.concatenate([as_rgb(obs[key][index]) for key in keys], -2)


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Images (..., H, W, C) with three channels: the first three, or the first one repeated."""
    return image[..., :3] if image.shape[-1] >= 3 else image[..., :1].repeat(3, -1)


def shrink(image: np.ndarray, side: int) -> np.ndarray:
    """An image (H, W, 3) uint8 whose longest side has at most `side` pixels; pixels are averaged over their area."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1.0:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BOX))


def _estimate_bytes(frames: list[np.ndarray]) -> float:
    """An upper estimate of a film's size as a GIF, from some of its frames, each encoded alone."""
    chosen = np.linspace(0, len(frames) - 1, 5).round().astype(int)
    return len(frames) * float(np.mean([len(encode_gif(frames[index][None], FPS)) for index in chosen]))
