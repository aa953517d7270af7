"""Trained agents: loading them, letting them play, and what their world models see in that.

    from agents import load_agent

    agent = load_agent("logdir/20261128-002237-gym_CartPole-v1")
    action, state = agent.act(obs, state)

Shapes: N environments, T steps.
"""

import argparse
import contextlib
import copy
import os
from collections.abc import Collection

import numpy as np
import torch

import checkpoints
import console
import settings
from dreamer import Dreamer
from envs import EnvBatch, make_envs
from envs.gym import modules_of
from envs.spaces import space_of
from models import WorldModel, autocast
from networks import State

Data = dict[str, np.ndarray]
CHUNK = 64  # steps that are encoded at a time


def load_agent(path: str | os.PathLike, device: str = "auto") -> Dreamer:
    """The agent of a run, ready to act: `action, state = agent.act(obs, state)`.

    Args:
        path: the folder of a run, or a checkpoint file; nothing else is read.
        device: where it computes, as the setting `device`.
    Raises:
        ValueError: if there is no agent, or one that cannot be built from the file alone.
    """
    return read_agent(path, device)[0]


def read_agent(path: str | os.PathLike, device: str = "auto") -> tuple[Dreamer, dict]:
    """As `load_agent`; and the checkpoint that the agent comes from."""
    file = checkpoints.locate(os.fspath(path))
    checkpoint = checkpoints.load(file, "Give the folder of a run that dreamer.py has trained, or a checkpoint in it")
    stored = checkpoint.get("config")
    if not settings.holds_settings(stored):
        raise ValueError(
            f"{file} holds no settings, so the agent cannot be built from it alone, as with all files of dreamerv3-torch; "
            f"start a run with them: python dreamer.py --configs ... --from_checkpoint {file}"
        )
    config = settings.load_config(overrides={**settings.flatten(stored), "device": device, "compile": False})
    spaces = _spaces(checkpoint, config)
    _check_size(spaces, config, checkpoint["agent_state_dict"])
    agent = Dreamer(*spaces, config)
    agent.load_state_dict(checkpoint["agent_state_dict"])
    agent.exploring, agent.updates = False, int(checkpoint.get("updates", 0))
    return agent, checkpoint


def _check_size(spaces: tuple, config: settings.Config, weights: dict) -> None:
    """Raises ValueError if the settings in a file mean an agent far larger than the weights in it; it would take all memory."""
    config = copy.deepcopy(config)
    config.device = "meta"
    try:
        with torch.device("meta"):
            agent = Dreamer(*spaces, config)
    except (TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"the settings in the checkpoint mean no agent ({str(error).splitlines()[0]}); it is damaged") from error
    needed = sum(tensor.numel() for tensor in agent.state_dict().values())
    held = sum(tensor.numel() for tensor in weights.values() if torch.is_tensor(tensor)) if isinstance(weights, dict) else 0
    if needed > 2 * held:
        raise ValueError(f"the settings in the checkpoint mean an agent of {needed:,} numbers, and it holds {held:,}; it is damaged")


def _spaces(checkpoint: dict, config: settings.Config) -> tuple:
    """Observation and action space; checkpoints of the first versions do not hold them, their environment does."""
    if isinstance(stored := checkpoint.get("spaces"), dict):
        return space_of(stored.get("observation")), space_of(stored.get("action"))
    if modules := modules_of(config.task, config.get("import")):
        raise ValueError(
            f"the checkpoint holds no spaces, and to find them in its environment, {', '.join(sorted(modules))} would be imported, which "
            "the checkpoint names; continue its run for one step, which stores them"
        )
    with contextlib.closing(make_envs(config, 1, training=False)) as envs:
        return envs.obs_space, envs.act_space


def add_import_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --import, as `modules`: the names for `check_modules`."""
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="what the environment is in, if it is one of your own; imported",
    )


def check_modules(config: settings.Config, named: Collection[str]) -> None:
    """Raises ValueError if the environment needs modules that the user has not named: no file decides what is imported."""
    if missing := sorted(modules_of(config.task, config.get("import")) - set(named)):
        raise ValueError(
            f"the environment {config.task} is in the module {', '.join(missing)}, and a file does not decide what is imported; if you "
            f"trust it, add {' '.join(f'--import {name}' for name in missing)}"
        )


def play(agent: Dreamer, envs: EnvBatch, steps: int, seed: int, *, sample: bool = True, one_episode: bool = False) -> Data:
    """Lets the agent act; arrays (N, T, ...) of observations and the actions that led to them.

    Args:
        steps: T at most.
        sample: sampled actions or the most likely ones.
        one_episode: stop where all environments are at the end of one.
    """
    agent.act_in(envs.act_space)
    torch.manual_seed(seed)
    record, state = [], None
    obs, action = envs.reset(seed), np.zeros((envs.count, agent.codec.size), np.float32)
    with console.Progress("play", steps * envs.count, "steps") as progress:
        for step in range(steps):
            record.append({**obs, "action": np.where(obs["is_first"][:, None], np.float32(0.0), action)})
            if one_episode and obs["is_last"].all():
                break
            actions, state = agent.act(obs, state, training=sample)
            action = state["action"].cpu().numpy()
            envs.send(actions)
            obs = envs.recv()
            progress.update((step + 1) * envs.count)
    return {key: np.stack([step[key] for step in record], 1) for key in record[0]}


@torch.no_grad()
def observe(model: WorldModel, data: Data) -> tuple[State, State]:
    """Posterior and prior (N, T, ...) of what was played, on the CPU."""
    state, chunks = None, []
    for start in range(0, data["action"].shape[1], CHUNK):
        with autocast(model._config):
            part = model.preprocess({key: value[:, start : start + CHUNK] for key, value in data.items()})
            post, prior = model.dynamics.observe(model.encoder(part), part["action"], part["is_first"], state)
        state = {key: value[:, -1] for key, value in post.items()}
        chunks.append([{key: value.cpu() for key, value in states.items()} for states in (post, prior)])
    return tuple({key: torch.cat([chunk[number][key] for chunk in chunks], 1) for key in chunks[0][number]} for number in (0, 1))


@torch.no_grad()
def decode(model: WorldModel, state: State) -> dict[str, np.ndarray]:
    """Predicted observations (..., ...), images in [0, 1]."""
    shape = state["deter"].shape[:-1]
    flat = {key: value.flatten(0, len(shape) - 1) for key, value in state.items()}
    parts = []
    for chunk in range(0, len(flat["deter"]), 512):
        feat = model.dynamics.get_feat({key: value[chunk : chunk + 512].to(model.dynamics.W.device) for key, value in flat.items()})
        with autocast(model._config):
            parts.append({key: dist.mode.float().cpu().numpy() for key, dist in model.heads["decoder"](feat).items()})
    found = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return {key: value.reshape(*shape, *value.shape[1:]) for key, value in found.items()}


def seen(data: Data, predicted: dict[str, np.ndarray]) -> Data:
    """The observations of the same keys as the predicted ones, images in [0, 1]."""
    return {key: data[key] / np.float32(255.0) if data[key].dtype == np.uint8 else data[key] for key in predicted}
