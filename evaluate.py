"""Plays episodes with a trained agent, and films an episode with the world model's reconstructions and predictions:

    python evaluate.py logdir/20261129-230605-gym_CartPole-v1 --episodes 10 --video out.gif
    python evaluate.py pretrained/cartpole --random

The folder of a run, a checkpoint in it, or an agent that comes with the program is all that this needs. In Python:
`dreamer.load_agent`.

Shapes: T steps of an episode, H height, W width.
"""

import argparse
import contextlib
import pathlib
import sys
from typing import NamedTuple

import numpy as np
import torch

import console
from collect import Finished, play_episodes
from dreamer import Dreamer, read_agent
from envs import EnvBatch, check_alike, make_envs
from envs.gym import check_modules
from exploration import Random
from pages.intervals import bootstrap_interval
from play.camera import image_keys
from play.film import FPS, film
from play.playing import add_import_flag, play
from storage import disk, files, gif

ENVS = 5  # that play in parallel


def summarise(episodes: list[Finished]) -> dict[str, dict[str, float | None]]:
    """Mean, 95% interval of the mean (None for few episodes), minimum and maximum of every metric of episodes."""
    found = {}
    for name in episodes[0].metrics:
        values = np.array([episode.metrics[name] for episode in episodes])
        low, high = bootstrap_interval(values) or (None, None)
        row = {"mean": values.mean(), "low": low, "high": high, "least": values.min(), "most": values.max()}
        found[name] = {key: None if value is None else round(float(value), 4) for key, value in row.items()}
    return found


def as_rows(summary: dict[str, dict[str, float | None]]) -> list[tuple[str, str]]:
    """The summary as rows of a table."""
    rows = []
    for name, row in summary.items():
        interval = "" if row["low"] is None else f" (95%: {row['low']:.4g} to {row['high']:.4g})"
        rows.append((name, f"{row['mean']:.4g}{interval}, least {row['least']:.4g}, most {row['most']:.4g}"))
    return rows


def fit(agent: Dreamer, envs: EnvBatch) -> None:
    """Lets an agent act in environments; raises ValueError if `eval_env_kwargs` give these other spaces than it was trained with."""
    config = agent._config
    if config.get("eval_env_kwargs"):
        # An agent that learned from recorded episodes knows no action space of an environment, see `Dreamer.act_in`.
        check_alike(envs, agent.obs_space, envs.act_space if config.offline_traindir else agent.act_space)
    agent.act_in(envs.act_space)


class Evaluation(NamedTuple):
    """Episodes that an agent has played.

    Attributes:
        episodes: of the agent.
        random: of random actions, in the same environments; none if they were not asked for.
        scores: the suite's own scores of the agent, by name.
    """

    episodes: list[Finished]
    random: list[Finished]
    scores: dict[str, float]


def evaluate(agent: Dreamer, count: int, episodes: int, seed: int, sample: bool, against_random: bool = False) -> Evaluation:
    """Plays episodes in `count` environments of the agent's task; if asked for, as many with random actions."""
    with contextlib.closing(make_envs(agent._config, count, training=False)) as envs:
        fit(agent, envs)
        played = play_episodes(agent, envs, episodes, seed, sample=sample)
        random = play_episodes(Random(agent.codec, seed), envs, episodes, seed) if against_random else []
        return Evaluation(played, random, envs.scores([episode.sums for episode in played]))


def record_video(agent: Dreamer, path: pathlib.Path, steps: int, seed: int, sample: bool) -> int:
    """Films one episode, or its first steps; returns how many."""
    with contextlib.closing(make_envs(agent._config, 1, training=False)) as envs:
        fit(agent, envs)
        render = not image_keys(envs.obs_space)  # images that the agent observes are in the film already
        data = play(agent, envs, steps, seed, sample=sample, one_episode=True, render=render)
    frames = film(agent._wm, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gif.encode_gif(frames, FPS))
    return len(frames)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options of a command line; ends the program for those that make no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", metavar="RUN", help="folder of a run, a checkpoint file, or pretrained/NAME")
    parser.add_argument("--logdir", metavar="RUN", help="the same as a flag")
    parser.add_argument("--episodes", type=int, default=10, help="number to play; 0 for the video alone (default: %(default)s)")
    parser.add_argument("--envs", type=int, default=ENVS, help="environments that play them in parallel (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of environments and actions (default: %(default)s)")
    sampled = "sample actions, or take the most likely ones (default: as the run's evaluations do, eval_sample)"
    parser.add_argument("--sample", action=argparse.BooleanOptionalAction, help=sampled)
    against = "also play as many episodes with random actions, to compare with"
    parser.add_argument("--random", action="store_true", help=against)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:<number> or mps (default: %(default)s)")
    add_import_flag(parser)
    kwargs_help = "dict of keyword arguments for the environment, added to env_kwargs (default: the run's eval_env_kwargs)"
    parser.add_argument("--eval_env_kwargs", metavar="DICT", help=kwargs_help)
    film_help = "film one more episode: the environment, reconstructions and open-loop predictions"
    parser.add_argument("--video", type=pathlib.Path, metavar="FILE.gif", help=film_help)
    parser.add_argument("--video_steps", type=int, default=300, help="agent steps that are filmed at most (default: %(default)s)")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE.json", help="write every episode and the summary")
    options = parser.parse_args(argv)
    if bool(options.run) == bool(options.logdir):
        parser.error("give the folder of one run, or a checkpoint file: python evaluate.py RUN")
    options.run = options.run or options.logdir
    if options.episodes < 0 or options.envs < 1 or options.video_steps < 2 or not 0 <= options.seed < 2**31:
        parser.error("--episodes must be at least 0, --envs at least 1, --video_steps at least 2, --seed from 0 to 2147483647")
    if options.video and options.video.suffix.lower() != ".gif":
        parser.error(f"--video is {str(options.video)!r}; it must end with .gif")
    if not options.episodes and (options.json or options.random):
        flag, does = ("--json", "writes the episodes") if options.json else ("--random", "plays as many episodes")
        parser.error(f"{flag} {does}, and --episodes is 0; leave out one of them")
    for flag, path in (("--json", options.json), ("--video", options.video)):
        if path and not disk.can_be_written(path):
            parser.error(f"{flag} is {str(path)!r}, which cannot be written; give another file")
    return options


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for what the user can put right."""
    options = parse(argv)
    try:
        run(options)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. The finished episodes are not reported: they are the short ones, which would bias the mean.", file=sys.stderr)
        return 130
    return 0


def report(found: Evaluation, about: dict, path: pathlib.Path | None) -> None:
    """Prints what was measured, and writes it as JSON if there is a path.

    Args:
        about: the agent and how it was evaluated.
    """
    summary = summarise(found.episodes)
    # An agent that learned from recorded episodes has collected no frames.
    when = f"frame {about['frame']:,}" if about["frame"] else f"update {about['updates']:,}"
    rows = as_rows(summary) + [(name, f"{score:.4g}") for name, score in found.scores.items()]
    console.say(console.table(f"{about['task']} at {when}, {len(found.episodes)} episodes", rows))
    random = {"random": summarise(found.random)} if found.random else {}
    if random:
        console.say(console.table(f"Random actions, {len(found.random)} episodes", as_rows(random["random"])))
    if path:
        written = {**about, "summary": summary, "scores": found.scores, "episodes": [episode.metrics for episode in found.episodes]}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files.json_text({**written, **random}, indent=1) + "\n")


def run(options: argparse.Namespace) -> None:
    """Plays, prints and films as the options say."""
    agent, checkpoint = read_agent(options.run, options.device)
    check_modules(agent._config, options.modules)
    if options.eval_env_kwargs is not None:
        if "eval_env_kwargs" not in agent._config:
            raise ValueError(f"--eval_env_kwargs is for tasks of the suite gym, and the task is {agent._config.task}; leave it out")
        agent._config.eval_env_kwargs = options.eval_env_kwargs
    sample = agent._config.eval_sample if options.sample is None else options.sample
    about = {
        "task": agent._config.task,
        "frame": int(checkpoint.get("step", 0)),
        "updates": agent.updates,
        "parameters": sum(agent.parameter_counts().values()),
        "seed": options.seed,
        "sample": sample,
    }
    if options.episodes:
        torch.manual_seed(options.seed)
        found = evaluate(agent, min(options.envs, options.episodes), options.episodes, options.seed, sample, options.random)
        report(found, about, options.json)
    if options.video:
        steps = record_video(agent, options.video, options.video_steps, options.seed, sample)
        console.say(f"{options.video}: {steps} steps")


if __name__ == "__main__":
    sys.exit(main())
