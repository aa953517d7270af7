"""Observations of strangers' environments: which spaces are images, what becomes of their values, and what is refused."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs import registration

import dreamer
import evaluate
import tools
from envs import check
from envs.spaces import ActionCodec, ObservationCodec, OneHot, as_batch, describe_space, space_of

MOST = np.finfo(np.float32).max


def pixels(*shape: int, low=0, high=255, dtype=np.uint8) -> spaces.Box:
    return spaces.Box(low, high, shape, dtype)


def randomly(space: spaces.Box) -> np.ndarray:
    rng = np.random.default_rng(0)
    if space.dtype.kind == "f":
        return rng.uniform(space.low, space.high).astype(space.dtype)
    return rng.integers(space.low.astype(int), space.high.astype(int), endpoint=True).astype(space.dtype)


def convert(space: gymnasium.Space, value, size=(64, 64), **settings) -> np.ndarray:
    """What becomes of a single value of a space that is no Dict."""
    codec = ObservationCodec(space, size, **settings)
    (key, converted), *others = codec(value).items()
    assert not others and codec.space[key].contains(converted)
    return converted


# Shapes of images


@pytest.mark.parametrize(
    "shape, size, channels, first",
    [
        ((64, 64, 3), (64, 64), 3, False),
        ((84, 84, 4), (84, 84), 4, False),
        ((21, 16, 3), (21, 16), 3, False),
        ((10, 10, 4), (10, 10), 4, False),
        ((8, 8, 119), (8, 8), 119, False),
        ((3, 64, 64), (64, 64), 3, True),
        ((4, 84, 84), (84, 84), 4, True),
        ((3, 21, 16), (21, 16), 3, True),
        ((1, 9, 9), (9, 9), 1, True),
        ((119, 8, 8), (8, 8), 119, True),
    ],
)
def test_channels_come_last_whether_the_environment_gives_them_first_or_last(shape, size, channels, first):
    space = pixels(*shape)
    value = randomly(space)
    image = convert(space, value, size)
    assert image.shape == (*size, channels)
    for row, column, channel in [(0, 0, 0), (2, 5, channels - 1), (7, 1, channels // 2)]:
        assert image[row, column, channel] == (value[channel, row, column] if first else value[row, column, channel])
    notes = ObservationCodec(spaces.Dict(camera=space), size).notes
    told = f"the observation 'camera', uint8 {shape}, is read as {size[0]}x{size[1]} pixels with {channels} channel"
    assert [note.startswith(told) and note.endswith("(channels first)") for note in notes] == [True] * first


@pytest.mark.parametrize(
    "shape, readings",
    [
        ((3, 64, 3), r"3x64 pixels with 3 channels \(channels last\) or 64x3 pixels with 3 channels \(channels first\)"),
        ((4, 84, 4), r"4x84 pixels with 4 channels \(channels last\) or 84x4 pixels with 4 channels \(channels first\)"),
        ((64, 64, 64), r"64x64 pixels with 64 channels \(channels last\) or 64x64 pixels with 64 channels \(channels first\)"),
        ((7, 6, 15), r"7x6 pixels with 15 channels \(channels last\) or 6x15 pixels with 7 channels \(channels first\)"),
        ((64, 64, 3, 4), r"64 frames of 64x3 pixels with 4 channels \(channels last\) or 64 frames of 3x4 pixels with 64 channels"),
        ((64, 64, 4, 4), "64 frames of 64x4 pixels with 4 channels"),
    ],
)
def test_a_shape_with_two_readings_is_refused_with_both_and_a_way_out(shape, readings):
    with pytest.raises(ValueError, match=rf"the observation 'image' has the shape .*{readings}.*wrappers\.TransformObservation"):
        ObservationCodec(pixels(*shape), (64, 64))
    with pytest.raises(ValueError, match="the observation 'hand/camera' has the shape"):
        ObservationCodec(spaces.Dict(hand=spaces.Dict(camera=pixels(*shape))), (64, 64))
    logged = ObservationCodec(spaces.Dict(log_state_room=pixels(*shape), place=spaces.Discrete(2)), (64, 64))
    assert logged.space["log_state_room"].shape == (np.prod(shape),) and not logged.warnings  # the agent does not see it


@pytest.mark.parametrize(
    "shape, axes", [((4, 16, 16, 3), "FHWC"), ((4, 3, 16, 16), "FCHW"), ((2, 8, 9, 5), "FHWC"), ((1, 3, 9, 8), "FCHW")]
)
def test_stacked_frames_are_one_image_whose_channels_are_those_of_the_frames_in_order(shape, axes):
    space, sizes = pixels(*shape), dict(zip(axes, shape))
    value = randomly(space)
    image = convert(space, value, (sizes["H"], sizes["W"]))
    assert image.shape == (sizes["H"], sizes["W"], sizes["F"] * sizes["C"])
    for frame in range(sizes["F"]):
        for channel in range(sizes["C"]):
            seen = value[frame, :, :, channel] if axes == "FHWC" else value[frame, channel]
            np.testing.assert_array_equal(image[..., frame * sizes["C"] + channel], seen)
    (note,) = ObservationCodec(space, (64, 64)).notes
    assert note.endswith(f"in one image of {sizes['F'] * sizes['C']} channels") or sizes["F"] == 1


def test_grayscale_makes_one_channel_of_each_frame_with_three_and_keeps_other_channels():
    value = np.zeros((4, 16, 16, 3), np.uint8)
    value[:, ..., 0], value[1, ..., 1], value[3, ..., 2] = 100, 100, 200
    for given in (value, value.transpose(0, 3, 1, 2)):
        gray = convert(pixels(*given.shape), given, (16, 16), grayscale=True)
        # 0.299 * 100; also 0.587 * 100; as the first; also 0.114 * 200
        assert gray.shape == (16, 16, 4) and gray[5, 5].tolist() == [30, 89, 30, 53]
    for shape in ((84, 84, 4), (4, 84, 84), (20, 20, 2), (3, 16, 16, 4)):
        codec = ObservationCodec(pixels(*shape), (32, 32), grayscale=True)
        channels = {(20, 20, 2): 2, (3, 16, 16, 4): 12}.get(shape, 4)
        assert codec.space["image"].shape == (32, 32, channels)
        assert codec.notes[-1].startswith("grayscale does not apply to the observation 'image'")
    newest = np.zeros((84, 84, 4), np.uint8)
    newest[..., 3] = 9
    assert convert(pixels(84, 84, 4), newest, grayscale=True)[..., 3].min() == 9
    for shape in ((64, 64, 3), (64, 64, 1), (64, 64)):
        codec = ObservationCodec(pixels(*shape), (64, 64), grayscale=True)
        assert codec.space["image"].shape == (64, 64, 1) and not codec.notes


def test_two_dimensions_are_an_image_unless_one_is_much_longer():
    for shape in ((84, 84), (5, 5), (210, 160), (4, 16)):
        assert list(ObservationCodec(pixels(*shape), (64, 64)).space) == ["image"]
    for shape in ((4, 128), (128, 4), (1, 4), (4, 17)):
        codec = ObservationCodec(pixels(*shape), (64, 64))
        assert codec.space["vector"].shape == (np.prod(shape),) and f"give it the shape ({shape[0]}, {shape[1]}, 1)" in codec.notes[0]
    stacked = randomly(pixels(4, 128))
    np.testing.assert_array_equal(convert(pixels(4, 128), stacked), stacked.reshape(-1).astype(np.float32))
    assert ObservationCodec(pixels(4, 128, 1), (64, 64)).space["image"].shape == (64, 64, 1)  # the way out works


@pytest.mark.parametrize("shape", [(64, 64, 3), (84, 84, 4), (210, 160, 3), (64, 64), (10, 10, 4), (128,)])
def test_nothing_is_said_of_usual_observations(shape):
    codec = ObservationCodec(spaces.Dict(camera=pixels(*shape), pose=spaces.Box(-1.0, 1.0, (30, 20))), (64, 64))
    assert codec.notes == codec.warnings == []


# Numbers of images


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.int64, np.uint16, bool])
@pytest.mark.parametrize("high", [1, 255])
def test_large_boxes_of_other_dtypes_between_0_and_1_or_255_are_images(dtype, high):
    if high == 255 and dtype in (bool, np.int8):
        return
    space = pixels(40, 32, 3, high=high, dtype=dtype)
    value = np.zeros((40, 32, 3), dtype)
    value[1, 2, 0] = high
    image = convert(space, value, (40, 32))
    assert image.dtype == np.uint8 and image[1, 2, 0] == 255 and image.sum() == 255
    assert "40x32 pixels with 3 channels" in ObservationCodec(space, (64, 64)).notes[0]


def test_an_image_of_floats_is_the_same_as_the_bytes_it_was_made_of():
    seen = randomly(pixels(32, 32, 3))
    for dtype in (np.float32, np.float64):
        np.testing.assert_array_equal(convert(pixels(32, 32, 3, high=1, dtype=dtype), (seen / 255.0).astype(dtype), (32, 32)), seen)
        np.testing.assert_array_equal(convert(pixels(32, 32, 3, dtype=dtype), seen + dtype(0.4), (32, 32)), seen)
        np.testing.assert_array_equal(convert(pixels(3, 32, 32, dtype=dtype), seen.transpose(2, 0, 1), (32, 32)), seen)
    with pytest.raises(ValueError, match="'image' has NaN or infinite values"):
        convert(pixels(32, 32, 3, high=1, dtype=np.float32), np.full((32, 32, 3), np.nan, np.float32))


@pytest.mark.parametrize(
    "space, size",
    [
        (spaces.Box(-np.inf, np.inf, (64, 64, 3)), "12,288"),
        (spaces.Box(-1.0, 1.0, (3, 32, 32)), "3,072"),
        (spaces.Box(0, 65535, (64, 64), np.uint16), "4,096"),
        (spaces.Box(0.0, 1.0, (64, 64, 64)), "262,144"),
        (spaces.MultiBinary([64, 64]), "4,096"),
        (pixels(12288), "12,288"),
        (spaces.Discrete(10_000), "10,000"),
    ],
    ids=str,
)
def test_vectors_of_many_numbers_are_warned_of_with_their_name_and_the_mend(space, size):
    codec = ObservationCodec(spaces.Dict(camera=space), (64, 64))
    (warning,) = codec.warnings
    assert f"becomes a vector of {size} numbers" in warning and warning.startswith("the observation 'camera', ")
    assert "as uint8 from 0 to 255 of the shape (height, width, channels)" in warning and len(codec.space["camera"].shape) == 1


@pytest.mark.parametrize("dtype", [bool, np.float32, np.int32])
def test_small_grids_that_are_not_bytes_are_vectors_of_which_nothing_is_said(dtype):
    for shape in ((10, 10, 4), (5, 5, 3), (4, 4)):
        space = pixels(*shape, high=1, dtype=dtype)
        codec, value = ObservationCodec(space, (64, 64)), randomly(space)
        np.testing.assert_array_equal(codec(value)["vector"], value.reshape(-1).astype(np.float32))
        assert codec.notes == codec.warnings == []


def test_bytes_with_smaller_bounds_are_scaled_by_the_bounds_of_their_channel():
    low = np.broadcast_to(np.array([0, 0, 5], np.uint8), (4, 4, 3))
    high = np.broadcast_to(np.array([1, 255, 15], np.uint8), (4, 4, 3))
    value = np.array(low)
    value[0, 1], value[2, 3] = (1, 7, 10), (1, 255, 15)
    image = convert(spaces.Box(low, high, dtype=np.uint8), value, (4, 4))
    assert image[0, 0].tolist() == [0, 0, 0] and image[2, 3].tolist() == [255, 255, 255]
    assert image[0, 1].tolist() == [255, 7, 128]  # 127.5 is rounded to an even number
    constant = pixels(5, 5, low=3, high=3)
    assert not convert(constant, np.full((5, 5), 3, np.uint8)).any()


@pytest.mark.parametrize("most", [1, 2, 10, 100, 254])
def test_every_value_of_a_grid_of_bytes_stays_another_one_when_the_grid_is_enlarged(most):
    space = pixels(20, 20, high=most)
    grid = (np.arange(400) % (most + 1)).reshape(20, 20).astype(np.uint8)
    image = convert(space, grid, (64, 64))[..., 0]
    assert len(np.unique(image)) == most + 1 and image.min() == 0 and image.max() == 255
    cells = ((np.arange(64) + 0.5) * 20 / 64).astype(int)  # of the middles of the pixels
    np.testing.assert_array_equal(image, np.rint(grid * 255.0 / most).astype(np.uint8)[np.ix_(cells, cells)])


def test_planes_of_a_board_that_are_enlarged_keep_their_sharp_cells():
    planes = np.zeros((8, 8, 119), np.uint8)
    planes[3, 5, 118] = 1
    image = convert(pixels(8, 8, 119, high=1), planes)
    assert image.sum() == 255 * 64 and (image[24:32, 40:48, 118] == 255).all()


# Other spaces and values


@pytest.mark.parametrize(
    "space, value, expected",
    [
        (spaces.Discrete(3, start=-1), 1, [0, 0, 1]),
        (spaces.Discrete(3, start=5), np.int64(5), [1, 0, 0]),
        (spaces.Discrete(2), torch.tensor(1), [0, 1]),
        (spaces.Discrete(200, dtype=np.uint8), np.uint64(1), [0, 1] + [0] * 198),
        (spaces.MultiDiscrete([2, 2], dtype=np.int8), torch.tensor([1, 0]), [0, 1, 1, 0]),
        (spaces.MultiBinary(2), np.array([1.0, 0.0]), [1, 0]),
        (spaces.MultiDiscrete([[2, 3], [1, 2]], start=[[0, 1], [4, -1]]), np.array([[1, 3], [4, -1]]), [0, 1, 0, 0, 1, 1, 1, 0]),
        (spaces.MultiDiscrete([2, 2]), [1, 0], [0, 1, 1, 0]),
        (spaces.MultiBinary([2, 2]), np.array([[1, 0], [0, 1]], np.int8), [1, 0, 0, 1]),
        (spaces.Box(0, 1, (3,), bool), np.array([True, False, True]), [1, 0, 1]),
        (spaces.Box(0, 1, (3,), bool), [1, 0, 1], [1, 0, 1]),
        (spaces.Box(-128, 127, (2,), np.int8), np.array([-128, 127]), [-128, 127]),
        (spaces.Box(0, 65535, (2,), np.uint16), [65535, 1], [65535, 1]),
        (spaces.Box(-(2**62), 2**62, (2,), np.int64), np.array([-3, 2**30]), [-3, 2**30]),
        (spaces.Box(-1.0, 1.0, (2,), np.float32), np.array([0.5, -0.25]), [0.5, -0.25]),
        (spaces.Box(-1.0, 1.0, (2,), np.float32), (0.5, 1), [0.5, 1]),
        (spaces.Box(-1.0, 1.0, (), np.float32), np.float64(0.5), [0.5]),
        (pixels(4), np.array([0, 1, 2, 255]), [0, 1, 2, 255]),
    ],
    ids=str,
)
def test_values_become_the_vectors_they_stand_for(space, value, expected):
    vector = convert(space, value)
    assert vector.dtype == np.float32 and vector.tolist() == expected
    seen = check._Seen()
    check._check_observation(space, value, "reset()", seen)  # what is tried out before a run agrees
    assert not seen.outside


@pytest.mark.parametrize(
    "space, value, words",
    [
        (spaces.Box(-128, 127, (2,), np.int8), np.array([0, 300]), "of numbers from 0 to 300; its space says int8"),
        (pixels(8, 8), np.full((8, 8), -1), "of numbers from -1 to -1; its space says uint8"),
        (pixels(8, 8), np.zeros((8, 8)), "of dtype float64; its space says uint8"),
        (spaces.Box(0, 1, (2,), bool), np.array([0, 2]), "of numbers from 0 to 2; its space says bool"),
        (spaces.Box(-1.0, 1.0, (2,)), np.zeros(3), r"of shape \(3,\); its space says \(2,\)"),
        (spaces.Discrete(3, start=1), 0, "not in its space"),
        (spaces.Discrete(3), 1.0, "not in its space"),
        (spaces.MultiDiscrete([100, 100], dtype=np.int8), np.array([0, 256]), "not in its space"),
        (spaces.MultiBinary(2), np.array([0, 2]), "not in its space"),
    ],
    ids=str,
)
def test_values_that_are_none_of_their_space_are_refused_when_tried_and_later(space, value, words):
    key = next(iter(ObservationCodec(space, (64, 64)).space))
    with pytest.raises(ValueError, match=f"the observation '{key}' is .*{words}"):
        convert(space, value)
    with pytest.raises(check._Broken, match=words):
        check._check_observation(space, value, "reset()", check._Seen())


def test_a_part_that_is_missing_is_named():
    codec = ObservationCodec(spaces.Dict(arm=spaces.Tuple([spaces.Discrete(2), spaces.Discrete(2)])), (64, 64))
    for value, words in (({"leg": 1}, "lacks its part 'arm'"), ({"arm": (1,)}, "lacks its part 1"), ({"arm": 1}, "lacks its part 0")):
        with pytest.raises(ValueError, match=words):
            codec(value)


def test_nested_dicts_and_tuples_are_flattened_by_their_space():
    space = spaces.Tuple(
        [spaces.Dict(eye=pixels(3, 16, 16), arm=spaces.Tuple([spaces.Discrete(2), spaces.Box(-1, 1, (2,))])), pixels(16, 16, 3)]
    )
    codec = ObservationCodec(space, (16, 16))
    shapes = {key: part.shape for key, part in codec.space.items()}
    assert shapes == {"0/eye": (16, 16, 3), "0/arm/0": (2,), "0/arm/1": (2,), "1": (16, 16, 3)}
    eye, last = randomly(pixels(3, 16, 16)), randomly(pixels(16, 16, 3))
    converted = codec(({"arm": (1, (0.5, 0.0)), "eye": eye}, last))  # in another order, and a tuple for a Box
    np.testing.assert_array_equal(converted["0/eye"], eye.transpose(1, 2, 0))
    np.testing.assert_array_equal(converted["1"], last)
    assert converted["0/arm/0"].tolist() == [0, 1] and converted["0/arm/1"].tolist() == [0.5, 0]


@pytest.mark.parametrize(
    "space",
    [spaces.Text(4), spaces.Graph(spaces.Box(-1, 1, (2,)), None), spaces.Sequence(spaces.Discrete(2)), spaces.OneOf([spaces.Discrete(2)])],
    ids=lambda space: type(space).__name__,
)
def test_spaces_without_arrays_of_one_size_are_refused_in_one_line(space):
    name = type(space).__name__
    for given, key in ((space, "vector"), (spaces.Dict(word=space), "word"), (spaces.Tuple([spaces.Discrete(2), space]), "1")):
        with pytest.raises(ValueError, match=rf"^the observation '{key}' has the space {name}\(.*not supported; allowed are Box.*wrappers"):
            ObservationCodec(given, (64, 64))
    with pytest.raises(ValueError, match=rf"^the action space {name}\(.*not supported"):
        ActionCodec(space)


@pytest.mark.parametrize(
    "space, words",
    [
        (spaces.Dict({"a/b": spaces.Discrete(2), "a": spaces.Dict(b=spaces.Discrete(3))}), "'a/b' is there twice"),
        (spaces.Dict({"": spaces.Discrete(2)}), "is empty"),
        (spaces.Dict(), "has no numbers"),
        (spaces.Box(-1.0, 1.0, (0,)), "has no numbers"),
        (spaces.Discrete(10**9), "1,000,000,000 numbers; allowed are 16,777,216"),
    ],
    ids=str,
)
def test_observations_without_a_name_or_a_size_are_refused(space, words):
    with pytest.raises(ValueError, match=words):
        ObservationCodec(space, (64, 64))


def test_an_empty_part_beside_others_is_an_empty_vector():
    codec = ObservationCodec(spaces.Dict(a=spaces.Box(-1.0, 1.0, (0,)), b=spaces.Discrete(2)), (64, 64))
    assert codec({"a": np.zeros(0), "b": 1})["a"].shape == (0,) and space_of(describe_space(codec.space)) == codec.space


@pytest.mark.parametrize(
    "space",
    [pixels(16, 16, 3), pixels(3, 16, 16), spaces.Box(-1.0, 1.0, (3,)), spaces.MultiDiscrete([2, 2]), spaces.MultiBinary(3)],
    ids=str,
)
def test_a_converted_observation_shares_no_memory_with_the_environments_own(space):
    value = randomly(space) if isinstance(space, spaces.Box) else space.sample()
    converted = convert(space, value, (16, 16))
    before = converted.copy()
    value[...] = 1 - value
    np.testing.assert_array_equal(converted, before)


@pytest.mark.parametrize("space", [pixels(4, 3, 64, 64), pixels(64, 64, high=1), pixels(40, 40, 3, high=1.0, dtype=np.float32)], ids=str)
def test_the_converted_space_of_an_unusual_image_is_stored_as_bytes(space):
    converted = ObservationCodec(space, (32, 48)).space
    assert space_of(describe_space(converted)) == converted
    assert converted["image"] == pixels(*converted["image"].shape) and converted["image"].shape[:2] == (32, 48)


# Acting


@pytest.fixture(scope="module")
def agent() -> dreamer.Dreamer:
    config = tools.load_config(["debug"], {"task": "gym_x", "size": [16, 16], "device": "cpu", "precision": "32"})
    parts = {"image": pixels(16, 16, 3), "memory": spaces.Box(-np.inf, np.inf, (5,), np.float32), "room": OneHot([4])}
    return dreamer.Dreamer(spaces.Dict(parts), spaces.Discrete(2), config)


def seen(count: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    room = np.eye(4, dtype=np.float32)[rng.integers(4, size=count)]
    return {
        "image": rng.integers(256, size=(count, 16, 16, 3), dtype=np.uint8),
        "memory": rng.integers(256, size=(count, 5)).astype(np.float32),
        "room": room,
    }


def state_after(agent, obs: dict, state: dict | None = None) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return agent.act(obs, state)[1]


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.astype(np.int64),
        lambda value: value.astype(np.int16),
        lambda value: value.astype(np.uint16),
        torch.as_tensor,
        lambda value: torch.as_tensor(value).long(),
        lambda value: value.tolist(),
    ],
    ids=["int64", "int16", "uint16", "tensor", "tensor of int64", "list"],
)
def test_the_same_whole_numbers_get_the_same_answer_whatever_they_are_held_in(agent, change):
    obs = seen()
    expected = state_after(agent, obs)
    torch.testing.assert_close(state_after(agent, {**obs, "image": change(obs["image"])}), expected, rtol=0, atol=0)
    torch.testing.assert_close(state_after(agent, {**obs, "memory": change(obs["memory"].astype(np.uint8))}), expected, rtol=0, atol=0)
    torch.testing.assert_close(state_after(agent, {**obs, "room": change(obs["room"].astype(np.uint8))}), expected, rtol=0, atol=0)
    single = {key: change(value[0].astype(np.uint8)) for key, value in obs.items()}
    first = {key: value[:1] for key, value in obs.items()}
    torch.testing.assert_close(state_after(agent, single), state_after(agent, first), rtol=0, atol=0)


def test_a_flag_may_have_any_dtype(agent):
    state = state_after(agent, seen())
    for first in ([True, False, False], np.uint8([1, 0, 0]), np.float32([1, 0, 0]), torch.tensor([1, 0, 0])):
        after = state_after(agent, {**seen(), "is_first": first}, state)
        expected = state_after(agent, {**seen(), "is_first": np.array([True, False, False])}, state)
        torch.testing.assert_close(after, expected, rtol=0, atol=0)


def test_names_that_the_agent_does_not_observe_are_ignored(agent):
    expected = state_after(agent, seen())
    torch.testing.assert_close(state_after(agent, {**seen(), "mission": ["go", "to", "bed"], "reward": np.zeros(3)}), expected)


@pytest.mark.parametrize(
    "image, words",
    [
        (np.zeros((1, 16, 16, 3), np.float32), r"the image 'image' has dtype torch.float32; it must have integers from 0 to 255"),
        (np.full((1, 16, 16, 3), 128.0), "has dtype torch.float64"),
        (torch.zeros(1, 16, 16, 3, dtype=torch.bfloat16), "has dtype torch.bfloat16"),
        (np.zeros((1, 16, 16, 3), bool), "has dtype torch.bool"),
        (np.full((1, 16, 16, 3), 256), "'image' has integers from 256 to 256; allowed are 0 to 255"),
        (np.full((1, 16, 16, 3), -1), "'image' has integers from -1 to -1"),
        (np.zeros((1, 5), np.float32), r"'image' has the shape \((1, )?5,?\)"),
        (np.zeros((1, 3, 16, 16), np.uint8), r"'image' has the shape \((1, )?3, 16, 16\); the agent needs \(16, 16, 3\)"),
    ],
    ids=["float32", "float64", "bfloat16", "bool", "256", "-1", "a vector", "channels first"],
)
def test_images_that_are_none_are_refused_by_name(agent, image, words):
    with pytest.raises(ValueError, match=words):
        agent.act({**seen(1), "image": image})
    with pytest.raises(ValueError, match=words):
        agent.act({**{key: value[0] for key, value in seen(1).items()}, "image": image[0]})


def test_lists_are_observations_too():
    obs, single = as_batch({"vector": [[1.0, 2.0], [3.0, 4.0]]}, {"vector": (2,)})
    assert not single and obs["vector"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    obs, single = as_batch([1.0, 2.0], {"vector": (2,)})
    assert single and obs["vector"].shape == (1, 2)


# Runs


class Strange(gymnasium.Env):
    """Returns one array for all observations and changes it, with rewards and flags of NumPy's types."""

    action_space = spaces.Box(-MOST, MOST, (2,))

    def __init__(self, space: spaces.Box):
        self.observation_space = space
        self._value = np.zeros(space.shape, space.dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._time, self._value[...] = 0, 0
        return self._value, {}

    def step(self, action):
        assert np.abs(action).max() <= 1.0
        self._time += 1
        self._value[...] = self._time % 2
        return self._value, np.int64(self._time), np.bool_(self._time == 5), np.bool_(False), {}


NOTE, WARNING = "note: the observation 'image', ", "warning: the observation 'vector', "


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Overriding environment")
@pytest.mark.parametrize(
    "space, told, converted, one",
    [
        (pixels(4, 3, 32, 32), NOTE + "uint8 (4, 3, 32, 32), is read as 4 frames of 32x32 pixels", (32, 32, 12), 1),
        (pixels(2, 40, 40, high=1), NOTE + "uint8 (2, 40, 40), is read as 40x40 pixels with 2 channels", (32, 32, 2), 255),
        (pixels(40, 32, 3, high=1.0, dtype=np.float32), NOTE + "float32 (40, 32, 3), is read as 40x32 pixels", (32, 32, 3), 255),
        (spaces.Box(-1.0, 1.0, (32, 32, 1)), WARNING + "float32 (32, 32, 1), becomes a vector of 1,024 numbers", (1024,), 1),
    ],
    ids=["frames", "planes", "floats", "a vector"],
)
def test_a_run_says_once_what_becomes_of_observations_and_its_agent_is_filmed_and_resumed(
    space, told, converted, one, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(gymnasium.registry, "Strange", registration.EnvSpec("Strange", lambda: Strange(space)))
    flags = ["--task", "gym_Strange", "--size", "32", "32", "--envs", "2", "--eval_every", "30", "--device", "cpu"]
    for steps in ("60", "80"):
        settings = [*flags, "--time_limit", "9", "--steps", steps, "--logdir", str(tmp_path)]
        assert dreamer.main(["--configs", "defaults", "debug", *settings]) == 0
        printed = capsys.readouterr()
        assert (printed.out + printed.err).count(told) == 1
    assert evaluate.main([str(tmp_path), "--episodes", "1", "--video", str(tmp_path / "film.gif"), "--device", "cpu"]) == 0
    agent = dreamer.load_agent(tmp_path, "cpu")
    ((key, part),) = agent.obs_space.items()
    assert part.shape == converted
    action, _ = agent.act(np.zeros(converted, part.dtype))
    assert np.isfinite(action).all() and np.abs(action).max() <= 1.0
    episodes = [dict(np.load(path)) for path in (tmp_path / "train_eps").glob("*.npz")]
    whole = max(episodes, key=lambda episode: len(episode["reward"]))
    assert whole["reward"].tolist() == [0, 1, 2, 3, 4, 5] and whole["is_terminal"].tolist() == [False] * 5 + [True]
    assert [step.flat[0] for step in whole[key]] == [0, one] * 3  # each step has its own values
