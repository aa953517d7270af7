"""What environments and machines of strangers do to the data of a run: names, images, numbers, memory and very long episodes."""

import io
import json
import pathlib
import re
import resource
import tracemalloc

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import console
import dreamer
import replay
import tools
from benchmarks import trial
from collect import Collector, OpenEpisode
from envs.names import LOSSES
from envs.spaces import ActionCodec, ObservationCodec
from models import WorldModel
from pages import curves
from replay import Replay
from storage import archives, arrays, memory
from storage.episodes import load_episode, save_episode, stored_steps
from storage.files import json_text
from storage.memory import Free
from test_offline import episode, survey, write
from training import logs, offline

# Names

NAMES = ["file", "allow_pickle", "self", "a b", "x/y", "x", "X", "x.npy", "größe", "<b>&\"'", "..x", "100%", "k" * 200]
NOT_STORED = ["/x", "a\\b", "a\nb"]


def test_arrays_of_any_name_that_is_allowed_come_back(tmp_path):
    values = {name: np.full((4, 2), number, np.float64) for number, name in enumerate(NAMES)}
    path = save_episode(tmp_path, {**episode(4), **values})
    found = load_episode(path)
    assert found.keys() == {*episode(4), *NAMES, "discount"}
    for name, value in values.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == np.float64 and found[name].flags.writeable
    assert load_episode(path, ["x", "is_last"]).keys() == {"x", "is_last"}
    assert np.load(path)["größe"].shape == (4, 2)  # as numpy writes it


def test_arrays_of_any_shape_and_order_come_back_as_numpy_reads_them(tmp_path):
    values = {"none": np.zeros((0, 3)), "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "one": np.float32(7)}
    values["large"] = np.arange(arrays.PIECE, dtype=np.int32).reshape(-1, 2)
    arrays.write(tmp_path / "file.npz", values)
    with arrays.zipfile.ZipFile(tmp_path / "file.npz") as archive:
        found = arrays.read(archive, archives.headers_in(archive))
    with np.load(tmp_path / "file.npz") as expected:
        assert found.keys() == set(expected) == set(values)
        for name, value in found.items():
            np.testing.assert_array_equal(value, expected[name])
            assert value.dtype == expected[name].dtype and value.shape == expected[name].shape


@pytest.mark.parametrize("name", [*NOT_STORED, "k" * 201, "../x", "discount", "logprob", "log_return", "log_length"])
def test_a_name_that_cannot_be_stored_or_is_taken_is_refused_in_one_line(name):
    with pytest.raises(ValueError, match="rename it in a wrapper") as caught:
        ObservationCodec(spaces.Dict({name: spaces.Box(-1, 1, (2,))}), (16, 16))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("name", NOT_STORED)
def test_a_part_of_an_action_has_a_name_that_can_be_stored(name):
    with pytest.raises(ValueError, match="rename it in a wrapper"):
        ActionCodec(spaces.Dict({name: spaces.Discrete(2)}))


@pytest.mark.parametrize("name", ["items", "type", "keys", "training", "forward", "to", "_modules"])
def test_a_name_that_modules_have_themselves_is_refused_with_the_reason(name):
    words = f"the observation or action '{name}' has a name that PyTorch's modules use themselves; rename it in a wrapper"
    with pytest.raises(ValueError, match=words):
        ObservationCodec(spaces.Dict({"a": spaces.Discrete(2), name: spaces.Box(-1, 1, (2,))}), (16, 16))
    with pytest.raises(ValueError, match=words):
        ActionCodec(spaces.Dict({"a": spaces.Discrete(2), name: spaces.Discrete(2)}))
    ObservationCodec(spaces.Dict({"arm": spaces.Dict({name: spaces.Box(-1, 1, (2,))})}), (16, 16))  # arm/items


def test_a_name_of_a_loss_is_refused_for_an_observation_and_free_for_an_action():
    page = (pathlib.Path(__file__).parent.parent / "docs" / "metrics.md").read_text()
    documented = set(re.findall(r"^\| `train/(\w+)_loss`", page, re.MULTILINE)) - {"reward", "cont"}  # these are refused elsewhere
    assert set(LOSSES) == documented | {"expl_actor", "expl_value"}
    config = tools.load_config(["debug"], {"task": "gym_x", "device": "cpu"})
    for name in LOSSES:
        space = spaces.Dict({"position": spaces.Box(-1, 1, (2,)), name: spaces.Box(-1, 1, (2,))})
        words = f"the observation key '{name}' is the name of a loss of the agent, train/{name}_loss; rename it in a wrapper"
        with pytest.raises(ValueError, match=words):
            ObservationCodec(space, (16, 16))
        with pytest.raises(ValueError, match=words):  # as the observations of recorded episodes
            WorldModel(space, 2, config)
        assert ActionCodec(spaces.Dict({name: spaces.Discrete(2)})).size == 2


@pytest.mark.parametrize("presets", [["debug"], ["dreamerv3_2025", "debug"]])
def test_every_observation_has_a_loss_of_its_own_beside_those_of_the_agent(presets):
    config = tools.load_config(presets, {"task": "gym_x", "device": "cpu", "precision": "32", "dyn_deter": 32})
    config.expl_behavior = "plan2explore"
    space = spaces.Dict({"a": spaces.Box(-np.inf, np.inf, (2,)), "kl": spaces.Box(-np.inf, np.inf, (1,))})
    agent = dreamer.Dreamer(space, spaces.Discrete(2), config)
    flags = {key: np.zeros((2, 4), bool) for key in ("is_first", "is_last", "is_terminal")}
    batch = {"a": np.zeros((2, 4, 2)), "kl": np.zeros((2, 4, 1)), "reward": np.zeros((2, 4)), "action": np.eye(2)[np.zeros((2, 4), int)]}
    found = {name.removesuffix("_loss") for name in agent.update({**batch, **flags}) if name.endswith("_loss")}
    assert found - {*LOSSES, "reward", "cont"} == {"a", "kl"}


@pytest.mark.parametrize("name", NOT_STORED)
def test_the_names_that_are_refused_are_those_that_would_not_be_read_again(name):
    with pytest.raises(archives.Unsafe):
        archives.check_names([f"{name}.npy"])


class Named(gymnasium.Env):
    """Episodes of 11 steps with vectors of many names."""

    def __init__(self):
        self.names = [name for name in NAMES if "." not in name] + ["args"]
        self.observation_space = spaces.Dict({name: spaces.Box(-9.0, 9.0, (2,), np.float64) for name in self.names})
        self.action_space = spaces.Dict({"file": spaces.Discrete(2), "self go": spaces.Box(-1.0, 1.0, (2,))})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_number = 0
        return self._observation(), {}

    def step(self, action):
        self.step_number += 1
        return self._observation(), 1.0, False, self.step_number == 11, {}

    def _observation(self):
        return {name: np.array([index, self.step_number / 10]) for index, name in enumerate(self.names)}


@pytest.mark.slow
def test_a_run_with_strange_names_is_resumed_and_its_episodes_are_learned_from(tmp_path, capsys):
    gymnasium.register("StrangeNames-v0", Named)
    start = ["--configs", "dreamerv3_2025", "debug", "--task", "gym_StrangeNames-v0", "--device", "cpu"]
    online = [*start, "--eval_every", "0", "--logdir", str(tmp_path / "run")]
    assert dreamer.main([*online, "--steps", "60", "--prefill", "30"]) == 0
    assert dreamer.main([*online, "--steps", "80", "--prefill", "30"]) == 0
    output = capsys.readouterr().out
    assert "with 60 steps in memory" in output and "66 of the observations in memory have the latents that they had" in output
    stored = load_episode(next((tmp_path / "run" / "train_eps").glob("*-12.npz")))
    for index, name in enumerate(Named().names):
        np.testing.assert_allclose(stored[name][:, 0], index)
        np.testing.assert_allclose(stored[name][:, 1], np.arange(12) / 10, rtol=1e-6)
    recorded = ["--offline_traindir", str(tmp_path / "run" / "train_eps"), "--logdir", str(tmp_path / "offline")]
    assert dreamer.main([*start, *recorded, "--steps", "2", "--eval_every", "2", "--eval_episode_num", "1"]) == 0
    lines = (tmp_path / "offline" / "metrics.jsonl").read_text().splitlines()
    assert {f"train/{name}_loss" for name in Named().names} <= set().union(*map(json.loads, lines))


# Images of another size


def blocks(side: int, count: int = 4) -> np.ndarray:
    """Images (count, 4 * side, 4 * side, 3) of 4 x 4 squares of one colour, which depends on square, channel and image."""
    squares = np.arange(count * 4 * 4 * 3, dtype=np.uint8).reshape(count, 4, 4, 3)
    return squares.repeat(side, 1).repeat(side, 2)


@pytest.mark.parametrize("told", [False, True], ids=["by the episodes", "by an environment"])
@pytest.mark.parametrize("gray", [False, True], ids=["colour", "gray"])
def test_recorded_images_are_resized_as_environments_resize_them_and_that_is_told_once(tmp_path, gray, told, capsys):
    folder = write(tmp_path / "recorded", *(episode(4, vector=None, image=blocks(12), start=start) for start in (0, 10)))
    settings = {"size": [16, 16], "grayscale": gray, "eval_every": 0}
    wanted = spaces.Dict({"image": spaces.Box(0, 255, (16, 16, 1 if gray else 3), np.uint8)})
    recording = survey(folder, (wanted, spaces.Discrete(2)) if told else None, **settings)
    assert recording.obs_space == wanted
    become = f"images 'image' of 48x48x3 become 16x16x{1 if gray else 3}"
    assert capsys.readouterr().out.count(become) == 1
    filled = offline.fill(recording, tools.load_config(["defaults", "debug"], {"task": "gym_X-v0", **settings}))
    expected = blocks(4)
    if gray:  # the channels of a pixel are n, n + 1, n + 2: 0.299 n + 0.587 (n + 1) + 0.114 (n + 2) = n + 0.815
        expected = expected[..., :1] + 1
    np.testing.assert_array_equal(filled._arrays["image"][0, :4], expected)
    codec = ObservationCodec(spaces.Box(0, 255, (48, 48, 3), np.uint8), (16, 16), gray)
    np.testing.assert_array_equal(codec(blocks(12)[2])["image"], expected[2])


def test_images_of_the_right_size_are_not_converted(tmp_path, capsys):
    folder = write(tmp_path / "recorded", episode(4, vector=None, image=blocks(4)))
    assert survey(folder, size=[16, 16]).obs_space["image"].shape == (16, 16, 3)
    assert "become" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_learns_from_images_of_84_by_84_and_measures_on_such(tmp_path, capsys):
    image = np.random.default_rng(0).integers(256, size=(14, 84, 84, 1), dtype=np.uint8)
    train, held_out = (str(write(tmp_path / name, episode(14, vector=None, image=image))) for name in ("train", "held_out"))
    flags = ["--task", "gym_Nowhere-v0", "--device", "cpu", "--offline_traindir", train, "--offline_evaldir", held_out]
    flags += ["--eval_episode_num", "0", "--eval_every", "2", "--steps", "2", "--actor.dist", "normal"]
    assert dreamer.main(["--configs", "debug", *flags, "--logdir", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.count("of 84x84x1 become 64x64x1") == 2  # once for each folder


# Numbers that are not finite


def strict(text: str) -> dict:
    """JSON as other programs read it."""

    def refuse(constant: str):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def test_a_mean_is_over_the_finite_values_and_the_file_is_json_for_every_reader(tmp_path, capsys):
    logger = logs.Logger(tmp_path)
    for loss, skipped in ((1.0, 0.0), (float("nan"), 1.0), (4.0, 0.0), (float("inf"), 1.0)):
        logger.add({"model_loss": torch.tensor(loss), "model_skipped": torch.tensor(skipped)}, prefix="train")
        logger.add({"return": loss}, prefix="episode")
        logger.add({"never": torch.tensor(float("nan")), "huge": 1e300}, prefix="mine")
    means = logger.write(7)
    line = strict((tmp_path / "metrics.jsonl").read_text())
    expected = {"train/model_loss": 2.5, "train/model_skipped": 0.5, "episode/return": 2.5, "mine/huge": pytest.approx(1e300)}
    assert means == expected and line == {"step": 7, **expected}
    output = capsys.readouterr().out
    assert "share of updates skipped model 0.5" in output and "never finite mine/never" in output
    logger.add({"never": float("nan")}, prefix="mine")
    assert logger.write(8) == {} and "never finite mine/never" in capsys.readouterr().out
    assert curves.read(tmp_path).damaged == 0


def test_metrics_of_earlier_versions_with_nan_and_infinity_are_read(tmp_path):
    lines = ['{"step": 1, "loss": NaN}', '{"step": 2, "loss": 3.0}', '{"step": 3, "loss": -Infinity}', '{"step": 4, "loss": null}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    found, damaged = curves.read(tmp_path)
    assert damaged == 0 and found["loss"].steps.tolist() == [1, 2, 3]
    assert [part.tolist() for part in curves.finite(found["loss"])] == [[2], [3.0]]


def test_other_json_has_null_for_what_is_no_number():
    text = json_text({"a": [1.5, float("nan")], "b": {"c": (float("-inf"), 2)}, "d": np.float64("nan"), "e": "NaN"})
    assert strict(text) == {"a": [1.5, None], "b": {"c": [None, 2]}, "d": None, "e": "NaN"}


def test_letters_that_a_terminal_lacks_do_not_end_the_run(monkeypatch):
    content = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(content, encoding="ascii"))
    with console.tolerant_output():
        console.say("größe")
    assert content.getvalue() == b"gr\\xf6\\xdfe\n"


# Memory


def system(root: pathlib.Path, groups: str, **files: str | int) -> pathlib.Path:
    """A file system whose machine has 1,000,000,000 free bytes; files are named by their paths with "__" for "/"."""
    content = {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:  976562 kB\nHugePages_Total: 0\n", "proc/self/cgroup": groups}
    content |= {f"sys/fs/cgroup/{name.replace('__', '/')}": text for name, text in files.items()}
    for name, text in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


def of_group(folder: str, limit, used: int, cached: int = 0, name: str = "memory.max") -> dict:
    stat = f"anon 5\ninactive_file {cached}\ntotal_inactive_file {cached}"
    usage = "memory.usage_in_bytes" if "bytes" in name else "memory.current"
    return {f"{folder}{name}": limit, f"{folder}{usage}": used, f"{folder}memory.stat": stat}


@pytest.mark.parametrize(
    "groups, files, free",
    [
        ("0::/", {}, 999_999_488),
        ("0::/job", of_group("job__", 500, 200, 50), 350),  # what was read from files once gives way
        ("0::/job", of_group("job__", "max", 200), 999_999_488),
        ("0::/job", of_group("job__", 500, 100, name="memory.high"), 400),
        ("0::/job/step", {**of_group("job__", 300, 100), **of_group("job__step__", 900, 50)}, 200),  # the groups above count too
        ("0::/host/container", of_group("", 600, 100), 500),  # its own group is the mounted one
        ("0::/job", of_group("job__", 500, 700), 0),
        ("\nnonsense\n7:\n0::/job", of_group("job__", 500, 200, 50), 350),  # other lines say nothing
        ("3:cpu:/a\n4:memory:/job\n0::/", of_group("memory__job__", 500, 200, 50, "memory.limit_in_bytes"), 350),
        ("4:cpu,memory:/job", of_group("memory__", 800, 200, 900, "memory.limit_in_bytes"), 800),
        ("4:memory:/", of_group("memory__", 9223372036854771712, 200, name="memory.limit_in_bytes"), 999_999_488),
    ],
)
def test_the_smallest_limit_of_machine_and_containers_is_the_free_memory(groups, files, free, tmp_path):
    found = memory.available_memory(system(tmp_path, groups, **files))
    assert found.bytes == free
    assert ("this machine" in found.limit) == (free > 10**6) == ("container" not in found.limit)


def test_a_limit_of_the_address_space_counts(tmp_path, monkeypatch):
    root = system(tmp_path, "0::/")
    (root / "proc/self/statm").write_text("1000 20 3 4 0 6 0\n")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (9_000_000, resource.RLIM_INFINITY))
    found = memory.available_memory(root)
    assert found.bytes == 9_000_000 - 1000 * resource.getpagesize() and "ulimit -v" in found.limit
    assert memory.available_memory(tmp_path / "nothing there") is None


def test_the_refusal_of_a_replay_memory_names_the_limit(monkeypatch):
    monkeypatch.setattr(replay, "available_memory", lambda: Free(2_000_000_000, "the memory limit of this container or job, 3.0 GB"))
    space = spaces.Dict({"image": spaces.Box(0, 255, (64, 64, 3), np.uint8)})
    with pytest.raises(ValueError, match=r"takes 12.\d GB, but 2.0 GB are free \(the memory limit of this container or job, 3.0 GB\)"):
        Replay(space, 2, capacity=10**6, streams=1, batch_size=1, batch_length=1)


# Very many episodes, and very long ones


def test_of_many_episodes_only_those_are_opened_that_fit_and_progress_is_shown(tmp_path, monkeypatch, capsys):
    content = save_episode(tmp_path / "one", episode(10)).read_bytes()
    (tmp_path / "many").mkdir()
    for number in range(300):
        (tmp_path / "many" / f"20260101T{number:06d}-{number:x}-10.npz").write_bytes(content if number >= 290 else b"damaged")
    monkeypatch.setattr(console, "SECONDS_OF_BRIEF", -1.0)
    space = spaces.Dict({"vector": spaces.Box(-np.inf, np.inf, (1,), np.float32)})
    stored = Replay(space, 2, capacity=95, streams=1, batch_size=1, batch_length=1)
    assert stored.load(tmp_path / "many") == 10 * 9
    output = capsys.readouterr()
    assert not output.err and "look for episodes: 10 of 95 steps" in output.out and "load: 1 of 10 episodes" in output.out
    assert sum(stored_steps(tmp_path / "many").values()) == 300 * 9


class Endless:
    """Environments whose episodes end after so many steps, or never. Observation and reward of step n are n and 1."""

    def __init__(self, count: int = 1, end: int | None = None, shape: tuple[int, ...] = (1,)):
        self.count, self._end = count, end
        self.obs_space = spaces.Dict({"vector": spaces.Box(-np.inf, np.inf, shape, np.float32)})
        self.act_space = spaces.Discrete(2)

    def reset(self, seed=None):
        self._number = 0
        return self._step()

    def send(self, actions):
        self._number = 0 if self._number == self._end else self._number + 1

    def recv(self):
        return self._step()

    def _step(self):
        first, last = (np.full(self.count, self._number == number) for number in (0, self._end))
        shape = (self.count, *self.obs_space["vector"].shape)
        values = {"vector": np.full(shape, self._number, np.float32), "log_mine": np.full((self.count, 1), 2.0, np.float32)}
        return {**values, "reward": 1.0 - first.astype(np.float32), "is_first": first, "is_last": last, "is_terminal": last}


class Right:
    """Always takes the second action."""

    def act(self, obs, state, training):
        count = len(obs["reward"])
        return np.ones(count, int), {"action": torch.eye(2)[torch.ones(count, dtype=int)]}


@pytest.fixture
def parts_of_ten(monkeypatch):
    """Episodes are written in parts of ten observations."""
    monkeypatch.setattr(OpenEpisode, "MOST_BYTES", 9.5 * OpenEpisode.STEP_BYTES)
    monkeypatch.setattr(OpenEpisode, "STEP_BYTES", OpenEpisode.STEP_BYTES - sum(value[0].nbytes for value in sizes().values()))


def sizes() -> dict[str, np.ndarray]:
    return {**Endless().reset(), "action": np.zeros((1, 2), np.float32)}


def collected(directory: pathlib.Path, steps: int, end: int | None, stored: Replay | None = None) -> list:
    """The episodes that a collector reports after so many steps and resets, the open one last."""
    collector, finished = Collector(Endless(end=end), stored, directory, seed=0, training=True), []
    for _ in range(steps):
        finished += collector.step(Right())[1]
    return finished + collector.close_episodes()


def test_a_long_episode_is_written_in_parts_that_add_up(tmp_path, parts_of_ten):
    (whole,) = collected(tmp_path, 25, end=25)
    assert whole.metrics == {"return": 25.0, "mine": 52.0, "length": 25} and not whole.cut
    names = list(stored_steps(tmp_path))
    parts = [load_episode(tmp_path / name) for name in names]
    assert [len(part["reward"]) for part in parts] == [10, 10, 8] and sum(stored_steps(tmp_path).values()) == 25
    assert len({name.split("-")[1] for name in names}) == 1
    assert [part["vector"][:, 0].tolist() for part in parts] == [list(range(10)), list(range(9, 19)), list(range(18, 26))]
    for part, terminal in zip(parts, (False, False, True)):
        length = len(part["reward"])
        assert part["is_first"].tolist() == [True] + (length - 1) * [False]
        assert part["is_last"].tolist() == (length - 1) * [False] + [True]
        assert part["is_terminal"].tolist() == (length - 1) * [False] + [terminal]
        assert part["reward"].tolist() == [0.0] + (length - 1) * [1.0] and part["action"].sum(1).tolist() == part["reward"].tolist()
    assert sum(part["log_mine"].sum() for part in parts) == 52.0


def test_replay_holds_a_long_episode_without_seams_and_its_parts_load_again(tmp_path, parts_of_ten):
    def memory_of(latents=None) -> Replay:
        return Replay(Endless().obs_space, 2, capacity=100, streams=1, batch_size=1, batch_length=30, latents=latents)

    layout = {"deter": ((1,), np.float32)}
    stored = memory_of(layout)
    (cut,) = collected(tmp_path, 25, end=None, stored=stored)
    assert cut.cut and cut.length == 25
    assert stored._arrays["is_first"][0, :26].tolist() == [True] + 25 * [False]
    assert stored._arrays["is_last"][0, :26].tolist() == 25 * [False] + [True]
    steps = np.stack([np.zeros(26, int), np.arange(26)], -1)
    stored.write_latents(steps, {"deter": np.arange(26, dtype=np.float32)[:, None]})
    stored.save_latents(tmp_path / "latents.npz")
    (tmp_path / "latents.npz").rename(tmp_path.parent / f"{tmp_path.name}.npz")
    again = memory_of(layout)
    assert again.load(tmp_path) == 25 and len(again) == 28
    assert again.load_latents(tmp_path.parent / f"{tmp_path.name}.npz") == 28
    np.testing.assert_array_equal(again._latents["deter"][0, :28, 0], again._arrays["vector"][0, :28, 0])
    assert again._arrays["is_first"][0, :28].nonzero()[0].tolist() == [0, 10, 20]


def test_an_episode_that_is_cut_right_behind_a_part_leaves_no_empty_file(tmp_path, parts_of_ten):
    (cut,) = collected(tmp_path, 9, end=None)
    assert cut.length == 9 and list(stored_steps(tmp_path).values()) == [9]


def test_episodes_that_follow_a_long_one_are_their_own(tmp_path, parts_of_ten):
    finished = collected(tmp_path, 12 + 1 + 12 + 1 + 3, end=12)
    assert [(found.length, found.cut) for found in finished] == [(12, False), (12, False), (3, True)]
    assert list(stored_steps(tmp_path).values()) == [9, 3, 9, 3, 3]
    assert len({name.split("-")[1] for name in stored_steps(tmp_path)}) == 3


def test_the_return_of_an_episode_in_parts_is_that_of_the_whole(tmp_path, parts_of_ten):
    collected(tmp_path / "train_eps", 25 + 1 + 14, end=25)
    (tmp_path / "metrics.jsonl").write_text('{"step": 25, "episode/return": 25.0}\n{"step": 39, "cut_off/return": 14.0}\n')
    config = tools.load_config([], {"task": "gym_CartPole-v1", "eval_every": 0})
    assert trial.read_returns(tmp_path, config) == {"training": [(25, 25.0)]}


def test_an_episode_that_never_ends_takes_no_more_than_its_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(OpenEpisode, "MOST_BYTES", 2**20)
    envs = Endless(shape=(1000,))  # at least 4 kB a step, 5 MB in all
    collector = Collector(envs, None, tmp_path, seed=0, training=True)
    tracemalloc.start()
    for _ in range(1200):
        collector.step(Right())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 2**20  # the steps, their copy as arrays, and the file
    assert sum(stored_steps(tmp_path).values()) > 800
