"""Plays episodes with a trained agent, and films what it sees, what its world model makes of it, and what it dreams:

    python evaluate.py --logdir logdir/20261128-002237-gym_CartPole-v1 --episodes 10 --video out.gif

Needs nothing but the folder of a run, or a checkpoint in it. In Python: `agents.load_agent`.

Shapes: T steps of an episode, H height, W width.
"""

import argparse
import contextlib
import json
import pathlib
import sys
from collections.abc import Iterator

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

import console
import tools
from agents import Data, add_import_flag, check_modules, decode, observe, play, read_agent, seen
from collect import Finished, play_episodes
from dreamer import Dreamer
from envs import make_envs
from models import WorldModel
from networks import State
from pages.intervals import bootstrap_interval
from storage import disk

ENVS = 5  # play at the same time
DREAM = 50  # steps from one look at what is seen to the next
FPS = 15
SIDE, MARGIN, BAND = 192, 4, 20  # pixels: images are enlarged to about this side; between them; for their titles
DRAWN_NUMBERS = 6  # of a vector, at most


# Returns


def summarise(episodes: list[Finished]) -> dict[str, dict[str, float]]:
    """Mean, its 95% interval, least and most of everything that is summed over an episode."""
    found = {}
    for name in episodes[0].metrics:
        values = np.array([episode.metrics[name] for episode in episodes])
        low, high = bootstrap_interval(values)
        found[name] = {"mean": values.mean(), "low": low, "high": high, "least": values.min(), "most": values.max()}
    return {name: {key: round(float(value), 4) for key, value in row.items()} for name, row in found.items()}


def as_rows(summary: dict[str, dict[str, float]]) -> list[tuple[str, str]]:
    """The summary as rows of a table."""
    return [
        (name, "{mean:.4g} (95%: {low:.4g} to {high:.4g}), least {least:.4g}, most {most:.4g}".format(**row))
        for name, row in summary.items()
    ]


# Videos


def film(model: WorldModel, data: Data) -> np.ndarray:
    """What was seen in an episode, its reconstruction, and dreams beside it, as frames (T, H, W, 3) in [0, 1].

    A dream knows what was seen at its first step and only the actions after it; a new one begins every DREAM steps.

    Args:
        data: arrays (1, T, ...) from `agents.play`.
    """
    post, _ = observe(model, data)
    reconstruction, dream = decode(model, post), decode(model, dream_along(model, data, post))
    views = {"seen": seen(data, reconstruction), "reconstruction": reconstruction, "dream": dream}
    views = {title: {key: value[0] for key, value in view.items()} for title, view in views.items()}
    images = model.heads["decoder"].image_keys
    return np.stack(list(image_frames(views, images) if images else number_frames(views)))


@torch.no_grad()
def dream_along(model: WorldModel, data: Data, post: State) -> State:
    """States (1, T, ...) of dreams that begin at the posterior of every DREAM-th step and then follow the recorded actions."""
    action, parts = torch.as_tensor(data["action"]), []
    device = model.dynamics.W.device
    for start in range(0, action.shape[1], DREAM):
        parts.append({key: value[:, start : start + 1] for key, value in post.items()})
        ahead = action[:, start + 1 : start + DREAM].to(device)
        if ahead.shape[1]:
            future = model.dynamics.imagine_with_action(ahead, {key: value[:, start].to(device) for key, value in post.items()})
            parts.append({key: value.cpu() for key, value in future.items()})
    return {key: torch.cat([part[key] for part in parts], 1) for key in post}


def image_frames(views: dict[str, dict[str, np.ndarray]], keys: list[str]) -> Iterator[np.ndarray]:
    """Frames with a column for each view and a row for each image."""
    titles = list(views)
    for step in range(len(views["seen"][keys[0]])):
        rows = []
        for key in keys:
            height, width = views["seen"][key].shape[1:3]
            scale = max(1, SIDE // height)
            tiles = [views[title][key][step].clip(0.0, 1.0).repeat(scale, 0).repeat(scale, 1) for title in titles]
            tiles = [tile.repeat(3, -1) if tile.shape[-1] == 1 else tile[..., :3] for tile in tiles]
            rows.append(np.concatenate([np.pad(tile, ((MARGIN, 0), (0, MARGIN), (0, 0))) for tile in tiles], 1))
        widest = max(row.shape[1] for row in rows)
        picture = np.concatenate([np.pad(row, ((0, 0), (0, widest - row.shape[1]), (0, 0))) for row in rows])
        band = Image.new("RGB", (widest, BAND))
        for column, title in enumerate(titles):
            text = f"{title}, {step % DREAM} steps ahead" if title == "dream" else title
            ImageDraw.Draw(band).text((column * width * scale + 2 * MARGIN, MARGIN), text, fill="white")
        yield np.concatenate([np.asarray(band) / 255.0, picture])


def number_frames(views: dict[str, dict[str, np.ndarray]]) -> Iterator[np.ndarray]:
    """Frames of curves that grow: the first few numbers of every vector, in each view."""
    names = [(key, index) for key, value in views["seen"].items() for index in range(value.shape[-1])][:DRAWN_NUMBERS]
    steps = len(views["seen"][names[0][0]])
    figure = Figure((7.2, 1.3 * len(names) + 0.4), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    styles = {
        "seen": dict(color="0.6", linewidth=3.5),
        "reconstruction": dict(color="C0", linewidth=1.5),
        "dream": dict(color="C1", linewidth=1.5),
    }
    lines = []
    for axes, (key, index) in zip(figure.subplots(len(names), sharex=True, squeeze=False)[:, 0], names):
        curves = {title: views[title][key][:, index] for title in styles}
        axes.set(ylabel=f"{key}[{index}]", xlim=(0, max(1, steps - 1)))
        axes.update_datalim(np.stack([np.tile(np.arange(steps), len(curves)), np.concatenate(list(curves.values()))], 1))
        axes.autoscale_view(scalex=False)
        for start in range(DREAM, steps, DREAM):
            axes.axvline(start, color="0.9", linewidth=1, zorder=0)
        lines += [(axes.plot([], [], label=title, **styles[title])[0], curve) for title, curve in curves.items()]
    figure.axes[-1].set_xlabel(f"step; a dream begins every {DREAM}")
    figure.legend(handles=[line for line, _ in lines[: len(styles)]], loc="outside upper right", ncols=len(styles))
    for step in range(steps):
        for line, curve in lines:
            line.set_data(np.arange(step + 1), curve[: step + 1])
        canvas.draw()
        yield np.asarray(canvas.buffer_rgba())[..., :3] / 255.0


# The command


def evaluate(agent: Dreamer, count: int, episodes: int, seed: int, sample: bool) -> tuple[list[Finished], dict[str, float]]:
    """Plays episodes in `count` environments of the task that the agent was trained on; the suite's own scores of them come along."""
    with contextlib.closing(make_envs(agent._config, count, training=False)) as envs:
        agent.act_in(envs.act_space)
        played = play_episodes(agent, envs, episodes, seed, sample=sample)
        return played, envs.scores([episode.sums for episode in played])


def record_video(agent: Dreamer, path: pathlib.Path, steps: int, seed: int, sample: bool) -> int:
    """Films one episode, or its first steps; returns how many."""
    with contextlib.closing(make_envs(agent._config, 1, training=False)) as envs:
        data = play(agent, envs, steps, seed, sample=sample, one_episode=True)
    frames = film(agent._wm, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tools.encode_gif(frames, FPS))
    return len(frames)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for what the user can put right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logdir", required=True, metavar="RUN", help="folder of a run, or a checkpoint file")
    parser.add_argument("--episodes", type=int, default=10, help="how many are played; 0 for the video alone (default: %(default)s)")
    parser.add_argument("--envs", type=int, default=ENVS, help="environments that share them (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of environments and actions (default: %(default)s)")
    sampled = "sample actions, or take the most likely ones (default: as the run's evaluations do, eval_sample)"
    parser.add_argument("--sample", action=argparse.BooleanOptionalAction, help=sampled)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:<number> or mps (default: %(default)s)")
    add_import_flag(parser)
    parser.add_argument("--video", type=pathlib.Path, metavar="FILE.gif", help="film one more episode")
    parser.add_argument("--video_steps", type=int, default=300, help="agent steps that are filmed at most (default: %(default)s)")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE.json", help="write every episode and the summary")
    options = parser.parse_args(argv)
    if options.episodes < 0 or options.envs < 1 or options.video_steps < 2 or not 0 <= options.seed < 2**31:
        parser.error("--episodes must be at least 0, --envs at least 1, --video_steps at least 2, --seed from 0 to 2147483647")
    if options.video and options.video.suffix.lower() != ".gif":
        parser.error(f"--video is {str(options.video)!r}; it must end with .gif")
    if options.json and not options.episodes:
        parser.error("--json writes the episodes, and --episodes is 0; leave out one of them")
    for flag, path in (("--json", options.json), ("--video", options.video)):
        if path and not disk.can_be_written(path):
            parser.error(f"{flag} is {str(path)!r}, which cannot be written; give another file")
    try:
        run(options)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. A part of the episodes is not reported: those that are over first are the short ones.", file=sys.stderr)
        return 130
    return 0


def run(options: argparse.Namespace) -> None:
    """Does what the command line asks for."""
    agent, checkpoint = read_agent(options.logdir, options.device)
    check_modules(agent._config, options.modules)
    sample = agent._config.eval_sample if options.sample is None else options.sample
    about = {
        "task": agent._config.task,
        "frame": int(checkpoint.get("step", 0)),
        "updates": agent.updates,
        "seed": options.seed,
        "sample": sample,
    }
    if options.episodes:
        torch.manual_seed(options.seed)
        episodes, scores = evaluate(agent, min(options.envs, options.episodes), options.episodes, options.seed, sample)
        summary = summarise(episodes)
        # An agent of recorded episodes has collected no frames.
        when = f"frame {about['frame']:,}" if about["frame"] else f"update {about['updates']:,}"
        rows = as_rows(summary) + [(name, f"{score:.4g}") for name, score in scores.items()]
        console.say(console.table(f"{about['task']} at {when}, {len(episodes)} episodes", rows))
        if options.json:
            written = {**about, "summary": summary, "scores": scores, "episodes": [episode.metrics for episode in episodes]}
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(written, indent=1) + "\n")
    if options.video:
        steps = record_video(agent, options.video, options.video_steps, options.seed, sample)
        console.say(f"{options.video}: {steps} steps")


if __name__ == "__main__":
    sys.exit(main())
