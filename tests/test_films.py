"""Films of real episodes: which frames they have, what an environment that cannot be filmed is told, and that filming changes nothing."""

import json
import multiprocessing
import os
import random
import time

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from PIL import Image

import dreamer
import evaluate
import latent_report
import tools
from collect import play_episodes
from envs import make_envs
from envs.spaces import ActionCodec
from exploration import Random
from pages import run_page
from play import camera, film
from play.camera import Camera

pytestmark = pytest.mark.slow

RENDERED = multiprocessing.Value("i")  # how often any process has rendered


class Drawn(gymnasium.Env):
    """Its state is a number that grows at random. Its image shows the step and that number.

    Args:
        length: of episodes; the first seed's are as long, those of the next seeds shorter.
    """

    metadata = {"render_modes": ["human", "rgb_array"]}  # noqa: RUF012
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, length: int = 12, render_mode: str | None = None):
        self._length, self.render_mode = length, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._step, self._sum = 0, 0
        return self._observe(), {}

    def step(self, action):
        self._step += 1
        self._sum += int(action) + int(self.np_random.integers(3)) + random.randrange(3) + int(np.random.randint(3))
        return self._observe(), float(self._sum), self._step >= self._length, False, {}

    def _observe(self):
        return np.array([self._step, self._sum], np.float32)

    def render(self):
        RENDERED.value += 1
        self.np_random.random(), random.random(), np.random.random()  # as drawing that sparkles would
        return self.picture()

    def picture(self) -> np.ndarray:
        image = np.zeros((4, 6, 3), np.uint8)
        image[:2, :, 0], image[2:, :, 1] = self._step % 256, self._sum % 256
        image[:, :, 2] = self._step // 256
        return image


class Rough(Drawn):
    """Episodes of some environments are short."""

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self._length = 30 if seed == 5 else 4
        return super().reset(seed=seed)


class Seen(Drawn):
    """Observes two images, one of them gray."""

    observation_space = spaces.Dict(
        {
            "left": spaces.Box(0, 255, (16, 16, 3), np.uint8),
            "right": spaces.Box(0, 255, (16, 16, 1), np.uint8),
            "log_map": spaces.Box(0, 255, (16, 16, 3), np.uint8),
        }
    )

    def _observe(self):
        images = {key: np.full(space.shape, self._step, np.uint8) for key, space in self.observation_space.items()}
        return {**images, "right": images["right"] + 100}


class Breaks(Drawn):
    """Breaks in the seventh step of the first episode of an evaluation."""

    def reset(self, *, seed=None, options=None):
        self._breaks = seed == 5
        return super().reset(seed=seed)

    def step(self, action):
        if self._breaks and self._step == 6:
            raise ZeroDivisionError("the game crashed")
        return super().step(action)


class Speechless(Exception):
    def __str__(self):
        raise ValueError


class Reseeds(Drawn):
    """Takes another generator when it is rendered."""

    def render(self):
        self.np_random = np.random.default_rng(7)
        return super().render()


class Wrong(Drawn):
    """Renders something odd from its fourth step on."""

    def __init__(self, wrong: str = "", **kwargs):
        super().__init__(**kwargs)
        self._wrong = wrong
        if wrong == "cannot be built" and self.render_mode:
            raise OSError("no display")

    def render(self):
        if self._step < 4:
            return super().render()
        elif self._wrong == "raises":
            raise ZeroDivisionError("the brush broke")
        elif self._wrong == "is speechless":
            raise Speechless
        elif self._wrong == "lacks a package":
            raise gymnasium.error.DependencyNotInstalled('brush is not installed, run `pip install "brush"`')
        elif self._wrong == "dies":
            os._exit(7)
        elif self._wrong == "hangs":
            time.sleep(60)
        elif self._wrong == "changes its size":
            return np.zeros((8, 8, 3), np.uint8)
        return {"None": None, "floats": self.picture() / 255.0, "a list": [self.picture()]}[self._wrong]


class Blind(Drawn):
    """Can neither be seen nor rendered."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def render(self):
        raise AssertionError("nobody may ask for this")


class Bare(Drawn):
    """Takes no render_mode, but says that it renders."""

    def __init__(self):
        super().__init__()


PROBLEMS = {
    "raises": "observes no image and cannot be rendered: ZeroDivisionError: the brush broke (",
    "is speechless": "observes no image and cannot be rendered: Speechless: its message cannot be shown (",
    "lacks a package": 'observes no image and needs a package to render: brush is not installed, run `pip install "brush"`',
    "dies": "observes no image and cannot be rendered: its process has died (exit code 7)",
    "hangs": "observes no image and cannot be rendered: it has not answered for 1 seconds (setting env_timeout)",
    "changes its size": "observes no image and cannot be filmed: the size of its rendered images changes",
    "None": "observes no image and cannot be filmed: render() returned NoneType; it must return an image (H, W, 3) uint8",
    "floats": "observes no image and cannot be filmed: render() returned array of shape (4, 6, 3) and dtype float64",
    "a list": "observes no image and cannot be filmed: render() returned list",
    "cannot be built": "observes no image and cannot be built with render_mode='rgb_array': OSError: no display (",
}


@pytest.fixture(autouse=True, scope="module")
def registered():
    ids = {"Film-v0": {"entry_point": Drawn}, "Film-Rough-v0": {"entry_point": Rough}, "Film-Seen-v0": {"entry_point": Seen}}
    ids |= {"Film-Long-v0": {"entry_point": Drawn, "kwargs": {"length": 1500}}, "Film-Breaks-v0": {"entry_point": Breaks}}
    ids |= {"Film-Reseeds-v0": {"entry_point": Reseeds}, "Film-Blind-v0": {"entry_point": Blind}, "Film-Bare-v0": {"entry_point": Bare}}
    ids |= {f"Film-{wrong.replace(' ', '-')}-v0": {"entry_point": Wrong, "kwargs": {"wrong": wrong}} for wrong in PROBLEMS}
    for name, entry in ids.items():
        gymnasium.register(name, **entry)
    yield
    for name in ids:
        del gymnasium.registry[name]


class Recorded(Random):
    """A random policy that remembers its actions."""

    def __init__(self, envs):
        super().__init__(ActionCodec(envs.act_space), 0)
        self.actions = []

    def act(self, obs, state=None, training=None):
        actions, state = super().act(obs, state)
        self.actions.append(np.array(actions))
        return actions, state


def played(name: str, episodes: int = 3, filmed: bool = True, count: int = 2, **flags) -> tuple:
    """The results of an evaluation with seed 5, its camera if it was filmed, and the actions."""
    envs = make_envs(
        tools.load_config(["debug"], {"task": f"gym_{name}", "time_limit": 0, "size": [16, 16], **flags}), count, training=False
    )
    try:
        filming = Camera(envs) if filmed else None
        policy = Recorded(envs)
        results = play_episodes(policy, filming or envs, episodes, seed=5)
    finally:
        envs.close()
    return results, filming, np.array(policy.actions)


def replayed(env: gymnasium.Env, actions: np.ndarray) -> list[np.ndarray]:
    """The pictures of an episode that is played again without anything else around it."""
    random.seed(5)
    np.random.seed(5)
    env.reset(seed=5)
    pictures, ended = [env.picture()], False
    for action in actions:
        *_, ended, _, _ = env.step(action)
        pictures.append(env.picture())
        if ended:
            break
    return pictures


# What is filmed


def test_a_film_has_the_frames_that_the_same_seed_and_actions_give_without_it():
    results, filming, actions = played("Film-v0")
    expected = replayed(Drawn(), actions[:, 0])
    assert len(expected) == len(filming.frames) == 13
    np.testing.assert_array_equal(filming.frames, expected)
    np.testing.assert_array_equal(filming.film(), expected)
    first = next(episode for episode in results if episode.env == 0)
    assert filming.caption == f"return {first.sums['return']:.4g}, 12 steps"


@pytest.mark.parametrize("name", ["Film-v0", "Film-Reseeds-v0"])
def test_an_evaluation_is_the_same_with_and_without_a_film(name):
    RENDERED.value = 0
    without, _, actions = played(name, filmed=False)
    assert RENDERED.value == 0
    results, _, with_film = played(name)
    assert RENDERED.value == 13  # one episode of one environment
    assert results == without
    np.testing.assert_array_equal(with_film, actions)


def test_the_first_episode_of_environment_0_is_filmed_also_where_others_end_before():
    results, filming, _ = played("Film-Rough-v0", episodes=4)
    assert [(episode.env, episode.length) for episode in results] == [(1, 4), (1, 4), (0, 30), (0, 30)]
    assert len(filming.frames) == 31


def test_a_long_episode_is_filmed_in_its_first_steps_at_equal_distances():
    results, filming, _ = played("Film-Long-v0", episodes=1, count=1)
    steps = [int(frame[0, 0, 0]) + 256 * int(frame[0, 0, 2]) for frame in filming.frames]
    assert steps == list(range(0, 1001, 4)) and len(steps) <= camera.FRAMES
    assert filming.caption == f"return {results[0].sums['return']:.4g}, 1,500 steps (the film shows the first 1,000)"


def test_the_last_step_is_in_the_film_of_an_episode_with_more_steps_than_frames(monkeypatch):
    monkeypatch.setattr(camera, "FRAMES", 5)
    filming = played("Film-v0", episodes=1, count=1)[1]
    assert [int(frame[0, 0, 0]) for frame in filming.frames] == [0, 4, 8, 12]
    monkeypatch.setattr(camera, "FRAMES", 7)
    filming = played("Film-Rough-v0", episodes=1, count=1)[1]
    assert [int(frame[0, 0, 0]) for frame in filming.frames] == [0, 8, 16, 24, 30]


def test_observed_images_are_filmed_side_by_side_and_nothing_is_rendered():
    RENDERED.value = 0
    filming = played("Film-Seen-v0")[1]
    assert RENDERED.value == 0 and not filming.problem
    expected = [np.concatenate([np.full((16, 16, 3), value, np.uint8) for value in (step, step + 100)], 1) for step in range(13)]
    np.testing.assert_array_equal(filming.frames, expected)


def test_an_episode_that_is_cut_off_by_a_failure_is_not_filmed():
    results, filming, _ = played("Film-Breaks-v0", count=1, episodes=1)
    assert [episode.length for episode in results] == [12] and not filming.problem
    assert [int(frame[0, 0, 0]) for frame in filming.frames] == list(range(13))


def test_large_images_are_reduced_to_their_mean_and_large_films_until_their_file_is_small(monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8)
    assert camera.shrink(image, 256).shape == (171, 256, 3) and camera.shrink(image, 600) is image
    np.testing.assert_allclose(camera.shrink(image, 300), image.reshape(200, 2, 300, 2, 3).mean((1, 3)), atol=1.01)  # rounded twice
    monkeypatch.setattr(camera, "BYTES", 200_000)
    filming = Camera.__new__(Camera)
    filming.frames = [camera.shrink(np.roll(image, shift, 1), 256) for shift in range(20)]
    frames = filming.film()
    assert frames.shape[0] == 20 and 64 <= frames.shape[2] < 256
    assert len(camera.encode_gif(frames, 20)) < 220_000


# What cannot be filmed


@pytest.mark.parametrize("wrong", PROBLEMS)
def test_rendering_that_fails_ends_nothing_and_says_why(wrong):
    expected = played("Film-v0")[0]
    results, filming, _ = played(f"Film-{wrong.replace(' ', '-')}-v0", env_timeout=1)
    assert filming.problem.startswith(PROBLEMS[wrong]) and not filming.frames
    if wrong in ("dies", "hangs"):  # its process had to be replaced, with another seed
        assert [(episode.env, episode.length, episode.cut) for episode in results].count((0, 12, False)) == 2
    else:
        assert results == expected


def test_after_a_failure_nothing_is_rendered_again():
    envs = make_envs(tools.load_config(["debug"], {"task": "gym_Film-raises-v0"}), 1, training=False)
    RENDERED.value = 0
    cameras = []
    for _ in range(2):
        cameras.append(Camera(envs))
        play_episodes(Recorded(envs), cameras[-1], 1, seed=5)
    envs.close()
    assert RENDERED.value == 4  # steps 0 to 3
    assert cameras[0].problem == cameras[1].problem != ""


def test_an_environment_without_images_says_so():
    results, filming, _ = played("Film-Blind-v0")
    assert filming.problem == "observes no image and does not render rgb_array" and len(results) == 3


def test_a_constructor_without_render_mode_is_named():
    results, filming, _ = played("Film-Bare-v0")
    assert "cannot be built with render_mode='rgb_array': TypeError" in filming.problem and len(results) == 3


# Runs, pages and the command


FLAGS = "--configs defaults debug --device cpu --time_limit 0 --steps 120 --eval_every 60".split()


def run(logdir, task: str, *flags: str) -> list[dict]:
    assert dreamer.main([*FLAGS, "--task", task, "--logdir", str(logdir), *flags]) == 0
    return [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def filmed(registered, tmp_path_factory):
    """The folder of a run whose evaluations play one episode."""
    logdir = tmp_path_factory.mktemp("run") / "run"
    run(logdir, "gym_Film-v0", "--eval_episode_num", "1", "--eval_envs", "1")
    return logdir


def test_a_run_writes_the_film_of_an_episode_at_each_evaluation(filmed):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert sorted(path.name for path in (filmed / "videos").iterdir()) == ["episode_000000060.gif", "episode_000000120.gif"]
    lines = [json.loads(line) for line in (filmed / "metrics.jsonl").read_text().splitlines()]
    (expected,) = [line["eval/return"] for line in lines if line["step"] == 120 and "eval/return" in line]
    with Image.open(filmed / "videos" / "episode_000000120.gif") as video:
        assert video.n_frames == 13 and video.size == (6, 4)
        assert video.info["comment"].decode() == f"return {expected:.4g}, 12 steps"
    events = EventAccumulator(str(filmed), size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Images("episode")] == [60, 120]


def test_the_page_of_a_run_shows_the_film_and_its_return(filmed):
    text = (filmed / "report" / "index.html").read_text()
    with Image.open(filmed / "videos" / "episode_000000120.gif") as video:
        assert f"a real episode, played by the agent at frame 120, {video.info['comment'].decode()}<" in text
    assert 'src="../videos/episode_000000120.gif"' in text and "episode_000000060" not in text


def test_a_damaged_film_does_not_cost_the_page(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "episode_000000120.gif").write_bytes(b"GIF89a")
    assert "played by the agent at frame 120<" in run_page.videos(tmp_path, "frame")


def test_the_pages_of_run_and_latents_link_to_each_other(filmed, tmp_path):
    page, latents = filmed / "report" / "index.html", filmed / "latents" / "index.html"
    assert "latents/index.html" not in page.read_text()
    assert latent_report.main([str(filmed), "--device", "cpu", "--envs", "4", "--steps", "300"]) == 0
    assert 'href="../latents/index.html"' in page.read_text() and 'href="../report/index.html"' in latents.read_text()
    run_page.write(filmed, {}, training=True)
    training = page.read_text()
    run_page.refresh(filmed)  # leaves the page to the run
    assert page.read_text() == training
    run_page.refresh(tmp_path)
    assert not list(tmp_path.iterdir())
    run_page.write(filmed, run_page.read_settings(filmed))


def test_without_videos_nothing_is_filmed_and_the_run_is_the_same(filmed, tmp_path):
    RENDERED.value = 0
    lines = run(tmp_path, "gym_Film-v0", "--eval_episode_num", "1", "--eval_envs", "1", "--video_pred_log", "false")
    assert RENDERED.value == 0 and not (tmp_path / "videos").exists()
    with_films = [json.loads(line) for line in (filmed / "metrics.jsonl").read_text().splitlines()]
    assert [{key: value for key, value in line.items() if "per_second" not in key and "fps" not in key} for line in lines] == [
        {key: value for key, value in line.items() if "per_second" not in key and "fps" not in key} for line in with_films
    ]


def test_a_run_that_cannot_be_filmed_says_so_once(tmp_path, capsys):
    run(tmp_path, "gym_Film-Blind-v0")
    printed = capsys.readouterr().out
    assert printed.count("no film of evaluations: gym_Film-Blind-v0 observes no image and does not render rgb_array") == 1
    assert printed.count("no film") == 1 and not (tmp_path / "videos").exists()


def test_the_command_films_the_environment_beside_the_curves(filmed, tmp_path, capsys, monkeypatch):
    frames = []
    encode = film.number_frames
    monkeypatch.setattr(film, "number_frames", lambda views: iter([frame for frame in encode(views) if frames.append(frame) is None]))
    video = tmp_path / "out.gif"
    assert evaluate.main([str(filmed), "--device", "cpu", "--episodes", "0", "--video", str(video)]) == 0
    with Image.open(video) as opened:
        assert opened.n_frames == len(frames) == 13 and opened.width == frames[0].shape[1] + 6 + film.MARGIN
        for step in (0, 5, 12):
            opened.seek(step)
            picture = np.asarray(opened.convert("RGB"))[film.BAND : film.BAND + 4, film.MARGIN : film.MARGIN + 6]
            assert abs(int(picture[0, 0, 0]) - step) <= 8  # the palette of a GIF is coarse
    assert "no rendered images" not in capsys.readouterr().out


def test_the_command_says_why_the_environment_is_not_in_the_film(tmp_path, capsys):
    run(tmp_path, "gym_Film-raises-v0", "--steps", "60", "--eval_every", "0")
    assert evaluate.main([str(tmp_path), "--device", "cpu", "--episodes", "0", "--video", str(tmp_path / "out.gif")]) == 0
    printed = capsys.readouterr().out
    assert "no rendered images: gym_Film-raises-v0 cannot be rendered: ZeroDivisionError" in printed and "13 steps" in printed


def test_cartpole_is_filmed(tmp_path):
    pytest.importorskip("pygame")
    run(tmp_path, "gym_CartPole-v1")
    with Image.open(tmp_path / "videos" / "episode_000000120.gif") as video:
        assert video.size == (256, 171)
        video.seek(video.n_frames - 1)
        colours = {colour for _, colour in video.convert("RGB").getcolors(10**6)}
    assert (255, 255, 255) in colours and (0, 0, 0) in colours  # background and cart
