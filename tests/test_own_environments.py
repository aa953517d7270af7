"""Environments of one's own: how they are given, and what is said of those that are not as they should be."""

import functools
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
from gymnasium import spaces

import dreamer
import tools
from dreamer import load_agent
from envs import make_envs
from envs.check import STEPS, check

pytestmark = pytest.mark.slow

FLAGS = ["--configs", "defaults", "debug", "--steps", "120", "--eval_every", "60", "--device", "cpu"]
ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / "docs" / "your_environment.md"
MODULE = PAGE.read_text().split("```python\n")[1].split("```")[0]  # what the page shows must work


class Own(gymnasium.Env):
    """Returns what it is told to return, first from `reset` and then from `step`."""

    action_space = spaces.Discrete(2)

    def __init__(self, obs=None, reset=None, step=None, space=spaces.Box(-1.0, 1.0, (2,), np.float32), **parts):
        self.observation_space = space
        obs = np.zeros(2, np.float32) if obs is None else obs
        self._reset = (np.zeros(2, np.float32) if space.shape == (2,) else obs, {}) if reset is None else reset
        self._step = tuple({"obs": obs, "reward": 1.0, "terminated": False, "truncated": False, "info": {}, **parts}.values())
        self._step = self._step if step is None else step
        self.steps = multiprocessing.Value("i")  # in whichever process

    def reset(self, *, seed=None, options=None):
        return self._reset

    def step(self, action):
        self.steps.value += 1
        return self._step


PAIR = spaces.Dict({"a": spaces.Box(0, 1, (2,), np.float32), "b": spaces.Discrete(3)})


@pytest.mark.parametrize(
    "env, words",
    [
        (Own(reset=np.zeros(2)), r"reset\(\) returned ndarray of shape \(2,\); it must return \(observation, info\)"),
        (Own(step=(np.zeros(2, np.float32), 1.0, False, {})), r"step\(\) returned a tuple of 4 \(ndarray, float, bool, dict\)"),
        (Own(obs=np.zeros(3, np.float32)), r"an observation of shape \(3,\); its space says \(2,\)"),
        (Own(obs=np.zeros(2, complex)), "dtype complex128; its space says float32"),
        (Own(obs=np.array([0.0, np.nan])), "NaN or infinite"),
        (Own(obs=np.zeros((4, 4, 3)), space=spaces.Box(0, 255, (4, 4, 3), np.uint8)), "dtype float64; its space says uint8"),
        (Own(obs={"a": np.zeros(2)}, space=PAIR), "a dict with a; its space has dict entries a, b"),
        (Own(obs={"a": np.zeros(2), "b": 3}, space=PAIR), r"'b' 3, int, which is not in its space Discrete\(3\)"),
        (Own(reward=np.ones(1)), r"the reward array\(\[1\.\]\), ndarray of shape \(1,\); it must be one number"),
        (Own(reward=float("inf")), "the reward inf; it must be finite"),
        (Own(reward=None), "the reward None, NoneType"),
        (Own(terminated=1), "1 for terminated, int; it must be True or False"),
        (Own(truncated=np.zeros(1, bool)), "for truncated, ndarray"),
    ],
)
def test_what_is_wrong_with_an_environment_is_said(env, words):
    with pytest.raises(ValueError, match="'Mine-v0' breaks its interface: .*" + words):
        check(lambda: env, "Mine-v0")


def test_an_environment_that_raises_is_named():
    env = Own()
    env.reset = lambda: (np.zeros(2), {})
    with pytest.raises(ValueError, match="'Mine-v0' fails in its first steps: TypeError: .*seed"):
        check(lambda: env, "Mine-v0")


@pytest.mark.parametrize(
    "step, words",
    [
        (lambda: {}["a"], r"fails in its first steps: KeyError: 'a' \(.*test_own_environments.py, line \d+\)"),
        (lambda: os._exit(0), r"ends its process in its first steps \(exit code 0\)"),
        (lambda: sys.exit(7), r"fails in its first steps: it calls sys.exit\(7\) \(.*test_own_environments.py, line \d+\)"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), r"ends its process in its first steps \(exit code -9\)"),
        (lambda: time.sleep(60), r"hangs in its first steps, for 0.2 seconds \(env_timeout\)"),
    ],
    ids=["raises", "ends well", "ends", "dies", "hangs"],
)
def test_an_environment_that_fails_at_once_does_not_take_the_program_with_it(step, words):
    env = Own()
    env.step = lambda action: step()
    with pytest.raises(ValueError, match="'Mine-v0' " + words):
        check(lambda: env, "Mine-v0", timeout=0.2)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("reward", [1, 1.0, True, np.float32(1.0), np.int64(1), np.array(1.0)])
def test_an_environment_as_it_should_be_is_tried_out(reward, capsys):
    env = Own(reward=reward, terminated=np.bool_(False), obs=np.zeros(2))  # doubles fit into floats
    check(lambda: env, "Mine-v0")
    assert env.steps.value == STEPS and not capsys.readouterr().err


def test_values_outside_their_bounds_are_warned_of(capsys):
    check(lambda: Own(obs=np.array([0.0, 7.0], np.float32)), "Mine-v0")
    assert "values outside the bounds of its observation space: observation" in capsys.readouterr().err


# How they are given


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_walk.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("envs", ["1", "2"])
def test_a_module_that_registers_environments_is_imported(module, envs):
    command = [
        sys.executable,
        str(ROOT / "dreamer.py"),
        *FLAGS,
        "--task",
        "gym_Walk-v0",
        "--import",
        "my_walk",
        "--envs",
        envs,
        "--logdir",
        str(module / "run"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result.stderr
    evaluate = [sys.executable, str(ROOT / "evaluate.py"), str(module / "run"), "--episodes", "2"]
    result = subprocess.run(evaluate, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    assert result.returncode == 2 and "error: the environment gym_Walk-v0 is in the module my_walk" in result.stderr
    evaluate += ["--import", "my_walk"]
    result = subprocess.run(evaluate, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    assert result.returncode == 0 and "gym_Walk-v0 at frame 120, 2 episodes" in result.stdout, result.stderr


@pytest.mark.parametrize(
    "task, flags, words",
    [
        ("gym_Walk-v0", {}, "name that with --import"),
        ("gym_Walk-v0", {"import": "my_wlak"}, "import is 'my_wlak'.*PYTHONPATH"),
        ("gym_Walk-v0", {"import": "benchmarks.my_walk"}, "there is no such module"),
    ],
)
def test_an_environment_that_nobody_registers_is_answered_with_the_way(task, flags, words):
    with pytest.raises(ValueError, match=words):
        make_envs(tools.load_config(["debug"], {"task": task, **flags}), 1, training=True)


@pytest.mark.parametrize(
    "text, words",
    [
        ("def (", r"importing it fails: SyntaxError: .*my_env.py, line 1\)$"),
        ("import not_there", "needs a module that is not installed: .*not_there"),
        ("x = 1\n{}['a']", r"importing it fails: KeyError: 'a' \(.*my_env.py, line 2\)$"),
    ],
)
def test_a_module_that_cannot_be_imported_is_answered_with_the_reason(text, words, tmp_path, monkeypatch):
    (tmp_path / "my_env.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="import is 'my_env'.*" + words):
        make_envs(tools.load_config(["debug"], {"task": "gym_Mine-v0", "import": "my_env"}), 1, training=True)


@pytest.mark.parametrize("envs", ["1", "2"])
def test_a_function_that_makes_environments_can_be_passed(tmp_path, envs):
    flags = [*FLAGS, "--task", f"gym_anything{envs}", "--time_limit", "9", "--envs", envs, "--logdir", str(tmp_path)]
    assert dreamer.main(flags, make_env=functools.partial(Own, obs=np.zeros(2, np.float32))) == 0
    agent = load_agent(tmp_path, "cpu")
    action, _ = agent.act(np.zeros(2, np.float32))
    assert agent.act_space.contains(action)


def test_a_function_needs_a_task_of_gymnasium(tmp_path, capsys):
    assert dreamer.main([*FLAGS, "--task", "atari_pong", "--logdir", str(tmp_path / "run")], make_env=Own) == 2
    assert "needs a task gym_<name>" in capsys.readouterr().err and not (tmp_path / "run").exists()
