"""Sizes that are read off the tensors of a checkpoint: what they tell, agents built from them, and refusals that name what fits."""

import copy
import json
import random

import numpy as np
import pytest
import torch
from gymnasium import spaces

import checkpoints
import settings
import tools
from benchmarks.reliability import fuzz
from checkpoints import dreamerv3_torch, fitting, sizes
from dreamer import Dreamer
from old_files import DATA, NAMES, answers, batch, checkpoint, close, levels, make_agent, recorded, spaces_of
from settings.resume import KEPT

pytestmark = pytest.mark.slow

TASK = {"task": "gym_X-v0", "device": "cpu"}


# Files that dreamerv3-torch wrote


@pytest.mark.parametrize("name", NAMES)
def test_all_that_is_read_off_a_real_file_is_what_it_was_trained_with(name):
    trained_with = settings.completed(json.loads((DATA / name / "config.json").read_text()))
    found = checkpoints.sizes_of(checkpoint(name))
    wrong = {key: (value, trained_with[key]) for key, value in found.items() if value != trained_with[key]}
    assert not wrong and found["units"] == 16 and {"dyn_stoch", "dyn_discrete"} < found.keys()


@pytest.mark.parametrize("presets", [[], ["hdreamer"], ["hdreamer_split"], ["small", "hdreamer"]], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_an_agent_built_from_the_sizes_of_a_real_file_gives_its_recorded_answers(name, presets):
    if name == "gaussian" and presets:
        pytest.skip("two levels are categorical")
    stored, expected = checkpoint(name), recorded(name)
    config = tools.load_config(["defaults", *presets], {**TASK, **checkpoints.sizes_of(stored)})
    agent = Dreamer(*spaces_of(name), config)
    agent.load_state_dict(stored["agent_state_dict"])
    found = answers(agent, name)
    for key in ("deter", "reward", "cont", "value", "slow_value", "action_mode", "open_deter", "dec_image", "dec_position"):
        if key in found:
            values = expected[f"out_{key}"]
            close(found[key][:, : values.shape[1]], values, atol=1e-5)


def test_every_rule_names_a_setting_that_a_resumed_run_keeps():
    known = settings.flatten(tools.load_config([], TASK))
    assert set(sizes.RULES) <= known.keys()
    assert [name for name in sizes.RULES if not KEPT.fullmatch(name)] == ["size", "grayscale"]  # of the environment
    told = {"dyn_rec_depth", "kl_free", *settings.SIZES}  # by stored settings, or in another way
    told |= {"replay_context", "make_env", *sizes.NOT_IN_TENSORS}
    assert {name for name in known if KEPT.fullmatch(name)} == set(sizes.RULES) - {"size", "grayscale"} | told


# Any sizes


def drawn(seed: int) -> tuple[spaces.Dict, spaces.Space, dict]:
    """Random observations, actions and settings of a flat agent."""
    rng = random.Random(seed)
    side, other = rng.choice([16, 32, 48]), rng.choice([16, 32])
    vectors = {"position": spaces.Box(-1, 1, (3,)), "speed": spaces.Box(-1, 1, (2,))}
    observed = {
        "vectors": vectors,
        "images": {"image": spaces.Box(0, 255, (side, side, rng.choice([1, 3])), np.uint8)},
        "all": {**vectors, "image": spaces.Box(0, 255, (side, side, 3), np.uint8)},
        "two images": {"image": spaces.Box(0, 255, (64, 64, 3), np.uint8), "map": spaces.Box(0, 255, (other, other, 1), np.uint8)},
        "wide": {"image": spaces.Box(0, 255, (32, 64, 3), np.uint8)},
    }[rng.choice(["vectors", "images", "all", "two images", "wide"])]
    chosen = {
        "size": [side, side],
        "dyn_stoch": 2 * rng.randint(1, 3),
        "dyn_discrete": rng.randint(2, 5),
        "dyn_deter": rng.randint(3, 9),
        "dyn_hidden": rng.randint(3, 9),
        "initial": rng.choice(["learned", "zeros"]),
        "units": rng.randint(3, 9),
        "norm": rng.random() < 0.7,
        **{f"{head}.layers": rng.randint(0, 3) for head in ("reward_head", "cont_head", "actor", "critic")},
        "critic.slow_target": rng.random() < 0.8,
        "expl_behavior": rng.choice(["greedy", "plan2explore"]),
        "disag_models": rng.randint(2, 3),
        "disag_layers": rng.randint(1, 2),
        "disag_units": rng.randint(3, 9),
        "disag_action_cond": rng.random() < 0.5,
        "batch_length": 4,
        "imag_horizon": 3,
    }
    for net in ("encoder", "decoder"):
        chosen |= {
            f"{net}.norm": rng.random() < 0.7,
            f"{net}.cnn_depth": rng.randint(1, 3),
            f"{net}.kernel_size": rng.choice([2, 4]),
            f"{net}.minres": rng.choice([2, 4, 8]),
            f"{net}.mlp_layers": rng.randint(1, 3),
            f"{net}.mlp_units": rng.randint(3, 9),
        }
    action_space = spaces.Discrete(rng.randint(2, 5)) if rng.random() < 0.5 else spaces.Box(-1, 1, (rng.randint(1, 3),))
    return spaces.Dict(observed), action_space, chosen


def steps(agent: Dreamer, seed: int) -> dict:
    """Random arrays (2, 4, ...) to learn from."""
    rng = np.random.default_rng(seed)
    observed = {
        key: rng.integers(0, 255, (2, 4, *space.shape)).astype(np.uint8)
        if space.dtype == np.uint8
        else rng.normal(size=(2, 4, *space.shape))
        for key, space in agent.obs_space.spaces.items()
        if key not in ("is_first", "is_terminal")
    }
    size, discrete = agent.codec.size, agent.codec.parts["action"].classes
    action = np.eye(size)[rng.integers(size, size=(2, 4))] if discrete else rng.uniform(-1, 1, (2, 4, size))
    flags = {"is_first": np.zeros((2, 4), bool), "is_terminal": np.zeros((2, 4), bool), "reward": rng.normal(size=(2, 4))}
    return {**observed, **flags, "action": action.astype(np.float32)}


@torch.no_grad()
def computed(agent: Dreamer, data: dict, entries: int) -> list[torch.Tensor]:
    """What an agent answers, of its latents the first entries, which are those of the flat one."""
    wm, task = agent._wm, agent._task_behavior
    inputs = wm.preprocess(data)
    post, _ = wm.dynamics.observe(wm.encoder(inputs), inputs["action"], inputs["is_first"], sample=False)
    feat = wm.dynamics.get_feat(post)
    heads = [wm.heads["reward"](feat).mode, wm.heads["cont"](feat).mean, task.value(feat).mode, task.actor(feat).mode]
    return [post["deter"], wm.dynamics.flat_stoch(post)[..., :entries], *heads, *(x.mode for x in wm.heads["decoder"](feat).values())]


def trained(seed: int) -> tuple[Dreamer, dict, dict]:
    """An agent after two updates, its settings, and its checkpoint as dreamerv3-torch would have written it."""
    obs_space, act_space, chosen = drawn(seed)
    agent = Dreamer(obs_space, act_space, tools.load_config([], {**TASK, **chosen}))
    with torch.no_grad():
        for parameter in agent.parameters():  # away from zeros, which many answers start with
            parameter.add_(0.2 * torch.randn_like(parameter))
    for number in range(2):
        agent.update(steps(agent, number))
    return agent, chosen, dreamerv3_torch.export(agent.checkpoint())


@pytest.mark.parametrize("presets", [[], ["hdreamer_split"], ["hdreamer"]], ids=str)
@pytest.mark.parametrize("seed", range(40))
def test_a_file_of_any_sizes_loads_without_a_flag_and_computes_the_same(seed, presets):
    agent, chosen, exported = trained(seed)
    not_sizes = {**TASK, "expl_behavior": chosen["expl_behavior"], "batch_length": 4}

    def build(config: settings.Config) -> Dreamer:
        return Dreamer(agent.obs_space, agent.act_space, config)

    filled = tools.load_config(["defaults", *presets], not_sizes)  # as a run does it
    told = fitting.take_sizes(filled, exported, build)
    assert told.startswith("Taken from the checkpoint: ") and "actor.std" not in told
    # And as users do it in Python.
    wide = "image" in agent.obs_space.spaces and agent.obs_space["image"].shape[:2] == (32, 64)
    overrides = {key: value for key, value in checkpoints.sizes_of(exported).items() if not (wide and key.endswith("minres"))}
    minres = {key: chosen[key] for key in ("encoder.minres", "decoder.minres")} if wide else {}
    read = tools.load_config(["defaults", *presets], {**not_sizes, **overrides, **minres})
    for config in (filled, read):
        other = build(config)
        fitting.check(other, exported)
        other.load_checkpoint(exported)
        data, entries = steps(agent, 7), chosen["dyn_stoch"] * chosen["dyn_discrete"]
        for mine, theirs in zip(computed(other, data, entries), computed(agent, data, entries), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(20))
def test_the_flags_that_a_refusal_ends_with_fit(seed):
    agent, chosen, exported = trained(seed)
    for presets in ([], ["hdreamer"]):
        small = {"encoder.cnn_depth": 5, "decoder.cnn_depth": 5, "units": 11, "dyn_deter": 12, "encoder.minres": 8, "batch_length": 4}
        given = {**TASK, **small, "expl_behavior": chosen["expl_behavior"], "size": chosen["size"]}
        with pytest.raises(fitting.DoesNotFit) as error:
            Dreamer(agent.obs_space, agent.act_space, tools.load_config(presets, given)).load_state_dict(exported["agent_state_dict"])
        assert "dyn_deter 12 here" in str(error.value) and "\n" not in str(error.value)
        with pytest.raises(fitting.DoesNotFit) as error:
            Dreamer(agent.obs_space, agent.act_space, tools.load_config(presets, given)).load_checkpoint(exported)
        assert str(error.value).endswith(f"Flags that fit: {error.value.flags}")
        _, flags = settings.parse_flags([word.strip("'") for word in error.value.flags.split()])
        Dreamer(agent.obs_space, agent.act_space, tools.load_config(presets, {**given, **flags})).load_checkpoint(exported)


# This program's own files


def test_settings_that_are_stored_tell_what_tensors_do_not():
    chosen = {**levels(3, 4, 5, 2), "dyn_rec_depth": 3, "critic.dist": "mse", "encoder.minres": 8}
    agent = make_agent("atari", **chosen)
    found = checkpoints.sizes_of(agent.checkpoint())
    assert {key: found[key] for key in chosen} == chosen
    other = Dreamer(*spaces_of("atari"), tools.load_config([], {**TASK, **found}))
    other.load_state_dict(agent.state_dict())
    assert other._wm.dynamics._rec_depth == 3


def test_shares_and_what_was_given_stay_as_they_are():
    agent = make_agent("atari", **levels(3, 4, 3, 4))
    agent.update(batch("atari"))
    stored = agent.checkpoint()
    config = tools.load_config(["hdreamer_split"], {**TASK, "dyn_stoch": 6, "dyn_discrete": 4, "units": 20})

    def build(config: settings.Config) -> Dreamer:
        return Dreamer(*spaces_of("atari"), config)

    before = set(config.given)
    told = fitting.take_sizes(config, stored, build)
    assert (config.dyn_stoch_top, config.units, config.dyn_deter) == ("1/2", 20, 24) and set(config.given) == before
    assert "dyn_deter 512 -> 24" in told and "units" not in told and "dyn_stoch" not in told
    with pytest.raises(fitting.DoesNotFit, match="agent: units 20 here, 16 in the checkpoint. Flags that fit: --units 16$"):
        fitting.check(fitting.outline(build, config), stored)


# What is none


def test_a_whole_checkpoint_is_needed():
    for other in (None, [], checkpoint("atari")["agent_state_dict"]):
        with pytest.raises(ValueError, match="sizes_of needs a whole checkpoint"):
            checkpoints.sizes_of(other)
    with pytest.raises(ValueError, match="no agent of hDreamer or dreamerv3-torch"):
        checkpoints.sizes_of({"agent_state_dict": {"x": torch.zeros(2)}})


@pytest.mark.parametrize(
    "changed",
    [
        {"_wm.heads.reward.layers.Reward_linear0.weight": (10**6, 1)},
        {"_wm.dynamics._img_out_layers.0.weight": (1000, 3000)},
        {"_wm.encoder._cnn.layers.0.weight": (10**5, 3, 4, 4)},
        {"_wm.heads.reward.layers.Reward_linear0.weight": (10**12, 0)},
        {f"_wm.heads.cont.layers.Cont_linear{number}.weight": (1, 1) for number in range(2000)},
    ],
    ids=lambda changed: str(next(iter(changed.items()))),
)
def test_tensors_that_tell_absurd_sizes_are_refused_before_an_agent_is_built(changed):
    stored = copy.deepcopy(checkpoint("atari"))
    for name in [name for name in stored["agent_state_dict"] if "_world_model" in name or name.startswith("_expl")]:
        del stored["agent_state_dict"][name]
    stored["agent_state_dict"].update({name: torch.zeros(shape) for name, shape in changed.items()})
    config = tools.load_config([], TASK)

    def build(config: settings.Config) -> Dreamer:
        assert config.device == "meta"
        return Dreamer(*spaces_of("atari"), config)

    before = fuzz.peak_bytes()
    with pytest.raises(ValueError, match="does not fit this agent|at most 1000"):
        fitting.take_sizes(config, stored, build)
        fitting.check(fitting.outline(build, config), stored)
    assert fuzz.peak_bytes() - before < 100e6


@pytest.mark.parametrize("levels_noted", [[[10**9, 10**9]], [[24, 1]], [[2, 3]], [[2, 4], [2, 4]]])
def test_levels_in_the_metadata_that_contradict_the_tensors_are_not_believed(levels_noted):
    stored = checkpoint("atari")
    stored["agent_state_dict"]._metadata["_wm.dynamics"]["levels"] = levels_noted
    found = checkpoints.sizes_of(stored)
    assert (found["dyn_stoch"], found["dyn_discrete"]) == (6, 4)
