"""Meta-World version 3: `--task metaworld_<task>`, for example metaworld_drawer-open; fifty tasks of a robot arm."""

import functools

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.dmc import choose_renderer, wants_images
from envs.gym import ActionRepeat, vectorize
from settings import unknown

VERSION = "-v3"
CAMERA, CAMERA_PLACE = "corner2", (0.75, 0.075, 0.7)  # closer, as in Seo et al. 2022 (Masked World Models)


def make(name: str, count: int, config):
    """Builds environments of a task. Images are rendered only if encoder or decoder select them (`cnn_keys`).

    Args:
        name: name of the task, without its version.
        count: number of environments.
        config: the settings, see configs.yaml.
    Raises:
        ValueError: for an unknown task, or for images without a library that renders them.
    """
    images = wants_images(config)
    choose_renderer(required=images)
    import metaworld

    names = [known.removesuffix(VERSION) for known in metaworld.MT1.ENV_NAMES]
    if name not in names:
        raise ValueError(unknown("task", f"metaworld_{name}", [f"metaworld_{known}" for known in names]))
    make_env = functools.partial(_make_one, name + VERSION, config.action_repeat, tuple(config.size) if images else None)
    return vectorize(make_env, count, config)


def _make_one(name: str, repeat: int, size: tuple[int, int] | None) -> gymnasium.Env:
    import metaworld

    benchmark = metaworld.MT1(name, seed=0)  # the same goals in every environment
    drawing = {"render_mode": "rgb_array", "camera_name": CAMERA, "height": size[0], "width": size[1]} if size else {}
    arm = benchmark.train_classes[name](**drawing)
    arm.model.camera(CAMERA).pos[:] = CAMERA_PLACE
    env = MetaWorld(arm, benchmark.train_tasks)
    env = ActionRepeat(env, repeat) if repeat > 1 else env
    # Outside of the action repeat: rendering takes longer than everything else.
    return Drawn(env, size) if size else env


class MetaWorld(gymnasium.Env):
    """One task. Each episode has a random goal.

    Observations are `state` (n,), with positions of hand, objects and goal, and `log_success`, which is 1 at the first
    successful step of an episode and else 0. Its sum over an episode says whether the episode succeeded. Success does
    not end an episode.

    Args:
        env: environment of Meta-World.
        goals: Meta-World's tasks, each of which sets a goal.
    """

    def __init__(self, env, goals: list):
        self._env, self._goals = env, goals
        self.render_mode, self.action_space = env.render_mode, env.action_space
        self.observation_space = spaces.Dict(
            {
                "state": spaces.Box(-np.inf, np.inf, env.observation_space.shape, np.float64),
                "log_success": spaces.Box(0.0, 1.0, (), np.float32),
            }
        )

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self._env.set_task(self._goals[self.np_random.integers(len(self._goals))])
        self._succeeded = False
        state, info = self._env.reset()
        return self._observe(state, False), info

    def step(self, action) -> tuple:
        state, reward, terminated, truncated, info = self._env.step(action)
        first = bool(info["success"]) and not self._succeeded
        self._succeeded |= first
        return self._observe(state, first), float(reward), terminated, truncated, info

    def render(self) -> np.ndarray:
        return self._env.render()[::-1, ::-1]  # the camera is mounted upside down

    def close(self) -> None:
        self._env.close()

    def _observe(self, state: np.ndarray, success: bool) -> dict[str, np.ndarray]:
        return {"state": state, "log_success": np.float32(success)}


class Drawn(gymnasium.ObservationWrapper):
    """Adds the rendered image to the observations, as `image`.

    Args:
        env: environment with dict observations.
        size: (H, W) of its images.
    """

    def __init__(self, env: gymnasium.Env, size: tuple[int, int]):
        super().__init__(env)
        self.observation_space = spaces.Dict({**env.observation_space.spaces, "image": spaces.Box(0, 255, (*size, 3), np.uint8)})

    def observation(self, obs: dict) -> dict:
        return {**obs, "image": self.env.render()}
