"""POPGym, memory tasks (Morad et al. 2023): `--task popgym_<name>`, for example popgym_RepeatFirstEasy."""

import functools

import gymnasium

from envs.gym import ActionRepeat, vectorize
from settings import unknown

PREFIX, SUFFIX = "popgym-", "-v0"


def make(name: str, count: int, config):
    """Builds environments of a task.

    Args:
        name: name of the task.
        count: number of environments.
        config: the settings, see configs.yaml.
    Raises:
        ValueError: for an unknown task.
    """
    import popgym  # noqa: F401 -- registers the tasks

    names = [spec[len(PREFIX) : -len(SUFFIX)] for spec in gymnasium.registry if spec.startswith(PREFIX)]
    if name not in names:
        raise ValueError(unknown("task", f"popgym_{name}", [f"popgym_{known}" for known in names]))
    return vectorize(functools.partial(_make_one, name, config.action_repeat), count, config)


def _make_one(name: str, repeat: int, **render_mode: str) -> gymnasium.Env:
    import popgym  # noqa: F401 -- registers the tasks in a spawned worker

    env = gymnasium.make(f"{PREFIX}{name}{SUFFIX}", disable_env_checker=True, **render_mode)
    return ActionRepeat(env, repeat) if repeat > 1 else env
