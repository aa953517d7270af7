"""Environments in gymnasium's own wrappers: what the agent observes, the ends of episodes, and what is refused."""

import contextlib
import re
import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces, wrappers
from gymnasium.vector import SyncVectorEnv

import dreamer
import tools
from benchmarks import suites
from envs import gym, make_envs
from envs.spaces import ActionCodec

pytestmark = pytest.mark.slow

SEED = 3
# What the environments below give without a wrapper: the time of each step, and the action that led to it.
TIME = np.array([0, 1, 2, 3, 4, 0, 1, 2])
ACTION = np.array([0, 1, 1, 1, 1, 0, 1, 1])
FIRST, LAST = TIME == 0, TIME == 4
NUMBERS = np.stack([TIME, np.full(8, SEED), ACTION], -1)  # (8, 3)
REWARD = 10.0 * TIME
PLANES = np.arange(3)  # what the channels of a picture add


class Numbers(gymnasium.Env):
    """Observes its time, its seed and the last action. Time 4 ends an episode; the reward is ten times the time."""

    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 5}  # noqa: RUF012
    action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)
    observation_space = spaces.Box(np.array([0.0, 0.0, -2.0], np.float32), np.array([10.0, 100.0, 2.0], np.float32))
    time = seed = action = 0

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed = self.seed if seed is None else seed
        self.time, self.action = 0, 0
        return self.observe(), {}

    def step(self, action):
        self.time, self.action = self.time + 1, float(np.asarray(action).item())
        return self.observe(), 10.0 * self.time, self.time == 4, False, {}

    def observe(self):
        return np.array([self.time, self.seed, self.action], np.float32)

    def render(self):
        return np.full((8, 8, 3), self.time, np.uint8)


class Pictures(Numbers):
    """Observes an image: ten times the time, plus the number of the channel."""

    def __init__(self, channels=(3,), **kwargs):
        super().__init__(**kwargs)
        self.observation_space = spaces.Box(0, 255, (32, 32, *channels), np.uint8)

    def observe(self):
        planes = PLANES if self.observation_space.shape[2:] == (3,) else 0
        return np.zeros(self.observation_space.shape, np.uint8) + np.uint8(10 * self.time) + np.asarray(planes, np.uint8)


class Parts(Numbers):
    """Observes a dict: an image, numbers, and the time as one of five classes."""

    observation_space = spaces.Dict(
        {"image": spaces.Box(0, 255, (32, 32, 3), np.uint8), "numbers": Numbers.observation_space, "class": spaces.Discrete(5)}
    )

    def observe(self):
        return {"image": Pictures.observe(Pictures()) + np.uint8(10 * self.time), "numbers": super().observe(), "class": self.time}


@contextlib.contextmanager
def registered(make_env, **registration):
    gymnasium.register("Wrapped-v0", make_env, **registration)
    try:
        yield "gym_Wrapped-v0"
    finally:
        del gymnasium.registry["Wrapped-v0"]


def play(make_env, vector=0.5, steps=7, registration=None, **settings) -> dict[str, np.ndarray]:
    """The steps of an environment as training gets them, (steps + 1, ...) by name. The agent gives the same vector at every step."""
    with registered(make_env, **(registration or {})) as task:
        config = tools.load_config(["debug"], {"task": task, "size": [32, 32], "time_limit": 0, **settings})
        envs = make_envs(config, 1, training=True)
    with contextlib.closing(envs):
        codec = ActionCodec(envs.act_space)
        taken = [envs.reset(seed=SEED)]
        for _ in range(steps):
            envs.send(codec.decode(np.full((1, codec.size), vector, np.float32)))
            taken.append(envs.recv())
    return {key: np.stack([step[key][0] for step in taken]) for key in taken[0]}


def check_ends(steps: dict, first=FIRST, last=LAST, reward=REWARD, cut=False) -> None:
    """Beginnings, ends and rewards; `cut`: episodes are cut off and do not end truly."""
    np.testing.assert_array_equal(steps["is_first"], first)
    np.testing.assert_array_equal(steps["is_last"], last)
    np.testing.assert_array_equal(steps["is_terminal"], np.zeros_like(last) if cut else last)
    np.testing.assert_allclose(steps["reward"], reward, rtol=1e-6)


def stacked(values: np.ndarray, count: int) -> list[np.ndarray]:
    """For each of the last `count` steps, the oldest first, its value; before an episode's beginning there is the first value."""
    starts = [max(start for start in (0, 5) if start <= step) for step in range(8)]
    return [np.stack([values[max(starts[step], step - back)] for step in range(8)]) for back in reversed(range(count))]


def pixels(image: np.ndarray) -> np.ndarray:
    """(T, H, W, C) -> (T, C), the colours of images of one colour."""
    assert (image == image[:, :1, :1]).all()
    return image[:, 0, 0]


def moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of all values up to each step, and of a ten thousandth of a value with mean 0 and variance 1."""
    count = np.arange(1, len(values) + 1).reshape(-1, *[1] * (values.ndim - 1)) + 1e-4
    mean = values.cumsum(0) / count
    return mean, ((values**2).cumsum(0) + 1e-4) / count - mean**2


def test_without_a_wrapper_the_steps_are_those_that_the_other_tests_expect():
    steps = play(Numbers)
    np.testing.assert_array_equal(steps["vector"], NUMBERS)
    np.testing.assert_array_equal(pixels(play(Pictures)["image"]), 10 * TIME[:, None] + PLANES)
    check_ends(steps)


@pytest.mark.parametrize(
    "wrap",
    [
        wrappers.RecordEpisodeStatistics,
        wrappers.OrderEnforcing,
        wrappers.PassiveEnvChecker,
        wrappers.Autoreset,
        lambda env: wrappers.DtypeObservation(env, np.float64),
        lambda env: wrappers.DtypeObservation(env, np.int32),
        lambda env: wrappers.ReshapeObservation(env, (3, 1)),
    ],
    ids=["RecordEpisodeStatistics", "OrderEnforcing", "PassiveEnvChecker", "Autoreset", "float64", "int32", "ReshapeObservation"],
)
def test_wrappers_that_change_no_number_change_no_step(wrap):
    steps = play(lambda: wrap(Numbers()))
    np.testing.assert_array_equal(steps["vector"], NUMBERS)
    check_ends(steps)


def test_autoreset_inside_of_repeated_actions_and_time_limits_begins_no_episode_twice():
    steps = play(lambda: wrappers.Autoreset(Numbers()), action_repeat=3)  # times 3 and 4, then another episode
    np.testing.assert_array_equal(steps["vector"][:, 0], [0, 3, 4, 0, 3, 4, 0, 3])
    check_ends(steps, steps["vector"][:, 0] == 0, steps["vector"][:, 0] == 4, [0, 60, 40, 0, 60, 40, 0, 60])
    steps = play(lambda: wrappers.TimeLimit(wrappers.Autoreset(Numbers()), 2))
    np.testing.assert_array_equal(steps["vector"][:, 0], [0, 1, 2, 0, 1, 2, 0, 1])
    check_ends(steps, steps["vector"][:, 0] == 0, steps["vector"][:, 0] == 2, 10 * steps["vector"][:, 0], cut=True)


def test_wrappers_of_the_registration_are_there_too():
    more = (wrappers.RescaleObservation.wrapper_spec(min_obs=np.float32(0), max_obs=np.float32(1)),)
    more += (wrappers.TimeLimit.wrapper_spec(max_episode_steps=2),)
    steps = play(Numbers, registration={"additional_wrappers": more, "max_episode_steps": 3})
    np.testing.assert_allclose(steps["vector"][:, 0], np.array([0, 1, 2, 0, 1, 2, 0, 1]) / 10, rtol=1e-6)
    assert steps["is_last"].tolist() == [False, False, True] * 2 + [False] * 2 and not steps["is_terminal"].any()


# Numbers


@pytest.mark.parametrize(
    "wrap, expected",
    [
        (lambda env: wrappers.FrameStackObservation(env, 3), np.concatenate(stacked(NUMBERS, 3), -1)),
        (lambda env: wrappers.DelayObservation(env, 2), np.where((TIME < 2)[:, None], 0, np.roll(NUMBERS, 2, 0))),
        (
            lambda env: wrappers.RescaleObservation(env, np.float32(-1), np.float32(1)),
            np.stack([TIME / 5 - 1, np.full(8, SEED / 50 - 1), ACTION / 2], -1),
        ),
        (lambda env: wrappers.NormalizeObservation(env), (NUMBERS - moments(NUMBERS)[0]) / np.sqrt(moments(NUMBERS)[1] + 1e-8)),
        (lambda env: wrappers.DiscretizeObservation(env, 2, multidiscrete=True), [[1, 0, 1, 0, 0, 1]] * 8),
        (lambda env: wrappers.TimeAwareObservation(wrappers.TimeLimit(env, 9)), np.concatenate([NUMBERS, TIME[:, None]], -1)),
        (lambda env: wrappers.FlattenObservation(wrappers.ReshapeObservation(env, (3, 1))), NUMBERS),
    ],
    ids=["FrameStack", "Delay", "Rescale", "Normalize", "Discretize", "TimeAware", "Flatten"],
)
def test_numbers_in_a_wrapper_are_the_vector_that_the_agent_observes(wrap, expected):
    steps = play(lambda: wrap(Numbers()))
    np.testing.assert_allclose(steps["vector"], expected, rtol=2e-3, atol=1e-5)
    check_ends(steps)


def test_parts_of_a_dict_pass_through_wrappers_under_their_names():
    classes = np.eye(5)[TIME]
    steps = play(lambda: wrappers.FilterObservation(Parts(), ["numbers", "class"]))
    assert "image" not in steps and (steps["numbers"] == NUMBERS).all() and (steps["class"] == classes).all()
    steps = play(lambda: wrappers.FrameStackObservation(Parts(), 2))
    np.testing.assert_array_equal(steps["numbers"], np.concatenate(stacked(NUMBERS, 2), -1))
    np.testing.assert_array_equal(steps["class"], np.concatenate(stacked(classes, 2), -1))
    np.testing.assert_array_equal(pixels(steps["image"]), np.concatenate(stacked(10 * TIME[:, None] + PLANES, 2), -1))
    steps = play(lambda: wrappers.FlattenObservation(wrappers.FilterObservation(Parts(), ["numbers", "class"])))
    np.testing.assert_array_equal(steps["vector"], np.concatenate([classes, NUMBERS], -1))  # sorted by name
    steps = play(lambda: wrappers.TimeAwareObservation(wrappers.TimeLimit(Pictures(), 3), flatten=False, normalize_time=False))
    np.testing.assert_array_equal(steps["time"][:, 0], [0, 1, 2, 3] * 2)
    np.testing.assert_array_equal(pixels(steps["obs"])[:, 0], [0, 10, 20, 30] * 2)


# Images


@pytest.mark.parametrize(
    "make_env, expected",
    [
        (lambda: wrappers.FrameStackObservation(Pictures(), 3), np.concatenate(stacked(10 * TIME[:, None] + PLANES, 3), -1)),
        (lambda: wrappers.FrameStackObservation(Pictures(()), 4), np.stack(stacked(10 * TIME, 4), -1)),
        (lambda: wrappers.FrameStackObservation(Pictures((1,)), 4), np.stack(stacked(10 * TIME, 4), -1)),
        (lambda: wrappers.GrayscaleObservation(Pictures()), 10 * TIME[:, None]),  # the channels add less than 1
        (lambda: wrappers.GrayscaleObservation(Pictures(), keep_dim=True), 10 * TIME[:, None]),
        (lambda: wrappers.DelayObservation(Pictures(), 1), np.where(FIRST[:, None], 0, np.roll(10 * TIME[:, None] + PLANES, 1, 0))),
        (lambda: wrappers.DtypeObservation(Pictures(), np.float32), 10 * TIME[:, None] + PLANES),
        (
            lambda: wrappers.RescaleObservation(wrappers.DtypeObservation(Pictures(), np.float32), np.float32(0), np.float32(1)),
            10 * TIME[:, None] + PLANES,
        ),
        (lambda: wrappers.AddRenderObservation(Numbers(render_mode="rgb_array")), TIME[:, None] + 0 * PLANES),
    ],
    ids=["stack", "stack gray", "stack one channel", "gray", "gray keep_dim", "delay", "float", "float to 1", "render"],
)
def test_images_in_a_wrapper_are_the_image_that_the_agent_observes(make_env, expected):
    steps = play(make_env)
    np.testing.assert_array_equal(pixels(steps["image"]), expected)
    check_ends(steps)


def test_rendered_images_beside_the_state_are_both_observed():
    steps = play(lambda: wrappers.AddRenderObservation(Numbers(render_mode="rgb_array"), render_only=False))
    np.testing.assert_array_equal(pixels(steps["pixels"])[:, 0], TIME)
    np.testing.assert_array_equal(steps["state"], NUMBERS)


def test_skipped_frames_are_summed_and_their_last_two_merged():
    steps = play(lambda: wrappers.MaxAndSkipObservation(Pictures(), 2))
    times = np.array([0, 2, 4, 0, 2, 4, 0, 2])
    np.testing.assert_array_equal(pixels(steps["image"])[:, 0], 10 * times)
    check_ends(steps, times == 0, times == 4, [0, 30, 70, 0, 30, 70, 0, 30])


def test_a_wrapper_without_its_package_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match=r"cannot be made: DependencyNotInstalled: opencv \(cv2\) is not installed, run `pip install"):
        play(lambda: wrappers.ResizeObservation(Pictures(), (40, 40)))


def test_resized_images_are_observed():
    pytest.importorskip("cv2")
    steps = play(lambda: wrappers.ResizeObservation(Pictures(), (40, 40)))
    np.testing.assert_array_equal(pixels(steps["image"]), 10 * TIME[:, None] + PLANES)


@pytest.mark.parametrize("scale", [False, True])
def test_frames_of_gymnasiums_atari_are_observed_as_channels(scale):
    pytest.importorskip("cv2")
    ale_py = pytest.importorskip("ale_py")

    def make_env():
        gymnasium.register_envs(ale_py)
        pong = wrappers.AtariPreprocessing(gymnasium.make("ALE/Pong-v5", frameskip=1), noop_max=0, scale_obs=scale)
        return wrappers.FrameStackObservation(pong, 4)

    image = play(make_env, size=[80, 80], steps=6)["image"]
    assert image.shape == (7, 80, 80, 4) and image.max() > 200
    for step in range(6):
        np.testing.assert_array_equal(image[step + 1, ..., :3], image[step, ..., 1:])


# Rewards and actions


def normalized_rewards() -> np.ndarray:
    """As NormalizeReward: divided by the deviation of discounted sums, which a true end sets back before its own reward."""
    sums, total = [], 0.0
    for step in np.flatnonzero(~FIRST):
        total = total * 0.99 * (not LAST[step]) + REWARD[step]
        sums.append(total)
    scaled = REWARD.copy()
    scaled[~FIRST] /= np.sqrt(moments(np.array(sums))[1] + 1e-8)
    return scaled


@pytest.mark.parametrize(
    "wrap, expected",
    [
        (lambda env: wrappers.TransformReward(env, lambda reward: reward / 2 - 1), np.where(FIRST, 0, REWARD / 2 - 1)),
        (lambda env: wrappers.ClipReward(env, 0, 25), REWARD.clip(max=25)),
        (wrappers.NormalizeReward, normalized_rewards()),
    ],
    ids=["TransformReward", "ClipReward", "NormalizeReward"],
)
def test_rewards_of_a_wrapper_are_those_that_the_agent_gets(wrap, expected):
    steps = play(lambda: wrap(Numbers()))
    np.testing.assert_array_equal(steps["vector"], NUMBERS)
    np.testing.assert_allclose(steps["reward"], expected, rtol=1e-4)


@pytest.mark.parametrize(
    "wrap, vector, action",
    [
        (lambda env: wrappers.RescaleAction(env, np.float32(-1), np.float32(1)), 0.5, 1.0),
        (lambda env: wrappers.RescaleAction(env, np.float32(0), np.float32(3)), -1.0, -2.0),
        (lambda env: wrappers.TransformAction(env, lambda action: action / 10, spaces.Box(-9.0, 9.0, (1,), np.float32)), 1.0, 0.9),
        (wrappers.ClipAction, 0.5, 0.5),  # an action without bounds is drawn from [-1, 1]
        (wrappers.ClipAction, 7.0, 1.0),
        (lambda env: wrappers.DiscretizeAction(env, 4), 0.0, -1.5),  # the middle of the first of four parts
    ],
)
def test_an_action_goes_through_the_wrappers_to_the_environment(wrap, vector, action):
    steps = play(lambda: wrap(Numbers()), vector)
    np.testing.assert_allclose(steps["vector"][:, 2], np.where(FIRST, 0.0, action), rtol=1e-6)


def test_sticky_actions_repeat_the_last_one_and_repeated_actions_skip_steps():
    class Changing(gymnasium.ActionWrapper):
        """Gives the number of the action instead of the action."""

        count = 0

        def action(self, action):
            self.count += 1
            return np.array([0.1 * self.count], np.float32)

    steps = play(lambda: Changing(wrappers.StickyAction(Numbers(), 1 - 1e-9)))  # the first action of an episode goes on
    np.testing.assert_allclose(steps["vector"][:, 2], [0, 0.1, 0.1, 0.1, 0.1, 0, 0.5, 0.5], rtol=1e-6)
    steps = play(lambda: wrappers.RepeatAction(Numbers(), 2))
    times = np.array([0, 2, 4, 0, 2, 4, 0, 2])
    np.testing.assert_array_equal(steps["vector"][:, 0], times)
    check_ends(steps, times == 0, times == 4, [0, 30, 70, 0, 30, 70, 0, 30])


def test_a_time_limit_cuts_episodes_off():
    steps = play(lambda: wrappers.TimeLimit(Numbers(), 3))
    times = np.array([0, 1, 2, 3] * 2)
    np.testing.assert_array_equal(steps["vector"][:, 0], times)
    check_ends(steps, times == 0, times == 3, 10 * times, cut=True)


# Tensors


class Tensors(gymnasium.ObservationWrapper):
    """Observations as tensors of PyTorch, as NumpyToTorch gives them."""

    def observation(self, observation):
        if isinstance(observation, dict):
            return {key: torch.as_tensor(value) for key, value in observation.items()}
        return torch.as_tensor(observation)


def test_tensors_are_observed_as_arrays():
    np.testing.assert_array_equal(play(lambda: Tensors(Numbers()))["vector"], NUMBERS)
    np.testing.assert_array_equal(pixels(play(lambda: Tensors(Pictures()))["image"]), 10 * TIME[:, None] + PLANES)
    steps = play(lambda: Tensors(Parts()))
    assert (steps["numbers"] == NUMBERS).all() and (steps["class"] == np.eye(5)[TIME]).all()
    check_ends(steps)


@pytest.mark.parametrize("make_env", [Numbers, Parts])
def test_gymnasiums_tensors_are_observed_as_arrays(make_env):
    pytest.importorskip("array_api_compat")  # which NumpyToTorch needs
    given, plain = play(lambda: wrappers.NumpyToTorch(make_env())), play(make_env)
    for key in plain:
        np.testing.assert_array_equal(given[key], plain[key])


@pytest.mark.parametrize("imported, start", [(True, "spawn"), (False, None)])
def test_only_an_imported_environment_beside_jax_is_spawned(monkeypatch, imported, start):
    spec = lambda entry: gymnasium.envs.registration.EnvSpec("Wrapped-v0", entry)
    monkeypatch.setitem(sys.modules, "jax", object())
    assert gym._start_method(spec(Numbers), imported) == start
    assert gym._start_method(spec(lambda: Numbers()), imported) is None  # it cannot be sent to another process
    monkeypatch.delitem(sys.modules, "jax")
    assert gym._start_method(spec(Numbers), imported) is None


# Windows and mistakes


def test_windows_are_not_opened_or_warned_of(capsys, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    steps = play(Numbers, registration={"kwargs": {"render_mode": "human"}})
    assert "is made without its render_mode 'human', which would open a window in each process" in capsys.readouterr().err
    np.testing.assert_array_equal(steps["vector"], NUMBERS)
    play(lambda: wrappers.HumanRendering(Numbers(render_mode="rgb_array")), steps=1)
    assert "opens a window in each of its processes" in capsys.readouterr().err
    np.testing.assert_array_equal(play(lambda: wrappers.RenderCollection(Numbers(render_mode="rgb_array")))["vector"], NUMBERS)


def train(make_env, logdir) -> int:
    """Trains for some steps from the command line, with an evaluation at the end; returns the exit code."""
    command = "--configs defaults debug --task gym_wrapped --size 32 32 --steps 80 --prefill 60 --eval_every 80 --device cpu"
    return dreamer.main([*command.split(), "--logdir", str(logdir)], make_env=make_env)


@pytest.mark.parametrize(
    "make_env, words",
    [
        (lambda: gymnasium.make_vec("CartPole-v1", 2), "several in one are not allowed"),
        (lambda: SyncVectorEnv([Numbers] * 2), "actual class: <class 'gymnasium.vector.sync_vector_env.SyncVectorEnv'>"),
        (lambda: wrappers.TimeAwareObservation(Numbers()), "must be wrapped by a TimeLimit"),
        (lambda: wrappers.AddRenderObservation(Numbers()), "requires render_mode to be not None"),
        (lambda: wrappers.FilterObservation(Parts(), ["image", "speed"]), "speed"),
        (lambda: wrappers.TransformObservation(Numbers(), lambda obs: obs[:2], None), r"of shape \(2,\); its space says \(3,\)"),
        (lambda: wrappers.TransformReward(Numbers(), lambda reward: [reward]), "it must be one number"),
    ],
    ids=["make_vec", "SyncVectorEnv", "TimeAware", "AddRender", "Filter", "TransformObservation", "TransformReward"],
)
def test_a_wrong_use_of_wrappers_is_refused_with_one_line(make_env, words, tmp_path, capsys):
    assert train(make_env, tmp_path / "run") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert line.startswith("error: the environment 'wrapped' ") and re.search(words, line), line


@pytest.mark.parametrize(
    "make_env",
    [
        lambda: wrappers.FrameStackObservation(wrappers.NormalizeObservation(wrappers.RecordEpisodeStatistics(Numbers())), 3),
        lambda: wrappers.FrameStackObservation(wrappers.GrayscaleObservation(wrappers.MaxAndSkipObservation(Pictures(), 2)), 4),
        lambda: wrappers.Autoreset(wrappers.NormalizeReward(wrappers.ClipAction(Parts()))),
        lambda: wrappers.AddRenderObservation(wrappers.DelayObservation(Numbers(render_mode="rgb_array"), 2), render_only=False),
        lambda: wrappers.StickyAction(wrappers.DiscretizeAction(Tensors(Numbers()), 3), 0.25),
    ],
    ids=["numbers", "images", "parts", "render", "tensors"],
)
def test_a_run_trains_and_evaluates_in_wrappers(make_env, tmp_path):
    assert train(make_env, tmp_path) == 0
    assert suites.trained(tmp_path / "metrics.jsonl").startswith("yes, ")  # finite losses, and an evaluation
