"""Compares world models on the same recorded data, without a policy that could blur the comparison:

    python benchmarks/worldmodel.py                     # whatever is not done yet; the same command goes on
    python benchmarks/worldmodel.py together --jobs 1

`draw.py` draws the results.

A run trains one world model on episodes of a random policy. Variants with the same seed see the same episodes, the same batches and
as many updates. Then it is measured on held-out episodes, per step and in nats:

    kl_*         unclipped KL(posterior || prior) of each level, and of all of them
    observation  negative log-likelihood of what is seen, given the posterior; the same for reward
    bound        their sum: the negative evidence lower bound, up to a constant that all variants share
    open_loop    squared error of predicted observations, by steps since the last one that was seen; a prediction is the mean of
                 eight dreams, which begin at one sample of the posterior, corrected for there being only eight
    open_loop_*  the same of two predictions without a model: what was seen last stays; always the mean of what comes

Beside them `bound_recorded` is the bound on the episodes that the model was trained on: how far it overfits.
"""

import argparse
import os
import pathlib
import sys
import time
import unittest.mock
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import networks
import tools
from benchmarks import results
from collect import Collector
from envs import make_envs
from envs.spaces import ActionCodec
from exploration import Random
from layers import Style, linear
from models import WorldModel
from replay import Replay
from scale.plan import differing

CONTEXT, HORIZON = 10, 20  # steps that are seen before an open-loop prediction, and of it
SEQUENCES, HELD_OUT = 256, 20_000  # sequences that are measured, out of so many held-out steps
DREAMS = 8  # predictions of each
DECODED = 16  # sequences whose predictions are decoded at a time: those of images take 130 MB


class BottomPriorAlone(networks.HierarchicalRSSM):
    """The bottom prior does not know the top."""

    def level_logits(self, name: str, above: Tensor | None, x_prior: Tensor, x_post: Tensor | None = None) -> Tensor:
        if name == "bottom" and x_post is None:
            return self._imgs_stat_layer["bottom"](x_prior)
        return super().level_logits(name, above, x_prior, x_post)


class DirectBottomPosterior(networks.HierarchicalRSSM):
    """The bottom posterior is formed from features and top alone, not as prior and residual."""

    def _make_stat_layers(self, hidden: int, style: Style) -> None:
        super()._make_stat_layers(hidden, style)
        del self._prior_weight
        self.register_buffer("_prior_weight", torch.full((self.levels["bottom"].size,), -1.0))  # 1 + d = 0, for good


class PriorLearnsThroughPosterior(networks.HierarchicalRSSM):
    """The bottom prior inside the posterior is no constant: whatever the posterior learns from trains the prior too."""

    def _posterior_step(self, stoch: Tensor, deter: Tensor, action: Tensor, embed_share: Tensor, deter_weight: Tensor, noise: dict):
        deter = self._advance(stoch, deter, action)
        x_post = self._obs_out_layers.after_product(linear(deter, deter_weight) + embed_share)
        return {"deter": deter, **self._chain(self._img_out_layers(deter), x_post, noise)}

    def level_logits(self, name: str, above: Tensor | None, x_prior: Tensor, x_post: Tensor | None = None) -> Tensor:
        logits = super().level_logits(name, above, x_prior, x_post)
        if name == "top" or x_post is None:
            return logits
        prior = self.level_logits("bottom", above, x_prior)
        return logits + (1.0 + self._prior_weight) * (prior - prior.detach())  # adds nothing but the gradient


class ResidualFromZero(networks.HierarchicalRSSM):
    """The bottom posterior begins as its prior."""

    def _make_stat_layers(self, hidden: int, style: Style) -> None:
        super()._make_stat_layers(hidden, style)
        torch.nn.init.zeros_(self._obs_stat_layer["bottom"].weight)


class TopUnmovedByBottomPrior(networks.HierarchicalRSSM):
    """The bottom prior takes the top's code as a constant, so that its own loss does not move the top posterior."""

    def _chain(self, x_prior: Tensor, x_post: Tensor | None, noise: dict | None, given: dict | None = None) -> networks.State:
        if given:  # the latents of the posterior, at which `observe` forms all priors
            given = {key: value.detach() for key, value in given.items()}
        return super()._chain(x_prior, x_post, noise, given)


class Variant(NamedTuple):
    """Settings of a world model, the variant that it is compared with, and the class of its latent dynamics.

    Two levels have free nats for each, so their counterpart is the flat model with as many in all.
    """

    settings: dict
    reference: str | None = None
    rssm: type = networks.HierarchicalRSSM


TWO_LEVELS = {"hierarchical_mode": True, "dyn_stoch_top": "1/2", "dyn_stoch_bottom": "1/2"}  # the flat latent's capacity
FLAT, FLAT_TWO, FASTER_FLAT = "flat", "flat, two free nats", "flat, twice the learning rate"
FASTER_HALF_EACH = "two levels, half a free nat each, twice the learning rate"
ONE_EACH, HALF_EACH = "two levels, one free nat each", "two levels, half a free nat each"
MAIN = {
    FLAT: Variant({}),
    FLAT_TWO: Variant({"kl_free": 2.0}, FLAT),
    ONE_EACH: Variant(TWO_LEVELS, FLAT_TWO),
    HALF_EACH: Variant({**TWO_LEVELS, "kl_free": 0.5}, FLAT),
    "bottom prior without top": Variant(TWO_LEVELS, ONE_EACH, BottomPriorAlone),
    "bottom posterior direct": Variant(TWO_LEVELS, ONE_EACH, DirectBottomPosterior),
}
RATES = {  # whether it is only that one of them wants larger steps
    FASTER_FLAT: Variant({"model_lr": 6e-4}, FLAT),
    FASTER_HALF_EACH: Variant({**TWO_LEVELS, "kl_free": 0.5, "model_lr": 6e-4}, FASTER_FLAT),
}
OTHER_WAYS = {  # to build it
    "prior learns through posterior": Variant(TWO_LEVELS, ONE_EACH, PriorLearnsThroughPosterior),
    "residual starts at zero": Variant(TWO_LEVELS, ONE_EACH, ResidualFromZero),
    "top unmoved by bottom prior": Variant(TWO_LEVELS, ONE_EACH, TopUnmovedByBottomPrior),
}
VARIANTS = {**MAIN, **RATES, **OTHER_WAYS}
AS_MANY_IN_ALL = (FLAT, HALF_EACH)  # free nats, as DreamerV3 has


class Data(NamedTuple):
    """What is recorded, and how long a model learns from it."""

    settings: dict
    steps: int
    updates: int
    seeds: int
    variants: tuple[str, ...]


def synthetic(name: str, variants: tuple[str, ...]) -> Data:
    return Data({"task": f"gym_benchmarks.synthetic:{name}-v0"}, 20_000, 4_000, 5, variants)


DATA = {
    "together": synthetic("Together", (*MAIN, *RATES, *OTHER_WAYS)),
    "together_longer": synthetic("Together", AS_MANY_IN_ALL)._replace(updates=12_000),
    "four_together": synthetic("FourTogether", (*MAIN, *RATES)),
    "four_apart": synthetic("FourApart", (*MAIN, *RATES)),
    "pong": Data({"task": "atari_pong"}, 20_000, 3_000, 3, AS_MANY_IN_ALL),
}


def record(config, steps: int, seed: int, batch_size: int, batch_length: int):
    """A replay memory with this many steps of a random policy."""
    envs = make_envs(config, 1, training=True)
    codec = ActionCodec(envs.act_space)
    memory = Replay(envs.obs_space, codec.size, capacity=steps, streams=1, batch_size=batch_size, batch_length=batch_length, seed=seed)
    # Environments use a generator of the same kind, so the policy's seed must be another.
    collector, policy = Collector(envs, memory, seed=seed, training=True), Random(codec, seed + 500_000)
    while len(memory) < steps:
        collector.step(policy)
    memory.end_episodes()
    envs.close()
    return memory, envs.obs_space, codec.size


def whole_sequences(memory: Replay) -> dict[str, np.ndarray]:
    """Sequences (SEQUENCES, CONTEXT + HORIZON, ...) in which no episode begins after the first step."""
    found = []
    while sum(map(len, (batch["reward"] for batch in found))) < SEQUENCES:
        batch = {key: value[:, : CONTEXT + HORIZON] for key, value in memory.sample().items()}
        whole = ~batch["is_first"][:, 1:].any(1)
        found.append({key: value[whole] for key, value in batch.items()})
    return {key: np.concatenate([batch[key] for batch in found])[:SEQUENCES] for key in found[0]}


def make_model(variant: Variant, obs_space, num_actions: int, config) -> WorldModel:
    with unittest.mock.patch.object(networks, "HierarchicalRSSM", variant.rssm):
        return WorldModel(obs_space, num_actions, config)


@torch.no_grad()
def observe(model: WorldModel, batch: dict[str, np.ndarray]) -> tuple[dict, dict, dict]:
    """The batch as tensors, and posterior and prior states of all its steps. The same samples in every call."""
    torch.manual_seed(0)
    data = model.preprocess(batch)
    return data, *model.dynamics.observe(model.encoder(data), data["action"], data["is_first"])


@torch.no_grad()
def measure(model: WorldModel, batch: dict[str, np.ndarray]) -> dict:
    """The bound and its parts, means over sequences and time."""
    data, post, prior = observe(model, batch)
    kls = model.dynamics.kl_per_level(post, prior)
    losses = {"reward": 0.0, "observation": 0.0}
    feat = model.dynamics.get_feat(post)
    for key, dist in {**model.heads["decoder"](feat), "reward": model.heads["reward"](feat)}.items():
        name = "reward" if key == "reward" else "observation"
        losses[name] = losses[name] - dist.log_prob(data[key])
    steps = {"kl": sum(kls.values()), **{f"kl_{name}": kl for name, kl in kls.items()}, **losses}
    steps["bound"] = steps["kl"] + steps["observation"] + steps["reward"]
    # After the context: before, the model does not know yet where it is.
    return {name: round(float(values[:, CONTEXT:].mean()), 4) for name, values in steps.items()}


@torch.no_grad()
def measure_open_loop(model: WorldModel, batch: dict[str, np.ndarray]) -> dict:
    """Errors of predictions without observations, means over sequences, by steps since the context."""
    data, post, _ = observe(model, batch)
    last = {key: value[:, CONTEXT - 1].repeat_interleave(DREAMS, 0) for key, value in post.items()}
    future = model.dynamics.imagine_with_action(data["action"][:, CONTEXT:].repeat_interleave(DREAMS, 0), last)
    errors, rewards = [], []
    for start in range(0, SEQUENCES, DECODED):
        feat = model.dynamics.get_feat({key: value[start * DREAMS : (start + DECODED) * DREAMS] for key, value in future.items()})
        truth = {key: value[start : start + DECODED, CONTEXT:] for key, value in data.items()}
        predictions = {key: dist.mode for key, dist in model.heads["decoder"](feat).items()}
        errors.append(sum(error_of_mean(prediction, truth[key]) for key, prediction in predictions.items()))
        rewards.append(error_of_mean(model.heads["reward"](feat).mode, truth["reward"]))
    seen = torch.cat([data[key].flatten(2) for key in predictions], -1)  # (B, T, n)
    last, truth = seen[:, CONTEXT - 1 : CONTEXT], seen[:, CONTEXT:]
    return {
        "open_loop": by_step(torch.cat(errors), 4),
        "open_loop_reward": by_step(torch.cat(rewards), 6),
        "open_loop_last": by_step((truth - last).square().sum(-1), 4),
        "open_loop_mean": by_step((truth - truth.mean((0, 1))).square().sum(-1), 4),
    }


def by_step(errors: Tensor, digits: int) -> list[float]:
    """The mean over sequences of errors (B, T)."""
    return [round(value, digits) for value in errors.mean(0).tolist()]


def error_of_mean(dreams: Tensor, truth: Tensor) -> Tensor:
    """Squared error of the mean that DREAMS samples estimate, (B * DREAMS, T, ...) and (B, T, ...) -> (B, T), unbiased.

    A single sample would be the further off the more it varies, even if the world varies as much.
    """
    dreams = dreams.unflatten(0, (-1, DREAMS)).flatten(3)  # (B, DREAMS, T, n)
    return (dreams.mean(1) - truth.flatten(2)).square().sum(-1) - dreams.var(1).sum(-1) / DREAMS


def config_of(name: str, variant: str):
    return tools.load_config(["defaults", "small"], {**DATA[name].settings, **VARIANTS[variant].settings, "device": "cpu"})


def conditions(name: str, variant: str) -> dict:
    """What a stored result must have been measured under to be this one's."""
    return {"updates": DATA[name].updates, "steps": DATA[name].steps, "settings": differing(config_of(name, variant))}


def run_one(name: str, variant_name: str, seed: int) -> None:
    """Trains and measures one world model on one thread, and stores the result."""
    torch.set_num_threads(1)
    tools.keep_freed_memory()
    data, variant = DATA[name], VARIANTS[variant_name]
    config = config_of(name, variant_name)
    start = time.time()
    memory, obs_space, num_actions = record(config, data.steps, seed, config.batch_size, config.batch_length)
    torch.manual_seed(seed)
    model = make_model(variant, obs_space, num_actions, config)
    curve = []
    held_out = whole_sequences(record(config, HELD_OUT, 1_000_000 + seed, 64, CONTEXT + HORIZON)[0])
    for update in range(1, data.updates + 1):
        model.update(model.preprocess(next(memory)))
        if update % (data.updates // 8) == 0:
            state = torch.get_rng_state()
            curve.append((update, measure(model, held_out)["bound"]))
            torch.set_rng_state(state)
    results.store(
        "worldmodel",
        results.name_of(name, variant_name, seed),
        {
            "data": name,
            "variant": variant_name,
            "seed": seed,
            **conditions(name, variant_name),
            "seconds": round(time.time() - start),
            "bounds": curve,
            "bound_recorded": measure(model, whole_sequences(memory))["bound"],
            **measure(model, held_out),
            **measure_open_loop(model, held_out),
        },
    )
    print(f"{name}, {variant_name}, seed {seed}: bound {curve[-1][1]:.3f} nats", flush=True)


def run(names: list[str], jobs: int) -> None:
    """Trains what has no result yet, seed by seed, so that variants can be compared early."""
    todo = [(name, variant, seed) for name in names for seed in range(DATA[name].seeds) for variant in DATA[name].variants]
    todo = [item for item in todo if not results.is_done("worldmodel", results.name_of(*item), conditions(*item[:2]))]
    results.each_in_a_process(run_one, todo, jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help=f"of {', '.join(DATA)}; all if none is named")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, one core each")
    options = parser.parse_args()
    run(results.chosen(parser, options.data, list(DATA)), options.jobs)


if __name__ == "__main__":
    main()
