"""Runs of the JAX original as files: taken over by a run, refused when they do not fit or are damaged, written, and read again."""

import copy
import pathlib
import pickle
import random
import shutil

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import HealthCheck, given
from hypothesis import settings as trials
from hypothesis import strategies as st

import checkpoints
import dreamer
import settings
import tools
from benchmarks.reliability import mutations
from checkpoints import fitting, jax_original
from checkpoints.jax_original import __main__ as command
from checkpoints.jax_original import export, options
from dreamer import Dreamer
from envs.spaces import OneHot
from jax_cases import CHECKPOINTS, FOLDER, make_agent, new_agent, stored
from old_files import Payload, levels, same
from storage.episodes import stored_steps
from test_2025_checkpoints import NEW, TASK, assert_same_answers, trained

CARTPOLE, DUMMY = (FOLDER / name for name in CHECKPOINTS)


@pytest.fixture
def run(tmp_path) -> pathlib.Path:
    """A run of the original, to be changed."""
    return pathlib.Path(shutil.copytree(CARTPOLE, tmp_path / "run"))


def agent_file(run: pathlib.Path) -> pathlib.Path:
    return next(run.glob("ckpt/*/agent.pkl"))


def rewrite(run: pathlib.Path, **params) -> None:
    """Replaces arrays in an agent.pkl; None removes one. Names have __ for /."""
    data = pickle.loads(agent_file(run).read_bytes())
    for name, array in params.items():
        data["params"].pop(name.replace("__", "/"), None)
        if array is not None:
            data["params"][name.replace("__", "/")] = array
    agent_file(run).write_bytes(pickle.dumps(data, protocol=4))


def param(name: str) -> np.ndarray:
    return stored("checkpoint_cartpole")["params"][name].copy()


# Where it is


def test_a_run_its_ckpt_a_folder_in_that_and_the_file_are_the_same_checkpoint():
    file = agent_file(CARTPOLE)
    for path in (CARTPOLE, str(CARTPOLE), CARTPOLE / "ckpt", file.parent, str(file), file):
        assert checkpoints.locate(path) == file
        found = checkpoints.load(path)
        assert found["agent_steps"] == 3564 and same(dict(found["agent_state_dict"]), dict(checkpoints.load(file)["agent_state_dict"]))
    agent = new_agent("checkpoint_cartpole")
    agent.load_state_dict(found["agent_state_dict"])
    assert same(dict(agent.state_dict()), dict(make_agent("checkpoint_cartpole").state_dict()))
    assert agent._task_behavior.ema_vals.tolist() == pytest.approx([28.640251, 55.725388], rel=1e-6)


def test_the_newest_checkpoint_counts_and_one_without_the_file_done_does_not(run):
    newest = run / "ckpt" / "20270101T000000F000000"
    shutil.copytree(agent_file(run).parent, newest)
    (run / "ckpt" / "latest").write_text(newest.name)
    assert checkpoints.locate(run) == newest / "agent.pkl"
    (newest / "done").unlink()
    for path in (run, run / "ckpt", newest):
        with pytest.raises(ValueError, match="is incomplete, since it has no file 'done'; give another folder in"):
            checkpoints.load(path)


@pytest.mark.parametrize("name", ["../../elsewhere", "gone", "", ".", "..", "/etc", "x" * 5000])
def test_the_name_of_the_newest_checkpoint_leads_nowhere_else(run, name):
    (run / "ckpt" / "latest").write_text(name)
    with pytest.raises(ValueError, match="names .* where there is no agent.pkl"):
        checkpoints.load(run)


def test_other_files_are_named_with_what_can_be_read(tmp_path):
    with pytest.raises(
        ValueError, match=r"there is no checkpoint .* give a file, or a folder with a latest.pt or with a ckpt/\*/agent.pkl"
    ):
        checkpoints.load(tmp_path)
    (tmp_path / "checkpoint.ckpt").write_bytes(b"1")
    with pytest.raises(ValueError, match="checkpoint.ckpt is of an earlier version of DreamerV3 in JAX; only those of 2025"):
        checkpoints.load(tmp_path)


# Damaged, hostile and foreign files


def assert_refused(run: pathlib.Path, told: str) -> None:
    """Refused in one line, and nothing has changed."""
    agent = make_agent("checkpoint_cartpole")
    before = copy.deepcopy((dict(agent.state_dict()), agent.checkpoint()["optims_state_dict"]))
    with pytest.raises(ValueError, match=told) as error:
        agent.load_checkpoint(checkpoints.load(run))
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 1000
    assert same(before, (dict(agent.state_dict()), agent.checkpoint()["optims_state_dict"]))


def test_a_file_that_runs_code_is_refused_and_would_have_run_it(run, tmp_path):
    data = pickle.loads(agent_file(run).read_bytes())
    agent_file(run).write_bytes(pickle.dumps({**data, "counters": Payload(tmp_path / "attacked")}))
    assert_refused(run, "damaged or no checkpoint at all: it holds more than")
    assert not (tmp_path / "attacked").exists()
    pickle.loads(agent_file(run).read_bytes())
    assert (tmp_path / "attacked").exists()


NAN = np.array([np.nan], np.float32)
DAMAGE = {
    "a missing weight": ({"dyn__obslogit__bias": None}, "its optimizer has states without a parameter: opt/state/1/1/dyn/obslogit/bias"),
    "a missing core": ({"dyn__dyngru__kernel": None}, "lacks the parameter dyn/dyngru/kernel, which every agent has"),
    "a missing moment": ({"opt__state__2__1__dyn__obslogit__bias": None}, "lacks the parameter opt/state/2/1/dyn/obslogit/bias"),
    "one percentile": ({"retnorm__lo__value": None}, "lacks the parameter retnorm/lo/value"),
    "no slow critic": (
        {f"slowval__mlp__linear0__{leaf}": None for leaf in ("kernel", "bias")},
        "lacks the slow critic's slowval/mlp/linear0",
    ),
    "no step": ({"opt__step__value": None}, "lacks the parameter opt/step/value"),
    "a name in other digits": (
        {"slowval__mlp__linear00__kernel": param("slowval/mlp/linear0/kernel")},
        "no layer of hDreamer has: slowval",
    ),
    "an infinite count": ({"opt__step__value": np.array(np.inf, np.float32)}, "count different updates"),
    "an extra weight": ({"dyn__extra__kernel": np.ones((2, 2), np.float32)}, "parameters that no layer of hDreamer has: dyn/extra/kernel"),
    "an extra state": ({"opt__state__9__extra": np.ones(2, np.float32)}, "its optimizer has states without a parameter: opt/state/9/extra"),
    "a foreign normaliser": ({"valnorm__mean__value": np.float32([0.0])}, "no layer of hDreamer has: valnorm/mean/value"),
    "NaN in a weight": ({"con__head__logit__bias": NAN}, r"numbers that are not finite, in _wm\.heads\.cont\.mean_layer\.bias"),
    "NaN in a moment": ({"opt__state__1__1__con__head__logit__bias": NAN}, "not finite, in exp_avg_sq of _wm.heads.cont.mean_layer.bias"),
    "a negative square": (
        {"opt__state__1__1__con__head__logit__bias": -abs(param("con/head/logit/bias")) - 1},
        "has a negative exp_avg_sq",
    ),
    "another shape": ({"dyn__dynhid0__bias": np.ones(3, np.float32)}, r"opt/state/1/1/dyn/dynhid0/bias has the shape \(16,\), not \(3,\)"),
    "another rank": (
        {"dyn__dynin0__kernel": np.ones((16, 8, 1), np.float32)},
        "dyn/dynin0/kernel has the shape .*; it must have 2 dimensions",
    ),
    "no numbers": ({"con__head__logit__bias": np.ones(0, np.float32)}, "con/head/logit/bias has the shape .*; it must have 1 dimension"),
    "integers": ({"con__head__logit__bias": np.ones(1, np.int32)}, "con/head/logit/bias is of type int32, not float32"),
    "another count": ({"opt__state__3__count": np.array(7, np.int32)}, "count different updates: 7, 1378"),
    "a count of another shape": ({"opt__step__value": np.ones(2, np.int32)}, r"opt/step/value has the shape \(2,\), not \(\)"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_foreign_agent_is_refused_in_one_line_and_changes_nothing(run, damage):
    params, told = DAMAGE[damage]
    rewrite(run, **params)
    assert_refused(run, told)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", pickle.dumps(None), pickle.dumps({"params": {}}), pickle.dumps({"params": {"x": 1}})]
)
def test_files_that_hold_no_agent_are_refused(run, content):
    agent_file(run).write_bytes(content)
    assert_refused(run, "agent.pkl (cannot be read and is probably damaged|is damaged or no checkpoint at all)")


def test_a_cut_off_file_is_refused(run):
    content = agent_file(run).read_bytes()
    for part in range(1, 20):
        agent_file(run).write_bytes(content[: part * len(content) // 20])
        with pytest.raises(ValueError, match="cannot be read|damaged"):
            checkpoints.load(run)


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_mutated_files_load_or_are_refused_in_one_line(run, count):
    content, agent, outcomes = agent_file(run).read_bytes(), make_agent("checkpoint_cartpole"), {"loaded": 0, "refused": 0}
    for seed in range(count):
        agent_file(run).write_bytes(mutations.mutate_bytes(content, random.Random(seed)))
        try:
            agent.load_checkpoint(checkpoints.load(run))
            outcomes["loaded"] += 1
        except ValueError as error:
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 1000
            outcomes["refused"] += 1
    assert min(outcomes.values()) > count // 10  # a flipped bit of a weight makes another weight


OTHER_PROGRAM = {
    **{name: ("another", f"its networks have {name} another; hDreamer has ") for name in options.NETWORKS},
    "agent.dyn.rssm.stoch": (3, "its parameters tell a latent of 8 entries, its config.yaml of 3 x 4 and replay of 2 x 4"),
    "agent.opt.lr": ("fast", "setting 'model_lr' is 'fast'"),
    "agent.horizon": (0, "agent.horizon"),
}


def change_options(run: pathlib.Path, name: str, value) -> None:
    tree = settings.read_yaml(run / "config.yaml")
    *path, last = name.split(".")
    node = tree
    for part in path:
        node = node[part]
    node[last] = value
    with open(run / "config.yaml", "wb") as file:
        settings.write_yaml(tree, file)


@pytest.mark.parametrize("name", OTHER_PROGRAM)
def test_a_run_with_settings_that_have_no_counterpart_is_refused_by_name(run, name):
    value, told = OTHER_PROGRAM[name]
    change_options(run, name, value)
    with pytest.raises(ValueError, match=told) as error:
        checkpoints.load(run)
    assert "\n" not in str(error.value) and "cannot be taken over" in str(error.value)


def test_other_ways_of_learning_are_named(run):
    change_options(run, "agent.imag_loss.slowtar", True)
    change_options(run, "agent.repl_loss.lam", 0.5)
    found = make_agent("checkpoint_cartpole").load_checkpoint(checkpoints.load(run))
    assert found["notes"] == "it learned with agent.imag_loss.slowtar true (false here), agent.repl_loss.lam 0.5 (0.95 here)"


def test_settings_of_the_run_become_ours():
    config = checkpoints.load(DUMMY)["config"]
    flat = settings.flatten(config)
    expected = {
        "task": "dummy_disc", "optimizer": "laprop", "model_lr": 0.01, "warmup": 20, "batch_size": 8, "train_ratio": 40.0,
        "dyn_blocks": 4, "dyn_hidden": 3, "kl_free": 1.0, "imag_horizon": 16, "discount": 1 - 1 / 333, "size": [64, 64],
        "encoder.mlp_layers": 2, "encoder.cnn_depth": 2, "encoder.symlog_inputs": "numbers", "decoder.mlp_layers": 3,
        "decoder.blocks": 8, "critic.dist": "symexp_twohot",
    }  # fmt: skip
    assert {name: flat[name] for name in expected} == expected


def test_without_config_yaml_the_latent_is_grouped_as_the_agents_own(run):
    (run / "config.yaml").unlink()
    assert checkpoints.load(run)["agent_state_dict"]._metadata["_wm.dynamics"]["levels"] == [(2, 4)]  # as in the replay
    shutil.rmtree(run / "replay")
    found = checkpoints.load(run)
    assert "there is no config.yaml" in found["notes"]
    agent = make_agent("checkpoint_cartpole")
    report = agent.load_checkpoint(found)
    assert "latent of 2 categoricals of 4 classes" in report["format"] and "there is no config.yaml" in report["notes"]
    with pytest.raises(ValueError, match="holds no settings and task"):
        dreamer.load_agent(run)
    with pytest.raises(ValueError, match="the file does not tell its classes"):
        new_agent("checkpoint_cartpole", dyn_stoch=3, dyn_discrete=3).load_checkpoint(found)


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_every_name_of_a_setting_is_one_of_the_original(case):
    recorded = settings.flatten(settings.read_yaml(FOLDER / case / "config.yaml"))
    assert {*options.SAME.values(), *options.NETWORKS, *options.LEARNING} <= recorded.keys()
    for name, value in {**options.NETWORKS, **options.LEARNING}.items():
        assert recorded[name] == value, name
    config, learned = options.ours(settings.read_yaml(FOLDER / case / "config.yaml"), {})
    written = settings.flatten(options.theirs(settings.flatten(config)))
    assert not learned and {name: recorded[name] for name in written} == written


def test_atari_runs_of_the_original_name_our_task_and_environment(run):
    for task, expected in (
        ("atari_pong", {"task": "atari_pong", "action_repeat": 4, "sticky": True, "actions": "all"}),
        ("atari100k_pong", {"task": "atari_pong", "action_repeat": 4, "sticky": False, "actions": "needed"}),
        ("dmc_walker_walk", {"task": "dmc_walker_walk", "action_repeat": 1}),
    ):
        change_options(run, "task", task)
        config = checkpoints.load(run)["config"]
        assert {name: config[name] for name in expected} == expected


def test_the_flags_for_the_original_mean_the_same_agent():
    for presets, words in (([NEW, "size1m"], ["--configs", "size1m"]), ([NEW, "size50m"], ["--configs", "size50m"])):
        config = settings.flatten(tools.load_config(presets, {**TASK, "imag_horizon": 16}))
        assert options.flags(config) == " ".join([*words, "--task gym_X-v0 --batch_length 4 --run.train_ratio 512.0"])
    config = settings.flatten(checkpoints.load(DUMMY)["config"])
    words = options.flags(config).split()
    named = dict(zip(words[::2], words[1::2]))
    assert named["--agent.dyn.rssm.deter"] == "16" and named["--agent.dyn.rssm.blocks"] == "4" and named["--agent.opt.lr"] == "0.01"
    pong = settings.flatten(tools.load_config([NEW, "size1m"], {"task": "atari_pong", "device": "cpu"}))
    assert "--env.atari.sticky False --env.atari.actions needed" in options.flags(pong) and "--env.atari.size 64 64" in options.flags(pong)


def test_a_run_counts_frames_by_the_action_repeat_of_the_original(run):
    change_options(run, "task", "dmc_cartpole_swingup")
    change_options(run, "env.dmc.repeat", 2)
    assert jax_original.frames(checkpoints.load(run), 1) == 7128
    (run / "config.yaml").unlink()
    assert jax_original.frames(checkpoints.load(run), 3) == 10692


# Sizes


@pytest.mark.slow
@trials(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(top=st.integers(1, 4), bottom=st.integers(1, 4), top_classes=st.sampled_from([2, 4, 5]), bottom_classes=st.sampled_from([3, 4]))
def test_two_levels_fit_exactly_if_every_filled_slot_has_the_flat_classes(top, bottom, top_classes, bottom_classes):
    fits = top_classes == 4 and top + bottom >= 2 and (top >= 2 or bottom_classes == 4)
    check_levels((top, top_classes, bottom, bottom_classes), fits)


def check_levels(sizes: tuple[int, int, int, int], fits: bool) -> None:
    """Loads a flat agent into two levels of these sizes; if they do not fit, into those that the error names."""
    flat, agent, found = make_agent("checkpoint_cartpole"), new_agent("checkpoint_cartpole", **levels(*sizes)), checkpoints.load(CARTPOLE)
    if fits:
        agent.load_checkpoint(found)
    else:
        before = copy.deepcopy(dict(agent.state_dict()))
        with pytest.raises(fitting.DoesNotFit, match="a flat latent fills the slots") as error:
            agent.load_checkpoint(found)
        assert same(before, dict(agent.state_dict()))
        agent = loaded_with(error.value.flags, found)
    assert_same_answers(agent, flat)


@pytest.mark.parametrize("sizes, fits", [((1, 4, 1, 4), True), ((1, 4, 1, 3), False), ((2, 4, 3, 5), True), ((1, 2, 4, 4), False)])
def test_levels_fit_or_are_refused_with_flags_that_fit(sizes, fits):
    check_levels(sizes, fits)


def loaded_with(flags: str, found: dict) -> Dreamer:
    """An agent with the flags that an error names."""
    agent = new_agent("checkpoint_cartpole", **settings.parse_flags(flags.split())[1])
    agent.load_checkpoint(found)
    return agent


SIZES = {
    "dyn_deter": 32,
    "dyn_hidden": 9,
    "units": 7,
    "encoder.mlp_units": 5,
    "encoder.mlp_layers": 2,
    "dyn_blocks": 4,
    "dyn_img_layers": 3,
}


@pytest.mark.parametrize("name", [*SIZES, "actor.layers", "critic.layers", "decoder.mlp_layers"])
def test_a_size_that_differs_is_refused_with_flags_that_fit(name):
    agent, found = new_agent("checkpoint_cartpole", **{name: SIZES.get(name, 2)}), checkpoints.load(CARTPOLE)
    with pytest.raises(fitting.DoesNotFit, match=rf"{name} {SIZES.get(name, 2)} here, \d+ in the checkpoint") as error:
        agent.load_checkpoint(found)
    assert same(dict(loaded_with(error.value.flags, found).state_dict()), dict(make_agent("checkpoint_cartpole").state_dict()))


def test_a_size_preset_must_be_that_of_the_checkpoint():
    space, action = spaces.Dict({"vector": spaces.Box(-1, 1, (3,))}), spaces.Discrete(2)

    def build(config):
        return Dreamer(space, action, config)

    stored_agent = jax_original.convert(export.export(build(tools.load_config([NEW, "size1m"], TASK)).checkpoint()))
    for presets, told in (
        ([NEW, "size12m"], "it has dyn_deter 512, not 2048; .*; give size1m in place of size12m"),
        ([NEW, "size12m", "hdreamer_split"], "give size1m in place of size12m"),
        ([NEW, "size1m", "size25m"], "give size1m in place of size25m"),
    ):
        with pytest.raises(fitting.DoesNotFit, match=told):
            fitting.take_sizes(tools.load_config(presets, TASK), stored_agent, build)
    for presets in ([], ["small"], [NEW], [NEW, "size1m"], [NEW, "size1m", "hdreamer_split"]):
        config = tools.load_config(presets, TASK)
        fitting.take_sizes(config, stored_agent, build)
        build(config).load_checkpoint(stored_agent)
    with pytest.raises(fitting.DoesNotFit, match=r"Flags that fit: .* \(the preset size1m has these sizes\)"):
        build(tools.load_config([NEW, "size12m"], TASK)).load_checkpoint(stored_agent)


@pytest.mark.parametrize("case, key, kind", [("checkpoint_cartpole", "image", "numbers"), ("checkpoint_dummy", "token", "one-hots")])
def test_one_hots_are_never_taken_for_numbers_nor_the_other_way_round(case, key, kind):
    agent = make_agent(case)
    observed = {**agent.obs_space.spaces}
    observed[key] = OneHot([4]) if kind == "numbers" else spaces.Box(-np.inf, np.inf, observed[key].shape)
    other = Dreamer(spaces.Dict(observed), agent.act_space, agent._config)
    with pytest.raises(ValueError, match=f"the observation '{key}' is .* here and was {kind} in the checkpoint"):
        other.load_checkpoint(jax_original.convert(stored(case)))


def test_one_hots_of_a_vector_that_has_another_name_there_are_checked_too():
    stored_agent = checkpoints.load(CARTPOLE)  # its vector is called image
    config = tools.load_config([NEW], {**TASK, **checkpoints.sizes_of(stored_agent)})
    with pytest.raises(ValueError, match="the observation 'vector' is one-hots here and was numbers in the checkpoint"):
        Dreamer(spaces.Dict({"vector": OneHot([4])}), spaces.Discrete(2), config).load_checkpoint(stored_agent)
    Dreamer(spaces.Dict({"vector": spaces.Box(-1, 1, (4,))}), spaces.Discrete(2), config).load_checkpoint(stored_agent)


def test_several_actions_are_never_taken_for_one():
    space, cartpole = spaces.Dict({"vector": spaces.Box(-1, 1, (4,))}), checkpoints.load(CARTPOLE)
    agent = Dreamer(space, ACTED["both"], tools.load_config([NEW], {**TASK, **checkpoints.sizes_of(cartpole)}))
    with pytest.raises(ValueError, match="does not fit this agent"):
        agent.load_checkpoint(cartpole)


# The way back


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_loaded_agent_is_written_as_it_was_stored(case, tmp_path, capsys):
    agent, original = make_agent(case), stored(case)
    counters = {**dict.fromkeys(checkpoints.RUN - checkpoints.AGENT - {"version"}, 0), "step": original["steps"]}
    checkpoints.save(tmp_path / "latest.pt", {**agent.checkpoint(), **counters})
    for source in (tmp_path / "latest.pt", FOLDER / case):
        output = tmp_path / f"out-{source.name}"
        assert command.main([str(source), str(output)]) == 0
        written = pickle.loads(agent_file(output).read_bytes())  # as the original reads it
        assert list(written["params"]) == list(original["params"])
        for name, array in original["params"].items():
            found = written["params"][name]
            assert (found.dtype, found.shape) == (array.dtype, array.shape) and np.array_equal(found, array), name
        others = [pickle.loads((agent_file(output).parent / name).read_bytes()) for name in ("step.pkl", "replay.pkl")]
        assert others == [original["steps"], None] and (agent_file(output).parent / "done").exists()
        expected = original["counters"]
        if source.name == "latest.pt":  # knows updates and steps alone
            expected = {"updates": expected["updates"], "batches": expected["updates"], "actions": original["steps"] // agent._config.envs}
        assert written["counters"] == expected
        again = new_agent(case)
        again.load_checkpoint(checkpoints.load(output))
        assert same(dict(again.state_dict()), dict(agent.state_dict()))
        assert same(again.checkpoint()["optims_state_dict"], agent.checkpoint()["optims_state_dict"])
    assert "To go on with it in the original:" in capsys.readouterr().out
    assert command.main([str(source), str(output)]) == 2 and "exists; give another name" in capsys.readouterr().err


OBSERVED = {
    "image": spaces.Box(0, 255, (32, 16, 1), np.uint8),
    "a_number": spaces.Box(-np.inf, np.inf, (2,)),
    "b/nested": spaces.Box(-np.inf, np.inf, (3,)),
    "kinds": OneHot([2, 3]),
}
ACTED = {
    "discrete": spaces.Discrete(3),
    "several": spaces.MultiDiscrete([3, 3]),
    "continuous": spaces.Box(-1, 1, (2,)),
    "both": spaces.Dict({"move_to": spaces.Box(-1, 1, (2,)), "press": spaces.Discrete(3)}),
}


@pytest.mark.slow
@trials(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_flat_agents_of_all_sizes_and_spaces_are_written_and_read_exactly(data):
    def draw(*values):
        return data.draw(st.sampled_from(values))

    torch.manual_seed(0)  # hypothesis seeds Python and NumPy alone
    keys = data.draw(st.sets(st.sampled_from(list(OBSERVED)), min_size=1))
    blocks = draw(1, 2, 4)
    chosen = {
        "dyn_deter": blocks * draw(2, 4), "dyn_blocks": blocks, "dyn_hidden": draw(3, 8), "dyn_stoch": draw(1, 3),
        "dyn_discrete": draw(2, 5), "dyn_img_layers": draw(1, 3), "dyn_obs_layers": draw(1, 2), "units": draw(3, 6),
        "decoder.blocks": draw(1, 2), "model_lr": 1e-3,
        **{f"{net}.{size}": draw(1, 3) for net in ("encoder", "decoder") for size in ("mlp_layers", "mlp_units", "cnn_depth")},
        **{f"{net}.kernel_size": draw(3, 5) for net in ("encoder", "decoder")},
        **{f"{head}.layers": draw(1, 2) for head in ("reward_head", "cont_head", "actor", "critic")},
    }  # fmt: skip
    obs_space = spaces.Dict({key: OBSERVED[key] for key in keys})
    act_space = ACTED[draw(*ACTED)]

    def build(**overrides) -> Dreamer:
        return Dreamer(obs_space, act_space, tools.load_config([NEW], {**TASK, **chosen, **overrides}))

    flat = trained(build())
    state = export.export(flat.checkpoint())
    assert len(state["params"]) == len(set(state["params"]))
    found, again = jax_original.convert(state), build()
    again.load_checkpoint(found)
    assert same(dict(again.state_dict()), dict(flat.state_dict()))
    assert same(again.checkpoint()["optims_state_dict"], flat.checkpoint()["optims_state_dict"])
    assert all(np.array_equal(array, state["params"][name]) for name, array in export.export(found)["params"].items())
    split = build(hierarchical_mode=True, dyn_stoch_top="1/1", dyn_stoch_bottom="1/1")
    split.load_checkpoint(found)
    assert_same_answers(split, flat)
    sized = tools.load_config([NEW], {**TASK, **checkpoints.sizes_of(found)})  # in Python
    Dreamer(obs_space, act_space, sized).load_checkpoint(found)


@pytest.mark.parametrize(
    "overrides, told",
    [
        ({"hierarchical_mode": True}, "no agent with hierarchical_mode true; only flat agents of dreamerv3_2025"),
        ({"norm": "layer"}, "no agent with norm layer"),
        ({"reward_head.dist": "symlog_disc"}, "no agent with reward_head.dist symlog_disc"),
        ({"encoder.symlog_inputs": "all"}, "no agent with encoder.symlog_inputs all"),
        ({"dyn_discrete": 0, "replay_context": 0}, "no agent with dyn_discrete 0"),
        ({"discount": 1.0}, "no discount of 1.0"),
    ],
)
def test_agents_that_the_original_does_not_have_are_not_written(overrides, told):
    with pytest.raises(ValueError, match=told):
        export.export(new_agent("checkpoint_cartpole", **overrides).checkpoint())


def test_a_discrete_observation_without_a_name_is_written_as_one():
    agent = Dreamer(
        spaces.Dict({"vector": OneHot([5])}), spaces.Discrete(3), tools.load_config([NEW, "debug"], {**TASK, "task": "gym_X-v0"})
    )
    params = export.export(agent.checkpoint())["params"]
    assert "dec/vec/image/logits/kernel" in params and not any(name.endswith("pred/kernel") for name in params)


@pytest.mark.parametrize(
    "observed, acted, told",
    [
        ({"a_b": spaces.Box(-1, 1, (1,)), "ab": spaces.Box(-1, 1, (1,))}, spaces.Discrete(2), "two of its parameters would have the name"),
        ({"a": spaces.Box(-1, 1, (1,))}, spaces.MultiDiscrete([2, 3]), "no action with different numbers of classes, as action"),
    ],
)
def test_keys_and_actions_that_the_original_cannot_store_are_refused(observed, acted, told):
    agent = Dreamer(spaces.Dict(observed), acted, tools.load_config([NEW, "debug"], TASK))
    with pytest.raises(ValueError, match=told):
        export.export(agent.checkpoint())


def test_agents_of_2023_are_not_written(tmp_path, capsys):
    assert command.main([str(FOLDER.parent / "dreamerv3_torch" / "atari"), str(tmp_path / "out")]) == 2
    assert "it stores no settings; give a run folder of hDreamer or of the JAX original" in capsys.readouterr().err
    assert command.main([str(FOLDER.parent / "earlier_runs" / "flat"), str(tmp_path / "out")]) == 2
    assert "the original has no agent with optimizer adam, dyn_core gru" in capsys.readouterr().err and not (tmp_path / "out").exists()


# Runs


FLAGS = "--task gym_CartPole-v1 --device cpu --eval_every 0 --train_ratio 24 --prefill 40 --batch_size 2 --batch_length 12".split()


def start(logdir: pathlib.Path, *words: str, code: int = 0) -> None:
    assert dreamer.main(["--configs", "defaults", *words, *FLAGS, "--logdir", str(logdir)]) == code


PRESETS = {"flat": [NEW], "split": [NEW, "hdreamer_split"], "whatever presets say": ["small", "hdreamer"]}


@pytest.mark.parametrize("name", ["split", *(pytest.param(name, marks=pytest.mark.slow) for name in PRESETS if name != "split")])
def test_a_run_goes_on_with_everything_flat_and_with_two_levels(tmp_path, capsys, name):
    logdir, presets = tmp_path / "run", PRESETS[name]
    start(logdir, *presets, "--from_checkpoint", str(CARTPOLE), "--steps", "3580")
    output = " ".join(capsys.readouterr().out.split())
    assert "Resuming at frame 3,564 after 1,378 updates, with 96 steps in memory." in output
    assert "format DreamerV3 in JAX; latent of 2 categoricals of 4 classes" in output
    assert "To train with the settings of the old run: --model_lr 0.01 --warmup 20" in output or name == "whatever presets say"
    assert "moments of 79 tensors, after 1,378 updates" in output or name != "flat"
    assert "6 episodes, 96 steps, 102 of their observations with latents" in output
    assert "102 of the observations in memory have the latents that they had." in output
    found = checkpoints.load(logdir)
    assert found["step"] == 3580 and found["updates"] > 1378 and len(list((logdir / "train_eps").glob("*.npz"))) >= 7
    start(logdir, *presets, "--steps", "3590")
    assert "Resuming at frame 3,580" in capsys.readouterr().out
    sizes = {"flat": [(2, 4)], "split": [(1, 4), (1, 4)], "whatever presets say": [(2, 4), (2, 4)]}
    agent = dreamer.load_agent(logdir, "cpu")
    assert [(level.stoch, level.discrete) for level in agent._wm.dynamics.levels.values()] == sizes[name]


def test_a_run_of_the_original_is_never_continued_in_its_own_folder(run, capsys):
    before = sorted(path.relative_to(run) for path in run.rglob("*"))
    new = ["--configs", "defaults", NEW, *FLAGS, "--steps", "10"]
    for words in (
        ["--logdir", str(run)],
        [str(run)],
        [*new, "--logdir", str(run)],
        [*new, "--logdir", str(run), "--from_checkpoint", str(run)],
        [*new, "--logdir", str(run), "--from_checkpoint", str(CARTPOLE)],
    ):
        assert dreamer.main(words) == 2
        told = capsys.readouterr().err
        assert "holds a run of DreamerV3 in JAX; begin a new run with it, in another folder: --configs defaults dreamerv3_2025" in told
        assert f"--from_checkpoint {run}" in told and len(told.splitlines()) == 1
    assert sorted(path.relative_to(run) for path in run.rglob("*")) == before


def test_without_its_replay_a_run_goes_on_with_its_agent(run, tmp_path, capsys):
    shutil.rmtree(run / "replay")
    start(tmp_path / "new", NEW, "--from_checkpoint", str(run), "--steps", "3580")
    output = capsys.readouterr()
    assert "there is no folder" in output.err and "Resuming at frame 3,564 after 1,378 updates, with 0 steps in memory." in output.out


def test_steps_of_the_original_count_when_their_episodes_are_gone(run, tmp_path, capsys):
    logdir = tmp_path / "new"
    start(logdir, NEW, "--from_checkpoint", str(run), "--steps", "3580")
    found = checkpoints.load(logdir)
    checkpoints.save(logdir / "latest.pt", {**found, "step": 3564})  # as if killed after more steps had been written
    capsys.readouterr()
    start(logdir, NEW, "--steps", "3600")
    assert f"Resuming at frame {sum(stored_steps(logdir / 'train_eps').values()) - 20 + 3564 - 96:,}" in capsys.readouterr().out


def test_episodes_of_another_task_are_left_out(run, tmp_path, capsys):
    change_options(run, "task", "gym_Acrobot-v1")
    start(tmp_path / "new", NEW, "--from_checkpoint", str(run), "--steps", "3580")
    output = capsys.readouterr()
    assert "are of the task gym_Acrobot-v1, so the run begins without them" in output.err and "with 0 steps in memory" in output.out


def test_a_second_start_replaces_episodes_that_have_grown(run, tmp_path, capsys):
    _, second = sorted((run / "replay").glob("*.npz"))
    held = second.read_bytes()
    second.unlink()
    start(tmp_path / "new", NEW, "--from_checkpoint", str(run), "--steps", "3564")
    second.write_bytes(held)  # meanwhile the original went on
    (tmp_path / "new" / "latest.pt").unlink()
    start(tmp_path / "new", NEW, "--from_checkpoint", str(run), "--steps", "3564")
    output = capsys.readouterr()
    assert "with 96 steps in memory" in output.out and "of a start that did not end; they are used too" in output.err


def test_an_agent_can_be_loaded_from_the_folder_alone():
    agent = dreamer.load_agent(CARTPOLE, "cpu")
    assert agent.updates == 1378 and agent._config.task == "gym_CartPole-v1"
    action, _ = agent.act({"vector": np.zeros(4, np.float32)})
    assert action in (0, 1)
    with pytest.raises(ValueError, match="task 'dummy_disc' does not begin with a suite"):
        dreamer.load_agent(DUMMY, "cpu")
