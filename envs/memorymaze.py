"""Memory Maze: `--task memorymaze_<size>` with size 9x9, 11x11, 13x13 or 15x15."""

import functools

from envs.dmc import DmEnv, choose_renderer
from envs.gym import vectorize
from settings import unknown

SIZES = ("9x9", "11x11", "13x13", "15x15")


def make(name: str, count: int, config):
    """`count` environments of a maze.

    Raises:
        ValueError: for an unknown size.
    """
    if name not in SIZES:
        raise ValueError(unknown("task", f"memorymaze_{name}", [f"memorymaze_{size}" for size in SIZES]))
    choose_renderer(required=True)
    import memory_maze  # noqa: F401 -- a missing package shows here, not in a worker

    # A maze draws as soon as it is built, and an open renderer would not survive a fork.
    return vectorize(functools.partial(_make_one, name, config.action_repeat), count, config, start="spawn")


def _make_one(name: str, repeat: int) -> DmEnv:
    from memory_maze import tasks

    def make_env(seed: int | None):
        return getattr(tasks, f"memory_maze_{name}")(seed=seed, image_only_obs=True)

    return DmEnv(make_env, repeat)
