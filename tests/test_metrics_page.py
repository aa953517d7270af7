"""docs/metrics.md against runs: it names what a run logs, and nothing else."""

import itertools
import json
import pathlib
import re

import gymnasium
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

import dreamer
from test_documented_commands import DREAMER, OFFLINE

pytestmark = pytest.mark.slow

PAGE = (pathlib.Path(__file__).parent.parent / "docs" / "metrics.md").read_text()
# What none of the runs here logs.
ELSEWHERE = {
    "eval/score": "Crafter alone has a score, and its package is not installed",
    "episode/achievement_<name>": "the same package",
    "eval/achievement_<name>": "the same package",
    "episode/success": "Meta-World's package is not installed",
    "eval/success": "the same package",
}
RUNS = {
    "flat": {"debug_hierarchical": True},
    "two levels": {"presets": "hdreamer_split", "debug_hierarchical": True},
    "continuous actions": {"continuous": True},
    "plan2explore": {"expl_behavior": "plan2explore"},
    "2025": {"generation": "dreamerv3_2025", "presets": "hdreamer_split", "debug_hierarchical": True},
    "2025, plan2explore": {"generation": "dreamerv3_2025", "expl_behavior": "plan2explore"},
    "recorded, flat": {"offline_traindir": "flat", "offline_evaldir": "two levels", "debug_hierarchical": True},
    "recorded, two levels": {
        "presets": "hdreamer_split", "offline_traindir": "flat", "offline_evaldir": "two levels", "debug_hierarchical": True,
    },
}  # fmt: skip


class Coins(gymnasium.Env):
    """An image and a vector, with a coin at every third step."""

    observation_space = gymnasium.spaces.Dict(
        image=gymnasium.spaces.Box(0, 255, (16, 16, 3), np.uint8),
        vector=gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32),
        log_coins=gymnasium.spaces.Box(0.0, 1.0, (), np.float32),
    )
    action_space = gymnasium.spaces.Discrete(3)

    def observe(self):
        coin = np.float32(self.steps % 3 == 1)
        return {
            "image": self.np_random.integers(256, size=(16, 16, 3), dtype=np.uint8),
            "vector": np.zeros(2, np.float32),
            "log_coins": coin,
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action):
        self.steps += 1
        return self.observe(), 1.0, self.steps == 10, False, {}


class ContinuousCoins(Coins):
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """The folder of the runs."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def logged(folder) -> dict[str, list[dict]]:
    """The lines of metrics.jsonl of every run."""
    lines = {}
    for name, chosen in RUNS.items():
        flags = {**DREAMER, "size": [16, 16], "log_every": 30, "steps": 125, **(OFFLINE if "offline_traindir" in chosen else {})}
        flags |= {key: value for key, value in chosen.items() if key not in ("generation", "presets", "continuous")}
        flags |= {key: str(folder / value / "train_eps") for key, value in flags.items() if key.startswith("offline")}
        flags |= {"logdir": str(folder / name), "disag_models": 2, "disag_layers": 1, "disag_units": 8}
        words = ["--configs", "defaults", chosen.get("generation", "small"), *chosen.get("presets", "").split(), "--task", "gym_coins"]
        for key, value in flags.items():
            words += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
        assert dreamer.main(words, make_env=ContinuousCoins if chosen.get("continuous") else Coins) == 0
        lines[name] = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return lines


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def listed(text: str) -> list[str]:
    """The names in the first cells of tables."""
    cells = re.findall(r"^\| (`.+?`(?:, `.+?`)*) \|", text, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`(.+?)`", cell)]


def expanded(name: str) -> set[str]:
    """What a name on the page stands for in the runs of this file."""
    model = [other for title in ("World model", "Latent levels") for other in listed(section(title))]
    behavior = [other.removeprefix("train/") for title in ("Actor", "Critic") for other in listed(section(title))]
    if name == "eval/<name>":
        measured = [other for other in model if not other.endswith(("_grad_norm", "_skipped"))]
        return {"eval/" + other.removeprefix("train/") for pattern in measured for other in expanded(pattern)}
    if name == "train/expl_<name>":
        return {f"train/expl_{other}" for other in behavior}
    choices = {"<level>": ("flat", "top", "bottom"), "<image>": ("image",), "<vector>": ("vector",), "<key>": ("coins",)}
    parts = [choices.get(part, (part,)) for part in re.split(r"(<\w+>)", name)]
    return {"".join(chosen) for chosen in itertools.product(*parts)}


def test_every_logged_name_is_on_the_page_and_every_name_on_the_page_is_logged(logged):
    names = [name for name in listed(PAGE) if name not in {*ELSEWHERE, *listed(section("Videos"))}]
    assert len(names) == len(set(names)) > 40
    on_page = set().union(*map(expanded, names))
    in_runs = {name for lines in logged.values() for line in lines for name in line}
    assert sorted(in_runs - on_page) == []
    assert sorted(on_page - in_runs) == []


def test_tensorboard_has_the_same_names_and_the_videos_of_the_page(logged, folder):
    events = [event for path in (folder / "two levels").glob("events.*") for event in EventFileLoader(str(path)).Load()]
    tags = {value.tag for event in events for value in event.summary.value}
    videos = {name.replace("<image>", "image") for name in listed(section("Videos"))}
    assert tags == {name for line in logged["two levels"] for name in line if name != "step"} | videos


def test_names_that_these_runs_do_not_log_are_on_the_page():
    assert set(ELSEWHERE) <= set(listed(PAGE))


def test_what_the_page_says_of_values_holds(logged):
    lines = [line for lines in logged.values() for line in lines]

    def values(name: str) -> list[float]:
        return [line[name] for line in lines if name in line]

    assert set(values("episode/coins")) == {4.0} == set(values("eval/coins"))  # at steps 1, 4, 7 and 10
    assert set(values("episode/length")) == {10.0}
    first = [next(line for line in logged[name] if "train/reward_loss" in line) for name in RUNS]
    assert [line["train/reward_loss"] for line in first] == pytest.approx([np.log(255)] * len(first), abs=0.3)
    assert max(values("train/value_loss")) <= 2 * np.log(255) + 0.1
    assert max(values("train/replay_value_loss")) <= 2 * np.log(255) + 0.1
    for line in logged["2025"]:
        if "train/agent_loss" in line:
            parts = [line[f"train/{name}_loss"] for name in ("model", "actor", "value")]
            assert line["train/agent_loss"] == pytest.approx(sum(parts) + 0.3 * line["train/replay_value_loss"], rel=1e-4)
    assert min(values("train/return_scale")) == 1.0
    for name, levels in (("flat", 1), ("two levels", 2)):
        for line in logged[name]:
            if "train/dyn_loss" in line:
                assert line["train/dyn_loss"] == pytest.approx(line["train/rep_loss"]) and line["train/dyn_loss"] >= levels - 1e-6
    assert not any("time/fps" in line for name, lines in logged.items() if name.startswith("recorded") for line in lines)
    assert not any(name.endswith("_skipped") and line[name] for line in lines for name in line)
