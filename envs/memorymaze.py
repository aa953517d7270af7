"""Memory Maze: `--task memorymaze_<size>` with size 9x9, 11x11, 13x13 or 15x15."""

import functools

from envs.dmc import DmEnv, choose_renderer
from envs.gym import vectorize
from settings import unknown

SIZES = ("9x9", "11x11", "13x13", "15x15")


def make(name: str, count: int, config):
    """Builds environments of a maze.

    Args:
        name: size of the maze, one of `SIZES`.
        count: number of environments.
        config: the settings, see configs.yaml.
    Raises:
        ValueError: for an unknown size, or without a library that renders images.
    """
    if name not in SIZES:
        raise ValueError(unknown("task", f"memorymaze_{name}", [f"memorymaze_{size}" for size in SIZES]))
    choose_renderer(required=True)
    import memory_maze  # noqa: F401 -- reports a missing package here, not in a worker

    # A maze renders on construction, and an open renderer does not survive a fork.
    return vectorize(functools.partial(_make_one, name, config.action_repeat), count, config, start="spawn")


def _make_one(name: str, repeat: int) -> DmEnv:
    from memory_maze import tasks

    def make_env(seed: int | None):
        return getattr(tasks, f"memory_maze_{name}")(seed=seed, image_only_obs=True)

    return DmEnv(make_env, repeat)
