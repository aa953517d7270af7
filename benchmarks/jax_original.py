"""Runs the train step of the JAX original (danijar/dreamerv3), from a checkout of it, for `speed.py --jax`.

It is a program of its own, for a Python that has JAX: python jax_original.py CHECKOUT SHAPE THREADS BATCH. SHAPE begins with
a size ("size1m_images"), BATCH is an .npz file with arrays (B, T, ...). It answers every line that it reads with the seconds of
one train step, in float32 on the CPU, until all results are there. Between lines it waits and computes nothing.
"""

import contextlib
import os
import pathlib
import sys
import time
from collections.abc import Callable

import numpy as np


def main() -> None:
    checkout, name, threads = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2], sys.argv[3]
    if not (checkout / "dreamerv3" / "configs.yaml").is_file():
        sys.exit(f"error: no dreamerv3/configs.yaml in {checkout}: give --jax a checkout of https://github.com/danijar/dreamerv3")
    os.environ["NPROC"] = threads  # the threads that XLA starts; the original overwrites XLA_FLAGS
    sys.path[0] = str(checkout)
    with contextlib.redirect_stdout(sys.stderr):
        try:
            step = train_step(checkout, name.partition("_")[0], load_batch(pathlib.Path(sys.argv[4])))
        except ImportError as error:
            sys.exit(f"error: {sys.executable} does not import {error.name}: install the original's requirements there")
        step()  # compiles
        answers = os.fdopen(1, "w", closefd=False)  # what the original prints goes to stderr
        print("ready", file=answers, flush=True)
        for _ in sys.stdin:
            print(step(), file=answers, flush=True)


def load_batch(path: pathlib.Path) -> dict[str, np.ndarray]:
    """A batch, whose first step is there twice, the first time as context."""
    with np.load(path, allow_pickle=False) as file:
        return {key: np.concatenate([file[key][:, :1], file[key]], 1) for key in file.files}


def train_step(checkout: pathlib.Path, size: str, batch: dict[str, np.ndarray]) -> Callable[[], float]:
    """A function that trains an agent of this size on the batch once, and returns the seconds."""
    import elements
    import jax
    from dreamerv3.agent import Agent
    from embodied.core.streams import Stateless
    from ruamel.yaml import YAML

    obs_space = {key: elements.Space(value.dtype, value.shape[2:]) for key, value in batch.items() if key != "action"}
    action = batch["action"]
    act_space = elements.Space(action.dtype, action.shape[2:], -1, 1)
    if np.isin(action, (0, 1)).all():  # one-hot
        act_space = elements.Space(np.int32, (), 0, action.shape[-1])
        action = action.argmax(-1).astype(np.int32)
    sections = YAML(typ="safe", pure=True).load((checkout / "dreamerv3" / "configs.yaml").read_text())
    config = elements.Config(sections["defaults"]).update(sections[size])
    on_cpu = {"platform": "cpu", "compute_dtype": "float32", "prealloc": False, "precompile": False, "profiler": False}
    count, length = action.shape[:2]
    shared = {key: config[key] for key in ("logdir", "seed", "report_length")}
    shared |= {"batch_size": count, "batch_length": length - 1, "replay_context": 1}
    agent = Agent(obs_space, {"action": act_space}, elements.Config(**config.agent, **shared, jax={**config.jax, **on_cpu}))

    data = {key: np.zeros((count, length, *space.shape), space.dtype) for key, space in agent.spaces.items()}
    data |= {**batch, "action": action}
    stream = iter(agent.stream(Stateless(lambda: dict(data))))
    carry = agent.init_train(count)

    def step() -> float:
        nonlocal carry
        start = time.perf_counter()
        carry, _, _ = agent.train(carry, next(stream))
        jax.block_until_ready((agent.params, carry, agent.pending_outs, agent.pending_mets))
        return time.perf_counter() - start

    return step


if __name__ == "__main__":
    main()
