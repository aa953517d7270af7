"""Two small agents of the JAX original, and what ours do with their weights and batches, by the recordings' names.

`tests/data/jax_reference` has weights, batches and answers of danijar/dreamerv3 at commit e3f0224, recorded with modes in place of samples,
and its parameter counts.
"""

import contextlib
import copy
import functools
import inspect
import json
import pathlib
import unittest.mock
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from gymnasium import spaces

import distributions as dists
import jax_names
import models
import networks
import tools
from dreamer import Dreamer
from optim import LaProp

FOLDER = pathlib.Path(__file__).parent / "data" / "jax_reference"
CASES = ("image_discrete", "proprio_continuous")
VARIANTS = [("image_discrete", 0.0), ("proprio_continuous", 0.0), ("proprio_continuous", 0.5)]  # actions: mean + shift * std
VALUES, GRADIENTS = 1e-5, 1e-4  # largest differences, as shares of an array's largest number
SIZES = {
    "dyn_deter": "dyn.rssm.deter",
    "dyn_hidden": "dyn.rssm.hidden",
    "dyn_stoch": "dyn.rssm.stoch",
    "dyn_discrete": "dyn.rssm.classes",
    "dyn_blocks": "dyn.rssm.blocks",
    "units": "value.units",
    "encoder.cnn_depth": "enc.simple.depth",
    "encoder.mlp_units": "enc.simple.units",
    "decoder.cnn_depth": "dec.simple.depth",
    "decoder.mlp_units": "dec.simple.units",
    "decoder.blocks": "dec.simple.bspace",
    "model_lr": "opt.lr",
    "warmup": "opt.warmup",
}
FLAGS = ("reward", "is_first", "is_last", "is_terminal")


# Agents and batches of the recordings


def load(case: str, name: str) -> dict[str, np.ndarray]:
    return dict(np.load(FOLDER / case / f"{name}.npz"))


def recorded_config(case: str) -> dict:
    return json.loads((FOLDER / case / "config.json").read_text())


def spaces_of(case: str) -> tuple[spaces.Dict, spaces.Space]:
    config = recorded_config(case)
    observed = {}
    for key, space in config["obs_space"].items():
        if key not in FLAGS:
            is_image = space["dtype"] == "uint8"
            shape = space["shape"] or (1,)
            observed[key] = spaces.Box(0, 255, shape, np.uint8) if is_image else spaces.Box(-np.inf, np.inf, shape)
    action = config["act_space"]["action"]
    return spaces.Dict(observed), spaces.Discrete(action["classes"]) if action["discrete"] else spaces.Box(-1, 1, action["shape"])


def new_agent(case: str, dataset=None, **overrides) -> Dreamer:
    """An agent with a case's settings and new weights."""
    recorded = recorded_config(case)
    sizes = {name: recorded[f"agent.{theirs}"] for name, theirs in SIZES.items()} | {"imag_horizon": recorded["agent.imag_length"] + 1}
    config = tools.load_config(
        ["defaults", "dreamerv3_2025"], {"task": "gym_X-v0", "device": "cpu", "precision": "32", **sizes, **overrides}
    )
    return Dreamer(*spaces_of(case), config, dataset=dataset)


def make_agent(case: str, dataset=None) -> Dreamer:
    """An agent with a case's settings, weights, moments and return percentiles."""
    agent, params = new_agent(case, dataset), load(case, "params")
    torch.nn.Module.load_state_dict(agent, jax_names.agent_state(params, agent))
    stored, names = jax_names.moments(params, agent), {parameter: name for name, parameter in agent.named_parameters()}
    optimizer = agent.optimizers()["_opt"]
    optimizer.load_moments([stored.pop(names[parameter]) for parameter in optimizer._params])
    assert not stored
    return agent


def observations(case: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Observations and flags, with numbers as vectors of one."""
    shapes = {key: space.shape for key, space in spaces_of(case)[0].spaces.items()}
    return {key: arrays[key][..., None] if shapes.get(key) == (1,) else arrays[key] for key in (*shapes, *FLAGS)}


def action_vectors(case: str, action: np.ndarray) -> np.ndarray:
    space = spaces_of(case)[1]
    return np.eye(space.n, dtype=np.float32)[action] if isinstance(space, spaces.Discrete) else action


def make_batch(agent: Dreamer, case: str, name: str = "batch", carry: dict[str, np.ndarray] | None = None) -> dict:
    """A recorded batch as our replay gives it: each step with the action that led to it, and the latents before the first step.

    Args:
        carry: `deter` and `stoch` from which the sequences start that go on from the last batch.
    """
    arrays = load(case, name)
    goes_on = arrays["consec"][:, 0].astype(bool)
    context = {key: arrays[f"dyn/{key}"][:, 0].copy() for key in ("deter", "stoch")}
    if carry:
        context = {key: np.where(goes_on.reshape(-1, *[1] * (array.ndim - 1)), carry[key], array) for key, array in context.items()}
    assert set(np.unique(context["stoch"])) == {0.0, 1.0} and (context["stoch"].sum(-1) == 1.0).all() and (carry or not goes_on.any())
    batch = {key: value[:, 1:] for key, value in observations(case, arrays).items()}
    batch["action"] = action_vectors(case, arrays["action"][:, :-1])
    packed = agent._wm.dynamics.pack({key: torch.tensor(value) for key, value in context.items()})
    return {**batch, "replay.context": packed, "replay.steps": arrays["stepid"][:, 1:]}


@contextlib.contextmanager
def modes_as_samples(shift: float = 0.0) -> Iterator[None]:
    """Within this, a sample is the mode, with the gradient of a sample. That of a Gaussian is its mean + `shift` * std."""
    with (
        unittest.mock.patch.object(dists.OneHot, "sample", lambda self, uniform=None: self.greedy_sample()),
        unittest.mock.patch.object(dists.Normal, "sample", lambda self, noise=None: self.loc + shift * self.std),
    ):
        yield


class Calls:
    """Notes calls of functions and methods: arguments and results.

    Args:
        owners: names of functions by the module or class that has them.
    """

    def __init__(self, owners: dict):
        self._functions = [(owner, name) for owner, names in owners.items() for name in names]
        self._calls = {name: [] for _, name in self._functions}

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for owner, name in self._functions:
                stack.enter_context(unittest.mock.patch.object(owner, name, self._noting(name, getattr(owner, name))))
            yield

    def _noting(self, name: str, function):
        signature = inspect.signature(function)

        def called(*args, **kwargs):
            result = function(*args, **kwargs)
            self._calls[name].append((signature.bind(*args, **kwargs).arguments, result))
            return result

        return called

    def __call__(self, name: str, number: int = 0) -> tuple[dict, object]:
        """Arguments by name, and the result, of a call."""
        return self._calls[name][number]

    def results(self, name: str) -> list:
        return [result for _, result in self._calls[name]]


def close(found, expected: np.ndarray, share: float = VALUES, name: str = "") -> None:
    """Checks that arrays differ by at most a share of the largest recorded number."""
    found = found.detach().numpy() if torch.is_tensor(found) else np.asarray(found)
    assert found.shape == expected.shape, (name, found.shape, expected.shape)
    np.testing.assert_allclose(found, expected, rtol=0, atol=share * max(np.abs(expected).max(initial=0.0), 1e-6), err_msg=name)


# What our agents answer, by the recordings' names


class Dataset:
    """Gives one batch, and keeps what is written back."""

    def __init__(self):
        self.batch, self.written = None, None

    def __next__(self) -> dict:
        return self.batch

    def write_latents(self, steps: np.ndarray, latents: dict[str, np.ndarray]) -> None:
        self.written = steps, latents


class Update(NamedTuple):
    """One update and what was seen of it.

    Args:
        answers: values by the recording's names.
        losses: loss terms by the recording's names: (B, T) where our function gives them so, else scalars.
        grads, clipped: gradients by parameter name, before and after clipping.
        before, after: states of the agent.
        moments: state of the optimizer after the update, by parameter name.
        written: what was written back: step ids, deter and one-hot latents.
    """

    answers: dict[str, torch.Tensor]
    losses: dict[str, torch.Tensor]
    grads: dict[str, torch.Tensor]
    clipped: dict[str, torch.Tensor]
    before: dict[str, torch.Tensor]
    after: dict[str, torch.Tensor]
    moments: dict[str, dict[str, torch.Tensor]]
    written: dict[str, torch.Tensor]


def updated(agent: Dreamer, batch: dict, shift: float) -> Update:
    """Lets an agent update itself on a batch, with modes as samples."""
    owners = {
        models: ("lambda_return", "imagination_weight", "actor_loss", "critic_loss", "replay_return"),
        models.ImagBehavior: ("imagine", "replay_loss"),
        models.WorldModel: ("loss",),
        networks.RSSM: ("img_step",),
        Dreamer: ("joint_loss",),
    }
    calls = Calls(owners)
    names, grads, clipped = {parameter: name for name, parameter in agent.named_parameters()}, {}, {}

    def noting_clip(optimizer: LaProp, *args) -> None:
        params = optimizer.param_groups[0]["params"]
        grads.update({names[parameter]: parameter.grad.clone() for parameter in params})
        clip(optimizer, *args)
        clipped.update({names[parameter]: parameter.grad.clone() for parameter in params})

    clip, before = LaProp.clip, copy.deepcopy(agent.state_dict())
    agent._dataset.batch = batch
    with calls.noted(), unittest.mock.patch.object(LaProp, "clip", noting_clip), modes_as_samples(shift):
        metrics = agent.update()
    steps, latents = agent._dataset.written
    written = {"stepid": steps, **agent._wm.dynamics.unpack(latents)}
    optimizer = agent.optimizers()["_opt"]
    moments = {names[parameter]: optimizer.state_dict()["state"][number] for number, parameter in enumerate(optimizer._params)}
    after, moments = copy.deepcopy((agent.state_dict(), moments))
    return Update(imagined(agent, calls), losses_of(calls, metrics), grads, clipped, before, after, moments, written)


def losses_of(calls: Calls, metrics: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Loss terms by the recording's names."""
    _, (_, _, terms) = calls("loss")
    theirs = {"reward": "rew", "cont": "con"}
    losses = {name.removesuffix("_loss"): value for name, value in terms.items() if name.endswith("_loss") and value.ndim}  # (B, T)
    losses = {f"loss/{theirs.get(name, name)}": value for name, value in losses.items()}
    (replayed, _), (_, replay_losses) = calls("replay_loss"), calls("critic_loss", 1)
    losses["loss/repval"] = (1.0 - replayed["data"]["is_last"][:, :-1]) * replay_losses  # (B, T - 1)
    _, (total, _, means) = calls("joint_loss")
    policy, value, repval = (means[name] for name in ("actor_loss", "value_loss", "replay_value_loss"))
    assert torch.equal(repval, calls("replay_loss")[1]) and torch.allclose(repval, losses["loss/repval"].mean())
    assert metrics["actor_loss"] == policy
    return {**losses, "loss/policy": policy, "loss/value": value, "loss/total": total}


def imagined(agent: Dreamer, calls: Calls) -> dict[str, torch.Tensor]:
    """Imagination and returns, (N, H, ...)."""
    behavior, dynamics = agent._task_behavior, agent._wm.dynamics
    started, rollout = calls("imagine")
    states = networks.stack_states([started["start"], *calls.results("img_step")], 0)
    returned, returns = calls("lambda_return")
    _, weight = calls("imagination_weight")
    actor, critic, replay = calls("actor_loss")[0], calls("critic_loss")[0], calls("replay_return")
    policy, slow, value_dist = actor["policy"], critic["slow_target"], critic["value_dist"]
    advantage = ((actor["returns"] - actor["baseline"]) / actor["scale"]).squeeze(-1)
    logp, entropy, weights = policy.log_prob(actor["action"]), policy.entropy(), actor["weight"].squeeze(-1)
    found = {
        "deter": states["deter"],
        "stoch": states["stoch"],
        "logit": states["logit"],
        "act/action": rollout.action,
        **{f"pol/action/{name}": value for name, value in policy_outputs(rollout.stats).items()},
        "pol/action/logp": logp,
        "pol/action/entropy": entropy,
        "rew": returned["reward"].squeeze(-1),
        "con": returned["discount"].squeeze(-1),
        "val": returned["value"].squeeze(-1),
        "slowval": slow.squeeze(-1),
        "val_logits": value_dist._logits,
        "weight": weight.squeeze(-1),
        "ret": returns.squeeze(-1),
        "adv": advantage,
        "loss_policy": -weights * (logp * advantage + agent._config.actor.entropy * entropy),
        "loss_value": weights * calls("critic_loss")[1],
    }
    found = {f"img/{name}": value.transpose(0, 1) for name, value in found.items()}
    found |= {"retnorm/scale": actor["scale"], "retnorm/after": behavior.ema_vals.clone()}
    assert torch.equal(rollout.feat[0], dynamics.get_feat(started["start"]))
    return {**found, "rep/boot": replay[0]["boot"], "rep/ret": replay[1]}


def policy_outputs(stats: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The policy's outputs by the recording's names."""
    theirs = {"logit": "logits", "mean": "mean", "std": "stddev"}
    return {theirs[name]: value for name, value in stats.items()}


@torch.no_grad()
def observed(agent: Dreamer, batch: dict) -> dict[str, torch.Tensor]:
    """Posterior, prior and the outputs of all heads on a batch, (B, T, ...)."""
    wm, behavior = agent._wm, agent._task_behavior
    data = wm.preprocess(batch)
    embed = wm.encoder(data)
    with modes_as_samples():
        post, prior = wm.dynamics.observe(embed, data["action"], data["is_first"], data["replay.context"])
    feat = wm.dynamics.get_feat(post)
    predictions, dyn = wm.heads["decoder"](feat), wm.dynamics
    found = {
        "tokens": tokens(agent, embed),
        "post_logit": post["logit"],
        "prior_logit": prior["logit"],
        "deter": post["deter"],
        "stoch": post["stoch"],
        "kl_dyn_raw": dyn.kl_per_level(post, prior)["flat"],
        "dyn_ent": dyn.entropy(prior).mean(),
        "rep_ent": dyn.entropy(post).mean(),
        "con/logit": wm.heads["cont"].stats(feat).squeeze(-1),
        "con/prob": wm.heads["cont"](feat).mean.squeeze(-1),
        **{f"recon/{key}/pred": dist.loc for key, dist in predictions.items()},
        **{f"pol/action/{name}": value for name, value in policy_outputs(behavior.actor.stats(feat)).items()},
    }
    for name, head in {"rew": wm.heads["reward"], "val": behavior.value, "slowval": behavior._slow_value}.items():
        found |= {f"{name}/logits": head.stats(feat), f"{name}/pred": head(feat).mode.squeeze(-1)}
    return found


def tokens(agent: Dreamer, embed: torch.Tensor) -> torch.Tensor:
    """Embeddings (..., E) with vectors first, as the original's."""
    vectors = agent._config.encoder.mlp_units if any(len(shape) == 1 for shape in agent._wm.encoder.shapes.values()) else 0
    return torch.cat([embed[..., -vectors:], embed[..., :-vectors]], -1) if vectors else embed


@functools.cache
def first_update(case: str, shift: float) -> Update:
    agent = make_agent(case, Dataset())
    return updated(agent, make_batch(agent, case), shift)


@functools.cache
def second_update(case: str) -> Update:
    """The update after the first one; two of its sequences go on from where that one ended."""
    agent = make_agent(case, Dataset())
    first = updated(agent, make_batch(agent, case), 0.0)
    carry = {key: first.written[key][:, -1].numpy() for key in ("deter", "stoch")}
    return updated(agent, make_batch(agent, case, "batch2", carry), 0.0)
