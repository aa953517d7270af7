"""Lets a trained agent play, and computes what its world model infers from that.

Shapes: N environments, T steps.
"""

import argparse

import numpy as np
import torch
from torch import nn

import console
from envs import EnvBatch
from models import WorldModel
from networks import State
from tools import autocast

Data = dict[str, np.ndarray]
CHUNK = 64  # steps that are encoded at a time
RENDERED = "log_rendered"  # key of rendered images; models ignore keys that begin with log_


def add_import_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --import, as `modules`: the names for `check_modules`."""
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="module that is imported, which defines your environment",
    )


def play(
    agent: nn.Module, envs: EnvBatch, steps: int, seed: int, *, sample: bool = True, one_episode: bool = False, render: bool = False
) -> Data:
    """Lets the agent act. Returns arrays (N, T, ...) of observations and the actions that led to them.

    Args:
        steps: T at most.
        sample: sampled actions or the most likely ones.
        one_episode: stop where all environments are at the end of an episode.
        render: also return rendered images of environment 0 as RENDERED (1, T, H, W, C). If there are none, a line says why.
    """
    agent.act_in(envs.act_space)
    torch.manual_seed(seed)
    record, state = [], None
    images, problem = [], envs.prepare_render() if render else ""
    obs, action = envs.reset(seed), np.zeros((envs.count, agent.codec.size), np.float32)
    with console.Progress("play", steps * envs.count, "steps") as progress:
        for step in range(steps):
            record.append({**obs, "action": np.where(obs["is_first"][:, None], np.float32(0.0), action)})
            if render and not problem:
                image = envs.render()
                problem = image if isinstance(image, str) else ""
                images.append(image)
            if one_episode and obs["is_last"].all():
                break
            actions, state = agent.act(obs, state, training=sample)
            action = state["action"].cpu().numpy()
            envs.send(actions)
            obs = envs.recv()
            progress.update((step + 1) * envs.count)
    data = {key: np.stack([step[key] for step in record], 1) for key in record[0]}
    if not problem and len({image.shape for image in images}) > 1:
        problem = "cannot be filmed: the size of its rendered images changes"
    if problem:
        console.say(f"no rendered images: {agent._config.task} {problem}")
    return {**data, RENDERED: np.stack(images)[None]} if images and not problem else data


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
def observe_top(model: WorldModel, data: Data) -> State:
    """States (N, T, ...) with an observation of the top level only, on the CPU; see `HierarchicalRSSM.observe_top`."""
    with autocast(model._config):
        part = model.preprocess(data)
        state = model.dynamics.observe_top(model.encoder(part), part["action"], part["is_first"])
    return {key: value.cpu() for key, value in state.items()}


@torch.no_grad()
def decode(model: WorldModel, state: State) -> dict[str, np.ndarray]:
    """Predicted observations (..., ...), images in [0, 1]; of discrete ones their probabilities."""
    shape = state["deter"].shape[:-1]
    flat = {key: value.flatten(0, len(shape) - 1) for key, value in state.items()}
    parts = []
    for chunk in range(0, len(flat["deter"]), 512):
        feat = model.dynamics.get_feat({key: value[chunk : chunk + 512].to(model.dynamics.device) for key, value in flat.items()})
        with autocast(model._config):
            parts.append({key: dist.mean.float().cpu().numpy() for key, dist in model.heads["decoder"](feat).items()})
    found = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return {key: value.reshape(*shape, *value.shape[1:]) for key, value in found.items()}


def seen(data: Data, predicted: dict[str, np.ndarray]) -> Data:
    """The observations of the same keys as the predicted ones, images in [0, 1]."""
    return {key: data[key] / np.float32(255.0) if data[key].dtype == np.uint8 else data[key] for key in predicted}
