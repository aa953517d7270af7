"""The real environment beside a dream: the same actions, and what the agent infers from what it observes.

Shapes: A action, C kinds of objects.
"""

import colorsys
from collections.abc import Collection

import numpy as np
import torch
from torch import nn

from envs import make_envs
from envs.gym import check_modules
from networks import State
from play.camera import as_rgb, image_keys, shrink

SIDE = 256  # pixels of the longest side of a rendered image, at most
RENDERED, BOARD = "rendered", "board"  # keys of images among what is seen, see `World.seen` and `pictured`


def pictured(task: str, seen: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Observations as a person likes to see them: the board of a MinAtar game as an image `BOARD` (10, 10, 3) uint8, in place of a vector.

    Args:
        seen: observations by key. The vector of a MinAtar game has flags of 10 x 10 cells, (100 * C,), or predictions of them.
    """
    flags = seen.get("vector")
    if not task.startswith("minatar_") or flags is None or flags.size % 100:
        return seen
    kinds = flags.size // 100
    colors = np.array([colorsys.hsv_to_rgb(kind / kinds, 0.6, 1.0) for kind in range(kinds)])  # (C, 3)
    board = (flags.reshape(10, 10, kinds).clip(0.0, 1.0) @ colors).clip(0.0, 1.0)
    return {**{key: value for key, value in seen.items() if key != "vector"}, BOARD: (255 * board).astype(np.uint8)}


class World:
    """One environment of an agent's task, in a worker process.

    Args:
        agent: a trained `dreamer.Dreamer`.
        modules: modules that may be imported for the environment.
    Attributes:
        steps, score: steps and return since the start of the episode.
        ended: whether the episode has ended. Then steps change nothing.
    Raises:
        ValueError: if the environment cannot be built, or takes other actions.
    """

    def __init__(self, agent: nn.Module, modules: Collection[str]):
        check_modules(agent._config, modules)
        self._agent = agent
        self._envs = make_envs(agent._config, 1, training=False)
        try:
            agent.act_in(self._envs.act_space)
            self._problem = "" if image_keys(self._envs.obs_space) else self._envs.prepare_render()
            self._renders = not image_keys(self._envs.obs_space)
        except BaseException:
            self._envs.close()
            raise

    def start(self, seed: int) -> None:
        """Starts an episode."""
        self._obs, self._latent = self._envs.reset(seed % 2**31), None
        self.steps, self.score, self.ended = 0, 0.0, False
        self._infer(np.zeros(self._agent.codec.size, np.float32))

    def step(self, action: np.ndarray) -> None:
        """Takes a step with an action vector (A,).

        Raises:
            RuntimeError: if the environment fails.
        """
        if self.ended:
            return
        self._envs.send(self._agent.codec.decode(action[None]))
        self._obs = self._envs.recv()
        if self._obs["is_first"][0]:
            raise RuntimeError("the environment has failed in this step; the program has printed why")
        self.steps += 1
        self.score += float(self._obs["reward"][0])
        self.ended = bool(self._obs["is_last"][0])
        self._infer(action)

    def _infer(self, action: np.ndarray) -> None:
        """Updates the posterior with this observation and the action that led to it."""
        if self._latent is not None:
            self._latent["action"] = torch.as_tensor(action[None]).to(self._latent["action"])
        _, self._latent = self._agent.act(self._obs, self._latent)

    @property
    def state(self) -> State:
        """The posterior (1, ...) of now."""
        return {key: value for key, value in self._latent.items() if key != "action"}

    @property
    def reward(self) -> float:
        """The last reward."""
        return float(self._obs["reward"][0])

    def seen(self) -> dict[str, np.ndarray]:
        """Observed images (H, W, C) uint8 and vectors (n,) by key, and what the environment renders, if no image is observed."""
        found = pictured(self._agent._config.task, {key: self._obs[key][0] for key in self._agent.obs_space.spaces})
        if self._renders and not self._problem and BOARD not in found:
            image = self._envs.render()
            if isinstance(image, str):
                self._problem = image
            else:
                found[RENDERED] = shrink(as_rgb(image), SIDE)
        return found

    def close(self) -> None:
        """Ends the environment."""
        self._envs.close()
