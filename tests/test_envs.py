"""Environments: alignment of actions, rewards and flags, spaces, and Atari's settings."""

import contextlib
import copy
import functools
import itertools
import pickle
import random

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import dreamer
import exploration
import tools
from collect import Collector, play_episodes
from envs import make_envs
from envs.gym import ActionRepeat
from envs.spaces import ActionCodec, ObservationCodec, OneHot, describe_space, space_of
from replay import Replay
from storage.episodes import load_episode

pytestmark = pytest.mark.slow


class Counter(gymnasium.Env):
    """Counts its steps; an episode ends truly after `length` steps, or is cut off after `limit`. The reward names the action."""

    observation_space = spaces.Dict(
        {
            "time": spaces.Box(0, 1e6, (1,), np.float32),
            "kind": spaces.Discrete(3),
            "log_steps": spaces.Box(0, 1, (1,), np.float32),
            "log_state_time": spaces.Box(0, 1e6, (1,), np.float32),
            "log_state_room": spaces.Discrete(3),
        }
    )
    action_space = spaces.Discrete(4)

    def __init__(self, length: int = 5, limit: int = 1000):
        self._length, self._limit, self._episode = length, limit, -1

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self._time, self._episode = 0, self._episode + 1
        return self._obs(), {}

    def step(self, action):
        self._time += 1
        return self._obs(), 100.0 + int(action), self._time >= self._length, self._time >= self._limit, {}

    def _obs(self):
        return {
            "time": np.array([1000 * self._episode + self._time], np.float32),
            "kind": self._time % 3,
            "log_steps": np.ones(1, np.float32),
            "log_state_time": np.array([self._time], np.float32),
            "log_state_room": 2,
        }


class Sizes(gymnasium.Env):
    """One observation of a space, for tests of conversion."""

    def __init__(self, space: gymnasium.Space, actions: gymnasium.Space):
        self.observation_space, self.action_space = space, actions

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), (action, self.action_space)
        return self.observation_space.sample(), 0.0, False, False, {}


class Global(Sizes):
    """Draws from the generators of the whole process, as some environments do."""

    def __init__(self):
        super().__init__(spaces.Box(0.0, 1.0, (2,)), spaces.Discrete(2))

    def reset(self, seed=None, options=None):
        return np.array([random.random(), np.random.rand()], np.float32), {}

    def step(self, action):
        return self.reset()[0], 0.0, False, False, {}


gymnasium.register("Global-v0", Global)
gymnasium.register("Counter-v0", Counter)
gymnasium.register("CutCounter-v0", lambda: Counter(length=1000, limit=4))
SPACES = {
    "image": (spaces.Box(0, 255, (30, 20, 3), np.uint8), {"image": (64, 64, 3)}),
    "gray": (spaces.Box(0, 255, (64, 64), np.uint8), {"image": (64, 64, 1)}),
    "vector": (spaces.Box(-1, 1, (7,), np.float64), {"vector": (7,)}),
    "matrix": (spaces.Box(-1, 1, (2, 3), np.float32), {"vector": (6,)}),
    "discrete": (spaces.Discrete(5), {"vector": (5,)}),
    "dict": (
        spaces.Dict(
            {
                "cam": spaces.Box(0, 255, (64, 64, 3), np.uint8),
                "pose": spaces.Box(-1, 1, (3,)),
                "room": spaces.Discrete(4),
                "inner": spaces.Dict({"bits": spaces.MultiBinary(2)}),
            }
        ),
        {"cam": (64, 64, 3), "pose": (3,), "room": (4,), "inner/bits": (2,)},
    ),
    "tuple": (spaces.Tuple([spaces.Discrete(3), spaces.MultiDiscrete([2, 4])]), {"0": (3,), "1": (6,)}),
}
ACTIONS = {
    "discrete": spaces.Discrete(3),
    "shifted": spaces.Discrete(3, start=-1),
    "multi": spaces.MultiDiscrete([3, 2]),
    "binary": spaces.MultiBinary(3),
    "box": spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 10.0]), dtype=np.float64),
    "unbounded": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "shifted multi": spaces.MultiDiscrete([2, 3], start=[5, -1]),
    "integers": spaces.Box(np.array([[-1, 0], [3, 250]]), np.array([[1, 1], [3, 255]]), dtype=np.int16),
}
PAIRS = list(zip(SPACES, itertools.cycle(ACTIONS)))
for space_name, action_name in PAIRS:
    gymnasium.register(f"Sizes-{space_name}-v0", functools.partial(Sizes, SPACES[space_name][0], ACTIONS[action_name]))


def config_for(task: str, **settings) -> tools.Config:
    return tools.load_config(["defaults", "debug"], {"task": task, "device": "cpu", **settings})


def collect(task: str, tmp_path, steps: int, envs: int = 1, **settings) -> tuple[list, list]:
    """Plays random actions; returns the saved episodes and (steps, finished) of every turn."""
    config = config_for(task, envs=envs, **settings)
    batch = make_envs(config, envs, training=True)
    codec = ActionCodec(batch.act_space)
    memory = Replay(batch.obs_space, codec.size, capacity=1000, streams=envs, batch_size=4, batch_length=8)
    collector = Collector(batch, memory, tmp_path, seed=3, training=True)
    policy = exploration.Random(codec, 0)
    turns = [collector.step(policy) for _ in range(steps)]
    collector.close_episodes()
    batch.close()
    return [load_episode(path) for path in sorted(tmp_path.iterdir())], turns


@pytest.mark.parametrize("count", [1, 2])
def test_the_time_limit_of_a_registered_environment_holds(count):
    envs = make_envs(tools.load_config([], {"task": "gym_Pendulum-v1"}), count, training=True)
    with contextlib.closing(envs):
        envs.reset(seed=0)
        for step in range(1, 201):
            envs.send(np.zeros((count, 1), np.float32))
            obs = envs.recv()
            assert (obs["is_last"] == (step == 200)).all() and not obs["is_terminal"].any()


@pytest.mark.parametrize("envs", [1, 3])
@pytest.mark.parametrize("task, terminal, length", [("gym_Counter-v0", True, 5), ("gym_CutCounter-v0", False, 4)])
def test_actions_rewards_and_flags_stay_aligned_over_autoresets(tmp_path, envs, task, terminal, length):
    episodes, turns = collect(task, tmp_path, 26, envs=envs, time_limit=0)
    whole = [episode for episode in episodes if len(episode["reward"]) == length + 1]
    assert len(whole) == envs * (27 // (length + 1))
    for episode in whole:
        np.testing.assert_array_equal(episode["time"][:, 0] % 1000, np.arange(length + 1))
        assert not episode["action"][0].any() and episode["reward"][0] == 0
        np.testing.assert_array_equal(episode["reward"][1:], 100 + episode["action"][1:].argmax(-1))
        np.testing.assert_array_equal(episode["kind"].argmax(-1), np.arange(length + 1) % 3)
        np.testing.assert_array_equal(episode["is_first"], np.arange(length + 1) == 0)
        np.testing.assert_array_equal(episode["is_last"], np.arange(length + 1) == length)
        np.testing.assert_array_equal(episode["is_terminal"], (np.arange(length + 1) == length) & terminal)
    finished = [episode for _, done in turns for episode in done]
    assert {episode.length for episode in finished} == {length} and len(finished) == len(whole)
    assert sorted(episode.sums["return"] for episode in finished) == sorted(episode["reward"].sum() for episode in whole)
    assert {episode.metrics["steps"] for episode in finished} == {length + 1}  # what log_steps adds up to
    # a reset is stored, but is no step
    assert sum(count for count, _ in turns) == sum(len(episode["reward"]) - 1 for episode in episodes)


def test_keys_that_start_with_log_are_logged_but_neither_replayed_nor_learned(tmp_path):
    flags = ["--task", "gym_Counter-v0", "--steps", "200", "--eval_every", "100", "--device", "cpu", "--logdir", str(tmp_path)]
    assert dreamer.main(["--configs", "defaults", "debug", *flags]) == 0
    metrics = (tmp_path / "metrics.jsonl").read_text()
    assert '"episode/steps": 6.0' in metrics and '"eval/steps": 6.0' in metrics and "log_steps" not in metrics
    assert "state_time" not in metrics and "state_room" not in metrics  # of a state a sum says nothing


def test_action_repeat_and_time_limit_count_frames(tmp_path):
    episodes, _ = collect("gym_CutCounter-v0", tmp_path, 9, action_repeat=2, time_limit=0)
    np.testing.assert_array_equal(episodes[0]["time"][:, 0], [0, 2, 4])
    assert all(value in range(200, 208) for value in episodes[0]["reward"][1:])
    limited, _ = collect("gym_Counter-v0", tmp_path / "limited", 9, action_repeat=2, time_limit=2)
    np.testing.assert_array_equal(limited[0]["time"][:, 0], [0, 2])
    assert limited[0]["is_last"][-1] and not limited[0]["is_terminal"][-1]


@pytest.mark.parametrize("name", list(SPACES))
def test_observation_spaces_become_images_and_vectors(name):
    space, expected = SPACES[name]
    codec = ObservationCodec(space, (64, 64))
    assert {key: part.shape for key, part in codec.space.spaces.items()} == expected
    assert codec.space.contains(codec(space.sample()))


def test_only_the_one_hots_of_classes_are_marked_and_stay_so_when_copied_and_stored():
    found = {name: ObservationCodec(space, (64, 64)).space for name, (space, _) in SPACES.items()}
    marked = {key: part.classes for name in ("discrete", "dict", "tuple") for key, part in found[name].items() if isinstance(part, OneHot)}
    assert marked == {"vector": (5,), "room": (4,), "0": (3,), "1": (2, 4)}
    space = found["tuple"]
    for again in (copy.deepcopy(space), pickle.loads(pickle.dumps(space)), space_of(describe_space(space))):
        assert again == space and [part.classes for part in again.values()] == [(3,), (2, 4)]
    numbers = spaces.Box(0.0, 1.0, (6,), np.float32)
    assert OneHot([2, 4]) != numbers and numbers != OneHot([2, 4]) and OneHot([2, 4]) != OneHot([4, 2])


def test_images_are_averaged_when_they_shrink_and_weighted_when_they_turn_gray():
    image = np.zeros((128, 128, 3), np.uint8)
    image[::2, :, 0] = 200
    small = ObservationCodec(spaces.Box(0, 255, image.shape, np.uint8), (64, 64))(image)["image"]
    assert (small[..., 0] == 100).all() and not small[..., 1:].any()
    gray = ObservationCodec(spaces.Box(0, 255, image.shape, np.uint8), (64, 64), grayscale=True)(image)["image"]
    assert gray.shape == (64, 64, 1) and abs(gray.astype(int) - 30).max() <= 1


@pytest.mark.parametrize("space, words", [(spaces.Text(5), "not supported"), (spaces.Dict({"reward": spaces.Discrete(2)}), "reserved")])
def test_observations_that_cannot_be_handled_are_refused(space, words):
    with pytest.raises(ValueError, match=words):
        ObservationCodec(space, (64, 64))


def test_action_vectors_decode_to_the_actions_they_stand_for():
    one_hot = np.eye(3, dtype=np.float32)
    np.testing.assert_array_equal(ActionCodec(ACTIONS["discrete"]).decode(one_hot), [0, 1, 2])
    np.testing.assert_array_equal(ActionCodec(ACTIONS["shifted"]).decode(one_hot), [-1, 0, 1])
    np.testing.assert_array_equal(ActionCodec(ACTIONS["multi"]).decode(np.array([[0, 0, 1, 1, 0.0]])), [[2, 0]])
    box = ActionCodec(ACTIONS["box"]).decode(np.array([[-1.0, -1.0], [0.0, 0.0], [1.0, 3.0]], np.float32))
    np.testing.assert_allclose(box, [[-2.0, 0.0], [0.0, 5.0], [2.0, 10.0]])
    np.testing.assert_allclose(ActionCodec(ACTIONS["unbounded"]).decode(np.array([[-0.5, 1.0]])), [[-0.5, 1.0]])
    np.testing.assert_array_equal(ActionCodec(ACTIONS["shifted multi"]).decode(np.array([[0, 1, 0, 0, 1.0]])), [[6, 1]])
    integers = ActionCodec(ACTIONS["integers"])
    assert integers.parts == {"action": (12, (3, 2, 1, 6))}
    np.testing.assert_array_equal(integers.decode(np.array([[1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0.0]])), [[[-1, 1], [3, 254]]])
    for dtype in (np.int64, np.uint8):  # the first range exceeds the dtype
        limits = np.iinfo(dtype)
        space = spaces.Box(limits.min, limits.max, (2,), dtype)
        if dtype == np.uint8:
            assert ActionCodec(space).layout == (256, 256)
        else:
            with pytest.raises(ValueError, match="more than 256 values"):
                ActionCodec(space)
    for space in (spaces.Text(3), spaces.Dict({"word": spaces.Text(3), "turn": spaces.Discrete(2)})):
        with pytest.raises(ValueError, match="MultiDiscrete"):
            ActionCodec(space)


@pytest.mark.parametrize("name", list(ACTIONS))
def test_random_actions_and_the_agents_belong_to_the_space(name):
    space = ACTIONS[name]
    codec = ActionCodec(space)
    vectors = codec.random(np.random.default_rng(0), 50)
    assert vectors.shape == (50, codec.size)
    assert all(space.contains(action) for action in codec.decode(vectors))
    agent = dreamer.Dreamer(spaces.Dict({"vector": spaces.Box(-1, 1, (2,), np.float32)}), space, config_for("gym_x"))
    actions, _ = agent.act({"vector": np.zeros((5, 2), np.float32), "is_first": np.ones(5, bool)}, training=True)
    assert all(space.contains(action) for action in actions)


@pytest.mark.parametrize("space_name", [pytest.param(space, id=f"{space}-{action}") for space, action in PAIRS])
def test_training_runs_on_every_space(tmp_path, space_name):
    flags = [
        "--task",
        f"gym_Sizes-{space_name}-v0",
        "--steps",
        "80",
        "--prefill",
        "30",
        "--eval_every",
        "40",
        "--time_limit",
        "10",
        "--pretrain",
        "1",
        "--train_ratio",
        "2",
        "--device",
        "cpu",
        "--logdir",
        str(tmp_path),
    ]
    assert dreamer.main(["--configs", "defaults", "debug", "hdreamer", *flags]) == 0
    assert (tmp_path / "latest.pt").exists()


def test_evaluation_shares_episodes_and_repeats_its_seeds():
    config = config_for("gym_CartPole-v1")
    envs = make_envs(config, 3, training=False)
    results = []
    for _ in range(2):
        policy = exploration.Random(ActionCodec(envs.act_space), 0)
        results.append(play_episodes(policy, envs, 7, seed=5))
    envs.close()
    assert sorted(episode.env for episode in results[0]) == [0, 0, 0, 1, 1, 2, 2]
    assert results[0] == results[1]


def test_seeds_of_training_evaluation_and_random_actions_differ():
    training = {seed_of(seed, step) for seed_of in (tools.train_seed, tools.policy_seed) for seed in range(20) for step in (0, 1000, 2000)}
    evaluation = {tools.eval_seed(seed) for seed in range(20)}
    assert len(training | evaluation) == 140 and tools.eval_seed(3) == tools.eval_seed(3)


def atari(count: int = 2, training: bool = True, **settings):
    return make_envs(config_for("atari_pong", **{"time_limit": 108000, **settings}), count, training)


def test_atari_observations_are_colour_images_of_the_size_asked_for():
    envs = atari()
    obs = envs.reset(0)
    assert obs["image"].shape == (2, 64, 64, 3) and obs["image"].dtype == np.uint8 and envs.act_space == spaces.Discrete(6)
    assert len(np.unique(obs["image"].reshape(-1, 3), axis=0)) > 3
    envs.close()
    gray = atari(grayscale=True, size="[32, 48]", actions="all")
    assert gray.reset(0)["image"].shape == (2, 32, 48, 1) and gray.act_space == spaces.Discrete(18)
    gray.close()


def play(envs, turns: int, seed: int = 0) -> list[dict]:
    rng, steps = np.random.default_rng(0), [envs.reset(seed)]
    for _ in range(turns):
        envs.send(rng.integers(envs.act_space.n, size=envs.count))
        steps.append(envs.recv())
    return steps


def test_environments_that_draw_from_global_generators_follow_the_seed_and_differ():
    drawn = []
    for seed in (1, 1, 9):
        envs = make_envs(config_for("gym_Global-v0"), 3, training=True)
        steps = [envs.reset(seed)["vector"]]
        envs.send(np.zeros(3, int))
        steps.append(envs.recv()["vector"])
        envs.close()
        drawn.append(np.stack(steps))
    assert (drawn[0] == drawn[1]).all() and (drawn[0] != drawn[2]).all()
    assert all(len(np.unique(step[:, number])) == 3 for step in drawn[0] for number in range(2))


def test_atari_is_deterministic_for_a_seed_and_differs_between_environments():
    games = []
    for _ in range(2):
        envs = atari(noops=30)
        games.append(play(envs, 20))
        envs.close()
    for a, b in zip(*games):
        np.testing.assert_array_equal(a["image"], b["image"])
    assert any((step["image"][0] != step["image"][1]).any() for step in games[0])


def test_atari_time_limit_truncates_and_the_next_step_begins_anew():
    envs = atari(time_limit=40)
    steps = play(envs, 25)
    last = [t for t, step in enumerate(steps) if step["is_last"][0]]
    assert last[0] == 10 and not steps[10]["is_terminal"].any() and steps[11]["is_first"].all()
    assert (steps[11]["reward"] == 0).all()
    envs.close()


def serve_and_lose(lives: str, training: bool) -> tuple[bool, bool]:
    """Plays Breakout without moving the paddle; tells whether any step was terminal, and whether any was the last."""
    envs = make_envs(config_for("atari_breakout", lives=lives, time_limit=108000), 1, training)
    steps = [envs.reset(0)]
    for t in range(120):
        envs.send(np.array([1 if t % 10 == 0 else 0]))  # 1 serves the ball
        steps.append(envs.recv())
    envs.close()
    return any(step["is_terminal"][0] for step in steps), any(step["is_last"][0] for step in steps)


@pytest.mark.parametrize("lives, terminal, last", [("unused", False, False), ("discount", True, False), ("reset", True, True)])
def test_a_lost_life_means_what_the_setting_says(lives, terminal, last):
    assert serve_and_lose(lives, training=True) == (terminal, last)


def test_evaluation_ignores_lost_lives():
    assert serve_and_lose("reset", training=True)[1] and not serve_and_lose("reset", training=False)[1]


@pytest.mark.parametrize("task, words", [("atari_pog", "atari_pong"), ("gym_NoSuchThing-v0", "NoSuchThing")])
def test_unknown_environments_are_named(task, words):
    with pytest.raises(ValueError, match=words):
        make_envs(config_for(task), 1, training=True)


def test_wrong_atari_settings_are_refused():
    with pytest.raises(ValueError, match="unused, discount, reset"):
        atari(lives="ignored")


def test_a_repeated_action_adds_up_rewards_and_logged_values_until_the_episode_ends():
    env = ActionRepeat(Counter(length=5), 3)
    env.reset()
    for time, steps in ((3, 3.0), (5, 2.0)):
        obs, reward, ended, _, _ = env.step(2)
        assert (obs["time"][0], obs["log_steps"][0], reward, ended) == (time, steps, 102.0 * steps, time == 5)
        assert obs["log_state_time"] == time and obs["log_state_room"] == 2
