"""Four small agents of the JAX original, and what ours do with their weights and batches, by the recordings' names.

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

import checkpoints
import distributions as dists
import models
import networks
import settings
from checkpoints import dreamerv3_torch, jax_original, sizes
from checkpoints.jax_original.names import Translation, conventions_of
from dreamer import Dreamer
from envs.spaces import ObservationCodec
from optim import LaProp

FOLDER = pathlib.Path(__file__).parent / "data" / "jax_reference"
CASES = ("image_discrete", "proprio_continuous")
CHECKPOINTS = ("checkpoint_cartpole", "checkpoint_dummy")  # folders of runs, written by its main script
VARIANTS = [("image_discrete", 0.0), ("proprio_continuous", 0.0), ("proprio_continuous", 0.5)]  # actions: mean + shift * std
VALUES, GRADIENTS = 1e-5, 1e-4  # largest differences, as shares of an array's largest number
FLAGS = ("reward", "is_first", "is_last", "is_terminal")


# Agents and batches of the recordings


def load(case: str, name: str) -> dict[str, np.ndarray]:
    return dict(np.load(FOLDER / case / f"{name}.npz"))


@functools.cache
def recorded_spaces(case: str) -> tuple[dict, dict]:
    """Descriptions of observations, without reward and flags, and of actions."""
    stored = json.loads((FOLDER / case / ("contents.json" if case in CHECKPOINTS else "config.json")).read_text())
    return {key: space for key, space in stored["obs_space"].items() if key not in FLAGS}, stored["act_space"]


@functools.cache
def stored(case: str) -> dict:
    """The original's whole state, see `jax_original.read_files`."""
    if case in CHECKPOINTS:
        return jax_original.read_files(checkpoints.locate(FOLDER / case))
    options = {name: value for name, value in json.loads((FOLDER / case / "config.json").read_text()).items() if name.startswith("agent.")}
    return {"params": load(case, "params"), "counters": {}, "steps": None, "options": options}


def _space(described: dict) -> spaces.Space:
    shape = tuple(described["shape"])
    if described["dtype"] == "uint8":
        return spaces.Box(0, 255, shape, np.uint8)
    elif described["discrete"]:
        return spaces.MultiDiscrete(np.full(shape, described["classes"])) if shape else spaces.Discrete(described["classes"])
    return spaces.Box(described.get("low", -np.inf), described.get("high", np.inf), shape)


def codec_of(case: str) -> ObservationCodec:
    return ObservationCodec(spaces.Dict({key: _space(space) for key, space in recorded_spaces(case)[0].items()}), (64, 64))


def spaces_of(case: str) -> tuple[spaces.Dict, spaces.Space]:
    actions = {key: _space(space) for key, space in recorded_spaces(case)[1].items()}
    return codec_of(case).space, spaces.Dict(actions) if len(actions) > 1 else actions["action"]


def new_agent(case: str, dataset=None, **overrides) -> Dreamer:
    """An agent with a case's settings and new weights."""
    config = {**jax_original.convert(stored(case))["config"], "task": "gym_X-v0"}
    return Dreamer(*spaces_of(case), settings.load_config([], {"device": "cpu", "precision": "32", **overrides}, config), dataset=dataset)


def make_agent(case: str, dataset=None, **overrides) -> Dreamer:
    """An agent with a case's settings, weights, moments and return percentiles."""
    agent = new_agent(case, dataset, **overrides)
    agent.load_checkpoint(jax_original.convert(stored(case)))
    return agent


def observations(case: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Observations as our environments give them, and flags, (..., n)."""
    codec = codec_of(case)
    leading = arrays["is_first"].shape
    rows = [codec({key: arrays[key][index] for key in codec.space.spaces}) for index in np.ndindex(leading)]
    encoded = {key: np.stack([row[key] for row in rows]).reshape(*leading, *space.shape) for key, space in codec.space.spaces.items()}
    return {**encoded, **{flag: arrays[flag] for flag in FLAGS if flag in arrays}}


def action_vectors(case: str, actions: dict[str, np.ndarray]) -> np.ndarray:
    """Action vectors (..., A) of recorded actions by key."""
    classes = {key: space["classes"] if space["discrete"] else None for key, space in recorded_spaces(case)[1].items()}
    return np.concatenate(
        [np.eye(classes[key], dtype=np.float32)[actions[key]] if classes[key] else actions[key] for key in sorted(classes)], -1
    )


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
    batch["action"] = action_vectors(case, {key: arrays[key][:, :-1] for key in recorded_spaces(case)[1]})
    packed = agent._wm.dynamics.pack(in_levels(agent, {key: torch.tensor(value) for key, value in context.items()}))
    return {**batch, "replay.context": packed, "replay.steps": arrays["stepid"][:, 1:]}


def in_levels(agent: Dreamer, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A flat state whose categoricals fill the levels of an agent in order; further ones are zeros, (..., S, K)."""
    levels, stoch = agent._wm.dynamics.levels.values(), state["stoch"]
    parts = {"deter": state["deter"]}
    for level in levels:
        own, stoch = stoch[..., : level.stoch, :], stoch[..., level.stoch :, :]
        parts["stoch" + level.suffix] = torch.zeros(*stoch.shape[:-2], level.stoch, level.discrete)
        if own.shape[-2]:
            parts["stoch" + level.suffix][..., : own.shape[-2], :] = own
    return parts


def part(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names start with a prefix, without it."""
    return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}


def trained_tensors(arrays: dict[str, np.ndarray], params: dict[str, np.ndarray], agent: Dreamer) -> dict[str, torch.Tensor]:
    """Gradients or updates of all trained parameters, by our names.

    Args:
        arrays: by the original's names, in its layout.
        params: the original's parameters, whose shapes tell the conventions.
        agent: whose parameters they are of.
    """
    translation = Translation(conventions_of(params))
    found = {translation.our_name(name): torch.tensor(translation.to_ours(name, array).copy()) for name, array in arrays.items()}
    own = {name: tuple(parameter.shape) for name, parameter in agent.named_parameters() if parameter.requires_grad}
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == own and len(found) == len(arrays)
    return found


def state_after(case: str, recorded: dict[str, np.ndarray]) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
    """The agent's state after an update, and the optimizer's if it was recorded, by our names."""
    params = part(recorded, "after/")
    if not any(name.startswith("opt/state/1/1/") for name in params):
        params = {name: value for name, value in params.items() if not name.startswith("opt/")}
    checkpoint = jax_original.convert({**stored(case), "params": params})
    moments = checkpoint["optims_state_dict"] and dreamerv3_torch.moments("_opt", sizes.read_checkpoint(checkpoint))
    return checkpoint["agent_state_dict"], moments


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
        **{f"act/{key}": value for key, value in by_action(agent, rollout.action).items()},
        **{f"pol/{name}": value for name, value in policy_outputs(rollout.stats).items()},
        **{f"pol/{key}/logp": dist.log_prob(by_action(agent, rollout.action)[key]) for key, dist in policy_parts(agent, policy).items()},
        **{f"pol/{key}/entropy": dist.entropy() for key, dist in policy_parts(agent, policy).items()},
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
    names = {name: name.rpartition("/") for name in stats}
    return {f"{key or 'action'}/{theirs[last]}": stats[name] for name, (key, _, last) in names.items()}


def policy_parts(agent: Dreamer, policy) -> dict:
    """The policy's distribution of every action by key."""
    return dict(zip(agent.codec.parts, policy.dists if len(agent.codec.parts) > 1 else [policy]))


def by_action(agent: Dreamer, vectors: torch.Tensor) -> dict[str, torch.Tensor]:
    """Action vectors (..., A) as their parts by key."""
    return dict(zip(agent.codec.parts, vectors.split([part.size for part in agent.codec.parts.values()], -1)))


def in_order(agent: Dreamer, state: dict[str, torch.Tensor], key: str, count: int) -> torch.Tensor:
    """The first latents of all levels in order, (..., count, K)."""
    parts = []
    for level in agent._wm.dynamics.levels.values():
        if count:
            parts.append(state[key + level.suffix][..., :count, :])
            count -= parts[-1].shape[-2]
    return torch.cat(parts, -2)


@torch.no_grad()
def observed(agent: Dreamer, batch: dict, count: int) -> dict[str, torch.Tensor]:
    """Posterior, prior and the outputs of all heads on a batch, (B, T, ...).

    Args:
        count: categoricals of the flat latent, which are the first ones of two levels.
    """
    wm, behavior = agent._wm, agent._task_behavior
    data = wm.preprocess(batch)
    embed = wm.encoder(data)
    with modes_as_samples():
        post, prior = wm.dynamics.observe(embed, data["action"], data["is_first"], data["replay.context"])
    feat = wm.dynamics.get_feat(post)
    predictions, dyn = wm.heads["decoder"](feat), wm.dynamics
    found = {
        "tokens": tokens(agent, embed),
        "post_logit": in_order(agent, post, "logit", count),
        "prior_logit": in_order(agent, prior, "logit", count),
        "deter": post["deter"],
        "stoch": in_order(agent, post, "stoch", count),
        "con/logit": wm.heads["cont"].stats(feat).squeeze(-1),
        "con/prob": wm.heads["cont"](feat).mean.squeeze(-1),
        **reconstructions(predictions),
        **{f"pol/{name}": value for name, value in policy_outputs(behavior.actor.stats(feat)).items()},
    }
    if sum(level.stoch for level in dyn.levels.values()) == count:
        found |= {"kl_dyn_raw": sum(dyn.kl_per_level(post, prior).values())}
        found |= {"dyn_ent": dyn.entropy(prior).mean(), "rep_ent": dyn.entropy(post).mean()}
    for name, head in {"rew": wm.heads["reward"], "val": behavior.value, "slowval": behavior._slow_value}.items():
        found |= {f"{name}/logits": head.stats(feat), f"{name}/pred": head(feat).mode.squeeze(-1)}
    return found


def reconstructions(predictions: dict) -> dict[str, torch.Tensor]:
    """The decoder's outputs by the recording's names."""
    found = {}
    for key, dist in predictions.items():
        if isinstance(dist, dists.MSE):
            found[f"recon/{key}/pred"] = dist.loc
        else:  # one or several one-hots
            found[f"recon/{key}/logits"] = torch.cat([onehot._logits for onehot in getattr(dist, "dists", [dist])], -1)
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
