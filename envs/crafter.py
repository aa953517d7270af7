"""Crafter: `--task crafter_reward`, or `crafter_noreward` without rewards."""

import functools
from collections.abc import Sequence

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.gym import ActionRepeat, OldGym, vectorize
from settings import unknown

TASKS = ("reward", "noreward")
LOG = "log_achievement_"


def make(name: str, count: int, config):
    """Builds environments of Crafter.

    Args:
        name: "reward" or "noreward".
        count: number of environments.
        config: the settings, see configs.yaml.
    Raises:
        ValueError: for an unknown name.
    """
    if name not in TASKS:
        raise ValueError(unknown("task", f"crafter_{name}", [f"crafter_{task}" for task in TASKS]))
    import crafter  # noqa: F401 -- reports a missing package here, not in a worker

    return vectorize(functools.partial(_make_one, name == "reward", config.action_repeat, tuple(config.size)), count, config)


def _make_one(reward: bool, repeat: int, size: tuple[int, int]) -> gymnasium.Env:
    import crafter

    env = Achievements(OldGym(lambda seed: crafter.Env(size=size[::-1], reward=reward, seed=seed)), crafter.constants.achievements)
    return ActionRepeat(env, repeat) if repeat > 1 else env


class Achievements(gymnasium.Wrapper):
    """Observations are `image` and, for each achievement, `log_achievement_<name>`: 1 where it is unlocked, else 0.

    Args:
        env: Crafter; its info counts how often each achievement was reached.
        names: names of the achievements.
    """

    def __init__(self, env: gymnasium.Env, names: Sequence[str]):
        super().__init__(env)
        # Crafter's space says (width, height, 3), but its images are (height, width, 3).
        width, height = env.observation_space.shape[:2]
        logs = {LOG + name: spaces.Box(0.0, 1.0, (), np.float32) for name in names}
        self.observation_space = spaces.Dict({"image": spaces.Box(0, 255, (height, width, 3), np.uint8), **logs})
        self._names = names

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        image, info = self.env.reset(seed=seed, options=options)
        self._counts = dict.fromkeys(self._names, 0)
        return self._observe(image, self._counts), info

    def step(self, action) -> tuple:
        image, reward, ended, cut, info = self.env.step(action)
        return self._observe(image, info["achievements"]), reward, ended, cut, info

    def _observe(self, image: np.ndarray, counts: dict[str, int]) -> dict[str, np.ndarray]:
        unlocked = {name: counts[name] > 0 and self._counts[name] == 0 for name in self._names}
        self._counts = dict(counts)
        return {"image": image, **{LOG + name: np.float32(now) for name, now in unlocked.items()}}


def scores(episodes: Sequence[dict[str, float]]) -> dict[str, float]:
    """Crafter's score in percent (Hafner 2021), a geometric mean of the success rates s of all achievements.

    It is exp(mean(log(1 + s))) - 1, with s in percent.

    Args:
        episodes: for each episode its sums, among them `achievement_<name>`.
    Returns:
        the score, under the key `score`.
    """
    names = [name for name in episodes[0] if name.startswith("achievement_")]
    percent = [100.0 * np.mean([episode[name] > 0 for episode in episodes]) for name in names]
    return {"score": float(np.expm1(np.mean(np.log1p(percent))))}
