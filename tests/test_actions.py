"""Actions of strangers' environments: bounds that mean nothing, numbers of any dtype and shape, and what is refused."""

import tracemalloc

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from envs.gym import ActionRepeat, DictObservation
from envs.spaces import ActionCodec

MOST = np.finfo(np.float32).max


@pytest.mark.parametrize(
    "low, high, dtype, expected",
    [
        (-MOST, MOST, np.float32, [-1, -0.5, 1]),
        (-np.finfo(np.float64).max, np.finfo(np.float64).max, np.float64, [-1, -0.5, 1]),
        (-np.finfo(np.float16).max, np.finfo(np.float16).max, np.float16, [-1, -0.5, 1]),
        (-1e38, 1e38, np.float32, [-1, -0.5, 1]),
        (-1e12, 1e12, np.float32, [-1, -0.5, 1]),
        (0.0, MOST, np.float32, [0, 0, 1]),
        (-MOST, 0.5, np.float32, [-1, -0.5, 0.5]),
        (-np.inf, MOST, np.float32, [-1, -0.5, 1]),
        (0.0, np.inf, np.float64, [0, 0, 1]),
        (-1e11, 1e11, np.float32, [-1e11, -5e10, 1e11]),
        (-40000, 40000, np.float16, [-40000, -20000, 40000]),
        (0.0, 4.0, np.float32, [0, 1, 4]),
    ],
)
def test_bounds_that_no_environment_can_mean_count_as_none(low, high, dtype, expected):
    space = spaces.Box(low, high, (3,), dtype)
    with np.errstate(all="raise"):
        (action,) = ActionCodec(space).decode(np.array([[-1.0, -0.5, 1.0]], np.float32))
    assert action.dtype == dtype and space.contains(action)
    np.testing.assert_allclose(action, np.array(expected, dtype), rtol=1e-6)


def test_each_number_of_a_box_has_its_own_bounds():
    space = spaces.Box(np.float32([-MOST, -2.0, 0.0]), np.float32([MOST, 2.0, np.inf]))
    assert ActionCodec(space).decode(np.full((1, 3), 0.5, np.float32)).tolist() == [[0.5, 1.0, 0.5]]


def test_rounding_does_not_take_an_action_beyond_its_bounds():
    rng = np.random.default_rng(0)
    low, width = rng.normal(size=1000).astype(np.float32), rng.exponential(size=1000).astype(np.float32)
    space = spaces.Box(low, low + width)
    codec = ActionCodec(space)
    assert all(space.contains(codec.decode(np.full((1, 1000), value, np.float32))[0]) for value in (-1.0, 0.3, 1.0))


@pytest.mark.parametrize(
    "space, words",
    [
        (spaces.Box(5.0, np.inf, (1,)), "without two bounds that must be beyond -1 or 1.*give it two bounds below 1e"),
        (spaces.Box(-MOST, -2.0, (1,)), "without two bounds"),
        (spaces.Box(-1.0, 1.0, (0,)), "has no numbers"),
        (spaces.Box(0, 5, (0,), np.int32), "has no numbers"),
        (spaces.MultiDiscrete(np.zeros(0, int)), "has no numbers"),
    ],
    ids=str,
)
def test_actions_without_a_choice_are_refused(space, words):
    with pytest.raises(ValueError, match=words):
        ActionCodec(space)


@pytest.mark.parametrize(
    "space, vector, expected",
    [
        (spaces.Box(0, 1, (2,), bool), [0, 1, 1, 0], [True, False]),
        (spaces.MultiBinary([2, 1]), [0, 1, 1, 0], [[1], [0]]),
        (spaces.MultiDiscrete([[2, 1], [1, 2]], start=[[3, 0], [0, -1]]), [0, 1, 1, 1, 1, 0], [[4, 0], [0, -1]]),
        (spaces.Box(-1, 1, (1,), np.int8), [0, 0, 1], [1]),
        (spaces.Box(-1.0, 3.0, (), np.float32), [0.5], 2.0),
    ],
    ids=str,
)
def test_discrete_and_scalar_actions_have_the_shape_and_dtype_of_their_space(space, vector, expected):
    action = ActionCodec(space).decode(np.array([vector], np.float32))[0]
    assert action.dtype == space.dtype and action.tolist() == expected and space.contains(np.asarray(action))


def test_random_actions_of_many_classes_take_the_memory_of_one_vector():
    codec = ActionCodec(spaces.Discrete(100_000))
    tracemalloc.start()
    vectors = codec.random(np.random.default_rng(0), 3)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert vectors.shape == (3, 100_000) and vectors.sum(-1).tolist() == [1, 1, 1] and most < 3 * 2**20
    assert vectors.argmax(-1).tolist() == np.random.default_rng(0).integers(100_000, size=3).tolist()


def test_random_actions_are_those_that_a_seed_has_always_given():
    space = spaces.Tuple((spaces.MultiDiscrete([3, 2]), spaces.Box(-1, 1, (1,)), spaces.Discrete(4)))
    vectors, rng = ActionCodec(space).random(np.random.default_rng(7), 5), np.random.default_rng(7)
    first, second = rng.integers(3, size=5), rng.integers(2, size=5)
    numbers, last = rng.uniform(-1.0, 1.0, 5).astype(np.float32), rng.integers(4, size=5)
    assert vectors.dtype == np.float32 and vectors.shape == (5, 10)
    for row, vector in enumerate(vectors):
        expected = np.zeros(10, np.float32)
        expected[[first[row], 3 + second[row], 6 + last[row]]], expected[5] = 1, numbers[row]
        np.testing.assert_array_equal(vector, expected)


class Scores(gymnasium.Env):
    """Logs numbers of small dtypes, whose sums they do not hold, and a picture."""

    observation_space = spaces.Dict(
        {
            "place": spaces.Box(0, 200, (1,), np.uint8),
            "log_points": spaces.Box(0, 200, (2,), np.uint8),
            "log_half": spaces.Box(0, 60000, (), np.float16),
            "log_hit": spaces.Box(0, 1, (1,), bool),
            "log_view": spaces.Box(0, 255, (8, 8, 3), np.uint8),
            "log_state_room": spaces.Box(0, 200, (1,), np.uint8),
        }
    )
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return self.step(0)[0], {}

    def step(self, action):
        one = np.full(1, 200, np.uint8)
        logs = {"log_points": np.array([200, 100], np.uint8), "log_half": np.float16(60000), "log_hit": np.array([True])}
        return {"place": one, **logs, "log_view": np.full((8, 8, 3), 200, np.uint8), "log_state_room": one}, 1.0, False, False, {}


def test_sums_over_repeated_actions_exceed_the_dtype_of_their_parts():
    env = DictObservation(ActionRepeat(Scores(), 3), (8, 8), False)
    assert env.observation_space == DictObservation(Scores(), (8, 8), False).observation_space  # what is stored stays
    for obs, count in ((env.reset()[0], 1), (env.step(0)[0], 3)):
        found = {key: obs[key].tolist() for key in ("place", "log_points", "log_half", "log_hit", "log_state_room")}
        sums = {"log_points": [200 * count, 100 * count], "log_half": [60000 * count], "log_hit": [count]}
        assert found == {"place": [200], **sums, "log_state_room": [200]}
        assert (obs["log_view"] == 200).all()  # a picture is no sum
