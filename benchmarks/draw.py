"""Draws every figure and table of the results pages from the stored results:

    python benchmarks/draw.py

Figures go to docs/results/. Tables go between the lines `<!-- name -->` and `<!-- end -->` of docs/results.md, of
docs/results_appendix.md and of README.md; `tables` says which page holds which table.
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Collection, Iterable
from typing import TypeVar

import gymnasium
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from benchmarks import exploring, learning, results, worldmodel
from benchmarks.synthetic import Switches
from pages import comparison, curves

T = TypeVar("T")

README = HERE.parent / "README.md"
README_TASKS = ("cartpole", "pendulum", "breakout", "road_runner")
PAGE = HERE.parent / "docs" / "results.md"
APPENDIX = HERE.parent / "docs" / "results_appendix.md"
FIGURES = HERE.parent / "docs" / "results"

# What pages and figures call the data and variants that stored results name.
DATA = {
    "together": "8 objects, shared events",
    "together_longer": "8 objects, shared events, 12,000 updates",
    "four_together": "4 objects, shared events",
    "four_apart": "4 objects, separate events",
    "pong": "Pong frames",
}
VARIANTS = {
    worldmodel.FLAT: "flat, 1 free nat",
    worldmodel.FLAT_TWO: "flat, 2 free nats",
    worldmodel.ONE_EACH: "two levels, 1 free nat each",
    worldmodel.HALF_EACH: "two levels, 0.5 free nats each",
    "bottom prior without top": "bottom prior without the top",
    "bottom posterior direct": "bottom posterior without the bottom prior",
    worldmodel.FASTER_FLAT: "flat, 1 free nat, 2x learning rate",
    worldmodel.FASTER_HALF_EACH: "two levels, 0.5 free nats each, 2x learning rate",
    "prior learns through posterior": "no stop-gradient on the prior in the posterior",
    "residual starts at zero": "residual initialised to zero",
    "top unmoved by bottom prior": "stop-gradient on the top in the bottom prior",
}
SYNTHETIC = ("together", "four_together", "four_apart")  # for as many updates

# The same colors in all figures; darker is twice the learning rate.
FLAT, TWO_LEVELS, FASTER_FLAT, FASTER_TWO_LEVELS = "C0", "C1", "#0b2f57", "#8c2d04"
STYLE = {"font.size": 9, "axes.titlesize": 9, "legend.fontsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.frameon": False}


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table; rows may be shorter than its header."""
    first, *lines = (f"| {' | '.join(row + [''] * (len(header) - len(row)))} |" for row in (header, *rows))
    return "\n".join([first, "|" + "---|" * len(header), *lines])


def paired(ours: dict[int, T], theirs: dict[int, T]) -> list[tuple[T, T]]:
    """The results of the seeds that both have."""
    return [(result, theirs[seed]) for seed, result in ours.items() if seed in theirs]


def seeds_and_mean(values: Collection[float], digits: int = 0) -> str:
    """Every seed's value and their mean, as a cell of a table; empty without values."""
    return f"{', '.join(f'{value:.{digits}f}' for value in values)} (**{np.mean(list(values)):.{digits}f}**)" if values else ""


def panels(count: int, columns: int, xlabel: str, ylabel: str, legend: dict[str, tuple[str, str]]) -> tuple[Figure, list]:
    """A figure with so many panels, and their axes, below one legend of colors and line styles by label."""
    rows = -(-count // columns)
    figure = Figure(figsize=(9, 2.2 * rows + 0.4), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for number, axis in enumerate(axes):
        axis.set_visible(number < count)
        axis.set(xlabel=xlabel, ylabel="" if number % columns else ylabel)
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=(1, 2, 5, 10)))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.grid(alpha=0.25)
    lines = [
        Line2D([], [], color=color, linestyle=style, linewidth=2.2 if style == "-" else 1.3, label=label)
        for label, (color, style) in legend.items()
    ]
    figure.legend(handles=lines, loc="outside upper center", ncols=min(len(lines), 120 // (8 + max(map(len, legend)))))
    return figure, axes[:count]


# How agents learn


def learning_results(plan: dict) -> dict[str, dict]:
    """{task: {"random": returns, variant: {seed: result}}} of what is stored."""
    found = {}
    stored = results.load("learning")
    for task in plan["tasks"]:
        of_task = [result for result in stored if result["task"] == task]
        if any(result.get("seed") in plan["tasks"][task]["seeds"] for result in of_task):
            found[task] = {variant: {} for variant in plan["variants"]}
            for result in of_task:
                if result["variant"] == "random":
                    found[task]["random"] = result["returns"]
                elif result["variant"] in found[task] and result["seed"] in plan["tasks"][task]["seeds"]:
                    found[task][result["variant"]][result["seed"]] = result
    return found


def final_return(result: dict) -> float:
    """Mean over the evaluations of the last quarter of a run."""
    return curves.final_value(evaluations(result))


def mean_return(result: dict) -> float:
    """Mean over all evaluations of a run, which is the larger the sooner it learns."""
    return float(evaluations(result).values.mean())


def evaluations(result: dict) -> curves.Curve:
    return curves.Curve(*np.array(result["evaluations"]).T)


def learning_figure(plan: dict, found: dict, columns: int, references: bool) -> Figure:
    """Evaluation return against frames, a panel for each task, with a line at the plan's reference return."""
    colors = dict(zip(plan["variants"], (FLAT, TWO_LEVELS)))
    legend = {about["title"]: (colors[variant], "-") for variant, about in plan["variants"].items()}
    legend |= {"random policy": ("gray", ":")} | ({"reference return": ("black", "--")} if references else {})
    figure, axes = panels(len(found), columns, "environment frames", "evaluation return", legend)
    for axis, (task, variants) in zip(axes, found.items()):
        for variant, color in colors.items():
            comparison.draw_seeds(axis, [evaluations(result) for result in variants[variant].values()], color, variant)
        axis.axhline(np.mean(variants["random"]), color="gray", linestyle=":", linewidth=1.3)
        if references and "learned" in plan["tasks"][task]:
            axis.axhline(plan["tasks"][task]["learned"][0], color="black", linestyle="--", linewidth=0.9)
        axis.set(title=plan["tasks"][task]["title"], xlim=(0, None))
    return figure


def learning_table(plan: dict, found: dict, short: bool = False) -> str:
    """Returns of the last quarter by task and variant, as Markdown; `short`: without means of all evaluations and hours."""
    (base, flat), (other, two_levels) = ((variant, about["title"]) for variant, about in plan["variants"].items())
    columns = ["task", "random", f"{flat}: seeds (mean)", f"{two_levels}: seeds (mean)", f"{two_levels} - {flat}"]
    if not short:
        columns += [f"{two_levels} - {flat}, mean of all evaluations", f"hours per run: {flat}, {two_levels}"]
    rows = []
    for task, variants in found.items():
        digits = plan["tasks"][task].get("digits", 0)
        runs = [dict(sorted(variants[variant].items())) for variant in (base, other)]
        cells = [plan["tasks"][task]["title"], f"{np.mean(variants['random']):.1f}"]
        cells += [seeds_and_mean([final_return(result) for result in seeds.values()], digits) for seeds in runs]
        for value in (final_return,) if short else (final_return, mean_return):
            pairs = [value(ours) - value(theirs) for theirs, ours in paired(*runs)]
            cells.append(results.difference(pairs, digits))
        if not short:
            cells.append(", ".join(f"{np.mean([result['hours'] for result in seeds.values()]):.1f}" for seeds in runs))
        rows.append(cells)
    if any("(" in row[4] for row in rows):  # enough seeds for an interval
        columns[4] += ", 95%"
    return markdown(columns, rows)


def free_nats_table(plan: dict, runs: list[dict]) -> str:
    """Returns of the last quarter with one and with half a free nat for each of two levels, as Markdown."""
    rows = []
    for task, planned in plan["tasks"].items():
        finals = {1.0: {}, 0.5: {}}
        for result in runs:
            if (result["task"], result["variant"]) == (task, "hdreamer") and result["seed"] in planned["seeds"]:
                finals[float(result["settings"].get("kl_free", 1.0))][result["seed"]] = final_return(result)
        one, half = (dict(sorted(final.items())) for final in finals.values())
        if one and half:
            cells = [seeds_and_mean(final.values()) for final in (one, half)]
            pairs = [ours - theirs for ours, theirs in paired(half, one)]
            rows.append([planned["title"], *cells, results.difference(pairs, 0)])
    return markdown(["task", "1 free nat each: seeds (mean)", "0.5 free nats each: seeds (mean)", "0.5 - 1, 95%"], rows)


def rates_table(found: list[dict]) -> str:
    """Evaluation returns by learning rates and frames, as Markdown."""
    frames = range(1000, 15001, 1000)
    rows = []
    for result in sorted(found, key=lambda result: (float(result["model_lr"]), float(result["lr"]))):
        returns = {frame // 1000 * 1000: value for frame, value in result["evaluations"]}  # some are a step late
        cells = [f"{returns[frame]:.0f}" if frame in returns else "" for frame in frames]
        rows.append([result["model_lr"], result["lr"], *cells])
    return markdown(["world model", "actor, critic", *(f"{frame:,}" for frame in frames)], rows)


# World models on recorded data


NEAR = 5  # the first steps of an open-loop prediction, of which more can be known


def mean(result: dict, key: str, steps: int | None = None) -> float:
    """A number of a result, or the mean over a curve's first so many steps."""
    return float(np.mean(np.atleast_1d(result[key])[:steps]))


def mean_of(seeds: Iterable[dict], key: str, digits: int, steps: int | None = None) -> str:
    """The mean over results of several seeds, as a cell of a table."""
    return f"{np.mean([mean(result, key, steps) for result in seeds]):.{digits}f}"


def elbo_differences(pairs: list[tuple[dict, dict]], eighths: Iterable[int]) -> list[str]:
    """Negative ELBO of the first less that of the second of each pair, after so many eighths of the updates, as cells."""
    return [results.difference([ours["bounds"][at - 1][1] - theirs["bounds"][at - 1][1] for ours, theirs in pairs], 2) for at in eighths]


def kl_cell(seeds: dict[int, dict]) -> str:
    """The KL of all levels, and where there are several, that of each."""
    levels = [key for key in next(iter(seeds.values())) if key.startswith("kl_")]
    total = mean_of(seeds.values(), "kl", 2)
    return f"{total} ({' + '.join(mean_of(seeds.values(), key, 2) for key in levels)})" if len(levels) > 1 else total


def worldmodel_results() -> dict[str, dict[str, dict[int, dict]]]:
    """{data: {variant: {seed: result}}} of what is stored."""
    found = {}
    for result in results.load("worldmodel"):
        found.setdefault(result["data"], {}).setdefault(result["variant"], {})[result["seed"]] = result
    return {name: {variant: found[name][variant] for variant in VARIANTS if variant in found[name]} for name in DATA if name in found}


def training_figure(found: dict) -> Figure:
    """Negative ELBO on held-out episodes against updates, a panel for each data."""
    colors = {
        worldmodel.FLAT: FLAT,
        worldmodel.HALF_EACH: TWO_LEVELS,
        worldmodel.FASTER_FLAT: FASTER_FLAT,
        worldmodel.FASTER_HALF_EACH: FASTER_TWO_LEVELS,
    }
    legend = {VARIANTS[variant]: (color, "-") for variant, color in colors.items()}
    figure, axes = panels(len(found), 3, "updates", "negative ELBO (nats per step)", legend)
    for axis, (name, variants) in zip(axes, found.items()):
        for variant, color in colors.items():
            if variant in variants:
                elbos = [curves.Curve(*np.array(result["bounds"]).T) for result in variants[variant].values()]
                comparison.draw_seeds(axis, elbos, color, variant)
        axis.set(title=DATA[name], xlim=(0, None))
    return figure


def open_loop_figure(found: dict) -> Figure:
    """Squared error of predicted observations against steps without observations, a panel for each data."""
    colors = {worldmodel.FLAT: FLAT, worldmodel.HALF_EACH: TWO_LEVELS}
    legend = {VARIANTS[variant]: (color, "-") for variant, color in colors.items()}
    legend |= {"best possible prediction": ("black", "--"), "constant prediction": ("gray", ":"), "last observation": ("gray", "-.")}
    figure, axes = panels(len(found), 3, "steps without observations", "squared error", legend)
    steps = np.arange(1, worldmodel.HORIZON + 1)
    for axis, (name, variants) in zip(axes, found.items()):
        for variant, color in colors.items():
            errors = [curves.Curve(steps, np.array(result["open_loop"])) for result in variants[variant].values()]
            comparison.draw_seeds(axis, errors, color, variant)
        if env := switches(name):
            axis.plot(steps, env.least_open_loop(steps), color="black", linestyle="--", linewidth=1.3)
            axis.axhline(env.least_open_loop(np.inf), color="gray", linestyle=":", linewidth=1.3)
        else:
            without_model = variants[worldmodel.FLAT].values()  # all variants of a seed are measured on the same steps
            for key, linestyle in (("open_loop_mean", ":"), ("open_loop_last", "-.")):
                axis.plot(steps, np.mean([result[key] for result in without_model], 0), color="gray", linestyle=linestyle, linewidth=1.3)
        axis.set(title=DATA[name], xlim=(0, None))
    return figure


def switches(name: str) -> Switches | None:
    """The environment of these data if they are synthetic, of which the best possible prediction is known."""
    task = worldmodel.DATA[name].settings["task"].removeprefix("gym_")
    return gymnasium.make(task).unwrapped if task.startswith(Switches.__module__) else None


def limits_table() -> str:
    """What the best possible model of each synthetic data reaches, as Markdown."""
    rows = []
    for name in SYNTHETIC:
        env = switches(name)
        error = env.least_open_loop(np.arange(1, worldmodel.HORIZON + 1))
        numbers = (env.least_kl(), env.least_observation(), error[:NEAR].mean(), error.mean(), env.least_open_loop(np.inf))
        rows.append([DATA[name], *(f"{number:.2f}" for number in numbers)])
    columns = ["data", "KL", "observation loss", "open-loop error, steps 1-5", "steps 1-20"]
    return markdown([*columns, "error of a constant prediction"], rows)


def elbo_table(found: dict) -> str:
    """Negative ELBO of two levels less that of flat with as many free nats in total, as Markdown."""
    rows = []
    for name, variants in found.items():
        for variant in (worldmodel.ONE_EACH, worldmodel.HALF_EACH, worldmodel.FASTER_HALF_EACH):
            if pairs := paired(variants.get(variant, {}), variants.get(worldmodel.VARIANTS[variant].reference, {})):
                config = worldmodel.config_of(name, variant)
                rows.append([DATA[name], f"{config.kl_free:g}", f"{config.model_lr:g}", str(len(pairs))])
                rows[-1] += [f"{worldmodel.DATA[name].updates:,}", *elbo_differences(pairs, (2, 4, 8))]
    columns = ["data", "free nats per level", "learning rate", "seeds", "updates"]
    return markdown([*columns, "after 1/4 of the updates, 95%", "after 1/2, 95%", "at the end, 95%"], rows)


def ablations_table(found: dict) -> str:
    """Negative ELBO of the ablations less that of two levels with one free nat each, by data, as Markdown."""
    rows = []
    for variant, label in VARIANTS.items():
        if worldmodel.VARIANTS[variant].reference == worldmodel.ONE_EACH:
            rows.append([label])
            for name in SYNTHETIC:
                rows[-1] += elbo_differences(paired(found[name].get(variant, {}), found[name][worldmodel.ONE_EACH]), (4, 8))
    return markdown(["ablation", *(f"{DATA[name]}: {when}" for name in SYNTHETIC for when in ("after 1/2", "at the end"))], rows)


def worldmodel_table(name: str, variants: dict[str, dict[int, dict]]) -> str:
    """Means over seeds and paired differences from the variant's reference, as Markdown."""
    errors = ["open-loop error, steps 1-5", "steps 1-20", "reward, steps 1-20"]
    columns = ["variant", "seeds", "negative ELBO", "KL (top + bottom)", "observation loss", "reward loss", *errors]
    columns += ["compared with", *(f"{column}, 95%" for column in ("negative ELBO", *errors))]
    rows = []
    for variant, of_seeds in variants.items():
        seeds = of_seeds.values()
        cells = [VARIANTS[variant], str(len(seeds)), mean_of(seeds, "bound", 2), kl_cell(of_seeds), mean_of(seeds, "observation", 2)]
        cells += [mean_of(seeds, "reward", 3), mean_of(seeds, "open_loop", 2, NEAR), mean_of(seeds, "open_loop", 2)]
        reference = worldmodel.VARIANTS[variant].reference
        cells += [mean_of(seeds, "open_loop_reward", 4), VARIANTS.get(reference, "")]
        pairs = paired(of_seeds, variants.get(reference, {}))
        for key, steps, digits in (("bound", None, 2), ("open_loop", NEAR, 2), ("open_loop", None, 2), ("open_loop_reward", None, 5)):
            cells.append(results.difference([mean(ours, key, steps) - mean(theirs, key, steps) for ours, theirs in pairs], digits))
        rows.append(cells)
    return f"**{DATA[name]}**\n\n{markdown(columns, rows)}"


def training_table(found: dict) -> str:
    """Negative ELBO during training, less that of each variant's reference, and the time of a run, as Markdown."""
    rows = []
    for name, variants in found.items():
        rows.append([f"**{DATA[name]}**"])
        for variant, seeds in variants.items():
            reference = worldmodel.VARIANTS[variant].reference
            if pairs := paired(seeds, variants.get(reference, {})):
                time = np.median([ours["seconds"] / theirs["seconds"] for ours, theirs in pairs])
                rows.append([VARIANTS[variant], VARIANTS[reference], f"{worldmodel.DATA[name].updates:,}"])
                rows[-1] += elbo_differences(pairs, range(1, 9))
                if variant in worldmodel.MAIN:  # the others did not run beside their reference
                    rows[-1].append(f"x {time:.2f}")
    eighths = ["after 1/8", "1/4", "3/8", "1/2", "5/8", "3/4", "7/8", "all"]
    return markdown(["variant", "compared with", "updates", *eighths, "time of a run"], rows)


# Which states exploring agents reach


def exploring_results() -> dict[str, dict[int, dict]]:
    """{variant: {seed: result}} of what is stored."""
    found = {variant: {} for variant in exploring.VARIANTS}
    for result in results.load("exploring"):
        found[result["variant"]][result["seed"]] = result
    return {variant: seeds for variant, seeds in found.items() if seeds}


def exploring_table(found: dict[str, dict[int, dict]]) -> str:
    """Cells that were reached and steps that were rewarded, with paired differences from flat, as Markdown."""
    rows = []
    for variant, seeds in found.items():
        reached = {seed: result["reached"][-1] for seed, result in sorted(seeds.items())}
        flat = {seed: result["reached"][-1] for seed, result in found.get("flat", {}).items()}
        pairs = [ours - theirs for ours, theirs in paired(reached, flat) if variant != "flat"]
        rewards = ", ".join(str(result["rewards"]) for _, result in sorted(seeds.items()))
        name = "nothing: random actions" if variant == "random" else variant
        rows.append([name, seeds_and_mean(reached.values()), results.difference(pairs, 0), rewards])
    return markdown(["Plan2Explore on", "cells reached: seeds (mean)", "difference from flat, 95%", "rewarded steps: seeds"], rows)


# The pages


def fill(page: str, tables: dict[str, str]) -> str:
    """A page with its tables replaced.

    Raises:
        ValueError: if it has no place for one.
    """
    for name, text in tables.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not place.search(page):
            raise ValueError(f"the page has no lines '<!-- {name} -->' and '<!-- end -->' for a table; add them where it belongs")
        page = place.sub(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", page)
    return page


def tables() -> dict[pathlib.Path, dict[str, str]]:
    """Every table by its page and name, as Markdown."""
    plan, models = learning.load_plan(), worldmodel_results()
    agents = learning_results(plan)
    of_results = {
        "learning": learning_table(plan, agents),
        "elbo": elbo_table(models),
        "ablations": ablations_table(models),
        "exploring": exploring_table(exploring_results()),
    }
    of_appendix = {
        "free_nats": free_nats_table(plan, results.load("learning") + results.load("free_nats")),
        "limits": limits_table(),
        "rates": rates_table(results.load("rates")),
        "training": training_table(models),
        "worldmodel": "\n\n".join(worldmodel_table(name, variants) for name, variants in models.items()),
    }
    of_readme = {task: agents[task] for task in README_TASKS}
    return {README: {"agents": learning_table(plan, of_readme, short=True)}, PAGE: of_results, APPENDIX: of_appendix}


def figures() -> dict[str, Figure]:
    """Every figure by its name."""
    plan, models = learning.load_plan(), worldmodel_results()
    agents = learning_results(plan)
    of_readme = {task: agents[task] for task in README_TASKS}
    with matplotlib.rc_context(STYLE):
        return {
            "readme": learning_figure(plan, of_readme, columns=4, references=False),
            "learning": learning_figure(plan, agents, columns=4, references=True),
            "training": training_figure(models),
            "open_loop": open_loop_figure(models),
        }


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for page, made in tables().items():
        page.write_text(fill(page.read_text(), made))
    FIGURES.mkdir(exist_ok=True)
    for name, figure in figures().items():
        figure.savefig(FIGURES / f"{name}.png", dpi=200)


if __name__ == "__main__":
    main()
