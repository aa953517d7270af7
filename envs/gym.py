"""Environments that are registered with gymnasium: `--task gym_<id>`, for example gym_CartPole-v1.

Your own environments need `--import my_module` as well.
"""

import functools
import pickle
import re
import sys
from collections.abc import Callable, Collection

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs import registration

import console
from envs.check import Trial, check
from envs.image_spaces import image_axes
from envs.modules import import_module
from envs.spaces import ObservationCodec, is_summed
from envs.workers import Workers
from settings.files import show


def make(name: str, count: int, config, trial: Trial | None = None, make_env: Callable[..., gymnasium.Env] | None = None):
    """Builds `count` environments of a gymnasium id. Imports the module of the setting `import` first, if there is one.

    Args:
        trial: of the same environment, if it has been tried out; then nothing is said of it again.
        make_env: makes the environment, if gymnasium does not know the id, see `claim`.
    Raises:
        ValueError: if the id is unknown, a module or package is missing, a space is not supported, or the environment violates
            gymnasium's interface.
    """
    if config.make_env and make_env is None:
        raise ValueError(
            f"the environment {config.task} is made by a function of a script (make_env of dreamer.main), which only that script can "
            "call; resume the run with the script. To evaluate it elsewhere, register the environment in a module and train with --import"
        )
    if module := config["import"]:
        import_module(module, "import")
    spec, kwargs = _spec(name, bool(module)) if make_env is None else _own_spec(name, make_env), config.env_kwargs
    if {**spec.kwargs, **kwargs}.get("render_mode") == "human":
        kwargs = {**kwargs, "render_mode": None}
        if trial is None:
            console.warn(f"the environment {name!r} is made without its render_mode 'human', which would open a window in each process")
    start = _start_method(spec, bool(module))
    if trial is None:
        trial = _try_out(name, spec, kwargs, config, start)
    return vectorize(functools.partial(_make_one, spec, kwargs, config.action_repeat), count, config, start, trial)


def _spec(name: str, imported: bool) -> registration.EnvSpec:
    """What is registered under an id, which may have a module before a colon, and no version; then it is the newest.

    A worker may lack the imports and registrations of this process, so it gets this instead of the id.

    Raises:
        ValueError: if nothing is registered.
    """
    module, _, plain = name.rpartition(":")
    if module:
        import_module(module, "the module of the task")
    try:
        namespace, title, version = registration.parse_env_id(plain)
        newest = registration.find_highest_version(namespace, title)
        return gymnasium.spec(registration.get_env_id(namespace, title, newest) if version is None and newest is not None else plain)
    except gymnasium.error.Error as error:
        way_out = "" if imported or module else " If a module of yours registers it, name that with --import"
        raise ValueError(f"gymnasium cannot make the environment {name!r}: {str(error).rstrip('.?')}.{way_out}") from error


def _start_method(spec: registration.EnvSpec, imported: bool) -> str | None:
    """How processes start, see `processes.start`.

    A forked process lacks the threads of JAX, which may have begun when the user's module was imported, and would wait for them
    for ever. A script that calls `main` imports nothing, and might be run again in a spawned process.
    """
    if not imported or "jax" not in sys.modules:
        return None
    try:
        pickle.dumps(spec)
    except Exception:  # a function within a function, for example
        return None
    return "spawn"


def _try_out(name: str, spec: registration.EnvSpec, kwargs: dict, config, start: str | None) -> Trial:
    """Tries an environment out, and says what its user should know."""
    try:
        trial = check(functools.partial(_make_one, spec, kwargs, repeat=1), name, config.env_timeout, start=start)
    except (ValueError, ImportError) as error:
        source = f", of which {show(config.eval_env_kwargs)} is from eval_env_kwargs" if config.eval_env_kwargs else ""
        raise ValueError(f"{error}; its env_kwargs are {show(kwargs)}{source}" if kwargs else str(error)) from error
    codec = ObservationCodec(trial.observation_space, config.size, config.grayscale)
    newest = registration.find_highest_version(spec.namespace, spec.name) if spec.id in gymnasium.registry else None
    told = [] if name.rpartition(":")[2] == spec.id else [f"{name} has no version, so it is the newest, {spec.id}"]
    for text in [*told, *codec.notes]:
        console.say(f"note: {text}")
    is_old = None not in (newest, spec.version) and newest > spec.version
    old = [f"{spec.id} is out of date; the newest version is v{newest}"] if is_old else []
    for text in [*old, *codec.warnings]:
        console.warn(text)
    if not config.time_limit and trial.time_limit is None:
        endless = "" if config.eval_time_limit else "; evaluations may never end either, since eval_time_limit is 0"
        text = f"note: of the environment {name!r} no time limit is known; if its episodes may never end, give a --time_limit"
        console.say(f"{text}{endless}")
    return trial


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


def claim(config, make_env: Callable[..., gymnasium.Env]) -> None:
    """Notes in the settings that a function makes the environment of the task `gym_<name>`.

    The function itself is handed on to `make`. In gymnasium's registry, another run of this process could replace it.

    Raises:
        ValueError: if `make_env` is no function, or the task belongs to another suite or module.
    """
    if not callable(make_env):
        raise ValueError(f"make_env is {make_env}; it must be a function that makes an environment, such as the class of it")
    suite, _, name = config.task.partition("_")
    if suite != "gym" or ":" in name:
        raise ValueError(f"task is {config.task!r}; an environment that make_env makes needs a task gym_<name>")
    config.make_env = True


def _own_spec(name: str, make_env: Callable[..., gymnasium.Env]) -> registration.EnvSpec:
    """The spec of an environment that a function makes; it is not registered.

    Raises:
        ValueError: if gymnasium does not allow the name, or has an environment of that name.
    """
    try:
        spec = registration.EnvSpec(name, make_env)
    except gymnasium.error.Error as error:
        raise ValueError(f"task is 'gym_{name}', but gymnasium does not allow that name: {error}") from error
    newest = registration.find_highest_version(spec.namespace, spec.name) if spec.version is None else None
    if spec.id in gymnasium.registry or newest is not None:
        raise ValueError(f"task is 'gym_{name}', and gymnasium has an environment of that name; choose another name for that of make_env")
    return spec


def _make_one(spec: registration.EnvSpec, kwargs: dict, repeat: int, **render_mode: str) -> gymnasium.Env:
    try:
        env = gymnasium.make(spec, **{"disable_env_checker": True, **kwargs, **render_mode})
    except TypeError as error:
        if re.search(r"\(\) missing \d+ required", str(error)):
            raise TypeError(f"{error}; give arguments of the environment with --env_kwargs '{{name: value}}'") from error
        if "gymnasium.Env" not in str(error):
            raise
        if "<class 'NoneType'>" in str(error):
            raise TypeError("what makes it returned None; it must return the environment (is a return missing?)") from error
        raise TypeError(
            f"{error} hDreamer needs one environment: several in one are not allowed (the setting envs makes several), and OldGym in "
            "envs/gym.py adapts environments of the old gym"
        ) from error
    return ActionRepeat(env, repeat) if repeat > 1 else env


def vectorize(make_env: Callable[..., gymnasium.Env], count: int, config, start: str | None = None, trial: Trial | None = None) -> Workers:
    """Builds a vector environment of `count` environments, each in a worker process.

    Args:
        make_env: builds one environment, which already repeats actions. If the environment offers the render mode rgb_array,
            `make_env` must also accept render_mode="rgb_array"; films of evaluation episodes need it.
        start: how processes start, as in `multiprocessing`; "spawn" for environments that cannot be forked.
        trial: of the environment that `make_env` builds, if it has been tried out. Otherwise it is built once, in a process of its own.
    """
    trial = trial or check(make_env, config.task, config.env_timeout, steps=0, start=start)
    steps = config.time_limit and max(1, config.time_limit // config.action_repeat)
    codec = ObservationCodec(trial.observation_space, config.size, config.grayscale)
    make_one = functools.partial(_make_wrapped, make_env, steps, tuple(config.size), config.grayscale)
    return Workers(make_one, trial, codec.space, count, config.env_timeout, start)


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
        self._repeat, self._summed = repeat, _summed_spaces(env.observation_space)
        if self._summed:
            self.observation_space = spaces.Dict({**env.observation_space.spaces, **self._summed})

    def step(self, action):
        total, logs = 0.0, {}
        for _ in range(self._repeat):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += reward
            if isinstance(obs, dict):
                logs = {key: np.add(value, logs.get(key, 0.0), dtype=np.float64) for key, value in obs.items() if key in self._summed}
            if terminated or truncated:
                break
        return {**obs, **logs} if logs else obs, total, terminated, truncated, info


def _summed_spaces(space: gymnasium.Space) -> dict[str, spaces.Box]:
    """Spaces of the sums of numbers under `log_` keys. Class indices and images have no sum."""
    parts = space.spaces if isinstance(space, spaces.Dict) else {}
    return {
        key: spaces.Box(-np.inf, np.inf, part.shape, np.float64)  # a sum may exceed bounds and dtype of its parts
        for key, part in parts.items()
        if is_summed(str(key)) and isinstance(part, spaces.Box) and image_axes(part, str(key)) is None
    }


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
