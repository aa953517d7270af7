"""Using trained agents: loading, acting on single observations, evaluation and its videos."""

import functools
import itertools
import json

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from matplotlib.figure import Figure
from PIL import Image

import dreamer
import evaluate
import exploration
from collect import Finished, play_episodes
from dreamer import load_agent
from envs import EnvBatch, make_envs
from envs.spaces import ActionCodec, OneHot, as_batch, describe_space, space_of
from old_files import DATA
from play import film

pytestmark = pytest.mark.slow


def observations(agent, count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        key: np.stack(
            [space.sample() if space.dtype == np.uint8 else rng.normal(size=space.shape).astype(np.float32) for _ in range(count)]
        )
        for key, space in agent.obs_space.spaces.items()
    }


# Loading


def test_an_agent_loads_from_a_folder_or_a_file_without_an_environment(trained, monkeypatch):
    monkeypatch.setattr(dreamer, "make_envs", None)
    obs = observations(trained.agent, 3)
    torch.manual_seed(1)
    expected, _ = trained.agent.act(obs)
    for path in (trained.logdir, str(trained.logdir), trained.logdir / "latest.pt"):
        agent = load_agent(path, "cpu")
        torch.manual_seed(1)
        np.testing.assert_array_equal(agent.act(obs)[0], expected)
        assert agent.updates == trained.agent.updates and agent.act_space == trained.agent.act_space
        for name, value in trained.agent.state_dict().items():
            assert torch.equal(agent.state_dict()[name], value), name


def test_a_checkpoint_without_spaces_takes_those_of_its_environment(trained, tmp_path):
    checkpoint = torch.load(trained.logdir / "latest.pt", weights_only=True)
    spaces_of_file = checkpoint.pop("spaces")
    torch.save(checkpoint, tmp_path / "latest.pt")
    agent = load_agent(tmp_path, "cpu")
    assert describe_space(agent.obs_space) == spaces_of_file["observation"] and agent.act_space == trained.agent.act_space


@pytest.mark.parametrize("broken", [{}, {"observation": {"kind": "Dict", "spaces": {}}, "action": {"kind": "open"}}, {"observation": 3}])
def test_a_checkpoint_whose_spaces_make_no_sense_is_refused(trained, tmp_path, broken):
    torch.save({**torch.load(trained.logdir / "latest.pt", weights_only=True), "spaces": broken}, tmp_path / "latest.pt")
    with pytest.raises(ValueError, match="describes no space"):
        load_agent(tmp_path, "cpu")


def test_a_file_of_dreamerv3_torch_is_answered_with_the_way_to_use_it(tmp_path):
    with pytest.raises(ValueError, match="holds no settings.*--from_checkpoint"):
        load_agent(DATA / "atari", "cpu")


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict({"b": spaces.Box(0, 255, (16, 16, 3), np.uint8), "a": spaces.Box(-np.inf, np.inf, (4,), np.float32)}),
        spaces.Box(np.array([-1.0, -np.inf]), np.array([2.0, 3.0]), dtype=np.float64),
        spaces.Discrete(5, start=-2),
        spaces.MultiDiscrete([3, 4]),
        spaces.MultiBinary((2, 3)),
        spaces.Dict({"turn": spaces.Discrete(3), "arm": spaces.Dict({"force": spaces.Box(-1.0, 1.0, (2,))})}),
        spaces.Tuple([spaces.Discrete(3, start=1), spaces.MultiBinary(2)]),
        spaces.Dict({"room": OneHot([4]), "dials": OneHot([2, 3])}),
    ],
)
def test_a_space_in_plain_values_is_the_same_space_again(space, tmp_path):
    torch.save(describe_space(space), tmp_path / "space.pt")
    again = space_of(torch.load(tmp_path / "space.pt", weights_only=True))
    assert again == space
    if isinstance(space, spaces.Dict):
        assert list(again.spaces) == list(space.spaces)


# Acting


def test_a_single_observation_gets_the_action_that_it_gets_in_a_batch(trained):
    agent = load_agent(trained.logdir, "cpu")
    obs = observations(agent, 1)
    single = {key: value[0] for key, value in obs.items()}
    for given in (single, next(iter(single.values()))):
        state, batch_state = None, None
        for _ in range(3):
            torch.manual_seed(2)
            action, state = agent.act(given, state)
            torch.manual_seed(2)
            expected, batch_state = agent.act(obs, batch_state)
            assert np.shape(action) == agent.act_space.shape and agent.act_space.contains(action)
            np.testing.assert_array_equal(action, expected[0])
            torch.testing.assert_close(state, batch_state)


def test_flags_of_single_observations_may_be_plain_values():
    obs, single = as_batch({"vector": np.zeros(3), "is_first": True, "reward": 1.0}, {"vector": (3,)})
    assert single and {key: value.shape for key, value in obs.items()} == {"vector": (1, 3), "is_first": (1,)}


@pytest.mark.parametrize(
    "obs, words",
    [
        (np.zeros(4), r"'vector' has the shape \(4,\); the agent needs \(3,\)"),
        (np.zeros((2, 2, 3)), r"shape \(2, 2, 3\)"),
        (np.zeros(()), r"shape \(\)"),
        ({"position": np.zeros(3)}, "lacks 'vector'; it has position"),
    ],
)
def test_observations_of_another_shape_are_refused_by_name(obs, words):
    with pytest.raises(ValueError, match=words):
        as_batch(obs, {"vector": (3,)})


def test_what_is_observed_twice_needs_names_and_one_size():
    shapes = {"a": (3,), "b": (2, 2)}
    with pytest.raises(ValueError, match="observes a, b"):
        as_batch(np.zeros(3), shapes)
    with pytest.raises(ValueError, match="some are single"):
        as_batch({"a": np.zeros((1, 3)), "b": np.zeros((2, 2))}, shapes)


def test_the_loop_of_a_gymnasium_environment_needs_no_settings(tmp_path, trained):
    if trained.config.task != "gym_CartPole-v1":
        return
    agent, env = load_agent(trained.logdir), gymnasium.make("CartPole-v1")
    (obs, _), state, ended, steps = env.reset(seed=0), None, False, 0
    while not ended:
        action, state = agent.act(obs, state)
        obs, _, ended, cut, _ = env.step(action)
        ended, steps = ended or cut, steps + 1
    assert 1 <= steps <= 500


# Evaluating


def episodes_of(*returns: float) -> list[Finished]:
    return [Finished(0, 10, {"return": value}) for value in returns]


def test_the_summary_has_mean_interval_and_extremes():
    returns = (1.0, 3.0, 8.0, 4.0, 9.0)
    summary = evaluate.summarise(episodes_of(*returns))
    assert summary["length"] == dict.fromkeys(("mean", "low", "high", "least", "most"), 10.0)
    row = summary["return"]
    assert (row["mean"], row["least"], row["most"]) == (5.0, 1.0, 9.0)
    every = np.mean(list(itertools.product(returns, repeat=5)), 1)  # all resamples that there are
    np.testing.assert_allclose((row["low"], row["high"]), np.quantile(every, (0.025, 0.975)), atol=0.21)  # a step of these means
    assert evaluate.as_rows(summary)[0] == ("return", f"5 (95%: {row['low']:.4g} to {row['high']:.4g}), least 1, most 9")


def test_a_few_episodes_have_no_interval():
    summary = evaluate.summarise(episodes_of(1.0, 3.0, 8.0, 4.0))
    assert summary["return"] == {"mean": 4.0, "low": None, "high": None, "least": 1.0, "most": 8.0}
    assert evaluate.as_rows(summary)[0] == ("return", "4, least 1, most 8")


@pytest.mark.parametrize("sample", [True, False])
def test_episodes_are_played_with_sampled_or_most_likely_actions(trained, sample):
    seen = []

    class Policy(exploration.Random):
        def act(self, obs, state=None, training=None):
            seen.append(training)
            return super().act(obs, state)

    envs = make_envs(trained.config, 1, training=False)
    play_episodes(Policy(ActionCodec(envs.act_space), 0), envs, 1, seed=0, sample=sample)
    envs.close()
    assert set(seen) == {sample}


@pytest.mark.parametrize(
    "eval_sample, flags, expected", [(True, [], True), (False, [], False), (True, ["--no-sample"], False), (False, ["--sample"], True)]
)
def test_an_evaluation_samples_as_those_of_the_run_do_unless_told(trained, tmp_path, monkeypatch, eval_sample, flags, expected):
    checkpoint = torch.load(trained.logdir / "latest.pt", weights_only=True)
    checkpoint["config"]["eval_sample"] = eval_sample
    torch.save(checkpoint, tmp_path / "latest.pt")
    seen = []
    monkeypatch.setattr(evaluate, "play_episodes", lambda *args, sample: seen.append(sample) or [Finished(0, 1, {"return": 0.0})])
    monkeypatch.setattr(evaluate, "record_video", lambda agent, path, steps, seed, sample: seen.append(sample) or steps)
    written = tmp_path / "episodes.json"
    command = ["--logdir", str(tmp_path), "--device", "cpu", "--json", str(written), "--video", str(tmp_path / "film.gif"), *flags]
    assert evaluate.main(command) == 0
    assert seen == [expected, expected] and json.loads(written.read_text())["sample"] is expected


def test_a_dream_follows_the_actions_from_the_last_look(trained, monkeypatch):
    monkeypatch.setattr(film, "DREAM", 8)
    model = load_agent(trained.logdir, "cpu")._wm
    dynamics = model.dynamics
    monkeypatch.setattr(dynamics, "imagine_with_action", functools.partial(dynamics.imagine_with_action, sample=False))
    num_actions = trained.agent.codec.size
    with torch.no_grad():
        post = {key: value[None] for key, value in dynamics.initial(21).items()}
        post["deter"] = torch.randn_like(post["deter"])
        data = {"action": np.eye(num_actions, dtype=np.float32)[np.random.default_rng(0).integers(num_actions, size=(1, 21))]}
        dreams = film.dream_along(model, data, post)
        for start, end in ((0, 8), (8, 16), (16, 21)):
            state = {key: value[:, start] for key, value in post.items()}
            torch.testing.assert_close({key: value[:, start] for key, value in dreams.items()}, state)
            for step in range(start + 1, end):  # what was done at a step is stored with the next one
                state = dynamics.img_step(state, torch.as_tensor(data["action"][:, step]), sample=False)
                torch.testing.assert_close(dreams["deter"][:, step], state["deter"])


def test_the_command_prints_returns_and_writes_every_episode_and_a_video(trained, tmp_path, capsys):
    video, numbers = tmp_path / "videos" / "out.gif", tmp_path / "out.json"
    flags = ["--logdir", str(trained.logdir), "--episodes", "3", "--device", "cpu", "--json", str(numbers)]
    assert evaluate.main([*flags, "--video", str(video), "--video_steps", "12"]) == 0
    printed, written = capsys.readouterr().out, json.loads(numbers.read_text())
    returns = [episode["return"] for episode in written["episodes"]]
    assert len(returns) == 3 and written["summary"]["return"]["mean"] == pytest.approx(np.mean(returns), abs=1e-3)
    assert f"{trained.config.task} at frame {trained.step:,}, 3 episodes" in printed and "return" in printed and str(video) in printed
    assert "95%" not in printed and written["summary"]["return"]["low"] is written["summary"]["return"]["high"] is None  # of three
    with Image.open(video) as frames:
        assert frames.n_frames == 12 and frames.width > 200
    assert evaluate.main(flags) == 0
    assert json.loads(numbers.read_text())["episodes"] == written["episodes"]


def test_the_score_of_a_suite_is_printed_and_written_too(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(EnvBatch, "scores", lambda self, episodes: {"score": float(len(episodes))})
    numbers = tmp_path / "out.json"
    assert evaluate.main(["--logdir", str(trained.logdir), "--episodes", "2", "--device", "cpu", "--json", str(numbers)]) == 0
    assert "score" in capsys.readouterr().out
    assert json.loads(numbers.read_text())["scores"] == {"score": 2.0}


def test_a_video_has_a_column_for_each_view():
    rng = np.random.default_rng(0)
    views = {title: {"image": rng.random((4, 64, 48, channels))} for title, channels in (("seen", 3), ("reconstruction", 3), ("dream", 3))}
    frames = np.stack(list(film.image_frames(views, ["image"])))
    scale, band = 3, film.BAND + film.MARGIN
    assert frames.shape == (4, 64 * scale + band, 3 * (48 * scale + film.MARGIN), 3)
    for column, title in enumerate(views):
        tile = frames[:, band:, column * (48 * scale + film.MARGIN) :][:, :, : 48 * scale]
        np.testing.assert_array_equal(tile[:, ::scale, ::scale], views[title]["image"])


def test_two_levels_have_one_more_column_which_the_top_level_alone_has_seen():
    obs_space = spaces.Dict(image=spaces.Box(0, 255, (16, 16, 3), np.uint8))
    rng = np.random.default_rng(0)
    data = {
        "image": rng.integers(256, size=(1, 5, 16, 16, 3), dtype=np.uint8), "action": np.zeros((1, 5, 2), np.float32),
        "reward": np.zeros((1, 5), np.float32), "is_first": np.arange(5)[None] == 0, "is_terminal": np.zeros((1, 5), bool),
    }  # fmt: skip
    for presets, columns in (([], 3), (["hdreamer"], 4)):
        config = dreamer.tools.load_config(["debug", *presets], {"task": "gym_CartPole-v1", "size": [16, 16], "device": "cpu"})
        agent = dreamer.Dreamer(obs_space, spaces.Discrete(2), config)
        assert film.film(agent._wm, data).shape[2] == columns * (film.SIDE + film.MARGIN)


def test_steps_of_a_short_film_are_counted_in_whole_numbers(monkeypatch):
    figures = []
    monkeypatch.setattr(film, "Figure", lambda *args, **kwargs: figures.append(Figure(*args, **kwargs)) or figures[-1])
    views = {title: {"vector": np.zeros((3, 2))} for title in ("seen", "reconstruction", "dream")}
    assert len(list(film.number_frames(views))) == 3
    assert [label.get_text() for label in figures[0].axes[-1].get_xticklabels()] == ["0", "1", "2"]


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--logdir", "missing"], "there is no checkpoint"),
        (["--logdir", ".", "--episodes", "0", "--json", "out.json"], "--json writes the episodes"),
        (["--logdir", ".", "--video", "out.mp4"], "must end with .gif"),
        (["--logdir", ".", "--json", "."], "cannot be written; give another file"),
        (["--logdir", ".", "--episodes", "-1"], "at least 0"),
        ([], "python evaluate.py RUN"),
        (["a", "--logdir", "b"], "one run"),
        (["", "--episodes", "1"], "one run"),
    ],
)
def test_what_cannot_be_evaluated_is_said(flags, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = evaluate.main(flags)
    except SystemExit as exit:
        code = exit.code
    assert code == 2 and expected in capsys.readouterr().err


def test_ctrl_c_ends_an_evaluation_without_numbers(trained, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "play_episodes", interrupted)
    assert evaluate.main([str(trained.logdir), "--json", str(tmp_path / "out.json")]) == 130
    assert "Stopped. The finished episodes are not reported" in capsys.readouterr().err and not (tmp_path / "out.json").exists()
