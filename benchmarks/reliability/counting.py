"""Environments that say who and where they are, so that no step can be lost or swapped unseen, and that fail if asked to."""

import os
import pathlib
import signal
import time

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

import settings
from collect import Collector
from envs import EnvBatch, make_envs
from envs.spaces import ActionCodec
from replay import Replay
from storage.episodes import load_episode


class Counting(gymnasium.Env):
    """Says in its observation who it is, where it is and what it was told; does wrong what it is asked to, now and then.

    Args:
        wrong: what goes wrong: a method below; None for nothing.
        at: step of an episode at which it does.
        always: with every seed, or only with those that environments have at the beginning.
        chance: probability that a step does any of these wrong things.
        slow: longest time of a step in seconds; with an odd seed, so that slow ones and fast ones are mixed.
    """

    LENGTH = 12
    observation_space = spaces.Dict({
        "count": spaces.Box(-np.inf, np.inf, (4,), np.float32),  # seed, episode, step, last action
        "image": spaces.Box(0, 255, (16, 16, 1), np.uint8),
    })  # fmt: skip
    action_space = spaces.Discrete(5)

    def __init__(self, wrong: str | None = None, at: int = 40, always: bool = True, chance: float = 0.0, slow: float = 0.0):
        self._wrong, self._at, self._always, self._chance, self._slow = wrong, at, always, chance, slow
        self._episode, self._length = -1, 2 * at if wrong else self.LENGTH

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self._seed, self._episode = seed % 2**24, -1  # which float32 holds
            self._rng = np.random.default_rng(seed)
        self._episode, self._step, self._action = self._episode + 1, 0, -1
        return self._observe(), {}

    def step(self, action):
        self._step, self._action = self._step + 1, int(action)
        if self._slow:
            time.sleep(self._rng.uniform(0, self._slow) * (self._seed % 2))
        returned = [self._observe(), float(self._step), self._step == self._length, False, {}]
        if self._wrong and self._step == self._at and (self._always or self._seed < 1000):
            getattr(self, self._wrong)(returned)
        if self._seed and self._rng.random() < self._chance:  # with seed 0 it is looked at before it is used
            getattr(self, self._rng.choice(list(REASONS)))(returned)
        return tuple(returned)

    def _observe(self):
        count = np.array([self._seed, self._episode, self._step, self._action], np.float32)
        return {"count": count, "image": np.full((16, 16, 1), self._step, np.uint8)}

    def raises(self, returned):
        raise ZeroDivisionError("the game crashed")

    def hangs(self, returned):
        time.sleep(1000)

    def dies(self, returned):
        os.kill(os.getpid(), signal.SIGKILL)

    def not_a_number(self, returned):
        returned[0]["count"][2] = np.nan

    def wrong_shape(self, returned):
        returned[0]["count"] = np.zeros((2, 2), np.float32)

    def wrong_size(self, returned):
        returned[0]["image"] = np.zeros((32, 32, 1), np.uint8)

    def wrong_dtype(self, returned):
        returned[0]["image"] = returned[0]["image"].astype(np.float32)

    def wrong_reward(self, returned):
        returned[1] = "1.0"

    def infinite_reward(self, returned):
        returned[1] = np.inf

    def huge_reward(self, returned):
        returned[1] = 1e13

    def wrong_flag(self, returned):
        returned[2] = None


FIRST_SEED = 70
REASONS = {
    "raises": "ZeroDivisionError: the game crashed",
    "hangs": "it has not answered for 0.5 seconds (setting env_timeout)",
    "dies": "its process has died (exit code -9)",
    "not_a_number": "the observation 'count' has NaN or infinite values",
    "wrong_shape": "the observation 'count' has shape (2, 2) and dtype float32; its space says ",
    "wrong_size": "the observation 'image' has shape (32, 32, 1) and dtype uint8; its space says ",
    "wrong_dtype": "the observation 'image' has shape (16, 16, 1) and dtype float32; its space says ",
    "wrong_reward": "the reward is '1.0'; it must be one finite number",
    "infinite_reward": "the reward is inf; it must be one finite number",
    "huge_reward": "the reward is 10000000000000.0; it must be one finite number",
    "wrong_flag": "terminated is None; it must be True or False",
}
gymnasium.register("Counting-v0", Counting)
gymnasium.register("SlowCounting-v0", Counting, kwargs={"slow": 0.01})
gymnasium.register("UnreliableCounting-v0", Counting, kwargs={"chance": 0.005})
for name in REASONS:
    gymnasium.register(f"Once-{name}-v0", Counting, kwargs={"wrong": name, "always": False})
    gymnasium.register(f"Always-{name}-v0", Counting, kwargs={"wrong": name})


class Steady:
    """Does what the numbers of environment and time say, so that it can be told from the recorded observation."""

    def __init__(self, codec: ActionCodec):
        self._codec, self._time = codec, 0

    def act(self, obs, state=None, training=True):
        self._time += 1
        index = (3 * np.arange(len(obs["is_first"])) + self._time) % 5
        vectors = np.eye(5, dtype=np.float32)[index]
        return self._codec.decode(vectors), {"action": torch.as_tensor(vectors)}


def collector_for(task: str, count: int, directory: pathlib.Path, **changes) -> tuple[EnvBatch, Replay, Collector, Steady]:
    """So many environments, and what collects their steps with settings of `debug` and these changes."""
    config = settings.load_config(["defaults", "debug"], {"task": task, "device": "cpu", "size": [16, 16], **changes})
    envs = make_envs(config, count, training=True)
    codec = ActionCodec(envs.act_space)
    memory = Replay(envs.obs_space, codec.size, capacity=4000, streams=count, batch_size=16, batch_length=30)
    return envs, memory, Collector(envs, memory, directory, seed=FIRST_SEED, training=True), Steady(codec)


def stored(directory: pathlib.Path) -> list[dict[str, np.ndarray]]:
    """All episodes on disk, oldest first."""
    return [load_episode(path) for path in sorted(directory.glob("*.npz"))]


def misplaced(sequence: dict[str, np.ndarray]) -> int:
    """How many steps of arrays (T, ...) do not follow the one before, or hold another action, reward or flag than they must.

    The first of them may be any step of an episode.
    """
    seed, episode, step, action = sequence["count"].T
    first = sequence["is_first"][1:]
    wrong = (step > 0) & (sequence["action"].argmax(1) != action)
    wrong[1:] |= np.where(first, step[1:] != 0, (np.diff(step) != 1) | (np.diff(seed) != 0) | (np.diff(episode) != 0))
    wrong |= (sequence["reward"] != step) | (sequence["image"][:, 0, 0, 0] != step)
    wrong |= sequence["is_terminal"] != (step == Counting.LENGTH)
    return int(wrong.sum())
