"""Records episodes of a policy as .npz files, for example to train on them alone:

    python record.py --task gym_CartPole-v1 --policy random --episodes 20 --out recorded/random
    python record.py logdir/20261129-230605-gym_CartPole-v1 --episodes 20 --out recorded/trained

    RUN                 folder of a run, or a checkpoint in it: a trained agent and its environment; also --logdir RUN
    --out FOLDER        where the files go; files that are there stay
    --policy NAME       random (the default without RUN), sampled (the agent samples actions, the default with RUN),
                        or most_likely (the agent takes the most likely actions)
    --episodes NUMBER   number of episodes
    --steps NUMBER      number of frames instead; the last episode is cut off

All other flags are settings of dreamer.py, such as --seed, --envs, --time_limit, --env_kwargs and --device. The
environments are those for training. With --episodes, eval_time_limit cuts off episodes that do not end.
python dreamer.py --help lists them.
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
    """Writes episodes of a policy into a directory; returns the number of agent steps.

    Args:
        policy: see `collect.Collector`.
        episodes: number of episodes; None to record `steps` agent steps over all environments, and to cut off what is open.
        seed: of the environments.
        sample: whether an agent samples its actions, or takes the most likely ones.
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
    """Records as presets and flags say.

    Raises:
        ValueError: for flags that contradict each other; nothing has been written then.
    """
    flags = dict(flags)
    out, policy, episodes = (flags.pop(name, None) for name in ("out", "policy", "episodes"))
    if not isinstance(out, str):
        raise ValueError("--out is missing; give the folder that episodes are written into")
    if (episodes is None) == ("steps" not in flags):
        raise ValueError("give either --episodes, or --steps (frames)")
    if episodes is not None and not (isinstance(episodes, str) and episodes.isdecimal() and int(episodes)):
        raise ValueError(f"--episodes is {episodes!r}; it must be a whole number, at least 1")
    if "eval_env_kwargs" in flags:
        raise ValueError("--eval_env_kwargs is for evaluations, and record.py uses the environments for training; give --env_kwargs")
    agent, config = _agent_and_settings(presets, flags)
    policy = policy or ("sampled" if agent else "random")
    if policy not in POLICIES or (policy != "random" and not agent):
        raise ValueError(f"--policy is {policy!r}; allowed are random and, with the folder of a run, sampled and most_likely")
    with contextlib.closing(make_envs(config, config.envs, training=True, capped=episodes is not None)) as envs:
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
    """The agent of the run in `logdir` (None without one), and settings: those of the run, then the flags."""
    if "logdir" not in flags:
        return None, settings.load_config(presets, flags)
    if not isinstance(flags["logdir"], str) or not flags["logdir"]:
        raise ValueError(f"--logdir is {flags['logdir']!r}; it must be the folder of one run, or a checkpoint in it")
    if presets:
        raise ValueError("a run brings its own settings; leave --configs out, or leave the run out")
    agent, _ = read_agent(flags["logdir"], flags.get("device", "auto"))
    stored = settings.plain(agent._config)
    config = settings.load_config(overrides={"seed": 0, "envs": 1, **flags}, stored=stored)
    check_modules(config, modules_of(str(flags.get("task", "")), flags.get("import")))
    return agent, config


if __name__ == "__main__":
    sys.exit(main())
