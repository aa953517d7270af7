"""Actions of strangers' environments: bounds that mean nothing, numbers of any dtype and shape, and what is refused."""

import numpy as np
import pytest
from gymnasium import spaces

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
