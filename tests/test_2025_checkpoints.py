"""Checkpoints of the 2025 generation: sizes, meaning, one level into two, moments of LaProp, runs."""

import copy
import math
import random
import re

import numpy as np
import pytest
import torch
from gymnasium import spaces

import checkpoints
import dreamer
import models
import settings
import tools
from checkpoints import dreamerv3_torch, fitting, sizes
from distributions import TwoHot
from dreamer import Dreamer
from envs.spaces import OneHot
from jax_cases import GRADIENTS, VALUES, close, in_order, load, make_batch, modes_as_samples, part, trained_tensors
from jax_cases import make_agent as recorded_agent
from old_files import checkpoint, levels, same, spaces_of

NEW = "dreamerv3_2025"
TASK = {"task": "gym_X-v0", "device": "cpu", "precision": "32", "batch_length": 4, "imag_horizon": 3}
TINY = {
    **{"dyn_stoch": 6, "dyn_discrete": 4, "dyn_deter": 16, "dyn_hidden": 12, "units": 10, "dyn_blocks": 4, "warmup": 2, "model_lr": 1e-3},
    **{f"{net}.{name}": size for net in ("encoder", "decoder") for name, size in (("cnn_depth", 2), ("mlp_units", 9), ("mlp_layers", 2))},
    **{"disag_models": 2, "disag_layers": 1, "disag_units": 7},
}
OBSERVED = spaces.Dict({"image": spaces.Box(0, 255, (16, 16, 3), np.uint8), "position": spaces.Box(-1, 1, (3,))})
ACTIONS = {
    "discrete": spaces.Discrete(4),
    "continuous": spaces.Box(-1, 1, (2,)),
    "both": spaces.Dict({"move": spaces.Box(-1, 1, (2,)), "press": spaces.Discrete(3)}),
}
SPLITS = {"even": levels(3, 4, 3, 4), "uneven": levels(1, 4, 5, 4)}
KINDS = {**SPLITS, "new bottom": levels(6, 4, 2, 3), "both wider": levels(4, 4, 5, 4), "wider top": levels(8, 4, 2, 3)}


def make_agent(actions: str = "discrete", presets: tuple = (NEW,), **overrides) -> Dreamer:
    return Dreamer(
        OBSERVED, ACTIONS[actions], tools.load_config(["defaults", *presets], {**TASK, **TINY, "encoder.minres": 4, **overrides})
    )


def make_old(**overrides) -> Dreamer:
    """A small agent of 2023."""
    return make_agent(presets=(), **{"warmup": 0, **overrides})


def steps(agent: Dreamer, seed: int) -> dict:
    """Random arrays (2, 4, ...) to learn from."""
    rng, shape = np.random.default_rng(seed), (2, 4)
    observed = {
        key: rng.integers(0, 255, (*shape, *space.shape)).astype(np.uint8)
        if space.dtype == np.uint8
        else rng.normal(size=(*shape, *space.shape)).astype(np.float32)
        for key, space in agent.obs_space.spaces.items()
        if key not in ("is_first", "is_last", "is_terminal", "reward")
    }
    flags = {key: rng.random(shape) < 0.2 for key in ("is_first", "is_last", "is_terminal")}
    action = agent.codec.random(rng, math.prod(shape)).reshape(*shape, -1)
    return {**observed, **flags, "reward": rng.normal(size=shape).astype(np.float32), "action": action}


def trained(agent: Dreamer) -> Dreamer:
    """The agent with weights away from zeros, which many answers start with, after three updates."""
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    for number in range(3):
        agent.update(steps(agent, number))
    return agent


def answer(scalar) -> torch.Tensor:
    """The prediction of a scalar; of a two-hot one the probabilities: its bins reach to e^20, and their average magnifies rounding."""
    return scalar.log_probs.exp() if isinstance(scalar, TwoHot) else scalar.mode


@torch.no_grad()
def computed(agent: Dreamer, data: dict, entries: int) -> list[torch.Tensor]:
    """What an agent answers, of its latents the first entries, which are those of the flat one."""
    wm, task, dynamics = agent._wm, agent._task_behavior, agent._wm.dynamics
    inputs = wm.preprocess(data)
    post, prior = dynamics.observe(wm.encoder(inputs), inputs["action"], inputs["is_first"], sample=False)
    feat = dynamics.get_feat(post)
    logits = [torch.cat([state[f"logit{level.suffix}"].flatten(-2) for level in dynamics.levels.values()], -1) for state in (post, prior)]
    imagined = dynamics.imagine_with_action(inputs["action"], {key: value[:, -1] for key, value in post.items()}, sample=False)
    heads = [answer(wm.heads["reward"](feat)), wm.heads["cont"](feat).mean, *(task.actor.stats(feat).values())]
    values = [answer(task.value(feat)), *([answer(task._slow_value(feat))] if agent._config.critic.slow_target else [])]
    decoded = [distribution.mode for distribution in wm.heads["decoder"](feat).values()]
    first = [x[..., :entries] for x in (dynamics.flat_stoch(post), *logits, dynamics.flat_stoch(imagined))]
    return [post["deter"], imagined["deter"], *first, *heads, *values, *decoded]


def assert_same_answers(agent: Dreamer, flat: Dreamer) -> None:
    data, entries = steps(flat, 7), flat._wm.dynamics.stoch_size
    for mine, theirs in zip(computed(agent, data, entries), computed(flat, data, entries), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def moments_of(agent: Dreamer) -> dict[str, dict]:
    """State of the optimizers by the names of the parameters."""
    names, found = {parameter: name for name, parameter in agent.named_parameters()}, {}
    for optimizer in agent.optimizers().values():
        state = optimizer.state_dict()["state"]
        found |= {names[parameter]: state[number] for number, parameter in enumerate(optimizer._params) if number in state}
    return found


# The original's weights, from one level into two


SLOTS = {"even": (2, 2), "uneven": (1, 3), "new bottom": (4, 2), "both wider": (3, 4), "wider top": (6, 2)}  # of 4 latents of 4 classes


def recorded_in_levels(case: str, slots: tuple[int, int]) -> tuple[Dreamer, Dreamer, dict]:
    """A flat agent with recorded weights and moments, one with two levels that has taken them, and the recorded batch for that."""
    flat = recorded_agent(case)
    config, classes = copy.deepcopy(flat._config), flat._wm.dynamics.levels["flat"].discrete
    for name, value in levels(slots[0], classes, slots[1], classes).items():
        setattr(config, name, value)
    agent = Dreamer(flat.obs_space, flat.act_space, config)
    agent.load_checkpoint(flat.checkpoint())
    batch = make_batch(flat, case)
    codes = batch["replay.context"].pop("stoch")
    codes = np.pad(codes, [(0, 0), (0, sum(slots) - codes.shape[1])])  # new latents begin with zeros
    batch["replay.context"] |= dict(zip(("stoch_top", "stoch_bottom"), np.split(codes, slots[:1], 1)))
    return flat, agent, batch


def kl_by_hand(post: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """KL in nats of each of several categoricals with 1% uniform, (..., S)."""
    q, p = (np.exp(x.astype(np.float64)) for x in (post, prior))
    q, p = (0.99 * x / x.sum(-1, keepdims=True) + 0.01 / x.shape[-1] for x in (q, p))
    return (q * np.log(q / p)).sum(-1)


@pytest.mark.parametrize("kind", SLOTS)
def test_recorded_weights_give_the_recorded_answers_in_two_levels(kind):
    case, recorded = "image_discrete", load("image_discrete", "answers")
    _, agent, batch = recorded_in_levels(case, SLOTS[kind])
    wm, behavior, dynamics = agent._wm, agent._task_behavior, agent._wm.dynamics
    data, count = wm.preprocess(batch), recorded["stoch"].shape[-2]
    with torch.no_grad(), modes_as_samples():
        post, prior = dynamics.observe(wm.encoder(data), data["action"], data["is_first"], data["replay.context"])
        feat = dynamics.get_feat(post)
        found = {
            "deter": post["deter"],
            "stoch": in_order(agent, post, "stoch", count),
            "post_logit": in_order(agent, post, "logit", count),
            "prior_logit": in_order(agent, prior, "logit", count),
            "con/prob": wm.heads["cont"](feat).mean.squeeze(-1),
            "pol/action/logits": behavior.actor.stats(feat)["logit"],
            **{f"recon/{key}/pred": dist.loc for key, dist in wm.heads["decoder"](feat).items()},
        }
        for name, head in {"rew": wm.heads["reward"], "val": behavior.value, "slowval": behavior._slow_value}.items():
            found |= {f"{name}/logits": head.stats(feat), f"{name}/pred": head(feat).mode.squeeze(-1)}
    for name, value in found.items():
        close(value, recorded[name], name=name)
    kl, top = kl_by_hand(recorded["post_logit"], recorded["prior_logit"]), SLOTS[kind][0]
    levels_kl = dynamics.kl_per_level(post, prior)
    if sum(SLOTS[kind]) == count:
        close(levels_kl["top"], kl[..., :top].sum(-1))
        close(levels_kl["bottom"], kl[..., top:].sum(-1))
    elif top == count:
        close(levels_kl["top"], recorded["kl_dyn_raw"])


@pytest.mark.parametrize("kind", ["even", "uneven"])
def test_losses_of_recorded_weights_are_recorded_but_for_the_free_nats_of_each_level(kind):
    case, recorded = "image_discrete", load("image_discrete", "answers")
    _, agent, batch = recorded_in_levels(case, SLOTS[kind])
    with modes_as_samples():
        total, _, metrics = agent.joint_loss(agent._wm.preprocess(batch))
    kl = kl_by_hand(recorded["post_logit"], recorded["prior_logit"])
    balanced = sum(np.maximum(part.sum(-1), 1.0) for part in np.split(kl, SLOTS[kind][:1], -1)).mean()
    terms = {"reward": "rew", "cont": "con", "actor": "policy", "value": "value", "replay_value": "repval", "image": "image"}
    expected = {f"{ours}_loss": recorded[f"loss/{theirs}"].astype(np.float64).mean() for ours, theirs in terms.items()}
    vector = next(key for key, space in agent.obs_space.spaces.items() if len(space.shape) == 1 and f"loss/{key}" in recorded)
    expected |= {f"{vector}_loss": recorded[f"loss/{vector}"].mean(), "dyn_loss": balanced, "rep_loss": balanced}
    for name, value in expected.items():
        assert metrics[name].item() == pytest.approx(value, rel=VALUES), name
    scales = {"rep_loss": 0.1, "replay_value_loss": 0.3}
    assert total.item() == pytest.approx(sum(scales.get(name, 1.0) * value for name, value in expected.items()), rel=VALUES)

    # Heads, actor and critic do not see the free nats.
    parameters = {name: value for name, value in agent.named_parameters() if re.match(r"_wm\.heads|_task_behavior\.(actor|value)", name)}
    grads = dict(zip(parameters, torch.autograd.grad(total, list(parameters.values()))))
    flat = recorded_agent(case)
    for name, value in trained_tensors(part(recorded, "grad/"), load(case, "params"), flat).items():
        if name in grads:
            close(grads.pop(name), value.numpy(), GRADIENTS, name)
    assert not grads


@pytest.mark.parametrize("agc", [0.3, 1e-3])  # as recorded, and so small that every tensor is clipped
@pytest.mark.parametrize("kind", ["even", "uneven"])
def test_the_next_update_of_recorded_weights_is_that_of_the_flat_agent(kind, agc):
    flat, agent, batch = recorded_in_levels("image_discrete", SLOTS[kind])
    own, updates = make_batch(flat, "image_discrete"), []
    for each, data in ((flat, own), (agent, batch)):
        each._config.kl_free = 0.0
        each._opt._opt.param_groups[0]["agc"] = agc
        del data["replay.steps"]
        before = copy.deepcopy(each.state_dict())
        with modes_as_samples():
            each.update(data)
        updates.append({name: value - before[name] for name, value in each.state_dict().items()})
    assert_moved_alike(flat, agent, *updates)


def assert_moved_alike(flat: Dreamer, agent: Dreamer, flat_moved: dict, moved: dict) -> None:
    """Checks that an update has moved weights and moments of two levels as those of the flat agent."""
    moments, flat_moments = moments_of(agent), moments_of(flat)
    for name, source in models.flat_sources(agent, flat._wm.dynamics.stoch_size).items():
        if source is None:
            continue
        expected = source.take(flat_moved[source.name], 0.0)
        weight = agent.state_dict()[name].abs().max()
        atol = 1e-4 * expected.abs().max() + 2.4e-7 * weight  # and rounding of the difference of two weights
        assert (moved[name] - expected).abs().max() <= atol, name
        assert (name in moments) == (source.name in flat_moments), name
        for slot in ("exp_avg", "exp_avg_sq") if name in moments else ():
            expected = source.take(flat_moments[source.name][slot], 0.0)
            assert (moments[name][slot] - expected).abs().max() <= 1e-3 * expected.abs().max() + 1e-12, (name, slot)


# Any agent of 2025, from one level into two


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_agent_with_two_levels_answers_as_the_flat_one(kind, actions):
    flat = trained(make_agent(actions))
    agent = make_agent(actions, **KINDS[kind])
    report = agent.load_checkpoint(flat.checkpoint())
    assert agent.updates == 3 and "after 3 updates" in report["optimizers"]
    assert_same_answers(agent, flat)


@pytest.mark.parametrize("kind", SPLITS)
@pytest.mark.parametrize("agc", [0.3, 1e-3])
def test_the_next_update_is_that_of_the_flat_agent_with_its_explorer_too(kind, agc):
    options = {"kl_free": 0.0, "expl_behavior": "plan2explore", "agc": agc}
    flat = trained(make_agent(**options))
    agent = make_agent(**options, **SPLITS[kind])
    agent.load_checkpoint(flat.checkpoint())
    moved = []
    for each in (flat, agent):
        before = copy.deepcopy(each.state_dict())
        torch.manual_seed(0)  # the same uniform number for every latent
        each.update(steps(each, 5))
        moved.append({name: value - before[name] for name, value in each.state_dict().items()})
    assert any(name.startswith("_expl_behavior._networks.") and value.abs().max() > 0 for name, value in moved[1].items())
    assert_moved_alike(flat, agent, *moved)


def test_tensors_that_were_one_in_the_flat_agent_are_clipped_as_one():
    agent = make_agent(**SPLITS["even"])
    groups, names = agent._opt._groups.tolist(), [name for name, _ in agent._wm.named_parameters()]
    shared = {}
    for name, group in zip(names, groups):
        shared.setdefault(group, []).append(name.removeprefix("dynamics."))
    assert [group for group in shared.values() if len(group) > 1] == [
        [f"_{layer}_stat_layer.{level}.{part}" for level in ("top", "bottom")] for layer in ("imgs", "obs") for part in ("weight", "bias")
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_moments_follow_their_entries_and_new_ones_start_with_the_mean_square(kind):
    options = {"expl_behavior": "plan2explore"}
    flat, agent = trained(make_agent(**options)), make_agent(**options, **KINDS[kind])
    agent.load_checkpoint(flat.checkpoint())
    before, moments, new = moments_of(flat), moments_of(agent), agent._wm.dynamics.stoch_size
    for layer in (
        "_wm.dynamics._img_in_layers.stoch.0",
        "_wm.heads.decoder._cnn.stoch_hidden.0",
        "_expl_behavior._behavior.actor.layers.Actor_linear0",
    ):
        theirs, mine = before[f"{layer}.weight"], moments[f"{layer}.weight"]
        assert mine["step"] == 3
        for slot, fresh in (("exp_avg", torch.tensor(0.0)), ("exp_avg_sq", theirs["exp_avg_sq"].mean())):
            assert torch.equal(mine[slot][:, :24], theirs[slot][:, :24]) and torch.equal(mine[slot][:, new:], theirs[slot][:, 24:])
            torch.testing.assert_close(mine[slot][:, 24:new], fresh.expand_as(mine[slot][:, 24:new]))
    assert not any(name.startswith(("_wm.dynamics._top_", "_wm.dynamics._prior_weight")) for name in moments)


def test_moments_from_the_cpu_are_loaded_onto_the_device_of_the_parameters():
    agent, other = trained(make_agent()), fitting.outline(lambda config: make_agent(device="meta"), make_agent()._config)
    state = agent.optimizers()["_opt"].state_dict()["state"]
    other._opt.load_moments([state[number] for number in range(len(state))])
    assert {value.device.type for slots in other._opt.state_dict()["state"].values() for value in slots.values()} == {"meta"}


def test_new_latents_stay_below_the_free_nats_and_nothing_reads_them():
    space, act_space = spaces.Dict({"position": spaces.Box(-1, 1, (4,))}), spaces.Discrete(3)
    flat = Dreamer(space, act_space, tools.load_config(["defaults", NEW, "size1m"], TASK))
    for top, bottom in ((32, 32), (48, 32)):
        config = tools.load_config(["defaults", NEW, "size1m", "hdreamer"], {**TASK, "dyn_stoch_top": top, "dyn_stoch_bottom": bottom})
        agent = Dreamer(space, act_space, config)
        agent.load_state_dict(flat.state_dict())
        dynamics, generator = agent._wm.dynamics, torch.Generator().manual_seed(0)
        with torch.no_grad():
            inputs = agent._wm.preprocess(steps(agent, 0))
            embed = 3.0 * torch.randn(2, 4, 64, generator=generator)
            post, prior = dynamics.observe(embed, inputs["action"], inputs["is_first"])
            assert dynamics.kl_per_level(post, prior)["bottom"].max() < 1.0
            if top > 32:
                dists = [dynamics._level_dist("top", {"logit_top": state["logit_top"][..., 32:, :]}) for state in (post, prior)]
                assert dists[0].kl(dists[1]).max() < 1.0
        size = dynamics.stoch_size
        assert len(agent.latent_readers()) == 7
        for layer in agent.latent_readers():
            assert (layer.weight[:, 32 * 4 : size] == 0).all() and (layer.weight[:, : 32 * 4] != 0).any()


# Sizes and meaning


def drawn(seed: int) -> tuple[spaces.Dict, spaces.Space, dict]:
    """Random observations, actions and settings of a flat agent that mixes both generations."""
    rng = random.Random(seed)
    side, vectors = rng.choice([16, 32, 48]), {"position": spaces.Box(-1, 1, (3,)), "speed": spaces.Box(-1, 1, (2,))}
    images = {"image": spaces.Box(0, 255, (side, side, rng.choice([1, 3])), np.uint8)}
    two = {"image": spaces.Box(0, 255, (64, 64, 3), np.uint8), "map": spaces.Box(0, 255, (32, 32, 1), np.uint8)}
    observed = rng.choice([vectors, images, {**vectors, **images}, two])
    laprop = rng.random() < 0.6
    norm = ["layer", "rms", "none"]
    chosen = {
        "size": [side, side],
        "optimizer": "laprop" if laprop else "adam",
        "agc": 0.3 if laprop else 0.0,
        "warmup": 10 if laprop else 0,
        "critic.replay_scale": 0.3 if laprop else 0.0,
        "replay_context": int(laprop),
        "imag_gradient": "reinforce",
        "dyn_stoch": 2 * rng.randint(1, 3),
        "dyn_discrete": rng.randint(2, 5),
        "dyn_deter": 4 * rng.randint(1, 4),
        "dyn_hidden": rng.randint(3, 9),
        "dyn_core": rng.choice(["gru", "block_gru"]),
        "dyn_blocks": rng.choice([1, 2, 4]),
        "dyn_img_layers": rng.randint(1, 3),
        "dyn_obs_layers": rng.randint(1, 2),
        "dyn_rec_depth": rng.randint(1, 2),
        "initial": rng.choice(["learned", "zeros"]),
        "units": rng.randint(3, 9),
        "norm": rng.choice(norm),
        **{f"{head}.layers": rng.randint(0, 3) for head in ("reward_head", "cont_head", "actor", "critic")},
        **{f"{head}.dist": rng.choice(["symlog_disc", "symexp_twohot", "mse"]) for head in ("reward_head", "critic")},
        "cont_head.discounted": rng.random() < 0.5,
        "encoder.symlog_inputs": rng.choice(["all", "numbers", "none"]),
        "decoder.cnn_sigmoid": rng.random() < 0.5,
        "decoder.vector_dist": rng.choice(["auto", "mse"]),
        "decoder.blocks": rng.choice([1, 2, 4]),
        "expl_behavior": rng.choice(["greedy", "plan2explore"]),
        "disag_models": 2,
        "disag_layers": 1,
        "disag_units": rng.randint(3, 9),
    }
    for net in ("encoder", "decoder"):
        pooled = rng.random() < 0.6
        chosen |= {
            f"{net}.norm": rng.choice(norm),
            f"{net}.cnn": "pooled" if pooled else "strided",
            f"{net}.cnn_depth": rng.randint(1, 3),
            f"{net}.kernel_size": rng.choice([3, 5] if pooled else [2, 4]),
            f"{net}.minres": rng.choice([2, 4, 8]),
            f"{net}.mlp_layers": rng.randint(1, 3),
            f"{net}.mlp_units": rng.randint(3, 9),
        }
    return spaces.Dict(observed), ACTIONS[rng.choice(list(ACTIONS))], chosen


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 12))])
def test_a_file_of_any_settings_of_both_generations_loads_without_a_flag(seed):
    obs_space, act_space, chosen = drawn(seed)
    flat = trained(Dreamer(obs_space, act_space, tools.load_config([], {**TASK, **chosen})))
    stored, not_sizes = flat.checkpoint(), {**TASK, "expl_behavior": chosen["expl_behavior"]}
    for presets in ([], ["hdreamer_split"], [NEW], [NEW, "debug", "hdreamer"]):

        def build(config: settings.Config) -> Dreamer:
            return Dreamer(obs_space, act_space, config)

        filled = tools.load_config(["defaults", *presets], not_sizes)  # as a run does it
        assert fitting.take_sizes(filled, stored, build).startswith("Taken from the checkpoint: ")
        read = tools.load_config(["defaults", *presets], {**not_sizes, **checkpoints.sizes_of(stored)})  # as in Python
        for config in (filled, read):
            agent = build(config)
            fitting.check(agent, stored)
            agent.load_checkpoint(stored)
            assert_same_answers(agent, flat)


def test_tensors_tell_all_sizes_of_2025():
    agent = make_agent()
    found = sizes.read(sizes.shapes_of(agent.state_dict()))
    own = settings.flatten(agent._config)
    differing = {name: (value, own[name]) for name, value in found.items() if own[name] != value}
    assert differing.keys() == {"size", "reward_head.dist", "critic.dist"}  # two-hot, but not of which kind
    assert {"dyn_core", "dyn_blocks", "dyn_img_layers", "encoder.cnn", "decoder.blocks", "decoder.kernel_size", "norm"} < found.keys()


def test_sizes_of_two_levels_build_an_agent_for_them():
    agent = trained(make_agent("both", **KINDS["both wider"]))
    stored = agent.checkpoint()
    for presets in ([], [NEW], [NEW, "size50m", "hdreamer"]):
        other = Dreamer(OBSERVED, ACTIONS["both"], tools.load_config(["defaults", *presets], {**TASK, **checkpoints.sizes_of(stored)}))
        other.load_checkpoint(stored)
        assert same(dict(other.state_dict()), dict(agent.state_dict()))
        assert same(other.checkpoint()["optims_state_dict"]["_opt"]["state"], stored["optims_state_dict"]["_opt"]["state"])


MEANING = [
    ({"reward_head.dist": "symlog_disc"}, "reward_head.dist symlog_disc here, symexp_twohot in the checkpoint"),
    ({"critic.dist": "symlog_disc"}, "critic.dist symlog_disc here, symexp_twohot in the checkpoint"),
    ({"critic.dist": "mse"}, "critic.dist mse here, symexp_twohot in the checkpoint"),
    ({"cont_head.discounted": False}, "cont_head.discounted false here, true in the checkpoint"),
]


@pytest.mark.parametrize("other, told", MEANING)
@pytest.mark.parametrize("kind", [{}, SPLITS["even"]], ids=["flat", "two levels"])
def test_weights_are_never_read_as_those_of_another_algorithm(other, told, kind):
    stored, agent = trained(make_agent()).checkpoint(), make_agent(**kind, **other)
    assert_refused(agent, stored, told)
    with pytest.raises(fitting.DoesNotFit) as error:
        agent.load_checkpoint(stored)
    _, flags = settings.parse_flags(error.value.flags.split())
    make_agent(**{**kind, **other, **flags}).load_checkpoint(stored)


def assert_refused(agent: Dreamer, stored: dict, told: str) -> None:
    before = copy.deepcopy((dict(agent.state_dict()), agent.checkpoint()["optims_state_dict"]))
    with pytest.raises(ValueError) as error:
        agent.load_checkpoint(stored)
    assert told in str(error.value) and "\n" not in str(error.value)
    assert same(before, (dict(agent.state_dict()), agent.checkpoint()["optims_state_dict"]))


def test_an_optimizer_never_takes_the_moments_of_another():
    networks = {name: TINY[name] for name in ("dyn_deter", "units")}  # of 2023 with both optimizers
    adam = make_old(**networks)
    adam.update(steps(adam, 0))
    laprop = make_old(**networks, optimizer="laprop", agc=0.3)
    laprop.update(steps(laprop, 0))
    assert_refused(laprop, adam.checkpoint(), "trained with optimizer adam, and this agent has laprop; use the settings of 2023")
    assert_refused(adam, laprop.checkpoint(), "trained with optimizer laprop, and this agent has adam; use the preset dreamerv3_2025")
    assert_refused(make_agent(), adam.checkpoint(), "trained with optimizer adam")
    without_settings = {name: value for name, value in adam.checkpoint().items() if name != "config"}
    assert_refused(laprop, without_settings, "trained with optimizer adam")


def test_weights_of_2025_alone_are_refused_by_name_with_flags_that_fit():
    stored = trained(make_agent()).state_dict()
    with pytest.raises(fitting.DoesNotFit, match="dyn_core gru here, block_gru in the checkpoint") as error:
        make_old().load_state_dict(stored)
    _, flags = settings.parse_flags(error.value.flags.split())
    make_old(**flags).load_state_dict(stored)


def _without_momentum(state: dict):
    for slots in state.values():
        slots["momentum"] = slots.pop("exp_avg")


def _negative_square(state: dict):
    state[3]["exp_avg_sq"].flatten()[0] = -1e-9


def _infinite(state: dict):
    state[3]["exp_avg"].flatten()[0] = torch.inf


def _other_shape(state: dict):
    state[3]["exp_avg"] = state[3]["exp_avg"][..., :-1]


@pytest.mark.parametrize("name", ["_opt", "_expl_behavior._opt"])
@pytest.mark.parametrize(
    "edit, told",
    [
        (_without_momentum, "is not LaProp: of _"),
        (_negative_square, "negative exp_avg_sq"),
        (_infinite, "not finite"),
        (_other_shape, "does not fit its shape"),
        (None, "lacks the state of the optimizer"),
    ],
)
def test_damaged_moments_are_refused_and_change_nothing(edit, told, name):
    agent = make_agent(expl_behavior="plan2explore")
    agent.update(steps(agent, 0))
    stored = copy.deepcopy(agent.checkpoint())
    if edit:
        edit(stored["optims_state_dict"][name]["state"])
    else:
        del stored["optims_state_dict"][name]
    for other in (agent, make_agent(expl_behavior="plan2explore", **SPLITS["even"])):
        assert_refused(other, stored, told)


def test_only_agents_of_2023_are_exported():
    with pytest.raises(ValueError, match="dreamerv3-torch does not know dyn_core block_gru, .*only agents with the settings of 2023"):
        dreamerv3_torch.export(make_agent().checkpoint())
    with pytest.raises(ValueError, match="does not know critic.dist symexp_twohot; only"):
        dreamerv3_torch.export(make_old(**{"critic.dist": "symexp_twohot"}).checkpoint())
    dreamerv3_torch.export(make_old().checkpoint())


# Settings of a run that begins with a checkpoint


@pytest.mark.parametrize("presets", [[], ["small", "hdreamer_split"], [NEW, "debug"]], ids=str)
def test_a_run_that_begins_with_2025_is_one_whatever_presets_say(presets):
    flat = trained(make_agent("continuous"))
    config = tools.load_config(["defaults", *presets], {**TASK, "seed": 3})
    told = fitting.take_sizes(config, flat.checkpoint(), lambda config: Dreamer(OBSERVED, ACTIONS["continuous"], config))
    found, stored = settings.flatten(config), settings.flatten(flat._config)
    names = settings.flatten(settings.files.sections()[NEW]).keys() - {*settings.SIZES, "dataset_size", "prefill", "pretrain"}
    assert all(found[name] == tools.load_config(["defaults", *presets], TASK)[name] for name in ("dataset_size", "prefill", "pretrain"))
    if NEW in presets:  # of the same generation only what the weights depend on
        names -= {"model_lr", "warmup"}
    assert {name: found[name] for name in names} == {name: stored[name] for name in names}
    assert ("optimizer adam -> laprop" in told) == (NEW not in presets) and "dyn_hidden" in told
    agent = Dreamer(OBSERVED, ACTIONS["continuous"], config)
    agent.load_checkpoint(flat.checkpoint())
    assert_same_answers(agent, flat)


@pytest.mark.parametrize("name", ["atari", "proprio"])
def test_a_run_that_begins_with_dreamerv3_torch_is_of_2023_whatever_presets_say(name):
    config = tools.load_config(["defaults", NEW, "hdreamer_split"], TASK)
    told = fitting.take_sizes(config, checkpoint(name), lambda config: Dreamer(*spaces_of(name), config))
    assert "optimizer laprop -> adam" in told and "dyn_core block_gru -> gru" in told and "model_lr 4e-05 -> 0.0001" in told
    agent = Dreamer(*spaces_of(name), config)
    assert agent.load_checkpoint(checkpoint(name))["format"].startswith("dreamerv3-torch")
    assert (config.reward_head.dist, config.cont_head.discounted, config.critic.replay_scale) == ("symlog_disc", False, 0.0)


def test_flags_that_do_not_go_with_the_checkpoint_are_named():
    new, old = trained(make_agent()).checkpoint(), make_old().checkpoint()

    def take(stored: dict, presets: list, **flags) -> None:
        config = tools.load_config(["defaults", *presets], {**TASK, **flags})
        fitting.take_sizes(config, stored, build)
        fitting.check(fitting.outline(build, config), stored)

    def build(config: settings.Config) -> Dreamer:
        return Dreamer(OBSERVED, ACTIONS["discrete"], config)

    for stored, presets, flags, told in (
        (new, [], {"actor.lr": 1e-4}, "actor.lr: unused with optimizer laprop"),
        (old, [NEW], {"agc": 0.2}, "agc 0.2 is a setting of optimizer laprop"),
        (new, [], {"optimizer": "adam"}, "needs optimizer laprop"),
        (old, [NEW], {"optimizer": "laprop"}, "trained with optimizer adam, and this agent has laprop"),
        (new, [NEW], {"reward_head.dist": "symlog_disc"}, "reward_head.dist symlog_disc here, symexp_twohot in the checkpoint"),
        (old, [], {"cont_head.discounted": True}, "cont_head.discounted true here, false in the checkpoint"),
        (new, [NEW], {"dyn_blocks": 2}, "dyn_blocks 2 here, 4 in the checkpoint. Flags that fit: --dyn_blocks 4"),
    ):
        with pytest.raises(ValueError, match=told):
            take(stored, presets, **flags)


# Runs


def run(*words: str, code: int = 0) -> None:
    flags = "--task gym_CartPole-v1 --device cpu --eval_every 0 --train_ratio 24 --prefill 40 --batch_size 2 --batch_length 12".split()
    assert dreamer.main(["--configs", "defaults", *words, *flags]) == code


@pytest.mark.slow
@pytest.mark.parametrize("explorer", ["greedy", "plan2explore"])
def test_a_flat_run_goes_on_by_itself_and_in_two_levels(tmp_path, capsys, explorer):
    flat, split, explores = tmp_path / "flat", tmp_path / "split", ["--expl_behavior", explorer]
    small = ["--disag_units", "8", "--disag_layers", "1", "--disag_models", "2"] if explorer == "plan2explore" else []
    run(NEW, "debug", "--logdir", str(flat), "--steps", "60", *explores, *small)
    run(NEW, "debug", "--logdir", str(flat), "--steps", "70", *explores, *small)
    assert "Resuming at frame 60" in capsys.readouterr().out
    agent, stored = dreamer.read_agent(flat, "cpu")
    assert stored["updates"] == agent.updates > 0 and stored["step"] == 70
    names = {"_opt", "_expl_behavior._opt"} if explorer == "plan2explore" else {"_opt"}
    assert stored["optims_state_dict"].keys() == names
    assert all(slots["step"] == agent.updates for name in names for slots in stored["optims_state_dict"][name]["state"].values())

    run("hdreamer_split", "--from_checkpoint", str(flat), "--logdir", str(split), "--steps", "90", *explores)
    output = capsys.readouterr().out
    assert "optimizer adam -> laprop" in output and "4 new" in output and f"after {agent.updates:,} updates" in output
    two = dreamer.load_agent(split, "cpu")
    assert list(two._wm.dynamics.levels) == ["top", "bottom"] and two.updates > agent.updates
    assert two._config.optimizer == "laprop" and two._config.replay_context == 1
    run("hdreamer_split", "--logdir", str(split), "--steps", "100", *explores)
    assert "Resuming at frame 90" in capsys.readouterr().out


def test_a_checkpoint_that_is_loaded_trains_on_as_if_it_had_not_been(tmp_path):
    for kind in ({}, SPLITS["even"]):
        agent = trained(make_agent(**kind))
        other = make_agent(**kind)
        other.load_checkpoint(agent.checkpoint())
        for each in (agent, other):
            torch.manual_seed(0)
            each.update(steps(each, 9))
        assert same(dict(agent.state_dict()), dict(other.state_dict()))
        assert same(agent.checkpoint()["optims_state_dict"], other.checkpoint()["optims_state_dict"])


@pytest.mark.parametrize(
    "name, shape",
    [
        ("_wm.dynamics._cell.gates.weight", (5,)),
        ("_wm.dynamics._cell.gates.weight", (48, 0)),
        ("_wm.dynamics._img_in_layers.stoch.0.weight", ()),
        ("_wm.heads.decoder._cnn.deter_layer.weight", ()),
        ("_wm.heads.decoder._cnn.convs.0.weight", (0, 0, 5, 5)),
    ],
)
def test_a_tensor_with_a_shape_that_no_layer_has_is_refused(name, shape):
    agent = make_agent()
    stored = agent.checkpoint()
    stored["agent_state_dict"][name] = torch.zeros(shape)
    with pytest.raises(ValueError, match="does not fit this agent|holds no agent"):
        agent.load_checkpoint(stored)


def test_numbers_are_never_taken_for_one_hots_nor_the_other_way_round():
    numbers, onehots = (spaces.Dict({"place": space}) for space in (spaces.Box(-np.inf, np.inf, (5,)), OneHot([2, 3])))

    def agent_of(observed: spaces.Dict, **flags) -> Dreamer:
        return Dreamer(observed, ACTIONS["discrete"], tools.load_config([NEW], {**TASK, **TINY, **flags}))

    for before, here in ((numbers, onehots), (onehots, numbers)):
        with pytest.raises(ValueError, match="the observation 'place' is .* here and was .* in the checkpoint"):
            agent_of(here).load_checkpoint(agent_of(before).checkpoint())
    with pytest.raises(ValueError, match="use (?P<flags>--encoder.symlog_inputs all --decoder.vector_dist symlog_mse)"):
        fitting.check(agent_of(onehots), agent_of(numbers).checkpoint())
    flags = {"encoder.symlog_inputs": "all", "decoder.vector_dist": "symlog_mse"}
    agent_of(onehots, **flags).load_state_dict(agent_of(numbers).checkpoint()["agent_state_dict"])
    fitting.check_observations(agent_of(onehots, **flags), agent_of(numbers).checkpoint())
