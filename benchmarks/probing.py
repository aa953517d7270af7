"""Measures which known variables linear probes read from the latents of finished runs:

    python benchmarks/probing.py logdir/learning/boxing-*/run   # whatever is not done yet; prints the table of all results

Runs are of MiniGrid or of Boxing, with one level or two. Each is measured as by `latent_report.py` (docs/latents.md), with the same number
of steps and the same seed. Stored are means of R² over groups of variables, of the agent and of untrained networks, as a small JSON
file for each run in `data/probing/`.
"""

import argparse
import contextlib
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks import learning, results
from benchmarks.drawing import markdown
from envs import minigrid
from envs.atari import MEMORY
from envs.spaces import STATE_PREFIX
from latent_report import make_player, untrained_networks
from play.measures import measure
from play.playing import Data, play
from scale.plan import differing, load_plan

ENVS, STEPS, SEED = 8, 6400, 0  # 800 steps in each environment: the byte of Boxing's clock starts again after 915

# The parts of the state by group, for tasks that begin with a name. A part is one variable or a vector of them.
GROUPS = {
    "minigrid_": {"own pose": ("pose",), "own motion": ("motion",), "objects": ("carrying", *minigrid.KINDS)},
    "atari_boxing": {
        "own position": ("player x", "player y"),
        "own motion": ("player motion",),
        "opponent's position": ("enemy x", "enemy y"),
        "opponent's motion": ("enemy motion",),
        "score and clock": ("player score", "enemy score", "clock"),
    },
}
FEATURES = {"flat": ("z", "h"), "hdreamer": ("z_top", "z_bottom", "z_top + z_bottom", "h")}  # columns of the table by variant


def groups_of(task: str) -> dict[str, tuple[str, ...]]:
    """The parts of the state by group.

    Raises:
        ValueError: for a task without groups.
    """
    for name, groups in GROUPS.items():
        if task.startswith(name):
            return groups
    raise ValueError(f"task is {task!r}; groups of variables are known for tasks that begin with {', '.join(GROUPS)}; add some to GROUPS")


def with_motion(data: Data, task: str) -> Data:
    """In Boxing adds how far the boxers have moved since the step before: `log_state_player motion`, `log_state_enemy motion` (N, T, 2).

    At first steps of episodes it has no meaning; probes leave them out.
    """
    if task != "atari_boxing":
        return data
    motion = {}
    for who in ("player", "enemy"):
        position = data["log_memory"][..., [MEMORY["boxing"][f"{who} {axis}"] for axis in "xy"]].astype(np.float32)  # (N, T, 2)
        motion[f"{STATE_PREFIX}{who} motion"] = np.diff(position, axis=1, prepend=position[:, :1])
    return {**data, **motion}


def group_means(groups: dict[str, tuple[str, ...]], probes: dict[str, dict]) -> dict[str, dict]:
    """Mean R² of each group's variables, {group: {"variables": names, "trained": {features: R²}, "untrained": {features: R²}}}.

    Variables that never change have no R² and do not count. A group is left out if none of its variables changes.

    Args:
        groups: parts of the state by group.
        probes: {"trained": {features: {variable: {"share": R²}}}, "untrained": {features: {variable: R²}}}, see `measures.measure`.
    """
    trained = {name: {variable: shares["share"] for variable, shares in row.items()} for name, row in probes["trained"].items()}
    found = {}
    for group, parts in groups.items():
        variables = [variable for variable in next(iter(trained.values())) if variable.partition("[")[0] in parts]
        if variables:
            found[group] = {"variables": variables}
            for kind, rows in (("trained", trained), ("untrained", probes["untrained"])):
                found[group][kind] = {name: round(float(np.mean([row[key] for key in variables])), 4) for name, row in rows.items()}
    return found


def run_one(folder: pathlib.Path, device: str) -> None:
    """Measures the agent of a run and stores the result, unless there is one of the same frames and settings."""
    agent, envs, checkpoint = make_player(folder, ENVS, device)
    with contextlib.closing(envs):
        config = agent._config
        groups, variant = groups_of(config.task), "hdreamer" if config.hierarchical_mode else "flat"
        name = results.name_of(config.task, variant, config.seed)
        chosen = {key: value for key, value in differing(config).items() if key not in ("logdir", "device")}
        conditions = {"frames": int(checkpoint["step"]), "played": STEPS, "settings": chosen}
        if results.is_done("probing", name, conditions):
            return
        data = play(agent, envs, STEPS // ENVS, SEED)
    numbers = measure(agent, untrained_networks(agent, SEED), with_motion(data, config.task), config.task, SEED).numbers
    about = {"task": config.task, "variant": variant, "seed": config.seed, **conditions}
    results.store("probing", name, {**about, "groups": group_means(groups, numbers["probes"]), "levels": numbers["levels"]})


def probing_table(plan: dict, found: list[dict]) -> str:
    """Mean R² by task and group of variables, as Markdown: means over seeds, in brackets those of untrained networks.

    Args:
        plan: titles of tasks and variants.
        found: results of `run_one`.
    """
    titles = {planned["flags"]["task"]: planned["title"] for planned in plan["tasks"].values()}
    columns = [(variant, features) for variant, names in FEATURES.items() for features in names]
    rows = []
    for task in dict.fromkeys(result["task"] for result in found):
        for group in groups_of(task):
            seeds = {
                variant: [
                    result["groups"][group]
                    for result in found
                    if (result["task"], result["variant"]) == (task, variant) and group in result["groups"]
                ]
                for variant in FEATURES
            }
            cells = [cell(seeds[variant], features) for variant, features in columns]
            rows.append([titles.get(task, task), group, *cells, ", ".join(str(len(runs)) for runs in seeds.values())])
    names = {variant: plan["variants"][variant]["title"] for variant in FEATURES}
    header = ["task", "variables", *(f"{names[variant]}: `{features}`" for variant, features in columns)]
    return markdown([*header, f"seeds: {', '.join(names.values())}"], rows)


def cell(runs: list[dict], features: str) -> str:
    """Mean R² of runs and of their untrained networks; empty without runs."""
    trained, untrained = ([run[kind][features] for run in runs] for kind in ("trained", "untrained"))
    return f"{np.mean(trained):.2f} ({np.mean(untrained):.2f})" if runs else ""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=pathlib.Path, metavar="FOLDER", help="folder of a run; without any, prints the table")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, cuda:<number> or mps (default: %(default)s)")
    options = parser.parse_args(argv)
    for folder in options.folders:
        run_one(folder, options.device)
    print(probing_table(load_plan(learning.PLAN), results.load("probing")))


if __name__ == "__main__":
    main()
