"""Environments. `make_envs` builds several environments of one task, which are stepped together."""

import importlib
from collections.abc import Callable

import gymnasium
import numpy as np

# Each suite is one file, which is imported only when a task needs it.
OPTIONAL = ("dmc", "crafter", "memorymaze", "minatar", "minigrid", "popgym", "metaworld")
SUITES = ("atari", "gym", *OPTIONAL)


def make_envs(
    config,
    count: int,
    training: bool,
    *,
    capped: bool | None = None,
    tried: "EnvBatch | None" = None,
    make_env: Callable[..., gymnasium.Env] | None = None,
) -> "EnvBatch":
    """Builds environments of the task in `config`.

    Args:
        count: number of environments.
        training: False for evaluation, where a lost life never ends an episode, and `eval_env_kwargs` apply.
        capped: whether `eval_time_limit` cuts episodes off; None for evaluation alone.
        tried: environments for training with the same settings; unless `eval_env_kwargs` differ, these are not tried out again.
        make_env: makes one environment of the suite gym, see `envs.gym.claim`.
    Raises:
        ValueError: if the suite or the task does not exist, or if a package of the suite is not installed.
    """
    suite, _, name = config.task.partition("_")
    if suite == "minecraft":
        raise ValueError(
            f"task {config.task!r}: MineRL cannot be installed everywhere, so there is no minecraft adapter; register "
            "your environment with gymnasium and use it with --configs minecraft --task gym_<id>"
        )
    if suite not in SUITES:
        raise ValueError(f"task {config.task!r} names the suite {suite!r}; allowed are {', '.join(SUITES)}")
    trial = tried.trial if tried and not config.get("eval_env_kwargs") else None
    config, limit = _adapted(config, training, suite != "atari" and (not training if capped is None else capped))
    arguments = {"atari": [training], "gym": [trial, make_env]}.get(suite, [])
    try:
        module = importlib.import_module(f"envs.{suite}")
        envs = module.make(name, count, config, *arguments)
    except ImportError as error:
        requirements = f"requirements/{suite}.txt" if suite in OPTIONAL else "requirements.txt"
        raise ValueError(
            f"task {config.task!r} needs a package that is not installed ({error}); run: pip install -r {requirements}"
        ) from error
    return EnvBatch(envs, getattr(module, "scores", None), limit, config.action_repeat)


def _adapted(config, training: bool, capped: bool) -> tuple:
    """The settings that environments are made with, and the frames after which `eval_time_limit` cuts episodes off; 0 if it does not."""
    limit = config.eval_time_limit if capped and not 0 < config.time_limit <= config.eval_time_limit else 0
    changes = {"time_limit": limit} if limit else {}
    if config.get("eval_env_kwargs"):
        # Environments for training have none of them, so that errors there do not name `eval_env_kwargs`.
        changes |= {"eval_env_kwargs": {}} if training else {"env_kwargs": {**config.env_kwargs, **config.eval_env_kwargs}}
    return type(config)({**config, **changes}), limit


def check_alike(envs: "EnvBatch", obs_space: gymnasium.spaces.Dict, act_space: gymnasium.Space) -> None:
    """Raises ValueError if environments for evaluation have other spaces than those for training; what is only logged may differ."""
    shown = [{key: part for key, part in space.spaces.items() if not key.startswith("log_")} for space in (envs.obs_space, obs_space)]
    for now, before in ([gymnasium.spaces.Dict(space) for space in shown], (envs.act_space, act_space)):
        if now != before:
            raise ValueError(f"the environments to evaluate in have other spaces (eval_env_kwargs): {now}, in training {before}")


class EnvBatch:
    """Several environments that are stepped together and return aligned steps.

    A step is a dict of arrays (N, ...): the observations by name, `reward` as float32, and the flags `is_first`, `is_last` and
    `is_terminal`. After the last step of an episode, the environment ignores its next action and returns the first step of a new
    episode.

    Args:
        envs: a gymnasium vector environment with NEXT_STEP autoreset, dict observations, `step_async` and `step_wait`. To render,
            it also needs `prepare_render` and `render`, see `workers.Workers`.
        scores: computes the scores of a suite by name from a list of episodes. Each episode is a dict of sums: `return` and the
            logged quantities. None if the suite has no scores of its own.
        limit: frames after which `eval_time_limit` cuts episodes off; 0 if it does not.
        repeat: frames per step.
    Attributes:
        trial: what is known of the environment since it was tried out, see `check.Trial`; None if it was not.
    """

    def __init__(self, envs, scores: Callable[[list[dict[str, float]]], dict[str, float]] | None = None, limit: int = 0, repeat: int = 1):
        self._envs, self._scores, self._limit, self._repeat = envs, scores, limit, repeat
        self.trial = getattr(envs, "trial", None)
        self.count = envs.num_envs
        self.obs_space = envs.single_observation_space
        self.act_space = envs.single_action_space
        self._ended = np.zeros(self.count, bool)
        self._pending = False

    def heed(self, stop) -> None:
        """Lets `recv` wait only a few seconds more once `stop` is true, see `workers.Workers.stop`."""
        if hasattr(self._envs, "stop"):
            self._envs.stop = stop

    def reset(self, seed: int | None = None) -> dict[str, np.ndarray]:
        """Starts a new episode in every environment. Environment i gets the seed `seed + i`; None keeps its random state."""
        if self._pending:
            self.recv()
        obs, _ = self._envs.reset(seed=seed)
        self._ended = np.zeros(self.count, bool)
        no = np.zeros(self.count, bool)
        return {**obs, "reward": np.zeros(self.count, np.float32), "is_first": ~no, "is_last": no, "is_terminal": no}

    def send(self, actions: np.ndarray | list) -> None:
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

    def prepare_render(self) -> str:
        """Lets `render` show environment 0. Call it before a reset.

        Returns:
            why the environment cannot render, as the rest of a sentence that begins with its name; "" if it can.
        """
        return self._envs.prepare_render() if hasattr(self._envs, "prepare_render") else "does not render"

    def render(self) -> np.ndarray | str:
        """Renders environment 0 between `recv` and `send`: an image (H, W, C) uint8, or why there is none."""
        return self._envs.render()

    def scores(self, episodes: list[dict[str, float]]) -> dict[str, float]:
        """The suite's own scores of these episodes, from the sums over each episode. Empty if the suite has none."""
        return self._scores(episodes) if self._scores and episodes else {}

    def tell_cut(self, lengths: list[int]) -> str:
        """How many of the episodes of these lengths, in steps, `eval_time_limit` has cut off; "" if it is none."""
        cut = sum(length >= max(1, self._limit // self._repeat) for length in lengths) if self._limit else 0
        return f"{cut} of {len(lengths)} episodes were cut off at {self._limit:,} frames (eval_time_limit)" if cut else ""

    def close(self) -> None:
        if self._pending:
            self.recv()
        self._envs.close()
