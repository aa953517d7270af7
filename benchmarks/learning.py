"""Trains agents as `plan.yaml` says, and draws how they learn:

    python benchmarks/learning.py run                  # whatever of the plan is not done yet; Ctrl-C stops, the same command goes on
    python benchmarks/learning.py run cartpole --jobs 1
    python benchmarks/learning.py draw                 # figures and tables of all results, from the stored numbers alone

A run is dreamer.py's own command in a process with one thread. When it has ended, its evaluations are stored in `data/learning/`
as a small JSON file; beside them those of the random policy.
"""

import argparse
import json
import os
import pathlib
import platform
import queue
import signal
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from ruamel.yaml import YAML

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import tools  # noqa: E402
from benchmarks import results  # noqa: E402

PLAN = HERE / "plan.yaml"
RANDOM_EPISODES = 100


class Run(NamedTuple):
    """One training run of the plan."""

    task: str
    variant: str
    seed: int
    command: list[str]

    @property
    def name(self) -> str:
        return f"{self.task}-{self.variant}-{self.seed}"

    @property
    def done(self) -> bool:
        return results.path_of("learning", self.name).exists()


def load_plan() -> dict:
    return YAML(typ="safe", pure=True).load(PLAN.read_text())


def planned_runs(plan: dict, tasks: list[str]) -> list[Run]:
    """The runs of these tasks, seed by seed, so that variants can be compared early."""
    runs = []
    for task in tasks:
        settings = plan["tasks"][task]
        for seed in settings["seeds"]:
            for variant, presets in plan["variants"].items():
                flags = [text for key, value in settings["flags"].items() for text in (f"--{key}", str(value))]
                runs.append(Run(task, variant, seed, ["--configs", "defaults", *settings["presets"], *presets, *flags, "--seed", str(seed)]))
    return runs


# Running


def play_randomly(task: str, settings: dict) -> None:
    """Stores the returns of the random policy."""
    from collect import play_episodes
    from envs import make_envs
    from envs.spaces import ActionCodec
    from exploration import Random

    if results.path_of("learning", f"{task}-random").exists():
        return
    flags = {key: value for key, value in settings["flags"].items() if key != "steps"}
    envs = make_envs(tools.load_config(["defaults", *settings["presets"]], flags), 1, training=False)
    try:
        episodes = play_episodes(Random(ActionCodec(envs.act_space), 0), envs, RANDOM_EPISODES, seed=0)
    finally:
        envs.close()
    returns = [round(float(episode.sums["return"]), 3) for episode in episodes]
    results.store("learning", f"{task}-random", {"task": task, "variant": "random", "returns": returns})


def run_all(runs: list[Run], folder: pathlib.Path, jobs: int) -> bool:
    """Trains what has no result yet, `jobs` at a time; returns whether all have ended well."""
    todo, failed, running = queue.SimpleQueue(), [], {}
    for run in runs:
        if not run.done:
            todo.put(run)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                run = todo.get_nowait()
            except queue.Empty:
                return
            if not train(run, folder / run.name, running):
                failed.append(run.name)

    def interrupt(*_) -> None:
        stop.set()
        for process in list(running.values()):
            process.send_signal(signal.SIGINT)  # it saves, and goes on from there next time

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    workers = [threading.Thread(target=work) for _ in range(jobs)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failed and not stop.is_set():
        print(f"error: {', '.join(failed)} ended early; see log.txt in {folder}", file=sys.stderr)
    return not failed and not stop.is_set()


def train(run: Run, logdir: pathlib.Path, running: dict[str, subprocess.Popen]) -> bool:
    """Trains one run to its end, and stores its evaluations."""
    logdir.mkdir(parents=True, exist_ok=True)
    seconds = logdir / "seconds.txt"  # one line each time that it went on
    command = [sys.executable, str(HERE.parent / "dreamer.py"), *run.command, "--device", "cpu", "--logdir", str(logdir / "run")]
    start = time.time()
    with open(logdir / "log.txt", "a") as log:
        # A process group of its own, so that Ctrl-C in a terminal reaches it once, from here.
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True)
        running[run.name] = process
        code = process.wait()
        del running[run.name]
    with open(seconds, "a") as file:
        file.write(f"{time.time() - start:.0f}\n")
    evaluations = read_evaluations(logdir / "run")
    steps = int(run.command[run.command.index("--steps") + 1])
    if code or not evaluations or evaluations[-1][0] < steps:
        return False
    results.store("learning", run.name, {
        "task": run.task, "variant": run.variant, "seed": run.seed, "command": f"python dreamer.py {' '.join(run.command)}",
        "hours": round(sum(map(int, seconds.read_text().split())) / 3600, 2), "evaluations": evaluations,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread a run"})
    print(f"{run.name}: {evaluations[-1][1]:.1f} after {evaluations[-1][0]:,} frames", flush=True)
    return True


def read_evaluations(logdir: pathlib.Path) -> list[tuple[int, float]]:
    """(frames, mean return of the evaluation episodes), in order."""
    path = logdir / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    returns = {row["step"]: round(row["eval/return"], 3) for row in rows if "eval/return" in row}  # a continued run may repeat one
    return sorted(returns.items())


# Drawing


def final_return(result: dict) -> float:
    """Mean over the evaluations of the last quarter of a run: one evaluation is a few episodes of an agent that still changes."""
    frames, returns = np.array(result["evaluations"]).T
    return float(returns[frames > 0.75 * frames[-1]].mean())


def load_results(plan: dict) -> dict[str, dict]:
    """{task: {"random": returns, variant: {seed: result}}} of what is stored."""
    found = {}
    stored = results.load("learning")
    for task in plan["tasks"]:
        of_task = [result for result in stored if result["task"] == task]
        if of_task:
            found[task] = {variant: {} for variant in plan["variants"]}
            for result in of_task:
                if result["variant"] == "random":
                    found[task]["random"] = result["returns"]
                elif result["variant"] in found[task]:
                    found[task][result["variant"]][result["seed"]] = result
    return found


def draw(plan: dict) -> None:
    """Writes docs/results/learning.png and learning.md."""
    found = load_results(plan)
    if not found:
        raise SystemExit("error: there are no results yet; run: python benchmarks/learning.py run")
    draw_curves(plan, found, results.DOCS / "learning.png")
    text = learning_table(plan, found)
    (results.DOCS / "learning.md").write_text(text)
    print(text)


def draw_curves(plan: dict, found: dict, path: pathlib.Path) -> None:
    """Evaluation return against frames, a panel for each task: every seed thin, their mean thick."""
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(found):]:
        axis.set_visible(False)
    for axis, (task, variants) in zip(axes.flat, found.items()):
        settings = plan["tasks"][task]
        for number, variant in enumerate(plan["variants"]):
            curves = [np.array(result["evaluations"]).T for result in variants[variant].values()]
            for frames, returns in curves:
                axis.plot(frames, returns, color=f"C{number}", alpha=0.35, linewidth=1)
            if curves:
                shared = set.intersection(*(set(frames) for frames, _ in curves))
                mean = [(frame, np.mean([returns[list(frames).index(frame)] for frames, returns in curves])) for frame in sorted(shared)]
                axis.plot(*zip(*mean), color=f"C{number}", linewidth=2.5, label=f"{variant}, {len(curves)} seeds")
        if "random" in variants:
            axis.axhline(np.mean(variants["random"]), color="gray", linestyle=":", label="random policy")
        if "learned" in settings:
            axis.axhline(settings["learned"][0], color="black", linestyle="--", linewidth=0.8, label="learned")
        axis.set(title=settings["title"], xlabel="frames", ylabel="return", xlim=(0, None))
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def learning_table(plan: dict, found: dict) -> str:
    """The table of final returns as Markdown."""
    base, *others = plan["variants"]
    lines = ["<!-- written by `python benchmarks/learning.py draw` -->", "",
             "| task | random | " + " | ".join(f"{variant}: seeds (mean)" for variant in plan["variants"]) + " | "
             + " | ".join(f"{other} - {base}, 95%" for other in others) + " | hours a run |",
             "|" + "---|" * (3 + len(plan["variants"]) + len(others))]
    for task, variants in found.items():
        cells = [plan["tasks"][task]["title"], f"{np.mean(variants['random']):.1f}" if "random" in variants else ""]
        finals = {variant: {seed: final_return(result) for seed, result in sorted(variants[variant].items())} for variant in plan["variants"]}
        for final in finals.values():
            values = list(final.values())
            cells.append(f"{', '.join(f'{value:.0f}' for value in values)} (**{np.mean(values):.0f}**)" if values else "")
        for other in others:
            cells.append(results.difference([finals[other][seed] - finals[base][seed] for seed in finals[base] if seed in finals[other]], 0))
        hours = [result["hours"] for variant in plan["variants"] for result in variants[variant].values()]
        cells.append(f"{np.mean(hours):.1f}" if hours else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    plan = load_plan()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="train what is not done yet")
    runner.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(plan['tasks'])}; all if none is named")
    runner.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, one core each")
    runner.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("logdir/learning"), help="where the runs are")
    commands.add_parser("draw", help="draw figures and tables from the stored results")
    options = parser.parse_args()
    if options.command == "draw":
        draw(plan)
        return
    unknown = set(options.tasks) - set(plan["tasks"])
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))} is not in {PLAN.name}; it has {', '.join(plan['tasks'])}")
    tasks = options.tasks or list(plan["tasks"])
    for task in tasks:
        play_randomly(task, plan["tasks"][task])
    sys.exit(0 if run_all(planned_runs(plan, tasks), options.folder, options.jobs) else 1)


if __name__ == "__main__":
    main()
