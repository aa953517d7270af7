"""Runs that an earlier version has begun: its presets for two levels had other sizes and half a free nat for each level."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import torch

import dreamer
import settings
from checkpoints import load

RUNS = pathlib.Path(__file__).parent / "data" / "earlier_runs"
# The commands that they were begun with, but for --steps and --logdir.
COMMANDS = {
    "flat": "--configs defaults debug --task gym_CartPole-v1 --device cpu --eval_every 100",
    "two_levels": "--configs defaults debug hdreamer --task gym_CartPole-v1 --device cpu --eval_every 100 --initial zeros",
}
NOTE = (
    "Kept from the stored run, where presets and defaults say otherwise: "
    "dyn_stoch_top 2 (now 4), dyn_stoch_bottom 2 (now 4), kl_free 0.5 (now 1.0)"
)
SIZES = {"flat": {"flat": (4, 4)}, "two_levels": {"top": (2, 4), "bottom": (2, 4)}}


@pytest.fixture(params=RUNS.iterdir(), ids=lambda path: path.name)
def earlier_run(request, tmp_path) -> pathlib.Path:
    return shutil.copytree(request.param, tmp_path / request.param.name)


@pytest.fixture
def two_levels(tmp_path) -> pathlib.Path:
    return shutil.copytree(RUNS / "two_levels", tmp_path / "two_levels")


def go_on(run: pathlib.Path, *flags: str) -> int:
    return dreamer.main([*COMMANDS[run.name].split(), "--steps", "300", "--logdir", str(run), *flags])


def changed(run: pathlib.Path) -> dict[str, tuple[str, str]]:
    lines = map(json.loads, (run / "config_changes.jsonl").read_text().splitlines())
    return {line["setting"]: (line["from"], line["to"]) for line in lines}


def test_the_same_command_goes_on_with_the_sizes_and_free_nats_that_the_run_began_with(earlier_run, capsys):
    assert go_on(earlier_run) == 0
    output = capsys.readouterr().out
    assert "Resuming at frame 150 after 18 updates" in output
    assert output.count("Kept from the stored run") == output.count(NOTE) == (earlier_run.name == "two_levels")
    checkpoint = load(earlier_run / "latest.pt")
    assert checkpoint["step"] == 300 and checkpoint["updates"] > 18
    for config in (checkpoint["config"], settings.read_yaml(earlier_run / "config.yaml")):
        assert settings.level_sizes(config) == SIZES[earlier_run.name]
        assert config["kl_free"] == (1.0 if earlier_run.name == "flat" else 0.5)
    assert changed(earlier_run) == {"steps": ("150", "300")}


def test_a_run_that_has_gone_on_goes_on_again_with_the_same_note(two_levels, capsys):
    assert go_on(two_levels) == 0 and go_on(two_levels, "--steps", "310") == 0
    assert capsys.readouterr().out.count(NOTE) == 2


def test_a_size_that_is_given_and_differs_is_refused(two_levels, capsys):
    before = (two_levels / "latest.pt").read_bytes()
    assert go_on(two_levels, "--dyn_stoch_top", "3") == 2
    assert "dyn_stoch_top 2 -> 3" in capsys.readouterr().err
    assert (two_levels / "latest.pt").read_bytes() == before


@pytest.mark.parametrize("size", ["2", "1/2"])
def test_a_size_that_is_given_and_means_the_stored_one_is_no_change(two_levels, size):
    assert go_on(two_levels, "--dyn_stoch_top", size, "--dyn_discrete_top", "null") == 0
    assert changed(two_levels) == {"steps": ("150", "300")}


def test_another_number_of_levels_is_refused_and_nothing_is_kept(two_levels, capsys):
    assert go_on(two_levels, "--hierarchical_mode", "false") == 2
    output, errors = capsys.readouterr()
    assert "hierarchical_mode true -> false" in errors and "Kept" not in output


def test_free_nats_that_are_given_are_taken_and_recorded(two_levels, capsys):
    assert go_on(two_levels, "--kl_free", "0.7") == 0
    assert "kl_free" not in capsys.readouterr().out.split("Kept from")[1].splitlines()[0]
    assert load(two_levels / "latest.pt")["config"]["kl_free"] == 0.7
    assert changed(two_levels)["kl_free"] == ("0.5", "0.7")


def test_an_agent_of_an_earlier_run_loads_and_acts(earlier_run):
    agent = dreamer.load_agent(earlier_run, device="cpu")
    assert {name: (level.stoch, level.discrete) for name, level in agent._wm.dynamics.levels.items()} == SIZES[earlier_run.name]
    assert agent.updates == 18
    obs, state = {"vector": np.zeros((3, 4), np.float32)}, None
    for _ in range(2):
        actions, state = agent.act(obs, state)
        assert actions.shape == (3,) and set(actions.tolist()) <= {0, 1}


def test_earlier_and_new_files_hold_nothing_but_tensors_and_plain_values(earlier_run):
    earlier = torch.load(earlier_run / "latest.pt")  # weights_only is the default
    assert go_on(earlier_run) == 0
    new = torch.load(earlier_run / "latest.pt")
    assert new["agent_state_dict"].keys() == earlier["agent_state_dict"].keys() and new.keys() >= earlier.keys()
    dreamer.load_agent(earlier_run, device="cpu")


# What is kept, without a run


def stored_and_now(stored: dict, presets: list[str], **given) -> tuple[str | None, settings.Config]:
    """The note, and the settings after what is stored has been kept, for a run that began with `small hdreamer` of today."""
    before = settings.plain(settings.load_config(["small", "hdreamer"], {"initial": "zeros", **stored}))
    config = settings.load_config(presets, given)
    return settings.keep_stored(config, before), config


def test_what_means_the_same_is_not_told_whatever_it_is_called():
    numbers = {"dyn_stoch_top": 16, "dyn_discrete_top": 16, "dyn_stoch_bottom": 16, "dyn_discrete_bottom": 16}
    note, config = stored_and_now(numbers, ["hdreamer", "small"], initial="zeros")
    assert note is None and config.dyn_stoch_top == "1/1"
    note, config = stored_and_now({}, ["hdreamer", "small"], initial="zeros", **numbers)
    assert note is None and config.dyn_stoch_top == 16


def test_flags_that_were_left_out_are_kept():
    note, config = stored_and_now({"dyn_stoch": 6, "kl_free": 0.25}, ["small", "hdreamer_split"])
    assert settings.level_sizes(config) == {"top": (6, 16), "bottom": (6, 16)}
    assert (config.kl_free, config.initial) == (0.25, "zeros")
    assert note.endswith(": dyn_stoch_top 6 (now 8), dyn_stoch_bottom 6 (now 8), initial zeros (now learned), kl_free 0.25 (now 1.0)")


def test_sizes_of_the_networks_are_kept_and_what_is_no_settings_keeps_nothing():
    before = settings.plain(settings.load_config(["small", "hdreamer"], {"actor.layers": 3, "actor.lr": 0.1}))
    config = settings.load_config(["small", "hdreamer"], {"units": 64})
    assert settings.keep_stored(config, before).endswith(": actor.layers 3 (now 2)")
    assert (config.actor.layers, config.units) == (3, 64) and "actor.layers" not in config.given
    for other in (None, {}, {"encoder": 1}, settings.plain(settings.load_config(["small"], {"dyn_stoch": 3}))):
        config = settings.load_config(["small", "hdreamer"])
        assert settings.keep_stored(config, other) is None and config == settings.load_config(["small", "hdreamer"])


def test_a_flat_run_keeps_its_own_size_and_no_size_of_levels():
    stored = settings.plain(settings.load_config(["small"], {"dyn_stoch": 12, "dyn_stoch_top": 8}))
    config = settings.load_config(["small"])
    assert settings.keep_stored(config, stored).endswith(": dyn_stoch 12 (now 16)")
    assert (config.dyn_stoch, config.dyn_stoch_top) == (12, "1/1")


@pytest.mark.parametrize("name, value", [("dyn_stoch_top", "many"), ("kl_free", "half"), ("initial", None)])
def test_a_stored_value_that_is_none_is_refused_by_name(name, value):
    stored = {**settings.plain(settings.load_config(["hdreamer"])), name: value}
    with pytest.raises(ValueError, match=f"setting '{name}' is"):
        settings.keep_stored(settings.load_config(["hdreamer"]), stored)


def test_a_new_run_from_its_checkpoint_keeps_the_sizes_alone(two_levels, tmp_path, capsys):
    flags = ["--from_checkpoint", str(two_levels), "--logdir", str(tmp_path / "new"), "--steps", "200"]
    assert dreamer.main([*COMMANDS["two_levels"].split(), *flags]) == 0
    output = capsys.readouterr().out
    assert "Taken from the checkpoint: dyn_stoch_top 4 -> 2, dyn_stoch_bottom 4 -> 2\n" in output and "Kept" not in output
    config = load(tmp_path / "new" / "latest.pt")["config"]
    assert settings.level_sizes(config) == SIZES["two_levels"] and config["kl_free"] == 1.0


def test_sizes_that_are_given_are_not_replaced_by_those_of_a_checkpoint(two_levels, tmp_path, capsys):
    flags = ["--from_checkpoint", str(two_levels), "--logdir", str(tmp_path / "new"), "--dyn_stoch_top", "3"]
    assert dreamer.main([*COMMANDS["two_levels"].split(), *flags]) == 2
    assert "Flags that fit: --dyn_stoch_top 2 --dyn_discrete_top 4" in capsys.readouterr().err
