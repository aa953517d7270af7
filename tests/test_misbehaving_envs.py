"""Environments that raise, hang, die or return nonsense in the middle of a run, and many that are stepped at once."""

import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import dreamer
import tools
from collect import Collector, play_episodes
from envs import make_envs
from envs.spaces import ActionCodec
from envs.workers import RESTARTS
from replay import Replay, load_episode


class Counting(gymnasium.Env):
    """Says in its observation who it is, where it is and what it was told; does wrong what it is asked to, now and then.

    Args:
        wrong: what goes wrong: a method below; None for nothing.
        at: step of an episode at which it does.
        always: with every seed, or only with those that environments have at the beginning.
        slow: longest time of a step in seconds.
    """

    LENGTH = 12
    observation_space = spaces.Dict({
        "count": spaces.Box(-np.inf, np.inf, (4,), np.float32),  # seed, episode, step, last action
        "image": spaces.Box(0, 255, (16, 16, 1), np.uint8),
    })  # fmt: skip
    action_space = spaces.Discrete(5)

    def __init__(self, wrong: str | None = None, at: int = 40, always: bool = True, slow: float = 0.0):
        self._wrong, self._at, self._always, self._slow = wrong, at, always, slow
        self._episode, self._length = -1, 2 * at if wrong else self.LENGTH

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self._seed, self._episode = seed % 10_000, -1  # which float32 holds
            self._pauses = np.random.default_rng(seed)
        self._episode, self._step, self._action = self._episode + 1, 0, -1
        return self._observe(), {}

    def step(self, action):
        self._step, self._action = self._step + 1, int(action)
        if self._slow:
            time.sleep(self._pauses.uniform(0, self._slow) * (self._seed % 2))
        returned = [self._observe(), float(self._step), self._step == self._length, False, {}]
        if self._wrong and self._step == self._at and (self._always or self._seed < 1000):
            getattr(self, self._wrong)(returned)
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


def collector_for(task: str, count: int, directory: pathlib.Path, **settings):
    config = tools.load_config(["defaults", "debug"], {"task": task, "device": "cpu", "size": [16, 16], **settings})
    envs = make_envs(config, count, training=True)
    codec = ActionCodec(envs.act_space)
    memory = Replay(envs.obs_space, codec.size, capacity=4000, streams=count, batch_size=16, batch_length=30)
    return envs, memory, Collector(envs, memory, directory, seed=70, training=True), Steady(codec)


def stored(directory: pathlib.Path) -> list[dict]:
    return [load_episode(path) for path in sorted(directory.glob("*.npz"))]


def assert_consecutive(sequence: dict) -> None:
    """Steps of arrays (T, ...) follow each other wherever no episode begins, and hold the action that led to them."""
    seed, episode, step, action = sequence["count"].T
    inside = ~sequence["is_first"][1:]
    assert (np.diff(step)[inside] == 1).all() and (np.diff(seed)[inside] == 0).all() and (np.diff(episode)[inside] == 0).all()
    assert (step[sequence["is_first"]][1:] == 0).all()
    acted = step > 0
    np.testing.assert_array_equal(sequence["action"].argmax(1)[acted], action[acted])
    np.testing.assert_array_equal(sequence["reward"], step)
    np.testing.assert_array_equal(sequence["image"][:, 0, 0, 0], step)
    np.testing.assert_array_equal(sequence["is_terminal"], step == Counting.LENGTH)


@pytest.mark.parametrize("task", ["Counting", "SlowCounting"])
@pytest.mark.parametrize("count", [1, 4, 16])
def test_no_step_is_lost_or_swapped_between_environments(count, task, tmp_path):
    envs, memory, collector, policy = collector_for(f"gym_{task}-v0", count, tmp_path)
    turns = [collector.step(policy) for _ in range(40)]
    cut = collector.close_episodes()
    envs.close()
    episodes = stored(tmp_path)
    seen = sorted((int(episode["count"][0, 0]), int(episode["count"][0, 1])) for episode in episodes)
    # 40 calls are three episodes of 12 steps with a reset behind each, and one step of the fourth.
    assert seen == [(70 + env, number) for env in range(count) for number in range(4)]
    for episode in episodes:
        assert_consecutive(episode)
        assert episode["is_last"].tolist() == [False] * (len(episode["reward"]) - 1) + [True]
    assert sum(steps for steps, _ in turns) == sum(len(episode["reward"]) - 1 for episode in episodes) == 37 * count
    assert len(cut) == count and all(episode.cut and episode.length == 1 for episode in cut)
    for _ in range(5):
        batch = memory.sample()
        for row in range(16):
            sequence = {key: value[row] for key, value in batch.items()}
            sequence["is_first"][0] = True  # of what was before it, a sequence knows nothing
            starts = np.flatnonzero(sequence["is_first"])
            for start, end in zip(starts, [*starts[1:], 30]):
                part = {key: value[start:end] for key, value in sequence.items()}
                assert_consecutive({**part, "is_first": np.arange(end - start) == 0})


@pytest.mark.parametrize("wrong", REASONS)
def test_an_environment_that_fails_is_started_anew_and_its_episode_is_cut_off(wrong, tmp_path, capsys):
    envs, memory, collector, policy = collector_for(f"gym_Once-{wrong}-v0", 2, tmp_path, env_timeout=0.5)
    finished = [episode for _ in range(45) for episode in collector.step(policy)[1]]
    envs.close()
    warnings = capsys.readouterr().err
    for env in range(2):
        assert f"environment {env} is started anew (1 of at most {RESTARTS} times in a row): " in warnings
    assert REASONS[wrong] in warnings
    assert [(episode.length, episode.cut) for episode in finished] == [(39, True), (39, True)]
    episodes = stored(tmp_path)
    assert len(episodes) == 2
    for episode in episodes:
        np.testing.assert_array_equal(episode["count"][:, 2], np.arange(40))
        assert episode["is_last"][-1] and not episode["is_terminal"].any()
    whole = memory._arrays["is_last"][:, :45]
    np.testing.assert_array_equal(np.argwhere(whole), [[0, 39], [1, 39]])
    np.testing.assert_array_equal(np.argwhere(memory._arrays["is_first"][:, :45]), [[0, 0], [0, 40], [1, 0], [1, 40]])
    seeds = {float(seed) for seed in memory._arrays["count"][:, :45, 0].ravel()}
    assert len(seeds) == 4  # the new ones play other episodes


@pytest.mark.parametrize("wrong", REASONS)
def test_one_that_fails_again_and_again_ends_the_run_with_its_own_traceback(wrong, tmp_path):
    envs, _, collector, policy = collector_for(f"gym_Always-{wrong}-v0", 2, tmp_path, env_timeout=0.5)
    with pytest.raises(RuntimeError, match=f"environment 0 has failed {RESTARTS + 1} times in a row") as caught:
        for _ in range(45 * (RESTARTS + 1)):
            collector.step(policy)
    assert REASONS[wrong] in str(caught.value)
    if wrong == "raises":
        assert "Traceback" in str(caught.value) and pathlib.Path(__file__).name in str(caught.value)
    envs.close()
    assert not multiprocessing.active_children()
    with pytest.raises(ChildProcessError):  # no zombies either
        os.waitpid(-1, os.WNOHANG)


def test_an_episode_that_is_cut_off_does_not_count_in_an_evaluation(tmp_path):
    envs, _, _, policy = collector_for("gym_Once-raises-v0", 2, tmp_path)
    results = play_episodes(policy, envs, 2, seed=0)
    envs.close()
    assert [(episode.env, episode.length, episode.cut) for episode in results] == [(0, 80, False), (1, 80, False)]


def test_a_run_whose_environment_fails_for_good_ends_with_an_error_and_keeps_what_it_has(tmp_path, capsys):
    flags = "--configs defaults debug --task gym_Always-raises-v0 --size 16 16 --device cpu --eval_every 0 --steps 1000 --envs 2"
    assert dreamer.main([*flags.split(), "--logdir", str(tmp_path)]) == 1
    error = capsys.readouterr().err.split("error: ")[1]
    assert error.startswith("environment 0 has failed 4 times in a row") and "ZeroDivisionError: the game crashed" in error
    steps = sum(len(episode["reward"]) - 1 for episode in stored(tmp_path / "train_eps"))
    assert steps == 2 * (25 + 39 * (RESTARTS + 1))  # prefill is cut off after 25 steps each
    metrics = (tmp_path / "metrics.jsonl").read_text()
    assert '"cut_off/length": 39.0' in metrics and "episode/length" not in metrics
    assert (tmp_path / "latest.pt").exists()


def test_a_program_that_closes_nothing_ends_all_the_same():
    code = """
import tools
from envs import make_envs
make_envs(tools.load_config(["debug"], {"task": "gym_CartPole-v1"}), 2, training=True).reset(0)
envs = make_envs(tools.load_config(["debug"], {"task": "gym_CartPole-v1"}), 2, training=True)
envs.reset(0)
"""
    root = pathlib.Path(__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=60).returncode == 0
