"""Any environment that is registered with gymnasium: `--task gym_<id>`, for example gym_CartPole-v1; your own with `--import my_module`."""

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
    """`count` environments of a gymnasium id, after the module of the setting `import` has been imported, if there is one.

    Raises:
        ValueError: for an unknown id, a module or package that is missing, spaces that are not supported, or an environment that does
            not keep to gymnasium's interface.
    """
    if module := config["import"]:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):  # neither it nor a package that it is in
                raise ValueError(f"import is {module!r}, which needs a module that is not installed: {error}") from error
            raise ValueError(
                f"import is {module!r}, but there is no such module; put it beside dreamer.py, or its folder into PYTHONPATH"
            ) from error
        except Exception as error:  # a module of the user's may raise anything
            raise ValueError(f"import is {module!r}, but importing it fails: {describe(error)}") from error
    try:
        env = gymnasium.make(name, disable_env_checker=True)
    except Exception as error:  # an environment's constructor may raise anything
        way_out = "" if module else " If a module of yours registers it, name that with --import"
        raise ValueError(f"gymnasium cannot make the environment {name!r}: {str(error).rstrip('.?')}.{way_out}") from error
    ActionCodec(env.action_space), ObservationCodec(env.observation_space, config.size)  # refuse what nothing can handle
    # A worker may know nothing of what this process has imported and registered, so it gets the description, not the name. That of the
    # environment itself can always be made again, but lacks the time limit, which gymnasium adds as a wrapper.
    spec = copy.deepcopy(env.unwrapped.spec)
    spec.max_episode_steps = env.spec.max_episode_steps
    env.close()
    check(functools.partial(_make_one, spec, repeat=1), name, config.env_timeout)
    return vectorize(functools.partial(_make_one, spec, config.action_repeat), count, config)


def modules_of(task: str, module: str | None) -> set[str]:
    """The modules that are imported for a task's environment: that of the setting `import`, and what stands before a colon in its id."""
    return {name for name in (module, task.partition("_")[2].rpartition(":")[0]) if name}


def check_modules(config, named: Collection[str]) -> None:
    """Raises ValueError if the environment needs modules that the user has not named: no file decides what is imported."""
    if missing := sorted(modules_of(config.task, config.get("import")) - set(named)):
        raise ValueError(
            f"the environment {config.task} is in the module {', '.join(missing)}, and a file does not decide what is imported; if you "
            f"trust it, add {' '.join(f'--import {name}' for name in missing)}"
        )


def register(task: str, make_env: Callable[[], gymnasium.Env]) -> None:
    """Lets a task `gym_<name>` stand for the environments that a function makes, in this process.

    Raises:
        ValueError: for a task of another suite, or a name that gymnasium does not allow.
    """
    suite, _, name = task.partition("_")
    if suite != "gym":
        raise ValueError(f"task is {task!r}; an environment that make_env makes needs a task gym_<name>")
    try:
        gymnasium.register(name, make_env)
    except gymnasium.error.Error as error:
        raise ValueError(f"task is {task!r}, but gymnasium cannot register that name: {error}") from error


def _make_one(spec: gymnasium.envs.registration.EnvSpec, repeat: int) -> gymnasium.Env:
    env = gymnasium.make(spec, disable_env_checker=True)
    return ActionRepeat(env, repeat) if repeat > 1 else env


def vectorize(make_env: Callable[[], gymnasium.Env], count: int, config, start: str | None = None) -> Workers:
    """`count` environments as a vector environment, each in a worker process.

    Args:
        make_env: builds one that already repeats actions.
        start: how processes start, as in `multiprocessing`; "spawn" for environments that cannot be forked.
    """
    steps = config.time_limit and max(1, config.time_limit // config.action_repeat)
    make_one = functools.partial(_make_wrapped, make_env, steps, tuple(config.size), config.grayscale)
    return Workers(make_one, count, config.env_timeout, start)


def _make_wrapped(make_env: Callable[[], gymnasium.Env], time_limit: int, size: tuple[int, int], grayscale: bool) -> gymnasium.Env:
    env = make_env()
    if time_limit:
        env = gymnasium.wrappers.TimeLimit(env, time_limit)
    return DictObservation(env, size, grayscale)


class ActionRepeat(gymnasium.Wrapper):
    """Repeats each action until the episode ends, and sums rewards and numbers under `log_` keys, but not those of a state."""

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
        return is_summed(key) and isinstance(self.observation_space[key], spaces.Box)  # classes have no sum


class DictObservation(gymnasium.ObservationWrapper):
    """Observations as a flat dict of images and vectors."""

    def __init__(self, env: gymnasium.Env, size: tuple[int, int], grayscale: bool):
        super().__init__(env)
        self._codec = ObservationCodec(env.observation_space, size, grayscale)
        self.observation_space = self._codec.space

    def observation(self, obs) -> dict[str, np.ndarray]:
        return self._codec(obs)


class OldGym(gymnasium.Env):
    """An environment with the interface of the `gym` package before 0.26, with gymnasium's.

    There `reset` returns the observation alone, and `step` four values, with one flag for every end. A time limit is told from a
    true end by "TimeLimit.truncated" in the info, or by a "discount" other than 0.

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
    # By their attributes, since there are several packages of old spaces, and none of them need be installed.
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
