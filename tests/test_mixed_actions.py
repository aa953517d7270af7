"""Dict action spaces: discrete and continuous actions at once, in an environment with observations of every kind."""

import contextlib
import json

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import dreamer
import evaluate
import exploration
import latent_report
import record
import tools
from collect import Collector
from dreamer import Dreamer, load_agent
from envs import make_envs
from envs.spaces import ActionCodec, OneHot
from replay import Replay
from storage.episodes import load_episode
from training import offline


class Mixed(gymnasium.Env):
    """A dial that is turned. The reward names the action: 1 for turn, 10 for each grip, the force in thousandths."""

    observation_space = spaces.Dict(
        {
            "image": spaces.Box(0, 255, (16, 16, 3), np.uint8),
            "dial": spaces.Discrete(4),
            "clock": spaces.MultiDiscrete([2, 3]),
            "pose": spaces.Box(-1.0, 1.0, (2,)),
        }
    )
    action_space = spaces.Dict(
        {
            "turn": spaces.Discrete(3, start=-1),
            "arm": spaces.Dict({"grip": spaces.MultiBinary(2), "force": spaces.Box(np.float32([-2.0, 0.0]), np.float32([2.0, 10.0]))}),
        }
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._dial, self._time = 0, 0
        return self._observe(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self._dial, self._time = (self._dial + action["turn"]) % 4, self._time + 1
        return self._observe(), reward_of(action), self._time == 10, False, {}

    def _observe(self):
        image = np.full((16, 16, 3), 60 * self._dial, np.uint8)
        return {"image": image, "dial": self._dial, "clock": [self._time % 2, self._time % 3], "pose": np.float32([self._dial / 4, 1.0])}


def reward_of(action: dict) -> float:
    return float(action["turn"] + 10 * action["arm"]["grip"].sum() + action["arm"]["force"].sum() / 1000)


gymnasium.register("Mixed-v0", Mixed)
TASK = {"task": "gym_Mixed-v0", "device": "cpu", "size": [32, 32]}
FLAGS = [word for name, value in {**TASK, "size": "32 32"}.items() for word in (f"--{name}", *value.split())]
FLAGS += ["--steps", "150", "--eval_every", "100", "--train_ratio", "2"]


def config_for(*presets: str, **settings) -> tools.Config:
    return tools.load_config(["defaults", "debug", *presets], {**TASK, **settings})


def test_the_parts_of_an_action_vector_are_sorted_by_name():
    codec = ActionCodec(Mixed.action_space)
    assert codec.parts == {"arm/force": (2, None), "arm/grip": (4, (2, 2)), "turn": (3, (3,))}
    assert list(codec.parts) == ["arm/force", "arm/grip", "turn"]
    assert codec.size == 9 and codec.layout == (None, None, 2, 2, 3)


def test_an_action_vector_decodes_to_the_dict_it_stands_for():
    vectors = np.array([[-1.0, 1.0, 1, 0, 0, 1, 0, 0, 1], [3.0, 0.0, 0, 1, 0, 1, 1, 0, 0]], np.float32)
    first, second = ActionCodec(Mixed.action_space).decode(vectors)
    assert first["turn"] == 1 and first["arm"]["force"].tolist() == [-2.0, 10.0] and first["arm"]["grip"].tolist() == [0, 1]
    assert second["turn"] == -1 and second["arm"]["force"].tolist() == [2.0, 5.0] and second["arm"]["grip"].tolist() == [1, 1]
    pair = ActionCodec(spaces.Tuple([spaces.Discrete(2), spaces.Box(0.0, 4.0, (1,))]))
    assert list(pair.parts) == ["0", "1"] and pair.decode(np.array([[0, 1, 0.5]])) == [(1, 3.0)]


def test_random_actions_belong_to_the_space_and_are_as_likely_each():
    codec = ActionCodec(Mixed.action_space)
    vectors = codec.random(np.random.default_rng(0), 4000)
    assert vectors.dtype == np.float32 and all(Mixed.action_space.contains(action) for action in codec.decode(vectors[:100]))
    np.testing.assert_allclose(vectors.mean(0), [0, 0, 1 / 2, 1 / 2, 1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3], atol=0.03)


@pytest.mark.parametrize(
    "parts",
    [{"a.b": spaces.Discrete(2)}, {"": spaces.Discrete(2)}, {}, {"a/b": spaces.Discrete(2), "a": spaces.Dict({"b": spaces.Discrete(3)})}],
    ids=str,
)
def test_action_spaces_whose_parts_cannot_be_named_are_refused(parts):
    with pytest.raises(ValueError, match="rename them in a wrapper"):
        ActionCodec(spaces.Dict(parts))


def test_workers_take_dict_actions_and_episodes_hold_the_vectors_that_were_played(tmp_path):
    with contextlib.closing(make_envs(config_for(envs=2), 2, training=True)) as envs:
        assert [envs.obs_space[key] for key in ("dial", "clock")] == [OneHot([4]), OneHot([2, 3])]
        codec = ActionCodec(envs.act_space)
        memory = Replay(envs.obs_space, codec.size, capacity=100, streams=2, batch_size=2, batch_length=8)
        collector, policy = Collector(envs, memory, tmp_path, seed=0, training=True), exploration.Random(codec, 0)
        for _ in range(24):
            collector.step(policy)
    episodes = [load_episode(path) for path in tmp_path.iterdir()]
    assert len(episodes) == 4
    for episode in episodes:
        assert episode["action"].shape == (11, 9) and not episode["action"][0].any()
        actions = codec.decode(episode["action"][1:])
        np.testing.assert_allclose(episode["reward"][1:], [reward_of(action) for action in actions], rtol=1e-5)
        dial = np.cumsum([0] + [action["turn"] for action in actions]) % 4
        np.testing.assert_array_equal(episode["dial"], np.eye(4)[dial])
        np.testing.assert_array_equal(episode["is_terminal"], np.arange(11) == 10)


def test_an_agent_acts_in_a_dict_action_space():
    with contextlib.closing(make_envs(config_for(), 1, training=True)) as envs:
        agent, first = Dreamer(envs.obs_space, envs.act_space, config_for()), envs.reset(0)
    for sample in (True, False):
        actions, state = agent.act(first, training=sample)
        assert len(actions) == 1 and Mixed.action_space.contains(actions[0]) and state["action"].shape == (1, 9)
        assert np.isin(state["action"][:, 2:], (0, 1)).all() and state["action"][:, 2:].sum() == 3
    single, _ = agent.act({key: first[key][0] for key in envs.obs_space.spaces})
    assert Mixed.action_space.contains(single)
    agent.act_in(spaces.Dict({**Mixed.action_space.spaces, "turn": spaces.Discrete(3)}))  # the same vectors
    with pytest.raises(ValueError, match="environment of the task"):
        agent.act_in(spaces.Dict({**Mixed.action_space.spaces, "turn": spaces.Discrete(4)}))


def test_recorded_actions_with_both_parts_need_the_environment(tmp_path):
    assert record.main([*FLAGS[:7], "--episodes", "3", "--out", str(tmp_path)]) == 0
    config = config_for(offline_traindir=str(tmp_path))
    with contextlib.closing(make_envs(config, 1, training=False)) as envs:
        recording = offline.survey("offline_traindir", str(tmp_path), (envs.obs_space, envs.act_space), config.task, config)
    assert recording.act_space == Mixed.action_space and recording.obs_space == envs.obs_space
    with pytest.raises(ValueError, match="discrete and continuous parts.*let an environment of the task tell"):
        offline.survey("offline_traindir", str(tmp_path), None, "", config)
    wrong = spaces.Dict({"force": spaces.Box(-1.0, 1.0, (1,)), "turn": spaces.Discrete(8)})
    with pytest.raises(ValueError, match="action is not one-hot"):
        offline.survey("offline_traindir", str(tmp_path), (envs.obs_space, wrong), config.task, config)


@pytest.mark.slow
@pytest.mark.parametrize("presets", [[], ["dreamerv3_2025", "size1m", "hdreamer_split"]], ids=["2023", "2025 in two levels"])
def test_an_agent_learns_resumes_and_is_evaluated_with_dict_actions(presets, tmp_path):
    flags = [*FLAGS, "--logdir", str(tmp_path)]
    assert dreamer.main(["--configs", "defaults", *presets, "debug", *flags]) == 0
    assert dreamer.main(["--logdir", str(tmp_path), "--steps", "180", "--device", "cpu"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(value) for row in rows for value in row.values())
    assert {"train/actor_loss", "eval/return"} <= {key for row in rows for key in row}
    agent = load_agent(tmp_path, "cpu")
    assert agent.act_space == Mixed.action_space and agent.obs_space["clock"] == OneHot([2, 3])
    video = tmp_path / "film.gif"
    assert evaluate.main([str(tmp_path), "--episodes", "2", "--device", "cpu", "--video", str(video)]) == 0 and video.exists()
    assert latent_report.main([str(tmp_path), "--envs", "4", "--steps", "400", "--device", "cpu"]) == 0
    out = tmp_path / "recorded"
    assert record.main([str(tmp_path), "--episodes", "2", "--out", str(out), "--device", "cpu"]) == 0
    offline_flags = [*FLAGS[:7], "--offline_traindir", str(out), "--steps", "2", "--eval_every", "2", "--logdir", str(tmp_path / "offline")]
    assert dreamer.main(["--configs", "defaults", *presets, "debug", *offline_flags]) == 0
