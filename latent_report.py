"""What the levels of a trained agent's latent hold, as a page with pictures and as numbers:

    python latent_report.py logdir/20261128-002237-gym_CartPole-v1

lets the agent of a run play, with sampled actions, and writes latents/index.html with its figures and latents/report.json into the
folder of the run. docs/latents.md says how to read them. Flat agents have a report too.

Shapes: N environments, T steps, M sampled steps, H steps of a prediction.
"""

import argparse
import contextlib
import html
import itertools
import json
import pathlib
import sys
from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure

import console
import latents
import pages
import probes
from agents import Data, add_import_flag, check_modules, decode, observe, play, read_agent, seen
from dreamer import Dreamer
from envs import EnvBatch, atari, make_envs
from models import WorldModel
from networks import State

SAMPLES = 1024  # steps that codes and reconstructions are measured on
STARTS, DREAMS, HORIZON = 24, 6, 30  # of open-loop predictions
DRAWN_NUMBERS, DRAWN_IMAGES, DRAWN_VARIABLES = 4, 8, 12  # at most, in figures


# Playing


def make_player(logdir: pathlib.Path, count: int, device: str, modules: Collection[str] = ()) -> tuple[Dreamer, EnvBatch, dict]:
    """The agent of a run, `count` environments of its task, and its checkpoint.

    Args:
        modules: that the environment may be in.
    Raises:
        ValueError: if the folder holds no trained agent, or its environment is in another module.
    """
    agent, checkpoint = read_agent(logdir, device)
    config = agent._config
    check_modules(config, modules)
    suite, _, name = config.task.partition("_")
    envs = EnvBatch(atari.make_with_memory(name, count, config)) if suite == "atari" else make_envs(config, count, training=False)
    return agent, envs, checkpoint


def share_of_variance(error: np.ndarray, truth: np.ndarray) -> float:
    """Squared errors (..., *shape) over the variance of the truth (M, *shape): 0 is perfect, 1 as good as its mean.

    Numbers of a vector count alike, whatever their scale; those that never change are left out. Pixels are taken together.
    """
    error = np.square(error.reshape(-1, *truth.shape[1:]), dtype=np.float64).mean(0)
    variance = truth.var(0, dtype=np.float64)
    if truth.ndim > 2:
        return float(error.mean() / max(variance.mean(), 1e-12))
    return float(np.mean(error[variance > 1e-12] / variance[variance > 1e-12])) if (variance > 1e-12).any() else 0.0


# Measuring


def subsets(levels: Collection[str]) -> Iterator[tuple[str, ...]]:
    """Every choice of at least one level."""
    for size in range(1, len(levels) + 1):
        yield from itertools.combinations(levels, size)


@torch.no_grad()
def measure_levels(model: WorldModel, post: State, prior: State, rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """Statistics of each level, see latents.py."""
    statistics = {name: float(value) for name, value in latents.level_statistics(model.dynamics, post, prior).items()}
    chosen = sampled_steps(post, rng)
    information = latents.information(model.dynamics, {key: value.flatten(0, 1)[chosen] for key, value in post.items()})
    found = {}
    for name, level in model.dynamics.levels.items():
        found[name] = {"categoricals": level.stoch, "classes": level.discrete}
        found[name] |= {key: statistics[f"{key}_{name}"] for key in latents.STATISTICS if f"{key}_{name}" in statistics}
        if name in information:
            found[name] |= {"information": information[name], "information_limit": float(np.log(len(chosen)))}
    return found


def sampled_steps(post: State, rng: np.random.Generator) -> np.ndarray:
    """Which of N * T steps to measure on, (M,)."""
    steps = post["deter"].shape[0] * post["deter"].shape[1]
    return np.sort(rng.choice(steps, min(SAMPLES, steps), replace=False))


@torch.no_grad()
def measure_reconstructions(model: WorldModel, data: Data, post: State, rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """Errors of decoded observations as shares of their variance: from the posterior, and with levels drawn from their prior."""
    chosen = sampled_steps(post, rng)
    post = {key: value.flatten(0, 1)[chosen].to(model.dynamics.W.device) for key, value in post.items()}
    data = {key: value.reshape(-1, *value.shape[2:])[chosen] for key, value in data.items()}
    found = {}
    for name, state in resampled(model, post).items():
        predicted = decode(model, state)
        truth = seen(data, predicted)
        found[name] = {key: share_of_variance(predicted[key] - truth[key], truth[key]) for key in predicted}
    return found


def resampled(model: WorldModel, post: State) -> dict[str, State]:
    """Posterior states, and the same with some or all levels drawn from their prior."""
    return {
        "posterior": post,
        **{f"{' and '.join(levels)} from the prior": model.dynamics.resample(post, levels) for levels in subsets(model.dynamics.levels)},
    }


def starts_of_dreams(data: Data, rng: np.random.Generator) -> np.ndarray:
    """Steps (up to STARTS, 2) of environment and time that lie well within an episode: from its fifth to HORIZON before its end."""
    first = data["is_first"]
    whole = [
        (env, time)
        for env in range(len(first))
        for time in range(5, first.shape[1] - HORIZON)
        if not first[env, time - 4 : time + HORIZON + 1].any()
    ]
    return np.array(whole).reshape(-1, 2)[rng.permutation(len(whole))[:STARTS]]


@torch.no_grad()
def dream(model: WorldModel, data: Data, post: State, starts: np.ndarray) -> tuple[dict, dict[str, dict]]:
    """Open-loop predictions in which all levels or only one varies, the others being at their most likely code.

    Returns:
        what came, (starts, H, ...) by observation key; and predictions (starts, DREAMS, H, ...) by the levels that vary and key.
    """
    ahead = starts[:, 1:] + np.arange(1, HORIZON + 1)  # (starts, H)
    device = model.dynamics.W.device
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
    found = {}
    for levels, keys in predicted.items():
        found[levels] = {}
        for key, dreams in keys.items():
            truth = came[key].reshape(-1, *came[key].shape[2:])
            error, spread = dreams - came[key][:, None], dreams - dreams.mean(1, keepdims=True)
            # Of a few dreams the mean is theirs too, which makes the spread too small by this factor.
            spread = spread * np.sqrt(DREAMS / (DREAMS - 1))
            found[levels][key] = {
                "error": [share_of_variance(error[:, :, step], truth) for step in range(HORIZON)],
                "spread": [share_of_variance(spread[:, :, step], truth) for step in range(HORIZON)],
            }
    return found


def state_variables(data: Data, task: str) -> dict[str, np.ndarray]:
    """What is known of the environment's state, arrays (N, T) by name: vectors, `log_` keys, and the reward."""
    found = {}
    for key, value in data.items():
        if key == "log_memory":  # of an Atari game
            known = atari.MEMORY.get(task.removeprefix("atari_"), {f"byte {index}": index for index in range(value.shape[-1])})
            found.update({name: value[..., index] for name, index in known.items()})
        elif key not in ("action", "is_first", "is_last", "is_terminal") and value.dtype != np.uint8:
            numbers = value.reshape(*value.shape[:2], -1)
            name = key.removeprefix("log_")
            found.update(
                {name if numbers.shape[-1] == 1 else f"{name}[{index}]": numbers[..., index] for index in range(numbers.shape[-1])}
            )
    return found


def features_of(model: WorldModel, post: State) -> dict[str, np.ndarray]:
    """What can be probed, (N, T, ...) by name: the codes of each level, deter `h`, and every combination of them."""
    parts = {
        f"z_{name}" if len(model.dynamics.levels) > 1 else "z": post["stoch" + level.suffix].flatten(2).numpy()
        for name, level in model.dynamics.levels.items()
    }
    parts["h"] = post["deter"].numpy()
    return {" + ".join(names): np.concatenate([parts[name] for name in names], -1) for names in subsets(parts)}


def measure_probes(features: dict[str, np.ndarray], variables: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Shares of the variables' variance that linear probes predict in episodes that they have not seen, by features and variable.

    Every environment is predicted once, with weights from the others.
    """
    targets = np.stack(list(variables.values()), -1)  # (N, T, V)
    return {
        name: {variable: float(score) for variable, score in zip(variables, probes.cross_validated(values, targets)) if np.isfinite(score)}
        for name, values in features.items()
    }


class Measured(NamedTuple):
    """The numbers of a report, and what its figures are drawn from; there are no dreams where all episodes are short."""

    numbers: dict
    data: Data
    post: State
    came: dict[str, np.ndarray]
    dreams: dict[str, dict]


def measure(agent: Dreamer, untrained: Dreamer, data: Data, task: str, seed: int) -> Measured:
    """All numbers of the report."""
    model, rng = agent._wm, np.random.default_rng(seed)
    torch.manual_seed(seed)
    post, prior = observe(model, data)
    numbers = {"levels": measure_levels(model, post, prior, rng), "reconstruction": measure_reconstructions(model, data, post, rng)}
    starts, came, dreams = starts_of_dreams(data, rng), {}, {}
    if len(starts):
        came, dreams = dream(model, data, post, starts)
        numbers["open_loop"] = measure_dreams(came, dreams)
    else:
        console.warn(f"no episode lasts {HORIZON + 5} steps, so dreams are left out; more --steps may find longer ones")
    variables = state_variables(data, task)
    if variables:
        console.say("probes: fitting")
        numbers["probes"] = {
            "trained": measure_probes(features_of(model, post), variables),
            "untrained": measure_probes(features_of(untrained._wm, observe(untrained._wm, data)[0]), variables),
        }
    return Measured(numbers, data, post, came, dreams)


# Drawing


def draw(model: WorldModel, measured: Measured) -> dict[str, Figure]:
    """The figures of a report by name."""
    figures = {"reconstructions": draw_reconstructions(model, measured.data, measured.post)}
    if all(level.discrete for level in model.dynamics.levels.values()):
        figures["codes"] = draw_codes(model, measured.post)
    if measured.dreams:
        figures |= {"dreams": draw_dreams(measured.came, measured.dreams), "spread": draw_spread(measured.numbers["open_loop"])}
    if "probes" in measured.numbers:
        figures["probes"] = draw_probes(measured.numbers["probes"])
    return figures


def draw_codes(model: WorldModel, post: State) -> Figure:
    """How often each class of each categorical is used."""
    levels = model.dynamics.levels
    figure = Figure(figsize=(5 * len(levels), 3), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(levels), squeeze=False)[0], levels):
        shares = model.dynamics.get_dist(post, name).probs.flatten(0, -3).mean(0)  # (S, K)
        shown = axis.imshow(shares.sort(-1, descending=True).values.numpy(), aspect="auto", vmin=0.0, vmax=1.0)
        figure.colorbar(shown, ax=axis)
        axis.set(title=f"{name}: share of each class", xlabel="class, most used first", ylabel="categorical")
    return figure


def draw_reconstructions(model: WorldModel, data: Data, post: State) -> Figure:
    """Decoded observations of the first environment, from the posterior and with levels drawn from their prior."""
    data = {key: value[0] for key, value in data.items()}
    post = {key: value[0].to(model.dynamics.W.device) for key, value in post.items()}
    with torch.no_grad():
        rows = {name: decode(model, state) for name, state in resampled(model, post).items()}
    return draw_rows([("truth", seen(data, rows["posterior"])), *rows.items()])


def draw_dreams(came: dict, predicted: dict[str, dict]) -> Figure:
    """The open-loop predictions from the first start: three dreams for each choice of levels that vary."""
    rows = [("truth", {key: value[0] for key, value in came.items()})]
    for levels, keys in predicted.items():
        name = "all vary" if " and " in levels else f"{levels} varies"
        rows += [(name, {key: value[0, number] for key, value in keys.items()}) for number in range(3)]
    return draw_rows(rows)


def draw_rows(rows: list[tuple[str, dict[str, np.ndarray]]]) -> Figure:
    """Named sequences (T, ...) by key, the truth first: numbers as curves, one colour for each name, and images as rows of pictures."""
    truth = rows[0][1]
    images = [key for key in truth if truth[key].ndim == 4]
    numbers = [(key, index) for key in truth if key not in images for index in range(truth[key].shape[-1])][:DRAWN_NUMBERS]
    heights = [0.9 * len(rows)] * len(images) + [2.2] * len(numbers)
    figure = Figure(figsize=(10, sum(heights)), layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, key in zip(axes, images):
        draw_pictures(axis, key, rows)
    names = list(dict.fromkeys(name for name, _ in rows))
    for axis, (key, index) in zip(axes[len(images) :], numbers):
        for name in names:
            color, width = ("black", 1.8) if name == "truth" else (f"C{names.index(name) - 1}", 0.9)
            curves = [sequence[key][:150, index] for other, sequence in rows if other == name]
            axis.plot(np.stack(curves, 1), label=[name] + [None] * (len(curves) - 1), color=color, linewidth=width)
        axis.set_title(f"{key}[{index}]", fontsize=9)
    if numbers:
        axes[-1].set_xlabel("step")
        axes[len(images)].legend(fontsize=7, ncols=4)
    return figure


def draw_pictures(axis, key: str, rows: list[tuple[str, dict[str, np.ndarray]]]) -> None:
    """Images of a few steps of each sequence, a row each; channels are averaged unless they are colours."""
    length, height, width, channels = rows[0][1][key].shape
    times = np.linspace(0, length - 1, DRAWN_IMAGES).round().astype(int)
    grid = np.concatenate([np.concatenate(list(sequence[key][times]), 1) for _, sequence in rows]).clip(0.0, 1.0)
    axis.imshow(grid if channels == 3 else grid.mean(-1), cmap="gray", vmin=0.0, vmax=1.0)
    axis.set_yticks(np.arange(len(rows)) * height + height / 2, [name for name, _ in rows], fontsize=8)
    axis.set_xticks(np.arange(len(times)) * width + width / 2, [f"step {time + 1}" for time in times], fontsize=8)
    axis.set_title(key)


def draw_spread(open_loop: dict) -> Figure:
    """Error and spread of open-loop predictions by step."""
    keys = list(next(iter(open_loop.values())))
    figure = Figure(figsize=(10, 3 * len(keys)), layout="constrained")
    for (left, right), key in zip(figure.subplots(len(keys), 2, squeeze=False), keys):
        for levels, found in open_loop.items():
            for axis, what in ((left, "error"), (right, "spread")):
                axis.plot(np.arange(1, HORIZON + 1), found[key][what], label=f"{levels} drawn")
                axis.set(title=f"{key}: {what}", xlabel="steps since the last one seen", ylabel="share of the variance")
        left.set_ylim(0, None)
        right.set_ylim(0, None)
        left.legend(fontsize=8)
    return figure


def draw_probes(found: dict[str, dict[str, dict[str, float]]]) -> Figure:
    """What linear probes predict, by variable; hollow bars: an untrained network."""
    variables = list(next(iter(found["trained"].values())))[:DRAWN_VARIABLES]
    features = list(found["trained"])
    figure = Figure(figsize=(max(6, 1.6 * len(variables)), 3.6), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(features)
    for number, name in enumerate(features):
        x = np.arange(len(variables)) + (number + 0.5) * width - 0.4
        for model, style in (
            ("trained", {"color": f"C{number}", "label": name}),
            ("untrained", {"facecolor": "none", "edgecolor": "black", "linewidth": 0.7}),
        ):
            axis.bar(x, [max(found[model][name].get(variable, 0.0), 0.0) for variable in variables], width, **style)
    axis.set_xticks(np.arange(len(variables)), variables, rotation=20, fontsize=8)
    axis.set(ylabel="share of the variance predicted", ylim=(0, 1.02))
    axis.legend(fontsize=7, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


# The page

CAPTIONS = {
    "codes": "How often each class of each categorical is used.",
    "reconstructions": "Decoded from the posterior, and with levels drawn from their prior: what is still right then is known without "
    "that level.",
    "dreams": "Dreams of the same actions from the same step. Where only one level varies, the other is at its most likely code.",
    "spread": "How wrong dreams are, and how far they lie apart, by the levels that are drawn.",
    "probes": "Linear probes on episodes that they have not seen. Black frames: the same from an untrained network.",
}


def page(title: str, about: str, numbers: dict, figures: Collection[str]) -> str:
    """The report as HTML that shows `<figure>.png` beside it."""
    tables = {"codes": pages.number_table(numbers["levels"]), "reconstructions": pages.number_table(numbers["reconstruction"])}
    if "probes" in numbers:
        untrained = {f"untrained: {name}": row for name, row in numbers["probes"]["untrained"].items()}
        tables["probes"] = pages.number_table({**numbers["probes"]["trained"], **untrained})
    headings = {
        "codes": "Levels",
        "reconstructions": "Reconstructions",
        "dreams": "Dreams",
        "spread": "Dreams by level",
        "probes": "What can be read off",
    }
    parts = []
    for name, heading in headings.items():
        picture = f'<p><img src="{name}.png" alt="{heading}"></p>' if name in figures else ""
        if picture or name in tables:
            parts.append(f"<h2>{heading}</h2><p>{CAPTIONS[name]}</p>{tables.get(name, '')}{picture}")
    return pages.document(title, f"<p>{html.escape(about)}</p>{''.join(parts)}")


def write_report(logdir: pathlib.Path, envs: int, steps: int, seed: int, device: str, modules: Collection[str] = ()) -> pathlib.Path:
    """Measures the agent of a run and writes everything into its folder; returns the page.

    Args:
        envs, steps: environments that play, and agent steps of all of them together.
        modules: that the environment may be in.
    Raises:
        ValueError: if there is no trained agent, its environment is in another module, or there are too few steps.
    """
    agent, players, checkpoint = make_player(logdir, envs, device, modules)
    config = agent._config
    with contextlib.closing(players):
        data = play(agent, players, steps // envs, seed)
    torch.manual_seed(seed)
    untrained = Dreamer(players.obs_space, players.act_space, config)
    measured = measure(agent, untrained, data, config.task, seed)
    numbers = measured.numbers
    about = {
        "task": config.task,
        "frame": int(checkpoint.get("step", 0)),
        "updates": int(checkpoint.get("updates", 0)),
        "steps": envs * (steps // envs),
        "episodes": int(data["is_first"].sum()),
        "seed": seed,
    }
    folder = logdir / "latents"
    folder.mkdir(exist_ok=True)
    (folder / "report.json").write_text(json.dumps({**about, **numbers}, indent=1) + "\n")
    figures = draw(agent._wm, measured)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=110)
    text = ", ".join(f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}" for key, value in about.items())
    (folder / "index.html").write_text(page(f"Latents of {logdir}", text, numbers, figures))
    for name, level in numbers["levels"].items():
        console.say(f"{name}: " + " ".join(f"{key} {console.number(value)}" for key, value in level.items()))
    return folder / "index.html"


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for what the user can put right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logdir", type=pathlib.Path, help="folder of a run")
    parser.add_argument("--envs", type=int, default=8, help="environments that play, at least 4 (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4000, help="agent steps, over all environments (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of environments, actions and samples (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:<number> or mps (default: %(default)s)")
    add_import_flag(parser)
    options = parser.parse_args(argv)
    if options.envs < 4:
        parser.error(f"--envs is {options.envs}; probes need at least 4 to be fitted and measured in different ones")
    if options.steps < options.envs * (HORIZON + 6):
        parser.error(f"--steps is {options.steps}; {options.envs} environments need at least {options.envs * (HORIZON + 6)}")
    try:
        path = write_report(options.logdir, options.envs, options.steps, options.seed, options.device, options.modules)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    console.say(f"The report: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
