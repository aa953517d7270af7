"""MinAtar (Young and Tian 2019): `--task minatar_<game>`, Atari games on 10 x 10 cells, seen as one flag per cell and kind of object."""

import functools

import gymnasium

from envs.gym import ActionRepeat, vectorize
from settings import unknown

GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")


def make(name: str, count: int, config):
    """`count` environments of a game, with its own actions alone (as in MinAtar's -v1), sticky actions and rising difficulty.

    Raises:
        ValueError: for an unknown game.
    """
    if name not in GAMES:
        raise ValueError(unknown("task", f"minatar_{name}", [f"minatar_{game}" for game in GAMES]))
    import minatar.gym  # noqa: F401 -- a missing package shows here, not in a worker

    return vectorize(functools.partial(_make_one, name, config.action_repeat), count, config)


def _make_one(name: str, repeat: int) -> gymnasium.Env:
    from minatar.gym import BaseEnv

    env = BaseEnv(name, use_minimal_action_set=True)
    return ActionRepeat(env, repeat) if repeat > 1 else env
