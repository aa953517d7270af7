"""Compares runs: finds them, groups those that differ in the seed alone, draws their curves, and tabulates final values."""

import itertools
import os
import pathlib
import re
import textwrap
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import offset_copy

import console
import settings
from pages import curves
from pages.curves import Curve

# Settings that say where a run is, how it is watched and how long it goes on.
NOT_COMPARED = (
    "logdir",
    "task",
    "seed",
    "device",
    "debug",
    "deterministic_run",
    "compile",
    "steps",
    "eval_every",
    "eval_episode_num",
    "eval_envs",
    "log_every",
    "checkpoint_every",
    "video_pred_log",
    "debug_hierarchical",
    "wandb_project",
)
LATENT = re.compile(r"hierarchical_mode|dyn_(stoch|discrete).*")  # of these a run reads only some; see `describe`
UNKNOWN, UNKNOWN_TASK = "unknown settings", "unknown task"
EVALUATION, TRAINING = "eval/return", "episode/return"


class Run(NamedTuple):
    """A run: its folder, its task, what is to be compared by name (None if unknown), its seed, the curve and what its steps count."""

    logdir: pathlib.Path
    label: str | None  # given by hand
    task: str
    described: dict[str, str] | None
    seed: str
    curve: Curve
    unit: str


class Group(NamedTuple):
    """Runs that differ in nothing that is compared, and the settings in which they differ from other groups beyond what the label says."""

    label: str
    besides: dict[str, str]
    runs: list[Run]

    @property
    def curves(self) -> list[Curve]:
        return [run.curve for run in self.runs]


# Finding runs


def find_runs(words: Iterable[str]) -> list[tuple[pathlib.Path, str | None]]:
    """Folders of runs below those that are named, and the labels given to them (LABEL=FOLDER).

    Raises:
        ValueError: if a folder does not exist or holds no run.
    """
    found = {}
    for word in words:
        label, _, path = ("", "", word) if pathlib.Path(word).exists() else word.rpartition("=")
        folder = pathlib.Path(path).expanduser()
        if not folder.is_dir():
            raise ValueError(f"there is no folder {str(folder)!r}; give folders of runs, or folders that hold them")
        below = sorted(runs_below(folder))
        if not below:
            raise ValueError(f"{folder} holds no run: there is no metrics.jsonl in it or below")
        found.update({logdir.resolve(): (logdir, label or None) for logdir in below})
    return list(found.values())


def runs_below(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """The folder itself if it is a run, else all runs in it."""
    for path, names, files in os.walk(folder):
        if "metrics.jsonl" in files:
            names.clear()  # there are many episodes below, but no runs
            yield pathlib.Path(path)


def read_curves(logdir: pathlib.Path) -> dict[str, Curve]:
    """The curves of a run by metric, without values that are no numbers; warns about lines that cannot be read."""
    read, damaged = curves.read(logdir)
    if damaged:
        console.warn(f"lines of {logdir / 'metrics.jsonl'} that cannot be read: {damaged}")
    return {name: curve for name, line in read.items() if len((curve := curves.finite(line)).steps)}


def choose_metric(metrics: Collection[str]) -> str:
    """The metric to compare runs by, of those that any of them has: of evaluations, or of training if there are none."""
    if EVALUATION in metrics or TRAINING not in metrics:
        return EVALUATION
    console.warn(f"no run has {EVALUATION}; {TRAINING}, of training episodes, is compared instead")
    return TRAINING


def read_runs(found: list[tuple[pathlib.Path, str | None]], metric: str | None, task: str | None) -> tuple[str, list[Run]]:
    """The metric, and the runs that have it; warns about the others.

    Args:
        metric: None for the one of `choose_metric`.
        task: of runs whose folder does not hold their settings.
    Raises:
        ValueError: if no run has it.
    """
    read = [read_curves(logdir) for logdir, _ in found]
    metrics = set().union(*read)
    metric, runs, without = metric or choose_metric(metrics), [], []
    for (logdir, label), lines in zip(found, read):
        if metric not in lines:
            without.append(str(logdir))
            continue
        stored = settings.read_yaml(logdir / "config.yaml") if (logdir / "config.yaml").exists() else {}
        runs.append(
            Run(
                logdir,
                label,
                str(stored.get("task", task or UNKNOWN_TASK)),
                describe(stored) if stored else None,
                str(stored.get("seed", "?")),
                lines[metric],
                curves.unit(stored),
            )
        )
    if not runs:
        raise ValueError(settings.unknown("metric", metric, metrics) if metrics else f"{console.first(without)}: no metrics yet")
    if without:
        console.warn(f"left out, without {metric} yet: {console.first(without)}")
    unknown = [str(run.logdir) for run in runs if run.described is None and (run.label is None or run.task == UNKNOWN_TASK)]
    if unknown:
        console.warn(
            f"no config.yaml, as in runs of dreamerv3-torch: {console.first(unknown)}; say what it is with LABEL=FOLDER and --task"
        )
    return metric, runs


def describe(stored: dict) -> dict[str, str]:
    """Settings as text by name, with the sizes of the latent in one entry; those of the other kind of latent are not read."""
    shown, sizes = settings.shown(stored), settings.level_sizes(settings.completed(stored)).values()
    return {
        "hierarchical_mode": "two levels" if len(sizes) == 2 else "flat",
        "latent": "+".join(f"{latents}x{classes}" for latents, classes in sizes),
        **{name: value for name, value in shown.items() if not LATENT.fullmatch(name)},
    }


# Groups


def group_runs(runs: list[Run], by: Sequence[str] | None = None) -> dict[str, list[Group]]:
    """Groups of runs by task.

    Args:
        by: settings that groups differ in; if not given, all in which runs of a task differ, but those of `NOT_COMPARED`.
    Raises:
        ValueError: for a setting that no run has.
    """
    tasks = {task: [run for run in runs if run.task == task] for task in sorted({run.task for run in runs})}
    described = {task: [run.described for run in of_task if is_automatic(run)] for task, of_task in tasks.items()}
    known = list(dict.fromkeys(name for of_task in described.values() for run in of_task for name in run))
    by = by and list(dict.fromkeys("latent" if LATENT.fullmatch(name) and name not in known else name for name in by))
    for name in by or ():
        if name not in known:
            raise ValueError(settings.unknown("setting", name, known))
    differing = {
        task: by or [name for name in known if name not in NOT_COMPARED and len({run.get(name) for run in of_task}) > 1]
        for task, of_task in described.items()
    }
    naming = (
        by
        or names_that_tell_apart([name for name in known if any(name in names for names in differing.values())], described.values())
        or ["hierarchical_mode"]
    )
    return {task: groups_of_task(of_task, differing[task], naming) for task, of_task in tasks.items()}


def groups_of_task(runs: list[Run], differing: Sequence[str], naming: Sequence[str]) -> list[Group]:
    """Runs with the same label by hand, or else the same values of the differing settings, which some of them name."""
    groups = {}
    for run in runs:
        key, label, besides = (run.label or UNKNOWN,), run.label or UNKNOWN, {}
        if is_automatic(run):
            found = {name: run.described[name] for name in dict.fromkeys([*differing, *naming]) if name in run.described}
            key = tuple(found.items())
            label = ", ".join(phrase(name, found[name]) for name in naming if name in found)
            besides = {name: value for name, value in found.items() if name not in naming}
        groups.setdefault(key, Group(label, besides, [])).runs.append(run)
    return list(groups.values())


def is_automatic(run: Run) -> bool:
    """Whether the group of a run follows from its settings."""
    return run.label is None and run.described is not None


def names_that_tell_apart(names: Sequence[str], tasks: Iterable[list[dict[str, str]]]) -> list[str]:
    """A few of the settings, such that runs of a task that agree in these agree in all.

    Args:
        tasks: for each task what its runs are described by.
    """
    tasks, chosen = list(tasks), []

    def count(chosen: list[str]) -> int:
        return sum(len({tuple(run.get(name) for name in chosen) for run in task}) for task in tasks)

    while count(chosen) < count(list(names)):
        chosen.append(max(names, key=lambda name: count([*chosen, name])))  # the first of equals
    return [name for name in names if name in chosen]


def phrase(name: str, value: str) -> str:
    return value if name == "hierarchical_mode" else f"{name} {value}"


# Drawing


def panels(count: int) -> tuple[Figure, list]:
    """A figure with so many panels in rows of three, and their axes."""
    columns = min(3, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(4.2 * columns, 5.5), 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, list(axes[:count])


def draw_seeds(axis, seeds: Sequence[Curve], color: str, label: str) -> None:
    """Every seed thin; their mean thick and their range shaded, where all of them have values."""
    for curve in seeds:
        axis.plot(curve.steps, curve.values, color=color, alpha=0.35, linewidth=1, marker=None if len(curve.steps) > 1 else "o")
    band = curves.over_seeds(seeds)
    label = textwrap.fill(f"{label}, {len(seeds)} run{'s' if len(seeds) > 1 else ''}", 60)
    axis.plot(band.steps, band.mean, color=color, linewidth=2.2, label=label)
    axis.fill_between(band.steps, band.low, band.high, color=color, alpha=0.15, linewidth=0)


def draw(tasks: dict[str, list[Group]], metric: str) -> Figure:
    """The metric against steps, a panel for each task."""
    figure, axes = panels(len(tasks))
    labels, lines = list(dict.fromkeys(group.label for groups in tasks.values() for group in groups)), 0
    for axis, (task, groups) in zip(axes, tasks.items()):
        for group in groups:
            draw_seeds(axis, group.curves, f"C{labels.index(group.label) % 10}", group.label)
        axis.set(title=task, xlabel=steps_of(groups), ylabel=metric, xlim=(0, None))
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.grid(alpha=0.25)
        # Below the panel and its labels, since there may be many groups with long names.
        below = offset_copy(axis.transAxes, figure, y=-36, units="points")
        legend = axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(0.0, 0.0), bbox_transform=below, borderaxespad=0.0)
        lines = max(lines, sum(text.get_text().count("\n") + 1 for text in legend.get_texts()))
    figure.set_figheight(figure.get_figheight() + 0.15 * lines * axes[0].get_gridspec().nrows)
    return figure


def steps_of(groups: Iterable[Group]) -> str:
    """What the steps of these runs count, in plural."""
    return " or ".join(sorted({f"{run.unit}s" for group in groups for run in group.runs}))


def final_table(tasks: dict[str, list[Group]]) -> str:
    """Final values of every group: their mean over seeds and the seeds' least and greatest, with the steps at which the runs end."""
    rows = [("task", "group", "n", "seeds", "mean", "least", "greatest", steps_of(itertools.chain(*tasks.values())))]
    for task, groups in tasks.items():
        for group in groups:
            seeds = sorted((run.seed for run in group.runs), key=lambda seed: (len(seed), seed))
            finals = [curves.final_value(curve) for curve in group.curves]
            ends = sorted({int(curve.steps[-1]) for curve in group.curves})
            rows.append(
                (
                    task,
                    group.label,
                    str(len(finals)),
                    " ".join(seeds),
                    *(console.number(value) for value in (np.mean(finals), min(finals), max(finals))),
                    " to ".join(f"{step:,}" for step in dict.fromkeys((ends[0], ends[-1]))),
                )
            )
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index in (0, 1, 3) else cell.rjust(width) for index, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    )


# The command
