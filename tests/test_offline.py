"""Recording episodes, and learning from recorded episodes alone."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from gymnasium import spaces

import checkpoints
import dreamer
import evaluate
import exploration
import record
import replay
import tools
from collect import Collector
from dreamer import Dreamer, load_agent
from envs import make_envs
from old_files import DATA, same
from play.playing import play
from storage.episodes import load_episode
from storage.memory import Free
from training import offline

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent
NO_ENVIRONMENT = ["--task", "gym_Nowhere-v0", "--eval_episode_num", "0"]


def run(*flags: str, code: int = 0) -> subprocess.CompletedProcess:
    """A command line in a process of its own; the first word is the script."""
    script, *words = flags
    result = subprocess.run(
        [sys.executable, str(ROOT / script), *words, "--device", "cpu"],
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result


def train(logdir: pathlib.Path, *flags: str) -> list[dict]:
    """dreamer.py at debug size in this process; the lines of metrics.jsonl."""
    assert dreamer.main(["--configs", "defaults", "debug", "--device", "cpu", "--logdir", str(logdir), *flags]) == 0
    return [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]


def contents(folder: pathlib.Path) -> dict:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def episode(length: int = 6, *, actions=None, start: int = 0, **parts) -> dict:
    """An episode whose rewards count its steps; the default action is the first of two."""
    actions = np.eye(2)[np.zeros(length, int)] if actions is None else np.asarray(actions)
    first = np.arange(length) == 0
    values = start + np.arange(length, dtype=np.float32)
    found = {
        "vector": values[:, None],
        "action": np.where(first[:, None], 0.0, actions).astype(np.float32),
        "reward": values,
        "is_first": first,
        "is_last": first[::-1].copy(),
        "is_terminal": first[::-1].copy(),
        **parts,
    }
    return {key: value for key, value in found.items() if value is not None}


def write(folder: pathlib.Path, *episodes: dict) -> pathlib.Path:
    """Files of episodes, in the order of their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(episodes):
        np.savez(folder / f"2026010{number}T000000-x-{len(next(iter(content.values())))}.npz", **content)
    return folder


def survey(folder: pathlib.Path, wanted=None, **settings) -> offline.Recording:
    config = tools.load_config(["defaults", "debug"], {"task": "gym_X-v0", **settings})
    return offline.survey("offline_traindir", str(folder), wanted, "gym_X-v0", config)


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory) -> pathlib.Path:
    """Episodes of random actions in CartPole."""
    folder = tmp_path_factory.mktemp("recorded") / "cartpole"
    assert record.main(["--task", "gym_CartPole-v1", "--episodes", "12", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> pathlib.Path:
    """Episodes of noisy images."""
    rng = np.random.default_rng(0)
    images = [rng.integers(256, size=(30, 16, 16, 3), dtype=np.uint8) for _ in range(3)]
    actions = [np.eye(3)[rng.integers(3, size=30)] for _ in range(3)]
    return write(
        tmp_path_factory.mktemp("recorded") / "pictures",
        *(episode(30, vector=None, image=image, actions=action) for image, action in zip(images, actions)),
    )


# Recording


def test_the_commands_record_train_and_evaluate(tmp_path):
    recorded, held_out, logdir = (str(tmp_path / name) for name in ("recorded", "held_out", "run"))
    random = ["record.py", "--task", "gym_CartPole-v1", "--policy", "random"]
    assert "recorded: " in run(*random, "--episodes", "8", "--out", recorded).stdout
    run(*random, "--episodes", "3", "--seed", "1", "--out", held_out)
    before = contents(tmp_path / "recorded"), contents(tmp_path / "held_out")
    flags = [
        "dreamer.py",
        "--configs",
        "defaults",
        "debug",
        "hdreamer",
        "--task",
        "gym_CartPole-v1",
        "--offline_traindir",
        recorded,
        "--offline_evaldir",
        held_out,
        "--eval_every",
        "20",
        "--log_every",
        "10",
        "--logdir",
        logdir,
    ]
    output = " ".join(run(*flags, "--steps", "30").stdout.split())
    assert "prefill:" not in output and "8 episodes" in output and "held out" in output and "train: 30 of 30 updates" in output
    assert "none to train, 2 to evaluate" in output and "2 x 12 steps, 30 updates" in output and "update 20 | eval return" in output
    assert "Finished at update 30" in output and "--steps 60" in output
    output = run(*flags, "--steps", "40").stdout
    assert "Resuming at update 30." in output
    assert (contents(tmp_path / "recorded"), contents(tmp_path / "held_out")) == before
    assert not (tmp_path / "run" / "train_eps").exists()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/model_loss" in line] == [10, 20, 30, 40]
    assert [line["step"] for line in lines if "eval/return" in line] == [20, 30, 40]  # at the end of each run too
    assert [line["step"] for line in lines if "eval/vector_loss" in line] == [20, 30, 40]
    assert checkpoints.load(tmp_path / "run" / "latest.pt")["updates"] == 40
    played = run("evaluate.py", logdir, "--episodes", "2").stdout
    assert "gym_CartPole-v1 at update 40, 2 episodes" in played
    more = run("record.py", logdir, "--steps", "25", "--out", recorded).stdout
    assert "25 steps of gym_CartPole-v1 more, actions sampled" in more


def test_recorded_episodes_are_those_that_the_policy_plays(cartpole, tmp_path):
    config = tools.load_config([], {"task": "gym_CartPole-v1"})
    envs = make_envs(config, 1, training=True)
    collector = Collector(
        envs,
        replay.Replay(envs.obs_space, 2, capacity=1000, streams=1, batch_size=1, batch_length=2),
        tmp_path / "expected",
        seed=tools.train_seed(0, 0),
        training=True,
    )
    policy = exploration.Random(Dreamer(envs.obs_space, envs.act_space, config).codec, tools.policy_seed(0, 0))
    for _ in range(12):
        while not collector.step(policy)[1]:
            pass
    envs.close()
    folders = [sorted(folder.iterdir()) for folder in (cartpole, tmp_path / "expected")]
    assert len(folders[0]) == len(folders[1]) == 12
    for found, expected in zip(*(map(load_episode, paths) for paths in folders)):
        assert list(found) == list(expected) and all(np.array_equal(found[key], expected[key]) for key in found)


def test_several_environments_record_a_fixed_share_each(tmp_path):
    assert record.main(["--task", "gym_CartPole-v1", "--episodes", "5", "--envs", "2", "--out", str(tmp_path / "shared")]) == 0
    assert len(list((tmp_path / "shared").iterdir())) == 5


def test_steps_are_frames_and_the_last_episode_is_cut_off(tmp_path):
    assert record.main(["--task", "gym_Pendulum-v1", "--steps", "500", "--action_repeat", "2", "--out", str(tmp_path)]) == 0
    episodes = [load_episode(path) for path in sorted(tmp_path.iterdir())]
    assert [len(found["reward"]) - 1 for found in episodes] == [100, 100, 50]
    assert all(found["is_last"].nonzero()[0].tolist() == [len(found["reward"]) - 1] for found in episodes)


def test_an_agent_records_sampled_or_most_likely_actions(trained, tmp_path):
    if "image" in trained.agent.obs_space.spaces:
        pytest.skip("vectors are enough")
    for policy in ("sampled", "most_likely"):
        for time in range(2):
            assert (
                record.main(
                    [
                        "--logdir",
                        str(trained.logdir),
                        "--episodes",
                        "2",
                        "--policy",
                        policy,
                        "--time_limit",
                        "30",
                        "--device",
                        "cpu",
                        "--out",
                        str(tmp_path / f"{policy}{time}"),
                    ]
                )
                == 0
            )
    first, again = ([load_episode(path)["action"] for path in sorted((tmp_path / f"sampled{time}").iterdir())] for time in range(2))
    assert all(map(np.array_equal, first, again))
    likely = [load_episode(path)["action"] for path in sorted((tmp_path / "most_likely0").iterdir())]
    assert not all(map(np.array_equal, first, likely))
    assert all((found[1:].sum(1) == 1).all() for found in likely)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--episodes", "2"], "--out is missing"),
        (["--out", "x"], "either --episodes, or --steps"),
        (["--out", "x", "--episodes", "2", "--steps", "3"], "either --episodes, or --steps"),
        (["--out", "x", "--episodes", "0"], "at least 1"),
        (["--out", "x", "--episodes", "2", "--policy", "sampled"], "with the folder of a run"),
        (["--out", "x", "--episodes", "2", "--policy", "clever"], "allowed are random"),
        (["--out", "x", "--episodes", "2", "--logdir", "nowhere"], "no checkpoint"),
        (["--out", "x", "--episodes", "2", "--logdir", "x", "--configs", "small"], "leave --configs out"),
        (["--out", "x", "--episodes", "2", "--logdir", "a", "b"], "one run"),
        (["--out", "x", "--episodes", "2", "--logdir", ""], "one run"),
        (["--out", "x", "--episodes", "2", "--sede", "3"], "did you mean 'seed'"),
        (["--out", "x", "--steps", "0"], "at least 1"),
    ],
)
def test_a_recording_that_makes_no_sense_is_refused_and_nothing_written(flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert record.main(["--task", "gym_CartPole-v1", *flags]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


# What is in a folder


def test_without_an_environment_observations_and_discrete_actions_follow_from_the_episodes(pictures, tmp_path):
    lines = train(
        tmp_path,
        *NO_ENVIRONMENT,
        "--offline_traindir",
        str(pictures),
        "--size",
        "16",
        "16",
        "--steps",
        "20",
        "--eval_every",
        "10",
        "--log_every",
        "10",
    )
    assert [line["step"] for line in lines if "train/image_loss" in line] == [10, 20]
    assert len(list((tmp_path / "videos").iterdir())) == 2
    agent = load_agent(tmp_path, "cpu")
    assert agent.act_space == spaces.Discrete(3)
    assert agent.obs_space == spaces.Dict({"image": spaces.Box(0, 255, (16, 16, 3), np.uint8)})


@pytest.mark.parametrize(
    "actions, settings, expected",
    [
        ([[0, 1], [1, 0]], {}, spaces.Discrete(2)),
        ([[0, 1, 0], [0, 1, 0]], {}, spaces.Discrete(3)),  # classes that never occur
        ([[1], [1]], {}, spaces.Box(-1, 1, (1,))),  # a single class would be no choice
        ([[0.0, 1.0], [-1.0, 0.0]], {}, spaces.Box(-1, 1, (2,))),
        ([[0.2, 0.8], [0.8, 0.2]], {}, spaces.Box(-1, 1, (2,))),
        ([[0, 1], [1, 0]], {"actor.dist": "normal"}, spaces.Box(-1, 1, (2,))),
        ([[0.5, 0, 1], [-0.1, 1, 0]], {"actor.dist": "normal"}, spaces.Box(-1, 1, (3,))),
        ([[0.5, 0, 0], [-0.1, 1, 0]], {}, spaces.Box(-1, 1, (3,))),  # no one-hot beside the first number
        ([[1, 0, 0, 0, 1], [0, 1, 1, 0, 0], [1, 0, 0, 1, 0]], {}, spaces.MultiDiscrete([2, 3])),
    ],
)
def test_what_actions_are_follows_from_their_numbers(actions, settings, expected, tmp_path):
    actions = np.array([np.zeros(len(actions[0])), *actions])
    assert survey(write(tmp_path, episode(len(actions), actions=actions)), **settings).act_space == expected


@pytest.mark.parametrize(
    "actions, settings",
    [
        ([[0, 1, 1, 0], [1, 1, 0, 0]], {}),  # neither one-hot nor parts
        ([[1, 1], [1, 1]], {}),
        ([[1, 0, 0, 0, 1], [0, 1, 1, 0, 0]], {}),  # parts, but where the fourth number belongs is open
        ([[0.5, 0.5], [0.1, 0.2]], {"actor.dist": "onehot"}),
        ([[0.5, 0, 1], [-0.1, 1, 0]], {}),  # a number and a one-hot
    ],
)
def test_actions_that_could_be_several_things_are_asked_about(actions, settings, tmp_path):
    actions = np.array([np.zeros(len(actions[0])), *actions])
    with pytest.raises(ValueError, match="--actor.dist normal.*--eval_every and --eval_episode_num above 0"):
        survey(write(tmp_path, episode(len(actions), actions=actions)), **settings)


TASK = spaces.Dict({"vector": spaces.Box(-np.inf, np.inf, (1,), np.float32)}), spaces.Discrete(2)


@pytest.mark.parametrize(
    "second, words",
    [
        ({"vector": None}, "lacks vector; it has action, is_first"),
        ({"is_terminal": None}, "lacks is_terminal"),
        ({"vector": np.zeros((6, 4), np.float32)}, r"vector is float32 of shape \(4,\) at each step; .* has float32 of shape \(1,\)"),
        ({"actions": np.eye(3)[np.zeros(6, int)]}, "action has 3 numbers.*2"),
        ({"reward": np.full(6, np.nan, np.float32)}, "reward has NaN"),
        ({"reward": np.zeros((6, 1), np.float32)}, r"reward has shape \(6, 1\); wanted is \(L,\)"),
    ],
)
@pytest.mark.parametrize("wanted", [None, TASK], ids=["from the first episode", "from the task"])
def test_an_episode_that_does_not_fit_is_named_with_what_is_wanted(second, words, wanted, tmp_path):
    folder = write(tmp_path, episode(), episode(**second))
    with pytest.raises(ValueError, match=rf"20260101T000000-x-6.npz.*{words}"):
        survey(folder, wanted)


def test_other_observations_in_between_are_refused_unless_a_task_says_which_ones_count(tmp_path):
    folder = write(tmp_path, episode(), episode(height=np.zeros((6, 2), np.float32), log_time=np.zeros(6), logprob=np.zeros(6)))
    with pytest.raises(ValueError, match=r"20260101T.* has height, which .*20260100T.* has not"):
        survey(folder)
    assert survey(folder, TASK).obs_space == TASK[0]


def test_actions_that_a_task_does_not_take_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"action is not one-hot; gym_X-v0 has Discrete\(2\)"):
        survey(write(tmp_path, episode(actions=np.full((6, 2), 0.5))), TASK)


@pytest.mark.parametrize(
    "part, words",
    [
        ({"image": np.zeros((6, 16, 16, 3), np.float32)}, "image, uint8"),
        ({"height": np.zeros(6, np.float32)}, r"a vector of numbers, \(L, n\)"),
        ({"vector": None}, "holds no observations"),
    ],
)
def test_what_cannot_be_observed_is_named(part, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        survey(write(tmp_path, episode(**part)), size=[16, 16])


@pytest.mark.parametrize("name, words", [("nowhere", "is no folder"), ("", "holds no episode that can be read"), ("file", "is no folder")])
def test_a_folder_without_episodes_is_refused_in_one_line(name, words, tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "damaged-x-3.npz").write_bytes(b"PK")
    logdir = tmp_path.parent / "never"
    assert dreamer.main(["--configs", "debug", *NO_ENVIRONMENT, "--offline_traindir", str(tmp_path / name), "--logdir", str(logdir)]) == 2
    error = capsys.readouterr().err.splitlines()
    assert words in error[-1] and error[-1].startswith("error: ") and not logdir.exists()


def test_a_damaged_file_is_left_out_and_named(tmp_path, capsys):
    folder = write(tmp_path, episode(), episode(start=10))
    damaged = sorted(folder.iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:200])
    assert survey(folder).returns == [sum(range(10, 16))]
    assert damaged.name in capsys.readouterr().err


def test_the_memory_keeps_the_newest_steps_that_fit_and_marks_where_episodes_begin(tmp_path):
    unmarked = np.zeros(6, bool)
    folder = write(tmp_path, *(episode(start=100 * number, is_first=unmarked) for number in range(4)))
    config = tools.load_config(["defaults", "debug"], {"task": "gym_X-v0", "dataset_size": 15, "batch_size": 300})
    recording = offline.survey("offline_traindir", str(folder), None, "", config)
    batch = offline.fill(recording, config).sample()
    kept = [103, 104, 105, *range(200, 206), *range(300, 306)]
    assert sorted(np.unique(batch["reward"])) == kept
    np.testing.assert_array_equal(batch["is_first"], np.isin(batch["reward"], (103, 200, 300)))  # the first one is the seam
    assert recording.returns == [sum(range(start, start + 6)) for start in (0, 100, 200, 300)]


def test_more_than_the_free_memory_is_refused_with_a_size_that_fits(cartpole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(replay, "available_memory", lambda: Free(3000, "this machine"))
    flags = ["--offline_traindir", str(cartpole), "--logdir", str(tmp_path / "run")]
    assert dreamer.main(["--configs", "debug", *NO_ENVIRONMENT, *flags]) == 2
    assert "set dataset_size to at most" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_episodes_of_dreamerv3_torch_are_learned_from(tmp_path):
    recorded = str(DATA / "atari" / "train_eps")
    lines = train(
        tmp_path / "run",
        "--task",
        "atari_pong",
        "--eval_episode_num",
        "0",
        "--offline_traindir",
        recorded,
        "--offline_evaldir",
        recorded,
        "--steps",
        "4",
        "--eval_every",
        "4",
        "--log_every",
        "2",
    )
    assert load_agent(tmp_path / "run", "cpu").act_space == spaces.Discrete(5)
    assert "eval/image_loss" in lines[-1]


def test_held_out_sequences_are_always_the_same_and_of_the_held_out_folder(tmp_path):
    config = tools.load_config(["defaults", "debug"], {"task": "gym_X-v0"})
    folder = write(tmp_path, *(episode(30, start=100 * number) for number in range(3)))
    memory = offline.fill(offline.survey("offline_evaldir", str(folder), TASK, "", config), config)
    batches, again = offline.held_out_batches(memory), offline.held_out_batches(memory)
    assert len(batches) == 90 // (2 * 12)
    assert all(np.array_equal(one["reward"], other["reward"]) for one, other in zip(batches, again))
    assert not np.array_equal(batches[0]["reward"], batches[1]["reward"])


def test_losses_on_held_out_episodes_are_those_of_an_update_before_its_step(cartpole, tmp_path):
    config = tools.load_config(["defaults", "debug"], {"task": "gym_X-v0", "device": "cpu", "grad_heads": ["decoder", "reward", "cont"]})
    recording = offline.survey("offline_traindir", str(cartpole), None, "", config)
    agent, batch = Dreamer(recording.obs_space, recording.act_space, config), offline.fill(recording, config).sample()
    torch.manual_seed(3)
    measured = agent.model_losses(batch)
    torch.manual_seed(3)
    updated = agent.update(batch)
    assert {"model_loss", "vector_loss", "reward_loss", "cont_loss", "kl"} <= measured.keys()
    for name, value in measured.items():
        torch.testing.assert_close(value, updated[name], msg=name)


# Runs


@pytest.mark.parametrize("kind, method, call", [("numbers", "update", 13), ("numbers", "act", 25), ("pictures", "update", 11)])
def test_a_run_that_is_stopped_and_continued_is_the_same_as_one_that_never_stopped(
    kind, method, call, cartpole, pictures, tmp_path, monkeypatch
):
    flags = {
        "numbers": ["--task", "gym_CartPole-v1", "--offline_traindir", str(cartpole), "--offline_evaldir", str(cartpole)],
        "pictures": [*NO_ENVIRONMENT, "--offline_traindir", str(pictures), "--size", "16", "16"],
    }[kind]
    flags += ["--steps", "24", "--eval_every", "6", "--log_every", "1", "--time_limit", "20"]
    expected = train(tmp_path / "whole", *flags)
    original, calls = getattr(Dreamer, method), []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Dreamer, method, interrupted)
        stopped = train(tmp_path / "parts", *flags)
    assert 0 < len(stopped) < len(expected)
    lines = train(tmp_path / "parts", *flags)
    assert [untimed(line) for line in lines] == [untimed(line) for line in expected]
    whole, parts = (checkpoints.load(tmp_path / name / "latest.pt") for name in ("whole", "parts"))
    for entry in ("agent_state_dict", "optims_state_dict", "random_state", "updates", "last_eval"):
        assert same(whole[entry], parts[entry]), entry
    videos = [contents(tmp_path / name / "videos") if kind == "pictures" else {} for name in ("whole", "parts")]
    assert len(videos[0]) == (4 if kind == "pictures" else 0)
    assert {name: video for name, (video, _) in videos[0].items()} == {name: video for name, (video, _) in videos[1].items()}


def untimed(line: dict) -> dict:
    return {key: value for key, value in line.items() if not key.startswith("time/")}


def test_a_process_that_gets_sigterm_saves_everything(cartpole, tmp_path):
    process = subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "dreamer.py"),
            "--configs",
            "debug",
            *NO_ENVIRONMENT,
            "--offline_traindir",
            str(cartpole),
            "--steps",
            "100000",
            "--log_every",
            "1",
            "--logdir",
            str(tmp_path),
            "--device",
            "cpu",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("update 5"):
            break
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=120)
    updates = checkpoints.load(tmp_path / "latest.pt")["updates"]
    assert process.returncode == 0 and f"Stopped at update {updates}, everything is saved" in rest and 5 <= updates < 100000


def test_an_agent_of_continuous_actions_acts_in_the_bounds_of_the_environment_it_is_evaluated_in(tmp_path, capsys):
    assert record.main(["--task", "gym_Pendulum-v1", "--steps", "300", "--out", str(tmp_path / "recorded")]) == 0
    flags = ["--task", "gym_Pendulum-v1", "--eval_every", "0"]
    train(tmp_path / "run", *flags, "--offline_traindir", str(tmp_path / "recorded"), "--steps", "3")
    agent = load_agent(tmp_path / "run", "cpu")
    assert agent.act_space == spaces.Box(-1.0, 1.0, (1,))
    envs = make_envs(agent._config, 1, training=False)
    play(agent, envs, 3, seed=0)
    envs.close()
    assert agent.act_space == envs.act_space and agent.codec.decode(np.ones((1, 1)))[0, 0] == 2.0
    assert evaluate.main(["--logdir", str(tmp_path / "run"), "--episodes", "1", "--device", "cpu"]) == 0
    with pytest.raises(ValueError, match=r"Box.*takes Discrete\(2\)"):
        agent.act_in(spaces.Discrete(2))


def test_a_run_goes_on_in_an_environment_with_what_it_has_learned(cartpole, tmp_path, capsys):
    flags = ["--task", "gym_CartPole-v1", "--eval_every", "0"]
    train(tmp_path / "offline", *flags, "--offline_traindir", str(cartpole), "--steps", "7")
    train(tmp_path / "online", *flags, "--from_checkpoint", str(tmp_path / "offline"), "--steps", "70")
    assert "Resuming at frame 0 after 7 updates, with 0 steps in memory." in capsys.readouterr().out
    assert checkpoints.load(tmp_path / "online" / "latest.pt")["step"] == 70


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--offline_evaldir", "{data}"], "give --offline_traindir too"),
        (["--offline_traindir", "{data}", "--offline_evaldir", "{data}", "--eval_every", "0"], "eval_every is 0"),
        (["--offline_traindir", "{data}", "--logdir", "{data}/run"], "is only read"),
        (["--offline_traindir", "{data}", "--logdir", "{online}"], "learns from an environment; to go on from recorded episodes"),
        (["--logdir", "{offline}"], "learns from recorded episodes; to go on from an environment"),
        (
            ["--offline_traindir", "{data}", "--task", "gym_Pendulum-v1"],
            "vector is float32 of shape (4,) at each step; gym_Pendulum-v1 has",
        ),
        (["--offline_traindir", "{data}", "--task", "gym_Nowhere-v0"], "--eval_episode_num 0"),
    ],
)
def test_what_does_not_go_together_is_refused_and_nothing_changes(flags, words, cartpole, tmp_path, capsys):
    places = {"data": str(cartpole), "online": str(tmp_path / "online"), "offline": str(tmp_path / "offline")}
    if "{online}" in flags:
        train(tmp_path / "online", "--task", "gym_CartPole-v1", "--steps", "60", "--eval_every", "0")
    if "{offline}" in flags:
        train(tmp_path / "offline", "--task", "gym_CartPole-v1", "--steps", "2", "--eval_every", "0", "--offline_traindir", str(cartpole))
    before = {path: path.read_bytes() for folder in (tmp_path, cartpole) for path in folder.rglob("*") if path.is_file()}
    defaults = ["--configs", "debug", "--task", "gym_CartPole-v1", "--device", "cpu", "--logdir", str(tmp_path / "new")]
    assert dreamer.main(defaults + [flag.format(**places) for flag in flags]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert {path: path.read_bytes() for folder in (tmp_path, cartpole) for path in folder.rglob("*") if path.is_file()} == before


def test_the_folder_of_the_episodes_may_move(cartpole, tmp_path, capsys):
    flags = ["--task", "gym_CartPole-v1", "--eval_every", "0"]
    train(tmp_path / "run", *flags, "--offline_traindir", str(cartpole), "--steps", "3")
    (tmp_path / "moved").symlink_to(cartpole)
    train(tmp_path / "run", *flags, "--offline_traindir", str(tmp_path / "moved"), "--steps", "5")
    assert "Resuming at update 3." in capsys.readouterr().out
