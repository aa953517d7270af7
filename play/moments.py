"""Recorded moments in which a dream begins: what an agent infers in the middle of episodes.

Shapes: T steps of an episode, A action.
"""

import contextlib
import os
import pathlib
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

import console
from envs import make_envs
from envs.gym import check_modules
from networks import State
from play import playing
from play.camera import as_rgb, image_keys, shrink
from play.world import pictured
from storage.episodes import load_episode, names_in

FILE = "moments.npz"  # an episode beside a published agent's checkpoint
COUNT = 8  # moments
CONTEXT = 64  # steps that the agent observes before a moment, at most
PLAYED = 80  # steps that are played where no episode is recorded
LARGEST = 2**28  # bytes of an episode's file that is read
SIDE = 96  # pixels of a picture's longest side, at most


class Moment(NamedTuple):
    """A state in which a dream may begin.

    Attributes:
        name: for the page.
        state: posterior (1, ...).
        picture: what was seen (H, W, 3) uint8; None if it was no image.
    """

    name: str
    state: State
    picture: np.ndarray | None


def find(agent: nn.Module, folder: pathlib.Path, modules: Collection[str], seed: int) -> list[Moment]:
    """Moments of the episodes in a run's folder, or of `FILE` there, or, without both, of steps that the agent plays now.

    Args:
        agent: a trained `dreamer.Dreamer`.
        modules: modules that may be imported for the environment.
        seed: of the environment.
    Returns:
        at most `COUNT` moments; none if nothing is recorded and the environment cannot be built, which is said then.
    """
    names = names_in(folder / "train_eps")
    chosen = dict.fromkeys(names[index] for index in np.linspace(len(names) // 2, len(names) - 1, COUNT).astype(int)) if names else {}
    episodes = {name: _read(agent, folder / "train_eps" / name) for name in chosen}
    episodes = {f"episode {names.index(name) + 1}": episode for name, episode in episodes.items() if episode} or {
        "recorded": _read(agent, folder / FILE)
    }
    if not any(episodes.values()):
        try:
            episodes = {"played": _play(agent, modules, seed)}
        except (ValueError, OSError, RuntimeError) as error:
            console.warn(f"no recorded moments: {' '.join(str(error).split())}")
            return []
    share = -(-COUNT // len(episodes))
    return [moment for name, episode in episodes.items() for moment in from_episode(agent, episode, name, share)][:COUNT]


def from_episode(agent: nn.Module, episode: dict[str, np.ndarray], name: str, count: int) -> list[Moment]:
    """Moments of an episode, arrays (T, ...), evenly spread over it."""
    length, found = len(episode["action"]), []
    for step in dict.fromkeys(((np.arange(count) + 0.5) / count * length).astype(int).tolist()):
        part = {key: episode[key][None, max(0, step + 1 - CONTEXT) : step + 1] for key in (*agent._wm.encoder.shapes, "action", "is_first")}
        with torch.random.fork_rng([]):
            torch.manual_seed(step)
            post, _ = playing.observe(agent._wm, part)
        picture = _picture(agent, {key: value[step] for key, value in episode.items()})
        found.append(Moment(f"{name}, step {step}", {key: value[:, -1] for key, value in post.items()}, picture))
    return found


def _picture(agent: nn.Module, step: dict[str, np.ndarray]) -> np.ndarray | None:
    """What is to see of a step (H, W, 3) uint8: an observed image or board, a rendered image, or nothing."""
    seen = pictured(agent._config.task, {key: step[key] for key in (*agent._wm.encoder.shapes, playing.RENDERED) if key in step})
    images = [value for value in seen.values() if value.ndim == 3 and value.dtype == np.uint8 and value.size]
    return shrink(as_rgb(images[0]), SIDE) if images else None


def _read(agent: nn.Module, path: pathlib.Path) -> dict[str, np.ndarray] | None:
    """An episode; None if there is none that the agent could have observed."""
    try:
        if os.path.getsize(path) > LARGEST:
            return None
        episode = load_episode(path)
        for key, shape in {**agent._wm.encoder.shapes, "action": (agent.codec.size,), "is_first": ()}.items():
            if episode[key].dtype != np.uint8:
                with np.errstate(over="ignore"):  # what is too large is refused below
                    episode[key] = episode[key].astype(np.float32, casting="same_kind")
            wrong = episode[key].shape[1:] != tuple(shape) or (len(shape) == 3 and episode[key].dtype != np.uint8)
            if wrong or not np.isfinite(episode[key]).all():
                return None
        return episode
    except Exception:  # a damaged file, which may raise anything, or one that is being written
        return None


def _play(agent: nn.Module, modules: Collection[str], seed: int) -> dict[str, np.ndarray]:
    check_modules(agent._config, modules)
    with contextlib.closing(make_envs(agent._config, 1, training=False)) as envs:
        data = playing.play(agent, envs, PLAYED, seed, sample=agent._config.eval_sample, render=not image_keys(envs.obs_space))
    return {key: value[0] for key, value in data.items()}
