"""Tries an environment out before a run begins, and checks its values at every step of the run."""

import contextlib
import numbers
import pickle
import signal
from collections.abc import Callable, Collection
from typing import NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

import console
from envs import processes
from envs.modules import describe
from envs.spaces import ActionCodec, ObservationCodec, is_in, mismatch

STEPS = 20
LARGEST = 1e12  # magnitude of observations and rewards: sums of their squares must fit into float32 (3e38)
RENDER_MODE = "rgb_array"
ENDING = 5.0  # seconds that the process of a trial has to end by itself


class Trial(NamedTuple):
    """What is known of an environment that has been tried out.

    Attributes:
        observation_space, action_space: as the environment has them.
        time_limit: steps after which gymnasium's TimeLimit cuts its episodes off; None if there is none.
        render_mode: of the environment.
        offers_rendering: whether it lists `RENDER_MODE`.
        outside: names of observations that were outside their bounds.
    """

    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    time_limit: int | None
    render_mode: str | None
    offers_rendering: bool
    outside: frozenset[str] = frozenset()


def check(make_env: Callable[[], gymnasium.Env], name: str, timeout: float = 0.0, *, steps: int = STEPS, start: str | None = None) -> Trial:
    """Builds an environment in a process of its own, plays random steps and closes it. This process has no instance of it.

    Warns of observations outside their bounds, of a `close` that fails, and of windows.

    Args:
        make_env: builds the environment.
        name: name of the environment in messages.
        timeout: largest duration of a step, reset or close in seconds; 0 for no limit.
        steps: number of steps; with 0, the environment is not reset either.
        start: how the process starts, see `processes.start`.
    Raises:
        ValueError: if the environment cannot be made, has spaces that are not supported, violates gymnasium's interface or its own
            spaces, or if it dies or hangs.
        ImportError: if making it needs a package that is not installed.
    """
    process, connection = processes.start("check", _try_out, (make_env, steps), start)
    try:
        found, problem = None, ""
        while found is None:
            found = _receive(process, connection, timeout, "in its first steps")
        problem = _receive(process, connection, timeout, "when it is closed")
        process.join(ENDING)
    except _Broken as error:
        if found is None:
            raise ValueError(f"the environment {name!r} {error}") from error.__cause__
        problem = str(error)
    finally:
        processes.stop(process, connection)
    if isinstance(found, Exception):
        raise type(found)(f"the environment {name!r} {found}")
    if problem:
        console.warn(f"the environment {name!r} {problem}; that is ignored")
    if found.outside:
        console.warn(f"the environment {name!r} has values outside the bounds of its observation space: {', '.join(sorted(found.outside))}")
    if found.render_mode == "human":
        console.warn(f"the environment {name!r} opens a window in each of its processes; leave its render_mode 'human' out")
    return found


def _receive(process, connection, timeout: float, when: str):
    """What the process of a trial sends.

    Raises:
        _Broken: if it sends nothing, or what cannot be read.
    """
    if not connection.poll(timeout or None):
        raise _Broken(f"hangs {when}, for {timeout:g} seconds (env_timeout)")
    try:
        return connection.recv()
    except (EOFError, OSError) as error:
        process.join(1.0)
        raise _Broken(f"ends its process {when} (exit code {process.exitcode})") from error
    except Exception as error:  # the class of a space may be of the user's making
        raise _Broken(f"cannot be used: {_cannot_be_sent(error)}") from error


def _cannot_be_sent(error: Exception) -> str:
    return f"its spaces cannot be sent between processes; define their classes in a module, not in a function ({describe(error)})"


def _try_out(make_env: Callable[[], gymnasium.Env], steps: int, connection) -> None:
    """Sends None after every step, then a `Trial` or an error, then how `close` failed, if it did."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process gets the signal too, and ends this one
    env = None
    try:
        env = make_env()
        trial = _look_at(env)
        answer = trial._replace(outside=_play(env, steps, connection)) if steps else trial
    except _Broken as error:
        answer = ValueError(f"breaks its interface: {error}")
    except _Unsupported as error:
        answer = ValueError(f"cannot be used: {error}")
    except Exception as error:  # environments raise errors of any kind
        kind = ImportError if env is None and isinstance(error, ImportError) else ValueError
        answer = kind(f"{'cannot be made' if env is None else 'fails in its first steps'}: {describe(error)}")
    with contextlib.suppress(OSError):  # the main process may be gone
        connection.send(answer)
    problem = _close(env)
    with contextlib.suppress(OSError):
        connection.send(problem)


def _look_at(env: gymnasium.Env) -> Trial:
    """What an environment says of itself.

    Raises:
        _Broken: if it lacks a space.
        _Unsupported: if one of its spaces cannot be handled, or not be sent to another process.
    """
    for name in ("observation_space", "action_space"):
        space = getattr(env, name, None)
        if not isinstance(space, gymnasium.Space):
            raise _Broken(f"its {name} is {_kind(space)}; it must be a space of gymnasium")
    try:
        ActionCodec(env.action_space), ObservationCodec(env.observation_space, (64, 64))
    except ValueError as error:
        raise _Unsupported(str(error)) from error
    modes = env.metadata.get("render_modes") if isinstance(env.metadata, dict) else None
    offers = isinstance(modes, Collection) and RENDER_MODE in modes  # metadata is of the user's making
    trial = Trial(env.observation_space, env.action_space, _time_limit(env), getattr(env, "render_mode", None), offers)
    try:
        pickle.dumps(trial)
    except Exception as error:
        raise _Unsupported(_cannot_be_sent(error)) from error
    return trial


def _time_limit(env: gymnasium.Env) -> int | None:
    """The steps after which a wrapper cuts the environment's episodes off; None if none does."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, gymnasium.wrappers.TimeLimit):
            return env._max_episode_steps
        env = env.env
    return None


def _play(env: gymnasium.Env, steps: int, connection) -> frozenset[str]:
    """Plays random steps; returns the names of observations outside their bounds."""
    codec, rng = ActionCodec(env.action_space), np.random.default_rng(0)
    outside = _check_reset(env)
    for _ in range(steps):
        connection.send(None)
        found, ended = _check_step(env, codec.decode(codec.random(rng, 1))[0])  # actions as those of a run, unlike those of the space
        outside |= found
        if ended:
            outside |= _check_reset(env)
    return frozenset(outside)


def _close(env: gymnasium.Env | None) -> str:
    """Closes an environment; returns how that failed, or ""."""
    try:
        if env is not None:
            env.close()
        return ""
    except Exception as error:  # what an environment does last does not matter to a run
        return f"fails when it is closed: {describe(error)}"


def check_values(obs: dict[str, np.ndarray], reward, terminated, truncated) -> None:
    """Checks the values of one step. It is fast enough to run at every step, and ignores bounds.

    Args:
        obs: images and vectors from `ObservationCodec`, which has checked their shapes.
        reward, terminated, truncated: as the environment returned them.
    Raises:
        ValueError: if an observation or reward is not sound, see `is_sound`, or a value has the wrong type.
    """
    for key, value in obs.items():
        if value.dtype.kind == "f" and not is_sound(value):
            raise ValueError(f"the observation {key!r} has NaN or infinite values, or numbers beyond {LARGEST:g}")
    number = np.asarray(reward)
    if number.ndim or number.dtype.kind not in "fiub" or not is_sound(number):
        raise ValueError(f"the reward is {reward!r}; it must be one finite number, not beyond {LARGEST:g}")
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        if not isinstance(flag, (bool, np.bool_)):
            raise ValueError(f"{name} is {flag!r}; it must be True or False")


def is_sound(value) -> bool:
    """Whether all numbers are finite with magnitudes of at most `LARGEST`."""
    return bool((np.abs(value) <= LARGEST).all())


class _Broken(Exception):
    """The environment violates the interface, or its process does not answer; the message says how."""


class _Unsupported(Exception):
    """The environment has a space that cannot be handled; the message says which."""


def _check_reset(env: gymnasium.Env) -> set[str]:
    returned = env.reset(seed=0)
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], dict)):
        raise _Broken(f"reset() returned {_kind(returned)}; it must return (observation, info), with a dict for info, as in gymnasium")
    return _check_observation(env.observation_space, returned[0], "reset()")


def _check_step(env: gymnasium.Env, action) -> tuple[set[str], bool]:
    """Returns names of observations outside their bounds, and whether the episode has ended."""
    returned = env.step(action)
    if not (isinstance(returned, tuple) and len(returned) == 5):
        raise _Broken(
            f"step() returned {_kind(returned)}; it must return (observation, reward, terminated, truncated, info), as in gymnasium"
        )
    obs, reward, terminated, truncated, _ = returned
    if not (isinstance(reward, (numbers.Real, np.number)) or (isinstance(reward, np.ndarray) and reward.ndim == 0)):
        raise _Broken(f"step() gave the reward {reward!r}, {_kind(reward)}; it must be one number")
    if not is_sound(reward):
        raise _Broken(f"step() gave the reward {reward!r}; it must be finite, and not beyond {LARGEST:g}")
    for flag, value in (("terminated", terminated), ("truncated", truncated)):
        if not isinstance(value, (bool, np.bool_)):
            raise _Broken(f"step() gave {value!r} for {flag}, {_kind(value)}; it must be True or False")
    return _check_observation(env.observation_space, obs, "step()"), bool(terminated or truncated)


def _check_observation(space: gymnasium.Space, value, source: str, key: str = "") -> set[str]:
    """Names of observations outside their bounds."""
    name = f"the observation {key!r}" if key else "an observation"
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = space.spaces if isinstance(space, spaces.Dict) else dict(enumerate(space.spaces))
        kind = dict if isinstance(space, spaces.Dict) else tuple
        given = dict(enumerate(value)) if isinstance(value, tuple) else value
        if not isinstance(value, kind) or given.keys() != parts.keys():
            raise _Broken(
                f"{source} gave {name} that is {_kind(value)}; its space has {kind.__name__} entries {', '.join(map(str, parts))}"
            )
        return set().union(*(_check_observation(part, given[at], source, f"{key}/{at}" if key else str(at)) for at, part in parts.items()))
    if not isinstance(space, spaces.Box):
        if not is_in(value, space):
            raise _Broken(f"{source} gave {name} {value!r}, {_kind(value)}, which is not in its space {space}")
        return set()
    array = np.asarray(value)
    if wrong := mismatch(array, space):
        raise _Broken(f"{source} gave {name} {wrong}")
    if not is_sound(array):
        raise _Broken(f"{source} gave {name} with NaN or infinite values, or numbers beyond {LARGEST:g}")
    return set() if (array >= space.low).all() and (array <= space.high).all() else {key or "observation"}


def _kind(value) -> str:
    """Short description of a value's type, for messages."""
    if isinstance(value, tuple):
        return f"a tuple of {len(value)} ({', '.join(type(part).__name__ for part in value)})"
    if isinstance(value, dict):
        return f"a dict with {', '.join(map(str, value)) or 'no entries'}"
    shape = f" of shape {value.shape}" if isinstance(value, np.ndarray) else ""
    return f"{type(value).__name__}{shape}"
