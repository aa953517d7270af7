"""Probes of finished runs by groups of variables: means, motion and the table, by hand; and the script itself."""

import json

import numpy as np
import pytest

from benchmarks import probing
from envs.atari import MEMORY

pytestmark = pytest.mark.slow


def test_means_of_groups_are_those_of_their_variables_that_change():
    trained = {"z": {"pose[0]": 0.5, "pose[3]": 0.9, "key[1]": -0.2, "reward": 1.0}, "h": {"pose[0]": 1.0, "pose[3]": 0.2, "key[1]": 0.3}}
    probes = {
        "trained": {name: {key: {"share": share, "low": None} for key, share in row.items()} for name, row in trained.items()},
        "untrained": {"z": {"pose[0]": 0.1, "pose[3]": 0.3, "key[1]": 0.0}, "h": {"pose[0]": 0.0, "pose[3]": -0.1, "key[1]": 0.7}},
    }
    groups = {"own pose": ("pose",), "own motion": ("motion",), "objects": ("key", "carrying")}
    assert probing.group_means(groups, probes) == {
        "own pose": {"variables": ["pose[0]", "pose[3]"], "trained": {"z": 0.7, "h": 0.6}, "untrained": {"z": 0.2, "h": -0.05}},
        "objects": {"variables": ["key[1]"], "trained": {"z": -0.2, "h": 0.3}, "untrained": {"z": 0.0, "h": 0.7}},
    }


def test_motion_in_boxing_is_the_difference_to_the_step_before():
    memory = np.zeros((1, 3, 128), np.uint8)
    for name, places in {"player x": (5, 3, 3), "player y": (9, 10, 4), "enemy x": (250, 255, 1), "enemy y": (7, 7, 8)}.items():
        memory[0, :, MEMORY["boxing"][name]] = places
    data = {"log_memory": memory, "reward": np.zeros((1, 3))}
    found = probing.with_motion(data, "atari_boxing")
    assert list(data) == ["log_memory", "reward"] and probing.with_motion(data, "atari_pong") is data
    assert found["log_state_player motion"].tolist() == [[[0, 0], [-2, 1], [0, -6]]]
    assert found["log_state_enemy motion"].tolist() == [[[0, 0], [5, 0], [-254, 1]]]


@pytest.mark.parametrize("task, group", [("minigrid_DoorKey-5x5-v0", "own pose"), ("atari_boxing", "opponent's position")])
def test_tasks_have_groups(task, group):
    assert group in probing.groups_of(task)
    with pytest.raises(ValueError, match="'atari_pong'; groups .* minigrid_, atari_boxing"):
        probing.groups_of("atari_pong")


def test_the_table_has_means_over_seeds_beside_those_of_untrained_networks():
    plan = {
        "tasks": {"boxing": {"title": "Boxing", "flags": {"task": "atari_boxing"}}},
        "variants": {"flat": {"title": "flat"}, "hdreamer": {"title": "two levels"}},
    }

    def result(task: str, variant: str, group: str, trained: dict, untrained: dict) -> dict:
        return {"task": task, "variant": variant, "groups": {group: {"trained": trained, "untrained": untrained}}}

    two_levels = {"z_top": 0.1, "z_bottom": 0.8, "z_top + z_bottom": 0.82, "h": 0.9, "z_top + h": 0.0}
    zeros = dict.fromkeys(two_levels, 0.0)
    found = [
        result("atari_boxing", "flat", "own position", {"z": 0.5, "h": 0.25}, {"z": 0.1, "h": 0.0}),
        result("atari_boxing", "flat", "own position", {"z": 0.75, "h": 0.75}, {"z": 0.2, "h": -0.5}),
        result("atari_boxing", "hdreamer", "own position", two_levels, zeros),
        result("minigrid_Empty-5x5-v0", "hdreamer", "objects", two_levels, zeros),
    ]
    header, _, *lines = ([cell.strip() for cell in line[1:-1].split("|")] for line in probing.probing_table(plan, found).splitlines())
    assert header[2:5] == ["flat: `z`", "flat: `h`", "two levels: `z_top`"] and header[-1] == "seeds: flat, two levels"
    trained = ["0.10 (0.00)", "0.80 (0.00)", "0.82 (0.00)", "0.90 (0.00)"]
    assert lines[0] == ["Boxing", "own position", "0.62 (0.15)", "0.50 (-0.25)", *trained, "2, 1"]
    assert lines[1] == ["Boxing", "own motion", *[""] * 6, "0, 0"]
    assert lines[-1] == ["minigrid_Empty-5x5-v0", "objects", "", "", *trained, "0, 1"]
    assert len(lines) == 5 + 3


@pytest.mark.parametrize("trained", ["two levels"], indirect=True)
def test_a_finished_run_is_measured_once(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("scale.plan.RESULTS", tmp_path)
    monkeypatch.setattr(probing, "STEPS", 8 * 40)
    monkeypatch.setattr(probing, "GROUPS", {"gym_CartPole": {"own pose": ("vector",)}})
    probing.main([str(trained.logdir)])
    path = tmp_path / "probing" / "gym_CartPole-v1-hdreamer-0.json"
    result = json.loads(path.read_text())
    assert (result["task"], result["variant"], result["seed"], result["frames"]) == ("gym_CartPole-v1", "hdreamer", 0, 60)
    group = result["groups"]["own pose"]
    assert group["variables"] == [f"vector[{index}]" for index in range(4)]
    assert group["trained"].keys() == group["untrained"].keys() >= {"z_top", "z_bottom", "h", "z_top + z_bottom + h"}
    cells = f"| own pose |  |  | {group['trained']['z_top']:.2f} ({group['untrained']['z_top']:.2f}) |"
    assert cells in capsys.readouterr().out
    monkeypatch.setattr(probing, "play", None)
    probing.main([str(trained.logdir)])  # is not measured again
    monkeypatch.setattr(probing, "STEPS", 8 * 50)
    with pytest.raises(SystemExit, match="other settings .played."):
        probing.main([str(trained.logdir)])
