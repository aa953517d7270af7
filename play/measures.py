"""What the levels of a trained agent's latent hold, in numbers; `latent_report.py` plays, and shows them.

Shapes: N environments, T steps, M sampled steps, H steps of a prediction.
"""

import itertools
import math
from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import console
from envs import atari
from envs.spaces import STATE_PREFIX, is_summed
from models import WorldModel
from networks import STATISTICS, State, level_statistics
from play import probes
from play.playing import Data, decode, observe, seen
from tools import autocast

SAMPLES = 1024  # steps that codes and reconstructions are measured on
DRAWS = 8  # of levels from their prior, for the mean of what is decoded
STARTS, DREAMS, HORIZON = 24, 6, 30  # of open-loop predictions
BEFORE = 5  # steps of an episode that the agent has seen before a prediction starts, at least
UNTRAINED = 3  # networks beside which probes are shown


def variance_of(truth: np.ndarray) -> np.ndarray | None:
    """Variances of observations (M, *shape): of each number of a vector (V,), NaN where it never changes, or one for all (1,).

    There is one for all pixels of an image. A vector of zeros and ones, such as a one-hot, also has one for all: a median over
    classes would depend on how many are rare. None if nothing ever changes.
    """
    variance = truth.var(0, dtype=np.float64)
    still = variance <= 1e-10 * np.square(truth, dtype=np.float64).mean(0)
    if truth.ndim > 2 or np.isin(truth, (0, 1)).all():
        return None if still.all() else variance.mean().reshape(1)
    return None if still.all() else np.where(still, np.nan, variance)


def share_of_variance(error: np.ndarray, variance: np.ndarray) -> float:
    """Mean squared error (M, *shape) over what `variance_of` returns: 0 is perfect, 1 as good as the mean.

    Of a vector with a variance for each number it is the median of those that change, whatever their scales.
    """
    error = np.square(error, dtype=np.float64).mean(0)
    return float(np.nanmedian((error.mean() if len(variance) == 1 else error) / variance))


def subsets(levels: Collection[str]) -> Iterator[tuple[str, ...]]:
    """Every choice of at least one level."""
    for size in range(1, len(levels) + 1):
        yield from itertools.combinations(levels, size)


@torch.no_grad()
def measure_levels(model: WorldModel, data: Data, post: State, prior: State, rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """Statistics of each level, see `networks.level_statistics`."""
    statistics = {name: float(value) for name, value in level_statistics(model.dynamics, post, prior).items()}
    steps, states = sample_steps(model, data, post, rng)
    with autocast(model._config):
        told = information(model.dynamics.code_likelihoods(states, model.encoder(model.preprocess(steps))))
    found = {}
    for name, level in model.dynamics.levels.items():
        found[name] = {"categoricals": level.stoch, "classes": level.discrete}
        found[name] |= {key: statistics[f"{key}_{name}"] for key in STATISTICS if f"{key}_{name}" in statistics}
        if name in told:
            found[name] |= {"information": told[name], "information_limit": math.log(len(states["deter"]))}
    return found


@torch.no_grad()
def information(likelihoods: dict[str, Tensor]) -> dict[str, float]:
    """Nats that the code of each categorical level tells about the step that it was drawn for, beyond what the levels above tell.

    From lower bounds of the mutual information between a step and the codes of a level and all above it, of at most ln N for N steps: the
    mean of ln q(z_i | step i) - ln mean_j q(z_i | step j) (Poole et al. 2019, with the posterior as critic). The first level has its
    bound; a further one has what the bound grows by. So what the bottom only repeats of the top, or of the top's chance, counts
    for nothing.

    Args:
        likelihoods: of N codes at N steps by level, (N, N), from `RSSM.code_likelihoods`.
    """
    found, log_likelihood, told = {}, 0.0, 0.0
    for name, likelihood in likelihoods.items():
        log_likelihood = log_likelihood + likelihood
        bound = float((log_likelihood.diagonal() - log_likelihood.logsumexp(1)).mean() + math.log(len(log_likelihood)))
        found[name], told = bound - told, bound
    return found


def sample_steps(model: WorldModel, data: Data, post: State, rng: np.random.Generator) -> tuple[Data, State]:
    """Up to SAMPLES of the N * T steps, (M, ...), the states on the device of the model."""
    count = post["deter"].shape[:2].numel()
    chosen = np.sort(rng.choice(count, min(SAMPLES, count), replace=False))
    states = {key: value.flatten(0, 1)[chosen].to(model.dynamics.device) for key, value in post.items()}
    return {key: value.reshape(count, *value.shape[2:])[chosen] for key, value in data.items()}, states


@torch.no_grad()
def measure_reconstructions(model: WorldModel, data: Data, post: State, rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """Errors of decoded observations as shares of their variance: from the posterior, and with levels drawn from their prior.

    Of levels from their prior also the error of the mean of DRAWS draws: of a level that knows nothing a single draw is up to twice
    as wrong as the mean.
    """
    data, post = sample_steps(model, data, post, rng)
    predicted = decode(model, post)
    truth = seen(data, predicted)
    variances = {key: variance for key, value in truth.items() if (variance := variance_of(value)) is not None}
    found = {"posterior": {key: share_of_variance(predicted[key] - truth[key], variances[key]) for key in variances}}
    for name, levels in choices_to_resample(model).items():
        draws = [decode(model, model.dynamics.resample(post, levels)) for _ in range(DRAWS)]
        found[name] = {key: share_of_variance(draws[0][key] - truth[key], variances[key]) for key in variances}
        for key, variance in variances.items():
            mean = np.mean([draw[key] for draw in draws], 0)
            found[name][f"{key}, mean of {DRAWS} draws"] = share_of_variance(mean - truth[key], variance)
    return found


def choices_to_resample(model: WorldModel) -> dict[str, tuple[str, ...]]:
    """Levels that are drawn from their prior, by what that is called."""
    levels = tuple(model.dynamics.levels)
    if len(levels) == 1:
        return {"from the prior": levels}
    return {
        "bottom from the prior": ("bottom",),
        "top from the prior, bottom kept": ("top",),
        "top and bottom from the prior": ("top", "bottom"),
    }


def starts_of_dreams(data: Data, rng: np.random.Generator) -> np.ndarray:
    """Steps (up to STARTS, 2) of environment and time with BEFORE steps of the episode before them and HORIZON after.

    No two predictions of an environment overlap.
    """
    first, starts = data["is_first"], []
    for env, time in rng.permutation([(env, time) for env in range(len(first)) for time in range(BEFORE, first.shape[1] - HORIZON)]):
        within = not first[env, time - BEFORE + 1 : time + HORIZON + 1].any()
        if within and all(env != other or abs(time - start) >= HORIZON for other, start in starts):
            starts.append((env, time))
    return np.array(starts[:STARTS], int).reshape(-1, 2)


@torch.no_grad()
def dream(model: WorldModel, data: Data, post: State, starts: np.ndarray) -> tuple[dict, dict[str, dict]]:
    """Open-loop predictions in which all levels or only one varies, the others being at their most likely code.

    Returns:
        what came, (starts, H, ...) by observation key; and predictions (starts, DREAMS, H, ...) by the levels that vary and key.
    """
    ahead = starts[:, 1:] + np.arange(1, HORIZON + 1)  # (starts, H)
    device = model.dynamics.device
    action = torch.as_tensor(data["action"][starts[:, :1], ahead], device=device).repeat_interleave(DREAMS, 0)
    state = {key: value[starts[:, 0], starts[:, 1]].to(device).repeat_interleave(DREAMS, 0) for key, value in post.items()}
    predicted = {}
    for levels in subsets(model.dynamics.levels):
        future = decode(model, model.dynamics.imagine_with_action(action, state, sample=levels))
        predicted[" and ".join(levels)] = {key: value.reshape(len(starts), DREAMS, *value.shape[1:]) for key, value in future.items()}
    ahead = {key: value[starts[:, :1], ahead] for key, value in data.items()}
    return seen(ahead, future), predicted


def measure_dreams(came: dict, predicted: dict[str, dict]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Error and spread of open-loop predictions by step, as shares of the variance of what came."""
    variances = {key: variance_of(value.reshape(-1, *value.shape[2:])) for key, value in came.items()}
    found = {}
    for levels, keys in predicted.items():
        found[levels] = {}
        for key, dreams in keys.items():
            if variances[key] is not None:
                error, spread = dreams - came[key][:, None], dreams - dreams.mean(1, keepdims=True)
                # Of a few dreams the mean is theirs too, which makes the spread too small by this factor.
                spread = spread * np.sqrt(DREAMS / (DREAMS - 1))
                found[levels][key] = {
                    name: [share_of_variance(values[:, :, step].reshape(-1, *values.shape[3:]), variances[key]) for step in range(HORIZON)]
                    for name, values in (("error", error), ("spread", spread))
                }
    return found


def state_variables(data: Data, task: str) -> dict[str, np.ndarray]:
    """What is known of the environment's state, arrays (N, T) by name: vectors, `log_state_` keys, and the reward."""
    found = {}
    for key, value in data.items():
        if key == "log_memory":  # of an Atari game
            known = atari.MEMORY.get(task.removeprefix("atari_"), {f"byte {index}": index for index in range(value.shape[-1])})
            found.update({name: value[..., index] for name, index in known.items()})
        elif key not in ("action", "is_first", "is_last", "is_terminal") and value.dtype != np.uint8 and not is_summed(key):
            numbers = value.reshape(*value.shape[:2], -1)
            name = key.removeprefix(STATE_PREFIX) if key.removeprefix(STATE_PREFIX) not in data else key
            found.update(
                {name if numbers.shape[-1] == 1 else f"{name}[{index}]": numbers[..., index] for index in range(numbers.shape[-1])}
            )
    return found


def features_of(model: WorldModel, post: State) -> dict[str, list[np.ndarray]]:
    """What can be probed, (N, T, ...) by name: the codes of each level, deter `h`, and every combination of them."""
    parts = {
        f"z_{name}" if len(model.dynamics.levels) > 1 else "z": post["stoch" + level.suffix].flatten(2).numpy()
        for name, level in model.dynamics.levels.items()
    }
    parts["h"] = post["deter"].numpy()
    return {" + ".join(names): [parts[name] for name in names] for names in subsets(parts)}


def measure_probes(features: dict[str, list[np.ndarray]], variables: dict[str, np.ndarray], first: np.ndarray) -> dict[str, dict]:
    """Shares of the variables' variance that linear probes predict in environments that they have not seen, with 95% intervals.

    First steps of episodes, `first` (N, T), are left out: the reward that they have is none.

    Returns:
        {features: {variable: {"share", "low", "high"}}}, without variables that never change. Of few environments there is no interval:
        low and high are None.
    """
    env, time = np.nonzero(~first)
    targets = np.stack([values[env, time] for values in variables.values()], -1)  # (steps, V)
    found = {}
    for name, blocks in features.items():
        shares = probes.cross_validated([block[env, time] for block in blocks], targets, env)
        found[name] = {
            variable: {key: float(value) if np.isfinite(value) else None for key, value in zip(shares._fields, row)}
            for variable, row in zip(variables, np.stack(shares, -1))
            if np.isfinite(row[0])
        }
    return found


def measure_untrained(networks: list[nn.Module], data: Data, variables: dict, rng: np.random.Generator) -> tuple[dict, dict]:
    """Of untrained networks the statistics of the first one's levels, and mean shares that probes predict."""
    found = []
    for number, agent in enumerate(networks):
        console.say(f"probes: untrained network {number + 1} of {len(networks)}")
        post, prior = observe(agent._wm, data)
        if number == 0:
            levels = measure_levels(agent._wm, data, post, prior, rng)
        found.append(measure_probes(features_of(agent._wm, post), variables, data["is_first"]))
    return levels, {
        name: {variable: float(np.mean([shares[name][variable]["share"] for shares in found])) for variable in row}
        for name, row in found[0].items()
    }


class Measured(NamedTuple):
    """The numbers of a report, and what its figures are drawn from; there are no dreams where all episodes are short."""

    numbers: dict
    data: Data
    post: State
    came: dict[str, np.ndarray]
    dreams: dict[str, dict]


def measure(agent: nn.Module, untrained: list[nn.Module], data: Data, task: str, seed: int) -> Measured:
    """All numbers of the report."""
    model, rng = agent._wm, np.random.default_rng(seed)
    torch.manual_seed(seed)
    post, prior = observe(model, data)
    numbers = {"levels": measure_levels(model, data, post, prior, rng), "reconstruction": measure_reconstructions(model, data, post, rng)}
    starts, came, dreams = starts_of_dreams(data, rng), {}, {}
    if len(starts):
        came, dreams = dream(model, data, post, starts)
        numbers["open_loop"] = measure_dreams(came, dreams)
    else:
        console.warn(f"no episode lasts {BEFORE + HORIZON + 1} steps, so dreams are left out; more --steps may find longer ones")
    variables = state_variables(data, task)
    console.say("probes: fitting")
    trained = measure_probes(features_of(model, post), variables, data["is_first"])
    numbers["levels_untrained"], shares = measure_untrained(untrained, data, variables, rng)
    numbers["probes"] = {"trained": trained, "untrained": shares}
    return Measured(numbers, data, post, came, dreams)
