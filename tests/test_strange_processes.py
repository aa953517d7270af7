"""Environments with processes, threads, registrations and endings of their own kind, and where each of them is built."""

import contextlib
import functools
import json
import multiprocessing
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import dreamer
import evaluate
import record
import settings
from collect import play_episodes
from envs import make_envs
from envs.check import check
from envs.spaces import ActionCodec
from exploration import Random
from storage.episodes import load_episode

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent
FLAGS = ["--configs", "defaults", "debug", "--device", "cpu", "--prefill", "20", "--pretrain", "1"]


class Plain(gymnasium.Env):
    """Observes its arguments and the steps of the episode, which ends after `length` of them, or never."""

    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)

    def __init__(self, length: int = 0, level: int = 0, render_mode: str | None = None):
        self._length, self._level, self.render_mode = length, level, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._time = 0
        return self.observe(), {}

    def step(self, action):
        self._time += 1
        return self.observe(), 1.0, self._time == self._length, False, {}

    def observe(self):
        return np.array([self._length, self._level, self._time], np.float32)


@pytest.fixture
def registered():
    """Registers environments under ids that no other test has."""
    before = set(gymnasium.registry)
    yield gymnasium.register
    for name in set(gymnasium.registry) - before:
        del gymnasium.registry[name]


def batch(name: str, count: int = 1, training: bool = True, **flags):
    config = settings.load_config(["debug"], {"task": f"gym_{name}", "time_limit": 0, "env_timeout": 60, **flags})
    return contextlib.closing(make_envs(config, count, training))


def steps_of(envs, count: int) -> list[dict]:
    """The first observations of `count` steps."""
    steps = [envs.reset(0)]
    for _ in range(count):
        envs.send(np.zeros(envs.count, int))
        steps.append(envs.recv())
    return steps


# What is built


@pytest.mark.parametrize("name", ["Strange-v3", "Strange", "strange_module:Strange-v3", "strange_module:Strange"])
def test_workers_have_the_kwargs_wrappers_and_time_limit_that_gymnasium_make_gives(name, registered, tmp_path, monkeypatch, capsys):
    (tmp_path / "strange_module.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    wrapper = gymnasium.wrappers.TimeAwareObservation.wrapper_spec(normalize_time=False)
    registered("Strange-v1", Plain)
    registered("Strange-v3", Plain, max_episode_steps=4, kwargs={"level": 7}, additional_wrappers=(wrapper,))
    with batch(name, 2) as envs:
        steps = steps_of(envs, 5)
    expected = [[0, 7, time, time] for time in (0, 1, 2, 3, 4, 0)]
    for worker in range(2):
        np.testing.assert_array_equal([step["vector"][worker] for step in steps], expected)
    assert [bool(step["is_last"].all()) for step in steps] == [False] * 4 + [True, False]
    assert ("has no version, so it is the newest, Strange-v3" in capsys.readouterr().out) != name.endswith("-v3")


def test_an_old_version_is_used_and_called_old(registered, capsys):
    registered("Strange-v1", Plain, kwargs={"level": 1})
    registered("Strange-v3", Plain, kwargs={"level": 3})
    with batch("Strange-v1") as envs:
        assert envs.reset(0)["vector"].tolist() == [[0, 1, 0]]
    assert "warning: Strange-v1 is out of date; the newest version is v3" in capsys.readouterr().err


def test_keyword_arguments_reach_the_environment_and_those_for_evaluation_are_added(registered):
    registered("Strange-v0", Plain, kwargs={"level": 7})
    flags = {"env_kwargs": "{length: 3}", "eval_env_kwargs": "{level: 9, max_episode_steps: 2}"}
    for training, expected, last in ((True, (3, 7), 3), (False, (3, 9), 2)):
        with batch("Strange-v0", 2, training, **flags) as envs:
            steps = steps_of(envs, 3)
        np.testing.assert_array_equal(steps[0]["vector"][:, :2], [expected] * 2)
        assert [step["is_last"].all() for step in steps].index(True) == last


@pytest.mark.parametrize(
    "kwargs, words",
    [
        ("{levle: 3}", r"cannot be made: TypeError: .*unexpected keyword argument 'levle'.*env_kwargs are \{levle: 3\}"),
        ("{id: x}", "cannot be made: TypeError"),
        ("{length: [1]}", r"fails in its first steps|breaks its interface.*env_kwargs are \{length: \[1\]\}"),
    ],
)
def test_a_wrong_keyword_argument_is_answered_in_one_line(kwargs, words, registered):
    registered("Strange-v0", Plain)
    with pytest.raises(ValueError, match=words) as caught, batch("Strange-v0", env_kwargs=kwargs):
        pass
    assert "\n" not in str(caught.value)


def test_runs_keep_their_keyword_arguments_and_evaluate_record_and_resume_with_them(registered, tmp_path, capsys):
    registered("Strange-v0", Plain)
    run, flags = tmp_path / "run", [*FLAGS, "--task", "gym_Strange-v0", "--eval_every", "30", "--eval_episode_num", "1", "--eval_envs", "1"]
    kwargs = ["--env_kwargs", "{length: 4, level: 3}", "--eval_env_kwargs", "{length: 9}"]
    assert dreamer.main([*flags, *kwargs, "--steps", "30", "--logdir", str(run)]) == 0
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {line["eval/length"] for line in metrics if "eval/length" in line} == {9.0}
    assert {line["episode/length"] for line in metrics if "episode/length" in line} == {4.0}
    capsys.readouterr()
    assert evaluate.main([str(run), "--device", "cpu", "--episodes", "1", "--json", str(tmp_path / "found.json")]) == 0
    assert [episode["length"] for episode in json.loads((tmp_path / "found.json").read_text())["episodes"]] == [9.0]
    assert evaluate.main([str(run), "--device", "cpu", "--episodes", "1", "--eval_env_kwargs", "{level: 5}"]) == 0
    assert "length  4, least 4" in capsys.readouterr().out
    assert record.main(["--logdir", str(run), "--device", "cpu", "--episodes", "1", "--out", str(tmp_path / "episodes")]) == 0
    (path,) = (tmp_path / "episodes").glob("*.npz")
    np.testing.assert_array_equal(load_episode(path)["vector"][:, :2], [[4, 3]] * 5)
    assert dreamer.main(["--logdir", str(run), "--steps", "60", "--env_kwargs", "{length: 5, level: 3}"]) == 2
    assert "env_kwargs {length: 4, level: 3} -> {length: 5, level: 3}" in capsys.readouterr().err
    assert dreamer.main(["--logdir", str(run), "--steps", "60", "--eval_env_kwargs", "{length: 6}"]) == 0
    assert "eval_env_kwargs  {length: 9} -> {length: 6}" in capsys.readouterr().out
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-30:]
    assert [line["eval/length"] for line in last if "eval/length" in line][-1] == 6.0


def test_evaluation_environments_with_other_spaces_are_refused(tmp_path, capsys):
    flags = [*FLAGS, "--task", "gym_FrozenLake-v1", "--eval_env_kwargs", "{map_name: 8x8}", "--logdir", str(tmp_path / "run")]
    assert dreamer.main(flags) == 2
    error = capsys.readouterr().err
    assert "to evaluate in have other spaces (eval_env_kwargs): Dict('vector': OneHot(64)), in training Dict('vector': OneHot(16))" in error
    assert not (tmp_path / "run").exists() and not multiprocessing.active_children()


# Where and how often it is built

LIVING, MOST, BUILT = (multiprocessing.Value("i") for _ in range(3))


class Single(Plain):
    """Counts its instances in all processes, and allows none in this one."""

    MAIN = os.getpid()

    def __init__(self, **kwargs):
        super().__init__(length=5, **kwargs)
        assert os.getpid() != self.MAIN
        with LIVING.get_lock():
            LIVING.value, BUILT.value = LIVING.value + 1, BUILT.value + 1
            MOST.value = max(MOST.value, LIVING.value)

    def close(self):
        with LIVING.get_lock():
            LIVING.value -= 1


def test_a_simulator_that_allows_one_instance_never_has_two(registered, tmp_path):
    registered("Strange-v0", Single)
    LIVING.value = MOST.value = BUILT.value = 0
    flags = [*FLAGS, "--task", "gym_Strange-v0", "--eval_every", "0", "--steps", "40", "--logdir", str(tmp_path)]
    assert dreamer.main(flags) == 0
    assert (MOST.value, BUILT.value, LIVING.value) == (1, 2, 0)  # one is tried out, one is used


def test_a_run_tries_out_one_environment_unless_those_for_evaluation_differ(registered, tmp_path, capsys):
    registered("Strange-v0", Single)
    for kwargs, built in (([], 3), (["--eval_env_kwargs", "{level: 1}"], 4)):
        LIVING.value = MOST.value = BUILT.value = 0
        flags = [*FLAGS, "--task", "gym_Strange-v0", "--time_limit", "0", "--eval_episode_num", "1", "--steps", "30", *kwargs]
        assert dreamer.main([*flags, "--video_pred_log", "false", "--logdir", str(tmp_path / str(built))]) == 0
        assert (BUILT.value, LIVING.value) == (built, 0)
        assert capsys.readouterr().out.count("note: of the environment 'Strange-v0' no time limit is known") == 1


class Mine(spaces.Box):
    """A space of one's own."""


class WithOwnSpace(Plain):
    observation_space = Mine(-np.inf, np.inf, (3,), np.float32)


def with_hidden_space() -> gymnasium.Env:
    class Hidden(spaces.Box):
        pass

    env = Plain()
    env.observation_space = Hidden(-1.0, 1.0, (3,), np.float32)
    return env


def test_spaces_of_ones_own_classes_are_sent_between_processes(registered):
    registered("Strange-v0", WithOwnSpace)
    with batch("Strange-v0") as envs:
        assert envs.trial.observation_space == WithOwnSpace.observation_space and type(envs.trial.observation_space) is Mine
        assert steps_of(envs, 1)[1]["vector"].shape == (1, 3)


# What is no environment


class OldBase:
    pass


OldBase.__module__, OldBase.__qualname__, OldBase.__name__ = "gym.core", "Env", "Env"


class OfOldGym(OldBase):
    observation_space, action_space = Plain.observation_space, Plain.action_space


class WithoutSpace(Plain):
    observation_space = None


class FailsToClose(Plain):
    def __init__(self, how=None, **kwargs):
        super().__init__(length=5, **kwargs)
        self._how = how

    def close(self):
        self._how()


@pytest.mark.parametrize(
    "make_env, words",
    [
        (lambda: gymnasium.make_vec("CartPole-v1", 2), "actual class: .*VectorEnv.*one environment: several in one are not allowed"),
        (lambda: None, "TypeError: what makes it returned None; it must return the environment"),
        (OfOldGym, "Gym is incompatible with Gymnasium.*OldGym in envs/gym.py adapts"),
        (WithoutSpace, "breaks its interface: its observation_space is NoneType; it must be a space of gymnasium"),
        (with_hidden_space, r"its spaces cannot be sent between processes; define their classes in a module, .*\(.*Hidden"),
        (lambda: 1 / 0, r"cannot be made: ZeroDivisionError: division by zero \(.*test_strange_processes.py, line \d+\)"),
        (lambda: sys.exit(3), r"cannot be made: it calls sys.exit\(3\) \(.*line \d+\)"),
        (lambda: time.sleep(60), "hangs in its first steps, for 1 seconds"),
    ],
    ids=["vector", "None", "old gym", "no space", "hidden space", "raises", "exits", "hangs"],
)
def test_what_is_no_environment_is_answered_in_one_line(make_env, words, registered):
    registered("Strange-v0", make_env)
    with pytest.raises(ValueError, match="the environment 'Strange-v0' .*" + words) as caught, batch("Strange-v0", env_timeout=1):
        pass
    assert "\n" not in str(caught.value) and not multiprocessing.active_children()


def test_an_environment_that_is_given_instead_of_a_function_is_answered_with_the_way(tmp_path, capsys):
    assert dreamer.main([*FLAGS, "--task", "gym_strange", "--logdir", str(tmp_path / "run")], make_env=Plain()) == 2
    assert "it must be a function that makes an environment" in capsys.readouterr().err


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_function_may_return_the_same_environment_each_time(wrapped, registered):
    one = gymnasium.wrappers.TimeLimit(Plain(level=2), 3) if wrapped else Plain(level=2, length=3)
    registered("Strange-v0", lambda: one)
    with batch("Strange-v0", 2) as envs:
        for _ in range(2):
            assert [step["is_last"].all() for step in steps_of(envs, 4)] == [False, False, False, True, False]


def test_an_environment_that_would_open_windows_is_made_without(registered, capsys):
    registered("Strange-v0", Plain, kwargs={"render_mode": "human"})
    with batch("Strange-v0") as envs:
        assert envs.trial.render_mode is None
    assert "'Strange-v0' is made without its render_mode 'human'" in capsys.readouterr().err
    check(lambda: Plain(render_mode="human"), "Mine")
    assert "'Mine' opens a window in each of its processes" in capsys.readouterr().err


@pytest.mark.parametrize(
    "how, words",
    [
        (lambda: 1 / 0, r"fails when it is closed: ZeroDivisionError: division by zero \(.*line \d+\)"),
        (lambda: os._exit(4), r"ends its process when it is closed \(exit code 4\)"),
        (lambda: time.sleep(60), "hangs when it is closed, for 1 seconds"),
    ],
    ids=["raises", "ends", "hangs"],
)
def test_an_environment_that_cannot_be_closed_is_used_all_the_same(how, words, registered, capsys):
    registered("Strange-v0", FailsToClose, kwargs={"how": how})
    with batch("Strange-v0", env_timeout=1) as envs:
        assert len(steps_of(envs, 3)) == 4
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: the environment 'Strange-v0' ") and warning.endswith("; that is ignored")
    assert re.search(words, warning)


# Episodes that never end


def test_an_evaluation_of_episodes_that_never_end_is_cut_and_says_so(registered, capsys):
    registered("Strange-v0", Plain)
    with batch("Strange-v0", 2, training=False, eval_time_limit=12, action_repeat=3) as envs:
        results = play_episodes(Random(ActionCodec(envs.act_space), 0), envs, 3, seed=0)
    assert [episode.length for episode in results] == [4, 4, 4]
    assert "3 of 3 episodes were cut off at 12 frames (eval_time_limit)" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [{"time_limit": 6}, {"env_kwargs": "{length: 6}"}])
def test_an_evaluation_whose_episodes_end_says_nothing(flags, registered, capsys):
    registered("Strange-v0", Plain)
    with batch("Strange-v0", 1, training=False, eval_time_limit=12, **flags) as envs:
        results = play_episodes(Random(ActionCodec(envs.act_space), 0), envs, 2, seed=0)
    assert [episode.length for episode in results] == [6, 6] and "cut off" not in capsys.readouterr().out


def test_training_and_steps_that_are_recorded_are_not_cut_and_recorded_episodes_are(registered, tmp_path, capsys):
    registered("Strange-v0", Plain)
    flags = ["--task", "gym_Strange-v0", "--eval_time_limit", "7", "--device", "cpu"]
    assert record.main([*flags, "--steps", "20", "--out", str(tmp_path / "steps")]) == 0
    assert record.main([*flags, "--episodes", "2", "--out", str(tmp_path / "episodes")]) == 0
    lengths = {part: [len(load_episode(path)["reward"]) for path in (tmp_path / part).glob("*.npz")] for part in ("steps", "episodes")}
    assert lengths == {"steps": [21], "episodes": [8, 8]}
    assert "2 of 2 episodes were cut off at 7 frames (eval_time_limit)" in capsys.readouterr().out


# Threads


THREADS = """
import threading
import gymnasium, numpy as np, torch
import tools
from envs import make_envs

torch.set_num_threads(2)
def multiply():
    matrix = torch.ones(600, 600)
    return float((matrix @ matrix).exp().clamp(max=1.0).sum())
multiply()
thread = threading.Thread(target=multiply)
thread.start()
thread.join()

class Multiplies(gymnasium.Env):
    observation_space, action_space = gymnasium.spaces.Box(0, 1e6, (2,)), gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return self.observe(), {}

    def step(self, action):
        self.time += 1
        if self.time == 25:
            import os
            os._exit(3)
        return self.observe(), 0.0, False, False, {}

    def observe(self):
        return np.array([multiply(), torch.get_num_threads()], np.float32)

gymnasium.register("Multiplies-v0", Multiplies)
config = tools.load_config(["debug"], {"task": "gym_Multiplies-v0", "env_timeout": 20})
envs = make_envs(config, 1, training=True)
obs = [envs.reset(0)]
for _ in range(27):
    envs.send(np.zeros(1, int))
    obs.append(envs.recv())
envs.close()
assert [bool(step["is_first"]) for step in obs].index(True, 1) == 25
assert all(step["vector"].tolist() == [[360000.0, 1.0]] for step in obs)
assert torch.get_num_threads() == 2 and multiply() == 360000.0
"""


def run_python(code: str, folder: pathlib.Path = ROOT, **environment) -> subprocess.CompletedProcess:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=variables, timeout=240, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_an_environment_may_multiply_after_its_parent_has_done_so_with_several_threads():
    result = run_python(THREADS, OMP_NUM_THREADS="2")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("warning: ") == 1 and "is restarted (1 of at most 3 times in a row)" in result.stderr


class TellsThreads(Plain):
    def observe(self):
        import torch

        return np.array([torch.get_num_threads(), *(float(os.environ[f"{name}_NUM_THREADS"]) for name in ("OMP", "MKL"))], np.float32)


def test_workers_compute_in_one_thread(registered, monkeypatch):
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    registered("Strange-v0", TellsThreads)
    torch.set_num_threads(2)
    try:
        with batch("Strange-v0") as envs:
            np.testing.assert_array_equal(envs.reset(0)["vector"], [[1, 1, 1]])
        assert torch.get_num_threads() == 2 and os.environ["OMP_NUM_THREADS"] == "3"
    finally:
        torch.set_num_threads(1)


class NoCuda(Plain):
    """Fails as an environment does that uses CUDA in a forked process."""

    def reset(self, **kwargs):
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, use 'spawn'")


def test_the_message_of_an_environment_that_cannot_use_the_gpu_is_shown(registered):
    registered("Strange-v0", NoCuda)
    with pytest.raises(ValueError, match="RuntimeError: Cannot re-initialize CUDA in forked subprocess"), batch("Strange-v0"):
        pass


# Signals and processes of the environment


class StartsProcesses(Plain):
    """Observes how children that it has started end: a forked process and another program, after SIGTERM."""

    def observe(self):
        forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        forked.start()
        other = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"], stdout=subprocess.PIPE)
        other.stdout.readline()
        started = time.monotonic()
        for process in (forked, other):
            process.terminate()
        forked.join(20)
        other.wait(20)
        return np.array([forked.exitcode, other.returncode, time.monotonic() - started], np.float32)


def test_what_an_environment_has_started_ends_at_sigterm(registered):
    registered("Strange-v0", StartsProcesses)
    with batch("Strange-v0") as envs:
        forked, other, seconds = envs.reset(0)["vector"][0]
    assert forked == other == -signal.SIGTERM and seconds < 15


class TellsProcess(Plain):
    def observe(self):
        return np.array([os.getpid() // 1000, os.getpid() % 1000, 0], np.float32)


def test_a_worker_itself_outlives_sigterm_and_sigint(registered, capsys):
    registered("Strange-v0", TellsProcess)
    with batch("Strange-v0") as envs:
        first = envs.reset(0)["vector"]
        pid = int(first[0, 0]) * 1000 + int(first[0, 1])
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
            envs.send(np.zeros(1, int))
            np.testing.assert_array_equal(envs.recv()["vector"], first)
    assert not capsys.readouterr().err


# Runs in a thread


def in_thread(function, *args, **kwargs):
    """What a function returns in a thread that is not the main one, or its error."""
    found = []

    def call():
        try:
            found.append(function(*args, **kwargs))
        except BaseException as error:  # of any kind
            found.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(240)
    return found[0]


class FailsLater(Plain):
    def step(self, action):
        return super().step(action) if self._time < 30 else 1 / 0


def test_runs_and_evaluations_in_a_thread_leave_nothing_behind(registered, tmp_path, capsys):
    registered("Strange-v0", functools.partial(Plain, length=5))
    run = tmp_path / "run"
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    flags = [*FLAGS, "--task", "gym_Strange-v0", "--steps", "40", "--eval_every", "40", "--logdir", str(run)]
    assert in_thread(dreamer.main, flags) == 0 and (run / "latest.pt").exists()
    assert in_thread(evaluate.main, [str(run), "--device", "cpu", "--episodes", "2"]) == 0
    assert in_thread(record.main, ["--logdir", str(run), "--device", "cpu", "--episodes", "2", "--out", str(tmp_path / "out")]) == 0
    assert not multiprocessing.active_children() and not (run / "run.lock").exists()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert "Traceback" not in capsys.readouterr().err


def test_a_run_that_fails_in_a_thread_leaves_nothing_behind(registered, tmp_path, capsys):
    registered("Strange-v0", FailsLater)
    flags = [*FLAGS, "--task", "gym_Strange-v0", "--steps", "400", "--eval_every", "0", "--logdir", str(tmp_path)]
    assert in_thread(dreamer.main, flags) == 1
    assert "error: environment 0 has failed 4 times in a row" in capsys.readouterr().err
    assert not multiprocessing.active_children() and not (tmp_path / "run.lock").exists() and (tmp_path / "latest.pt").exists()


def test_an_interrupt_from_elsewhere_ends_a_run_that_can_be_resumed(registered, tmp_path, capsys, monkeypatch):
    registered("Strange-v0", functools.partial(Plain, length=5))
    count = dreamer.Run.count

    def interrupt(self, *args):
        count(self, *args)
        if self.step >= 30:
            raise KeyboardInterrupt

    monkeypatch.setattr(dreamer.Run, "count", interrupt)
    flags = [*FLAGS, "--task", "gym_Strange-v0", "--steps", "400", "--eval_every", "0", "--logdir", str(tmp_path)]
    assert in_thread(dreamer.main, flags) == 130
    assert "Stopped at frame 30, everything is saved. To resume:" in capsys.readouterr().out
    assert not multiprocessing.active_children() and not (tmp_path / "run.lock").exists() and (tmp_path / "latest.pt").exists()


class ImportsAnother(Plain):
    def reset(self, **kwargs):
        from replay import Mine  # noqa: F401


def test_an_environment_that_imports_a_module_with_the_name_of_another_one_is_told_both(registered, tmp_path, monkeypatch):
    registered("Strange-v0", ImportsAnother)
    (tmp_path / "replay.py").write_text("Mine = 1")
    monkeypatch.chdir(tmp_path)
    words = f"fails in its first steps: ImportError: .*; replay is {ROOT}/replay.py here, and not {tmp_path}/replay.py: rename yours"
    with pytest.raises(ValueError, match=words), batch("Strange-v0"):
        pass
