"""Checks an environment with a few steps before a run begins, and its values at every step of the run."""

import numbers
import signal
import traceback
from collections.abc import Callable

import gymnasium
import numpy as np
from gymnasium import spaces

import console
from envs import processes

STEPS = 20
LARGEST = 1e12  # magnitude of observations and rewards: sums of their squares must fit into float32 (3e38)


def check(make_env: Callable[[], gymnasium.Env], name: str, timeout: float = 0.0) -> None:
    """Plays `STEPS` random steps in a separate process. Warns of observations outside their bounds.

    Args:
        make_env: builds the environment.
        name: name of the environment in messages.
        timeout: largest duration of a step or reset in seconds; 0 for no limit.
    Raises:
        ValueError: if the environment violates gymnasium's interface or its own spaces, or if it dies or hangs.
    """
    process, connection = processes.start("check", _play, (make_env,))
    try:
        found = None
        while found is None:
            if not connection.poll(timeout or None):
                raise ValueError(f"the environment {name!r} hangs in its first steps, for {timeout:g} seconds (env_timeout)")
            found = connection.recv()
    except (EOFError, OSError) as error:
        process.join(1.0)
        raise ValueError(f"the environment {name!r} ends its process in its first steps (exit code {process.exitcode})") from error
    finally:
        processes.stop(process, connection)
    if isinstance(found, str):
        raise ValueError(f"the environment {name!r} {found}")
    if found:
        console.warn(f"the environment {name!r} has values outside the bounds of its observation space: {', '.join(sorted(found))}")


def _play(make_env: Callable[[], gymnasium.Env], connection) -> None:
    """Sends None after every step, then the names of observations outside their bounds, or an error message."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process gets the signal too, and ends this one
    outside = set()
    try:
        env = make_env()
        env.action_space.seed(0)
        outside |= _check_reset(env)
        for _ in range(STEPS):
            connection.send(None)
            found, ended = _check_step(env)
            outside |= found
            if ended:
                outside |= _check_reset(env)
        env.close()
        answer = outside
    except _Broken as error:
        answer = f"breaks its interface: {error}"
    except Exception as error:  # environments raise errors of any kind
        answer = f"fails in its first steps: {describe(error)}"
    connection.send(answer)


def describe(error: Exception) -> str:
    """Type, message and location of an error in a user's code."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    # The message of a SyntaxError already has the location.
    where = "" if isinstance(error, SyntaxError) else f" ({at.filename}, line {at.lineno})"
    try:
        message = str(error)
    except Exception:  # it may be of a class of the user's own
        message = "its message cannot be shown"
    return f"{type(error).__name__}: {message}{where}"


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
    """The environment violates the interface; the message says how."""


def _check_reset(env: gymnasium.Env) -> set[str]:
    returned = env.reset(seed=0)
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], dict)):
        raise _Broken(f"reset() returned {_kind(returned)}; it must return (observation, info), with a dict for info, as in gymnasium")
    return _check_observation(env.observation_space, returned[0], "reset()")


def _check_step(env: gymnasium.Env) -> tuple[set[str], bool]:
    """Returns names of observations outside their bounds, and whether the episode has ended."""
    returned = env.step(env.action_space.sample())
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
        if not space.contains(value):
            raise _Broken(f"{source} gave {name} {value!r}, {_kind(value)}, which is not in its space {space}")
        return set()
    array = np.asarray(value)
    if array.shape != space.shape:
        raise _Broken(f"{source} gave {name} of shape {array.shape}; its space says {space.shape}")
    if not np.can_cast(array.dtype, space.dtype, "same_kind"):
        raise _Broken(f"{source} gave {name} of dtype {array.dtype}; its space says {space.dtype}")
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
