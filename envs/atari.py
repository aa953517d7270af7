"""Atari games through ALE's own vector environment: `--task atari_<game>`, for example atari_pong or atari_ms_pacman."""

import numpy as np
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium import spaces

from settings import unknown


def make(game: str, count: int, config, training: bool) -> "Atari":
    """`count` environments of a game; the settings' meaning stands in configs.yaml.

    Raises:
        ValueError: for an unknown game, or a setting that ALE cannot follow.
    """
    games = roms.get_all_rom_ids()
    if game not in games:
        raise ValueError(unknown("Atari game", f"atari_{game}", [f"atari_{name}" for name in games]))
    for name, allowed in (("lives", ("unused", "discount", "reset")), ("actions", ("needed", "all"))):
        if config[name] not in allowed:
            raise ValueError(f"{name} is {config[name]!r}; allowed are {', '.join(allowed)}")
    return Atari(game, count, config, lives=config.lives if training else "unused")


class Atari:
    """ALE's vector environment with the observation {"image": (H, W, C) uint8} and our settings.

    Args:
        lives: what a lost life means, see configs.yaml.
    """

    def __init__(self, game: str, count: int, config, lives: str):
        self._lives = lives
        height, width = config.size
        self._envs = AtariVectorEnv(
            game, count,
            img_height=height, img_width=width, grayscale=config.grayscale, stack_num=1,
            frameskip=config.action_repeat, max_num_frames_per_episode=config.time_limit or 2 ** 31 - 1, noop_max=config.noops,
            repeat_action_probability=0.25 if config.sticky else 0.0, full_action_space=config.actions == "all",
            episodic_life=lives == "reset", life_loss_info=lives == "discount",
            reward_clipping=False, use_fire_reset=False)
        self.num_envs = count
        self.single_action_space = self._envs.single_action_space
        image = spaces.Box(0, 255, (height, width, 1 if config.grayscale else 3), np.uint8)
        self.single_observation_space = spaces.Dict({"image": image})

    def _obs(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": frames.reshape(self.num_envs, *self.single_observation_space["image"].shape)}

    def reset(self, seed: int | None = None) -> tuple[dict, dict]:
        frames, info = self._envs.reset(seed=seed)
        return self._obs(frames), info

    def step_async(self, actions: np.ndarray) -> None:
        self._envs.send(actions.astype(np.int64))

    def step_wait(self) -> tuple:
        frames, reward, terminated, truncated, info = self._envs.recv()
        if self._lives == "discount":
            # ALE then reports every lost life as a termination, but plays on while there are lives left.
            info["life_lost"] = terminated
            terminated = terminated & (info["lives"] == 0)
        return self._obs(frames), reward, terminated, truncated, info

    def close(self) -> None:
        self._envs.close()
