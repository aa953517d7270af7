"""Values of observations and rewards: numbers that are sound, images that are nearly black, and what an agent is given."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import dreamer
import tools
from envs import check
from envs.spaces import as_batch
from test_observations import pixels

# In the trial of an environment


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "value, sound",
    [
        (np.float16(np.inf), False),
        (np.array([np.nan, 1.0], np.float16), False),
        (np.array([60000.0, -60000.0], np.float16), True),
        (np.int64(-(2**63)), False),
        (np.array([-128, 127], np.int8), True),
        (np.uint64(2**63), False),
        (np.array([1e12, -1e12], np.float32), True),
        (np.float32(1.01e12), False),
        (-1.01e12, False),
        (10**400, False),
        (np.zeros(0), True),
        (True, True),
    ],
    ids=str,
)
def test_numbers_are_sound_by_their_value_and_not_by_the_range_of_their_dtype(value, sound):
    assert check.is_sound(value) is sound


class Image(gymnasium.Env):
    """An image, alone or beside another one, of values that are 0 or `one`."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: spaces.Box, one: float, key: str = ""):
        self._single, self._one, self._key = space, one, key
        self.observation_space = spaces.Dict({key: space, "map": pixels(8, 8, 3)}) if key else space

    def reset(self, *, seed=None, options=None):
        self._time = 0
        return self._observe(), {}

    def step(self, action):
        self._time += 1
        return self._observe(), 0.0, False, False, {}

    def _observe(self):
        value = np.full(self._single.shape, self._one * (self._time % 2), self._single.dtype)
        return {self._key: value, "map": np.full((8, 8, 3), 2, np.uint8)} if self._key else value


@pytest.mark.parametrize(
    "space, one, key, dark",
    [
        (pixels(64, 64, 3), 1, "", "observation"),
        (pixels(3, 40, 40, dtype=np.float32), 1.0, "eye", "eye"),
        (pixels(3, 40, 40, dtype=np.float32), 0.25, "eye", "eye"),
        (pixels(64, 64, 3), 2, "", None),
        (pixels(64, 64, 3), 0, "", None),  # always black
        (pixels(64, 64, 3, high=1), 1, "", None),
        (pixels(64, 64, 3), 1, "log_view", None),
        (pixels(5), 1, "", None),  # a vector
    ],
    ids=str,
)
def test_images_of_0_to_1_in_a_space_of_0_to_255_are_warned_of_in_the_trial(space, one, key, dark, capsys):
    trial = check.check(lambda: Image(space, one, key), "Mine-v0")
    assert trial.dark == ({dark} if dark else set()) and not trial.outside
    told = f"values are at most 1, and their bounds are 0 and 255: {dark}; they are nearly black to the agent; give their space the bounds"
    assert (told in capsys.readouterr().err) == bool(dark)


# What an agent is given


@pytest.fixture(scope="module")
def agent() -> dreamer.Dreamer:
    config = tools.load_config(["debug"], {"task": "gym_x", "device": "cpu", "precision": "32"})
    return dreamer.Dreamer(spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Box(-1, 1, (3,))}), spaces.Discrete(4), config)


def seen(count: int, **changes) -> dict:
    return {"a": np.zeros((count, 2), np.float32), "b": np.zeros((count, 3), np.float32), **changes}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"a": np.array([[0, np.nan], [0, 0]])}, "the observation 'a' has NaN or infinite values"),
        ({"b": torch.full((2, 3), torch.inf)}, "the observation 'b' has NaN or infinite values"),
        ({"a": [["0", "1"], ["2", "x"]]}, "the observation 'a' has the dtype <U1; give numbers"),
        ({"a": np.array([[None, 1], [1, 2]])}, "the observation 'a' has the dtype object; give numbers"),
        ({"a": [[0.0, 1.0], [2.0]]}, "the observation 'a' is no array of numbers"),
        ({"a": np.zeros((3, 2))}, "the batches have different sizes: a 3, b 2"),
        ({"is_first": [True]}, r"is_first has the shape \(1,\); give one flag for each of the 2 observations"),
        ({"is_first": np.zeros((2, 2))}, r"is_first has the shape \(2, 2\)"),
        ({"is_first": "no"}, "'is_first' has the dtype <U2; give numbers"),
    ],
    ids=str,
)
def test_what_is_no_batch_of_finite_numbers_is_refused_by_name(agent, changes, words):
    with pytest.raises(ValueError, match=words):
        agent.act(seen(2, **changes))


def test_a_state_of_other_observations_or_of_nothing_is_refused(agent):
    _, state = agent.act(seen(3))
    lacking = [{key: value for key, value in state.items() if key != left_out} for left_out in ("action", "deter")]
    for wrong in ({}, *lacking, state["deter"], (state,), {**state, "action": torch.zeros(3, 5)}):
        with pytest.raises(ValueError, match="the state is none of this agent; give what its last call of act returned, or None"):
            agent.act(seen(3), wrong)
    with pytest.raises(ValueError, match="the state is of 3 observations, and the batch has 2"):
        agent.act(seen(2), state)
    with pytest.raises(ValueError, match="the state is of 3 observations, and the batch has 1"):
        agent.act({key: value[0] for key, value in seen(1).items()}, state)
    agent.act(seen(3), state)


def test_names_that_are_not_observed_may_hold_anything():
    obs, single = as_batch({"a": [1.0, 2.0], "info": [[1], [2, 3]], "is_first": True, "name": None}, {"a": (2,)})
    assert single and obs.keys() == {"a", "is_first"} and obs["is_first"].shape == (1,)


def test_latents_are_drawn_whether_actions_are_or_not(agent):
    states = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        states.append(agent.act(seen(20))[1])
    names = [name for name in states[0] if name.startswith("stoch")]
    assert names and any((states[0][name] != states[1][name]).any() for name in names)
    torch.testing.assert_close(states[0], states[2], rtol=0, atol=0)
