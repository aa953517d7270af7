"""Checkpoints on disk: written at once or not at all, read without running code."""

import pathlib
import random

import numpy as np
import torch

import tools

VERSION = 1


def save(path: pathlib.Path, checkpoint: dict) -> None:
    """Writes a dict of tensors and plain containers; the file under `path` is replaced only when the new one is complete."""
    with tools.replacing(path) as file:
        torch.save({"version": VERSION, **checkpoint}, file)


def load(path: pathlib.Path) -> dict:
    """Reads a checkpoint onto the CPU; nothing in it can run code.

    Raises:
        ValueError: for a file of a newer format.
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    if checkpoint.get("version", VERSION) > VERSION:
        raise ValueError(f"{path} has format version {checkpoint['version']}, this program reads up to {VERSION}; update hDreamer")
    return checkpoint


def random_state(replay_rng: np.random.Generator) -> dict:
    """The state of every random number generator, in plain containers."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), position, has_gauss, cached),
        "replay": replay_rng.bit_generator.state,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
    }


def restore_random_state(state: dict, replay_rng: np.random.Generator) -> None:
    """Sets every random number generator as `random_state` found it."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    replay_rng.bit_generator.state = state["replay"]
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
