"""Any environment that is registered with gymnasium: `--task gym_<id>`, for example gym_CartPole-v1 or gym_module:Name-v0."""

import functools
import signal
from collections.abc import Callable

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from envs.spaces import ObservationCodec


def make(name: str, count: int, config):
    """`count` environments of a gymnasium id.

    Raises:
        ValueError: for an unknown id, a missing package, or spaces that are not supported.
    """
    return vectorize(functools.partial(_make_one, name, config.action_repeat), count, config)


def _make_one(name: str, repeat: int) -> gymnasium.Env:
    try:
        env = gymnasium.make(name)
    except Exception as error:  # an environment's constructor may raise anything
        raise ValueError(f"gymnasium cannot make the environment {name!r}: {error}") from error
    return ActionRepeat(env, repeat) if repeat > 1 else env


def vectorize(make_env: Callable[[], gymnasium.Env], count: int, config, start: str | None = None):
    """`count` environments as a vector environment, in worker processes if there are several.

    Args:
        make_env: builds one that already repeats actions.
        start: how processes start, as in `multiprocessing`; "spawn" for environments that cannot be forked.
    """
    steps = config.time_limit and max(1, config.time_limit // config.action_repeat)
    make_one = functools.partial(_make_wrapped, make_env, steps, tuple(config.size), config.grayscale)
    if count == 1:
        return InProcess([make_one])
    make_one().close()  # errors surface here, not in a worker
    return AsyncVectorEnv([functools.partial(_make_in_worker, make_one)] * count, context=start)


def _make_wrapped(make_env: Callable[[], gymnasium.Env], time_limit: int, size: tuple[int, int], grayscale: bool) -> gymnasium.Env:
    env = make_env()
    if time_limit:
        env = gymnasium.wrappers.TimeLimit(env, time_limit)
    return DictObservation(env, size, grayscale)


def _make_in_worker(make_one: Callable[[], gymnasium.Env]) -> gymnasium.Env:
    # A signal reaches the whole process group. The main process decides when to stop, and still needs its workers then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return make_one()


class InProcess(SyncVectorEnv):
    """Environments stepped in this process, with the calls of an asynchronous one."""

    def step_async(self, actions: np.ndarray) -> None:
        self._sent = actions

    def step_wait(self) -> tuple:
        return self.step(self._sent)


class ActionRepeat(gymnasium.Wrapper):
    """Repeats each action and sums rewards and `log_` keys, until the episode ends."""

    def __init__(self, env: gymnasium.Env, repeat: int):
        super().__init__(env)
        self._repeat = repeat

    def step(self, action):
        total, logs = 0.0, {}
        for _ in range(self._repeat):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += reward
            if isinstance(obs, dict):
                logs = {key: value + logs.get(key, 0) for key, value in obs.items() if key.startswith("log_")}
            if terminated or truncated:
                break
        return {**obs, **logs} if logs else obs, total, terminated, truncated, info


class DictObservation(gymnasium.ObservationWrapper):
    """Observations as a flat dict of images and vectors."""

    def __init__(self, env: gymnasium.Env, size: tuple[int, int], grayscale: bool):
        super().__init__(env)
        self._codec = ObservationCodec(env.observation_space, size, grayscale)
        self.observation_space = self._codec.space

    def observation(self, obs) -> dict[str, np.ndarray]:
        return self._codec(obs)
