"""Draws every figure and table of the results pages from the stored results:

    python benchmarks/draw.py

Figures go to docs/results/. Tables go between the lines `<!-- name -->` and `<!-- end -->` of docs/results.md, of
docs/results_appendix.md and of README.md; `tables` says which page holds which table.
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Iterable

import gymnasium
import matplotlib
import numpy as np
from matplotlib.figure import Figure

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from benchmarks import agents, exploring, learning, results, worldmodel
from benchmarks.drawing import FASTER_FLAT, FASTER_TWO_LEVELS, FLAT, STYLE, TWO_LEVELS, markdown, paired, panels, seeds_and_mean
from benchmarks.synthetic import Switches
from pages import comparison, curves
from scale.plan import load_plan

PLAN_2023, PLAN_LAPTOP, PLAN_QUARTER = (HERE / f"plan_{name}.yaml" for name in ("2023", "laptop", "quarter"))
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
ABLATIONS = [name for name, variant in worldmodel.VARIANTS.items() if variant.reference == worldmodel.ONE_EACH]
SYNTHETIC = ("together", "four_together", "four_apart")  # for as many updates


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
    for variant in ABLATIONS:
        rows.append([VARIANTS[variant]])
        for name in SYNTHETIC:
            rows[-1] += elbo_differences(paired(found[name].get(variant, {}), found[name][worldmodel.ONE_EACH]), (4, 8))
    return markdown(["ablation", *(f"{DATA[name]}: {when}" for name in SYNTHETIC for when in ("after 1/2", "at the end"))], rows)


def worldmodel_table(name: str, variants: dict[str, dict[int, dict]]) -> str:
    """Means over seeds and paired differences from the variant's reference, without ablations, as Markdown."""
    errors = ["open-loop error, steps 1-5", "steps 1-20", "reward, steps 1-20"]
    columns = ["variant", "seeds", "negative ELBO", "KL (top + bottom)", "observation loss", "reward loss", *errors]
    columns += ["compared with", *(f"{column}, 95%" for column in ("negative ELBO", *errors))]
    rows = []
    for variant, of_seeds in variants.items():
        if variant in ABLATIONS:
            continue
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
    """Every table of what has results by its page and name, as Markdown."""
    plans = [load_plan(path) for path in (learning.PLAN, PLAN_2023, PLAN_LAPTOP, PLAN_QUARTER)]
    (plan, earlier, laptop, quarter), (new, small, for_laptops, quarters) = plans, map(agents.learning_results, plans)
    models = worldmodel_results()
    of_results = {
        **({"published": agents.published_table(plan, new)} if new else {}),
        **({"transfer": agents.transfer_table(quarter, quarters)} if any("from" in quarter["tasks"][task] for task in quarters) else {}),
        "elbo": elbo_table(models),
        "ablations": ablations_table(models),
        "exploring": exploring_table(exploring_results()),
    }
    of_appendix = {
        "free_nats": agents.free_nats_table(earlier, results.load(earlier["results"]) + results.load("free_nats")),
        "laptop": agents.published_table(laptop, for_laptops),
        **({"quarter": agents.published_table(quarter, from_scratch(quarter, quarters))} if quarters else {}),
        "learning": agents.learning_table(earlier, small),
        "limits": limits_table(),
        "rates": agents.rates_table(results.load("rates")),
        "worldmodel": "\n\n".join(worldmodel_table(name, variants) for name, variants in models.items()),
    }
    of_readme = {task: small[task] for task in README_TASKS}
    return {README: {"agents": agents.learning_table(earlier, of_readme, short=True)}, PAGE: of_results, APPENDIX: of_appendix}


def from_scratch(plan: dict, found: dict) -> dict:
    """The tasks whose agents are new ones."""
    return {task: runs for task, runs in found.items() if "from" not in plan["tasks"][task]}


def figures() -> dict[str, Figure]:
    """Every figure of what has results by its name."""
    plan, earlier, quarter = (load_plan(path) for path in (learning.PLAN, PLAN_2023, PLAN_QUARTER))
    new, small, quarters = map(agents.learning_results, (plan, earlier, quarter))
    models = worldmodel_results()
    of_readme = {task: small[task] for task in README_TASKS}
    with matplotlib.rc_context(STYLE):
        return {
            **({"published": agents.published_figure(plan, new, columns=3)} if new else {}),
            **({"quarter": agents.published_figure(quarter, from_scratch(quarter, quarters), columns=3)} if quarters else {}),
            "readme": agents.learning_figure(earlier, of_readme, columns=4, references=False),
            "learning": agents.learning_figure(earlier, small, columns=4, references=True),
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
