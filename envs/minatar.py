"""MinAtar (Young and Tian 2019): `--task minatar_<game>`, Atari games on a grid of 10 x 10 cells.

Observations have one flag per cell and kind of object.
"""

import functools

import gymnasium
import numpy as np

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


def _make_one(name: str, repeat: int, **render_mode: str) -> gymnasium.Env:
    from minatar.gym import BaseEnv

    env = BytePixels(BaseEnv(name, use_minimal_action_set=True, **render_mode))
    return ActionRepeat(env, repeat) if repeat > 1 else env


class BytePixels(gymnasium.Wrapper):
    """Renders as uint8, with CELL x CELL pixels for each cell. The game itself renders one float in [0, 1] per cell and color."""

    CELL = 16

    def render(self) -> np.ndarray:
        cells = np.uint8(255 * np.asarray(self.env.render()))  # (10, 10, 3)
        return cells.repeat(self.CELL, 0).repeat(self.CELL, 1)
