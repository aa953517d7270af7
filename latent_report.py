"""Measures what each level of a trained agent's latent encodes, and writes a page with figures:

    python latent_report.py logdir/20261129-230605-gym_CartPole-v1

The agent plays with sampled actions. The folder of the run gets latents/index.html, its figures and
latents/report.json; for an agent that comes with the program (pretrained/NAME) the folder is logdir/pretrained/NAME.
docs/latents.md says how to read them. It works for flat agents too.

Shapes: N environments, T steps.
"""

import argparse
import contextlib
import pathlib
import sys
from collections.abc import Collection

import torch

import checkpoints
import console
from dreamer import Dreamer, read_agent
from envs import EnvBatch, atari, make_envs
from envs.gym import check_modules
from pages import run_page
from play.measures import BEFORE, HORIZON, UNTRAINED, measure
from play.playing import add_import_flag, play
from play.report import draw, page
from storage import files


def make_player(logdir: pathlib.Path, count: int, device: str, modules: Collection[str] = ()) -> tuple[Dreamer, EnvBatch, dict]:
    """The agent of a run, `count` environments of its task, and its checkpoint.

    Args:
        modules: modules that may be imported for the environment.
    Raises:
        ValueError: if the folder holds no trained agent, or its environment needs another module.
    """
    agent, checkpoint = read_agent(logdir, device)
    config = agent._config
    check_modules(config, modules)
    suite, _, name = config.task.partition("_")
    envs = EnvBatch(atari.make_with_memory(name, count, config)) if suite == "atari" else make_envs(config, count, training=False)
    return agent, envs, checkpoint


def untrained_networks(agent: Dreamer, seed: int) -> list[Dreamer]:
    """Agents of the same settings that have learned nothing, to compare probes with."""
    torch.manual_seed(seed)
    return [Dreamer(agent.obs_space, agent.act_space, agent._config) for _ in range(UNTRAINED)]


def write_report(logdir: pathlib.Path, envs: int, steps: int, seed: int, device: str, modules: Collection[str] = ()) -> pathlib.Path:
    """Measures the agent of a run and writes the report into its folder, see `checkpoints.report_folder`; returns the path of the page.

    Args:
        logdir: the folder, a checkpoint in it, or pretrained/NAME.
        envs: number of environments.
        steps: agent steps over all environments.
        modules: modules that may be imported for the environment.
    Raises:
        ValueError: if there is no trained agent, its environment needs another module, or there are too few steps.
    """
    agent, players, checkpoint = make_player(logdir, envs, device, modules)
    config = agent._config
    with contextlib.closing(players):
        folder = checkpoints.report_folder(logdir) / "latents"
        folder.mkdir(parents=True, exist_ok=True)
        data = play(agent, players, steps // envs, seed)
    measured = measure(agent, untrained_networks(agent, seed), data, config.task, seed)
    numbers = measured.numbers
    about = {
        "task": config.task,
        "frame": int(checkpoint.get("step", 0)),
        "updates": int(checkpoint.get("updates", 0)),
        "steps": envs * (steps // envs),
        "episodes": int(data["is_first"].sum()),
        "seed": seed,
    }
    (folder / "report.json").write_text(files.json_text({**about, **numbers}, indent=1) + "\n")
    figures = draw(agent._wm, measured)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=110)
    text = ", ".join(f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}" for key, value in about.items())
    has_run_page = run_page.path_of(folder.parent).exists()
    (folder / "index.html").write_text(page(f"Latents of {logdir}", text, numbers, figures, has_run_page))
    run_page.refresh(folder.parent)  # it links to the report
    for name, level in numbers["levels"].items():
        console.say(f"{name}: " + " ".join(f"{key} {console.number(value)}" for key, value in level.items()))
    return folder / "index.html"


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for what the user can put right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", metavar="RUN", help="folder of a run, a checkpoint in it, or pretrained/NAME")
    parser.add_argument("--logdir", metavar="RUN", help="the same as a flag")
    parser.add_argument("--envs", type=int, default=8, help="environments that play, at least 4 (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4000, help="agent steps, over all environments (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of environments, actions and samples (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:<number> or mps (default: %(default)s)")
    add_import_flag(parser)
    options = parser.parse_args(argv)
    if bool(options.run) == bool(options.logdir):
        parser.error("give the folder of one run, or a checkpoint in it: python latent_report.py RUN")
    logdir = pathlib.Path(options.run or options.logdir)
    if options.envs < 4:
        parser.error(f"--envs is {options.envs}; probes need at least 4 to be fitted and measured in different ones")
    if options.steps < options.envs * (BEFORE + HORIZON + 1):
        parser.error(f"--steps is {options.steps}; {options.envs} environments need at least {options.envs * (BEFORE + HORIZON + 1)}")
    if not 0 <= options.seed < 2**31:
        parser.error(f"--seed is {options.seed}; it must be from 0 to 2147483647")
    try:
        path = write_report(logdir, options.envs, options.steps, options.seed, options.device, options.modules)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped; the report is not finished.", file=sys.stderr)
        return 130
    console.say(f"The report: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
