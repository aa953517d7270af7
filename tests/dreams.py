"""Small untrained agents of every kind, and episodes that they could have observed."""

import numpy as np
import torch
from gymnasium import spaces

import tools
from dreamer import Dreamer

VECTOR = {"vector": spaces.Box(-np.inf, np.inf, (3,), np.float32)}
IMAGE = {"image": spaces.Box(0, 255, (32, 32, 3), np.uint8)}
BOTH = {**IMAGE, **VECTOR}
MIXED = spaces.Dict(gear=spaces.Discrete(3), lights=spaces.MultiBinary(2), steer=spaces.Box(-1.0, 1.0, (2,), np.float32))
KINDS = {
    "flat": (["debug"], {}, VECTOR, spaces.Discrete(3)),
    "gaussian": (["debug"], {"dyn_discrete": 0, "dyn_stoch": 5}, VECTOR, spaces.Box(-2.0, 2.0, (1,), np.float32)),
    "two levels": (["debug", "hdreamer"], {"actor.unimix_ratio": 0.1}, BOTH, MIXED),
    "2025 flat": (["dreamerv3_2025", "debug"], {}, IMAGE, spaces.Discrete(3)),
    "2025": (["dreamerv3_2025", "debug", "hdreamer"], {"dyn_discrete_top": 3}, BOTH, spaces.MultiDiscrete([3, 2])),
}


def make_agent(kind: str, seed: int = 0) -> Dreamer:
    presets, overrides, observed, action = KINDS[kind]
    config = tools.load_config(presets, {"task": "gym_Nowhere-v0", "device": "cpu", "precision": "32", "size": [32, 32], **overrides})
    torch.manual_seed(seed)
    agent = Dreamer(spaces.Dict(observed), action, config)
    with torch.no_grad():
        for name, parameter in agent.named_parameters():
            if "_top_to" in name or "_prior_weight" in name or "mean_layer" in name:  # zero at first
                parameter.normal_(0.0, 0.5)
    return agent


def random_actions(agent: Dreamer, count: int, seed: int = 0) -> np.ndarray:
    return agent.codec.random(np.random.default_rng(seed), count)


def episode(agent: Dreamer, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    observed = {
        key: rng.integers(0, 255, (length, *space.shape), np.uint8) if space.dtype == np.uint8 else rng.normal(size=(length, *space.shape))
        for key, space in agent.obs_space.spaces.items()
    }
    flags = {name: np.arange(length) == (0 if name == "is_first" else length - 1) for name in ("is_first", "is_last", "is_terminal")}
    return {**observed, **flags, "reward": np.zeros(length, np.float32), "action": random_actions(agent, length, seed)}
