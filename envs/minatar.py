"""MinAtar (Young and Tian 2019): `--task minatar_<game>`, Atari games on a grid of 10 x 10 cells.

Observations have one flag per cell and kind of object.
"""

import functools

import gymnasium

from envs.gym import ActionRepeat, vectorize
from settings import unknown

GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")


def make(name: str, count: int, config):
    """Builds environments of a game, with sticky actions and rising difficulty.

    The actions are those that the game uses, as in MinAtar's -v1 environments.

    Args:
        name: one of `GAMES`.
        count: number of environments.
        config: the settings, see configs.yaml.
    Raises:
        ValueError: for an unknown game.
    """
    if name not in GAMES:
        raise ValueError(unknown("task", f"minatar_{name}", [f"minatar_{game}" for game in GAMES]))
    import minatar.gym  # noqa: F401 -- reports a missing package here, not in a worker

    return vectorize(functools.partial(_make_one, name, config.action_repeat), count, config)


def _make_one(name: str, repeat: int) -> gymnasium.Env:
    from minatar.gym import BaseEnv

    env = BaseEnv(name, use_minimal_action_set=True)
    return ActionRepeat(env, repeat) if repeat > 1 else env
