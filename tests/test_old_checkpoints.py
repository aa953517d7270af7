"""Checkpoints of dreamerv3-torch and of flat agents, loaded flat and into two levels: answers, training, and what is refused."""

import copy
import math
import pathlib
import re

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import models
import tools
from dreamer import Dreamer
from old_files import DATA, NAMES, answers, batch, checkpoint, close, levels, make_agent, recorded, same
from settings import parse_flags

CATEGORICAL = [name for name in NAMES if name != "gaussian"]
SPLITS = ["even split", "uneven split", "all but one above"]
KINDS = [*SPLITS, "new bottom", "wider top", "filled bottom with new slots"]


def latent(name: str) -> tuple[int, int]:
    """S and K of a file."""
    return recorded(name)["out_post_logit"].shape[-2:]


def fitting(name: str, kind: str) -> tuple[int, int, int, int]:
    """Latents and classes of top and bottom that a file fits."""
    s, k = latent(name)
    return {
        "even split": (s // 2, k, s // 2, k),
        "uneven split": (s // 3, k, s - s // 3, k),
        "all but one above": (s - 1, k, 1, k),
        "new bottom": (s, k, 3, 5),
        "wider top": (s + 2, k, 2, 3),
        "filled bottom with new slots": (s - 2, k, 5, k),
    }[kind]


def loaded(name: str, kind: str, **overrides) -> Dreamer:
    """An agent with two levels that has taken up a file."""
    agent = make_agent(name, **levels(*fitting(name, kind)), **overrides)
    agent.load_checkpoint(checkpoint(name))
    return agent


def filled(state: dict, key: str, s: int, k: int) -> torch.Tensor:
    """The slots that a flat latent fills, (..., S, K), of a statistic of two levels."""
    both = torch.cat([state[f"{key}_top"].flatten(-2), state[f"{key}_bottom"].flatten(-2)], -1)
    return both[..., : s * k].unflatten(-1, (s, k))


def kl(post: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    """KL in nats between two groups of categoricals with 1% uniform, summed over the group, in float64."""
    q, p = (0.99 * torch.softmax(torch.as_tensor(x).double(), -1) + 0.01 / x.shape[-1] for x in (post, prior))
    return (q * (q / p).log()).sum((-1, -2))


# What a loaded agent answers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CATEGORICAL)
def test_an_agent_with_two_levels_gives_the_old_answers(name, kind):
    agent, (s, k) = loaded(name, kind), latent(name)
    found, expected = answers(agent, name), recorded(name)
    size = agent._wm.dynamics.stoch_size
    for key in ("feat", "open_feat"):
        found[key] = torch.cat([found[key][..., : s * k], found[key][..., size:]], -1)
    for key in ("post", "prior"):
        found[f"{key}_logit"] = filled(found, f"{key}_logit", s, k)
    for key, values in expected.items():
        if key.startswith("out_"):
            close(found[key[4:]][:, : values.shape[1]], values, atol=1e-5)
    close(kl(found["post_logit"], found["prior_logit"]), kl(expected["out_post_logit"], expected["out_prior_logit"]), atol=1e-5)


@pytest.mark.parametrize("kind", SPLITS)
def test_the_kl_of_a_split_latent_is_that_of_the_flat_one(kind):
    for name in CATEGORICAL:
        post, prior = (torch.as_tensor(recorded(name)[f"out_{key}_logit"]) for key in ("post", "prior"))
        agent = loaded(name, kind)
        wm = agent._wm
        data = wm.preprocess(batch(name))
        both = wm.dynamics.observe(wm.encoder(data), data["action"], data["is_first"], sample=False)
        close(sum(wm.dynamics.kl_per_level(*both).values()), kl(post, prior).numpy(), atol=1e-5)


def test_new_latents_stay_below_the_free_nats_and_nothing_reads_them():
    config = tools.load_config(["defaults", "hdreamer"], {"device": "cpu", "task": "gym_X-v0"})
    space = spaces.Dict({"vector": spaces.Box(-1, 1, (4,))})
    flat = Dreamer(space, spaces.Discrete(3), tools.load_config([], {"device": "cpu", "task": "gym_X-v0"}))
    rng = np.random.default_rng(0)
    data = {
        "vector": rng.normal(size=(4, 16, 4)).astype(np.float32),
        "reward": np.zeros((4, 16), np.float32),
        "action": np.eye(3, dtype=np.float32)[rng.integers(3, size=(4, 16))],
        "is_first": np.zeros((4, 16), bool),
        "is_terminal": np.zeros((4, 16), bool),
    }
    for top, bottom in ((32, 32), (48, 32)):
        config.dyn_stoch_top, config.dyn_stoch_bottom = top, bottom
        agent = Dreamer(space, spaces.Discrete(3), config)
        agent.load_state_dict(flat.state_dict())
        with torch.no_grad():
            inputs = agent._wm.preprocess(data)
            post, prior = agent._wm.dynamics.observe(agent._wm.encoder(inputs), inputs["action"], inputs["is_first"])
            assert agent._wm.dynamics.kl_per_level(post, prior)["bottom"].max() < config.kl_free
            if top > 32:
                new = {key: {"logit_top": state["logit_top"][..., 32:, :]} for key, state in (("post", post), ("prior", prior))}
                dist = {key: agent._wm.dynamics._level_dist("top", state) for key, state in new.items()}
                assert dist["post"].kl(dist["prior"]).max() < config.kl_free
        size = agent._wm.dynamics.stoch_size
        assert len(agent.latent_readers()) == 7
        for layer in agent.latent_readers():
            assert (layer.weight[:, 32 * 32 : size] == 0).all() and (layer.weight[:, : 32 * 32] != 0).any()


PAGE = (pathlib.Path(__file__).parent.parent / "docs" / "checkpoints.md").read_text().split("What fits")[1].split("###")[0]
ROWS = re.findall(r"^\| `([^`]+)` \| [^|]+ \| (refused)?", PAGE, re.MULTILINE)


@pytest.mark.parametrize("setting, refused", ROWS)
def test_the_table_in_the_docs_says_what_fits(setting, refused):
    presets, flags = chosen_in(setting)
    space = spaces.Dict({"vector": spaces.Box(-1, 1, (4,))})
    small = {
        "device": "cpu",
        "task": "gym_X-v0",
        "dyn_deter": 8,
        "dyn_hidden": 8,
        "units": 8,
        "encoder.mlp_units": 8,
        "decoder.mlp_units": 8,
    }
    flat = Dreamer(space, spaces.Discrete(3), tools.load_config([], small))
    agent = Dreamer(space, spaces.Discrete(3), tools.load_config(presets, {**small, **flags}))
    if refused:
        with pytest.raises(ValueError, match="32 categoricals of 32 classes"):
            agent.load_checkpoint(flat.checkpoint())
    else:
        agent.load_checkpoint(flat.checkpoint())


def chosen_in(setting: str) -> tuple[list[str], dict]:
    """Presets and overrides of a line of the table."""
    return parse_flags(setting.replace("...", "--configs defaults").split())


def test_the_table_has_all_its_lines():
    assert len(ROWS) == 6 and sum(refused == "refused" for _, refused in ROWS) == 2


# Training goes on


def stored_episodes() -> dict:
    """Sequences of the old collector's episodes, (3, 16, ...)."""
    episodes = [dict(np.load(path)) for path in sorted((DATA / "atari" / "train_eps").glob("*.npz"))]
    return {key: np.stack([episode[key][:16] for episode in episodes]) for key in episodes[0] if key != "logprob"}


def losses_after_fifty_updates(agent: Dreamer, seed: int) -> float:
    """Reconstruction, reward and continue losses of an agent that starts with the file."""
    agent.load_checkpoint(checkpoint("atari"))
    torch.manual_seed(seed)
    for _ in range(50):
        agent.update(stored_episodes())
    with torch.no_grad():
        metrics = agent._wm.loss(agent._wm.preprocess(stored_episodes()), sample=False)[2]
    return sum(metrics[key].mean().item() for key in ("image_loss", "reward_loss", "cont_loss"))


@pytest.fixture(scope="module")
def flat_losses() -> list[float]:
    return [losses_after_fifty_updates(make_agent("atari"), seed) for seed in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["even split", "new bottom", "filled bottom with new slots"])
def test_after_fifty_updates_the_losses_are_those_of_the_flat_agent(kind, flat_losses):
    for seed, flat in enumerate(flat_losses):
        agent = make_agent("atari", **levels(*fitting("atari", kind)))
        hierarchical = losses_after_fifty_updates(agent, seed)
        print(f"{kind}, seed {seed}: {flat:.4f} flat, {hierarchical:.4f} in two levels")
        assert hierarchical < 1.02 * flat and flat < 1.02 * hierarchical
        entries, size = math.prod(latent("atari")), agent._wm.dynamics.stoch_size
        readers = [layer for layer in agent.latent_readers() if layer.weight.requires_grad]
        for layer in readers if size > entries else []:
            assert (layer.weight[:, entries:size] != 0).any(1).float().mean() > 0.5


def one_update(agent: Dreamer, name: str) -> None:
    """An update in which the slots that a flat latent fills get the same uniforms, however many slots there are."""
    generator, more = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    sizes = {name: level.stoch for name, level in agent._wm.dynamics.levels.items()}
    s, _ = latent(name)

    def noise(sample: bool, *shape: int) -> dict[str, torch.Tensor]:
        assert sample is True
        parts = torch.rand(*shape, s, generator=generator), torch.rand(*shape, sum(sizes.values()) - s, generator=more)
        return dict(zip(sizes, torch.cat(parts, -1).split(list(sizes.values()), -1)))

    agent._wm.dynamics._noise = noise
    torch.manual_seed(0)
    agent.update(batch(name))


UNCLIPPED = dict.fromkeys(("grad_clip", "actor.grad_clip", "critic.grad_clip"), 1000000000000.0)


@pytest.mark.parametrize("name", CATEGORICAL)
@pytest.mark.parametrize("kind", [*SPLITS, "new bottom"])
def test_an_update_moves_what_is_shared_as_in_the_flat_agent(name, kind):
    free = {} if kind == "new bottom" else {"kl_free": 0.0}
    flat = make_agent(name, **UNCLIPPED, **free)
    flat.load_checkpoint(checkpoint(name))
    agent = loaded(name, kind, **UNCLIPPED, **free)
    before = {key: tensor.clone() for key, tensor in agent.state_dict().items()}
    flat_before = {key: tensor.clone() for key, tensor in flat.state_dict().items()}
    one_update(flat, name)
    one_update(agent, name)
    moved = {key: tensor - flat_before[key] for key, tensor in flat.state_dict().items()}
    for key, source in models.flat_sources(agent, math.prod(latent(name))).items():
        # The explorer's reward is a mean over all latents, so more latents make another reward.
        if source is not None and not (kind == "new bottom" and key.startswith("_expl_behavior._behavior.")):
            difference = agent.state_dict()[key] - before[key]
            expected = source.take(moved[source.name], difference)
            assert expected.abs().max() > 1e-7 or "reward" in key, key
            torch.testing.assert_close(difference, expected, atol=2e-7, rtol=1e-3, msg=key)


@pytest.mark.parametrize("name", ["atari", "proprio"])
def test_the_next_update_is_adams_from_the_stored_moments(name):
    stored, agent = checkpoint(name), make_agent(name, **UNCLIPPED)
    agent.load_checkpoint(stored)
    names = [key for key, _ in agent._wm.named_parameters(prefix="_wm")]
    torch.manual_seed(0)
    grads = torch.autograd.grad(agent._wm.loss(agent._wm.preprocess(batch(name)))[0], list(agent._wm.parameters()))
    torch.manual_seed(0)
    agent.update(batch(name))
    state = stored["optims_state_dict"]["_wm._model_opt._opt"]["state"]
    for number, (key, grad) in enumerate(zip(names, grads)):
        assert state[number]["step"] == 4
        mean = 0.9 * state[number]["exp_avg"].double() + 0.1 * grad.double()
        square = 0.999 * state[number]["exp_avg_sq"].double() + 0.001 * grad.double() ** 2
        step = 1e-4 * (mean / (1 - 0.9**5)) / ((square / (1 - 0.999**5)).sqrt() + 1e-8)
        moved = agent.state_dict()[key].double() - stored["agent_state_dict"][key].double()
        torch.testing.assert_close(moved, -step, atol=1e-7, rtol=1e-3, msg=key)


@pytest.mark.parametrize("kind", KINDS)
def test_moments_follow_their_entries_and_new_ones_start_with_the_mean_square(kind):
    flat = make_agent("plan2explore")
    flat.load_checkpoint(checkpoint("plan2explore"))
    agent = loaded("plan2explore", kind)
    (top, top_classes, bottom, bottom_classes), n = fitting("plan2explore", kind), math.prod(latent("plan2explore"))
    t, size = top * top_classes, top * top_classes + bottom * bottom_classes
    flat_moments, moments = (by_name(a) for a in (flat, agent))
    assert moments.keys() >= {"_wm.dynamics.W", "_expl_behavior._networks.1.layers.NoName_linear0.weight"}

    def check(key, old_key, place, dim):
        """Entries `place` (here, there) are the old ones, all others new."""
        for slot, new in (("exp_avg", 0.0), ("exp_avg_sq", None)):
            here, there = moments[key][slot].movedim(dim, 0), flat_moments[old_key][slot].movedim(dim, 0)
            copied = torch.zeros(len(here), dtype=torch.bool)
            for mine, theirs in place:
                assert torch.equal(here[mine], there[theirs])
                copied[mine] = True
            if not copied.all():
                new = here[copied].mean() if new is None else torch.tensor(new)
                torch.testing.assert_close(here[~copied], new.expand_as(here[~copied]))
        assert moments[key]["step"] == 4

    widened = [(slice(0, n), slice(0, n)), (slice(size, None), slice(n, None))]
    for reader in (
        "_wm.dynamics._img_in_layers.0",
        "_wm.heads.reward.layers.Reward_linear0",
        "_wm.heads.decoder._cnn._linear_layer",
        "_task_behavior.actor.layers.Actor_linear0",
        "_task_behavior.value.layers.Value_linear0",
        "_expl_behavior._networks.0.layers.NoName_linear0",
        "_expl_behavior._behavior.actor.layers.Actor_linear0",
    ):
        check(f"{reader}.weight", f"{reader}.weight", widened, 1)
    for part in ("weight", "bias"):
        check(f"_expl_behavior._networks.0.mean_layer.{part}", f"_expl_behavior._networks.0.mean_layer.{part}", widened, 0)
        for layer in ("_wm.dynamics._imgs_stat_layer", "_wm.dynamics._obs_stat_layer"):
            check(f"{layer}.top.{part}", f"{layer}.{part}", [(slice(0, min(t, n)), slice(0, min(t, n)))], 0)
            if t < n:
                check(f"{layer}.bottom.{part}", f"{layer}.{part}", [(slice(0, n - t), slice(t, n))], 0)
            else:
                assert f"{layer}.bottom.{part}" not in moments
    assert not any(key.startswith(("_wm.dynamics._top_", "_wm.dynamics._prior_weight")) for key in moments)
    assert same(moments["_wm.dynamics._cell.layers.GRU_linear.weight"], flat_moments["_wm.dynamics._cell.layers.GRU_linear.weight"])


def by_name(agent: Dreamer) -> dict[str, dict]:
    """Adam's moments of all parameters of an agent, by the parameters' names."""
    found = {}
    for optimizer in agent.optimizers().values():
        names = {id(parameter): key for key, parameter in agent.named_parameters()}
        state = optimizer.state_dict()["state"]
        found |= {names[id(parameter)]: state[number] for number, parameter in enumerate(optimizer._params) if number in state}
    return found


def test_training_after_a_load_leaves_the_callers_checkpoint_alone():
    stored = checkpoint("atari")
    untouched = copy.deepcopy(stored)
    for agent in (make_agent("atari"), make_agent("atari", **levels(3, 4, 3, 4))):
        agent.load_checkpoint(stored)
        agent.update(batch("atari"))
        assert same(dict(stored), dict(untouched))


# Any sizes


small = st.integers(1, 5)
classes = st.integers(2, 4)


def tiny_agent(**sizes) -> Dreamer:
    overrides = {
        "task": "gym_X-v0",
        "device": "cpu",
        "dyn_deter": 5,
        "dyn_hidden": 6,
        "units": 4,
        "expl_behavior": "plan2explore",
        "disag_models": 2,
        "disag_layers": 1,
        "disag_units": 3,
        "encoder.mlp_units": 4,
        "encoder.mlp_layers": 1,
        "decoder.mlp_units": 4,
        "decoder.mlp_layers": 1,
        "actor.layers": 1,
        "critic.layers": 0,
        **sizes,
    }
    agent = Dreamer(spaces.Dict({"vector": spaces.Box(-1, 1, (3,))}), spaces.Box(-1, 1, (2,)), tools.load_config([], overrides))
    with torch.no_grad():
        for parameter in agent.parameters():  # away from zeros, which many answers start with
            parameter.add_(0.3 * torch.randn_like(parameter))
    return agent


def tiny_answers(agent: Dreamer, entries: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    embed, action = torch.randn(2, 4, 4, generator=generator), torch.randn(2, 4, 2, generator=generator)
    with torch.no_grad():
        dynamics = agent._wm.dynamics
        post, _ = dynamics.observe(embed, action, torch.zeros(2, 4, dtype=torch.bool), sample=False)
        feat = dynamics.get_feat(post)
        explorer, task = agent._expl_behavior, agent._task_behavior
        predicted = torch.stack([network(feat).mode[..., :entries] for network in explorer._networks])
        return [
            post["deter"],
            dynamics.flat_stoch(post)[..., :entries],
            *(x.mode for x in agent._wm.heads["decoder"](feat).values()),
            agent._wm.heads["reward"](feat).mode,
            agent._wm.heads["cont"](feat).mean,
            task.actor(feat).mode,
            task.value(feat).mode,
            task._slow_value(feat).mode,
            explorer.actor(feat).mode,
            explorer._behavior.value(feat).mode,
            predicted,
            dynamics.imagine_with_action(action, {key: value[:, -1] for key, value in post.items()}, sample=False)["deter"],
        ]


@pytest.mark.slow
@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(s=small, k=classes, top=small, top_k=classes, bottom=small, bottom_k=classes, data=st.data())
def test_any_flat_latent_loads_where_it_fits_and_is_refused_elsewhere(s, k, top, top_k, bottom, bottom_k, data):
    if data.draw(st.booleans()):  # mostly sizes that fit
        top_k, bottom_k, bottom = k, bottom_k if top >= s else k, max(bottom, s - top, 1)
    flat = tiny_agent(dyn_stoch=s, dyn_discrete=k)
    agent = tiny_agent(**levels(top, top_k, bottom, bottom_k))
    before = copy.deepcopy(agent.state_dict())
    if top + bottom >= s and top_k == k and (top >= s or bottom_k == k):
        agent.load_state_dict(flat.state_dict())
        for mine, theirs in zip(tiny_answers(agent, s * k), tiny_answers(flat, s * k), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    else:
        with pytest.raises(ValueError, match=f"{s} categoricals of {k} classes.*dyn_stoch_top .*dyn_discrete_top {k}"):
            agent.load_state_dict(flat.state_dict())
        assert same(dict(agent.state_dict()), dict(before))
