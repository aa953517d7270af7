"""The test suite: this file and tests/.

    python test_hdreamer.py         # fast tests: model, losses, latents, replay, checkpoints, a short run with resume
    python test_hdreamer.py --all   # all tests
    python test_hdreamer.py --slow  # the tests that the first command leaves out

Further arguments go to pytest. This file tests what the README promises, from the command line and from Python.
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import checkpoints
import dreamer
import settings
import tools
from envs import make_envs
from storage.episodes import load_episode
from training import folder
from training import run as training_run


def run(logdir: pathlib.Path, preset: str, *flags: str) -> list[dict]:
    """Runs a training at debug size and returns the rows of metrics.jsonl."""
    assert dreamer.main(["--configs", "defaults", "debug", preset, *flags, "--logdir", str(logdir), "--device", "cpu"]) == 0
    return [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]


def agent_for(config: tools.Config) -> dreamer.Dreamer:
    """An agent for the task of the settings."""
    envs = make_envs(config, 1, training=True)
    envs.close()
    return dreamer.Dreamer(envs.obs_space, envs.act_space, config, None, None)


@pytest.mark.parametrize("preset", ["defaults", "hdreamer"])
@pytest.mark.parametrize("task", ["atari_pong", "gym_CartPole-v1", "gym_Pendulum-v1"])
def test_a_run_stops_and_continues_where_it_stopped(tmp_path, capsys, task, preset):
    videos = task == "atari_pong"  # elsewhere rendering a film would take most of the time
    flags = ["--task", task, "--eval_every", "300", "--train_ratio", "2", "--size", "32", "32"]
    flags += ["--video_pred_log", str(videos)]
    repeat = tools.load_config([], {"task": task}).action_repeat
    run(tmp_path, preset, *flags, "--steps", "400")
    first = checkpoints.load(tmp_path / "latest.pt")
    assert first["step"] == 400
    # Two updates after 50 steps of prefill, then one per 12 agent steps. The last step's credit is not spent yet.
    assert first["updates"] == 2 + (400 // repeat - 50 - 1) // 12

    overrides = {"task": task, "steps": 600, "logdir": str(tmp_path), "device": "cpu", "eval_every": 300, "train_ratio": 2}
    overrides |= {"size": [32, 32], "video_pred_log": videos}
    training = dreamer.start(tools.load_config(["defaults", "debug", preset], overrides))
    assert "Resuming at frame 400" in capsys.readouterr().out
    assert (training.step, training.last_eval, training.agent.updates, training.data.missing_steps) == (400, 400, first["updates"], 0)
    assert training.data.budget.credit == first["update_credit"]
    assert_same(training.agent.state_dict(), first["agent_state_dict"])
    assert_same({name: optimizer.state_dict() for name, optimizer in training.agent.optimizers().items()}, first["optims_state_dict"])
    assert_same(checkpoints.random_state(training.data.replay.rng), first["random_state"])
    dreamer.run_to_end(training)

    second = checkpoints.load(tmp_path / "latest.pt")
    assert second["step"] == 600 and second["updates"] == 2 + (600 // repeat - 50 - 1) // 12
    stored = sum(len(load_episode(path)["reward"]) - 1 for path in (tmp_path / "train_eps").glob("*.npz"))
    assert stored == 600 // repeat
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps) and steps[-1] == 600
    assert all(np.isfinite(value) for line in lines for value in line.values())
    assert [line["step"] for line in lines if "eval/return" in line] == [300, 400, 600]
    assert len(list(tmp_path.glob("videos/*.gif"))) == (6 if videos else 0)  # open-loop predictions and films


def assert_same(a, b) -> None:
    """Asserts that nested containers of tensors are equal."""
    if torch.is_tensor(a):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_same(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_to_the_whole_process_group_ends_a_run_with_everything_saved(tmp_path, number):
    command = [
        sys.executable,
        str(pathlib.Path(dreamer.__file__)),
        "--configs",
        "defaults",
        "debug",
        "--task",
        "gym_CartPole-v1",
        "--envs",
        "2",
        "--steps",
        "1000000",
        "--device",
        "cpu",
        "--logdir",
        str(tmp_path),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and "train/" in metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "everything is saved. To resume" in output
    checkpoint = checkpoints.load(tmp_path / "latest.pt")
    stored = sum(len(load_episode(path)["reward"]) - 1 for path in (tmp_path / "train_eps").glob("*.npz"))
    assert checkpoint["step"] == stored


def test_a_memory_smaller_than_the_prefill_is_not_filled_again_after_a_resume(tmp_path):
    flags = ["--task", "gym_CartPole-v1", "--prefill", "100", "--dataset_size", "60", "--eval_episode_num", "0"]
    run(tmp_path, "defaults", *flags, "--steps", "150")
    before = checkpoints.load(tmp_path / "latest.pt")["updates"]
    run(tmp_path, "defaults", *flags, "--steps", "200")
    after = checkpoints.load(tmp_path / "latest.pt")
    assert after["step"] == 200 and after["updates"] - before in (8, 9)  # 50 steps * train_ratio 4 / 24 steps per batch


def test_a_last_evaluation_that_was_stopped_is_made_up_for(tmp_path, monkeypatch):
    flags = ["--task", "gym_CartPole-v1", "--steps", "120", "--eval_every", "120", "--prefill", "60"]

    def play_until_stopped(policy, envs, episodes, seed, stop, sample):
        os.kill(os.getpid(), signal.SIGINT)
        return []

    with monkeypatch.context() as stopped:
        stopped.setattr(training_run, "play_episodes", play_until_stopped)
        rows = run(tmp_path / "run", "defaults", *flags)
    assert not any("eval/return" in row for row in rows)
    rows = run(tmp_path / "run", "defaults", *flags)
    assert [row["step"] for row in rows if "eval/return" in row] == [120]


def test_a_run_ends_with_an_evaluation_and_only_with_one(tmp_path):
    flags = ["--task", "gym_CartPole-v1", "--eval_every", "60", "--prefill", "50"]
    for steps, evaluated in ((100, [60, 100]), (100, [60, 100]), (120, [60, 100, 120])):
        rows = run(tmp_path, "defaults", *flags, "--steps", str(steps))
        assert [row["step"] for row in rows if "eval/return" in row] == evaluated


def test_an_evaluation_at_the_end_that_is_made_up_for_is_saved(tmp_path):
    flags = ["--task", "gym_CartPole-v1", "--eval_every", "60", "--prefill", "50"]
    run(tmp_path, "defaults", *flags, "--steps", "100")
    checkpoint = checkpoints.load(tmp_path / "latest.pt")
    assert checkpoint["last_eval"] == 100
    # As if the run had been stopped during the last evaluation.
    checkpoints.save(tmp_path / "latest.pt", {**checkpoint, "last_eval": 60})
    for _ in range(2):
        rows = run(tmp_path, "defaults", *flags, "--steps", "100")
    assert [row["step"] for row in rows if "eval/return" in row] == [60, 100, 100]
    assert checkpoints.load(tmp_path / "latest.pt")["last_eval"] == 100


@pytest.mark.parametrize("damage", [{"removing": []}, {"removed_steps": None}, {"update_credit": "much"}, {"step": "far"}])
def test_damaged_counters_of_a_checkpoint_are_told_before_anything_changes(tmp_path, capsys, damage):
    run(tmp_path, "defaults", "--task", "gym_CartPole-v1", "--eval_every", "0", "--steps", "60")
    checkpoints.save(tmp_path / "latest.pt", {**checkpoints.load(tmp_path / "latest.pt"), **damage})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    argv = ["--configs", "defaults", "debug", "--task", "gym_CartPole-v1", "--eval_every", "0", "--steps", "90", "--device", "cpu"]
    assert dreamer.main([*argv, "--logdir", str(tmp_path)]) == 2
    assert re.search(r"error: .*latest.pt: it is incomplete or damaged", capsys.readouterr().err)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_how_many_updates_there_have_been_is_told_once_at_a_step(tmp_path):
    rows = run(tmp_path, "defaults", "--task", "gym_CartPole-v1", "--eval_every", "60", "--log_every", "30", "--steps", "130")
    told = [(row["step"], row["time/updates"]) for row in rows if "time/updates" in row]
    steps = {row["step"] for row in rows if row["step"] > 50}  # pretraining at step 50 updates without steps
    assert [step for step, _ in told if step > 50] == sorted(steps) and len(rows) > len(told)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("time/updates")] == told


def test_a_continued_run_trains_with_the_rates_that_it_is_given(tmp_path):
    flags = ["--task", "gym_CartPole-v1", "--eval_episode_num", "0"]
    run(tmp_path, "defaults", *flags, "--steps", "100")
    overrides = {
        "task": "gym_CartPole-v1",
        "logdir": str(tmp_path),
        "device": "cpu",
        "model_lr": 0.5,
        "actor.eps": 0.25,
        "weight_decay": 0.125,
    }
    training = dreamer.start(tools.load_config(["defaults", "debug"], overrides))
    training.close()
    groups = {name: optimizer.state_dict()["param_groups"][0] for name, optimizer in training.agent.optimizers().items()}
    assert groups["_wm._model_opt._opt"]["lr"] == 0.5 and groups["_task_behavior._actor_opt._opt"]["eps"] == 0.25
    assert all(group["weight_decay"] == 0.125 for group in groups.values())
    state = training.agent.optimizers()["_wm._model_opt._opt"].state_dict()["state"]
    assert state and all(moments["step"] == training.agent.updates for moments in state.values())


def test_the_checkpoint_before_the_last_one_is_an_earlier_one(tmp_path):
    run(tmp_path, "defaults", "--task", "gym_CartPole-v1", "--steps", "200", "--eval_every", "100")
    steps = [checkpoints.load(tmp_path / name)["step"] for name in ("previous.pt", "latest.pt")]
    assert steps == [100, 200]


def test_a_run_that_never_had_weights_or_episodes_binds_nobody(tmp_path):
    (tmp_path / "config.yaml").write_text("task: atari_pong\ndyn_deter: 7\n")
    assert folder.stored_config(tmp_path) == {}


def test_a_folder_for_runs_that_points_nowhere_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logdir").symlink_to(tmp_path / "unmounted")
    with pytest.raises(ValueError, match="--logdir"):
        folder.open_logdir(tools.load_config())


def test_two_runs_that_begin_in_the_same_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = {folder.new_logdir("atari_pong") for _ in range(5)}
    assert len(folders) == 5 and all(folder.is_dir() for folder in folders)


@pytest.mark.parametrize("flag, value", [("--eval_every", "0"), ("--eval_episode_num", "0")])
def test_no_evaluation_environment_exists_when_evaluation_is_off(tmp_path, flag, value):
    presets, flags = settings.parse_flags(["--configs", "debug", "--task", "gym_CartPole-v1", "--logdir", str(tmp_path), flag, value])
    training = dreamer.start(tools.load_config(presets, flags))
    training.close()
    assert training.data.eval_envs is None


@pytest.mark.parametrize("preset", ["defaults", "hdreamer"])
@pytest.mark.parametrize("task", ["gym_CartPole-v1", "gym_Pendulum-v1"])
def test_vector_tasks_with_discrete_and_continuous_actions_train_in_worker_processes(tmp_path, preset, task):
    lines = run(
        tmp_path,
        preset,
        "--task",
        task,
        "--envs",
        "2",
        "--steps",
        "300",
        "--eval_every",
        "200",
        "--eval_episode_num",
        "2",
        "--time_limit",
        "60",
        "--log_every",
        "100",
    )
    assert any("eval/return" in line for line in lines)
    assert any("train/vector_loss" in line for line in lines)
    assert {path.name.partition("_")[0] for path in tmp_path.glob("videos/*")} <= {"episode"}  # no images to predict


def test_two_runs_with_the_same_seed_are_the_same(tmp_path):
    losses = []
    for name in ("a", "b"):
        lines = run(tmp_path / name, "defaults", "--task", "atari_pong", "--steps", "320", "--eval_episode_num", "0")
        losses.append([line["train/model_loss"] for line in lines if "train/model_loss" in line])
    assert losses[0] and losses[0] == losses[1]


@pytest.mark.parametrize("presets", [["debug"], ["debug", "hdreamer"]])
def test_a_state_dict_loads_into_a_new_agent_that_then_acts_the_same(tmp_path, presets):
    overrides = {"task": "gym_CartPole-v1", "device": "cpu"}
    agents = [agent_for(tools.load_config(["defaults", *presets], overrides)) for _ in range(2)]
    torch.save({"agent_state_dict": agents[0].state_dict()}, tmp_path / "model.pt")
    agents[1].load_state_dict(torch.load(tmp_path / "model.pt")["agent_state_dict"])
    obs = {"vector": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32), "is_first": np.ones(3, bool)}
    answers = []
    for agent in agents:
        torch.manual_seed(0)
        _, state = agent.act(obs)
        answers.append(agent.act({**obs, "is_first": np.zeros(3, bool)}, state)[1])
    for key in answers[0]:
        assert torch.equal(answers[0][key], answers[1][key]), key


@pytest.mark.parametrize("explorer", ["greedy", "plan2explore"])
@pytest.mark.parametrize("preset", ["defaults", "hdreamer"])
def test_a_resumed_agent_updates_exactly_as_one_that_never_stopped(tmp_path, preset, explorer):
    overrides = {"task": "gym_CartPole-v1", "device": "cpu", "critic.slow_target_update": 2, "expl_behavior": explorer}
    config = tools.load_config(["defaults", "debug", preset], overrides)
    rng = np.random.default_rng(0)
    batch = {
        "vector": rng.normal(size=(2, 8, 4)).astype(np.float32),
        "action": np.eye(2, dtype=np.float32)[rng.integers(2, size=(2, 8))],
        "reward": rng.normal(size=(2, 8)).astype(np.float32),
        "is_first": np.zeros((2, 8), bool),
        "is_terminal": np.zeros((2, 8), bool),
    }
    agent = agent_for(config)
    for _ in range(3):
        agent.update(batch)
    checkpoints.save(
        tmp_path / "latest.pt",
        {
            **agent.checkpoint(),
            "updates": agent.updates,
            "random_state": checkpoints.random_state(rng),
            "step": 0,
            "last_eval": 0,
            "update_credit": 0.0,
        },
    )
    for _ in range(5):
        agent.update(batch)
    resumed, loaded = agent_for(config), checkpoints.load(tmp_path / "latest.pt")
    resumed.load_checkpoint(loaded)
    resumed.updates = loaded["updates"]
    checkpoints.restore_random_state(loaded["random_state"], rng)
    for _ in range(5):
        resumed.update(batch)
    assert_same(agent.checkpoint(), resumed.checkpoint())


def test_a_wrong_command_line_is_answered_with_the_way_out(capsys):
    for argv, words in [
        (["--encoder.cnn_dept", "4"], ["encoder.cnn_dept", "did you mean 'encoder.cnn_depth'"]),
        (["--configs", "hdreame"], ["did you mean 'hdreamer'"]),
        (["--task", "pong"], ["suite"]),
        (["--steps", "many"], ["steps", "int"]),
        (["--seed"], ["--seed has no value"]),
        (["seed", "1"], ["unexpected word '1'"]),
        (["--task", "gym_CartPole-v1", "--noops", "3"], ["noops", "atari suite"]),
    ]:
        assert dreamer.main(argv) == 2
        message = capsys.readouterr().err
        assert all(word in message for word in words), message


class Limit:
    """Fails a fast test that takes more than `SECONDS` of CPU time, including fixtures and child processes.

    Half of that is the aim, so that a slower processor passes too.
    """

    SECONDS = 20.0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self._began = sum(os.times()[:4])
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        result = yield
        taken = sum(os.times()[:4]) - self._began
        if taken > self.SECONDS and not item.get_closest_marker("slow"):
            pytest.fail(f"it took {taken:.1f} s of CPU time, a fast test at most {self.SECONDS:.0f}: make it smaller, or mark it slow")
        return result


if __name__ == "__main__":
    root, arguments = pathlib.Path(__file__).parent, sys.argv[1:]
    tiers = {"--all": [], "--slow": ["-m", "slow"]}
    tier = next((tiers[word] for word in arguments if word in tiers), ["-m", "not slow"])
    arguments = [word for word in arguments if word not in tiers]
    sys.exit(pytest.main(["-q", str(root / "test_hdreamer.py"), str(root / "tests"), *tier, *arguments], plugins=[Limit()]))
