"""The shapes that speed is measured at: spaces, presets, and random batches."""

from typing import NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

import models
import settings
import tools
from dreamer import Dreamer


class Shape(NamedTuple):
    """What an agent sees and does, and the presets that size it.

    Attributes:
        single_thread: measured on one thread, as a laptop that does other things too would run it.
    """

    about: str
    observations: dict[str, tuple[int, ...]]
    act_space: gymnasium.Space
    presets: list[str]
    single_thread: bool = False

    @property
    def variants(self) -> dict[str, list[str]]:
        """Presets of the agents that are compared, by name; two levels twice as large as the flat latent only in 2023."""
        names = ["hdreamer_split"] if "dreamerv3_2025" in self.presets else ["hdreamer_split", "hdreamer"]
        return {"flat": [], **{name: [name] for name in names}}

    def config(self, presets: list[str] = (), **overrides) -> settings.Config:
        """The settings, in float32 unless `overrides` say otherwise; `presets` come on top."""
        return tools.load_config([*self.presets, *presets], {"device": "cpu", "precision": "32", **overrides})

    def agent(self, presets: list[str] = (), **overrides) -> Dreamer:
        """An agent of this shape; `presets` and settings come on top."""
        torch.manual_seed(0)
        config = self.config(presets, **overrides)
        obs_space = spaces.Dict(
            {
                key: spaces.Box(0, 255, shape, np.uint8) if len(shape) == 3 else spaces.Box(-np.inf, np.inf, shape, np.float32)
                for key, shape in self.observations.items()
            }
        )
        return Dreamer(obs_space, self.act_space, config)

    def observe(self, *lead: int) -> dict[str, np.ndarray]:
        """Random observations, arrays (*lead, ...), in the middle of an episode."""
        rng = np.random.default_rng(0)
        obs = {
            key: rng.integers(0, 256, (*lead, *shape), np.uint8) if len(shape) == 3 else rng.standard_normal((*lead, *shape), np.float32)
            for key, shape in self.observations.items()
        }
        return {**obs, **{key: np.zeros(lead, bool) for key in ("is_first", "is_last", "is_terminal")}}

    def batch(self, config: settings.Config) -> dict[str, np.ndarray]:
        """A random batch for an agent with these settings, arrays (B, T, ...), with the latents that it starts from if they are stored."""
        rng = np.random.default_rng(0)
        size, length = config.batch_size, config.batch_length
        if isinstance(self.act_space, spaces.Discrete):
            action = np.eye(self.act_space.n, dtype=np.float32)[rng.integers(self.act_space.n, size=(size, length))]
        else:
            action = rng.uniform(-1.0, 1.0, (size, length, *self.act_space.shape)).astype(np.float32)
        batch = {**self.observe(size, length), "action": action, "reward": rng.standard_normal((size, length), np.float32)}
        if config.replay_context:
            batch["replay.context"] = {key: np.ones((size, *shape), dtype) for key, (shape, dtype) in models.latent_layout(config).items()}
        else:
            batch["is_first"][:, 0] = True
        return batch


SHAPES = {
    "images": Shape("images 64 x 64 x 3, REINFORCE", {"image": (64, 64, 3)}, spaces.Discrete(6), ["atari100k"]),
    "vectors": Shape(
        "vectors, dynamics gradient",
        {"orientations": (14,), "height": (1,), "velocity": (9,)},
        spaces.Box(-1.0, 1.0, (6,), np.float32),
        ["dmc_proprio"],
    ),
    "small": Shape("vectors, small size, REINFORCE", {"observation": (4,)}, spaces.Discrete(2), ["small"], single_thread=True),
    "size1m_vectors": Shape(
        "2025, size1m, 24 numbers", {"observation": (24,)}, spaces.Box(-1.0, 1.0, (6,), np.float32), ["dreamerv3_2025", "size1m"]
    ),
    "size1m_images": Shape("2025, size1m, images 64 x 64 x 3", {"image": (64, 64, 3)}, spaces.Discrete(6), ["dreamerv3_2025", "size1m"]),
    "size12m_images": Shape("2025, size12m, images 64 x 64 x 3", {"image": (64, 64, 3)}, spaces.Discrete(6), ["dreamerv3_2025", "size12m"]),
}
# What the recurrence of a large model costs, without the convolutions that take most of its time.
LARGE = Shape("vectors, sizes of crafter", {"observation": (16,)}, spaces.Discrete(17), ["crafter"])
LARGE_SETTINGS = {
    f"{net}.{key}": value for net in ("encoder", "decoder") for key, value in dict(mlp_keys=".*", mlp_layers=1, mlp_units=256).items()
}
