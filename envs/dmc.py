"""DeepMind Control: `--task dmc_<domain>_<task>`, for example dmc_walker_walk.

`DmEnv` adapts any dm_env environment.
"""

import ctypes.util
import functools
import os
import re
import sys
from collections.abc import Callable

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.gym import vectorize
from settings import unknown

CAMERAS = {"quadruped": 2}  # others use camera 0, which looks at the ground in quadruped


def make(name: str, count: int, config):
    """Builds environments of a task. Images are rendered only if encoder or decoder select them (`cnn_keys`).

    Args:
        name: "<domain>_<task>".
        count: number of environments.
        config: the settings, see configs.yaml.
    Raises:
        ValueError: for an unknown task, or for images without a library that renders them.
    """
    images = wants_images(config)
    choose_renderer(required=images)
    from dm_control import suite

    tasks = {f"{domain}_{task}": (domain, task) for domain, task in suite.ALL_TASKS}
    tasks.update({f"cup_{task}": (domain, task) for domain, task in suite.ALL_TASKS if domain == "ball_in_cup"})
    if name not in tasks:
        raise ValueError(unknown("task", f"dmc_{name}", [f"dmc_{task}" for task in tasks]))
    make_env = functools.partial(_make_one, *tasks[name], config.action_repeat, tuple(config.size) if images else None)
    return vectorize(make_env, count, config)


def wants_images(config) -> bool:
    """Whether encoder or decoder select the observation `image`."""
    return any(re.match(keys, "image") for keys in (config.encoder.cnn_keys, config.decoder.cnn_keys))


def choose_renderer(required: bool) -> None:
    """Sets MUJOCO_GL on Linux without a display, so that MuJoCo renders off-screen. An existing value stays.

    Args:
        required: whether the task needs images.
    Raises:
        ValueError: if images are required, but no library can render them.
    """
    if sys.platform == "linux" and not os.environ.get("DISPLAY") and "MUJOCO_GL" not in os.environ:
        libraries = {"EGL": "egl", "OSMesa": "osmesa"}
        os.environ["MUJOCO_GL"] = next((name for library, name in libraries.items() if ctypes.util.find_library(library)), "off")
    if required and os.environ.get("MUJOCO_GL", "").lower() in ("off", "disable", "disabled", "false", "0"):
        raise ValueError(
            "images of this task need a library for off-screen rendering; install EGL or OSMesa (on Debian and "
            "Ubuntu: apt-get install libegl1); dmc tasks also learn from state vectors, with --configs dmc_proprio"
        )


def _make_one(domain: str, task: str, repeat: int, size: tuple[int, int] | None, render_mode: str | None = None) -> "DmEnv":
    from dm_control import suite

    def make_env(seed: int | None):
        return suite.load(domain, task, task_kwargs={"random": seed})

    def draw(env, height: int, width: int) -> np.ndarray:
        return env.physics.render(height, width, camera_id=CAMERAS.get(domain, 0))

    return DmEnv(make_env, repeat, draw, size, render_mode)


class DmEnv(gymnasium.Env):
    """A dm_env environment with gymnasium's interface.

    Args:
        make_env: builds the environment from a seed or None.
        repeat: environment steps per action; rewards are summed.
        draw: draws an image (H, W, 3) of the environment, given it and (H, W); None if it cannot be drawn.
        size: (H, W) of the observation `image`; None for no image.
        render_mode: "rgb_array" or None.
    """

    RENDERED = 240, 320  # (H, W) of what `render` returns

    def __init__(
        self,
        make_env: Callable,
        repeat: int = 1,
        draw: Callable | None = None,
        size: tuple[int, int] | None = None,
        render_mode: str | None = None,
    ):
        self._make_env, self._repeat, self._draw, self._size = make_env, repeat, draw, size
        self.metadata = {"render_modes": ["rgb_array"] if draw else []}
        self.render_mode = render_mode
        self._env = make_env(None)
        spec = self._env.observation_spec()
        spec = dict(spec) if hasattr(spec, "items") else {"image": spec}
        self.observation_space = spaces.Dict({key: _observation_space(part.shape, part.dtype) for key, part in spec.items()})
        if size:
            self.observation_space["image"] = _observation_space((*size, 3), np.uint8)
        spec = self._env.action_spec()
        if hasattr(spec, "num_values"):
            self.action_space = spaces.Discrete(int(spec.num_values))
        else:
            low, high = (np.broadcast_to(bound, spec.shape).astype(np.float32) for bound in (spec.minimum, spec.maximum))
            self.action_space = spaces.Box(low, high)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        if seed is not None:
            self._env.close()
            self._env = self._make_env(seed)
        return self._observe(self._env.reset()), {}

    def step(self, action) -> tuple:
        total = 0.0
        for _ in range(self._repeat):
            step = self._env.step(action)
            total += step.reward or 0.0
            if step.last():
                break
        ended = step.last() and step.discount == 0.0  # any other discount means a time limit
        return self._observe(step), total, ended, step.last() and not ended, {}

    def render(self) -> np.ndarray:
        return self._draw(self._env, *self.RENDERED)

    def close(self) -> None:
        self._env.close()

    def _observe(self, step) -> dict[str, np.ndarray]:
        obs = step.observation
        obs = {key: np.asarray(value) for key, value in obs.items()} if hasattr(obs, "items") else {"image": obs}
        return {**obs, "image": self._draw(self._env, *self._size)} if self._size else obs


def _observation_space(shape: tuple[int, ...], dtype) -> spaces.Box:
    low, high = (0, 255) if dtype == np.uint8 else (-np.inf, np.inf)
    return spaces.Box(low, high, shape, dtype)
