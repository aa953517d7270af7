"""Tables and figures of how agents learn, from the results of `learning.py`."""

import functools
import json

import numpy as np
from matplotlib.figure import Figure

from benchmarks import results
from benchmarks.drawing import FLAT, TWO_LEVELS, markdown, paired, panels, seeds_and_mean
from pages import comparison, curves
from scale.plan import RESULTS


def learning_results(plan: dict) -> dict[str, dict]:
    """{task: {"random": returns, variant: {seed: result}}} of what is stored for a plan."""
    found = {}
    stored = results.load(plan["results"])
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


# Generation of 2025: returns of training episodes


# What plans call the curves of the JAX original, with their titles and line styles
ORIGINALS = {"published": ("published, larger agents", "--"), "same_size": ("JAX original, size1m", "-.")}


def published() -> dict[str, list[curves.Curve]]:
    """Curves of the JAX original by name, one for each seed."""
    stored = json.loads((RESULTS / "published.json").read_text())
    return {name: [curves.Curve(*np.array(seed, float).T) for seed in seeds] for name, seeds in stored["tasks"].items()}


def up_to(curve: curves.Curve, frames: float) -> curves.Curve:
    """The entries of a curve that are not later than so many frames."""
    return curves.Curve(*(part[curve.steps <= frames] for part in curve))


def episodes(result: dict) -> curves.Curve:
    """The return of every training episode, at the frame at which it ends."""
    return curves.Curve(*np.array(result["training"]).T)


def training_curve(result: dict, size: int) -> curves.Curve:
    """Mean returns of the episodes that end in each bin of `size` frames, at the ends of the bins, without an incomplete last bin."""
    frames, returns = episodes(result)
    ends = np.ceil(frames / size) * size
    complete = [end for end in np.unique(ends) if end <= result["frames"]]
    return curves.Curve(np.array(complete), np.array([returns[ends == end].mean() for end in complete]))


def return_before(curve: curves.Curve, at: int, last: int) -> float:
    """Mean of the values within the last so many frames before `at`."""
    return float(curve.values[(curve.steps > at - last) & (curve.steps <= at)].mean())


def published_figure(plan: dict, found: dict, columns: int) -> Figure:
    """Training return against frames beside the original's, a panel for each task."""
    colors, original = dict(zip(plan["variants"], (FLAT, TWO_LEVELS))), published()
    drawn = [variant for variant in colors if any(runs[variant] for runs in found.values())]
    legend = {plan["variants"][variant]["title"]: (colors[variant], "-") for variant in drawn}
    shown = {kind: about for kind, about in ORIGINALS.items() if any(plan["tasks"][task].get(kind) for task in found)}
    legend |= {title: ("black", style) for title, style in shown.values()} | {"random policy": ("gray", ":")}
    figure, axes = panels(len(found), columns, "environment frames", "training return", legend)
    for axis, (task, variants) in zip(axes, found.items()):
        planned = plan["tasks"][task]
        for kind, (_, style) in shown.items():
            if planned.get(kind):
                band = curves.over_seeds([up_to(seed, plan_frames(planned)) for seed in original[planned[kind]]])
                axis.plot(band.steps, band.mean, color="black", linestyle=style, linewidth=1.3)
                axis.fill_between(band.steps, band.low, band.high, color="black", alpha=0.1, linewidth=0)
        for variant, color in colors.items():
            seeds = [training_curve(result, planned["bin"]) for result in variants[variant].values()]
            seeds = [curve for curve in seeds if len(curve.steps)]  # not of runs that were stopped within the first bin
            if seeds:
                comparison.draw_seeds(axis, seeds, color, variant)
        axis.axhline(np.mean(variants["random"]), color="gray", linestyle=":", linewidth=1.3)
        axis.set(title=planned["title"], xlim=(0, plan_frames(planned)))
    return figure


def plan_frames(planned: dict) -> int:
    """The length of a task's runs in frames."""
    return planned["flags"]["steps"]


def published_table(plan: dict, found: dict) -> str:
    """Training returns of both variants and of the original by task and frames, as Markdown.

    Rows that no run has reached are left out, and so are columns of the original that no row has.
    """
    (base, flat), (other, two_levels) = ((variant, about["title"]) for variant, about in plan["variants"].items())
    original, rows = published(), []
    for task, variants in found.items():
        planned = plan["tasks"][task]
        digits, size, last = planned.get("digits", 0), planned["bin"], planned["last"]
        for at in planned["at"]:
            runs = [that_reached(at, variants[variant]) for variant in (base, other)]
            if not any(runs):
                continue
            cells = [planned["title"], f"{at - last:,} to {at:,}", f"{np.mean(variants['random']):.{digits}f}"]
            for kind in ORIGINALS:
                seeds = original[planned[kind]] if kind in planned else []
                # The last episode of a seed ends somewhat before `at`; a seed that was stopped earlier is left out.
                returns = [return_before(seed, at, last) for seed in seeds if seed.steps[-1] > at - size]
                between = f" ({min(returns):.{digits}f} to {max(returns):.{digits}f})" if len(returns) > 1 else ""
                cells.append(f"**{np.mean(returns):.{digits}f}**{between}" if returns else "")
            # Final return, and the mean over the whole curve: the area under it, per frame.
            final, whole = (
                [{seed: return_before(curve(result), at, span) for seed, result in seeds.items()} for seeds in runs]
                for curve, span in ((episodes, last), (functools.partial(training_curve, size=size), at))
            )
            cells += [seeds_and_mean(seeds.values(), digits) for seeds in final]
            cells += [results.difference([ours - theirs for theirs, ours in paired(*kind)], digits) for kind in (final, whole)]
            cells.append(hours(runs) if at == plan_frames(planned) else "")
            rows.append(cells)
    difference = f"{two_levels} - {flat}"
    columns = ["task", "frames", "random", *(title for title, _ in ORIGINALS.values())]
    columns += [f"{flat}: seeds (mean)", f"{two_levels}: seeds (mean)", difference, f"{difference}, from the start"]
    columns.append(f"hours per run: {flat}, {two_levels}")
    empty = [place for place in range(3, 3 + len(ORIGINALS)) if not any(row[place] for row in rows)]
    columns, *rows = ([cell for place, cell in enumerate(row) if place not in empty] for row in (columns, *rows))
    return markdown(columns, rows)


def that_reached(at: int, seeds: dict[int, dict]) -> dict[int, dict]:
    """The results of runs that cover so many frames, by seed in order."""
    return {seed: result for seed, result in sorted(seeds.items()) if result["frames"] >= at}


def hours(runs: list[dict[int, dict]]) -> str:
    """Mean hours of each variant's runs, as a cell; "-" without runs."""
    return ", ".join(f"{np.mean([result['hours'] for result in seeds.values()]):.1f}" if seeds else "-" for seeds in runs)


def frames_to(result: dict, target: float) -> float:
    """Frames until the mean of five episodes in a row reaches a return; infinite if it never does."""
    frames, returns = episodes(result)
    means = np.convolve(returns, np.full(5, 0.2), "valid")
    reached = np.flatnonzero(means >= target)
    return float(frames[reached[0] + 4]) if len(reached) else np.inf


def transfer_table(plan: dict, found: dict) -> str:
    """Frames to the target return and mean returns, by what the agents of the target task begin with, as Markdown."""
    (base, flat), (other, two_levels) = ((variant, about["title"]) for variant, about in plan["variants"].items())
    over, rows = plan["over"], []
    for task, variants in found.items():
        planned = plan["tasks"][task]
        runs = [that_reached(over, variants[variant]) for variant in (base, other)]
        if planned["flags"]["task"] != plan["target_task"] or not any(runs):
            continue
        cells = [planned["begins"]]
        for seeds in runs:
            reached = [(frames_to(result, plan["target"]), result["frames"]) for result in seeds.values()]
            cells.append(", ".join(f"{frames:,.0f}" if np.isfinite(frames) else f"over {length:,}" for frames, length in reached))
        means = [{seed: return_before(episodes(result), over, over) for seed, result in seeds.items()} for seeds in runs]
        cells += [seeds_and_mean(seeds.values()) for seeds in means]
        rows.append([*cells, results.difference([ours - theirs for theirs, ours in paired(*means)], 0)])
    columns = ["begins with", *(f"{name}: frames to {plan['target']}" for name in (flat, two_levels))]
    columns += [f"{name}: mean return over {over:,} frames" for name in (flat, two_levels)]
    return markdown([*columns, f"{two_levels} - {flat}"], rows)


# Generation of 2023, preset small: returns of evaluation episodes


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
            cells.append(hours(runs))
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
