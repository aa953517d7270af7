"""Behaviours that explore."""

import numpy as np
import torch

from envs.spaces import ActionCodec


class Random:
    """Uniformly random actions, with the same `act` as the agent.

    Args:
        codec: of the environment's actions.
        seed: of the policy's own random numbers.
    """

    def __init__(self, codec: ActionCodec, seed: int):
        self._codec = codec
        self._rng = np.random.default_rng(seed)

    def act(self, obs: dict, state: dict | None = None, training: bool = True) -> tuple[np.ndarray, dict]:
        """Actions for N environments, and a state that holds only the action vectors (N, A)."""
        vectors = self._codec.random(self._rng, len(obs["is_first"]))
        return self._codec.decode(vectors), {"action": torch.as_tensor(vectors)}
