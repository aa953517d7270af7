"""Environments that a function makes, that differ from one instance to the next, that end their process, or that do not answer."""

import contextlib
import json
import multiprocessing
import os
import signal
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
from envs import check, make_envs, workers
from envs.workers import EnvironmentFailed
from storage.episodes import load_episode

pytestmark = pytest.mark.slow

FLAGS = ["--configs", "defaults", "debug", "--device", "cpu", "--prefill", "20", "--pretrain", "1", "--task", "gym_stubborn"]


class Plain(gymnasium.Env):
    """Rewards each of the five steps of an episode with `reward`."""

    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    reward = 1.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._time = 0
        return self.observe(), {}

    def step(self, action):
        self._time += 1
        return self.observe(), self.reward, self._time == 5, False, {}

    def observe(self):
        return np.zeros(self.observation_space.shape, self.observation_space.dtype)


class Rich(Plain):
    reward = 100.0


def batch(make_env, count: int = 1, training: bool = True, **flags):
    config = settings.load_config(["debug"], {"task": "gym_stubborn", "env_timeout": 60, **flags})
    return contextlib.closing(make_envs(config, count, training, make_env=make_env))


def step(envs, count: int = 1) -> None:
    for _ in range(count):
        envs.send(np.zeros(envs.count, int))
        envs.recv()


# What a function makes


def test_runs_in_two_threads_with_one_task_name_train_in_the_environments_of_their_own_functions(tmp_path, monkeypatch):
    start, both = dreamer.start, threading.Barrier(2)

    def start_together(*args):
        both.wait(60)
        return start(*args)

    monkeypatch.setattr(dreamer, "start", start_together)
    known, codes = set(gymnasium.registry), {}

    def run(make_env):
        flags = [*FLAGS, "--steps", "40", "--eval_episode_num", "1", "--eval_envs", "1", "--logdir", str(tmp_path / make_env.__name__)]
        codes[make_env] = dreamer.main(flags, make_env=make_env)

    threads = [threading.Thread(target=run, args=(make_env,)) for make_env in (Plain, Rich)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert codes == {Plain: 0, Rich: 0} and set(gymnasium.registry) == known
    for make_env, total in ((Plain, 5.0), (Rich, 500.0)):
        lines = [json.loads(line) for line in (tmp_path / make_env.__name__ / "metrics.jsonl").read_text().splitlines()]
        for name in ("episode/return", "eval/return"):
            assert {line[name] for line in lines if name in line} == {total}


def test_only_a_function_continues_the_run_of_a_function(tmp_path, capsys):
    run, out = str(tmp_path / "run"), str(tmp_path / "episodes")
    flags = [*FLAGS, "--eval_every", "0", "--logdir", run, "--steps"]
    assert dreamer.main([*flags, "30"], make_env=Plain) == 0
    capsys.readouterr()
    for main, words in (
        (dreamer.main, ["--logdir", run, "--steps", "60"]),
        (dreamer.main, [*flags, "60"]),
        (evaluate.main, [run, "--device", "cpu"]),
        (record.main, ["--logdir", run, "--device", "cpu", "--episodes", "1", "--out", out]),
    ):
        assert main(words) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert error.startswith("error: the environment gym_stubborn is made by a function of a script (make_env of dreamer.main)")
    stored = tmp_path / "run" / "config.yaml"
    assert stored.read_text().count("make_env: true\n") == 1
    for steps in ("40", "50"):  # the second time the run is one of an earlier version, which did not note this
        assert dreamer.main(["--logdir", run, "--steps", steps], make_env=Plain) == 0
        stored.write_text(stored.read_text().replace("make_env: true\n", ""))
    assert not multiprocessing.active_children()


# Instances that differ

BUILT = multiprocessing.Value("i")


class Varies(Plain):
    """The second instance fails at its third step; from the `last`-th on, instances have other spaces."""

    last, others = 2, (spaces.Box(-np.inf, np.inf, (5,), np.float32), Plain.action_space)

    def __init__(self):
        with BUILT.get_lock():
            BUILT.value += 1
            self._number = BUILT.value
        if self._number >= self.last:
            self.observation_space, self.action_space = self.others

    def step(self, action):
        return super().step(action) if self._number != 2 or self._time < 2 else 1 / 0


class VariesLater(Varies):
    last = 3


class VariesInActions(Varies):
    observation_space, action_space = spaces.Box(0, 255, (40, 40, 3), np.uint8), spaces.Discrete(3)
    others = spaces.Box(0, 1, (40, 40, 3), np.float32), spaces.Discrete(3, start=1)


@pytest.mark.parametrize(
    "make_env, good, words",
    [
        (Varies, 0, r"the observation space Dict.*\(5,\).*, the one before had Dict.*\(3,\).*; all must have the same"),
        (VariesLater, 2, r"the observation space Dict.*\(5,\).*, the one before had Dict.*\(3,\).*; all must have the same"),
        (VariesInActions, 0, r"the action space Discrete\(3, start=1\), the one before had Discrete\(3\); all must have the same"),
    ],
)
def test_instances_with_other_spaces_are_refused_in_one_line_at_once_and_after_a_restart(make_env, good, words):
    BUILT.value = 0
    with batch(make_env) as envs:
        if good:
            envs.reset(0)
            step(envs, good)
        with pytest.raises(EnvironmentFailed, match=f"environment 0 cannot be used: this instance has {words}") as caught:
            step(envs) if good else envs.reset(0)
    assert "\n" not in str(caught.value) and BUILT.value == make_env.last


class Sized(Plain):
    def __init__(self, size=3, first=0):
        self.observation_space, self.action_space = spaces.Box(-1, 1, (size,), np.float32), spaces.Discrete(2, start=first)


def test_evaluations_with_other_spaces_are_refused_with_one_message_by_runs_and_evaluate(tmp_path, capsys):
    gymnasium.register("Sized-v0", Sized)
    try:
        run = tmp_path / "run"
        flags = [*FLAGS[:-1], "gym_Sized-v0", "--steps", "30", "--eval_every", "0", "--logdir", str(run)]
        assert dreamer.main(flags) == 0
        for kwargs, words in (
            ("{size: 4}", "(4,), float32)), in training Dict('vector': Box(-inf, inf, (3,), float32))"),
            ("{first: 1}", "Discrete(2, start=1), in training Discrete(2)"),
            ("{sise: 4}", "unexpected keyword argument 'sise'"),
        ):
            messages = []
            for main, call in (
                (evaluate.main, [str(run), "--device", "cpu", "--episodes", "1"]),
                (dreamer.main, [*FLAGS[:-1], "gym_Sized-v0", "--logdir", str(tmp_path / "other")]),
            ):
                capsys.readouterr()
                assert main([*call, "--eval_env_kwargs", kwargs]) == 2
                messages.append(capsys.readouterr().err)
            assert messages[0] == messages[1] and words in messages[0] and "eval_env_kwargs" in messages[0]
        assert evaluate.main([str(run), "--device", "cpu", "--episodes", "1", "--eval_env_kwargs", "{size: 3}"]) == 0
    finally:
        del gymnasium.registry["Sized-v0"]


# Environments that end their process


class Ends(Plain):
    """Ends as `how` says at its third step, from the `first`-th instance on."""

    def __init__(self, how=lambda: sys.exit(0), first: int = 1):
        with BUILT.get_lock():
            BUILT.value += 1
            self._ends = BUILT.value >= first
        self._how = how

    def step(self, action):
        if self._ends and self._time == 2:
            self._how()
        return super().step(action)


def interrupt():
    raise KeyboardInterrupt


class EndsItsCopy(Plain):
    """Makes a copy of its process, which exits, and checks that it does."""

    def step(self, action):
        pid = os.fork()
        if not pid:
            sys.exit(7)
        assert os.waitpid(pid, 0)[1]
        return super().step(action)


@pytest.mark.parametrize(
    "make_env, words",
    [
        (Ends, r"fails in its first steps: it calls sys.exit\(0\) \(.*test_stubborn_envs.py, line \d+\)"),
        (lambda: Ends(lambda: sys.exit("no licence")), r"fails in its first steps: it calls sys.exit\('no licence'\)"),
        (lambda: Ends(interrupt), r"fails in its first steps: KeyboardInterrupt \(.*line \d+\)"),
        (lambda: sys.exit(3), r"cannot be made: it calls sys.exit\(3\)"),
        (lambda: None, "cannot be made: TypeError: what makes it returned None; it must return the environment"),
        (lambda size: Plain(), r"missing 1 required positional argument: 'size'.*; give arguments .* with --env_kwargs '\{name: value\}'"),
    ],
    ids=["exits", "exits with words", "interrupts", "exits when made", "None", "missing"],
)
def test_how_an_environment_ends_is_said_in_one_line(make_env, words, capfd):
    BUILT.value = 0
    with pytest.raises(ValueError, match="the environment 'stubborn' .*" + words) as caught, batch(make_env):
        pass
    assert "\n" not in str(caught.value) and "Traceback" not in capfd.readouterr().err


def test_an_environment_that_calls_exit_in_a_run_is_restarted_with_the_reason(capfd):
    BUILT.value = 0
    with batch(lambda: Ends(first=2)) as envs:
        envs.reset(0)
        step(envs, 3)
    (warning,) = capfd.readouterr().err.splitlines()
    assert "environment 0 is restarted (1 of at most 3 times in a row): it calls sys.exit(0) (" in warning


def test_a_copy_that_an_environment_makes_of_its_process_may_exit():
    with batch(EndsItsCopy) as envs:
        envs.reset(0)
        step(envs, 7)


class HoldsLambda(spaces.Box):
    def __init__(self):
        super().__init__(-1, 1, (3,), np.float32)
        self.scale = lambda value: value


class WithLambda(Plain):
    observation_space = HoldsLambda()


def test_a_lambda_in_a_space_is_answered_with_what_to_do():
    with pytest.raises(ValueError, match="store no lambda, inner function, lock or open file in them") as caught, batch(WithLambda):
        pass
    assert "check.py" not in str(caught.value)


# Environments that do not answer


class Hangs(Plain):
    def step(self, action):
        if multiprocessing.current_process().name == "worker" and self._time == 3:
            time.sleep(100)
        return super().step(action)


def test_a_worker_and_a_trial_that_hang_hint_at_threads(capsys):
    hint = "for 1 seconds (setting env_timeout); if it computes with several threads of PyTorch or OpenMP, see docs/your_environment.md"
    with batch(Hangs, env_timeout=1) as envs:
        envs.reset(0)
        step(envs, 4)
    assert hint in capsys.readouterr().err
    words = "hangs in its first steps, for 1 seconds .*; if it computes with several threads"
    with pytest.raises(ValueError, match=words), batch(lambda: time.sleep(60), env_timeout=1):
        pass


@pytest.mark.parametrize("seconds, told", [(1.0, 1), (0.0, 0)])
def test_a_trial_that_takes_long_says_once_that_it_is_waited_for(seconds, told, monkeypatch, capsys):
    class Slow(Plain):
        def __init__(self):
            time.sleep(seconds)

    monkeypatch.setattr(check, "PATIENCE", 0.5 if seconds else 30.0)
    with batch(Slow, env_timeout=50):
        assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer) and not thread.finished.is_set()]
    out = capsys.readouterr().out
    assert out.count("still waiting for the environment 'stubborn'") == out.count("may take 50 seconds (env_timeout)") == told


def test_ctrl_c_while_a_step_hangs_waits_a_few_seconds_and_saves(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(workers, "STOPPING", 1.0)

    class HangsLater(Plain):
        steps = 0

        def step(self, action):
            self.steps += 1
            if multiprocessing.current_process().name == "worker" and self.steps == 33:
                os.kill(os.getppid(), signal.SIGINT)
                time.sleep(100)
            return super().step(action)

    begun = time.monotonic()
    flags = [*FLAGS, "--steps", "4000", "--envs", "1", "--eval_every", "0", "--logdir", str(tmp_path)]
    assert dreamer.main(flags, make_env=HangsLater) == 0
    assert time.monotonic() - begun < 60
    out, err = capfd.readouterr()
    assert "Stopped at frame 32, everything is saved. To resume:" in out and "waiting for environment 0, for 1 seconds at most" in out
    assert "environment 0 does not answer; its episode is cut off, so that the run can stop" in err and "Traceback" not in err
    assert sum(len(load_episode(path)["reward"]) - 1 for path in (tmp_path / "train_eps").glob("*.npz")) == 32
    assert (tmp_path / "latest.pt").exists() and not multiprocessing.active_children()


@pytest.mark.parametrize("limit, told", [(0, True), (100, False)])
def test_a_note_says_whether_evaluations_may_never_end(limit, told, capsys):
    with batch(Plain, time_limit=0, eval_time_limit=limit):
        pass
    out = capsys.readouterr().out
    assert "no time limit is known" in out and ("evaluations may never end either, since eval_time_limit is 0" in out) == told
