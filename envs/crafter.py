"""Crafter: `--task crafter_reward`, or crafter_noreward for none."""

import functools

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.gym import ActionRepeat, vectorize
from settings import unknown

TASKS = ("reward", "noreward")


def make(name: str, count: int, config):
    """`count` environments.

    Raises:
        ValueError: for an unknown task.
    """
    if name not in TASKS:
        raise ValueError(unknown("task", f"crafter_{name}", [f"crafter_{task}" for task in TASKS]))
    import crafter  # noqa: F401 -- a missing package shows here, not in a worker

    return vectorize(functools.partial(_make_one, name == "reward", config.action_repeat, tuple(config.size)), count, config)


def _make_one(reward: bool, repeat: int, size: tuple[int, int]) -> gymnasium.Env:
    env = Crafter(reward, size)
    return ActionRepeat(env, repeat) if repeat > 1 else env


class Crafter(gymnasium.Env):
    """Crafter with gymnasium's interface; `log_achievement_<name>` is 1 where an achievement is unlocked."""

    def __init__(self, reward: bool, size: tuple[int, int]):
        import crafter

        self._make_env = functools.partial(crafter.Env, size=size[::-1], reward=reward)
        self._achievements = crafter.constants.achievements
        self._env = self._make_env()
        logs = {f"log_achievement_{name}": spaces.Box(0.0, 1.0, (), np.float32) for name in self._achievements}
        self.observation_space = spaces.Dict({"image": spaces.Box(0, 255, (*size, 3), np.uint8), **logs})
        self.action_space = spaces.Discrete(len(self._env.action_names))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        if seed is not None:
            self._env = self._make_env(seed=seed)
        self._counts = dict.fromkeys(self._achievements, 0)
        return self._observe(self._env.reset(), self._counts), {}

    def step(self, action) -> tuple:
        image, reward, done, info = self._env.step(action)
        died = info["discount"] == 0.0  # otherwise the time limit
        return self._observe(image, info["achievements"]), float(reward), died, done and not died, {}

    def _observe(self, image: np.ndarray, counts: dict[str, int]) -> dict[str, np.ndarray]:
        unlocked = {name: counts[name] > 0 and self._counts[name] == 0 for name in self._achievements}
        self._counts = dict(counts)
        return {"image": image, **{f"log_achievement_{name}": np.float32(now) for name, now in unlocked.items()}}
