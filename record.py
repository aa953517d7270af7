"""Records episodes of a policy into a folder, as the files that training writes, for example to learn from them alone:

    python record.py --task gym_CartPole-v1 --policy random --episodes 20 --out recorded/random
    python record.py --logdir logdir/20261128-002237-gym_CartPole-v1 --episodes 20 --out recorded/trained

    --out FOLDER        where episodes are written, beside those that are there
    --policy NAME       random (the default), or with --logdir: sampled actions (the default), most_likely ones, or random
    --logdir RUN        folder of a run, or a checkpoint in it, whose agent and environment these are
    --episodes NUMBER   how many are recorded
    --steps NUMBER      how many frames are recorded, in place of --episodes; the last episode is cut off

All else are dreamer.py's settings, such as --seed, --envs, --time_limit and --device; python dreamer.py --help lists them.
"""

import contextlib
import pathlib
import sys

import console
import exploration
import settings
import tools
from collect import Collector, play_episodes
from dreamer import read_agent
from envs import EnvBatch, make_envs
from envs.gym import check_modules, modules_of
from envs.spaces import ActionCodec

POLICIES = ("random", "sampled", "most_likely")


def record(
    policy,
    envs: EnvBatch,
    directory: pathlib.Path,
    *,
    episodes: int | None = None,
    steps: int | None = None,
    seed: int,
    sample: bool = True,
) -> int:
    """Writes episodes of a policy, see `collect.Collector`, into a directory; returns the agent steps that were taken.

    Args:
        episodes: how many; None to record `steps` agent steps, of all environments together, and cut off what is open then.
        seed: of the environments.
        sample: lets an agent sample its actions.
    """
    if episodes is not None:
        return sum(episode.length for episode in play_episodes(policy, envs, episodes, seed, sample=sample, directory=directory))
    collector, taken = Collector(envs, directory=directory, seed=seed, training=sample), 0
    with console.Progress("record", steps, "steps") as progress:
        while taken < steps:
            taken += collector.step(policy)[0]
            progress.update(taken)
    collector.close_episodes()
    return taken


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for what the user can put right."""
    argv = sys.argv[1:] if argv is None else argv
    if "--help" in argv or "-h" in argv:
        print(__doc__)
        return 0
    try:
        run(*settings.parse_flags(argv))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped; the episodes that had ended are recorded.", file=sys.stderr)
        return 130
    return 0


def run(presets: list[str], flags: dict) -> None:
    """Does what the command line asks for.

    Raises:
        ValueError: for flags that make no sense; then nothing is written.
    """
    flags = dict(flags)
    out, policy, episodes = (flags.pop(name, None) for name in ("out", "policy", "episodes"))
    if not isinstance(out, str):
        raise ValueError("--out is missing; give the folder that episodes are written into")
    if (episodes is None) == ("steps" not in flags):
        raise ValueError("give either --episodes, or --steps (frames)")
    if episodes is not None and not (isinstance(episodes, str) and episodes.isdecimal() and int(episodes)):
        raise ValueError(f"--episodes is {episodes!r}; it must be a whole number, at least 1")
    agent, config = _agent_and_settings(presets, flags)
    policy = policy or ("sampled" if agent else "random")
    if policy not in POLICIES or (policy != "random" and not agent):
        raise ValueError(
            f"--policy is {policy!r}; allowed are random, and with --logdir, which names a trained agent, sampled and most_likely"
        )
    with contextlib.closing(make_envs(config, config.envs, training=True)) as envs:
        if agent:
            agent.act_in(envs.act_space)
        tools.set_seed(config.seed)
        randomly = exploration.Random(ActionCodec(envs.act_space), tools.policy_seed(config.seed, 0))
        taken = record(
            randomly if policy == "random" else agent,
            envs,
            pathlib.Path(out).expanduser(),
            episodes=None if episodes is None else int(episodes),
            steps=-(-config.steps // config.action_repeat),
            seed=tools.train_seed(config.seed, 0),
            sample=policy != "most_likely",
        )
    console.say(f"{out}: {taken:,} steps of {config.task} more, actions {policy}")


def _agent_and_settings(presets: list[str], flags: dict) -> tuple:
    """The agent of --logdir, None if there is none; and settings: those of its run, if any, and the flags."""
    if not flags.get("logdir"):
        return None, settings.load_config(presets, flags)
    if presets != ["defaults"]:
        raise ValueError("with --logdir the settings of that run hold; leave --configs out")
    agent, _ = read_agent(flags["logdir"], flags.get("device", "auto"))
    stored = settings.flatten(settings.plain(agent._config))
    config = settings.load_config(overrides={**stored, "seed": 0, "envs": 1, **flags})
    check_modules(config, modules_of(str(flags.get("task", "")), flags.get("import")))
    return agent, config


if __name__ == "__main__":
    sys.exit(main())
