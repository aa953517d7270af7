"""Draws every figure and table of docs/results.md, and the tables of results in README.md, from the stored results:

    python benchmarks/draw.py

Figures go to docs/results/, tables to where the pages have them, between lines `<!-- name -->` and `<!-- end -->`.
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Collection, Iterable
from typing import TypeVar

import gymnasium
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from benchmarks import exploring, learning, results, worldmodel
from benchmarks.synthetic import Switches
from pages import comparison, curves

T = TypeVar("T")

PAGE = HERE.parent / "docs" / "results.md"
README = HERE.parent / "README.md"
FIGURES = HERE.parent / "docs" / "results"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table; rows may be shorter than its header."""
    first, *lines = (f"| {' | '.join(row + [''] * (len(header) - len(row)))} |" for row in (header, *rows))
    return "\n".join([first, "|" + "---|" * len(header), *lines])


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


def learning_figure(plan: dict, found: dict) -> Figure:
    """Evaluation return against frames, a panel for each task, drawn as `comparison.draw_seeds` says."""
    figure, axes = comparison.panels(len(found))
    for axis, (task, variants) in zip(axes, found.items()):
        settings = plan["tasks"][task]
        for number, (variant, about) in enumerate(plan["variants"].items()):
            if variants[variant]:
                comparison.draw_seeds(axis, [evaluations(result) for result in variants[variant].values()], f"C{number}", about["title"])
        if "random" in variants:
            axis.axhline(np.mean(variants["random"]), color="gray", linestyle=":", label="random policy")
        if "learned" in settings:
            axis.axhline(settings["learned"][0], color="black", linestyle="--", linewidth=0.8, label=settings["learned"][1])
        axis.set(title=settings["title"], xlabel="frames", ylabel="return", xlim=(0, None))
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.legend(fontsize=7)
    return figure


def paired(ours: dict[int, T], theirs: dict[int, T]) -> list[tuple[T, T]]:
    """The results of the seeds that both have."""
    return [(result, theirs[seed]) for seed, result in ours.items() if seed in theirs]


def seeds_and_mean(values: Collection[float], digits: int = 0) -> str:
    """Every seed's value and their mean, as a cell of a table; empty without values."""
    return f"{', '.join(f'{value:.{digits}f}' for value in values)} (**{np.mean(list(values)):.{digits}f}**)" if values else ""


def learning_table(plan: dict, found: dict, short: bool = False) -> str:
    """Returns of the last quarter by task and variant, as Markdown; without means of all evaluations and hours if `short`."""
    base, *others = plan["variants"]
    titles = {variant: about["title"] for variant, about in plan["variants"].items()}
    columns = ["task", "random", *(f"{title}: seeds (mean)" for title in titles.values())]
    columns += [f"{titles[other]} - {titles[base]}, 95%" for other in others]
    if not short:
        columns += [f"of all evaluations: {titles[other]} - {titles[base]}" for other in others]
        columns.append(f"hours a run: {', '.join(titles.values())}")
    rows = []
    for task, variants in found.items():
        cells = [plan["tasks"][task]["title"], f"{np.mean(variants['random']):.1f}" if "random" in variants else ""]
        digits = plan["tasks"][task].get("digits", 0)
        runs = {variant: dict(sorted(variants[variant].items())) for variant in plan["variants"]}
        cells += [seeds_and_mean([final_return(result) for result in seeds.values()], digits) for seeds in runs.values()]
        for value in (final_return,) if short else (final_return, mean_return):
            for other in others:
                pairs = [value(ours) - value(theirs) for ours, theirs in paired(runs[other], runs[base])]
                cells.append(results.difference(pairs, digits))
        if not short:
            cells.append(", ".join(f"{np.mean([result['hours'] for result in seeds.values()]):.1f}" for seeds in runs.values() if seeds))
        rows.append(cells)
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
            pairs = [half[seed] - one[seed] for seed in one if seed in half]
            rows.append([planned["title"], *cells, results.difference(pairs, 0)])
    return markdown(["task", "one free nat: seeds (mean)", "half a free nat: seeds (mean)", "half - one, 95%"], rows)


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


def mean_of(seeds: dict[int, dict], key: str, digits: int, steps: int | None = None) -> str:
    """The mean over seeds, as a cell of a table."""
    return f"{np.mean([mean(result, key, steps) for result in seeds.values()]):.{digits}f}"


def kl_cell(seeds: dict[int, dict]) -> str:
    """The KL of all levels, and where there are several, that of each."""
    levels = [key for key in next(iter(seeds.values())) if key.startswith("kl_")]
    total = mean_of(seeds, "kl", 2)
    return f"{total} ({' + '.join(mean_of(seeds, key, 2) for key in levels)})" if len(levels) > 1 else total


def worldmodel_results() -> dict[str, dict[str, dict[int, dict]]]:
    """{data: {variant: {seed: result}}} of what is stored."""
    found = {}
    for result in results.load("worldmodel"):
        found.setdefault(result["data"], {}).setdefault(result["variant"], {})[result["seed"]] = result
    return {
        name: {variant: found[name][variant] for variant in worldmodel.VARIANTS if variant in found[name]}
        for name in worldmodel.DATA
        if name in found
    }


def worldmodel_figure(found: dict) -> Figure:
    """A row for each data: the bound by updates, the open-loop error by steps, and of two levels what it is more than their reference's.

    Seeds, means and ranges are drawn as `comparison.draw_seeds` says.
    """
    figure = Figure(figsize=(13, 3.1 * len(found) + 0.6), layout="constrained")
    colors = dict(zip(worldmodel.VARIANTS, [*(f"C{number}" for number in range(10)), "gold"], strict=True))
    for row, (name, variants) in zip(figure.subplots(len(found), 3, squeeze=False), found.items()):
        by_updates, by_steps, from_reference = row
        errors = {variant: {seed: np.array(result["open_loop"]) for seed, result in seeds.items()} for variant, seeds in variants.items()}
        for variant, seeds in variants.items():
            bounds = [curves.Curve(*np.array(result["bounds"]).T) for result in seeds.values()]
            comparison.draw_seeds(by_updates, bounds, colors[variant], variant)
            comparison.draw_seeds(by_steps, [by_horizon(error) for error in errors[variant].values()], colors[variant], variant)
        for variant, reference in two_levels(variants).items():
            differences = [by_horizon(ours - theirs) for ours, theirs in paired(errors[variant], errors[reference])]
            comparison.draw_seeds(from_reference, differences, colors[variant], variant)
        steps = np.arange(1, worldmodel.HORIZON + 1)
        if env := switches(worldmodel.DATA[name].settings["task"]):
            by_steps.plot(steps, env.least_open_loop(steps), color="black", linestyle="--", linewidth=0.8)
            by_steps.axhline(env.least_open_loop(np.inf), color="gray", linestyle=":")
        else:
            without_model = next(iter(variants.values())).values()  # all variants of a seed are measured on the same steps
            for key, linestyle in (("open_loop_mean", ":"), ("open_loop_last", "-.")):
                error = np.mean([result[key] for result in without_model], 0)
                by_steps.plot(steps, error, color="gray", linestyle=linestyle)
        from_reference.axhline(0.0, color="gray", linestyle=":")
        by_updates.set(title=worldmodel.DATA[name].title, xlabel="updates", ylabel="bound, nats per step")
        by_steps.set(title="open loop", xlabel="steps since the last one seen", ylabel="squared error")
        from_reference.set(title="open loop, less flat's with as many free nats", xlabel="steps since the last one seen")
    lines = [Line2D([], [], color=color, label=variant, linewidth=2.2) for variant, color in colors.items()]
    lines.append(Line2D([], [], color="black", linestyle="--", label="the best prediction"))
    lines.append(Line2D([], [], color="gray", linestyle=":", label="a guess; no difference"))
    lines.append(Line2D([], [], color="gray", linestyle="-.", label="what was seen last"))
    figure.legend(handles=lines, loc="outside upper center", ncols=4, fontsize=8)
    return figure


def two_levels(variants: Collection[str]) -> dict[str, str]:
    """The variants with two levels as they are, of these, and the flat ones with as many free nats in all."""
    pairs = {variant: worldmodel.VARIANTS[variant].reference for variant in (worldmodel.ONE_EACH, worldmodel.HALF_EACH)}
    return {variant: reference for variant, reference in pairs.items() if variant in variants and reference in variants}


def switches(task: str) -> Switches | None:
    """The environment of a task, if what can be known of it can be worked out."""
    name = task.removeprefix("gym_")
    env = gymnasium.make(name).unwrapped if name.startswith(Switches.__module__) else None
    return env if isinstance(env, Switches) else None


def by_horizon(values: np.ndarray) -> curves.Curve:
    """Values by steps since the last one seen, of which the first is 1."""
    return curves.Curve(np.arange(1, len(values) + 1), values)


def worldmodel_table(name: str, variants: dict[str, dict[int, dict]]) -> str:
    """Means over seeds and paired differences from the variant's reference, as Markdown."""
    columns = ["", "seeds", "bound", "KL (top + bottom)", "observation", "reward", "open-loop error: 1 to 5", "1 to 20", "of the reward"]
    columns += ["compared with", "bound, 95%", "open-loop error: 1 to 5, 95%", "1 to 20, 95%", "of the reward, 95%"]
    rows = []
    for variant, seeds in variants.items():
        cells = [variant, str(len(seeds)), mean_of(seeds, "bound", 2), kl_cell(seeds), mean_of(seeds, "observation", 2)]
        cells += [mean_of(seeds, "reward", 3), mean_of(seeds, "open_loop", 2, NEAR), mean_of(seeds, "open_loop", 2)]
        cells.append(mean_of(seeds, "open_loop_reward", 4))
        reference = worldmodel.VARIANTS[variant].reference
        pairs = paired(seeds, variants.get(reference, {}))
        cells.append(reference or "")
        for key, steps, digits in (("bound", None, 2), ("open_loop", NEAR, 2), ("open_loop", None, 2), ("open_loop_reward", None, 5)):
            cells.append(results.difference([mean(ours, key, steps) - mean(theirs, key, steps) for ours, theirs in pairs], digits))
        rows.append(cells)
    title = worldmodel.DATA[name].title
    return f"**{title[0].upper()}{title[1:]}**\n\n{markdown(columns, rows)}"


def bound_differences(pairs: list[tuple[dict, dict]], eighths: Iterable[int]) -> list[str]:
    """The bound of the first less that of the second of each pair, after so many eighths of the updates, as cells of a table."""
    return [results.difference([ours["bounds"][at - 1][1] - theirs["bounds"][at - 1][1] for ours, theirs in pairs], 2) for at in eighths]


def sooner_table(found: dict) -> str:
    """The bound in the course of training, less that of each variant's reference, and the time of a run, as Markdown."""
    rows = []
    for name, variants in found.items():
        data = worldmodel.DATA[name]
        rows.append([f"**{data.title}**"])
        for variant, seeds in variants.items():
            reference = worldmodel.VARIANTS[variant].reference
            pairs = paired(seeds, variants.get(reference, {}))
            if pairs:
                time = np.median([ours["seconds"] / theirs["seconds"] for ours, theirs in pairs])
                rows.append([variant, reference, f"{data.updates:,}", *bound_differences(pairs, range(1, 9))])
                if variant in worldmodel.MAIN:  # the others did not run beside their reference
                    rows[-1].append(f"x {time:.2f}")
    eighths = ["after 1/8 of them", "1/4", "3/8", "1/2", "5/8", "3/4", "7/8", "all"]
    return markdown(["", "less that of", "updates", *eighths, "time of a run"], rows)


def half_each_table(found: dict) -> str:
    """The bound of two levels with half a free nat for each, less flat's, by data and learning rate, as Markdown."""
    rows = []
    for name, variants in found.items():
        for variant in (worldmodel.HALF_EACH, worldmodel.FASTER_HALF_EACH):
            pairs = paired(variants.get(variant, {}), variants.get(worldmodel.VARIANTS[variant].reference, {}))
            if pairs:
                data, rate = worldmodel.DATA[name], worldmodel.config_of(name, variant).model_lr
                rows.append([data.title, str(len(pairs)), f"{rate:g}", f"{data.updates:,}"])
                rows[-1] += bound_differences(pairs, (2, 4, 8))
    return markdown(["data", "seeds", "learning rate", "updates", "after a quarter", "after half", "at the end"], rows)


def limits_table() -> str:
    """What can be known of each environment that things switch in, as Markdown."""
    rows, titles = [], {}
    for data in worldmodel.DATA.values():
        titles.setdefault(data.settings["task"], data.title)
    for task, title in titles.items():
        if env := switches(task):
            error = env.least_open_loop(np.arange(1, worldmodel.HORIZON + 1))
            numbers = (env.least_kl(), env.least_observation(), error[:NEAR].mean(), error.mean(), env.least_open_loop(np.inf))
            rows.append([title, *(f"{number:.2f}" for number in numbers)])
    return markdown(["data", "KL", "observation", "open-loop error: 1 to 5", "1 to 20", "of a guess"], rows)


# Which states exploring agents reach


def exploring_results() -> dict[str, dict[int, dict]]:
    """{variant: {seed: result}} of what is stored."""
    found = {variant: {} for variant in exploring.VARIANTS}
    for result in results.load("exploring"):
        found[result["variant"]][result["seed"]] = result
    return {variant: seeds for variant, seeds in found.items() if seeds}


def exploring_figure(found: dict[str, dict[int, dict]]) -> Figure:
    """Cells reached against frames, drawn as `comparison.draw_seeds` says."""
    figure, (axis,) = comparison.panels(1)
    for number, (variant, seeds) in enumerate(found.items()):
        reached = [np.array(result["reached"], float) for result in seeds.values()]
        steps = exploring.EVERY * np.arange(1, len(reached[0]) + 1)
        comparison.draw_seeds(axis, [curves.Curve(steps, values) for values in reached], f"C{number}", variant)
    axis.axhline(exploring.CELLS, color="black", linestyle="--", linewidth=0.8, label="all cells")
    axis.set(title="Grid-v0", xlabel="frames", ylabel="cells reached", xlim=(0, None))
    axis.legend(fontsize=7)
    return figure


def exploring_table(found: dict[str, dict[int, dict]]) -> str:
    """Cells that were reached and steps that were rewarded, with paired differences from flat, as Markdown."""
    rows = []
    for variant, seeds in found.items():
        reached = {seed: result["reached"][-1] for seed, result in sorted(seeds.items())}
        flat = {seed: result["reached"][-1] for seed, result in found.get("flat", {}).items()}
        pairs = [reached[seed] - flat[seed] for seed in reached if seed in flat and variant != "flat"]
        rewards = ", ".join(str(result["rewards"]) for _, result in sorted(seeds.items()))
        name = "nothing: random actions" if variant == "random" else variant
        rows.append([name, seeds_and_mean(reached.values()), results.difference(pairs, 0), rewards])
    return markdown(["Plan2Explore on", "cells: seeds (mean)", "difference to flat, 95%", "rewarded steps: seeds"], rows)


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
        "rates": rates_table(results.load("rates")),
        "free_nats": free_nats_table(plan, results.load("learning") + results.load("free_nats")),
        "learning": learning_table(plan, agents),
        "exploring": exploring_table(exploring_results()),
        "limits": limits_table(),
        "sooner": sooner_table(models),
        "worldmodel": "\n\n".join(worldmodel_table(name, variants) for name, variants in models.items()),
    }
    return {PAGE: of_results, README: {"agents": learning_table(plan, agents, short=True), "worldmodels": half_each_table(models)}}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    plan = learning.load_plan()
    figures = {
        "learning": learning_figure(plan, learning_results(plan)),
        "exploring": exploring_figure(exploring_results()),
        "worldmodel": worldmodel_figure(worldmodel_results()),
    }
    for page, made in tables().items():
        page.write_text(fill(page.read_text(), made))
        print("\n\n".join(made.values()))
    FIGURES.mkdir(exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(FIGURES / f"{name}.png", dpi=120)


if __name__ == "__main__":
    main()
