"""Environments that raise, hang, die or return nonsense in the middle of a run, and many that are stepped at once."""

import multiprocessing
import os
import pathlib
import subprocess
import sys

import gymnasium
import numpy as np
import pytest

import dreamer
from benchmarks.reliability import environments
from benchmarks.reliability.counting import FIRST_SEED, REASONS, Counting, collector_for, misplaced, stored
from collect import play_episodes
from envs.workers import RESTARTS

pytestmark = pytest.mark.slow


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
    assert seen == [(FIRST_SEED + env, number) for env in range(count) for number in range(4)]
    for episode in episodes:
        assert misplaced(episode) == 0
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
                assert misplaced({**part, "is_first": np.arange(end - start) == 0}) == 0


def test_a_step_that_is_lost_or_swapped_would_be_seen(tmp_path):
    envs, _, collector, policy = collector_for("gym_Counting-v0", 2, tmp_path)
    for _ in range(13):
        collector.step(policy)
    envs.close()
    first, second = stored(tmp_path)
    assert misplaced(first) == misplaced(second) == 0
    assert misplaced({key: np.delete(value, 5, 0) for key, value in first.items()}) == 1
    for key in ("count", "action", "reward", "image"):
        assert misplaced({**first, key: np.roll(first[key], 1, 0)}) > 0
    swapped = {key: np.where((np.arange(13) == 5).reshape(-1, *[1] * (value.ndim - 1)), second[key], value) for key, value in first.items()}
    assert misplaced(swapped) == 2  # there, and behind it


def test_environments_that_fail_at_random_lose_no_other_steps(tmp_path):
    counts = environments.count("UnreliableCounting", 4, 2000, tmp_path)
    assert counts["started anew"] > 3 and counts["steps"] >= 2000
    assert not any(counts[name] for name in environments.MUST_BE_ZERO)


def test_games_in_threads_play_as_each_of_them_alone():
    assert environments.compare_threads("pong", 4, 150) == {"steps in threads": 600, "steps that differ from a game alone": 0}


@pytest.mark.parametrize("wrong", REASONS)
def test_an_environment_that_fails_is_started_anew_and_its_episode_is_cut_off(wrong, tmp_path, capsys):
    envs, memory, collector, policy = collector_for(f"gym_Once-{wrong}-v0", 2, tmp_path, env_timeout=0.5)
    finished = [episode for _ in range(45) for episode in collector.step(policy)[1]]
    envs.close()
    warnings = capsys.readouterr().err
    for env in range(2):
        assert f"environment {env} is restarted (1 of at most {RESTARTS} times in a row): " in warnings
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


def zombies() -> bool:
    """Whether a process of this one has ended that nobody has waited for; those that live may be of other tests."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


@pytest.mark.parametrize("wrong", REASONS)
def test_one_that_fails_again_and_again_ends_the_run_with_its_own_traceback(wrong, tmp_path):
    envs, _, collector, policy = collector_for(f"gym_Always-{wrong}-v0", 2, tmp_path, env_timeout=0.5)
    with pytest.raises(RuntimeError, match=f"environment 0 has failed {RESTARTS + 1} times in a row") as caught:
        for _ in range(45 * (RESTARTS + 1)):
            collector.step(policy)
    assert REASONS[wrong] in str(caught.value)
    if wrong == "raises":
        assert "Traceback" in str(caught.value) and "counting.py" in str(caught.value)
    envs.close()
    assert not multiprocessing.active_children()
    assert not zombies()


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


class WithProcess(Counting):
    """Plays with the help of a process of its own."""

    def reset(self, **kwargs):
        with multiprocessing.Pool(1) as pool:
            assert pool.map(abs, [-1]) == [1]
        return super().reset(**kwargs)


def test_an_environment_may_start_processes(tmp_path):
    gymnasium.register("WithProcess-v0", WithProcess)
    try:
        envs, _, collector, policy = collector_for("gym_WithProcess-v0", 1, tmp_path)
        for _ in range(14):
            collector.step(policy)
        envs.close()
    finally:
        del gymnasium.registry["WithProcess-v0"]
    (episode,) = stored(tmp_path)
    assert len(episode["reward"]) == 13


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("where", ["in the program", "in a process of it"])
def test_a_program_that_closes_nothing_ends_all_the_same(where, failing):
    code = f"""
import multiprocessing
import tools
from envs import make_envs
def play():
    make_envs(tools.load_config(["debug"], {{"task": "gym_CartPole-v1"}}), 2, training=True).reset(0)
    global envs
    envs = make_envs(tools.load_config(["debug"], {{"task": "gym_CartPole-v1"}}), 2, training=True)
    envs.reset(0)
    assert not {failing}
if {where == "in the program"}:
    play()
else:
    process = multiprocessing.get_context("fork").Process(target=play)
    process.start()
    process.join()
    raise SystemExit(process.exitcode)
"""
    root = pathlib.Path(__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=60).returncode == int(failing)


def test_a_daemonic_process_is_told_that_it_cannot_have_environments():
    with multiprocessing.get_context("fork").Pool(1) as pool, pytest.raises(RuntimeError, match="a daemonic process cannot start"):
        pool.apply(collector_for, ("gym_Counting-v0", 1, pathlib.Path()))
