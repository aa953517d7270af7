"""What surrounds a dream: actions and their names, recorded moments, sessions, the world beside it, films and the command."""

import io
import multiprocessing
import pathlib
import threading
import time

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image

import dream as command
import tools
from dreamer import Dreamer
from dreams import KINDS, VECTOR, episode, make_agent, random_actions
from envs import make_envs
from play import clip, controls, moments, session
from play.session import Session, unpack
from play.world import World, pictured
from storage.episodes import save_episode


@pytest.fixture(params=KINDS)
def agent(request) -> Dreamer:
    return make_agent(request.param)


@pytest.fixture
def two_levels() -> Dreamer:
    return make_agent("two levels")


# Actions


@pytest.mark.parametrize("kind", KINDS)
def test_actions_become_vectors_and_back(kind):
    agent = make_agent(kind)
    layout = agent.codec.layout
    for vector in random_actions(agent, 5):
        entries = controls.to_entries(layout, vector)
        np.testing.assert_allclose(controls.to_vector(layout, entries), vector, atol=1e-4)
    offered = controls.controls(agent.codec, agent._config)
    assert len(offered) == len(layout)
    assert [len(choice["classes"]) if "classes" in choice else None for choice in offered] == list(layout)


@pytest.mark.parametrize(
    "entries", [None, [], [0], [3, 0, 0, 0, 0], [0, 0, 0, "1", 0], [0, 0, 0, float("nan"), 0], [True, 0, 0, 0, 0], [0.0] * 5]
)
def test_entries_that_are_no_action_are_refused(entries):
    with pytest.raises(ValueError, match="an action has 5 entries|is no"):
        controls.to_vector((3, 2, 2, None, None), entries)


def test_numbers_beyond_the_bounds_are_bounded():
    assert controls.to_vector((None, 2), [-7, 1]).tolist() == [-1.0, 0.0, 1.0]


def test_actions_have_the_names_and_keys_of_their_task():
    config = tools.load_config(overrides={"task": "atari_road_runner"})
    names = controls.class_names(config, 18)
    assert names[:4] == ["noop", "fire", "up", "right"] and "up right fire" in names and controls.class_names(config, 17) is None
    assert controls.keys_of("up right fire") == ["ArrowUp", "ArrowRight", "Space"] and controls.keys_of("noop") == []
    cartpole = tools.load_config(overrides={"task": "gym_CartPole-v1"})
    (choice,) = controls.controls(controls.ActionCodec(spaces.Discrete(2)), cartpole)
    assert [entry["name"] for entry in choice["classes"]] == ["left", "right"] and choice["idle"] is None


def test_named_actions_of_gymnasium_are_as_many_as_there_are():
    for name, classes in controls.NAMES.items():
        ids = [spec for spec in gymnasium.registry if spec.startswith(f"{name}-v")]
        assert ids, name
        try:
            env = gymnasium.make(max(ids))
        except (gymnasium.error.DependencyNotInstalled, gymnasium.error.DeprecatedEnv):
            continue  # Box2D is not among the requirements
        assert env.action_space.n == len(classes), name


# Moments


def test_moments_are_posteriors_of_recorded_episodes(agent, tmp_path):
    for number in range(3):
        save_episode(tmp_path / "train_eps", episode(agent, 10 + number, number))
    (tmp_path / "train_eps" / "20990101T000000-damaged-9.npz").write_bytes(b"PK")
    found = moments.find(agent, tmp_path, (), 0)
    assert 0 < len(found) <= moments.COUNT and all(moment.name.startswith("episode ") for moment in found)
    data = episode(agent, 12)
    (moment,) = moments.from_episode(agent, data, "recorded", 1)
    assert moment.name == "recorded, step 6"
    assert (moment.picture is None) == ("image" not in data)
    if moment.picture is not None:
        np.testing.assert_array_equal(moment.picture, data["image"][6])
    with torch.no_grad():
        torch.manual_seed(6)
        part = agent._wm.preprocess({key: value[None, :7] for key, value in data.items()})
        post, _ = agent._wm.dynamics.observe(agent._wm.encoder(part), part["action"], part["is_first"])
    for key in moment.state:
        torch.testing.assert_close(moment.state[key], post[key][:, 6])


def test_moments_may_come_along_with_an_agent(two_levels, tmp_path):
    path = save_episode(tmp_path / "elsewhere", episode(two_levels, 40))
    path.rename(tmp_path / moments.FILE)
    found = moments.find(two_levels, tmp_path, (), 0)
    assert len(found) == moments.COUNT and {moment.name.partition(",")[0] for moment in found} == {"recorded"}


def test_episodes_of_another_agent_are_no_moments(tmp_path, capsys):
    save_episode(tmp_path / "train_eps", episode(make_agent("2025 flat"), 12))
    assert moments.find(make_agent("flat"), tmp_path, (), 0) == []
    assert "no recorded moments: gymnasium cannot make" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage",
    [
        {"is_first": np.array(["a"] * 20)},
        {"vector": np.full((20, 3), np.datetime64("2020"))},
        {"vector": np.full((20, 3), 1e300)},
        {"vector": np.full((20, 3), 1j)},
        {"image": np.zeros((20, 32, 32, 3), np.float32)},
        {"action": np.zeros((20, 99), np.float32)},
        {"reward": np.zeros(7)},
    ],
)
def test_a_damaged_recording_gives_no_moments(two_levels, tmp_path, damage):
    np.savez(tmp_path / moments.FILE, **{**episode(two_levels, 20), **damage})
    assert moments.find(two_levels, tmp_path, (), 0) == []


# Sessions


def test_a_session_shows_what_events_have_done(two_levels):
    found = moments.from_episode(two_levels, episode(two_levels, 30), "recorded", 4)
    playing = Session(two_levels, found)
    about, arrays = unpack(playing.do({}))
    assert about["steps"] == 0 and about["start"] == 0 and about["action"] is None and "world" not in about
    shapes = {name: array.shape for name, array in arrays.items()}
    pictures = {"dream/image": (32, 32, 3), "dream/vector": (3,), "mean/image": (32, 32, 3), "mean/vector": (3,)}
    grids = {"probs/top": (4, 4), "code/top": (4,), "probs/bottom": (4, 4), "code/bottom": (4,)}
    assert shapes == {**pictures, **grids}
    assert arrays["code/top"].tolist() == found[0].state["stoch_top"][0].argmax(-1).tolist()
    about, arrays = unpack(playing.do({"events": [["step", [2, 1, 0, 0.5, -1]], ["hold", "top", True], ["set_class", "top", 1, 3]]}))
    assert about["steps"] == 1 and about["held"] == ["top"] and about["action"] == [2, 1, 0, 0.5, -1.0] and arrays["code/top"][1] == 3
    view = playing.dream.view()
    assert about["value"] == pytest.approx(view.value, abs=1e-6)
    np.testing.assert_array_equal(arrays["dream/image"], np.rint(255 * view.observed["image"][0].clip(0, 1)))
    np.testing.assert_array_equal(arrays["probs/bottom"], np.rint(255 * playing.dream.prior("bottom")[0]))
    about, arrays = unpack(playing.do({"events": [["take", "bottom", 3], ["step", None]], "mean": False, "grids": False}))
    assert about["steps"] == 2 and set(arrays) == {"dream/image", "dream/vector"}
    assert unpack(playing.do({"events": [["restart", 2]]}))[0]["start"] == 2 and playing.dream.held == set()


@pytest.mark.parametrize(
    "request_",
    [
        {"events": 3}, {"events": [["step", None]] * 21}, {"events": ["step"]}, {"events": [[]]}, {"events": [["jump"]]}, {"events": [[3]]},
        {"events": [["step"]]}, {"events": [["step", [0], 1]]}, {"events": [["step", [1]]]}, {"events": [["restart", 9]]},
        {"events": [["restart", "0"]]}, {"events": [["take", "top", -1]]}, {"events": [["hold", ["top"], True]]}, {"events": [["wake"]]},
        {"events": [["hold", "flat", True]]}, {"events": [["restore", "x"]]}, {"events": [["redraw"]]}, {"events": [["close"]]},
        {"events": [["set_class", "top", "0", 0]]}, {"events": [["do", {}]]},
    ],
)  # fmt: skip
def test_requests_that_mean_nothing_are_refused(two_levels, request_):
    with pytest.raises(ValueError):
        Session(two_levels, []).do(request_)


def test_without_moments_a_dream_begins_with_the_first_step_of_an_episode(agent):
    playing = Session(agent, [])
    first, _ = unpack(playing.do({"events": [["step", None], ["restart", 0]]}))
    assert first["steps"] == 0 and first["start"] == 0 and playing.about()["moments"] == []


def test_a_world_that_cannot_be_built_says_why_in_one_line(two_levels):
    about, _ = unpack(Session(two_levels, []).do({"events": [["restart", session.WORLD]]}))
    assert about["problem"].startswith("gymnasium cannot make the environment") and "\n" not in about["problem"] and "world" not in about


def test_what_was_seen_becomes_a_film(two_levels):
    playing = Session(two_levels, [])
    with pytest.raises(ValueError, match="nothing has happened"):
        playing.gif(15)
    for _ in range(4):
        playing.do({"events": [["step", None]]})
    playing.do({})  # changes nothing, so there is no frame of it
    film = Image.open(io.BytesIO(playing.gif(10)))
    assert film.n_frames == 4 and film.info["duration"] == 100
    assert film.size == (3 * 160 + 4 * clip.GAP, clip.BAND + 160 + clip.GAP + 3 * (clip.CURVE_HEIGHT + clip.GAP))
    with pytest.raises(ValueError, match="fps is 0"):
        playing.gif(0)


def test_the_difference_of_two_views_is_grey_where_they_agree():
    views = {"dream": {"image": np.array([[[200, 10, 0]]], np.uint8)}, "mean": {"image": np.array([[[200, 0, 255]]], np.uint8)}}
    assert clip.difference(views)["image"].tolist() == [[[128, 138, 0]]]


def test_the_flags_of_minatar_games_become_a_board():
    flags = np.zeros((10, 10, 4), np.float32)
    flags[2, 3, 0] = flags[2, 4, 2] = 1.0
    flags[0, 0, 1] = -3.0  # a prediction may be anything
    seen = pictured("minatar_breakout", {"vector": flags.flatten()})
    board = seen.pop("board")
    assert seen == {} and board[2, 3].tolist() == [255, 102, 102] and board[2, 4].tolist() == [102, 255, 255]
    assert board.sum() == board[2, 3:5].sum(dtype=int)
    assert pictured("gym_CartPole-v1", {"vector": flags}) == {"vector": flags}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["gym_CartPole-v1", "atari_pong"])
def test_dream_and_world_take_the_same_actions_side_by_side(task):
    config = tools.load_config(["debug", "hdreamer"], {"task": task, "device": "cpu", "precision": "32", "size": [32, 32]})
    envs = make_envs(config, 1, training=False)
    agent = Dreamer(envs.obs_space, envs.act_space, config)
    playing = Session(agent, [], seed=3)
    about, arrays = unpack(playing.do({"events": [["restart", session.WORLD]]}))
    obs = envs.reset(4)  # the second dream of this session
    shown = "rendered" if task.startswith("gym") else "image"
    assert about["start"] == session.WORLD and about["world"]["steps"] == 0 and arrays[f"world/{shown}"].ndim == 3
    np.testing.assert_array_equal(playing.dream.code("top"), playing._world.state["stoch_top"][0].argmax(-1))
    for step in range(8):
        about, arrays = unpack(playing.do({"events": [["step", [step % 2]]]}))
        envs.send(agent.codec.decode(controls.to_vector(agent.codec.layout, [step % 2])[None]))
        obs = envs.recv()
        key = "vector" if "vector" in obs else "image"
        np.testing.assert_array_equal(arrays[f"world/{key}"], obs[key][0])
        assert about["world"]["reward"] == obs["reward"][0]
    assert about["world"] == {"steps": 8, "return": pytest.approx(about["world"]["return"]), "reward": obs["reward"][0], "ended": False}
    playing.do({"events": [["wake"]]})
    assert torch.equal(playing.dream.state["deter"], playing._world.state["deter"]) and playing.dream.steps == 0
    for _ in range(40):
        playing.do({"events": [["step", [1]]]})
    if task.startswith("gym"):
        assert playing._world.ended and playing._world.steps < 40
    envs.close()
    playing.close()


class Fails(gymnasium.Env):
    """Hangs or raises in a step after those that are tried when it is built."""

    observation_space, action_space = gymnasium.spaces.Box(-9.0, 9.0, (3,)), gymnasium.spaces.Discrete(3)

    def __init__(self, hangs: bool):
        self._hangs = hangs

    def reset(self, seed=None, options=None):
        self._step = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self._step += 1
        if self._step > 40 and self._hangs:
            time.sleep(600)
        elif self._step > 40:
            raise OSError("the cable is loose")
        return np.zeros(3, np.float32), 0.0, False, False, {}


@pytest.fixture
def failing(request, monkeypatch) -> Session:
    """A session beside an environment whose next step fails."""
    monkeypatch.setattr(gymnasium.envs.registration, "registry", gymnasium.registry.copy())
    gymnasium.register("Fails-v0", lambda: Fails(request.param))
    agent = make_agent("flat")
    agent._config.task = "gym_Fails-v0"
    playing = Session(agent, [])
    playing.do({"events": [["restart", session.WORLD]]})
    for _ in range(2):
        about, _ = unpack(playing.do({"events": [["step", [0]]] * 20}))
    assert about["world"]["steps"] == 40
    yield playing
    playing.close()


@pytest.mark.parametrize("failing", [False], indirect=True)
def test_a_world_that_fails_is_left_and_said_once_while_the_dream_goes_on(failing, capsys):
    about, _ = unpack(failing.do({"events": [["step", [0]]]}))
    assert "has failed" in about["problem"] and "world" not in about and about["steps"] == 41
    assert "the cable is loose" in capsys.readouterr().err
    about, _ = unpack(failing.do({"events": [["step", [0]]]}))
    assert about["problem"] == "" and about["steps"] == 42


@pytest.mark.slow
@pytest.mark.parametrize("failing", [True], indirect=True)
def test_a_session_is_closed_while_its_world_hangs(failing):
    step = threading.Thread(target=failing.do, args=({"events": [["step", [0]]]},), daemon=True)
    step.start()
    time.sleep(0.5)
    failing.close()
    step.join(5.0)
    assert not step.is_alive() and not multiprocessing.active_children()


@pytest.mark.slow
def test_a_world_that_takes_other_actions_is_refused():
    config = tools.load_config(["debug"], {"task": "gym_CartPole-v1", "device": "cpu", "precision": "32"})
    agent = Dreamer(spaces.Dict(VECTOR), spaces.Discrete(5), config)
    with pytest.raises(ValueError, match="the agent has learned actions"):
        World(agent, ())


# The command


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys, monkeypatch):
    assert command.main([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("error: there is no checkpoint")
    monkeypatch.setattr("checkpoints.shipped", lambda: [])
    assert command.main([]) == 2
    assert "python dream.py RUN" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        command.main([str(tmp_path), "--port", "70000"])
    assert left.value.code == 2


def test_without_a_name_an_agent_that_comes_with_the_program_is_chosen(monkeypatch):
    monkeypatch.setattr("checkpoints.shipped", lambda: ["cartpole", "road_runner"])
    monkeypatch.setattr("checkpoints.locate", lambda name: pathlib.Path(name))
    assert command.choose(None) == pathlib.Path("pretrained/road_runner") and command.choose("logdir/a") == pathlib.Path("logdir/a")
