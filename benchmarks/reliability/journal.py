"""An environment that records its own steps, to compare with the files of a run:

    JOURNAL=folder python dreamer.py --task gym_Journal-v0 --import benchmarks.reliability.journal --envs 4 ...

CartPole, whose observation also has the number of the episode. Only environments in worker processes write; the one
that is checked before a run does not.
"""

import multiprocessing
import os
import pathlib

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv

STEPS, FINISHED = "steps", "finished"  # a byte for each step; a line with its number for each episode


class Journal(gymnasium.Wrapper):
    """Observes CartPole's vector and the number of the episode, as two parts that float32 represents exactly."""

    def __init__(self):
        super().__init__(CartPoleEnv())
        self.observation_space = spaces.Dict({"vector": self.env.observation_space, "number": spaces.Box(0, 2**24, (2,), np.float32)})
        self._folder = pathlib.Path(os.environ["JOURNAL"]) if multiprocessing.current_process().name == "worker" else None
        self._ended = False

    def reset(self, *, seed=None, options=None) -> tuple:
        # A reset means that the program has received the end of the previous episode.
        if self._ended:
            self._write(FINISHED, f"{episode_number(self._number)}\n".encode())
        self._ended = False
        self._number = np.frombuffer(os.urandom(6), np.uint8).astype(np.float32).reshape(2, 3) @ np.array([1, 2**8, 2**16], np.float32)
        obs, info = self.env.reset(seed=seed, options=options)
        return {"vector": obs, "number": self._number}, info

    def step(self, action) -> tuple:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._ended = terminated or truncated
        self._write(STEPS, b".")
        return {"vector": obs, "number": self._number}, reward, terminated, truncated, info

    def _write(self, name: str, line: bytes) -> None:
        if self._folder:
            with open(self._folder / name, "ab", buffering=0) as file:
                file.write(line)


def episode_number(parts: np.ndarray) -> int:
    """Combines the two parts of an observation into one number."""
    return int(parts[0]) + 2**24 * int(parts[1])


gymnasium.register("Journal-v0", Journal)
