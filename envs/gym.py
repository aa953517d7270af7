"""Environments that are registered with gymnasium: `--task gym_<id>`, for example gym_CartPole-v1.

Your own environments need `--import my_module` as well.
"""

import copy
import functools
import importlib
from collections.abc import Callable, Collection

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.check import check, describe
from envs.spaces import ActionCodec, ObservationCodec, is_summed
from envs.workers import Workers


def make(name: str, count: int, config):
    """Builds `count` environments of a gymnasium id. Imports the module of the setting `import` first, if there is one.

    Raises:
        ValueError: if the id is unknown, a module or package is missing, a space is not supported, or the environment violates
            gymnasium's interface.
    """
    if module := config["import"]:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):  # neither the module nor a package that contains it
                raise ValueError(f"import is {module!r}, which needs a module that is not installed: {error}") from error
            raise ValueError(
                f"import is {module!r}, but there is no such module; put it beside dreamer.py, or its folder into PYTHONPATH"
            ) from error
        except Exception as error:  # the user's module may raise anything
            raise ValueError(f"import is {module!r}, but importing it fails: {describe(error)}") from error
    try:
        env = gymnasium.make(name, disable_env_checker=True)
    except Exception as error:  # an environment's constructor may raise anything
        way_out = "" if module else " If a module of yours registers it, name that with --import"
        raise ValueError(f"gymnasium cannot make the environment {name!r}: {str(error).rstrip('.?')}.{way_out}") from error
    ActionCodec(env.action_space), ObservationCodec(env.observation_space, config.size)  # raise ValueError for unsupported spaces
    # A worker may lack the imports and registrations of this process, so it gets the spec instead of the id. The spec of the unwrapped
    # environment can always be built again, but it lacks the time limit, which gymnasium adds as a wrapper.
    spec = copy.deepcopy(env.unwrapped.spec)
    spec.max_episode_steps = env.spec.max_episode_steps
    env.close()
    check(functools.partial(_make_one, spec, repeat=1), name, config.env_timeout)
    return vectorize(functools.partial(_make_one, spec, config.action_repeat), count, config)


def modules_of(task: str, module: str | None) -> set[str]:
    """The modules that a task's environment needs: the setting `import`, and the module before a colon in the id."""
    return {name for name in (module, task.partition("_")[2].rpartition(":")[0]) if name}


def check_modules(config, named: Collection[str]) -> None:
    """Raises ValueError if the environment needs modules that the user has not named.

    A settings file or checkpoint must not decide which code is imported.
    """
    if missing := sorted(modules_of(config.task, config.get("import")) - set(named)):
        raise ValueError(
            f"the environment {config.task} is in the module {', '.join(missing)}, and a file does not decide what is imported; if you "
            f"trust it, add {' '.join(f'--import {name}' for name in missing)}"
        )


def register(task: str, make_env: Callable[[], gymnasium.Env]) -> None:
    """Registers a function that builds environments as the task `gym_<name>`, in this process.

    Raises:
        ValueError: if the task belongs to another suite, or gymnasium does not allow the name.
    """
    suite, _, name = task.partition("_")
    if suite != "gym":
        raise ValueError(f"task is {task!r}; an environment that make_env makes needs a task gym_<name>")
    try:
        gymnasium.register(name, make_env)
    except gymnasium.error.Error as error:
        raise ValueError(f"task is {task!r}, but gymnasium cannot register that name: {error}") from error


def _make_one(spec: gymnasium.envs.registration.EnvSpec, repeat: int, **render_mode: str) -> gymnasium.Env:
    env = gymnasium.make(spec, disable_env_checker=True, **render_mode)
    return ActionRepeat(env, repeat) if repeat > 1 else env


def vectorize(make_env: Callable[..., gymnasium.Env], count: int, config, start: str | None = None) -> Workers:
    """Builds a vector environment of `count` environments, each in a worker process.

    Args:
        make_env: builds one environment, which already repeats actions. If the environment offers the render mode rgb_array,
            `make_env` must also accept render_mode="rgb_array"; films of evaluation episodes need it.
        start: how processes start, as in `multiprocessing`; "spawn" for environments that cannot be forked.
    """
    steps = config.time_limit and max(1, config.time_limit // config.action_repeat)
    make_one = functools.partial(_make_wrapped, make_env, steps, tuple(config.size), config.grayscale)
    return Workers(make_one, count, config.env_timeout, start)


def _make_wrapped(
    make_env: Callable[..., gymnasium.Env], time_limit: int, size: tuple[int, int], grayscale: bool, **render_mode: str
) -> gymnasium.Env:
    env = make_env(**render_mode)
    if time_limit:
        env = gymnasium.wrappers.TimeLimit(env, time_limit)
    return DictObservation(env, size, grayscale)


class ActionRepeat(gymnasium.Wrapper):
    """Repeats each action, at most until the episode ends. Sums rewards and numbers under `log_` keys, except `log_state_` keys."""

    def __init__(self, env: gymnasium.Env, repeat: int):
        super().__init__(env)
        self._repeat = repeat

    def step(self, action):
        total, logs = 0.0, {}
        for _ in range(self._repeat):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += reward
            if isinstance(obs, dict):
                logs = {key: value + logs.get(key, 0) for key, value in obs.items() if self._adds_up(key)}
            if terminated or truncated:
                break
        return {**obs, **logs} if logs else obs, total, terminated, truncated, info

    def _adds_up(self, key: str) -> bool:
        return is_summed(key) and isinstance(self.observation_space[key], spaces.Box)  # class indices have no sum


class DictObservation(gymnasium.ObservationWrapper):
    """Turns observations into a flat dict of images and vectors."""

    def __init__(self, env: gymnasium.Env, size: tuple[int, int], grayscale: bool):
        super().__init__(env)
        self._codec = ObservationCodec(env.observation_space, size, grayscale)
        self.observation_space = self._codec.space

    def observation(self, obs) -> dict[str, np.ndarray]:
        return self._codec(obs)


class OldGym(gymnasium.Env):
    """Gives gymnasium's interface to an environment of the `gym` package before 0.26.

    In the old interface `reset` returns only the observation, and `step` returns four values with a single flag for the end of an
    episode. An end counts as truncated if the info contains a true "TimeLimit.truncated" or a "discount" other than 0.

    Args:
        make_env: builds the environment from a seed (or None).
    """

    def __init__(self, make_env: Callable):
        self._make_env = make_env
        self._env = make_env(None)
        self.observation_space = _modern_space(self._env.observation_space)
        self.action_space = _modern_space(self._env.action_space)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        if seed is not None:
            self.close()
            self._env = self._make_env(seed)
        return self._env.reset(), {}

    def step(self, action) -> tuple:
        obs, reward, done, info = self._env.step(action)
        cut = bool(done and (info.get("TimeLimit.truncated", False) or info.get("discount", 0.0) != 0.0))
        return obs, float(reward), bool(done) and not cut, cut, info

    def close(self) -> None:
        if hasattr(self._env, "close"):
            self._env.close()


def _modern_space(space) -> gymnasium.Space:
    # Recognised by attributes: several packages define old spaces, and none of them has to be installed.
    if hasattr(space, "spaces"):
        parts = space.spaces
        return (
            spaces.Dict({key: _modern_space(part) for key, part in parts.items()})
            if isinstance(parts, dict)
            else spaces.Tuple([_modern_space(part) for part in parts])
        )
    elif hasattr(space, "low"):
        return spaces.Box(space.low, space.high, space.shape, np.dtype(space.dtype).type)
    elif hasattr(space, "nvec"):
        return spaces.MultiDiscrete(space.nvec)
    elif hasattr(space, "n"):
        return spaces.MultiBinary(space.n) if type(space).__name__ == "MultiBinary" else spaces.Discrete(int(space.n))
    raise ValueError(
        f"the space {space} of an environment for the package gym is not supported; allowed are Box, Discrete, "
        "MultiDiscrete and MultiBinary, and dicts and tuples of them"
    )
