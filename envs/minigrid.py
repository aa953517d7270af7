"""MiniGrid and BabyAI: `--task minigrid_<id without MiniGrid->`, for example minigrid_DoorKey-5x5-v0 or minigrid_BabyAI-GoToLocal-v0."""

import contextlib
import functools
import io
import math

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.gym import ActionRepeat, vectorize
from settings import unknown

# Every word of a mission. Trained agents depend on their order: new ones go to the end.
WORDS = (
    *"red green blue yellow purple grey".split(),
    *"object box key ball door goal wall floor lava square opening hallway maze room rooms end".split(),
    *"go get reach find fetch pick put use open unlock avoid traverse".split(),
    *"the a you your to up at of from in on and then after , near next matching must behind front left right".split(),
)
WORD_BITS = len(WORDS).bit_length()
MISSION_LENGTH = 72  # words: two times two of BabyAI's longest clauses, joined


def make(name: str, count: int, config):
    """`count` environments of an id.

    Raises:
        ValueError: for an unknown id.
    """
    import minigrid  # noqa: F401 -- registers the ids

    # The package comes without the patterns that its WFC levels are generated from.
    ids = {
        spec.removeprefix("MiniGrid-"): spec
        for spec in gymnasium.registry
        if spec.startswith(("MiniGrid-", "BabyAI-")) and not spec.startswith("MiniGrid-WFC-")
    }
    if name not in ids:
        raise ValueError(unknown("task", f"minigrid_{name}", [f"minigrid_{known}" for known in ids]))
    return vectorize(functools.partial(_make_one, ids[name], config.action_repeat, tuple(config.size)), count, config)


def _make_one(name: str, repeat: int, size: tuple[int, int]) -> gymnasium.Env:
    import minigrid  # noqa: F401 -- in a worker that knows no ids yet

    env = View(gymnasium.make(name, disable_env_checker=True), size)
    return ActionRepeat(env, repeat) if repeat > 1 else env


class View(gymnasium.Wrapper):
    """What the agent sees drawn as an image, with its `direction`, and its `mission` as numbers, see `encode_mission`.

    Args:
        env: a MiniGrid environment.
        size: (H, W) that images have in the end; they are drawn at least as large, so that they are never enlarged.
    """

    def __init__(self, env: gymnasium.Env, size: tuple[int, int]):
        super().__init__(env)
        cells = env.observation_space["image"].shape[0]
        self._tile = math.ceil(max(size) / cells)
        side = cells * self._tile
        self.observation_space = spaces.Dict(
            {
                "image": spaces.Box(0, 255, (side, side, 3), np.uint8),
                "direction": spaces.Discrete(4),
                "mission": spaces.Box(0.0, 1.0, (MISSION_LENGTH * WORD_BITS,), np.float32),
            }
        )

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        with contextlib.redirect_stdout(io.StringIO()):  # BabyAI prints every level that it discards
            obs, info = self.env.reset(seed=seed, options=options)
        self._mission = encode_mission(obs["mission"])
        return self._observe(obs), info

    def step(self, action) -> tuple:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._observe(obs), float(reward), terminated, truncated, info

    def _observe(self, obs: dict) -> dict:
        image = self.env.unwrapped.get_frame(tile_size=self._tile, agent_pov=True)
        return {"image": image, "direction": int(obs["direction"]), "mission": self._mission}


def encode_mission(mission: str) -> np.ndarray:
    """A mission's words in their order, each as the binary digits of its place among WORDS, counted from 1; zeros follow the last.

    One-hot words would take ten times the memory, and a count of words would not tell "put the ball next to the box" from the reverse.

    Raises:
        ValueError: for a word that is unknown, or too many words.
    """
    words = mission.replace(",", " , ").split()
    if strange := [word for word in words if word not in WORDS]:
        raise ValueError(f"the mission {mission!r} has the unknown words {', '.join(strange)}; add them to WORDS in envs/minigrid.py")
    if len(words) > MISSION_LENGTH:
        raise ValueError(
            f"the mission {mission!r} has {len(words)} words; at most {MISSION_LENGTH} are allowed, the number "
            "MISSION_LENGTH in envs/minigrid.py"
        )
    bits = np.zeros((MISSION_LENGTH, WORD_BITS), np.float32)
    for row, word in zip(bits, words):
        row[:] = [(WORDS.index(word) + 1) >> bit & 1 for bit in range(WORD_BITS)]
    return bits.reshape(-1)
