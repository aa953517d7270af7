"""Environments: `make_envs` builds several of one task, stepped together."""

import importlib
from collections.abc import Callable

import numpy as np

# One file each, imported only when asked for.
OPTIONAL = ("dmc", "crafter", "memorymaze", "minatar", "minigrid", "popgym", "metaworld")
SUITES = ("atari", "gym", *OPTIONAL)


def make_envs(config, count: int, training: bool) -> "EnvBatch":
    """Environments of the task in `config`.

    Args:
        count: how many.
        training: False for evaluation, in which episodes are always played to their real end.
    Raises:
        ValueError: for a suite or task that does not exist, or a suite whose packages are not installed.
    """
    suite, _, name = config.task.partition("_")
    if suite == "minecraft":
        raise ValueError(
            f"task {config.task!r}: MineRL cannot be installed everywhere, so there is no minecraft adapter; register "
            "your environment with gymnasium and use it with --configs minecraft --task gym_<id>"
        )
    if suite not in SUITES:
        raise ValueError(f"task {config.task!r} names the suite {suite!r}; allowed are {', '.join(SUITES)}")
    try:
        module = importlib.import_module(f"envs.{suite}")
        envs = module.make(name, count, config, training) if suite == "atari" else module.make(name, count, config)
    except ImportError as error:
        requirements = f"requirements/{suite}.txt" if suite in OPTIONAL else "requirements.txt"
        raise ValueError(
            f"task {config.task!r} needs a package that is not installed ({error}); run: pip install -r {requirements}"
        ) from error
    return EnvBatch(envs, getattr(module, "scores", None))


class EnvBatch:
    """Several environments that are stepped together and answer with aligned steps.

    A step is a dict of arrays (N, ...): the observation's keys, `reward` float32, and the flags `is_first`, `is_last` and
    `is_terminal`. After an environment's last step its next action is ignored and its next step is the first of a new episode.

    Args:
        envs: a gymnasium vector environment with NEXT_STEP autoreset, dict observations, `step_async` and `step_wait`.
        scores: numbers by name that a list of episodes is worth, each a dict of sums (`return` and what is logged); None if the suite
            has none beyond the means.
    """

    def __init__(self, envs, scores: Callable[[list[dict[str, float]]], dict[str, float]] | None = None):
        self._envs, self._scores = envs, scores
        self.count = envs.num_envs
        self.obs_space = envs.single_observation_space
        self.act_space = envs.single_action_space
        self._ended = np.zeros(self.count, bool)
        self._pending = False

    def reset(self, seed: int | None = None) -> dict[str, np.ndarray]:
        """Begins new episodes everywhere; environment i is seeded with seed + i. None goes on with the present random state."""
        if self._pending:
            self.recv()
        obs, _ = self._envs.reset(seed=seed)
        self._ended = np.zeros(self.count, bool)
        no = np.zeros(self.count, bool)
        return {**obs, "reward": np.zeros(self.count, np.float32), "is_first": ~no, "is_last": no, "is_terminal": no}

    def send(self, actions: np.ndarray) -> None:
        """Starts a step with N environment actions."""
        self._envs.step_async(actions)
        self._pending = True

    def recv(self) -> dict[str, np.ndarray]:
        """Waits for the step that `send` started."""
        self._pending = False
        obs, reward, terminated, truncated, info = self._envs.step_wait()
        first = self._ended | info.get("restarted", False)
        terminated, truncated = terminated & ~first, truncated & ~first
        self._ended = terminated | truncated
        return {
            **obs,
            "reward": np.where(first, 0.0, reward).astype(np.float32),
            "is_first": first,
            "is_last": self._ended,
            "is_terminal": terminated | (info.get("life_lost", False) & ~first),
        }

    def scores(self, episodes: list[dict[str, float]]) -> dict[str, float]:
        """What these episodes are worth together by the suite's own score, from the sums over each; nothing if it has none."""
        return self._scores(episodes) if self._scores and episodes else {}

    def close(self) -> None:
        if self._pending:
            self.recv()
        self._envs.close()
