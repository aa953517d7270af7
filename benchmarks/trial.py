"""What a run of a plan needs beside dreamer.py. `scale/sweep.py` starts it in the job of a run, before and after dreamer.py:

python benchmarks/trial.py begin RUN --plan PLAN --folder FOLDER    # writes the agent that the run begins with, if it is not a new one
python benchmarks/trial.py store RUN --plan PLAN --folder FOLDER    # stores its returns and the frames that they cover
python benchmarks/trial.py random TASK --plan PLAN                  # stores the returns of the random policy
"""

import argparse
import itertools
import os
import pathlib
import platform
import sys

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import checkpoints
import settings
import tools
from benchmarks import results
from pages import curves
from scale.job import INCOMPLETE
from scale.plan import Run, differing, find_run, load_plan, result_path, stored_frames
from storage.episodes import id_of, load_episode, stored_steps

RANDOM_EPISODES = 100


def play_randomly(experiment: str, task: str, planned: dict) -> None:
    """Stores the returns of the random policy."""
    from collect import play_episodes
    from envs import make_envs
    from envs.spaces import ActionCodec
    from exploration import Random

    envs = make_envs(tools.load_config(["defaults", *planned["presets"]], planned["flags"]), 1, training=False)
    try:
        episodes = play_episodes(Random(ActionCodec(envs.act_space), 1), envs, RANDOM_EPISODES, seed=0)  # see tools.policy_seed
    finally:
        envs.close()
    returns = [round(float(episode.sums["return"]), 3) for episode in episodes]
    results.store(experiment, f"{task}-random", {"task": task, "variant": "random", "returns": returns})


def begin(run: Run, folder: pathlib.Path) -> None:
    """Writes origin.pt, with what the run keeps of another agent, unless the run has begun.

    Raises:
        ValueError: if that agent is not trained to its end.
    """
    if (folder / run.name / "run" / "latest.pt").exists():
        return
    origin = folder / run.origin / "run"
    if not (origin / "latest.pt").exists() or checkpoints.load(origin)["step"] < settings.read_yaml(origin / "config.yaml")["steps"]:
        raise ValueError(f"it begins with the agent of {run.origin}, which is not trained to its end; train that in the same folder first")
    checkpoints.save(folder / run.name / "origin.pt", kept(origin, run.keep, run.seed))


def kept(origin: pathlib.Path, keep: str, seed: int) -> dict:
    """A checkpoint that a run of another task begins with, without episodes, at frame 0.

    Args:
        origin: folder of the run that it comes from.
        keep: "all"; or "top": the encoder, the recurrence and the top level, or the only one. The rest is new, as is the optimizer.
        seed: of what is new.
    Raises:
        ValueError: for another `keep`.
    """
    from dreamer import Dreamer, read_agent

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


def store(experiment: str, run: Run, logdir: pathlib.Path, device: str) -> bool:
    """Stores the returns of a run, unless longer ones are stored; returns whether it came to its end.

    Args:
        logdir: its folder, with seconds.txt, one line each time that it went on, and the folder `run` of dreamer.py.
        device: that it was trained on.
    """
    if not (logdir / "run" / "latest.pt").exists():
        return False
    config = run.config
    returns, frames = read_returns(logdir / "run", config), int(checkpoints.load(logdir / "run")["step"])
    ((_, points),) = returns.items()
    if points and frames > stored_frames(result_path(experiment, run.name)):
        about = {"task": run.task, "variant": run.variant, "seed": run.seed, "command": f"python dreamer.py {' '.join(run.command)}"}
        hours = sum(map(int, (logdir / "seconds.txt").read_text().split())) / 3600
        about |= {"hours": round(hours, 2), "settings": differing(config)}
        results.store(experiment, run.name, {**about, "frames": frames, **returns, "machine": _machine(device)})
    return bool(points) and frames >= config.steps


def _machine(device: str) -> str:
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    about = f"{platform.machine()}, {os.cpu_count()} cores, {'one thread' if threads == '1' else f'{threads} threads'} a run"
    return about if device == "cpu" else f"{about}, {tools.describe_device(device)}"


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


def main() -> int:
    """Runs the command line; returns the exit code: 0, 1 for an error, `INCOMPLETE` if a run whose returns are stored is not at its end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("begin", "store", "random"))
    parser.add_argument("name", metavar="NAME", help="a run of the plan, or a task")
    parser.add_argument("--plan", type=pathlib.Path, required=True)
    parser.add_argument("--folder", type=pathlib.Path, help="where the runs are")
    parser.add_argument("--device", default="cpu", help="of the run (default: %(default)s)")
    options = parser.parse_args()
    plan = load_plan(options.plan)
    try:
        if options.what == "random":
            play_randomly(plan["results"], options.name, plan["tasks"][options.name])
        elif options.what == "begin":
            begin(find_run(plan, options.name), options.folder)
        elif not store(plan["results"], find_run(plan, options.name), options.folder / options.name, options.device):
            return INCOMPLETE
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
