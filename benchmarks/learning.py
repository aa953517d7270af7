"""Trains agents as `plan.yaml` says:

    python benchmarks/learning.py                      # whatever of the plan is not done yet; Ctrl-C stops, the same command goes on
    python benchmarks/learning.py cartpole --jobs 1 --seeds 0

A run is dreamer.py's own command in a process with one thread. When it ends or is stopped, its returns are stored in `data/` as
a small JSON file, with the frames that they cover; beside them those of the random policy. `draw.py` draws them.
"""

import argparse
import itertools
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

from ruamel.yaml import YAML

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import checkpoints
import settings
import tools
from benchmarks import results
from dreamer import Dreamer, read_agent
from pages import curves
from storage.episodes import id_of, load_episode, stored_steps

PLAN = HERE / "plan.yaml"
RANDOM_EPISODES = 100


class Run(NamedTuple):
    """One training run of the plan.

    Attributes:
        origin: name of the run whose agent it begins with; None for a new agent.
        keep: what it keeps of that agent, see `kept`.
    """

    task: str
    variant: str
    seed: int
    command: list[str]
    origin: str | None = None
    keep: str | None = None

    @property
    def name(self) -> str:
        return f"{self.task}-{self.variant}-{self.seed}"

    @property
    def config(self) -> settings.Config:
        return tools.load_config(*settings.parse_flags(self.command))

    @property
    def frames(self) -> int:
        """The length of the whole run."""
        return self.config.steps


def load_plan(path: pathlib.Path = PLAN) -> dict:
    return YAML(typ="safe", pure=True).load(path.read_text())


def planned_runs(plan: dict, tasks: list[str], seeds: list[int] | None = None) -> list[Run]:
    """The runs of these tasks, seed by seed, so that variants can be compared early.

    Args:
        seeds: those of them that are run; None for all.
    """
    runs = []
    for task in tasks:
        planned = plan["tasks"][task]
        for seed in planned["seeds"] if seeds is None else [seed for seed in planned["seeds"] if seed in seeds]:
            for name, variant in plan["variants"].items():
                words = ["--configs", "defaults", *planned["presets"], *variant["presets"]]
                for key, value in {**variant["flags"], **planned["flags"], "seed": seed}.items():
                    words += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
                origin = f"{planned['from']}-{name}-{seed}" if "from" in planned else None
                runs.append(Run(task, name, seed, words, origin, planned.get("keep")))
    return runs


def play_randomly(experiment: str, task: str, planned: dict) -> None:
    """Stores the returns of the random policy."""
    from collect import play_episodes
    from envs import make_envs
    from envs.spaces import ActionCodec
    from exploration import Random

    if results.path_of(experiment, f"{task}-random").exists():
        return
    envs = make_envs(tools.load_config(["defaults", *planned["presets"]], planned["flags"]), 1, training=False)
    try:
        episodes = play_episodes(Random(ActionCodec(envs.act_space), 1), envs, RANDOM_EPISODES, seed=0)  # see tools.policy_seed
    finally:
        envs.close()
    returns = [round(float(episode.sums["return"]), 3) for episode in episodes]
    results.store(experiment, f"{task}-random", {"task": task, "variant": "random", "returns": returns})


def is_done(experiment: str, run: Run) -> bool:
    """Whether there is a result of the whole run.

    Raises:
        SystemExit: if there is one of other settings.
    """
    there = results.is_done(experiment, run.name, {"settings": results.differing(run.config)})
    return there and stored_frames(experiment, run) >= run.frames


def stored_frames(experiment: str, run: Run) -> int:
    """How many frames the stored result of a run covers; 0 without one."""
    path = results.path_of(experiment, run.name)
    if not path.exists():
        return 0
    result = json.loads(path.read_text())
    return result["frames"] if "frames" in result else result["evaluations"][-1][0]


class Trainer:
    """Trains runs of a plan, several at a time, each in a process with one thread.

    Args:
        experiment: where results are stored, `results` of the plan.
        folder: where the runs are.
        device: of the runs.
    """

    def __init__(self, experiment: str, folder: pathlib.Path, device: str):
        self._experiment, self._folder, self._device = experiment, folder, device
        self._stop, self._processes = threading.Event(), {}

    def train(self, runs: list[Run], jobs: int) -> bool:
        """Trains what has no result of the whole run yet, `jobs` at a time; returns whether all have ended well."""
        todo, failed = queue.SimpleQueue(), []
        for run in runs:
            if not is_done(self._experiment, run):
                todo.put(run)

        def work() -> None:
            while not self._stop.is_set():
                try:
                    run = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    ended_well = self._train(run)
                except Exception as error:  # the other runs go on
                    print(f"error: {run.name}: {error}", file=sys.stderr)
                    ended_well = False
                if not ended_well:
                    failed.append(run.name)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._interrupt)
        workers = [threading.Thread(target=work) for _ in range(jobs)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if failed and not self._stop.is_set():
            print(f"error: {', '.join(failed)} ended early; see log.txt in {self._folder}", file=sys.stderr)
        return not failed and not self._stop.is_set()

    def _interrupt(self, *_) -> None:
        self._stop.set()
        for process in list(self._processes.values()):
            process.send_signal(signal.SIGINT)  # it saves, and goes on from there next time

    def _train(self, run: Run) -> bool:
        """Trains one run, and stores its returns, unless longer ones are stored; returns whether it came to its end."""
        logdir = self._folder / run.name
        logdir.mkdir(parents=True, exist_ok=True)
        seconds = logdir / "seconds.txt"  # one line each time that it went on
        command = [sys.executable, str(HERE.parent / "dreamer.py"), *run.command, "--device", self._device, "--logdir", str(logdir / "run")]
        command += self._begin(run, logdir)
        start = time.time()
        with open(logdir / "log.txt", "a") as log:
            # A process group of its own, so that Ctrl-C in a terminal reaches it once, from here.
            process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True)
            self._processes[run.name] = process
            if self._stop.is_set():  # since the run was taken up
                process.send_signal(signal.SIGINT)
            process.wait()
            del self._processes[run.name]
        with open(seconds, "a") as file:
            file.write(f"{time.time() - start:.0f}\n")
        returns = read_returns(logdir / "run", run.config)
        ((_, points),) = returns.items()
        if not points:
            return False
        frames = int(checkpoints.load(logdir / "run")["step"])
        if frames > stored_frames(self._experiment, run):
            about = {"task": run.task, "variant": run.variant, "seed": run.seed, "command": f"python dreamer.py {' '.join(run.command)}"}
            about |= {"hours": round(sum(map(int, seconds.read_text().split())) / 3600, 2), "settings": results.differing(run.config)}
            machine = f"{platform.machine()}, {os.cpu_count()} cores, one thread a run"
            machine += "" if self._device == "cpu" else f", {tools.describe_device(self._device)}"
            results.store(self._experiment, run.name, {**about, "frames": frames, **returns, "machine": machine})
        print(f"{run.name}: {points[-1][1]:.1f} after {frames:,} of {run.frames:,} frames", flush=True)
        return is_done(self._experiment, run)

    def _begin(self, run: Run, logdir: pathlib.Path) -> list[str]:
        """Flags for a run that begins with what is kept of another agent.

        Raises:
            ValueError: if that agent is not trained to its end.
        """
        if not run.origin or (logdir / "run" / "latest.pt").exists():
            return []
        origin = logdir.parent / run.origin / "run"
        if not (origin / "latest.pt").exists() or checkpoints.load(origin)["step"] < settings.read_yaml(origin / "config.yaml")["steps"]:
            raise ValueError(f"it begins with the agent of {run.origin}, which is not trained to its end; give the same command again")
        checkpoints.save(logdir / "origin.pt", kept(origin, run.keep, run.seed))
        return ["--from_checkpoint", str(logdir / "origin.pt")]


def kept(origin: pathlib.Path, keep: str, seed: int) -> dict:
    """A checkpoint that a run of another task begins with, without episodes, at frame 0.

    Args:
        origin: folder of the run that it comes from.
        keep: "all"; or "top": the encoder, the recurrence and the top level, or the only one. The rest is new, as is the optimizer.
        seed: of what is new.
    Raises:
        ValueError: for another `keep`.
    """
    agent, checkpoint = read_agent(origin, "cpu")
    if keep == "all":
        return {**checkpoint, "step": 0}
    if keep != "top":
        raise ValueError(f"keep is {keep!r}; allowed are 'all' and 'top'")
    tools.set_seed(seed)
    fresh = Dreamer(agent.obs_space, agent.act_space, agent._config)
    below = ("bottom", "_top_summary", "_top_to_", "_prior_weight")  # the bottom level, and how it depends on the top
    weights = fresh.state_dict() | {
        name: tensor
        for name, tensor in agent.state_dict().items()
        if name.startswith(("_wm.encoder.", "_wm.dynamics.")) and not any(part in name for part in below)
    }
    return {**checkpoint, **fresh.checkpoint(), "agent_state_dict": weights, "step": 0, "updates": 0}


def read_returns(logdir: pathlib.Path, config: settings.Config) -> dict[str, list[tuple[int, float]]]:
    """Returns of a run as lists of (frames, return) in order.

    Returns:
        "evaluations", means of evaluation episodes, if the run has them, else "training", the episodes of its only environment
        but those that were cut off because the run was stopped.
    """
    found = curves.read(logdir).curves
    if config.eval_every:
        points = zip(*found["eval/return"]) if "eval/return" in found else []
        return {"evaluations": [(int(frame), round(float(value), 3)) for frame, value in points]}
    cut_at = found["cut_off/return"].steps if "cut_off/return" in found else []
    training, frames, lengths = [], 0, stored_steps(logdir / "train_eps")
    for _, parts in itertools.groupby(lengths, key=id_of):  # a long episode has several files
        reward = 0.0
        for name in parts:
            frames += config.action_repeat * lengths[name]
            reward += float(load_episode(logdir / "train_eps" / name, ["reward"])["reward"].sum())
        if frames not in cut_at:
            training.append((frames, round(reward, 3)))
    return {"training": training}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="tasks of the plan; all if none is named")
    parser.add_argument("--plan", type=pathlib.Path, default=PLAN, help="what to run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", help="those of the plan's seeds that are run; all if not given")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, one core each")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:<number> or mps (default: %(default)s)")
    parser.add_argument("--folder", type=pathlib.Path, help="where the runs are (default: logdir/ and the plan's `results`)")
    options = parser.parse_args()
    plan = load_plan(options.plan)
    experiment, tasks = plan["results"], results.chosen(parser, options.tasks, list(plan["tasks"]))
    for task in tasks:
        play_randomly(experiment, task, plan["tasks"][task])
    runs, folder = planned_runs(plan, tasks, options.seeds), options.folder or pathlib.Path("logdir") / experiment
    sys.exit(0 if Trainer(experiment, folder, options.device).train(runs, options.jobs) else 1)


if __name__ == "__main__":
    main()
