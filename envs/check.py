"""Tries an environment out before a run begins, and checks its values at every step of the run."""

import contextlib
import numbers
import os
import pickle
import signal
import threading
from collections.abc import Callable, Collection
from typing import NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

import console
from envs import processes
from envs.image_spaces import image_axes
from envs.modules import describe, shortened
from envs.spaces import ActionCodec, ObservationCodec, is_in, mismatch

STEPS = 20
LARGEST = 1e12  # magnitude of observations and rewards: sums of their squares must fit into float32 (3e38)
RENDER_MODE = "rgb_array"
PATIENCE = 10.0  # seconds after which a line says that a trial is waited for
ENDING = 5.0  # seconds that the process of a trial has to end by itself


class Trial(NamedTuple):
    """What is known of an environment that has been tried out.

    Attributes:
        observation_space, action_space: as the environment has them.
        time_limit: steps after which gymnasium's TimeLimit cuts its episodes off; None if there is none.
        render_mode: of the environment.
        offers_rendering: whether it lists `RENDER_MODE`.
        outside: names of observations that were outside their bounds.
        dark: names of images with values of at most 1, and bounds of 255.
    """

    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    time_limit: int | None
    render_mode: str | None
    offers_rendering: bool
    outside: frozenset[str] = frozenset()
    dark: frozenset[str] = frozenset()


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
    waiting = _tell_of_waiting(name, timeout)
    try:
        found, problem = None, ""
        while found is None:
            found = _receive(process, connection, timeout, "in its first steps", processes.hint_at_threads(start))
        problem = _receive(process, connection, timeout, "when it is closed")
        process.join(ENDING)
    except _Broken as error:
        if found is None:
            raise ValueError(f"the environment {name!r} {error}") from error.__cause__
        problem = str(error)
    finally:
        waiting.cancel()
        processes.stop(process, connection)
    if isinstance(found, Exception):
        raise type(found)(f"the environment {name!r} {found}")
    if problem:
        console.warn(f"the environment {name!r} {problem}; that is ignored")
    _warn(name, found)
    return found


def _warn(name: str, found: Trial) -> None:
    """Says what the user of an environment should mend."""
    if found.outside:
        console.warn(f"the environment {name!r} has values outside the bounds of its observation space: {', '.join(sorted(found.outside))}")
    if found.dark:
        console.warn(
            f"the environment {name!r} has images whose values are at most 1, and their bounds are 0 and 255: "
            f"{', '.join(sorted(found.dark))}; they are nearly black to the agent; give their space the bounds 0 and 1, or multiply "
            "them by 255"
        )
    if found.render_mode == "human":
        console.warn(f"the environment {name!r} opens a window in each of its processes; leave its render_mode 'human' out")


def _tell_of_waiting(name: str, timeout: float) -> threading.Timer:
    """Says after `PATIENCE` seconds that a trial goes on, unless the timer that is returned is cancelled."""
    limit = f"{timeout:g} seconds (env_timeout)" if timeout else "any time, since env_timeout is 0"
    text = f"still waiting for the environment {name!r}, which is tried out; making it, a step, a reset or close may take {limit}"
    timer = threading.Timer(PATIENCE, console.say, (text,))
    timer.daemon = True
    timer.start()
    return timer


def _receive(process, connection, timeout: float, when: str, hint: str = ""):
    """What the process of a trial sends.

    Args:
        hint: why it may hang, for the message.
    Raises:
        _Broken: if it sends nothing, or what cannot be read.
    """
    if not connection.poll(timeout or None):
        raise _Broken(f"hangs {when}, for {timeout:g} seconds (env_timeout){hint}")
    try:
        return connection.recv()
    except (EOFError, OSError) as error:
        process.join(1.0)
        raise _Broken(f"ends its process {when} (exit code {process.exitcode})") from error
    except Exception as error:  # the class of a space may be of the user's making
        raise _Broken(f"cannot be used: {_cannot_be_sent(error)}") from error


def _cannot_be_sent(error: Exception) -> str:
    return (
        "its spaces cannot be sent between processes; define their classes in a module, not in a function, and store no lambda, inner "
        f"function, lock or open file in them ({type(error).__name__}: {shortened(' '.join(str(error).split()))})"
    )


def _try_out(make_env: Callable[[], gymnasium.Env], steps: int, connection) -> None:
    """Sends None after every step, then a `Trial` or an error, then how `close` failed, if it did."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process gets the signal too, and ends this one
    env, pid = None, os.getpid()
    try:
        env = make_env()
        trial = _look_at(env)
        answer = _play(env, trial, steps, connection) if steps else trial
    except _Broken as error:
        answer = ValueError(f"breaks its interface: {error}")
    except _Unsupported as error:
        answer = ValueError(f"cannot be used: {error}")
    except BaseException as error:  # environments raise errors of any kind, and call sys.exit
        if os.getpid() != pid:
            raise  # in a copy of this process that the environment has made
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


class _Seen:
    """What a trial sees of observations.

    Attributes:
        outside: names of those outside their bounds.
        largest: the largest value of each image with bounds 0 and 255.
    """

    def __init__(self):
        self.outside: set[str] = set()
        self.largest: dict[str, float] = {}

    def add(self, key: str, space: spaces.Box, value: np.ndarray) -> None:
        """Takes up one observation."""
        if (value < space.low).any() or (value > space.high).any():
            self.outside.add(key)
        if (space.high == 255).all() and not key.startswith("log_") and image_axes(space, key):
            self.largest[key] = max(self.largest.get(key, 0.0), float(value.max()))

    @property
    def dark(self) -> set[str]:
        """Names of images whose values seem to be from 0 to 1. An image that is always black says nothing."""
        return {key for key, value in self.largest.items() if 0.0 < value <= 1.0}


def _play(env: gymnasium.Env, trial: Trial, steps: int, connection) -> Trial:
    """Plays random steps; returns the trial with what was seen."""
    codec, rng, seen = ActionCodec(env.action_space), np.random.default_rng(0), _Seen()
    _check_reset(env, seen)
    for _ in range(steps):
        connection.send(None)
        action = codec.decode(codec.random(rng, 1))[0]  # actions as those of a run, unlike those of the space
        if _check_step(env, action, seen):
            _check_reset(env, seen)
    return trial._replace(outside=frozenset(seen.outside), dark=frozenset(seen.dark))


def _close(env: gymnasium.Env | None) -> str:
    """Closes an environment; returns how that failed, or ""."""
    try:
        if env is not None:
            env.close()
        return ""
    except (Exception, SystemExit) as error:  # what an environment does last does not matter to a run
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
    """Whether all values are numbers, finite, with magnitudes of at most `LARGEST`."""
    array = np.asarray(value)
    if array.dtype.kind == "i" or array.dtype.char == "e":  # int64 does not hold the magnitude of -2**63, nor float16 the limit
        array = array.astype(np.float64)
    return array.dtype.kind in "biuf" and bool((np.abs(array) <= LARGEST).all())


class _Broken(Exception):
    """The environment violates the interface, or its process does not answer; the message says how."""


class _Unsupported(Exception):
    """The environment has a space that cannot be handled; the message says which."""


def _check_reset(env: gymnasium.Env, seen: _Seen) -> None:
    returned = env.reset(seed=0)
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], dict)):
        raise _Broken(f"reset() returned {_kind(returned)}; it must return (observation, info), with a dict for info, as in gymnasium")
    _check_observation(env.observation_space, returned[0], "reset()", seen)


def _check_step(env: gymnasium.Env, action, seen: _Seen) -> bool:
    """Returns whether the episode has ended."""
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
    _check_observation(env.observation_space, obs, "step()", seen)
    return bool(terminated or truncated)


def _check_observation(space: gymnasium.Space, value, source: str, seen: _Seen, key: str = "") -> None:
    """Raises _Broken if a value is none of its space, apart from bounds."""
    name = f"the observation {key!r}" if key else "an observation"
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = space.spaces if isinstance(space, spaces.Dict) else dict(enumerate(space.spaces))
        kind = dict if isinstance(space, spaces.Dict) else tuple
        given = dict(enumerate(value)) if isinstance(value, tuple) else value
        if not isinstance(value, kind) or given.keys() != parts.keys():
            raise _Broken(
                f"{source} gave {name} that is {_kind(value)}; its space has {kind.__name__} entries {', '.join(map(str, parts))}"
            )
        for at, part in parts.items():
            _check_observation(part, given[at], source, seen, f"{key}/{at}" if key else str(at))
        return
    if not isinstance(space, spaces.Box):
        if not is_in(value, space):
            raise _Broken(f"{source} gave {name} {value!r}, {_kind(value)}, which is not in its space {space}")
        return
    array = np.asarray(value)
    if wrong := mismatch(array, space):
        raise _Broken(f"{source} gave {name} {wrong}")
    if not is_sound(array):
        raise _Broken(f"{source} gave {name} with NaN or infinite values, or numbers beyond {LARGEST:g}")
    seen.add(key or "observation", space, array)


def _kind(value) -> str:
    """Short description of a value's type, for messages."""
    if isinstance(value, tuple):
        return f"a tuple of {len(value)} ({', '.join(type(part).__name__ for part in value)})"
    if isinstance(value, dict):
        return f"a dict with {', '.join(map(str, value)) or 'no entries'}"
    shape = f" of shape {value.shape}" if isinstance(value, np.ndarray) else ""
    return f"{type(value).__name__}{shape}"
