"""Atari games in ALE's own vector environment: `--task atari_<game>`, for example atari_pong or atari_ms_pacman."""

import functools

import gymnasium
import numpy as np
from ale_py import ALEInterface, roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium import spaces

from envs.gym import vectorize
from settings import unknown


def make(game: str, count: int, config, training: bool) -> "Atari":
    """Builds environments of an Atari game.

    Args:
        game: name of the game in ALE.
        count: number of environments.
        config: the settings, see configs.yaml.
        training: False ignores lost lives, whatever the setting `lives` says.
    Raises:
        ValueError: for an unknown game, or an unknown value of `lives` or `actions`.
    """
    games = roms.get_all_rom_ids()
    if game not in games:
        raise ValueError(unknown("Atari game", f"atari_{game}", [f"atari_{name}" for name in games]))
    for name, allowed in (("lives", ("unused", "discount", "reset")), ("actions", ("needed", "all"))):
        if config[name] not in allowed:
            raise ValueError(f"{name} is {config[name]!r}; allowed are {', '.join(allowed)}")
    return Atari(game, count, config, lives=config.lives if training else "unused")


class Atari:
    """ALE's vector environment with observations {"image": (H, W, C) uint8}.

    The interface is that of a gymnasium vector environment, with a step split into `step_async` and `step_wait`.

    Args:
        game: name of the game in ALE.
        count: number of environments.
        config: the settings, see configs.yaml.
        lives: effect of a lost life, see the setting `lives`.
    """

    def __init__(self, game: str, count: int, config, lives: str):
        self._lives = lives
        height, width = config.size
        self._envs = AtariVectorEnv(
            game,
            count,
            img_height=height,
            img_width=width,
            grayscale=config.grayscale,
            stack_num=1,
            frameskip=config.action_repeat,
            max_num_frames_per_episode=config.time_limit or 2**31 - 1,
            noop_max=config.noops,
            repeat_action_probability=0.25 if config.sticky else 0.0,
            full_action_space=config.actions == "all",
            episodic_life=lives == "reset",
            life_loss_info=lives == "discount",
            reward_clipping=False,
            use_fire_reset=False,
        )
        self.num_envs = count
        self.single_action_space = self._envs.single_action_space
        image = spaces.Box(0, 255, (height, width, 1 if config.grayscale else 3), np.uint8)
        self.single_observation_space = spaces.Dict({"image": image})

    def _obs(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": frames.reshape(self.num_envs, *self.single_observation_space["image"].shape)}

    def reset(self, seed: int | None = None) -> tuple[dict, dict]:
        """Resets all games; returns observations and info."""
        frames, info = self._envs.reset(seed=seed)
        return self._obs(frames), info

    def step_async(self, actions: np.ndarray) -> None:
        """Starts a step with actions (N,)."""
        self._envs.send(actions.astype(np.int64))

    def step_wait(self) -> tuple:
        """Waits for the step; returns observations, rewards, terminated, truncated and info."""
        frames, reward, terminated, truncated, info = self._envs.recv()
        if self._lives == "discount":
            # ALE then reports every lost life as a termination, but the game continues while lives are left.
            info["life_lost"] = terminated
            terminated = terminated & (info["lives"] == 0)
        return self._obs(frames), reward, terminated, truncated, info

    def close(self) -> None:
        """Ends all games."""
        self._envs.close()


class AtariWithMemory(gymnasium.Env):
    """One game whose observations include the console's RAM, as `log_memory` (128,) uint8.

    It serves to probe what a model knows. Pixels of an image differ from those of `Atari` by at most 1. Lost lives are
    ignored.

    Args:
        game: name of the game in ALE.
        config: the settings, see configs.yaml.
    """

    def __init__(self, game: str, config):
        self._ale = ALEInterface()
        self._ale.setFloat("repeat_action_probability", 0.25 if config.sticky else 0.0)
        self._rom = roms.get_rom_path(game)
        self._ale.loadROM(self._rom)
        self._actions = self._ale.getLegalActionSet() if config.actions == "all" else self._ale.getMinimalActionSet()
        self._screen = self._ale.getScreenGrayscale if config.grayscale else self._ale.getScreenRGB
        self._rows, self._columns = (_area_weights(*sides) for sides in zip(self._ale.getScreenDims(), config.size))
        self._repeat, self._noops = config.action_repeat, config.noops
        self.action_space = spaces.Discrete(len(self._actions))
        self.observation_space = spaces.Dict(
            {
                "image": spaces.Box(0, 255, (*config.size, 1 if config.grayscale else 3), np.uint8),
                "log_memory": spaces.Box(0, 255, (self._ale.getRAMSize(),), np.uint8),
            }
        )

    def _observe(self, *frames: np.ndarray) -> dict[str, np.ndarray]:
        image = np.maximum.reduce(frames).reshape(*self._ale.getScreenDims(), -1)
        image = np.tensordot(self._rows, np.tensordot(self._columns, image, (1, 1)), (1, 1))
        return {"image": image.round().astype(np.uint8), "log_memory": self._ale.getRAM()}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self._ale.setInt("random_seed", seed % 2**31)
            self._ale.loadROM(self._rom)  # a seed takes effect only when a ROM is loaded
        self._ale.reset_game()
        for _ in range(self.np_random.integers(self._noops + 1)):
            self._ale.act(0)
        return self._observe(self._screen()), {}

    def step(self, action) -> tuple:
        reward, frame = 0.0, self._screen()
        for _ in range(self._repeat):
            before, reward = frame, reward + self._ale.act(self._actions[action])
            frame = self._screen()
            if self._ale.game_over():
                break
        return self._observe(before, frame), reward, self._ale.game_over(), False, {}


def _area_weights(old: int, new: int) -> np.ndarray:
    """Weights that resize a row of pixels by area averaging.

    Returns:
        (new, old): share of each old pixel in each new one.
    """
    edges, pixels = np.linspace(0, old, new + 1), np.arange(old)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return overlap.clip(0.0) * new / old


def make_with_memory(game: str, count: int, config):
    """Builds environments `AtariWithMemory`; arguments as in `make`."""
    return vectorize(functools.partial(AtariWithMemory, game, config), count, config)


# RAM addresses of some games' variables (Anand et al. 2019, "Unsupervised State Representation Learning in Atari"). Boxing's scores and
# clock are decimal, one digit in each half of the byte; the clock has the seconds, without the minutes.
MEMORY = {
    "boxing": {"player x": 32, "player y": 34, "enemy x": 33, "enemy y": 35, "player score": 18, "enemy score": 19, "clock": 17},
    "breakout": {"paddle x": 72, "ball x": 99, "ball y": 101},
    "freeway": {"chicken y": 14, **{f"car {lane} x": 117 - lane for lane in range(10)}},
    "pong": {"player y": 51, "enemy y": 50, "ball x": 49, "ball y": 54, "player score": 14, "enemy score": 13},
}
