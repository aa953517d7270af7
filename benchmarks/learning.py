"""Trains agents as `plan.yaml` says:

    python benchmarks/learning.py                      # whatever of the plan is not done yet; Ctrl-C stops, the same command goes on
    python benchmarks/learning.py cartpole --jobs 1

A run is dreamer.py's own command in a process with one thread. When it has ended, its evaluations are stored in `data/learning/`
as a small JSON file; beside them those of the random policy. `draw.py` draws them.
"""

import argparse
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

from ruamel.yaml import YAML

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import settings
import tools
from benchmarks import results
from pages import curves

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
    def config(self) -> settings.Config:
        return tools.load_config(*settings.parse_flags(self.command))


def load_plan() -> dict:
    return YAML(typ="safe", pure=True).load(PLAN.read_text())


def planned_runs(plan: dict, tasks: list[str]) -> list[Run]:
    """The runs of these tasks, seed by seed, so that variants can be compared early."""
    runs = []
    for task in tasks:
        planned = plan["tasks"][task]
        for seed in planned["seeds"]:
            for name, variant in plan["variants"].items():
                words = ["--configs", "defaults", *planned["presets"], *variant["presets"]]
                for key, value in {**planned["flags"], **variant["flags"], "seed": seed}.items():
                    words += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
                runs.append(Run(task, name, seed, words))
    return runs


def play_randomly(task: str, planned: dict) -> None:
    """Stores the returns of the random policy."""
    from collect import play_episodes
    from envs import make_envs
    from envs.spaces import ActionCodec
    from exploration import Random

    if results.path_of("learning", f"{task}-random").exists():
        return
    envs = make_envs(tools.load_config(["defaults", *planned["presets"]], planned["flags"]), 1, training=False)
    try:
        episodes = play_episodes(Random(ActionCodec(envs.act_space), 1), envs, RANDOM_EPISODES, seed=0)  # see tools.policy_seed
    finally:
        envs.close()
    returns = [round(float(episode.sums["return"]), 3) for episode in episodes]
    results.store("learning", f"{task}-random", {"task": task, "variant": "random", "returns": returns})


def run_all(runs: list[Run], folder: pathlib.Path, jobs: int) -> bool:
    """Trains what has no result yet, `jobs` at a time; returns whether all have ended well."""
    todo, failed, running = queue.SimpleQueue(), [], {}
    for run in runs:
        if not results.is_done("learning", run.name, {"settings": results.differing(run.config)}):
            todo.put(run)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                run = todo.get_nowait()
            except queue.Empty:
                return
            try:
                ended_well = train(run, folder / run.name, running, stop)
            except Exception as error:  # the other runs go on
                print(f"error: {run.name}: {error}", file=sys.stderr)
                ended_well = False
            if not ended_well:
                failed.append(run.name)

    def interrupt(*_) -> None:
        stop.set()
        for process in list(running.values()):
            process.send_signal(signal.SIGINT)  # it saves, and goes on from there next time

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    workers = [threading.Thread(target=work) for _ in range(jobs)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failed and not stop.is_set():
        print(f"error: {', '.join(failed)} ended early; see log.txt in {folder}", file=sys.stderr)
    return not failed and not stop.is_set()


def train(run: Run, logdir: pathlib.Path, running: dict[str, subprocess.Popen], stop: threading.Event) -> bool:
    """Trains one run to its end, and stores its evaluations."""
    logdir.mkdir(parents=True, exist_ok=True)
    seconds = logdir / "seconds.txt"  # one line each time that it went on
    command = [sys.executable, str(HERE.parent / "dreamer.py"), *run.command, "--device", "cpu", "--logdir", str(logdir / "run")]
    start = time.time()
    with open(logdir / "log.txt", "a") as log:
        # A process group of its own, so that Ctrl-C in a terminal reaches it once, from here.
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True)
        running[run.name] = process
        if stop.is_set():  # since the run was taken up
            process.send_signal(signal.SIGINT)
        code = process.wait()
        del running[run.name]
    with open(seconds, "a") as file:
        file.write(f"{time.time() - start:.0f}\n")
    evaluations = read_evaluations(logdir / "run")
    steps = int(run.command[run.command.index("--steps") + 1])
    if code or not evaluations or evaluations[-1][0] < steps:
        return False
    results.store(
        "learning",
        run.name,
        {
            "task": run.task,
            "variant": run.variant,
            "seed": run.seed,
            "command": f"python dreamer.py {' '.join(run.command)}",
            "hours": round(sum(map(int, seconds.read_text().split())) / 3600, 2),
            "settings": results.differing(run.config),
            "evaluations": evaluations,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread a run",
        },
    )
    print(f"{run.name}: {evaluations[-1][1]:.1f} after {evaluations[-1][0]:,} frames", flush=True)
    return True


def read_evaluations(logdir: pathlib.Path) -> list[tuple[int, float]]:
    """(frames, mean return of the evaluation episodes), in order."""
    found = curves.read(logdir).curves
    return [(int(frame), round(float(value), 3)) for frame, value in zip(*found["eval/return"])] if "eval/return" in found else []


def main() -> None:
    plan = load_plan()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(plan['tasks'])}; all if none is named")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, one core each")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("logdir/learning"), help="where the runs are")
    options = parser.parse_args()
    tasks = results.chosen(parser, options.tasks, list(plan["tasks"]))
    for task in tasks:
        play_randomly(task, plan["tasks"][task])
    sys.exit(0 if run_all(planned_runs(plan, tasks), options.folder, options.jobs) else 1)


if __name__ == "__main__":
    main()
