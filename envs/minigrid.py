"""MiniGrid and BabyAI: `--task minigrid_<id>`, for example minigrid_DoorKey-5x5-v0 or minigrid_BabyAI-GoToLocal-v0.

The prefix "MiniGrid-" of an id is left out.
"""

import contextlib
import functools
import io
import math

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.gym import ActionRepeat, vectorize
from envs.spaces import STATE_PREFIX
from settings import unknown

# All words of missions. Trained agents depend on their order, so append new words at the end.
WORDS = (
    *"red green blue yellow purple grey".split(),
    *"object box key ball door goal wall floor lava square opening hallway maze room rooms end".split(),
    *"go get reach find fetch pick put use open unlock avoid traverse".split(),
    *"the a you your to up at of from in on and then after , near next matching must behind front left right".split(),
)
WORD_BITS = len(WORDS).bit_length()
MISSION_LENGTH = 72  # words; BabyAI's longest missions join four clauses
KINDS = ("goal", "door", "key", "ball", "box", "lava")  # of objects in the state
STATE = {"pose": 4, "motion": 2, "carrying": 1, **dict.fromkeys(KINDS, 3)}  # how many numbers each part of the state has


def make(name: str, count: int, config):
    """Builds environments of a gymnasium id.

    Args:
        name: the id, without its prefix "MiniGrid-".
        count: number of environments.
        config: the settings, see configs.yaml.
    Raises:
        ValueError: for an unknown id.
    """
    import minigrid  # noqa: F401 -- registers the ids

    ids = {
        spec.removeprefix("MiniGrid-"): spec
        for spec in gymnasium.registry
        if spec.startswith(("MiniGrid-", "BabyAI-")) and not spec.startswith("MiniGrid-WFC-")
    }
    if name.startswith("WFC-"):
        raise ValueError(f"task 'minigrid_{name}' is not supported: the package minigrid lacks the patterns that generate WFC levels")
    if name not in ids:
        raise ValueError(unknown("task", f"minigrid_{name}", [f"minigrid_{known}" for known in ids]))
    return vectorize(functools.partial(_make_one, ids[name], config.action_repeat, tuple(config.size)), count, config)


def _make_one(name: str, repeat: int, size: tuple[int, int]) -> gymnasium.Env:
    import minigrid  # noqa: F401 -- registers the ids in a spawned worker

    env = View(gymnasium.make(name, disable_env_checker=True), size)
    return ActionRepeat(env, repeat) if repeat > 1 else env


class View(gymnasium.Wrapper):
    """Observations are `image`, the agent's view as pixels, its `direction`, and its `mission`, see `encode_mission`.

    For probes there is the state, float32 vectors whose keys begin with `log_state_`, in cells:

    - `pose` (4,): x to the right, y down, cosine and sine of the direction, which is clockwise from the x axis.
    - `motion` (2,): 1 if the last action moved the agent, and its turn, 1 to the right and -1 to the left.
    - `carrying` (1,): 1 if the agent carries an object.
    - each of `KINDS` (3,): how far the nearest one is ahead and to the right, and 1 if the agent sees it. Zeros if the grid has none;
      an object that is carried is not in the grid.

    Args:
        env: a MiniGrid environment.
        size: (H, W) of images after resizing. They are rendered at least as large, so that resizing never enlarges
            them.
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
                **{STATE_PREFIX + name: spaces.Box(-np.inf, np.inf, (numbers,), np.float32) for name, numbers in STATE.items()},
            }
        )

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        with contextlib.redirect_stdout(io.StringIO()):  # BabyAI prints every rejected level
            obs, info = self.env.reset(seed=seed, options=options)
        self._mission, self._before = encode_mission(obs["mission"]), None
        return self._observe(obs), info

    def step(self, action) -> tuple:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._observe(obs), float(reward), terminated, truncated, info

    def _observe(self, obs: dict) -> dict:
        image = self.env.unwrapped.get_frame(tile_size=self._tile, agent_pov=True)
        state = {STATE_PREFIX + name: np.array(numbers, np.float32) for name, numbers in self._state(obs["image"]).items()}
        return {"image": image, "direction": int(obs["direction"]), "mission": self._mission, **state}

    def _state(self, view: np.ndarray) -> dict[str, tuple]:
        """The state by name; `view` is what MiniGrid observes, (columns, rows, 3) with the agent in the middle of the last row."""
        level = self.env.unwrapped
        x, y, cos, sin = map(int, (*level.agent_pos, *level.dir_vec))
        old_x, old_y, old_direction = self._before or (x, y, level.agent_dir)
        self._before = x, y, level.agent_dir
        moved, turn = (x, y) != (old_x, old_y), (level.agent_dir - old_direction + 1) % 4 - 1
        state = {"pose": (x, y, cos, sin), "motion": (moved, turn), "carrying": (level.carrying is not None,)}
        state |= dict.fromkeys(KINDS, (0, 0, 0))
        objects = [(index, cell.type) for index, cell in enumerate(level.grid.grid) if cell and cell.type in KINDS]
        places = [(index % level.width - x, index // level.width - y, kind) for index, kind in objects]
        for dx, dy, kind in sorted(places, key=lambda place: -abs(place[0]) - abs(place[1])):  # the nearest last
            ahead, right = dx * cos + dy * sin, dy * cos - dx * sin
            state[kind] = ahead, right, _is_seen(view, ahead, right)
        return state


def _is_seen(view: np.ndarray, ahead: int, right: int) -> bool:
    """Whether a cell is in the agent's view and not behind walls."""
    column, row = len(view) // 2 + right, len(view) - 1 - ahead
    return 0 <= column < len(view) and 0 <= row < len(view) and view[column, row, 0] != 0  # 0: unseen


def encode_mission(mission: str) -> np.ndarray:
    """Encodes the words of a mission, in order, as binary digits of their positions in `WORDS`, counted from 1.

    One-hot words would take ten times the memory. Counts of words would not distinguish "put the ball next to the box"
    from "put the box next to the ball".

    Returns:
        (MISSION_LENGTH * WORD_BITS,) float32, zero after the last word.
    Raises:
        ValueError: for an unknown word, or for more than `MISSION_LENGTH` words.
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
