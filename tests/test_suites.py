"""Adapters of optional suites: dm_env environments against a small one of our own; the suites themselves where they are installed."""

import functools
import types

import numpy as np
import pytest
from gymnasium import spaces

import tools
from envs import make_envs
from envs.dmc import DmEnv
from envs.gym import vectorize


class Countdown:
    """A dm_env environment without dm_env: ends after three steps, truly or by a time limit; counts up from its seed."""

    def __init__(self, seed: int | None, terminal: bool, discrete: bool):
        self._start, self._terminal, self._discrete = seed or 0, terminal, discrete

    def observation_spec(self):
        spec = lambda shape, dtype: types.SimpleNamespace(shape=shape, dtype=np.dtype(dtype))
        return {"count": spec((), np.float64), "image": spec((16, 16, 3), np.uint8)}

    def action_spec(self):
        if self._discrete:
            return types.SimpleNamespace(num_values=4)
        return types.SimpleNamespace(shape=(2,), minimum=np.float64(-3.0), maximum=np.array([1.0, 2.0]))

    def reset(self):
        self._time = 0
        return self._step(None)

    def step(self, action):
        self._time += 1
        return self._step(float(self._time))

    def close(self):
        pass

    def _step(self, reward):
        last = self._time == 3
        obs = {"count": np.float64(100 * self._start + self._time), "image": np.full((16, 16, 3), self._time, np.uint8)}
        return types.SimpleNamespace(observation=obs, reward=reward, last=lambda: last, discount=0.0 if last and self._terminal else 1.0)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_dm_env_environment_keeps_rewards_ends_and_seeds(terminal):
    env = DmEnv(functools.partial(Countdown, terminal=terminal, discrete=False), repeat=2)
    assert env.observation_space["count"].shape == () and env.observation_space["image"] == spaces.Box(0, 255, (16, 16, 3), np.uint8)
    assert env.action_space == spaces.Box(np.array([-3.0, -3.0], np.float32), np.array([1.0, 2.0], np.float32))
    assert env.reset(seed=7)[0]["count"] == 700
    obs, reward, ended, cut, _ = env.step(np.zeros(2))
    assert (obs["count"], reward, ended, cut) == (702, 1.0 + 2.0, False, False)
    obs, reward, ended, cut, _ = env.step(np.zeros(2))
    assert (obs["count"], reward, ended, cut) == (703, 3.0, terminal, not terminal)  # the repeat stops where the episode ends
    assert env.reset()[0]["count"] == 700


def test_an_image_is_drawn_after_the_repeat_and_never_before_the_first_reset():
    drawn = []

    def render(env):
        drawn.append(env._time)
        return np.zeros((32, 48, 3), np.uint8)

    env = DmEnv(functools.partial(Countdown, terminal=True, discrete=True), repeat=2, render=render, size=(32, 48))
    assert env.action_space == spaces.Discrete(4) and env.observation_space["image"].shape == (32, 48, 3) and drawn == []
    env.reset(seed=0)
    env.step(1)
    assert drawn == [0, 2]


@pytest.mark.parametrize("start", [None, "spawn"])
def test_dm_env_environments_run_in_workers(start):
    config = tools.load_config([], {"task": "gym_CartPole-v1", "size": [32, 32], "action_repeat": 2})
    make_env = functools.partial(DmEnv, functools.partial(Countdown, terminal=True, discrete=True), 2)
    envs = vectorize(make_env, 2, config, start)
    try:
        obs, _ = envs.reset(seed=5)
        np.testing.assert_array_equal(obs["count"], [[500.0], [600.0]])
        assert obs["image"].shape == (2, 32, 32, 3)
    finally:
        envs.close()


@pytest.mark.parametrize("package, preset, task, wanted", [
    ("dm_control", "dmc_vision", "dmc_walker_walk", {"image", "height", "orientations", "velocity"}),
    ("dm_control", "dmc_proprio", "dmc_cup_catch", {"position", "velocity"}),
    ("crafter", "crafter", "crafter_reward", {"image", "log_achievement_collect_wood"}),
    ("minatar", "small", "minatar_breakout", {"vector"}),
])
def test_an_installed_suite_steps(package, preset, task, wanted):
    pytest.importorskip(package)
    envs = make_envs(tools.load_config([preset], {"task": task}), 2, training=True)
    try:
        first = envs.reset(seed=0)
        assert wanted <= set(first)
        actions = np.stack([envs.act_space.sample() for _ in range(2)])
        for _ in range(3):
            envs.send(actions)
            step = envs.recv()
        assert np.isfinite(step["reward"]).all() and not step["is_first"].any()
        again = envs.reset(seed=0)
        for key in wanted:
            np.testing.assert_array_equal(first[key], again[key])
    finally:
        envs.close()


@pytest.mark.parametrize("task, nearest", [("crafter_rewards", "crafter_reward"), ("memorymaze_9x8", "memorymaze_9x9"),
                                           ("minatar_breakuot", "minatar_breakout")])
def test_an_unknown_task_of_a_suite_is_answered_with_the_nearest(task, nearest):
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
        make_envs(tools.load_config([], {"task": task}), 1, training=True)
