"""Environments that count, so that lost and swapped steps show, and that fail on request."""

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
    """Observes its own seed, episode, step and last action, and fails on request.

    Args:
        wrong: name of the method below that makes it fail; None for none.
        at: step of an episode at which it fails.
        always: fail with every seed, or only with those that environments start with.
        chance: probability that a step fails, in one of these ways at random.
        slow: longest time of a step in seconds. Only odd seeds are slow, so that slow and fast environments are mixed.
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
        if self._seed and self._rng.random() < self._chance:  # seed 0 is the check before a run
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
    "wrong_shape": "the observation 'count' is of shape (2, 2); its space says (4,)",
    "wrong_size": "the observation 'image' is of shape (32, 32, 1); its space says (16, 16, 1)",
    "wrong_dtype": "the observation 'image' is of dtype float32; its space says uint8",
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
    """A policy whose actions follow from environment index and time, so that recorded observations show them."""

    def __init__(self, codec: ActionCodec):
        self._codec, self._time = codec, 0

    def act(self, obs, state=None, training=True):
        self._time += 1
        index = (3 * np.arange(len(obs["is_first"])) + self._time) % 5
        vectors = np.eye(5, dtype=np.float32)[index]
        return self._codec.decode(vectors), {"action": torch.as_tensor(vectors)}


def collector_for(task: str, count: int, directory: pathlib.Path, **changes) -> tuple[EnvBatch, Replay, Collector, Steady]:
    """Makes `count` environments with `debug` settings and these changes, and what collects their steps."""
    config = settings.load_config(["defaults", "debug"], {"task": task, "device": "cpu", "size": [16, 16], **changes})
    envs = make_envs(config, count, training=True)
    codec = ActionCodec(envs.act_space)
    memory = Replay(envs.obs_space, codec.size, capacity=4000, streams=count, batch_size=16, batch_length=30)
    return envs, memory, Collector(envs, memory, directory, seed=FIRST_SEED, training=True), Steady(codec)


def stored(directory: pathlib.Path) -> list[dict[str, np.ndarray]]:
    """Loads all episodes on disk, oldest first."""
    return [load_episode(path) for path in sorted(directory.glob("*.npz"))]


def misplaced(sequence: dict[str, np.ndarray]) -> int:
    """Counts steps in arrays (T, ...) that do not follow the previous one, or have a wrong action, reward or flag.

    The first step may be any step of an episode.
    """
    seed, episode, step, action = sequence["count"].T
    first = sequence["is_first"][1:]
    wrong = (step > 0) & (sequence["action"].argmax(1) != action)
    wrong[1:] |= np.where(first, step[1:] != 0, (np.diff(step) != 1) | (np.diff(seed) != 0) | (np.diff(episode) != 0))
    wrong |= (sequence["reward"] != step) | (sequence["image"][:, 0, 0, 0] != step)
    wrong |= sequence["is_terminal"] != (step == Counting.LENGTH)
    return int(wrong.sum())
